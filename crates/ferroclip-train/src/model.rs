//! The model that a run begins with.

use std::path::Path;

use ferroclip::{Clip, Config, ModelFiles, Weights};

use crate::config::TrainConfig;
use crate::error::TrainError;

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
    config.model.name_vocabulary();
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
