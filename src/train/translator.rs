//! Translation with a trained encoder-decoder: greedy and beam search.

use super::stop;
use crate::data::Language;
use crate::models::seq2seq::{DecoderState, Encoded, PackedTokens, Seq2Seq};
use crate::nn::Mode;
use crate::ops;
use anyhow::{Result, ensure};
use candle_core::{DType, Device, Tensor};
use std::cmp::Reverse;

/// Number of sentences that are translated together.
const BATCH: usize = 64;

/// How a [`Translator`] searches for the best translation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Decoding {
    /// Number of hypotheses that the search follows; 1 is greedy search.
    pub beam: usize,
    /// The maximum number of tokens of a translation.
    pub max_length: usize,
    /// Exponent alpha of the length normalisation (Wu et al. 2016, eq. 14); 0 for none.
    ///
    /// The score of a translation of n tokens, its end included, is its log-probability divided by `((5 + n) /
    /// 6)^alpha`.
    pub length_penalty: f64,
    /// The maximum number of translations to return per sentence, at most `beam`.
    pub n_best: usize,
}

impl Default for Decoding {
    /// Greedy search for up to 100 tokens.
    fn default() -> Self {
        Self { beam: 1, max_length: 100, length_penalty: 0.0, n_best: 1 }
    }
}

/// A translation.
#[derive(Debug, Clone, PartialEq)]
pub struct Hypothesis {
    /// The target tokens, without the end.
    pub ids: Vec<u32>,
    /// Normalised log-probability: see [`Decoding::length_penalty`].
    pub score: f64,
    /// The attention weights of each token, and of the end if the translation is finished.
    ///
    /// Each has a weight per source token and one for the source's end. Empty without attention.
    pub attention: Vec<Vec<f32>>,
    /// Whether the translation has ended. If not, the search stopped at [`Decoding::max_length`].
    pub finished: bool,
}

/// Translates with an encoder-decoder.
///
/// Sources and targets end with [`Language::END`], and targets begin with [`Language::BEGIN`], which the translator adds.
pub struct Translator<'a> {
    model: &'a Seq2Seq,
    device: &'a Device,
}

impl<'a> Translator<'a> {
    /// Creates a translator with `model`, which is on `device`.
    pub fn new(model: &'a Seq2Seq, device: &'a Device) -> Self {
        Self { model, device }
    }

    /// Translates `sources`, token ids without special tokens. Returns the best translations of each, the best first.
    ///
    /// The search follows the `beam` most probable hypotheses of each sentence until that number of them have ended. A
    /// hypothesis ends if its end is among the `beam` most probable continuations. Translations that reached the
    /// maximum length without an end are returned only if none has ended. Of equally probable continuations, the one of
    /// the better hypothesis comes first, then the token with the lower index.
    ///
    /// # Errors
    /// Fails if an option is out of range, an id is outside the source vocabulary, or the model's probabilities are NaN.
    pub fn translate(&self, sources: &[Vec<u32>], decoding: &Decoding) -> Result<Vec<Vec<Hypothesis>>> {
        let &Decoding { beam, max_length, length_penalty, n_best } = decoding;
        ensure!(beam > 0, "beam: found 0, expected at least 1");
        ensure!(max_length > 0, "maximal length: found 0, expected at least 1");
        ensure!(
            length_penalty.is_finite() && length_penalty >= 0.0,
            "length penalty: found {length_penalty}, expected 0 or more"
        );
        ensure!(
            (1..=beam).contains(&n_best),
            "number of translations: found {n_best}, expected 1 to {beam}, the size of the beam"
        );
        // Sentences of similar length are finished at about the same step.
        let mut order: Vec<usize> = (0..sources.len()).collect();
        order.sort_by_key(|&i| Reverse(sources[i].len()));
        let mut translations = vec![vec![]; sources.len()];
        for batch in order.chunks(BATCH) {
            let with_end = |&i: &usize| sources[i].iter().copied().chain([Language::END]).collect();
            let batch_sources: Vec<Vec<u32>> = batch.iter().map(with_end).collect();
            let found = ops::no_grad(|| self.search(&batch_sources, decoding))?;
            for (&i, hypotheses) in batch.iter().zip(found) {
                translations[i] = hypotheses;
            }
        }
        Ok(translations)
    }

    /// Translates one batch of sources, which end with `END`.
    fn search(&self, sources: &[Vec<u32>], decoding: &Decoding) -> Result<Vec<Vec<Hypothesis>>> {
        let encoded = self.model.encode(&PackedTokens::new(sources, self.device)?, Mode::Evaluate)?;
        let mut tree = Tree::default();
        let mut searches: Vec<Search> = (0..sources.len()).map(|_| Search::new()).collect();
        let mut state = self.model.start(&encoded)?;
        for _ in 0..decoding.max_length {
            stop::check()?;
            match self.extend(&encoded, &state, decoding, &mut tree, &mut searches)? {
                Some(survivors) => state = survivors,
                None => break,
            }
        }
        let lengths = sources.iter().map(Vec::len);
        Ok(searches.into_iter().zip(lengths).map(|(search, len)| search.best(&tree, decoding, len)).collect())
    }

