//! Training on several processes that `mpirun` starts.

#![cfg(unix)]

mod common;

use common::{command, done, metrics, model};
use serde_json::Value;
use std::env;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};
use tempfile::{TempDir, tempdir};

/// The launcher with its options. The variable `MPIRUN` names those of another MPI library than OpenMPI.
fn launcher() -> Command {
    let words = env::var("MPIRUN");
    let words = words.as_deref().unwrap_or("mpirun --allow-run-as-root --oversubscribe");
    let mut words = words.split_whitespace();
    let mut launcher = Command::new(words.next().unwrap());
    launcher.args(words);
    launcher
}

/// A command that starts `binary` with each of `arguments` on as many processes as its number says.
fn mpirun(place: &Path, binary: &str, arguments: &[(usize, &str)]) -> Command {
    let program = command(place, binary);
    let mut mpirun = launcher();
    for (number, (size, arguments)) in arguments.iter().enumerate() {
        mpirun.args((number > 0).then_some(":"));
        mpirun.args(["-n", &size.to_string()]).arg(program.get_program());
        mpirun.args(["train", "--threads", "1"]).args(arguments.split_whitespace());
    }
    mpirun.current_dir(place).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    mpirun
}

/// Trains on `size` processes, and returns what process 0 said.
#[track_caller]
fn trained(place: &Path, binary: &str, size: usize, arguments: &str) -> String {
    let output = mpirun(place, binary, &[(size, arguments)]).output().unwrap();
    assert!(output.status.success(), "{binary} {arguments}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Checks that a training failed within ten seconds, and that the only line of the program's own is an error with all `parts`.
#[track_caller]
fn fails(start: Instant, output: &Output, parts: &[&str]) {
    let said = String::from_utf8_lossy(&output.stderr);
    let errors: Vec<&str> = said.lines().filter(|line| line.contains("error: ")).collect();
    assert!(!output.status.success() && start.elapsed() < Duration::from_secs(10), "{output:?}");
    assert!(errors.len() == 1 && parts.iter().all(|part| errors[0].contains(part)), "{said}");
}

/// A small text.
fn place() -> TempDir {
    let place = tempdir().unwrap();
    let lines = |i: usize| format!("{i} times {} is {}\n", i + 1, i * (i + 1));
    fs::write(place.path().join("text"), (1..200).map(lines).collect::<String>()).unwrap();
    place
}

const TEXT: &str =
    "--text text --hidden 12 --embedding 8 --layers 2 --dropout 0.3 --window 16 --batch-size 8 --quiet";

/// Checks that 2 and 3 processes find the losses of one, in each of 50 epochs of one step.
#[track_caller]
fn equal(place: &Path, binary: &str, arguments: &str) {
    let losses = |run: &str| -> Vec<[f64; 3]> {
        let fields = ["train_loss", "val_loss", "gradient_norm"];
        let values = |line: &Value| fields.map(|name| line[name].as_f64().unwrap());
        metrics(&place.join(run)).iter().filter(|line| line["final"].is_null()).map(values).collect()
    };
    let arguments = format!("{arguments} --epochs 50 --quiet --out");
    done(place, binary, &format!("train --threads 1 {arguments} one"));
    let expected = losses("one");
    assert_eq!(expected.len(), 50);
    for size in [2, 3] {
        trained(place, binary, size, &format!("{arguments} {size}"));
        for (epoch, (found, expected)) in losses(&size.to_string()).iter().zip(&expected).enumerate() {
            let is_equal = |(a, b): (&f64, &f64)| (a - b).abs() <= 1e-5 * b.abs();
            let is_equal = found.iter().zip(expected).take(2).all(is_equal);
            assert!(is_equal, "{binary}, {size} processes, epoch {epoch}: {found:?}, expected {expected:?}");
        }
    }
}

#[test]
fn lenet_has_the_losses_of_one_process() {
    let place = tempdir().unwrap();
    for (split, count) in [("train", 70u32), ("t10k", 10)] {
        let file = |name: &str| place.path().join(format!("{split}-{name}-ubyte"));
        let numbers = |numbers: &[u32]| -> Vec<u8> { numbers.iter().flat_map(|n| n.to_be_bytes()).collect() };
        let pixels = (0..count * 784).map(|i| (i % 784 * (1 + i / 784 % 10) / 4) as u8);
        fs::write(file("images-idx3"), [numbers(&[0x0803, count, 28, 28]), pixels.collect()].concat())
            .unwrap();
        let labels = (0..count).map(|i| (i % 10) as u8);
        fs::write(file("labels-idx1"), [numbers(&[0x0801, count]), labels.collect()].concat()).unwrap();
    }
    let options = "--dataset mnist --data-dir . --validation 20 --batch-size 50 --learning-rate 1e-3";
    equal(place.path(), "lenet", options);
}

/// A folder `pictures` of two classes, and the options for it.
fn pictures() -> (TempDir, &'static str) {
    let place = tempdir().unwrap();
    for (class, tint) in [("dark", 40), ("light", 180)] {
        for (split, count, blue) in [("train", 20u8, tint), ("test", 3, tint + 10)] {
            let dir = place.path().join("pictures").join(split).join(class);
            fs::create_dir_all(&dir).unwrap();
            for i in 0..count {
                let pixel = |x: u32, y: u32| image::Rgb([tint + i, (x * 9 + y * u32::from(i)) as u8, blue]);
                image::RgbImage::from_fn(10, 10, pixel).save(dir.join(format!("{i}.png"))).unwrap();
            }
        }
    }
    (
        place,
        "--dataset image-folder --data-dir pictures --side 10 --validation 6 --layers 8 --learning-rate 1e-3",
    )
}

#[test]
fn resnet_with_synchronised_statistics_has_the_losses_of_one_process() {
    let (place, options) = pictures();
    equal(
        place.path(),
        "resnet",
        &format!("{options} --sync-batch-norm --jitter 0.2 --crop 1 --batch-size 34"),
    );
}

#[test]
fn resnet_with_the_statistics_of_each_share_gives_the_same_bits_again() {
    let (place, options) = pictures();
    let models = ["one", "other"].map(|run| {
        trained(
            place.path(),
            "resnet",
            2,
            &format!("{options} --batch-size 8 --epochs 2 --quiet --out {run}"),
        );
        model(&place.path().join(run))
    });
    assert!(models[0] == models[1]);
}

#[test]
fn a_network_with_sparse_embeddings_has_the_losses_of_one_process() {
    let place = tempdir().unwrap();
    let options =
        "--train-limit 40 --validation 20 --batch-size 40 --learning-rate 1e-3 --optimizer lazy-adam";
    equal(place.path(), "textcnn", options);
}

#[test]
fn a_language_model_that_divides_its_streams_has_the_losses_of_one_process() {
    // One window of each stream in an epoch.
    let arguments = TEXT.replace("--window 16", "--window 300").replace(" --quiet", "");
    equal(place().path(), "char_lm", &arguments);
}

#[test]
fn the_same_number_of_processes_gives_the_same_bits_through_a_kill_and_signals() {
    let place = place();
    let arguments = format!("{TEXT} --epochs 60 --checkpoint-every 3");
    trained(place.path(), "char_lm", 3, &format!("{arguments} --out whole"));
    let whole = model(&place.path().join("whole"));
    let cut = place.path().join("cut");
    for (signal, to_launcher) in [("KILL", false), ("TERM", false), ("INT", false), ("TERM", true)] {
        let before = fs::read(cut.join("checkpoint.safetensors")).ok();
        let arguments = match before {
            None => format!("{arguments} --out cut"),
            Some(_) => "--resume cut --quiet".to_string(),
        };
        let mut child = mpirun(place.path(), "char_lm", &[(3, &arguments)]).spawn().unwrap();
        while fs::read(cut.join("checkpoint.safetensors")).ok() == before
            && child.try_wait().unwrap().is_none()
        {
            sleep(Duration::from_millis(2));
        }
        let start = Instant::now();
        let processes = || processes_of(child.id()).into_iter().max().unwrap();
        send(signal, if to_launcher { child.id() } else { processes() });
        let status = child.wait().unwrap();
        assert!(!status.success() && start.elapsed() < Duration::from_secs(10));
        let mut said = String::new();
        child.stdout.unwrap().read_to_string(&mut said).unwrap();
        assert_eq!(
            said.contains("interrupted; resume with: char_lm train --resume cut"),
            signal != "KILL",
            "{signal}: {said}"
        );
    }
    trained(place.path(), "char_lm", 3, "--resume cut --quiet");
    assert!(model(&cut) == whole);
}

#[test]
fn a_signal_ends_all_when_one_no_longer_answers_and_the_run_resumes() {
    let place = place();
    let arguments = format!("{TEXT} --epochs 60 --checkpoint-every 3");
    trained(place.path(), "char_lm", 3, &format!("{arguments} --out whole"));
    let cut = place.path().join("cut");
    let checkpoint = || fs::read(cut.join("checkpoint.safetensors")).ok();
    for stops_first in [false, true] {
        let before = checkpoint();
        let arguments = match before {
            None => format!("{arguments} --out cut"),
            Some(_) => "--resume cut --quiet".to_string(),
        };
        let mut child = mpirun(place.path(), "char_lm", &[(3, &arguments)]).spawn().unwrap();
        while checkpoint() == before && child.try_wait().unwrap().is_none() {
            sleep(Duration::from_millis(2));
        }
        let mut processes = processes_of(child.id());
        processes.sort_unstable();
        let stopped = processes.remove(if stops_first { 0 } else { 2 });
        send("STOP", stopped);
        let start = Instant::now();
        processes.into_iter().for_each(|process| send("TERM", process));
        let output = child.wait_with_output().unwrap();
        let how = "no longer answers; resume from the last checkpoint with: char_lm train --resume cut";
        fails(start, &output, &[how]);
    }
    trained(place.path(), "char_lm", 3, "--resume cut --quiet");
    assert!(model(&cut) == model(&place.path().join("whole")));
}

fn send(signal: &str, process: u32) {
    let status = Command::new("kill").args([format!("-{signal}"), process.to_string()]).status().unwrap();
    assert!(status.success());
}

#[test]
fn a_signal_after_the_last_validation_ends_all() {
    let place = place();
    let arguments = TEXT.replace("--hidden 12", "--hidden 300");
    let mut child = mpirun(place.path(), "char_lm", &[(2, &format!("{arguments} --epochs 1 --out run"))])
        .spawn()
        .unwrap();
    // The best weights are written after the validation.
    while !place.path().join("run/model.safetensors").exists() && child.try_wait().unwrap().is_none() {
        sleep(Duration::from_micros(200));
    }
    let start = Instant::now();
    send("TERM", processes_of(child.id()).into_iter().min().unwrap());
    let output = child.wait_with_output().unwrap();
    assert!(start.elapsed() < Duration::from_secs(10), "{output:?}");
    let said = String::from_utf8_lossy(&output.stdout);
    let is_interrupted = said.contains("interrupted; resume with: char_lm train --resume run");
    assert!(is_interrupted || output.status.success(), "{output:?}");
    let said = trained(place.path(), "char_lm", 2, "--resume run --quiet");
    assert!(said.contains("run folder run"), "{said}");
}

#[test]
fn a_signal_to_one_process_before_training_ends_all() {
    let place = tempdir().unwrap();
    assert!(Command::new("mkfifo").arg(place.path().join("pipe")).status().unwrap().success());
    let mut child =
        mpirun(place.path(), "textcnn", &[(1, "--quiet"), (1, "--quiet --vectors pipe")]).spawn().unwrap();
    // Opens once process 1 has opened it, which then waits for vectors.
    let mut pipe = fs::File::options();
    pipe.write(true).custom_flags(libc::O_NONBLOCK);
    let _pipe = loop {
        match pipe.open(place.path().join("pipe")) {
            Ok(pipe) => break pipe,
            Err(error) => assert!(child.try_wait().unwrap().is_none(), "{error}"),
        }
        sleep(Duration::from_millis(2));
    };
    let start = Instant::now();
    send("TERM", processes_of(child.id()).into_iter().max().unwrap());
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && start.elapsed() < Duration::from_secs(10), "{output:?}");
    assert_eq!(said.matches("interrupted before training began").count(), 1, "{said}");
}

/// The processes that the launcher `id` has started, directly or through helpers of its own.
fn processes_of(id: u32) -> Vec<u32> {
    let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap_or_default();
    let leaves = |id: &str| {
        let id = id.parse().unwrap();
        let processes = processes_of(id);
        if processes.is_empty() { vec![id] } else { processes }
    };
    children.split_whitespace().flat_map(leaves).collect()
}

#[test]
fn a_run_resumes_on_another_number_of_processes_with_a_note() {
    let place = place();
    let arguments = TEXT.replace("--quiet", "--epochs 2 --keep-checkpoint --schedule constant --out run");
    let said = trained(place.path(), "char_lm", 2, &arguments);
    assert!(said.contains("on 2 processes") && said.contains("communication: "), "{said}");
    let said = trained(place.path(), "char_lm", 3, "--resume run --epochs 3");
    assert!(said.contains("note: 2 processes trained the run so far, and 3 do now"), "{said}");
    assert_eq!(said.matches("epoch   3/3").count(), 1, "{said}");
}

#[test]
fn processes_that_differ_are_refused_before_anything_is_written() {
    let place = place();
    fs::write(place.path().join("other"), "another text of a few words\n".repeat(90)).unwrap();
    let other = TEXT.replace("text text", "text other");
    for (others, parts) in [
        (&*format!("{TEXT} --seed 7"), ["process 1 differs", "--seed 7, expected 42"]),
        (&other, ["the text of process 1 differs", "the same files"]),
    ] {
        let start = Instant::now();
        let output = mpirun(place.path(), "char_lm", &[(1, TEXT), (1, others)]).output().unwrap();
        fails(start, &output, &parts);
        assert!(!place.path().join("runs").exists());
    }
    // A program of the same version, but of another build.
    let other = place.path().join("other_build");
    fs::copy(command(place.path(), "char_lm").get_program(), &other).unwrap();
    fs::File::options().append(true).open(&other).unwrap().write_all(b"\n").unwrap();
    let start = Instant::now();
    let mut mpirun = mpirun(place.path(), "char_lm", &[(1, TEXT)]);
    mpirun.args([":", "-n", "1"]).arg(&other).args(["train", "--threads", "1"]).args(TEXT.split_whitespace());
    fails(start, &mpirun.output().unwrap(), &["process 1 differs from process 0: found build"]);
}

#[test]
fn a_process_that_does_not_find_the_others_is_refused() {
    // What a process sees that the launcher of another MPI library has started.
    let place = tempdir().unwrap();
    for (rank, error) in [("0", "error: MPI: found 1 of 2 processes"), ("1", "")] {
        let mut program = command(place.path(), "lenet");
        let output = program.arg("--quiet").env("PMI_RANK", rank).env("PMI_SIZE", "2").output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(1) && said.contains(error), "{output:?}");
        assert_eq!(said.contains("error: "), rank == "0", "{said}");
    }
}

