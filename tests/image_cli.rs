//! The image binaries as processes: training on small folders, prediction and evaluation, augmentation.

mod common;

use common::*;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use candle_textbook::data::{Images, digits};
use image::{GrayImage, Rgb, RgbImage};
use serde_json::Value;
use tempfile::{TempDir, tempdir};

const FOLDER: &str = "--dataset image-folder --data-dir pictures";
const DATA: &str = "--dataset image-folder --data-dir pictures --side 12 --layers 8 --quiet";

/// A folder of striped images in `classes`, with `train` training images and 6 test images per class.
fn folder(classes: &[&str], train: u32) -> TempDir {
    let place = tempdir().unwrap();
    for &class in classes {
        for (split, count) in [("train", train), ("test", 6)] {
            let dir = place.path().join("pictures").join(split).join(class);
            fs::create_dir_all(&dir).unwrap();
            for i in 0..count {
                let picture = stripes(class, i + if split == "test" { 1000 } else { 0 });
                picture.save(dir.join(format!("{i:03}.png"))).unwrap();
            }
        }
    }
    place
}

fn stripes(class: &str, i: u32) -> RgbImage {
    RgbImage::from_fn(14, 12, |x, y| {
        let along = match class {
            "lying" => y,
            "standing" => x,
            _ => x + y,
        };
        let light = 60 * u32::from((along + i).is_multiple_of(4)) + 3 * (i % 11);
        Rgb([100, 60 + 9 * (i % 7) as u8, 140 - 8 * (i % 5) as u8].map(|value| value + light as u8))
    })
}

const CLASSES: [&str; 3] = ["leaning", "lying", "standing"];

/// A working directory with a run on three classes in `run` and its images in `pictures`.
///
/// Tests must not change it.
fn trained() -> &'static Path {
    static PLACE: OnceLock<PathBuf> = OnceLock::new();
    PLACE.get_or_init(|| {
        let place = folder(&CLASSES, 40).keep();
        let said =
            done(&place, "resnet", &format!("{DATA} --flip false --batch-size 8 --epochs 8 --out run"));
        assert!(said.starts_with("test accuracy 100.00% (18 of 18)"), "{said}");
        place
    })
}

#[test]
fn a_folder_of_images_is_learned_and_other_images_are_predicted() {
    let place = trained();
    let config = config(&place.join("run"));
    let pictures = &config["pictures"];
    assert_eq!((&config["classes"], &pictures["shape"]), (&CLASSES.into(), &[3, 12, 12].into()));
    assert_eq!(pictures["normalisation"]["mean"].as_array().unwrap().len(), 3);
    assert_eq!(config["training_examples"], 108);
    for name in ["curves", "confusion", "mistakes", "filters", "features", "grad-cam"] {
        assert!(fs::read(place.join(format!("run/{name}.svg"))).unwrap().starts_with(b"<svg"), "{name}");
    }
    let said = done(place, "resnet", "eval --run run");
    assert!(said.starts_with("test accuracy 100.00% (18 of 18)"), "{said}");

    let other = tempdir().unwrap();
    let picture = other.path().join("a.jpg");
    stripes("lying", 77).save(&picture).unwrap();
    let said = done(
        place,
        "resnet",
        &format!("predict --run run {} pictures/test/leaning/000.png", picture.display()),
    );
    let [first, second] = said.lines().collect::<Vec<_>>()[..] else { panic!("{said}") };
    assert!(first.starts_with(&format!("{}: lying (", picture.display())), "{said}");
    assert!(
        second.starts_with("pictures/test/leaning/000.png: leaning (") && second.contains("%)  "),
        "{said}"
    );
}

