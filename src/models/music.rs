//! A recurrent network that predicts each time step of polyphonic music from the previous steps.
//!
//! Boulanger-Lewandowski, Bengio and Vincent 2012, arXiv:1206.6392.

use crate::nn::{
    Cell, Dropout, Embedding, Linear, Mode, PackedSequences, Recurrent, RecurrentConfig, RecurrentState,
    embedding_with, linear, recurrent,
};
use crate::ops::{self, MaskPlace};
use candle_core::{DType, Device, Result, Tensor, bail};
use candle_nn::{Init, VarBuilder};
use std::sync::Arc;

/// The configuration of a [`MusicModel`].
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Number of features of a step.
    pub features: usize,
    /// Size of a step's vector, the sum of the vectors of its features.
    pub embedding: usize,
    /// The kind of recurrent cell.
    pub cell: Cell,
    /// Number of hidden units per layer.
    pub hidden: usize,
    /// Number of recurrent layers.
    pub layers: usize,
    /// Dropout probability of the steps' vectors, between layers, and before the output layer.
    pub dropout: f32,
    /// How the network predicts the notes of a step.
    pub output: Output,
}

/// How the notes of a step depend on each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// Not at all, given the previous steps: one logit per key.
    Independent {
        /// Number of logits.
        keys: usize,
    },
    /// Each note depends on the notes already chosen in its step.
    Autoregressive {
        /// Number of features of the notes already chosen.
        features: usize,
        /// Number of hidden units that combine them with the state of the network.
        units: usize,
        /// Number of classes of a note.
        classes: usize,
    },
}

/// Lists of feature indices, each of which stands for the sum of its features' vectors.
///
/// PyTorch calls this an `EmbeddingBag`.
#[derive(Debug, Clone)]
pub struct Bags {
    ids: Tensor,
    bags: Arc<PackedSequences>,
    /// Length of each list, `(lists, 1)`.
    lengths: Tensor,
}

impl Bags {
    /// Copies the lists to the device of `like`, with its floating-point type for the lengths.
    ///
    /// # Errors
    /// Fails if there are no lists, or one is empty.
    pub fn new(lists: &[impl AsRef<[u32]>], like: &Tensor) -> Result<Self> {
        let lengths: Vec<usize> = lists.iter().map(|list| list.as_ref().len()).collect();
        let bags = Arc::new(PackedSequences::new(&lengths)?);
        let ids: Vec<u32> = bags.positions().map(|(list, place)| lists[list].as_ref()[place]).collect();
        let [ids] = bags.with_layout([&ids], like.device())?;
        let lengths: Vec<f64> = lengths.iter().map(|&length| length as f64).collect();
        let lengths = Tensor::from_vec(lengths, (lists.len(), 1), &Device::Cpu)?;
        Ok(Self { ids, bags, lengths: lengths.to_dtype(like.dtype())?.to_device(like.device())? })
    }

    /// The sums of the vectors of each list, `(lists, size)`.
    fn sums(&self, table: &Embedding) -> Result<Tensor> {
        // A separate operation for sums would be the one for means without the division.
        table.mean(&self.ids, &self.bags)?.broadcast_mul(&self.lengths)
    }
}

/// The notes of some steps, in the order in which they are chosen within a step.
#[derive(Debug, Clone)]
pub struct Notes {
    /// The features of the notes already chosen before each note.
    pub chosen: Bags,
    /// The row of each note's step, u32 `(notes)`.
    pub steps: Tensor,
    /// Zero for the classes that may be chosen, minus infinity for the others: `(notes, classes)`.
    pub mask: Tensor,
    /// Number of notes of the batch before these: 0 unless they belong to a [`Share`](crate::nn::Share).
    pub first: usize,
}

/// A recurrent model of music.
#[derive(Debug, Clone)]
pub struct MusicModel {
    input: Embedding,
    recurrent: Recurrent,
    output: Linear,
    /// An autoregressive model's embedding of the chosen notes, and the layer that projects the state.
    notes: Option<(Embedding, Linear)>,
    input_dropout: Dropout,
    hidden_dropout: Dropout,
    output_dropout: Dropout,
}

