//! Sentences and their translations: the built-in dates, the file formats, languages, scores.

mod says;

use candle_textbook::data::translation::{self, BleuTokenizer, TextPairs, exact_match};
use candle_textbook::data::{DataError, Language, PairCorpus, Segmentation, bleu, chrf};
use says::assert_says;
use serde_json::Value;
use std::collections::HashSet;
use std::fs;
use tempfile::{TempDir, tempdir};

fn dir_of(files: &[(&str, &str)]) -> TempDir {
    let dir = tempdir().unwrap();
    files.iter().for_each(|(name, text)| fs::write(dir.path().join(name), text).unwrap());
    dir
}

fn english_german(files: &[(&str, &str)]) -> anyhow::Result<PairCorpus> {
    translation::load("parallel", Some(dir_of(files).path()), Some(["en", "de"]))
}

fn tab_separated(files: &[(&str, &str)]) -> anyhow::Result<PairCorpus> {
    translation::load("tsv-pairs", Some(dir_of(files).path()), None)
}

fn pairs(pairs: &[(&str, &str)]) -> TextPairs {
    let (sources, targets) =
        pairs.iter().map(|&(source, target)| (source.to_string(), target.to_string())).unzip();
    TextPairs { sources, targets }
}

#[test]
fn no_date_is_in_two_splits_and_every_source_is_different() {
    let corpus = translation::load("dates", None, None).unwrap();
    let splits = [&corpus.train, corpus.validation.as_ref().unwrap(), corpus.test.as_ref().unwrap()];
    let dates: Vec<HashSet<&String>> = splits.iter().map(|split| split.targets.iter().collect()).collect();
    for (a, b) in [(0, 1), (0, 2), (1, 2)] {
        assert!(dates[a].is_disjoint(&dates[b]));
    }
    let sources: HashSet<&String> = splits.iter().flat_map(|split| &split.sources).collect();
    assert_eq!(sources.len(), splits.iter().map(|split| split.len()).sum::<usize>());
    let smaller = translation::dates(100, 10, 10, 0);
    assert_eq!(smaller.train.sources, corpus.train.sources[..100]);
}

#[test]
fn two_files_per_split_are_paired_line_by_line() {
    let corpus = english_german(&[
        ("train.en", "A dog .\r\n\nTwo cats .\n  Rain\n\n"),
        ("train.de", "Ein Hund .\nWas ?\nZwei Katzen .\nRegen\n"),
        ("val.en", "Snow\n"),
        ("val.de", "Schnee\n"),
        ("test_2016_flickr.en", "Sun\n"),
        ("test_2016_flickr.de", "Sonne"),
    ])
    .unwrap();
    assert_eq!(
        corpus.train,
        pairs(&[("A dog .", "Ein Hund ."), ("Two cats .", "Zwei Katzen ."), ("Rain", "Regen")])
    );
    assert_eq!(corpus.validation, Some(pairs(&[("Snow", "Schnee")])));
    assert_eq!(corpus.test, Some(pairs(&[("Sun", "Sonne")])));
    assert_eq!(corpus.notes.len(), 1);
    assert_says(&corpus.notes[0], &["train.en and ", "train.de: skipped 1 line with an empty side (line 2)"]);
}

#[test]
fn only_the_test_split_is_read_for_a_test() {
    let files = [("train.en", "broken"), ("test.en", "Sun"), ("test.de", "Sonne")];
    let corpus = translation::load_test("parallel", Some(dir_of(&files).path()), Some(["en", "de"])).unwrap();
    assert_eq!((corpus.train.len(), corpus.test), (0, Some(pairs(&[("Sun", "Sonne")]))));
}