#[test]
fn filters_and_activations_are_drawn_from_a_trained_model() {
    let place = tempdir().unwrap();
    for (name, file) in [("run/config.json", "config.json"), ("run/model.safetensors", "model.safetensors")] {
        fs::copy(trained().join(name), place.path().join(file)).unwrap();
    }
    stripes("lying", 50).save(place.path().join("own.png")).unwrap();
    assert_eq!(done(&place, "lab", "filters ."), "drawn: ./filters.svg\n");
    assert_eq!(done(&place, "lab", "activations . own.png"), "drawn: ./activations.svg\n");
    let svg = fs::read_to_string(place.path().join("activations.svg")).unwrap();
    assert!(svg.contains("lying (") && svg.contains("After stage 1"), "{svg:.2000}");
    refused(&place, "lab", "activations . other.png", 1, &["other.png"]);
    refused(&place, "lab", "embeddings .", 1, &["resnet", "expected one of textcnn"]);
    refused(&place, "lab", "filters elsewhere", 1, &["elsewhere: there is no such run"]);
}

#[test]
fn a_killed_run_resumes_to_the_same_model_with_any_number_of_threads() {
    let place = folder(&CLASSES, 20);
    let common = format!(
        "{DATA} --epochs 3 --batch-size 8 --crop 1 --jitter 0.2 --label-smoothing 0.1 --checkpoint-every 2"
    );
    done(&place, "resnet", &format!("{common} --threads 2 --out whole"));
    let cut = place.path().join("cut");
    let ready = || cut.join("checkpoint.safetensors").exists();
    killed(&place, "resnet", &format!("{common} --threads 1 --out cut"), ready);
    done(&place, "resnet", "--threads 1 --quiet --resume cut");
    assert!(model(&place.path().join("whole")) == model(&cut));
}

#[test]
fn a_validation_folder_is_used_for_validation() {
    let place = folder(&CLASSES, 8);
    fs::create_dir(place.path().join("pictures/val")).unwrap();
    for class in CLASSES {
        let val = place.path().join("pictures/val").join(class);
        fs::create_dir(&val).unwrap();
        stripes(class, 500).save(val.join("a.png")).unwrap();
    }
    done(&place, "resnet", &format!("{DATA} --epochs 1 --out run"));
    let config = config(&place.path().join("run"));
    assert_eq!((&config["training_examples"], &config["validation_examples"]), (&24.into(), &3.into()));
}

#[test]
fn a_folder_without_a_test_split_is_tested_on_images_drawn_from_it() {
    let place = folder(&CLASSES[..2], 12);
    fs::remove_dir_all(place.path().join("pictures/test")).unwrap();
    let note = "no test split, so the test uses 2 of the 24 training examples";
    let said = noted(&place, "mlp", &format!("{FOLDER} --epochs 1 --quiet --out run"), note);
    let tested = noted(&place, "mlp", "eval --run run", note);
    assert_eq!(said.split(';').next(), Some(tested.trim()));
    noted(&place, "mlp", "eval --run run --data-dir pictures/train", "classes of the test split");
    fs::rename(place.path().join("pictures"), place.path().join("moved")).unwrap();
    let moved = start(&place, "mlp", &["eval", "--run", "run", "--data-dir", "moved"], "");
    let notes = String::from_utf8_lossy(&moved.stderr);
    assert!(notes.contains("moved: taken for the run's data") && notes.contains(note), "{notes}");
    // Images with a test split are tested alike wherever the training images were.
    let other = folder(&CLASSES[..2], 12);
    done(&place, "mlp", &format!("eval --run run --data-dir {}/pictures", other.path().display()));
}

