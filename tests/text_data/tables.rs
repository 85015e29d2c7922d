//! CSV and TSV files of the user's own.

use super::says::assert_says;
use super::{assert_refused, corpus_of, dir_of, strings};
use candle_textbook::data::{Columns, Corpus, DataError, text};

/// The training texts and class names of a CSV file, with all remarks about it.
fn csv(rows: &str) -> (Vec<String>, Vec<String>, Vec<String>) {
    let Corpus { train, classes, mut notes, assumption, .. } =
        corpus_of("csv", &[("train.csv", rows.as_bytes()), ("test.csv", rows.as_bytes())]);
    notes.extend(assumption);
    (train.texts, classes, notes)
}

#[test]
fn csv_and_tsv_take_their_classes_from_the_training_file() {
    let csv: [(&str, &[u8]); 3] = [
        (
            "train.csv",
            b"label,text\nsport,\"a goal, and \"\"what\"\" a\ngoal\"\nart,a \"fine\" picture\n\nart, two\n",
        ),
        ("test.csv", b"sport,won\r\nart,hung\r\n"),
        ("dev.csv", b"Label,Text\nart,sung"),
    ];
    let Corpus { train, validation, test, classes, .. } = corpus_of("csv", &csv);
    assert_eq!(train.texts, ["a goal, and \"what\" a\ngoal", "a \"fine\" picture", "two"]);
    assert_eq!((train.labels, classes), (vec![1, 0, 0], strings(&["art", "sport"])));
    assert_eq!((test.unwrap().labels, validation.unwrap().texts), (vec![1, 0], strings(&["sung"])));

    let Corpus { train, validation, .. } =
        corpus_of("tsv", &[("train.tsv", b"2\ta, b\n1\t\"c\td\"\n"), ("test.tsv", b"1\te\n")]);
    assert_eq!((train.texts, train.labels, validation), (strings(&["a, b", "c\td"]), vec![1, 0], None));
}

#[test]
fn a_header_names_the_columns_in_either_order() {
    for header in ["review,sentiment", "Text,LABEL", "tweet,polarity", "content,id_of_class"] {
        let (texts, classes, notes) = csv(&format!("{header}\nso good,pos\nso bad,neg\nnot bad,pos\n"));
        assert_eq!(
            (texts, classes),
            (strings(&["so good", "so bad", "not bad"]), strings(&["neg", "pos"])),
            "{header}"
        );
        assert_eq!(notes, [""; 0], "{header}");
    }
    let (texts, classes, _) = csv("category,comment\npos,so good\nneg,so bad\n");
    assert_eq!((&texts[0][..], classes), ("so good", strings(&["neg", "pos"])));
    let (texts, _, notes) = csv("id,label,text,date\n1,a,x,2020\n2,b,y,2021\n");
    assert_eq!(texts, ["x", "y"]);
    assert_says(&notes[0], &["train.csv", "the label is column label and the text text; ignored: id, date"]);
    // The test file may have another order.
    let train: (&str, &[u8]) = ("train.csv", b"label,text\na,x\nb,y\n");
    let corpus = corpus_of("csv", &[train, ("test.csv", b"text,label\nz,b\n")]);
    assert_eq!(corpus.test.unwrap().texts, ["z"]);
}

#[test]
fn without_a_header_the_label_comes_first_and_a_note_says_so() {
    let (texts, _, notes) = csv("a,x\nb,y\na,z\n");
    assert_eq!(texts.len(), 3);
    assert_says(&notes[0], &["train.csv", "no header", "column 1", "label"]);
    // "text" is a class here.
    assert_eq!(csv("text,x\ncode,y\ntext,z\ncode,z\n").0.len(), 4);
    // Only a header has a label that occurs nowhere else.
    let (texts, classes, notes) = csv("mood,in_de\nham,x\nspam,y\nham,z\nspam,w\n");
    assert_eq!((texts.len(), classes), (4, strings(&["ham", "spam"])));
    let columns = "column \"mood\" is read as the label and column \"in_de\" as the text";
    assert_says(
        &notes[0],
        &["train.csv", "line 1", "header", "no other line has the label \"mood\"", columns],
    );
}

