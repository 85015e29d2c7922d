//! An encoder-decoder that translates one sequence into another, with or without attention.
//!
//! Sutskever, Vinyals and Le 2014, arXiv:1409.3215; Cho et al. 2014, arXiv:1406.1078. Attention: Bahdanau et al. 2015,
//! arXiv:1409.0473; Luong et al. 2015, arXiv:1508.04025.

pub use crate::nn::Attention;

use crate::data::count;
use crate::nn::{
    AttentionLayer, AttentionMemory, Cell, Dropout, Embedding, Linear, Mode, PackedSequences, QueryRows,
    Recurrent, RecurrentConfig, RecurrentState, WORD_VECTOR_INIT, attention, embedding_with, linear,
    recurrent,
};
use crate::ops::{self, PreparedLinear};
use crate::rng;
use candle_core::{D, Device, Module, Result, Tensor, bail};
use candle_nn::VarBuilder;
use rand::{Rng, RngCore};
use std::ops::Range;
use std::sync::{Arc, OnceLock};

/// The configuration of a [`Seq2Seq`].
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The kind of recurrent cell of encoder and decoder.
    pub cell: Cell,
    /// Number of tokens of the source vocabulary.
    pub source_vocabulary: usize,
    /// Number of tokens of the target vocabulary.
    pub target_vocabulary: usize,
    /// Size of a token's embedding, on both sides.
    pub embedding: usize,
    /// Number of hidden units per layer of the decoder, and per layer and direction of the encoder.
    pub hidden: usize,
    /// Number of layers of encoder and decoder.
    pub layers: usize,
    /// Whether the encoder reads the source in both directions.
    pub bidirectional: bool,
    /// How the decoder attends to the source.
    pub attention: Attention,
    /// Whether the decoder also reads its last attentional vector (Luong et al. 2015, section 3.3).
    ///
    /// The decoder then advances token by token in training, too, which is slower.
    pub input_feeding: bool,
    /// Dropout probability of the embeddings, between layers, and of the output layer's input.
    pub dropout: f32,
}

/// An encoder-decoder.
///
/// The encoder reads the source. Its final state, through a tanh layer if there are two directions, is the initial
/// state of the decoder, which predicts the target token by token. With attention, the decoder's state h and the
/// context c, a weighted sum of the encoder's outputs, become the attentional vector `tanh(W [c; h])` (Luong et al.
/// 2015, eq. 5), from which the output layer predicts the next token. Without attention, the output layer reads h.
///
/// # Parameters
///
/// | name | what |
/// |---|---|
/// | `source_embedding.weight`, `target_embedding.weight` | embeddings |
/// | `encoder.*`, `decoder.*` | [`Recurrent`] networks |
/// | `bridge_hidden.L.{weight,bias}`, for an LSTM also `bridge_cell.L` | state of the bidirectional encoder's layer L, `(hidden, 2 * hidden)` |
/// | `attention.*` | an [`AttentionLayer`] |
/// | `combine.{weight,bias}` | the attentional vector, `(hidden, encoder outputs + hidden)`; with attention only |
/// | `output.{weight,bias}` | the output layer |
#[derive(Debug, Clone)]
pub struct Seq2Seq {
    source_embedding: Embedding,
    target_embedding: Embedding,
    encoder: Recurrent,
    decoder: Recurrent,
    bridge: Bridge,
    attention: Option<(AttentionLayer, Linear)>,
    output: Linear,
    input_feeding: bool,
    source_dropout: Dropout,
    target_dropout: Dropout,
    output_dropout: Dropout,
}

/// Token ids of a batch of sequences.
#[derive(Debug, Clone)]
pub struct PackedTokens {
    /// The ids `(rows)`, u32, in packed order.
    pub ids: Tensor,
    /// The row order.
    pub sequences: Arc<PackedSequences>,
}

impl PackedTokens {
    /// Packs sequences of token ids.
    ///
    /// # Errors
    /// Fails if there are no sequences, or one is empty.
    pub fn new(sequences: &[Vec<u32>], device: &Device) -> Result<Self> {
        Self::of_share(sequences, 0..sequences.len(), device)
    }

