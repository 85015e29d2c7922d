//! Batches of sequences of different lengths, stored without padding.

use super::gpu::Gpu;
use crate::kernels::cpu::sequences::PackedLayout;
use crate::kernels::cuda::Pointer;
use candle_core::{Device, Result, Tensor, bail};
use std::ops::Range;
use std::sync::OnceLock;

/// The elements of a larger tensor that a tensor holds, and with them its part of the larger mask.
pub(crate) enum MaskPlace<'a> {
    /// Consecutive elements from this one on.
    From(usize),
    /// The rows of a share of packed sequences, in the rows of the whole batch.
    Packed(&'a PackedSequences),
}

/// The row layout of a batch of sequences of different lengths in one tensor without padding.
///
/// Each row of a packed tensor `(rows, ..)` holds one element of one sequence. The rows run time step by time step:
/// first the first elements of all sequences, then their second elements, and so on. Within a step the longest sequence
/// comes first, and equally long ones keep their order. PyTorch's `PackedSequence` has the same layout.
///
/// Sequences of lengths 2, 3 and 1 (a, b and c) are packed into these rows:
///
/// ```text
/// row       0   1   2   3   4   5
/// element   b0  a0  c0  b1  a1  b2
/// ```
///
/// Layers that treat elements independently (embedding, linear, dropout, losses) take packed tensors as they are and spend
/// no work on padding. [`pack`](Self::pack) and [`unpack`](Self::unpack) convert from and to padded tensors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackedSequences {
    layout: PackedLayout,
    /// The place in the whole batch, if these sequences are a share.
    place: Option<Place>,
    copy: DeviceCopy,
}

/// The place of a share in the layout of the whole batch.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    /// The row of each row of the share, in ascending order.
    rows: Vec<u32>,
    /// The first row of each step that the share has.
    starts: Vec<u32>,
}

/// The layout in the memory of a GPU, once it has been copied there. It does not take part in equality.
#[derive(Debug, Clone, Default)]
struct DeviceCopy(OnceLock<Tensor>);

impl PartialEq for DeviceCopy {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for DeviceCopy {}

/// The form of a layout that kernels on a GPU take, valid as long as the [`PackedSequences`] exist.
///
/// The row of an element is `starts[step] + places[sequence]`.
#[derive(Clone, Copy)]
#[cfg_attr(not(any(feature = "cuda", feature = "cuda-emulator")), allow(unused))]
pub(super) struct DeviceLayout {
    /// First row of each step, then the number of rows: `(steps + 1)`.
    pub starts: Pointer<u32>,
    /// Place of each sequence in the order by descending length: `(batch)`.
    pub places: Pointer<u32>,
    /// Length of each sequence: `(batch)`.
    pub lengths: Pointer<u32>,
    /// Sequence of each row: `(rows)`.
    pub sequences: Pointer<u32>,
    /// Step of each row: `(rows)`.
    pub steps: Pointer<u32>,
}

impl PackedSequences {
    /// The layout of sequences with these lengths, in the order of the batch.
    ///
    /// # Errors
    /// Fails if there are no sequences, if one is empty, or if there are more than `u32::MAX` elements in all.
    pub fn new(lengths: &[usize]) -> Result<Self> {
        if lengths.is_empty() {
            bail!("sequences: found none, expected at least one");
        }
        if let Some(empty) = lengths.iter().position(|&length| length == 0) {
            bail!("sequences: sequence {empty} is empty, expected at least one element");
        }
        let rows = lengths.iter().try_fold(0usize, |rows, &length| rows.checked_add(length));
        if rows.is_none_or(|rows| u32::try_from(rows).is_err()) {
            bail!("sequences: found more than {} elements, which row numbers in u32 can't index", u32::MAX);
        }
        Ok(Self { layout: PackedLayout::new(lengths), place: None, copy: DeviceCopy::default() })
    }

