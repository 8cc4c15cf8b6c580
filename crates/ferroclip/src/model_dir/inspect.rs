//! What a model is made of, without its towers.

use std::path::Path;

use super::found::{Found, Origin, open_with};
use crate::builtin;
use crate::checkpoint::TensorReader;
use crate::config::Config;
use crate::error::Error;
use crate::open_options::OpenOptions;
use crate::text_encoder::check_vocabulary;
use crate::tokenizer::Tokenizer;

/// What the files of a model say. All tensors are checked, and none is kept.
#[derive(Debug)]
pub struct Inspection {
    /// Architecture and image pipeline.
    pub config: Config,
    /// Where the model came from, and what was assumed about it.
    pub origin: Origin,
    /// `logit_scale` as stored; in some models of one tower there is none.
    pub logit_scale: Option<f32>,
    /// What is added to scaled cosines, in models that have it.
    pub logit_bias: Option<f32>,
    /// The vocabulary, or what is wrong with it; nothing for a model without a text tower.
    pub tokenizer: Option<Result<Tokenizer, Error>>,
}

/// Inspects a model that [`Clip::open`](crate::Clip::open) opens, or one tower of which can be opened; without a path the
/// built-in one.
///
/// # Errors
/// As [`Clip::open`](crate::Clip::open), but for those of the vocabulary, which are in [`Inspection::tokenizer`].
pub fn inspect(path: Option<&Path>, options: impl Into<OpenOptions>) -> Result<Inspection, Error> {
    let options = options.into();
    let Some(path) = path else {
        let (config, tensors, origin) = builtin::open_with(&options)?;
        return Inspection::new(config, tensors, origin, |_| builtin::tokenizer());
    };
    let found = open_with(path, &options)?;
    let tokenizer = found.config.model.towers.has_text().then(|| found.tokenizer());
    let Found { config, tensors, origin, .. } = found;
    Inspection::new(config, tensors, origin, |config| {
        let tokenizer = tokenizer.unwrap_or_else(|| Ok(Tokenizer::openai()))?;
        check_vocabulary(config, &tokenizer)?;
        Ok(tokenizer)
    })
}

impl Inspection {
    fn new(
        config: Config,
        mut tensors: TensorReader,
        origin: Origin,
        tokenizer: impl FnOnce(&Config) -> Result<Tokenizer, Error>,
    ) -> Result<Inspection, Error> {
        tensors.check_all()?;
        let mut number = |name: &str| match tensors.has(name) {
            true => tensors.read(name).map(|tensor| tensor.data.first().copied()),
            false => Ok(None),
        };
        let (logit_scale, logit_bias) = (number("logit_scale")?, number("logit_bias")?);
        let tokenizer = config.model.towers.has_text().then(|| tokenizer(&config));
        Ok(Inspection { config, origin, logit_scale, logit_bias, tokenizer })
    }
}
