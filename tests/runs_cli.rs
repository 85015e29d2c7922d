//! Run folders as processes meet them: kills, signals, two processes, changed and moved data, more epochs.

#![cfg(unix)]

mod common;

use common::{command, config, done, files, metrics, model, noted, one_error, refused, start};
use image::{Rgb, RgbImage};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use tempfile::{TempDir, tempdir};

/// A small classifier of sentences on the files in `data`.
const SENTENCES: &str = "--dataset csv --data-dir data --hidden 4 --embedding 4 --batch-size 8 --epochs 2";

/// A small network on built-in digits.
const DIGITS: &str = "--hidden 4 --train-limit 40 --validation 20 --batch-size 10";

/// A working directory with the data set `data`: sentences with one of two words.
fn place() -> TempDir {
    let place = tempdir().unwrap();
    let rows: String = (0..40).map(|i| format!("{},word{} tail\n", ["no", "yes"][i % 2], i % 2)).collect();
    fs::create_dir(place.path().join("data")).unwrap();
    for split in ["train", "test"] {
        fs::write(place.path().join(format!("data/{split}.csv")), format!("label,text\n{rows}")).unwrap();
    }
    place
}

/// A small network on the pictures in `data`.
const PICTURES: &str = "--dataset image-folder --data-dir data --hidden 2 --validation 1";
const TEST_PICTURE: &str = "data/test/dog/1.png";

/// A working directory with the data set `data`: pictures of two colours.
fn pictures() -> TempDir {
    let place = tempdir().unwrap();
    for (class, [red, green, blue]) in [("cat", [200, 0, 0]), ("dog", [0, 0, 200])] {
        for (split, count, light) in [("train", 3, 0), ("test", 1, 10)] {
            let dir = place.path().join("data").join(split).join(class);
            fs::create_dir_all(&dir).unwrap();
            let colour = [red + light, green + light, blue + light];
            for number in 1..=count {
                RgbImage::from_pixel(40, 40, Rgb(colour)).save(dir.join(format!("{number}.png"))).unwrap();
            }
        }
    }
    place
}

/// Replaces `from` by `to` in the file `name`.
fn edit(place: &TempDir, name: &str, from: &str, to: &str) {
    let path = place.path().join(name);
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains(from));
    fs::write(path, text.replace(from, to)).unwrap();
}

fn signal(child: &Child, name: &str) {
    let status = Command::new("kill").args(["-s", name, &child.id().to_string()]).status().unwrap();
    assert!(status.success());
}

/// Starts the command and waits for the line of its first epoch; returns the lines that follow.
fn first_epoch(command: &mut Command) -> (Child, impl Iterator<Item = String> + use<>) {
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    lines.find(|line| line.starts_with("epoch ")).unwrap();
    (child, lines)
}

