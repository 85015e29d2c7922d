//! Input that the image binaries refuse.

use super::*;

#[test]
fn wrong_options_are_refused() {
    let place = place();
    for (arguments, said) in [
        ("--epochs 0", "'--epochs <N>'"),
        ("--batch-size 0", "'--batch-size <N>'"),
        ("--learning-rate nan", "'--learning-rate <X>'"),
        ("--learning-rate=-1", "'--learning-rate <X>'"),
        ("--learning-rate -1", "expected a number above 0"),
        ("--batch-size 18446744073709551616", "'--batch-size <N>'"),
        ("--threads 0", "'--threads <N>'"),
        ("--dropout 1", "'--dropout <X>'"),
        ("--momentum 2", "excluding 1"),
        ("--seed -1", "expected a whole number, 0 or more"),
        ("--hidden 30 --hidden 20", "cannot be used multiple times"),
        ("--hidden 30,x", "expected a whole number, 1 to"),
        ("--epoch 3", "'--epoch'"),
        ("-- --epochs 1", "--epochs follows --, after which there are no options: leave out the --"),
        ("train -- --epochs 1", "--epochs follows --, after which there are no options: leave out the --"),
        ("--device gpu", "expected auto, cpu"),
        ("--resume run --out other", "cannot be used with"),
    ] {
        refused(&place, "mlp", arguments, 2, &[said]);
    }
    let listed = "modern, lenet5, nielsen-one, nielsen-two, nielsen-relu, nielsen-dropout";
    refused(&place, "lenet", "--variant alexnet", 2, &[listed]);
    refused(&place, "lenet", &format!("{DATA} --validation 500"), 1, &["--validation 500", "500 examples"]);
    if cfg!(not(feature = "cuda")) {
        refused(&place, "lenet", &format!("{DATA} --device cuda"), 1, &["--features cuda"]);
    }
    refused(&place, "mlp", &format!("{DATA} --hidden 30,0"), 2, &["'0'", "expected a whole number, 1 to"]);
    refused(&place, "mlp", &format!("{DATA} --optimizer sgd --nesterov"), 2, &["--nesterov", "--momentum"]);
    refused(
        &place,
        "mlp",
        &format!("{DATA} --momentum 0.9"),
        2,
        &["--momentum", "--optimizer sgd or rmsprop"],
    );
    refused(&place, "mlp", &format!("{DATA} --hidden 4000000000"), 1, &["parameters", "GB"]);
    let one = Images::new(vec![0; 3], vec![4_u32; 3], (1, 1, 1), 10).unwrap();
    write_idx(&place.path().join("one"), &one, &one);
    refused(&place, "mlp", "--dataset mnist --data-dir one", 1, &["every training image has the class 4"]);
    assert!(done(&place, "lenet", "--help").contains("--checkpoint-every <N>"));
}

#[test]
fn an_instruction_set_that_does_not_exist_is_refused() {
    let place = place();
    let output = command(&place, "lenet")
        .args(["eval", "--run", "run"])
        .env("CANDLE_TEXTBOOK_SIMD", "mmx")
        .output()
        .unwrap();
    one_error(&output, 1, &["CANDLE_TEXTBOOK_SIMD", "mmx"]);
}