#[test]
fn files_that_do_not_fit_each_other_are_refused() {
    let refused =
        |files: &[(&str, &str)], parts: &[&str]| assert_says(&english_german(files).unwrap_err(), parts);
    refused(&[("train.en", "a\nb\nc"), ("train.de", "x\ny")], &["train.de: found 3 lines and 2 lines"]);
    refused(&[("train.en", "a\nb"), ("train.de", "a\nb")], &["the same content"]);
    refused(&[("train.en", "a")], &["no training split, expected train.de"]);
    refused(
        &[("train.en", "a"), ("train.de", "x"), ("val.en", "b")],
        &["found val.en without its translation, expected val.de"],
    );
    refused(
        &[("train.en", "a"), ("train.de", "x"), ("dev.en", "b"), ("dev.de", "y"), ("test.en", "c")],
        &["found test.en without its translation, expected test.de"],
    );
    refused(
        &[("train.en", "a"), ("train.de", "x"), ("test_2016.en", "b"), ("test_2017.de", "y")],
        &["test_2016.en and test_2017.de for the test split"],
    );
    refused(
        &[("train.en", "a"), ("train.de", "x"), ("test_2016.en", "b"), ("test_2017.en", "b")],
        &["found both test_2016.en and test_2017.en"],
    );
    refused(&[("train.en", "\n a\n"), ("train.de", "x\n\n")], &["found 2 lines and 1 line"]);
}

#[test]
fn languages_are_needed_and_differ() {
    let dir = dir_of(&[]);
    for (name, languages) in [("parallel", None), ("parallel", Some(["en", "en"]))] {
        let error = translation::load(name, Some(dir.path()), languages).unwrap_err();
        assert!(matches!(error.downcast_ref(), Some(DataError::Languages { .. })), "{error}");
    }
    assert_says(
        &translation::load("dates", None, Some(["en", "de"])).unwrap_err(),
        &["no choice of languages"],
    );
    assert_says(&translation::load("date", None, None).unwrap_err(), &["dates, tsv-pairs, parallel"]);
}

#[test]
fn a_tab_separates_source_and_target() {
    let corpus =
        tab_separated(&[("train.tsv", "one\teins\tCC-BY\ntwo \t zwei\tCC-BY\n\n\tdrei\tCC-BY\n")]).unwrap();
    assert_eq!(corpus.train, pairs(&[("one", "eins"), ("two", "zwei")]));
    assert_eq!((corpus.validation, corpus.test), (None, None));
    assert_says(&corpus.notes[0], &["train.tsv: skipped 2 lines with an empty side (first: line 3)"]);
    assert_says(&corpus.notes[1], &["train.tsv: 3 columns"]);
    let same = tab_separated(&[("train.tsv", "one\tone\ntwo\ttwo\nthree\tdrei")]).unwrap();
    assert_says(&same.notes[0], &["train.tsv: source and target are the same in 2 of 3 pairs"]);
    let refused =
        |text: &str, part: &str| assert_says(&tab_separated(&[("train.txt", text)]).unwrap_err(), &[part]);
    refused("one\teins\ntwo zwei", "line 2: no tab");
    refused("one\teins\ntwo\tzwei\tdrei", "line 2: 3 columns, expected 2 as in line 1");
    refused("\t\n", "no pairs");
}

#[test]
fn languages_may_stand_anywhere_in_the_names_of_parallel_files() {
    let sun = pairs(&[("Sun", "Sonne")]);
    for names in [
        ["train.en.txt", "train.de.txt"],
        ["train.en-de.en.txt", "train.en-de.de.txt"],
        ["en-train.txt", "DE-train.txt"],
        ["en.train", "de.train"],
        ["train-en", "train-de"],
    ] {
        let corpus = english_german(&[(names[0], "Sun"), (names[1], "Sonne")]).unwrap();
        assert_eq!((&corpus.train, corpus.notes.len()), (&sun, 1), "{names:?}");
        assert_says(&corpus.notes[0], &[&format!("source {}; target {}", names[0], names[1])]);
    }
    let corpus = english_german(&[("train.en-de.en", "Sun"), ("train.en-de.de", "Sonne")]).unwrap();
    assert_eq!((corpus.train, corpus.notes), (sun, vec![]));
    let refused =
        |files: &[(&str, &str)], parts: &[&str]| assert_says(&english_german(files).unwrap_err(), parts);
    let train = [("train.en.txt", "a"), ("train.de.txt", "x")];
    refused(
        &[&train[..], &[("val.en.txt", "b")]].concat(),
        &["found val.en.txt without its translation, expected val.de.txt"],
    );
    refused(&[("train.en-de.txt", "a"), ("train.en", "b")], &["no training split, expected train.de"]);
    refused(&[&train[..], &[("train.en", "b")]].concat(), &["found both train.en and train.en.txt"]);
}