/// Runs the binary with a limit of `limit` bytes per file, and returns the path of the file that exceeds it.
fn stopped_at(place: &Path, binary: &str, arguments: &str, limit: u64) -> PathBuf {
    let mut command = command(place, binary);
    command.args(arguments.split_whitespace());
    let set = move || {
        let value = libc::rlimit { rlim_cur: limit, rlim_max: limit };
        // SAFETY: the call reads only `value`.
        match unsafe { libc::setrlimit(libc::RLIMIT_FSIZE, &value) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    };
    // SAFETY: between fork and exec it only makes a system call.
    unsafe { command.pre_exec(set) };
    let output = command.output().unwrap();
    one_error(&output, 1, &["cannot write it"]);
    let error = String::from_utf8(output.stderr).unwrap();
    place.join(error.strip_prefix("error: ").unwrap().split(": ").next().unwrap())
}

/// The results in all `metrics.jsonl` below `run`, without the times.
fn results(run: &Path) -> Vec<Value> {
    let mut lines: Vec<Value> = files(run)
        .keys()
        .filter(|path| path.ends_with("metrics.jsonl"))
        .flat_map(|path| metrics(path.parent().unwrap()))
        .collect();
    for line in &mut lines {
        for time in ["seconds", "examples_per_second"] {
            line.as_object_mut().unwrap().remove(time);
        }
    }
    lines
}

/// Names of the files below `run`.
fn names(run: &Path) -> Vec<String> {
    files(run).keys().map(|path| path.strip_prefix(run).unwrap().display().to_string()).collect()
}

#[test]
fn a_kill_at_any_write_leaves_a_run_that_can_be_completed() {
    let place = place();
    for (binary, options) in
        [("mlp", format!("{DIGITS} --epochs 2")), ("gru", format!("{SENTENCES} --folds 2"))]
    {
        let whole = place.path().join(binary);
        done(&place, binary, &format!("{options} --quiet --out {binary}"));
        let size = |(path, bytes): (PathBuf, Option<Vec<u8>>)| {
            let size = bytes?.len() as u64;
            // The length of a report varies with the times in it.
            Some(if path.ends_with("report.html") { size.saturating_sub(100) } else { size })
        };
        let sizes: BTreeSet<u64> =
            files(&whole).into_iter().filter_map(size).filter(|&size| size > 0).collect();
        let limits: Vec<u64> = [0].into_iter().chain(sizes.iter().map(|size| size - 1)).collect();
        for limit in limits {
            let cut = place.path().join("cut");
            let file = stopped_at(place.path(), binary, &format!("{options} --quiet --out cut"), limit);
            assert!(!names(&cut).iter().any(|name| name.ends_with(".tmp")), "{binary} at {limit} bytes");
            // A killed process would leave the part that it has written.
            let written = vec![b'x'; limit as usize];
            fs::write(format!("{}.tmp", file.display()), written).unwrap();
            if !cut.join("config.json").exists() {
                done(&place, binary, &format!("{options} --quiet --out cut"));
            } else {
                let output = start(&place, binary, &["--quiet", "--resume", "cut"], "");
                let notes = String::from_utf8(output.stderr).unwrap();
                let starts_again = notes.is_empty() || notes.contains("no checkpoint yet");
                assert!(output.status.success() && starts_again, "{binary} at {limit} bytes: {notes}");
            }
            assert_eq!(results(&cut), results(&whole), "{binary} at {limit} bytes");
            assert_eq!(names(&cut), names(&whole), "{binary} at {limit} bytes");
            fs::remove_dir_all(&cut).unwrap();
        }
    }
}

#[test]
fn a_fold_that_has_only_its_folder_is_trained() {
    let place = place();
    done(&place, "gru", &format!("{SENTENCES} --folds 2 --quiet --out run"));
    let run = place.path().join("run");
    let expected = results(&run);
    for kept in [&[][..], &["run.lock"], &["run.lock", "config.json.tmp"]] {
        fs::remove_dir_all(run.join("fold-2")).unwrap();
        fs::create_dir(run.join("fold-2")).unwrap();
        kept.iter().for_each(|name| fs::write(run.join("fold-2").join(name), "").unwrap());
        done(&place, "gru", "--quiet --resume run");
        assert_eq!(results(&run), expected, "{kept:?}");
    }
}

#[test]
fn a_missing_or_damaged_file_is_named_before_training() {
    let place = place();
    let run = place.path().join("run");
    done(
        &place,
        "mlp",
        &format!("{DIGITS} --epochs 3 --keep-checkpoint --schedule constant --quiet --out run"),
    );
    let whole = files(&run);
    let path = |name: &str| run.join(name);
    let [checkpoint, model, metrics] =
        ["checkpoint.safetensors", "model.safetensors", "metrics.jsonl"].map(path);
    let resume = "--resume run --epochs 4 --quiet";
    let parts: [(&Path, &str); 2] = [(&checkpoint, "it is missing"), (&model, "best weights so far")];
    for (file, why) in parts {
        let name = file.strip_prefix(place.path()).unwrap().to_str().unwrap();
        fs::remove_file(file).unwrap();
        refused(&place, "mlp", resume, 1, &[name, why]);
        fs::create_dir(file).unwrap();
        refused(&place, "mlp", resume, 1, &[name]);
        fs::remove_dir(file).unwrap();
        let bytes = whole[file].as_ref().unwrap();
        for damaged in [&[][..], &bytes[..bytes.len() / 2]] {
            fs::write(file, damaged).unwrap();
            refused(&place, "mlp", resume, 1, &[name]);
        }
        fs::write(file, bytes).unwrap();
    }
    // Removing the record of the epochs removes the last trace of them.
    fs::remove_file(&checkpoint).unwrap();
    fs::remove_file(&metrics).unwrap();
    refused(
        &place,
        "mlp",
        resume,
        1,
        &["run/checkpoint.safetensors", "it is missing, but the run has a model"],
    );
    fs::write(&checkpoint, whole[&checkpoint].as_ref().unwrap()).unwrap();

    let lines = String::from_utf8(whole[&metrics].clone().unwrap()).unwrap();
    for damaged in ["", "{", &lines.replace("epoch", "each"), lines.split_at(lines.len() - 5).0] {
        fs::write(&metrics, damaged).unwrap();
        let output = start(&place, "mlp", &["--resume", "run", "--quiet"], "");
        let notes = String::from_utf8(output.stderr).unwrap();
        assert!(
            output.status.success() && notes.starts_with("note: run: metrics.jsonl was damaged"),
            "{notes}"
        );
        assert_eq!(results(&run).len(), 4);
    }
    done(&place, "mlp", "--resume run --quiet");
    // A run that was killed before its first checkpoint.
    fs::create_dir(place.path().join("new")).unwrap();
    for name in ["config.json", "run.lock"] {
        fs::copy(path(name), place.path().join("new").join(name)).unwrap();
    }
    let output = start(&place, "mlp", &["--resume", "new", "--quiet"], "");
    let note = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && note.contains("new: the run has no checkpoint yet"), "{note}");
    assert_eq!(results(&place.path().join("new")), results(&run));
}