#[test]
fn wrong_data_is_refused_before_a_run_folder_exists() {
    let place = place();
    refused(
        &place,
        "lenet",
        "--dataset cifar",
        1,
        &[
            "cifar",
            "expected one of digits, mnist, fashion-mnist, emnist-digits, emnist-letters, emnist-balanced, ",
            "emnist-bymerge, emnist-byclass, image-folder;",
        ],
    );
    refused(&place, "lenet", "--dataset mnist --data-dir gone", 1, &["gone", "no such directory"]);
    refused(
        &place,
        "lenet",
        "--data-dir ../data",
        1,
        &["digits", "leave out --data-dir, or", "--dataset NAME"],
    );
    fs::create_dir(place.path().join("data")).unwrap();
    let mine = "--dataset mnist --data-dir data";
    refused(&place, "lenet", mine, 1, &["data: ", "train-images-idx3-ubyte"]);

    let (train, test) = digits(20, 10, 0).unwrap();
    write_idx(&place.path().join("data"), &train, &test);
    let labels = place.path().join("data/t10k-labels-idx1-ubyte");
    fs::write(&labels, &fs::read(&labels).unwrap()[..15]).unwrap();
    refused(&place, "lenet", mine, 1, &["data/t10k-labels-idx1-ubyte", "10"]);

    let labels = (0..20).map(|i| i % 2).collect::<Vec<u8>>();
    let tiny = Images::new(vec![9; 20 * 16], labels, (1, 4, 4), 10).unwrap();
    write_idx(&place.path().join("data"), &tiny, &tiny);
    refused(&place, "lenet", mine, 1, &["4x4", "28x28"]);
    refused(&place, "lenet", &format!("{mine} --variant lenet5"), 1, &["4x4", "28x28"]);
    let run = trained("mlp");
    let eval = format!("eval --run {} {mine}", run.display());
    refused(&place, "mlp", &eval, 1, &["mnist: found images of 4x4", "expected 28x28"]);
}

#[test]
fn a_folder_that_cannot_be_written_is_refused() {
    let place = copied();
    fs::write(place.path().join("file"), "").unwrap();
    refused(&place, "lenet", &format!("{DATA} --out run"), 1, &["run", "not empty"]);
    refused(
        &place,
        "lenet",
        &format!("{DATA} --out file/run"),
        1,
        &["file/run", "cannot create the run folder"],
    );
}

#[cfg(target_os = "linux")]
#[test]
fn a_limit_of_the_address_space_is_respected() {
    let place = place();
    let mlp = Path::new(env!("CARGO_BIN_EXE_mlp"));
    for (options, part) in [
        ("--threads 1 --hidden 9000,9000", "at most 0."),
        ("--threads 1024", "1024 threads: can't be started: "),
    ] {
        let script = format!("ulimit -v 500000; exec {} {DATA} --quiet {options}", mlp.display());
        let output = Command::new("sh").args(["-c", &script]).current_dir(&place).output().unwrap();
        one_error(&output, 1, &[part]);
        assert!(names(place.path()).is_empty());
    }
}

#[cfg(unix)]
#[test]
fn a_path_that_a_run_cannot_record_is_named() {
    use std::os::unix::ffi::OsStrExt;
    let place = place();
    let dir = std::ffi::OsStr::from_bytes(b"d\xe9");
    fs::create_dir(place.path().join(dir)).unwrap();
    let mut lenet = command(&place, "lenet");
    let output = lenet.args(["--dataset", "mnist", "--data-dir"]).arg(dir).output().unwrap();
    one_error(&output, 1, &["--data-dir d", "not UTF-8", "rename it"]);
    std::os::unix::fs::symlink(dir, place.path().join("link")).unwrap();
    let data = ground().join("data");
    names(&data).iter().for_each(|name| _ = fs::copy(data.join(name), place.path().join(dir).join(name)));
    refused(&place, "lenet", "--dataset mnist --data-dir link --quiet", 1, &["not UTF-8", "rename it"]);
}

#[test]
fn a_full_disk_leaves_the_old_checkpoint() {
    let place = place();
    let run = place.path().join("run");
    let arguments = format!("{DATA} --epochs 1000 --checkpoint-every 1 --out run");
    common::killed(&place, "lenet", &arguments, || run.join("checkpoint.safetensors").exists());
    let checkpoint = fs::read(run.join("checkpoint.safetensors")).unwrap();

    let output = Command::new("sh")
        .args([
            "-c",
            "trap '' XFSZ; ulimit -f 100; exec \"$0\" train --resume run",
            env!("CARGO_BIN_EXE_lenet"),
        ])
        .current_dir(place.path())
        .output()
        .unwrap();
    one_error(&output, 1, &["run/checkpoint.safetensors", "cannot write it"]);
    assert!(fs::read(run.join("checkpoint.safetensors")).unwrap() == checkpoint);
    assert!(names(&run).iter().all(|name| !name.ends_with(".tmp")), "{:?}", names(&run));
}

