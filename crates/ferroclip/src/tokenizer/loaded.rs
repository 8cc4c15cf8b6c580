//! Vocabularies of any kind, from a `tokenizer.json`: SigLIP's, SigLIP2's, CLIPA's, multilingual ones. The `tokenizers`
//! crate, transformers' own, does the work; what stands beside the file decides cleaning and padding.

use serde_json::Value;
use tokenizers::utils::truncation::TruncationDirection;
use tokenizers::{Encoding, PostProcessor, Tokenizer as Inner};

use super::rules::{self, caught};
use super::{TokenizerError, Tokens};

/// Names of the padding, where `tokenizer_config.json` gives none.
const PAD_NAMES: [&str; 3] = ["<pad>", "[PAD]", "</s>"];

/// Bytes that the rules may make of a text. What lies behind them is cut off, far behind what any tower reads.
const MAX_BYTES: usize = 1 << 20;

/// A vocabulary with the rules that its file holds.
pub(super) struct Loaded {
    inner: Inner,
    /// The file, to be written again as it was.
    json: String,
    /// `tokenizer_config.json`.
    about: String,
    pad: u32,
    /// One more than the largest id, of those that are put around texts, too.
    vocab_size: usize,
    /// Bytes that are read of a text.
    longest: usize,
    /// The separator, where it is to become padding (CLIPA's).
    stripped: Option<u32>,
}

impl Loaded {
    /// Reads a `tokenizer.json`, and of `tokenizer_config.json` the names of special tokens.
    pub(super) fn new(
        json: &str,
        about: Option<&str>,
        strip_sep_token: bool,
    ) -> Result<Loaded, TokenizerError> {
        let (inner, growth) = rules::read(json)?;
        let about = about.unwrap_or("{}");
        let names = read_config(about)?;
        check_added(&names, &inner)?;
        let special = |key: &str| {
            let name = names[key].as_str().or_else(|| names[key]["content"].as_str());
            name.and_then(|name| inner.token_to_id(name))
        };
        let usual = || PAD_NAMES.iter().find_map(|name| inner.token_to_id(name));
        let pad = special("pad_token").or_else(usual).unwrap_or(0);
        let separator = || special("sep_token").or_else(|| inner.token_to_id("[SEP]"));
        let stripped = if strip_sep_token { separator() } else { None };
        // Not their number: ids may have gaps.
        let around = caught(|| inner.post_process(Encoding::default(), None, true))?;
        let around = around.map(|around| around.get_ids().to_vec()).unwrap_or_default();
        let largest = inner.get_vocab(true).into_values().chain(around).max();
        let vocab_size = largest.map_or(0, |id| id as usize + 1);
        let (json, about) = (json.to_owned(), about.to_owned());
        let longest = MAX_BYTES / growth.max(1);
        Ok(Loaded { inner, json, about, pad, vocab_size, longest, stripped })
    }

    pub(super) fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// The id that fills texts up.
    pub(super) fn pad(&self) -> u32 {
        self.pad
    }

    pub(super) fn json(&self) -> &str {
        &self.json
    }

    pub(super) fn config_json(&self) -> &str {
        &self.about
    }

    /// The ids of a prepared text, cut to `limit`: special ones at its ends stay. There is at least one.
    ///
    /// The rules of a file can fail on a text (an unknown symbol without a token for it); it is then read as the empty
    /// text, and counted as cut.
    pub(super) fn encode(&self, text: &str, limit: usize) -> Tokens {
        let found = caught(|| self.ids(text, limit));
        let (mut ids, truncated) = found.unwrap_or_else(|_| (Vec::new(), 1));
        if let Some(separator) = self.stripped {
            // As open_clip: zero, which is the padding there.
            ids.iter_mut().filter(|id| **id == separator).for_each(|id| *id = 0);
        }
        ids.truncate(limit);
        if ids.is_empty() {
            ids.push(self.pad);
        }
        Tokens { ids, truncated }
    }

    /// The ids of a text by the rules of the file, and how many were cut.
    fn ids(&self, text: &str, limit: usize) -> (Vec<u32>, usize) {
        let added = self.inner.get_post_processor().map_or(0, |p| p.added_tokens(false));
        let read = &text[..text.floor_char_boundary(self.longest)];
        let (mut encoding, lost) = match self.inner.encode(read, false) {
            Ok(encoding) => (encoding, usize::from(read.len() < text.len())),
            Err(_) => (Encoding::default(), 1),
        };
        let room = limit.saturating_sub(added);
        let truncated = encoding.len().saturating_sub(room) + lost;
        if encoding.len() > room {
            encoding.truncate(room, 0, TruncationDirection::Right);
        }
        let whole = self.inner.post_process(encoding, None, true);
        let ids = whole.map(|encoding| encoding.get_ids().to_vec()).unwrap_or_default();
        (ids, truncated)
    }

    pub(super) fn decode(&self, ids: &[u32]) -> String {
        caught(|| self.inner.decode(ids, false).unwrap_or_default()).unwrap_or_default()
    }
}

/// A `tokenizer_config.json` that cuts and fills up texts where this library does it.
pub(crate) fn read_config(json: &str) -> Result<Value, TokenizerError> {
    let config: Value = serde_json::from_str(json)?;
    for key in ["padding_side", "truncation_side"] {
        if let Some(side) = config[key].as_str().filter(|side| *side != "right") {
            let side = side.escape_debug();
            return Err(TokenizerError::Config(format!("`{key}`: `{side}`, expected `right`")));
        }
    }
    Ok(config)
}

/// Whether the tokens that `tokenizer_config.json` adds are those of the vocabulary.
fn check_added(config: &Value, inner: &Inner) -> Result<(), TokenizerError> {
    for (id, token) in config["added_tokens_decoder"].as_object().into_iter().flatten() {
        let content = token["content"].as_str().unwrap_or_default();
        let known = inner.token_to_id(content).map(|id| id.to_string());
        if known.as_ref() != Some(id) {
            return Err(TokenizerError::Config(format!(
                "`added_tokens_decoder`: `{}` is {}, in `tokenizer.json` {}",
                content.escape_debug(),
                id.escape_debug(),
                known.as_deref().unwrap_or("nothing")
            )));
        }
    }
    Ok(())
}
