//! Pieces with their splits.

use super::piece::Piece;
use serde::{Deserialize, Serialize};

/// Whether a piece consists of voices or of sets of notes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Texture {
    /// This number of voices with one note or a rest each.
    Voices(usize),
    /// Any keys at once.
    Keys,
}

/// A data set of pieces with the splits that it defines.
#[derive(Debug, Clone, PartialEq)]
pub struct MusicCorpus {
    /// The training split.
    pub train: Vec<Piece>,
    /// The validation split, if the data set defines one.
    pub validation: Option<Vec<Piece>>,
    /// The test split, if the data set defines one.
    pub test: Option<Vec<Piece>>,
    /// Whether all pieces consist of voices or of sets of notes.
    pub texture: Texture,
    /// Remarks about the files for the user, one line each.
    pub notes: Vec<String>,
}

impl MusicCorpus {
    /// Keeps the voices if all pieces have the same number, and drops them otherwise.
    pub(super) fn with_common_texture(mut self) -> Self {
        let mut splits = [Some(&mut self.train), self.validation.as_mut(), self.test.as_mut()];
        let mut pieces: Vec<&mut Piece> =
            splits.iter_mut().flatten().flat_map(|split| split.iter_mut()).collect();
        let first = pieces.first().and_then(|piece| piece.voices);
        match first.filter(|_| pieces.iter().all(|piece| piece.voices == first)) {
            Some(voices) => self.texture = Texture::Voices(voices),
            None => pieces.iter_mut().for_each(|piece| **piece = piece.clone().without_voices()),
        }
        self
    }
}