#[test]
fn chosen_columns_decide() {
    let rows = b"when,what,how\n1,so good,pos\n2,so bad,neg\n";
    let dir = dir_of(&[("train.csv", rows), ("test.csv", rows)]);
    let load = |label: &str, text: &str| {
        text::load(
            "csv",
            Some(dir.path()),
            &Columns { label: Some(label.into()), text: Some(text.into()), ..Columns::default() },
        )
    };
    for (label, text) in [("how", "what"), ("HOW", "2"), ("3", "what")] {
        let corpus = load(label, text).unwrap();
        assert_eq!(
            (corpus.train.texts, corpus.classes),
            (strings(&["so good", "so bad"]), strings(&["neg", "pos"]))
        );
        assert_eq!(corpus.test.unwrap().len(), 2);
    }
    assert_says(
        &format!("{:#}", load("mood", "what").unwrap_err()),
        &["train.csv", "no column mood", "when, what, how"],
    );
    assert_says(&format!("{:#}", load("what", "what").unwrap_err()), &["train.csv", "both label and text"]);
    let chosen = Columns { label: Some("how".into()), ..Columns::default() };
    let error = text::load("csv", Some(dir.path()), &chosen).unwrap_err();
    assert_says(&error.to_string(), &["train.csv", "3 columns, only the label's is chosen"]);
    let error = text::load("csv", Some(dir.path()), &Columns::default()).unwrap_err();
    assert!(matches!(error.downcast::<DataError>().unwrap(), DataError::Columns { .. }));
    let tweets: &[u8] = b"id,mood,text\n1,pos,so good\n2,neg,so bad\n";
    let dir = dir_of(&[("train.csv", tweets)]);
    for label in ["mood", "2"] {
        let chosen = Columns { label: Some(label.into()), text: None, ..Columns::default() };
        assert_eq!(text::load("csv", Some(dir.path()), &chosen).unwrap().train.texts, ["so good", "so bad"]);
    }
    let twice: &[u8] = b"label,text,text\npos,1,so good\nneg,2,so bad\n";
    let dir = dir_of(&[("train.csv", twice)]);
    let load = |text: &str| {
        text::load(
            "csv",
            Some(dir.path()),
            &Columns { label: None, text: Some(text.into()), ..Columns::default() },
        )
    };
    assert_says(&load("text").unwrap_err().to_string(), &["train.csv", "2 columns are named text", "number"]);
    assert_eq!(load("3").unwrap().train.texts, ["so good", "so bad"]);
    let chosen = Columns { label: Some("2".into()), text: None, ..Columns::default() };
    assert_says(
        &format!("{:#}", text::load("reviews", None, &chosen).unwrap_err()),
        &["reviews", "no choice of columns"],
    );
}

#[test]
fn swapped_columns_and_other_separators_are_recognised() {
    let rows = |row: fn(usize) -> String| (0..40).map(row).collect::<String>();
    let swapped = rows(|i| format!("it is {i},{}\n", ["bad", "good"][i % 2]));
    assert_refused(
        "csv",
        &[("train.csv", swapped.as_bytes())],
        &["train.csv", "40 different labels in 40 rows", "text and label"],
    );
    let swapped = swapped.replace(',', "\t");
    assert_refused("tsv", &[("train.tsv", swapped.as_bytes())], &["train.tsv", "40 different labels"]);
    let (texts, classes, notes) = csv(&rows(|i| format!("{};it is {i}, I say\n", ["bad", "good"][i % 2])));
    assert_eq!((&texts[0][..], classes), ("it is 0, I say", strings(&["bad", "good"])));
    assert_says(&notes[0], &["train.csv", "semicolons"]);
}

#[test]
fn rows_without_text_are_skipped_and_counted() {
    let (texts, _, notes) = csv("label,text\na,x\nb,\nb,y\na,\"\"\n\n");
    assert_eq!(texts, ["x", "y"]);
    assert_says(&notes[0], &["train.csv", "skipped 2 lines without text", "line 3"]);
    let files: [(&str, &[u8]); 2] =
        [("rt-polarity.neg", b"so dull\n\nweak\n"), ("rt-polarity.pos", b"lovely\n \n")];
    let corpus = corpus_of("mr", &files);
    assert_eq!(corpus.train.texts, ["so dull", "lovely", "weak"]);
    assert_says(&corpus.notes[1], &["rt-polarity.pos", "1 line without text (line 2)"]);
    let files: [(&str, &[u8]); 2] = [("train.txt", b"1 a\n0\n0 b\n"), ("test.txt", b"1 a\n")];
    assert_eq!(corpus_of("sst2", &files).train.len(), 2);
}

