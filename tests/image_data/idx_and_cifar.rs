//! IDX files and CIFAR-10's files: how they are read, and errors for malformed files.

use super::says::assert_says;
use candle_textbook::data::image::{
    self, cifar, emnist,
    idx::{read_dir, read_test},
};
use flate2::{Compression, write::GzEncoder};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use tempfile::{TempDir, tempdir};

const TRAIN_IMAGES: &str = "train-images-idx3-ubyte";
const TRAIN_LABELS: &str = "train-labels-idx1-ubyte";
const TEST_IMAGES: &str = "t10k-images-idx3-ubyte";
const TEST_LABELS: &str = "t10k-labels-idx1-ubyte";

fn idx(sizes: &[u32], bytes: &[u8]) -> Vec<u8> {
    let magic = 0x0800 + sizes.len() as u32;
    let header = std::iter::once(magic).chain(sizes.iter().copied()).flat_map(u32::to_be_bytes);
    header.chain(bytes.iter().copied()).collect()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Three training images and one test image of 2x3 pixels.
fn tiny() -> TempDir {
    let dir = tempdir().unwrap();
    let pixels: Vec<u8> = (1..=18).collect();
    fs::write(dir.path().join(TRAIN_IMAGES), idx(&[3, 2, 3], &pixels)).unwrap();
    fs::write(dir.path().join(TRAIN_LABELS), idx(&[3], &[5, 0, 9])).unwrap();
    fs::write(dir.path().join(TEST_IMAGES), idx(&[1, 2, 3], &pixels[..6])).unwrap();
    fs::write(dir.path().join(TEST_LABELS), idx(&[1], &[7])).unwrap();
    dir
}

fn error_of_dir(dir: &TempDir) -> String {
    let error = format!("{:#}", read_dir(dir.path()).expect_err("a malformed file was read"));
    assert!(!error.contains('\n'), "{error}");
    error
}

/// The error when `file` of a good data set has these bytes instead. It contains the file's name.
fn error_of(file: &str, bytes: &[u8]) -> String {
    let dir = tiny();
    let _ = fs::remove_file(dir.path().join(file.trim_end_matches(".gz")));
    fs::write(dir.path().join(file), bytes).unwrap();
    let error = error_of_dir(&dir);
    assert!(error.contains(file), "{error}");
    error
}

#[test]
fn idx_files_are_read_plain_gzipped_and_with_a_dot_in_the_name() {
    let dir = tiny();
    let (train, test) = read_dir(dir.path()).unwrap();
    assert_eq!((train.len(), test.len(), train.shape(), train.classes()), (3, 1, (1, 2, 3), 10));
    assert_eq!((train.labels(), test.labels()), ([5, 0, 9].as_slice(), [7].as_slice()));
    assert_eq!(train.image(1).unwrap()[..], [7, 8, 9, 10, 11, 12]);

    for (name, dotted) in [(TRAIN_IMAGES, "train-images.idx3-ubyte"), (TEST_LABELS, "t10k-labels.idx1-ubyte")]
    {
        fs::rename(dir.path().join(name), dir.path().join(dotted)).unwrap();
    }
    for name in [TRAIN_LABELS, "train-images.idx3-ubyte"] {
        let path = dir.path().join(name);
        fs::write(dir.path().join(format!("{name}.gz")), gzip(&fs::read(&path).unwrap())).unwrap();
        fs::remove_file(path).unwrap();
    }
    assert_eq!(read_dir(dir.path()).unwrap(), (train, test));
}

#[test]
fn mnist_has_its_published_labels() {
    let Some(data) = std::env::var_os("TEXTBOOK_DATA") else { return };
    let (train, test) = read_dir(&PathBuf::from(data).join("mnist")).unwrap();
    assert_eq!((train.len(), test.len(), train.shape()), (60_000, 10_000, (1, 28, 28)));
    assert_eq!(train.labels()[..10], [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]);
    assert_eq!(test.labels()[..10], [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]);
    let count =
        |labels: &[u32]| (0..10).map(|digit| labels.iter().filter(|&&l| l == digit).count()).collect();
    let (of_train, of_test): (Vec<_>, Vec<_>) = (count(train.labels()), count(test.labels()));
    assert_eq!(of_train, [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]);
    assert_eq!(of_test, [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]);
}

#[test]
fn a_missing_file_is_an_error_with_all_accepted_names() {
    let dir = tiny();
    fs::remove_file(dir.path().join(TEST_LABELS)).unwrap();
    let names =
        [TEST_LABELS, "t10k-labels-idx1-ubyte.gz", "t10k-labels.idx1-ubyte", "t10k-labels.idx1-ubyte.gz"];
    assert_says(&error_of_dir(&dir), &names);

    let error = read_dir(Path::new("no/such/place")).unwrap_err().to_string();
    assert_says(&error, &["no/such/place", "no such directory"]);
}

#[test]
fn empty_and_truncated_files_are_refused() {
    let images = idx(&[3, 2, 3], &[0; 18]);
    assert_says(&error_of(TRAIN_IMAGES, &[]), &["is empty"]);
    assert_says(&error_of(TRAIN_IMAGES, &images[..10]), &["truncated"]);
    assert_says(
        &error_of(TRAIN_IMAGES, &images[..20]),
        &["found 4 bytes after the header", "3x2x3 = 18", "truncated"],
    );
    let packed = gzip(&images);
    assert_says(&error_of("train-images-idx3-ubyte.gz", &packed[..packed.len() - 9]), &["truncated"]);
    assert_says(
        &error_of("train-images-idx3-ubyte.gz", &gzip(&images[..20])),
        &["found 4 bytes after the header", "truncated"],
    );
}

#[test]
fn bytes_after_the_end_are_refused() {
    let images = idx(&[3, 2, 3], &[0; 18]);
    let more = [&images[..], &[0]].concat();
    assert_says(&error_of(TRAIN_IMAGES, &more), &["more bytes follow than the 3x2x3 = 18"]);
    assert_says(&error_of("train-images-idx3-ubyte.gz", &gzip(&more)), &["more bytes follow"]);
    error_of("train-images-idx3-ubyte.gz", &[&gzip(&images)[..], b"junk"].concat());
}

#[test]
fn a_file_of_another_kind_is_named() {
    let labels = idx(&[3], &[5, 0, 9]);
    assert_says(&error_of(TRAIN_IMAGES, &labels), &["found labels (1 dimension), expected images (3"]);
    assert_says(&error_of(TRAIN_LABELS, &idx(&[1, 2, 3], &[0; 6])), &["found images", "expected labels"]);
    assert_says(&error_of(TRAIN_LABELS, b"label,pixel\n"), &["not an IDX file of bytes"]);
}

#[test]
fn files_are_found_where_archives_unpack_them() {
    let dir = tiny();
    let expected = read_dir(dir.path()).unwrap();
    // A folder that is named like the file in it, and one for the test set.
    for (name, folder) in
        [(TRAIN_IMAGES, TRAIN_IMAGES), (TEST_IMAGES, "raw"), (TEST_LABELS, "raw"), (TRAIN_LABELS, ".")]
    {
        let contents = fs::read(dir.path().join(name)).unwrap();
        fs::remove_file(dir.path().join(name)).unwrap();
        fs::create_dir_all(dir.path().join(folder)).unwrap();
        fs::write(dir.path().join(folder).join(name.replace("-idx", ".idx")), contents).unwrap();
    }
    assert_eq!(read_dir(dir.path()).unwrap(), expected);
    assert_eq!(read_test(dir.path()).unwrap(), expected.1);
    let other = dir.path().join("other");
    fs::create_dir(&other).unwrap();
    fs::copy(dir.path().join("raw/t10k-labels.idx1-ubyte"), other.join("t10k-labels.idx1-ubyte")).unwrap();
    assert_says(&error_of_dir(&dir), &["found both", "other", "raw", "expected one"]);

    // As torchvision keeps them.
    let (dir, deep) = (tiny(), tempfile::tempdir().unwrap());
    fs::create_dir(deep.path().join("MNIST")).unwrap();
    fs::rename(dir.path(), deep.path().join("MNIST/raw")).unwrap();
    assert_eq!(read_dir(deep.path()).unwrap(), expected);
}

#[test]
fn emnist_is_upright_and_has_letters_as_classes() {
    let dir = tempdir().unwrap();
    let pixels = [1, 4, 2, 5, 3, 6];
    for (split, labels) in [("train", [1, 26]), ("test", [2, 2])] {
        let path = |part: &str| dir.path().join(format!("emnist-letters-{split}-{part}-ubyte.gz"));
        fs::write(path("images-idx3"), gzip(&idx(&[2, 3, 2], &pixels.repeat(2)))).unwrap();
        fs::write(path("labels-idx1"), gzip(&idx(&[2], &labels))).unwrap();
    }
    let (train, test) = emnist::read_dir(dir.path(), "emnist-letters").unwrap();
    assert_eq!((train.shape(), train.labels(), test.labels()), ((1, 2, 3), &[0, 25][..], &[1, 1][..]));
    assert_eq!(train.image(1).unwrap()[..], [1, 2, 3, 4, 5, 6]);
    assert_eq!((train.class_names().len(), &*train.class_names()[25]), (26, "z"));
    assert_eq!(emnist::read_test(dir.path(), "emnist-letters").unwrap(), test);
    let labels = dir.path().join("emnist-letters-train-labels-idx1-ubyte.gz");
    fs::write(labels, gzip(&idx(&[2], &[0, 26]))).unwrap();
    let error = emnist::read_dir(dir.path(), "emnist-letters").unwrap_err();
    assert_says(&error, &["emnist-letters-train-labels", "label 0 at position 0, expected 1 to 26"]);
    let error = read_dir(dir.path()).unwrap_err();
    assert_says(&error, &["found none of the files train-images", "; found emnist-letters-test"]);
    assert_eq!(image::load_test("emnist-letters", Some(dir.path()), 0).unwrap().0, test);
    for (name, classes, last) in [("balanced", 47, "t"), ("byclass", 62, "z"), ("digits", 10, "9")] {
        let name = format!("emnist-{name}");
        for part in ["images-idx3", "labels-idx1"] {
            let from = dir.path().join(format!("emnist-letters-test-{part}-ubyte.gz"));
            fs::copy(from, dir.path().join(format!("{name}-test-{part}-ubyte.gz"))).unwrap();
        }
        let test = emnist::read_test(dir.path(), &name).unwrap();
        let names = test.class_names();
        assert_eq!((names.len(), names.last().map(String::as_str)), (classes, Some(last)));
    }
}

#[test]
fn packed_and_unpacked_files_must_be_equal() {
    let (dir, packed) = (tiny(), format!("{TRAIN_LABELS}.gz"));
    let expected = read_dir(dir.path()).unwrap();
    let labels = fs::read(dir.path().join(TRAIN_LABELS)).unwrap();
    fs::write(dir.path().join(&packed), gzip(&labels)).unwrap();
    assert_eq!(read_dir(dir.path()).unwrap(), expected);
    fs::write(dir.path().join(&packed), gzip(&idx(&[3], &[1, 2, 3]))).unwrap();
    assert_says(&error_of_dir(&dir), &[&packed, "differs", "remove one"]);
}

#[test]
fn headers_with_absurd_sizes_are_refused_without_allocating_memory() {
    assert_says(&error_of(TRAIN_IMAGES, &idx(&[3, 0, 3], &[])), &["3x0x3", "expected no size of 0"]);
    let giant = idx(&[u32::MAX, u32::MAX, u32::MAX], &[0; 18]);
    assert_says(&error_of(TRAIN_IMAGES, &giant), &["4294967295x4294967295x4294967295", "hold at most 34"]);
    error_of("train-images-idx3-ubyte.gz", &gzip(&giant));
    error_of("train-images-idx3-ubyte.gz", &gzip(&idx(&[1 << 20, 1 << 10, 1 << 10], &[0; 18])));
}

#[test]
fn inconsistent_counts_labels_and_sizes_are_refused() {
    let two = idx(&[2], &[1, 2]);
    assert_says(&error_of(TRAIN_LABELS, &two), &["2 labels", TRAIN_IMAGES, "holds 3 images"]);
    assert_says(
        &error_of(TRAIN_LABELS, &idx(&[3], &[1, 10, 2])),
        &["label 10 at position 1", "expected 0 to 9"],
    );

    let dir = tiny();
    fs::write(dir.path().join(TEST_IMAGES), idx(&[1, 3, 2], &[0; 6])).unwrap();
    assert_says(&error_of_dir(&dir), &["test images are 3x2", "training images are 2x3"]);
}

#[test]
fn a_truncated_or_damaged_gzip_file_is_never_read_as_other_data() {
    let whole = read_dir(tiny().path()).unwrap();
    let dir = tiny();
    fs::remove_file(dir.path().join(TRAIN_IMAGES)).unwrap();
    let path = dir.path().join("train-images-idx3-ubyte.gz");
    let packed = gzip(&idx(&[3, 2, 3], &(1..=18).collect::<Vec<u8>>()));
    for end in 0..packed.len() {
        fs::write(&path, &packed[..end]).unwrap();
        error_of_dir(&dir);
    }
    for at in 0..packed.len() {
        for flip in [0x01, 0x10, 0x80, 0xff] {
            let mut damaged = packed.clone();
            damaged[at] ^= flip;
            fs::write(&path, damaged).unwrap();
            match read_dir(dir.path()) {
                Ok(read) => assert_eq!(read, whole, "byte {at} ^ {flip:02x}"),
                Err(_) => assert!(error_of_dir(&dir).contains("train-images-idx3-ubyte.gz")),
            }
        }
    }
}

#[test]
fn a_truncated_plain_file_or_one_with_a_damaged_header_is_refused() {
    let dir = tiny();
    for (name, header) in [(TRAIN_IMAGES, 16), (TRAIN_LABELS, 8)] {
        let path = dir.path().join(name);
        let whole = fs::read(&path).unwrap();
        for end in 0..whole.len() {
            fs::write(&path, &whole[..end]).unwrap();
            error_of_dir(&dir);
        }
        for at in 0..header {
            for flip in [0x01, 0x10, 0x80, 0xff] {
                let mut damaged = whole.clone();
                damaged[at] ^= flip;
                fs::write(&path, damaged).unwrap();
                error_of_dir(&dir);
            }
        }
        fs::write(&path, whole).unwrap();
    }
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
fn cifar_batches_are_read_in_order_with_their_class_names() {
    let dir = tiny_cifar();
    let (train, test) = cifar::read_dir(dir.path()).unwrap();
    assert_eq!((train.labels(), test.labels()), ([1, 2, 3, 4, 5].as_slice(), [9, 0].as_slice()));
    assert_eq!((train.shape(), train.class_names()[9].as_str()), ((3, 32, 32), "truck"));
    assert_eq!(test.image(1).unwrap()[1024..1026], [20, 21]);

    fs::write(dir.path().join("batches.meta.txt"), "a\nb\nc\nd\ne\nf\ng\nh\ni\nj\n\n").unwrap();
    assert_eq!(cifar::read_dir(dir.path()).unwrap().1.class_names().concat(), "abcdefghij");
}

#[test]
fn errors_of_malformed_cifar_batches_name_file_and_position() {
    let error_of = |file: &str, bytes: &[u8]| {
        let dir = tiny_cifar();
        fs::write(dir.path().join(file), bytes).unwrap();
        cifar::read_dir(dir.path()).unwrap_err()
    };
    let batch = "data_batch_3.bin";
    assert_says(&error_of(batch, &[0; 3072]), &[batch, "3072 bytes", "multiple of 3073"]);
    assert_says(&error_of(batch, &[]), &[batch, "empty file"]);
    let labels = [[0; 3073], [10; 3073]].concat();
    assert_says(&error_of("test_batch.bin", &labels), &["test_batch.bin", "label 10 in record 1", "0 to 9"]);
    assert_says(&error_of("batches.meta.txt", b"cat\ndog\n"), &["batches.meta.txt", "2 class names", "10"]);

    let dir = tiny_cifar();
    let nested = tempdir().unwrap();
    fs::rename(dir.keep(), nested.path().join("cifar-10-batches-bin")).unwrap();
    assert_eq!(cifar::read_dir(nested.path()).unwrap().1.labels(), [9, 0]);
    fs::write(nested.path().join("test_batch"), "").unwrap();
    assert_says(&cifar::read_dir(nested.path()).unwrap_err(), &["for Python", "binary version"]);

    let dir = tiny_cifar();
    fs::remove_file(dir.path().join("test_batch.bin")).unwrap();
    let (train, test) = cifar::read_dir(dir.path()).unwrap();
    assert_eq!((train.len(), test.len()), (5, 0));

    let dir = tiny_cifar();
    fs::remove_file(dir.path().join(batch)).unwrap();
    assert_says(&cifar::read_dir(dir.path()).unwrap_err(), &[batch, "no such file"]);
    assert_says(&cifar::read_dir(Path::new("no/place")).unwrap_err(), &["no/place", "no such directory"]);
}

#[test]
fn a_test_set_is_the_same_without_the_training_set() {
    let dir = tiny_cifar();
    for (name, dir) in [("digits", None), ("shapes", None), ("cifar10", Some(dir.path()))] {
        let (test, notes) = image::load_test(name, dir, 8).unwrap();
        assert!(test == image::load(name, dir, 8).unwrap().test && notes.is_empty(), "{name}");
    }
    fs::remove_file(dir.path().join("data_batch_1.bin")).unwrap();
    assert_eq!(image::load_test("cifar10", Some(dir.path()), 8).unwrap().0.labels(), [9, 0]);
}
