//! A recurrent language model learns a text, character by character or word by word, and writes (Karpathy 2015).
//!
//! Data: `source` (built in: this project's own), `--text FILE`, `tiny-shakespeare`. `--train-limit` counts tokens. On
//! `source` it comes to 1.08 nats a character in two and a half minutes; on `tiny-shakespeare` with `--preset shakespeare`
//! to 1.43 in half an hour.
//! `sample` has a trained model write, `score` tells which of several lines it holds the likeliest, `neurons` shows what
//! its cells see.

use candle_textbook::cli::language;
use std::process::ExitCode;

fn main() -> ExitCode {
    language::main()
}
