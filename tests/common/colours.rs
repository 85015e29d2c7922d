//! A folder of images that are easy to tell apart.

use std::fs;
use std::path::Path;

/// Writes images of 32x32 pixels in the classes blue and red to `dir`: five per class to train on, and one to test.
pub fn write_blue_and_red(dir: &Path) {
    for (split, count) in [("train", 5u8), ("test", 1)] {
        for (class, channel) in [("blue", 2), ("red", 0)] {
            let folder = dir.join(split).join(class);
            fs::create_dir_all(&folder).unwrap();
            for i in 0..count {
                let mut colour = [40 * i; 3];
                colour[channel] = 255;
                let image = image::RgbImage::from_pixel(32, 32, image::Rgb(colour));
                image.save(folder.join(format!("{i}.png"))).unwrap();
            }
        }
    }
}
