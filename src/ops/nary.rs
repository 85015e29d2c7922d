//! CPU operations of any number of arguments, where candle's end at three.
//!
//! Each argument comes in through a node of its own on a chain of tensors without elements, at whose end the
//! operation is. On the way back the operation computes all gradients and leaves them with those nodes, which candle
//! visits next: no argument is copied, as it would be if they were joined into one tensor.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Device, Layout, Result, Shape, Tensor};
use std::sync::{Arc, Mutex, PoisonError};

pub(super) trait Operation: Send + Sync + 'static {
    const NAME: &'static str;

    fn forward(&self, args: &[Tensor]) -> Result<(CpuStorage, Shape)>;

    /// The gradients of the arguments in their order; none where an argument needs none.
    fn backward(&self, args: &[Tensor], ys: &Tensor, grad: &Tensor) -> Result<Vec<Option<Tensor>>>;
}

/// What `op` makes of `args`, all contiguous, in main memory and of the same dtype.
pub(super) fn apply(op: impl Operation, args: Vec<Tensor>) -> Result<Tensor> {
    let grads = Grads::default();
    let mut chain = Tensor::zeros(0, args[0].dtype(), &Device::Cpu)?;
    for (index, arg) in args.iter().enumerate().filter(|(_, arg)| arg.track_op()) {
        chain = chain.apply_op2(arg, Argument { index, grads: grads.clone() })?;
    }
    chain.apply_op1(End { op, args, grads })
}

type Grads = Arc<Mutex<Vec<Option<Tensor>>>>;

struct Argument {
    index: usize,
    grads: Grads,
}

impl CustomOp2 for Argument {
    fn name(&self) -> &'static str {
        "argument"
    }

    fn cpu_fwd(
        &self,
        chain: &CpuStorage,
        layout: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        Ok((chain.clone(), layout.shape().clone()))
    }

    fn bwd(
        &self,
        chain: &Tensor,
        _: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let mut grads = self.grads.lock().unwrap_or_else(PoisonError::into_inner);
        Ok((chain.track_op().then(|| grad.clone()), grads[self.index].take()))
    }
}

struct End<O> {
    op: O,
    args: Vec<Tensor>,
    grads: Grads,
}

impl<O: Operation> CustomOp1 for End<O> {
    fn name(&self) -> &'static str {
        O::NAME
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.op.forward(&self.args)
    }

    fn bwd(&self, chain: &Tensor, ys: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let grads = self.op.backward(&self.args, ys, &grad.contiguous()?)?;
        *self.grads.lock().unwrap_or_else(PoisonError::into_inner) = grads;
        Ok(Some(chain.zeros_like()?))
    }
}
