//! The published data sets of labelled sentences, and the names of files and splits.

use super::says::assert_says;
use super::{assert_refused, corpus_of, data, dir_of, load, strings};
use candle_textbook::data::{
    Columns, Corpus, DataError, Level, Selection, TextStream, Tokenizer, Vocabulary, sequence, text,
};
use std::path::Path;
use tempfile::tempdir;

#[test]
fn unknown_names_and_missing_directories_are_errors() {
    let of = |name, dir: Option<&str>| format!("{:#}", load(name, dir.map(Path::new)).unwrap_err());
    assert_says(
        &of("imdb", None),
        &["data set imdb", "not known", "reviews, mr, sst2, trec, ag-news, csv, tsv, fasttext"],
    );
    assert_says(&of("trec", None), &["data set trec", "no directory given", "reviews"]);
    assert_says(&of("reviews", Some(".")), &["data set reviews", "built in"]);
    assert_says(&of("mr", Some("no/such/place")), &["no/such/place", "no such directory"]);
    let of = |name, dir: Option<&str>| format!("{:#}", sequence::load(name, dir.map(Path::new)).unwrap_err());
    assert_says(&of("ontonotes", None), &["data set ontonotes", "not known", "names, conll"]);
    assert_says(&of("conll", None), &["data set conll", "no directory given", "names"]);
    assert_says(&of("names", Some(".")), &["data set names", "built in"]);
    assert_says(&of("conll", Some("no/such/place")), &["no/such/place", "no such directory"]);
}

#[test]
fn errors_of_choosing_a_data_set_can_be_told_apart_without_their_text() {
    let kind = |error: anyhow::Error| error.downcast::<DataError>().unwrap();
    let dir = tempdir().unwrap();
    assert!(matches!(kind(load("imdb", None).unwrap_err()), DataError::UnknownName { .. }));
    assert!(matches!(kind(load("reviews", Some(dir.path())).unwrap_err()), DataError::BuiltIn { .. }));
    assert!(matches!(kind(load("csv", None).unwrap_err()), DataError::FilesNeeded { .. }));
    assert!(matches!(kind(sequence::load("conll", None).unwrap_err()), DataError::FilesNeeded { .. }));
    for error in
        [DataError::UnknownName { name: "x".into(), known: &["y"] }, DataError::BuiltIn { name: "x".into() }]
    {
        assert!(!error.to_string().contains("--"), "{error}");
    }
}

#[test]
fn mr_sentences_alternate_and_windows_1252_is_noted() {
    let files: [(&str, &[u8]); 2] = [
        ("rt-polarity.neg", b"too long . \nso dull\nweak\n"),
        ("rt-polarity.pos", b"lovely\ncaf\xe9 \x96 fine\r\n"),
    ];
    let Corpus { train, validation, test, classes, notes, .. } = corpus_of("mr", &files);
    assert_eq!(train.texts, ["too long .", "lovely", "so dull", "caf\u{e9} \u{2013} fine", "weak"]);
    assert_eq!((train.labels, validation, test), (vec![0, 1, 0, 1, 0], None, None));
    assert_eq!(classes, ["negative", "positive"]);
    assert_eq!(notes.len(), 1);
    assert_says(&notes[0], &["rt-polarity.pos", "line 2", "Windows-1252"]);

    let outer = tempdir().unwrap();
    std::fs::rename(dir_of(&files).keep(), outer.path().join("rt-polaritydata")).unwrap();
    assert_eq!(load("mr", Some(outer.path())).unwrap().train.len(), 5);
    let named = [("rt-polarity.neg.txt", files[0].1), files[1]];
    assert_eq!(corpus_of("mr", &named).train.len(), 5);
    assert_refused("mr", &files[..1], &["no file rt-polarity.pos"]);
    assert_refused("mr", &[files[0], ("rt-polarity.pos", b"")], &["rt-polarity.pos", "is empty"]);
    assert_eq!(corpus_of("mr", &[files[0], ("rt-polarity.pos", b"\xff\xfea\0")]).train.texts[1], "a");
    assert_refused("mr", &[files[0], ("rt-polarity.pos", b"\xef\xbb\xbfa\n\xe9")], &["line 2 is not UTF-8"]);
    assert_eq!(corpus_of("mr", &[files[0], ("rt-polarity.pos", b"\xef\xbb\xbffine")]).train.texts[1], "fine");
}