#[test]
fn runs_that_cannot_be_used_are_named_with_those_that_can() {
    let place = place();
    done(&place, "gru", &format!("{SENTENCES} --folds 2 --quiet"));
    done(&place, "gru", &format!("{SENTENCES} --quiet"));
    let parent = ["runs/gru/1/fold-2: this is a part of the run runs/gru/1", "--resume runs/gru/1"];
    refused(&place, "gru", "--resume runs/gru/1/fold-2", 1, &parent);
    refused(&place, "gru", "eval --run 1", 1, &["one model per folder", "runs/gru/1/fold-1"]);
    for option in ["eval --run 999", "eval --run runs/gru/999", "--resume 999"] {
        refused(&place, "gru", option, 1, &["runs/gru/999: there is no such run; found 1, 2 in runs/gru"]);
    }
    fs::rename(place.path().join("runs/gru/2"), place.path().join("runs/gru/best")).unwrap();
    done(&place, "gru", "eval --run best");
    fs::rename(place.path().join("runs/gru/best"), place.path().join("runs/gru/2")).unwrap();
    for arguments in ["predict runs/gru/2 fine", "neighbours runs/gru/2"] {
        refused(&place, "gru", arguments, 1, &["runs/gru/2: this is a run: name it with --run runs/gru/2"]);
    }
    for arguments in ["eval runs/gru/2", "runs/gru/2", "train 2"] {
        refused(&place, "gru", arguments, 2, &["name a run with --run RUN"]);
    }
    let output = start(&place, "gru", &["predict", "2", "fine"], "");
    let notes = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && notes.contains("to use run 2, give --run 2"), "{notes}");
    fs::write(place.path().join("runs/gru/2/vocabulary.txt"), "word").unwrap();
    refused(
        &place,
        "gru",
        "predict --run 2 fine",
        1,
        &["vocabulary.txt: it has changed since the run wrote it"],
    );
    noted(&place, "gru", "--resume 2 --quiet", "vocabulary.txt: it was damaged; the data restores it");
    fs::rename(place.path().join("runs/gru/2"), place.path().join("mine")).unwrap();
    fs::remove_dir_all(place.path().join("runs")).unwrap();
    refused(&place, "gru", "predict mine fine", 1, &["mine: this is a run: name it with --run mine"]);
    refused(&place, "gru", "predict fine", 1, &["without --run RUN", "found no run"]);
}