    /// The layout of the sequences `share` of a batch of sequences with these `lengths`.
    ///
    /// Dropout gives their elements the mask that they would get in the whole batch
    /// ([`Dropout::forward_packed`](crate::nn::Dropout::forward_packed)).
    ///
    /// # Errors
    /// Fails if [`new`](Self::new) would, for the batch or for the share.
    ///
    /// # Panics
    /// Panics if `share` is out of range.
    pub fn of_share(lengths: &[usize], share: Range<usize>) -> Result<Self> {
        let whole = Self::new(lengths)?;
        if share == (0..lengths.len()) {
            return Ok(whole);
        }
        // Both layouts keep the order of equally long sequences, so the rows of the share are in the same order in both.
        let rows = (0u32..).zip(whole.positions());
        let rows = rows.filter(|(_, (sequence, _))| share.contains(sequence)).map(|(row, _)| row).collect();
        let part = Self::new(&lengths[share])?;
        let starts = (0..part.steps()).map(|step| whole.step(step).1 as u32).collect();
        Ok(Self { place: Some(Place { rows, starts }), ..part })
    }

    /// The layout of the elements at `step` alone, as sequences of one element in the order of the rows.
    ///
    /// # Errors
    /// Fails if no sequence has an element there.
    pub(crate) fn at_step(&self, step: usize) -> Result<Self> {
        let (count, start) = self.step(step);
        let place = self.place.as_ref().map(|Place { rows, starts }| {
            let rows = rows[start..start + count].iter().map(|row| row - starts[step]).collect();
            Place { rows, starts: vec![0] }
        });
        Ok(Self { place, ..Self::new(&vec![1; count])? })
    }

    /// Where the mask of these rows lies in the mask of the whole batch.
    pub(crate) fn mask_place(&self) -> MaskPlace<'_> {
        self.place.as_ref().map_or(MaskPlace::From(0), |_| MaskPlace::Packed(self))
    }

    /// The row of `row` in the whole batch; `row` itself if these sequences are not a share.
    pub(crate) fn row_in_batch(&self, row: usize) -> usize {
        self.place.as_ref().map_or(row, |place| place.rows[row] as usize)
    }

    /// The row of each row in the whole batch, if these sequences are a share.
    pub(super) fn rows_in_batch(&self) -> &[u32] {
        self.place.as_ref().map_or(&[], |place| &place.rows)
    }

    /// [`rows_in_batch`](Self::rows_in_batch) in the memory of `gpu`.
    pub(super) fn rows_in_batch_on(&self, gpu: &Gpu) -> Result<Tensor> {
        let start = self.steps() + 1 + 2 * self.batch() + 2 * self.rows();
        self.copy_on(gpu)?.narrow(0, start, self.rows_in_batch().len())
    }

    /// Number of sequences.
    pub fn batch(&self) -> usize {
        self.layout.batch()
    }

    /// Number of time steps: the length of the longest sequence.
    pub fn steps(&self) -> usize {
        self.layout.steps()
    }

    /// Number of rows of a packed tensor: the elements of all sequences together.
    pub fn rows(&self) -> usize {
        self.layout.rows()
    }

    /// Length of each sequence, in the order of the batch.
    pub fn lengths(&self) -> Vec<usize> {
        self.layout.lengths()
    }

    /// The sequence and the time step of each row.
    pub fn positions(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        self.layout.positions()
    }

    /// The row of each sequence's last element.
    pub fn last_rows(&self) -> Vec<usize> {
        self.layout.last_rows()
    }

    /// The layout that the kernels work with.
    pub(super) fn layout(&self) -> &PackedLayout {
        &self.layout
    }

