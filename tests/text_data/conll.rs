//! Tagged sentences in the CoNLL format, and the scores of entities.

use super::says::assert_says;
use super::{assert_refused, data, dir_of, strings};
use candle_textbook::data::{EntityCounts, EntityScores, TaggedSentences, entity_scores, sequence};
use std::collections::BTreeMap;

#[test]
fn conll_files_are_found_by_their_names_and_read_with_any_columns() {
    let files: [(&str, &[u8]); 4] = [
        ("eng.train", b"-DOCSTART- -X- O O\n\nAnna NNP I-NP B-PER\nKeller NNP I-NP I-PER\nsang VBD I-VP O\n\n\nOslo NNP I-NP B-LOC"),
        ("eng.testa", b"Lima\tB-LOC\r\n.\tO\r\n\t\r\nAnna\tB-PER\r\n"),
        ("eng.testb", b"She O\n"),
        ("README.txt", b"x"),
    ];
    let corpus = sequence::load("conll", Some(dir_of(&files).path())).unwrap();
    assert_eq!(corpus.tags, ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]);
    assert_eq!(corpus.train.words, [strings(&["Anna", "Keller", "sang"]), strings(&["Oslo"])]);
    assert_eq!(corpus.train.tags, [vec![3, 4, 0], vec![1]]);
    assert_eq!(corpus.validation.unwrap().tags, [vec![1, 0], vec![3]]);
    assert_eq!((corpus.test.unwrap().len(), corpus.notes), (1, vec![]));

    let one = |name| sequence::load("conll", Some(dir_of(&[(name, b"Oslo B-LOC\n")]).path()));
    for name in ["train.txt", "wnut17train.conll", "My-Train.bio", "train"] {
        assert_eq!(one(name).unwrap().train.len(), 1);
    }
    for name in ["train.txt.zip", "test.txt"] {
        assert_says(&one(name).unwrap_err().to_string(), &["no training split", "train.txt"]);
    }
    assert_refused(
        "conll",
        &[files[0], ("a.test", b""), ("a.test.annotated", b"")],
        &["a.test and a.test.annotated", "expected one test split"],
    );
}

#[test]
fn the_name_of_a_split_begins_a_word_of_the_files_name() {
    let row: &[u8] = b"Oslo B-LOC\n";
    let load = |names: &[&str]| {
        let files: Vec<(&str, &[u8])> = names.iter().map(|&name| (name, row)).collect();
        sequence::load("conll", Some(dir_of(&files).path())).unwrap()
    };
    let others = ["contest.txt", "device.txt", "latest.txt", "tested.txt", "validated.txt"];
    let corpus = load(&[&others[..], &["train.txt"]].concat());
    assert!(corpus.validation.is_none() && corpus.test.is_none());
    assert_says(&corpus.notes[0], &[&format!("passed over: {}", others.join(", "))]);
    for names in [
        ["training.txt", "development.txt", "testing.txt"],
        ["my-trainset.txt", "validset.txt", "testset.txt"],
        ["train.txt", "newsdev2016.txt", "newstest2016.txt"],
    ] {
        let corpus = load(&names);
        assert!(corpus.validation.is_some() && corpus.test.is_some(), "{names:?}");
    }
}

#[test]
fn iob1_is_converted_to_bio() {
    let iob1 = "a I-PER\nb I-PER\nc B-PER\nd I-LOC\ne O\nf I-LOC\n\ng I-LOC\n";
    let bio = "a B-PER\nb I-PER\nc B-PER\nd B-LOC\ne O\nf B-LOC\n\ng B-LOC\n";
    let read =
        |text: &str| sequence::load("conll", Some(dir_of(&[("train.txt", text.as_bytes())]).path())).unwrap();
    assert_eq!(read(iob1).train, read(bio).train);
    assert_eq!(read(bio).notes, [""; 0]);
    assert_says(&read(iob1).notes[0], &["train.txt", "IOB1"]);
}

#[test]
fn types_that_differ_only_in_case_are_noted() {
    let dir = dir_of(&[("train.txt", b"a B-PER\n\nb B-Per\n")]);
    let notes = sequence::load("conll", Some(dir.path())).unwrap().notes;
    assert_eq!(notes, ["the types \"PER\" and \"Per\" differ only in case"]);
}

