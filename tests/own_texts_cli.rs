//! The user's own texts as the binaries find them: guessed columns of a table.

#![cfg(unix)]

mod common;

use common::{config, done, noted};
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
