//! Folders of images: which files they list, and batches that are read from them.

use super::says::assert_says;
use super::{encoded, plain, tiny_folder, with_threads};
use ::image::ImageFormat;
use candle_core::Device;
use candle_textbook::data::ImageSet;
use candle_textbook::data::image::folder;
use rayon::prelude::*;
use std::fs;
use std::path::Path;
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;
use tempfile::tempdir;

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
        for file in ["train/labels.csv", "loose.png", "README.md"] {
            fs::write(dir.path().join(file), "").unwrap();
        }
        let set = folder::read_dir(dir.path(), 8).unwrap();
        assert_eq!((set.validation, set.test.len()), (None, 2), "{name}");
        let notes = set.notes.join("\n");
        assert!(notes.contains(name) && notes.contains("no test split"), "{notes}");
        assert!(notes.contains("passed over: unlabelled, loose.png\n"), "{notes}");
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
        &error_of(&|dir| fs::rename(dir.join("test/cat"), dir.join("test/Cat")).unwrap()),
        &["missing: cat, which train has; found Cat, which train lacks"],
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
fn a_test_folder_without_classes_is_not_the_test_split() {
    let dir = tiny_folder();
    let test = dir.path().join("test");
    fs::remove_dir_all(&test).unwrap();
    fs::create_dir(&test).unwrap();
    fs::write(test.join("1.jpg"), "").unwrap();
    let set = folder::read_dir(dir.path(), 8).unwrap();
    assert!(set.test.is_empty() && set.notes[0].contains("test: no class folders"), "{:?}", set.notes);
    assert_says(&folder::read_test(dir.path(), 8).unwrap_err(), &["no folder test, with a folder per class"]);
}

#[test]
fn class_folders_with_composed_and_decomposed_accents_are_the_same() {
    let dir = tiny_folder();
    for (split, name) in [("train", "a\u{308}"), ("test", "\u{e4}")] {
        let split = dir.path().join(split);
        fs::rename(split.join("cat"), split.join(name)).unwrap();
    }
    let set = folder::read_dir(dir.path(), 8).unwrap();
    assert_eq!(set.training.class_names(), ["dog", "\u{e4}"]);
    assert_eq!((set.training.len(), set.test.len()), (4, 2));
    assert_eq!(folder::read_test(dir.path(), 8).unwrap().0.class_names(), ["dog", "\u{e4}"]);
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
fn a_class_without_images_is_an_error_with_and_without_splits() {
    let dir = tiny_folder();
    let train = dir.path().join("train");
    fs::create_dir_all(train.join("green/more")).unwrap();
    let error = folder::read_dir(dir.path(), 8).unwrap_err().to_string();
    assert_says(&error, &["train/green: no images, expected files ending in jpg, jpeg, png"]);
    let add_webp = || fs::write(train.join("green/a.webp"), "").unwrap();
    for change in [&|| {}, &add_webp as &dyn Fn()] {
        change();
        assert_eq!(folder::read_dir(&train, 8).unwrap_err().to_string(), error);
        assert_eq!(folder::read_test(&train, 8).unwrap_err().to_string(), error);
    }
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
