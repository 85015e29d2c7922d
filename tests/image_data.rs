//! Built-in images, image folders, normalisation, and out-of-range arguments.

mod says;

use says::assert_says;
use std::fs;
use std::io::Cursor;
use std::path::Path;
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

use ::image::{DynamicImage, GrayImage, ImageFormat, Luma, Rgb, RgbImage, Rgba, RgbaImage};
use candle_core::{Device, Tensor};
use candle_textbook::data::image::{folder, read_square};
use candle_textbook::data::{
    Augmentation, Distortion, ImageSet, Images, Normalisation, PhotoAugmentation, Preparation, digits, shapes,
};
use rayon::prelude::*;
use tempfile::{TempDir, tempdir};

fn with_threads<T: Send>(threads: usize, work: impl FnOnce() -> T + Send) -> T {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(work)
}

#[test]
fn shapes_are_a_function_of_seed_and_index() {
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
fn the_mean_colour_does_not_tell_the_class() {
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
        let distance = |centre: &[f32]| centre.iter().zip(&mean).map(|(a, b)| (a - b).powi(2)).sum::<f32>();
        (0..10).min_by(|&a, &b| distance(&centres[a]).total_cmp(&distance(&centres[b]))).unwrap()
    };
    let correct = (0..1000).filter(|&index| nearest(index) == test.labels()[index] as usize).count();
    assert!(correct < 150, "{correct} of 1000 by the nearest mean colour");
}

/// An image of one colour.
fn plain(width: u32, height: u32, colour: [u8; 3]) -> DynamicImage {
    RgbImage::from_pixel(width, height, Rgb(colour)).into()
}

/// Two classes, one of red and one of blue images, in train and in test.
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
fn class_folders_that_look_alike_are_noted() {
    let dir = tiny_folder();
    for split in ["train", "test"] {
        fs::create_dir(dir.path().join(split).join("Cat")).unwrap();
        fs::copy(dir.path().join(split).join("cat/a.PNG"), dir.path().join(split).join("Cat/a.PNG")).unwrap();
    }
    let notes = folder::read_dir(dir.path(), 8).unwrap().notes;
    assert_eq!(notes, ["the classes \"Cat\" and \"cat\" differ only in case"]);
}

#[test]
fn a_folder_is_listed_by_class_and_read_as_squares() {
    let dir = tiny_folder();
    fs::write(dir.path().join("train/cat/.DS_Store"), "").unwrap();
    fs::write(dir.path().join("train/README.txt"), "").unwrap();
    fs::write(dir.path().join("train/dog/Thumbs.db"), "").unwrap();
    fs::write(dir.path().join("test/dog/desktop.ini"), "").unwrap();
    fs::create_dir(dir.path().join("train/__MACOSX")).unwrap();
    let ImageSet { training, validation, test, .. } = folder::read_dir(dir.path(), 8).unwrap();
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
    let ImageSet { training, validation, test, .. } = folder::read_dir(dir.path(), 8).unwrap();
    assert_eq!((training.labels(), validation, test.len()), ([0, 1, 0, 1].as_slice(), Some(2), 2));
    assert_eq!(training.path(3).unwrap(), dir.path().join("val/dog/a.PNG"));

    fs::create_dir_all(dir.path().join("validation")).unwrap();
    assert_says(&folder::read_dir(dir.path(), 8).unwrap_err(), &["both val and validation"]);
}

#[cfg(unix)]
#[test]
fn what_a_class_folder_holds_besides_images_is_named() {
    let dir = tiny_folder();
    fs::create_dir(dir.path().join("train/dog/sub")).unwrap();
    std::os::unix::fs::symlink("nowhere", dir.path().join("train/dog/x.png")).unwrap();
    for name in ["notes", "more"] {
        fs::write(dir.path().join("train/dog").join(name), "").unwrap();
    }
    let notes = folder::read_dir(dir.path(), 8).unwrap().notes.join("\n");
    assert!(notes.contains("train/dog/sub: a folder inside a class"), "{notes}");
    assert!(notes.contains("train/dog/x.png: a link to nothing"), "{notes}");
    assert!(notes.contains("2 entries such as") && notes.contains("not an image file"), "{notes}");
}