#[test]
fn mr_has_its_published_size_and_vocabulary() {
    let Some(data) = data() else { return };
    let Corpus { train, notes, .. } = load("mr", Some(&data.join("mr"))).unwrap();
    assert_eq!((train.len(), train.labels.iter().sum::<u32>()), (10_662, 5_331));
    assert_eq!(notes.len(), 2);
    let tokens: Vec<Vec<String>> = train.texts.iter().map(|text| Tokenizer::Kim.tokens(text)).collect();
    assert_eq!(tokens.iter().map(Vec::len).max(), Some(56));
    assert_eq!(Vocabulary::new(&tokens, true, 1).len(), 18_765 + 2);
}

#[test]
fn sst2_is_read_in_the_formats_of_glue_and_stanford() {
    let glue: [(&str, &[u8]); 3] = [
        ("train.tsv", b"sentence\tlabel\nso \"dull \t0\na joy \t1\n"),
        ("dev.tsv", b"sentence\tlabel\r\nfine\t1\r\n"),
        ("test.tsv", b"index\tsentence\n0\twho knows\n"),
    ];
    let Corpus { train, validation, test, notes, .. } = corpus_of("sst2", &glue);
    assert_eq!((train.texts, train.labels), (strings(&["so \"dull", "a joy"]), vec![0, 1]));
    assert_eq!((validation, test.unwrap().texts), (None, strings(&["fine"])));
    assert_says(&notes[0], &["test.tsv", "no labels"]);
    assert_says(&notes[1], &["dev.tsv", "no test split"]);

    let swapped = corpus_of("sst2", &[("train.tsv", b"label\tsentence\n0\tdull\n1\ta joy\n")]).train;
    assert_eq!((swapped.texts, swapped.labels), (strings(&["dull", "a joy"]), vec![0, 1]));

    let stanford: [(&str, &[u8]); 3] = [
        ("stsa.binary.train", b"1 a joy\n0 dull\n"),
        ("stsa.binary.dev", b"1 fine\n"),
        ("test.txt", b"0 bad\n"),
    ];
    let Corpus { train, validation, test, .. } = corpus_of("sst2", &stanford);
    assert_eq!((train.texts, train.labels), (strings(&["a joy", "dull"]), vec![1, 0]));
    assert_eq!((validation.unwrap().labels, test.unwrap().labels), (vec![1], vec![0]));

    let with = |train| [glue[1], glue[2], ("train.tsv", train)];
    assert_refused("sst2", &glue[1..], &["train.tsv, train.txt, stsa.binary.train"]);
    assert_refused("sst2", &[glue[0], ("train.txt", b"1 a")], &["both train.tsv and train.txt"]);
    assert_refused("sst2", &with(b"sentence\tlabel\n"), &["train.tsv", "no sentences"]);
    assert_refused("sst2", &with(b"sentence\tlabel\na\t2\n"), &["train.tsv", "line 2", "\"2\"", "0 or 1"]);
    assert_refused("sst2", &with(b"sentence\tlabel\na\t1\nb\n"), &["line 3", "1 column"]);
    assert_refused("sst2", &with(b"sentence\tlabel\na\tb\t1\n"), &["line 2", "3 columns"]);
    assert_refused("sst2", &with(b"1 a\n-1 b\n"), &["line 2", "\"-1\""]);
    assert_refused("sst2", &with(b"index\tsentence\n0\ta\n"), &["train.tsv", "line 1", "\"index\""]);
}

