//! A character model on candle_nn's LSTM interface, in a training loop of one's own.
//!
//!     cargo run --example char_rnn [FILE]
//!
//! Learns to continue a text, by default a nursery rhyme. Expected: a loss below 0.1 nats per character after 200 steps, and the
//! rhyme as the sample. The binary `char_lm` does this for real texts.

use candle_core::{DType, Device, IndexOp, Result, Tensor};
use candle_textbook::nn::rnn::LSTMState;
use candle_textbook::nn::{
    self, AdamW, Embedding, LSTM, Linear, Module, Optimizer, ParamsAdamW, RNN, VarBuilder,
};

const RHYME: &str = "Humpty Dumpty sat on a wall, Humpty Dumpty had a great fall. All the king's horses and all the king's \
    men couldn't put Humpty together again. ";
const STEPS: usize = 50;
const HIDDEN: usize = 96;

struct Model {
    embedding: Embedding,
    lstm: LSTM,
    output: Linear,
}

impl Model {
    fn new(characters: usize, vb: VarBuilder) -> Result<Self> {
        Ok(Self {
            embedding: nn::embedding(characters, 32, vb.pp("embedding"))?,
            lstm: nn::lstm(32, HIDDEN, Default::default(), vb.pp("lstm"))?,
            output: nn::linear(HIDDEN, characters, vb.pp("output"))?,
        })
    }

    /// Logits `(batch * steps, characters)` of ids `(batch, steps)`, and the state after the last step.
    fn forward(&self, ids: &Tensor, state: &LSTMState) -> Result<(Tensor, LSTMState)> {
        let states = self.lstm.seq_init(&self.embedding.forward(ids)?, state)?;
        let hidden = self.lstm.states_to_tensor(&states)?; // (batch, steps, HIDDEN)
        Ok((hidden.flatten_to(1)?.apply(&self.output)?, states[states.len() - 1].clone()))
    }
}

/// Trains on windows of `text`, of more than [`STEPS`] characters. Returns the last loss and a sample.
pub fn run(text: &str, steps: usize) -> anyhow::Result<(f32, String)> {
    let mut alphabet: Vec<char> = text.chars().collect();
    alphabet.sort_unstable();
    alphabet.dedup();
    let ids: Vec<u32> =
        text.chars().filter_map(|c| alphabet.binary_search(&c).ok()).map(|id| id as u32).collect();
    let (vars, device) = (nn::VarMap::new(), Device::Cpu);
    let model = Model::new(alphabet.len(), nn::seeded_var_builder(&vars, 42, DType::F32, &device))?;
    let mut optimizer = AdamW::new(vars.all_vars(), ParamsAdamW { lr: 5e-3, ..Default::default() })?;
    let mut last = f32::NAN;
    for step in 0..steps {
        // Sixteen windows, spread over the text.
        let starts = (0..16).map(|i| (step * 7 + i * ids.len() / 16) % (ids.len() - STEPS));
        let windows: Vec<u32> = starts.flat_map(|start| &ids[start..=start + STEPS]).copied().collect();
        let windows = Tensor::from_vec(windows, (16, STEPS + 1), &device)?;
        let (xs, targets) = (windows.i((.., ..STEPS))?, windows.i((.., 1..))?.flatten_all()?);
        let (logits, _) = model.forward(&xs, &model.lstm.zero_state(16)?)?;
        let loss = nn::loss::cross_entropy(&logits, &targets)?;
        optimizer.backward_step(&loss)?;
        last = loss.to_scalar()?;
        if step % 20 == 19 {
            println!("step {:>4}  {last:.4} nats per character", step + 1);
        }
    }
    let (mut state, mut id, mut sample) = (model.lstm.zero_state(1)?, ids[0], String::new());
    for _ in 0..100 {
        sample.push(alphabet[id as usize]);
        let (logits, next) = model.forward(&Tensor::new(&[[id]], &device)?, &state)?;
        (state, id) = (next, logits.i(0)?.argmax(0)?.to_scalar()?);
    }
    Ok((last, sample))
}

fn main() -> anyhow::Result<()> {
    let text = std::env::args().nth(1).map_or(Ok(RHYME.to_string()), std::fs::read_to_string)?;
    run(&text, 200).map(|(_, sample)| println!("{sample}"))
}
