//! The encodings that text files may have: UTF-8 or Windows-1252.

use anyhow::{Result, ensure};
use encoding_rs::{Encoding, UTF_8, WINDOWS_1252};

/// Length of the byte order mark at the start of `bytes`.
///
/// # Errors
/// Fails if it marks another encoding than UTF-8.
pub(super) fn byte_order_mark(bytes: &[u8]) -> Result<usize> {
    match Encoding::for_bom(bytes) {
        None => Ok(0),
        Some((marked, length)) => {
            ensure!(marked == UTF_8, "is {}, expected UTF-8 or Windows-1252", marked.name());
            Ok(length)
        }
    }
}

/// Decodes Windows-1252.
pub(crate) fn windows_1252(bytes: &[u8]) -> String {
    WINDOWS_1252.decode_without_bom_handling(bytes).0.into_owned()
}
