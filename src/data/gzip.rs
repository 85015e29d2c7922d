//! Files that may be gzipped.

use anyhow::anyhow;
use std::io::{Error, ErrorKind};

/// The first bytes of a gzip file.
pub(super) const MAGIC: [u8; 2] = [0x1f, 0x8b];

/// Explains an error of reading a file through a gzip decoder.
pub(super) fn read_error(error: Error) -> anyhow::Error {
    match error.kind() {
        ErrorKind::UnexpectedEof => anyhow!("truncated, expected a whole file"),
        ErrorKind::InvalidInput | ErrorKind::InvalidData => {
            anyhow!("damaged, expected a whole gzip file: {error}")
        }
        _ => anyhow!("can't be read: {error}"),
    }
}
