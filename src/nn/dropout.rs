use super::{Mode, PackedSequences, is_native};
use crate::kernels::cpu::parallel;
use crate::ops::{self, MaskPlace};
use crate::rng;
use candle_core::{ModuleT, Result, Tensor, bail};
use candle_nn::VarBuilder;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Dropout (Srivastava et al. 2014): training zeroes each value with a probability and scales up the rest.
///
/// Evaluation changes nothing.
///
/// # Masks
///
/// A mask is a function of a seed, the layer and the place in training, so a program draws the same masks each time it
/// runs. [`forward_at`](Self::forward_at) takes seed and place from the [`Mode`], and resumes exactly.
/// [`forward`](Self::forward), which has candle_nn's signature, counts the layer's own passes in training; its seed is
/// 0 unless [`with_seed`](Self::with_seed) sets another. A layer from [`at_path`](Self::at_path) is identified by its path.
/// [`new`](Self::new) numbers its layers in the order of their creation, and the number identifies the layer.
///
/// [`forward`](Self::forward) does not know which examples of a batch it gets, so it fails where several processes train.
#[derive(Debug, Clone)]
pub struct Dropout {
    probability: f32,
    path: String,
    seed: u64,
    /// Number of passes in training without a place. Clones of the layer count together.
    passes: Arc<AtomicU64>,
}

/// Marks a thread that computes a share of a batch.
#[derive(Clone)]
struct OfShare;

/// Calls `work`, which computes a share of a batch. [`Dropout::forward`] fails in it.
pub(crate) fn of_share<R>(work: impl FnOnce() -> R) -> R {
    parallel::with_local(OfShare, work)
}

impl Dropout {
    /// Creates a dropout layer without a path; see [its masks](Self#masks).
    pub fn new(probability: f32) -> Self {
        static LAYERS: AtomicU64 = AtomicU64::new(0);
        let path = format!("layer {}", LAYERS.fetch_add(1, Ordering::Relaxed));
        Self { probability, path, seed: 0, passes: Arc::default() }
    }

    /// Creates a dropout layer whose masks differ from other layers' by the path of `vb`. It has no parameters.
    pub fn at_path(probability: f32, vb: VarBuilder) -> Self {
        Self { probability, path: vb.prefix(), seed: 0, passes: Arc::default() }
    }

    /// Sets the seed of the masks that [`forward`](Self::forward) draws.
    pub fn with_seed(self, seed: u64) -> Self {
        Self { seed, ..self }
    }

    /// Whether the layer changes anything in this mode.
    pub fn is_active(&self, mode: Mode) -> bool {
        mode.is_training() && self.probability != 0.0
    }

    /// Any shape to the same shape. Each pass in training draws the layer's next mask.
    ///
    /// # Errors
    /// Fails if, in training, the probability is not from 0 to 1, or this is one of several processes that
    /// [`Trainer`](crate::train::Trainer) trains on.
    pub fn forward(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        if !train || self.probability == 0.0 {
            return Ok(xs.clone());
        }
        if parallel::local::<OfShare>().is_some() {
            bail!(
                "dropout: several processes train, each on a share of the batch, and `forward` does not know which: call \
                 `forward_at` with the mode"
            );
        }
        let pass = self.passes.fetch_add(1, Ordering::Relaxed);
        let purpose = format!("dropout/{}/pass {pass}", self.path);
        masked(xs, self.probability, self.seed, &purpose, &MaskPlace::From(0))
    }

    /// `(batch, ..)` to the same shape. The mask is a function of the mode's seed and step and of the layer's path.
    ///
    /// In a pass over a share of a batch, each example gets the mask that it would get in the whole batch. The rows of packed
    /// sequences go to [`forward_packed`](Self::forward_packed).
    ///
    /// # Errors
    /// Fails if [`forward`](Self::forward) would.
    pub fn forward_at(&self, xs: &Tensor, mode: Mode) -> Result<Tensor> {
        let first = match mode {
            Mode::Train { share: Some(share), .. } => share.start * (xs.elem_count() / share.len.max(1)),
            _ => 0,
        };
        self.forward_in(xs, mode, &MaskPlace::From(first))
    }

    /// `(rows, ..)` to the same shape: [`forward_at`](Self::forward_at) for the rows of packed `sequences`.
    ///
    /// # Errors
    /// Fails if [`forward_at`](Self::forward_at) would, or the number of rows differs.
    pub fn forward_packed(&self, xs: &Tensor, sequences: &PackedSequences, mode: Mode) -> Result<Tensor> {
        self.forward_in(xs, mode, &sequences.mask_place())
    }

    /// Applies the part of a mask at `place`.
    pub(crate) fn forward_in(&self, xs: &Tensor, mode: Mode, place: &MaskPlace) -> Result<Tensor> {
        match mode {
            Mode::Train { seed, step, .. } if self.is_active(mode) => {
                let purpose = format!("dropout/{}/step {step}", self.path);
                masked(xs, self.probability, seed, &purpose, place)
            }
            _ => Ok(xs.clone()),
        }
    }
}

impl ModuleT for Dropout {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        self.forward(xs, train)
    }
}

