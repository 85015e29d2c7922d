//! The experiments of the books as a process.

mod common;

use common::{command, done, refused};
use std::fs;
use tempfile::tempdir;

#[test]
fn an_experiment_prints_its_claim_and_writes_pictures_and_numbers() {
    let place = tempdir().unwrap();
    assert!(done(&place, "lab", "list").contains("vanishing-gradient"));
    let text = done(&place, "lab", "neuron --quick --out run");
    assert!(text.contains("As claimed: ") && text.contains("run folder run"), "{text}");
    let run = place.path().join("run");
    for name in ["config.json", "cost.svg", "neuron.csv", "output.svg"] {
        assert!(run.join(name).is_file(), "{name}");
    }
    let numbers = fs::read_to_string(run.join("cost.csv")).unwrap();
    assert!(numbers.starts_with("chart,line,x,y\nQuadratic cost,\"from (0.6, 0.9)\",0,0.33"), "{numbers}");
}

#[test]
fn what_an_experiment_cannot_use_is_refused_in_a_line() {
    let place = tempdir().unwrap();
    refused(&place, "lab", "data --dataset letters", 2, &["letters", "mnist"]);
    refused(&place, "lab", "pooling --dataset shapes", 2, &["shapes", "mnist"]);
    refused(&place, "lab", "universal --function x+z", 1, &["x+z", "variable z"]);
    refused(&place, "lab", "neuron --function x", 2, &["--function", "universal"]);
    refused(&place, "lab", "neuron --dataset mnist", 2, &["--dataset", "neuron", "its own data"]);
    refused(&place, "lab", "all --function 1/0 --out all", 1, &["1/0", "finite"]);
    refused(&place, "lab", "neuron --threads 0", 2, &["1 to 1024"]);
    refused(&place, "lab", "neuron --seed -1", 2, &["'-1'", "expected a whole number"]);
    refused(&place, "lab", "neurons", 2, &["neurons"]);
    fs::create_dir(place.path().join("run")).unwrap();
    fs::write(place.path().join("run/config.json"), r#"{"binary": "lstm"}"#).unwrap();
    refused(&place, "lab", "filters run", 1, &["found a run of lstm, expected one of lenet"]);
}

#[test]
#[cfg(unix)]
fn an_interrupted_experiment_leaves_no_folder() {
    for name in ["overfitting", "all"] {
        let place = tempdir().unwrap();
        let mut child = command(&place, "lab").args([name, "--out", "run"]).spawn().unwrap();
        while !place.path().join("run/config.json").exists() {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        // SAFETY: the process is our own child, which has not been waited for.
        assert_eq!(unsafe { libc::kill(child.id() as i32, libc::SIGINT) }, 0);
        assert_eq!(child.wait().unwrap().code(), Some(130));
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0, "{name}");
    }
}