#[test]
fn ag_news_joins_title_and_description() {
    let train: &[u8] = b"\"3\",\"Oil up\",\"Traders said,\\again \"\"no\"\".\"\n4,Chips,Small\n";
    let files = [("train.csv", train), ("test.csv", b"Class Index,Title,Description\n1,War,Peace\n")];
    let Corpus { train, test, classes, .. } = corpus_of("ag-news", &files);
    assert_eq!(train.texts, ["Oil up Traders said, again \"no\".", "Chips Small"]);
    assert_eq!((train.labels, test.unwrap().labels), (vec![2, 3], vec![0]));
    assert_eq!(classes, ["World", "Sports", "Business", "Sci/Tech"]);

    let with = |test| [files[0], ("test.csv", test)];
    assert_refused("ag-news", &with(b"1,a,b\n5,a,b\n"), &["test.csv", "line 2", "class \"5\"", "1 to 4"]);
    assert_refused("ag-news", &with(b"1,a\n"), &["line 1", "2 columns", "title"]);
    assert_refused("ag-news", &with(b"1,a,\"b\n"), &["line 1", "never ends"]);
    assert_refused("ag-news", &with(b"Class Index,Title,Description\n"), &["test.csv", "no news"]);
}

#[test]
fn trec_questions_have_their_coarse_class() {
    let files: [(&str, &[u8]); 2] = [
        ("train_5500.label", b"HUM:ind Who was Caf\xe9 named after ?\nABBR:exp What is XY ?\n"),
        ("TREC_10.label", b"NUM:dist How far is it ?\n"),
    ];
    let Corpus { train, test, classes, notes, .. } = corpus_of("trec", &files);
    assert_eq!(train.texts, ["Who was Caf\u{e9} named after ?", "What is XY ?"]);
    assert_eq!((train.labels, test.unwrap().labels), (vec![3, 0], vec![5]));
    assert_eq!((classes.len(), notes.len()), (6, 1));

    assert_eq!(corpus_of("trec", &files[..1]).test, None);
    assert_refused("trec", &files[1..], &["no file train_5500.label"]);
    let with = |test| [files[0], ("TREC_10.label", test)];
    assert_refused("trec", &with(b"NUM:dist How ?\nLOX:city Where ?\n"), &["line 2", "\"LOX:city\"", "LOC"]);
    assert_refused("trec", &with(b"NUM How far ?\n"), &["line 1", "\"NUM\"", ":fine"]);
    assert_refused("trec", &with(b"NUM:dist\n"), &["TREC_10.label", "no sentences"]);
}

#[test]
fn labels_of_fasttext_are_read() {
    let files: [(&str, &[u8]); 2] = [
        ("cooking.train", b"__label__sauce How much salt ?\n__label__bread\tWhich flour ?\n"),
        ("cooking.valid", b"__label__bread Why yeast ?\n"),
    ];
    let Corpus { train, test, classes, .. } = corpus_of("fasttext", &files);
    assert_eq!((&train.texts[1][..], train.labels), ("Which flour ?", vec![1, 0]));
    assert_eq!((test.unwrap().labels, classes), (vec![0], strings(&["bread", "sauce"])));
    let with = |line: &'static [u8]| [files[0], ("test.txt", line)];
    assert_refused(
        "fasttext",
        &with(b"__label__bread __label__sauce x\n"),
        &["line 1", "2 labels, expected one"],
    );
    assert_refused("fasttext", &with(b"x\n"), &["line 1", "\"x\"", "__label__"]);
    assert_refused("fasttext", &with(b"__label__meat x\n"), &["line 1", "\"meat\""]);
    assert_refused("fasttext", &[("train.txt", b"x\n")], &["train.txt", "line 1", "__label__"]);
}

