//! The binary char_lm as a process: training, sampling, scoring, showing cells; and the reading of texts.

#![cfg(unix)]

mod common;

use candle_textbook::data::{Level, TextStream, TokenWindows};
use common::{done, killed, metrics, model, noted, refused, start};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::OnceLock;
use tempfile::{TempDir, tempdir};

const NAME: &str = "char_lm";

/// A text in which each character determines the next.
fn counting(lines: usize) -> String {
    "one two three four five six\n".repeat(lines)
}

const SMALL: &str =
    "--hidden 24 --embedding 12 --window 20 --batch-size 8 --learning-rate 1e-2 --epochs 3 --quiet";

/// A small finished run on [`counting`]; tests must not change it.
fn trained() -> PathBuf {
    static PLACE: OnceLock<TempDir> = OnceLock::new();
    let place = PLACE.get_or_init(|| {
        let place = tempdir().unwrap();
        fs::write(place.path().join("text"), counting(800)).unwrap();
        done(place.path(), NAME, &format!("{SMALL} --text text --out run"));
        place
    });
    place.path().join("run")
}

#[test]
fn a_text_is_learned_and_losses_are_reported_in_all_units() {
    let lines = metrics(&trained());
    let (first, last) = (&lines[0], &lines[3]);
    let number = |line: &Value, name: &str| line[name].as_f64().unwrap_or_else(|| panic!("{name}: {line}"));
    assert!(number(first, "val_loss") > number(last, "val_loss") && number(last, "test_loss") < 0.1);
    for part in ["train", "val", "test"] {
        let loss = number(last, &format!("{part}_loss"));
        assert!((number(last, &format!("{part}_bits")) * std::f64::consts::LN_2 - loss).abs() < 1e-9);
        assert!((number(last, &format!("{part}_perplexity")).ln() - loss).abs() < 1e-9);
    }
    assert!(number(first, "largest_gradient_norm") >= number(first, "gradient_norm"));
    assert!(number(first, "gradient_norm") > 0.0);
    for file in ["config.json", "model.safetensors", "vocabulary.txt", "curves.svg"] {
        assert!(trained().join(file).exists(), "{file}");
    }
    let place = trained();
    let said = done(place.parent().unwrap(), NAME, "eval --run run");
    assert!(said.contains(&format!("{:.4} nats per character", number(last, "test_loss"))), "{said}");
    // The text itself is tested like the run, on its last part.
    assert_eq!(done(place.parent().unwrap(), NAME, "eval --run run --text text"), said);
    let other = tempdir().unwrap();
    fs::write(other.path().join("other"), counting(90)).unwrap();
    let arguments = format!("eval --run {} --text other", place.display());
    assert!(done(&other, NAME, &arguments).contains("nats per character"));
}

/// The text that a run generates after two lines and a word of [`counting`].
#[track_caller]
fn sampled(run: &Path, options: &str) -> String {
    let prompt = format!("{}one", counting(2));
    let mut arguments = vec!["sample", "--run", run.to_str().unwrap(), "--prompt", &prompt];
    arguments.extend(options.split_whitespace());
    let output = start(run, NAME, &arguments, "");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().strip_prefix(&prompt).unwrap().to_string()
}

#[test]
fn sampling_continues_the_prompt_and_repeats_with_the_seed() {
    let run = trained();
    let greedy = sampled(&run, "--length 40 --temperature 0");
    assert_eq!(greedy, format!("{}\n", &counting(2)[3..43]));
    let hot = |seed: u32| sampled(&run, &format!("--length 60 --temperature 3 --seed {seed}"));
    assert_eq!(hot(1), hot(1));
    assert_ne!(hot(1), hot(2));
    assert_eq!(sampled(&run, "--length 40 --temperature 3 --top-k 1"), greedy);
    assert_eq!(sampled(&run, "--length 40 --temperature 1 --top-p 0.2"), greedy);
    assert_eq!(sampled(&run, "--temperature 0 --stop ive"), " two three four f\n");
    assert_eq!(sampled(&run, "--length 0"), "\n");
    let unprompted = done(&run, NAME, "sample --run . --length 9");
    assert_eq!(unprompted.chars().count(), 10);
}

