//! The most probable classes, for decoding.

use super::host::{self, with_real};
use crate::kernels::cpu::Real;
use crate::kernels::cpu::ranking as kernel;
use candle_core::{Device, Result, Tensor, bail};

/// Returns the `count` most probable classes of each row of `logits` `(rows, classes)`.
///
/// Each comes with the natural logarithm of its softmax. The most probable class comes first; of equal ones, the one
/// with the lower index. There are no gradients.
///
/// # Errors
/// Fails if there are no classes, or a probability is NaN.
pub fn top_log_probabilities(logits: &Tensor, count: usize) -> Result<Vec<Vec<(u32, f64)>>> {
    let (rows, classes) = logits.dims2()?;
    if classes == 0 {
        bail!("top_log_probabilities: found logits of shape ({rows}, 0), expected at least one class");
    }
    let logits = logits.detach().to_device(&Device::Cpu)?.contiguous()?;
    let top: Vec<Vec<(u32, f64)>> = with_real!("top_log_probabilities", logits.dtype(), T => {
        host::read::<T, _>(&logits, |logits| {
            let rows = kernel::top_log_probabilities(logits, classes, count);
            let wide = |row: Vec<(u32, T)>| row.into_iter().map(|(class, x)| (class, x.as_f64())).collect();
            Ok(rows.into_iter().map(wide).collect())
        })?
    });
    match top.iter().flatten().any(|(_, x)| x.is_nan()) {
        true => bail!("top_log_probabilities: the logits hold NaN or infinity, expected finite values"),
        false => Ok(top),
    }
}
