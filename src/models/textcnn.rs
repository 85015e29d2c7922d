//! A convolutional network tells the class of a sentence by its telling phrases (Kim 2014, arXiv:1408.5882).

use crate::nn::{
    ConvMax, Dropout, Embedding, Linear, Mode, Reason, SentenceModel, Sequences, WORD_VECTORS, conv_max,
    dropout, embedding_with, linear,
};
use candle_core::{DType, Module, Result, Tensor};
use candle_nn::VarBuilder;
use std::collections::BTreeMap;
use std::sync::Arc;

#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Number of known words.
    pub vocabulary: usize,
    /// Size of a word's vector.
    pub embedding: usize,
    /// Of so many words are the windows that filters look at.
    pub widths: Vec<usize>,
    /// Filters of each width.
    pub filters: usize,
    /// Before the classes.
    pub dropout: f32,
    pub classes: usize,
}

#[derive(Debug, Clone)]
pub struct TextCnn {
    embedding: Embedding,
    convolution: ConvMax,
    dropout: Dropout,
    output: Linear,
}

impl TextCnn {
    /// With the parameters `embedding.weight`, `convs.k.{weight,bias}` of width k and `output.{weight,bias}` of `vb`.
    ///
    /// # Errors
    /// Without widths or filters, and when `vb` holds the parameters in other shapes.
    pub fn new(config: &Config, vb: VarBuilder) -> Result<Self> {
        let &Config { vocabulary, embedding, ref widths, filters, dropout: rate, classes } = config;
        Ok(Self {
            embedding: embedding_with(vocabulary, embedding, WORD_VECTORS, vb.pp("embedding"))?,
            convolution: conv_max(embedding, widths, filters, vb.pp("convs"))?,
            dropout: dropout(rate, vb.pp("dropout")),
            output: linear(widths.len() * filters, classes, vb.pp("output"))?,
        })
    }
}

impl SentenceModel for TextCnn {
    /// One row `(batch, classes)` a sentence.
    fn forward(&self, words: &Tensor, sentences: &Arc<Sequences>, mode: Mode) -> Result<Tensor> {
        let features = self.convolution.forward(&self.embedding.forward(words)?, sentences)?;
        self.dropout.forward(&features, mode)?.apply(&self.output)
    }
    /// The windows that filters respond to, each with what its filters' responses add to the classes' logits.
    fn reasons(&self, words: &Tensor, sentences: &Arc<Sequences>) -> Result<Vec<Vec<Reason>>> {
        let xs = self.embedding.forward(words)?;
        let responses = self.convolution.forward(&xs, sentences)?;
        let winners = self.convolution.winners(&xs, sentences)?;
        let widths = self.convolution.widths();
        let mut reasons = vec![];
        for ((sentence, winners), length) in winners.into_iter().enumerate().zip(sentences.lengths()) {
            // (classes, filters)
            let added = self.output.weight().broadcast_mul(&responses.get(sentence)?)?;
            let added = added.t()?.to_dtype(DType::F32)?.to_vec2::<f32>()?;
            let mut windows = BTreeMap::<(usize, usize), Vec<f32>>::new();
            for ((first, &width), added) in winners.into_iter().zip(&widths).zip(added) {
                let end = (first + width as i64).clamp(0, length as i64) as usize;
                let words = (first.max(0) as usize).min(end)..end;
                let sums = windows.entry((words.start, words.end)).or_insert_with(|| vec![0.0; added.len()]);
                sums.iter_mut().zip(added).for_each(|(sum, added)| *sum += added);
            }
            let reason = |((start, end), logits)| Reason { words: start..end, logits };
            reasons.push(windows.into_iter().map(reason).collect());
        }
        Ok(reasons)
    }
}
