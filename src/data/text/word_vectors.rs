//! Pretrained word vectors in the formats of word2vec, GloVe and fastText.

use super::vocabulary::Vocabulary;
use crate::data::file_kind::{found_instead, known_format};
use crate::data::gzip;
use crate::data::{count, quoted};
use anyhow::{Context, Result, anyhow, bail, ensure};
use candle_core::Tensor;
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, BufRead, BufReader, ErrorKind, Read};
use std::path::Path;

/// Upper bound of a vector's size. No published vectors are larger.
const MAX_SIZE: usize = 1 << 14;

/// Upper bound of a line's bytes: enough for [`MAX_SIZE`] numbers of 64 characters.
const MAX_LINE: usize = 1 << 20;

/// Upper bound of a word's bytes in a binary file. The original tool truncates words to 100.
const MAX_WORD: usize = 1 << 12;

/// Bytes read at a time, few enough to stay in the processor's cache.
const CHUNK: usize = 1 << 17;

/// Pretrained vectors of some words.
#[derive(Debug)]
pub struct WordVectors {
    size: usize,
    /// The index in `values` at which the vector of each word begins.
    starts: HashMap<String, usize>,
    values: Vec<f32>,
}

impl WordVectors {
    /// Reads the vectors of the `wanted` words from a file in one of these formats, gzipped or not.
    ///
    /// The content of the file, not its name, determines the format:
    ///
    /// | format | written by | content |
    /// |---|---|---|
    /// | binary | word2vec (Mikolov 2013, arXiv:1310.4546), gensim | a line `WORDS SIZE`, then for each word the word, a space, `SIZE` little-endian f32 and, from word2vec, a newline |
    /// | text with a header | word2vec, gensim, fastText (`.vec`) | a line `WORDS SIZE`, then for each word a line of the word and `SIZE` numbers |
    /// | text | GloVe (Pennington 2014) | the same without the header; the first line determines `SIZE` |
    ///
    /// Spaces or tabs separate columns of text; a byte order mark and blank lines at the end are skipped; in a file
    /// without `\n`, `\r` ends the lines. A zip archive must be
    /// unpacked; a model of fastText (`.bin`) is not a file of vectors.
    ///
    /// In text, the last `SIZE` columns are the vector, as words may contain spaces: the largest GloVe file has "at
    /// name@domain.com". If another number precedes them, the line has too many numbers. The first vector of a
    /// duplicated word counts, as in gensim. Words that are not UTF-8 are skipped.
    ///
    /// The file is read as a stream, so only the wanted vectors take memory. For other words, the columns are counted
    /// but not parsed.
    ///
    /// # Errors
    /// Fails if the file is missing, empty, truncated, longer than its header announces or of another format; if the
    /// header announces no words or vectors of 0 or more than 16,384 elements; if a line has too many or too few
    /// numbers; if a wanted vector has a malformed, infinite or NaN element; if a line of text exceeds 1 MiB or a word
    /// of a binary file 4 KiB. The message has the number of the line or the word.
    pub fn read(path: &Path, wanted: &HashSet<&str>) -> Result<Self> {
        let name = path.display();
        let file = File::open(path).with_context(|| format!("{name}: can't be opened"))?;
        let mut source = Source::new(file).with_context(|| format!("{name}: can't be read"))?;
        let mut vectors = Self { size: 0, starts: HashMap::new(), values: Vec::new() };
        // An unreadable part causes an error where it is needed.
        let _ = source.fill(MAX_WORD);
        let start = source.rest()[..source.rest().len().min(MAX_WORD)].to_vec();
        vectors.parse(&mut source, wanted).map_err(|error| {
            // Zip archives and empty files have their own messages.
            let known = known_format(&start).filter(|_| !start.starts_with(b"PK"));
            match known.and_then(|_| found_instead(&start, "word vectors")).filter(|_| !start.is_empty()) {
                Some(other) => anyhow!("{name}: {other}"),
                None => anyhow!("{name}: {error:#}"),
            }
        })?;
        Ok(vectors)
    }

    /// Number of elements of each vector.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Number of wanted words that the file has.
    pub fn len(&self) -> usize {
        self.starts.len()
    }

    /// Whether the file has none of the wanted words.
    pub fn is_empty(&self) -> bool {
        self.starts.is_empty()
    }

    /// The wanted words that the file has, in alphabetical order.
    pub fn words(&self) -> impl Iterator<Item = &str> {
        let mut words: Vec<&str> = self.starts.keys().map(String::as_str).collect();
        words.sort_unstable();
        words.into_iter()
    }

