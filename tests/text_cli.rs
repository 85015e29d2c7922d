//! The binaries for sentences as processes: training, evaluation, prediction, resuming, and bad input.

#![cfg(unix)]

mod common;

use candle_core::{Device, safetensors};
use common::{command, config, done, killed, metrics, model, one_error, refused, start};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use tempfile::{TempDir, tempdir};

const SMALL: &str = "--embedding 16 --train-limit 400 --epochs 2 --quiet";

/// A small finished run of the binary on its built-in data; tests must not change it.
fn trained(binary: &'static str) -> PathBuf {
    static LSTM: OnceLock<TempDir> = OnceLock::new();
    static BIRNN: OnceLock<TempDir> = OnceLock::new();
    let cell = if binary == "lstm" { &LSTM } else { &BIRNN };
    let place = cell.get_or_init(|| {
        let place = tempdir().unwrap();
        done(place.path(), binary, &format!("{SMALL} --hidden 16 --out run"));
        place
    });
    place.path().join("run")
}

#[test]
fn every_cell_learns_and_leaves_a_run_folder() {
    for (binary, options) in [
        ("rnn", "--hidden 16 --activation relu --pool mean"),
        ("gru", "--hidden 16 --pool max --bidirectional"),
        ("lstm", "--hidden 16 --layers 2 --forget-bias 1"),
    ] {
        let place = tempdir().unwrap();
        let said = done(place.path(), binary, &format!("{SMALL} {options} --out run"));
        assert!(said.starts_with("test accuracy "), "{said}");
        let run = place.path().join("run");
        for file in ["config.json", "model.safetensors", "vocabulary.txt", "curves.svg", "confusion.svg"] {
            assert!(run.join(file).exists(), "{binary}: {file}");
        }
        let lines = metrics(&run);
        assert_eq!(lines.len(), 3);
        assert!(lines[0]["val_accuracy"].is_number() && lines[2]["test_accuracy"].is_number());
    }
}

#[test]
fn test_sentences_that_the_training_part_has_are_noted() {
    let place = tempdir().unwrap();
    let rows = |from: usize, to: usize| -> String {
        (from..to).map(|i| format!("{},w{i} tail\n", ["no", "yes"][i % 2])).collect()
    };
    let write = |name: &str, rows: String| {
        fs::write(place.path().join(name), format!("label,text\n{rows}")).unwrap();
    };
    write("train.csv", rows(0, 40));
    let train = "--dataset csv --data-dir . --epochs 1 --validation 4 --quiet";
    write("test.csv", rows(40, 60));
    done(place.path(), "fasttext", train);
    write("test.csv", rows(0, 40));
    common::noted(&place, "fasttext", train, "test sentences that also occur in the training part: 36 of 40");

    let sentences: String = (0..40).map(|i| format!("Name{i} B-PER\nslept O\n\n")).collect();
    for split in ["train", "test"] {
        fs::write(place.path().join(format!("{split}.txt")), &sentences).unwrap();
    }
    let train = "--dataset conll --data-dir . --hidden 4 --embedding 4 --epochs 1 --validation 4 --quiet";
    common::noted(&place, "birnn", train, "test sentences that also occur in the training part: 36 of 40");
}

#[test]
fn an_input_that_begins_with_a_dash_has_a_remedy() {
    let place = tempdir().unwrap();
    refused(&place, "lstm", "predict -bad", 2, &["'-b'", "an input that begins with - needs -- before it"]);
}

#[test]
fn predict_takes_sentences_as_arguments_and_as_lines() {
    let run = trained("lstm");
    let run = run.to_str().unwrap();
    let place = tempdir().unwrap();
    let arguments = start(place.path(), "lstm", &["predict", "--run", run, "it was not good", "zzz"], "");
    let lines = start(place.path(), "lstm", &["predict", "--run", run], "it was not good\nzzz\n");
    assert!(arguments.status.success() && lines.status.success(), "{arguments:?} {lines:?}");
    assert_eq!(arguments.stdout, lines.stdout);
    let said = String::from_utf8(lines.stdout).unwrap();
    assert_eq!(said.lines().count(), 2);
    let first = said.lines().next().unwrap();
    assert!(
        first.ends_with(": it was not good") && first.contains("positive (") && first.contains("%)"),
        "{said}"
    );
}

