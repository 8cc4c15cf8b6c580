//! Comparison with OpenAI's tokenizer, and what must hold for any text.

use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::clean::clean;
use super::ftfy::looks_like_mojibake;
use super::{Tokenizer, TokenizerError};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/tokenizer").join(name)
}

fn read_lines(path: &Path) -> impl Iterator<Item = Value> + use<> {
    let file = std::fs::File::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    BufReader::new(file).lines().map(|line| serde_json::from_str(&line.unwrap()).unwrap())
}

/// Small generator for random texts (xorshift).
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as usize % n
    }
}

#[test]
fn ids_equal_openais_on_nasty_texts() {
    let tokenizer = Tokenizer::openai();
    let mut n_cases = 0;
    for case in read_lines(&fixture("golden.jsonl")) {
        let times = case["times"].as_u64().unwrap_or(1) as usize;
        let text = case["text"].as_str().unwrap().repeat(times);
        let mut expected = vec![tokenizer.start_and_end().unwrap()[0]];
        let ids = case["ids"].as_array().unwrap();
        expected.extend(ids.iter().map(|id| id.as_u64().unwrap() as u32));
        expected.push(tokenizer.start_and_end().unwrap()[1]);
        assert_eq!(tokenizer.encode(&text), expected, "{case}");
        n_cases += 1;
    }
    assert!(n_cases >= 300, "only {n_cases} cases");
}

#[test]
fn decoded_text_equals_openais() {
    let tokenizer = Tokenizer::openai();
    for case in read_lines(&fixture("golden.jsonl")) {
        let Some(expected) = case["decoded"].as_str() else {
            continue;
        };
        let ids: Vec<u32> = serde_json::from_value(case["ids"].clone()).unwrap();
        assert_eq!(tokenizer.decode(&ids), expected, "{case}");
    }
}

#[test]
fn short_vocabulary_equals_openais_code_with_fewer_merges() {
    let tokenizer = Tokenizer::openai_prefix(4096).unwrap();
    assert_eq!(tokenizer.vocab_size(), 4096);
    assert_eq!(tokenizer.start_and_end(), Some([4094, 4095]));
    for case in read_lines(&fixture("golden_4096.jsonl")) {
        let ids: Vec<u32> = serde_json::from_value(case["ids"].clone()).unwrap();
        let encoded = tokenizer.encode(case["text"].as_str().unwrap());
        assert_eq!(encoded[1..encoded.len() - 1], ids, "{case}");
    }
}

#[test]
fn mojibake_heuristic_equals_ftfys() {
    for case in read_lines(&fixture("badness.jsonl")) {
        let expected = case["bad"].as_bool().unwrap();
        let text = case["text"].as_str().unwrap();
        assert_eq!(looks_like_mojibake(text), expected, "{case}");
    }
}

#[test]
fn long_texts_are_cut_and_say_so() {
    let tokenizer = Tokenizer::openai();
    let whole = tokenizer.tokenize("a photo of a cat", 7);
    assert_eq!((whole.ids.len(), whole.truncated), (7, 0));
    let cut = tokenizer.tokenize("a photo of a cat", 5);
    assert_eq!(cut.ids, [49406, 320, 1125, 539, 49407]);
    assert_eq!(cut.truncated, 2);
    assert_eq!(tokenizer.tokenize("a photo", 1).ids, [49407]);
    assert_eq!(tokenizer.tokenize("a photo", 0).truncated, 4);
}

#[test]
fn empty_texts_have_start_and_end_only() {
    let tokenizer = Tokenizer::openai();
    for text in ["", " ", "\n\u{3000}\t", "&#32;", "\u{feff}"] {
        assert_eq!(tokenizer.encode(text), [49406, 49407], "{text:?}");
    }
}

#[test]
fn unknown_ids_decode_to_the_replacement_character() {
    let tokenizer = Tokenizer::openai_prefix(514).unwrap();
    assert_eq!(tokenizer.decode(&[514, u32::MAX]), "\u{fffd}\u{fffd}");
    assert_eq!(tokenizer.decode(&[512, 513]), "<|startoftext|><|endoftext|>");
}

#[test]
fn vocabulary_sizes_out_of_range_are_refused() {
    for size in [0, 513, 49_409, usize::MAX] {
        let error = Tokenizer::openai_prefix(size).unwrap_err();
        assert!(matches!(error, TokenizerError::VocabSize { .. }));
        assert!(error.hint().is_some());
    }
    assert_eq!(Tokenizer::openai_prefix(49_408).unwrap().start_and_end(), Some([49_406, 49_407]));
}

/// Any text goes through; ids are in range; a text decoded and encoded again keeps its ids once
/// cleaning has nothing left to do.
#[test]
fn random_texts_go_through() {
    let tokenizer = Tokenizer::openai_prefix(2000).unwrap();
    let parts = [
        "&",
        "&amp",
        "&#x",
        "&#65",
        ";",
        "&lt;",
        "\u{1b}[",
        "31m",
        "Ã",
        "Â",
        " ",
        "â€",
        "œ",
        "\u{9d}",
        "\u{fffd}",
        "?",
        "\u{1a}",
        "í",
        "\u{a0}",
        "½",
        "Σ",
        "'",
        "ſ",
        "<|endoftext|>",
        "<",
        "\n",
        "\r",
        "\u{345}",
        "\u{301}",
        "ﬁ",
        "Ｆ",
        "ﾞ",
        "ｶ",
        "\u{1f600}",
        "\u{200d}",
        "İ",
        "9",
        "x",
        "À",
        "\u{80}",
    ];
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for _ in 0..3000 {
        let mut text = String::new();
        for _ in 0..random.below(24) {
            if random.below(4) == 0 {
                let code = random.below(0x11_0000) as u32;
                text.extend(char::from_u32(code >> random.below(16)));
            } else {
                text.push_str(parts[random.below(parts.len())]);
            }
        }
        let ids = tokenizer.encode(&text);
        assert!(ids.iter().all(|&id| id < 2000), "{text:?}");
        let _ = tokenizer.decode(&ids[1..ids.len() - 1]);
    }
}

