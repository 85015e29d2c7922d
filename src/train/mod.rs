//! Training: one loop for every model, the run folder that it writes, and the evaluation of models.
//!
//! | type | role |
//! |---|---|
//! | [`Task`] | a model with its data: computes the loss of a batch, and scores the model on validation data |
//! | [`Trainer`] | the training loop: shuffles, steps the optimizer, validates, keeps the best weights |
//! | [`Run`] | the run folder, which a training may do without: configuration, metrics, weights, checkpoint |
//! | [`Progress`] | receives the events of each step and each epoch: [`Quiet`], [`Lines`], or your own |
//! | [`Stop`] | ends a training early |
//!
//! Errors are [`anyhow::Error`], in a [`Task`] too: `?` converts candle's.
//!
//! Built-in tasks are [`ImageClassification`], [`SentenceClassification`], [`Tagging`], [`LanguageModelling`],
//! [`Translation`] and [`Composition`]; [`SentenceClassification`] has an example with texts of one's own. To train something else,
//! implement [`Task`]. The examples need the crates `candle-textbook`, `candle-core` and `anyhow`:
//!
//! ```
//! use anyhow::Result;
//! use candle_core::{DType, Device, Tensor};
//! use candle_textbook::nn::{self, Linear, Mode, Module, VarMap, seeded_var_builder};
//! use candle_textbook::optim::{Adam, Optimizer};
//! use candle_textbook::train::{Lines, Metric, Run, Score, Task, Trainer, TrainerOptions, load_model};
//!
//! /// Separates the positive from the negative numbers.
//! struct Signs {
//!     layer: Linear,
//! }
//!
//! impl Signs {
//!     fn logits_and_labels(&self, numbers: &[f32]) -> Result<(Tensor, Tensor)> {
//!         let xs = Tensor::from_slice(numbers, (numbers.len(), 1), &Device::Cpu)?;
//!         let labels: Vec<u32> = numbers.iter().map(|&x| u32::from(x > 0.0)).collect();
//!         Ok((self.layer.forward(&xs)?, Tensor::new(labels, &Device::Cpu)?))
//!     }
//! }
//!
//! impl Task for Signs {
//!     fn examples(&self) -> usize {
//!         100
//!     }
//!
//!     fn loss(&self, batch: &[u32], _: Mode) -> Result<Tensor> {
//!         let numbers: Vec<f32> = batch.iter().map(|&i| i as f32 / 50.0 - 0.99).collect();
//!         let (logits, labels) = self.logits_and_labels(&numbers)?;
//!         Ok(nn::loss::cross_entropy(&logits, &labels)?)
//!     }
//!
//!     fn validate(&self) -> Result<Score> {
//!         let (logits, labels) = self.logits_and_labels(&[-0.8, -0.3, 0.2, 0.7])?;
//!         let correct = logits.argmax(1)?.eq(&labels)?.to_dtype(DType::F64)?.mean_all()?.to_scalar()?;
//!         let loss = nn::loss::cross_entropy(&logits, &labels)?.to_scalar::<f32>()?;
//!         Ok(Score { loss: loss.into(), metric: correct })
//!     }
//!
//!     fn metric(&self) -> Metric {
//!         Metric::ACCURACY
//!     }
//! }
//!
//! fn main() -> Result<()> {
//!     let vars = VarMap::new();
//!     let vb = seeded_var_builder(&vars, 42, DType::F32, &Device::Cpu);
//!     let task = Signs { layer: nn::linear(1, 2, vb)? };
//!     let mut optimizer = Optimizer::new(Adam::adamw(), &vars)?;
//!     # let dir = tempfile::tempdir()?;
//!     # std::env::set_current_dir(&dir)?;
//!     // The next folder under `runs/signs/`.
//!     let run = Run::create("signs", None, &Default::default())?;
//!     let mut options = TrainerOptions::default();
//!     (options.epochs, options.batch_size, options.learning_rate) = (20, 10, 0.05);
//!     let trainer = Trainer { options, run: Some(&run), progress: &Lines, ..Trainer::default() };
//!     let report = trainer.fit(&task, &vars, &mut optimizer)?;
//!     assert_eq!(report.epochs[report.best_epoch - 1].validation.metric, 1.0);
//!
//!     // The trained model, loaded from the run folder. Another program gets it by `let (run, _) = Run::open("signs", None)?`.
//!     let (layer, _) = load_model(&run, &Device::Cpu, |vb| nn::linear(1, 2, vb))?;
//!     let logits = layer.forward(&Tensor::new(&[[-4f32], [7.0]], &Device::Cpu)?)?;
//!     assert_eq!(logits.argmax(1)?.to_vec1::<u32>()?, [0, 1]);
//!     Ok(())
//! }
//! ```
//!
//! The metric of a regression is `Metric::new("mse", false, |mse| format!("{mse:.4}"))`, where less is better.
//!
//! # Save, load and predict
//!
//! [`Trainer::fit`] leaves the weights of the best epoch in the variables. A run folder keeps them too, in `model.safetensors`, and
//! [`load_model`] builds the model from there. Without a run folder, save the variables with [`save_weights`], and load them into
//! the variables of a model that is built in the same way:
//!
//! ```
//! use candle_core::{DType, Device, Tensor};
//! use candle_textbook::nn::{self, Linear, Module, VarMap};
//! use candle_textbook::train::{load_weights, save_weights};
//! use std::path::Path;
//!
//! fn model(vars: &VarMap) -> candle_core::Result<Linear> {
//!     nn::linear(2, 3, nn::seeded_var_builder(vars, 42, DType::F32, &Device::Cpu))
//! }
//!
//! fn main() -> anyhow::Result<()> {
//!     # let dir = tempfile::tempdir()?;
//!     # std::env::set_current_dir(&dir)?;
//!     let file = Path::new("model.safetensors");
//!     let vars = VarMap::new();
//!     let trained = model(&vars)?;
//!     // .. training changes the variables ..
//!     save_weights(file, &vars)?;
//!
//!     let vars = VarMap::new();
//!     let loaded = model(&vars)?;
//!     load_weights(file, &vars)?;
//!     let xs = Tensor::new(&[[0.5f32, -1.0]], &Device::Cpu)?;
//!     assert_eq!(loaded.forward(&xs)?.to_vec2::<f32>()?, trained.forward(&xs)?.to_vec2::<f32>()?);
//!     Ok(())
//! }
//! ```
//!
//! A model with dropout or batch normalisation predicts with `Mode::Evaluate`. [`load_pretrained`] reads the weights of a PyTorch
//! module.
//!
//! # One epoch
//!
//! 1. The trainer shuffles the training examples, as a function of the seed and the epoch, and cuts them into batches.
//!    A task may ask for the original order instead ([`Task::in_order`]).
//! 2. Each batch is one step: [`Task::loss`], backward pass, clipping, update with the learning rate of the schedule.
//! 3. [`Task::validate`] scores the model.
//! 4. If the score is the best so far, the weights go to `model.safetensors`. The better score is the one
//!    with the better [`Metric`] or, if the metrics are equal, the one with the lower loss.
//! 5. The trainer saves a checkpoint, and adds the epoch to `metrics.jsonl`.
//!
//! Training ends after the last epoch, after [`TrainerOptions::patience`] epochs without a better score, or when a plateau
//! schedule ends it. [`Trainer::fit`] then loads the best weights into the variables. The validation data alone decide which
//! weights are the best; the trainer has no access to test data. Evaluate the model on them once, at the end, with
//! [`evaluate_images`], [`SentenceClassification::evaluate`], [`Tagging::evaluate`] or [`evaluate_text`], and add the result to
//! the metrics with [`Run::write_final`].
//!
//! # The run folder
//!
//! | file | content |
//! |---|---|
//! | `config.json` | what [`Run::create`] was given, plus the name of the binary and the version of this crate |
//! | `metrics.jsonl` | one JSON object per epoch (see [`Epoch`]), then the result on the test data |
//! | `model.safetensors` | the weights of the best epoch, with PyTorch's names and shapes; load them with [`load_model`] |
//! | `checkpoint.safetensors` | the state of training: see below |
//! | `run.lock` | empty; locked by the process that trains in the folder, so that a second one is refused |
//!
//! Every file is written to a temporary name, synced and renamed. A crash leaves the old file or the new one. Temporary
//! files of a killed process are removed when the run resumes.
//!
//! Checksums protect the files that a run reads again: `config.json` and the two safetensors files hold a CRC-32 of
//! their own contents. The latter also hold the identity of their run. A flipped bit, an edited configuration, and a
//! checkpoint or a model of another run are errors. Weights that another program wrote have no checksum and load
//! nevertheless. The checksums do not protect against deliberate changes.
//!
//! # Checkpoints and resuming
//!
//! A checkpoint holds the parameters, the optimizer's state, the task's state (see [`Task::state`]), and the step, sums and
//! finished epochs so far. It is saved at the end of each epoch, every [`TrainerOptions::checkpoint_every`] steps, and on an
//! interruption. When training ends, only the record of the epochs stays, unless [`TrainerOptions::keep_checkpoint`] is set.
//! The best weights are in `model.safetensors` either way.
//!
//! To resume, build model, task, optimizer and options as before, open the folder with [`Run::open`] instead of
//! [`Run::create`], and call [`Trainer::fit`]. It finds the checkpoint and continues, if necessary in the middle of an
//! epoch:
//!
//! ```
//! use candle_textbook::train::Run;
//! use std::path::Path;
//!
//! fn main() -> anyhow::Result<()> {
//!     # let dir = tempfile::tempdir()?;
//!     # std::env::set_current_dir(&dir)?;
//!     let dir = Path::new("signs-1");
//!     let run = match dir.exists() {
//!         true => Run::open("signs", Some(dir))?.0,
//!         false => Run::create("signs", Some(dir), &Default::default())?,
//!     };
//!     // The trainer then has `run: Some(&run)`, as in the first example.
//!     Ok(())
//! }
//! ```
//!
//! The result has the same bits as an uninterrupted run, because every random draw is a function of the seed and
//! its place in training: no generator state needs saving. With [`seeded_var_builder`], initial weights are
//! reproducible too.
//!
//! A run without its checkpoint starts at the first epoch only if it never reached a checkpoint. Otherwise
//! [`Trainer::fit`] fails, as it does without the best weights. [`check_resumable`] checks these files early.
//!
//! An exact resume needs the same data. [`Run::check_facts`] refuses to resume if they have changed.
//!
//! To train for more epochs, resume with a larger [`TrainerOptions::epochs`]. The result is the same as in a run with
//! this number of epochs from the start, provided that the schedule does not depend on their number
//! ([`Schedule::depends_on_length`](crate::optim::Schedule::depends_on_length)) and, if training has ended, that the
//! checkpoint was kept.
//!
//! [`seeded_var_builder`]: crate::nn::seeded_var_builder
//!
//! To stop gracefully, use [`Trainer::stop`]: the trainer finishes the step, saves a checkpoint, and returns a [`Report`] with
//! `interrupted` set. With the crate `ctrlc`, that is what Ctrl-C does after
//! `ctrlc::set_handler({ let stop = trainer.stop.clone(); move || _ = stop.request() })?`. A killed process resumes from its
//! last checkpoint.

