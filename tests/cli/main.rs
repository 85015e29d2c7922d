//! The image binaries as processes: arguments, files, signals and pipes.

#![cfg(unix)]

#[path = "../common/mod.rs"]
mod common;
mod refusals;

use candle_textbook::data::{Images, digits};
use common::{command, config, done, files, metrics, model, noted, one_error, refused, start};
use image::{GrayImage, Luma, imageops};
use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::OnceLock;
use std::time::Duration;
use tempfile::{TempDir, tempdir_in};

/// The parent of the tests' working directories. It also holds `data`, a small data set in MNIST's format.
fn ground() -> &'static Path {
    static GROUND: OnceLock<PathBuf> = OnceLock::new();
    GROUND.get_or_init(|| {
        let ground = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cli");
        if ground.exists() {
            fs::remove_dir_all(&ground).unwrap();
        }
        let (train, test) = digits(500, 100, 7).unwrap();
        write_idx(&ground.join("data"), &train, &test);
        ground
    })
}

const DATA: &str = "--dataset mnist --data-dir ../data";

fn place() -> TempDir {
    tempdir_in(ground()).unwrap()
}

/// The folder of a finished run of the binary; tests must not change it.
fn trained(binary: &str) -> PathBuf {
    static LENET: OnceLock<PathBuf> = OnceLock::new();
    static MLP: OnceLock<PathBuf> = OnceLock::new();
    let finished = if binary == "lenet" { &LENET } else { &MLP };
    let train = || {
        let out = ground().join(format!("trained-{binary}"));
        done(&place(), binary, &format!("{DATA} --epochs 2 --batch-size 5 --quiet --out {}", out.display()));
        out
    };
    finished.get_or_init(train).clone()
}

/// A new working directory with a copy of the trained lenet in the folder `run`.
fn copied() -> TempDir {
    let place = place();
    fs::create_dir(place.path().join("run")).unwrap();
    for name in ["config.json", "metrics.jsonl", "model.safetensors", "checkpoint.safetensors", "run.lock"] {
        fs::copy(trained("lenet").join(name), place.path().join("run").join(name)).unwrap();
    }
    place
}

