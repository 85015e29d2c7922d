//! Data sets: built-in ones, file formats, the hub.

mod digits;
mod images;

pub use digits::digits;
pub use images::Images;
