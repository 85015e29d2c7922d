//! Runs the examples on little data.

#[path = "common/colours.rs"]
mod colours;

use colours::write_blue_and_red;
use std::path::Path;

macro_rules! example {
    ($name:ident, $file:literal) => {
        #[path = $file]
        #[allow(dead_code)]
        mod $name;
    };
}

example!(autoencoder, "../examples/autoencoder.rs");
example!(char_rnn, "../examples/char_rnn.rs");
example!(drop_in, "../examples/drop_in.rs");
example!(fine_tune, "../examples/fine_tune.rs");
example!(load_pytorch, "../examples/load_pytorch.rs");
example!(mnist, "../examples/mnist/main.rs");
example!(regression, "../examples/regression/main.rs");

#[test]
fn the_autoencoder_learns_and_draws_its_reconstructions() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("digits.png");
    assert!(autoencoder::run(300, 2, &file).unwrap() < 0.2);
    assert_eq!(image::image_dimensions(file).unwrap(), (280, 56));
}

#[test]
fn the_character_model_learns_and_writes_in_its_alphabet() {
    let (loss, sample) = char_rnn::run(&"abcd".repeat(30), 40).unwrap();
    assert!(loss < 0.5, "{loss}");
    assert!(sample.starts_with("abcdabcd") && sample.len() == 100, "{sample}");
}

#[test]
fn the_drop_in_program_learns() {
    assert!(drop_in::run(None, 2, 600).unwrap() > 0.4);
}

#[test]
fn fine_tuning_reads_a_folder_of_images() {
    let dir = tempfile::tempdir().unwrap();
    write_blue_and_red(dir.path());
    assert!((0.0..=1.0).contains(&fine_tune::run(dir.path(), None, 32, 1).unwrap()));
}

#[test]
fn weights_of_pytorch_give_its_logits() {
    // `net["fc"](net["norm"](net["first"](torch.ones(1, 2)).view(1, 3, 1, 1)).view(1, 3))` in PyTorch.
    let expected = [209.405_24, 279.253_05, 349.100_9, 418.948_73];
    for file in ["plain.pth", "legacy.bin", "expected.safetensors"] {
        let logits = load_pytorch::run(&Path::new("tests/fixtures/pytorch").join(file)).unwrap();
        assert!(logits.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-3), "{file}: {logits:?}");
    }
}

#[test]
fn the_own_network_learns_and_predicts_from_its_run_folder() {
    let out = tempfile::tempdir().unwrap();
    assert!(mnist::run(None, Some(out.path()), 2, 600).unwrap() > 0.4);
    assert!(out.path().join("model.safetensors").exists());
    let bar = image::GrayImage::from_fn(28, 28, |x, y| {
        image::Luma([if (13..16).contains(&x) && (4..24).contains(&y) { 255 } else { 0 }])
    });
    let file = out.path().join("one.png");
    bar.save(&file).unwrap();
    let (digit, probability) = mnist::predict(Some(out.path()), &file).unwrap();
    assert!(digit < 10 && (0.1..=1.0).contains(&probability), "{digit} {probability}");
}

#[test]
fn the_own_task_lowers_its_error() {
    let rows = regression::table::balls().unwrap();
    let [one, ten] = [1, 10].map(|epochs| regression::run(&rows, None, epochs).unwrap().0);
    assert!(ten < 2.0 && ten < one, "{one} {ten}");
}

#[test]
fn a_table_of_ones_own_is_learnt_and_new_rows_are_predicted() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        std::fs::write(dir.path().join(name), text).unwrap();
        dir.path().join(name)
    };
    // The price is 1000 * rooms + 10 * area + 50000; the last input column never changes.
    let lines = (0..200)
        .map(|i| (i % 7, i * 37 % 90))
        .map(|(rooms, area)| (rooms, area, 1_000 * rooms + 10 * area + 50_000));
    let lines = lines.map(|(rooms, area, price)| format!("{rooms},{area},1,{price}\n")).collect::<String>();
    let table =
        regression::table::read(write("homes.csv", &format!("rooms,area,floor,price\n{lines}"))).unwrap();
    let new = regression::table::read(write("new.csv", "rooms,area,floor\n3,50,1\n")).unwrap();
    let (error, predictions) = regression::run(&table, Some(&new), 60).unwrap();
    assert!(error < 200.0, "{error}");
    assert!((predictions[0] - 53_500.0).abs() < 500.0, "{predictions:?}");

    let error = regression::run(&table, Some(&table), 1).unwrap_err();
    assert_eq!(error.to_string(), "found rows of 4 numbers, expected 3");
    let error = regression::table::read(write("bad.csv", "rooms,price\n3,low\n")).unwrap_err();
    assert!(format!("{error:#}").contains("bad.csv: CSV deserialize error: record 1 (line: 2"), "{error:#}");
}