#[test]
fn pretrained_weights_transfer_to_other_classes() {
    let place = folder(&CLASSES[..2], 16);
    let file = place.path().join("start.safetensors");
    fs::copy(trained().join("run/model.safetensors"), &file).unwrap();
    let pretrained = "--pretrained start.safetensors";
    let said = done(
        &place,
        "resnet",
        &format!("{} {pretrained} --freeze-until fc --epochs 3 --out run", DATA.replace("--quiet", "")),
    );
    assert!(said.contains("except fc, which is initialised randomly"), "{said}");
    let [before, after] = [file.clone(), place.path().join("run/model.safetensors")]
        .map(|file| candle_core::safetensors::load(file, &candle_core::Device::Cpu).unwrap());
    for (name, tensor) in &after {
        let same = tensor.dims() == before[name].dims()
            && tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap()
                == before[name].flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(same, !name.starts_with("fc."), "{name}");
    }
    let last = metrics(&place.path().join("run")).pop().unwrap();
    assert!(last["test_accuracy"].as_f64() > Some(0.9), "{last}");
    refused(&place, "resnet", &format!("{FOLDER} {pretrained} --layers 14"), 1, &["parameter layer1.1"]);
    // The run keeps a copy of the weights, even before its first checkpoint.
    fs::remove_file(file).unwrap();
    let [fresh, whole] = ["fresh", "run"].map(|run| place.path().join(run));
    fs::create_dir(&fresh).unwrap();
    for name in ["config.json", "pretrained.weights"] {
        fs::copy(whole.join(name), fresh.join(name)).unwrap();
    }
    noted(&place, "resnet", "--resume fresh --quiet", "no checkpoint yet");
    assert!(model(&fresh) == model(&whole));
}

#[test]
fn plain_and_residual_networks_are_compared_in_one_plot() {
    let place = folder(&CLASSES, 6);
    let said = done(&place, "resnet", &format!("{DATA} --degradation --epochs 2 --out run"));
    assert!(
        said.contains("plain-8: training error ") && said.contains("resnet-8: training error "),
        "{said}"
    );
    let picture = fs::read_to_string(place.path().join("run/degradation.svg")).unwrap();
    assert!(["plain-8", "resnet-8", "Training error"].iter().all(|text| picture.contains(text)));
    let run = place.path().join("run");
    assert_eq!(metrics(&run.join("plain-8")).len(), 2);
    refused(&place, "resnet", "--resume run/plain-8", 1, &["a part of the run run", "--resume run"]);
    fs::remove_dir_all(run.join("resnet-8")).unwrap();
    fs::remove_file(run.join("degradation.svg")).unwrap();
    done(&place, "resnet", "--quiet --resume run");
    assert_eq!(fs::read_to_string(run.join("degradation.svg")).unwrap(), picture);
}

#[test]
fn bad_folders_and_images_are_named_and_leave_no_run() {
    let refuse = |change: &dyn Fn(&Path), said: &[&str]| {
        let place = folder(&CLASSES, 4);
        change(&place.path().join("pictures"));
        refused(&place, "resnet", &format!("{DATA} --out run"), 1, said);
    };
    refuse(&|dir| fs::remove_dir_all(dir.join("test/lying")).unwrap(), &["test", "lying", "which train has"]);
    refuse(
        &|dir| {
            fs::remove_dir_all(dir.join("train/lying")).unwrap();
            fs::create_dir(dir.join("train/lying")).unwrap();
        },
        &["train/lying", "no images"],
    );
    refuse(
        &|dir| fs::write(dir.join("train/lying/001.png"), "no").unwrap(),
        &["train/lying/001.png", "PNG or JPEG"],
    );
    let dot = |dir: &Path| RgbImage::new(1, 1).save(dir.join("train/lying/x.png")).unwrap();
    refuse(&dot, &["train/lying/x.png", "1x1 pixels", "4x4"]);
}

