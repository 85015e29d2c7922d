//! Tagging the words of sentences with entities.

use super::images::numbers;
use super::options::TrainOptions;
use super::parts::Parts;
use super::recipe::{About, AnyBinary, Data, Test, Trained};
use super::text::{Labelled, TextData, TextFacts, UnknownCount, WordOptions, keep_vectors};
use super::{Outcome, Predict, TestSet, command_line, count, data_error, in_colour, show_notes};
use crate::data::sequence::Words;
use crate::data::text::{TextFile, composed};
use crate::data::{
    EntityCounts, EntityScores, NGrams, TaggedCorpus, TaggedSentences, Vocabulary, entity_scores, sequence,
};
use crate::nn::{Mode, SentenceModel};
use crate::train::{Epoch, Run, Sentences, Tagging, TaggingEvaluation, Task, say};
use anyhow::Result;
use candle_core::{D, Device};
use candle_nn::VarMap;
use std::ffi::OsString;
use std::process::ExitCode;

/// Sentences with a tag per word.
pub type TaggingData = TextData<Sentences>;

impl TaggingData {
    fn tagging<'a>(&'a self, model: &'a dyn SentenceModel, device: &'a Device) -> Tagging<'a> {
        Tagging {
            model,
            words: &self.sentences,
            tags: &self.labels,
            names: &self.about.facts.classes,
            training: &self.parts.training,
            validation: &self.parts.validation,
            device,
        }
    }
}

impl Data for TaggingData {
    type Model = dyn SentenceModel;
    type Options = WordOptions;
    type Facts = TextFacts;
    type TestOptions = TestSet;
    type Command = Predict;
    const DATA_SETS: &'static [(&'static [&'static str], &'static str)] = &[
        (&["names"], "built in"),
        (
            &["conll"],
            "train.txt, test.txt, optionally dev.txt: a word and its tag per line; also .conll and others",
        ),
    ];
    const NOUN: &'static str = "sentences";

    fn load(options: WordOptions, train: &TrainOptions, run: Option<(TextFacts, &TestSet)>) -> Result<Self> {
        let (name, dir) = TestSet::resolve(run.as_ref().map(|run| run.1), train);
        let corpus = match &run {
            None => sequence::load(name, dir),
            Some((facts, _)) => sequence::load_test(name, dir, &facts.classes),
        };
        let TaggedCorpus { train: training, validation, test, tags: classes, notes } =
            corpus.map_err(data_error)?;
        show_notes(&notes);
        TestSet::check_split(run.as_ref().map(|run| run.1), train, test.is_some())?;
        let splits = [Some(training), validation, test];
        let fingerprints = splits.each_ref().map(|split| split.as_ref().map(TaggedSentences::fingerprint));
        let sizes = splits.each_ref().map(|split| split.as_ref().map(TaggedSentences::len));
        let parts = Parts::new(sizes, |_| 0, train)?;
        let (mut words, mut tags) = (vec![], vec![]);
        for split in splits.into_iter().flatten() {
            words.extend(split.words);
            tags.extend(split.tags);
        }
        if run.is_none() && dir.is_some() {
            parts.note_repeated(Self::NOUN, |index| (&words[index as usize], &tags[index as usize]));
        }
        let data =
            Labelled { words, labels: Sentences::new(tags), parts, classes, fingerprints, layout: None };
        Self::new(options, NGrams::default(), data, train, run)
    }

    fn about(&self) -> &About<TextFacts> {
        &self.about
    }

    fn largest_batch(&self, batch_size: usize) -> u64 {
        self.longest(batch_size)
    }

    fn note_unknown(&self) -> Result<()> {
        self.note_unknown_words();
        Ok(())
    }

    fn initialise(&self, vars: &VarMap) -> Result<Option<String>> {
        self.set_vectors(vars)
    }

    fn keep_files(&self, run: &Run) -> Result<()> {
        keep_vectors(self.vectors.as_ref(), run)
    }

    fn task<'a>(&'a self, model: &'a dyn SentenceModel, device: &'a Device) -> Result<Box<dyn Task + 'a>> {
        Ok(Box::new(self.tagging(model, device)))
    }

    fn test(&self, model: &dyn SentenceModel, _best: Option<&Epoch>, device: &Device) -> Result<Test> {
        let (task, test) = (self.tagging(model, device), &self.parts.test);
        let TaggingEvaluation { words: evaluation, tags } = task.evaluate(test)?;
        let scores = entity_scores(&task.true_tags(test), &tags, &self.about.facts.classes)?;
        let overall = &scores.overall;
        let record = numbers(&[
            ("test_loss", evaluation.loss),
            ("test_f1", overall.f1()),
            ("test_precision", overall.precision()),
            ("test_recall", overall.recall()),
        ]);
        Ok(Test { record, text: table(&scores), evaluation: Some(evaluation), ..Test::default() })
    }

    fn answer(Predict::Predict(inputs): &Predict, trained: Trained<Self>) -> Result<Outcome> {
        let vocabulary = &trained.facts.vocabulary;
        let mut unknown = UnknownCount::default();
        let mut answer = |input: Input| -> Result<()> {
            let (text, words) = match input {
                Input::Words(words) => (words.join(" "), words),
                Input::Text(text) => {
                    let words = words_of(&trained, &text);
                    (text, words)
                }
            };
            let tags = tags(&trained, &words)?;
            say_tagged(&words, &tags);
            if !words.is_empty() {
                unknown.add_words(&text, &words, vocabulary);
            }
            Ok(())
        };
        let mut rows = Rows::default();
        let outcome = inputs.for_each_parsed(
            None,
            |file| Rows::default().read(file),
            |input| match input {
                Input::Text(line) if inputs.are_lines() => {
                    rows.add(&line)?.into_iter().try_for_each(&mut answer)
                }
                input => answer(input),
            },
        );
        rows.end()?.into_iter().try_for_each(answer)?;
        unknown.note("words");
        outcome
    }

    fn main(binary: &AnyBinary<Self>, arguments: Vec<OsString>) -> ExitCode {
        command_line::main(binary, arguments)
    }
}