impl MusicModel {
    /// Creates the model with the parameters of `vb`.
    ///
    /// They are `input.weight` `(features, embedding)`, the parameters of a [`Recurrent`] network under `recurrent`,
    /// and `output.{weight,bias}`. An autoregressive model also has `notes.weight` `(features, units)` and
    /// `state.{weight,bias}`.
    ///
    /// # Errors
    /// Fails if `vb` holds a parameter in another shape.
    pub fn new(config: &Config, vb: VarBuilder) -> Result<Self> {
        let &Config { features, embedding, cell, hidden, layers, dropout: rate, output } = config;
        let network = RecurrentConfig {
            cell,
            features: embedding,
            hidden,
            layers,
            bidirectional: false,
            dropout: rate,
            forget_bias: None,
        };
        // Sums of a few vectors should start at the scale of a hidden state.
        let init = Init::Randn { mean: 0.0, stdev: 0.3 };
        let (notes, inputs, outputs) = match output {
            Output::Independent { keys } => (None, hidden, keys),
            Output::Autoregressive { features, units, classes } => {
                let notes = embedding_with(features, units, init, vb.pp("notes"))?;
                (Some((notes, linear(hidden, units, vb.pp("state"))?)), units, classes)
            }
        };
        Ok(Self {
            input: embedding_with(features, embedding, init, vb.pp("input"))?,
            recurrent: recurrent(&network, vb.pp("recurrent"))?,
            output: linear(inputs, outputs, vb.pp("output"))?,
            notes,
            input_dropout: Dropout::at_path(rate, vb.pp("input_dropout")),
            hidden_dropout: Dropout::at_path(rate, vb.pp("hidden_dropout")),
            output_dropout: Dropout::at_path(rate, vb.pp("output_dropout")),
        })
    }

    /// Whether the notes of a step depend on each other.
    pub fn is_autoregressive(&self) -> bool {
        self.notes.is_some()
    }

    /// A parameter, for its device and type.
    pub fn weight(&self) -> &Tensor {
        self.output.weight()
    }

    /// Computes the hidden states `(rows, hidden)` before each of the `steps`.
    ///
    /// `steps` has one list of features per row, packed as `pieces` describes. Also returns the state after the last
    /// steps.
    ///
    /// # Errors
    /// Fails if a feature index is out of range, or the shapes do not agree.
    pub fn states(
        &self,
        steps: &Bags,
        pieces: &Arc<PackedSequences>,
        state: Option<&RecurrentState>,
        mode: Mode,
    ) -> Result<(Tensor, RecurrentState)> {
        let xs = steps.sums(&self.input)?; // (rows, embedding)
        let xs = self.input_dropout.forward_packed(&xs, pieces, mode)?;
        let (ys, state) = self.recurrent.forward(&xs, pieces, state, mode)?; // (rows, hidden)
        Ok((self.hidden_dropout.forward_packed(&ys, pieces, mode)?, state))
    }

    /// Logits `(rows, keys)` of an independent model, from the hidden states.
    ///
    /// # Errors
    /// Fails if the model is autoregressive.
    pub fn key_logits(&self, states: &Tensor) -> Result<Tensor> {
        match self.notes {
            None => states.apply(&self.output),
            Some(_) => bail!("music: an autoregressive model has no independent logits"),
        }
    }

    /// Computes logits `(notes, classes)` of an autoregressive model from the hidden states.
    ///
    /// `states` `(rows, hidden)` has a row per step.
    ///
    /// # Errors
    /// Fails if the model is independent, or the shapes do not agree.
    pub fn note_logits(&self, states: &Tensor, notes: &Notes, mode: Mode) -> Result<Tensor> {
        let Some((table, state)) = &self.notes else {
            bail!("music: an independent model has no logits of notes")
        };
        let of_steps = ops::embedding(&states.apply(state)?, &notes.steps)?; // (notes, units)
        let joined = ops::tanh(&(of_steps + notes.chosen.sums(table)?)?)?;
        let place = MaskPlace::From(notes.first * joined.dim(1)?);
        self.output_dropout.forward_in(&joined, mode, &place)?.apply(&self.output)? + &notes.mask // (notes, classes)
    }