#[test]
fn entities_begin_as_conlleval_reads_them_in_any_scheme() {
    let read =
        |text: &str| sequence::load("conll", Some(dir_of(&[("train.txt", text.as_bytes())]).path())).unwrap();
    let bio = read("a B-X\nb I-X\nc O\nd B-X\n\ne B-X\n");
    let iob1 = read("a I-X\nb I-X\nc O\nd B-X\n\ne I-X\n");
    assert_eq!(iob1.train, bio.train);
    assert_says(&iob1.notes[0], &["IOB1", "1 line with B-", "line 4"]);
    let loose = read("a B-X\nb I-X\nc O\nd I-X\n\ne B-X\n");
    assert_eq!(loose.train, bio.train);
    assert_says(&loose.notes[0], &["BIO", "1 line with I-", "line 4"]);
    let bioes = read("a B-X\nb E-X\nc O\nd S-X\n\ne S-X\n");
    assert_eq!(bioes.train, bio.train);
    assert_says(&bioes.notes[0], &["BIOES"]);
}

#[test]
fn comments_are_skipped_and_the_word_hash_is_not() {
    let text = "# id 1 domain=en\na _ _ B-X\n# _ _ O\n\n# newdoc\nb _ _ O\n# id 2 domain=en\n";
    let corpus = sequence::load("conll", Some(dir_of(&[("train.conll", text.as_bytes())]).path())).unwrap();
    assert_eq!(corpus.train.words, [strings(&["a", "#"]), strings(&["b"])]);
}

#[test]
fn malformed_conll_files_are_refused_with_the_line() {
    let says = |text: &str, parts: &[&str]| assert_refused("conll", &[("train.txt", text.as_bytes())], parts);
    says("", &["train.txt", "is empty"]);
    says("\n\n", &["train.txt", "no sentences"]);
    says("a O\n", &["train.txt", "no entities"]);
    says("a B-X\n\nb\n", &["line 3", "no tag after \"b\""]);
    says("a\tB-X\nb\t\n", &["line 2", "empty tag"]);
    says("a\tB-X\n\tO\n", &["line 2", "empty word"]);
    says("a N B-X\nb O\n", &["line 2", "2 columns", "3 as in line 1"]);
    for tag in ["B", "B-", "S-", "X-X", "c-X", "0", "BX"] {
        says(&format!("a B-X\nb {tag}\n"), &["line 2", tag, "expected O, B-TYPE or I-TYPE"]);
    }
    says(&format!("a B-X\n{}", "b O\n".repeat(200)), &["one sentence of 201 words", "blank lines"]);
    assert_refused(
        "conll",
        &[("train.txt", b"a B-X\n"), ("dev.txt", b"b O\na B-Y\n")],
        &["dev.txt", "line 2", "\"Y\"", "lacks"],
    );
}

#[test]
fn wnut17_has_its_published_sizes() {
    let Some(data) = data() else { return };
    let corpus = sequence::load("conll", Some(&data.join("wnut17"))).unwrap();
    let entities = |split: &TaggedSentences| split.tags.iter().flatten().filter(|&&tag| tag % 2 == 1).count();
    let (dev, test) = (corpus.validation.unwrap(), corpus.test.unwrap());
    assert_eq!([&corpus.train, &dev, &test].map(entities), [1975, 836, 1079]);
    assert_eq!([&corpus.train, &dev, &test].map(TaggedSentences::len), [3394, 1009, 1287]);
    assert_eq!((corpus.tags.len(), corpus.notes), (13, vec![]));
}

