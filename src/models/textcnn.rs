//! A convolutional network tells the class of a sentence by its telling phrases (Kim 2014, arXiv:1408.5882).

use crate::nn::{
    Attribution, ConvMaxOverTime, Dropout, Embedding, Linear, Mode, PackedSequences, SentenceModel,
    WORD_VECTOR_INIT, conv_max_over_time, dropout, embedding_with, linear,
};
use candle_core::{DType, Module, Result, Tensor};
use candle_nn::VarBuilder;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Which words' vectors a network reads, and whether it learns them (section 3.1).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
pub enum Variant {
    /// Vectors learned from random ones
    #[default]
    Rand,
    /// Pretrained vectors, left as they are
    Static,
    /// Pretrained vectors, learned further
    NonStatic,
    /// Both: two vectors a word, one of which is learned further
    Multichannel,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    pub variant: Variant,
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
    /// The second channel.
    fixed: Option<Embedding>,
    convolution: ConvMaxOverTime,
    dropout: Dropout,
    output: Linear,
}

impl TextCnn {
    /// With the parameters `embedding.weight`, `convs.k.{weight,bias}` of width k and `output.{weight,bias}` of `vb`, and for
    /// two channels `fixed_embedding.weight`, which the filters see after the other.
    ///
    /// # Errors
    /// Without widths or filters, and when `vb` holds the parameters in other shapes.
    pub fn new(config: &Config, vb: VarBuilder) -> Result<Self> {
        let &Config { variant, vocabulary, embedding, ref widths, filters, dropout: rate, classes } = config;
        let table = |name| embedding_with(vocabulary, embedding, WORD_VECTOR_INIT, vb.pp(name));
        // No gradient reaches it.
        let fixed = |table: Embedding| Embedding::new(table.weight().detach());
        let (words, channels) = (table("embedding")?, if variant == Variant::Multichannel { 2 } else { 1 });
        Ok(Self {
            embedding: if variant == Variant::Static { fixed(words) } else { words },
            fixed: if channels == 2 { Some(fixed(table("fixed_embedding")?)) } else { None },
            convolution: conv_max_over_time(channels * embedding, widths, filters, vb.pp("convs"))?,
            dropout: dropout(rate, vb.pp("dropout")),
            output: linear(widths.len() * filters, classes, vb.pp("output"))?,
        })
    }
}

impl TextCnn {
    fn vectors(&self, words: &Tensor) -> Result<Tensor> {
        let vectors = self.embedding.forward(words)?;
        match &self.fixed {
            Some(fixed) => Tensor::cat(&[vectors, fixed.forward(words)?], 1),
            None => Ok(vectors),
        }
    }
}

impl SentenceModel for TextCnn {
    /// One row `(batch, classes)` a sentence.
    fn forward(&self, words: &Tensor, sentences: &Arc<PackedSequences>, mode: Mode) -> Result<Tensor> {
        let features = self.convolution.forward(&self.vectors(words)?, sentences)?;
        self.dropout.forward(&features, mode)?.apply(&self.output)
    }

    fn embedding(&self) -> &Embedding {
        &self.embedding
    }

    /// The windows that filters respond to, each with what its filters' responses add to the classes' logits.
    fn attributions(
        &self,
        words: &Tensor,
        sentences: &Arc<PackedSequences>,
    ) -> Result<Vec<Vec<Attribution>>> {
        let xs = self.vectors(words)?;
        let responses = self.convolution.forward(&xs, sentences)?;
        let winners = self.convolution.max_positions(&xs, sentences)?;
        let widths = self.convolution.widths();
        let mut attributions = vec![];
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
            let reason = |((start, end), logits)| Attribution { words: start..end, logits };
            attributions.push(windows.into_iter().map(reason).collect());
        }
        Ok(attributions)
    }
}