#[test]
fn malformed_csv_files_are_refused_with_the_line() {
    let good: (&str, &[u8]) = ("train.csv", b"a,x\nb,y\n");
    let test = |test| [good, ("test.csv", test)];
    assert_refused("csv", &[("test.csv", b"a,x\nb,y\n")], &["no training split", "train.csv"]);
    assert_refused("csv", &test(b""), &["test.csv", "is empty"]);
    assert_refused("csv", &test(b"label,text\n"), &["test.csv", "no rows of label and text"]);
    assert_refused("csv", &test(b"a,x\n\n\"b\",\"y\nz\"\nc,z\n"), &["test.csv", "line 5", "\"c\"", "lacks"]);
    assert_refused("csv", &test(b"a,x\n\nb\n"), &["test.csv", "line 3", "found 1 column, expected 2"]);
    assert_refused("csv", &test(b"a,x\nb,y,z\n"), &["test.csv", "line 2", "3 columns"]);
    assert_refused("csv", &test(b"a,x\n,y\n"), &["line 2", "no label"]);
    assert_refused("csv", &test(b"a,x\nb,\"y\na,z\n"), &["line 2", "never ends"]);
    assert_refused(
        "csv",
        &[("train.csv", b"a,x\na,y\n"), ("test.csv", b"a,x\n")],
        &["train.csv", "every label"],
    );
    let two: [(&str, &[u8]); 2] = [("dev.csv", b"a,x\n"), ("valid.csv", b"a,x\n")];
    assert_refused(
        "csv",
        &[&test(b"a,x\n"), &two[..]].concat(),
        &["dev.csv", "valid.csv", "one validation split"],
    );
}

#[test]
fn a_row_without_text_gives_no_class_and_needs_none() {
    let (texts, classes, notes) = csv("label,text\na,x\nghost,\nb,y\n,\n  \n");
    assert_eq!((texts, classes), (strings(&["x", "y"]), strings(&["a", "b"])));
    assert_says(&notes[0], &["skipped 3 lines without text (first: line 3)"]);
    let (texts, classes, notes) = csv("A title,\n,\nlabel,text\na,x\nb,y\n");
    assert_eq!((texts, classes), (strings(&["x", "y"]), strings(&["a", "b"])));
    assert_says(&notes[0], &["skipped 2 lines without text (first: line 1)"]);
    let good: (&str, &[u8]) = ("train.csv", b"a,x\nb,y\n");
    let corpus = corpus_of("csv", &[good, ("test.csv", b"ghost,\na,z\n,\n")]);
    assert_eq!(corpus.test.unwrap().texts, ["z"]);
    let files: [(&str, &[u8]); 2] = [
        ("train.txt", b"__label__a x\n__label__ghost\n__label__b y\n"),
        ("test.txt", b"__label__ghoul \n__label__b z\n"),
    ];
    let corpus = corpus_of("fasttext", &files);
    assert_eq!((corpus.classes, corpus.test.unwrap().len()), (strings(&["a", "b"]), 1));
    let news: (&str, &[u8]) =
        ("train.csv", b"Class Index,Title,Description\n1,War,Peace\n7,,\n,,\n2,Goal,,,\n");
    let corpus = corpus_of("ag-news", &[news]);
    assert_eq!(corpus.train.labels, [0, 1]);
    assert_says(&corpus.notes[0], &["skipped 2 lines without text"]);
}

#[test]
fn the_first_line_may_declare_the_delimiter() {
    for (declaration, delimiter) in [
        ("sep=;", ";"),
        ("sep=,", ","),
        ("sep=\t", "\t"),
        ("sep=\\t", "\t"),
        ("\"sep=;\"", ";"),
        ("SEP=|", "|"),
    ] {
        for header in ["label;text\r\n", ""] {
            let rows = format!("{header}a;x\r\nb;y\r\na;z\r\nb;w\r\n").replace(';', delimiter);
            let (texts, classes, _) = csv(&format!("{declaration}\r\n{rows}"));
            assert_eq!((texts.len(), classes), (4, strings(&["a", "b"])), "{declaration}");
        }
    }
    let train: (&str, &[u8]) = ("train.csv", b"a,x\nb,y\n");
    let test: (&str, &[u8]) = ("test.csv", b"sep=;\na;1,5\nb;z\n");
    assert_eq!(corpus_of("csv", &[train, test]).test.unwrap().texts, ["1,5", "z"]);
    let news: (&str, &[u8]) = ("train.csv", b"sep=;\n1;War;Peace\n2;Goal;Won\n");
    assert_eq!(corpus_of("ag-news", &[news]).train.labels, [0, 1]);
    let test: (&str, &[u8]) = ("test.csv", b"label;text\na;z\n");
    assert_eq!(corpus_of("csv", &[train, test]).test.unwrap().texts, ["z"]);
}

