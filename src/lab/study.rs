//! Training and measuring models: the code that the experiments share.

use super::experiment::Lab;
use crate::data::{Augmentation, Images, count};
use crate::models::lenet;
use crate::models::mlp::{self, Mlp};
use crate::nn::{Activation, Cost, InitScheme, Mode, Model, seeded_var_builder};
use crate::ops;
use crate::optim::{Adam, Clip, Method, Optimizer, Sgd};
use crate::train::{
    Evaluation, ImageClassification, Metric, Run, Score, Task, Trainer, TrainerOptions, evaluate_images,
};
use anyhow::{Result, ensure};
use candle_core::{DType, Device, Tensor};
use candle_nn::{VarBuilder, VarMap};
use serde_json::json;
use std::cell::{Cell, RefCell};
use std::sync::PoisonError;
use std::time::Instant;

/// Builds a model with parameters drawn from `seed`.
pub(super) fn build<M>(
    seed: u64,
    dtype: DType,
    model: impl FnOnce(VarBuilder) -> candle_core::Result<M>,
) -> candle_core::Result<(M, VarMap)> {
    let vars = VarMap::new();
    Ok((model(seeded_var_builder(&vars, seed, dtype, &Device::Cpu))?, vars))
}

/// Builds a multi-layer perceptron without dropout, with parameters drawn from `seed`.
pub(super) fn perceptron(
    seed: u64,
    dtype: DType,
    sizes: &[usize],
    (activation, init): (Activation, InitScheme),
) -> candle_core::Result<(Mlp, VarMap)> {
    let config = mlp::Config { sizes: sizes.to_vec(), activation, init, dropout: 0.0 };
    build(seed, dtype, |vb| Mlp::new(&config, vb))
}

/// The configuration of a LeNet, smaller in a quick run.
pub(super) fn lenet_config(lab: &Lab) -> lenet::Config {
    let full = lenet::Config::default();
    lab.scale(lenet::Config { channels: vec![6], hidden: vec![], ..full.clone() }, full)
}

/// The training of an image classifier.
#[derive(Clone)]
pub(super) struct Study<'a> {
    /// The images to train on: the first `examples`. The last `validation` images select the best epoch, if any.
    pub(super) images: &'a Images,
    pub(super) examples: usize,
    pub(super) validation: usize,
    pub(super) test: &'a Images,
    pub(super) cost: Cost,
    pub(super) method: Method,
    pub(super) augmentation: Option<Augmentation>,
    pub(super) options: TrainerOptions,
}

/// The measurements after an epoch.
#[derive(Debug, Clone, Copy)]
pub(super) struct Point {
    /// Training time so far, in seconds.
    pub(super) seconds: f64,
    pub(super) train: Score,
    pub(super) test: Score,
}

impl<'a> Study<'a> {
    /// The book's training: stochastic gradient descent in batches of 10 on the cross-entropy.
    pub(super) fn new(lab: &Lab, (images, test): &'a (Images, Images), epochs: usize, rate: f64) -> Self {
        let options = TrainerOptions {
            epochs,
            batch_size: 10,
            learning_rate: rate,
            seed: lab.seed(),
            ..TrainerOptions::default()
        };
        Self {
            images,
            examples: images.len(),
            validation: 0,
            test,
            cost: Cost::SigmoidCrossEntropy,
            method: Method::Sgd(Sgd::default()),
            augmentation: None,
            options,
        }
    }

    /// Adam in batches of 32 on the softmax cross-entropy.
    pub(super) fn adam(lab: &Lab, data: &'a (Images, Images), epochs: usize) -> Self {
        let mut study = Self::new(lab, data, epochs, 2e-3);
        (study.cost, study.method) = (Cost::SoftmaxCrossEntropy, Method::Adam(Adam::default()));
        study.options.batch_size = 32;
        study
    }

    /// Trains `model`, whose variables are `vars`, in the folder `name`, and returns one point per epoch.
    ///
    /// The weights of the best epoch stay in `vars`. Without validation images, the training images select it.
    pub(super) fn train(
        &self,
        lab: &Lab,
        name: &str,
        model: &dyn Model,
        vars: &VarMap,
    ) -> Result<Vec<Point>> {
        let indices = |from: usize, to: usize| (from as u32..to as u32).collect::<Vec<u32>>();
        let expected = self.examples + self.validation;
        ensure!(
            expected <= self.images.len(),
            "{name}: found {}, expected {expected}",
            count(self.images.len(), "image")
        );
        let training = indices(0, self.examples);
        let task = Watched {
            inner: ImageClassification {
                model,
                cost: self.cost,
                images: self.images,
                training: &training,
                validation: &indices(self.images.len() - self.validation, self.images.len()),
                augmentation: self.augmentation,
                label_smoothing: 0.0,
                device: &Device::Cpu,
            },
            study: self,
            seconds: Cell::new(0.0),
            resumed: Cell::new(Instant::now()),
            points: RefCell::default(),
        };
        let run = Run::create("lab", Some(&lab.folder()?.dir().join("trainings").join(name)), &json!({}))?;
        let mut optimizer = Optimizer::new(self.method, vars)?;
        let trainer = Trainer { options: self.options.clone(), run: Some(&run), ..Trainer::default() };
        trainer.fit(&task, vars, &mut optimizer)?;
        Ok(task.points.into_inner())
    }

