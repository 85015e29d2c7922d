//! Classifying sentences.

use super::inputs::Inputs;
use super::options::{TrainOptions, in_range};
use super::parts::{Parts, hold_out};
use super::recipe::{About, AnyBinary, Data, Test, Trained};
use super::text::{Labelled, TextData, TextFacts, UnknownCount, WordOptions, keep_vectors};
use super::{
    Outcome, TestSet, UsageError, command_line, count, data_error, in_colour, most_probable, show_notes,
    write_drawing,
};
use crate::data::text::{Layout, TextFile, composed, texts_of_table, without_label};
use crate::data::{self, Columns, Corpus, NGrams, Texts, Tokenizer, Vocabulary};
use crate::nn::{Attribution, Cost, Mode, SentenceModel};
use crate::plots;
use crate::rng;
use crate::train::{Epoch, Run, SentenceClassification, Sentences, Task, say};
use anyhow::{Result, bail, ensure};
use candle_core::{DType, Device};
use candle_nn::VarMap;
use clap::{Args, Subcommand, ValueEnum};
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::ops::Range;
use std::process::ExitCode;

/// Options that choose how sentences become words.
#[derive(Debug, Clone, Args, Serialize, Deserialize)]
pub struct TextOptions {
    /// Column of the labels in csv and tsv files, a name in the header or a number [default: by the header, or 1]
    #[arg(long, value_name = "COLUMN")]
    pub label_column: Option<String>,
    /// Column of the texts in csv and tsv files, a name in the header or a number [default: by the header, or 2]
    #[arg(long, value_name = "COLUMN")]
    pub text_column: Option<String>,
    /// Tokenizer
    #[arg(long, value_name = "NAME", value_enum, default_value_t)]
    pub tokenizer: Tokenizer,
    /// The known words.
    #[command(flatten)]
    #[serde(flatten)]
    pub words: WordOptions,
    /// Cross-validate: train N models, each tested on a different Nth of all sentences
    #[arg(long, value_name = "N", value_parser = |text: &str| in_range(text, 2..=1000_usize, "a whole number, 2 to 1000"))]
    pub folds: Option<usize>,
}

/// Options of `eval` that choose the test data.
#[derive(Args)]
pub struct SentenceTest {
    #[command(flatten)]
    set: TestSet,
    /// Column of the labels in csv and tsv files, a name in the header or a number [default: as in training]
    #[arg(long, value_name = "COLUMN")]
    label_column: Option<String>,
    /// Column of the texts in csv and tsv files, a name in the header or a number [default: as in training]
    #[arg(long, value_name = "COLUMN")]
    text_column: Option<String>,
}

impl SentenceTest {
    fn columns(&self) -> Columns {
        Columns { label: self.label_column.clone(), text: self.text_column.clone(), trained: None }
    }
}

/// A recipe's choices about sentences.
pub struct SentenceOptions {
    /// Words, pretrained vectors and cross-validation.
    pub text: TextOptions,
    /// N-grams that the model uses besides words.
    pub ngrams: NGrams,
}

/// Sentences with a class each.
pub type SentenceData = TextData<Vec<u32>>;

impl SentenceData {
    /// Makes fold `fold` of `folds` the test part, in an order drawn with the seed.
    pub(super) fn select_fold(&mut self, fold: usize, folds: usize, options: &TrainOptions) -> Result<()> {
        let mut order: Vec<u32> = (0..self.words.len() as u32).collect();
        order.shuffle(&mut rng::stream(options.seed, "folds"));
        let test: Vec<u32> = order.iter().copied().skip(fold).step_by(folds).collect();
        let rest = order.iter().enumerate().filter(|(place, _)| place % folds != fold);
        let rest: Vec<u32> = rest.map(|(_, &sentence)| sentence).collect();
        let sentences = self.words.len();
        ensure!(
            folds <= sentences,
            "--folds {folds}: found {}, expected one per fold or more",
            count(sentences, "sentence")
        );
        let class = |sentence: u32| self.labels[sentence as usize];
        let (training, validation) = hold_out(&rest, None, class, options)?;
        self.divide(Parts { training, validation, test }, &options.given)
    }

    fn classification<'a>(
        &'a self,
        model: &'a dyn SentenceModel,
        device: &'a Device,
    ) -> SentenceClassification<'a> {
        SentenceClassification {
            model,
            sentences: &self.sentences,
            labels: &self.labels,
            training: &self.parts.training,
            validation: &self.parts.validation,
            device,
        }
    }
}

