//! `tokenizer.json` of Hugging Face's `tokenizers`, which open_clip reads for vocabularies other
//! than OpenAI's whole one.
//!
//! The file holds no cleaning: open_clip does that itself when `text_cfg` says
//! `"tokenizer_kwargs": {"clean": "lower"}`. On cleaned text it gives our ids, with one exception:
//! a special string right behind punctuation (`!<|endoftext|>`) is special there, but ordinary text
//! in OpenAI's pattern and here. `fixtures/tokenizer/check_hf.py` shows it.
//!
//! Reading is strict: merges are taken from the file, and all the rest must be what we would
//! write for these merges.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::bpe::{Bpe, N_BYTE_SYMBOLS, WORD_END, symbol_char};
use super::skim::{self, MAX_TREE};
use super::split::{END_TEXT, START_TEXT};
use super::{Tokenizer, TokenizerError, Vocabulary};

/// A second name of id 0, so that it can be the padding without `!` in a text becoming special.
/// In capitals, so that no cleaned text holds it.
const PAD_TEXT: &str = "<|PAD|>";

/// OpenAI's pattern on text in lower case, with the effects of ignoring case (see `split`).
const SPLIT_PATTERN: &str = concat!(
    r"<\|[sſ]tartoftext\|>|<\|endoftext\|>|'[sſ]|'t|'re|'ve|'m|'ll|'d",
    r"|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}",
    "\u{345}]+"
);

impl Tokenizer {
    /// The text of `tokenizer.json`.
    pub fn to_hf_json(&self) -> String {
        match &self.vocabulary {
            Vocabulary::Bpe(bpe) => format!("{:#}\n", bpe.hf_value()),
            Vocabulary::Loaded(loaded) => loaded.json().to_owned(),
        }
    }

    /// The text of `tokenizer_config.json`, which names the special tokens for open_clip.
    pub fn to_hf_config_json(&self, context_length: usize) -> String {
        if let Vocabulary::Loaded(loaded) = &self.vocabulary {
            return loaded.config_json().to_owned();
        }
        let config = json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": START_TEXT,
            "eos_token": END_TEXT,
            "unk_token": END_TEXT,
            "pad_token": PAD_TEXT,
            "padding_side": "right",
            "truncation_side": "right",
            "clean_up_tokenization_spaces": false,
            "model_max_length": context_length,
        });
        format!("{config:#}\n")
    }

    /// Whether a `tokenizer.json` is one that [`Tokenizer::to_hf_json`] wrote, by a name that no other has.
    pub(crate) fn wrote(json: &str) -> bool {
        json.contains(PAD_TEXT)
    }

    /// Reads a `tokenizer.json` that [`Tokenizer::to_hf_json`] wrote.
    ///
    /// # Errors
    ///
    /// If the text is no JSON, or anything in it is not as ferroclip would write it.
    pub fn from_hf_json(text: &str) -> Result<Self, TokenizerError> {
        skim::check(text, MAX_TREE)?;
        let found: Value = serde_json::from_str(text)?;
        let merges =
            found["model"]["merges"].as_array().ok_or_else(|| unsupported("model.merges"))?;
        let bpe = Bpe::new(read_merges(merges)?);
        match first_difference(&bpe.hf_value(), &found) {
            None => Ok(Self::with_bpe(bpe)),
            Some(path) => Err(unsupported(&path)),
        }
    }
}

impl Bpe {
    fn hf_value(&self) -> Value {
        let symbols = self.symbol_texts();
        let mut vocab = serde_json::Map::new();
        vocab.extend(symbols.iter().zip(0..).map(|(s, id)| (s.clone(), Value::from(id))));
        for (text, id) in self.special_texts() {
            vocab.insert(text.to_owned(), id.into());
        }
        json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": self.special_texts().map(|(text, id)| added_token(text, id)),
            "normalizer": normalizer(),
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": SPLIT_PATTERN},
                 "behavior": "Removed", "invert": true},
                byte_level(),
            ]},
            "post_processor": self.hf_post_processor(),
            "decoder": byte_level(),
            "model": self.hf_model(vocab, &symbols),
        })
    }

    /// The section `model`: vocabulary, and the merges as two symbols with a space between.
    pub(super) fn hf_model(
        &self,
        vocab: serde_json::Map<String, Value>,
        symbols: &[String],
    ) -> Value {
        let merges = self.merges().iter();
        let merge =
            |&(a, b): &(u32, u32)| format!("{} {}", symbols[a as usize], symbols[b as usize]);
        let merges: Vec<String> = merges.map(merge).collect();
        json!({
            "type": "BPE",
            "dropout": null,
            "unk_token": END_TEXT,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": WORD_END,
            "fuse_unk": false,
            "byte_fallback": false,
            "ignore_merges": false,
            "vocab": vocab,
            "merges": merges,
        })
    }

    fn hf_post_processor(&self) -> Value {
        let special = |text: &str| json!({"SpecialToken": {"id": text, "type_id": 0}});
        let sequence = |id: &str| json!({"Sequence": {"id": id, "type_id": 0}});
        let (start, end) = (special(START_TEXT), special(END_TEXT));
        let known = |text: &str, id: u32| json!({"id": text, "ids": [id], "tokens": [text]});
        json!({
            "type": "TemplateProcessing",
            "single": [start, sequence("A"), end],
            "pair": [start, sequence("A"), end, start, sequence("B"), end],
            "special_tokens": {
                START_TEXT: known(START_TEXT, self.start_id()),
                END_TEXT: known(END_TEXT, self.end_id()),
            },
        })
    }

    fn special_texts(&self) -> [(&'static str, u32); 3] {
        [(PAD_TEXT, 0), (START_TEXT, self.start_id()), (END_TEXT, self.end_id())]
    }

    /// The texts of all symbols in the alphabet of GPT-2.
    pub(super) fn symbol_texts(&self) -> Vec<String> {
        let mut texts = byte_symbol_texts();
        for &(a, b) in self.merges() {
            texts.push(format!("{}{}", texts[a as usize], texts[b as usize]));
        }
        texts
    }
}

