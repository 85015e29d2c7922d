//! `seq2seq` as a process: training on parallel files, translating, comparing, resuming, and bad input.

#![cfg(unix)]

mod common;

use common::{config, killed, metrics, model, noted, one_error, refused, start};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use tempfile::{TempDir, tempdir};

const ENGLISH: [&str; 8] = ["one", "two", "three", "four", "red", "blue", "green", "grey"];
const GERMAN: [&str; 8] = ["eins", "zwei", "drei", "vier", "rot", "blau", "grün", "grau"];

const SMALL: &str = "--source-lang en --target-lang de --data-dir data --embedding 16 --hidden 24 \
                     --learning-rate 2e-2 --batch-size 16 --quiet";

/// Writes sentences of up to five words and their translations, word for word.
fn write_data(place: &Path) {
    let dir = place.join("data");
    fs::create_dir(&dir).unwrap();
    for (split, from, count) in [("train", 0, 240), ("val", 1000, 24), ("test_2016", 2000, 24)] {
        let sentence = |words: &[&str], i: usize| -> String {
            let word = |at: usize| words[(i * 7 + at * (i / 8 + 3)) % words.len()];
            (0..=i % 5).map(word).collect::<Vec<_>>().join(" ") + "\n"
        };
        for (language, words) in [("en", ENGLISH), ("de", GERMAN)] {
            let text: String = (from..from + count).map(|i| sentence(&words, i)).collect();
            fs::write(dir.join(format!("{split}.{language}")), text).unwrap();
        }
    }
}

/// Runs `seq2seq` to success, with any notes, and returns its standard output.
#[track_caller]
fn done(place: &TempDir, arguments: &str) -> String {
    let output = start(place, "seq2seq", &arguments.split_whitespace().collect::<Vec<_>>(), "");
    let [said, notes] = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
    assert!(output.status.success() && notes.lines().all(|line| line.starts_with("note: ")), "{notes}");
    said
}

/// A small finished run; tests must not change it.
fn trained() -> PathBuf {
    static PLACE: OnceLock<TempDir> = OnceLock::new();
    let place = PLACE.get_or_init(|| {
        let place = tempdir().unwrap();
        write_data(place.path());
        let said = done(&place, &format!("{SMALL} --epochs 12 --out run"));
        assert!(said.starts_with("test exact match "), "{said}");
        place
    });
    place.path().join("run")
}