    /// Packs the sequences `share` of a batch of sequences of token ids: see [`PackedSequences::of_share`].
    ///
    /// # Errors
    /// Fails if [`new`](Self::new) would, for the batch or for the share.
    ///
    /// # Panics
    /// Panics if `share` is out of range.
    pub fn of_share(sequences: &[Vec<u32>], share: Range<usize>, device: &Device) -> Result<Self> {
        let lengths: Vec<usize> = sequences.iter().map(Vec::len).collect();
        let layout = Arc::new(PackedSequences::of_share(&lengths, share.clone())?);
        let sequences = &sequences[share];
        let ids: Vec<u32> = layout.positions().map(|(sequence, step)| sequences[sequence][step]).collect();
        let [ids] = layout.with_layout([&ids], device)?;
        Ok(Self { ids, sequences: layout })
    }
}

/// The encoder's results for a batch of sources, which the decoder reads.
#[derive(Clone)]
pub struct Encoded {
    /// The decoder's initial state.
    state: RecurrentState,
    memory: Option<AttentionMemory>,
    /// The output layer for [`Seq2Seq::step`], prepared at its first use.
    output: OnceLock<PreparedLinear>,
}

/// The decoder's state for a number of rows, each of which translates one of the sources.
///
/// Several rows may belong to one source, as in a beam search.
#[derive(Debug, Clone)]
pub struct DecoderState {
    recurrent: RecurrentState,
    /// The last attentional vectors `(rows, hidden)`, with input feeding.
    fed: Option<Tensor>,
    /// The source of each row.
    sources: Vec<u32>,
}

/// The result of one step of the decoder.
#[derive(Debug, Clone)]
pub struct Step {
    /// Logits of the next token, `(rows, target_vocabulary)`.
    pub logits: Tensor,
    /// The state after the step.
    pub state: DecoderState,
    /// The attention weights `(rows, length)`, zero beyond the end of a source; `None` without attention.
    pub attention: Option<Tensor>,
}

impl DecoderState {
    /// The source of each row, by its index in the batch.
    pub fn sources(&self) -> &[u32] {
        &self.sources
    }

    /// The state of the rows at `rows`, in this order; a row may appear any number of times.
    ///
    /// # Errors
    /// Fails if a row does not exist.
    pub fn select(&self, rows: &[u32]) -> Result<Self> {
        if let Some(row) = rows.iter().find(|&&row| row as usize >= self.sources.len()) {
            bail!("decoder state: found row {row}, expected one below {}", self.sources.len());
        }
        let index = Tensor::new(rows, self.recurrent.hidden.device())?;
        self.map(rows.iter().map(|&row| self.sources[row as usize]).collect(), |states, dim| {
            states.contiguous()?.index_select(&index, dim)
        })
    }

    /// The state of the first `count` rows.
    fn first(&self, count: usize) -> Result<Self> {
        self.map(self.sources[..count].to_vec(), |states, dim| states.narrow(dim, 0, count))
    }

    fn map(&self, sources: Vec<u32>, of: impl Fn(&Tensor, usize) -> Result<Tensor>) -> Result<Self> {
        let RecurrentState { hidden, cell } = &self.recurrent;
        let cell = cell.as_ref().map(|cell| of(cell, 1)).transpose()?;
        let recurrent = RecurrentState { hidden: of(hidden, 1)?, cell };
        let fed = self.fed.as_ref().map(|fed| of(fed, 0)).transpose()?;
        Ok(Self { recurrent, fed, sources })
    }
}

impl Seq2Seq {
    /// Creates the model with the parameters of `vb`, which [`Seq2Seq`] lists.
    ///
    /// # Errors
    /// Fails if there is input feeding without attention, if dot attention finds encoder outputs of another size than the
    /// decoder's state, if sizes are zero, or if `vb` holds a parameter in another shape.
    pub fn new(config: &Config, vb: VarBuilder) -> Result<Self> {
        let &Config { cell, embedding, hidden, layers, bidirectional, dropout: rate, input_feeding, .. } =
            config;
        if input_feeding && config.attention == Attention::None {
            bail!("seq2seq: found input feeding without attention, which has no attentional vector to feed");
        }
        let fed = if input_feeding { hidden } else { 0 };
        let network = RecurrentConfig {
            cell,
            features: embedding,
            hidden,
            layers,
            bidirectional,
            dropout: rate,
            forget_bias: None,
        };
        let encoder = recurrent(&network, vb.pp("encoder"))?;
        let network = RecurrentConfig { features: embedding + fed, bidirectional: false, ..network };
        let decoder = recurrent(&network, vb.pp("decoder"))?;
        let values = encoder.outputs();
        let attention = attention(config.attention, hidden, values, vb.pp("attention"))?
            .map(|layer| {
                Ok::<_, candle_core::Error>((layer, linear(values + hidden, hidden, vb.pp("combine"))?))
            })
            .transpose()?;
        let embeddings = |tokens, name| embedding_with(tokens, embedding, WORD_VECTOR_INIT, vb.pp(name));
        Ok(Self {
            source_embedding: embeddings(config.source_vocabulary, "source_embedding")?,
            target_embedding: embeddings(config.target_vocabulary, "target_embedding")?,
            bridge: Bridge::new(config, &vb)?,
            encoder,
            decoder,
            attention,
            output: linear(hidden, config.target_vocabulary, vb.pp("output"))?,
            input_feeding,
            source_dropout: Dropout::at_path(rate, vb.pp("source_dropout")),
            target_dropout: Dropout::at_path(rate, vb.pp("target_dropout")),
            output_dropout: Dropout::at_path(rate, vb.pp("output_dropout")),
        })
    }

