//! Data sets: built-in ones, file formats, the hub.

mod digits;
mod expand;
mod images;

pub use digits::digits;
pub use expand::{Distortion, Expansion};
pub use images::Images;
