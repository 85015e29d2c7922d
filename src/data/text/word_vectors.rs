//! Pretrained word vectors: the files of word2vec, GloVe and fastText.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, BufRead, BufReader, ErrorKind, Read};
use std::path::Path;

use super::vocabulary::Vocabulary;
use crate::data::gzip;
use anyhow::{Context, Result, anyhow, bail, ensure};
use candle_core::Tensor;
use flate2::bufread::MultiGzDecoder;

/// No published vectors have more numbers; a header that announces more is wrong.
const MAX_SIZE: usize = 1 << 14;

/// Bytes of a line. It is room for vectors of [`MAX_SIZE`] numbers of 64 characters.
const MAX_LINE: usize = 1 << 20;

/// Bytes of a word in a binary file. The original tool cuts words off at 100.
const MAX_WORD: usize = 1 << 12;

/// How many bytes are read at once: they stay in the cache until they have been looked through.
const CHUNK: usize = 1 << 17;

/// Vectors of words, read from a file of pretrained ones.
#[derive(Debug)]
pub struct WordVectors {
    size: usize,
    /// Where in `values` the vector of each word begins.
    starts: HashMap<String, usize>,
    values: Vec<f32>,
}

impl WordVectors {
    /// Reads the vectors of those words that are `wanted` from a file in one of these formats, gzipped or not. Which
    /// one it is shows in what the file holds, not in its name.
    ///
    /// | format | made by | |
    /// |---|---|---|
    /// | binary | word2vec (Mikolov 2013, arXiv:1310.4546), gensim | a line `WORDS SIZE`, then for each word the word, a blank, `SIZE` little-endian f32 and, from the original tool, a newline |
    /// | text with a header | word2vec, gensim, fastText's `.vec` | a line `WORDS SIZE`, then for each word a line of the word and `SIZE` numbers |
    /// | text | GloVe (Pennington 2014) | the same without the header; the numbers of the first line tell `SIZE` |
    ///
    /// In a line of text the last `SIZE` columns are the numbers, as words may hold blanks: the largest GloVe file
    /// has "at name@domain.com". Only where what stands before them ends in a number again, the line counts as one
    /// with too many. A word that comes twice has its first vector, as in gensim. Words that are not
    /// UTF-8 are passed over.
    ///
    /// The file is read as a stream, so the memory needed is that of the wanted vectors, whatever the file's size.
    /// Of a word that is not wanted no number is parsed: its line is only checked to have the right number of
    /// columns, and its binary vector to be there.
    ///
    /// # Errors
    /// With the number of the line or the word: a file that is missing, empty, truncated, longer than its header
    /// announces or of another format; a header that announces no words or vectors of 0 or more than 16,384
    /// numbers; a line with too many or too few numbers, or, of a wanted word, one that is none; a line of text of
    /// more than 1 MiB or a word in a binary file of more than 4 KiB; a wanted vector that holds NaN or infinity.
    pub fn read(path: &Path, wanted: &HashSet<&str>) -> Result<Self> {
        let name = path.display();
        let file = File::open(path).with_context(|| format!("{name}: can't be opened"))?;
        let mut source = Source::new(file).with_context(|| format!("{name}: can't be read"))?;
        let mut vectors = Self { size: 0, starts: HashMap::new(), values: Vec::new() };
        vectors.parse(&mut source, wanted).map_err(|error| anyhow!("{name}: {error:#}"))?;
        Ok(vectors)
    }

    /// How many numbers a vector has.
    pub fn size(&self) -> usize {
        self.size
    }

    /// How many of the wanted words the file has.
    pub fn len(&self) -> usize {
        self.starts.len()
    }

    pub fn is_empty(&self) -> bool {
        self.starts.is_empty()
    }

    /// The words that were wanted and that the file has, in alphabetical order.
    pub fn words(&self) -> impl Iterator<Item = &str> {
        let mut words: Vec<&str> = self.starts.keys().map(String::as_str).collect();
        words.sort_unstable();
        words.into_iter()
    }

    /// The vector of `word`, if it was wanted and the file has it.
    pub fn get(&self, word: &str) -> Option<&[f32]> {
        self.starts.get(word).map(|&start| &self.values[start..][..self.size])
    }

    /// `table` `(rows, size)`, of which the row of each known word that has a vector is that vector. The rows of the other
    /// words are scaled to the same mean square, so that they are as large (Kim 2014, section 3.2).
    ///
    /// # Errors
    /// When the table's vectors are of another size, or it has too few.
    pub fn fill(&self, vocabulary: &Vocabulary, table: &Tensor) -> Result<Tensor> {
        let (rows, size) = table.dims2()?;
        ensure!(size == self.size, "found vectors of {} numbers, expected {size}", self.size);
        ensure!(rows >= vocabulary.len(), "found {rows} rows for {} words", vocabulary.len());
        let mut numbers = table.flatten_all()?.to_vec1::<f32>()?;
        let mean_square = |numbers: &[f32]| {
            numbers.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / numbers.len().max(1) as f64
        };
        let own = mean_square(&numbers[..vocabulary.len() * size]);
        let scale =
            if self.is_empty() || own == 0.0 { 1.0 } else { (mean_square(&self.values) / own).sqrt() };
        for (row, id) in numbers.chunks_exact_mut(size).zip(0..vocabulary.len() as u32) {
            match vocabulary.token(id).and_then(|word| self.get(word)) {
                Some(vector) => row.copy_from_slice(vector),
                None => row.iter_mut().for_each(|x| *x *= scale as f32),
            }
        }
        Ok(Tensor::from_vec(numbers, (rows, size), table.device())?)
    }

