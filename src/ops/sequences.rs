//! A batch of sequences of different lengths, without the gaps.

use candle_core::{Result, Tensor, bail};

/// How the elements of some sequences lie in one tensor, one a row: first all sequences' first elements, then their
/// second ones, and so on, each time the longest sequence first (PyTorch's packed sequences).
///
/// Whatever works on single elements (an embedding, a linear layer, dropout, a loss) works on these rows, and none of
/// its work is spent on padding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackedSequences {
    /// Sequences by falling length, and those of the same length in their order.
    order: Vec<usize>,
    /// How many sequences have an element at each step.
    sizes: Vec<usize>,
    /// The row where each step starts, and at the end the number of rows.
    starts: Vec<usize>,
}

impl PackedSequences {
    /// Sequences of these lengths.
    ///
    /// # Errors
    /// When there is none, or one without elements.
    pub fn new(lengths: &[usize]) -> Result<Self> {
        if let Some(empty) = lengths.iter().position(|&length| length == 0) {
            bail!("sequences: sequence {empty} has no elements, expected at least one");
        }
        let mut order: Vec<usize> = (0..lengths.len()).collect();
        order.sort_by_key(|&sequence| std::cmp::Reverse(lengths[sequence]));
        let Some(&longest) = order.first() else { bail!("sequences: found none, expected at least one") };
        let mut sizes = vec![0; lengths[longest]];
        for &length in lengths {
            sizes[..length].iter_mut().for_each(|size| *size += 1);
        }
        let starts = std::iter::once(0)
            .chain(sizes.iter().scan(0, |row, size| {
                *row += size;
                Some(*row)
            }))
            .collect();
        Ok(Self { order, sizes, starts })
    }

    /// How many sequences there are.
    pub fn batch(&self) -> usize {
        self.order.len()
    }

    /// How many elements the longest has.
    pub fn steps(&self) -> usize {
        self.sizes.len()
    }

    /// How many elements they have together.
    pub fn rows(&self) -> usize {
        self.starts[self.steps()]
    }

    /// How many elements each has.
    pub fn lengths(&self) -> Vec<usize> {
        let mut lengths = vec![0; self.batch()];
        for (place, &sequence) in self.order.iter().enumerate() {
            lengths[sequence] = self.sizes.partition_point(|&size| size > place);
        }
        lengths
    }

    /// The sequence and the step in it of each row.
    pub fn positions(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        let at = |step: usize| self.order[..self.sizes[step]].iter().map(move |&sequence| (sequence, step));
        (0..self.steps()).flat_map(at)
    }

    /// The row of the last element of each sequence.
    pub fn last_rows(&self) -> Vec<usize> {
        let mut last = vec![0; self.batch()];
        for (row, (sequence, _)) in self.positions().enumerate() {
            last[sequence] = row;
        }
        last
    }

    /// Sequences by falling length.
    pub(super) fn order(&self) -> &[usize] {
        &self.order
    }

    /// The place of each sequence in [`order`](Self::order): its row within each step's.
    pub(super) fn places(&self) -> Vec<usize> {
        let mut places = vec![0; self.batch()];
        self.order.iter().enumerate().for_each(|(place, &sequence)| places[sequence] = place);
        places
    }

    /// How many sequences have an element at `step`, and the row where they start.
    pub(super) fn step(&self, step: usize) -> (usize, usize) {
        (self.sizes[step], self.starts[step])
    }

    /// The rows `(rows, ..)` of `xs` `(batch, time, ..)`; what lies beyond a sequence's end is left out.
    ///
    /// # Errors
    /// When `xs` has another number of sequences or too few steps.
    pub fn pack(&self, xs: &Tensor) -> Result<Tensor> {
        let time = match xs.dims() {
            &[batch, time, ..] if batch == self.batch() && time >= self.steps() => time,
            dims => bail!(
                "pack: found a tensor of shape {dims:?}, expected ({}, {} or more, ..)",
                self.batch(),
                self.steps()
            ),
        };
        let index: Vec<u32> =
            self.positions().map(|(sequence, step)| (sequence * time + step) as u32).collect();
        xs.flatten(0, 1)?.index_select(&Tensor::new(index, xs.device())?, 0)
    }

    /// `(batch, time, ..)` of the rows `xs` `(rows, ..)`, with zeros beyond each sequence's end.
    ///
    /// # Errors
    /// When `xs` has another number of rows.
    pub fn unpack(&self, xs: &Tensor) -> Result<Tensor> {
        let (rows, batch, steps) = (self.rows(), self.batch(), self.steps());
        if xs.dims().first() != Some(&rows) {
            bail!("unpack: found a tensor of shape {:?}, expected ({rows}, ..)", xs.dims());
        }
        let gap = xs.narrow(0, 0, 1)?.zeros_like()?;
        let mut index = vec![rows as u32; batch * steps];
        for (row, (sequence, step)) in self.positions().enumerate() {
            index[sequence * steps + step] = row as u32;
        }
        let padded = Tensor::cat(&[xs, &gap], 0)?.index_select(&Tensor::new(index, xs.device())?, 0)?;
        padded.reshape([&[batch, steps], &xs.dims()[1..]].concat())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn rows_lie_step_after_step_and_longest_first() -> Result<()> {
        let sequences = PackedSequences::new(&[2, 3, 1, 3])?;
        let positions: Vec<_> = sequences.positions().collect();
        assert_eq!(positions, [(1, 0), (3, 0), (0, 0), (2, 0), (1, 1), (3, 1), (0, 1), (1, 2), (3, 2)]);
        assert_eq!(sequences.last_rows(), [6, 7, 3, 8]);
        Ok(())
    }

    #[test]
    fn unpacking_gives_back_what_was_packed_and_zeros_in_the_gaps() -> Result<()> {
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
    fn what_does_not_fit_is_refused() -> Result<()> {
        assert!(PackedSequences::new(&[]).is_err());
        assert!(PackedSequences::new(&[3, 0]).is_err());
        let sequences = PackedSequences::new(&[1, 3])?;
        for shape in [[2, 2, 5], [3, 3, 5]] {
            assert!(sequences.pack(&Tensor::zeros(&shape, candle_core::DType::F32, &Device::Cpu)?).is_err());
        }
        assert!(sequences.unpack(&Tensor::zeros((5, 1), candle_core::DType::F32, &Device::Cpu)?).is_err());
        Ok(())
    }
}