#[test]
fn a_test_without_translations_is_passed_over_if_the_training_part_can_replace_it() {
    let files = [("train.en", "a"), ("train.de", "x"), ("test.en", "c")];
    let dir = dir_of(&files);
    for load in [translation::load, translation::load_test] {
        let corpus = load("parallel", Some(dir.path()), Some(["en", "de"])).unwrap();
        assert_eq!((corpus.train, corpus.test), (pairs(&[("a", "x")]), None));
        assert_says(&corpus.notes[0], &["test.en has no translation, so it is passed over"]);
    }
    let refused =
        |files: &[(&str, &str)], part: &str| assert_says(&english_german(files).unwrap_err(), &[part]);
    refused(&files[2..], "found test.en without its translation, expected test.de");
    refused(
        &[files[0], files[1], ("test.de", "y")],
        "found test.de without its translation, expected test.en",
    );
}

#[test]
fn files_of_opennmt_need_no_languages() {
    let files = [
        ("src-train.txt", "Sun\nRain\n"),
        ("tgt-train.txt", "Sonne\nRegen\n"),
        ("src-val.txt", "Snow\n"),
        ("tgt-val.txt", "Schnee\n"),
        ("src-test.txt", "Ice\n"),
    ];
    let load = |languages| translation::load("parallel", Some(dir_of(&files).path()), languages).unwrap();
    for languages in [None, Some(["src", "tgt"])] {
        let corpus = load(languages);
        assert_eq!(corpus.train, pairs(&[("Sun", "Sonne"), ("Rain", "Regen")]));
        assert_eq!((corpus.validation, corpus.test), (None, Some(pairs(&[("Snow", "Schnee")]))));
        assert_eq!(corpus.notes.len(), 3);
        assert_says(&corpus.notes[0], &["src-test.txt has no translation, so it is passed over"]);
        assert_says(&corpus.notes[1], &["no test split, so src-val.txt is used"]);
        assert_says(
            &corpus.notes[2],
            &["source src-train.txt, src-val.txt; target tgt-train.txt, tgt-val.txt"],
        );
    }
}

#[test]
fn a_single_file_of_pairs_is_the_training_split_whatever_its_name() {
    let credit = "CC-BY 2.0 (France) Attribution: tatoeba.org #1 (CM) & #2 (b)";
    let text = format!("Go.\tGeh.\t{credit}\nHi.\tHallo!\t{credit}\n");
    let about = ("_about.txt", "** Info **\n\nSentences with\ttabs\n");
    let corpus = tab_separated(&[("deu.txt", &text), about]).unwrap();
    assert_eq!(corpus.train, pairs(&[("Go.", "Geh."), ("Hi.", "Hallo!")]));
    assert_eq!(corpus.notes.len(), 2);
    assert_says(&corpus.notes[0], &["no file is named after a split, so deu.txt is the training split"]);
    assert_says(&corpus.notes[1], &["3 columns; 1 is the source and 2 the target"]);
    // A third language, and two files.
    for files in [
        &[("all.txt", "Go.\tGeh.\tVa !\n")][..],
        &[("deu.txt", &text), ("fra.txt", &text)],
        &[("notes.txt", "Go.\tGeh.\nno tab\n")],
    ] {
        assert_says(
            &tab_separated(files).unwrap_err(),
            &["no training split, expected train.tsv", files[0].0],
        );
    }
    let corpus = english_german(&[("news-v7.de-en.en", "Sun"), ("news-v7.de-en.de", "Sonne")]).unwrap();
    assert_eq!(corpus.train, pairs(&[("Sun", "Sonne")]));
    assert_says(&corpus.notes[0], &["news-v7.de-en.en is the training split"]);
}

