//! Weights in files of `torch.save`: all forms that programs write, damaged files, other files.

use anyhow::Result;
use candle_core::{DType, Device};
use candle_nn::VarMap;
use candle_textbook::nn::{batch_norm, linear, seeded_var_builder};
use candle_textbook::train::{load_pretrained, load_weights};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::BTreeMap;
use std::fs;
use std::io::{Cursor, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use tempfile::tempdir;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

/// The system's allocator, which records the largest allocation.
struct Recording;

static LARGEST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator.
unsafe impl GlobalAlloc for Recording {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LARGEST.fetch_max(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: `pointer` comes from `alloc`, with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Recording = Recording;

fn fixture(name: &str) -> PathBuf {
    Path::new("tests/fixtures/pytorch").join(name)
}

/// The parameters of the network in the fixtures.
fn parameters() -> VarMap {
    let vars = VarMap::new();
    let vb = seeded_var_builder(&vars, 0, DType::F32, &Device::Cpu);
    linear(2, 3, vb.pp("first")).unwrap();
    batch_norm(3, 1e-5, vb.pp("norm")).unwrap();
    linear(3, 4, vb.pp("fc")).unwrap();
    vars
}

fn values(vars: &VarMap) -> BTreeMap<String, Vec<f32>> {
    let vars = vars.data().lock().unwrap();
    let values = |(name, var): (&String, &candle_core::Var)| {
        (name.clone(), var.flatten_all().unwrap().to_vec1().unwrap())
    };
    vars.iter().map(values).collect()
}

/// The parameters after loading `path`.
fn loaded(path: &Path) -> Result<BTreeMap<String, Vec<f32>>> {
    let vars = parameters();
    let before = values(&vars);
    match load_pretrained(path, &vars, "fc") {
        Ok(_) => Ok(values(&vars)),
        Err(error) => {
            assert!(values(&vars) == before, "{}: changed by a load that failed", path.display());
            Err(error)
        }
    }
}

/// The values that every readable fixture holds.
fn expected() -> BTreeMap<String, Vec<f32>> {
    loaded(&fixture("expected.safetensors")).unwrap()
}

#[track_caller]
fn says(path: &Path, parts: &[&str]) {
    let error = format!("{:#}", loaded(path).unwrap_err());
    for part in [&path.display().to_string()].into_iter().map(String::as_str).chain(parts.iter().copied()) {
        assert!(error.contains(part), "{part:?} is not in {error}");
    }
    assert!(error.lines().count() == 1 && error.len() < 300, "{error}");
}

#[test]
fn weights_are_read_in_every_form_that_pytorch_saves() {
    assert_eq!(expected()["first.weight"], [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    for name in [
        "plain.pth",
        "parameters.pt",
        "legacy.bin",
        "protocol5.pth",
        "protocol4-legacy.pth",
        "parallel.pth.tar",
        "compiled.ckpt",
        "under-another-key.pth",
        "beside-a-score.pth.tar",
        "beside-a-loss.pt",
        "random-state.pt",
        "half.pth",
        "bfloat16.pth",
        "double.pth",
        "views.pth",
        "views-legacy.pth",
    ] {
        let found = loaded(&fixture(name)).unwrap_or_else(|error| panic!("{name}: {error:#}"));
        assert_eq!(found, expected(), "{name}");
    }
}

#[test]
fn a_common_prefix_is_dropped_with_a_note_and_infinite_weights_are_refused() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("weights.safetensors");
    let vars = parameters();
    let save = |change: &dyn Fn(&str, candle_core::Tensor) -> (String, candle_core::Tensor)| {
        let vars = vars.data().lock().unwrap();
        let tensors: std::collections::HashMap<_, _> =
            vars.iter().map(|(name, var)| change(name, var.as_tensor().clone())).collect();
        candle_core::safetensors::save(&tensors, &path).unwrap();
    };
    save(&|name, tensor| (format!("net.{name}"), tensor));
    let notes = load_pretrained(&path, &parameters(), "fc").unwrap().notes;
    assert!(notes.len() == 1 && notes[0].contains("the prefix net. of all names"), "{notes:?}");
    let infinite = |name: &str, tensor: candle_core::Tensor| {
        let scale = if name == "first.bias" { f64::INFINITY } else { 1.0 };
        (name.to_string(), ((tensor + 1.0).unwrap() * scale).unwrap())
    };
    save(&infinite);
    says(&path, &["parameter first.bias holds inf"]);
}

#[test]
fn without_the_name_of_a_head_all_weights_must_fit() {
    let load = |vars: &VarMap| load_pretrained(&fixture("plain.pth"), vars, "");
    assert!(load(&parameters()).is_ok());
    let more = parameters();
    linear(4, 5, seeded_var_builder(&more, 0, DType::F32, &Device::Cpu).pp("more")).unwrap();
    let error = load(&more).unwrap_err().to_string();
    assert!(error.contains("parameter more."), "{error}");
}

#[test]
fn the_content_decides_and_not_the_name() {
    let dir = tempdir().unwrap();
    for (from, to) in [
        ("plain.pth", "a.safetensors"),
        ("legacy.bin", "weights"),
        ("expected.safetensors", "a.pth"),
        ("expected.safetensors", "a.pth.tar"),
    ] {
        let path = dir.path().join(to);
        fs::copy(fixture(from), &path).unwrap();
        assert_eq!(loaded(&path).unwrap(), expected(), "{from} as {to}");
    }
}

#[test]
fn safetensors_whose_header_has_the_length_of_a_pickles_first_bytes_are_read() {
    let bytes = fs::read(fixture("expected.safetensors")).unwrap();
    let (length, rest) = bytes.split_first_chunk::<8>().unwrap();
    let (header, tensors) = rest.split_at(u64::from_le_bytes(*length) as usize);
    // Spaces may follow the header.
    let wanted =
        (0..).map(|high: u64| (high << 8) + 0x80).find(|&wanted| wanted >= header.len() as u64).unwrap();
    let spaces = vec![b' '; wanted as usize - header.len()];
    let dir = tempdir().unwrap();
    let path = dir.path().join("weights.safetensors");
    fs::write(&path, [&wanted.to_le_bytes(), header, &spaces, tensors].concat()).unwrap();
    assert!(matches!(fs::read(&path).unwrap()[..], [0x80, 2..=5, ..]), "{wanted}");
    assert_eq!(loaded(&path).unwrap(), expected());
}

#[test]
fn what_is_not_weights_is_named() {
    for (name, parts) in [
        ("whole-model.pth", ["ModuleDict", "state_dict()"]),
        ("tensor.pth", ["a single tensor", "state_dict()"]),
        ("two-models.pth", ["generator, discriminator", "one state_dict"]),
        ("sparse.pth", ["first.weight", "_rebuild_sparse_tensor"]),
        ("empty.pth", ["no tensors", "state_dict()"]),
        ("script.pt", ["TorchScript", "state_dict()"]),
    ] {
        says(&fixture(name), &parts);
    }
    let dir = tempdir().unwrap();
    let with = |bytes: &[u8], part: &str| {
        let path = dir.path().join("weights.pth");
        fs::write(&path, bytes).unwrap();
        says(&path, &[part]);
        let error = load_weights(&path, &parameters()).unwrap_err().to_string();
        assert!(error.contains("weights.pth: "), "{error}");
    };
    with(b"", "an empty file");
    with(b"\n<!DOCTYPE html><html><body>Not found</body></html>", "an HTML page");
    with(
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 44730840\n",
        "a Git LFS pointer",
    );
    with(b"Entry not found", "a text file");
    with(b"{\"weight_map\": {}}", "a JSON file");
    with(b"\x1f\x8b\x08\x00abc", "a gzip file");
    with(b"\x89PNG\r\n\x1a\n", "a PNG image");
    with(b"\x80\x04\x95\x05\x00\x00\x00\x00\x00\x00\x00]\x94(K\x01e.", "a Python pickle");
    with(&fs::read(fixture("expected.safetensors")).unwrap()[..300], "not a complete safetensors file");
    with(&zipped([("a.npy", b"x".as_slice())]), "a zip archive without data.pkl");
}

/// A zip archive as PyTorch writes it, not compressed.
fn zipped<'a>(files: impl IntoIterator<Item = (&'a str, &'a [u8])>) -> Vec<u8> {
    let mut archive = ZipWriter::new(Cursor::new(vec![]));
    for (name, bytes) in files {
        let stored = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
        archive.start_file(name, stored).unwrap();
        archive.write_all(bytes).unwrap();
    }
    archive.finish().unwrap().into_inner()
}

/// The files of an archive.
fn unzipped(bytes: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut archive = ZipArchive::new(Cursor::new(bytes)).unwrap();
    let mut files = vec![];
    for index in 0..archive.len() {
        let mut file = archive.by_index(index).unwrap();
        let mut bytes = vec![];
        file.read_to_end(&mut bytes).unwrap();
        files.push((file.name().unwrap().into_owned(), bytes));
    }
    files
}

/// Changes one to three bytes of `bytes`, or truncates them.
fn damage(bytes: &mut Vec<u8>, rng: &mut ChaCha8Rng) {
    if rng.random_range(0..8) == 0 {
        bytes.truncate(rng.random_range(0..bytes.len()));
        return;
    }
    for _ in 0..rng.random_range(1..=3) {
        let at = rng.random_range(0..bytes.len());
        bytes[at] = if rng.random() { rng.random() } else { bytes[at] ^ (1 << rng.random_range(0..8)) };
    }
}

#[test]
fn damaged_files_are_errors_and_never_take_more_memory_than_they_warrant() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("weights.pth");
    let expected = expected();
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut failed = 0;
    for name in ["plain.pth", "views.pth", "legacy.bin", "views-legacy.pth"] {
        let whole = fs::read(fixture(name)).unwrap();
        for _ in 0..800 {
            let mut bytes = whole.clone();
            damage(&mut bytes, &mut rng);
            fs::write(&path, &bytes).unwrap();
            let found = loaded(&path);
            failed += usize::from(found.is_err());
            // The old format has no checksums.
            if let Ok(found) = found
                && !name.contains("legacy")
            {
                assert!(found == expected, "{name}: damaged without an error");
            }
        }
    }
    // Damage that the checksums don't show: within the pickle, before it is packed.
    let files = unzipped(&fs::read(fixture("views.pth")).unwrap());
    for _ in 0..1500 {
        let mut files = files.clone();
        let (_, pickle) = files.iter_mut().find(|(name, _)| name.ends_with("data.pkl")).unwrap();
        damage(pickle, &mut rng);
        fs::write(&path, zipped(files.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice()))))
            .unwrap();
        failed += usize::from(loaded(&path).is_err());
    }
    assert!(failed > 2000, "{failed}");
    let largest = LARGEST.load(Ordering::Relaxed);
    assert!(largest < 4 << 20, "allocated {largest} bytes at once");
}