    fn parse(&mut self, source: &mut Source, wanted: &HashSet<&str>) -> Result<()> {
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
            "line 1: neither a header of two numbers nor a word and its numbers, expected the vectors of word2vec, \
             GloVe or fastText"
        );
        self.text(source, None, wanted)
    }

    fn text(&mut self, source: &mut Source, announced: Option<u64>, wanted: &HashSet<&str>) -> Result<()> {
        let first = if announced.is_some() { 2 } else { 1 };
        let mut words = 0;
        loop {
            let place = || format!("line {}", first + words);
            let line = source.line().with_context(place)?;
            if line.is_empty() {
                break;
            }
            if announced == Some(words) {
                bail!("{}: goes on after the {words} words that line 1 announces", place());
            }
            self.text_line(line.trim_ascii_end(), wanted).with_context(place)?;
            let length = line.len();
            source.consume(length);
            words += 1;
        }
        match announced {
            Some(announced) if words < announced => {
                bail!("ends after {words} words, expected {announced} as line 1 announces")
            }
            _ => Ok(()),
        }
    }

    fn text_line(&mut self, line: &[u8], wanted: &HashSet<&str>) -> Result<()> {
        let length = match blanks(line) {
            blanks if blanks == self.size => line.iter().position(|&byte| byte == b' ').unwrap_or_default(),
            _ => self.word_length(line)?,
        };
        let (word, numbers) = line.split_at(length);
        let Some(word) = self.wanted(word, wanted) else { return Ok(()) };
        let start = self.values.len();
        for column in after_first(numbers) {
            let Some(value) = number(column) else {
                let column: String = String::from_utf8_lossy(column).chars().take(40).collect();
                bail!("{column:?}, expected a number");
            };
            self.values.push(value);
        }
        let found = self.values.len() - start;
        ensure!(found == self.size, "{found} numbers, expected {}", self.size);
        self.add(word)
    }

    /// The length of the word in a line that has not just one blank before each number.
    fn word_length(&self, line: &[u8]) -> Result<usize> {
        let mut word = line;
        for _ in 0..self.size {
            let Some(blank) = word.iter().rposition(|&byte| byte == b' ') else {
                bail!("{} numbers, expected {}", after_first(line).count(), self.size);
            };
            word = word[..blank].trim_ascii_end();
        }
        match trailing_numbers(word) {
            0 => Ok(word.len()),
            surplus => bail!("{} numbers, expected {}", self.size + surplus, self.size),
        }
    }

    fn binary(&mut self, source: &mut Source, announced: u64, wanted: &HashSet<&str>) -> Result<()> {
        for number in 1..=announced {
            let place = || format!("word {number} of {announced}");
            source.fill(MAX_WORD + 4 * self.size).with_context(place)?;
            let rest = source.rest();
            if rest.iter().all(|&byte| byte == b'\n') {
                bail!("ends after {} words, expected {announced} as line 1 announces", number - 1);
            }
            let Some(blank) = rest.iter().take(MAX_WORD).position(|&byte| byte == b' ') else {
                ensure!(rest.len() >= MAX_WORD, "ends within {}", place());
                bail!("{}: no blank within {MAX_WORD} bytes, expected one after each word", place());
            };
            let (word, values) = (&rest[..blank], &rest[blank + 1..]);
            let Some(values) = values.get(..4 * self.size) else { bail!("ends within {}", place()) };
            let newlines = word.iter().take_while(|&&byte| byte == b'\n').count();
            if let Some(word) = self.wanted(&word[newlines..], wanted) {
                self.values.extend(values.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)));
                self.add(word).with_context(place)?;
            }
            source.consume(blank + 1 + 4 * self.size);
        }
        source.fill(2).context("after the last word")?;
        ensure!(
            matches!(source.rest(), b"" | b"\n"),
            "goes on after the {announced} words that line 1 announces"
        );
        Ok(())
    }

    /// `word`, if it is one of those `wanted` and has no vector yet.
    fn wanted<'a>(&self, word: &[u8], wanted: &HashSet<&'a str>) -> Option<&'a str> {
        let word = wanted.get(std::str::from_utf8(word).ok()?)?;
        (!self.starts.contains_key(*word)).then_some(word)
    }

    /// Makes the last values the vector of `word`.
    fn add(&mut self, word: &str) -> Result<()> {
        let start = self.values.len() - self.size;
        if let Some(value) = self.values[start..].iter().find(|value| !value.is_finite()) {
            bail!("the vector of {word:?} holds {value}, expected finite numbers");
        }
        self.starts.insert(word.into(), start);
        Ok(())
    }
}