#[test]
fn words_are_translated_from_arguments_lines_and_files() {
    let run = trained();
    for file in
        ["config.json", "source.json", "target.json", "curves.svg", "alignments.svg", "model.safetensors"]
    {
        assert!(run.join(file).exists(), "{file}");
    }
    let last = metrics(&run).pop().unwrap();
    assert!(last["test_exact_match"].as_f64().unwrap() > 0.9, "{last}");
    assert!(last["test_bleu"].as_f64().unwrap() > 90.0, "{last}");
    let place = tempdir().unwrap();
    fs::write(place.path().join("text"), "one red\n\nblue two\n").unwrap();
    fs::write(place.path().join("unknown"), "one pink\n\nblue two\npink\n").unwrap();
    let arguments = ["predict", "--run", run.to_str().unwrap(), "--max-length", "1", "--file", "unknown"];
    let notes = String::from_utf8(start(&place, "seq2seq", &arguments, "").stderr).unwrap();
    let lines: Vec<&str> = notes.lines().collect();
    assert!(lines.len() == 3 && lines[0].ends_with(" cut off at 1 token: see --max-length"), "{notes}");
    assert!(lines[1].starts_with("note: 2 of 5 words are unknown"), "{notes}");
    assert_eq!(lines[2], "note: all words are unknown in \"pink\"");
    let run = run.to_str().unwrap();
    let predict = |arguments: &[&str], input: &str| {
        let output = start(&place, "seq2seq", &[&["predict", "--run", run], arguments].concat(), input);
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(predict(&["one red", "blue two"], ""), "eins rot\nblau zwei\n");
    assert_eq!(predict(&[], "one red\n\nblue two\n"), "eins rot\n\nblau zwei\n");
    assert_eq!(predict(&["--file", "text"], ""), "eins rot\n\nblau zwei\n");
    let best = predict(&["--beam", "3", "--n-best", "3", "one red"], "");
    let lines: Vec<(&str, &str)> = best.lines().filter_map(|line| line.split_once('\t')).collect();
    assert_eq!((lines.len(), lines[0].1), (3, "eins rot"), "{best}");
    assert!(lines.is_sorted_by(|a, b| a.0.parse::<f64>().unwrap() >= b.0.parse::<f64>().unwrap()), "{best}");
}

#[test]
fn the_preset_adapts_to_a_few_pairs_and_to_other_data() {
    let place = tempdir().unwrap();
    for (language, word) in [("en", "word"), ("de", "Wort")] {
        let text: String = (0..6).map(|i| format!("{word}{i}\n")).collect();
        for split in ["train", "test"] {
            fs::write(place.path().join(format!("{split}.{language}")), &text).unwrap();
        }
    }
    fs::write(place.path().join("train.tsv"), "one\teins\ntwo\tzwei\nthree\tdrei\n".repeat(4)).unwrap();
    let small = "--preset multi30k --hidden 4 --embedding 4 --epochs 1 --beam 1 --quiet";
    let arguments = format!("{small} --data-dir . --out few");
    let notes = String::from_utf8(
        start(&place, "seq2seq", &arguments.split_whitespace().collect::<Vec<_>>(), "").stderr,
    );
    let notes = notes.unwrap();
    assert!(notes.contains("note: nothing in the training part occurs 2 times"), "{notes}");
    let languages = &config(&place.path().join("few"))["settings"];
    assert!(languages["preset"] == "multi30k" && languages["source_lang"].is_null(), "{languages}");
    done(&place, &format!("{small} --dataset dates --train-limit 40 --max-length 12 --out dates"));
    done(&place, &format!("{small} --dataset tsv-pairs --data-dir . --out pairs"));
    done(&place, "eval --run few");
}

#[test]
fn unknown_words_of_the_test_pairs_are_noted_after_training() {
    let place = tempdir().unwrap();
    write_data(place.path());
    fs::write(place.path().join("data/test_2016.en"), "one pink\ntwo pink\n").unwrap();
    fs::write(place.path().join("data/test_2016.de"), "eins rosa\nzwei rosa\n").unwrap();
    let arguments = format!("{SMALL} --epochs 1 --out run");
    noted(&place, "seq2seq", &arguments, "2 of 4 words are unknown to this model");
}

#[test]
fn attention_is_shown_and_unknown_words_are_named() {
    let place = tempdir().unwrap();
    write_data(place.path());
    done(&place, &format!("{SMALL} --epochs 1 --out run"));
    let output = start(&place, "seq2seq", &["predict", "--run", "run", "--attention", "one violet"], "");
    let [said, notes] = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
    assert!(said.lines().count() > 1 && said.lines().skip(1).all(|line| line.ends_with('%')), "{said}");
    assert!(notes.contains("note: 1 of 2 words is unknown to this model\n"), "{notes}");
    assert!(notes.contains("alignment.svg") && place.path().join("run/alignment.svg").exists(), "{notes}");
    let output = start(&place, "seq2seq", &["predict", "--run", "run", "eins zwei drei"], "");
    let notes = String::from_utf8(output.stderr).unwrap();
    assert!(notes.contains("looks like the language that the model translates into"), "{notes}");
    let refused = |options: &str, code: i32, parts: &[&str]| {
        refused(&place, "seq2seq", &format!("predict --run run {options} one"), code, parts);
    };
    assert!(done(&place, "predict --help").starts_with("Translate your own sentences\n"));
    assert!(done(&place, "eval --help").starts_with("Test a finished run\n"));
    refused("--n-best 3", 2, &["--n-best 3", "--beam 3"]);
    refused("--beam 2 --n-best 3", 2, &["--n-best 3", "--beam 3"]);
    refused("--beam 4294967295", 2, &["--beam", "1 to 1000"]);
    refused("--length-penalty 1", 2, &["--length-penalty: has no effect with --beam 1"]);
}

#[test]
fn a_comparison_trains_with_and_without_attention() {
    let place = tempdir().unwrap();
    write_data(place.path());
    done(&place, &format!("{SMALL} --epochs 1 --compare attention --out both"));
    let both = place.path().join("both");
    assert!(fs::read_to_string(both.join("lengths.svg")).unwrap().contains("no-attention"));
    assert_eq!(config(&both.join("no-attention"))["settings"]["attention"], "none");
    let arguments = ["predict", "--run", "both/no-attention", "--attention", "one"];
    one_error(&start(&place, "seq2seq", &arguments, ""), 1, &["--attention: this model has no attention"]);
}

#[test]
fn a_killed_training_resumes_to_the_same_bits() {
    let place = tempdir().unwrap();
    write_data(place.path());
    let options = format!("{SMALL} --epochs 3 --checkpoint-every 2 --teacher-forcing 0.5 --bpe 20");
    done(&place, &format!("{options} --out whole"));
    let checkpoint = place.path().join("killed/checkpoint.safetensors");
    killed(&place, "seq2seq", &format!("{options} --out killed"), || checkpoint.exists());
    done(&place, "--resume killed --quiet");
    assert!(model(&place.path().join("whole")) == model(&place.path().join("killed")));
    fs::create_dir(place.path().join("other")).unwrap();
    for name in ["train.en", "train.de"] {
        fs::copy(place.path().join("data").join(name), place.path().join("other").join(name)).unwrap();
    }
    refused(&place, "seq2seq", "eval --run whole --data-dir other", 1, &["other: no test split"]);
}

#[test]
fn a_model_that_never_ends_a_translation_needs_more_epochs_not_a_higher_limit() {
    let place = tempdir().unwrap();
    write_data(place.path());
    let untrained = format!("{} --epochs 1 --train-limit 1 --out run", SMALL.replace("2e-2", "1e-9"));
    let output = start(&place, "seq2seq", &untrained.split_whitespace().collect::<Vec<_>>(), "");
    let notes = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && !notes.contains("--max-length"), "{notes}");
    assert!(
        notes.contains("still without an end after 100 tokens: the model may need more epochs"),
        "{notes}"
    );
}

