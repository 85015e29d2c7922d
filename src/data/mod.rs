//! Data sets: built-in ones, file formats, the hub.

#[cfg(feature = "hub")]
pub mod hub;
pub mod idx;
mod images;
pub mod picture;

pub use images::Images;
