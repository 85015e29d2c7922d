//! One page in the browser on which to use and to train the models.
//!
//! `cargo run --features playground --bin playground` serves it on 127.0.0.1.

use candle_textbook::cli::RecurrentRecipe;
use candle_textbook::cli::playground::{self, program};
use std::process::ExitCode;

/// Declares the recipes of other binaries as modules.
macro_rules! recipes {
    ($($name:ident $file:literal),*) => {
        $(
            #[path = $file]
            #[allow(dead_code, reason = "its main function")]
            mod $name;
        )*
    };
}

recipes!(
    lenet "lenet.rs", mlp "mlp.rs", resnet "resnet.rs", textcnn "textcnn.rs", fasttext "fasttext.rs", rnn "rnn.rs",
    gru "gru.rs", lstm "lstm.rs", birnn "birnn.rs", seq2seq "seq2seq.rs", char_lm "char_lm.rs", music "music.rs"
);

fn main() -> ExitCode {
    playground::main(vec![
        program::<lenet::Settings>(),
        program::<mlp::Settings>(),
        program::<resnet::Settings>(),
        program::<RecurrentRecipe<gru::Gru>>(),
        program::<RecurrentRecipe<lstm::Lstm>>(),
        program::<RecurrentRecipe<rnn::Elman>>(),
        program::<textcnn::Settings>(),
        program::<fasttext::Settings>(),
        program::<birnn::Settings>(),
        program::<seq2seq::Settings>(),
        program::<char_lm::Settings>(),
        program::<music::Settings>(),
    ])
}