#[test]
fn data_that_do_not_fit_are_refused() {
    let place = tempdir().unwrap();
    write_data(place.path());
    let data = place.path().join("data");
    refused(&place, "seq2seq", "--dataset parallel --data-dir data", 1, &["--source-lang and --target-lang"]);
    refused(
        &place,
        "seq2seq",
        "--source-lang en --data-dir data",
        1,
        &["--source-lang en: needs --target-lang"],
    );
    let common = "--source-lang en --target-lang de --data-dir data --epochs 1 --quiet";
    refused(&place, "seq2seq", &format!("{common} --attention dot"), 1, &["--direction forward"]);
    for (options, code, part) in [
        ("--compare attention --attention none", 1, "--compare attention: needs an attention"),
        ("--compare attention --input-feeding", 2, "--compare attention: a model without attention has no"),
        ("--teacher-forcing 1 --forcing-steps 9", 2, "--forcing-steps: has no effect"),
        ("--length-penalty 1", 2, "--length-penalty: has no effect"),
    ] {
        refused(&place, "seq2seq", &format!("{common} {options}"), code, &[part]);
    }
    refused(
        &place,
        "seq2seq",
        &format!("{common} --max-length 1 --min-count 1000"),
        1,
        &["--min-count 1000"],
    );
    // The languages of one split are exchanged.
    fs::rename(data.join("test_2016.en"), data.join("test")).unwrap();
    fs::rename(data.join("test_2016.de"), data.join("test_2016.en")).unwrap();
    fs::rename(data.join("test"), data.join("test_2016.de")).unwrap();
    refused(&place, "seq2seq", common, 1, &["the test pairs", "are the two sides swapped?"]);
    fs::write(data.join("test_2016.de"), "eins\n").unwrap();
    refused(&place, "seq2seq", common, 1, &["found 24 lines and 1 line"]);
}
