//! How the CPU's operations are part of candle's graph: with any number of arguments, and with gradients that go
//! straight from one to the next.
//!
//! Candle's backward pass takes operations of three arguments at most, and for each gradient that one returns it fills a
//! tensor with zeros and adds the gradient to that, on one thread. Here it only keeps the order: a result is made of a
//! token, a tensor of one number, and the token ([`Link`]) of the tokens of the operation's arguments. The gradient of a
//! result lies beside its token, where each operation that used the result adds its part; what candle takes to be the
//! gradient of the token is the number of those parts.
//!
//! To the rest of candle nothing looks unusual. An argument that is no result of such an operation, as no variable is,
//! stands for itself, and the gradient that it gets goes through candle, but for that of a variable in [`backward`]; a
//! result that candle's own operations use too passes what it gets from them on to its token ([`Outcome`]).

use super::activation::map;
use super::host::{self, Element, with_real};
use candle_core::backprop::GradStore;
use candle_core::op::BackpropOp;
use candle_core::{CpuStorage, CustomOp1, CustomOp3, Layout, Result, Shape, Storage, Tensor, TensorId, bail};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, OnceLock, PoisonError};

pub(super) trait Operation: Send + Sync + 'static {
    fn name(&self) -> &'static str;

    fn forward(&self, args: &[Tensor]) -> Result<(CpuStorage, Shape)>;

    /// The gradients of the arguments in their order; none where an argument needs none.
    fn backward(&self, args: &[Tensor], ys: &Tensor, grad: &Tensor) -> Result<Vec<Option<Tensor>>>;
}

thread_local! {
    /// Whether results on this thread are to have gradients.
    static TRACKING: Cell<bool> = const { Cell::new(true) };
}

/// Does `work`, of whose results nobody wants gradients: on the CPU they then hold on to nothing that they were made of, so
/// that a network's activations are gone as soon as the next layer has read them.
pub fn no_grad<R>(work: impl FnOnce() -> R) -> R {
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            TRACKING.set(self.0);
        }
    }
    let _restore = Restore(TRACKING.replace(false));
    work()
}

/// What `op` makes of `args`, all contiguous and in main memory.
pub(super) fn apply(op: impl Operation, args: Vec<Tensor>) -> Result<Tensor> {
    let (mut links, mut used) = (vec![], vec![]);
    let tracking = TRACKING.get();
    for (index, arg) in args.iter().enumerate().filter(|(_, arg)| tracking && arg.track_op()) {
        let node = results().get(&arg.id()).cloned();
        let (link, sum) = node.map_or((arg.clone(), None), |node| (node.token, Some(node.grad)));
        links.push(link);
        used.push(Use { index, sum });
    }
    if used.is_empty() {
        let (numbers, shape) = op.forward(&args)?;
        return Ok(Tensor::from_storage(Storage::Cpu(numbers), shape, BackpropOp::none(), false));
    }
    let (grad, told, result) = <(Gradient, _, _)>::default();
    let step = Arc::new(Step { op, args, used, grad, told, result });
    let mut token = one();
    for (i, links) in links.chunks(2).enumerate() {
        let link = Link { step: step.clone(), first: 2 * i };
        token = token.apply_op3(&links[0], links.get(1).unwrap_or(&one()), link)?;
    }
    let result = token.apply_op1(Outcome(step.clone()))?;
    step.result.get_or_init(|| (result.id(), result.detach()));
    results().insert(result.id(), Node { token, grad: step.grad.clone() });
    Ok(result)
}

/// The gradients `of(index)` of those arguments that need one.
pub(super) fn gradients<T: Element>(
    args: &[Tensor],
    of: impl Fn(usize) -> Vec<T>,
) -> Result<Vec<Option<Tensor>>> {
    let gradient = |(index, arg): (usize, &Tensor)| match arg.track_op() {
        true => Tensor::from_vec(of(index), arg.shape(), arg.device()).map(Some),
        false => Ok(None),
    };
    args.iter().enumerate().map(gradient).collect()
}

