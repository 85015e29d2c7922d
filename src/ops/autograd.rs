//! How our operations join candle's graph, and the state of one backward pass.
//!
//! Candle's custom operations have at most three arguments, and candle accumulates their gradients on one thread, into
//! tensors that it first fills with zeros. Our operations have any number of arguments and pass gradients on directly.
//! Candle's graph then only determines the order of the backward pass.
//!
//! # Terms
//!
//! - A *node* is one application of an operation ([`Node`]): the operation, its arguments and its result.
//! - A *token* is a tensor of one element that stands for the node's result in candle's graph. [`Link`] makes a node's
//!   token from the tokens of its arguments; an argument that is not a result of ours stands for itself. [`Outcome`]
//!   makes the result from the token, for candle's operations to use.
//! - A *pass* ([`Pass`]) is one run backward through a graph, and owns all its state. Passes on different threads may
//!   therefore run through one graph at the same time.
//! - A *part* is the contribution of one use to the gradient of a result. The pass keeps the sum of the parts. Candle's
//!   gradient of the token is only their number.
//!
//! This is the graph of `y = linear(x, w); z = relu(y); loss = z.sum_all() + y.sum_all()`. Read from the bottom up, it
//! shows the backward pass:
//!
//! ```text
//!       x     w
//!        \   /
//!     Link(linear)            takes the gradient of y, runs linear's backward, returns the gradients of x and w to candle
//!          |
//!      token of y             has 2 as its gradient in candle: y has two parts
//!       /      \
//!   Outcome   Link(relu)      Outcome: adds candle's gradient of y to the pass, the second part of y
//!      |         |            Link: takes the gradient of z, runs relu's backward, adds the first part of y
//!      |     token of z       has 1 as its gradient in candle
//!      |         |
//!      |      Outcome         adds candle's gradient of z to the pass, the only part of z
//!      |         |
//!      y         z
//!       \       /
//!     sum_all, sum_all, +     candle's own operations
//!           |
//!         loss
//! ```
//!
//! # The context of a thread
//!
//! A backward pass and [`no_grad`] belong to the thread that runs them. Their state ([`Context`]) is in the slot that
//! [`parallel`](crate::kernels::cpu::parallel) keeps per thread and empties while the thread waits for the pool. A job
//! that the thread runs meanwhile therefore neither inherits `no_grad` nor reaches the pass. Candle's own operations
//! wait outside `parallel` if its pool has more than one thread. Programs should avoid that anyway, for speed
//! (`CANDLE_NUM_THREADS=1`).
//!
//! [`backward`] creates an explicit pass, which also collects the gradients of variables and of table rows. Candle's
//! `loss.backward()` does not announce itself: the first of our nodes that it reaches creates an implicit pass. It ends
//! when each gradient in it has been taken, or when one of our operations fails.

mod pass;
#[cfg(test)]
mod tests;

pub(crate) use self::pass::Finished;
pub(crate) use self::pass::sum;
use self::pass::{Collected, Context, NodeId, Parts, Pass};
use super::gpu;
use super::row_gradients::RowGradients;
use candle_core::backprop::GradStore;
use candle_core::op::{BackpropOp, Op};
use candle_core::shape::ShapeWithOneHole;
use candle_core::{
    CpuStorage, CustomOp1, CustomOp3, Layout, Result, Shape, Storage, Tensor, TensorId, WithDType, bail,
};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, OnceLock, PoisonError};