#[test]
fn splits_have_the_same_names_everywhere() {
    let row: &[u8] = b"label,text\na,x\nb,y\n";
    for name in ["val", "valid", "validation", "dev"] {
        let file = format!("{name}.csv");
        let corpus = corpus_of("csv", &[("train.csv", row), (&file, row), ("test.csv", row)]);
        assert_eq!(corpus.validation.unwrap().len(), 2);
        // It serves as the test split.
        let corpus = corpus_of("csv", &[("train.csv", row), (&file, row)]);
        assert!(corpus.validation.is_none() && corpus.test.unwrap().len() == 2);
        assert_says(&corpus.notes[0], &[&file, "no test split"]);
        let tagged: &[u8] = b"Oslo B-LOC\n";
        let file = format!("{name}.txt");
        let dir = dir_of(&[("train.txt", tagged), (&file, tagged), ("test.txt", tagged)]);
        assert!(sequence::load("conll", Some(dir.path())).unwrap().validation.is_some());
        let news: &[u8] = b"1,War,Peace\n";
        let file = format!("{name}.csv");
        assert!(corpus_of("ag-news", &[("train.csv", news), (&file, news)]).test.is_some());
    }
    let other = [
        ("train.csv", row),
        ("test.csv", row),
        ("train-2.csv", row),
        ("notes.txt", b"x"),
        ("Thumbs.db", b"x"),
    ];
    let corpus = corpus_of("csv", &other);
    assert_eq!(corpus.notes.len(), 1);
    assert_says(&corpus.notes[0], &["passed over: train-2.csv"]);
    assert_eq!(corpus_of("csv", &[("train.csv", row)]).test, None);
}

#[test]
fn utf8_that_is_damaged_is_not_read_as_windows_1252() {
    let mut table = "label,text\na,déjà vu\nb,good\na,ni".to_string().into_bytes();
    table.push(0xff);
    assert_refused("csv", &[("train.csv", &table)], &["train.csv", "not UTF-8", "damaged"]);
}

#[test]
fn text_with_byte_pairs_that_happen_to_be_utf8_is_in_another_encoding() {
    let euc_jp = b"\xa4\xb3\xa4\xce\xc7\xad\xa4\xcf\xc4\xed\xa4\xc7\xbf\xb2\xa4\xc6\xa4\xa4\xa4\xeb\xa4\xce\xa4\xc7\xa4\xb7\xa4\xbf\xa1\xa3";
    let gbk = b"\xbd\xf1\xcc\xec\xcc\xec\xc6\xf8\xba\xdc\xba\xc3\xce\xd2\xc3\xc7\xd2\xbb\xc6\xf0\xc8\xa5\xb9\xab\xd4\xb0\xc9\xa2\xb2\xbd";
    for text in [&euc_jp[..], gbk] {
        let table = [b"label,text\na,", text, b"\nb,x\n"].concat();
        assert_refused(
            "csv",
            &[("train.csv", &table)],
            &["line 2 is not UTF-8", "look like Windows-1252 either"],
        );
    }
    let western = b"label,text\na,na\xefve caf\xe9\nb,d\xe9j\xe0 vu caf\xc3\xa9\n";
    assert_refused("csv", &[("train.csv", western)], &["damaged or in two encodings"]);
}

