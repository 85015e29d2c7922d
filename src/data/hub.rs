//! Downloads from the Hugging Face hub. A file is downloaded once and then read from the hub's cache.
//!
//! The variables `HF_ENDPOINT`, `HF_HOME` and `HF_TOKEN` apply, as in every client of the hub.

use anyhow::{Context, Result, anyhow, bail, ensure};
use hf_hub::progress::{ProgressEvent, ProgressHandler};
use hf_hub::{HFClient, HFError, RepoType, RepoTypeDataset, RepoTypeModel, split_id};
use parquet::errors::ParquetError;
use parquet::file::reader::SerializedFileReader;
use parquet::record::{Field, Row};
use std::cell::Cell;
use std::fs::File;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::Duration;

/// Longest time until the hub's first answer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(8);
/// Longest time without progress of a download.
const STALL_TIMEOUT: Duration = Duration::from_secs(60);

/// A repository of the hub.
#[derive(Clone)]
struct Repository<T> {
    kind: T,
    id: String,
    revision: &'static str,
}

/// Downloads the parquet `files` of the data set `id`, unless they are cached, and returns their paths.
pub(super) fn dataset<const N: usize>(id: &str, files: [String; N]) -> Result<[PathBuf; N]> {
    // The hub converts every data set to parquet files under this revision.
    download(Repository { kind: RepoTypeDataset, id: id.into(), revision: "refs/convert/parquet" }, files)
}

/// Downloads the ImageNet weights of `resnet18`, `34`, `50`, `101` or `152`, unless they are cached.
///
/// Returns the path of a safetensors file.
///
/// # Errors
/// Fails if `name` is none of these, the hub does not answer within eight seconds, or the file is missing there.
pub fn load_weights(name: &str) -> Result<PathBuf> {
    let known = ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"];
    ensure!(known.contains(&name), "weights {name}: unknown, expected one of {}", known.join(", "));
    let from = Repository { kind: RepoTypeModel, id: format!("timm/{name}.a1_in1k"), revision: "main" };
    let [path] = download(from, ["model.safetensors".into()])?;
    Ok(path)
}

enum Event {
    Progress,
    Done(Result<Vec<PathBuf>, HFError>),
}

struct Listener(Sender<Event>);

impl ProgressHandler for Listener {
    fn on_progress(&self, _: &ProgressEvent) {
        // The receiver is gone once the download has been abandoned.
        let _ = self.0.send(Event::Progress);
    }
}

/// Downloads `files`. The client has no timeout, so it runs on its own thread, which is abandoned if it stalls.
fn download<T: RepoType, const N: usize>(from: Repository<T>, files: [String; N]) -> Result<[PathBuf; N]> {
    let Repository { id, revision, .. } = from.clone();
    let (sender, receiver) = channel();
    thread::spawn(move || {
        let paths = fetch(from, &files, &sender);
        let _ = sender.send(Event::Done(paths));
    });
    let mut timeout = CONNECT_TIMEOUT;
    loop {
        match receiver.recv_timeout(timeout) {
            Ok(Event::Progress) => timeout = STALL_TIMEOUT,
            Ok(Event::Done(Ok(paths))) => {
                return paths.try_into().map_err(|_| anyhow!("{id}: the download ended early"));
            }
            Ok(Event::Done(Err(HFError::EntryNotFound { path, .. }))) => {
                bail!("{id}: the hub has no file {path} at {revision}")
            }
            Ok(Event::Done(Err(error))) => {
                bail!("{id}: can't be downloaded from the hub: {}", root_cause(&error))
            }
            Err(_) => bail!("{id}: no answer from the hub in {} seconds", timeout.as_secs()),
        }
    }
}

fn fetch<T: RepoType>(
    from: Repository<T>,
    files: &[String],
    events: &Sender<Event>,
) -> Result<Vec<PathBuf>, HFError> {
    let client = HFClient::builder().retry_max_attempts(3).build_sync()?;
    let (owner, name) = split_id(&from.id);
    let repository = client.repository(from.kind, owner, name);
    files
        .iter()
        .map(|file| {
            let file = repository.download_file().filename(file).revision(from.revision);
            match file.clone().local_files_only(true).send() {
                Ok(path) => Ok(path),
                Err(_) => file.progress(Listener(events.clone())).send(),
            }
        })
        .collect()
}