    /// Evaluates `model` on the validation images.
    pub(super) fn validate(&self, model: &dyn Model) -> Result<Evaluation> {
        let count = self.images.len() as u32;
        let indices: Vec<u32> = (count - self.validation as u32..count).collect();
        evaluate_images(model, self.cost, self.images, &indices, &Device::Cpu)
    }

    /// Evaluates `model` on the test images.
    pub(super) fn evaluate(&self, model: &dyn Model) -> Result<Evaluation> {
        let all: Vec<u32> = (0..self.test.len() as u32).collect();
        evaluate_images(model, self.cost, self.test, &all, &Device::Cpu)
    }
}

/// An image classification task that also measures training and test images after each epoch.
struct Watched<'a> {
    inner: ImageClassification<'a>,
    study: &'a Study<'a>,
    seconds: Cell<f64>,
    resumed: Cell<Instant>,
    points: RefCell<Vec<Point>>,
}

impl Task for Watched<'_> {
    fn examples(&self) -> usize {
        self.inner.examples()
    }

    fn prefetch(&self, batches: &[&[u32]]) {
        self.resumed.set(Instant::now());
        self.inner.prefetch(batches);
    }

    fn loss(&self, batch: &[u32], mode: Mode) -> Result<Tensor> {
        self.inner.loss(batch, mode)
    }

    fn validate(&self) -> Result<Score> {
        self.seconds.set(self.seconds.get() + self.resumed.get().elapsed().as_secs_f64());
        let ImageClassification { model, cost, images, training, .. } = self.inner;
        let score = |evaluation: Evaluation| Score { loss: evaluation.loss, metric: evaluation.accuracy() };
        let train = score(evaluate_images(model, cost, images, training, &Device::Cpu)?);
        let test = score(self.study.evaluate(model)?);
        self.points.borrow_mut().push(Point { seconds: self.seconds.get(), train, test });
        if self.inner.validation.is_empty() { Ok(train) } else { self.inner.validate() }
    }

    fn metric(&self) -> Metric {
        self.inner.metric()
    }
}

/// Minimises `loss`, a function of the step, with `steps` steps, and returns the loss before each step.
pub(super) fn descend(
    optimizer: &mut Optimizer,
    (steps, rate, clip): (usize, f64, Clip),
    mut loss: impl FnMut(usize) -> candle_core::Result<Tensor>,
) -> candle_core::Result<Vec<f64>> {
    (0..steps)
        .map(|step| {
            let loss = loss(step)?;
            optimizer.backward_step(&loss, rate, clip)?;
            loss.to_dtype(DType::F64)?.to_scalar()
        })
        .collect()
}

/// The points of a line over epochs, from 1.
pub(super) fn over_epochs(values: impl IntoIterator<Item = f64>) -> Vec<(f64, f64)> {
    (1..).map(f64::from).zip(values).collect()
}

/// Mean and standard deviation.
pub(super) fn mean_and_deviation(values: &[f64]) -> (f64, f64) {
    let count = values.len().max(1) as f64;
    let mean = values.iter().sum::<f64>() / count;
    let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (count - 1.0).max(1.0);
    (mean, variance.sqrt())
}

/// A fraction in percent.
pub(super) fn percent(fraction: f64) -> String {
    format!("{:.1}%", 100.0 * fraction)
}

/// Sets the variable `name` to `values`, in its own shape and type.
pub(super) fn set(vars: &VarMap, name: &str, values: &[f64]) -> candle_core::Result<()> {
    let vars = vars.data().lock().unwrap_or_else(PoisonError::into_inner);
    let Some(var) = vars.get(name) else { candle_core::bail!("there is no variable {name}") };
    var.set(&Tensor::from_slice(values, var.shape(), var.device())?.to_dtype(var.dtype())?)
}

/// The values of the variable `name`.
pub(super) fn get(vars: &VarMap, name: &str) -> candle_core::Result<Vec<f64>> {
    let vars = vars.data().lock().unwrap_or_else(PoisonError::into_inner);
    let Some(var) = vars.get(name) else { candle_core::bail!("there is no variable {name}") };
    var.as_detached_tensor().flatten_all()?.to_dtype(DType::F64)?.to_vec1()
}

/// The gradients of `loss` with respect to the variables `names`.
pub(super) fn gradients(
    loss: &Tensor,
    vars: &VarMap,
    names: &[String],
) -> candle_core::Result<Vec<Vec<f64>>> {
    let (grads, _) = ops::backward(loss, vec![])?;
    let vars = vars.data().lock().unwrap_or_else(PoisonError::into_inner);
    let gradient = |name: &String| match vars.get(name).and_then(|var| grads.get(var.as_tensor())) {
        Some(grad) => grad.flatten_all()?.to_dtype(DType::F64)?.to_vec1(),
        None => candle_core::bail!("there is no gradient of {name}"),
    };
    names.iter().map(gradient).collect()
}

/// The Euclidean norm.
pub(super) fn norm(values: &[f64]) -> f64 {
    values.iter().map(|value| value * value).sum::<f64>().sqrt()
}
