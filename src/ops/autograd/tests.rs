use super::*;
use crate::ops::host;
use crate::ops::{relu, tanh};
use candle_core::{Device, Var};

fn x() -> Result<Var> {
    Var::new(&[1f32, -1.], &Device::Cpu)
}

fn has_context() -> bool {
    Context::existing().is_some()
}

#[test]
fn a_result_leaves_the_registry_with_its_last_user() -> Result<()> {
    let x = x()?;
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
fn candle_reads_the_origin_of_a_tensor() -> Result<()> {
    let x = x()?;
    match &*origin(Op::Reshape(x.as_tensor().clone())) {
        Some(Op::Reshape(argument)) => assert_eq!(argument.id(), x.id()),
        _ => panic!("found another origin"),
    }
    Ok(())
}

#[test]
fn no_grad_gives_the_same_result_outside_the_graph() -> Result<()> {
    let x = x()?;
    let ys = no_grad(|| relu(&x))?;
    assert!(!ys.track_op() && !results().contains_key(&ys.id()));
    assert_eq!(ys.to_vec1::<f32>()?, relu(&x)?.to_vec1::<f32>()?);
    let panicked = std::panic::catch_unwind(|| no_grad(|| panic!("on purpose")));
    assert!(panicked.is_err() && relu(&x)?.track_op() && !has_context());
    Ok(())
}

#[cfg(feature = "cuda-emulator")]
#[test]
fn parts_of_results_pass_their_gradients_on() -> Result<()> {
    use crate::ops::emulator;
    let x = Var::from_tensor(&Tensor::arange(-7f32, 8., &Device::Cpu)?.reshape((5, 3))?)?;
    let grad = || -> Result<Vec<f32>> {
        let ys = tanh(&x)?; // (5, 3)
        let inner = part(&reshape(&part(&ys, 1, 3)?, (3, 1, 3))?, 1, 2)?;
        let product = crate::ops::linear(&part(&ys, 0, 2)?, &reshape(&inner, (2, 3))?, None)?;
        let loss = crate::ops::softmax_cross_entropy(&product, &Tensor::new(&[0u32, 1], &Device::Cpu)?, 0.)?;
        assert_eq!(is_native(&loss), gpu::Gpu::of(&loss).is_some());
        let (grads, _) = backward(&loss, vec![])?;
        grads.get(&x).expect("a gradient").flatten_all()?.to_vec1()
    };
    for (a, b) in grad()?.into_iter().zip(emulator::off(grad)?) {
        assert!((a - b).abs() < 1e-6, "{a}, expected {b}");
    }
    Ok(())
}

/// An operation whose backward pass fails or panics.
struct Failing {
    panics: bool,
}

impl Operation for Failing {
    fn name(&self) -> &'static str {
        "failing"
    }

    fn forward(&self, args: &[Tensor]) -> Result<(Storage, Shape)> {
        host::read(&args[0], |xs: &[f32]| Ok(host::output(xs.to_vec(), args[0].shape())))
    }

    fn backward(&self, _: &[Tensor], _: &Tensor, _: &Tensor) -> Result<Vec<Option<Tensor>>> {
        assert!(!self.panics, "on purpose");
        bail!("on purpose")
    }
}

#[test]
fn a_pass_through_the_same_graph_works_after_an_operation_failed() -> Result<()> {
    let x = x()?;
    let y = tanh(&x)?;
    let loss = relu(&y)?.sum_all()?;
    let grad = |grads: GradStore| grads.get(&x).expect("a gradient").to_vec1::<f32>();
    let expected = grad(loss.backward()?)?;
    for panics in [false, true] {
        // Candle visits the right-hand side first: when the pass stops, a part has arrived for `y`.
        let failing = (apply(Failing { panics }, vec![y.clone()])?.sum_all()? + &loss)?;
        for explicit in [false, true] {
            let run = || match explicit {
                true => backward(&failing, vec![]).map(|_| ()),
                false => failing.backward().map(|_| ()),
            };
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run));
            assert!(!matches!(result, Ok(Ok(()))) && !has_context());
            assert_eq!(grad(loss.backward()?)?, expected);
            assert_eq!(grad(backward(&loss, vec![])?.0)?, expected);
        }
    }
    Ok(())
}

#[test]
fn a_gradient_is_finished_when_all_operations_that_use_the_variable_have_contributed() -> Result<()> {
    let [w, v] = [x()?, x()?];
    // `w` has two uses of ours and one of candle's.
    let inner = relu(&w)?;
    let outer = crate::ops::tanh(&(tanh(&w)? + relu(&v)?)?)?;
    let loss = ((inner.sum_all()? + outer.sum_all()?)? + w.as_tensor().sqr()?.sum_all()?)?;
    let calls = std::rc::Rc::new(std::cell::RefCell::new(vec![]));
    let seen = calls.clone();
    let finished: Finished = Box::new(move |id, grad: &Tensor| seen.borrow_mut().push((id, grad.clone())));
    let (grads, _) = backward_with(&loss, vec![], Some(finished))?;
    let of = |var: &Var| -> Result<Vec<Vec<f32>>> {
        calls.borrow().iter().filter(|(id, _)| *id == var.id()).map(|(_, grad)| grad.to_vec1()).collect()
    };
    let sum = of(&w)?.into_iter().reduce(|a, b| a.iter().zip(b).map(|(a, b)| a + b).collect());
    assert_eq!((of(&w)?.len(), of(&v)?.len()), (2, 1));
    assert_eq!(sum, grads.get(&w).map(Tensor::to_vec1).transpose()?);
    drop((loss, inner, outer));
    assert!(!uses().contains_key(&w.id()));
    Ok(())
}

#[test]
fn gradients_that_candle_does_not_follow_go_with_the_graph() -> Result<()> {
    let x = Var::new(&[[1f32, -1.]], &Device::Cpu)?;
    // Candle does not continue below a product with 0, so that nothing takes the gradient of the second `relu`.
    let loss = crate::ops::linear(&relu(&x)?, &relu(&(x.as_tensor() * 0.)?)?, None)?.sum_all()?;
    loss.backward()?;
    loss.backward()?;
    assert!(has_context());
    drop(loss);
    assert!(!has_context());
    Ok(())
}