/// An input to tag.
#[derive(Debug, PartialEq)]
enum Input {
    Text(String),
    /// The words of a sentence in the CoNLL format.
    Words(Vec<String>),
}

impl From<&str> for Input {
    fn from(text: &str) -> Self {
        Self::Text(text.into())
    }
}

/// Lines that are held back while they may be a sentence in the CoNLL format.
#[derive(Default)]
struct Rows {
    lines: Vec<String>,
    /// The last such sentences.
    last: Option<Words>,
}

impl Rows {
    /// Reads the sentences of a text in the CoNLL format, and a note; `None` if it is in another format.
    fn read(&mut self, file: &TextFile) -> Result<Option<(Vec<Input>, String)>> {
        let Some(mut words) = Words::read(file, self.last.as_ref())? else { return Ok(None) };
        let column = words.column();
        let note = format!("in the CoNLL format, so only its column {column} is read, as the words");
        let sentences = std::mem::take(&mut words.sentences);
        self.last = Some(words);
        Ok(Some((sentences.into_iter().map(Input::Words).collect(), note)))
    }

    /// Adds a line, and returns the inputs that it completes.
    fn add(&mut self, line: &str) -> Result<Vec<Input>> {
        if line.starts_with("-DOCSTART-") {
            return self.end();
        }
        if Words::may_have(line) {
            self.lines.push(line.to_string());
            return Ok(vec![]);
        }
        let mut inputs = self.end()?;
        let ends_sentence = line.trim().is_empty() && matches!(inputs.last(), Some(Input::Words(_)));
        inputs.extend((!ends_sentence).then(|| Input::Text(line.to_string())));
        Ok(inputs)
    }

