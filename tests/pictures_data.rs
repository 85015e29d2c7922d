//! Colour pictures: the built-in shapes, CIFAR-10's files, folders of pictures, and how they are changed in training.

use std::fs;
use std::path::Path;

use candle_textbook::data::{Images, cifar, shapes};
use tempfile::{TempDir, tempdir};

/// One line, with each of `parts` in it.
#[track_caller]
fn assert_says(error: &anyhow::Error, parts: &[&str]) {
    let error = format!("{error:#}");
    assert!(!error.contains('\n'), "{error}");
    for part in parts {
        assert!(error.contains(part), "no {part:?} in {error:?}");
    }
}

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
    assert_ne!(large.picture(0), large_test.picture(0), "another split");
    assert_eq!(
        (large.shape(), large.classes(), large.names()[4].as_str()),
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
            .picture(index)
            .chunks(1024)
            .map(|plane| plane.iter().map(|&byte| f32::from(byte)).sum())
            .collect()
    };
    let mut centres = vec![vec![0.0; 3]; 10];
    for (index, &label) in train.labels().iter().enumerate() {
        for (sum, value) in centres[usize::from(label)].iter_mut().zip(mean(&train, index)) {
            *sum += value / 400.0;
        }
    }
    let nearest = |index: usize| {
        let mean = mean(&test, index);
        let away = |centre: &[f32]| centre.iter().zip(&mean).map(|(a, b)| (a - b).powi(2)).sum::<f32>();
        (0..10).min_by(|&a, &b| away(&centres[a]).total_cmp(&away(&centres[b]))).unwrap()
    };
    let right = (0..1000).filter(|&index| nearest(index) == usize::from(test.labels()[index])).count();
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
    assert_eq!((train.shape(), train.names()[9].as_str()), ((3, 32, 32), "truck"));
    assert_eq!(test.picture(1)[1024..1026], [20, 21]);

    fs::write(dir.path().join("batches.meta.txt"), "a\nb\nc\nd\ne\nf\ng\nh\ni\nj\n\n").unwrap();
    assert_eq!(cifar::read_dir(dir.path()).unwrap().1.names().concat(), "abcdefghij");
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