#[test]
fn wrong_options_are_refused() {
    let place = folder(&CLASSES, 4);
    for (arguments, code, said) in [
        ("--layers 21", 1, "expected 6n+2"),
        ("--layers 18 --shortcut identity", 1, "18 layers has projections"),
        ("--label-smoothing 1", 2, "'--label-smoothing <X>'"),
        ("--side 4", 2, "expected a whole number, 8 to 1024"),
        ("--side 32 --crop 32", 2, "--crop 32: the images are 32x32 pixels, expected 0 to 31"),
        ("--freeze-until fc", 2, "--pretrained"),
        ("--layers 8 --side 12 --pretrained nowhere.pth", 1, "nowhere.pth: no such file"),
        (
            "--layers 8 --side 12 --pretrained pictures/train/lying/000.png",
            1,
            "000.png: found a PNG image, expected weights",
        ),
    ] {
        refused(&place, "resnet", &format!("{FOLDER} {arguments}"), code, &[said]);
    }
    refused(&place, "resnet", "--side 16", 1, &["images of shapes have a fixed size"]);
    refused(&place, "resnet", "--dataset image-folder", 1, &["--data-dir", "train/CLASS"]);
    let two = folder(&CLASSES[..2], 4);
    let run = trained().join("run");
    let eval = format!("eval --run {} --data-dir pictures", run.display());
    refused(&two, "resnet", &eval, 1, &["found 2 classes, expected the 3"]);
    refused(&two, "resnet", &format!("predict --run {} gone.png", run.display()), 1, &["gone.png"]);
}

/// Writes `images` as the IDX files of a split, as an archive may unpack them.
fn write_idx(dir: &Path, split: &str, images: &Images) {
    fs::create_dir_all(dir.join("raw")).unwrap();
    let count = images.len() as u32;
    let pixels = images.read(&(0..count).collect::<Vec<_>>()).unwrap();
    let labels = images.labels().iter().map(|&label| label as u8).collect();
    for (name, sizes, contents) in
        [("images.idx3-ubyte", &[count, 28, 28][..], pixels), ("labels.idx1-ubyte", &[count][..], labels)]
    {
        let mut bytes = vec![0, 0, 8, sizes.len() as u8];
        sizes.iter().for_each(|size| bytes.extend(size.to_be_bytes()));
        bytes.extend(contents);
        fs::write(dir.join("raw").join(format!("{split}-{name}")), bytes).unwrap();
    }
}

/// Writes each image as a PNG file, named by its index.
fn export(images: &Images, dir: &Path) {
    fs::create_dir_all(dir).unwrap();
    let (channels, height, width) = images.shape();
    let size = (height * width) as u32;
    for index in 0..images.len() {
        let planes = images.image(index).unwrap().into_owned();
        let path = dir.join(format!("{index}.png"));
        let (width, height) = (width as u32, height as u32);
        if channels == 1 {
            GrayImage::from_raw(width, height, planes).unwrap().save(path).unwrap();
        } else {
            let pixel = |x, y| [0, 1, 2].map(|plane| planes[(plane * size + y * width + x) as usize]);
            RgbImage::from_fn(width, height, |x, y| Rgb(pixel(x, y))).save(path).unwrap();
        }
    }
}

/// Checks that `predict` on the exported `images` of a run's test set is correct as often as `eval` says.
#[track_caller]
fn predict_agrees_with_eval(place: &Path, binary: &str, images: &Images) {
    export(images, &place.join("exported"));
    let names: Vec<String> = (0..images.len()).map(|index| format!("exported/{index}.png")).collect();
    let output = start(
        place,
        binary,
        &[&["predict", "--run", "run"], &names.iter().map(String::as_str).collect::<Vec<_>>()[..]].concat(),
        "",
    );
    let said = String::from_utf8(output.stdout).unwrap();
    let is_correct = |(line, &label): (&str, &u32)| {
        let class = &images.class_names()[label as usize];
        line.split_once(": ").unwrap().1.starts_with(&format!("{class} ("))
    };
    let correct = said.lines().zip(images.labels()).filter(|&pair| is_correct(pair)).count();
    let said = done(place, binary, "eval --run run");
    let (_, expected) = said.split_once('(').unwrap();
    let expected: usize = expected.split(' ').next().unwrap().parse().unwrap();
    assert_eq!(correct, expected, "of {}; {said}", images.len());
    assert!(expected > images.len() / 4, "{said}");
}