    /// The word vectors of the source side.
    pub fn source_embedding(&self) -> &Embedding {
        &self.source_embedding
    }

    /// Logits `(rows, target_vocabulary)` of the token that follows each target token.
    ///
    /// `targets` are the tokens that the decoder reads, one sequence per source. In training, each token but the first
    /// of its target is replaced with probability `1 - forcing` by the token that the model finds most probable there
    /// (scheduled sampling, Bengio et al. 2015). If `forcing` is 1, and in evaluation, the decoder reads the targets
    /// unchanged (teacher forcing).
    ///
    /// # Errors
    /// Fails if `forcing` is not from 0 to 1, an id is outside its vocabulary, or there is not one target per source.
    pub fn forward(
        &self,
        sources: &PackedTokens,
        targets: &PackedTokens,
        forcing: f64,
        mode: Mode,
    ) -> Result<Tensor> {
        self.decode(sources, targets, forcing, mode)?.apply(&self.output)
    }

    /// The mean loss of the tokens `next` `(rows)`, u32, which follow the target tokens.
    ///
    /// This is the softmax cross-entropy of [`forward`](Self::forward), with label smoothing.
    ///
    /// # Errors
    /// Fails if [`forward`](Self::forward) or [`softmax_cross_entropy`](crate::ops::softmax_cross_entropy) would.
    pub fn loss(
        &self,
        sources: &PackedTokens,
        targets: &PackedTokens,
        next: &Tensor,
        forcing: f64,
        smoothing: f64,
        mode: Mode,
    ) -> Result<Tensor> {
        let hs = self.decode(sources, targets, forcing, mode)?;
        ops::linear_cross_entropy(&hs, self.output.weight(), self.output.bias(), next, smoothing)
    }

    /// Reads the sources.
    ///
    /// # Errors
    /// Fails if an id is outside the source vocabulary.
    pub fn encode(&self, sources: &PackedTokens, mode: Mode) -> Result<Encoded> {
        let xs = self.source_embedding.forward(&sources.ids)?; // (rows, embedding)
        let xs = self.source_dropout.forward_packed(&xs, &sources.sequences, mode)?;
        let (ys, state) = self.encoder.forward(&xs, &sources.sequences, None, mode)?; // (rows, outputs)
        let memory = match &self.attention {
            Some((attention, _)) => Some(attention.memory(&ys, &sources.sequences)?),
            None => None,
        };
        Ok(Encoded { state: self.bridge.forward(&state)?, memory, output: OnceLock::new() })
    }

    /// The state before the first token, with one row per source.
    ///
    /// # Errors
    /// Fails if the device is out of memory.
    pub fn start(&self, encoded: &Encoded) -> Result<DecoderState> {
        let hidden = &encoded.state.hidden;
        let (_, batch, units) = hidden.dims3()?;
        let fed = self.input_feeding.then(|| Tensor::zeros((batch, units), hidden.dtype(), hidden.device()));
        Ok(DecoderState {
            recurrent: encoded.state.clone(),
            fed: fed.transpose()?,
            sources: (0..batch as u32).collect(),
        })
    }

    /// Reads one target token per row of `state`, `ids` `(rows)`, and predicts the next one.
    ///
    /// The logits have no gradient.
    ///
    /// # Errors
    /// Fails if an id is outside the target vocabulary, or there is not one per row.
    pub fn step(&self, encoded: &Encoded, state: &DecoderState, ids: &Tensor) -> Result<Step> {
        let xs = self.target_embedding.forward(ids)?;
        let single = Arc::new(PackedSequences::new(&vec![1; state.sources.len()])?);
        let (hs, state, attention) = self.advance(encoded, state, &xs, &single, Mode::Evaluate)?;
        let output = match encoded.output.get() {
            Some(output) => output,
            None => {
                let output = PreparedLinear::new(self.output.weight(), self.output.bias())?;
                encoded.output.get_or_init(|| output)
            }
        };
        Ok(Step { logits: output.forward(&hs)?, state, attention })
    }

