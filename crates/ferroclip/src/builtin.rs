//! The model inside the library: `models/draw-mini` of the repository.

use crate::checkpoint::{Checkpoint, TensorReader};
use crate::config::Config;
use crate::error::Error;
use crate::model_dir::{ModelFiles, Origin};
use crate::open_options::OpenOptions;
use crate::param::Weights;
use crate::tokenizer::Tokenizer;

macro_rules! model_file {
    ($name:literal) => {
        concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/draw-mini/", $name)
    };
}

const NAME: &str = "draw-mini";
const CONFIG: &str = include_str!(model_file!("open_clip_config.json"));
const TOKENIZER: &str = include_str!(model_file!("tokenizer.json"));
const WEIGHTS: &[u8] = include_bytes!(model_file!("open_clip_model.safetensors"));

/// The parts of the built-in model.
pub(crate) fn draw_mini() -> Result<ModelFiles, Error> {
    let config = config()?;
    let weights = Weights::from_bytes(WEIGHTS, NAME, &config.model)?;
    Ok(ModelFiles { config, weights, tokenizer: tokenizer()? })
}

fn config() -> Result<Config, Error> {
    Config::from_json(CONFIG, NAME)
}

pub(crate) fn tokenizer() -> Result<Tokenizer, Error> {
    Tokenizer::from_hf_json(TOKENIZER)
        .map_err(|source| Error::Tokenizer { origin: NAME.to_owned(), source })
}

/// Config and tensors, at the sizes that are asked for.
pub(crate) fn open_with(options: &OpenOptions) -> Result<(Config, TensorReader, Origin), Error> {
    let mut config = config()?;
    let mut tensors = Checkpoint::from_bytes(WEIGHTS, NAME)?.model(&config.model)?;
    let assumptions = options.resize(&mut config, &mut tensors, NAME)?;
    Ok((config, tensors, Origin { assumptions, ..Origin::default() }))
}
