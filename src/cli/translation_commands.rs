//! Using a trained translator.

use super::inputs::Inputs;
use super::recipe::{Data, Trained};
use super::text::UnknownCount;
use super::translation_options::{
    SearchOptions, TranslationFacts, TranslationOptions, beam_size, cut_off_notes, known_share, noun, unknown,
};
use super::{Outcome, UsageError, complain, count, show_notes};
use crate::data::Language;
use crate::data::text::TextFile;
use crate::data::translation::sources;
use crate::models::seq2seq::Seq2Seq;
use crate::plots::{self, Alignment};
use crate::train::{Decoding, Hypothesis, Translator, say};
use anyhow::{Result, ensure};
use clap::{Args, Subcommand};

/// The sub-commands of a translator.
#[derive(Subcommand)]
pub enum TranslationCommand {
    /// Translate your own sentences
    Predict(TranslateCommand),
}

/// The options of `predict`.
#[derive(Args)]
pub struct TranslateCommand {
    #[command(flatten)]
    inputs: Inputs,
    #[command(flatten)]
    search: SearchOptions,
    /// Print the K best translations of each input, each after its score and a tab
    #[arg(long, value_name = "K", value_parser = beam_size)]
    n_best: Option<usize>,
    /// Replace unknown target tokens by the source tokens with the most attention
    #[arg(long)]
    copy_unknown: bool,
    /// Show the attention of each translation, also as alignment.svg in the run folder
    #[arg(long)]
    attention: bool,
}

pub(super) fn answer<D>(
    TranslationCommand::Predict(command): &TranslationCommand,
    options: &TranslationOptions,
    trained: &Trained<D>,
) -> Result<Outcome>
where
    D: Data<Model = Seq2Seq, Facts = TranslationFacts>,
{
    let mut decoding = command.search.decoding(options)?;
    decoding.n_best = command.n_best.unwrap_or(1);
    ensure!(
        decoding.n_best <= decoding.beam,
        UsageError(format!(
            "--n-best {}: a beam of {} has no more: give --beam {0}",
            decoding.n_best, decoding.beam
        ))
    );
    let mut tally = Tally::default();
    let mut answer = |texts: &[String]| translate(texts, &decoding, command, trained, &mut tally);
    let languages = options.source_lang.as_deref().zip(options.target_lang.as_deref());
    let parse = |file: &TextFile| {
        let found = sources(file, languages.map(|(source, target)| [source, target]));
        let note = |column| format!("pairs, so only column {column} is read, as the sources");
        Ok(found.map(|(sources, column)| (sources, note(column))))
    };
    let (mut texts, is_file) = (vec![], command.inputs.file().is_some());
    let outcome = command.inputs.for_each_parsed(None, parse, |text: String| {
        if !is_file {
            return answer(&[text]);
        }
        texts.push(text);
        Ok(())
    })?;
    // Translate batches of similar length.
    texts.chunks(PART).try_for_each(answer)?;
    tally.note(&decoding, &trained.facts);
    if !tally.alignments.is_empty() {
        trained.run.write("alignment.svg", &plots::alignments(&tally.alignments)?)?;
        show_notes(&[format!("the attention is in {}", trained.run.dir().join("alignment.svg").display())]);
    }
    Ok(outcome)
}

/// Number of lines of a file that are translated together.
const PART: usize = 1024;

/// The counts for the notes at the end, over all inputs that are not blank.
#[derive(Default)]
struct Tally {
    inputs: usize,
    /// The length of each input with a translation that was cut off, read as the target language.
    cut_off: Vec<usize>,
    /// Inputs with fewer translations than requested.
    fewer: usize,
    /// Unknown tokens and all tokens, read as the source and as the target language.
    source: UnknownCount,
    target: UnknownCount,
    /// The alignments to draw.
    alignments: Vec<Alignment>,
}

/// Translates and prints `texts`, and updates the counts in `tally`.
fn translate<D>(
    texts: &[String],
    decoding: &Decoding,
    command: &TranslateCommand,
    trained: &Trained<D>,
    tally: &mut Tally,
) -> Result<()>
where
    D: Data<Model = Seq2Seq, Facts = TranslationFacts>,
{
    let Trained { facts, model, device, .. } = trained;
    let sources: Vec<Vec<u32>> = texts.iter().map(|text| facts.source.encode(text)).collect();
    let found = Translator::new(model, device).translate(&sources, decoding)?;
    for ((text, ids), best) in texts.iter().zip(&sources).zip(&found) {
        if ids.is_empty() {
            say("");
            continue;
        }
        let has_attention = best.iter().all(|best| !best.attention.is_empty());
        ensure!(
            has_attention || !(command.attention || command.copy_unknown),
            "{}: this model has no attention",
            if command.attention { "--attention" } else { "--copy-unknown" }
        );
        for hypothesis in best {
            let line = match command.copy_unknown {
                true => facts.target.join(copied(facts, text, hypothesis).iter().map(String::as_str)),
                false => facts.target.decode(&hypothesis.ids),
            };
            match command.n_best {
                None => say(&line),
                Some(_) => say(&format!("{:.4}\t{line}", hypothesis.score)),
            }
        }
        if let Some(alignment) = command.attention.then(|| alignment(facts, text, best.first()?)).flatten() {
            say(&in_letters(&alignment));
            tally.alignments.push(alignment);
        }
        tally.add(text, [ids, &facts.target.encode(text)], best, decoding);
    }
    Ok(())
}