    /// The inputs in the lines so far.
    fn end(&mut self) -> Result<Vec<Input>> {
        let lines = std::mem::take(&mut self.lines);
        let file = TextFile { path: "standard input".into(), text: lines.join("\n") };
        let is_first = self.last.is_none();
        Ok(match self.read(&file)? {
            Some((inputs, note)) => {
                show_notes(is_first.then(|| format!("{}: {note}", file.path.display())).as_slice());
                inputs
            }
            None => lines.into_iter().map(Input::Text).collect(),
        })
    }
}

/// The words of a sentence, and their predicted tags.
#[cfg(feature = "playground")]
pub(super) fn tagged(trained: &Trained<TaggingData>, text: &str) -> Result<(Vec<String>, Vec<String>)> {
    let words = words_of(trained, text);
    let tags = tags(trained, &words)?;
    Ok((words, tags))
}

/// The words of a sentence for a trained model.
fn words_of(trained: &Trained<TaggingData>, text: &str) -> Vec<String> {
    let vocabulary = &trained.facts.vocabulary;
    words(&composed(text), |word| vocabulary.id(word) != Vocabulary::UNKNOWN)
}

/// The predicted tags of the words of a sentence.
fn tags(trained: &Trained<TaggingData>, words: &[String]) -> Result<Vec<String>> {
    let Trained { facts: TextFacts { vocabulary, classes, .. }, model, device, .. } = trained;
    if words.is_empty() {
        return Ok(vec![]);
    }
    let sentences = Sentences::new([NGrams::default().ids(vocabulary, words)]);
    let (ids, sequences) = sentences.batch(&[0], device)?;
    let tags = model.forward(&ids, &sequences, Mode::Evaluate)?.argmax(D::Minus1)?.to_vec1::<u32>()?;
    Ok(well_formed(tags.iter().map(|&tag| classes[tag as usize].as_str())))
}

/// Prints a tagged sentence: in colour, or as in a CoNLL file.
fn say_tagged(words: &[String], tags: &[String]) {
    if !words.is_empty() && in_colour(&std::io::stdout()) {
        return say(&coloured(words, tags));
    }
    words.iter().zip(tags).for_each(|(word, tag)| say(&format!("{word}\t{tag}")));
    say("");
}

/// Splits a sentence into words. Surrounding punctuation becomes separate words, unless the whole is a known word.
fn words(text: &str, is_known: impl Fn(&str) -> bool) -> Vec<String> {
    let mut words = vec![];
    for whole in text.split_whitespace() {
        let inner = whole.trim_matches(|c: char| !c.is_alphanumeric());
        // A separate contraction is a word, as in CoNLL's files.
        let is_contraction = whole.starts_with(['\'', '\u{2019}'])
            && matches!(inner, "s" | "d" | "m" | "ll" | "re" | "ve")
            && whole.ends_with(inner);
        if inner.is_empty() || is_contraction || is_known(whole) {
            words.push(whole);
            continue;
        }
        let (before, rest) = whole.split_at(whole.find(inner).unwrap_or(0));
        let after = &rest[inner.len()..];
        let characters =
            |text: &'_ str| text.char_indices().map(|(at, c)| at..at + c.len_utf8()).collect::<Vec<_>>();
        words.extend(characters(before).into_iter().map(|at| &before[at]));
        let genitive =
            inner.strip_suffix("'s").or(inner.strip_suffix("\u{2019}s")).filter(|stem| !stem.is_empty());
        match genitive {
            Some(stem) if !is_known(inner) => words.extend([stem, &inner[stem.len()..]]),
            _ => words.push(inner),
        }
        words.extend(characters(after).into_iter().map(|at| &after[at]));
    }
    words.into_iter().map(String::from).collect()
}

