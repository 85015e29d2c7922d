//! Pictures in PNG and JPEG files, converted to images of a data set.

mod decode;
mod digit_photo;
mod ink;
mod preparation;
mod square;

pub use digit_photo::read_digit;
pub(super) use square::check;
pub use square::read_square;