    /// The vectors that the output layer reads, `(rows, hidden)`; see [`forward`](Self::forward).
    fn decode(
        &self,
        sources: &PackedTokens,
        targets: &PackedTokens,
        forcing: f64,
        mode: Mode,
    ) -> Result<Tensor> {
        if !(0.0..=1.0).contains(&forcing) {
            bail!("seq2seq: found a teacher-forcing rate of {forcing}, expected one from 0 to 1");
        }
        let (found, expected) = (targets.sequences.batch(), sources.sequences.batch());
        if found != expected {
            bail!(
                "seq2seq: found {} for {}, expected one each",
                count(found, "target"),
                count(expected, "source")
            );
        }
        let encoded = self.encode(sources, mode)?;
        match mode {
            Mode::Train { seed, epoch, step, .. } if forcing < 1.0 => {
                let mut rng = rng::stream(seed, &format!("scheduled_sampling/epoch {epoch}/step {step}"));
                let row = |row| targets.sequences.row_in_batch(row);
                // Make one draw per row of the whole batch, up to the last row here.
                let draws = 0..=row(targets.sequences.rows() - 1);
                let forced: Vec<bool> = draws.map(|_| rng.random::<f64>() < forcing).collect();
                self.decode_by_steps(&encoded, targets, |at| forced[row(at)], mode)
            }
            _ if self.input_feeding => self.decode_by_steps(&encoded, targets, |_| true, mode),
            _ => self.decode_whole(&encoded, targets, mode),
        }
    }

    /// Reads all targets at once.
    fn decode_whole(&self, encoded: &Encoded, targets: &PackedTokens, mode: Mode) -> Result<Tensor> {
        let xs = self.target_embedding.forward(&targets.ids)?; // (rows, embedding)
        let xs = self.target_dropout.forward_packed(&xs, &targets.sequences, mode)?;
        let (hs, _) = self.decoder.forward(&xs, &targets.sequences, Some(&encoded.state), mode)?;
        let (hs, _) = self.attend(encoded, &hs, QueryRows::Packed(&targets.sequences))?; // (rows, hidden)
        self.output_dropout.forward_packed(&hs, &targets.sequences, mode)
    }

    /// Reads the targets token by token.
    ///
    /// A row that is not `forced` reads the model's own prediction instead.
    fn decode_by_steps(
        &self,
        encoded: &Encoded,
        targets: &PackedTokens,
        forced: impl Fn(usize) -> bool,
        mode: Mode,
    ) -> Result<Tensor> {
        let device = targets.ids.device();
        let mut ids = targets.ids.to_vec1::<u32>()?;
        let longest_first: Vec<u32> = targets.sequences.order().iter().map(|&i| i as u32).collect();
        let mut state = self.start(encoded)?.select(&longest_first)?;
        let mut vectors: Vec<Tensor> = vec![];
        for step in 0..targets.sequences.steps() {
            // Longer targets come first in each step, so the targets that continue are the first rows of the state.
            let (count, start) = targets.sequences.step(step);
            if let Some(last) = vectors.last() {
                let free: Vec<u32> = (0..count as u32).filter(|&i| !forced(start + i as usize)).collect();
                for (i, id) in free.iter().zip(self.predict(last, &free)?) {
                    ids[start + *i as usize] = id;
                }
            }
            let xs = self.target_embedding.forward(&Tensor::new(&ids[start..start + count], device)?)?;
            let single = Arc::new(targets.sequences.at_step(step)?);
            let before = state.first(count)?;
            let (hs, after, _) = self.advance(encoded, &before, &xs, &single, at_step(mode, step))?;
            vectors.push(hs);
            state = after;
        }
        Tensor::cat(&vectors, 0)
    }

    /// The most probable tokens after the rows at `rows` of `vectors`, which the output layer reads.
    fn predict(&self, vectors: &Tensor, rows: &[u32]) -> Result<Vec<u32>> {
        if rows.is_empty() {
            return Ok(vec![]);
        }
        ops::no_grad(|| {
            let vectors = vectors.detach().index_select(&Tensor::new(rows, vectors.device())?, 0)?;
            vectors.apply(&self.output)?.argmax(D::Minus1)?.to_vec1()
        })
    }

