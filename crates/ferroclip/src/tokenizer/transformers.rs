//! CLIP's vocabulary as transformers keeps it: `tokenizer.json` of its fast tokenizer, or `merges.txt`.
//!
//! Both hold the merges by rank. The ids follow from them, as OpenAI numbered them, and where the file says them as well
//! they are compared. What else `tokenizer.json` says (normaliser, pattern, special tokens) must be what
//! [`Normalization::HuggingFace`](super::Normalization) stands for.

use serde_json::{Value, json};

use super::bpe::{Bpe, WORD_END};
use super::hf::{added_token, normalizer, read_merges, unsupported};
use super::skim::{self, MAX_TREE};
use super::split::{END_TEXT, START_TEXT};
use super::{Tokenizer, TokenizerError, Vocabulary};

/// The pattern of transformers.
const PATTERN: &str = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

impl Tokenizer {
    /// Reads the `tokenizer.json` of a CLIP model of transformers.
    ///
    /// # Errors
    ///
    /// If the text is no JSON, or not that of CLIP's byte-level BPE.
    pub fn from_transformers_json(text: &str) -> Result<Self, TokenizerError> {
        skim::check(text, MAX_TREE)?;
        let found: Value = serde_json::from_str(text)?;
        let merges = &found["model"]["merges"];
        let merges = merges.as_array().ok_or_else(|| unsupported("model.merges"))?;
        // Newer files have pairs, older ones two symbols with a space between.
        let lines: Vec<Value> = merges.iter().map(joined).collect();
        let bpe = Bpe::new(read_merges(&lines)?);
        bpe.check_vocabulary(&found["model"]["vocab"])?;
        check_rules(&found)?;
        Ok(Self::with_bpe(bpe))
    }

    /// Reads the `merges.txt` of a CLIP model of transformers: a line with the version, then a merge on each.
    ///
    /// # Errors
    ///
    /// If a line is no merge.
    pub fn from_merges(text: &str) -> Result<Self, TokenizerError> {
        if text.lines().nth(MAX_TREE).is_some() {
            return Err(TokenizerError::Rules(format!("it has more than {MAX_TREE} merges")));
        }
        let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with("#version"));
        let lines: Vec<Value> = lines.map(Value::from).collect();
        Ok(Self::with_merges(read_merges(&lines)?))
    }

    /// The text of a `tokenizer.json` of transformers' `CLIPTokenizerFast`; of another vocabulary its own file.
    pub fn to_transformers_json(&self) -> String {
        match &self.vocabulary {
            Vocabulary::Bpe(bpe) => format!("{:#}\n", bpe.transformers_value()),
            Vocabulary::Loaded(loaded) => loaded.json().to_owned(),
        }
    }

    /// The text of its `tokenizer_config.json`.
    pub fn to_transformers_config_json(&self, context_length: usize) -> String {
        if let Vocabulary::Loaded(loaded) = &self.vocabulary {
            return loaded.config_json().to_owned();
        }
        let config = json!({
            "tokenizer_class": "CLIPTokenizer",
            "bos_token": START_TEXT,
            "eos_token": END_TEXT,
            "unk_token": END_TEXT,
            "pad_token": END_TEXT,
            "do_lower_case": true,
            "model_max_length": context_length,
        });
        format!("{config:#}\n")
    }
}

impl Bpe {
    fn transformers_value(&self) -> Value {
        let symbols = self.symbol_texts();
        let special = [(START_TEXT, self.start_id()), (END_TEXT, self.end_id())];
        let mut vocab = serde_json::Map::new();
        let ids = symbols.iter().map(String::as_str).zip(0..).chain(special);
        vocab.extend(ids.map(|(symbol, id): (&str, u32)| (symbol.to_owned(), Value::from(id))));
        let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
        json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": special.map(|(text, id)| added_token(text, id)),
            "normalizer": normalizer(),
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Removed", "invert": true},
                byte_level.clone(),
            ]},
            "post_processor": {
                "type": "RobertaProcessing",
                "sep": [END_TEXT, self.end_id()],
                "cls": [START_TEXT, self.start_id()],
                "trim_offsets": false,
                "add_prefix_space": false,
            },
            "decoder": byte_level,
            "model": self.hf_model(vocab, &symbols),
        })
    }

    /// The ids that the file gives its symbols are those that follow from its merges.
    fn check_vocabulary(&self, found: &Value) -> Result<(), TokenizerError> {
        let found = found.as_object().ok_or_else(|| unsupported("model.vocab"))?;
        let special = [(START_TEXT, self.start_id()), (END_TEXT, self.end_id())];
        let symbols = self.symbol_texts();
        let symbols = symbols.iter().map(String::as_str).zip(0..).chain(special);
        let mut known = 0;
        for (symbol, id) in symbols {
            if found.get(symbol).and_then(Value::as_u64) != Some(u64::from(id)) {
                return Err(unsupported(&format!("model.vocab.{symbol}")));
            }
            known += 1;
        }
        match found.len() == known {
            true => Ok(()),
            false => Err(unsupported("model.vocab")),
        }
    }
}

fn joined(merge: &Value) -> Value {
    match merge.as_array().map(Vec::as_slice) {
        Some([Value::String(left), Value::String(right)]) => Value::from(format!("{left} {right}")),
        _ => merge.clone(),
    }
}

/// The parts of the file that decide how a text is split.
fn check_rules(found: &Value) -> Result<(), TokenizerError> {
    let pattern = &found["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"];
    let model = &found["model"];
    let rules = [
        ("normalizer", found["normalizer"] == normalizer()),
        ("pre_tokenizer", pattern.as_str().is_some_and(|found| found.ends_with(PATTERN))),
        ("model.type", model["type"] == "BPE"),
        ("model.end_of_word_suffix", model["end_of_word_suffix"] == WORD_END),
        ("model.byte_fallback", model["byte_fallback"] != true),
        ("model.ignore_merges", model["ignore_merges"] != true),
    ];
    match rules.iter().find(|(_, as_known)| !as_known) {
        Some((field, _)) => Err(unsupported(field)),
        None => Ok(()),
    }
}
