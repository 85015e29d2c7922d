//! Content hashes, to detect changed data when a run is resumed.

/// FNV-1a (64 bits) over everything that is added, in order.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fingerprint(u64);

impl Fingerprint {
    pub fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    /// Adds bytes. Adding them in pieces gives the same hash as adding them at once.
    pub fn add(mut self, bytes: &[u8]) -> Self {
        for &byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        }
        self
    }

    /// Adds strings, each with its end.
    pub fn add_strings<S: AsRef<str>>(self, strings: impl IntoIterator<Item = S>) -> Self {
        // No UTF-8 text holds the byte 0xff.
        strings.into_iter().fold(self, |hash, text| hash.add(text.as_ref().as_bytes()).add(&[0xff]))
    }

    /// Adds integers, such as labels, and how many there are.
    pub fn add_ids(self, ids: &[u32]) -> Self {
        let hash = ids.iter().fold(self, |hash, id| hash.add(&id.to_le_bytes()));
        hash.add(&(ids.len() as u64).to_le_bytes())
    }

    pub fn finish(self) -> u64 {
        self.0
    }
}
