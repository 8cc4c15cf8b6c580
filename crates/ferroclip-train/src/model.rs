//! The model that a run begins with.

use std::path::Path;

use ferroclip::{Cleaning, Clip, Config, ModelFiles, TokenizerConfig, Weights};

use crate::config::TrainConfig;
use crate::error::TrainError;

/// Entries of OpenAI's vocabulary: a model with another one carries its own.
const OPENAI_VOCAB_SIZE: usize = 49_408;
/// The largest config file.
const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// A preset or a JSON file with weights drawn from the seed, or a model directory as it is.
pub(crate) fn start(config: &TrainConfig) -> Result<ModelFiles, TrainError> {
    let (section, seed) = (&config.model, config.run.seed);
    let path = Path::new(&section.config);
    let is_preset = Config::preset_names().any(|name| name == section.config);
    let mut files = if !is_preset && path.is_dir() {
        ModelFiles::load(path)?
    } else if is_preset || !path.exists() {
        fresh(Config::preset(&section.config)?, seed)?
    } else {
        let metadata = std::fs::metadata(path).map_err(TrainError::io("read", path))?;
        if metadata.len() > MAX_CONFIG_BYTES {
            let reason =
                format!("`model.config` is a file of {} bytes, no JSON config", metadata.len());
            return Err(TrainError::config(&section.config, reason));
        }
        let json = std::fs::read_to_string(path).map_err(TrainError::io("read", path))?;
        fresh(Config::from_json(&json, &section.config)?, seed)?
    };
    let checked = config.validate_for(&files.config.model);
    checked.map_err(|reason| TrainError::Unfit { reason })?;
    if !section.templates.is_empty() {
        files.config.templates.clone_from(&section.templates);
    }
    Ok(files)
}

fn fresh(mut config: Config, seed: u64) -> Result<ModelFiles, TrainError> {
    let tokenizer = config.new_tokenizer()?;
    let text = &mut config.model.text_cfg;
    if text.vocab_size != OPENAI_VOCAB_SIZE && text.hf_tokenizer_name.is_none() {
        // Otherwise readers would take OpenAI's vocabulary instead of the `tokenizer.json`.
        text.hf_tokenizer_name = Some("ferroclip".to_owned());
        text.tokenizer_kwargs =
            Some(TokenizerConfig { clean: Cleaning::Lower, strip_sep_token: false });
    }
    let weights = ferroclip::init(&config.model, seed);
    Ok(ModelFiles { config, weights, tokenizer })
}

/// The model with these weights.
pub(crate) fn with_weights(files: &ModelFiles, weights: &Weights) -> ModelFiles {
    let ModelFiles { config, tokenizer, .. } = files;
    ModelFiles { config: config.clone(), weights: weights.clone(), tokenizer: tokenizer.clone() }
}

/// The same, for inference.
pub(crate) fn clip(files: &ModelFiles, weights: &Weights) -> Result<Clip, TrainError> {
    let ModelFiles { config, weights, tokenizer } = with_weights(files, weights);
    Ok(Clip::from_parts(config, weights, tokenizer)?)
}
