//! The binaries as processes, for the tests that run them.

use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

/// A binary, to be run in `place`, far from every hub. All of them lie in one folder.
pub fn command(place: &(impl AsRef<Path> + ?Sized), binary: &str) -> Command {
    let mut command = Command::new(Path::new(env!("CARGO_BIN_EXE_lenet")).with_file_name(binary));
    command.env("HF_ENDPOINT", "http://127.0.0.1:9").env("HF_HOME", place.as_ref());
    command.current_dir(place).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// What a program does with `input`.
pub fn start(place: &(impl AsRef<Path> + ?Sized), binary: &str, arguments: &[&str], input: &str) -> Output {
    let mut child = command(place, binary).args(arguments).stdin(Stdio::piped()).spawn().unwrap();
    // A program that refuses its arguments does not read.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

/// Standard output of a program that is to succeed.
#[track_caller]
pub fn done(place: &(impl AsRef<Path> + ?Sized), binary: &str, arguments: &str) -> String {
    let output = start(place, binary, &arguments.split_whitespace().collect::<Vec<_>>(), "");
    assert!(output.status.success(), "{binary} {arguments}: {output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{binary} {arguments}");
    String::from_utf8(output.stdout).unwrap()
}

/// That a program ends with `code` and one line that says each of `said`, and leaves all files as they were.
#[track_caller]
pub fn refused(place: &(impl AsRef<Path> + ?Sized), binary: &str, arguments: &str, code: i32, said: &[&str]) {
    let before = files(place.as_ref());
    let output = start(place, binary, &arguments.split_whitespace().collect::<Vec<_>>(), "");
    one_error(&output, code, said);
    assert!(files(place.as_ref()) == before, "{binary} {arguments}: it left or changed files");
}

#[track_caller]
pub fn one_error(output: &Output, code: i32, said: &[&str]) {
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{output:?}");
    assert!(error.starts_with("error: ") && error.lines().count() == 1, "{error}");
    for part in said {
        assert!(error.contains(part), "{part:?} is not in {error}");
    }
}

/// Runs a program and kills it once it is `ready`, unless it has ended before.
pub fn killed(place: &(impl AsRef<Path> + ?Sized), binary: &str, arguments: &str, ready: impl Fn() -> bool) {
    let mut child = command(place, binary).args(arguments.split_whitespace()).spawn().unwrap();
    while !ready() && child.try_wait().unwrap().is_none() {
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

/// Every file and folder below `dir` with its contents.
pub fn files(dir: &Path) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.append(&mut files(&path));
        }
        found.insert(path.clone(), fs::read(&path).ok());
    }
    found
}

pub fn metrics(run: &Path) -> Vec<Value> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The file of a run's best weights.
pub fn model(run: &Path) -> Vec<u8> {
    fs::read(run.join("model.safetensors")).unwrap()
}
