#![doc = include_str!("../README.md")]
//!
//! # Layers
//!
//! [`nn`] has candle_nn's names and signatures, so `use candle_textbook::nn as candle_nn;` is nearly all that changes in a
//! program; [the module](nn#in-place-of-candle_nn) lists the rest.
//!
//! | here | candle_nn | PyTorch | what differs from candle_nn |
//! |---|---|---|---|
//! | [`nn::max_pool2d`], [`nn::avg_pool2d`] | `Tensor::max_pool2d`, `avg_pool2d` | `max_pool2d`, `avg_pool2d` | the right gradient of a maximum, which candle divides by the size of the window; windows may overlap |
//! | [`nn::linear()`], [`linear_no_bias`](nn::linear_no_bias) | the same | `nn.Linear` | faster on the CPU |
//! | [`nn::conv1d`] | the same | `nn.Conv1d` | right gradient of the weight |
//! | [`nn::conv2d`] | the same | `nn.Conv2d` | faster on the CPU and on CUDA; gradients for images that are not square, with a stride |
//! | [`nn::conv_transpose1d`] | the same | `nn.ConvTranspose1d` | has a gradient |
//! | [`nn::conv_transpose2d`] | the same | `nn.ConvTranspose2d` | faster on the CPU |
//! | [`nn::embedding()`] | the same | `nn.Embedding` | gradients of the used rows only, see [`optim::Optimizer::set_sparse`] |
//! | [`nn::batch_norm()`] | the same | `nn.BatchNorm1d`, `2d`, `3d` | one operation; fused with an add and a ReLU on request |
//! | [`nn::layer_norm()`], [`nn::rms_norm`] | the same | `nn.LayerNorm`, `nn.RMSNorm` | pass the gradient on |
//! | [`nn::group_norm()`] | the same | `nn.GroupNorm` | fewer operations |
//! | [`nn::Dropout`] | the same | `nn.Dropout` | masks that repeat from run to run |
//! | [`nn::Activation`], [`nn::prelu`] | the same | `nn.GELU`, `nn.PReLU`, ... | `Tanh`; a gradient of Mish for large inputs |
//! | [`nn::lstm`], [`nn::gru`] | the same | `nn.LSTM`, `nn.GRU` | one operation for all time steps on the CPU |
//! | [`nn::recurrent()`] | - | `nn.RNN`, `nn.GRU`, `nn.LSTM` | several layers, both directions, lengths |
//! | [`nn::attention`](nn::attention()), [`nn::conv_max_over_time`] | - | - | |
//! | [`nn::loss`] | the same | `cross_entropy`, `nll_loss`, `mse_loss`, ... | one operation; binary cross-entropy of large logits |
//! | [`nn::AdamW`], [`nn::SGD`] | the same | `optim.AdamW`, `optim.SGD` | one pass over memory; [`optim`] has more methods, schedules and saved state |
//!
//! Initial values are PyTorch's everywhere.
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