#[test]
fn the_convolutional_network_learns_and_explains_its_predictions() {
    let place = tempdir().unwrap();
    done(
        place.path(),
        "textcnn",
        "--embedding 16 --filters 8 --train-limit 2000 --learning-rate 1e-2 --quiet --out run",
    );
    let last = metrics(&place.path().join("run")).pop().unwrap();
    assert!(last["test_accuracy"].as_f64().unwrap() > 0.6, "{last}");
    let sentence = "the start was dull , but the end was a delight";
    let output = start(place.path(), "textcnn", &["predict", "--run", "run", sentence], "");
    let said = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines.len(), 4, "{said}");
    for line in &lines[1..] {
        let (added, words) = line.trim().split_once("  ").unwrap();
        assert!(added.parse::<f32>().is_ok() && sentence.contains(words), "{said}");
    }
    refused(place.path(), "textcnn", "--widths 0", 2, &["widths"]);
    refused(place.path(), "textcnn", "--max-norm 0", 2, &["max-norm"]);
}

#[test]
fn word_pairs_classify_what_single_words_do_not_and_explain_predictions() {
    let place = tempdir().unwrap();
    let accuracy = |options: &str, out: &str| {
        let common = "--embedding 32 --quiet";
        done(&place, "fasttext", &format!("{common} {options} --out {out}"));
        metrics(&place.path().join(out)).pop().unwrap()["test_accuracy"].as_f64().unwrap()
    };
    assert!(accuracy("--word-ngrams 1 --train-limit 3000", "words") < 0.8);
    assert!(accuracy("--word-ngrams 2 --buckets 10000", "pairs") > 0.9);
    let said = start(&place, "fasttext", &["predict", "--run", "pairs", "not good"], "");
    let said = String::from_utf8(said.stdout).unwrap();
    assert!(said.starts_with("negative (") && said.contains("  not good\n"), "{said}");
    refused(&place, "fasttext", "--char-ngrams 6-3", 2, &["--char-ngrams", "3-6"]);
    refused(&place, "fasttext", "--buckets 0", 2, &["--buckets"]);
}

/// Writes a data set whose class depends on one of two words, and vectors.
///
/// The vectors are of one of these words and of two others.
fn with_vectors(place: &Path) {
    let rows: String = (0..60).map(|i| format!("{},it is {}\n", i % 2, ["bad", "good"][i % 2])).collect();
    let rows = format!("label,text\n{rows}");
    fs::write(place.join("train.csv"), &rows).unwrap();
    fs::write(place.join("test.csv"), rows + "1,it is great\n").unwrap();
    fs::write(place.join("vectors.txt"), "good 0.5 0.25 -1\ngreat 0.5 0.3 -1\nunheard 1 2 3\n").unwrap();
}

const TINY: &str = "--dataset csv --data-dir . --embedding 3 --filters 8 --epochs 2 --batch-size 8 --quiet";