#[test]
fn term_and_hup_save_a_checkpoint() {
    let place = place();
    for (name, code) in [("TERM", 143), ("HUP", 129)] {
        let arguments = format!("{DIGITS} --epochs 100000 --out {name}");
        let (mut child, lines) = first_epoch(command(&place, "mlp").args(arguments.split_whitespace()));
        signal(&child, name);
        assert_eq!(lines.last().unwrap(), format!("interrupted; resume with: mlp train --resume {name}"));
        assert_eq!(child.wait().unwrap().code(), Some(code));
        assert!(place.path().join(name).join("checkpoint.safetensors").exists());
    }
}

#[test]
fn a_signal_that_is_ignored_at_the_start_stays_ignored() {
    let place = place();
    let mut command = Command::new("sh");
    command.current_dir(place.path()).stdout(Stdio::piped());
    let script =
        format!("trap '' HUP INT; exec {} {DIGITS} --epochs 300 --out run", env!("CARGO_BIN_EXE_mlp"));
    let (mut child, lines) = first_epoch(command.args(["-c", &script]));
    signal(&child, "HUP");
    signal(&child, "INT");
    assert!(lines.last().unwrap().contains("best epoch"));
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_signal_during_the_final_test_ends_the_program_and_resuming_completes_it() {
    let place = pictures();
    let at = |name: &str| place.path().join(name);
    assert!(Command::new("mkfifo").arg(at("fifo")).status().unwrap().success());
    let mut command = command(&place, "mlp");
    let (mut child, mut lines) =
        first_epoch(command.args(format!("{PICTURES} --epochs 20 --out run").split(' ')));
    // The final test waits for a writer of the pipe.
    fs::rename(at(TEST_PICTURE), at("picture")).unwrap();
    fs::rename(at("fifo"), at(TEST_PICTURE)).unwrap();
    lines.find(|line| line.starts_with("epoch  20/20")).unwrap();
    signal(&child, "INT");
    assert_eq!(lines.last().unwrap(), "interrupted; resume with: mlp train --resume run");
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let run = at("run");
    assert_eq!(metrics(&run).len(), 20);
    let trained = model(&run);
    fs::rename(at("picture"), at(TEST_PICTURE)).unwrap();
    done(&place, "mlp", "--quiet --resume run");
    assert!(model(&run) == trained && metrics(&run).len() == 21);
}

#[test]
fn a_second_process_is_kept_out_of_the_folder() {
    let place = place();
    let arguments = format!("{DIGITS} --epochs 100000 --out run");
    let (mut child, _lines) = first_epoch(command(&place, "mlp").args(arguments.split_whitespace()));
    let output = start(&place, "mlp", &["--resume", "run"], "");
    one_error(&output, 1, &["run: another process is training"]);
    one_error(&start(&place, "mlp", &["--out", "run"], ""), 1, &["run: "]);
    child.kill().unwrap();
    child.wait().unwrap();
    // The lock ends with its process.
    let (mut child, _lines) = first_epoch(command(&place, "mlp").args(["--resume", "run"]));
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn resuming_on_changed_data_is_refused_and_names_the_change() {
    let place = place();
    done(&place, "gru", &format!("{SENTENCES} --quiet --out run"));
    // The sizes do not change.
    edit(&place, "data/train.csv", "no,word0 tail\nyes", "no,word0 liat\nyes");
    refused(&place, "gru", "--resume run", 1, &["run: cannot resume", "training data has changed"]);
    edit(&place, "data/train.csv", "no,word0 liat\nyes", "no,word0 tail\nyes");
    done(&place, "gru", "--resume run --quiet");
    for name in ["data/train.csv", "data/test.csv"] {
        edit(&place, name, "no,", "what,");
    }
    refused(&place, "gru", "--resume run", 1, &["run: cannot resume", "classes", "what"]);
    for name in ["data/train.csv", "data/test.csv"] {
        edit(&place, name, "what,", "no,");
    }

    refused(&place, "gru", "--resume run --patience 3", 1, &["started without --patience", "with 3"]);
    refused(&place, "gru", "--resume run --dropout 0.9", 1, &["with --dropout 0.3 and", "with 0.9:"]);
    refused(&place, "gru", "--resume run --lower-case", 1, &["without --lower-case and", "with it:"]);
    fs::write(place.path().join("v.txt"), "tail 1 2 3 4\n").unwrap();
    refused(
        &place,
        "gru",
        "--resume run --vectors v.txt",
        1,
        &["started without --vectors and", "with v.txt:"],
    );
    let file = "run/config.json: is a file, expected the folder of a run";
    refused(&place, "gru", "eval --run run/config.json", 1, &[file]);
    let [test, away] = ["data/test.csv", "test.csv"].map(|name| place.path().join(name));
    fs::rename(&test, &away).unwrap();
    let output = start(&place, "gru", &["--resume", "run"], "");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && said.contains("cannot resume: found no test split"), "{said}");
    fs::rename(away, test).unwrap();
    edit(&place, "data/test.csv", "word1", "word2");
    let before = model(&place.path().join("run"));
    let output = start(&place, "gru", &["--resume", "run", "--quiet"], "");
    let notes = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && notes.contains("note: run: the test data has changed"), "{notes}");
    assert!(model(&place.path().join("run")) == before);
}

