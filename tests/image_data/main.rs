//! Images as data: built-in sets, folders, pictures, and the files of MNIST and CIFAR-10.

mod digit_photos;
mod folders;
mod idx_and_cifar;
mod images;
mod pictures;
#[path = "../says/mod.rs"]
mod says;

use ::image::{DynamicImage, ImageFormat, Rgb, RgbImage};
use std::fs;
use std::io::Cursor;
use tempfile::{TempDir, tempdir};

fn with_threads<T: Send>(threads: usize, work: impl FnOnce() -> T + Send) -> T {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(work)
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

fn encoded(image: DynamicImage, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(vec![]);
    image.write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}
