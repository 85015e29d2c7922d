//! Data sets: built-in ones, file formats, the hub.

mod images;

pub use images::Images;
