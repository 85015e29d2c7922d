//! The user's own texts as the binaries find them: guessed columns of a table, and files of data as the input of `predict`.

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

#[test]
fn predict_reads_the_texts_of_a_table_and_of_labelled_lines() {
    let place = tempdir().unwrap();
    let rows: String =
        (0..20).map(|i| format!("wort{} a{i},{}\n", i % 2, ["gut", "schlecht"][i % 2])).collect();
    let write = |name: &str, text: &str| fs::write(place.path().join(name), text).unwrap();
    write("train.csv", &format!("text,label\n{rows}"));
    write("test.csv", "text,label\n\"wort1\nwort1\",gut\nwort0,schlecht\n");
    done(&place, "fasttext", "--dataset csv --data-dir . --embedding 4 --epochs 1 --quiet --out run");
    let texts = |file: &str, note: &str| -> Vec<String> {
        let said = noted(&place, "fasttext", &format!("predict --run run --file {file}"), note);
        let answers = said.lines().filter(|line| !line.starts_with(' '));
        answers.filter_map(|line| Some(line.rsplit_once(": ")?.1.to_string())).collect()
    };
    let note = "test.csv: a table, of which only the texts are read";
    assert_eq!(texts("test.csv", note), ["wort1 wort1", "wort0"]);
    write("unlabelled.csv", "id,text\n7,wort1\n8,\"wort0 wort1\"\n");
    let note = "unlabelled.csv: a table, of which only the texts are read";
    assert_eq!(texts("unlabelled.csv", note), ["wort1", "wort0 wort1"]);
    fs::write(place.path().join("latin.csv"), b"id,text\n1,wort1 \xe9\n").unwrap();
    let output = start(&place, "fasttext", &["predict", "--run", "run", "--file", "latin.csv"], "");
    let notes = String::from_utf8(output.stderr).unwrap();
    let lines: Vec<&str> = notes.lines().collect();
    assert!(output.status.success() && lines.len() == 3, "{notes}");
    assert!(lines[0].contains("latin.csv: not UTF-8 at line 2") && lines[1].contains("a table"), "{notes}");
    write("lines", "__label__gut wort1\nwort0\n");
    assert_eq!(texts("lines", "1 input with __label__, which is not read"), ["wort1", "wort0"]);
    // A class of another model.
    write("other.csv", "wort1,gut\nwort0,neutral\n");
    assert_eq!(texts("other.csv", "4 of 6 words are unknown"), ["wort1,gut", "wort0,neutral"]);
}

#[test]
fn predict_translates_the_sources_of_pairs() {
    let place = tempdir().unwrap();
    let rows: String = (0..20).map(|i| format!("eins zwei{}\tone two{}\n", i % 2, i % 2)).collect();
    fs::write(place.path().join("train.tsv"), format!("target\tsource\n{rows}")).unwrap();
    fs::write(place.path().join("test.tsv"), "target\tsource\neins\tone\nzwei0\ttwo0\n").unwrap();
    let options =
        "--dataset tsv-pairs --data-dir . --embedding 4 --hidden 4 --epochs 1 --max-length 4 --quiet";
    start(&place, "seq2seq", &format!("{options} --out run").split(' ').collect::<Vec<_>>(), "");
    let output = start(&place, "seq2seq", &["predict", "--run", "run", "--file", "test.tsv"], "");
    let [said, notes] = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    assert_eq!(said.lines().count(), 2, "{said}");
    assert!(
        notes.starts_with("note: test.tsv: pairs, so only column 2 is read, as the sources\n"),
        "{notes}"
    );
    assert!(!notes.contains("unknown"), "{notes}");
}
