//! Sentence classification with a convolutional network (Kim 2014, arXiv:1408.5882, figure 1).
//!
//! Filters slide over windows of words, and each contributes its maximum response over the sentence.

use crate::nn::{
    Attribution, ConvMaxOverTime, Dropout, Embedding, Linear, Mode, PackedSequences, SentenceModel,
    WORD_VECTOR_INIT, conv_max_over_time, embedding_with, linear,
};
use crate::ops;
use candle_core::{DType, Module, Result, Tensor, bail};
use candle_nn::VarBuilder;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Which word vectors the network uses, and whether it trains them (section 3.1 of the paper).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
pub enum Variant {
    /// Random vectors, trained with the network
    #[default]
    Rand,
    /// Pretrained vectors, frozen
    Static,
    /// Pretrained vectors, fine-tuned
    NonStatic,
    /// Two channels of pretrained vectors, one fine-tuned and one frozen
    Multichannel,
}

/// The configuration of a [`TextCnn`].
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Which word vectors the network uses.
    pub variant: Variant,
    /// Number of words in the vocabulary.
    pub vocabulary: usize,
    /// Size of a word's embedding.
    pub embedding: usize,
    /// Widths of the filters in words; the paper uses 3, 4 and 5.
    pub widths: Vec<usize>,
    /// Number of filters per width.
    pub filters: usize,
    /// Dropout probability of the pooled responses.
    pub dropout: f32,
    /// Number of classes.
    pub classes: usize,
}

/// A convolutional sentence classifier.
#[derive(Debug, Clone)]
pub struct TextCnn {
    embedding: Embedding,
    /// The frozen channel of [`Variant::Multichannel`].
    fixed_embedding: Option<Embedding>,
    convs: ConvMaxOverTime,
    dropout: Dropout,
    output: Linear,
}

impl TextCnn {
    /// Creates the model with the parameters of `vb`.
    ///
    /// They are `embedding.weight`, `convs.k.{weight,bias}` for the k-th width, and `output.{weight,bias}`. The
    /// two-channel model also has `fixed_embedding.weight`; a filter reads the features of `embedding` first, then
    /// these.
    ///
    /// # Errors
    /// Fails if there are no widths or no filters, if the embeddings are too large, or if `vb` holds a parameter in
    /// another shape.
    pub fn new(config: &Config, vb: VarBuilder) -> Result<Self> {
        let &Config { variant, vocabulary, embedding, ref widths, filters, dropout: rate, classes } = config;
        let channels = if variant == Variant::Multichannel { 2 } else { 1 };
        let Some(features) = embedding.checked_mul(channels) else {
            bail!("textcnn: found embeddings of {embedding} features, which are too many for two channels")
        };
        let table = |name| embedding_with(vocabulary, embedding, WORD_VECTOR_INIT, vb.pp(name));
        // A detached table gets no gradient.
        let frozen = |table: Embedding| Embedding::new(table.embeddings().detach(), table.hidden_size());
        let embedding = table("embedding")?;
        Ok(Self {
            embedding: if variant == Variant::Static { frozen(embedding) } else { embedding },
            fixed_embedding: if channels == 2 { Some(frozen(table("fixed_embedding")?)) } else { None },
            convs: conv_max_over_time(features, widths, filters, vb.pp("convs"))?,
            dropout: Dropout::at_path(rate, vb.pp("dropout")),
            output: linear(widths.len() * filters, classes, vb.pp("output"))?,
        })
    }

    /// The embeddings of the words, `(rows, channels * embedding)`.
    fn embed(&self, words: &Tensor) -> Result<Tensor> {
        let xs = self.embedding.forward(words)?;
        match &self.fixed_embedding {
            Some(fixed) => ops::concat(&[xs, fixed.forward(words)?], 1, 0),
            None => Ok(xs),
        }
    }
}

impl SentenceModel for TextCnn {
    /// One row of logits per sentence, `(batch, classes)`.
    fn forward(&self, words: &Tensor, sentences: &Arc<PackedSequences>, mode: Mode) -> Result<Tensor> {
        let xs = self.embed(words)?; // (rows, channels * embedding)
        let responses = self.convs.forward(&xs, sentences)?; // (batch, widths * filters)
        let responses = self.dropout.forward_at(&responses, mode)?;
        responses.apply(&self.output) // (batch, classes)
    }

    fn embedding(&self) -> &Embedding {
        &self.embedding
    }

    /// The contribution of each window in which a filter has its maximum.
    ///
    /// The contributions of filters with the same window are summed.
    fn attributions(
        &self,
        words: &Tensor,
        sentences: &Arc<PackedSequences>,
    ) -> Result<Vec<Vec<Attribution>>> {
        let xs = self.embed(words)?;
        let responses = self.convs.forward(&xs, sentences)?;
        let positions = self.convs.max_positions(&xs, sentences)?;
        let widths = self.convs.widths();
        let mut attributions = vec![];
        for ((sentence, positions), length) in positions.into_iter().enumerate().zip(sentences.lengths()) {
            let contributions = self.output.weight().broadcast_mul(&responses.get(sentence)?)?; // (classes, filters)
            let contributions = contributions.t()?.to_dtype(DType::F32)?.to_vec2::<f32>()?;
            let mut windows = BTreeMap::<(usize, usize), Vec<f32>>::new();
            for ((first, &width), logits) in positions.into_iter().zip(&widths).zip(contributions) {
                // A window may begin before the sentence and end after it.
                let end = (first + width as i64).clamp(0, length as i64) as usize;
                let start = (first.max(0) as usize).min(end);
                let sums = windows.entry((start, end)).or_insert_with(|| vec![0.0; logits.len()]);
                sums.iter_mut().zip(logits).for_each(|(sum, logit)| *sum += logit);
            }
            let windows = windows.into_iter();
            let attribution = |((start, end), logits)| Attribution { words: start..end, logits };
            attributions.push(windows.map(attribution).collect());
        }
        Ok(attributions)
    }
}
