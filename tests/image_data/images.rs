//! Sets of images: the built-in ones, normalisation, fingerprints, and out-of-range arguments.

use super::says::assert_says;
use super::{tiny_folder, with_threads};
use candle_core::{Device, Tensor};
use candle_textbook::data::image::{folder, read_square};
use candle_textbook::data::{
    Augmentation, Distortion, Images, Normalisation, PhotoAugmentation, digits, shapes,
};
use tempfile::TempDir;

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
    assert_ne!(fingerprint(&read(&here).training), fingerprint(&read(&moved).training));
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