/// A differentiable operation with kernels for the CPU or for a GPU (see [`Gpu`](gpu::Gpu)).
pub(super) trait Operation: Send + Sync + 'static {
    fn name(&self) -> &'static str;

    /// Computes the result.
    fn forward(&self, args: &[Tensor]) -> Result<(Storage, Shape)>;

    /// Computes the gradient of each argument from the result `ys` and its gradient `grad`, all contiguous.
    ///
    /// `None` for arguments without `track_op`; the others must have a gradient.
    fn backward(&self, args: &[Tensor], ys: &Tensor, grad: &Tensor) -> Result<Vec<Option<Tensor>>>;

    /// Like `backward`, with the gradient of a second result if one has been computed in this pass.
    ///
    /// See [`second_gradient`](Self::second_gradient).
    fn backward_both(
        &self,
        args: &[Tensor],
        ys: &Tensor,
        grad: &Tensor,
        _second: Option<Tensor>,
    ) -> Result<Vec<Option<Tensor>>> {
        self.backward(args, ys, grad)
    }

    /// Like `backward` for a scalar result with the gradient 1, if that saves work; `None` otherwise.
    ///
    /// An explicit pass begins with this.
    fn backward_from_one(&self, _args: &[Tensor]) -> Result<Option<Vec<Option<Tensor>>>> {
        Ok(None)
    }

    /// Computes the gradient of the producer's second result, if this operation reads it.
    ///
    /// The producer is the operation that computed the only argument. A result in the graph is a single tensor. An
    /// operation with a second result keeps that one for itself. An operation that takes the first result as its
    /// argument can read the second, and returns its gradient here.
    fn second_gradient(&self, _grad: &Tensor) -> Result<Option<Tensor>> {
        Ok(None)
    }

    /// Computes the gradient of the rows that the operation reads of its only argument, a table.
    ///
    /// A pass that collects row gradients of the table calls this instead of `backward`. Returns `None` if the
    /// operation does not read single rows.
    fn row_gradients(&self, _args: &[Tensor], _grad: &Tensor) -> Result<Option<RowGradients>> {
        Ok(None)
    }
}

/// Returns whether an operation on `tensor` would be recorded, so that its gradient may be needed.
pub(super) fn records(tensor: &Tensor) -> bool {
    tensor.track_op() && Context::existing().is_none_or(|context| context.recording)
}

/// Applies `op` to `args`, which are contiguous, and records it for the backward pass.
pub(super) fn apply(op: impl Operation, args: Vec<Tensor>) -> Result<Tensor> {
    apply_any(Box::new(op), args)
}

/// [`apply`], compiled once for all operations.
fn apply_any(op: Box<dyn Operation>, args: Vec<Tensor>) -> Result<Tensor> {
    let recording = Context::existing().is_none_or(|context| context.recording);
    let (mut links, mut used) = (vec![], vec![]);
    for (index, arg) in args.iter().enumerate().filter(|(_, arg)| recording && arg.track_op()) {
        let ours = results().get(&arg.id()).cloned();
        let (link, node, within) = match ours {
            Some(known) => (known.token, Some(known.node), known.within),
            None => (arg.clone(), None, None),
        };
        links.push(link);
        used.push(Use { index, node, within });
    }
    if used.is_empty() {
        let (values, shape) = op.forward(&args)?;
        let result = Tensor::from_storage(values, shape, BackpropOp::none(), false);
        gpu::hold(&result);
        return Ok(result);
    }
    let (values, shape) = op.forward(&args)?;
    let id = NodeId::new();
    let node = Arc::new(Node { id, op, args, used, result: OnceLock::new() });
    node.variables().for_each(|variable| *uses().entry(variable).or_default() += 1);
    let mut token = one();
    for (i, links) in links.chunks(2).enumerate() {
        let second = links.get(1).cloned().unwrap_or_else(one);
        let link = Arc::new(Box::new(Link { node: node.clone(), first: 2 * i }) as Box<_>);
        let op = Op::CustomOp3(token, links[0].clone(), second, link);
        token = Tensor::from_storage(unit(), 1, origin(op), false);
    }
    let outcome = Op::CustomOp1(token.clone(), Arc::new(Box::new(Outcome(node.clone()))));
    let result = Tensor::from_storage(values, shape, origin(outcome), false);
    gpu::hold(&result);
    node.result.get_or_init(|| (result.id(), result.detach()));
    results()
        .insert(result.id(), Known { token, node: id, result: result.id(), within: None, views: vec![] });
    Ok(result)
}

/// Returns `xs` in another shape, like `Tensor::reshape`.
///
/// Our operations on a reshaped result of ours reach its node directly, without candle's operations in the backward
/// pass.
pub(crate) fn reshape(xs: &Tensor, shape: impl ShapeWithOneHole) -> Result<Tensor> {
    let view = xs.reshape(shape)?;
    register_view(xs, &view, |within| within);
    Ok(view)
}