#[test]
fn the_variant_decides_whether_pretrained_vectors_are_trained() {
    let place = tempdir().unwrap();
    with_vectors(place.path());
    for (variant, kept, channels) in
        [("static", true, 1), ("non-static", false, 1), ("multichannel", true, 2)]
    {
        let options = format!("{TINY} --vectors vectors.txt --variant {variant} --out {variant}");
        let said = done(&place, "textcnn", &options.replace(" --quiet", ""));
        assert!(said.starts_with("2 of 5 words (40.0%) have a vector in vectors.txt\n"), "{said}");
        let run = place.path().join(variant);
        let words = fs::read_to_string(run.join("vocabulary.txt")).unwrap();
        // After a header line; only the vectors contain "great".
        let row = |word: &str| words.lines().position(|line| line == format!("\"{word}\"")).unwrap() - 1;
        let weights = safetensors::load(run.join("model.safetensors"), &Device::Cpu).unwrap();
        let name = if channels == 2 { "fixed_embedding.weight" } else { "embedding.weight" };
        let vector = |word| weights[name].get(row(word)).unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(vector("good") == [0.5, 0.25, -1.0], kept, "{variant}");
        assert_eq!(vector("great"), [0.5, 0.3, -1.0]);
        assert_eq!(weights["convs.0.weight"].dims(), [8, 3 * channels, 3]);
        let map = fs::read_to_string(run.join("words.svg")).unwrap();
        assert!(map.contains("good") && map.contains("great"));
    }
    // The run keeps the needed part of the file, even before its first checkpoint.
    fs::remove_file(place.path().join("vectors.txt")).unwrap();
    let [fresh, whole] = ["fresh", "static"].map(|run| place.path().join(run));
    fs::create_dir(&fresh).unwrap();
    for name in ["config.json", "vectors.txt"] {
        fs::copy(whole.join(name), fresh.join(name)).unwrap();
    }
    let (_, notes) = noted(&place, "textcnn", &["--resume", "fresh", "--quiet"]);
    assert!(notes.contains("no checkpoint yet"), "{notes}");
    assert!(model(&fresh) == model(&whole));
    let said = done(&place, "textcnn", "neighbours --run static good great");
    let neighbours: Vec<&str> = said.lines().collect();
    assert!(
        neighbours[0].starts_with("good: great (1.00)") && neighbours[1].starts_with("great: good (1.00)"),
        "{said}"
    );
    refused(&place, "textcnn", "neighbours --run static unheard", 1, &["unheard", "does not know"]);
}

/// Runs the binary, checks that it succeeds, and returns its standard output and its notes.
#[track_caller]
fn noted(place: &TempDir, binary: &str, arguments: &[&str]) -> (String, String) {
    let output = start(place, binary, arguments, "");
    assert!(output.status.success(), "{output:?}");
    let [said, notes] = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    (said, notes)
}

#[test]
fn a_sorted_table_without_a_test_file_is_learned_and_unknown_words_are_named() {
    let place = tempdir().unwrap();
    let row = |word: &str, class: &str| format!("it was {word} again,{class}\n").repeat(60);
    let rows = format!("review,sentiment\n{}{}", row("плохо", "bad"), row("чудесно", "good"));
    fs::write(place.path().join("train.csv"), &rows).unwrap();
    let options = "--dataset csv --data-dir . --embedding 8 --buckets 100 --epochs 5 --quiet --out run";
    let (said, notes) = noted(&place, "fasttext", &options.split(' ').collect::<Vec<_>>());
    assert!(said.starts_with("test accuracy 100.00%"), "{said}");
    assert!(notes.contains("no test split") && notes.lines().count() == 1, "{notes}");
    // The test file alone, with its columns in another order.
    fs::create_dir(place.path().join("other")).unwrap();
    fs::write(place.path().join("other/test.csv"), "label,text\ngood,чудесно\nbad,it was плохо\n").unwrap();
    let said = done(&place, "fasttext", "eval --run run --data-dir other");
    assert!(said.contains("test accuracy 100.00%"), "{said}");
    fs::rename(place.path().join("other/test.csv"), place.path().join("other/train.csv")).unwrap();
    refused(place.path(), "fasttext", "eval --run run --data-dir other", 1, &["other", "no test split"]);

    let (said, notes) = noted(&place, "fasttext", &["predict", "--run", "run", "zebra xylophone чудесно"]);
    assert!(notes.contains("2 of 3 words are unknown to this model"), "{notes}");
    assert!(said.starts_with("good (") && !said.lines().skip(1).any(|line| line.contains("zebra")), "{said}");
    assert!(noted(&place, "fasttext", &["predict", "--run", "run", "..."]).1.contains("no words"));
    let output = start(&place, "fasttext", &["predict", "--run", "run"], "zebra\n...\nxylophone\nчудесно\n");
    let expected = "note: 2 of 3 words are unknown to this model: zebra, xylophone\nnote: all words are unknown in \"zebra\", \"xylophone\"\nnote: 1 of 4 inputs has no words, so its answer depends on nothing\n";
    assert_eq!(String::from_utf8(output.stderr).unwrap(), expected);
    let (_, notes) =
        noted(&place, "fasttext", &[options, "-kim --tokenizer kim"].concat().split(' ').collect::<Vec<_>>());
    assert!(notes.contains("kim drops") && notes.contains("--tokenizer words"), "{notes}");
    for (word, part) in [("", "expected a word"), ("<pad>", "does not know"), ("<unk>", "does not know")] {
        let output = start(&place, "fasttext", &["neighbours", "--run", "run", word], "");
        common::one_error(&output, 1, &[part]);
    }
    let swapped: String = (0..20).map(|i| format!("text {i},{}\n", i % 2)).collect();
    fs::write(place.path().join("other/train.csv"), swapped).unwrap();
    let options = options.replace("--data-dir .", "--data-dir other").replace("run", "chosen");
    refused(&place, "fasttext", &options, 1, &["train.csv", "20 different labels", "--label-column"]);
    refused(&place, "fasttext", &format!("{options} --label-column mood"), 1, &["no column mood"]);
}