impl Data for SentenceData {
    type Model = dyn SentenceModel;
    type Options = SentenceOptions;
    type Facts = TextFacts;
    type TestOptions = SentenceTest;
    type Command = SentenceCommand;
    const DATA_SETS: &'static [(&'static [&'static str], &'static str)] = &[
        (&["reviews"], "built in"),
        (&["mr"], "rt-polarity.neg, rt-polarity.pos; or a download"),
        (&["sst2"], "train.tsv, dev.tsv, test.tsv, or stsa.binary.train and so on; or a download"),
        (&["trec"], "train_5500.label, TREC_10.label"),
        (&["ag-news"], "train.csv, test.csv: class, title, description; or a download"),
        (&["fasttext"], "train.txt, test.txt, or as extensions: __label__CLASS and a sentence per line"),
        (&["csv", "tsv"], "train.csv, test.csv, optionally validation.csv: label and text; .tsv alike"),
    ];
    const NOUN: &'static str = "sentences";

    fn load(
        SentenceOptions { text, ngrams }: SentenceOptions,
        train: &TrainOptions,
        run: Option<(TextFacts, &SentenceTest)>,
    ) -> Result<Self> {
        ensure!(
            run.is_some() || ngrams.buckets > 0 || !train.given.contains("buckets"),
            UsageError(
                "--buckets: has no effect without n-grams of words or characters: leave it out".into()
            )
        );
        let chosen = run.as_ref().map(|(_, test)| test.columns());
        let run = run.map(|(facts, test)| (facts, &test.set));
        let (name, dir) = TestSet::resolve(run.as_ref().map(|run| run.1), train);
        let trained = run.as_ref().and_then(|(facts, _)| facts.layout.clone());
        let columns = match chosen.filter(|chosen| !chosen.is_empty()) {
            Some(chosen) => chosen,
            None if name != train.dataset => Columns::default(),
            // The columns of the training table are known.
            None if trained.is_some() => Columns { trained, ..Columns::default() },
            None => Columns { label: text.label_column, text: text.text_column, trained },
        };
        let corpus = match &run {
            None => data::text::load(name, dir, &columns),
            Some((_, test)) if text.folds.is_some() && TestSet::is_own(Some(*test), train) => {
                TestSet::note_moved(Some(*test), train);
                bail!(
                    "this model is one of a cross-validation, which tested it: test it on other data with --dataset or --data-dir"
                )
            }
            Some((facts, _)) => data::text::load_test(name, dir, &columns, &facts.classes),
        };
        let Corpus { train: training, validation, test, classes, notes, layout, assumption } =
            corpus.map_err(data_error)?;
        show_notes(&notes);
        // The columns of a resumed run are settled.
        if let Some(assumption) = assumption.filter(|_| !train.given.contains("resume")) {
            let hint = "; --label-column and --text-column choose others";
            show_notes(&[assumption + if columns.is_empty() { hint } else { "" }]);
        }
        TestSet::check_split(run.as_ref().map(|run| run.1), train, test.is_some())?;
        let splits = [Some(training), validation, test];
        let fingerprints = splits.each_ref().map(|split| split.as_ref().map(Texts::fingerprint));
        let sizes = splits.each_ref().map(|split| split.as_ref().map(Texts::len));
        let (mut words, mut labels) = (vec![], vec![]);
        let letters = splits.iter().flatten().flat_map(|split| &split.texts).map(|text| letters(text)).sum();
        for split in splits.into_iter().flatten() {
            words.extend(split.texts.iter().map(|sentence| text.tokenizer.tokens(sentence)));
            labels.extend(split.labels);
        }
        check_words(name, text.tokenizer, &words)?;
        if run.is_none() && text.tokenizer == Tokenizer::Kim {
            show_notes(dropped(letters, &words).as_slice());
        }
        let parts = match text.folds {
            // Each fold will have its own parts.
            Some(_) if run.is_none() => Parts::test_only(0),
            _ => Parts::new(sizes, |sentence| labels[sentence as usize], train)?,
        };
        if run.is_none() && dir.is_some() {
            parts.note_repeated(Self::NOUN, |index| (&words[index as usize], labels[index as usize]));
        }
        Self::new(
            text.words,
            ngrams,
            Labelled { words, labels, parts, classes, fingerprints, layout },
            train,
            run,
        )
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
        Ok(Box::new(self.classification(model, device)))
    }

    fn test(&self, model: &dyn SentenceModel, _best: Option<&Epoch>, device: &Device) -> Result<Test> {
        Ok(Test::classification(self.classification(model, device).evaluate(&self.parts.test)?))
    }

    fn plot(&self, run: &Run, model: &dyn SentenceModel, _test: &Test, _device: &Device) -> Result<()> {
        run.write("words.svg", &word_map(model, &self.about.facts.vocabulary)?)
    }

    fn answer(command: &SentenceCommand, trained: Trained<Self>) -> Result<Outcome> {
        match command {
            SentenceCommand::Predict(inputs) => predict(inputs, trained),
            SentenceCommand::Neighbours(inputs) => neighbours(inputs, &trained),
            SentenceCommand::Embeddings => embeddings(&trained),
        }
    }

    fn main(binary: &AnyBinary<Self>, arguments: Vec<OsString>) -> ExitCode {
        command_line::main(binary, arguments)
    }
}