/// Returns `count` entries of `xs` from `start` on along the first dimension, like `Tensor::narrow`.
///
/// On a GPU, our operations on a part of a result of ours reach its node directly, as with [`reshape`].
pub(crate) fn part(xs: &Tensor, start: usize, count: usize) -> Result<Tensor> {
    let view = xs.narrow(0, start, count)?;
    if gpu::Gpu::of(xs).is_some() {
        let first = start * xs.dims()[1..].iter().product::<usize>();
        register_view(xs, &view, |within| match within {
            Some(Within { start, whole }) => Some(Within { start: start + first, whole }),
            None => Some(Within { start: first, whole: xs.elem_count() }),
        });
    }
    Ok(view)
}

/// Registers `view` as elements of `xs`; `within` maps the place of `xs` in the result to the view's.
fn register_view(xs: &Tensor, view: &Tensor, within: impl FnOnce(Option<Within>) -> Option<Within>) {
    let mut results = results();
    if view.id() != xs.id()
        && let Some(known) = results.get(&xs.id()).cloned()
    {
        // A view keeps its result alive. Dropping the result removes its entry and the entries of its views.
        results.insert(view.id(), Known { views: vec![], within: within(known.within), ..known });
        results.get_mut(&known.result).into_iter().for_each(|known| known.views.push(view.id()));
    }
}

/// Returns whether `loss` depends on operations of this crate alone, and so does its backward pass.
pub(crate) fn is_native(loss: &Tensor) -> bool {
    let is_token = |tensor: &Tensor| tensor.device().is_cpu() && tensor.dims() == [1];
    let nodes = loss.sorted_nodes();
    let results = results();
    nodes.iter().all(|node| node.is_variable() || results.contains_key(&node.id()) || is_token(node))
}

/// Returns the origin of a tensor in candle's graph.
///
/// Candle's `apply_op1` and `apply_op3` would run a forward pass, for which they require all arguments on one device.
fn origin(op: Op) -> BackpropOp {
    // SAFETY: `BackpropOp` is a struct with one field of this type and of the same size, which `transmute` checks. The
    // field therefore has offset 0. A test below reads it back.
    unsafe { std::mem::transmute::<Option<Op>, BackpropOp>(Some(op)) }
}

/// Returns the gradient `of(index)` for each argument that needs one, and `None` for the others.
pub(super) fn gradients<T: WithDType>(
    args: &[Tensor],
    of: impl Fn(usize) -> Vec<T>,
) -> Result<Vec<Option<Tensor>>> {
    let gradient = |(index, arg): (usize, &Tensor)| match arg.track_op() {
        true => Tensor::from_vec(of(index), arg.shape(), arg.device()).map(Some),
        false => Ok(None),
    };
    args.iter().enumerate().map(gradient).collect()
}

/// Runs `work` without recording operations for a backward pass, like `torch.no_grad`.
///
/// On the CPU, the results of this crate's operations then do not keep their arguments alive: each layer's activations
/// are freed as soon as the next layer has read them. Only the calling thread is affected, not jobs that `work` spawns.
pub fn no_grad<R>(work: impl FnOnce() -> R) -> R {
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            Context::get().recording = self.0;
        }
    }
    let _restore = Restore(std::mem::replace(&mut Context::get().recording, false));
    work()
}

/// Computes the gradients of the scalar `loss`, and row gradients of the given tables.
///
/// `tables` holds the ids of the tables. This is faster on the CPU than `loss.backward()`, which stays correct. On the
/// CPU, the gradient that a table receives from [`embedding`](super::embedding) and
/// [`embedding_mean`](super::embedding_mean) is returned separately, as [`RowGradients`] of the rows in use; its cost
/// does not depend on the size of the table. The gradient from other operations is in the `GradStore`. The total
/// gradient of a table is the sum of both.
///
/// A custom operation whose own backward pass differentiates another graph must call this function, not
/// `Tensor::backward`: the inner pass would otherwise add to the state of the outer one.
///
/// # Errors
/// Fails if the backward pass of an operation fails.
pub fn backward(
    loss: &Tensor,
    tables: Vec<TensorId>,
) -> Result<(GradStore, HashMap<TensorId, RowGradients>)> {
    backward_with(loss, tables, None)
}