fn write_idx(dir: &Path, train: &Images, test: &Images) {
    fs::create_dir_all(dir).unwrap();
    for (split, images) in [("train", train), ("t10k", test)] {
        let (_, height, width) = images.shape();
        let count = images.len();
        let sizes = [count as u32, height as u32, width as u32];
        let mut bytes: Vec<u8> = [0x0803].iter().chain(&sizes).flat_map(|n| n.to_be_bytes()).collect();
        bytes.extend((0..count).flat_map(|index| images.image(index).unwrap().into_owned()));
        fs::write(dir.join(format!("{split}-images-idx3-ubyte")), bytes).unwrap();
        let mut bytes: Vec<u8> = [0x0801, count as u32].iter().flat_map(|n| n.to_be_bytes()).collect();
        bytes.extend(images.labels().iter().map(|&label| label as u8));
        fs::write(dir.join(format!("{split}-labels-idx1-ubyte")), bytes).unwrap();
    }
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn keys(object: &Value) -> Vec<&str> {
    object.as_object().unwrap().keys().map(String::as_str).collect()
}

/// The lines of `metrics.jsonl` without the times.
fn learned(run: &Path) -> Vec<Value> {
    let mut lines = metrics(run);
    for line in &mut lines {
        for time in ["seconds", "examples_per_second"] {
            line.as_object_mut().unwrap().remove(time);
        }
    }
    lines
}

/// Writes the test digit `index` as a PNG, dark on light and `scale` times as large.
fn png(path: &Path, index: usize, scale: u32) {
    let (_, test) = digits(500, 100, 7).unwrap();
    let digit = GrayImage::from_raw(28, 28, test.image(index).unwrap().into_owned()).unwrap();
    let mut picture = imageops::resize(&digit, 28 * scale, 28 * scale, imageops::FilterType::Triangle);
    imageops::invert(&mut picture);
    picture.save(path).unwrap();
}

fn signal(child: &Child, name: &str) {
    let status = Command::new("kill").args(["-s", name, &child.id().to_string()]).status().unwrap();
    assert!(status.success());
}

#[test]
fn training_writes_the_run_folder() {
    let run = trained("lenet");
    assert_eq!(
        names(&run),
        [
            "checkpoint.safetensors",
            "config.json",
            "confusion.svg",
            "curves.svg",
            "features.svg",
            "filters.svg",
            "grad-cam.svg",
            "metrics.jsonl",
            "mistakes.svg",
            "model.safetensors",
            "report.html",
            "run.lock"
        ]
    );
    let config = config(&run);
    assert_eq!((&config["binary"], &config["device"]), (&"lenet".into(), &"cpu".into()));
    assert_eq!(config["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(
        ["training_examples", "validation_examples", "test_examples"].map(|name| &config[name]),
        [450, 50, 100]
    );
    assert_eq!((&config["settings"]["dataset"], &config["settings"]["seed"]), (&"mnist".into(), &42.into()));
    let [first, second, last] = &metrics(&run)[..] else { panic!("not three lines") };
    let epoch = "epoch step train_loss val_loss val_accuracy learning_rate seconds examples_per_second \
                 gradient_norm largest_gradient_norm";
    for line in [first, second] {
        assert_eq!(keys(line).join(" "), epoch);
    }
    assert_eq!((&second["epoch"], &second["step"]), (&2.into(), &180.into()));
    assert!(second["train_loss"].as_f64() < first["train_loss"].as_f64());
    assert_eq!(keys(last).join(" "), "final best_epoch test_loss test_accuracy seconds");
    assert!(last["test_accuracy"].as_f64() > Some(0.5), "{last}");
    for (name, contents) in files(&run) {
        let svg = name.extension().is_some_and(|extension| extension == "svg");
        assert!(!svg || contents.unwrap().starts_with(b"<svg"), "{}", name.display());
    }
}

#[test]
fn the_report_names_a_command_that_repeats_the_run_and_runs_lists_it() {
    let page = fs::read_to_string(trained("lenet").join("report.html")).unwrap();
    assert!(!["src=", "<script", "<link", "url(", "href=\"http"].iter().any(|part| page.contains(part)));
    assert_eq!(page.matches("<svg").count(), 7, "two curves and five pictures");
    let (_, command) = page.split_once("<code>lenet ").unwrap();
    let (command, _) = command.split_once("</code>").unwrap();
    let place = place();
    done(&place, "lenet", &format!("{command} --quiet"));
    assert!(model(&place.path().join("runs/lenet/1")) == model(&trained("lenet")), "{command}");
    let table = done(&place, "lenet", "runs");
    let (heads, row) = table.split_once('\n').unwrap();
    assert_eq!(heads, "run  validation accuracy  best epoch  test accuracy  time");
    assert!(row.starts_with("1    ") && row.ends_with(" s\n") && row.lines().count() == 1, "{row}");
}

#[test]
fn a_new_run_gets_a_new_folder_and_eval_takes_the_newest() {
    let place = place();
    let lines = done(&place, "lenet", &format!("train {DATA} --epochs 2 --train-limit 200"));
    let lines: Vec<&str> = lines.lines().collect();
    assert_eq!(lines.len(), 4, "{lines:?}");
    assert!(lines[0].contains("200 training, 50 validation, 100 test") && lines[0].ends_with("runs/lenet/1"));
    assert!(lines[1].starts_with("epoch   1/2  train loss ") && lines[2].starts_with("epoch   2/2 "));
    assert!(!lines.concat().contains(['\u{1b}', '\r']), "{lines:?}");

    let result = done(&place, "lenet", &format!("{DATA} --epochs 1 --seed 1 --quiet"));
    assert_eq!(result.lines().count(), 1);
    let score = result.split(';').next().unwrap();
    assert!(score.starts_with("test accuracy "), "{result}");
    assert_eq!(names(&place.path().join("runs/lenet")), ["1", "2"]);
    let newest = start(&place, "lenet", &["eval"], "");
    assert_eq!(String::from_utf8(newest.stdout).unwrap().trim(), score);
    let note = String::from_utf8(newest.stderr).unwrap();
    assert_eq!(note, "note: this uses the newest run, runs/lenet/2\n");
    assert_eq!(done(&place, "lenet", "eval --run runs/lenet/2 --threads 1").trim(), score);
    assert_eq!(done(&place, "lenet", "eval --run 1").trim(), lines[3].split(';').next().unwrap());

    let (train, mut test) = digits(10, 30, 8).unwrap();
    test.truncate(20);
    write_idx(&place.path().join("other"), &train, &test);
    let other = done(&place, "lenet", "eval --run 2 --data-dir other");
    assert!(other.contains(" of 20)"), "{other}");
    let clothing = "eval --run 2 --dataset fashion-mnist --data-dir other";
    refused(&place, "lenet", clothing, 1, &["found the class t-shirt/top, expected 0"]);
}

#[test]
fn predict_shows_three_digits_per_image() {
    let place = place();
    let run = trained("lenet");
    let (_, test) = digits(500, 100, 7).unwrap();
    for index in 0..10 {
        png(&place.path().join(format!("{index}.png")), index, 5);
    }
    let inputs: Vec<String> = (0..10).map(|index| format!("{index}.png")).collect();
    let arguments = format!("predict --run {} {}", run.display(), inputs.join(" "));
    let said = noted(&place, "lenet", &arguments, "images prepared as photographs of ink: 10");
    let mut correct = 0;
    for (index, line) in said.lines().enumerate() {
        let answers = line.strip_prefix(&format!("{index}.png: ")).unwrap();
        let answers: Vec<(u8, f64)> = answers
            .split("  ")
            .map(|answer| {
                let (digit, rest) = answer.split_once(" (").unwrap();
                (digit.parse().unwrap(), rest.strip_suffix("%)").unwrap().parse().unwrap())
            })
            .collect();
        assert!(answers.len() == 3 && answers.is_sorted_by(|a, b| a.1 >= b.1), "{line}");
        assert!(answers.iter().map(|answer| answer.1).sum::<f64>() <= 100.02, "{line}");
        correct += usize::from(u32::from(answers[0].0) == test.labels()[index]);
    }
    assert!(said.lines().count() == 10 && correct >= 6, "{correct} correct\n{said}");

    fs::create_dir_all(place.path().join("runs/lenet")).unwrap();
    std::os::unix::fs::symlink(run, place.path().join("runs/lenet/1")).unwrap();
    let first = noted(&place, "lenet", "predict --run 1 0.png", "photographs of ink: 1");
    assert_eq!(first.trim_end(), said.lines().next().unwrap());
}

#[test]
fn every_variant_trains() {
    let place = place();
    for variant in ["modern", "lenet5", "nielsen-one", "nielsen-two", "nielsen-relu", "nielsen-dropout"] {
        let arguments = format!("{DATA} --epochs 1 --train-limit 100 --variant {variant} --out {variant}");
        done(&place, "lenet", &arguments);
        done(&place, "lenet", &format!("eval --run {variant}"));
    }
    for (activation, cost, augment) in
        [("tanh", "quadratic", "shifts"), ("relu", "sigmoid-cross-entropy", "distort")]
    {
        let arguments =
            format!("{DATA} --epochs 1 --activation {activation} --cost {cost} --augment {augment}");
        done(&place, "mlp", &format!("{arguments} --hidden 20,10 --dropout 0.2 --optimizer rmsprop"));
    }
}

#[test]
fn options_win_over_a_preset_and_a_preset_over_the_defaults() {
    let place = place();
    done(
        &place,
        "mlp",
        &format!("{DATA} --preset chapter1 --epochs 1 --validation 100 --hidden 20 --out run"),
    );
    let config = config(&place.path().join("run"));
    let settings = &config["settings"];
    for (name, value) in [
        ("hidden", serde_json::json!([20])),
        ("epochs", 1.into()),
        ("validation", 100.into()),
        ("batch_size", 10.into()),
        ("learning_rate", 3.0.into()),
        ("cost", "quadratic".into()),
        ("init", "standard-normal".into()),
        ("optimizer", "sgd".into()),
        ("seed", 42.into()),
    ] {
        assert_eq!(settings[name], value, "{name}");
    }

    let given = "--epochs 1 --train-limit 20 --validation 20 --variant nielsen-one";
    done(&place, "lenet", &format!("{DATA} --preset nielsen {given} --out nielsen"));
    let config = common::config(&place.path().join("nielsen"));
    let settings = &config["settings"];
    for (name, value) in [
        ("augment", "distort"),
        ("schedule", "one-cycle"),
        ("variant", "nielsen-one"),
        ("optimizer", "adamw"),
    ] {
        assert_eq!(settings[name], value, "{name}");
    }
}

#[test]
fn help_shows_the_defaults_of_the_recipe() {
    let place = place();
    for (binary, defaults) in [
        ("lenet", ["[default: 64]", "[default: modern]", "[default: 0.002]"]),
        ("textcnn", ["[default: 3,4,5]", "[default: lazy-adam]", "[default: 0.5]"]),
        ("birnn", ["[default: 2]", "[default: names]", "[default: 5]"]),
    ] {
        for command in ["--help", "train --help"] {
            let help = done(&place, binary, command);
            for default in defaults {
                assert!(help.contains(default), "{binary} {command}: no {default} in {help}");
            }
        }
    }
}

#[test]
fn any_number_of_threads_trains_the_same_model() {
    let place = place();
    for threads in [1, 2, 3] {
        let arguments = format!("{DATA} --epochs 1 --variant nielsen-two --augment distort --batch-size 50");
        done(&place, "lenet", &format!("{arguments} --threads {threads} --out {threads}"));
    }
    let [one, two, three] = ["1", "2", "3"].map(|run| model(&place.path().join(run)));
    assert!(one == two && one == three);
}

#[test]
fn a_killed_run_resumes_to_the_same_model() {
    const OPTIONS: &str =
        "--epochs 5 --batch-size 10 --checkpoint-every 9 --dropout 0.3 --augment distort --schedule cosine";
    let place = place();
    let [whole, killed] = ["whole", "killed"].map(|run| place.path().join(run));
    done(&place, "mlp", &format!("{DATA} {OPTIONS} --out whole"));

    let epochs = || fs::read_to_string(killed.join("metrics.jsonl")).map_or(0, |text| text.lines().count());
    for moment in 0..5 {
        let arguments = match moment {
            0 => format!("{DATA} {OPTIONS} --out killed"),
            _ => "train --resume killed".to_string(),
        };
        common::killed(&place, "mlp", &arguments, || {
            let ready = killed.join("config.json").exists() && epochs() >= moment;
            if ready {
                std::thread::sleep(Duration::from_millis(11 * moment as u64));
            }
            ready
        });
    }
    done(&place, "mlp", "train --resume killed");
    assert!(model(&whole) == model(&killed));
    assert_eq!(learned(&whole), learned(&killed));
    assert_eq!(names(&whole), names(&killed));
}

#[test]
fn an_interrupt_saves_a_checkpoint_and_prints_how_to_resume() {
    const OPTIONS: &str = "--epochs 8 --batch-size 5 --optimizer sgd --momentum 0.9 --learning-rate 0.02";
    let place = place();
    done(&place, "lenet", &format!("{DATA} {OPTIONS} --out whole"));

    let arguments = format!("{DATA} {OPTIONS} --out stopped");
    let mut child = command(&place, "lenet").args(arguments.split_whitespace()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    lines.find(|line| line.starts_with("epoch ")).unwrap();
    signal(&child, "INT");
    let last = lines.last().unwrap();
    assert_eq!(last, "interrupted; resume with: lenet train --resume stopped");
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(!place.path().join("stopped/curves.svg").exists());

    done(&place, "lenet", "train --resume stopped --quiet");
    let [whole, stopped] = ["whole", "stopped"].map(|run| place.path().join(run));
    assert!(model(&whole) == model(&stopped));
    assert_eq!(learned(&whole), learned(&stopped));
}

#[test]
fn a_signal_ends_predict_immediately() {
    let place = place();
    let fifo = place.path().join("digit.png");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    // It waits for a writer of the pipe.
    let mut child = command(&place, "lenet");
    let mut child = child.args(["predict", "digit.png", "--run"]).arg(trained("lenet")).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(200));
    signal(&child, "TERM");
    assert_eq!(child.wait().unwrap().signal(), Some(15));
}

#[test]
fn training_continues_when_nobody_reads_its_output() {
    let place = place();
    let arguments = format!("{DATA} --epochs 2 --out run");
    let mut child = command(&place, "lenet").args(arguments.split_whitespace()).spawn().unwrap();
    drop((child.stdout.take(), child.stderr.take()));
    assert!(child.wait().unwrap().success());
    assert_eq!(metrics(&place.path().join("run")).len(), 3);

    let mut child = command(&place, "lenet").args(["eval", "--run", "nowhere"]).spawn().unwrap();
    drop((child.stdout.take(), child.stderr.take()));
    assert_eq!(child.wait().unwrap().code(), Some(1));
}

#[test]
fn an_mlp_trains_on_colour_images() {
    let place = place();
    done(&place, "mlp", "--dataset shapes --train-limit 100 --epochs 1 --quiet --out run");
    assert!(place.path().join("run/filters.svg").exists());
    let confusion = fs::read_to_string(place.path().join("run/confusion.svg")).unwrap();
    assert!(confusion.contains("striped"), "{confusion}");
    refused(&place, "lenet", "--dataset shapes", 1, &["32x32", "28x28"]);
}

#[test]
fn one_bad_image_among_many_is_named_and_the_others_are_answered() {
    let place = copied();
    fs::write(place.path().join("text.png"), "not a picture").unwrap();
    png(&place.path().join("good.png"), 0, 3);
    let output = start(&place, "lenet", &["predict", "--run", "run", "good.png", "text.png", "good.png"], "");
    let said = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let (answers, errors) = (said(output.stdout), said(output.stderr));
    assert_eq!((output.status.code(), answers.lines().count(), errors.lines().count()), (Some(1), 2, 2));
    assert!(errors.starts_with("error: text.png: is not an image, expected a PNG or JPEG"), "{errors}");
    fs::write(place.path().join("list"), "\u{feff}good.png\r\n\n\"good.png\"  \ntext.png\n").unwrap();
    let output = start(&place, "lenet", &["predict", "--run", "run", "--file", "list"], "");
    let (answers, errors) = (said(output.stdout), said(output.stderr));
    assert_eq!((output.status.code(), answers.lines().count()), (Some(1), 2), "{errors}");
    assert!(errors.contains("list: line 4: text.png") && errors.contains("skipped 1 blank line"), "{errors}");
}

#[cfg(unix)]
#[test]
fn paths_of_images_need_not_be_utf8() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let place = copied();
    let name = OsStr::from_bytes(b"\xe9.png");
    png(&place.path().join("good.png"), 0, 3);
    fs::rename(place.path().join("good.png"), place.path().join(name)).unwrap();
    fs::write(place.path().join("list"), b"\xe9.png\r\nfile://%E9.png\n").unwrap();
    for (arguments, answers) in [([OsStr::new("--file"), OsStr::new("list")].as_slice(), 2), (&[name], 1)] {
        let output =
            command(&place, "lenet").args(["predict", "--run", "run"]).args(arguments).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        let are_answers = said.lines().all(|line| line.starts_with("\u{fffd}.png: "));
        assert!(said.lines().count() == answers && are_answers && output.status.success(), "{output:?}");
    }
}

#[test]
fn output_that_cannot_be_written_is_an_error_unless_nobody_reads_it() {
    let place = copied();
    for arguments in [["eval", "--run", "run", "--data-dir", "../data"].as_slice(), &["--help"]] {
        let full = || fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        if cfg!(target_os = "linux") {
            let output = command(&place, "lenet").args(arguments).stdout(full()).output().unwrap();
            one_error(&output, 1, &["standard output: cannot write it"]);
        }
        let mut child = command(&place, "lenet").args(arguments).spawn().unwrap();
        drop(child.stdout.take());
        assert!(child.wait().unwrap().success(), "{arguments:?}");
    }
}

#[test]
fn the_newest_run_is_the_newest_that_holds_a_model() {
    let place = place();
    fs::create_dir_all(place.path().join("runs/lenet/2")).unwrap();
    std::os::unix::fs::symlink(trained("lenet"), place.path().join("runs/lenet/1")).unwrap();
    fs::copy(trained("lenet").join("config.json"), place.path().join("runs/lenet/2/config.json")).unwrap();
    let output = start(&place, "lenet", &["eval"], "");
    assert!(output.status.success(), "{output:?}");
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "note: this uses the newest run, runs/lenet/1\n");
}