#[test]
fn splits_have_several_names_and_validation_serves_as_a_missing_test_split() {
    for name in ["val", "valid", "Validation", "dev"] {
        let dir = tiny_folder();
        fs::rename(dir.path().join("test"), dir.path().join(name)).unwrap();
        fs::create_dir(dir.path().join("unlabelled")).unwrap();
        fs::write(dir.path().join("train/labels.csv"), "").unwrap();
        let set = folder::read_dir(dir.path(), 8).unwrap();
        assert_eq!((set.validation, set.test.len()), (None, 2), "{name}");
        let notes = set.notes.join("\n");
        assert!(notes.contains(name) && notes.contains("no test split"), "{notes}");
        assert!(notes.contains("passed over: unlabelled"), "{notes}");
        assert!(notes.contains("train/labels.csv"), "{notes}");

        fs::rename(dir.path().join("train"), dir.path().join("gone")).unwrap();
        let (test, _) = folder::read_test(dir.path(), 8).unwrap();
        assert_eq!(test, set.test);
        fs::remove_dir_all(dir.path().join(name)).unwrap();
        fs::rename(dir.path().join("gone"), dir.path().join("train")).unwrap();
        assert_says(&folder::read_test(dir.path(), 8).unwrap_err(), &["no folder test", "val"]);
        assert!(folder::read_dir(dir.path(), 8).unwrap().test.is_empty());
    }
}

#[test]
fn exported_images_are_prepared_as_the_data_set_has_them() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("image.png");
    let colour = shapes(0, 3, 1).unwrap().1;
    for index in 0..3 {
        let planes = colour.image(index).unwrap();
        let pixel =
            |x: u32, y: u32| [0, 1, 2].map(|plane| planes[(plane * 32 + y as usize) * 32 + x as usize]);
        RgbImage::from_fn(32, 32, |x, y| Rgb(pixel(x, y))).save(&path).unwrap();
        assert_eq!(Preparation::Square.read(&path, (3, 32, 32)).unwrap().0, planes.as_ref());
    }
    let grey: Vec<u8> = (0..28 * 28).map(|at| (at * 37 % 256) as u8).collect();
    GrayImage::from_raw(28, 28, grey.clone()).unwrap().save(&path).unwrap();
    assert_eq!(Preparation::Square.read(&path, (1, 28, 28)).unwrap().0, grey);
    let error = Preparation::Square.read(&path, (1, 28, 20)).unwrap_err();
    assert_says(&error, &["28x20 pixels with 1 channel"]);
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
fn malformed_folders_are_refused_with_the_path() {
    let error_of = |change: &dyn Fn(&Path)| {
        let dir = tiny_folder();
        change(dir.path());
        folder::read_dir(dir.path(), 8).unwrap_err()
    };
    let empty = |path: &Path| {
        fs::remove_dir_all(path).unwrap();
        fs::create_dir(path).unwrap();
    };
    assert_says(&error_of(&|dir| empty(&dir.join("train/dog"))), &["train/dog", "no images"]);
    assert_says(&error_of(&|dir| empty(&dir.join("test/dog"))), &["test/dog", "no images"]);
    assert_says(
        &error_of(&|dir| fs::remove_dir_all(dir.join("test/cat")).unwrap()),
        &["test", "cat", "train has"],
    );
    assert_says(
        &error_of(&|dir| fs::create_dir(dir.join("test/cow")).unwrap()),
        &["test", "cow", "train lacks"],
    );
    assert_says(
        &error_of(&|dir| fs::remove_dir_all(dir.join("train/cat")).unwrap()),
        &["train", "found 1 class folder,"],
    );
    assert_says(
        &error_of(&|dir| fs::write(dir.join("train/x.jpg"), "").unwrap()),
        &["x.jpg", "without a class"],
    );
}

#[test]
fn entries_that_are_no_images_are_passed_over_with_a_note() {
    let dir = tiny_folder();
    fs::write(dir.path().join("train/cat/c.webp"), "").unwrap();
    fs::create_dir(dir.path().join("train/dog/old.png")).unwrap();
    #[cfg(unix)]
    std::os::unix::fs::symlink("nowhere", dir.path().join("test/cat/link.jpg")).unwrap();
    let set = folder::read_dir(dir.path(), 8).unwrap();
    assert_eq!((set.training.len(), set.test.len()), (4, 2));
    assert!(set.notes.iter().any(|note| note.contains("train/cat/c.webp")), "{:?}", set.notes);
}

