//! Colour pictures: the built-in shapes, CIFAR-10's files, folders of pictures, and how they are changed in training.

mod says;

use says::assert_says;
use std::fs;
use std::io::Cursor;
use std::path::Path;

use candle_core::{Device, Tensor};
use candle_textbook::data::image::{cifar, folder, read_square};
use candle_textbook::data::{Augmentation, ImageSet, Images, Normalisation, PhotoAugmentation, shapes};
use image::{DynamicImage, GrayImage, ImageFormat, Luma, Rgb, RgbImage, Rgba, RgbaImage};
use tempfile::{TempDir, tempdir};

fn with_threads<T: Send>(threads: usize, work: impl FnOnce() -> T + Send) -> T {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(work)
}

#[test]
fn shapes_are_a_function_of_seed_and_place() {
    let (large, large_test) = shapes(120, 50, 3).unwrap();
    let (mut first, mut first_test) = with_threads(3, || shapes(200, 90, 3)).unwrap();
    first.truncate(120);
    first_test.truncate(50);
    assert_eq!((&large, &large_test), (&first, &first_test));
    assert_ne!(large, shapes(120, 0, 4).unwrap().0, "another seed");
    assert_ne!(large.image(0).unwrap(), large_test.image(0).unwrap(), "another split");
    assert_eq!(
        (large.shape(), large.classes(), large.class_names()[4].as_str()),
        ((3, 32, 32), 10, "striped triangle")
    );
    for class in 0..10 {
        assert_eq!(large.labels().iter().filter(|&&label| label == class).count(), 12);
    }
}

#[test]
fn the_mean_colour_of_a_shape_tells_nothing() {
    let (train, test) = shapes(4000, 1000, 0).unwrap();
    let mean = |images: &Images, index: usize| -> Vec<f32> {
        images
            .image(index)
            .unwrap()
            .chunks(1024)
            .map(|plane| plane.iter().map(|&byte| f32::from(byte)).sum())
            .collect()
    };
    let mut centres = vec![vec![0.0; 3]; 10];
    for (index, &label) in train.labels().iter().enumerate() {
        for (sum, value) in centres[label as usize].iter_mut().zip(mean(&train, index)) {
            *sum += value / 400.0;
        }
    }
    let nearest = |index: usize| {
        let mean = mean(&test, index);
        let away = |centre: &[f32]| centre.iter().zip(&mean).map(|(a, b)| (a - b).powi(2)).sum::<f32>();
        (0..10).min_by(|&a, &b| away(&centres[a]).total_cmp(&away(&centres[b]))).unwrap()
    };
    let right = (0..1000).filter(|&index| nearest(index) == test.labels()[index] as usize).count();
    assert!(right < 150, "{right} of 1000 by the nearest mean colour");
}

/// One record in each of the five training batches, two in the test batch.
fn tiny_cifar() -> TempDir {
    let dir = tempdir().unwrap();
    let record = |label: u8| [vec![label], (0..3072).map(|at| (at % 251) as u8).collect()].concat();
    for batch in 1..=5 {
        fs::write(dir.path().join(format!("data_batch_{batch}.bin")), record(batch)).unwrap();
    }
    fs::write(dir.path().join("test_batch.bin"), [record(9), record(0)].concat()).unwrap();
    dir
}

#[test]
fn cifar_batches_are_read_in_order_with_their_names() {
    let dir = tiny_cifar();
    let (train, test) = cifar::read_dir(dir.path()).unwrap();
    assert_eq!((train.labels(), test.labels()), ([1, 2, 3, 4, 5].as_slice(), [9, 0].as_slice()));
    assert_eq!((train.shape(), train.class_names()[9].as_str()), ((3, 32, 32), "truck"));
    assert_eq!(test.image(1).unwrap()[1024..1026], [20, 21]);

    fs::write(dir.path().join("batches.meta.txt"), "a\nb\nc\nd\ne\nf\ng\nh\ni\nj\n\n").unwrap();
    assert_eq!(cifar::read_dir(dir.path()).unwrap().1.class_names().concat(), "abcdefghij");
}

