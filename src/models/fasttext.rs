//! fastText: a linear classifier on the mean embedding of a sentence's words and n-grams.
//!
//! Joulin et al. 2016, arXiv:1607.01759, figure 1.

use crate::nn::{Attribution, Embedding, Linear, Mode, PackedSequences, SentenceModel, embedding_with};
use candle_core::{DType, Module, Result, Tensor};
use candle_nn::{Init, VarBuilder};
use std::sync::Arc;

/// The configuration of a [`FastText`] model.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Number of features: words of the vocabulary plus hash buckets of n-grams.
    pub features: usize,
    /// Size of a feature's embedding: the paper's hidden layer.
    pub embedding: usize,
    /// Number of classes.
    pub classes: usize,
}

/// A bag-of-features sentence classifier.
#[derive(Debug, Clone)]
pub struct FastText {
    embedding: Embedding,
    output: Linear,
}

impl FastText {
    /// Creates the model with the parameters of `vb`.
    ///
    /// They are `embedding.weight`, initially uniform within ±1/embedding, and `output.weight`, initially zero: the
    /// matrices A and B of the paper.
    ///
    /// # Errors
    /// Fails if `vb` holds a parameter in another shape.
    pub fn new(config: &Config, vb: VarBuilder) -> Result<Self> {
        let &Config { features, embedding, classes } = config;
        let bound = 1.0 / embedding as f64;
        let init = Init::Uniform { lo: -bound, up: bound };
        let output = vb.pp("output").get_with_hints((classes, embedding), "weight", Init::Const(0.0))?;
        Ok(Self {
            embedding: embedding_with(features, embedding, init, vb.pp("embedding"))?,
            output: Linear::new(output, None),
        })
    }
}

impl SentenceModel for FastText {
    /// One row of logits per sentence, `(batch, classes)`.
    fn forward(&self, features: &Tensor, sentences: &Arc<PackedSequences>, _: Mode) -> Result<Tensor> {
        let mean = self.embedding.mean(features, sentences)?; // (batch, embedding)
        mean.apply(&self.output) // (batch, classes)
    }

    fn embedding(&self) -> &Embedding {
        &self.embedding
    }

    /// The exact contribution of each feature, as the model is linear in the mean.
    fn attributions(
        &self,
        features: &Tensor,
        sentences: &Arc<PackedSequences>,
    ) -> Result<Vec<Vec<Attribution>>> {
        let logits = self.embedding.forward(features)?.apply(&self.output)?; // (rows, classes)
        let logits = logits.to_dtype(DType::F32)?.to_vec2::<f32>()?;
        let lengths = sentences.lengths();
        let mut attributions: Vec<Vec<Attribution>> = vec![vec![]; sentences.batch()];
        for ((sentence, step), logits) in sentences.positions().zip(logits) {
            let logits = logits.iter().map(|logit| logit / lengths[sentence] as f32).collect();
            attributions[sentence].push(Attribution { words: step..step + 1, logits });
        }
        Ok(attributions)
    }
}
