//! Downloads by the hub's client from a small server on 127.0.0.1.
#![cfg(feature = "hub")]

mod says;

use says::assert_says;
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Cursor, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use ::image::{GrayImage, ImageFormat, Luma};
use candle_textbook::data::{Columns, Images, Level, hub::load_weights, image, text};
use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use tempfile::{TempDir, tempdir};

const SCHEMA: &str = "message schema {
    optional group image { optional binary bytes; optional binary path (UTF8); }
    optional int64 label;
}";
const TRAIN: &str = "mnist/train/0000.parquet";
const TEST: &str = "mnist/test/0000.parquet";

/// A process has one environment, so the tests take turns in setting their own hub and cache.
struct Place {
    home: TempDir,
    _alone: MutexGuard<'static, ()>,
}

impl Place {
    fn new() -> Self {
        static ALONE: Mutex<()> = Mutex::new(());
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        Self { home: tempdir().unwrap(), _alone: alone }
    }

    fn load(&self, endpoint: &str, name: &str) -> anyhow::Result<(Images, Images)> {
        self.point_at(endpoint);
        let set = image::load(name, None, 28)?;
        Ok((set.training, set.test))
    }

    fn point_at(&self, endpoint: &str) {
        // SAFETY: the lock is held, and other threads of this process read the environment through std only.
        unsafe {
            std::env::set_var("HF_ENDPOINT", endpoint);
            std::env::set_var("HF_HOME", self.home.path());
            std::env::set_var("NO_PROXY", "127.0.0.1");
            std::env::remove_var("HF_HUB_CACHE");
            std::env::remove_var("HUGGINGFACE_HUB_CACHE");
        }
    }

    fn error_of(&self, endpoint: &str) -> String {
        let error = format!("{:#}", self.load(endpoint, "mnist").expect_err("a malformed file was read"));
        assert!(!error.contains('\n'), "{error}");
        error
    }
}

type Files = HashMap<String, Vec<u8>>;

/// Serves `files` of the data set `id` at the hub's paths; returns the endpoint and the list of requests.
fn serve(
    id: &str,
    files: impl IntoIterator<Item = (&'static str, Vec<u8>)>,
) -> (String, Arc<Mutex<Vec<String>>>) {
    let at = |file| format!("/datasets/{id}/resolve/refs%2Fconvert%2Fparquet/{file}");
    serve_paths(files.into_iter().map(|(file, bytes)| (at(file), bytes)))
}

/// Serves files by their paths.
fn serve_paths(files: impl IntoIterator<Item = (String, Vec<u8>)>) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let files: Files = files.into_iter().collect();
    let requests = Arc::new(Mutex::new(Vec::new()));
    let seen = requests.clone();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // A client may disconnect early.
            let _ = answer(stream, &files, &seen);
        }
    });
    (endpoint, requests)
}

fn answer(mut stream: TcpStream, files: &Files, seen: &Mutex<Vec<String>>) -> std::io::Result<()> {
    let mut request = BufReader::new(&stream);
    let mut line = String::new();
    request.read_line(&mut line)?;
    loop {
        let mut header = String::new();
        if request.read_line(&mut header)? == 0 || header.trim().is_empty() {
            break;
        }
    }
    seen.lock().unwrap().push(line.trim().to_string());
    let mut words = line.split(' ');
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let (status, body) = match files.get(path) {
        Some(body) => ("200 OK", body.as_slice()),
        None => ("404 Not Found", b"{\"error\":\"Entry not found\"}".as_slice()),
    };
    let etag: u64 = body.iter().fold(14_695_981_039_346_656_037, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(1_099_511_628_211)
    });
    let commit = "0123456789abcdef0123456789abcdef01234567";
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\nETag: \"{etag:x}\"\r\nX-Repo-Commit: {commit}\r\nConnection: close\r\n\r\n",
        body.len()
    )?;
    if method == "GET" { stream.write_all(body) } else { Ok(()) }
}

