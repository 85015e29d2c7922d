//! Runs the examples on little data.

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
example!(mnist, "../examples/mnist.rs");
example!(regression, "../examples/regression.rs");

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
    for (split, count) in [("train", 5u8), ("test", 1)] {
        for (class, channel) in [("blue", 2), ("red", 0)] {
            let folder = dir.path().join(split).join(class);
            std::fs::create_dir_all(&folder).unwrap();
            for i in 0..count {
                let mut colour = [40 * i; 3];
                colour[channel] = 255;
                let image = image::RgbImage::from_pixel(32, 32, image::Rgb(colour));
                image.save(folder.join(format!("{i}.png"))).unwrap();
            }
        }
    }
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
fn the_own_network_learns_and_fills_a_run_folder() {
    let out = tempfile::tempdir().unwrap();
    assert!(mnist::run(None, Some(out.path()), 2, 600).unwrap() > 0.4);
    assert!(out.path().join("model.safetensors").exists());
}

#[test]
fn the_own_task_lowers_its_own_metric() {
    let [one, ten] = [1, 10].map(|epochs| regression::run(epochs).unwrap());
    assert!(ten < 2.0 && ten < one, "{one} {ten}");
}