#[test]
fn folders_of_images_without_splits_are_classes() {
    let dir = tiny_folder();
    let train = dir.path().join("train");
    fs::create_dir(train.join("runs")).unwrap();
    let set = folder::read_dir(&train, 8).unwrap();
    assert_eq!((set.training.len(), set.test.len(), set.training.class_names().len()), (4, 0, 2));
    assert!(set.notes[0].contains("classes of the training split"), "{:?}", set.notes);
    let (test, notes) = folder::read_test(&train, 8).unwrap();
    assert_eq!((test.labels(), notes.len()), ([0, 1, 0, 1].as_slice(), 1));
    let selected = set.training.select(&[3, 0]).unwrap();
    assert_eq!((selected.labels(), selected.path(1)), ([1, 0].as_slice(), set.training.path(0)));
}

#[test]
fn an_unreadable_image_is_an_error_when_it_is_read() {
    let dir = tiny_folder();
    let path = dir.path().join("train/dog/a.PNG");
    let error_of = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        let mut images = folder::read_dir(dir.path(), 8).unwrap().training;
        let error = images.read(&[0, 1, 2, 3]).unwrap_err();
        assert_says(&error, &["train/dog/a.PNG"]);
        assert_eq!(error.to_string(), images.load_into_memory().unwrap_err().to_string());
        images.read_ahead(vec![vec![0, 2], vec![1, 3]]);
        assert_eq!(images.read(&[0, 2]).unwrap().len(), 2 * 3 * 64);
        assert_eq!(error.to_string(), images.read(&[1, 3]).unwrap_err().to_string());
        error
    };
    assert_says(&error_of(b""), &["is empty"]);
    assert_says(&error_of(b"GIF89a"), &["is an image in the format gif", "expected a PNG or JPEG"]);
    assert_says(&error_of(b"\0\0\0\x18ftypheic\0\0\0\0"), &["an HEIC image", "expected a PNG or JPEG"]);
    assert_says(&error_of(b"<html>"), &["an HTML page", "expected a PNG or JPEG"]);
    assert_says(&error_of(&encoded(plain(1, 1, [0; 3]), ImageFormat::Png)), &["1x1 pixels", "4x4"]);
    for format in [ImageFormat::Png, ImageFormat::Jpeg] {
        let whole = encoded(plain(90, 90, [9; 3]), format);
        error_of(&whole[..whole.len() / 2]);
    }
}

#[test]
fn damaged_files_are_found_and_counted() {
    let dir = tiny_folder();
    let mut images = folder::read_dir(dir.path(), 8).unwrap().training;
    images.check_files().unwrap();
    for file in ["train/dog/a.PNG", "train/cat/b.jpeg"] {
        let whole = fs::read(dir.path().join(file)).unwrap();
        fs::write(dir.path().join(file), &whole[..whole.len() - 2]).unwrap();
    }
    for error in [images.check_files().unwrap_err(), images.load_into_memory().unwrap_err()] {
        assert_says(&error, &["train/dog/a.PNG", "truncated", "1 more file can't be read either"]);
    }
}

/// A PNG file with a further chunk after its header.
fn with_chunk(image: DynamicImage, kind: &[u8; 4], data: &[u8]) -> Vec<u8> {
    const HEADER: usize = 33;
    let mut file = encoded(image, ImageFormat::Png);
    let checked = [kind, data].concat();
    let mut checksum = flate2::Crc::new();
    checksum.update(&checked);
    let chunk = [&(data.len() as u32).to_be_bytes()[..], &checked, &checksum.sum().to_be_bytes()].concat();
    file.splice(HEADER..HEADER, chunk);
    file
}

#[test]
fn damage_to_orientation_or_transparency_is_refused() {
    // TIFF with one entry: orientation 3, upside down.
    let upside_down = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x03\0\0\0\0\0\0\0";
    let half = RgbImage::from_fn(8, 8, |_, y| Rgb(if y < 4 { [0; 3] } else { [100; 3] }));
    let dir = tempdir().unwrap();
    let path = dir.path().join("image.png");
    for (kind, data, first) in [(b"eXIf", &upside_down[..], 100), (b"tRNS", &[0; 6][..], 255)] {
        let whole = with_chunk(half.clone().into(), kind, data);
        fs::write(&path, &whole).unwrap();
        assert_eq!(read_square(&path, 8).unwrap()[0], first);
        for at in 33..33 + 12 + data.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            fs::write(&path, &damaged).unwrap();
            assert_says(&read_square(&path, 8).unwrap_err(), &["image.png: ", "PNG"]);
        }
    }
}

