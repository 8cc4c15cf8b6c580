//! The vocabulary of a model on disk.

use std::path::Path;

use super::{TOKENIZER_CONFIG_FILE, TOKENIZER_FILE};
use crate::config::{Cleaning, Config, TextPool, TokenizerConfig};
use crate::error::Error;
use crate::files::{is_there, read_text};
use crate::tokenizer::{Normalization, Tokenizer, TokenizerError, read_config};

/// Longest vocabulary, and longest list of special tokens, that is read.
const MAX_TOKENIZER_BYTES: u64 = 64 << 20;
const MAX_CONFIG_BYTES: u64 = 1 << 20;
/// The merges of transformers' slow tokenizer.
pub(super) const MERGES_FILE: &str = "merges.txt";
/// The class of transformers that takes punctuation out of texts.
const SIGLIP_CLASS: &str = "SiglipTokenizer";

/// Whose directory it is: that decides how texts are prepared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Conventions {
    OpenClip,
    Transformers,
}

/// The tokenizer of the model in this directory.
pub(super) fn load(
    folder: &Path,
    config: &Config,
    conventions: Conventions,
) -> Result<Tokenizer, Error> {
    match conventions {
        Conventions::OpenClip => of_open_clip(folder, config),
        Conventions::Transformers => of_transformers(folder, config),
    }
}

/// What is assumed of texts where files are missing. The vocabulary itself is not read.
pub(super) fn assumed(
    folder: &Path,
    config: &Config,
    conventions: Conventions,
) -> Result<Option<String>, Error> {
    let (text, is_there) = (&config.model.text_cfg, |name: &str| is_there(&folder.join(name)));
    let has_own = match conventions {
        Conventions::OpenClip => text.hf_tokenizer_name.is_some(),
        Conventions::Transformers => text.pool_type == TextPool::Last,
    };
    let assumed = match conventions {
        _ if has_own && !is_there(TOKENIZER_CONFIG_FILE)? => format!(
            "the preparation of texts: as `{TOKENIZER_FILE}` alone says, there is no `{TOKENIZER_CONFIG_FILE}`"
        ),
        Conventions::Transformers
            if !has_own && !is_there(TOKENIZER_FILE)? && !is_there(MERGES_FILE)? =>
        {
            format!(
                "the vocabulary: OpenAI's, there is neither `{TOKENIZER_FILE}` nor `{MERGES_FILE}`"
            )
        }
        _ => return Ok(None),
    };
    Ok(Some(assumed))
}

/// As open_clip: OpenAI's own vocabulary unless the config names another, which the directory then holds.
fn of_open_clip(folder: &Path, config: &Config) -> Result<Tokenizer, Error> {
    let text = &config.model.text_cfg;
    if text.hf_tokenizer_name.is_none() {
        return Ok(Tokenizer::openai());
    }
    let path = folder.join(TOKENIZER_FILE);
    let json = read_text(&path, MAX_TOKENIZER_BYTES)?;
    if Tokenizer::wrote(&json) {
        return named(&path, Tokenizer::from_hf_json(&json));
    }
    let TokenizerConfig { clean, strip_sep_token } =
        text.tokenizer_kwargs.clone().unwrap_or_default();
    let normalization = match clean {
        Cleaning::Lower => Normalization::OpenAi,
        Cleaning::Whitespace => Normalization::Whitespace,
        Cleaning::Canonicalize => Normalization::Canonical,
    };
    let about = about(folder)?;
    let tokenizer = Tokenizer::from_json(&json, about.as_deref(), strip_sep_token);
    Ok(named(&path, tokenizer)?.normalized(normalization))
}

fn of_transformers(folder: &Path, config: &Config) -> Result<Tokenizer, Error> {
    let (whole, merges) = (folder.join(TOKENIZER_FILE), folder.join(MERGES_FILE));
    let about = about(folder)?;
    let settings =
        named(&folder.join(TOKENIZER_CONFIG_FILE), read_config(about.as_deref().unwrap_or("{}")))?;
    if config.model.text_cfg.pool_type == TextPool::Last {
        let json = read_text(&whole, MAX_TOKENIZER_BYTES)?;
        let class = settings["tokenizer_class"].as_str().unwrap_or_default();
        let normalization = match class.starts_with(SIGLIP_CLASS) {
            true => Normalization::HuggingFaceCanonical,
            false => Normalization::None,
        };
        let tokenizer = Tokenizer::from_json(&json, about.as_deref(), false);
        return Ok(named(&whole, tokenizer)?.normalized(normalization));
    }
    let tokenizer = if is_there(&whole)? {
        let json = read_text(&whole, MAX_TOKENIZER_BYTES)?;
        named(&whole, Tokenizer::from_transformers_json(&json))?
    } else if is_there(&merges)? {
        named(&merges, Tokenizer::from_merges(&read_text(&merges, MAX_TOKENIZER_BYTES)?))?
    } else {
        Tokenizer::openai()
    };
    Ok(tokenizer.normalized(Normalization::HuggingFace))
}

/// The names of special tokens, if the directory has them.
fn about(folder: &Path) -> Result<Option<String>, Error> {
    let path = folder.join(TOKENIZER_CONFIG_FILE);
    match is_there(&path)? {
        true => read_text(&path, MAX_CONFIG_BYTES).map(Some),
        false => Ok(None),
    }
}

fn named<T>(path: &Path, found: Result<T, TokenizerError>) -> Result<T, Error> {
    found.map_err(|source| Error::Tokenizer { origin: path.display().to_string(), source })
}