/// The value of `--tokenizer`.
fn name_of(tokenizer: Tokenizer) -> String {
    tokenizer.to_possible_value().map_or_else(String::new, |value| value.get_name().to_string())
}

/// Prints a note on the number of texts without words.
///
/// # Errors
/// Fails if none has any.
fn check_words(name: &str, tokenizer: Tokenizer, words: &[Vec<String>]) -> Result<()> {
    let without = words.iter().filter(|words| words.is_empty()).count();
    let tokenizer = name_of(tokenizer);
    ensure!(
        without < words.len() || words.is_empty(),
        "data set {name}: its texts contain no words, as the tokenizer {tokenizer} finds them"
    );
    if without > 0 {
        let (texts, have) = (count(words.len(), "text"), if without == 1 { "has" } else { "have" });
        show_notes(&[format!(
            "{without} of {texts} {have} no words, as the tokenizer {tokenizer} finds them"
        )]);
    }
    Ok(())
}

/// Number of letters, composed.
fn letters(text: &str) -> usize {
    composed(text).chars().filter(|c| c.is_alphabetic()).count()
}

/// Returns a note if Kim's tokenizer dropped more than 5% of the letters.
///
/// `all` is the number of letters in the texts, and `words` are the tokens.
fn dropped(all: usize, words: &[Vec<String>]) -> Option<String> {
    let kept: usize = words.iter().flatten().map(|word| letters(word)).sum();
    let dropped = all.saturating_sub(kept);
    (20 * dropped > all).then(|| {
        let percent = 100.0 * dropped as f64 / all as f64;
        format!("the tokenizer kim drops {percent:.0}% of the letters; --tokenizer words keeps those of every script")
    })
}

/// The sub-commands of a classifier of sentences.
#[derive(Subcommand)]
pub enum SentenceCommand {
    /// Predict your own sentences, with probabilities
    Predict(Inputs),
    /// Show the words with the most similar vectors
    Neighbours(Inputs),
    /// Draw a map of the most frequent words, as words.svg in the run folder, and show their neighbours
    Embeddings,
}

fn predict(inputs: &Inputs, trained: Trained<SentenceData>) -> Result<Outcome> {
    const SHOWN: usize = 3;
    let TextFacts { vocabulary, classes, .. } = &trained.facts;
    let options = trained.settings.data_options()?;
    let (mut unknown, mut labelled) = (UnknownCount::default(), 0);
    let answer = |text: String| -> Result<()> {
        let without = without_label(&text);
        labelled += usize::from(without.is_some());
        let text = without.as_deref().unwrap_or(&text);
        let words = options.text.tokenizer.tokens(text);
        let Classified { probabilities, phrases, .. } = classify(&trained, options.ngrams, &words)?;
        say(&format!("{}: {text}", most_probable(classes, &probabilities, 3)));
        for Phrase { text, contribution, .. } in phrases.iter().flatten().take(SHOWN) {
            let text = match in_colour(&std::io::stdout()) {
                // Blue for, orange against.
                true => format!("\x1b[{}m{text}\x1b[0m", if *contribution > 0.0 { "34" } else { "33" }),
                false => text.clone(),
            };
            say(&format!("  {contribution:+.2}  {text}"));
        }
        unknown.add_words(text, &words, vocabulary);
        Ok(())
    };
    let layout = trained.facts.layout.as_ref();
    let header = layout.and_then(Layout::header_line);
    let parse = |file: &TextFile| {
        let texts = layout.and_then(|layout| texts_of_table(file, layout, classes));
        Ok(texts.map(|texts| (texts, "a table, of which only the texts are read".to_string())))
    };
    let outcome = inputs.for_each_parsed(header.as_deref(), parse, answer);
    if labelled > 0 {
        show_notes(&[format!("{} with __label__, which is not read", count(labelled, "input"))]);
    }
    unknown.note(if options.text.tokenizer == Tokenizer::Characters { "characters" } else { "words" });
    outcome
}