fn scores(gold: &[&str], predicted: &[&str]) -> EntityScores {
    let tags = strings(&["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]);
    let ids = |sentences: &[&str]| -> Vec<Vec<u32>> {
        let id = |tag| tags.iter().position(|known| known == tag).unwrap() as u32;
        sentences.iter().map(|sentence| sentence.split(' ').map(id).collect()).collect()
    };
    entity_scores(&ids(gold), &ids(predicted), &tags).unwrap()
}

fn counts(gold: &[&str], predicted: &[&str]) -> (usize, usize, usize) {
    let EntityCounts { gold, predicted, correct } = scores(gold, predicted).overall;
    (gold, predicted, correct)
}

#[test]
fn entities_count_as_conlleval_counts_them() {
    for (gold, predicted, expected) in [
        ("B-PER I-PER O B-LOC", "B-PER I-PER O B-LOC", (2, 2, 2)),
        // too short, too long, of another type
        ("B-PER I-PER O", "B-PER O O", (1, 1, 0)),
        ("B-PER I-PER O", "B-PER I-PER I-PER", (1, 1, 0)),
        ("B-PER I-PER O", "B-LOC I-LOC O", (1, 1, 0)),
        // one split in two, two merged
        ("B-PER I-PER", "B-PER B-PER", (1, 2, 0)),
        ("B-PER B-PER", "B-PER I-PER", (2, 1, 0)),
        // I- after O and I- of another type begin an entity
        ("O B-PER I-PER", "O I-PER I-PER", (1, 1, 1)),
        ("B-PER B-LOC", "B-PER I-LOC", (2, 2, 2)),
        ("B-PER I-PER", "B-PER I-LOC", (1, 2, 0)),
        ("B-PER I-PER B-PER", "I-PER I-PER B-PER", (2, 2, 2)),
        ("B-LOC O", "O O", (1, 0, 0)),
        ("O O", "O I-LOC", (0, 1, 0)),
        ("O O", "O O", (0, 0, 0)),
    ] {
        assert_eq!(counts(&[gold], &[predicted]), expected, "{gold} / {predicted}");
    }
    // No entity extends over the end of a sentence.
    assert_eq!(counts(&["B-PER", "I-PER"], &["B-PER", "B-PER"]), (2, 2, 2));
}

#[test]
fn scores_are_ratios_of_the_counts_overall_and_by_type() {
    let all = scores(&["B-PER I-PER O B-LOC", "B-LOC O B-PER"], &["B-PER O O B-LOC", "B-LOC B-LOC O"]);
    let expected = |gold, predicted, correct| EntityCounts { gold, predicted, correct };
    assert_eq!(all.overall, expected(4, 4, 2));
    assert_eq!(
        all.types,
        BTreeMap::from([("LOC".into(), expected(2, 3, 2)), ("PER".into(), expected(2, 1, 0))])
    );
    let loc = all.types["LOC"];
    assert_eq!((loc.precision(), loc.recall(), loc.f1()), (2.0 / 3.0, 1.0, 0.8));
    let none = scores(&["O"], &["O"]).overall;
    assert_eq!((none.precision(), none.recall(), none.f1()), (0.0, 0.0, 0.0));

    let tags = strings(&["O", "B-X"]);
    let refused = |gold: &[Vec<u32>], predicted: &[Vec<u32>], tags: &[String]| {
        format!("{:#}", entity_scores(gold, predicted, tags).unwrap_err())
    };
    assert_says(&refused(&[vec![0]], &[], &tags), &["of 0 sentences", "expected 1"]);
    assert_says(&refused(&[vec![0]], &[vec![0, 0]], &tags), &["sentence 0", "2 predicted tags, expected 1"]);
    assert_says(&refused(&[vec![0]], &[vec![2]], &tags), &["tag 2", "expected one of 2"]);
    assert_says(&refused(&[], &[], &strings(&["X"])), &["tag \"X\"", "B-TYPE"]);
}

#[test]
fn a_first_column_that_counts_is_not_read_as_words() {
    let read =
        |text: &str| sequence::load("conll", Some(dir_of(&[("train.txt", text.as_bytes())]).path())).unwrap();
    let plain = read("Mary B-PER\nsang O\n\nOslo B-LOC\nslept O\n");
    for text in [
        "1\tMary\tB-PER\n2\tsang\tO\n\n1\tOslo\tB-LOC\n2\tslept\tO\n",
        "0 Mary N B-PER\n1 sang V O\n\n2 Oslo N B-LOC\n3 slept V O\n",
        "1 Mary B-PER\n1 sang O\n\n2 Oslo B-LOC\n2 slept O\n",
        "# text = a-b\n1-2\ta-b\t_\n1\tMary\tB-PER\n2\tsang\tO\n2.1\tx\t_\n\n#\n1\t-DOCSTART-\tO\n\n1\tOslo\tB-LOC\n2\tslept\tO\n",
    ] {
        let corpus = read(text);
        assert_eq!(corpus.train, plain.train, "{text}");
        assert_eq!(corpus.notes.len(), 1);
        assert_says(&corpus.notes[0], &["train.txt", "column 1 counts"]);
    }
    // Numbers that do not count, and numbers with their tags alone, are words.
    for text in ["7 CD B-X\n3 CD O\n", "1 B-X\n2 O\n", "1 CD B-X\nis V O\n"] {
        let corpus = read(text);
        assert_eq!((&corpus.train.words[0][0][..1], corpus.notes.len()), (&text[..1], 0), "{text}");
    }
}

#[test]
fn names_of_documents_and_offsets_before_the_words_are_passed_over() {
    let read = |files: &[(&str, &[u8])]| sequence::load("conll", Some(dir_of(files).path()));
    let plain = "Mary B-PER\nsang O\nhere O\n\nOslo B-LOC\nslept O\n\n";
    let expected = read(&[("train.txt", plain.as_bytes())]).unwrap().train;
    let with = |before: &dyn Fn(usize) -> String| -> String {
        let lines = plain.lines().enumerate();
        lines
            .map(|(i, line)| if line.is_empty() { "\n".into() } else { format!("{}{line}\n", before(i)) })
            .collect()
    };
    for (before, note) in [
        (&(|_| "a.txt ".into()) as &dyn Fn(usize) -> String, "column 1 is the same"),
        (&|i| format!("-DOCSTART-{} ", i / 3), "column 1 is the same"),
        (&|i| format!("{} ", 7 * i), "column 1 holds offsets"),
        (&|i| format!("{} {} ", 7 * i, 7 * i + 4), "column 2 holds offsets"),
        (&|i| format!("{}:{}\tx\t", 7 * i, 7 * i + 4).replace('\t', " "), "read from column 3"),
        (&|i| format!("bc/{} 0 {i} ", i / 4), "column 3 counts, so the words are read from column 4"),
    ] {
        // The test file alone is too short to show it.
        let (train, test) = (with(before), format!("{}She O\n", before(0)));
        let corpus = read(&[("train.txt", train.as_bytes()), ("test.txt", test.as_bytes())]).unwrap();
        assert_eq!(corpus.train, expected, "{train}");
        assert_eq!(corpus.test.unwrap().words, [strings(&["She"])], "{train}");
        assert_says(&corpus.notes[0], &["train.txt", note]);
    }
    let numbers: String = (0..12).map(|i| format!("{} a B-X\n", 5 * i % 7)).collect();
    assert_says(
        &read(&[("train.txt", numbers.as_bytes())]).unwrap_err().to_string(),
        &["column 1", "remove it"],
    );
}

#[test]
fn ids_of_words_are_not_words() {
    let read = |text: &str| sequence::load("conll", Some(dir_of(&[("train.txt", text.as_bytes())]).path()));
    let expected = read("Mary B-PER\nsang O\n\nOslo B-LOC\nslept O\n").unwrap().train;
    for [a, b, c, d] in
        [["tok1", "tok2", "tok1", "tok2"], ["3-2", "3-1", "4-2", "4-1"], ["x9", "f0", "a7", "e1"]]
    {
        let corpus = read(&format!("{a} Mary B-PER\n{b} sang O\n\n{c} Oslo B-LOC\n{d} slept O\n")).unwrap();
        assert_eq!(corpus.train, expected, "{a}");
        assert_says(&corpus.notes[0], &["column 1 holds an id of each word", "read from column 2"]);
    }
    // Words with digits among others, and words with nothing but a tag.
    for text in ["A4 CD B-X\nis V O\n7 CD O\n", "p53 B-X\np54 O\np55 O\n"] {
        assert_eq!(read(text).unwrap().notes, [""; 0], "{text}");
    }
}

#[test]
fn the_training_file_decides_which_column_holds_the_words() {
    // In the test file alone, the first column would count.
    let (train, test) = ("a N B-X\nb N O\nc N O\n", "1 N B-X\n2 N O\n3 N O\n");
    let dir = dir_of(&[("train.txt", train.as_bytes()), ("test.txt", test.as_bytes())]);
    let whole = sequence::load("conll", Some(dir.path())).unwrap();
    let alone = sequence::load_test("conll", Some(dir.path()), &whole.tags).unwrap();
    for corpus in [whole, alone] {
        assert_eq!(corpus.test.unwrap().words, [strings(&["1", "2", "3"])]);
        assert_eq!(corpus.notes, [""; 0]);
    }
}

#[test]
fn a_line_that_ends_before_the_column_of_words_is_an_error() {
    let train: (&str, &[u8]) = ("train.txt", b"1 a B-X\n2 b O\n\n1 c O\n2 d O\n");
    let test: (&str, &[u8]) = ("test.txt", b"1 a B-X\n2 b O\n3");
    assert_refused("conll", &[train, test], &["test.txt", "line 3", "no tag after \"3\""]);
}

#[test]
fn an_empty_last_column_is_ignored() {
    let files: [(&str, &[u8]); 1] = [("train.txt", b"a\tB-X\t\nb\tO\t\n\nc\tO\n")];
    let corpus = sequence::load("conll", Some(dir_of(&files).path())).unwrap();
    assert_eq!(corpus.train.words, [strings(&["a", "b"]), strings(&["c"])]);
}

#[test]
fn headers_and_tags_in_lower_case_are_understood_and_swapped_columns_named() {
    let files: [(&str, &[u8]); 1] = [("train.txt", b"token\ttag\nOslo\tb-loc\nis\to\n")];
    let corpus = sequence::load("conll", Some(dir_of(&files).path())).unwrap();
    assert_eq!((corpus.train.words, corpus.train.tags), (vec![strings(&["Oslo", "is"])], vec![vec![1, 0]]));
    assert_says(&corpus.notes[0], &["line 1 is read as a header"]);
    assert_refused("conll", &[("train.txt", b"B-PER Bob\nO ran\n")], &["tag \"Bob\"", "swapped"]);
}

#[test]
fn unusual_forms_of_tags_are_converted_with_one_note() {
    let read = |text: &str| sequence::load("conll", Some(dir_of(&[("train.txt", text.as_bytes())]).path()));
    let expected = read("a B-LOC\nb I-LOC\nc O\n\nd B-PER\n").unwrap().train;
    for (text, note) in [
        ("a B-LOC\nb E-LOC\nc O\n\nd W-PER\n", "tagged in BIOES, converted to BIO"),
        ("a B_LOC\nb I_LOC\nc O\n\nd B_PER\n", "tags such as B_LOC are read in BIO, as B-LOC"),
        ("a LOC-B\nb LOC-I\nc O\n\nd PER-B\n", "tags such as LOC-B are read in BIO, as B-LOC"),
        ("a LOC_B\nb LOC_E\nc O\n\nd PER_S\n", "tags such as LOC_B are read in BIO, as B-LOC"),
    ] {
        let corpus = read(text).unwrap();
        assert_eq!((corpus.train, corpus.notes.len()), (expected.clone(), 1), "{text}");
        assert_says(&corpus.notes[0], &["train.txt", note]);
    }
    for tag in ["N", "LOC-X", "B:LOC", "_B"] {
        assert_says(
            &read(&format!("a {tag}\nb O\n")).unwrap_err(),
            &["line 1", tag, "expected O, B-TYPE or I-TYPE"],
        );
    }
}

#[test]
fn adjacent_words_of_one_type_without_prefixes_are_one_entity() {
    let read = |text: &str| sequence::load("conll", Some(dir_of(&[("train.txt", text.as_bytes())]).path()));
    let types = read("a PER\nb PER\nc LOC\nd O\n\ne PER\nf O\ng O\n").unwrap();
    let bio = read("a B-PER\nb I-PER\nc B-LOC\nd O\n\ne B-PER\nf O\ng O\n").unwrap();
    assert_eq!((types.train, types.tags, types.notes.len()), (bio.train, bio.tags, 1));
    assert_says(&types.notes[0], &["train.txt", "tags such as PER", "adjacent words of one type"]);
    // Parts of speech, prefixes without a hyphen, one tag without its prefix, and more columns.
    for (text, tag) in [
        ("a DT\nb NN\n", "DT"),
        ("a BPER\nb IPER\nc O\nd O\n", "BPER"),
        ("a B-PER\nb PER\nc O\nd O\n", "PER"),
        ("a NN PER\nb DT O\n", "PER"),
    ] {
        assert_says(&read(text).unwrap_err(), &["line", &format!("tag \"{tag}\""), "expected O, B-TYPE"]);
    }
}

#[test]
fn of_two_columns_of_tags_the_outer_ones_are_read() {
    let text = "#\thttp://example.org [2009-10-17]\n1\tRoter\tB-ORG\tO\n2\tStern\tI-ORG\tO\n3\tBelgrad\tI-ORG\tB-LOC\n\n\
                #\tn-tv.de\n1\tin\tO\tO\n2\tOslo\tB-LOC\tO\n\n";
    let test = "#\tx\n1\tOslo\tB-LOC\tO\n";
    let dir = dir_of(&[("NER-de-train.tsv", text.as_bytes()), ("NER-de-test.tsv", test.as_bytes())]);
    let corpus = sequence::load("conll", Some(dir.path())).unwrap();
    assert_eq!(corpus.tags, ["O", "B-LOC", "I-LOC", "B-ORG", "I-ORG"]);
    assert_eq!(corpus.train.words, [strings(&["Roter", "Stern", "Belgrad"]), strings(&["in", "Oslo"])]);
    assert_eq!(
        (corpus.train.tags, corpus.test.unwrap().tags),
        (vec![vec![3, 4, 4], vec![0, 1]], vec![vec![1]])
    );
    assert_eq!(corpus.notes.len(), 2);
    assert_says(&corpus.notes[0], &["column 1 counts", "from column 2", "the tags are read from column 3"]);
    // Chunks are no entities.
    let chunks = "1 Oslo I-NP B-LOC\n2 slept B-VP O\n\n1 Rain I-NP O\n2 fell B-VP O\n";
    let corpus = sequence::load("conll", Some(dir_of(&[("train.txt", chunks.as_bytes())]).path())).unwrap();
    assert_eq!(corpus.tags, ["O", "B-LOC", "I-LOC"]);
}
