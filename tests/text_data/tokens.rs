//! Tokens, vocabularies, long texts and their windows.

use super::says::assert_says;
use super::{data, dir_of, load, strings};
use candle_textbook::data::{Corpus, Level, TextStream, TokenWindows, Tokenizer, Vocabulary, names, reviews};
use candle_textbook::rng::stream;
use rand::Rng;

#[test]
fn kims_tokens_are_those_of_his_code() {
    let tokens = Tokenizer::Kim.tokens("It's (so-so), isn't it?  We'd've 'liked' caf\u{e9} 3.5!");
    let expected = "It 's ( so so ) , is n't it ? We 'd 've 'liked' caf 3 5 !";
    assert_eq!(tokens.join(" "), expected);
    assert_eq!(Tokenizer::Plain.tokens(" It's\tso-so,\n fine "), ["It's", "so-so,", "fine"]);
    assert_eq!(Tokenizer::Characters.tokens("a \u{e9}\n"), ["a", " ", "\u{e9}", "\n"]);
    for tokenizer in [Tokenizer::Words, Tokenizer::Kim, Tokenizer::Plain, Tokenizer::Characters] {
        assert_eq!(tokenizer.tokens(""), [""; 0]);
    }
}

#[test]
fn a_text_with_decomposed_accents_is_read_with_composed_ones() {
    for level in [Level::Char, Level::Word] {
        let [composed, decomposed] = ["caf\u{e9} au lait\n", "cafe\u{301} au lait\n"]
            .map(|text| TextStream::from_memory("text", text, level).unwrap());
        let vocabulary = composed.vocabulary(0..composed.len(), 1, None).unwrap();
        assert_eq!(decomposed.vocabulary(0..decomposed.len(), 1, None).unwrap(), vocabulary);
        assert_eq!(decomposed.fingerprint(), composed.fingerprint());
        let ids = |text| level.encode(text, &vocabulary).unwrap();
        assert_eq!(ids("cafe\u{301}"), ids("caf\u{e9}"));
    }
}

#[test]
fn words_of_ascii_text_without_symbols_are_those_of_kim() {
    let mut rng = stream(0, "ascii");
    for _ in 0..1000 {
        let text: String = (0..30).map(|_| char::from(rng.random_range(0..128_u8))).collect();
        let text = text.replace(['$', '+', '<', '=', '>', '^', '|', '~'], "");
        assert_eq!(Tokenizer::Words.tokens(&text), Tokenizer::Kim.tokens(&text), "{text:?}");
    }
    let Some(data) = data() else { return };
    let Corpus { train, .. } = load("mr", Some(&data.join("mr"))).unwrap();
    let changed =
        train.texts.iter().filter(|text| Tokenizer::Words.tokens(text) != Tokenizer::Kim.tokens(text));
    let words: Vec<Vec<String>> = train.texts.iter().map(|text| Tokenizer::Words.tokens(text)).collect();
    // Sentences with accented letters or symbols; Kim's rule gives 18,765 words.
    assert_eq!((changed.count(), Vocabulary::new(&words, true, 1).len() - 2), (173, 18_792));
}

/// A random text of unusual characters.
fn odd_text(rng: &mut impl Rng) -> String {
    let odd = [
        '\t',
        '\n',
        '\r',
        ' ',
        '"',
        '\\',
        '\'',
        'n',
        't',
        's',
        ',',
        '\u{0}',
        '\u{2028}',
        '\u{e9}',
        '\u{1f600}',
        'I',
    ];
    (0..rng.random_range(1..20)).map(|_| odd[rng.random_range(0..odd.len())]).collect()
}

#[test]
fn joined_tokens_are_the_text() {
    let mut rng = stream(0, "tokens");
    for _ in 0..1000 {
        let text = odd_text(&mut rng);
        assert_eq!(Tokenizer::Characters.tokens(&text).concat(), text);
        assert_eq!(Tokenizer::Plain.tokens(&text).concat(), text.split_whitespace().collect::<String>());
        for tokenizer in [Tokenizer::Words, Tokenizer::Kim] {
            let tokens = tokenizer.tokens(&text);
            assert_eq!(tokens, tokenizer.tokens(&tokens.join(" ")));
        }
    }
}

#[test]
fn a_vocabulary_is_ordered_by_count_then_alphabetically() {
    let sentences = [strings(&["b", "The", "a", "<unk>"]), strings(&["the", "a", "b", "b", "c", "the"])];
    let known = Vocabulary::new(&sentences, true, 2);
    let tokens: Vec<&str> = (0..).map_while(|id| known.token(id)).collect();
    assert_eq!(tokens, ["<pad>", "<unk>", "b", "the", "a"]);
    assert_eq!((known.len(), known.id("THE"), known.id("c"), known.id("<pad>")), (5, 3, 1, 0));
    let cased = Vocabulary::new(&sentences, false, 1);
    assert_eq!((cased.len(), cased.id("THE"), cased.token(6)), (7, 1, Some("c")));
    assert_eq!(Vocabulary::new([Vec::new()], false, 1).len(), 2);
}

