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
    fs::write(place.path().join("types"), "Rose PER\nwalked O\nhome O\n").unwrap();
    let [said, notes] = predict(&["--file", "types"], "");
    assert!(said.starts_with("Rose\t") && said.lines().count() == 4 && notes.contains("CoNLL"), "{said}");
    fs::write(place.path().join("table.csv"), "id,text\n1,Rose walked\n").unwrap();
    let [said, notes] = predict(&["--file", "table.csv"], "");
    assert!(said.starts_with("Rose\t") && said.lines().count() == 3, "{said}");
    assert!(notes.contains("only the column text is read"), "{notes}");
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
    let found =
        "other.csv: found a table that begins with wort1, gut, expected a header that names one column text";
    refused(&place, "fasttext", "predict --run run --file other.csv", 1, &[found]);
    let output = start(&place, "fasttext", &["predict", "--run", "run"], "text,label\nwort1,gut\n");
    let notes = String::from_utf8(output.stderr).unwrap();
    assert!(notes.starts_with("note: the first line is a header, but lines are read as they are"), "{notes}");
    assert!(String::from_utf8(output.stdout).unwrap().contains(": wort1,gut\n"));
}

#[test]
fn predict_reads_a_table_of_another_origin_by_its_header_and_refuses_what_it_would_misread() {
    let place = tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(place.path().join(name), text).unwrap();
    let rows: String =
        (0..20).map(|i| format!("__label__{} wort{} a{i}\n", ["gut", "schlecht"][i % 2], i % 2)).collect();
    write("train.txt", &rows);
    write("test.txt", "__label__gut wort1\n__label__schlecht wort0\n");
    done(&place, "fasttext", "--dataset fasttext --data-dir . --embedding 4 --epochs 1 --quiet --out run");
    for (name, table, column) in [
        ("a.csv", "id,review\n7,wort1\n8,\"wort0\nwort1\"\n", "review"),
        ("b.csv", "Sentence;class\nwort1;x\nwort0 wort1;y\n", "Sentence"),
        ("c.csv", "text\nwort1\nwort0 wort1\n", "text"),
        ("d.tsv", "\ttext\n0\twort1\n1\twort0 wort1\n", "text"),
    ] {
        write(name, table);
        let note = format!("{name}: a table, of which only the column {column} is read");
        let said = noted(&place, "fasttext", &format!("predict --run run --file {name}"), &note);
        let answers: Vec<&str> = said.lines().filter(|line| !line.starts_with(' ')).collect();
        assert!(answers[0].ends_with(": wort1") && answers[1].ends_with(": wort0 wort1"), "{name}: {said}");
    }
    for (name, text, found) in [
        (
            "a.csv",
            "id,body\n7,wort1\n8,wort0\n",
            "found a table that begins with id, body, expected a header",
        ),
        ("b.csv", "review,comment\nwort1,wort0\n", "found a table that begins with review, comment"),
        ("c.csv", "id,text\n1,wort1\n2,wort0,wort1\n", "line 3: found 3 columns, expected 2"),
        (
            "d.jsonl",
            "{\"text\": \"wort1\"}\n{\"text\": \"wort0\"}\n",
            "found JSON, expected lines or a table",
        ),
        ("e.json", "[\n  \"wort1\",\n  \"wort0\"\n]\n", "found JSON, expected lines or a table"),
        ("f.parquet", "PAR1\u{15}\u{4}", "is a parquet file, expected text: export it"),
    ] {
        write(name, text);
        let found = format!("{name}: {found}");
        refused(&place, "fasttext", &format!("predict --run run --file {name}"), 1, &[&found]);
    }
    write("lines.csv", "wort1\nwort0, wort1\n\"wort1\n");
    let said = start(&place, "fasttext", &["predict", "--run", "run", "--file", "lines.csv"], "").stdout;
    let said = String::from_utf8(said).unwrap();
    assert!(said.contains(": wort0, wort1\n") && said.contains(": \"wort1\n"), "{said}");
    let json = start(&place, "fasttext", &["predict", "--run", "run", "-"], "{\"text\": \"wort1\"}\n");
    let notes = String::from_utf8(json.stderr).unwrap();
    assert!(notes.starts_with("note: the first line is JSON, but lines are read as they are\n"), "{notes}");
}

#[test]
fn predict_translates_the_sources_of_pairs() {
    let place = tempdir().unwrap();
    let rows: String = (0..20).map(|i| format!("eins zwei{}\tone two{}\n", i % 2, i % 2)).collect();
    fs::write(place.path().join("train.tsv"), format!("target\tsource\n{rows}")).unwrap();
    fs::write(place.path().join("test.tsv"), "target\tsource\neins\tone\nzwei0\ttwo0\n").unwrap();
    fs::write(place.path().join("pair"), "target\tsource\neins\tone\n").unwrap();
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
    let pair = start(&place, "seq2seq", &["predict", "--run", "run", "--file", "pair"], "");
    assert_eq!(String::from_utf8(pair.stdout).unwrap().lines().count(), 1);
    fs::write(place.path().join("test.jsonl"), "{\"source\": \"one\"}\n").unwrap();
    refused(&place, "seq2seq", "predict --run run --file test.jsonl", 1, &["test.jsonl: found JSON"]);
}