#[test]
fn a_repeated_header_is_skipped_and_counted() {
    let (texts, classes, notes) = csv("label,text\na,x\nb,y\nlabel,text\na,z\nLabel,Text\nb,w\n");
    assert_eq!((texts.len(), classes), (4, strings(&["a", "b"])));
    assert_says(&notes[0], &["skipped 2 lines equal to the header (first: line 4)"]);
    let rows = "ham,so good\nspam,so bad\n".repeat(10);
    let (texts, classes, _) = csv(&format!("v1,v2\n{rows}v1,v2\n{rows}"));
    assert_eq!((texts.len(), classes), (40, strings(&["ham", "spam"])));
    // Duplicates are no headers.
    assert_eq!(csv(&rows).0.len(), 20);
    let chosen = Columns { label: Some("mood".into()), text: Some("words".into()), ..Columns::default() };
    let rows: &[u8] = b"words,mood,id\nx,a,1\ny,b,2\nwords,mood,id\n";
    let dir = dir_of(&[("train.csv", rows), ("test.csv", b"mood,words\na,z\n")]);
    let corpus = text::load("csv", Some(dir.path()), &chosen).unwrap();
    assert_eq!((corpus.train.texts, corpus.test.unwrap().texts), (strings(&["x", "y"]), strings(&["z"])));
}

#[test]
fn an_explicit_header_decides_even_if_the_labels_look_like_texts() {
    let rows: String = (0..120).map(|i| format!("class {},text {i}\n", i % 61)).collect();
    let (_, classes, notes) = csv(&format!("label,text\n{rows}"));
    assert_eq!(classes.len(), 61);
    assert_says(&notes[0], &["61 different labels in 120 rows"]);
    // A class and a text with the names of the columns; then the end of a file of MS-DOS.
    assert_eq!(csv("label,text\na,text\nlabel,z\nb,w\n\x1a").0.len(), 3);
    let rows: String =
        (0..12).map(|i| format!("{},{}\n", ["a", "b", "c"][i % 3], ["yes", "no"][i % 2])).collect();
    assert_eq!(csv(&format!("label,text\n{rows}")).1.len(), 3);
    let dir = dir_of(&[("train.csv", rows.as_bytes())]);
    assert_refused("csv", &[("train.csv", rows.as_bytes())], &["3 different labels in 12 rows"]);
    let chosen = Columns { label: Some("1".into()), text: None, ..Columns::default() };
    assert_eq!(text::load("csv", Some(dir.path()), &chosen).unwrap().classes.len(), 3);
}

#[test]
fn columns_that_are_empty_in_all_rows_are_ignored() {
    for rows in [
        "label,text,\na,x,\nb,y,\n",
        "label,text,,\na,x\nb,y\n",
        "label,text\na,x,\nb,y,,\n",
        "a,x,,\nb,y,\n",
    ] {
        let (texts, classes, notes) = csv(rows);
        assert_eq!((texts, classes), (strings(&["x", "y"]), strings(&["a", "b"])), "{rows}");
        assert_eq!(notes.len(), usize::from(!rows.starts_with("label")), "{notes:?}");
    }
    assert_refused(
        "csv",
        &[("train.csv", b"label,text\na,x,\nb,y,z\n")],
        &["line 3", "3 columns, expected 2"],
    );
    // The index that pandas writes.
    let (_, _, notes) = csv(",label,text\n0,a,x\n1,b,y\n");
    assert_says(&notes[0], &["the label is column label and the text text; ignored: 1 (without a name)"]);
}

#[test]
fn commas_within_numbers_do_not_separate_columns() {
    let (texts, classes, _) = csv("rating;text\n3,5;so good\n1,0;so bad\n");
    assert_eq!((texts, classes), (strings(&["so good", "so bad"]), strings(&["1,0", "3,5"])));
    let rows: &[u8] = b"3,5;good\n1,0;bad\n3,5;fine\n1,0;weak\n";
    assert_refused("csv", &[("train.csv", rows)], &["both commas and semicolons", "sep=;"]);
    let rows = [b"sep=;\n", rows].concat();
    assert_eq!(corpus_of("csv", &[("train.csv", &rows)]).classes, ["1,0", "3,5"]);
}