    /// Writes the vectors in word2vec's text format, from which [`read`](Self::read) restores every bit.
    pub fn to_text(&self) -> String {
        let mut words: Vec<(&String, &usize)> = self.starts.iter().collect();
        words.sort_unstable_by_key(|(_, start)| **start);
        let mut text = format!("{} {}\n", self.len(), self.size);
        for (word, &start) in words {
            text.push_str(word);
            self.values[start..][..self.size].iter().for_each(|value| text.push_str(&format!(" {value:?}")));
            text.push('\n');
        }
        text
    }

    /// The vector of `word`, if it was wanted and the file has it.
    pub fn get(&self, word: &str) -> Option<&[f32]> {
        self.starts.get(word).map(|&start| &self.values[start..][..self.size])
    }

    /// Replaces rows of an embedding table of shape `(rows, size)` by the vectors of their words.
    ///
    /// The rows of words without a vector are scaled to the vectors' mean square (Kim 2014, section 3.2).
    ///
    /// # Errors
    /// Fails if the table has another number of columns, or fewer rows than the vocabulary has words.
    pub fn fill(&self, vocabulary: &Vocabulary, table: &Tensor) -> Result<Tensor> {
        let (rows, size) = table.dims2()?;
        ensure!(size == self.size, "word vectors: found vectors of size {}, expected {size}", self.size);
        ensure!(
            rows >= vocabulary.len(),
            "word vectors: found a table of {}, expected at least {}, one per word",
            count(rows, "row"),
            vocabulary.len()
        );
        let mut values = table.flatten_all()?.to_vec1::<f32>()?;
        let mean_square = |values: &[f32]| {
            values.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>() / values.len().max(1) as f64
        };
        let own = mean_square(&values[..vocabulary.len() * size]);
        let scale =
            if self.is_empty() || own == 0.0 { 1.0 } else { (mean_square(&self.values) / own).sqrt() };
        for (row, id) in values.chunks_exact_mut(size).zip(0..vocabulary.len() as u32) {
            match vocabulary.token(id).and_then(|word| self.get(word)) {
                Some(vector) => row.copy_from_slice(vector),
                None => row.iter_mut().for_each(|x| *x *= scale as f32),
            }
        }
        Ok(Tensor::from_vec(values, (rows, size), table.device())?)
    }

