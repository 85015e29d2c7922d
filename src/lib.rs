//! Layers, optimizers, a training loop and the classic models of the deep-learning books, on [candle](candle_core)'s tensors.
//!
//! Gradients are tested against finite differences and PyTorch, a training step takes no longer than PyTorch's in eager mode, and on
//! a CPU the same seed gives the same bits.
//!
//! | module | content |
//! |---|---|
//! | [`nn`] | layers with candle_nn's names and signatures, and losses |
//! | [`optim`] | optimizers with saved state, learning-rate schedules, gradient clipping |
//! | [`train`] | the training loop for these models and for your own, run folders, saved weights |
//! | [`models`] | one architecture per module, from the perceptron to translation with attention |
//! | [`data`] | images, text, tags, translations and music: built-in sets, and readers of the usual files |
//! | [`ops`] | the differentiable operations that the layers call |
//! | [`rng`], [`device`], [`processes`] | random numbers that repeat, the choice of a GPU, training on several processes |
//!
//! # Example
//!
//! This trains a perceptron on built-in digits. [`train`] shows how to train, save and load a model of your own.
//! In a crate of your own, depend on `candle-textbook`, `candle-core` and `anyhow`.
//!
//! ```
//! use candle_core::{DType, Device};
//! use candle_textbook::models::mlp::{Config, Mlp};
//! use candle_textbook::nn::{self, Activation, Cost, InitScheme};
//! use candle_textbook::{data, optim, train};
//!
//! fn main() -> anyhow::Result<()> {
//!     let (images, test) = data::digits(1_000, 200, 0)?; // labelled images of 28x28 pixels
//!     let (training, validation): (Vec<u32>, Vec<u32>) = (0..1_000).partition(|i| i % 10 > 0);
//!     let (vars, device) = (nn::VarMap::new(), Device::Cpu);
//!     let vb = nn::seeded_var_builder(&vars, 42, DType::F32, &device);
//!     let sizes = vec![28 * 28, 100, 10];
//!     let model = Mlp::new(&Config { sizes, activation: Activation::Relu, init: InitScheme::PyTorch, dropout: 0.0 }, vb)?;
//!     let task = train::ImageClassification {
//!         model: &model, images: &images, training: &training, validation: &validation, augmentation: None,
//!         cost: Cost::SoftmaxCrossEntropy, label_smoothing: 0.0, device: &device,
//!     };
//!     let trainer = train::Trainer { progress: &train::Lines, ..Default::default() }; // 10 epochs at a learning rate of 1e-3
//!     trainer.fit(&task, &vars, &mut optim::Optimizer::new(optim::Adam::adamw(), &vars)?)?;
//!
//!     let all: Vec<u32> = (0..200).collect();
//!     let evaluation = train::evaluate_images(&model, Cost::SoftmaxCrossEntropy, &test, &all, &device)?;
//!     assert!(evaluation.accuracy() > 0.7);
//!     Ok(())
//! }
//! ```
//!
//! # Layers
//!
//! [`nn`] has candle_nn's names and signatures, so `use candle_textbook::nn as candle_nn;` is nearly all that changes in a
//! program; [the module](nn#in-place-of-candle_nn) lists the rest.
//!
//! | here | candle_nn | PyTorch | what differs from candle_nn |
//! |---|---|---|---|
//! | [`nn::max_pool2d`], [`nn::avg_pool2d`] | `Tensor::max_pool2d`, `avg_pool2d` | `max_pool2d`, `avg_pool2d` | the right gradient of a maximum, which candle divides by the size of the window; windows may overlap |
//! | [`nn::relu`] | `Tensor::relu` | `relu` | the gradient at 0 is 0 |
//! | [`nn::linear()`], [`linear_no_bias`](nn::linear_no_bias) | the same | `nn.Linear` | faster on the CPU |
//! | [`nn::conv1d`] | the same | `nn.Conv1d` | right gradient of the weight |
//! | [`nn::conv2d`] | the same | `nn.Conv2d` | faster on the CPU and on CUDA; gradients for images that are not square, with a stride |
//! | [`nn::conv_transpose1d`] | the same | `nn.ConvTranspose1d` | has a gradient |
//! | [`nn::conv_transpose2d`] | the same | `nn.ConvTranspose2d` | faster on the CPU |
//! | [`nn::embedding()`] | the same | `nn.Embedding` | gradients of the used rows only, see [`optim::Optimizer::set_sparse`] |
//! | [`nn::batch_norm()`] | the same | `nn.BatchNorm1d`, `2d`, `3d` | one operation; fused with an add and a ReLU on request |
//! | [`nn::layer_norm()`], [`nn::rms_norm`] | the same | `nn.LayerNorm`, `nn.RMSNorm` | pass the gradient on |
//! | [`nn::rotary_emb`] | the same | - | pass the gradient on |
//! | [`nn::group_norm()`] | the same | `nn.GroupNorm` | fewer operations |
//! | [`nn::Dropout`] | the same | `nn.Dropout` | masks that repeat from run to run |
//! | [`nn::Activation`], [`nn::prelu`] | the same | `nn.GELU`, `nn.PReLU`, ... | `Tanh`; gradients of Mish and of [`selu`](nn::ops::selu) for large inputs |
//! | [`nn::lstm`], [`nn::gru`] | the same | `nn.LSTM`, `nn.GRU` | one operation for all time steps on the CPU |
//! | [`nn::recurrent()`] | - | `nn.RNN`, `nn.GRU`, `nn.LSTM` | several layers, both directions, lengths |
//! | [`nn::attention`](nn::attention()), [`nn::conv_max_over_time`] | - | - | |
//! | [`nn::loss`] | the same | `cross_entropy`, `nll_loss`, `mse_loss`, ... | one operation; binary cross-entropy of large logits |
//! | [`nn::AdamW`], [`nn::SGD`] | the same | `optim.AdamW`, `optim.SGD` | one pass over memory; [`optim`] has more methods, schedules and saved state |
//!
//! Initial values are PyTorch's everywhere.
//!
//! # Threads
//!
//! Operations on the CPU run in rayon's thread pool. `RAYON_NUM_THREADS` sets its size; a program may also train inside `install` of a
//! `rayon::ThreadPool` of its own. The number of threads changes no bit of a result. Candle's own operations have another pool,
//! which competes with this one: set `CANDLE_NUM_THREADS=1`.
//!
//! # Features
//!
//! | feature | by default | what it adds |
//! |---|---|---|
//! | `cli` | on | the binaries and the module `cli`; turns on `plots` |
//! | `plots` | on | the modules `plots` and `lab`; turns on `images` |
//! | `images` | on | PNG and JPEG files: [`data::image::folder`], [`data::image::read_square`], [`data::image::read_digit`] |
//! | `hub` | off | downloads from the Hugging Face hub; turns on `images` |
//! | `playground` | off | the page on which the models answer; turns on `cli` |
//! | `mpi` | off | training on several processes that MPI starts: [`processes`] |
//! | `nccl` | off | `cuda` and `mpi`; gradients travel from GPU to GPU |
//! | `cuda`, `cudnn`, `metal`, `accelerate`, `mkl` | off | the same as in candle |
//!
//! With `default-features = false` there are models, layers, optimizers, training and data, and 13 crates
//! besides candle and its dependencies.

#![deny(missing_docs, clippy::undocumented_unsafe_blocks, unsafe_op_in_unsafe_fn)]

#[cfg(feature = "cli")]
pub mod cli;
pub mod data;
pub mod device;
mod kernels;
#[cfg(feature = "plots")]
pub mod lab;
pub mod models;
pub mod nn;
pub mod ops;
pub mod optim;
#[cfg(feature = "plots")]
pub mod plots;
pub mod processes;
pub mod rng;
pub mod train;

/// Runs the examples of README.md.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