#[test]
fn a_tagger_takes_the_size_of_its_vectors_and_writes_what_it_can_read() {
    let place = tempdir().unwrap();
    let sentences = "Anna B-PER\nKeller I-PER\nsang O\n. O\n\nOslo B-LOC\nslept O\n. O\n\n".repeat(20);
    fs::write(place.path().join("train.txt"), sentences).unwrap();
    fs::write(place.path().join("vectors.vec"), "Anna 0.1 0.2 0.3 0.4\nOslo 1 2 3 4\n\n").unwrap();
    let options =
        "--dataset conll --data-dir . --vectors vectors.vec --hidden 8 --epochs 2 --quiet --out run";
    noted(&place, "birnn", &options.split(' ').collect::<Vec<_>>());
    let weights = safetensors::load(place.path().join("run/model.safetensors"), &Device::Cpu).unwrap();
    assert_eq!(weights["embedding.weight"].dim(1).unwrap(), 4);
    let (said, notes) = noted(&place, "birnn", &["predict", "--run", "run", "Anna slept, \"Zoe\" sang."]);
    let words: Vec<&str> = said.lines().filter_map(|line| Some(line.split_once('\t')?.0)).collect();
    assert_eq!(words, ["Anna", "slept", ",", "\"", "Zoe", "\"", "sang", "."]);
    assert!(notes.contains("4 of 8 words are unknown"), "{notes}");
    fs::create_dir(place.path().join("predicted")).unwrap();
    fs::write(place.path().join("predicted/test.txt"), said).unwrap();
    done(&place, "birnn", "eval --run run --data-dir predicted");
}

#[test]
fn vectors_that_do_not_fit_the_model_are_refused() {
    let place = tempdir().unwrap();
    with_vectors(place.path());
    refused(
        &place,
        "textcnn",
        &format!("{TINY} --variant static"),
        1,
        &["--variant", "all but rand", "--vectors"],
    );
    let with = |file: &str| format!("{} --vectors {file}", TINY.replace("--embedding 3", "--embedding 5"));
    refused(&place, "fasttext", &with("none.txt").replace("--filters 8", ""), 1, &["none.txt"]);
    refused(&place, "textcnn", &with("vectors.txt"), 1, &["vectors.txt", "--embedding", "3", "5"]);
    fs::write(place.path().join("capitals.txt"), "GOOD 1 2 3\n").unwrap();
    let options = with("capitals.txt").replace("5 --filters 8", "3 --out run");
    let (_, notes) = noted(&place, "fasttext", &options.split_whitespace().collect::<Vec<_>>());
    assert!(notes.contains("vectors of 0 of ") && notes.contains("--lower-case"), "{notes}");
    fs::write(place.path().join("broken.txt"), "good 1 2 3\nbad 1 2\n").unwrap();
    refused(&place, "textcnn", &with("broken.txt"), 1, &["broken.txt", "line 2"]);
}