    /// Extends all live hypotheses by one token, and returns the state of those that stay alive, if any.
    fn extend(
        &self,
        encoded: &Encoded,
        state: &DecoderState,
        decoding: &Decoding,
        tree: &mut Tree,
        searches: &mut [Search],
    ) -> Result<Option<DecoderState>> {
        let live: Vec<Live> = searches.iter().flat_map(|search| search.live.iter().copied()).collect();
        let last: Vec<u32> = live.iter().map(|live| tree.last(live.node)).collect();
        let step = self.model.step(encoded, state, &Tensor::new(last, self.device)?)?;
        // Two of the tokens are never chosen.
        let candidates =
            ops::top_log_probabilities(&step.logits, decoding.beam.saturating_mul(2).saturating_add(2))?;
        let weights = match step.attention {
            Some(weights) => weights.to_dtype(DType::F32)?.to_vec2::<f32>()?,
            None => vec![vec![]; live.len()],
        };
        let (mut row, mut parents) = (0, vec![]);
        for search in searches.iter_mut().filter(|search| !search.live.is_empty()) {
            let rows = row..row + search.live.len();
            row = rows.end;
            let survivors =
                search.choose(decoding.beam, &candidates[rows.clone()], &weights[rows.clone()], tree);
            parents.extend(survivors.into_iter().map(|i| (rows.start + i) as u32));
        }
        // Candle has no empty tensors on a GPU.
        Ok(if parents.is_empty() { None } else { Some(step.state.select(&parents)?) })
    }
}

/// The tokens of all hypotheses of a batch, which share their beginnings.
#[derive(Default)]
struct Tree {
    nodes: Vec<Node>,
}

/// A token of a hypothesis.
struct Node {
    parent: Option<usize>,
    token: u32,
    /// Attention weights over the longest source of the batch.
    weights: Vec<f32>,
}

impl Tree {
    /// The last token of a hypothesis, or `BEGIN` for an empty one.
    fn last(&self, node: Option<usize>) -> u32 {
        node.map_or(Language::BEGIN, |node| self.nodes[node].token)
    }

    fn add(&mut self, parent: Option<usize>, token: u32, weights: &[f32]) -> Option<usize> {
        self.nodes.push(Node { parent, token, weights: weights.to_vec() });
        Some(self.nodes.len() - 1)
    }

    /// The nodes of a hypothesis from its first token to its last.
    fn path(&self, node: Option<usize>) -> Vec<&Node> {
        let mut path: Vec<&Node> =
            std::iter::successors(node.map(|i| &self.nodes[i]), |node| node.parent.map(|i| &self.nodes[i]))
                .collect();
        path.reverse();
        path
    }
}

/// A hypothesis: its last node, and the logarithm of its probability.
#[derive(Clone, Copy)]
struct Live {
    node: Option<usize>,
    log_probability: f64,
}

/// The search for the translations of one sentence.
struct Search {
    /// Hypotheses to extend, the best first; empty once the search has ended.
    live: Vec<Live>,
    finished: Vec<Live>,
}

impl Search {
    fn new() -> Self {
        Self { live: vec![Live { node: None, log_probability: 0.0 }], finished: vec![] }
    }

    /// Chooses the best continuations from the `candidates` of each live hypothesis.
    ///
    /// Returns the indices of the hypotheses that the new live ones extend.
    fn choose(
        &mut self,
        beam: usize,
        candidates: &[Vec<(u32, f64)>],
        weights: &[Vec<f32>],
        tree: &mut Tree,
    ) -> Vec<usize> {
        let live = std::mem::take(&mut self.live);
        let mut ranked: Vec<(usize, u32, f64)> = vec![];
        for (i, (live, candidates)) in live.iter().zip(candidates).enumerate() {
            let possible =
                candidates.iter().filter(|(token, _)| ![Language::PAD, Language::BEGIN].contains(token));
            ranked.extend(possible.map(|&(token, x)| (i, token, live.log_probability + x)));
        }
        // The sort is stable, so equal candidates stay in the order of hypotheses and tokens.
        ranked.sort_by(|a, b| b.2.total_cmp(&a.2));
        let mut parents = vec![];
        for (rank, (i, token, log_probability)) in ranked.into_iter().enumerate() {
            if parents.len() == beam || self.finished.len() == beam {
                break;
            }
            if token == Language::END && rank >= beam {
                continue;
            }
            let node = tree.add(live[i].node, token, &weights[i]);
            let next = Live { node, log_probability };
            if token == Language::END {
                self.finished.push(next);
            } else {
                self.live.push(next);
                parents.push(i);
            }
        }
        if self.finished.len() == beam {
            self.live.clear();
            parents.clear();
        }
        parents
    }

    /// The best hypotheses; the source has `source` tokens, its end included.
    fn best(self, tree: &Tree, decoding: &Decoding, source: usize) -> Vec<Hypothesis> {
        let hypothesis = |live: Live, finished: bool| {
            let path = tree.path(live.node);
            let tokens = path.len() - usize::from(finished);
            let normal = libm::pow((5.0 + path.len() as f64) / 6.0, decoding.length_penalty);
            let attended = path.iter().filter(|node| !node.weights.is_empty());
            Hypothesis {
                ids: path[..tokens].iter().map(|node| node.token).collect(),
                score: live.log_probability / normal,
                attention: attended.map(|node| node.weights[..source].to_vec()).collect(),
                finished,
            }
        };
        let ranked = |hypotheses: Vec<Live>, finished: bool| {
            let mut ranked: Vec<_> = hypotheses.into_iter().map(|live| hypothesis(live, finished)).collect();
            ranked.sort_by(|a, b| b.score.total_cmp(&a.score));
            ranked
        };
        let mut best = match self.finished.is_empty() {
            true => ranked(self.live, false),
            false => ranked(self.finished, true),
        };
        best.truncate(decoding.n_best);
        best
    }
}
