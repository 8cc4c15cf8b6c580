//! The vocabulary of a model on disk.

use std::path::Path;

use super::TOKENIZER_FILE;
use crate::config::Config;
use crate::error::Error;
use crate::files::read_text;
use crate::tokenizer::{Normalization, Tokenizer};

/// Longest vocabulary that is read.
const MAX_TOKENIZER_BYTES: u64 = 64 << 20;
/// The merges of transformers' slow tokenizer.
const MERGES_FILE: &str = "merges.txt";

/// The tokenizer of the model in this directory.
pub(super) fn load(
    folder: &Path,
    config: &Config,
    normalization: Normalization,
) -> Result<Tokenizer, Error> {
    match normalization {
        Normalization::OpenAi if config.model.text_cfg.hf_tokenizer_name.is_none() => {
            Ok(Tokenizer::openai())
        }
        Normalization::OpenAi => read(&folder.join(TOKENIZER_FILE), Tokenizer::from_hf_json),
        Normalization::HuggingFace => of_transformers(folder),
    }
}

fn of_transformers(folder: &Path) -> Result<Tokenizer, Error> {
    let (whole, merges) = (folder.join(TOKENIZER_FILE), folder.join(MERGES_FILE));
    let tokenizer = if whole.is_file() {
        read(&whole, Tokenizer::from_transformers_json)?
    } else if merges.is_file() {
        read(&merges, Tokenizer::from_merges)?
    } else {
        Tokenizer::openai()
    };
    Ok(tokenizer.normalized(Normalization::HuggingFace))
}

fn read(
    path: &Path,
    parse: fn(&str) -> Result<Tokenizer, crate::tokenizer::TokenizerError>,
) -> Result<Tokenizer, Error> {
    let text = read_text(path, MAX_TOKENIZER_BYTES)?;
    parse(&text).map_err(|source| Error::Tokenizer { origin: path.display().to_string(), source })
}