#[test]
fn clothes_and_digits_are_prepared_for_prediction_as_for_training() {
    let (train, test) = digits(1500, 100, 1).unwrap();
    // Clothes touch the border, and some are darker than their surroundings.
    let inverted = |images: &Images| {
        let all: Vec<u32> = (0..images.len() as u32).collect();
        let pixels = images.read(&all).unwrap().into_iter().map(|byte| 255 - byte / 2).collect();
        Images::new(pixels, images.labels().to_vec(), images.shape(), 10).unwrap()
    };
    let clothing = [
        "t-shirt/top",
        "trouser",
        "pullover",
        "dress",
        "coat",
        "sandal",
        "shirt",
        "sneaker",
        "bag",
        "ankle boot",
    ];
    let clothes = inverted(&test).with_class_names(clothing).unwrap();
    for (name, train, test) in [("fashion-mnist", inverted(&train), clothes), ("mnist", train, test)] {
        let place = tempdir().unwrap();
        write_idx(place.path(), "train", &train);
        write_idx(place.path(), "t10k", &test);
        let options = format!("--dataset {name} --data-dir . --epochs 4 --quiet --out run");
        done(place.path(), "mlp", &options);
        // The test files suffice to test a run.
        fs::remove_file(place.path().join("raw/train-images.idx3-ubyte")).unwrap();
        predict_agrees_with_eval(place.path(), "mlp", &test);
    }
}

#[test]
fn every_image_binary_predicts_as_it_evaluates() {
    let place = tempdir().unwrap();
    let (train, test) = digits(1000, 60, 1).unwrap();
    write_idx(place.path(), "train", &train);
    write_idx(place.path(), "t10k", &test);
    for (binary, options) in [("lenet", "--epochs 2 --batch-size 20"), ("resnet", "--layers 8 --epochs 1")] {
        done(place.path(), binary, &format!("--dataset mnist --data-dir . {options} --quiet --out run"));
        predict_agrees_with_eval(place.path(), binary, &test);
        fs::remove_dir_all(place.path().join("run")).unwrap();
    }
}

#[test]
fn a_preset_adapts_to_few_and_small_images() {
    let place = folder(&CLASSES, 5);
    let options = "--preset paper --layers 8 --side 8 --epochs 2 --quiet";
    noted(
        place.path(),
        "resnet",
        &format!("{FOLDER} {options} --out run"),
        "the preset holds out 5000 examples",
    );
}

#[test]
fn a_batch_too_small_for_batch_normalisation_is_refused_before_the_first_step() {
    let place = folder(&CLASSES, 3);
    let single = format!("{FOLDER} --layers 18 --side 32 --quiet");
    let said = ["batch has 1 image, but batch normalisation needs 2", "--batch-size"];
    refused(place.path(), "resnet", &format!("{single} --batch-size 1"), 1, &said);
    refused(place.path(), "resnet", &format!("{single} --validation 8"), 1, &said);
}

/// Images of ten classes, each with its own colour under a pattern.
fn coloured(count: usize) -> Images {
    let labels: Vec<u32> = (0..count as u32).map(|index| index % 10).collect();
    let pixel = |index: usize, at: usize| match at / 1024 {
        0 => 25 * (index % 10) as u8,
        1 => 25 * (9 - index % 10) as u8,
        _ => (at * 7 + index * 13) as u8,
    };
    let pixels = (0..count).flat_map(|index| (0..3072).map(move |at| pixel(index, at))).collect();
    Images::new(pixels, labels, (3, 32, 32), 10).unwrap()
}