#[test]
fn an_error_of_one_process_or_all_is_reported_once() {
    let place = place();
    let start = Instant::now();
    let missing = TEXT.replace("text text", "text missing");
    let output = mpirun(place.path(), "char_lm", &[(1, TEXT), (2, &missing)]).output().unwrap();
    fails(start, &output, &["process 1: missing"]);

    let start = Instant::now();
    let output = mpirun(place.path(), "char_lm", &[(3, &missing)]).output().unwrap();
    fails(start, &output, &["error: missing"]);

    let start = Instant::now();
    let diverging = format!("{TEXT} --optimizer sgd --learning-rate 1e300 --out run");
    let output = mpirun(place.path(), "char_lm", &[(2, &diverging)]).output().unwrap();
    fails(start, &output, &["of step ", "there is no checkpoint yet"]);
}

#[test]
fn a_checkpoint_that_cannot_be_written_ends_all_and_leaves_the_old_one() {
    let place = place();
    trained(
        place.path(),
        "char_lm",
        2,
        &format!("{TEXT} --epochs 1 --keep-checkpoint --schedule constant --out run"),
    );
    let checkpoint = fs::read(place.path().join("run/checkpoint.safetensors")).unwrap();
    // The next checkpoint cannot be written under its temporary name.
    fs::create_dir(place.path().join("run/checkpoint.safetensors.tmp")).unwrap();
    let start = Instant::now();
    let output = mpirun(place.path(), "char_lm", &[(2, "--resume run --epochs 2 --quiet")]).output().unwrap();
    fails(start, &output, &["run/checkpoint.safetensors", "cannot write it"]);
    assert!(fs::read(place.path().join("run/checkpoint.safetensors")).unwrap() == checkpoint);
}

#[test]
fn commands_other_than_training_run_once_and_experiments_are_refused() {
    let place = tempdir().unwrap();
    let start = Instant::now();
    let output = mpirun(place.path(), "textcnn", &[(2, "--folds 3")]).output().unwrap();
    fails(start, &output, &["found 2 processes, expected one"]);
    let program = command(place.path(), "lenet");
    let output = launcher().args(["-n", "3"]).arg(program.get_program()).arg("--version").output().unwrap();
    assert!(output.status.success());
    assert_eq!(String::from_utf8_lossy(&output.stdout).lines().count(), 1, "{output:?}");
}
