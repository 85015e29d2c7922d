//! Regression on a table of numbers: a task of one's own, early stopping, predictions for new rows.
//!
//!     cargo run --example regression [TABLE.csv [NEW.csv]]
//!
//! Both files start with a line of names. The last column of TABLE.csv is the target; NEW.csv lacks it. A tenth of the rows ends
//! the training early, another is for the test. Without a file: how far a ball flies, with an error of 0.1 m.

pub mod table;

use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use candle_textbook::models::mlp::{Config, Mlp};
use candle_textbook::nn::{self, Activation, InitScheme, Mode, Model};
use candle_textbook::optim::{Adam, Optimizer};
use candle_textbook::train::{Lines, Metric, Score, Task, Trainer, TrainerOptions};

/// A model, and standardised rows: first those for training, then those for validation.
struct Regression {
    model: Mlp,
    inputs: Tensor,  // (rows, columns)
    targets: Tensor, // (rows, 1)
    training: usize,
}

impl Task for Regression {
    fn examples(&self) -> usize {
        self.training
    }

    fn loss(&self, batch: &[u32], mode: Mode) -> Result<Tensor> {
        let batch = Tensor::new(batch, &Device::Cpu)?;
        let outputs = self.model.forward(&self.inputs.index_select(&batch, 0)?, mode)?;
        Ok(nn::loss::mse(&outputs, &self.targets.index_select(&batch, 0)?)?)
    }

    fn validate(&self) -> Result<Score> {
        let rows: Vec<u32> = (self.training as u32..self.inputs.dim(0)? as u32).collect();
        let loss = self.loss(&rows, Mode::Evaluate)?.to_scalar::<f32>()?.into();
        Ok(Score { loss, metric: loss })
    }

    fn metric(&self) -> Metric {
        Metric::new("squared_error", false, |error| format!("{error:.5}"))
    }
}

/// Trains; returns the mean absolute error of the test rows, and predictions for `new` rows, both in the target's unit.
pub fn run(rows: &Tensor, new: Option<&Tensor>, epochs: usize) -> Result<(f32, Vec<f32>)> {
    let (inputs, targets) = table::split(rows)?;
    let (count, columns) = inputs.dims2()?;
    let (training, known) = (count * 8 / 10, count * 9 / 10);
    let scale_of = |columns: &Tensor| table::Scale::new(&columns.narrow(0, 0, training)?);
    let (scale, unit) = (scale_of(&inputs)?, scale_of(&targets)?);
    let vars = nn::VarMap::new();
    let vb = nn::seeded_var_builder(&vars, 42, DType::F32, &Device::Cpu);
    let (sizes, init) = (vec![columns, 64, 64, 1], InitScheme::PyTorch);
    let model = Mlp::new(&Config { sizes, activation: Activation::Relu, init, dropout: 0.0 }, vb)?;
    let xs = scale.standardise(&inputs.narrow(0, 0, known)?)?;
    let ys = unit.standardise(&targets.narrow(0, 0, known)?)?;
    let task = Regression { model, inputs: xs, targets: ys, training };
    let mut options = TrainerOptions::default();
    (options.epochs, options.patience, options.learning_rate) = (epochs, Some(20), 3e-3);
    let trainer = Trainer { options, progress: &Lines, ..Default::default() };
    trainer.fit(&task, &vars, &mut Optimizer::new(Adam::default(), &vars)?)?;
    let predict = |xs: &Tensor| unit.restore(&task.model.forward(&scale.standardise(xs)?, Mode::Evaluate)?);
    let test = |columns: &Tensor| columns.narrow(0, known, count - known);
    let errors = (predict(&test(&inputs)?)? - test(&targets)?)?.abs()?;
    let predictions: Result<_> = new.map_or(Ok(vec![]), |new| Ok(predict(new)?.flatten_all()?.to_vec1()?));
    Ok((errors.mean_all()?.to_scalar()?, predictions?))
}

fn main() -> Result<()> {
    let files: Vec<_> = std::env::args().skip(1).collect();
    let rows = files.first().map_or_else(table::balls, table::read)?;
    let new = files.get(1).map(table::read).transpose()?;
    let (error, predictions) = run(&rows, new.as_ref(), 200)?;
    println!("mean absolute error of the test rows: {error:.3}");
    predictions.iter().for_each(|prediction| println!("{prediction:.3}"));
    Ok(())
}