#[test]
fn coloured_images_are_prepared_for_prediction_as_for_training() {
    let place = tempdir().unwrap();
    let [train, test] = [500, 60].map(coloured);
    let record = |images: &Images, index: usize| {
        [&[images.labels()[index] as u8], &*images.image(index).unwrap()].concat()
    };
    for batch in 0..5 {
        let records: Vec<u8> =
            (100 * batch..100 * (batch + 1)).flat_map(|index| record(&train, index)).collect();
        fs::write(place.path().join(format!("data_batch_{}.bin", batch + 1)), records).unwrap();
    }
    let records: Vec<u8> = (0..60).flat_map(|index| record(&test, index)).collect();
    fs::write(place.path().join("test_batch.bin"), records).unwrap();
    fs::write(place.path().join("batches.meta.txt"), test.class_names().join("\n")).unwrap();
    done(
        place.path(),
        "mlp",
        "--dataset cifar10 --data-dir . --epochs 20 --activation relu --quiet --out run",
    );
    predict_agrees_with_eval(place.path(), "mlp", &test);
}

#[test]
fn the_first_line_shows_an_augmentation_that_fits_the_data() {
    let place = tempdir().unwrap();
    let (train, test) = digits(100, 20, 1).unwrap();
    write_idx(place.path(), "train", &train);
    write_idx(place.path(), "t10k", &test);
    for (options, augmentation) in [
        ("--dataset mnist", "augmentation: none;"),
        ("--dataset fashion-mnist", "augmentation: mirroring;"),
        ("--dataset mnist --flip true --crop 2", "augmentation: mirroring, shifts up to 2 pixels;"),
    ] {
        let said = done(place.path(), "resnet", &format!("{options} --data-dir . --layers 8 --epochs 1"));
        assert!(said.lines().next().unwrap().contains(augmentation), "{options}: {said}");
    }
}

#[test]
fn folders_are_read_in_grey_for_a_model_of_grey_images() {
    let place = folder(&CLASSES, 30);
    let options = format!("{FOLDER} --epochs 20 --batch-size 8 --quiet --out run");
    done(&place, "lenet", &options);
    assert_eq!(config(&place.path().join("run"))["pictures"]["shape"], Value::from(vec![1, 28, 28]));
    let files: Vec<String> = CLASSES
        .iter()
        .flat_map(|class| (0..6).map(move |i| format!("pictures/test/{class}/{i:03}.png")))
        .collect();
    let said = done(&place, "lenet", &format!("predict --run run {}", files.join(" ")));
    let is_correct = |line: &&str| {
        let (path, answer) = line.split_once(": ").unwrap();
        answer.starts_with(path.split('/').nth(2).unwrap())
    };
    let correct = said.lines().filter(is_correct).count();
    let expected = format!("({correct} of 18)");
    assert!(correct > 6 && done(&place, "lenet", "eval --run run").contains(&expected), "{said}");
}

#[test]
fn a_model_of_digits_is_tested_on_a_folder_of_them() {
    let place = tempdir().unwrap();
    done(&place, "mlp", "--train-limit 500 --epochs 2 --quiet --out run");
    let (_, test) = digits(0, 60, 0).unwrap();
    for index in 0..test.len() {
        let dir = place.path().join(format!("shots/test/{}", test.labels()[index]));
        fs::create_dir_all(&dir).unwrap();
        let pixels = test.image(index).unwrap().into_owned();
        GrayImage::from_raw(28, 28, pixels).unwrap().save(dir.join(format!("{index}.png"))).unwrap();
    }
    write_idx(place.path(), "t10k", &test);
    let on = |data: &str| done(&place, "mlp", &format!("eval --run run --dataset {data}"));
    assert_eq!(on("image-folder --data-dir shots"), on("mnist --data-dir ."));
}

#[test]
fn a_damaged_test_image_is_found_before_training() {
    let place = tempdir().unwrap();
    for class in ["a", "b"] {
        for split in ["train", "test"] {
            let dir = place.path().join(split).join(class);
            fs::create_dir_all(&dir).unwrap();
            (0..9).for_each(|i| RgbImage::new(12, 12).save(dir.join(format!("{i}.png"))).unwrap());
        }
    }
    let damaged = place.path().join("test/b/3.png");
    let whole = fs::read(&damaged).unwrap();
    fs::write(&damaged, &whole[..whole.len() - 20]).unwrap();
    let arguments = "--dataset image-folder --data-dir . --layers 8 --side 12 --out run";
    refused(place.path(), "resnet", arguments, 1, &["test/b/3.png", "truncated"]);
}