/// Composed characters, single spaces, small letters.
pub(super) fn normalizer() -> Value {
    json!({"type": "Sequence", "normalizers": [
        {"type": "NFC"},
        {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
        {"type": "Lowercase"},
    ]})
}

fn byte_level() -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false})
}

pub(super) fn added_token(text: &str, id: u32) -> Value {
    json!({
        "id": id,
        "content": text,
        "single_word": false,
        "lstrip": false,
        "rstrip": false,
        "normalized": false,
        "special": true,
    })
}

fn byte_symbol_texts() -> Vec<String> {
    let inside = (0..=u8::MAX).map(|s| symbol_char(s).to_string());
    let at_end = (0..=u8::MAX).map(|s| format!("{}{WORD_END}", symbol_char(s)));
    inside.chain(at_end).collect()
}

/// Resolves merges written as `left right`, each made of symbols that exist before it.
pub(super) fn read_merges(lines: &[Value]) -> Result<Vec<(u32, u32)>, TokenizerError> {
    let mut ids: HashMap<String, u32> = byte_symbol_texts().into_iter().zip(0..).collect();
    let mut merges = Vec::with_capacity(lines.len());
    for (position, line) in lines.iter().enumerate() {
        let bad = |reason: String| TokenizerError::Merge { position, reason };
        let (left, right) = line
            .as_str()
            .and_then(|s| s.split_once(' '))
            .ok_or_else(|| bad("expected two symbols with a space between".to_owned()))?;
        let id = |symbol: &str| {
            let known = ids.get(symbol).copied();
            known.ok_or_else(|| bad(format!("unknown symbol `{}`", shorten(symbol))))
        };
        merges.push((id(left)?, id(right)?));
        let whole = format!("{left}{right}");
        if ids.contains_key(&whole) {
            return Err(bad(format!("`{}` has two origins", shorten(&whole))));
        }
        let next_id = u32::try_from(N_BYTE_SYMBOLS + position);
        ids.insert(whole, next_id.map_err(|_| bad("too many merges".to_owned()))?);
    }
    Ok(merges)
}

/// A symbol of the file as an error message can show it.
fn shorten(symbol: &str) -> String {
    symbol.chars().take(40).flat_map(char::escape_debug).collect()
}

pub(super) fn unsupported(field: &str) -> TokenizerError {
    TokenizerError::Unsupported { field: field.to_owned() }
}

/// Path of the first field in which the two differ. As deep as `expected`.
fn first_difference(expected: &Value, found: &Value) -> Option<String> {
    let join = |key: &str, inner: String| match inner.is_empty() {
        true => key.to_owned(),
        false => format!("{key}.{inner}"),
    };
    match (expected, found) {
        (Value::Object(expected), Value::Object(found)) => {
            let missing = expected.iter().find_map(|(key, value)| match found.get(key) {
                Some(other) => first_difference(value, other).map(|inner| join(key, inner)),
                None => Some(key.clone()),
            });
            let is_extra = |key: &&String| !expected.contains_key(*key);
            missing.or_else(|| found.keys().find(is_extra).map(|key| shorten(key)))
        }
        (Value::Array(expected), Value::Array(found)) if expected.len() == found.len() => {
            let mut pairs = expected.iter().zip(found).enumerate();
            pairs.find_map(|(at, (expected, found))| {
                first_difference(expected, found).map(|inner| join(&at.to_string(), inner))
            })
        }
        _ => (expected != found).then(String::new),
    }
}