    /// Advances the decoder by one token per row.
    ///
    /// Reads the embeddings `xs` `(rows, embedding)`, packed as `single` describes. Returns the output layer's input,
    /// the next state, and the attention weights.
    fn advance(
        &self,
        encoded: &Encoded,
        state: &DecoderState,
        xs: &Tensor,
        single: &Arc<PackedSequences>,
        mode: Mode,
    ) -> Result<(Tensor, DecoderState, Option<Tensor>)> {
        let rows = state.sources.len();
        if xs.dim(0)? != rows {
            let (tokens, rows) = (count(xs.dim(0)?, "token"), count(rows, "row"));
            bail!("seq2seq: found {tokens} for {rows} of the decoder, expected one each");
        }
        let xs = self.target_dropout.forward_packed(xs, single, mode)?;
        let xs = match &state.fed {
            Some(fed) => Tensor::cat(&[&xs, fed], 1)?, // (rows, embedding + hidden)
            None => xs,
        };
        let (hs, recurrent) = self.decoder.forward(&xs, single, Some(&state.recurrent), mode)?;
        let (hs, weights) = self.attend(encoded, &hs, QueryRows::Of(&state.sources))?;
        let hs = self.output_dropout.forward_packed(&hs, single, mode)?;
        let fed = self.input_feeding.then(|| hs.clone());
        Ok((hs, DecoderState { recurrent, fed, sources: state.sources.clone() }, weights))
    }

    /// Computes the output layer's input: attentional vectors `(rows, hidden)`, or `hs` without attention.
    ///
    /// `hs` are the states of the decoder.
    fn attend(&self, encoded: &Encoded, hs: &Tensor, sources: QueryRows) -> Result<(Tensor, Option<Tensor>)> {
        let (Some((attention, combine)), Some(memory)) = (&self.attention, &encoded.memory) else {
            return Ok((hs.clone(), None));
        };
        let (joined, weights) = attention.forward(hs, sources, memory)?; // (rows, encoder outputs + hidden)
        Ok((ops::linear_tanh(&joined, combine.weight(), combine.bias())?, Some(weights)))
    }
}

/// The mode of one time step: dropout masks differ between time steps.
fn at_step(mode: Mode, time: usize) -> Mode {
    match mode {
        Mode::Train { seed, epoch, step, share } => {
            let seed = rng::stream(seed, &format!("decoder/time step {time}")).next_u64();
            Mode::Train { seed, epoch, step, share }
        }
        Mode::Evaluate => Mode::Evaluate,
    }
}

/// Turns the encoder's final state into the decoder's initial state.
#[derive(Debug, Clone)]
struct Bridge {
    /// One per layer of a bidirectional encoder.
    hidden: Vec<Linear>,
    /// One per layer of a bidirectional LSTM.
    cell: Vec<Linear>,
}

impl Bridge {
    fn new(config: &Config, vb: &VarBuilder) -> Result<Self> {
        let &Config { cell, hidden, layers, bidirectional, .. } = config;
        let stack = |name: &str, exists: bool| -> Result<Vec<Linear>> {
            let layers = if exists { layers } else { 0 };
            (0..layers).map(|layer| linear(2 * hidden, hidden, vb.pp(name).pp(layer))).collect()
        };
        Ok(Self {
            hidden: stack("bridge_hidden", bidirectional)?,
            cell: stack("bridge_cell", bidirectional && cell.has_cell_state())?,
        })
    }

    /// `(layers * directions, batch, hidden)` to `(layers, batch, hidden)`.
    fn forward(&self, state: &RecurrentState) -> Result<RecurrentState> {
        let join = |states: &Tensor, layers: &[Linear]| -> Result<Tensor> {
            let (_, batch, hidden) = states.dims3()?;
            let layer = |(i, layer): (usize, &Linear)| {
                let both = ops::part(states, 2 * i, 2)?;
                let ys = ops::linear_tanh(&both, layer.weight(), layer.bias())?; // (batch, hidden)
                ops::reshape(&ys, (1, batch, hidden))
            };
            match layers {
                [] => Ok(states.clone()),
                layers => {
                    ops::concat(&layers.iter().enumerate().map(layer).collect::<Result<Vec<_>>>()?, 0, 0)
                }
            }
        };
        let cell = state.cell.as_ref().map(|cells| join(cells, &self.cell)).transpose()?;
        Ok(RecurrentState { hidden: join(&state.hidden, &self.hidden)?, cell })
    }
}