/// Like [`backward`], and calls `finished` with a variable's id and gradient as soon as it is complete.
///
/// The call happens during the pass, when every operation of this crate that uses the variable has contributed. If
/// candle's own operations contribute too, a second call with their part follows at the end of the pass. No call
/// happens for variables that another live graph uses.
pub(crate) fn backward_with(
    loss: &Tensor,
    tables: Vec<TensorId>,
    finished: Option<Finished>,
) -> Result<(GradStore, HashMap<TensorId, RowGradients>)> {
    /// Ends the explicit pass and continues the outer one, if any.
    struct Restore(Option<Pass>);
    impl Drop for Restore {
        fn drop(&mut self) {
            Context::get().pass = self.0.take();
        }
    }
    let collected = Some(Collected {
        root: loss.id(),
        variables: HashMap::new(),
        tables,
        rows: HashMap::new(),
        finished,
    });
    let _restore = Restore(Context::get().pass.replace(Pass { collected, ..Pass::default() }));
    let mut grads = loss.backward()?;
    let pass = Context::get().pass.take();
    let Some(Collected { variables, rows, mut finished, .. }) = pass.and_then(|pass| pass.collected) else {
        bail!("backward: the pass has lost its state")
    };
    for (id, Parts { sum: grad, is_finished, .. }) in variables {
        let grad = match grads.get_id(id) {
            Some(more) => {
                let more = more.contiguous()?;
                finished
                    .as_mut()
                    .filter(|_| is_finished)
                    .into_iter()
                    .for_each(|finished| finished(id, &more));
                sum(&grad, &more)?
            }
            None => grad,
        };
        grads.insert_id(id, grad);
    }
    Ok((grads, rows))
}

/// The record of a result, or of a view of one that [`reshape`] or [`part`] has made.
#[derive(Clone)]
struct Known {
    token: Tensor,
    node: NodeId,
    /// The result itself.
    result: TensorId,
    /// The place of a view that holds a part of the result.
    within: Option<Within>,
    /// Its views.
    views: Vec<TensorId>,
}

/// The records of all results that are alive, and of their views.
fn results() -> MutexGuard<'static, HashMap<TensorId, Known>> {
    static RESULTS: LazyLock<Mutex<HashMap<TensorId, Known>>> = LazyLock::new(Mutex::default);
    RESULTS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Number of uses of each variable by live nodes.
fn uses() -> MutexGuard<'static, HashMap<TensorId, usize>> {
    static USES: LazyLock<Mutex<HashMap<TensorId, usize>>> = LazyLock::new(Mutex::default);
    USES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The value 1, the initial value of each token and the count of one part.
fn one() -> Tensor {
    static ONE: LazyLock<Tensor> =
        LazyLock::new(|| Tensor::from_storage(unit(), 1, BackpropOp::none(), false));
    ONE.clone()
}

/// The storage of a token.
fn unit() -> Storage {
    Storage::Cpu(CpuStorage::F32(vec![1.]))
}

/// One application of an operation.
struct Node {
    id: NodeId,
    op: Box<dyn Operation>,
    args: Vec<Tensor>,
    /// The arguments that need a gradient.
    used: Vec<Use>,
    /// The result's id and, outside the graph, its values.
    result: OnceLock<(TensorId, Tensor)>,
}

struct Use {
    index: usize,
    /// The node that the argument is the result of, if it is one of ours.
    node: Option<NodeId>,
    /// The place of the argument, if it is a part of the result.
    within: Option<Within>,
}

/// The place of consecutive elements in a result.
#[derive(Clone, Copy)]
struct Within {
    start: usize,
    /// Number of elements of the result.
    whole: usize,
}

