//! The state of a backward pass, and the context of a thread that it belongs to.

use crate::kernels::cpu::{elementwise, parallel};
use crate::kernels::cuda;
use crate::ops::gpu::{self, Gpu};
use crate::ops::host::{self, with_real};
use crate::ops::row_gradients::RowGradients;
use candle_core::{Result, Tensor, TensorId, bail};
use std::collections::HashMap;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicU64, Ordering};

/// Identifies a node for the lifetime of the program.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct NodeId(u64);

impl NodeId {
    pub(super) fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// The state of a backward pass.
#[derive(Default)]
pub(super) struct Pass {
    /// Sum and number of the parts that have arrived for each node, until the node takes them.
    pub(super) sums: HashMap<NodeId, (Tensor, usize)>,
    /// Gradients of the second result of nodes, until the node takes its own.
    pub(super) second: HashMap<NodeId, Tensor>,
    /// Gradients for the arguments of a node with several links, until each link has taken its own.
    pub(super) returned: HashMap<NodeId, Vec<Option<Tensor>>>,
    /// What an explicit pass collects in addition to candle's gradients.
    pub(super) collected: Option<Collected>,
}

/// Gradients that [`backward`] collects.
pub(super) struct Collected {
    /// The scalar that the pass began with.
    pub(super) root: TensorId,
    pub(super) variables: HashMap<TensorId, Parts>,
    pub(super) tables: Vec<TensorId>,
    pub(super) rows: HashMap<TensorId, RowGradients>,
    pub(super) finished: Option<Finished>,
}

/// Receives gradients of variables during the pass.
pub(crate) type Finished = Box<dyn FnMut(TensorId, &Tensor)>;

/// The parts of a variable's gradient that have arrived.
pub(super) struct Parts {
    pub(super) sum: Tensor,
    count: usize,
    /// Whether all parts that operations of this crate contribute have arrived, and `finished` was called.
    pub(super) is_finished: bool,
}

impl Pass {
    /// Runs `work` on the current thread's pass. If `work` fails or panics, the pass ends.
    pub(super) fn with<R>(work: impl FnOnce(&mut Self) -> Result<R>) -> Result<R> {
        let mut context = Context::get();
        let mut pass = context.pass.take().unwrap_or_default();
        let result = work(&mut pass)?;
        context.pass = Some(pass);
        Ok(result)
    }

    /// Adds a part to the gradient of `node`.
    pub(super) fn add(&mut self, node: NodeId, part: &Tensor) -> Result<()> {
        let part = part.contiguous()?;
        let sum = match self.sums.remove(&node) {
            Some((before, parts)) => (sum(&before, &part)?, parts + 1),
            None => (part, 1),
        };
        self.sums.insert(node, sum);
        Ok(())
    }

    /// Adds a gradient of the second result of `node`, if there is one.
    pub(super) fn add_second(&mut self, node: NodeId, part: Option<Tensor>) -> Result<()> {
        let Some(part) = part else { return Ok(()) };
        let sum = match self.second.remove(&node) {
            Some(before) => sum(&before, &part.contiguous()?)?,
            None => part.contiguous()?,
        };
        self.second.insert(node, sum);
        Ok(())
    }

    /// Takes the gradient of `node`, which must consist of `count` parts.
    pub(super) fn take(&mut self, node: NodeId, count: usize) -> Result<Tensor> {
        match self.sums.remove(&node) {
            Some((grad, parts)) if parts == count => Ok(grad),
            sum => bail!(
                "backward: found {} parts of a gradient, expected {count}: an earlier pass on this thread broke off; \
                 call backward again",
                sum.map_or(0, |(_, parts)| parts)
            ),
        }
    }