/// A model's prediction for a sentence.
#[cfg_attr(not(feature = "playground"), expect(dead_code, reason = "only the playground shows all of it"))]
pub(super) struct Classified {
    /// The probability of each class.
    pub(super) probabilities: Vec<f32>,
    /// The most probable class.
    pub(super) best: usize,
    /// The logit of this class.
    pub(super) logit: f32,
    /// The phrases that contribute to it, the largest first; `None` if the model can't attribute it.
    pub(super) phrases: Option<Vec<Phrase>>,
}

/// A part of a sentence that contributes to the logit of a class.
#[cfg_attr(not(feature = "playground"), expect(dead_code, reason = "only the playground shows all of it"))]
pub(super) struct Phrase {
    pub(super) text: String,
    /// The places of its words in the sentence.
    pub(super) places: Range<usize>,
    /// Their contribution to the logit, possibly negative.
    pub(super) contribution: f32,
}

/// Classifies a sentence of these words.
pub(super) fn classify(
    trained: &Trained<SentenceData>,
    ngrams: NGrams,
    words: &[String],
) -> Result<Classified> {
    let Trained { facts: TextFacts { vocabulary, .. }, model, device, .. } = trained;
    let sentences = Sentences::new([ngrams.ids(vocabulary, words)]);
    let (ids, sequences) = sentences.batch(&[0], device)?;
    let logits = model.forward(&ids, &sequences, Mode::Evaluate)?;
    let probabilities = Cost::SoftmaxCrossEntropy.probabilities(&logits)?.get(0)?.to_vec1::<f32>()?;
    // The first of the most probable classes.
    let best = (0..probabilities.len()).rev().max_by(|&a, &b| probabilities[a].total_cmp(&probabilities[b]));
    let best = best.unwrap_or_default();
    let is_known = |word: &String| vocabulary.id(word) != Vocabulary::UNKNOWN;
    let features: Vec<(Option<String>, Range<usize>)> = ngrams
        .texts(words)
        .into_iter()
        .map(|(text, places)| (words[places.clone()].iter().all(is_known).then_some(text), places))
        .collect();
    let phrases = model.attributions(&ids, &sequences)?.pop();
    let phrases = phrases.map(|attributions| phrases_of(attributions, best, &features));
    let logit = logits.get(0)?.get(best)?.to_scalar()?;
    Ok(Classified { probabilities, best, logit, phrases })
}

/// The logits of sentences of these words, one list per sentence.
#[cfg(feature = "playground")]
pub(super) fn logits(
    trained: &Trained<SentenceData>,
    ngrams: NGrams,
    sentences: &[Vec<String>],
) -> Result<Vec<Vec<f32>>> {
    let Trained { facts: TextFacts { vocabulary, .. }, model, device, .. } = trained;
    let all: Vec<u32> = (0..sentences.len() as u32).collect();
    let (ids, sequences) = Sentences::encode(vocabulary, ngrams, sentences).batch(&all, device)?;
    Ok(model.forward(&ids, &sequences, Mode::Evaluate)?.to_vec2()?)
}

/// The features that contribute to the logit of a class, the largest absolute contribution first.
///
/// A feature that the model does not know is no explanation; within a phrase it appears as `_`.
fn phrases_of(
    mut attributions: Vec<Attribution>,
    class: usize,
    features: &[(Option<String>, Range<usize>)],
) -> Vec<Phrase> {
    attributions.retain(|found| {
        features.get(found.words.clone()).is_some_and(|phrase| phrase.iter().any(|(text, _)| text.is_some()))
    });
    attributions.sort_by(|a, b| b.logits[class].abs().total_cmp(&a.logits[class].abs()));
    let phrase = |Attribution { words: range, logits }: Attribution| {
        let features = &features[range];
        let texts = features.iter().map(|(text, _)| text.as_deref().unwrap_or("_"));
        Phrase {
            text: texts.collect::<Vec<_>>().join(" "),
            places: features[0].1.start..features[features.len() - 1].1.end,
            contribution: logits[class],
        }
    };
    attributions.into_iter().map(phrase).collect()
}