#[test]
fn a_line_like_the_text_scores_higher_than_another() {
    let run = trained();
    let place = run.parent().unwrap();
    let output = start(
        place,
        NAME,
        &["score", "--run", "run"],
        "one two three four five six\none two four three five six\n\n",
    );
    let said = String::from_utf8(output.stdout).unwrap();
    let row = |line: &str| line.split('\t').take(3).map(|x| x.parse().unwrap()).collect::<Vec<f64>>();
    let rows: Vec<Vec<f64>> = said.lines().skip(1).map(row).collect();
    assert_eq!(rows.len(), 4, "{said}");
    assert!(rows[0][0] > rows[1][0] + 5.0 && rows[0][2] < rows[1][2], "{said}");
    // The mean is over the line and its end; the last row is the total.
    assert!((rows[0][0] / -28.0 - rows[0][1]).abs() < 1e-3, "{said}");
    assert!((rows[0][0] + rows[1][0] + rows[2][0] - rows[3][0]).abs() < 5e-3, "{said}");
    fs::write(place.join("lines"), "one two\n").unwrap();
    assert_eq!(done(place, NAME, "score --run run --file lines").lines().count(), 3);
}

#[test]
fn unknown_characters_score_no_better_than_known_ones_and_are_counted() {
    let place = tempdir().unwrap();
    let run = trained();
    let run = run.to_str().unwrap();
    let says = |arguments: &[&str], input: &str| {
        let output = start(&place, NAME, arguments, input);
        assert!(output.status.success(), "{output:?}");
        [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    };
    let [said, notes] = says(&["score", "--run", run], "日本\noe\n");
    assert!(notes.contains("2 of 4 characters are unknown to this model"), "{notes}");
    let score =
        |line: usize| said.lines().nth(line + 1).unwrap().split('\t').next().unwrap().parse::<f64>().unwrap();
    assert!(score(0) < score(1), "{said}");
    let [_, notes] = says(&["sample", "--run", run, "--prompt", "日one", "--length", "1"], "");
    assert!(notes.contains("1 of 4 characters is unknown"), "{notes}");
    fs::write(place.path().join("input.txt"), format!("日{}", counting(3))).unwrap();
    let arguments = ["eval", "--run", run, "--dataset", "tiny-shakespeare", "--data-dir", "."];
    let [said, notes] = says(&arguments, "");
    assert!(
        said.contains("nats per character") && notes.contains("1 of 85 characters is unknown"),
        "{notes}"
    );
    refused(&place, NAME, &format!("sample --run {run} --top-p 1.5"), 2, &["--top-p", "0 to 1"]);
}

#[test]
fn unknown_characters_of_the_test_part_are_noted_after_training() {
    let place = tempdir().unwrap();
    fs::write(place.path().join("text"), format!("{}日本", counting(100))).unwrap();
    let note = "2 of 140 characters are unknown to this model";
    let said = noted(&place, NAME, &format!("{SMALL} --text text --out run"), note);
    assert!(said.contains("test  "), "{said}");
    noted(&place, NAME, "eval --run run", note);
}

#[test]
fn lines_are_scored_as_training_reads_them() {
    let place = tempdir().unwrap();
    let run = trained();
    fs::write(place.path().join("latin"), b"caf\xe9\r\none\r\n").unwrap();
    let arguments = ["score", "--run", run.to_str().unwrap(), "--file", "latin"];
    let output = start(&place, NAME, &arguments, "");
    let said = String::from_utf8(output.stdout).unwrap();
    // Each line has its letters and one end.
    assert!(said.contains("\tcafé\n") && said.contains("(all 9 tokens)"), "{said}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("Windows-1252"));
    let lines = String::from_utf8(start(&place, NAME, &arguments[..3], "one\r\n").stdout).unwrap();
    assert!(lines.contains("(all 4 tokens)"), "{lines}");
    let output = start(&place, NAME, &["--text", "/dev/stdin"], &counting(100));
    common::one_error(&output, 1, &["/dev/stdin", "is a pipe", "expected a file"]);
}

#[test]
fn line_ends_of_windows_are_one_character() {
    let (place, run) = (tempdir().unwrap(), trained());
    let run = run.to_str().unwrap();
    let eval = |end: &str| {
        fs::write(place.path().join("text"), counting(90).replace('\n', end)).unwrap();
        done(&place, NAME, &format!("eval --run {run} --text text"))
    };
    assert_eq!(eval("\r\n"), eval("\n"));
    let sampled = |prompt: &str| {
        let output = start(&place, NAME, &["sample", "--run", run, "--length", "9", "--prompt", prompt], "");
        assert!(output.stderr.is_empty(), "{output:?}");
        String::from_utf8(output.stdout).unwrap().strip_prefix(prompt).unwrap().to_string()
    };
    assert_eq!(sampled("one two\r\n"), sampled("one two\n"));
}

#[test]
fn the_page_of_cells_contains_the_text() {
    let run = trained();
    let place = run.parent().unwrap();
    let Output { stdout, stderr, .. } =
        start(place, NAME, &["neurons", "--run", "run", "--file", "text", "--length", "50"], "");
    assert_eq!(String::from_utf8(stderr).unwrap(), "note: text: the first 50 of 22400 tokens\n");
    let page = fs::read_to_string(place.join(String::from_utf8(stdout).unwrap().trim())).unwrap();
    let unknown = start(place, NAME, &["neurons", "--run", "run", "a\u{e9}"], "");
    let notes = String::from_utf8(unknown.stderr).unwrap();
    assert!(notes.contains("characters are unknown") || notes.contains("characters is unknown"), "{notes}");
    assert!(page.contains("layer 2, cell 24 (") && page.contains(r#"["o","n","e"," ","t""#), "{page}");
}

#[test]
fn words_are_learned_with_line_ends() {
    let place = tempdir().unwrap();
    fs::write(place.path().join("text"), counting(1500)).unwrap();
    done(
        place.path(),
        NAME,
        &format!("{} --level word --cell gru --tie-weights --text text --out run", SMALL.replace("12", "24")),
    );
    let greedy = sampled(&place.path().join("run"), "--length 8 --temperature 0");
    assert_eq!(greedy, " two three four five six\none two\n");
    let blank = ["sample", "--run", "run", "--prompt", "one ", "--length", "1", "--temperature", "0"];
    assert_eq!(start(&place, NAME, &blank, "").stdout, b"one two\n");
    assert!(done(place.path(), NAME, "eval --run run").contains("nats per word"));
    // A line of blanks has no words; only its end is scored.
    let said = String::from_utf8(start(&place, NAME, &["score", "--run", "run"], "\n \t\n").stdout).unwrap();
    let lines: Vec<Vec<&str>> = said.lines().skip(1).map(|line| line.split('\t').collect()).collect();
    assert!(lines.len() == 3 && lines[0][..3] == lines[1][..3] && lines[2][3] == "(all 2 tokens)", "{said}");
    fs::write(place.path().join("zero"), "one\ntwo\0\n").unwrap();
    refused(&place, NAME, "score --run run --file zero", 1, &["zero: line 2", "a zero byte"]);
}

#[test]
fn a_killed_run_resumes_to_the_same_bits() {
    let place = tempdir().unwrap();
    fs::write(place.path().join("text"), counting(300)).unwrap();
    let options = format!("{SMALL} --text text --dropout 0.2 --checkpoint-every 7");
    done(place.path(), NAME, &format!("{options} --out whole --threads 1"));
    killed(&place, NAME, &format!("{options} --out killed --threads 2"), || {
        place.path().join("killed/checkpoint.safetensors").exists()
    });
    done(place.path(), NAME, "--resume killed --quiet");
    assert!(model(&place.path().join("whole")) == model(&place.path().join("killed")));
}

#[test]
fn a_run_with_an_infinite_perplexity_resumes() {
    let place = tempdir().unwrap();
    fs::write(place.path().join("text"), counting(300)).unwrap();
    let wild =
        "--optimizer sgd --learning-rate 1000 --schedule constant --epochs 1 --keep-checkpoint --quiet";
    let small = "--hidden 24 --embedding 12 --window 20 --batch-size 8";
    done(&place, NAME, &format!("{small} {wild} --text text --out run"));
    let run = place.path().join("run");
    assert!(metrics(&run)[0]["val_perplexity"].is_null());
    done(&place, NAME, "--resume run --epochs 3 --quiet");
    assert_eq!(metrics(&run).len(), 4);
}

#[test]
fn resuming_after_the_text_has_changed_is_refused() {
    let place = tempdir().unwrap();
    // With the same sizes, so that only the fingerprint can tell.
    fs::write(place.path().join("text"), counting(300)).unwrap();
    done(&place, NAME, &format!("{SMALL} --text text --out file"));
    fs::write(place.path().join("text"), counting(300).replace("one", "eno")).unwrap();
    refused(&place, NAME, "--resume file", 1, &["file: cannot resume: the text has changed"]);
}

#[test]
fn a_text_that_has_moved_is_named_again_on_resuming() {
    let place = tempdir().unwrap();
    fs::write(place.path().join("text"), counting(300)).unwrap();
    done(&place, NAME, &format!("{SMALL} --text text --out file"));
    fs::rename(place.path().join("text"), place.path().join("moved")).unwrap();
    refused(&place, NAME, "--resume file", 1, &["recorded in file/config.json", "--text"]);
    done(&place, NAME, "--resume file --text moved --quiet");
    fs::write(place.path().join("moved"), counting(299)).unwrap();
    refused(&place, NAME, "--resume file --text moved", 1, &["file: cannot resume: the text has changed"]);
    refused(&place, NAME, "--resume file --data-dir .", 1, &["started without --data-dir and", "with .:"]);
}

#[test]
fn binary_and_short_texts_are_refused() {
    let place = tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| fs::write(place.path().join(name), bytes).unwrap();
    write("empty", b"");
    write("blank", b" \n");
    write("short", b"to be or not to be");
    write("binary", b"PK\x03\x04\x00\x00");
    write("noise", b"\x90\x01\x02 text");
    let at = |text: &str| format!("{SMALL} --text {text}");
    refused(place.path(), NAME, &at("none"), 1, &["none", "can't be read"]);
    refused(place.path(), NAME, &at("."), 1, &["directory"]);
    refused(place.path(), NAME, &at("empty"), 1, &["empty: is empty"]);
    refused(
        place.path(),
        NAME,
        &format!("{} --level word", at("blank")),
        1,
        &["--window 20", "training part"],
    );
    refused(place.path(), NAME, &at("short"), 1, &["--window 20", "only 16 tokens"]);
    refused(place.path(), NAME, &at("binary"), 1, &["binary: is a zip archive", "unpack it"]);
    refused(
        place.path(),
        NAME,
        &at("noise"),
        1,
        &["noise: is binary", "line 1 is not UTF-8", "control character"],
    );
    refused(
        place.path(),
        NAME,
        &format!("{} --validation-fraction 0.6 --test-fraction 0.4", at("short")),
        1,
        &["nothing"],
    );
    refused(place.path(), NAME, "--tie-weights --hidden 5", 1, &["size 128 and 5 hidden"]);
    refused(place.path(), NAME, "--validation 5", 2, &["--validation"]);
    refused(place.path(), NAME, "--dataset poems", 1, &["poems", "--text"]);
    refused(place.path(), NAME, "--data-dir poems", 1, &["source: is built in", "--text FILE"]);
    refused(place.path(), NAME, "--text a --dataset source", 2, &["--text"]);
    refused(place.path(), NAME, "sample", 1, &["found no run"]);
    refused(place.path(), NAME, "sample --temperature=-1", 2, &["temperature"]);
    refused(place.path(), NAME, "sample --top-p 1.5", 2, &["--top-p"]);
    refused(place.path(), NAME, &format!("{SMALL} --min-count 999999"), 1, &["--min-count 999999"]);
}

/// The tokens of a text from index `from` on.
fn tokens(text: &TextStream, from: u64) -> Vec<String> {
    let (mut tokens, mut token, mut all) = (text.read(from), String::new(), vec![]);
    while tokens.next_into(&mut token).unwrap() {
        all.push(token.clone());
    }
    all
}

#[test]
fn files_in_any_encoding_are_read_from_any_token() {
    let place = tempdir().unwrap();
    let path = place.path().join("text");
    // Longer than the read buffer and than the distance between two entries of the index.
    let text: String = (0..60_000).map(|i| ["a", "é", "\n", "€ b", " ", "𝛼"][(i * i + i / 6) % 6]).collect();
    let strings = |pieces: &[&str]| -> Vec<String> { pieces.iter().map(|piece| piece.to_string()).collect() };
    for (mark, end) in [("", "\n"), ("\u{feff}", "\n"), ("", "\r\n"), ("", "\r")] {
        fs::write(&path, format!("{mark}{}", text.replace('\n', end))).unwrap();
        let by_character: Vec<String> = text.chars().map(String::from).collect();
        let ends: Vec<&str> = text.split_inclusive('\n').collect();
        let by_word: Vec<String> = ends
            .iter()
            .flat_map(|line| {
                let end = line.ends_with('\n').then_some("<eos>");
                line.split_whitespace().chain(end).map(String::from).collect::<Vec<_>>()
            })
            .collect();
        for (level, expected) in [(Level::Char, by_character), (Level::Word, by_word)] {
            let text = TextStream::open(&path, level).unwrap();
            assert_eq!(text.len(), expected.len() as u64);
            for from in [0, 1, 16_383, 16_384, 16_385, expected.len() - 1, expected.len()] {
                assert!(tokens(&text, from as u64) == expected[from..], "from {from}");
            }
        }
    }
    fs::write(&path, b"caf\xe9 \x80\n").unwrap();
    let text = TextStream::open(&path, Level::Word).unwrap();
    assert_eq!(tokens(&text, 0), strings(&["café", "€", "<eos>"]));
    assert!(text.notes[0].contains("line 1") && text.notes[0].contains("Windows-1252"), "{:?}", text.notes);
}

#[test]
fn encoding_a_short_text_gives_the_tokens_of_a_stream() {
    for level in [Level::Char, Level::Word] {
        for text in ["one two", " a\t b\u{a0}c \n\n d\r\ne\rf\r", "\n", "\u{feff}é 𝛼\u{2028}x", "a\n", " \n "]
        {
            let long = TextStream::from_memory("text", text, level).unwrap();
            let vocabulary = long.vocabulary(0..long.len(), 1, None).unwrap();
            let ids = level.encode(text, &vocabulary).unwrap();
            let found: Vec<&str> = ids.iter().map(|&id| vocabulary.token(id).unwrap()).collect();
            assert_eq!(found, tokens(&long, 0), "{text:?}");
            assert!(level.encode("a\0", &vocabulary).is_err());
            assert!(level.encode("", &vocabulary).unwrap().is_empty());
            assert_eq!(level.encode(" \t", &vocabulary).unwrap().is_empty(), level == Level::Word);
        }
    }
}

#[test]
fn streams_resume_where_they_stopped() {
    let text = TextStream::from_memory("text", "abcdefghijk", Level::Char).unwrap();
    let vocabulary = text.vocabulary(0..11, 1, None).unwrap();
    let written = |ids: &[u32]| ids.iter().map(|&id| vocabulary.token(id).unwrap()).collect::<String>();
    let mut streams = TokenWindows::new(&text, &vocabulary, 0..11, 3, 0).unwrap();
    let first = streams.next_window(2).unwrap().unwrap();
    assert_eq!((written(&first.inputs), written(&first.targets)), ("adgbeh".into(), "behcfi".into()));
    let rest = streams.next_window(2).unwrap().unwrap();
    assert_eq!((written(&rest.inputs), written(&rest.targets)), ("cfi".into(), "dgj".into()));
    assert_eq!(streams.next_window(2).unwrap(), None);
    let mut later = TokenWindows::new(&text, &vocabulary, 0..11, 3, 2).unwrap();
    assert_eq!(later.next_window(5).unwrap().unwrap(), rest);
    // The vocabulary covers the training part only.
    assert_eq!(text.vocabulary(0..2, 1, None).unwrap().len(), 4);
    assert_eq!(text.vocabulary(0..11, 2, None).unwrap().len(), 2);
    assert_eq!(text.vocabulary(0..11, 1, Some(3)).unwrap().len(), 5);
}

#[test]
fn a_preset_adapts_to_a_short_text_and_marks_its_samples() {
    let place = tempdir().unwrap();
    fs::write(place.path().join("text"), counting(20)).unwrap();
    let arguments = "--text text --preset shakespeare --hidden 16 --epochs 1 --out run";
    let output = start(&place, NAME, &arguments.split(' ').collect::<Vec<_>>(), "");
    assert!(output.status.success(), "{output:?}");
    let note = String::from_utf8(output.stderr).unwrap();
    assert!(note.contains("in windows of 100 in 5 streams at once, not 100 in 32"), "{note}");
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains("; device cpu; run folder run\n") && said.contains("\nsample | "), "{said}");
    // The recorded settings are the preset's, so resuming adapts alike.
    let resumed = start(&place, NAME, &["--resume", "run"], "");
    assert!(resumed.status.success(), "{resumed:?}");
}