#[test]
fn a_recipe_overrides_defaults_of_shared_options() {
    let settings = |binary| config(&trained(binary))["settings"].clone();
    let (lstm, birnn) = (settings("lstm"), settings("birnn"));
    assert_eq!((&lstm["min_count"], &birnn["min_count"]), (&1.into(), &2.into()));
    assert_eq!((&lstm["batch_size"], &birnn["batch_size"]), (&50.into(), &32.into()));
    assert_eq!((&lstm["learning_rate"], &birnn["learning_rate"]), (&2e-3.into(), &2e-3.into()));
}

#[test]
fn eval_repeats_the_result_of_training() {
    for binary in ["lstm", "birnn"] {
        let run = trained(binary);
        let said = done(run.parent().unwrap(), binary, "eval --run run");
        let last = metrics(&run).pop().unwrap();
        let key = if binary == "lstm" { "test_accuracy" } else { "test_f1" };
        let value = format!("{:.2}%", 100.0 * last[key].as_f64().unwrap());
        assert!(said.contains(&value), "{value} is not in {said}");
    }
}

#[test]
fn tags_are_printed_as_columns_into_a_pipe() {
    let run = trained("birnn");
    let output =
        start(run.parent().unwrap(), "birnn", &["predict", "--run", "run"], "Rose walked home\n\nParis\n");
    let said = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines.len(), 7, "{said}");
    assert!(lines[0].starts_with("Rose\t") && lines[3].is_empty() && lines[5].starts_with("Paris\t"));
}

#[test]
fn context_on_the_right_improves_f1_by_at_least_five_points() {
    let place = tempdir().unwrap();
    let f1 = |direction: &str| {
        let out = place.path().join(direction);
        let options = "--hidden 32 --embedding 32 --epochs 3 --quiet";
        done(place.path(), "birnn", &format!("{options} --direction {direction} --out {}", out.display()));
        metrics(&out).pop().unwrap()["test_f1"].as_f64().unwrap()
    };
    let (both, forward) = (f1("both"), f1("forward"));
    assert!(both > forward + 0.05, "both {both}, forward {forward}");
}

#[test]
fn a_killed_run_resumes_to_the_same_model_with_any_number_of_threads() {
    let place = tempdir().unwrap();
    for (binary, options) in [
        ("gru", "--hidden 16 --bidirectional --layers 2"),
        ("birnn", "--hidden 16 --layers 2"),
        ("fasttext", "--buckets 1000 --char-ngrams 3-4"),
        ("textcnn", "--filters 8 --optimizer adadelta --learning-rate 1"),
    ] {
        let whole = place.path().join(format!("{binary}-whole"));
        let cut = place.path().join(format!("{binary}-cut"));
        let common = format!("{SMALL} {options} --checkpoint-every 5");
        done(place.path(), binary, &format!("{common} --threads 2 --out {}", whole.display()));
        let arguments = format!("{common} --threads 1 --out {}", cut.display());
        killed(&place, binary, &arguments, || cut.join("checkpoint.safetensors").exists());
        done(place.path(), binary, &format!("--threads 1 --quiet --resume {}", cut.display()));
        assert!(model(&whole) == model(&cut), "{binary}");
    }
}