#[test]
fn quotes_of_unquoted_tables_are_characters_and_quoted_texts_may_have_lines() {
    let tsv = |rows: &[u8]| corpus_of("tsv", &[("train.tsv", rows)]);
    let corpus = tsv(b"a\t\"x\nb\ty\" z\n");
    assert_eq!(corpus.train.texts, ["\"x", "y\" z"]);
    assert_says(&corpus.notes[0], &["quotes are read as characters", "line 1"]);
    assert_eq!(tsv(b"a\tx\nb\t\"never ends\n").train.texts, ["x", "\"never ends"]);
    assert_eq!(tsv(b"label\ttext\na\t\"x\ny\"\nb\tz\n").train.texts, ["x\ny", "z"]);
}

#[test]
fn a_quote_that_swallows_rows_is_refused() {
    let rows = "pos,fine film\nneg,weak film\n".repeat(5);
    for (stray, found) in [
        (format!("pos,\"good film\n{rows}neg,bad \"film\"\n"), "goes on for 11 lines that look like rows"),
        ("pos,\"good film\nneg,\"bad film\"\n".into(), "goes on for 1 line that looks like a row"),
        ("pos,\"good\" film\n".into(), "text follows a closing quote"),
    ] {
        let table = format!("label,text\n{rows}{stray}{rows}");
        assert_refused("csv", &[("train.csv", table.as_bytes())], &["train.csv", "line 12", found]);
    }
    let table = "text,label\nso,pos\n\"good,pos\nweak,neg\nfine,pos\na \"film\",neg\n";
    assert_refused("csv", &[("train.csv", table.as_bytes())], &["line 3", "for 3 lines that look like rows"]);
    // Well-formed texts may have such a line.
    assert_eq!(csv("label,text\nno,\"\"\"Sure?\"\"\nno, thanks\" \nyes,\"a\n\nb\"\n").0.len(), 2);
}

#[test]
fn a_header_without_text_or_label_is_refused() {
    let train: (&str, &[u8]) = ("train.csv", b"label,text\n1,x\n2,y\n");
    for (header, missing) in [
        ("id,label", "text"),
        ("label,id", "text"),
        ("label,title", "text"),
        ("id,text", "label"),
        ("index,text", "label"),
        ("id,text,date", "label"),
    ] {
        let rows = format!("{header}\n{}", ["1,2\n", "1,2,3\n"][header.matches(',').count() - 1]);
        let found = format!("no column {missing}: found {}", header.replace(',', ", "));
        assert_refused("csv", &[train, ("test.csv", rows.as_bytes())], &["test.csv", &found]);
    }
    for header in ["id,label", "id,text", "review_id,label"] {
        let rows = format!("{header}\n1,2\n2,1\n");
        assert_refused(
            "csv",
            &[("train.csv", rows.as_bytes())],
            &["train.csv", "no column", header.split(',').next().unwrap()],
        );
    }
    // A run's classes are known, its columns are not.
    let test = |rows: &[u8]| {
        let dir = dir_of(&[("test.csv", rows)]);
        text::load_test("csv", Some(dir.path()), &Columns::default(), &strings(&["1", "2"]))
    };
    assert_says(&test(b"id,label\n1,2\n").unwrap_err().to_string(), &["test.csv", "no column text"]);
    let titled = test(b"label,title\n1,x\n").unwrap().assumption.unwrap();
    assert_says(&titled, &["test.csv: column title is read as the text"]);
    // Unless they are recorded.
    let trained = corpus_of("csv", &[("train.csv", b"text,label\nx,1\ny,2\n")]).layout;
    let columns = Columns { trained, ..Columns::default() };
    for rows in ["x,2\ny,1\n", "id,Label,Text\n7,2,x\n8,1,y\n", "label,text\n2,x\n1,y\n"] {
        let dir = dir_of(&[("test.csv", rows.as_bytes())]);
        let found = text::load_test("csv", Some(dir.path()), &columns, &strings(&["1", "2"])).unwrap();
        let test = found.test.unwrap();
        assert_eq!((test.texts, test.labels), (strings(&["x", "y"]), vec![1, 0]), "{rows}");
    }
    // Rows may contain the names.
    let corpus = corpus_of("csv", &[train, ("test.csv", b"1,text\n2,y\n")]);
    assert_eq!(corpus.test.unwrap().len(), 2);
}