#[test]
fn every_segmentation_gives_the_text_back() {
    let texts = ["the cat sat on the mat .", "the dog sat on the cat .", "Ein Übergang , zwei Übergänge"];
    for (segmentation, tokens) in [
        (Segmentation::Characters, vec!["t", "h", "e", " ", "c", "a", "t"]),
        (Segmentation::Words, vec!["the", "cat"]),
        (Segmentation::Subwords(100), vec!["the ", "cat "]),
    ] {
        let language = Language::learn(texts.into_iter(), segmentation, false, 1);
        assert_eq!(language.tokens("the cat"), tokens);
        for text in texts {
            let ids = language.encode(text);
            assert!(ids.iter().all(|&id| id > Language::END));
            assert_eq!(language.decode(&ids), text);
        }
        let read = Language::from_json(&language.to_json()).unwrap();
        assert_eq!(read, language);
        assert_eq!(read.encode("the catalogue"), language.encode("the catalogue"));
    }
}

#[test]
fn unknown_tokens_and_names_of_special_tokens_are_unknown() {
    let texts = ["a A b <eos>", "a b <pad>"];
    let language = Language::learn(texts.into_iter(), Segmentation::Words, true, 2);
    // `a` occurs three times, in lower case.
    assert_eq!(language.encode("A b c <eos> <pad> <unk>"), [4, 5, 1, 1, 1, 1]);
    assert_eq!(language.len(), 6);
    assert_eq!(language.decode(&[Language::BEGIN, 4, Language::UNKNOWN, 5, Language::END]), "a <unk> b");
    // A composed and a decomposed accent are the same.
    let language = Language::learn(["M\u{e4}rz"].into_iter(), Segmentation::Characters, false, 1);
    assert!(!language.encode("Ma\u{308}rz").contains(&Language::UNKNOWN));
}

#[test]
fn damaged_languages_are_refused() {
    let json = Language::learn(["a b"].into_iter(), Segmentation::Words, false, 1).to_json();
    for (old, new) in [("<bos>", "<b>"), ("\"a\"", "\"b\""), ("lower_case", "upper_case")] {
        assert!(Language::from_json(&json.replace(old, new)).is_err(), "{old}");
    }
}

#[test]
fn bleu_and_chrf_are_those_of_sacrebleu() {
    let corpora: Vec<Value> = serde_json::from_str(include_str!("fixtures/translation.json")).unwrap();
    for (at, corpus) in corpora.iter().enumerate() {
        let lines = |name: &str| -> Vec<&str> {
            corpus[name].as_array().unwrap().iter().filter_map(Value::as_str).collect()
        };
        let (hypotheses, references) = (lines("hypotheses"), lines("references"));
        for (name, score) in [
            ("bleu_13a", bleu(&hypotheses, &references, BleuTokenizer::Mteval13a)),
            ("bleu_none", bleu(&hypotheses, &references, BleuTokenizer::None)),
            ("chrf", chrf(&hypotheses, &references)),
        ] {
            let expected = corpus[name].as_f64().unwrap();
            assert!((score - expected).abs() < 1e-6, "corpus {at}: {name} {score}, expected {expected}");
        }
    }
    let four = |line: &str| BleuTokenizer::None.has_four_words(&["a", line]);
    assert!(four("a b c d") && !four("a b c"));
    assert_eq!(exact_match(&["a", "b"], &["a", "c"]), 50.0);
    assert_eq!((bleu::<&str>(&[], &[], BleuTokenizer::None), chrf::<&str>(&[], &[])), (0.0, 0.0));
}