#[test]
fn solvers_train_a_perceptron_on_all_examples_at_once() {
    let place = tempdir().unwrap();
    let small = "--dataset digits --train-limit 200 --validation 50 --hidden 10 --preset chapter3 --quiet";
    for (optimizer, epochs) in [("lbfgs", 6), ("newton-cg", 2)] {
        let arguments = format!("{small} --optimizer {optimizer} --epochs {epochs} --out {optimizer}");
        let note =
            format!("--optimizer {optimizer} replaces the preset's batch size, 10, and learning rate, 0.1");
        noted(&place, "mlp", &arguments, &note);
        let run = place.path().join(optimizer);
        let settings = &config(&run)["settings"];
        assert_eq!(settings["batch_size"], config(&run)["training_examples"]);
        assert_eq!((&settings["learning_rate"], &settings["schedule"]), (&1.0.into(), &"constant".into()));
        assert!(settings["weight_decay"].as_f64().unwrap() > 0.0, "the preset's: {settings}");
        let lines = metrics(&run);
        assert_eq!(lines[epochs - 1]["step"], epochs);
        let loss = |line: usize| lines[line]["train_loss"].as_f64().unwrap();
        assert!(loss(epochs - 1) < loss(0), "{lines:?}");
    }
    // The same as a run that is cut in the middle.
    let cut = format!("{small} --optimizer lbfgs --epochs 2 --keep-checkpoint --out cut");
    noted(&place, "mlp", &cut, "replaces the preset's");
    done(&place, "mlp", "--resume cut --epochs 6 --quiet");
    assert!(model(&place.path().join("lbfgs")) == model(&place.path().join("cut")));
    for (binary, arguments, part) in [
        ("mlp", "--batch-size 10", "--batch-size: has no meaning with --optimizer lbfgs"),
        ("mlp", "--dropout 0.5", "--dropout 0.5: the optimizer needs the same loss"),
        ("mlp", "--augment shifts", "--augment: the optimizer needs the same loss"),
        ("lenet", "", "--optimizer: lenet trains on batches"),
    ] {
        refused(&place, binary, &format!("--optimizer lbfgs {arguments} --out no"), 2, &[part]);
    }
}

#[test]
fn images_in_two_places_are_noted() {
    let place = folder(&["lying", "standing"], 10);
    let at = |path: &str| place.path().join("pictures").join(path);
    for (from, to) in [
        ("train/lying/003.png", "test/lying/a.png"),
        ("train/lying/004.png", "test/lying/b.png"),
        ("train/standing/001.png", "train/lying/c.png"),
    ] {
        fs::copy(at(from), at(to)).unwrap();
    }
    // All training images that validation leaves are wanted here.
    let arguments = format!("{DATA} --epochs 1 --batch-size 9 --validation 1 --validation-split first");
    let output = start(&place, "resnet", &arguments.split(' ').collect::<Vec<_>>(), "");
    let notes = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && notes.contains("in the training part: 2 of 14, such as "), "{notes}");
    assert!(notes.contains("test/lying/a.png, the same file as pictures/train/lying/003.png"), "{notes}");
    assert!(notes.contains("in another class: 1, such as pictures/train/"), "{notes}");
    fs::copy(at("test/lying/002.png"), at("test/lying/a.png")).unwrap();
    fs::copy(at("test/lying/002.png"), at("test/lying/b.png")).unwrap();
    fs::remove_file(at("train/lying/c.png")).unwrap();
    let arguments = format!("{arguments} --out other");
    let output = start(&place, "resnet", &arguments.split(' ').collect::<Vec<_>>(), "");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}