#[test]
fn a_table_without_a_known_separator_or_without_cells_is_named() {
    let files = [("train.csv", &b"label|text\na|x\nb|y\n"[..])];
    assert_refused(
        "csv",
        &files,
        &["found 1 column", "separated by commas, semicolons or tabs", "label|text"],
    );
    assert_refused("csv", &[("train.csv", b" \n\n")], &["train.csv: no rows of label and text"]);
}

#[test]
fn classes_that_look_alike_or_have_one_sentence_are_noted() {
    for (first, second, difference) in [
        ("POS", "pos", "case"),
        ("Ja", "ja", "case"),
        ("1", "1.0", "spelling"),
        ("pos", "pos\u{200b}", "spelling"),
    ] {
        let (_, classes, notes) = csv(&format!("label,text\n{second},x\nneg,y\n{first},z\n"));
        assert_eq!((classes.len(), notes.len()), (3, 1), "{notes:?}");
        assert_says(
            &notes[0],
            &[&format!("the classes \"{first}\" and \"{second}\" differ only in {difference}")],
        );
    }
    for missing in ["NaN", "NA"] {
        let (_, _, notes) = csv(&format!("label,text\n{missing},x\nneg,y\npos,z\n{missing},w\n"));
        assert_eq!(notes, [format!("\"{missing}\" is a class: is it a missing label?")]);
    }
    let (_, _, notes) = csv(&format!("label,text\n{}odd,z\n", "pos,x\nneg,y\n".repeat(10)));
    assert_eq!(notes, ["the class \"odd\" has a single sentence, the training set 21"]);
    let (name, rows) = ("train.txt", b"__label__a x\n__label__A y\n");
    assert_says(&corpus_of("fasttext", &[(name, rows)]).notes[0], &["\"A\" and \"a\" differ only in case"]);
}

#[test]
fn compressed_and_binary_tables_are_told_apart() {
    let mut encoder = flate2::write::GzEncoder::new(vec![], flate2::Compression::fast());
    std::io::Write::write_all(&mut encoder, b"label\ttext\na\tx\nb\ty\n").unwrap();
    let packed = encoder.finish().unwrap();
    for name in ["train.tsv.gz", "train.tsv"] {
        assert_eq!(corpus_of("tsv", &[(name, &packed)]).train.len(), 2);
    }
    let error = text::load("csv", Some(dir_of(&[("train.csv", b"\x1b[31ma\n")]).path()), &Columns::default());
    assert!(!error.unwrap_err().to_string().contains('\x1b'));
    assert_refused("csv", &[("train.csv", b"a,x\nb,y\0\n")], &["train.csv", "line 2 is binary"]);
    let wide: Vec<u8> = "\u{feff}label;text\nä;x\nö;y\n".encode_utf16().flat_map(u16::to_be_bytes).collect();
    let corpus = corpus_of("csv", &[("train.csv", &wide)]);
    assert_eq!(corpus.classes, ["ä", "ö"]);
    assert_says(&corpus.notes[0], &["train.csv", "converted from UTF-16BE"]);
}

#[test]
fn a_test_file_without_the_column_of_labels_is_not_the_test_split() {
    let train = "id,text,target\n1,fine,1\n2,dull,0\n".as_bytes();
    let corpus = corpus_of("csv", &[("train.csv", train), ("test.csv", b"id,text\n3,good\n")]);
    assert!(corpus.test.is_none());
    assert!(
        corpus.notes.iter().any(|note| note.ends_with("no column target, so it can't be the test split"))
    );
    // A label of another name.
    let other: &[u8] = b"id,text,label_2\n3,good,1\n";
    assert_refused("csv", &[("train.csv", train), ("test.csv", other)], &["test.csv: no column target"]);
    // Validation needs labels.
    let files = [("train.csv", train), ("dev.csv", b"id,text\n3,good\n"), ("test.csv", train)];
    assert_refused("csv", &files, &["dev.csv: no column target"]);
}

#[test]
fn labels_with_composed_and_decomposed_accents_are_one_class() {
    let rows = "label,text\nsch\u{f6}n,a\nscho\u{308}n,b\n\u{fc}bel,c\n";
    assert_eq!(corpus_of("csv", &[("train.csv", rows.as_bytes())]).classes, ["sch\u{f6}n", "\u{fc}bel"]);
    let lines = "__label__sch\u{f6}n a\n__label__scho\u{308}n b\n__label__x c\n";
    let corpus = corpus_of("fasttext", &[("train.txt", lines.as_bytes())]);
    assert_eq!((corpus.classes, corpus.train.labels), (strings(&["sch\u{f6}n", "x"]), vec![0, 0, 1]));
}