#[test]
fn sizes_and_nesting_are_bounded_by_the_file() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("weights.pth");
    let write =
        |pickle: &[u8]| fs::write(&path, zipped([("a/data.pkl", pickle), ("a/data/0", &[0; 4])])).unwrap();
    let tensor = |shape: &[u8], strides: &[u8], elements: &[u8]| {
        let storage =
            [b"((X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpu", elements, b"tQK\0"];
        let call = b"\x80\x02}X\x01\0\0\0wctorch._utils\n_rebuild_tensor_v2\n";
        [call, storage.concat().as_slice(), shape, strides, b"\x89NtRs."].concat()
    };
    let billion = b"J\0\0\0\x40";
    write(&tensor(&[billion, b"\x85".as_slice()].concat(), b"K\0\x85", b"K\x01"));
    says(&path, &["tensor w", "more elements than the file has bytes"]);
    write(&tensor(&[billion, billion, billion, b"\x87".as_slice()].concat(), b"K\0K\0K\0\x87", b"K\x01"));
    says(&path, &["more elements"]);
    write(&tensor(b"K\x02\x85", b"K\x01\x85", b"K\x01"));
    says(&path, &["outside storage 0"]);
    write(&tensor(b"K\x01\x85", b"K\x01\x85", b"K\x02"));
    says(&path, &["storage 0 has 4 bytes, expected 2 elements"]);
    write(&[b"\x80\x02".to_vec(), vec![b']'; 30_000], vec![b'a'; 29_999], b".".to_vec()].concat());
    says(&path, &["no tensors"]);
    write(b"\x80\x02B\xff\xff\xff\xff.");
    says(&path, &["damaged pickle", "the end of the data"]);
}