#[test]
fn broken_cifar_batches_are_named_with_what_was_found_and_expected() {
    let refusal_of = |file: &str, bytes: &[u8]| {
        let dir = tiny_cifar();
        fs::write(dir.path().join(file), bytes).unwrap();
        cifar::read_dir(dir.path()).unwrap_err()
    };
    let batch = "data_batch_3.bin";
    assert_says(&refusal_of(batch, &[0; 3072]), &[batch, "3072 bytes", "multiple of 3073"]);
    assert_says(&refusal_of(batch, &[]), &[batch, "0 bytes"]);
    let labels = [[0; 3073], [10; 3073]].concat();
    assert_says(
        &refusal_of("test_batch.bin", &labels),
        &["test_batch.bin", "label 10 at record 1", "0 to 9"],
    );
    assert_says(&refusal_of("batches.meta.txt", b"cat\ndog\n"), &["batches.meta.txt", "2 names", "10"]);

    let dir = tiny_cifar();
    fs::remove_file(dir.path().join(batch)).unwrap();
    assert_says(&cifar::read_dir(dir.path()).unwrap_err(), &[batch, "no such file"]);
    assert_says(&cifar::read_dir(Path::new("no/place")).unwrap_err(), &["no/place", "no such directory"]);
}

/// A picture of one colour.
fn plain(width: u32, height: u32, colour: [u8; 3]) -> DynamicImage {
    RgbImage::from_pixel(width, height, Rgb(colour)).into()
}

/// Two classes with one red and one blue picture each, in train and in test.
fn tiny_folder() -> TempDir {
    let dir = tempdir().unwrap();
    for (class, colour) in [("cat", [200, 0, 0]), ("dog", [0, 0, 200])] {
        for split in ["train", "test"] {
            let folder = dir.path().join(split).join(class);
            fs::create_dir_all(&folder).unwrap();
            plain(12, 10, colour).save(folder.join("a.PNG")).unwrap();
        }
        plain(40, 30, colour).save(dir.path().join("train").join(class).join("b.jpeg")).unwrap();
    }
    dir
}

#[test]
fn a_folder_is_listed_by_class_and_read_as_squares() {
    let dir = tiny_folder();
    fs::write(dir.path().join("train/cat/.DS_Store"), "").unwrap();
    fs::write(dir.path().join("train/README.txt"), "").unwrap();
    let ImageSet { training, validation, test } = folder::read_dir(dir.path(), 8).unwrap();
    assert_eq!((training.labels(), test.labels()), ([0, 1, 0, 1].as_slice(), [0, 1].as_slice()));
    assert_eq!((training.class_names(), validation), (["cat".into(), "dog".into()].as_slice(), None));
    assert_eq!(training.path(2).unwrap(), dir.path().join("train/cat/b.jpeg"));

    let pixels = training.read(&[3, 0]).unwrap();
    let planes: Vec<u8> = pixels.chunks(64).map(|plane| plane[27]).collect();
    assert!(planes.iter().zip([0, 0, 200, 200, 0, 0]).all(|(a, b)| a.abs_diff(b) <= 2), "{planes:?}");
    let mut kept = training.clone();
    kept.load_into_memory().unwrap();
    assert_eq!([kept.image(3).unwrap(), training.image(0).unwrap()].concat(), pixels);
    assert_eq!(
        (kept.labels(), kept.class_names(), kept.path(2)),
        (training.labels(), training.class_names(), None)
    );

    fs::rename(dir.path().join("test"), dir.path().join("val")).unwrap();
    fs::create_dir_all(dir.path().join("test")).unwrap();
    for class in ["cat", "dog"] {
        fs::rename(dir.path().join("train").join(class).join("b.jpeg"), dir.path().join("b.jpeg")).unwrap();
        fs::create_dir_all(dir.path().join("test").join(class)).unwrap();
        fs::rename(dir.path().join("b.jpeg"), dir.path().join("test").join(class).join("b.jpeg")).unwrap();
    }
    let ImageSet { training, validation, test } = folder::read_dir(dir.path(), 8).unwrap();
    assert_eq!((training.labels(), validation, test.len()), ([0, 1, 0, 1].as_slice(), Some(2), 2));
    assert_eq!(training.path(3).unwrap(), dir.path().join("val/dog/a.PNG"));

    fs::create_dir_all(dir.path().join("validation")).unwrap();
    assert_says(&folder::read_dir(dir.path(), 8).unwrap_err(), &["both val and validation"]);
    fs::remove_dir_all(dir.path().join("test")).unwrap();
    assert_says(&folder::read_dir(dir.path(), 8).unwrap_err(), &["test", "no such directory"]);
}