fn encoded(image: DynamicImage, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(vec![]);
    image.write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

/// Writes `image` to a file, reads it as 8x8, and returns the pixel in row 2, column 5.
fn read_back(image: DynamicImage, format: ImageFormat) -> [u8; 3] {
    let dir = tempdir().unwrap();
    let path = dir.path().join("image");
    fs::write(&path, encoded(image, format)).unwrap();
    let pixels = read_square(&path, 8).unwrap();
    [0, 64, 128].map(|plane| pixels[plane + 2 * 8 + 5])
}

#[test]
fn images_of_every_kind_become_8_bit_colour() {
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
fn the_central_square_is_scaled() {
    // A wide ramp along x. The middle third is averaged.
    let wide = RgbImage::from_fn(96, 32, |x, _| Rgb([2 * x as u8, 0, 0]));
    let [red, ..] = read_back(wide.into(), ImageFormat::Png);
    assert!(red.abs_diff(2 * (32 + 22)) <= 2, "{red}");
    let tiny = RgbImage::from_fn(4, 6, |x, y| Rgb([60 * x as u8, 40 * y as u8, 0]));
    let [red, green, _] = read_back(tiny.into(), ImageFormat::Png);
    assert!(red.abs_diff(135) <= 2 && green.abs_diff(70) <= 2, "{red}, {green}");
}

#[test]
fn an_image_of_40_megapixels_is_read() {
    let large =
        GrayImage::from_fn(8000, 5000, |x, _| Luma([if (1500..6500).contains(&x) { 60 } else { 255 }]));
    assert_eq!(read_back(large.into(), ImageFormat::Png), [60; 3]);
}

#[test]
fn batches_read_ahead_are_equal_to_batches_read_directly() {
    let dir = tiny_folder();
    let images = folder::read_dir(dir.path(), 8).unwrap().training;
    let batches = vec![vec![3, 0], vec![1], vec![2, 2]];
    let expected: Vec<_> = batches.iter().map(|batch| images.read(batch).unwrap()).collect();
    images.read_ahead(batches.clone());
    for (batch, expected) in batches.iter().zip(expected) {
        assert_eq!(images.read(&[1, 2]).unwrap().len(), 2 * 3 * 64);
        assert!(images.read(batch).unwrap() == expected);
    }
    assert_eq!(images.read(&[3]).unwrap().len(), 3 * 64);
}

#[test]
fn normalised_batches_have_mean_0_and_standard_deviation_1() {
    let (mut images, _) = shapes(100, 0, 1).unwrap();
    let all: Vec<u32> = (0..100).collect();
    images.normalise(images.channel_statistics(&all).unwrap()).unwrap();
    let (xs, _) = images.batch(&all, &Device::Cpu).unwrap();
    let values = |tensor: Tensor| tensor.to_vec1::<f32>().unwrap();
    let channels = xs.transpose(0, 1).unwrap().flatten_from(1).unwrap();
    assert!(values(channels.mean(1).unwrap()).iter().all(|mean| mean.abs() < 1e-4));
    assert!(values(channels.var(1).unwrap()).iter().all(|variance| (variance - 1.0).abs() < 1e-3));
    let photo =
        Augmentation::Photo(PhotoAugmentation { pad: 0, flip: false, ..PhotoAugmentation::default() });
    let (augmented, _) = images.augmented_batch(&all, &photo, 1, 0, &Device::Cpu).unwrap();
    assert!(values(xs.flatten_all().unwrap()) == values(augmented.flatten_all().unwrap()));
    assert_says(&images.normalise(Normalisation { mean: vec![0.5], std: vec![1.0] }).unwrap_err(), &["3"]);
}

#[test]
fn channel_statistics_are_the_mean_and_standard_deviation_of_each_channel() {
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

/// Runs `work` on another thread, and fails instead of hanging if it deadlocks.
fn assert_ends(work: impl FnOnce() + Send + 'static) {
    let (sender, receiver) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        work();
        sender.send(()).unwrap();
    });
    match receiver.recv_timeout(Duration::from_secs(120)) {
        Err(RecvTimeoutError::Timeout) => panic!("deadlock"),
        _ => thread.join().unwrap(),
    }
}

#[test]
fn batches_of_files_can_be_read_inside_parallel_jobs() {
    let dir = tiny_folder();
    let images = folder::read_dir(dir.path(), 8).unwrap().training;
    assert_ends(move || {
        let all: Vec<u32> = (0..64).map(|index| index % 4).collect();
        let read = |indices: &[u32]| images.batch(indices, &Device::Cpu).unwrap().0.dims()[0];
        for _ in 0..20 {
            let count: usize = with_threads(4, || all.par_chunks(8).map(read).sum());
            assert_eq!(count, 64);
        }
    });
}

#[test]
fn batches_read_ahead_can_be_awaited_on_every_thread_of_the_pool() {
    let dir = tiny_folder();
    let images = folder::read_dir(dir.path(), 8).unwrap().training;
    assert_ends(move || {
        rayon::broadcast(|_| {
            let images = images.clone();
            images.read_ahead(vec![vec![0, 1], vec![2, 3]]);
            for batch in [[0, 1], [2, 3]] {
                assert_eq!(images.read(&batch).unwrap().len(), 2 * 3 * 64);
            }
        });
    });
}

#[test]
fn labels_and_indices_out_of_range_are_errors() {
    assert_says(&Images::new(vec![1], vec![0_u8], (1, 1, 1), 0).unwrap_err(), &["label 0", "of 0 classes"]);
    assert_says(&Images::new(vec![1], vec![3_u8], (1, 1, 1), 3).unwrap_err(), &["label 3", "of 3 classes"]);
    let (mut memory, _) = shapes(3, 0, 1).unwrap();
    let dir = tiny_folder();
    let files = folder::read_dir(dir.path(), 8).unwrap().training;
    for (images, len) in [(&memory, 3), (&files, 4)] {
        let device = &Device::Cpu;
        let errors = [
            images.batch(&[0, len, 1], device).unwrap_err(),
            images.augmented_batch(&[len], &Augmentation::Shifts, 1, 1, device).unwrap_err(),
            images.read(&[len]).unwrap_err(),
            images.image(len as usize).unwrap_err(),
            images.channel_statistics(&[len]).unwrap_err(),
        ];
        for error in errors {
            assert_says(&error, &[&format!("index {len}"), &format!("below {len}")]);
        }
        assert!(images.path(len as usize).is_none());
        images.read_ahead(vec![vec![len]]);
    }
    memory.truncate(usize::MAX);
    assert_eq!(memory.len(), 3);
}

#[test]
fn absurd_sizes_are_errors() {
    let new = |shape, count| Images::new(vec![1], vec![0_u8; count], shape, 1);
    for shape in [(usize::MAX, 2, 1), (1 << 32, 1 << 32, 1), (1, 0, 1)] {
        assert_says(&new(shape, 1).unwrap_err(), &["found 1 byte, expected 1 image of"]);
    }
    assert_says(&new((1, 1, usize::MAX), 2).unwrap_err(), &["expected 2 images"]);
    for many in [usize::MAX, usize::MAX / 1000] {
        assert_says(&digits(many, 0, 0).unwrap_err(), &["digits", "memory"]);
        assert_says(&shapes(0, many, 0).unwrap_err(), &["shapes", "memory"]);
    }
    let dir = tiny_folder();
    for side in [0, (1 << 14) + 1, (1 << 32) + 8, usize::MAX] {
        let found = format!("found {side}");
        assert_says(&folder::read_dir(dir.path(), side).unwrap_err(), &["image side", &found, "16384"]);
        assert_says(&read_square(&dir.path().join("train/cat/a.PNG"), side).unwrap_err(), &[&found]);
    }
    let (images, _) = digits(1, 0, 0).unwrap();
    let error_of =
        |augmentation| images.augmented_batch(&[0], &augmentation, 1, 1, &Device::Cpu).unwrap_err();
    for pad in [usize::MAX, usize::MAX / 2, (1 << 16) + 1] {
        let photo = PhotoAugmentation { pad, ..PhotoAugmentation::default() };
        assert_says(&error_of(Augmentation::Photo(photo)), &["padding", &pad.to_string(), "65536"]);
    }
    let none = Distortion::default();
    for (distortion, part) in [
        (Distortion { smoothness: 0.0, ..none }, "smoothness 0"),
        (Distortion { smoothness: 1e-30, ..none }, "smoothness"),
        (Distortion { scale: 1.0, ..none }, "scale 1"),
        (Distortion { shift: f32::NAN, ..none }, "finite"),
    ] {
        assert_says(&error_of(Augmentation::Distort(distortion)), &["distortion", part]);
    }
    let large = PhotoAugmentation { pad: 1 << 16, flip: false, ..PhotoAugmentation::default() };
    assert!(images.augmented_batch(&[0], &Augmentation::Photo(large), 1, 1, &Device::Cpu).is_ok());
}

fn fingerprint(images: &Images) -> u64 {
    images.fingerprint(0..images.len()).unwrap()
}

/// Hashes of 1,000 built-in images.
const DIGITS: u64 = 8_536_864_912_074_336_595;
const SHAPES: u64 = 11_585_304_859_209_872_007;
const DISTORTED: u64 = 3_770_869_803_378_094_478;

#[test]
fn built_in_images_and_their_augmentation_are_the_same_on_every_machine() {
    let (digits, shapes) = (digits(1000, 0, 0).unwrap().0, shapes(1000, 0, 0).unwrap().0);
    assert_eq!((fingerprint(&digits), fingerprint(&shapes)), (DIGITS, SHAPES));
    let all: Vec<u32> = (0..1000).collect();
    let distort = Augmentation::Distort(Distortion::default());
    let (distorted, _) = digits.augmented_batch(&all, &distort, 1, 1, &Device::Cpu).unwrap();
    let values = distorted.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let bits: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let distorted = Images::new(bits, vec![0_u8], (1, 1, 4 * values.len()), 1).unwrap();
    assert_eq!(fingerprint(&distorted), DISTORTED);
}

#[test]
fn fingerprints_depend_on_pixels_and_labels_and_not_on_paths() {
    let new = |pixel, label| fingerprint(&Images::new(vec![pixel], vec![label], (1, 1, 1), 2).unwrap());
    assert_eq!(new(1, 0_u8), new(1, 0));
    assert!(new(1, 0) != new(2, 0) && new(1, 0) != new(1, 1));

    let (here, moved) = (tiny_folder(), tiny_folder());
    let read = |dir: &TempDir| folder::read_dir(dir.path(), 8).unwrap();
    let before = read(&here).training;
    assert_eq!(fingerprint(&before), fingerprint(&read(&moved).training));
    assert_ne!(fingerprint(&before), fingerprint(&read(&here).test));
    assert_ne!(before.fingerprint(0..1).unwrap(), before.fingerprint(1..2).unwrap());
    assert!(before.fingerprint(0..before.len() + 1).is_err());
    // The same size, other pixels.
    let path = before.path(0).unwrap();
    let mut picture = ::image::open(path).unwrap();
    picture.invert();
    picture.save(path).unwrap();
    assert_ne!(fingerprint(&before), fingerprint(&read(&moved).training));
}

#[test]
fn tensors_of_candle_datasets_become_images_if_they_hold_pictures() {
    let bytes: Vec<u8> = (0..=255).cycle().take(3 * 2 * 4).collect();
    let values: Vec<f32> = bytes.iter().map(|&byte| f32::from(byte) / 255.0).collect();
    let images = Tensor::from_vec(values, (3, 8), &Device::Cpu).unwrap();
    let labels = Tensor::new(&[1u8, 0, 4], &Device::Cpu).unwrap();
    let from = |images: &Tensor, classes| Images::from_tensors(images, &labels, (1, 2, 4), classes);
    assert_eq!(from(&images, 5).unwrap(), Images::new(bytes, vec![1u32, 0, 4], (1, 2, 4), 5).unwrap());
    for (images, classes, part) in [
        (images.affine(255.0, 0.0).unwrap(), 5, "found the value"),
        (images.affine(f64::NAN, 0.0).unwrap(), 5, "found the value NaN"),
        (images.narrow(0, 0, 2).unwrap(), 5, "shapes [2, 8] and [3], expected (count, ..) and (count)"),
        (images.t().unwrap(), 5, "shapes [8, 3] and [3]"),
        (images.narrow(1, 0, 4).unwrap(), 5, "found 12 bytes"),
        (images.clone(), 4, "found label 4"),
    ] {
        let error = from(&images, classes).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
    let labels = Tensor::new(&[1f32, 0.5, 4.0], &Device::Cpu).unwrap();
    let error = Images::from_tensors(&images, &labels, (1, 2, 4), 5).unwrap_err().to_string();
    assert!(error.contains("found a label of type f32, expected integers"), "{error}");
}
