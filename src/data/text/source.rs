//! The built-in text: this project's own documents and sources.

use include_dir::{Dir, include_dir};

/// The README and the Rust sources, one after another.
pub(super) fn source() -> String {
    static SOURCES: Dir = include_dir!("$CARGO_MANIFEST_DIR/src");
    static BINARIES: Dir = include_dir!("$CARGO_MANIFEST_DIR/bin");
    let mut text = include_str!("../../../README.md").to_string();
    let mut directories = vec![&BINARIES, &SOURCES];
    while let Some(directory) = directories.pop() {
        let sources = directory.files().filter(|file| file.path().extension().is_some_and(|end| end == "rs"));
        sources.filter_map(|file| file.contents_utf8()).for_each(|file| text.push_str(file));
        directories.extend(directory.dirs());
    }
    text
}
