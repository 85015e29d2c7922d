//! Pictures, texts and weights from the Hugging Face hub. A file once downloaded is read from the hub's cache ever after.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use hf_hub::progress::{ProgressEvent, ProgressHandler};
use hf_hub::{HFClient, HFError, RepoType, RepoTypeDataset, RepoTypeModel, split_id};
use image::{ColorType, GenericImageView, ImageFormat};
use parquet::errors::ParquetError;
use parquet::file::reader::SerializedFileReader;
use parquet::record::{Field, Row};

use super::text::{AG_NEWS_CLASSES, polarities};
use super::{CLOTHING, Corpus, Images, Texts, cifar};

const CLASSES: usize = 10;

/// A hub that hasn't answered within this time is out of reach. Once it has, a download may be as slow as it likes,
/// as long as something arrives within each `STALLED`.
const OUT_OF_REACH: Duration = Duration::from_secs(8);
const STALLED: Duration = Duration::from_secs(60);

/// What works without the hub.
const INSTEAD: &str = "give --data-dir DIR with its files, or use a built-in --dataset, digits or shapes";
const INSTEAD_OF_WEIGHTS: &str = "give a safetensors or PyTorch file";
const INSTEAD_OF_CORPUS: &str = "give --data-dir DIR with its files, or use the built-in --dataset reviews";
const INSTEAD_OF_TEXT: &str = "give --data-dir DIR with input.txt, or use the built-in --dataset source";

/// Something that the hub keeps files of.
#[derive(Clone)]
struct Repository<T> {
    kind: T,
    id: String,
    revision: &'static str,
}

/// A data set, of which the hub keeps parquet files under a revision of their own.
fn dataset(id: &str) -> Repository<RepoTypeDataset> {
    Repository { kind: RepoTypeDataset, id: id.into(), revision: "refs/convert/parquet" }
}

/// Downloads `mnist`, `fashion-mnist` or `cifar10`, or finds it in the cache, and reads its training and its test set:
/// pictures of the shape `(1, height, width)` or, in colour, `(3, height, width)`, ten classes. The variables `HF_ENDPOINT`,
/// `HF_HOME` and `HF_TOKEN` are heeded, as by every client of the hub.
///
/// # Errors
/// When `name` is none of these, the hub doesn't answer within ten seconds or lacks a file, or a file isn't what it should be.
pub fn load(name: &str) -> Result<(Images, Images)> {
    let (id, folder, column, colour, names) = match name {
        "mnist" => ("ylecun/mnist", "mnist", "image", ColorType::L8, None),
        "fashion-mnist" => {
            ("zalando-datasets/fashion_mnist", "fashion_mnist", "image", ColorType::L8, Some(CLOTHING))
        }
        "cifar10" => ("uoft-cs/cifar10", "plain_text", "img", ColorType::Rgb8, Some(cifar::NAMES)),
        _ => bail!("the data set {name} is not on the hub, expected mnist, fashion-mnist or cifar10"),
    };
    let files = ["train", "test"].map(|split| format!("{folder}/{split}/0000.parquet"));
    let [train_path, test_path] = download(dataset(id), files, INSTEAD)?;
    let read = |path: &Path| read(path, |reader| parse(reader, column, colour), INSTEAD);
    let (mut train, mut test) = (read(&train_path)?, read(&test_path)?);
    if let Some(names) = names {
        (train, test) = (train.named(names)?, test.named(names)?);
    }
    ensure!(
        train.shape() == test.shape(),
        "{}: pictures of {:?}, but {} holds {:?}",
        test_path.display(),
        test.shape(),
        train_path.display(),
        train.shape()
    );
    Ok((train, test))
}

/// Downloads the text `tiny-shakespeare`, or finds it in the cache: its training, validation and test parts, which are
/// pieces of one text, one after the other.
///
/// # Errors
/// As for [`load`].
pub fn load_text(name: &str) -> Result<String> {
    ensure!(name == "tiny-shakespeare", "the text {name} is not on the hub, expected tiny-shakespeare");
    let files = ["train", "validation", "test"].map(|split| format!("default/{split}/0000.parquet"));
    let paths: [PathBuf; 3] = download(dataset("karpathy/tiny_shakespeare"), files, INSTEAD_OF_TEXT)?;
    let parts = paths.map(|path| read(&path, parse_text, INSTEAD_OF_TEXT));
    parts.into_iter().collect()
}