    fn parse(&mut self, source: &mut Source, wanted: &HashSet<&str>) -> Result<()> {
        source.fill(4).context("line 1")?;
        match source.rest() {
            [b'P', b'K', 3, 4, ..] => bail!("is a zip archive, expected word vectors: unpack it first"),
            // The magic number of fastText's models.
            [0xba, 0x16, 0x4f, 0x2f, ..] => bail!(
                "is a model of fastText, expected word vectors: take the .vec file that belongs to it, or write vectors with \
                 `fasttext print-word-vectors MODEL.bin < WORDS.txt`"
            ),
            [0xef, 0xbb, 0xbf, ..] => source.consume(3),
            [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => bail!("is UTF-16, expected UTF-8: save it as UTF-8"),
            _ => {}
        }
        source.find_newline();
        let line = source.line().context("line 1")?;
        ensure!(!line.is_empty(), "is empty, expected word vectors");
        if let Some((words, size)) = header(line).context("line 1")? {
            self.size = size;
            let length = line.len();
            source.consume(length);
            return match source.is_text(size).context("word 1")? {
                true => self.text(source, Some(words), wanted),
                false => self.binary(source, words, wanted),
            };
        }
        self.size = trailing_numbers(line.trim_ascii_end());
        ensure!(
            self.size > 0,
            "line 1: neither a header of two numbers nor a word and its vector, expected a file of word2vec, GloVe or \
             fastText"
        );
        self.text(source, None, wanted)
    }

    fn text(&mut self, source: &mut Source, announced: Option<u64>, wanted: &HashSet<&str>) -> Result<()> {
        let first = if announced.is_some() { 2 } else { 1 };
        let (mut words, mut blank_lines) = (0, 0);
        loop {
            let place = || format!("line {}", first + words);
            let line = source.line().with_context(place)?;
            if line.is_empty() {
                break;
            }
            if line.trim_ascii().is_empty() {
                blank_lines += 1;
                let length = line.len();
                source.consume(length);
                continue;
            }
            ensure!(blank_lines == 0, "{}: is blank, expected a word and its numbers", place());
            if announced == Some(words) {
                bail!("{}: more than the {} that line 1 announces", place(), count(words as usize, "word"));
            }
            self.text_line(line.trim_ascii_end(), wanted).with_context(place)?;
            let length = line.len();
            source.consume(length);
            words += 1;
        }
        match announced {
            Some(announced) if words < announced => {
                bail!("ends after {}, expected {announced} as in line 1", count(words as usize, "word"))
            }
            _ => Ok(()),
        }
    }

    fn text_line(&mut self, line: &[u8], wanted: &HashSet<&str>) -> Result<()> {
        let length = match spaces(line) {
            spaces if spaces == self.size => line.iter().position(is_separator).unwrap_or_default(),
            _ => self.word_length(line)?,
        };
        let (word, numbers) = line.split_at(length);
        let Some(word) = self.wanted(word, wanted) else { return Ok(()) };
        let start = self.values.len();
        for column in after_first(numbers) {
            let Some(value) = number(column) else {
                bail!("{}, expected a number", quoted(&String::from_utf8_lossy(column)));
            };
            self.values.push(value);
        }
        let found = self.values.len() - start;
        ensure!(found == self.size, "found {}, expected {}", count(found, "number"), self.size);
        self.add(word)
    }

    /// The length of the word in a line in which more than single spaces precede the numbers.
    fn word_length(&self, line: &[u8]) -> Result<usize> {
        let mut word = line;
        for _ in 0..self.size {
            let Some(space) = word.iter().rposition(is_separator) else {
                let found = after_first(line).count();
                bail!("found {}, expected {}", count(found, "number"), self.size);
            };
            word = word[..space].trim_ascii_end();
        }
        match trailing_numbers(word) {
            0 => Ok(word.len()),
            surplus => bail!("found {} numbers, expected {}", self.size + surplus, self.size),
        }
    }

    fn binary(&mut self, source: &mut Source, announced: u64, wanted: &HashSet<&str>) -> Result<()> {
        for number in 1..=announced {
            let place = || format!("word {number} of {announced}");
            source.fill(MAX_WORD + 4 * self.size).with_context(place)?;
            let rest = source.rest();
            if rest.iter().all(|&byte| byte == b'\n') {
                bail!("ends after {}, expected {announced} as in line 1", count(number as usize - 1, "word"));
            }
            let Some(space) = rest.iter().take(MAX_WORD).position(|&byte| byte == b' ') else {
                ensure!(rest.len() >= MAX_WORD, "ends within {}", place());
                bail!("{}: no space within {MAX_WORD} bytes, expected one after each word", place());
            };
            let (word, values) = (&rest[..space], &rest[space + 1..]);
            let Some(values) = values.get(..4 * self.size) else { bail!("ends within {}", place()) };
            let newlines = word.iter().take_while(|&&byte| byte == b'\n').count();
            if let Some(word) = self.wanted(&word[newlines..], wanted) {
                self.values.extend(values.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)));
                self.add(word).with_context(place)?;
            }
            source.consume(space + 1 + 4 * self.size);
        }
        source.fill(2).context("after the last word")?;
        ensure!(
            matches!(source.rest(), b"" | b"\n"),
            "more than the {} that line 1 announces",
            count(announced as usize, "word")
        );
        Ok(())
    }

    /// The wanted word equal to `word`, unless it has a vector already.
    fn wanted<'a>(&self, word: &[u8], wanted: &HashSet<&'a str>) -> Option<&'a str> {
        let word = wanted.get(std::str::from_utf8(word).ok()?)?;
        (!self.starts.contains_key(*word)).then_some(word)
    }

    /// Assigns the last values to `word`.
    fn add(&mut self, word: &str) -> Result<()> {
        let start = self.values.len() - self.size;
        if let Some(value) = self.values[start..].iter().find(|value| !value.is_finite()) {
            bail!("the vector of {} contains {value}, expected finite numbers", quoted(word));
        }
        self.starts.insert(word.into(), start);
        Ok(())
    }
}

/// The numbers of words and of elements that the first line announces, if it is a header.
fn header(line: &[u8]) -> Result<Option<(u64, usize)>> {
    let line = String::from_utf8_lossy(line);
    let columns: Vec<&str> = line.split_ascii_whitespace().take(3).collect();
    let [words, size] = columns[..] else { return Ok(None) };
    let is_whole = |column: &&str| {
        let digits = column.strip_prefix(['-', '+']).unwrap_or(column);
        !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
    };
    if !columns.iter().all(is_whole) {
        return Ok(None);
    }
    match (words.parse(), size.parse()) {
        (Ok(count @ 1..), Ok(numbers @ 1..=MAX_SIZE)) => Ok(Some((count, numbers))),
        _ => bail!(
            "announces {words:.40} vectors of size {size:.40}, expected at least 1 of size 1 to {MAX_SIZE}"
        ),
    }
}