impl Node {
    /// Returns, for each of `used`, the gradient that candle sees for the tensor that represents it.
    fn back(&self, count: &Tensor, pass: &mut Pass) -> Result<Vec<Option<Tensor>>> {
        let Some((id, ys)) = self.result.get() else { bail!("{}: there is no result", self.op.name()) };
        // The parts may have the shape of a view.
        let grad = pass.take(self.id, count.to_vec1::<f32>()?[0] as usize)?.reshape(ys.shape())?;
        if let [table] = &self.args[..]
            && pass.wants_rows(table)
            && let Some(rows) = self.op.row_gradients(&self.args, &grad)?
        {
            pass.collect_rows(table, rows)?;
            return Ok(vec![None]);
        }
        let second = pass.second.remove(&self.id);
        let is_root = pass.collected.as_ref().is_some_and(|collected| collected.root == *id);
        let from_one = if is_root { self.op.backward_from_one(&self.args)? } else { None };
        let mut parts = match from_one {
            Some(parts) => parts,
            None => self.op.backward_both(&self.args, ys, &grad, second)?,
        };
        if let [Use { node: Some(node), .. }] = self.used[..] {
            pass.add_second(node, self.op.second_gradient(&grad)?)?;
        }
        drop(grad);
        let hand_over = |Use { index, node, within }: &Use| match (node, parts[*index].take()) {
            (_, None) => bail!("{}: argument {index} has no gradient", self.op.name()),
            (Some(node), Some(part)) => {
                let part = match within {
                    Some(Within { start, whole }) => pass::padded(&part, *start, *whole)?,
                    None => part,
                };
                pass.add(*node, &part).map(|()| Some(one()))
            }
            (None, Some(part)) => pass.collect(&self.args[*index], part),
        };
        self.used.iter().map(hand_over).collect()
    }

    /// The variables among the arguments, once per use.
    fn variables(&self) -> impl Iterator<Item = TensorId> {
        let args = self.used.iter().filter(|used| used.node.is_none()).map(|used| &self.args[used.index]);
        args.filter(|arg| arg.is_variable()).map(Tensor::id)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let mut uses = uses();
        for variable in self.variables() {
            if let Entry::Occupied(mut entry) = uses.entry(variable) {
                *entry.get_mut() -= 1;
                if *entry.get() == 0 {
                    entry.remove();
                }
            }
        }
        drop(uses);
        // A pass leaves gradients behind where candle does not continue: below `x * 0`, or where it stopped early.
        let left = Context::existing().and_then(|mut context| {
            let pass = context.pass.as_mut()?;
            let id = &self.id;
            Some((pass.sums.remove(id), pass.second.remove(id), pass.returned.remove(id)))
        });
        drop(left);
    }
}

/// Computes a node's token from the tensors that represent its arguments, two at a time.
///
/// The first link takes the first two, the next link takes the token so far and the next two, and so on.
struct Link {
    node: Arc<Node>,
    first: usize,
}

impl CustomOp3 for Link {
    fn name(&self) -> &'static str {
        self.node.op.name()
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        bail!("{}: the forward pass does not go through candle", self.node.op.name())
    }

    fn bwd(
        &self,
        before: &Tensor,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        count: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let is_last = self.first + 2 >= self.node.used.len();
        let mut own = Pass::with(|pass| {
            let mut all = match is_last {
                true => self.node.back(count, pass)?,
                false => pass.returned.remove(&self.node.id).unwrap_or_default(),
            };
            let own = all.split_off(self.first.min(all.len()));
            if !all.is_empty() {
                pass.returned.insert(self.node.id, all);
            }
            Ok(own)
        })?
        .into_iter();
        let before = before.track_op().then(one);
        Ok((before, own.next().flatten(), own.next().flatten()))
    }
}

/// Computes a node's result from its token.
struct Outcome(Arc<Node>);

impl CustomOp1 for Outcome {
    fn name(&self) -> &'static str {
        self.0.op.name()
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        bail!("{}: the forward pass does not go through candle", self.0.op.name())
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        Pass::with(|pass| pass.add(self.0.id, grad)).map(|()| Some(one()))
    }
}

impl Drop for Outcome {
    fn drop(&mut self) {
        if let Some((id, _)) = self.0.result.get() {
            // Dropping the token may drop other results, so release the lock first.
            let mut results = results();
            let known = results.remove(id);
            let views = known.iter().flat_map(|known| &known.views).map(|view| results.remove(view));
            let _views: Vec<_> = views.collect();
            drop(results);
        }
    }
}