    /// Copies lists of integers, such as ids and targets, to `device`.
    ///
    /// A GPU gets all of them, and this layout, in one copy.
    ///
    /// # Errors
    /// Fails if the device has no memory for them.
    pub fn with_layout<const N: usize>(&self, lists: [&[u32]; N], device: &Device) -> Result<[Tensor; N]> {
        let mut tensors = Vec::with_capacity(N);
        match Gpu::on(device) {
            None => {
                for list in lists {
                    tensors.push(Tensor::new(list, device)?);
                }
            }
            Some(gpu) => {
                let mut numbers = self.numbers();
                let mut start = numbers.len();
                lists.iter().for_each(|list| numbers.extend_from_slice(list));
                let copy = gpu.tensor(gpu.upload(&numbers)?, numbers.len());
                for list in lists {
                    tensors.push(copy.narrow(0, start, list.len())?);
                    start += list.len();
                }
                self.copy.0.get_or_init(|| copy);
            }
        }
        Ok(tensors.try_into().expect("a tensor for each list"))
    }

    /// The numbers of this layout that kernels on a GPU take; see [`DeviceLayout`].
    fn numbers(&self) -> Vec<u32> {
        let starts = (0..self.steps()).map(|step| self.step(step).1).chain([self.rows()]);
        let per_sequence = self.places().into_iter().chain(self.lengths());
        let per_row = self.positions().map(|(sequence, _)| sequence);
        let per_row = per_row.chain(self.positions().map(|(_, step)| step));
        let numbers = starts.chain(per_sequence).chain(per_row).map(|number| number as u32);
        numbers.chain(self.rows_in_batch().iter().copied()).collect()
    }

    /// Returns the layout in the memory of `gpu`, and copies it there if this is the first use.
    pub(super) fn on_device(&self, gpu: &Gpu) -> Result<DeviceLayout> {
        let (batch, rows, steps) = (self.batch(), self.rows(), self.steps());
        let starts = gpu.pointer::<u32>(self.copy_on(gpu)?)?;
        let places = starts.offset(steps + 1);
        let lengths = places.offset(batch);
        let sequences = lengths.offset(batch);
        Ok(DeviceLayout { starts, places, lengths, sequences, steps: sequences.offset(rows) })
    }

    /// Returns the copy of [`numbers`](Self::numbers) in the memory of `gpu`.
    fn copy_on(&self, gpu: &Gpu) -> Result<&Tensor> {
        if let Some(copy) = self.copy.0.get() {
            return Ok(copy);
        }
        let numbers = self.numbers();
        let copy = gpu.tensor(gpu.upload(&numbers)?, numbers.len());
        Ok(self.copy.0.get_or_init(|| copy))
    }

    /// The sequences by descending length.
    pub(crate) fn order(&self) -> &[usize] {
        self.layout.order()
    }

    /// The place of each sequence in [`order`](Self::order), which is also the row of its first element.
    pub(super) fn places(&self) -> Vec<usize> {
        self.layout.first_rows()
    }

    /// Number of sequences that have an element at `step`, and their first row.
    pub(crate) fn step(&self, step: usize) -> (usize, usize) {
        self.layout.step(step)
    }

    /// Packs padded sequences `(batch, time, ..)` into rows `(rows, ..)`, without the padding.
    ///
    /// # Errors
    /// Fails if `xs` has a different batch size, fewer time steps than the longest sequence, or more than `u32::MAX`
    /// time steps in all.
    pub fn pack(&self, xs: &Tensor) -> Result<Tensor> {
        let time = match xs.dims() {
            &[batch, time, ..] if batch == self.batch() && time >= self.steps() => time,
            dims => bail!(
                "pack: found a tensor of shape {dims:?}, expected ({}, {} or more, ..)",
                self.batch(),
                self.steps()
            ),
        };
        check_index("pack", self.batch(), time)?;
        let index: Vec<u32> =
            self.positions().map(|(sequence, step)| (sequence * time + step) as u32).collect();
        xs.flatten(0, 1)?.index_select(&Tensor::new(index, xs.device())?, 0)
    }

