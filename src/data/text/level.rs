//! Characters or words: the tokens of a text.

use super::encoding::{Encoding, read_char};
use super::tokenizer::composed;
use super::vocabulary::Vocabulary;
use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};

/// The tokens of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// Characters (Unicode scalar values)
    Char,
    /// Words separated by white space, and `<eos>` at the end of each line
    Word,
}

impl Level {
    /// The token at the end of a line.
    pub fn line_end(self) -> &'static str {
        match self {
            Self::Char => "\n",
            Self::Word => "<eos>",
        }
    }

    /// Encodes a short text, which may be empty, as a [`TextStream`](super::TextStream) would be.
    ///
    /// # Errors
    /// Fails if it contains zero bytes.
    pub fn encode(self, text: &str, vocabulary: &Vocabulary) -> Result<Vec<u32>> {
        if let Some(zero) = text.bytes().position(|byte| byte == 0) {
            bail!("binary (byte {zero} is zero), expected text");
        }
        let text = composed(text.strip_prefix('\u{feff}').unwrap_or(text));
        let (mut bytes, mut at) = (text.as_bytes(), 0);
        let mut next = || read_char(&mut bytes, &mut at, Encoding::Utf8);
        let (mut token, mut at_line_end, mut ids) = (String::new(), false, vec![]);
        while self.read(&mut token, &mut at_line_end, &mut next)? {
            ids.push(vocabulary.id(&token));
        }
        Ok(ids)
    }

    /// Reads the next token into `token` from the characters of `next`, and returns whether there was one.
    ///
    /// `at_line_end` is the state between calls: the end of a line has ended a word, and is itself the next token.
    pub(super) fn read(
        self,
        token: &mut String,
        at_line_end: &mut bool,
        mut next: impl FnMut() -> Result<Option<char>>,
    ) -> Result<bool> {
        token.clear();
        if std::mem::take(at_line_end) {
            token.push_str(self.line_end());
            return Ok(true);
        }
        while let Some(c) = next()? {
            match self {
                Self::Word if !c.is_whitespace() => token.push(c),
                Self::Word if !token.is_empty() => {
                    *at_line_end = c == '\n';
                    return Ok(true);
                }
                Self::Word if c != '\n' => {}
                Self::Word => {
                    token.push_str(self.line_end());
                    return Ok(true);
                }
                Self::Char => {
                    token.push(c);
                    return Ok(true);
                }
            }
        }
        Ok(!token.is_empty())
    }

    /// Decodes `token`, which follows the token `before`, and the white space between them.
    pub fn decode<'a>(self, before: Option<&str>, token: &'a str) -> [&'a str; 2] {
        let end = self.line_end();
        match self {
            Self::Char => ["", token],
            Self::Word if token == end => ["", "\n"],
            Self::Word if before.is_none_or(|before| before == end) => ["", token],
            Self::Word => [" ", token],
        }
    }
}