/// What has come together of a gradient, and of how many parts.
#[derive(Clone, Default)]
struct Gradient(Arc<Mutex<Option<(Tensor, f32)>>>);

impl Gradient {
    fn add(&self, part: &Tensor) -> Result<()> {
        let (part, before) = (part.contiguous()?, lock(&self.0).take());
        let sum = match before {
            None => (part, 1.),
            Some((before, parts)) => (sum(&before, &part)?, parts + 1.),
        };
        *lock(&self.0) = Some(sum);
        Ok(())
    }

    /// The whole, which must be of so many parts: it is not where another backward pass was broken off.
    fn take(&self, count: &Tensor) -> Result<Option<Tensor>> {
        let (count, sum): (f32, _) = (count.to_vec1::<f32>()?.iter().sum(), lock(&self.0).take());
        let (sum, parts) = sum.map_or((None, 0.), |(sum, parts)| (Some(sum), parts));
        if count != parts {
            bail!("backward: a gradient of {parts} parts, expected {count}: another pass broke off halfway");
        }
        Ok(sum)
    }
}

fn sum(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let held = host::hold([a, b]);
    with_real!("gradient", a.dtype(), T => {
        Tensor::from_vec(map(held.get::<T>(0)?, held.get(1)?, |a, b| a + b), a.shape(), a.device())
    })
}

/// Gradients of variables.
type Variables = HashMap<TensorId, Tensor>;

thread_local! {
    /// What variables have got in the backward pass under way on this thread.
    static VARIABLES: RefCell<Option<Variables>> = const { RefCell::new(None) };
}

/// `loss.backward()`, in which the gradients of variables too come together beside candle's graph.
pub(super) fn backward(loss: &Tensor) -> Result<GradStore> {
    let outer = VARIABLES.replace(Some(HashMap::new()));
    let grads = loss.backward();
    let found = VARIABLES.replace(outer);
    let mut grads = grads?;
    for (id, grad) in found.into_iter().flatten() {
        let grad = match grads.get_id(id) {
            Some(more) => sum(&grad, &more.contiguous()?)?,
            None => grad,
        };
        grads.insert_id(id, grad);
    }
    Ok(grads)
}

/// Lends the pass's variables to `work`, hidden from any other pass that this thread takes up while it waits in there.
fn with_variables<R>(work: impl FnOnce(&mut Option<Variables>) -> Result<R>) -> Result<R> {
    let mut variables = VARIABLES.take();
    let result = work(&mut variables);
    VARIABLES.set(variables);
    result
}

/// Keeps what a variable has got for the backward pass that wants it so; for any other one it comes back.
fn put_by(variables: &mut Option<Variables>, variable: &Tensor, part: Tensor) -> Result<Option<Tensor>> {
    let Some(variables) = variables.as_mut().filter(|_| variable.is_variable()) else {
        return Ok(Some(part));
    };
    let part = match variables.remove(&variable.id()) {
        Some(before) => sum(&before, &part)?,
        None => part,
    };
    variables.insert(variable.id(), part);
    Ok(None)
}

/// What stands for a result in the graph.
#[derive(Clone)]
struct Node {
    token: Tensor,
    grad: Gradient,
}

/// Those of the results that there are.
fn results() -> MutexGuard<'static, HashMap<TensorId, Node>> {
    static RESULTS: LazyLock<Mutex<HashMap<TensorId, Node>>> = LazyLock::new(Mutex::default);
    lock(&RESULTS)
}

