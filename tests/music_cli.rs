//! `music` as a process: training, resuming, composing, harmonizing, scoring, and bad input.

#![cfg(unix)]

mod common;

use candle_textbook::data::music::{Note, Piece, chorales, read_midi, write_midi};
use common::{done, killed, metrics, model, noted, one_error, refused, start};
use std::fs;
use std::sync::OnceLock;
use tempfile::{TempDir, tempdir};

const SMALL: &str = "--dataset midi --data-dir data --steps-per-quarter 2 --hidden 12 --embedding 12 \
                     --batch-size 4 --window 40 --quiet";

/// Writes a few chorales as MIDI files.
fn write_data(place: &TempDir) {
    for (split, pieces) in [("train", 0..4), ("valid", 4..5), ("test", 5..6)] {
        let dir = place.path().join("data").join(split);
        fs::create_dir_all(&dir).unwrap();
        for (i, piece) in chorales(6, 0, 0, 0).train.iter().enumerate().filter(|(i, _)| pieces.contains(i)) {
            fs::write(dir.join(format!("{i}.mid")), write_midi(&piece.beginning(48))).unwrap();
        }
    }
}

/// A small finished run in the folder of its data; tests must not change it.
fn trained() -> &'static TempDir {
    static PLACE: OnceLock<TempDir> = OnceLock::new();
    PLACE.get_or_init(|| {
        let place = tempdir().unwrap();
        write_data(&place);
        let said = done(&place, "music", &format!("{SMALL} --note-units 12 --epochs 2 --out run"));
        assert!(said.contains("nats per time step") && said.contains("steps that break a rule"), "{said}");
        place
    })
}

#[test]
fn a_run_holds_samples_and_its_model_composes_and_harmonizes() {
    let place = trained();
    let run = place.path().join("run");
    for name in
        ["sample-5.mid", "sample-1.wav", "sample-1.svg", "sample-1.musicxml", "sample-1.html", "music.html"]
    {
        assert!(run.join(name).exists(), "{name}");
    }
    assert!(metrics(&run).last().unwrap()["test_nats"].as_f64().unwrap() > 1.0);
    let prompt = place.path().join("data/test/5.mid");
    let compose = |out: &str, seed: u64| {
        let command =
            format!("sample --run run --bars 10 --prompt data/test/5.mid --seed {seed} --out {out}");
        assert_eq!(done(place, "music", &command).lines().count(), 4);
        read_midi(&place.path().join(out).join("piece.mid"), 2).unwrap().0
    };
    let (piece, beginning) = (compose("a", 1), read_midi(&prompt, 2).unwrap().0);
    assert_eq!((&piece.steps[..48], piece.tonality), (&beginning.steps[..48], beginning.tonality));
    assert!(piece.len() > 48);
    assert_eq!(compose("b", 1), piece, "the same seed");
    assert_ne!(compose("c", 2), piece, "another seed");

    done(place, "music", "harmonize data/test/5.mid --run run --sweeps 1 --out h");
    let harmonized = read_midi(&place.path().join("h/harmonized.mid"), 2).unwrap().0;
    assert_eq!(harmonized.len(), 48);
    for step in 0..48 {
        let melody = beginning.steps[step][0].unwrap().pitch;
        assert!(harmonized.chord(step).contains(&melody), "step {step}");
    }

    let page = done(place, "music", "listen h/harmonized.mid --run run --page listen.html");
    assert!(
        page.contains("listen.html")
            && fs::read_to_string(place.path().join("listen.html")).unwrap().contains("AudioContext")
    );
    let scores = done(place, "music", "score --run run data/test/5.mid h/harmonized.mid");
    assert_eq!(scores.lines().count(), 3, "{scores}");
    let eval = done(place, "music", "eval --run run");
    let nats = scores.lines().nth(1).unwrap().split('\t').next().unwrap();
    assert!(eval.starts_with(&format!("test {nats} nats per time step, over 48 steps")), "{eval} {scores}");
}