#[test]
fn a_renamed_class_of_pictures_is_named_on_resuming() {
    let place = pictures();
    done(&place, "mlp", &format!("{PICTURES} --epochs 1 --quiet --out run"));
    for split in ["train", "test"] {
        let class = |name: &str| place.path().join("data").join(split).join(name);
        fs::rename(class("dog"), class("wolf")).unwrap();
    }
    refused(&place, "mlp", "--resume run", 1, &["run: cannot resume: found classes", "wolf", "dog"]);
}

#[test]
fn a_damaged_test_picture_leaves_a_model_that_is_tested_later() {
    let place = pictures();
    let damaged = place.path().join(TEST_PICTURE);
    let picture = fs::read(&damaged).unwrap();
    // Only decoding shows this damage: the header is whole.
    let mut flipped = picture.clone();
    flipped[picture.len() - 20] ^= 1;
    fs::write(&damaged, flipped).unwrap();
    let options = format!("{PICTURES} --epochs 1 --quiet --out run");
    let output = start(&place, "mlp", &options.split(' ').collect::<Vec<_>>(), "");
    one_error(&output, 1, &[TEST_PICTURE, "the trained model is kept", "--resume run"]);
    let run = place.path().join("run");
    let trained = model(&run);
    fs::write(&damaged, picture).unwrap();
    let output = start(&place, "mlp", &["--resume", "run", "--quiet"], "");
    assert!(output.status.success(), "{output:?}");
    assert!(model(&run) == trained && metrics(&run).len() == 2);
}

#[test]
fn data_that_has_moved_is_named_again_on_resuming() {
    let place = place();
    done(&place, "gru", &format!("{SENTENCES} --quiet --out run"));
    let run = place.path().join("run");
    let recorded = |run| config(run)["settings"]["data_dir"].as_str().unwrap().to_string();
    assert_eq!(Path::new(&recorded(&run)), place.path().canonicalize().unwrap().join("data"));
    fs::rename(place.path().join("data"), place.path().join("moved")).unwrap();
    let parts = ["/data: ", "recorded in run/config.json", "--data-dir"];
    refused(&place, "gru", "--resume run", 1, &parts);
    let output = start(&place, "gru", &["--resume", "run", "--data-dir", "nowhere"], "");
    one_error(&output, 1, &["nowhere: no such directory"]);
    assert!(!String::from_utf8_lossy(&output.stderr).contains("recorded"));
    done(&place, "gru", "--resume run --data-dir moved --quiet");
    assert!(recorded(&run).ends_with("/moved"));
    done(&place, "gru", "--resume run --quiet");
    edit(&place, "moved/train.csv", "tail", "liat");
    refused(&place, "gru", "--resume run --data-dir moved", 1, &["training data has changed"]);
}