/// Where the hub keeps a data set of labelled sentences.
struct Sentences {
    id: &'static str,
    /// Training, validation and test part.
    splits: [Option<&'static str>; 3],
    /// Name of the column beside `label`.
    text: &'static str,
    classes: Vec<String>,
}

/// Downloads `mr`, `sst2` or `ag-news`, or finds it in the cache. Labels that are missing, as those of the test part
/// of `sst2`, leave the part out, with a note.
///
/// # Errors
/// As for [`load`].
pub fn load_corpus(name: &str) -> Result<Corpus> {
    let splits = [Some("train"), Some("validation"), Some("test")];
    let opinions = |id, text| Sentences { id, splits, text, classes: polarities() };
    let set = match name {
        "mr" => opinions("cornell-movie-review-data/rotten_tomatoes", "text"),
        "sst2" => opinions("stanfordnlp/sst2", "sentence"),
        "ag-news" => {
            let classes = AG_NEWS_CLASSES.map(String::from).into();
            Sentences {
                id: "fancyzhx/ag_news",
                splits: [Some("train"), None, Some("test")],
                text: "text",
                classes,
            }
        }
        _ => bail!("the data set {name} is not on the hub, expected mr, sst2 or ag-news"),
    };
    let mut corpus = Corpus { classes: set.classes.clone(), ..Corpus::default() };
    for (part, split) in set.splits.iter().enumerate() {
        let Some(split) = split else { continue };
        let [path] = download(dataset(set.id), [format!("default/{split}/0000.parquet")], INSTEAD_OF_CORPUS)?;
        let texts = read(&path, |reader| parse_sentences(reader, &set), INSTEAD_OF_CORPUS)?;
        match (part, texts) {
            (0, Some(texts)) => corpus.train = texts,
            (1, texts) => corpus.validation = texts,
            (_, Some(texts)) => corpus.test = Some(texts),
            (_, None) => {
                corpus.notes.push(format!("{}: has no labels, so there is no {split} set", path.display()))
            }
        }
    }
    Ok(corpus)
}

/// Rows of a text and a label; nothing where a label is -1.
fn parse_sentences(reader: SerializedFileReader<File>, set: &Sentences) -> Result<Option<Texts>> {
    let mut texts = Texts::default();
    for (at, row) in reader.into_iter().enumerate() {
        let row = row.map_err(damaged)?;
        let Some(Field::Str(text)) = column(&row, set.text) else {
            bail!("no column {:?} in row {at}", set.text);
        };
        match column(&row, "label") {
            Some(&Field::Long(-1)) => return Ok(None),
            Some(&Field::Long(label)) if (0..set.classes.len() as i64).contains(&label) => {
                texts.push(text.trim(), label as u32);
            }
            Some(&Field::Long(label)) => {
                bail!("label {label} in row {at}, expected 0 to {}", set.classes.len() - 1)
            }
            _ => bail!("no 64-bit column \"label\" in row {at}"),
        }
    }
    ensure!(!texts.is_empty(), "no rows, expected texts");
    Ok(Some(texts))
}

/// Downloads the weights of `resnet18`, `34`, `50`, `101` or `152`, trained on ImageNet, or finds them in the cache: a
/// safetensors file.
///
/// # Errors
/// As for [`load`].
pub fn load_weights(name: &str) -> Result<PathBuf> {
    let known = ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"];
    ensure!(known.contains(&name), "the model {name} is not known, expected one of {}", known.join(", "));
    let from = Repository { kind: RepoTypeModel, id: format!("timm/{name}.a1_in1k"), revision: "main" };
    let [path] = download(from, ["model.safetensors".into()], INSTEAD_OF_WEIGHTS)?;
    Ok(path)
}

enum News {
    Progress,
    Done(Result<Vec<PathBuf>, HFError>),
}

struct Listener(Sender<News>);

impl ProgressHandler for Listener {
    fn on_progress(&self, _: &ProgressEvent) {
        // Nobody listens any more once the download was given up.
        let _ = self.0.send(News::Progress);
    }
}

/// The client waits for ever where nothing answers, so it works in a thread of its own, which is left to itself then.
fn download<T: RepoType, const N: usize>(
    from: Repository<T>,
    files: [String; N],
    instead: &str,
) -> Result<[PathBuf; N]> {
    let Repository { id, revision, .. } = from.clone();
    let (sender, receiver) = channel();
    thread::spawn(move || {
        let paths = fetch(from, &files, &sender);
        let _ = sender.send(News::Done(paths));
    });
    let mut patience = OUT_OF_REACH;
    loop {
        match receiver.recv_timeout(patience) {
            Ok(News::Progress) => patience = STALLED,
            Ok(News::Done(Ok(paths))) => {
                return paths.try_into().map_err(|_| anyhow!("{id}: the download ended early"));
            }
            Ok(News::Done(Err(HFError::EntryNotFound { path, .. }))) => {
                bail!("{id}: the hub has no file {path} at {revision}; {instead}")
            }
            Ok(News::Done(Err(error))) => {
                bail!("{id}: can't be downloaded from the hub: {}; {instead}", innermost(&error))
            }
            Err(_) => {
                bail!("{id}: no answer from the hub in {} seconds; {instead}", patience.as_secs())
            }
        }
    }
}

fn fetch<T: RepoType>(
    from: Repository<T>,
    files: &[String],
    news: &Sender<News>,
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
                Err(_) => file.progress(Listener(news.clone())).send(),
            }
        })
        .collect()
}