#[test]
fn options_that_contradict_a_run_are_refused() {
    let place = copied();
    let named = ["run", "--learning-rate 0.002", "0.5"];
    refused(&place, "lenet", "--resume run --learning-rate 0.5", 1, &named);
    refused(&place, "lenet", "--resume run --variant lenet5", 1, &["--variant modern", "with lenet5"]);
    refused(&place, "lenet", "--resume gone", 1, &["gone: there is no such run; found no run in runs/lenet"]);
    refused(&place, "mlp", "--resume run", 1, &["run of lenet", "one of mlp"]);
    refused(&place, "mlp", "eval --run run", 1, &["run of lenet", "one of mlp"]);
    refused(&place, "lenet", "eval", 1, &["runs/lenet", "found no run"]);
    done(&place, "lenet", "--resume run --learning-rate 2e-3 --quiet");
}

#[test]
fn a_broken_run_is_refused() {
    let place = copied();
    let path = |name: &str| place.path().join("run").join(name);
    let [bytes, checkpoint] =
        ["model.safetensors", "checkpoint.safetensors"].map(|name| fs::read(path(name)).unwrap());
    let name = "run/model.safetensors";

    fs::write(path("model.safetensors"), &bytes[..bytes.len() - 1]).unwrap();
    refused(&place, "lenet", "eval --run run", 1, &[name, "not a complete safetensors file"]);
    fs::write(path("model.safetensors"), "").unwrap();
    refused(&place, "lenet", "eval --run run", 1, &[name, "found an empty file"]);
    fs::copy(trained("mlp").join("model.safetensors"), path("model.safetensors")).unwrap();
    refused(&place, "lenet", "eval --run run", 1, &[name, "the weights of another run", "run is the run"]);
    fs::remove_file(path("model.safetensors")).unwrap();
    refused(&place, "lenet", "eval --run run", 1, &[name, "cannot read it"]);

    fs::write(path("checkpoint.safetensors"), &checkpoint[..checkpoint.len() / 2]).unwrap();
    refused(
        &place,
        "lenet",
        "--resume run",
        1,
        &["run/checkpoint.safetensors", "not a complete safetensors file"],
    );
    fs::write(path("checkpoint.safetensors"), &bytes).unwrap();
    refused(&place, "lenet", "--resume run", 1, &["run/checkpoint.safetensors", "no training state found"]);
    let mut damaged = checkpoint.clone();
    damaged[checkpoint.len() / 2] ^= 1;
    fs::write(path("checkpoint.safetensors"), damaged).unwrap();
    refused(&place, "lenet", "--resume run", 1, &["run/checkpoint.safetensors"]);

    fs::write(path("config.json"), "{\"binary\": ").unwrap();
    refused(&place, "lenet", "eval --run run", 1, &["run/config.json", "not the configuration of a run"]);
    fs::write(path("config.json"), "{\"binary\": \"lenet\"}").unwrap();
    refused(&place, "lenet", "--resume run", 1, &["run/config.json", "checksum"]);
}

#[test]
fn predict_refuses_files_without_a_digit() {
    let place = copied();
    fs::write(place.path().join("text.png"), "not a picture").unwrap();
    GrayImage::from_pixel(50, 50, Luma([255])).save(place.path().join("blank.png")).unwrap();
    png(&place.path().join("good.png"), 0, 3);
    refused(&place, "lenet", "predict --run run gone.png", 1, &["gone.png", "can't be opened"]);
    refused(&place, "lenet", "predict --run run text.png", 1, &["text.png", "expected a PNG or JPEG"]);
    refused(&place, "lenet", "predict --run run blank.png", 1, &["blank.png", "no digit in the image"]);
    refused(&place, "lenet", "predict good.png", 1, &["found no run"]);
    refused(&place, "lenet", "predict --run run run/..", 1, &["run/..: this is a folder", "run/../*"]);
    noted(&place, "lenet", "predict --run run good.png", "photographs of ink: 1");
}

#[test]
fn a_run_among_the_inputs_is_refused() {
    let place = copied();
    refused(&place, "lenet", "predict --run run run", 1, &["run: this is a run", "--run run"]);
    refused(
        &place,
        "lenet",
        "predict --run run runs/lenet/7",
        1,
        &["runs/lenet/7", "no such run", "--run RUN"],
    );
}
