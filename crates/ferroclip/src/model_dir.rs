//! A model on disk: open_clip's directory layout.
//!
//! | file | holds |
//! |---|---|
//! | `open_clip_config.json` | `model_cfg`, `preprocess_cfg` |
//! | `open_clip_model.safetensors` | the weights |
//! | `tokenizer.json`, `tokenizer_config.json` | the vocabulary, read where the config names one |
//!
//! As in open_clip, a config without `hf_tokenizer_name` means OpenAI's own vocabulary.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::builtin;
use crate::checkpoint::{FloatFormat, TensorReader};
use crate::config::Config;
use crate::error::Error;
use crate::files::{read_text, sibling, sync_directory, write_atomically};
use crate::param::Weights;
use crate::tokenizer::Tokenizer;

const CONFIG_FILE: &str = "open_clip_config.json";
const WEIGHTS_FILE: &str = "open_clip_model.safetensors";
const TOKENIZER_FILE: &str = "tokenizer.json";
const TOKENIZER_CONFIG_FILE: &str = "tokenizer_config.json";
/// Longest config and longest vocabulary that are read.
const MAX_CONFIG_BYTES: u64 = 1 << 20;
const MAX_TOKENIZER_BYTES: u64 = 64 << 20;

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
    /// Reads a model directory, or a `.safetensors` file beside its `open_clip_config.json`.
    ///
    /// # Errors
    /// When a file is missing or damaged, or the files do not belong together.
    pub fn load(path: &Path) -> Result<ModelFiles, Error> {
        let (folder, weights_path) = locate(path)?;
        let config = load_config(&folder)?;
        let tokenizer = load_tokenizer(&folder, &config)?;
        let weights = Weights::load_for(&weights_path, &config.model)?;
        Ok(ModelFiles { config, weights, tokenizer })
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
        if folder.is_dir() {
            return self.write_into(folder, format);
        }
        let temporary = sibling(folder, "tmp");
        let write = || {
            fs::create_dir_all(&temporary).map_err(|e| Error::io("create", folder, e))?;
            self.write_into(&temporary, format).map_err(|e| e.renamed(&temporary, folder))?;
            fs::rename(&temporary, folder).map_err(|e| Error::io("create", folder, e))
        };
        let result = write();
        if result.is_err() {
            // The first error is the one to report.
            let _ = fs::remove_dir_all(&temporary);
        }
        sync_directory(folder);
        result
    }

    fn write_into(&self, folder: &Path, format: FloatFormat) -> Result<(), Error> {
        let context_length = self.config.model.text_cfg.context_length;
        let texts = [
            (CONFIG_FILE, self.config.to_json()),
            (TOKENIZER_FILE, self.tokenizer.to_hf_json()),
            (TOKENIZER_CONFIG_FILE, self.tokenizer.to_hf_config_json(context_length)),
        ];
        for (name, text) in texts {
            write_atomically(&folder.join(name), |out| out.write_all(text.as_bytes()))?;
        }
        self.weights.save(&folder.join(WEIGHTS_FILE), format)
    }
}

/// The config and the tensors, of which only the header is read yet.
pub(crate) fn open(path: &Path) -> Result<(Config, TensorReader<File>), Error> {
    let (folder, weights_path) = locate(path)?;
    let config = load_config(&folder)?;
    let tensors = TensorReader::open(&weights_path, &config.model)?;
    Ok((config, tensors))
}

/// The tokenizer of the model at `path`.
pub(crate) fn load_tokenizer_of(path: &Path, config: &Config) -> Result<Tokenizer, Error> {
    load_tokenizer(&locate(path)?.0, config)
}

/// The directory of a model and its file of weights.
fn locate(path: &Path) -> Result<(PathBuf, PathBuf), Error> {
    let metadata = fs::metadata(path).map_err(|source| Error::io("open", path, source))?;
    if metadata.is_dir() {
        for name in [CONFIG_FILE, WEIGHTS_FILE] {
            if !path.join(name).is_file() {
                let reason = format!("there is no `{name}` in it");
                return Err(Error::NoModel { path: path.to_owned(), reason });
            }
        }
        return Ok((path.to_owned(), path.join(WEIGHTS_FILE)));
    }
    let folder = path.parent().unwrap_or(Path::new("")).to_owned();
    if !folder.join(CONFIG_FILE).is_file() {
        let reason = format!("there is no `{CONFIG_FILE}` beside it");
        return Err(Error::NoModel { path: path.to_owned(), reason });
    }
    Ok((folder, path.to_owned()))
}

fn load_config(folder: &Path) -> Result<Config, Error> {
    let path = folder.join(CONFIG_FILE);
    Config::from_json(&read_text(&path, MAX_CONFIG_BYTES)?, &path.display().to_string())
}

fn load_tokenizer(folder: &Path, config: &Config) -> Result<Tokenizer, Error> {
    if config.model.text_cfg.hf_tokenizer_name.is_none() {
        return Ok(Tokenizer::openai());
    }
    let path = folder.join(TOKENIZER_FILE);
    let json = read_text(&path, MAX_TOKENIZER_BYTES)?;
    Tokenizer::from_hf_json(&json)
        .map_err(|source| Error::Tokenizer { origin: path.display().to_string(), source })
}
