//! Compiled kernels on disk, in `$XDG_CACHE_HOME/candle-textbook` or `~/.cache/candle-textbook`.
//!
//! Each file holds the compiled code and a trailer: a magic number, the key and a checksum. A damaged file, or one with
//! another key, is compiled again. A folder that can't be written only costs time.

use candle_core::Result;
use std::env;
use std::ffi::OsStr;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

const MARK: &[u8; 8] = b"ctkernel";

/// Compiled code, and its file if it has one.
pub(super) struct Code {
    pub bytes: Vec<u8>,
    /// Only the emulator loads code from its file.
    #[cfg_attr(not(feature = "cuda-emulator"), allow(dead_code))]
    pub file: Option<PathBuf>,
}

/// Returns the code for `key`, from `folder` or else from `compile`.
pub(super) fn load(
    folder: Option<&Path>,
    (name, extension): (&str, &str),
    key: &[&str],
    compile: impl FnOnce() -> Result<Vec<u8>>,
) -> Result<Code> {
    let key = [hash((0, key)), hash((1, key))].map(u64::to_le_bytes).concat();
    let digits: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
    let file = folder.map(|folder| folder.join(format!("{name}-{digits}.{extension}")));
    if let Some(bytes) = file.as_ref().and_then(|file| fs::read(file).ok())
        && let Some(code) =
            bytes.strip_suffix(&trailer(&key, &bytes[..bytes.len().saturating_sub(TRAILER)])[..])
    {
        return Ok(Code { bytes: code.to_vec(), file });
    }
    let bytes = compile()?;
    let file = file.filter(|file| write(file, &bytes, &trailer(&key, &bytes)).is_ok());
    Ok(Code { bytes, file })
}

const TRAILER: usize = MARK.len() + 16 + 8;

fn trailer(key: &[u8], code: &[u8]) -> Vec<u8> {
    [MARK, key, &hash(code).to_le_bytes()].concat()
}

fn hash(value: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

fn write(file: &Path, code: &[u8], trailer: &[u8]) -> std::io::Result<()> {
    fs::create_dir_all(file.parent().expect("a folder"))?;
    let unfinished = unique(file);
    let written = fs::File::create(&unfinished).and_then(|mut to| {
        to.write_all(code)?;
        to.write_all(trailer)?;
        to.sync_all()
    });
    let result = written.and_then(|()| fs::rename(&unfinished, file));
    if result.is_err() {
        let _ = fs::remove_file(&unfinished);
    }
    result
}

/// Returns a name beside `file`, with its extension, that no other process uses.
pub(super) fn unique(file: &Path) -> PathBuf {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let part = |part: Option<&OsStr>| part.unwrap_or_default().to_string_lossy().into_owned();
    let (id, next) = (std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    file.with_file_name(format!("{}-{id}-{next}.{}", part(file.file_stem()), part(file.extension())))
}

/// The user's cache folder, if there is one.
pub(super) fn folder() -> Option<PathBuf> {
    let absolute = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let cache = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")))?;
    Some(cache.join("candle-textbook"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compiled(folder: &Path, key: &str) -> (Vec<u8>, bool) {
        let mut compiled = false;
        let compile = || {
            compiled = true;
            Ok(key.as_bytes().to_vec())
        };
        let code = load(Some(folder), ("kernel", "bin"), &[key], compile).unwrap();
        (code.bytes, compiled)
    }

    #[test]
    fn code_is_compiled_once_and_again_when_its_file_is_damaged() {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().join("made");
        assert_eq!(compiled(&at, "first"), (b"first".to_vec(), true));
        assert_eq!(compiled(&at, "first"), (b"first".to_vec(), false));
        assert_eq!(compiled(&at, "second"), (b"second".to_vec(), true));
        for file in fs::read_dir(&at).unwrap().map(|file| file.unwrap().path()) {
            let mut bytes = fs::read(&file).unwrap();
            bytes[0] ^= 1;
            fs::write(&file, bytes).unwrap();
        }
        assert_eq!(compiled(&at, "first"), (b"first".to_vec(), true));
        let [first, second] = ["first", "second"].map(|key| {
            let files = fs::read_dir(&at).unwrap().map(|file| file.unwrap().path());
            files
                .into_iter()
                .find(|file| fs::read(file).unwrap()[1..].starts_with(&key.as_bytes()[1..]))
                .unwrap()
        });
        fs::copy(first, &second).unwrap();
        assert_eq!(compiled(&at, "second"), (b"second".to_vec(), true), "the file of another key");
    }

    #[test]
    fn a_folder_that_cannot_be_written_costs_only_time() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "no folder").unwrap();
        for _ in 0..2 {
            assert_eq!(compiled(&file, "code"), (b"code".to_vec(), true));
        }
    }
}
