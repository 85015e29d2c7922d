//! Helpers to run the binaries as processes.

#![allow(dead_code, reason = "each test file uses some of them")]

use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

/// A command for the binary in the working directory `place`, without access to the hub.
pub fn command(place: &(impl AsRef<Path> + ?Sized), binary: &str) -> Command {
    // All binaries are in one folder.
    let mut command = Command::new(Path::new(env!("CARGO_BIN_EXE_lenet")).with_file_name(binary));
    command.env("HF_ENDPOINT", "http://127.0.0.1:9").env("HF_HOME", place.as_ref());
    command.current_dir(place).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    #[cfg(unix)]
    {
        use std::os::unix::process::CommandExt;
        let default = || {
            for signal in [libc::SIGINT, libc::SIGHUP] {
                // SAFETY: the default action runs no code of ours.
                unsafe { libc::signal(signal, libc::SIG_DFL) };
            }
            Ok(())
        };
        // Signals that are ignored at the start stay so: a shell's background jobs ignore SIGINT, and `nohup` SIGHUP.
        // SAFETY: between fork and exec it only makes a system call.
        unsafe { command.pre_exec(default) };
    }
    command
}

/// Runs the binary with `input` on standard input.
pub fn start(place: &(impl AsRef<Path> + ?Sized), binary: &str, arguments: &[&str], input: &str) -> Output {
    let mut child = command(place, binary).args(arguments).stdin(Stdio::piped()).spawn().unwrap();
    // Fails if the binary exits before it reads.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

/// Runs the binary, checks that it succeeds without errors or notes, and returns its standard output.
#[track_caller]
pub fn done(place: &(impl AsRef<Path> + ?Sized), binary: &str, arguments: &str) -> String {
    let output = start(place, binary, &arguments.split_whitespace().collect::<Vec<_>>(), "");
    assert!(output.status.success(), "{binary} {arguments}: {output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{binary} {arguments}");
    String::from_utf8(output.stdout).unwrap()
}

/// Runs the binary, checks that it succeeds with one note that contains `note`, and returns its standard output.
#[track_caller]
pub fn noted(place: &(impl AsRef<Path> + ?Sized), binary: &str, arguments: &str, note: &str) -> String {
    let output = start(place, binary, &arguments.split_whitespace().collect::<Vec<_>>(), "");
    let said = String::from_utf8_lossy(&output.stderr);
    let is_noted = said.starts_with("note: ") && said.lines().count() == 1 && said.contains(note);
    assert!(output.status.success() && is_noted, "{binary} {arguments}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Runs the binary, and checks that it exits with `code` and a one-line error, and changes no file.
///
/// The error must contain all `parts`.
#[track_caller]
pub fn refused(
    place: &(impl AsRef<Path> + ?Sized),
    binary: &str,
    arguments: &str,
    code: i32,
    parts: &[&str],
) {
    let before = files(place.as_ref());
    let output = start(place, binary, &arguments.split_whitespace().collect::<Vec<_>>(), "");
    one_error(&output, code, parts);
    assert!(files(place.as_ref()) == before, "{binary} {arguments}: it added or changed files");
}

/// Checks that a process exited with `code` and a one-line error with all `parts`.
#[track_caller]
pub fn one_error(output: &Output, code: i32, parts: &[&str]) {
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{output:?}");
    assert!(error.starts_with("error: ") && error.lines().count() == 1, "{error}");
    for part in parts {
        assert!(error.contains(part), "{part:?} is not in {error}");
    }
}

/// Starts the binary and kills it when `ready` returns true, unless it exits first.
pub fn killed(place: &(impl AsRef<Path> + ?Sized), binary: &str, arguments: &str, ready: impl Fn() -> bool) {
    let mut child = command(place, binary).args(arguments.split_whitespace()).spawn().unwrap();
    while !ready() && child.try_wait().unwrap().is_none() {
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

/// All files and folders below `dir`, the files with their contents.
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

/// The configuration of a run.
pub fn config(run: &Path) -> Value {
    serde_json::from_slice(&fs::read(run.join("config.json")).unwrap()).unwrap()
}

/// The lines of a run's metrics.
pub fn metrics(run: &Path) -> Vec<Value> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The values of a run's best weights by name.
pub fn model(run: &Path) -> BTreeMap<String, Vec<u8>> {
    let bytes = fs::read(run.join("model.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    tensors.iter().map(|(name, values)| (name.to_string(), values.data().to_vec())).collect()
}
