//! The facts that a model of music depends on: the encoding of pieces, and their forms.

use super::recipe::{Facts, of_another_version};
use crate::data::music::{Encoding, Metre, Piece, Texture, Tonality};
use crate::train::Run;
use anyhow::Result;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// Metre, key, style and tempo of pieces.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Form {
    pub(super) metre: Option<Metre>,
    pub(super) tonality: Option<Tonality>,
    pub(super) style: Option<String>,
    pub(super) tempo: f64,
}

/// The facts that a model of music depends on.
#[derive(Debug, Clone, PartialEq)]
pub struct MusicFacts {
    /// How pieces become features and classes.
    pub encoding: Encoding,
    /// The forms of the training pieces.
    pub(super) forms: Vec<Form>,
}

impl MusicFacts {
    pub(super) fn new(training: &[Piece], texture: Texture) -> Self {
        let mut forms = BTreeMap::new();
        for piece in training {
            let metre = piece.metres.first().map(|&(_, metre)| metre);
            forms.entry((metre, piece.tonality, piece.style.clone())).or_insert(piece.tempo);
        }
        let forms = forms.into_iter();
        let forms = forms.map(|((metre, tonality, style), tempo)| Form { metre, tonality, style, tempo });
        Self { encoding: Encoding::new(training, texture), forms: forms.collect() }
    }
}

impl Facts for MusicFacts {
    fn record(&self) -> Map<String, Value> {
        let Self { encoding, forms } = self;
        Map::from_iter([("encoding".to_string(), json!(encoding)), ("forms".to_string(), json!(forms))])
    }

    fn read(run: &Run, config: &Value) -> Result<Self> {
        let read = || -> serde_json::Result<Self> {
            Ok(Self {
                encoding: serde_json::from_value(config["encoding"].clone())?,
                forms: serde_json::from_value(config["forms"].clone())?,
            })
        };
        read().map_err(|_| of_another_version(run, "pieces"))
    }

    fn describe(&self) -> String {
        match self.encoding.texture {
            Texture::Voices(voices) => format!(" for {voices} voices"),
            Texture::Keys => String::new(),
        }
    }
}