#[test]
fn any_part_of_a_folder_has_its_share_of_each_class() {
    let dir = tempdir().unwrap();
    for (class, count) in [("few", 10), ("many", 40), ("some", 20)] {
        for split in ["train", "test"] {
            let folder = dir.path().join(split).join(class);
            fs::create_dir_all(&folder).unwrap();
            (0..count).for_each(|i| fs::write(folder.join(format!("{i}.png")), "").unwrap());
        }
    }
    let labels = folder::read_dir(dir.path(), 8).unwrap().training.labels().to_vec();
    for part in labels.chunks(7) {
        let counts = [0, 1, 2].map(|class| part.iter().filter(|&&label| label == class).count());
        assert_eq!(counts, [1, 4, 2], "{labels:?}");
    }
}

#[test]
fn folders_whose_classes_or_files_are_not_as_they_should_be_are_refused_by_path() {
    let refusal_of = |change: &dyn Fn(&Path)| {
        let dir = tiny_folder();
        change(dir.path());
        folder::read_dir(dir.path(), 8).unwrap_err()
    };
    let empty = |path: &Path| {
        fs::remove_dir_all(path).unwrap();
        fs::create_dir(path).unwrap();
    };
    assert_says(&refusal_of(&|dir| empty(&dir.join("train/dog"))), &["train/dog", "no images"]);
    assert_says(&refusal_of(&|dir| empty(&dir.join("test/dog"))), &["test/dog", "no images"]);
    assert_says(
        &refusal_of(&|dir| fs::remove_dir_all(dir.join("test/cat")).unwrap()),
        &["test", "cat", "train has"],
    );
    assert_says(
        &refusal_of(&|dir| fs::create_dir(dir.join("test/cow")).unwrap()),
        &["test", "cow", "train lacks"],
    );
    assert_says(
        &refusal_of(&|dir| fs::remove_dir_all(dir.join("train/cat")).unwrap()),
        &["train", "1 class folders"],
    );
    assert_says(
        &refusal_of(&|dir| fs::write(dir.join("train/cat/c.webp"), "").unwrap()),
        &["c.webp", "jpeg"],
    );
    assert_says(
        &refusal_of(&|dir| fs::write(dir.join("train/x.jpg"), "").unwrap()),
        &["x.jpg", "without a class"],
    );
}

#[test]
fn a_picture_that_cannot_be_read_is_named_when_it_is_read() {
    let dir = tiny_folder();
    let path = dir.path().join("train/dog/a.PNG");
    let refusal_of = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        let mut pictures = folder::read_dir(dir.path(), 8).unwrap().training;
        let error = pictures.read(&[0, 1, 2, 3]).unwrap_err();
        assert_says(&error, &["train/dog/a.PNG"]);
        assert_eq!(error.to_string(), pictures.load_into_memory().unwrap_err().to_string());
        pictures.read_ahead(vec![vec![0, 2], vec![1, 3]]);
        assert_eq!(pictures.read(&[0, 2]).unwrap().len(), 2 * 3 * 64);
        assert_eq!(error.to_string(), pictures.read(&[1, 3]).unwrap_err().to_string());
        error
    };
    assert_says(&refusal_of(b""), &["is empty"]);
    assert_says(&refusal_of(b"GIF89a"), &["expected a PNG or JPEG"]);
    assert_says(&refusal_of(&encoded(plain(1, 1, [0; 3]), ImageFormat::Png)), &["1x1 pixels", "4x4"]);
    for format in [ImageFormat::Png, ImageFormat::Jpeg] {
        let whole = encoded(plain(90, 90, [9; 3]), format);
        refusal_of(&whole[..whole.len() / 2]);
    }
}

