//! Pretrained word vectors: compared with gensim, written and read in every format, and errors.
//!
//! `fixtures/vectors.py` writes the files.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io::Write;
use std::path::Path;

use candle_textbook::data::WordVectors;
use candle_textbook::rng::stream;
use flate2::{Compression, write::GzEncoder};
use rand::Rng;
use tempfile::tempdir;

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn read(bytes: &[u8], wanted: &[&str]) -> anyhow::Result<WordVectors> {
    let dir = tempdir().unwrap();
    let path = dir.path().join("vectors");
    fs::write(&path, bytes).unwrap();
    WordVectors::read(&path, &wanted.iter().copied().collect())
}

/// The error, without the file's name, when "the" and "of" are read from the file `bytes`.
#[track_caller]
fn refusal(bytes: &[u8]) -> String {
    let error = format!("{:#}", read(bytes, &["the", "of"]).expect_err("a malformed file was read"));
    assert!(!error.contains('\n'), "{error}");
    error.split_once("vectors: ").expect("the file's name").1.into()
}

fn binary(header: &str, words: &[(&[u8], &[f32])]) -> Vec<u8> {
    let mut bytes = format!("{header}\n").into_bytes();
    for (word, values) in words {
        bytes.extend_from_slice(word);
        bytes.push(b' ');
        bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    }
    bytes
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn every_format_gives_the_values_that_gensim_reads() {
    let fixtures = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures"));
    let expected: BTreeMap<String, BTreeMap<String, Vec<f32>>> =
        serde_json::from_slice(&fs::read(fixtures.join("vectors.json")).unwrap()).unwrap();
    assert_eq!(expected.len(), 4);
    for (file, expected) in &expected {
        let wanted: HashSet<&str> = expected.keys().map(String::as_str).chain(["unheard-of"]).collect();
        let vectors = WordVectors::read(&fixtures.join(file), &wanted).unwrap();
        assert_eq!((vectors.len(), vectors.size()), (7, 5), "{file}");
        assert!(vectors.get("unheard-of").is_none());
        for (word, expected) in expected {
            assert_eq!(bits(vectors.get(word).unwrap()), bits(expected), "{file}: {word}");
        }
    }
}

#[test]
fn vectors_written_in_any_format_are_read_back_exactly() {
    // The last files are longer than one chunk.
    for (count, size) in [(1, 2), (2, 1), (3, 7), (50, 20), (1000, 100)] {
        let mut rng = stream(1, &format!("{count} vectors of {size}"));
        let word = |at: usize| format!("{}{at}", ["w", "é", "言葉", "</s>", "0."][at % 5]);
        let words: Vec<String> = (0..count).map(word).collect();
        let mut value = || loop {
            let value = f32::from_bits(rng.random());
            if value.is_finite() {
                return value;
            }
        };
        let values: Vec<Vec<f32>> = (0..count).map(|_| (0..size).map(|_| value()).collect()).collect();
        let wanted: Vec<&str> = words.iter().step_by(3).map(String::as_str).collect();

        let header = format!("{count} {size}");
        let pairs: Vec<(&[u8], &[f32])> =
            words.iter().zip(&values).map(|(word, values)| (word.as_bytes(), &values[..])).collect();
        let gensim = binary(&header, &pairs);
        let newlines: Vec<Vec<u8>> = words.iter().map(|word| format!("\n{word}").into_bytes()).collect();
        let pairs: Vec<(&[u8], &[f32])> =
            newlines.iter().zip(&values).map(|(word, values)| (&word[..], &values[..])).collect();
        let mut word2vec = binary(&header, &pairs);
        word2vec.remove(header.len());
        word2vec.push(b'\n');

        let lines = |end: &str| -> String {
            let numbers =
                |values: &[f32]| values.iter().map(|value| format!(" {value:?}")).collect::<String>();
            words
                .iter()
                .zip(&values)
                .map(|(word, values)| format!("{word}{}{end}", numbers(values)))
                .collect()
        };
        let texts = [
            lines("\n"),
            lines("\n").trim_end().into(),
            format!("{header}\n{}", lines("\n")),
            format!("{header} \n{}", lines(" \n")),
            format!("{header}\r\n{}", lines("\r\n")),
        ];
        let all = words.iter().map(String::as_str).collect::<Vec<_>>();
        let kept = read(&gensim, &all).unwrap().to_text().into_bytes();
        let mut files = vec![gensim.clone(), word2vec, kept];
        files.extend(texts.map(String::into_bytes));
        files.push([gzip(&gensim[..9]), gzip(&gensim[9..])].concat());
        let packed: Vec<_> = files.iter().map(|file| gzip(file)).collect();
        for (at, file) in files[..9].iter().chain(&packed[..8]).enumerate() {
            let vectors = read(file, &wanted).unwrap_or_else(|error| panic!("{at}: {error:#}"));
            assert_eq!((vectors.len(), vectors.size()), (wanted.len(), size));
            for (at, word) in words.iter().enumerate() {
                let expected = (at % 3 == 0).then(|| bits(&values[at]));
                assert_eq!(vectors.get(word).map(bits), expected, "{word}");
            }
        }
    }
}

#[test]
fn words_may_contain_spaces() {
    let text = "at name@domain.com 0.1 0.2\n. . . 0.3 0.4\nthe  0.5  0.6\n 0.7 0.8\n";
    let vectors = read(text.as_bytes(), &["at name@domain.com", ". . .", "the", "at", ""]).unwrap();
    assert_eq!((vectors.len(), vectors.size()), (4, 2));
    assert_eq!(vectors.get("at name@domain.com"), Some(&[0.1, 0.2][..]));
    assert_eq!(vectors.get(". . ."), Some(&[0.3, 0.4][..]));
    assert_eq!(vectors.get("the"), Some(&[0.5, 0.6][..]));
    assert_eq!(vectors.get(""), Some(&[0.7, 0.8][..]));
}

#[test]
fn the_first_vector_of_a_word_counts() {
    let of_binary = binary("3 2", &[(b"the", &[1., 2.]), (b"of", &[3., 4.]), (b"the", &[5., 6.])]);
    for file in [&b"the 1 2\nof 3 4\nthe 5 6\n"[..], &of_binary] {
        let vectors = read(file, &["the"]).unwrap();
        assert_eq!((vectors.len(), vectors.get("the")), (1, Some(&[1., 2.][..])));
    }
}

#[test]
fn words_that_are_not_utf8_are_skipped() {
    let of_binary = binary("2 2", &[(b"caf\xe9", &[1., 2.]), (b"the", &[3., 4.])]);
    for file in [&b"2 2\ncaf\xe9 1 2\nthe 3 4\n"[..], b"caf\xe9 1 2\nthe 3 4\n", &of_binary] {
        let vectors = read(file, &["caf\u{e9}", "caf\u{fffd}", "the"]).unwrap();
        assert_eq!((vectors.len(), vectors.get("the")), (1, Some(&[3., 4.][..])));
    }
}

#[test]
fn a_file_without_a_wanted_word_has_no_vectors() {
    let vectors = read(b"a 1 2\n", &["the"]).unwrap();
    assert!(vectors.is_empty() && vectors.get("a").is_none());
}

#[test]
fn returns_end_the_lines_of_a_file_without_newlines() {
    for file in [&b"2 2\rthe 1 2\rof 3 4\r"[..], b"the 1 2\rof 3 4"] {
        let vectors = read(file, &["the", "of"]).unwrap();
        assert_eq!((vectors.get("the"), vectors.get("of")), (Some(&[1., 2.][..]), Some(&[3., 4.][..])));
    }
}

#[test]
fn other_files_are_named_for_what_they_are() {
    for (file, name) in [
        (&b"<!doctype html>\n<html>\n"[..], "found an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "found a Git LFS pointer"),
        (b"\x93NUMPY\x01\0v\0{'descr': '<f4'}\n", "found a NumPy array"),
    ] {
        assert!(refusal(file).starts_with(name), "{}", refusal(file));
    }
}

#[test]
fn a_first_line_without_vectors_is_refused() {
    assert_eq!(refusal(b""), "is empty, expected word vectors");
    assert_eq!(refusal(&gzip(b"")), "is empty, expected word vectors");
    for file in [&b"\n"[..], b"the\n", b"the 1 2x\n", b"the,1,2\n", b"7\n"] {
        assert!(refusal(file).starts_with("line 1: neither"), "{file:?}: {}", refusal(file));
    }
    for header in
        ["0 5", "5 0", "5 16385", "5 99999999999999999999", "99999999999999999999 5", "-5 2", "5 -2"]
    {
        let (words, size) = header.split_once(' ').unwrap();
        let expected = format!(
            "line 1: announces {words} vectors of size {size}, expected at least 1 of size 1 to 16384"
        );
        assert_eq!(refusal(format!("{header}\nthe 1 2\n").as_bytes()), expected);
    }
}

#[test]
fn a_line_of_too_many_or_too_few_numbers_is_refused() {
    for (header, first) in [("", 1), ("9 3\n", 2)] {
        for word in ["the", "a", "at home"] {
            let refusal = |line: &str| {
                let file = format!("{header}b 1 2 3\n{word} 4 5 6\n{line}\n");
                refusal(file.as_bytes()).replace(&format!("line {}: ", first + 2), "")
            };
            assert_eq!(refusal("c"), "found 0 numbers, expected 3");
            assert_eq!(refusal("c 7"), "found 1 number, expected 3");
            assert_eq!(refusal("the 7 8"), "found 2 numbers, expected 3");
            assert_eq!(refusal("c 7 8 9 10"), "found 4 numbers, expected 3");
            assert_eq!(refusal("the 7 8 9 10 11 \r"), "found 5 numbers, expected 3");
            assert_eq!(refusal(" 7 8 9 10"), "found 4 numbers, expected 3");
        }
    }
    assert_eq!(refusal(b"a 1 2 3\nof 1  2\n"), "line 2: found 2 numbers, expected 3");
}

#[test]
fn a_wanted_vector_must_be_finite() {
    assert_eq!(refusal(b"a 1 2\nthe 0.1x 3\n"), "line 2: \"0.1x\", expected a number");
    assert_eq!(refusal(b"2 2\na 1 2\nthe 3 4,5\n"), "line 3: \"4,5\", expected a number");
    assert_eq!(refusal(b"a 1 2\nthe 3 \xff\n"), "line 2: \"\u{fffd}\", expected a number");
    let long = format!("a 1 2\nthe 3 {}\n", "x".repeat(1000));
    assert_eq!(refusal(long.as_bytes()), format!("line 2: \"{}..\", expected a number", "x".repeat(60)));
    let holds = |value: &str| format!("the vector of \"the\" contains {value}, expected finite numbers");
    assert_eq!(refusal(b"a 1 2\nthe 3 nan\n"), format!("line 2: {}", holds("NaN")));
    assert_eq!(refusal(b"a 1 2\nthe 3 -1e99\n"), format!("line 2: {}", holds("-inf")));
    for value in [f32::NAN, f32::INFINITY] {
        let file = binary("2 2", &[(b"a", &[1., f32::NAN]), (b"the", &[3., value])]);
        assert_eq!(refusal(&file), format!("word 2 of 2: {}", holds(&value.to_string())));
    }
}

#[test]
fn a_file_must_have_as_many_words_as_its_header_announces() {
    assert_eq!(refusal(b"2 2\n"), "ends after 0 words, expected 2 as in line 1");
    assert_eq!(refusal(b"2 2\nthe 1 2\n"), "ends after 1 word, expected 2 as in line 1");
    assert_eq!(
        refusal(b"2 2\nthe 1 2\nof 3 4\na 5 6\n"),
        "line 4: more than the 2 words that line 1 announces"
    );
    let words: [(&[u8], &[f32]); 3] = [(b"the", &[1., 2.]), (b"\nof", &[3., 4.]), (b"\na", &[5., 6.])];
    let mut file = binary("4 2", &words);
    assert_eq!(refusal(&file), "ends after 3 words, expected 4 as in line 1");
    file.push(b'\n');
    assert_eq!(refusal(&file), "ends after 3 words, expected 4 as in line 1");
    let file = binary("2 2", &words);
    assert_eq!(refusal(&file), "more than the 2 words that line 1 announces");
}

#[test]
fn a_truncated_file_is_refused_with_the_position() {
    let file = binary("2 3", &[(b"the", &[1., 2., 3.]), (b"\nof", &[4., 5., 6.])]);
    let second = 4 + 4 + 12;
    for length in second + 2..file.len() {
        assert_eq!(refusal(&file[..length]), "ends within word 2 of 2", "{length} bytes");
    }
    for length in [5, 7, 8, 10, second - 1] {
        assert_eq!(refusal(&file[..length]), "ends within word 1 of 2", "{length} bytes");
    }
    for file in [&file[..], b"2 2\nthe 1 2\nof 3 4\n", b"the 1 2\nof 3 4\n"] {
        let packed = gzip(file);
        for length in 2..packed.len() {
            let error = refusal(&packed[..length]);
            let place =
                ["line ", "word ", "after the last word"].iter().any(|place| error.starts_with(place));
            assert!(place && error.ends_with("truncated, expected a whole file"), "{length} bytes: {error}");
        }
    }
    let mut damaged = gzip(&file);
    let checksum = damaged.len() - 8;
    damaged[checksum] ^= 1;
    assert!(refusal(&damaged).contains("damaged, expected a whole gzip file"));
}

#[test]
fn missing_files_and_directories_are_refused() {
    let dir = tempdir().unwrap();
    for (path, part) in [(dir.path().join("none.bin"), "can't be opened"), (dir.path().into(), "can't be ")] {
        let error = format!("{:#}", WordVectors::read(&path, &HashSet::new()).unwrap_err());
        assert!(error.starts_with(&format!("{}: {part}", path.display())), "{error}");
    }
}

#[test]
fn unlimited_lines_and_words_are_refused() {
    const LINE: &str = "longer than 1048576 bytes, expected a word and its numbers";
    let long = vec![b'x'; 2_000_000];
    let with = |start: &[u8]| [start, &long].concat();
    for packed in [false, true] {
        let refusal = |file: Vec<u8>| refusal(&if packed { gzip(&file) } else { file });
        assert_eq!(refusal(long.clone()), format!("line 1: {LINE}"));
        assert_eq!(refusal(with(b"the 1 2\n")), format!("line 2: {LINE}"));
        assert_eq!(refusal(with(b"9 2\nthe 1 2\n")), format!("line 3: {LINE}"));
        let word = |at| format!("word {at} of 9: no space within 4096 bytes, expected one after each word");
        assert_eq!(refusal(with(b"9 2\n")), word(1));
        assert_eq!(refusal(with(&binary("9 2", &[(b"the", &[1., 2.])]))), word(2));
    }
}

#[cfg(unix)]
#[test]
fn an_endless_stream_is_refused() {
    let error = WordVectors::read(Path::new("/dev/zero"), &HashSet::new()).unwrap_err();
    assert!(format!("{error:#}").starts_with("/dev/zero: line 1: longer than 1048576 bytes"), "{error:#}");
}

#[test]
fn tabs_a_byte_order_mark_and_blank_last_lines_are_accepted() {
    for file in [
        "\u{feff}the 1 2\nof 3 4\n",
        "the\t1\t2\nof\t3\t4\n",
        "the\t1 2\nof\t3 4\n",
        "2\t2\nthe\t1\t2\nof\t3\t4\n",
        "\u{feff}2 2\nthe 1 2\nof 3 4\n\n \n",
        "the 1 2\nof 3 4\n\n\n",
    ] {
        let vectors =
            read(file.as_bytes(), &["the", "of"]).unwrap_or_else(|error| panic!("{file:?}: {error:#}"));
        assert_eq!(
            (vectors.get("the"), vectors.get("of")),
            (Some(&[1., 2.][..]), Some(&[3., 4.][..])),
            "{file:?}"
        );
    }
    assert_eq!(refusal(b"the 1 2\n\nof 3 4\n"), "line 2: is blank, expected a word and its numbers");
    assert_eq!(refusal(b"3 2\nthe 1 2\nof 3 4\n\n"), "ends after 2 words, expected 3 as in line 1");
}

#[test]
fn archives_and_models_are_named_with_a_remedy() {
    assert!(refusal(b"PK\x03\x04\x14\0").contains("zip archive, expected word vectors: unpack it"));
    assert!(refusal(b"\xff\xfet\0 \x001\0").contains("is UTF-16"));
    assert!(refusal(b"\xba\x16\x4f\x2f\x0c\0\0\0").contains("model of fastText"));
}