/// "error sending request" says less than the "connection refused" under it.
fn innermost(error: &HFError) -> String {
    let mut error: &dyn std::error::Error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string().lines().next().unwrap_or_default().to_string()
}

/// What `parse` finds in the rows of a parquet file.
fn read<R>(
    path: &Path,
    parse: impl FnOnce(SerializedFileReader<File>) -> Result<R>,
    instead: &str,
) -> Result<R> {
    let name = path.display();
    let file = File::open(path).with_context(|| format!("{name}: can't be opened"))?;
    SerializedFileReader::new(file)
        .map_err(damaged)
        .and_then(parse)
        .map_err(|found| anyhow!("{name}: {found}; delete this file to download it again, or {instead}"))
}

fn damaged(error: ParquetError) -> anyhow::Error {
    anyhow!("expected a whole parquet file: {error}")
}

/// Rows of `text`.
fn parse_text(reader: SerializedFileReader<File>) -> Result<String> {
    let mut all = String::new();
    for row in reader {
        let row = row.map_err(damaged)?;
        let Some(Field::Str(text)) = column(&row, "text") else { bail!("no column \"text\"") };
        all.push_str(text);
    }
    ensure!(!all.is_empty(), "no rows, expected a text");
    Ok(all)
}

/// Rows of `group`, a group with the PNG file in `bytes`, of this colour, and `label`.
fn parse(reader: SerializedFileReader<File>, group: &str, colour: ColorType) -> Result<Images> {
    let (mut pixels, mut labels) = (Vec::new(), Vec::new());
    let mut size = None;
    for row in reader {
        let row = row.map_err(damaged)?;
        let at = labels.len();
        let Some(Field::Group(image)) = column(&row, group) else {
            bail!("no group {group:?} in row {at}");
        };
        let Some(Field::Bytes(png)) = column(image, "bytes") else {
            bail!("no column \"{group}.bytes\" in row {at}");
        };
        let picture = image::load_from_memory_with_format(png.data(), ImageFormat::Png)
            .map_err(|error| anyhow!("the picture in row {at} is no PNG file: {error}"))?;
        ensure!(
            picture.color() == colour,
            "the picture in row {at} is {:?}, expected {colour:?}",
            picture.color()
        );
        let (width, height) = picture.dimensions();
        let (first_width, first_height) = *size.get_or_insert((width, height));
        ensure!(
            (width, height) == (first_width, first_height),
            "the picture in row {at} is {height}x{width}, expected {first_height}x{first_width} like the first"
        );
        let Some(&Field::Long(label)) = column(&row, "label") else {
            bail!("no 64-bit column \"label\" in row {at}");
        };
        ensure!((0..CLASSES as i64).contains(&label), "label {label} in row {at}, expected 0 to 9");
        let channels = usize::from(colour.channel_count());
        let plane = |channel| picture.as_bytes().iter().skip(channel).step_by(channels);
        pixels.extend((0..channels).flat_map(plane));
        labels.push(label as u8);
    }
    let (width, height) = size.context("no rows, expected pictures")?;
    Ok(Images::new(
        pixels,
        labels,
        (colour.channel_count().into(), height as usize, width as usize),
        CLASSES,
    )?)
}

fn column<'a>(row: &'a Row, name: &str) -> Option<&'a Field> {
    row.get_column_iter().find(|(column, _)| *column == name).map(|(_, field)| field)
}