fn encoded(picture: DynamicImage, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(vec![]);
    picture.write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

/// The bytes of `picture` in a file of `format`, read at 8x8: red, green and blue of the pixel in row 2, column 5.
fn read_back(picture: DynamicImage, format: ImageFormat) -> [u8; 3] {
    let dir = tempdir().unwrap();
    let path = dir.path().join("picture");
    fs::write(&path, encoded(picture, format)).unwrap();
    let pixels = read_square(&path, 8).unwrap();
    [0, 64, 128].map(|plane| pixels[plane + 2 * 8 + 5])
}

#[test]
fn pictures_of_every_kind_become_8_bit_colours() {
    let (png, jpeg) = (ImageFormat::Png, ImageFormat::Jpeg);
    let colour = plain(8, 8, [250, 128, 3]);
    assert_eq!(read_back(colour.clone(), png), [250, 128, 3]);
    assert_eq!(read_back(colour.to_rgb16().into(), png), [250, 128, 3]);
    assert_eq!(read_back(colour.to_luma8().into(), png), [colour.to_luma8().as_raw()[0]; 3]);
    assert_eq!(read_back(colour.to_luma16().into(), png), [colour.to_luma8().as_raw()[0]; 3]);
    assert_eq!(read_back(plain(8, 8, [77; 3]).to_luma8().into(), jpeg), [77; 3]);
    let glass = |alpha: u8| DynamicImage::from(RgbaImage::from_pixel(8, 8, Rgba([250, 100, 0, alpha])));
    assert_eq!(read_back(glass(255), png), [250, 100, 0]);
    assert_eq!(read_back(glass(0), png), [255; 3]);
    assert_eq!(read_back(glass(51), png), [254, 224, 204]);
}

#[test]
fn the_middle_square_is_scaled() {
    // A wide ramp along x: its middle third, averaged in steps.
    let wide = RgbImage::from_fn(96, 32, |x, _| Rgb([2 * x as u8, 0, 0]));
    let [red, ..] = read_back(wide.into(), ImageFormat::Png);
    assert!(red.abs_diff(2 * (32 + 22)) <= 2, "{red}");
    let tiny = RgbImage::from_fn(4, 6, |x, y| Rgb([60 * x as u8, 40 * y as u8, 0]));
    let [red, green, _] = read_back(tiny.into(), ImageFormat::Png);
    assert!(red.abs_diff(135) <= 2 && green.abs_diff(70) <= 2, "{red}, {green}");
}

#[test]
fn a_picture_of_40_megapixels_is_read() {
    let large =
        GrayImage::from_fn(8000, 5000, |x, _| Luma([if (1500..6500).contains(&x) { 60 } else { 255 }]));
    assert_eq!(read_back(large.into(), ImageFormat::Png), [60; 3]);
}

#[test]
fn pictures_read_ahead_are_the_same_ones() {
    let dir = tiny_folder();
    let pictures = folder::read_dir(dir.path(), 8).unwrap().training;
    let batches = vec![vec![3, 0], vec![1], vec![2, 2]];
    let expected: Vec<_> = batches.iter().map(|batch| pictures.read(batch).unwrap()).collect();
    pictures.read_ahead(batches.clone());
    for (batch, expected) in batches.iter().zip(expected) {
        assert_eq!(pictures.read(&[1, 2]).unwrap().len(), 2 * 3 * 64);
        assert!(pictures.read(batch).unwrap() == expected);
    }
    assert_eq!(pictures.read(&[3]).unwrap().len(), 3 * 64);
}

#[test]
fn normalised_batches_have_mean_0_and_deviation_1() {
    let (mut images, _) = shapes(100, 0, 1).unwrap();
    let all: Vec<u32> = (0..100).collect();
    images.normalise(images.channel_statistics(&all).unwrap()).unwrap();
    let (xs, _) = images.batch(&all, &Device::Cpu).unwrap();
    let numbers = |tensor: Tensor| tensor.to_vec1::<f32>().unwrap();
    let channels = xs.transpose(0, 1).unwrap().flatten_from(1).unwrap();
    assert!(numbers(channels.mean(1).unwrap()).iter().all(|mean| mean.abs() < 1e-4));
    assert!(numbers(channels.var(1).unwrap()).iter().all(|variance| (variance - 1.0).abs() < 1e-3));
    let photo =
        Augmentation::Photo(PhotoAugmentation { pad: 0, flip: false, ..PhotoAugmentation::default() });
    let (expanded, _) = images.augmented_batch(&all, &photo, 1, 0, &Device::Cpu).unwrap();
    assert!(numbers(xs.flatten_all().unwrap()) == numbers(expanded.flatten_all().unwrap()));
    assert_says(&images.normalise(Normalisation { mean: vec![0.5], std: vec![1.0] }).unwrap_err(), &["3"]);
}

#[test]
fn statistics_are_the_mean_and_deviation_of_each_channel() {
    let pixels: Vec<u8> = vec![0, 255, 51, 51, 7, 7, 255, 255, 102, 102, 7, 7, 9, 9, 9, 9, 9, 9];
    let images = Images::new(pixels, vec![0_u8; 3], (3, 1, 2), 2).unwrap();
    let statistics = images.channel_statistics(&[1, 0]).unwrap();
    let close = |found: &[f64], expected: &[f64]| {
        assert!(
            found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12),
            "{found:?}, not {expected:?}"
        );
    };
    close(&statistics.mean, &[0.75, 0.3, 7.0 / 255.0]);
    close(&statistics.std, &[0.1875_f64.sqrt(), 0.1, 1.0 / 255.0]);
}