/// No quadratic time: these take seconds in the reference, or for ever.
#[test]
fn hostile_texts_end_soon() {
    let tokenizer = Tokenizer::openai();
    let n = 1 << 20;
    let texts = [
        "a".repeat(n),
        "ab".repeat(n / 2),
        "!".repeat(n),
        "&".repeat(n),
        format!("&{}", "amp;".repeat(n / 4)),
        "Ã".repeat(n / 2),
        "Ãƒ".repeat(n / 4),
        "\u{1b}[".repeat(n / 2),
        format!("a{}", "\u{301}\u{316}".repeat(n / 4)),
        "Σ.".repeat(n / 3),
        "\n".repeat(n),
    ];
    for text in &texts {
        let start = std::time::Instant::now();
        let ids = tokenizer.encode(text);
        let seconds = start.elapsed().as_secs_f64();
        assert!(seconds < 60.0, "{seconds} s, {} ids", ids.len());
    }
}

#[test]
fn own_hugging_face_file_is_read_back() {
    for size in [514, 515, 4096] {
        let tokenizer = Tokenizer::openai_prefix(size).unwrap();
        let read = Tokenizer::from_hf_json(&tokenizer.to_hf_json()).unwrap();
        assert_eq!(read.vocab_size(), size);
        let text = "A photo of 3 caf\u{e9}s, isn't it?";
        assert_eq!(read.encode(text), tokenizer.encode(text));
    }
}

#[test]
fn other_hugging_face_files_are_refused() {
    let tokenizer = Tokenizer::openai_prefix(520).unwrap();
    let good: Value = serde_json::from_str(&tokenizer.to_hf_json()).unwrap();
    let change = |pointer: &str, value: Value| {
        let mut changed = good.clone();
        *changed.pointer_mut(pointer).unwrap() = value;
        Tokenizer::from_hf_json(&changed.to_string()).unwrap_err().to_string()
    };
    let cases = [
        ("/model/type", json!("Unigram"), "`model.type`"),
        ("/model/merges", json!("i n"), "`model.merges`"),
        ("/model/merges/1", json!(7), "position 1"),
        ("/model/merges/1", json!("i n"), "two origins"),
        ("/model/merges/0", json!("i nothing"), "unknown symbol `nothing`"),
        ("/model/vocab/a", json!(3), "`model.vocab.a`"),
        ("/model/vocab", json!({}), "`model.vocab.!`"),
        ("/normalizer", json!(null), "`normalizer`"),
        ("/added_tokens/1/id", json!(0), "`added_tokens.1.id`"),
        ("/added_tokens", json!([]), "`added_tokens`"),
        ("/version", json!([[[[]]]]), "`version`"),
    ];
    for (pointer, value, expected) in cases {
        let message = change(pointer, value);
        assert!(message.contains(expected), "{pointer}: {message}");
    }
    for text in ["", "[]", "null", "{", "{\"model\":{\"merges\":{}}}", &"[".repeat(100_000)] {
        assert!(Tokenizer::from_hf_json(text).is_err());
    }
}

#[test]
fn a_tokenizer_can_be_shared_between_threads() {
    fn assert_shareable<T: Send + Sync + Clone>() {}
    assert_shareable::<Tokenizer>();
}

/// The Rust side of `fixtures/tokenizer/compare.py` and `check_hf.py`: reads JSON strings, one a
/// line, and writes what becomes of them.
#[test]
#[ignore = "needs FERROCLIP_TOKENIZER_IN and FERROCLIP_TOKENIZER_OUT"]
fn encode_file() {
    let path = |name: &str| PathBuf::from(std::env::var_os(name).expect("variable is set"));
    let size = std::env::var("FERROCLIP_TOKENIZER_VOCAB").ok();
    let tokenizer = size.map_or_else(Tokenizer::openai, |size| {
        Tokenizer::openai_prefix(size.parse().unwrap()).unwrap()
    });
    let out = path("FERROCLIP_TOKENIZER_OUT");
    let mut lines = BufWriter::new(std::fs::File::create(&out).unwrap());
    for text in read_lines(&path("FERROCLIP_TOKENIZER_IN")) {
        let text = text.as_str().unwrap();
        let ids = tokenizer.encode(text);
        let is_bad = looks_like_mojibake(text);
        let line = json!({"ids": ids[1..ids.len() - 1], "clean": clean(text), "bad": is_bad});
        writeln!(lines, "{line}").unwrap();
    }
    std::fs::write(out.with_extension("tokenizer.json"), tokenizer.to_hf_json()).unwrap();
    let config = tokenizer.to_hf_config_json(77);
    std::fs::write(out.with_extension("tokenizer_config.json"), config).unwrap();
}
