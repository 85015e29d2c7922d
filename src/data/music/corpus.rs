//! Pieces with their splits.

use super::piece::Piece;
use crate::data::count;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

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
    ///
    /// If separate voices are more frequent than other textures, a note names the file of the first piece that differs.
    /// `files` has one for each piece.
    pub(super) fn with_common_texture(mut self, files: &[PathBuf]) -> Self {
        let mut splits = [Some(&mut self.train), self.validation.as_mut(), self.test.as_mut()];
        let mut pieces: Vec<&mut Piece> =
            splits.iter_mut().flatten().flat_map(|split| split.iter_mut()).collect();
        let mut sizes = BTreeMap::<Option<usize>, usize>::new();
        pieces.iter().for_each(|piece| *sizes.entry(piece.voices).or_default() += 1);
        let most = sizes.into_iter().max_by_key(|&(_, size)| size);
        let odd = most.and_then(|(voices, _)| pieces.iter().position(|piece| piece.voices != voices));
        match (most, odd) {
            (Some((Some(voices), _)), None) => self.texture = Texture::Voices(voices),
            (Some((Some(voices), size)), Some(odd)) => self.notes.push(format!(
                "{}: has {}, but {size} of {} have {}: all are taken as sets of notes",
                files[odd].display(),
                pieces[odd].voices.map_or("no separate voices".to_string(), |voices| count(voices, "voice")),
                count(pieces.len(), "piece"),
                count(voices, "voice")
            )),
            _ => {}
        }
        if self.texture == Texture::Keys {
            pieces.iter_mut().for_each(|piece| **piece = piece.clone().without_voices());
        }
        self
    }
}