/// Image `index`, of 28x28 pixels, as PNG and as pixels.
fn sample(index: usize) -> (Vec<u8>, Vec<u8>) {
    let grey = GrayImage::from_fn(28, 28, |x, y| Luma([(x * 7 + y * 3 + index as u32 * 11) as u8]));
    (encoded(&grey), grey.into_raw())
}

fn encoded(grey: &GrayImage) -> Vec<u8> {
    let mut png = Cursor::new(Vec::new());
    grey.write_to(&mut png, ImageFormat::Png).unwrap();
    png.into_inner()
}

fn parquet_of(images: &[Vec<u8>], labels: &[i64]) -> Vec<u8> {
    parquet_with(SCHEMA, images, labels)
}

fn parquet_with(schema: &str, images: &[Vec<u8>], labels: &[i64]) -> Vec<u8> {
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let mut bytes = Vec::new();
    let mut file = SerializedFileWriter::new(&mut bytes, schema, Arc::default()).unwrap();
    let mut rows = file.next_row_group().unwrap();
    let images: Vec<ByteArray> = images.iter().map(|png| png.clone().into()).collect();
    let paths: Vec<ByteArray> = labels.iter().map(|label| format!("{label}.png").as_str().into()).collect();
    for values in [images, paths] {
        let mut column = rows.next_column().unwrap().unwrap();
        let levels = vec![2; values.len()];
        column.typed::<ByteArrayType>().write_batch(&values, Some(&levels), None).unwrap();
        column.close().unwrap();
    }
    let mut column = rows.next_column().unwrap().unwrap();
    let levels = vec![1; labels.len()];
    column.typed::<Int64Type>().write_batch(labels, Some(&levels), None).unwrap();
    column.close().unwrap();
    rows.close().unwrap();
    file.close().unwrap();
    bytes
}

fn good(labels: &[i64]) -> Vec<u8> {
    parquet_of(&(0..labels.len()).map(|index| sample(index).0).collect::<Vec<_>>(), labels)
}

#[test]
fn images_come_from_the_hub_and_then_from_the_cache() {
    let place = Place::new();
    let (endpoint, requests) = serve("ylecun/mnist", [(TRAIN, good(&[5, 0, 9])), (TEST, good(&[7, 2]))]);
    let (train, test) = place.load(&endpoint, "mnist").unwrap();
    assert_eq!((train.len(), test.len(), train.shape(), train.classes()), (3, 2, (1, 28, 28), 10));
    assert_eq!((train.labels(), test.labels()), ([5, 0, 9].as_slice(), [7, 2].as_slice()));
    assert_eq!((train.image(2).unwrap(), test.image(1).unwrap()), (sample(2).1.into(), sample(1).1.into()));

    let asked = requests.lock().unwrap().len();
    assert_eq!(place.load(&endpoint, "mnist").unwrap(), (train.clone(), test.clone()));
    assert_eq!(requests.lock().unwrap().len(), asked);
    assert_eq!(place.load("http://127.0.0.1:1", "mnist").unwrap(), (train, test));
}

#[test]
fn fashion_mnist_has_its_own_repository_and_class_names() {
    let place = Place::new();
    let files = [
        ("fashion_mnist/train/0000.parquet", good(&[9, 0])),
        ("fashion_mnist/test/0000.parquet", good(&[3])),
    ];
    let (endpoint, _) = serve("zalando-datasets/fashion_mnist", files);
    let (train, test) = place.load(&endpoint, "fashion-mnist").unwrap();
    assert_eq!((train.labels(), test.labels()), ([9, 0].as_slice(), [3].as_slice()));
    assert_eq!((train.class_names(), test.class_names()[7].as_str()), (test.class_names(), "sneaker"));
}