mod checkpoint;
mod checksum;
mod composer;
mod evaluation;
mod images;
mod language;
mod metrics;
mod music;
mod pickle;
mod progress;
mod pytorch;
mod run;
mod sentences;
mod shares;
mod step_graph;
mod stop;
mod tagging;
mod task;
mod text_generator;
mod trainer;
mod translation;
mod translator;
mod weights;

pub use checkpoint::{can_train_on, check_resumable};
pub use checksum::checksum;
pub use composer::Composer;
pub use evaluation::{Evaluation, Prediction};
pub use images::{ImageClassification, evaluate_images};
pub use language::{
    LanguageModelling, LanguageModellingConfig, LineScore, Windowing, evaluate_text, score_line,
};
pub use metrics::{Epoch, Metric, Report, Score};
pub use music::{Composition, MusicBatch, evaluate_music, music_windows, score_music};
pub use progress::{Lines, Progress, Quiet, check_output, is_output_open, print, say};
pub use run::{Run, write_file};
pub use sentences::{SentenceClassification, Sentences};
pub use stop::Stop;
pub use tagging::{Tagging, TaggingEvaluation};
pub use task::Task;
pub use text_generator::TextGenerator;
pub use trainer::{Trainer, TrainerOptions, steps_per_epoch};
pub use translation::{Scoring, TeacherForcing, Translation, best_translations, evaluate_translation};
pub use translator::{Decoding, Hypothesis, Translator};
pub use weights::{Pretrained, load_model, load_pretrained, load_weights, save_weights, weights_checksum};