#[test]
fn cross_validation_trains_a_model_per_fold_and_reports_the_mean() {
    let place = tempdir().unwrap();
    let rows: String = (0..40).map(|i| format!("{},word{} tail\n", ["no", "yes"][i % 2], i % 2)).collect();
    // No test split is needed.
    fs::write(place.path().join("train.csv"), format!("label,text\n{rows}")).unwrap();
    let common = "--dataset csv --data-dir . --hidden 8 --embedding 8 --epochs 6 --batch-size 8 --quiet";
    let said = done(place.path(), "gru", &format!("{common} --folds 4 --out run"));
    assert!(said.contains("over 4 folds"), "{said}");
    let last = metrics(&place.path().join("run")).pop().unwrap();
    let folds: Vec<f64> = serde_json::from_value(last["folds"].clone()).unwrap();
    let mean = last["test_accuracy"].as_f64().unwrap();
    assert!((folds.iter().sum::<f64>() / 4.0 - mean).abs() < 1e-12 && folds.len() == 4);
    refused(place.path(), "gru", "predict --run run yes", 1, &["fold-1"]);
    refused(place.path(), "gru", "eval --run run/fold-1", 1, &["cross-validation", "--data-dir"]);
    let output = start(place.path(), "gru", &["predict", "--run", "run/fold-1", "word1 tail"], "");
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn the_gradient_flow_is_plotted() {
    let place = tempdir().unwrap();
    let said = done(place.path(), "lstm", "--gradient-flow --out run");
    assert_eq!(said.lines().count(), 5, "{said}");
    assert!(said.starts_with("gradient flow: classify sequences of 30 symbols"), "{said}");
    let picture = fs::read_to_string(place.path().join("run/gradient-flow.svg")).unwrap();
    assert!(["rnn", "gru", "lstm"].iter().all(|name| picture.contains(name)));
    for command in ["eval", "predict good", "neighbours good"] {
        let said = "run: this run has no model: it plots the gradient flow";
        refused(place.path(), "lstm", &format!("{command} --run run"), 1, &[said]);
    }
    refused(
        place.path(),
        "lstm",
        "--gradient-flow --forget-bias 1",
        2,
        &["--forget-bias", "--gradient-flow"],
    );
    refused(
        place.path(),
        "rnn",
        "--gradient-flow --activation relu",
        2,
        &["--activation", "--gradient-flow"],
    );
}

#[test]
fn options_that_the_model_does_not_use_are_refused() {
    let place = tempdir().unwrap();
    let said = ["--buckets: has no effect without n-grams"];
    refused(place.path(), "fasttext", "--word-ngrams 1 --buckets 50", 2, &said);
    done(
        place.path(),
        "fasttext",
        &format!("{SMALL} --word-ngrams 1 --char-ngrams 3-3 --buckets 50 --out run"),
    );
}

#[test]
fn presets_and_defaults_adapt_to_a_few_sentences() {
    let place = tempdir().unwrap();
    let rows: String = (0..6).map(|i| format!("{},word{i} tail{i}\n", ["no", "yes"][i % 2])).collect();
    for split in ["train", "test"] {
        fs::write(place.path().join(format!("{split}.csv")), format!("label,text\n{rows}")).unwrap();
    }
    let kim =
        "--preset kim --dataset csv --data-dir . --filters 2 --embedding 4 --epochs 1 --quiet --out kim";
    common::noted(&place, "textcnn", kim, "test sentences that also occur in the training part: 5 of 6");

    // Other sentences of the same words.
    for (split, lines) in [("train", ["Name# B-PER", "word# O"]), ("test", ["word# O", "Name# B-PER"])] {
        let sentence = |i: usize| lines.join("\n").replace('#', &i.to_string()) + "\n\n";
        let sentences: String = (0..6).map(sentence).collect();
        fs::write(place.path().join(format!("{split}.txt")), sentences).unwrap();
    }
    let options = "--dataset conll --data-dir . --embedding 4 --hidden 4 --epochs 1 --quiet";
    let note = "nothing in the training part occurs 2 times, so the model knows all of it";
    common::noted(&place, "birnn", &format!("{options} --out run"), note);
    refused(place.path(), "birnn", &format!("{options} --min-count 2"), 1, &["--min-count 2: nothing"]);
}

#[test]
fn one_bad_line_among_many_is_named_and_the_others_are_answered() {
    let run = trained("lstm");
    let place = tempdir().unwrap();
    let lines = ["カフェ was good\n".as_bytes(), b"caf\xe9 was bad\n", b"it was good\n"].concat();
    fs::write(place.path().join("lines"), lines).unwrap();
    let run = run.to_str().unwrap();
    let output = start(place.path(), "lstm", &["predict", "--run", run, "--file", "lines"], "");
    let [said, errors] = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(said.contains("カフェ was good") && said.contains("it was good"), "{said}");
    assert!(errors.contains("error: lines: line 2"), "{errors}");
}

#[test]
fn a_confusion_matrix_of_very_many_classes_is_not_drawn() {
    let place = tempfile::tempdir().unwrap();
    let rows: String = (0..603).map(|i| format!("c{},word {i}\n", i % 201)).collect();
    fs::write(place.path().join("train.csv"), format!("label,text\n{rows}")).unwrap();
    let arguments = "--dataset csv --data-dir . --epochs 1 --filters 2 --embedding 4 --out run";
    let output = start(place.path(), "textcnn", &arguments.split(' ').collect::<Vec<_>>(), "");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && said.contains("no confusion matrix is drawn"), "{said}");
    assert!(!place.path().join("run/confusion.svg").exists());
}