#[test]
fn runs_on_folders_of_the_same_name_are_told_apart() {
    let place = place();
    for name in ["old", "new"] {
        fs::create_dir_all(place.path().join(name).join("data")).unwrap();
        for file in ["data/train.csv", "data/test.csv"] {
            fs::copy(place.path().join(file), place.path().join(name).join(file)).unwrap();
        }
        let options = SENTENCES.replace("--data-dir data", &format!("--data-dir {name}/data"));
        done(&place, "gru", &format!("{options} --quiet"));
    }
    let table = done(&place, "gru", "runs");
    let rows: Vec<&str> = table.lines().collect();
    assert!(rows[1].starts_with("1    old/data  ") && rows[2].starts_with("2    new/data  "), "{table}");
}

#[test]
fn a_run_trains_on_for_more_epochs_if_its_schedule_allows_it() {
    let place = place();
    let constant = format!("{DIGITS} --schedule constant --quiet");
    done(&place, "mlp", &format!("{constant} --epochs 4 --out whole"));
    done(&place, "mlp", &format!("{constant} --epochs 2 --keep-checkpoint --out kept"));
    refused(&place, "mlp", "--resume kept --epochs 1", 1, &["--epochs 2", "1"]);
    done(&place, "mlp", "--resume kept --epochs 4 --quiet");
    let [whole, kept] = ["whole", "kept"].map(|run| place.path().join(run));
    assert!(model(&whole) == model(&kept));
    assert_eq!(results(&whole), results(&kept));
    assert_eq!(config(&kept)["settings"]["epochs"], 4);

    let plateau = format!("{DIGITS} --schedule plateau --schedule-epochs 1 --quiet");
    done(&place, "mlp", &format!("{plateau} --epochs 4 --out long"));
    done(&place, "mlp", &format!("{plateau} --epochs 2 --keep-checkpoint --out short"));
    done(&place, "mlp", "--resume short --epochs 4 --quiet");
    assert_eq!(results(&place.path().join("short")), results(&place.path().join("long")));

    refused(&place, "mlp", "--resume whole --epochs 5", 1, &["whole: ", "ended without --keep-checkpoint"]);
    done(
        &place,
        "mlp",
        &format!("{DIGITS} --schedule cosine --epochs 2 --keep-checkpoint --quiet --out cosine"),
    );
    refused(&place, "mlp", "--resume cosine --epochs 5", 1, &["cosine schedule", "number of epochs"]);
}

#[test]
fn eval_knows_the_columns_and_the_place_of_the_data_that_the_model_was_trained_on() {
    let place = tempdir().unwrap();
    let rows: String = (0..90).map(|i| format!("{i},{},the soup is {}\n", i % 3, i % 3 + i % 2)).collect();
    fs::create_dir(place.path().join("own")).unwrap();
    fs::write(place.path().join("own/train.csv"), format!("id,mood,remark\n{rows}")).unwrap();
    let both = |arguments: &str| {
        let output = start(&place, "textcnn", &arguments.split(' ').collect::<Vec<_>>(), "");
        assert!(output.status.success(), "{output:?}");
        [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap())
    };
    let [said, _] = both(
        "--dataset csv --data-dir own --label-column mood --text-column remark --embedding 4 --filters 2 --epochs 1 --quiet --out run",
    );
    for chosen in ["", " --data-dir own", " --data-dir ./own/", " --dataset csv"] {
        let again =
            noted(&place, "textcnn", &format!("eval --run run{chosen}"), "9 of the 90 training examples");
        assert!(said.starts_with(again.trim_end()), "{chosen}: {said}{again}");
    }
    fs::rename(place.path().join("own"), place.path().join("moved")).unwrap();
    let [again, notes] = both("eval --run run --data-dir moved");
    assert!(said.starts_with(again.trim_end()), "{said}{again}");
    assert!(notes.contains("moved: taken for the run's data, which is no longer at"), "{notes}");
}
