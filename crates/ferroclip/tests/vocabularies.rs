//! Vocabularies of other kinds than OpenAI's: `fixtures/checkpoints/vocabularies` holds small ones and the ids that open_clip's
//! `HFTokenizer` and transformers' `CLIPTokenizerFast` give with them.

use std::path::{Path, PathBuf};

use ferroclip::Tokenizer;
use ferroclip::tokenizer::{Normalization, TokenizerError};
use serde_json::Value;

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/checkpoints/vocabularies").join(name)
}

fn read(name: &str, file: &str) -> String {
    std::fs::read_to_string(folder(name).join(file)).expect("a fixture")
}

fn check(name: &str, tokenizer: &Tokenizer, pads: bool) {
    let document: Value = serde_json::from_str(&read(name, "ids.json")).expect("JSON");
    let length = document["context_length"].as_u64().expect("a number") as usize;
    let texts = document["texts"].as_array().expect("texts");
    assert!(texts.len() > 10);
    for row in texts {
        let text = row["text"].as_str().expect("a text");
        let mut ids = tokenizer.tokenize(text, length).ids;
        if pads {
            ids.resize(length, tokenizer.pad_id());
        }
        let expected: Vec<u64> =
            row["ids"].as_array().expect("ids").iter().filter_map(Value::as_u64).collect();
        let ids: Vec<u64> = ids.into_iter().map(u64::from).collect();
        assert_eq!(ids, expected, "{name}: {text:?}");
    }
}

#[test]
fn ids_are_open_clips() {
    for (name, normalization, strip) in [
        ("unigram", Normalization::Canonical, false),
        ("bpe-bytes", Normalization::Canonical, false),
        ("wordpiece", Normalization::Whitespace, true),
    ] {
        let (json, about) = (read(name, "tokenizer.json"), read(name, "tokenizer_config.json"));
        let tokenizer = Tokenizer::from_json(&json, Some(&about), strip).expect(name);
        assert_eq!(tokenizer.to_hf_json(), json, "it is written as it was");
        check(name, &tokenizer.normalized(normalization), true);
    }
}

#[test]
fn ids_of_clip_are_those_of_transformers() {
    let json = read("clip", "tokenizer.json");
    let tokenizer = Tokenizer::from_transformers_json(&json).expect("CLIP's rules");
    let again = Tokenizer::from_transformers_json(&tokenizer.to_transformers_json());
    check("clip", &again.expect("read back").normalized(Normalization::HuggingFace), false);
    check("clip", &tokenizer.normalized(Normalization::HuggingFace), false);
}

/// What transformers would follow and give other ids by.
#[test]
fn settings_that_change_ids_are_refused() {
    let (json, about) =
        (read("unigram", "tokenizer.json"), read("unigram", "tokenizer_config.json"));
    let with = |key: &str, value: Value| {
        let mut about: Value = serde_json::from_str(&about).expect("JSON");
        about[key] = value;
        Tokenizer::from_json(&json, Some(&about.to_string()), false)
    };
    assert!(with("padding_side", "right".into()).is_ok());
    for key in ["padding_side", "truncation_side"] {
        let shown = with(key, "left".into()).expect_err("on the left").to_string();
        assert!(shown.contains(key), "{shown}");
    }
    let added = |id: &str, content: &str| {
        with("added_tokens_decoder", serde_json::json!({id: {"content": content}}))
    };
    let known = Tokenizer::from_json(&json, Some(&about), false).expect("a vocabulary").pad_id();
    assert!(added(&known.to_string(), "</s>").is_ok());
    let shown = added("9999", "<new>").expect_err("nobody defines it").to_string();
    assert!(shown.contains("<new>"), "{shown}");
}

/// A rule that is allowed and a long text would make gigabytes together.
#[test]
fn texts_are_cut_before_rules_make_them_long() {
    let mut json: Value = serde_json::from_str(&read("bpe-bytes", "tokenizer.json")).expect("JSON");
    let content = "b ".repeat(2000);
    let pattern = serde_json::json!({"String": "a"});
    json["normalizer"] =
        serde_json::json!({"type": "Replace", "pattern": pattern, "content": content});
    let tokenizer = Tokenizer::from_json(&json.to_string(), None, false).expect("rules");
    let [short, long] =
        ["a".repeat(8), "a".repeat(100_000)].map(|text| tokenizer.tokenize(&text, 8));
    assert_eq!(short.ids, long.ids);
    // Of 1 MiB, not of 400 MB.
    assert!((1..1 << 20).contains(&long.truncated), "{}", long.truncated);
}

/// Ids that rules put around texts need rows of the table, whether the vocabulary has them or not.
#[test]
fn ids_around_texts_count_as_the_vocabularys() {
    let mut json: Value = serde_json::from_str(&read("bpe-bytes", "tokenizer.json")).expect("JSON");
    json["post_processor"] = serde_json::json!({
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "</s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [],
        "special_tokens": {"</s>": {"id": "</s>", "ids": [60_000], "tokens": ["</s>"]}},
    });
    let tokenizer = Tokenizer::from_json(&json.to_string(), None, false).expect("rules");
    assert!(tokenizer.tokenize("a", 8).ids.contains(&60_000));
    assert_eq!(tokenizer.vocab_size(), 60_001);
}

#[test]
fn bad_vocabularies_are_an_error() {
    let whole = read("unigram", "tokenizer.json");
    for tenth in 0..10 {
        let cut: String = whole.chars().take(whole.len() * tenth / 10).collect();
        assert!(Tokenizer::from_json(&cut, None, false).is_err(), "{tenth}");
        assert!(Tokenizer::from_transformers_json(&cut).is_err(), "{tenth}");
    }
    let refused = |json: &str| Tokenizer::from_json(json, None, false).expect_err("no rules");
    for json in ["{}", "[]", r#"{"model": {"type": "Magic"}}"#, "null"] {
        let error = refused(json);
        assert!(
            matches!(error, TokenizerError::Rules(_)) && error.hint().is_some(),
            "{json}: {error}"
        );
    }
    // Rules of another kind are not taken for CLIP's.
    let error = Tokenizer::from_transformers_json(&whole).expect_err("no merges");
    assert!(error.to_string().contains("model.merges"), "{error}");
    let clip = read("clip", "tokenizer.json");
    for (from, to) in [
        ("\"NFC\"", "\"NFD\""),
        ("</w>", "</x>"),
        ("\"byte_fallback\": false", "\"byte_fallback\": true"),
    ] {
        assert!(Tokenizer::from_transformers_json(&clip.replace(from, to)).is_err(), "{to}");
    }
}
