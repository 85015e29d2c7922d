//! Files that may be gzipped.

use anyhow::anyhow;
use flate2::bufread::GzDecoder;
use std::io::{BufRead, Error, ErrorKind, Read, Result};

/// The first bytes of a gzip file.
pub(super) const MAGIC: [u8; 2] = [0x1f, 0x8b];

/// Decompresses the members of a gzip file one after another. Zero bytes after a member are skipped, as in GNU gzip.
pub(super) struct Unpacked<R> {
    member: Option<GzDecoder<R>>,
}

impl<R: BufRead> Unpacked<R> {
    pub fn new(reader: R) -> Self {
        Self { member: Some(GzDecoder::new(reader)) }
    }
}

impl<R: BufRead> Read for Unpacked<R> {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        while let Some(member) = &mut self.member {
            let read = member.read(buffer)?;
            if read > 0 || buffer.is_empty() {
                return Ok(read);
            }
            let Some(mut rest) = self.member.take().map(GzDecoder::into_inner) else { break };
            loop {
                let bytes = rest.fill_buf()?;
                if bytes.is_empty() {
                    return Ok(0);
                }
                let zeros = bytes.iter().take_while(|&&byte| byte == 0).count();
                let is_over = zeros == bytes.len();
                rest.consume(zeros);
                if !is_over {
                    break;
                }
            }
            self.member = Some(GzDecoder::new(rest));
        }
        Ok(0)
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::{Compression, write::GzEncoder};
    use std::io::Write;

    #[test]
    fn members_follow_one_another_and_zeros_end_the_file() {
        let member = |text: &[u8]| {
            let mut encoder = GzEncoder::new(vec![], Compression::fast());
            encoder.write_all(text).unwrap();
            encoder.finish().unwrap()
        };
        let unpacked = |parts: &[&[u8]]| {
            let (bytes, mut text) = (parts.concat(), String::new());
            Unpacked::new(&bytes[..]).read_to_string(&mut text).map(|_| text)
        };
        let (a, b) = (member(b"a"), member(b"b"));
        assert_eq!(unpacked(&[&a, &b]).unwrap(), "ab");
        assert_eq!(unpacked(&[&a, &[0; 1000]]).unwrap(), "a");
        assert_eq!(unpacked(&[&a, b"rest of another file"]).unwrap_err().kind(), ErrorKind::InvalidInput);
        assert_eq!(unpacked(&[&a[..a.len() - 1]]).unwrap_err().kind(), ErrorKind::UnexpectedEof);
    }
}
