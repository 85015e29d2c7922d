//! Architectures, one file each: a `Config`, a constructor that takes its parameters from a `VarBuilder` under the
//! names of the same PyTorch module, and a forward pass.

pub mod lenet;
pub mod lenet5;
pub mod mlp;