#[test]
fn a_test_needs_only_the_test_files() {
    let (place, other) = (trained(), tempdir().unwrap());
    fs::create_dir_all(other.path().join("midi/test")).unwrap();
    fs::copy(place.path().join("data/test/5.mid"), other.path().join("midi/test/5.mid")).unwrap();
    let run = place.path().join("run");
    let said = done(&other, "music", &format!("eval --run {} --data-dir midi", run.display()));
    assert_eq!(said, done(place, "music", "eval --run run"));

    let roll = other.path().join("roll");
    fs::create_dir(&roll).unwrap();
    let pieces = "[[60, 64], [62], []], ".repeat(3) + "[[60], [64]]";
    fs::write(roll.join("a.json"), format!(r#"{{"train": [{pieces}], "dev": [[[60], [62]]]}}"#)).unwrap();
    let options = "--dataset piano-roll --data-dir roll --preset jsb --hidden 4 --embedding 4 --epochs 1 --quiet --out roll/run";
    let said = noted(&other, "music", options, "a.json: no test split, so dev is used for the test");
    fs::write(roll.join("a.json"), r#"{"test": [[[60], [62]]]}"#).unwrap();
    assert!(said.contains(done(&other, "music", "eval --run roll/run").trim_end()), "{said}");
    let said = done(&other, "music", "eval --run roll/run --dataset midi --data-dir midi");
    assert!(said.contains("over 48 steps"), "read with the model's steps per quarter note: {said}");
    let arguments = format!("eval --run {} --dataset piano-roll --data-dir roll", run.display());
    refused(&other, "music", &arguments, 1, &["data set piano-roll: test[0]: found no separate voices"]);
}

#[test]
fn the_rules_are_those_of_the_voices_at_hand() {
    let place = tempdir().unwrap();
    for (i, mut piece) in chorales(4, 0, 0, 0).train.into_iter().enumerate() {
        piece.steps.iter_mut().for_each(|notes| notes.truncate(2));
        piece.voices = Some(2);
        let dir = place.path().join("data").join(["train", "train", "val", "test"][i]);
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join(format!("{i}.mid")), write_midi(&piece.beginning(48))).unwrap();
    }
    let rules = |options: &str| {
        let said = done(&place, "music", &format!("{SMALL} {options} --epochs 1 --out run"));
        let page = fs::read_to_string(place.path().join("run/music.html")).unwrap();
        fs::remove_dir_all(place.path().join("run")).unwrap();
        (said, page)
    };
    let (said, page) = rules("--note-units 12");
    assert!(said.contains("steps that break a rule of part writing for 2 voices: "), "{said}");
    assert!(page.contains("<td>parallel fifths</td>") && !page.contains("four voices"), "{page}");
    // Two notes at a time do not tell which voices sing them.
    let (said, page) = rules("--output independent");
    assert!(!said.contains("part writing") && !page.contains("part writing"), "{said}");
}

#[test]
fn test_pieces_that_the_training_part_has_are_noted() {
    let place = tempdir().unwrap();
    write_data(&place);
    fs::copy(place.path().join("data/train/0.mid"), place.path().join("data/test/5.mid")).unwrap();
    let train = format!("{SMALL} --note-units 12 --epochs 1 --out run");
    noted(&place, "music", &train, "test pieces that also occur in the training part: 1 of 1");
}

#[test]
fn score_and_listen_note_what_does_not_fit_the_steps() {
    let place = trained();
    // A chord of seven fifths of a quarter note.
    let mut piece = Piece { steps_per_quarter: 5, ..chorales(1, 0, 0, 0).train.remove(0).beginning(1) };
    let held = piece.steps[0].iter().map(|note| note.map(|note| Note { held: true, ..note })).collect();
    piece.steps.resize(7, held);
    fs::write(place.path().join("fifths.mid"), write_midi(&piece)).unwrap();
    let note = "fifths.mid: of 4 notes, 4 moved by more than a tenth of a step";
    noted(place, "music", "score --run run fifths.mid", note);
    noted(place, "music", "listen fifths.mid --run run --page fifths.html", note);
}

#[test]
fn a_killed_run_resumes_to_the_same_model() {
    let place = tempdir().unwrap();
    write_data(&place);
    let small = format!("{SMALL} --epochs 3 --transpose 3 --dropout 0.2 --output independent");
    done(&place, "music", &format!("{small} --out whole"));
    let part = place.path().join("part");
    let ready = || fs::read_to_string(part.join("metrics.jsonl")).is_ok_and(|text| text.lines().count() > 1);
    killed(&place, "music", &format!("{small} --out part --checkpoint-every 1"), ready);
    done(&place, "music", "train --resume part --quiet");
    assert_eq!(model(&part), model(&place.path().join("whole")));
}

#[test]
fn bad_input_gets_one_line() {
    let place = trained();
    fs::write(place.path().join("empty.mid"), b"").unwrap();
    fs::create_dir_all(place.path().join("json")).unwrap();
    fs::write(place.path().join("json/a.json"), r#"{"train": [[[60, 200]]]}"#).unwrap();
    for (command, code, parts) in [
        (
            "sample --run run --bars 2 --prompt data/test/5.mid",
            1,
            vec!["--prompt data/test/5.mid", "found 48 steps", "--bars"],
        ),
        ("sample --run run --prompt empty.mid", 1, vec!["empty.mid: the file is empty"]),
        ("sample --run run --key eb", 1, vec!["--key eb: no training piece has this key; their keys are"]),
        ("sample --run run --key H", 2, vec!["expected a key such as C"]),
        ("sample --run run --style waltz", 1, vec!["--style waltz", "styles are not known"]),
        ("score --run run empty.mid", 1, vec!["empty.mid: the file is empty"]),
        ("--dataset piano-roll --data-dir json", 1, vec!["a.json: train[0][0]: found the pitch 200"]),
        ("--dataset midi --data-dir json", 1, vec!["json: found no .mid files"]),
        ("--dataset midi", 1, vec!["no directory given", "--data-dir DIR"]),
        (
            "--steps-per-quarter 2",
            2,
            vec!["--steps-per-quarter: has no effect on other data than MIDI files"],
        ),
        ("--dataset piano-roll --data-dir json --steps-per-quarter 2", 2, vec!["--steps-per-quarter"]),
        (
            "--output independent --note-units 8",
            2,
            vec!["--note-units: has no effect with --output independent"],
        ),
        ("--dataset polkas", 1, vec!["expected one of chorales, midi, piano-roll", "--dataset NAME"]),
    ] {
        let output = start(place, "music", &command.split_whitespace().collect::<Vec<_>>(), "");
        one_error(&output, code, &parts);
    }
}