#[test]
fn cifar10_is_in_colour_and_has_class_names() {
    let place = Place::new();
    let colour = ::image::RgbImage::from_fn(2, 2, |x, y| ::image::Rgb([x as u8, y as u8, 9]));
    let mut png = Cursor::new(Vec::new());
    colour.write_to(&mut png, ImageFormat::Png).unwrap();
    let schema = SCHEMA.replace("group image", "group img");
    let of = |label| parquet_with(&schema, &[png.get_ref().clone()], &[label]);
    let files = [("plain_text/train/0000.parquet", of(3)), ("plain_text/test/0000.parquet", of(9))];
    let (endpoint, _) = serve("uoft-cs/cifar10", files);
    let (train, test) = place.load(&endpoint, "cifar10").unwrap();
    assert_eq!(train.image(0).unwrap()[..], [0, 1, 0, 1, 0, 0, 1, 1, 9, 9, 9, 9]);
    assert_eq!((train.shape(), test.class_names()[test.labels()[0] as usize].as_str()), ((3, 2, 2), "truck"));
}

#[test]
fn weights_come_from_the_hub() {
    let place = Place::new();
    let file = "/timm/resnet18.a1_in1k/resolve/main/model.safetensors".to_string();
    let (endpoint, _) = serve_paths([(file, b"weights".to_vec())]);
    place.point_at(&endpoint);
    let path = load_weights("resnet18").unwrap();
    assert_eq!(std::fs::read(path).unwrap(), b"weights");
    assert_says(
        &load_weights("resnet34").unwrap_err(),
        &["timm/resnet34.a1_in1k", "no file model.safetensors"],
    );
    assert_says(&load_weights("resnet19").unwrap_err(), &["resnet19", "resnet18, resnet34"]);
}

#[test]
fn without_a_hub_the_error_names_the_built_in_sets() {
    let place = Place::new();
    let error = place.error_of("http://127.0.0.1:1");
    assert_says(&error, &["ylecun/mnist", "refused", "digits"]);

    // A server that accepts connections and never answers.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let error = place.error_of(&format!("http://{}", silent.local_addr().unwrap()));
    assert_says(&error, &["ylecun/mnist", "no answer from the hub in 8 seconds", "digits"]);
}

#[test]
fn a_file_missing_on_the_hub_is_named() {
    let place = Place::new();
    let (endpoint, _) = serve("ylecun/mnist", [(TRAIN, good(&[5]))]);
    assert_says(&place.error_of(&endpoint), &["ylecun/mnist", "no file mnist/test/0000.parquet"]);
    // The missing file is not cached.
    let (endpoint, _) = serve("ylecun/mnist", [(TRAIN, good(&[5])), (TEST, good(&[7]))]);
    assert_eq!(place.load(&endpoint, "mnist").unwrap().1.labels(), [7]);
}

#[test]
fn malformed_files_are_refused_with_their_path() {
    let whole = good(&[5, 0]);
    let small = encoded(&GrayImage::new(14, 28));
    let colour = {
        let mut png = Cursor::new(Vec::new());
        ::image::RgbImage::new(28, 28).write_to(&mut png, ImageFormat::Png).unwrap();
        png.into_inner()
    };
    for (bytes, said) in [
        (Vec::new(), "expected a whole parquet file"),
        (whole[..whole.len() / 2].to_vec(), "expected a whole parquet file"),
        (b"<html>not here</html>".to_vec(), "expected a whole parquet file"),
        (parquet_of(&[], &[]), "no rows"),
        (good(&[5, 10]), "label 10 in row 1, expected 0 to 9"),
        (parquet_of(&[sample(0).0, b"GIF89a".to_vec()], &[1, 2]), "the image in row 1 is not a PNG"),
        (parquet_of(&[sample(0).0, small], &[1, 2]), "row 1 is 28x14, expected 28x28"),
        (parquet_of(&[colour], &[1]), "row 0 has 3 channels of 8 bits, expected 1 channel of 8 bits"),
    ] {
        let place = Place::new();
        let (endpoint, _) = serve("ylecun/mnist", [(TRAIN, bytes), (TEST, good(&[7]))]);
        assert_says(&place.error_of(&endpoint), &[TRAIN, said, "delete this file"]);
    }
}