/// The tags, with `B-` at the beginning of every entity.
fn well_formed<'a>(tags: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut before = None;
    let fix = |tag: &'a str| {
        let (prefix, entity) = tag.split_once('-').unzip();
        let begins = prefix == Some("I") && entity != before;
        before = entity;
        if begins { format!("B-{}", entity.unwrap_or_default()) } else { tag.to_string() }
    };
    tags.map(fix).collect()
}

/// Precision, recall and F1 per entity type and for all entities, one line each.
fn table(scores: &EntityScores) -> String {
    let line = |name: &str, counts: &EntityCounts| {
        format!(
            "{name:<12} precision {:6.2}%  recall {:6.2}%  F1 {:6.2}%  ({}, {} predicted, {} correct)",
            100.0 * counts.precision(),
            100.0 * counts.recall(),
            100.0 * counts.f1(),
            count(counts.gold, "entity"),
            counts.predicted,
            counts.correct
        )
    };
    let types = scores.types.iter().map(|(name, counts)| line(name, counts));
    types.chain([line("test", &scores.overall)]).collect::<Vec<_>>().join("\n")
}

/// The sentence with its entities in a colour per type, each followed by its type.
fn coloured(words: &[String], tags: &[String]) -> String {
    let mut types: Vec<&str> = vec![];
    let mut parts = vec![];
    for (i, (word, tag)) in words.iter().zip(tags).enumerate() {
        let Some((_, entity)) = tag.split_once('-') else {
            parts.push(word.clone());
            continue;
        };
        let colour = types.iter().position(|&known| known == entity).unwrap_or_else(|| {
            types.push(entity);
            types.len() - 1
        });
        let continues = tags.get(i + 1) == Some(&format!("I-{entity}"));
        let label = if continues { String::new() } else { format!(" [{entity}]") };
        parts.push(format!("\x1b[1;{}m{word}{label}\x1b[0m", 31 + colour % 6));
    }
    parts.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn punctuation_around_words_is_split_off() {
        let split = |text: &str| words(text, |word| word == "U.S.").join(" ");
        assert_eq!(split("(Anna's \"Oslo\", U.S. and U.K.)"), "( Anna 's \" Oslo \" , U.S. and U.K . )");
        assert_eq!(split("already split , it 's so-so ..."), "already split , it 's so-so ...");
        assert_eq!(split(" "), "");
    }

    #[test]
    fn lines_of_a_word_and_its_tag_are_sentences_and_other_lines_are_text() {
        let read = |text: &str| {
            let mut rows = Rows::default();
            let mut inputs: Vec<Input> = text.lines().flat_map(|line| rows.add(line).unwrap()).collect();
            inputs.extend(rows.end().unwrap());
            inputs
        };
        let text = |text: &str| Input::Text(text.to_string());
        let words = |words: &str| Input::Words(words.split(' ').map(String::from).collect());
        let lines = "-DOCSTART- O\n\nRose\tB-PER\nfell\tO\n\n# 2\nThanks\tO\n\n\nRose came";
        let [rose, thanks] = ["Rose fell", "Thanks"].map(words);
        assert_eq!(read(lines), [text(""), rose, thanks, text(""), text("Rose came")]);
        assert_eq!(read("1 Rose N I-PER\n2 fell V O"), [words("Rose fell")]);
        // Sentences may end with such a word.
        for lines in
            ["a vitamin O\n\nthe letter O", "Vitamin O", "# a title\nand text", "a vitamin O\nthe letter O"]
        {
            assert_eq!(read(lines), lines.lines().map(text).collect::<Vec<_>>());
        }
    }

    #[test]
    fn predicted_tags_are_well_formed() {
        let fixed = |tags: &str| well_formed(tags.split(' ')).join(" ");
        assert_eq!(fixed("I-PER I-PER O I-LOC I-PER B-PER I-PER"), "B-PER I-PER O B-LOC B-PER B-PER I-PER");
        assert_eq!(fixed("B-PER I-PER O"), "B-PER I-PER O");
    }
}
