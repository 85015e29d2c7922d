//! The user's own texts as the binaries find them: guessed columns of a table, and a tagged file as the input of `predict`.

#![cfg(unix)]

mod common;

use common::{config, done, noted, refused, start};
use std::fs;
use tempfile::tempdir;

#[test]
fn guessed_columns_are_named_with_the_options_that_choose_others_and_a_resumed_run_keeps_them() {
    let place = tempdir().unwrap();
    let write = |name: &str, header: &str| {
        let rows: String =
            (0..20).map(|i| format!("{},wort{} {name}{i}\n", ["gut", "schlecht"][i % 2], i % 2)).collect();
        fs::write(place.path().join(format!("{name}.csv")), format!("{header}{rows}")).unwrap();
    };
    write("test", "");
    let options = "--dataset csv --data-dir . --embedding 4 --epochs 1 --quiet --out";
    let named = "column \"mood\" is read as the label and column \"comment_de\" as the text";
    for (binary, header, note) in [
        ("fasttext", "mood,comment_de\n", named),
        ("textcnn", "mood,comment_de\n", named),
        ("gru", "", "train.csv: no header, so column 1 is read as the label and column 2 as the text"),
    ] {
        write("train", header);
        let note = format!("{note}; --label-column and --text-column choose others");
        noted(&place, binary, &format!("{options} {binary}"), &note);
        done(&place, binary, &format!("--resume {binary} --quiet"));
    }
    write("train", "label,text\n");
    done(&place, "fasttext", "--resume fasttext --quiet");
    assert_eq!(config(&place.path().join("fasttext"))["columns"]["header"][0], "label");
    write("train", "comment_de,mood\n");
    let chosen = format!("{options} chosen --label-column comment_de --text-column mood");
    done(&place, "fasttext", &chosen);
}

#[test]
fn the_words_of_a_file_in_the_conll_format_are_tagged_and_its_tags_are_not() {
    let place = tempdir().unwrap();
    done(&place, "birnn", "--embedding 4 --hidden 4 --train-limit 100 --epochs 1 --quiet --out run");
    let predict = |arguments: &[&str], input: &str| {
        let output = start(&place, "birnn", &[&["predict", "--run", "run"], arguments].concat(), input);
        assert!(output.status.success(), "{output:?}");
        [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap())
    };
    let text = "1 Rose B-PER\n2 walked O\n3 home O\n\n1 Paris, B-LOC\n2 . O\n";
    fs::write(place.path().join("tagged"), text).unwrap();
    let note = "in the CoNLL format, so only its column 2 is read, as the words";
    for (arguments, input, name) in [
        (&["--file", "tagged"][..], "", "tagged"),
        (&[], text, "standard input"),
        (&["--file", "-"], text, "standard input"),
    ] {
        let [said, notes] = predict(arguments, input);
        let words: Vec<&str> =
            said.lines().map(|line| line.split_once('\t').map_or("", |(word, _)| word)).collect();
        assert_eq!(words, ["Rose", "walked", "home", "", "Paris,", ".", ""], "{arguments:?}");
        assert!(notes.starts_with(&format!("note: {name}: {note}\n")), "{notes}");
        assert_eq!(notes.matches("CoNLL").count(), 1, "{notes}");
    }
    // A row that is broken, and text with such words.
    fs::write(place.path().join("broken"), format!("{}a\n", text.repeat(10))).unwrap();
    refused(&place, "birnn", "predict --run run --file broken", 1, &["broken: line 61: no tag after \"a\""]);
    fs::write(place.path().join("text"), "Rose chose vitamin O\nNot the letter O\n").unwrap();
    let [said, notes] = predict(&["--file", "text"], "");
    assert!(said.starts_with("Rose\t") && said.lines().count() == 10 && !notes.contains("CoNLL"), "{said}");
}