    /// Collects the gradient of a variable if the pass is explicit, and otherwise returns it.
    pub(super) fn collect(&mut self, variable: &Tensor, part: Tensor) -> Result<Option<Tensor>> {
        let Some(collected) = self.collected.as_mut().filter(|_| variable.is_variable()) else {
            return Ok(Some(part));
        };
        let id = variable.id();
        let (sum, count) = match collected.variables.remove(&id) {
            Some(before) => (sum(&before.sum, &part)?, before.count + 1),
            None => (part, 1),
        };
        let mut parts = Parts { sum, count, is_finished: false };
        if let Some(finished) = &mut collected.finished
            && super::uses().get(&id) == Some(&count)
        {
            finished(id, &parts.sum);
            parts.is_finished = true;
        }
        collected.variables.insert(id, parts);
        Ok(None)
    }

    /// Whether the pass collects the row gradients of `table`.
    pub(super) fn wants_rows(&self, table: &Tensor) -> bool {
        let wants = |collected: &Collected| collected.tables.contains(&table.id());
        table.is_variable() && self.collected.as_ref().is_some_and(wants)
    }

    /// Collects row gradients of `table`, which the pass wants.
    pub(super) fn collect_rows(&mut self, table: &Tensor, rows: RowGradients) -> Result<()> {
        let Some(collected) = &mut self.collected else { return Ok(()) };
        let rows = match collected.rows.remove(&table.id()) {
            Some(before) => before.add(rows)?,
            None => rows,
        };
        collected.rows.insert(table.id(), rows);
        Ok(())
    }

    /// Returns whether the pass is implicit and holds no gradients.
    fn is_over(&self) -> bool {
        let waiting = self.sums.len() + self.second.len() + self.returned.len();
        self.collected.is_none() && waiting == 0
    }
}

/// The state that a thread keeps for our operations.
pub(super) struct Context {
    /// Whether operations are recorded for a backward pass.
    pub(super) recording: bool,
    pub(super) pass: Option<Pass>,
}

impl Context {
    /// Borrows the current thread's context.
    pub(super) fn get() -> Lent {
        Self::existing().unwrap_or_else(|| Lent(Some(Box::new(Self { recording: true, pass: None }))))
    }

    /// Borrows the current thread's context if it differs from the default.
    pub(super) fn existing() -> Option<Lent> {
        parallel::replace_local(None).map(|context| Lent(Some(context)))
    }
}

/// A context taken from its slot, which it returns to when dropped.
pub(super) struct Lent(Option<Box<Context>>);

impl Deref for Lent {
    type Target = Context;

    fn deref(&self) -> &Context {
        self.0.as_ref().expect("a context until drop")
    }
}

impl DerefMut for Lent {
    fn deref_mut(&mut self) -> &mut Context {
        self.0.as_mut().expect("a context until drop")
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let Some(mut context) = self.0.take() else { return };
        context.pass.take_if(|pass| pass.is_over());
        if !context.recording || context.pass.is_some() {
            parallel::replace_local(Some(context));
        }
    }
}

/// Places `part` at `start` in a new tensor of `whole` zeros in the memory of a GPU.
pub(super) fn padded(part: &Tensor, start: usize, whole: usize) -> Result<Tensor> {
    let (part, Some(gpu)) = (part.contiguous()?, Gpu::of(part)) else { bail!("gradient: found no GPU") };
    with_real!("gradient", part.dtype(), T => {
        let padded = gpu.zeros::<T>(whole)?;
        // SAFETY: the part lies within the new buffer.
        unsafe { gpu.copy(gpu.pointer::<T>(&part)?, padded.pointer().offset(start), part.elem_count())? };
        Ok(gpu.tensor(padded, whole))
    })
}

/// Adds two contiguous tensors of the same shape.
pub(crate) fn sum(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    if let Some(gpu) = Gpu::of(a) {
        return with_real!("gradient", a.dtype(), T => gpu::zip_map::<T>(&gpu, cuda::ACTIVATION.kernel::<T>("sum"), a, b));
    }
    let held = host::hold([a, b]);
    with_real!("gradient", a.dtype(), T => {
        let sum = elementwise::zip_map(held.get::<T>(0)?, held.get(1)?, |a, b| a + b);
        Tensor::from_vec(sum, a.shape(), a.device())
    })
}