fn neighbours(inputs: &Inputs, trained: &Trained<SentenceData>) -> Result<Outcome> {
    let Trained { settings, facts: TextFacts { vocabulary, .. }, .. } = trained;
    let tokenizer = settings.data_options()?.text.tokenizer;
    let mut lines = 0;
    let outcome = inputs.for_each_text(|line| {
        lines += 1;
        ensure!(!line.trim().is_empty(), "found an empty line, expected a word");
        let tokens = tokenizer.tokens(line);
        let words = if tokens.len() > 1 { tokens } else { vec![line.to_string()] };
        let id = |word: &str| match &tokenizer.tokens(word)[..] {
            [token] => vocabulary.id(token),
            _ => vocabulary.id(word),
        };
        let (known, unknown): (Vec<&String>, Vec<&String>) =
            words.iter().partition(|word| id(word) >= Vocabulary::FIRST);
        for word in known {
            say_nearest(trained, word, id(word), 10)?;
        }
        let unknown: Vec<&str> = unknown.into_iter().map(String::as_str).collect();
        ensure!(unknown.is_empty(), "{}: this run's model does not know the word", unknown.join(", "));
        Ok(())
    });
    ensure!(lines > 0, "neighbours: found no word, expected at least one");
    outcome
}

/// Shows the `count` nearest neighbours of `word`, whose token is `id`.
fn say_nearest(trained: &Trained<SentenceData>, word: &str, id: u32, count: usize) -> Result<()> {
    let Trained { facts: TextFacts { vocabulary, .. }, model, .. } = trained;
    let nearest = model.embedding().nearest(id, vocabulary.len(), count + Vocabulary::FIRST as usize)?;
    let nearest = nearest.iter().filter(|(id, _)| *id >= Vocabulary::FIRST).take(count);
    let shown: Vec<String> = nearest
        .map(|&(id, cosine)| format!("{} ({cosine:.2})", vocabulary.token(id).unwrap_or_default()))
        .collect();
    say(&format!("{word}: {}", shown.join("  ")));
    Ok(())
}

/// Draws the map of words, and shows the neighbours of the most frequent ones.
fn embeddings(trained: &Trained<SentenceData>) -> Result<Outcome> {
    const WORDS: usize = 20;
    let Trained { run, facts: TextFacts { vocabulary, .. }, model, .. } = trained;
    let map = word_map(model.as_ref(), vocabulary)?;
    for (id, word) in (Vocabulary::FIRST..).zip(vocabulary.words().take(WORDS)) {
        say_nearest(trained, word, id, 5)?;
    }
    write_drawing(run, "words.svg", &map)?;
    Ok(Outcome::Done)
}

/// Draws the vectors of the most frequent words.
fn word_map(model: &dyn SentenceModel, vocabulary: &Vocabulary) -> Result<String> {
    const WORDS: usize = 150;
    let words: Vec<String> = vocabulary.words().take(WORDS).map(String::from).collect();
    let table = model.embedding().embeddings().detach().to_dtype(DType::F32)?;
    let vectors = table.narrow(0, Vocabulary::FIRST as usize, words.len())?.flatten_all()?.to_vec1()?;
    plots::word_map(&words, &vectors, table.dim(1)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_names_the_letters_that_kims_tokenizer_drops_above_one_in_twenty() {
        let note = |text: &str| dropped(letters(text), &[Tokenizer::Kim.tokens(text)]);
        let twenty = format!("{}é", "a".repeat(19));
        assert_eq!(note(&twenty), None);
        // Punctuation and digits are no letters.
        assert_eq!(note(&format!("{twenty} 1 2 3 ... ;;; §§§")), None);
        let nineteen = note(&twenty[1..]).unwrap_or_default();
        assert!(nineteen.starts_with("the tokenizer kim drops 5% of the letters"), "{nineteen}");
    }
}