#[test]
fn a_vocabulary_is_read_back_from_its_file() {
    let mut rng = stream(0, "vocabulary");
    for lower_case in [false, true] {
        let tokens: Vec<Vec<String>> = vec![(0..2000).map(|_| odd_text(&mut rng)).collect()];
        let known = Vocabulary::new(&tokens, lower_case, 1);
        assert!(known.len() > 1000);
        assert_eq!(Vocabulary::from_text(&known.to_text()).unwrap(), known);
        assert!(tokens[0].iter().all(|token| known.id(token) > Vocabulary::UNKNOWN));
    }
}

#[test]
fn a_damaged_vocabulary_is_refused_with_the_line() {
    let whole = Vocabulary::new([strings(&["to", "be", "to"])], false, 1).to_text();
    assert_eq!(whole.lines().count(), 5);
    let says = |text: &str, parts: &[&str]| {
        assert_says(&format!("{:#}", Vocabulary::from_text(text).unwrap_err()), parts);
    };
    for (end, _) in whole.char_indices().take(whole.len() - 1) {
        says(&whole[..end], &["line "]);
    }
    says("", &["line 1", "expected"]);
    says(&whole.replace("lower", "upper"), &["line 1"]);
    says(&whole.replace("<unk>", "unk"), &["line 3", "\"unk\"", "\"<unk>\""]);
    says(&whole.replace("\"to\"", "to"), &["line 4", "quoted token"]);
    says(&whole.replace("be", "to"), &["line 4", "line 5"]);
    says(&format!("{whole}\"or\"\n"), &["5 tokens", "expected 4"]);
}

#[test]
fn fingerprints_depend_on_the_text_and_not_on_its_source() {
    let memory = |text: &str| TextStream::from_memory("text", text, Level::Char).unwrap().fingerprint();
    // Longer than a block of the file.
    let long = "caf\u{e9} ".repeat(100_000);
    let dir = dir_of(&[("text", long.as_bytes())]);
    let file = TextStream::open(&dir.path().join("text"), Level::Word).unwrap();
    assert_eq!(file.fingerprint(), memory(&long));
    assert_ne!(memory(&long), memory(&format!("{long}.")));
    assert_ne!(memory("ab"), memory("ba"));

    let corpus = reviews(20, 5, 0);
    let mut other = corpus.clone();
    other.train.labels.swap(0, 1);
    assert_eq!(corpus.train.fingerprint(), reviews(20, 5, 0).train.fingerprint());
    assert_ne!(corpus.train.fingerprint(), other.train.fingerprint());
    let corpus = names(20, 5, 0);
    let mut other = corpus.clone();
    other.train.tags[0][0] += 1;
    assert_eq!(corpus.train.fingerprint(), names(20, 5, 0).train.fingerprint());
    assert_ne!(corpus.train.fingerprint(), other.train.fingerprint());
}

#[test]
fn carriage_returns_end_lines_with_and_without_newlines() {
    let tokens = |text: &str, level: Level| {
        let text = TextStream::from_memory("text", text, level).unwrap();
        let (mut tokens, mut token, mut all) = (text.read(0), String::new(), vec![]);
        while tokens.next_into(&mut token).unwrap() {
            all.push(token.clone());
        }
        all
    };
    assert_eq!(tokens("a b\rc\r", Level::Word), ["a", "b", "<eos>", "c", "<eos>"]);
    assert_eq!(tokens("a\r\n\r\nb", Level::Word), ["a", "<eos>", "<eos>", "b"]);
    assert_eq!(tokens("a\r\n\r\nb\rc\n", Level::Char), ["a", "\n", "\n", "b", "\n", "c", "\n"]);
}

#[test]
fn a_long_text_in_utf16_is_converted() {
    let bytes: Vec<u8> = "\u{feff}a\u{e9}\u{1f600}".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let dir = dir_of(&[("text", &bytes)]);
    let text = TextStream::open(&dir.path().join("text"), Level::Char).unwrap();
    assert_eq!(
        text.fingerprint(),
        TextStream::from_memory("", "a\u{e9}\u{1f600}", Level::Char).unwrap().fingerprint()
    );
    assert_eq!(text.len(), 3);
    assert_says(&text.notes[0], &["text", "converted from UTF-16LE"]);
}

#[test]
fn streams_outside_the_text_are_errors() {
    let text = TextStream::from_memory("text", "abcdefghij", Level::Char).unwrap();
    let vocabulary = text.vocabulary(0..10, 1, None).unwrap();
    let error_of =
        |range, streams, start| TokenWindows::new(&text, &vocabulary, range, streams, start).unwrap_err();
    assert_says(&error_of(0..11, 2, 0), &["tokens 0 to 11", "of 0 to 10"]);
    assert_says(&error_of(5..5, 1, 0), &["tokens 5 to 5"]);
    assert_says(&error_of(0..10, 0, 0), &["0 streams"]);
    assert_says(&error_of(0..u64::MAX, usize::MAX, 0), &["tokens 0 to"]);
    assert_says(&error_of(0..10, 3, u64::MAX), &["streams of 3 steps"]);
    assert!(TokenWindows::new(&text, &vocabulary, 0..10, 3, 3).unwrap().next_window(1).unwrap().is_none());
}