/// A parquet file with a text column and, if there are labels, a label column.
fn parquet_of_texts(name: &str, texts: &[&str], labels: &[i64]) -> Vec<u8> {
    let label = if labels.is_empty() { "" } else { "optional int64 label;" };
    let schema = format!("message schema {{ optional binary {name} (UTF8); {label} }}");
    let schema = Arc::new(parse_message_type(&schema).unwrap());
    let mut bytes = Vec::new();
    let mut file = SerializedFileWriter::new(&mut bytes, schema, Arc::default()).unwrap();
    let mut rows = file.next_row_group().unwrap();
    let mut column = rows.next_column().unwrap().unwrap();
    let values: Vec<ByteArray> = texts.iter().map(|&text| text.into()).collect();
    column.typed::<ByteArrayType>().write_batch(&values, Some(&vec![1; texts.len()]), None).unwrap();
    column.close().unwrap();
    if !labels.is_empty() {
        let mut column = rows.next_column().unwrap().unwrap();
        column.typed::<Int64Type>().write_batch(labels, Some(&vec![1; labels.len()]), None).unwrap();
        column.close().unwrap();
    }
    rows.close().unwrap();
    file.close().unwrap();
    bytes
}

#[test]
fn a_text_is_joined_from_its_three_parts() {
    let place = Place::new();
    let id = "karpathy/tiny_shakespeare";
    let parts =
        ["train", "validation", "test"].map(|part| format!("default/{part}/0000.parquet").leak() as &str);
    let files = parts
        .into_iter()
        .zip(["To be,\n", "or ", "not…"])
        .map(|(part, text)| (part, parquet_of_texts("text", &[text], &[])));
    let (endpoint, _) = serve(id, files);
    place.point_at(&endpoint);
    let text = text::load_stream("tiny-shakespeare", None, Level::Char).unwrap();
    assert_eq!((text.len(), text.name()), (14, "tiny-shakespeare"));

    drop(place);
    let place = Place::new();
    let (endpoint, _) = serve(id, parts.map(|part| (part, good(&[1]))));
    place.point_at(&endpoint);
    let error = format!("{:#}", text::load_stream("tiny-shakespeare", None, Level::Char).unwrap_err());
    assert_says(&error, &[parts[0], "no column \"text\"", "delete this file"]);
}

#[test]
fn labelled_sentences_come_in_their_splits() {
    let parts =
        ["train", "validation", "test"].map(|part| format!("default/{part}/0000.parquet").leak() as &str);
    let of = |labels: &[i64]| parquet_of_texts("sentence", &[" so bad ", "so good", " "], labels);
    let place = Place::new();
    let files = [(parts[0], of(&[0, 1, 0])), (parts[1], of(&[1, 0, 0])), (parts[2], of(&[-1, -1, -1]))];
    let (endpoint, _) = serve("stanfordnlp/sst2", files);
    place.point_at(&endpoint);
    let corpus = text::load("sst2", None, &Columns::default()).unwrap();
    assert_eq!((&corpus.train.texts[0][..], &corpus.train.labels[..]), ("so bad", &[0, 1][..]));
    assert_eq!(corpus.test.unwrap().labels, [1, 0]);
    assert!(corpus.validation.is_none());
    assert_says(&corpus.notes[0], &["train", "skipped 1 row without text"]);
    assert_says(&corpus.notes[2], &["test", "no labels"]);

    drop(place);
    let place = Place::new();
    let news = |label| parquet_of_texts("text", &["Stocks fall"], &[label]);
    let (endpoint, _) = serve("fancyzhx/ag_news", [(parts[0], news(2)), (parts[2], news(4))]);
    place.point_at(&endpoint);
    let error = format!("{:#}", text::load("ag-news", None, &Columns::default()).unwrap_err());
    assert_says(&error, &[parts[2], "label 4 in row 0", "0 to 3"]);
}

#[test]
fn an_unknown_name_lists_the_known_ones() {
    let error = image::load("emnist", None, 28).unwrap_err().to_string();
    assert_says(&error, &["emnist", "mnist, fashion-mnist, emnist-digits, ", "cifar10"]);
}