#[test]
fn weights_that_name_no_run_are_noted_and_nan_is_refused() {
    let place = copied();
    let path = place.path().join("run/model.safetensors");
    let mut weights = candle_core::safetensors::load(&path, &candle_core::Device::Cpu).unwrap();
    candle_core::safetensors::save(&weights, &path).unwrap();
    noted(&place, "lenet", "eval --run run", "run/model.safetensors: these weights name no run");
    let bias = weights.get_mut("conv1.bias").unwrap();
    *bias = bias.affine(f64::NAN, 0.0).unwrap();
    candle_core::safetensors::save(&weights, &path).unwrap();
    png(&place.path().join("good.png"), 0, 3);
    refused(
        &place,
        "lenet",
        "predict --run run good.png",
        1,
        &["run/model.safetensors", "conv1.bias is NaN"],
    );
}

#[test]
fn a_preset_adapts_to_a_small_data_set() {
    let place = place();
    let arguments = format!("{DATA} --preset chapter1 --epochs 1 --train-limit 20 --quiet --out run");
    let output = start(&place, "mlp", &arguments.split(' ').collect::<Vec<_>>(), "");
    assert!(output.status.success(), "{output:?}");
    let note = String::from_utf8(output.stderr).unwrap();
    assert!(note.starts_with("note: the preset holds out 10000 ") && note.contains("that is 50"), "{note}");
}

#[test]
fn help_lists_the_data_sets_with_their_files() {
    let place = place();
    let [lenet, resnet] = ["lenet", "resnet"].map(|binary| done(&place, binary, "--help"));
    assert_eq!(lenet.matches("Usage:").count(), 1, "{lenet}");
    let lists = |help: &str, name: &str| help.lines().any(|line| line.trim_start().starts_with(name));
    assert!(lists(&lenet, "mnist ") && lenet.contains("train-images-idx3-ubyte"), "{lenet}");
    assert!(!lists(&lenet, "cifar10 ") && lists(&resnet, "cifar10 ") && lists(&resnet, "image-folder "));
}

#[test]
fn a_learning_rate_that_changes_no_weight_is_noted() {
    let text = |rate: &str| {
        let options = format!("{DATA} --train-limit 50 --epochs 2 --learning-rate {rate}");
        String::from_utf8(start(&place(), "mlp", &options.split(' ').collect::<Vec<_>>(), "").stdout).unwrap()
    };
    let note = "with a learning rate of 1e-300, has changed no weight";
    assert_eq!(text("1e-300").matches(note).count(), 1);
    assert!(!text("1e-3").contains("has changed no weight"));
}