impl Tally {
    /// Counts an input and its translations.
    ///
    /// Its tokens are read as the source and as the target language.
    fn add(&mut self, text: &str, [source, target]: [&[u32]; 2], best: &[Hypothesis], decoding: &Decoding) {
        self.inputs += 1;
        self.cut_off.extend(best.first().filter(|best| !best.finished).map(|_| target.len()));
        self.fewer += usize::from(best.len() < decoding.n_best);
        for (count, ids) in [(&mut self.source, source), (&mut self.target, target)] {
            count.add(text, unknown(ids) as u64, ids.len() as u64);
        }
    }

    /// Prints notes on incomplete translations and on unknown tokens of their sources.
    fn note(&self, decoding: &Decoding, facts: &TranslationFacts) {
        if self.inputs == 0 {
            return;
        }
        show_notes(&cut_off_notes(&self.cut_off, self.inputs, decoding.max_length));
        if self.fewer > 0 {
            let (n_best, fewer, inputs) = (decoding.n_best, self.fewer, count(self.inputs, "input"));
            complain(&format!(
                "note: the search found fewer than {n_best} translations of {fewer} of {inputs}"
            ));
        }
        self.source.note(noun(&facts.source));
        let known = |count: &UnknownCount| known_share(count.unknown as usize, count.all as usize);
        if known(&self.source) < 0.5 && known(&self.target) > 0.8 {
            complain("note: this looks like the language that the model translates into");
        }
    }
}

/// The target tokens of `hypothesis`, with the most attended source token instead of each unknown one.
fn copied(facts: &TranslationFacts, text: &str, hypothesis: &Hypothesis) -> Vec<String> {
    let source = facts.source.tokens(text);
    let token = |(&id, weights): (&u32, &Vec<f32>)| {
        // The last weight belongs to the end of the source, which is not among its tokens.
        let attended = weights.iter().zip(&source).max_by(|a, b| a.0.total_cmp(b.0));
        match (id, attended) {
            (Language::UNKNOWN, Some((_, token))) => token.clone(),
            _ => facts.target.vocabulary().token(id).unwrap_or_default().to_string(),
        }
    };
    hypothesis.ids.iter().zip(&hypothesis.attention).map(token).collect()
}

/// The attention of a translation of `text`; `None` for a model without attention.
pub(super) fn alignment(facts: &TranslationFacts, text: &str, hypothesis: &Hypothesis) -> Option<Alignment> {
    let end = || facts.target.vocabulary().token(Language::END).unwrap_or_default().to_string();
    let token = |&id: &u32| facts.target.vocabulary().token(id).unwrap_or_default().to_string();
    let mut source = facts.source.tokens(text);
    source.push(end());
    let mut target: Vec<String> = hypothesis.ids.iter().map(token).collect();
    if hypothesis.finished {
        target.push(end());
    }
    (!hypothesis.attention.is_empty()).then(|| Alignment {
        source,
        target,
        weights: hypothesis.attention.clone(),
    })
}

/// Shows the attention in letters.
///
/// There is a line per target token, with a shade per source token and the most attended one.
fn in_letters(Alignment { source, target, weights }: &Alignment) -> String {
    let width = target.iter().map(|token| token.trim().chars().count()).max().unwrap_or(0);
    let shade = |&weight: &f32| match weight {
        0.75.. => '█',
        0.5.. => '▓',
        0.25.. => '▒',
        0.1.. => '░',
        _ => '·',
    };
    let line = |(token, weights): (&String, &Vec<f32>)| {
        let shades: String = weights.iter().map(shade).collect();
        let most = weights.iter().zip(source).max_by(|a, b| a.0.total_cmp(b.0));
        let (weight, attended) = most.map_or((0.0, ""), |(&weight, token)| (100.0 * weight, token.trim()));
        format!("  {:<width$}  {shades}  {attended} {weight:.0}%", token.trim())
    };
    target.iter().zip(weights).map(line).collect::<Vec<_>>().join("\n")
}