fn number(column: &[u8]) -> Option<f32> {
    std::str::from_utf8(column).ok()?.parse().ok()
}

/// The columns of `line` except the first.
fn after_first(line: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    let first = line.iter().position(is_separator).unwrap_or(line.len());
    line[first..].split(is_separator).filter(|column| !column.is_empty())
}

/// Number of numeric columns at the end of `line`, without its first column.
fn trailing_numbers(line: &[u8]) -> usize {
    after_first(line).rev().take_while(|column| number(column).is_some()).count()
}

fn is_separator(byte: &u8) -> bool {
    matches!(byte, b' ' | b'\t')
}

/// Number of separators.
fn spaces(line: &[u8]) -> usize {
    // Counting in bytes is fast, and 192 fit in a byte.
    let of = |chunk: &[u8]| chunk.iter().map(|&byte| u8::from(is_separator(&byte))).sum::<u8>();
    line.chunks(192).map(|chunk| usize::from(of(chunk))).sum()
}

/// A file, decompressed, with a part of it in memory.
struct Source {
    reader: Box<dyn Read>,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// The byte that ends a line.
    newline: u8,
    /// The reason why no more can be read.
    failed: Option<String>,
}

impl Source {
    fn new(file: File) -> io::Result<Self> {
        let mut file = BufReader::with_capacity(CHUNK, file);
        let gzipped = file.fill_buf()?.starts_with(&gzip::MAGIC);
        let reader: Box<dyn Read> =
            if gzipped { Box::new(gzip::Unpacked::new(file)) } else { Box::new(file) };
        Ok(Self { reader, buffer: vec![0; CHUNK], start: 0, end: 0, newline: b'\n', failed: None })
    }

    /// The bytes that have been read but not consumed.
    fn rest(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    fn consume(&mut self, bytes: usize) {
        self.start += bytes;
    }

    /// Reads more bytes, and returns whether there were any.
    fn more(&mut self) -> Result<bool> {
        if let Some(failed) = &self.failed {
            bail!("{failed}");
        }
        self.buffer.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        if self.buffer.len() < self.end + CHUNK {
            self.buffer.resize(self.end + CHUNK, 0);
        }
        loop {
            match self.reader.read(&mut self.buffer[self.end..][..CHUNK]) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Ok(read) => {
                    self.end += read;
                    return Ok(read > 0);
                }
                Err(error) => {
                    let error = gzip::read_error(error);
                    // A decoder does not repeat its error.
                    self.failed = Some(error.to_string());
                    return Err(error);
                }
            }
        }
    }

    /// Reads until `bytes` bytes, or all remaining ones, are in memory.
    fn fill(&mut self, bytes: usize) -> Result<()> {
        while self.rest().len() < bytes && self.more()? {}
        Ok(())
    }

    /// Makes `\r` end the lines if the first of them has no `\n`.
    fn find_newline(&mut self) {
        for bytes in [CHUNK, MAX_LINE] {
            // An unreadable part causes an error where it is needed.
            let _ = self.fill(bytes);
            if self.rest().contains(&b'\n') {
                return;
            }
        }
        if self.rest().contains(&b'\r') {
            self.newline = b'\r';
        }
    }

    /// The next line with its newline; empty at the end of the file.
    fn line(&mut self) -> Result<&[u8]> {
        let mut length = 0;
        loop {
            length += (&self.rest()[length..]).skip_until(self.newline)?;
            ensure!(length <= MAX_LINE, "longer than {MAX_LINE} bytes, expected a word and its numbers");
            if self.rest()[..length].ends_with(&[self.newline]) || !self.more()? {
                return Ok(&self.rest()[..length]);
            }
        }
    }

    /// Whether text, rather than binary vectors of `size` elements, follows the header.
    ///
    /// At least half of the `4 * size` bytes after the first word are characters of decimal numbers in any text, but
    /// about a tenth in binary data.
    fn is_text(&mut self, size: usize) -> Result<bool> {
        self.fill(MAX_WORD + 4 * size)?;
        let rest = self.rest();
        let Some(space) = rest.iter().take(MAX_WORD).position(is_separator) else {
            return Ok(rest.contains(&self.newline));
        };
        let vector = rest[space + 1..].iter().take(4 * size);
        let decimal = vector.clone().filter(|byte| b"0123456789+-.eE \t\r\nnaNif".contains(byte)).count();
        Ok(decimal > 0 && 2 * decimal >= vector.len())
    }
}
