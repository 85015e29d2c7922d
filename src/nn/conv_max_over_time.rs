use super::InitScheme;
use crate::data::count;
use crate::ops::{self, ConvFilters, PackedSequences};
use candle_core::{Result, Tensor, bail};
use candle_nn::VarBuilder;
use std::sync::Arc;

/// Filters over windows of words, max-pooled over time, then a ReLU (Kim 2014).
#[derive(Debug, Clone)]
pub struct ConvMaxOverTime {
    filters: Vec<ConvFilters>,
    padding: usize,
}

/// Creates `filters` filters per width with PyTorch's initial values.
///
/// A filter covers a window of `width` words. Parameters in `vb` for the k-th width: `k.weight` `(filters, features,
/// width)` and `k.bias` `(filters)`. Sentences are padded with zeros at both ends, so that each word takes every place
/// in a window.
///
/// # Errors
/// Fails if there are no widths or no filters, a width is 0, a size is too large, or `vb` holds a parameter in another
/// shape.
pub fn conv_max_over_time(
    features: usize,
    widths: &[usize],
    filters: usize,
    vb: VarBuilder,
) -> Result<ConvMaxOverTime> {
    let widest = match widths.iter().max() {
        Some(&widest) if !widths.contains(&0) && filters > 0 => widest,
        _ => bail!(
            "conv_max_over_time: found {} of widths {widths:?}, expected at least one of each",
            count(filters, "filter")
        ),
    };
    let width = |(k, &width): (usize, &usize)| -> Result<ConvFilters> {
        let (Some(fan_in), Some(fan_out)) = (features.checked_mul(width), filters.checked_mul(width)) else {
            bail!(
                "conv_max_over_time: {filters} filters of width {width} over {features} features are too large"
            )
        };
        let (vb, init) = (vb.pp(k), InitScheme::PyTorch);
        let weight = vb.get_with_hints((filters, features, width), "weight", init.weight(fan_in, fan_out))?;
        Ok(ConvFilters { weight, bias: vb.get_with_hints(filters, "bias", init.bias(fan_in))? })
    };
    let filters = widths.iter().enumerate().map(width).collect::<Result<_>>()?;
    Ok(ConvMaxOverTime { filters, padding: widest - 1 })
}

impl ConvMaxOverTime {
    /// Maps words `(rows, features)` to responses `(batch, filters)`, one block of columns per width.
    ///
    /// # Errors
    /// Fails if shapes do not fit.
    pub fn forward(&self, words: &Tensor, sentences: &Arc<PackedSequences>) -> Result<Tensor> {
        ops::relu(&ops::conv_max_over_time(words, sentences, &self.filters, self.padding)?)
    }

    /// Finds the window of each sentence to which each filter responds most.
    ///
    /// A window is given by the index of its first word, which is negative if the window begins in the padding.
    ///
    /// # Errors
    /// Fails if [`forward`](Self::forward) would.
    pub fn max_positions(&self, words: &Tensor, sentences: &Arc<PackedSequences>) -> Result<Vec<Vec<i64>>> {
        ops::conv_max_positions(words, sentences, &self.filters, self.padding)
    }

    /// The width of each filter.
    pub fn widths(&self) -> Vec<usize> {
        let widths = |ConvFilters { weight, .. }: &ConvFilters| vec![weight.dims()[2]; weight.dims()[0]];
        self.filters.iter().flat_map(widths).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::seeded_var_builder;
    use candle_core::{DType, Device};
    use candle_nn::VarMap;

    #[test]
    fn missing_and_huge_filters_are_refused() {
        let error = |features, widths: &[usize], filters| {
            let vb = seeded_var_builder(&VarMap::new(), 0, DType::F32, &Device::Cpu);
            conv_max_over_time(features, widths, filters, vb).unwrap_err().to_string()
        };
        for (widths, filters) in [(&[][..], 2), (&[3, 0], 2), (&[3], 0)] {
            assert!(error(4, widths, filters).contains("expected at least one"));
        }
        assert!(error(4, &[usize::MAX], 2).contains("too large"));
        assert!(error(usize::MAX, &[2], 2).contains("too large"));
    }
}