#[test]
fn a_test_needs_only_the_test_files() {
    let test = |name: &str, files: &[(&str, &[u8])], classes: &[&str]| {
        let dir = dir_of(files);
        text::load_test(name, Some(dir.path()), &Columns::default(), &strings(classes))
    };
    for header in ["", "label,text\n"] {
        let corpus =
            test("csv", &[("test.csv", format!("{header}b,y\nb,z\n").as_bytes())], &["a", "b"]).unwrap();
        assert_eq!((corpus.train.len(), corpus.test.unwrap().labels), (0, vec![1, 1]));
    }
    // A label that occurs once is no header if the model knows it.
    let corpus = test("csv", &[("test.csv", b"a,x\nb,y\nb,z\nc,v\nc,w\n")], &["a", "b", "c"]).unwrap();
    assert_eq!(corpus.test.unwrap().len(), 5);
    let error = test("csv", &[("test.csv", b"c,y\nb,z\n")], &["a", "b"]).unwrap_err();
    assert_says(&format!("{error:#}"), &["test.csv", "line 1", "\"c\""]);
    for (name, file, row) in [
        ("ag-news", "test.csv", "1,a,b\n"),
        ("trec", "TREC_10.label", "NUM:dist How ?\n"),
        ("sst2", "test.txt", "1 a\n"),
        ("fasttext", "test.txt", "__label__b a\n"),
    ] {
        let corpus = test(name, &[(file, row.as_bytes())], &["a", "b"]).unwrap();
        assert_eq!(corpus.test.unwrap().len(), 1, "{name}");
    }
    // Without one, it is drawn from the training data.
    assert_eq!(test("csv", &[("train.csv", b"a,x\nb,y\n")], &["a", "b"]).unwrap().train.len(), 2);
    let dir = dir_of(&[("test.txt", b"Oslo B-LOC\n")]);
    let tags = strings(&["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]);
    let corpus = sequence::load_test("conll", Some(dir.path()), &tags).unwrap();
    assert_eq!((corpus.test.unwrap().tags, corpus.tags), (vec![vec![1]], tags));
}

#[test]
fn a_random_selection_has_the_proportions_of_the_classes() {
    // Sorted by class: 600 of class 0, 300 of class 1, 100 of class 2.
    let class = |example: u32| u32::from(example >= 600) + u32::from(example >= 900);
    let all: Vec<u32> = (0..1000).collect();
    let (selected, rest) = Selection::Random.select(&all, 100, class, 7, "validation");
    let count = |wanted| selected.iter().filter(|&&example| class(example) == wanted).count();
    assert_eq!([0, 1, 2].map(count), [60, 30, 10]);
    assert!(selected.is_sorted() && rest.is_sorted());
    let mut both = [&selected[..], &rest].concat();
    both.sort_unstable();
    assert_eq!(both, all);
    assert_eq!(Selection::Random.select(&all, 100, class, 7, "validation").0, selected);
    assert_ne!(Selection::Random.select(&all, 100, class, 8, "validation").0, selected);
    assert_ne!(Selection::Random.select(&all, 100, class, 7, "test").0, selected);
    assert_eq!(Selection::First.select(&all, 3, class, 7, "").0, [0, 1, 2]);
    assert_eq!(Selection::Last.select(&all, 3, class, 7, "").0, [997, 998, 999]);
    assert_eq!(Selection::Random.select(&all, 7, class, 7, "").0.len(), 7);
    assert_eq!(Selection::Random.select(&all, 2000, class, 7, "").1, [0; 0]);
}

#[test]
fn web_pages_and_json_in_place_of_tables_are_refused() {
    let page: &[u8] = b"<!DOCTYPE html>\n<p>a, b\tc</p>\n<p>a, c\td</p>\n<p>d, e\ta</p>\n";
    let answer: &[u8] = b"<?xml version=\"1.0\"?>\n<a>a, b</a>\n<b>a, c</b>\n<a>d, e</a>\n";
    assert_refused(
        "csv",
        &[("train.csv", page)],
        &["train.csv: found an HTML page", "expected lines or a table of text"],
    );
    assert_refused("csv", &[("train.csv", answer)], &["train.csv: found an XML document"]);
    assert_refused("tsv", &[("train.tsv", page)], &["train.tsv: found an HTML page"]);
    let files = [("rt-polarity.neg", page), ("rt-polarity.pos", page)];
    assert_refused("mr", &files, &["rt-polarity.neg: found an HTML page"]);
    for json in [
        &b"{\"label\": \"a\", \"text\": \"x\"}\n{\"label\": \"b\", \"text\": \"y\"}\n"[..],
        b"[{\"label\": \"a\", \"text\": \"x\"}]",
        b"[\n  {\"label\": \"a\"}\n]",
    ] {
        assert_refused("csv", &[("train.csv", json)], &["train.csv: found JSON"]);
    }
    assert_eq!(corpus_of("csv", &[("train.csv", b"{a},[x\n{b},y\n")]).classes, ["{a}", "{b}"]);
    for (content, part) in [
        (page, "found an HTML page"),
        (b"{\"error\": \"not found\"}\n", "found JSON"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
        (b"", "is empty"),
    ] {
        let dir = dir_of(&[("input.txt", content)]);
        let error = text::load_stream("tiny-shakespeare", Some(dir.path()), Level::Char).unwrap_err();
        assert_says(&format!("{error:#}"), &["input.txt: ", part]);
    }
    // The user's own text may be a page.
    let dir = dir_of(&[("page.html", page)]);
    assert!(TextStream::open(&dir.path().join("page.html"), Level::Char).is_ok());
}
