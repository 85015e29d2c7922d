//! Loads the weights of a PyTorch module, `torch.save(net.state_dict(), "plain.pth")`, and checks its logits.
//!
//!     cargo run --example load_pytorch [FILE]
//!
//! The module is
//!
//!     nn.ModuleDict({"first": nn.Linear(2, 3), "norm": nn.BatchNorm2d(3), "fc": nn.Linear(3, 4)})
//!
//! Parameters have PyTorch's names, shapes and order of gates, so nothing has to be renamed or transposed. A file of
//! safetensors loads in the same way.

use candle_core::{DType, Device, ModuleT, Result, Tensor};
use candle_textbook::nn::{self, BatchNorm, Linear, VarBuilder};
use candle_textbook::train::load_pretrained;
use std::path::Path;

struct Net {
    first: Linear,
    norm: BatchNorm,
    fc: Linear,
}

impl Net {
    fn new(vb: VarBuilder) -> Result<Self> {
        Ok(Self {
            first: nn::linear(2, 3, vb.pp("first"))?,
            norm: nn::batch_norm(3, 1e-5, vb.pp("norm"))?,
            fc: nn::linear(3, 4, vb.pp("fc"))?,
        })
    }
}

impl ModuleT for Net {
    /// `(batch, 2)` to `(batch, 4)`.
    fn forward_t(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        xs.apply(&self.first)?.apply_t(&self.norm, train)?.apply(&self.fc)
    }
}

/// Loads `file`, and returns the logits of the input `(1, 1)`.
pub fn run(file: &Path) -> anyhow::Result<Vec<f32>> {
    let vars = nn::VarMap::new();
    let net = Net::new(nn::seeded_var_builder(&vars, 0, DType::F32, &Device::Cpu))?;
    // Fails if a name or a shape differs, except that the last layer may be missing or have other classes.
    let has_head = load_pretrained(file, &vars, "fc")?.has_head;
    anyhow::ensure!(has_head, "{}: found no layer fc of this shape", file.display());
    let logits = net.forward_t(&Tensor::new(&[[1f32, 1.0]], &Device::Cpu)?, false)?;
    Ok(logits.flatten_all()?.to_vec1()?)
}

fn main() -> anyhow::Result<()> {
    let file = std::env::args().nth(1).unwrap_or_else(|| "tests/fixtures/pytorch/plain.pth".to_string());
    println!("logits {:?}", run(Path::new(&file))?);
    Ok(())
}