/// How many words of how many numbers the first line announces, if it is a header.
fn header(line: &[u8]) -> Result<Option<(u64, usize)>> {
    let line = String::from_utf8_lossy(line);
    let columns: Vec<&str> = line.split_ascii_whitespace().take(3).collect();
    let [words, size] = columns[..] else { return Ok(None) };
    if columns.iter().any(|column| column.bytes().any(|byte| !byte.is_ascii_digit())) {
        return Ok(None);
    }
    match (words.parse(), size.parse()) {
        (Ok(count @ 1..), Ok(numbers @ 1..=MAX_SIZE)) => Ok(Some((count, numbers))),
        _ => bail!(
            "announces {words:.40} words of {size:.40} numbers, expected 1 word or more of 1 to {MAX_SIZE} numbers"
        ),
    }
}

fn number(column: &[u8]) -> Option<f32> {
    std::str::from_utf8(column).ok()?.parse().ok()
}

/// The columns of `line` but the first.
fn after_first(line: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    let first = line.iter().position(|&byte| byte == b' ').unwrap_or(line.len());
    line[first..].split(|&byte| byte == b' ').filter(|column| !column.is_empty())
}

/// How many columns of `line` from its end on are numbers; the first never is one.
fn trailing_numbers(line: &[u8]) -> usize {
    after_first(line).rev().take_while(|column| number(column).is_some()).count()
}

fn blanks(line: &[u8]) -> usize {
    // Counts of a byte fill the vector registers; so many can't overflow it.
    let of = |chunk: &[u8]| chunk.iter().map(|&byte| u8::from(byte == b' ')).sum::<u8>();
    line.chunks(192).map(|chunk| usize::from(of(chunk))).sum()
}

/// A file, unpacked, of which a part lies in memory.
struct Source {
    reader: Box<dyn Read>,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl Source {
    fn new(file: File) -> io::Result<Self> {
        let mut file = BufReader::with_capacity(CHUNK, file);
        let gzipped = file.fill_buf()?.starts_with(&gzip::MAGIC);
        let reader: Box<dyn Read> =
            if gzipped { Box::new(MultiGzDecoder::new(file)) } else { Box::new(file) };
        Ok(Self { reader, buffer: vec![0; CHUNK], start: 0, end: 0 })
    }

    /// What has been read but not consumed.
    fn rest(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    fn consume(&mut self, bytes: usize) {
        self.start += bytes;
    }

    /// Reads on, whether there was more.
    fn more(&mut self) -> Result<bool> {
        self.buffer.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        if self.buffer.len() < self.end + CHUNK {
            self.buffer.resize(self.end + CHUNK, 0);
        }
        loop {
            match self.reader.read(&mut self.buffer[self.end..][..CHUNK]) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                read => {
                    let read = read.map_err(damage)?;
                    self.end += read;
                    return Ok(read > 0);
                }
            }
        }
    }

    /// Makes the rest `bytes` long, or all that the file still has.
    fn fill(&mut self, bytes: usize) -> Result<()> {
        while self.rest().len() < bytes && self.more()? {}
        Ok(())
    }

    /// The next line with its newline; nothing at the end of the file.
    fn line(&mut self) -> Result<&[u8]> {
        let mut length = 0;
        loop {
            length += (&self.rest()[length..]).skip_until(b'\n')?;
            ensure!(length <= MAX_LINE, "longer than {MAX_LINE} bytes, expected a word and its numbers");
            if self.rest()[..length].ends_with(b"\n") || !self.more()? {
                return Ok(&self.rest()[..length]);
            }
        }
    }

    /// Whether text follows the header, rather than binary vectors of `size` numbers.
    ///
    /// The first word is followed by `4 * size` bytes, among which half or more are characters of decimal numbers
    /// in any text, even one of single digits, but one in ten or so in binary.
    fn is_text(&mut self, size: usize) -> Result<bool> {
        self.fill(MAX_WORD + 4 * size)?;
        let rest = self.rest();
        let Some(blank) = rest.iter().take(MAX_WORD).position(|&byte| byte == b' ') else {
            return Ok(rest.contains(&b'\n'));
        };
        let vector = rest[blank + 1..].iter().take(4 * size);
        let decimal = vector.clone().filter(|byte| b"0123456789+-.eE \r\nnaNif".contains(byte)).count();
        Ok(decimal > 0 && 2 * decimal >= vector.len())
    }
}

fn damage(error: io::Error) -> anyhow::Error {
    match error.kind() {
        ErrorKind::UnexpectedEof => anyhow!("the gzip file ends here, expected a whole one: truncated"),
        ErrorKind::InvalidInput | ErrorKind::InvalidData => {
            anyhow!("damaged, expected a whole gzip file: {error}")
        }
        _ => anyhow!("can't be read: {error}"),
    }
}
