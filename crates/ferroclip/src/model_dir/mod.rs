//! A model on disk. What is written is open_clip's directory layout:
//!
//! | file | holds |
//! |---|---|
//! | `open_clip_config.json` | `model_cfg`, `preprocess_cfg` |
//! | `open_clip_model.safetensors` | the weights |
//! | `tokenizer.json`, `tokenizer_config.json` | the vocabulary, read where the config names one |
//!
//! As in open_clip, a config without `hf_tokenizer_name` means OpenAI's own vocabulary. What is read besides is found
//! by its content, see [`found`].

use std::fs;
use std::io::Write;
use std::path::Path;

use crate::builtin;
use crate::checkpoint::FloatFormat;
use crate::config::{Config, Towers};
use crate::error::Error;
use crate::files::{sibling, sync_directory, write_atomically};
use crate::param::Weights;
use crate::tokenizer::Tokenizer;

mod convert;
mod found;
mod hugging_face;
mod inspect;
mod layout;
mod tokenizer;

pub use convert::{Converted, Program, convert};
pub use found::Origin;
pub(crate) use found::{Found, open, open_with};
pub use inspect::{Inspection, inspect};

const CONFIG_FILE: &str = "open_clip_config.json";
const WEIGHTS_FILE: &str = "open_clip_model.safetensors";
const TOKENIZER_FILE: &str = "tokenizer.json";
const TOKENIZER_CONFIG_FILE: &str = "tokenizer_config.json";

/// What a model consists of.
#[derive(Clone, Debug)]
pub struct ModelFiles {
    /// Architecture and image pipeline.
    pub config: Config,
    /// Parameters.
    pub weights: Weights,
    /// Vocabulary.
    pub tokenizer: Tokenizer,
}

impl ModelFiles {
    /// Reads a model directory or file, as [`Clip::open`](crate::Clip::open) does.
    ///
    /// # Errors
    /// When a file is missing or damaged, or the files do not belong together.
    pub fn load(path: &Path) -> Result<ModelFiles, Error> {
        let found = open(path)?;
        found.needs(Towers::Both, path)?;
        let tokenizer = found.tokenizer()?;
        let weights = found.tensors.read_all()?;
        Ok(ModelFiles { config: found.config, weights, tokenizer })
    }

    /// The model inside the library, `draw-mini`.
    ///
    /// # Errors
    /// None, in a build that passed its tests.
    pub fn builtin() -> Result<ModelFiles, Error> {
        builtin::draw_mini()
    }

    /// Whether a model of these parts can be opened.
    ///
    /// # Errors
    /// When the weights are not those that the config asks for, or one is NaN, infinite or
    /// impossible.
    pub fn check(&self) -> Result<(), Error> {
        let origin = "the parts given".to_owned();
        let differences = self.weights.differences(&self.config.model);
        if !differences.is_empty() {
            return Err(Error::Mismatch { origin, differences });
        }
        match self.weights.first_impossible() {
            Some((tensor, found)) => {
                Err(Error::ImpossibleWeight { origin, tensor: tensor.to_owned(), found })
            }
            None => Ok(()),
        }
    }

    /// Writes a model directory. A new directory appears whole or not at all; in an existing one
    /// each file is replaced whole.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn save(&self, folder: &Path, format: FloatFormat) -> Result<(), Error> {
        match folder.is_dir() {
            true => self.write_into(folder, format),
            false => new_folder(folder, |temporary| self.write_into(temporary, format)),
        }
    }

    fn write_into(&self, folder: &Path, format: FloatFormat) -> Result<(), Error> {
        let context_length = self.config.model.text_cfg.context_length;
        write_text(folder, CONFIG_FILE, &self.config.to_json())?;
        write_text(folder, TOKENIZER_FILE, &self.tokenizer.to_hf_json())?;
        let about_tokens = self.tokenizer.to_hf_config_json(context_length);
        write_text(folder, TOKENIZER_CONFIG_FILE, &about_tokens)?;
        self.weights.save_model(&folder.join(WEIGHTS_FILE), &self.config.model, format)
    }
}

fn write_text(folder: &Path, name: &str, text: &str) -> Result<(), Error> {
    write_atomically(&folder.join(name), |out| out.write_all(text.as_bytes()))
}

/// A directory that `write` fills under a temporary name: it appears whole or not at all.
pub(crate) fn new_folder(
    folder: &Path,
    write: impl FnOnce(&Path) -> Result<(), Error>,
) -> Result<(), Error> {
    let temporary = sibling(folder, "tmp");
    let fill = || {
        fs::create_dir_all(&temporary).map_err(|e| Error::io("create", folder, e))?;
        write(&temporary).map_err(|e| e.renamed(&temporary, folder))?;
        fs::rename(&temporary, folder).map_err(|e| Error::io("create", folder, e))
    };
    let result = fill();
    if result.is_err() {
        // The first error is the one to report.
        let _ = fs::remove_dir_all(&temporary);
    }
    sync_directory(folder);
    result
}