/// The innermost error, such as "connection refused", without the "error sending request" around it.
fn root_cause(error: &HFError) -> String {
    let mut error: &dyn std::error::Error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string().lines().next().unwrap_or_default().to_string()
}

/// Calls `parse` with the rows of a parquet file and their numbers.
pub(super) fn read_rows(path: &Path, mut parse: impl FnMut(usize, &Row) -> Result<()>) -> Result<()> {
    let name = path.display();
    let damaged = |error: ParquetError| anyhow!("expected a whole parquet file: {error}");
    let file = File::open(path).with_context(|| format!("{name}: can't be opened"))?;
    let parse_all = || {
        let mut count = 0;
        for row in SerializedFileReader::new(file).map_err(damaged)? {
            parse(count, &row.map_err(damaged)?)?;
            count += 1;
        }
        ensure!(count > 0, "no rows");
        Ok(())
    };
    catch_panic(parse_all).map_err(|error| anyhow!("{name}: {error}; delete this file to download it again"))
}

/// Calls `work`, and turns a panic of the parquet reader into an error. Its message is not printed.
fn catch_panic<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    thread_local! { static IS_CAUGHT: Cell<bool> = const { Cell::new(false) } }
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let print = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            if !IS_CAUGHT.get() {
                print(panic);
            }
        }));
    });
    IS_CAUGHT.set(true);
    let result = panic::catch_unwind(AssertUnwindSafe(work));
    IS_CAUGHT.set(false);
    result.unwrap_or_else(|_| bail!("expected a whole parquet file, found a damaged one"))
}

pub(super) fn column<'a>(row: &'a Row, name: &str) -> Option<&'a Field> {
    row.get_column_iter().find(|(column, _)| *column == name).map(|(_, field)| field)
}

/// The text in the column `name`.
pub(super) fn text<'a>(row: &'a Row, number: usize, name: &str) -> Result<&'a str> {
    match column(row, name) {
        Some(Field::Str(text)) => Ok(text),
        _ => bail!("no column {name:?} in row {number}"),
    }
}

/// The label in the column `label`, below `classes`; `None` for a missing label, -1.
pub(super) fn label(row: &Row, number: usize, classes: usize) -> Result<Option<u32>> {
    match column(row, "label") {
        Some(&Field::Long(-1)) => Ok(None),
        Some(&Field::Long(label)) if (0..classes as i64).contains(&label) => Ok(Some(label as u32)),
        Some(&Field::Long(label)) => bail!("label {label} in row {number}, expected 0 to {}", classes - 1),
        _ => bail!("no 64-bit column \"label\" in row {number}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parquet::data_type::{ByteArrayType, Int64Type};
    use parquet::file::writer::SerializedFileWriter;
    use parquet::schema::parser::parse_message_type;

    #[test]
    fn any_damaged_byte_of_a_file_is_an_error_or_reads_as_other_values() {
        let schema = "message schema { optional binary text (UTF8); optional int64 label; }";
        let mut whole = vec![];
        let mut file = SerializedFileWriter::new(
            &mut whole,
            parse_message_type(schema).unwrap().into(),
            Default::default(),
        )
        .unwrap();
        let mut rows = file.next_row_group().unwrap();
        let mut column = rows.next_column().unwrap().unwrap();
        column.typed::<ByteArrayType>().write_batch(&["a".into(), "bc".into()], Some(&[1, 1]), None).unwrap();
        column.close().unwrap();
        let mut column = rows.next_column().unwrap().unwrap();
        column.typed::<Int64Type>().write_batch(&[0, 1], Some(&[1, 1]), None).unwrap();
        column.close().unwrap();
        rows.close().unwrap();
        file.close().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0000.parquet");
        for at in 0..whole.len() {
            for mask in [0x01, 0x80, 0xff] {
                let mut damaged = whole.clone();
                damaged[at] ^= mask;
                std::fs::write(&path, damaged).unwrap();
                if let Err(error) = read_rows(&path, |at, row| text(row, at, "text").map(|_| ())) {
                    assert!(!format!("{error:#}").contains('\n'), "{error:#}");
                }
            }
        }
    }
}