/// The number 1, to begin a token with and to count one part.
fn one() -> Tensor {
    static ONE: LazyLock<Tensor> = LazyLock::new(|| {
        Tensor::from_storage(Storage::Cpu(CpuStorage::F32(vec![1.])), 1, BackpropOp::none(), false)
    });
    ONE.clone()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An operation that has been done.
struct Step<O> {
    op: O,
    args: Vec<Tensor>,
    /// The arguments that need a gradient.
    used: Vec<Use>,
    /// The result's.
    grad: Gradient,
    /// What candle is to take for the gradients of what stands for the arguments `used`.
    told: Mutex<Vec<Option<Tensor>>>,
    /// Its name, and its numbers.
    result: OnceLock<(TensorId, Tensor)>,
}

struct Use {
    index: usize,
    /// Where the part of the gradient goes, if the argument is a result.
    sum: Option<Gradient>,
}

impl<O: Operation> Step<O> {
    fn back(&self, count: &Tensor, variables: &mut Option<Variables>) -> Result<()> {
        let (Some(grad), Some((_, ys))) = (self.grad.take(count)?, self.result.get()) else {
            bail!("{}: the result has no gradient", self.op.name())
        };
        let mut parts = self.op.backward(&self.args, ys, &grad)?;
        drop(grad);
        let tell = |Use { index, sum }: &Use| match (sum, parts[*index].take()) {
            (Some(sum), Some(part)) => sum.add(&part).map(|()| Some(one())),
            (Some(_), None) => count.zeros_like().map(Some),
            (None, Some(part)) => put_by(variables, &self.args[*index], part),
            (None, None) => Ok(None),
        };
        let told = self.used.iter().map(tell).collect::<Result<_>>()?;
        *lock(&self.told) = told;
        Ok(())
    }
}

/// Makes the result's token of what stands for the arguments, two at a time: the first two, then what came of those and
/// the next two, and so on.
struct Link<O> {
    step: Arc<Step<O>>,
    first: usize,
}

impl<O: Operation> CustomOp3 for Link<O> {
    fn name(&self) -> &'static str {
        self.step.op.name()
    }

    fn cpu_fwd(
        &self,
        before: &CpuStorage,
        layout: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        Ok((before.clone(), layout.shape().clone()))
    }

    fn bwd(
        &self,
        before: &Tensor,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        count: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        if self.first + 2 >= self.step.used.len() {
            with_variables(|variables| self.step.back(count, variables))?;
        }
        let mut told = lock(&self.step.told);
        let mut told = told[self.first..].iter_mut().map(Option::take);
        let before = before.track_op().then(one);
        Ok((before, told.next().flatten(), told.next().flatten()))
    }
}

/// Makes the result of its token.
struct Outcome<O: Operation>(Arc<Step<O>>);

impl<O: Operation> CustomOp1 for Outcome<O> {
    fn name(&self) -> &'static str {
        self.0.op.name()
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.0.op.forward(&self.0.args)
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        with_variables(|_| self.0.grad.add(grad)).map(|()| Some(one()))
    }
}

impl<O: Operation> Drop for Outcome<O> {
    fn drop(&mut self) {
        if let Some((id, _)) = self.0.result.get() {
            // Others may go with it, so not before the lock is open again.
            let _node = results().remove(id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::relu;
    use candle_core::{Device, Var};

    #[test]
    fn a_result_that_is_gone_leaves_nothing_behind() -> Result<()> {
        let x = Var::new(&[1f32, -1.], &Device::Cpu)?;
        let inner = relu(&x)?;
        let outer = relu(&inner)?;
        let ids = [inner.id(), outer.id()];
        let known = || ids.map(|id| results().contains_key(&id));
        drop(inner);
        assert_eq!(known(), [true, true]);
        drop(outer);
        assert_eq!(known(), [false, false]);
        let untracked = relu(x.as_detached_tensor().as_ref())?;
        assert!(!untracked.track_op() && !results().contains_key(&untracked.id()));
        Ok(())
    }

    #[test]
    fn without_gradients_the_result_is_the_same_and_holds_nothing() -> Result<()> {
        let x = Var::new(&[1f32, -1.], &Device::Cpu)?;
        let ys = no_grad(|| relu(&x))?;
        assert!(!ys.track_op() && !results().contains_key(&ys.id()));
        assert_eq!(ys.to_vec1::<f32>()?, relu(&x)?.to_vec1::<f32>()?);
        let broken = std::panic::catch_unwind(|| no_grad(|| panic!("broken off")));
        assert!(broken.is_err() && relu(&x)?.track_op());
        Ok(())
    }
}