#[test]
fn bad_input_gives_a_one_line_error() {
    let place = tempdir().unwrap();
    let at = place.path();
    refused(at, "lstm", "--dataset digits", 1, &["digits", "not known"]);
    refused(at, "lstm", "--dataset mr", 1, &["mr", "--data-dir"]);
    refused(at, "lstm", "--folds 1", 2, &["--folds"]);
    refused(at, "lstm", "--pool sum", 2, &["--pool", "last"]);
    refused(at, "lstm", "--hidden 0", 2, &["--hidden"]);
    refused(at, "birnn", "--direction back", 2, &["--direction", "forward"]);
    refused(at, "gru", "predict nothing", 1, &["found no run"]);
    fs::write(at.join("train.txt"), "Rose\tB-PER\nfell\n").unwrap();
    refused(at, "birnn", "--dataset conll --data-dir .", 1, &["train.txt", "2"]);
    let run = trained("lstm");
    // A mistyped run folder is not a sentence.
    for path in ["../nowhere", "/tmp/none/runs/lstm/8", "..\\runs\\lstm\\8", "."] {
        let predict = format!("predict --run {} {path}", run.display());
        refused(at, "lstm", &predict, 1, &[path, "no such run or file", "--run RUN", "--file"]);
    }
    for (file, said) in [("vocabulary.txt", "vocabulary.txt"), ("config.json", "config.json")] {
        let copy = tempdir().unwrap();
        for name in ["config.json", "model.safetensors", "vocabulary.txt"] {
            fs::copy(run.join(name), copy.path().join(name)).unwrap();
        }
        fs::write(copy.path().join(file), "damaged").unwrap();
        refused(at, "lstm", &format!("predict --run {} good", copy.path().display()), 1, &[said]);
    }
}

#[test]
fn the_first_interrupt_stops_the_gradient_flow() {
    let place = tempdir().unwrap();
    let mut child = command(&place, "lstm").args(["--gradient-flow"]).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    lines.next().unwrap();
    let interrupt = Command::new("kill").args(["-s", "INT", &child.id().to_string()]).status();
    assert!(interrupt.unwrap().success());
    assert_eq!(lines.last().unwrap(), "interrupted; this plot can't be resumed");
    assert_eq!(child.wait().unwrap().code(), Some(130));
}

#[test]
fn a_signal_ends_the_preparation_at_once() {
    let place = tempdir().unwrap();
    with_vectors(place.path());
    assert!(Command::new("mkfifo").arg(place.path().join("pipe")).status().unwrap().success());
    let options = "--dataset csv --data-dir . --embedding 3 --vectors pipe --out run";
    let mut child = command(&place, "fasttext").args(options.split(' ')).spawn().unwrap();
    // This waits for the reader, which then waits for vectors.
    let _writer = fs::File::options().write(true).open(place.path().join("pipe")).unwrap();
    assert!(Command::new("kill").args(["-s", "TERM", &child.id().to_string()]).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(143));
    assert!(!place.path().join("run").exists());
}

#[test]
fn vectors_are_read_from_a_pipe() {
    let place = tempdir().unwrap();
    with_vectors(place.path());
    let vectors = fs::read_to_string(place.path().join("vectors.txt")).unwrap();
    let options =
        "--dataset csv --data-dir . --embedding 3 --epochs 1 --quiet --vectors /dev/stdin --out run";
    let output = start(&place, "fasttext", &options.split(' ').collect::<Vec<_>>(), &vectors);
    assert!(output.status.success(), "{output:?}");
    assert!(place.path().join("run/vectors.txt").exists());
}