/// Applies the part at `place` of the mask that `seed` and `purpose` address.
pub(super) fn masked(
    xs: &Tensor,
    probability: f32,
    seed: u64,
    purpose: &str,
    place: &MaskPlace,
) -> Result<Tensor> {
    let mut rng = rng::stream(seed, purpose);
    match is_native(xs) {
        true => ops::dropout_in(xs, probability, &mut rng, place),
        false => {
            let ones = Tensor::ones(xs.shape(), candle_core::DType::F32, xs.device())?;
            xs * ops::dropout_in(&ones, probability, &mut rng, place)?.to_dtype(xs.dtype())?
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::{Share, seeded_var_builder};
    use candle_core::{DType, Device};
    use candle_nn::VarMap;

    fn ones(dtype: DType) -> Result<Tensor> {
        Tensor::ones(1000, dtype, &Device::Cpu)
    }

    #[test]
    fn masks_differ_by_layer_and_step_and_repeat_for_the_same_step() -> Result<()> {
        let vb = seeded_var_builder(&VarMap::new(), 0, DType::F32, &Device::Cpu);
        let (first, second) = (Dropout::at_path(0.5, vb.pp("first")), Dropout::at_path(0.5, vb.pp("second")));
        let xs = ones(DType::F32)?;
        let at = |layer: &Dropout, step| -> Result<Vec<f32>> {
            layer.forward_at(&xs, Mode::train(7, 0, step))?.to_vec1()
        };
        assert_eq!(at(&first, 3)?, at(&first, 3)?);
        assert_ne!(at(&first, 3)?, at(&first, 4)?);
        assert_ne!(at(&first, 3)?, at(&second, 3)?);
        assert!(at(&first, 3)?.iter().all(|&value| value == 0.0 || value == 2.0));
        assert_eq!(first.forward_at(&xs, Mode::Evaluate)?.to_vec1::<f32>()?, vec![1.0; 1000]);
        Ok(())
    }

    #[test]
    fn examples_of_a_share_get_their_mask_of_the_whole_batch() -> Result<()> {
        let layer = Dropout::at_path(0.5, seeded_var_builder(&VarMap::new(), 0, DType::F32, &Device::Cpu));
        let (whole, (start, len, batch)) = (Mode::train(7, 0, 3), (2, 3, 6));
        let part = Mode::Train { seed: 7, epoch: 0, step: 3, share: Some(Share { start, len, batch }) };
        let lengths = [3, 1, 4, 1, 5, 9];
        let sequences = PackedSequences::new(&lengths)?;
        let share = PackedSequences::of_share(&lengths, start..start + len)?;
        for columns in [1, 5, 32, 33, 70] {
            let ones = |rows: usize| Tensor::ones((rows, columns), DType::F32, &Device::Cpu);
            let all = layer.forward_at(&ones(batch)?, whole)?.narrow(0, start, len)?;
            assert_eq!(layer.forward_at(&ones(len)?, part)?.to_vec2::<f32>()?, all.to_vec2::<f32>()?);
            let all = layer.forward_packed(&ones(sequences.rows())?, &sequences, whole)?.to_vec2::<f32>()?;
            let own = layer.forward_packed(&ones(share.rows())?, &share, part)?.to_vec2::<f32>()?;
            let expected = all.into_iter().zip(sequences.positions());
            let expected = expected.filter(|(_, (sequence, _))| (start..start + len).contains(sequence));
            assert_eq!(own, expected.map(|(row, _)| row).collect::<Vec<_>>());
        }
        Ok(())
    }

    #[test]
    fn masks_without_a_mode_differ_by_layer_and_pass_and_repeat_for_the_same_seed() -> Result<()> {
        let xs = ones(DType::F32)?;
        let pass = |layer: &Dropout| -> Result<Vec<f32>> { layer.forward(&xs, true)?.to_vec1() };
        let vb = seeded_var_builder(&VarMap::new(), 0, DType::F32, &Device::Cpu);
        let layer = |seed| Dropout::at_path(0.5, vb.pp("layer")).with_seed(seed);
        let (first, again, other) = (layer(1), layer(1), layer(2));
        let masks = [pass(&first)?, pass(&first.clone())?];
        assert_eq!(masks, [pass(&again)?, pass(&again)?]);
        assert_ne!(masks[0], masks[1]);
        assert_ne!(masks[0], pass(&other)?);
        assert_ne!(pass(&Dropout::new(0.5))?, pass(&Dropout::new(0.5))?);
        assert_eq!(first.forward_t(&xs, false)?.to_vec1::<f32>()?, vec![1.0; 1000]);
        let half = layer(1).forward(&ones(DType::F16)?, true)?;
        assert_eq!(half.to_dtype(DType::F32)?.to_vec1::<f32>()?, masks[0]);
        Ok(())
    }

    #[test]
    fn a_share_of_a_batch_needs_its_place() -> Result<()> {
        let (layer, xs) = (Dropout::new(0.5), ones(DType::F32)?);
        let error = of_share(|| layer.forward(&xs, true)).unwrap_err().to_string();
        assert!(error.contains("call `forward_at`"), "{error}");
        of_share(|| layer.forward(&xs, false))?;
        layer.forward(&xs, true)?;
        Ok(())
    }

    #[test]
    fn probabilities_out_of_range_are_refused_in_training() -> Result<()> {
        let vb = seeded_var_builder(&VarMap::new(), 0, DType::F32, &Device::Cpu);
        let xs = ones(DType::F32)?;
        for probability in [f32::NAN, -0.5, 1.5] {
            let layer = Dropout::at_path(probability, vb.clone());
            assert!(layer.forward(&xs, true).is_err(), "{probability}");
        }
        Ok(())
    }
}
