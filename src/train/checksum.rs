//! Checksums of the files of a run.

use anyhow::{Context, Result, ensure};
use candle_core::Tensor;
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::Path;

/// Name of the checksum in `config.json` and in the metadata of a safetensors file.
pub(super) const CHECKSUM: &str = "checksum";

/// The placeholder for the checksum during its computation.
const BLANK: &[u8; 8] = b"00000000";

/// Returns a checksum of `bytes`: CRC-32, in eight hexadecimal digits.
pub fn checksum(bytes: &[u8]) -> String {
    format!("{:08x}", crc32fast::hash(bytes))
}

/// Serialises tensors as safetensors, with a checksum of the whole file in its metadata.
pub(super) fn serialize(
    tensors: BTreeMap<String, Tensor>,
    mut metadata: HashMap<String, String>,
) -> Result<Vec<u8>> {
    metadata.insert(CHECKSUM.to_string(), String::from_utf8_lossy(BLANK).into_owned());
    let mut bytes = safetensors::serialize(tensors, Some(metadata))?;
    sort_header(&mut bytes)?;
    let place = place(&bytes).context("the header has no place for a checksum")?;
    let checksum = checksum(&bytes);
    bytes[place].copy_from_slice(checksum.as_bytes());
    Ok(bytes)
}

/// Sorts the header of a safetensors file, whose metadata is in the random order of a hash map.
fn sort_header(bytes: &mut [u8]) -> Result<()> {
    let range = header(bytes).context("the file has no header")?;
    let header = &mut bytes[range];
    let fields: BTreeMap<String, BTreeMap<String, serde_json::Value>> = serde_json::from_slice(header)?;
    let sorted = serde_json::to_vec(&fields)?;
    ensure!(sorted.len() <= header.len(), "the header has grown");
    header.fill(b' ');
    header[..sorted.len()].copy_from_slice(&sorted);
    Ok(())
}

/// Finds the header.
fn header(bytes: &[u8]) -> Option<Range<usize>> {
    let end = usize::try_from(u64::from_le_bytes(*bytes.first_chunk()?)).ok()?.checked_add(8)?;
    (end <= bytes.len()).then_some(8..end)
}

/// Checks the checksum of the safetensors file `path`, whose contents are `bytes`.
///
/// # Errors
/// Fails if the checksum is wrong. A file without one, which another program wrote, passes.
pub(super) fn verify(path: &Path, bytes: &[u8]) -> Result<()> {
    let Some(place) = place(bytes) else { return Ok(()) };
    let mut hasher = crc32fast::Hasher::new();
    for part in [&bytes[..place.start], BLANK, &bytes[place.end..]] {
        hasher.update(part);
    }
    ensure!(
        format!("{:08x}", hasher.finalize()).as_bytes() == &bytes[place],
        "{}: the file is damaged: its contents do not match its checksum",
        path.display()
    );
    Ok(())
}

/// Finds the digits of the checksum in the header.
fn place(bytes: &[u8]) -> Option<Range<usize>> {
    let range = header(bytes)?;
    let header = &bytes[range.clone()];
    // Elsewhere in the header the quotes would be escaped, and the name of a tensor precedes a brace.
    let key = format!("\"{CHECKSUM}\":\"");
    let start =
        range.start + key.len() + header.windows(key.len()).position(|window| window == key.as_bytes())?;
    (start + BLANK.len() <= range.end).then(|| start..start + BLANK.len())
}