    /// The mean loss of an independent model, in nats per step: the cross-entropies of all keys.
    ///
    /// `signs` `(rows, keys)` is 1 for a logit that should be large, -1 for one that should be small, and 0 for one
    /// that is ignored.
    ///
    /// # Errors
    /// Fails if the model is autoregressive, or the shapes do not agree.
    pub fn key_loss(&self, states: &Tensor, signs: &Tensor) -> Result<Tensor> {
        let logits = self.key_logits(states)?;
        let (rows, keys) = logits.dims2()?;
        // The loss of a logit x with sign s is softplus(-s x). The sigmoid cross-entropy computes it, with the
        // same sign for the target, the first key, and the opposite sign for all others. An ignored logit adds ln 2.
        let flips: Vec<f64> = (0..keys).map(|key| if key == 0 { 1.0 } else { -1.0 }).collect();
        let flips = Tensor::new(flips, &Device::Cpu)?.to_dtype(signs.dtype())?.to_device(signs.device())?;
        let targets = Tensor::zeros(rows, DType::U32, logits.device())?;
        let loss = ops::sigmoid_cross_entropy(&(logits * signs.broadcast_mul(&flips)?)?, &targets)?;
        let counted = signs.sqr()?.sum_all()?.to_dtype(DType::F64)?.to_scalar::<f64>()?;
        let ignored = (rows * keys) as f64 - counted;
        loss.affine(1.0, -ignored / rows as f64 * std::f64::consts::LN_2)
    }

