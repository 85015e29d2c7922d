//! What each process tells all others at the end of a backward pass.

use crate::ops::{RowGradients, RowNumbers, host};
use anyhow::{Context, Result};
use candle_core::{Device, Tensor};

/// The largest place; the bit above it is a flag.
const FLAG: u32 = 1 << 31;

/// The place of a gradient in the order of arrival.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub place: u32,
    /// Whether candle's own operations contribute to the gradient.
    pub has_rest: bool,
}

/// The message of one process.
pub(super) struct Message {
    pub values: Vec<f64>,
    /// One per parameter; `None` if the process has no gradient.
    pub places: Vec<Option<Place>>,
    /// The rows of each parameter that have a gradient, with its values.
    rows: Vec<Option<(Vec<u32>, Vec<f32>)>>,
}

impl Message {
    /// The values of `rows` are multiplied by `factor`.
    pub fn new(
        values: Vec<f64>,
        places: Vec<Option<Place>>,
        rows: &[Option<RowGradients>],
        factor: f32,
    ) -> Result<Self> {
        let scaled = |rows: &RowGradients| {
            let (numbers, values) = on_host(rows)?;
            anyhow::Ok((numbers, values.into_iter().map(|value| value * factor).collect()))
        };
        let rows = rows.iter().map(|rows| rows.as_ref().map(scaled).transpose()).collect::<Result<_>>()?;
        Ok(Self { values, places, rows })
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![];
        let mut put = |words: &[u32]| bytes.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        put(&[self.values.len() as u32, self.places.len() as u32]);
        for value in &self.values {
            let bits = value.to_bits();
            put(&[bits as u32, (bits >> 32) as u32]);
        }
        for place in &self.places {
            put(&[place.map_or(0, |Place { place, has_rest }| place | if has_rest { FLAG } else { 0 })]);
        }
        for (index, (numbers, values)) in
            (0..).zip(&self.rows).filter_map(|(index, rows)| Some((index, rows.as_ref()?)))
        {
            put(&[index, numbers.len() as u32, values.len() as u32]);
            put(numbers);
            values.iter().for_each(|value| put(&[value.to_bits()]));
        }
        bytes
    }

    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let mut words = bytes.as_chunks().0.iter().map(|&word| u32::from_le_bytes(word));
        Self::read(&mut words).context("several processes: found a message that was cut off")
    }

    fn read(words: &mut dyn Iterator<Item = u32>) -> Option<Self> {
        let [values, places] = [words.next()?, words.next()?];
        let value = |low: u32, high: u32| f64::from_bits(u64::from(low) | u64::from(high) << 32);
        let values = (0..values).map(|_| Some(value(words.next()?, words.next()?))).collect::<Option<_>>()?;
        let place = |word| (word > 0).then_some(Place { place: word & !FLAG, has_rest: word & FLAG != 0 });
        let places: Vec<_> = (0..places).map(|_| Some(place(words.next()?))).collect::<Option<_>>()?;
        let mut rows = vec![None; places.len()];
        while let Some(index) = words.next() {
            let [numbers, values] = [words.next()?, words.next()?];
            let numbers = (0..numbers).map(|_| words.next()).collect::<Option<_>>()?;
            let values = (0..values).map(|_| words.next().map(f32::from_bits)).collect::<Option<_>>()?;
            *rows.get_mut(index as usize)? = Some((numbers, values));
        }
        Some(Self { values, places, rows })
    }
}

/// Returns the numbers of the rows in increasing order, and their values.
pub(super) fn on_host(rows: &RowGradients) -> Result<(Vec<u32>, Vec<f32>)> {
    let values = rows.values.contiguous()?;
    match &rows.rows {
        RowNumbers::Host(numbers) => {
            Ok((numbers.clone(), host::read(&values, |values| Ok(values.to_vec()))?))
        }
        RowNumbers::Device(numbers) => {
            let numbers = numbers.to_vec1::<u32>()?.into_iter();
            let mut rows: Vec<_> = numbers.zip(values.to_vec2::<f32>()?).collect();
            rows.retain(|&(number, _)| number != u32::MAX);
            rows.sort_unstable_by_key(|&(number, _)| number);
            let (numbers, values): (_, Vec<_>) = rows.into_iter().unzip();
            Ok((numbers, values.concat()))
        }
    }
}

/// Adds the gradients of rows in the order of the messages; `columns` holds the length of a row of each parameter.
pub(super) fn sum_rows(messages: &mut [Message], columns: &[usize]) -> Result<Vec<Option<RowGradients>>> {
    let sum = |(index, &columns): (usize, &usize)| {
        let mut sum: Option<RowGradients> = None;
        for (numbers, values) in messages.iter_mut().filter_map(|message| message.rows[index].take()) {
            let values = Tensor::from_vec(values, (numbers.len(), columns), &Device::Cpu)?;
            let part = RowGradients { rows: RowNumbers::Host(numbers), values };
            sum = Some(match sum {
                Some(before) => before.add(part)?,
                None => part,
            });
        }
        Ok(sum)
    };
    columns.iter().enumerate().map(sum).collect()
}
