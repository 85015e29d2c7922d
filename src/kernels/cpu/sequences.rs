//! The layout of packed sequences.

use std::cmp::Reverse;

/// The row layout of a batch of sequences of different lengths.
///
/// Time steps follow one another, and within a step the longest sequence comes first. There is at least one sequence,
/// and every sequence has at least one element.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PackedLayout {
    /// The sequences by descending length; equally long ones keep their order.
    order: Vec<usize>,
    /// Number of sequences that have an element at each step.
    sizes: Vec<usize>,
    /// The first row of each step, then the number of rows.
    starts: Vec<usize>,
}

impl PackedLayout {
    /// The layout of sequences with these lengths. The sum of the lengths must not overflow.
    ///
    /// # Panics
    /// If there are no sequences.
    pub fn new(lengths: &[usize]) -> Self {
        debug_assert!(!lengths.contains(&0));
        let mut order: Vec<usize> = (0..lengths.len()).collect();
        order.sort_by_key(|&sequence| Reverse(lengths[sequence]));
        let mut sizes = vec![0; lengths[order[0]]];
        for &length in lengths {
            sizes[..length].iter_mut().for_each(|size| *size += 1);
        }
        let ends = sizes.iter().scan(0, |row, size| {
            *row += size;
            Some(*row)
        });
        let starts = std::iter::once(0).chain(ends).collect();
        Self { order, sizes, starts }
    }

    /// Number of sequences.
    pub fn batch(&self) -> usize {
        self.order.len()
    }

    /// Length of the longest sequence.
    pub fn steps(&self) -> usize {
        self.sizes.len()
    }

    /// Number of elements of all sequences together.
    pub fn rows(&self) -> usize {
        self.starts[self.steps()]
    }

    /// The sequences by descending length.
    pub fn order(&self) -> &[usize] {
        &self.order
    }

    /// Number of sequences that have an element at `step`, and their first row.
    pub fn step(&self, step: usize) -> (usize, usize) {
        (self.sizes[step], self.starts[step])
    }

    /// Number of elements of each sequence.
    pub fn lengths(&self) -> Vec<usize> {
        let mut lengths = vec![0; self.batch()];
        for (place, &sequence) in self.order.iter().enumerate() {
            lengths[sequence] = self.sizes.partition_point(|&size| size > place);
        }
        lengths
    }

    /// The sequence and the time step of each row.
    pub fn positions(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        let at = |step: usize| self.order[..self.sizes[step]].iter().map(move |&sequence| (sequence, step));
        (0..self.steps()).flat_map(at)
    }

    /// The row of each sequence's first element.
    pub fn first_rows(&self) -> Vec<usize> {
        let mut places = vec![0; self.batch()];
        self.order.iter().enumerate().for_each(|(place, &sequence)| places[sequence] = place);
        places
    }

    /// The row of each sequence's last element.
    pub fn last_rows(&self) -> Vec<usize> {
        let mut last = vec![0; self.batch()];
        for (row, (sequence, _)) in self.positions().enumerate() {
            last[sequence] = row;
        }
        last
    }
}