    /// The mean loss of an autoregressive model, in nats per step.
    ///
    /// Sums the cross-entropies of all notes of a step with their `classes` `(notes)`, u32.
    ///
    /// # Errors
    /// Fails if the model is independent, or the shapes do not agree.
    pub fn note_loss(&self, states: &Tensor, notes: &Notes, classes: &Tensor, mode: Mode) -> Result<Tensor> {
        let loss = ops::softmax_cross_entropy(&self.note_logits(states, notes, mode)?, classes, 0.0)?;
        loss.affine(classes.elem_count() as f64 / states.dim(0)? as f64, 0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::seeded_var_builder;
    use candle_core::Var;
    use candle_nn::VarMap;
    use std::collections::HashMap;

    const FEATURES: usize = 11;
    const NOTE_FEATURES: usize = 7;
    const CLASSES: usize = 5;
    const KEYS: usize = 6;
    const LENGTHS: [usize; 3] = [3, 2, 4];

    fn config(is_autoregressive: bool) -> Config {
        let (cell, layers, output) = match is_autoregressive {
            false => (Cell::Lstm, 2, Output::Independent { keys: KEYS }),
            true => {
                (Cell::Gru, 1, Output::Autoregressive { features: NOTE_FEATURES, units: 3, classes: CLASSES })
            }
        };
        Config { features: FEATURES, embedding: 4, cell, hidden: 5, layers, dropout: 0.0, output }
    }

    /// The loss on the data of tests/fixtures/music.py.
    fn loss(model: &MusicModel) -> Result<Tensor> {
        let pieces = Arc::new(PackedSequences::new(&LENGTHS)?);
        let positions: Vec<(usize, usize)> = pieces.positions().collect();
        let features = |&(piece, step): &(usize, usize)| -> Vec<u32> {
            let all = [3 * piece + step, piece + 2 * step + 1, 5 * step + 3].map(|id| (id % FEATURES) as u32);
            all[..1 + (piece + step) % 3].to_vec()
        };
        let steps = Bags::new(&positions.iter().map(features).collect::<Vec<_>>(), model.weight())?;
        let (states, _) = model.states(&steps, &pieces, None, Mode::Evaluate)?;
        if !model.is_autoregressive() {
            let sign =
                |(piece, step): (usize, usize), key: usize| ((piece + 2 * step + key) % 3) as f64 - 1.0;
            let signs = positions.iter().flat_map(|&place| (0..KEYS).map(move |key| sign(place, key)));
            let signs = Tensor::from_vec(signs.collect::<Vec<_>>(), (positions.len(), KEYS), &Device::Cpu)?;
            return model.key_loss(&states, &signs.to_dtype(model.weight().dtype())?);
        }
        let (mut chosen, mut rows, mut classes, mut mask) = (vec![], vec![], vec![], vec![]);
        for (row, &(piece, step)) in positions.iter().enumerate() {
            for k in 0..1 + step % 2 {
                let ids = [piece + step + k, 2 * piece + k + 1].map(|id| (id % NOTE_FEATURES) as u32);
                chosen.push(ids[..1 + k].to_vec());
                rows.push(row as u32);
                classes.push((k + (piece + step) % (CLASSES - k)) as u32);
                mask.extend((0..CLASSES).map(|class| if class < k { f64::NEG_INFINITY } else { 0.0 }));
            }
        }
        let mask = Tensor::from_vec(mask, (rows.len(), CLASSES), &Device::Cpu)?;
        let notes = Notes {
            chosen: Bags::new(&chosen, model.weight())?,
            steps: Tensor::new(rows, &Device::Cpu)?,
            mask: mask.to_dtype(model.weight().dtype())?,
            first: 0,
        };
        model.note_loss(&states, &notes, &Tensor::new(classes, &Device::Cpu)?, Mode::Evaluate)
    }

    fn scalar(tensor: &Tensor) -> Result<f64> {
        tensor.to_dtype(DType::F64)?.to_scalar()
    }

    #[test]
    fn losses_and_gradients_are_those_of_pytorch() -> Result<()> {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/music.safetensors");
        let fixture: HashMap<String, Tensor> = candle_core::safetensors::load(path, &Device::Cpu)?;
        for (kind, is_autoregressive) in [("independent", false), ("autoregressive", true)] {
            let vars = VarMap::new();
            let vb = seeded_var_builder(&vars, 0, DType::F64, &Device::Cpu);
            let model = MusicModel::new(&config(is_autoregressive), vb)?;
            let vars = vars.data().lock().unwrap();
            let weights = format!("{kind}/weight/");
            assert_eq!(fixture.keys().filter(|name| name.starts_with(&weights)).count(), vars.len());
            for (name, var) in vars.iter() {
                var.set(&fixture[&format!("{weights}{name}")])?;
            }
            let found = loss(&model)?;
            let expected = scalar(&fixture[&format!("{kind}/loss")])?;
            assert!((scalar(&found)? - expected).abs() < 1e-10, "{kind}: {found} {expected}");
            let grads = found.backward()?;
            for (name, var) in vars.iter() {
                let grad = grads.get(var).expect("a gradient of every parameter");
                let difference = (grad - &fixture[&format!("{kind}/grad/{name}")])?;
                let largest = scalar(&difference.abs()?.max_all()?)?;
                assert!(largest < 1e-10, "{kind}, {name}: {largest}");
            }
        }
        Ok(())
    }

    #[test]
    fn gradients_are_finite_differences() -> Result<()> {
        for is_autoregressive in [false, true] {
            let vars = VarMap::new();
            let vb = seeded_var_builder(&vars, 5, DType::F64, &Device::Cpu);
            let model = MusicModel::new(&config(is_autoregressive), vb)?;
            let grads = loss(&model)?.backward()?;
            for (name, var) in vars.data().lock().unwrap().iter() {
                let grad =
                    grads.get(var).expect("a gradient of every parameter").flatten_all()?.to_vec1::<f64>()?;
                let values = var.flatten_all()?.to_vec1::<f64>()?;
                for at in [0, values.len() / 2, values.len() - 1] {
                    let moved = |by: f64| -> Result<f64> {
                        let mut values = values.clone();
                        values[at] += by;
                        set(var, values)?;
                        scalar(&loss(&model)?)
                    };
                    let difference = (moved(1e-5)? - moved(-1e-5)?) / 2e-5;
                    set(var, values.clone())?;
                    assert!((difference - grad[at]).abs() < 1e-8, "{name}[{at}]: {difference} {}", grad[at]);
                }
            }
        }
        Ok(())
    }

    fn set(var: &Var, values: Vec<f64>) -> Result<()> {
        var.set(&Tensor::from_vec(values, var.shape(), &Device::Cpu)?)
    }
}