    /// Unpacks rows `(rows, ..)` into sequences `(batch, time, ..)`, padded with zeros.
    ///
    /// # Errors
    /// Fails if `xs` has a different number of rows, or the padded batch has more than `u32::MAX` time steps in all.
    pub fn unpack(&self, xs: &Tensor) -> Result<Tensor> {
        let (rows, batch, steps) = (self.rows(), self.batch(), self.steps());
        if xs.dims().first() != Some(&rows) {
            bail!("unpack: found a tensor of shape {:?}, expected ({rows}, ..)", xs.dims());
        }
        check_index("unpack", batch, steps)?;
        let padding = xs.narrow(0, 0, 1)?.zeros_like()?;
        let mut index = vec![rows as u32; batch * steps];
        for (row, (sequence, step)) in self.positions().enumerate() {
            index[sequence * steps + step] = row as u32;
        }
        let padded = Tensor::cat(&[xs, &padding], 0)?.index_select(&Tensor::new(index, xs.device())?, 0)?;
        padded.reshape([&[batch, steps], &xs.dims()[1..]].concat())
    }
}

/// Checks that an index in u32 reaches every step of a padded batch.
fn check_index(op: &str, batch: usize, time: usize) -> Result<()> {
    match batch.checked_mul(time).map(u32::try_from) {
        Some(Ok(_)) => Ok(()),
        _ => bail!("{op}: {batch} sequences of {time} steps are more than an index in u32 can reach"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};

    #[test]
    fn rows_run_step_by_step_with_the_longest_sequence_first() -> Result<()> {
        let sequences = PackedSequences::new(&[2, 3, 1, 3])?;
        let positions: Vec<_> = sequences.positions().collect();
        assert_eq!(positions, [(1, 0), (3, 0), (0, 0), (2, 0), (1, 1), (3, 1), (0, 1), (1, 2), (3, 2)]);
        assert_eq!(sequences.last_rows(), [6, 7, 3, 8]);
        assert_eq!(sequences.lengths(), [2, 3, 1, 3]);
        assert_eq!(sequences.places(), [2, 0, 3, 1]);
        Ok(())
    }

    #[test]
    fn unpacking_restores_packed_elements_and_pads_with_zeros() -> Result<()> {
        let sequences = PackedSequences::new(&[1, 3, 2])?;
        let xs = Tensor::arange(1f32, 25., &Device::Cpu)?.reshape((3, 4, 2))?;
        let back = sequences.unpack(&sequences.pack(&xs)?)?;
        let expected = [
            [[1f32, 2.], [0., 0.], [0., 0.]],
            [[9., 10.], [11., 12.], [13., 14.]],
            [[17., 18.], [19., 20.], [0., 0.]],
        ];
        assert_eq!(back.to_vec3::<f32>()?, expected);
        Ok(())
    }

    #[test]
    fn unsuitable_lengths_and_shapes_are_errors() -> Result<()> {
        assert!(PackedSequences::new(&[]).is_err());
        assert!(PackedSequences::new(&[3, 0]).is_err());
        let sequences = PackedSequences::new(&[1, 3])?;
        for shape in [[2, 2, 5], [3, 3, 5]] {
            assert!(sequences.pack(&Tensor::zeros(&shape, DType::F32, &Device::Cpu)?).is_err());
        }
        assert!(sequences.unpack(&Tensor::zeros((5, 1), DType::F32, &Device::Cpu)?).is_err());
        Ok(())
    }

    #[test]
    fn more_elements_than_an_index_reaches_are_an_error() -> Result<()> {
        for lengths in [&[usize::MAX][..], &[usize::MAX, 2], &[1, u32::MAX as usize]] {
            let error = PackedSequences::new(lengths).unwrap_err().to_string();
            assert!(error.contains("more than 4294967295 elements"), "{error}");
        }
        // An empty tensor may have any number of time steps.
        let sequences = PackedSequences::new(&[1, 1])?;
        for time in [1 << 31, usize::MAX] {
            let padded = Tensor::zeros((2, time, 0), DType::F32, &Device::Cpu)?;
            let error = sequences.pack(&padded).unwrap_err().to_string();
            assert!(error.contains("index in u32"), "{error}");
        }
        Ok(())
    }
}