#[test]
fn texts_without_words_are_counted_and_refused_only_if_all_are() {
    let place = tempdir().unwrap();
    let write = |texts: [&str; 2]| {
        let rows: String = (0..20).map(|i| format!("{},{}\n", i % 2, texts[i % 2])).collect();
        fs::write(place.path().join("train.csv"), format!("label,text\n{rows}1,...\n")).unwrap();
    };
    let options = "--dataset csv --data-dir . --embedding 3 --epochs 1 --quiet --out run";
    write(["...", "---"]);
    refused(&place, "fasttext", options, 1, &["no words", "tokenizer words"]);
    write(["bad", "😀"]);
    let (_, notes) = noted(&place, "fasttext", &options.split(' ').collect::<Vec<_>>());
    assert!(notes.contains("1 of 21 texts has no words"), "{notes}");
    assert!(fs::read_to_string(place.path().join("run/vocabulary.txt")).unwrap().contains("😀"));
}

#[test]
fn each_line_of_standard_input_is_answered_as_it_comes() {
    let run = trained("lstm");
    let mut child =
        command(&run, "lstm").args(["predict", "--run", "."]).stdin(Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    for line in ["it was good", "it was dull"] {
        input.write_all(format!("{line}\n").as_bytes()).unwrap();
        assert!(output.next().unwrap().ends_with(line));
    }
    input.write_all(b"caf\xe9\nit was not good\n").unwrap();
    drop(input);
    assert!(output.next().unwrap().ends_with("caf\u{e9}"));
    assert!(output.next().unwrap().ends_with("it was not good"));
    let rest = child.wait_with_output().unwrap();
    let notes = String::from_utf8(rest.stderr).unwrap();
    assert!(rest.status.success() && notes.contains("standard input: not UTF-8 at line 3"), "{notes}");
}

#[test]
fn files_are_decoded_as_standard_input_is_and_binary_ones_are_refused() {
    let place = tempdir().unwrap();
    let run = trained("lstm");
    let run = run.to_str().unwrap();
    let dashed = start(&place, "lstm", &["predict", "--run", run, "--file", "-"], "it was good\n");
    assert!(dashed.status.success() && dashed.stdout.ends_with(b": it was good\n"), "{dashed:?}");
    fs::write(place.path().join("latin.txt"), b"it was good\r\ncaf\xe9\r\n").unwrap();
    let (said, notes) = noted(&place, "lstm", &["predict", "--run", run, "--file", "latin.txt"]);
    assert!(said.ends_with(": caf\u{e9}\n") && said.lines().count() == 2, "{said}");
    assert!(notes.contains("latin.txt: not UTF-8 at line 2, so it is read as Windows-1252"), "{notes}");
    fs::write(place.path().join("image"), b"\x89PNG\r\n\x1a\n\0\0").unwrap();
    refused(&place, "lstm", &format!("predict --run {run} --file image"), 1, &["image: is a PNG image"]);
}

#[test]
fn what_a_fold_lacks_is_known_before_the_first_one_is_trained() {
    let place = tempdir().unwrap();
    with_vectors(place.path());
    let common = "--dataset csv --data-dir . --quiet --out run";
    refused(&place, "gru", &format!("{common} --folds 200"), 1, &["--folds 200", "121 sentences"]);
    refused(&place, "gru", &format!("{common} --folds 3 --min-count 500"), 1, &["--min-count 500"]);
    refused(&place, "gru", &format!("{common} --min-count 500"), 1, &["--min-count 500"]);
}

#[test]
fn neighbours_need_a_word_that_the_model_knows() {
    let run = trained("lstm");
    refused(&run, "lstm", "neighbours --run .", 1, &["found no word"]);
    refused(&run, "lstm", "neighbours --run . <pad>", 1, &["pad", "does not know"]);
    let output = start(&run, "lstm", &["neighbours", "--run", ".", "good zzz dull"], "");
    let said = String::from_utf8_lossy(&output.stdout);
    let map = done(&run, "lab", "embeddings .");
    assert!(map.lines().count() == 21 && map.ends_with("words.svg\n"), "{map}");
    assert!(said.starts_with("good: ") && said.lines().nth(1).unwrap().starts_with("dull: "), "{said}");
    one_error(&output, 1, &["zzz: this run's model does not know the word"]);
}
