//! Texts to embeddings: the text tower with its tokenizer.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use ferroclip_ops::Precision;

use crate::builtin;
use crate::checkpoint::Supply;
use crate::config::{Config, Towers};
use crate::embed_options::{EmbedOptions, Features};
use crate::embeddings::Embeddings;
use crate::error::Error;
use crate::model_dir::{self, Origin};
use crate::open_options::OpenOptions;
use crate::param::Weights;
use crate::tokenizer::{Tokenizer, Tokens};
use crate::towers::{Stream, TextTower};

/// One half of a [`Clip`](crate::Clip): texts to embeddings. Opened alone, it does not read the
/// image tower. `Send + Sync`.
pub struct TextEncoder {
    config: Arc<Config>,
    tokenizer: Tokenizer,
    tower: TextTower,
    origin: Origin,
    /// Where the tower reads its blocks, if it does not keep them.
    stream: Option<Stream>,
}

impl TextEncoder {
    /// Opens the text tower of a model of any kind that [`Clip::open`](crate::Clip::open) knows. Names and
    /// shapes of all tensors are checked, only the text tower's are read.
    ///
    /// # Errors
    /// As [`Clip::open`](crate::Clip::open), but for faults inside the image tower's tensors.
    pub fn open(path: impl AsRef<Path>) -> Result<TextEncoder, Error> {
        TextEncoder::open_with(path, Precision::F32)
    }

    /// As [`TextEncoder::open`], in this precision, or with other [`OpenOptions`].
    ///
    /// # Errors
    /// As [`TextEncoder::open`]; and when the model cannot have the sizes asked for.
    pub fn open_with(
        path: impl AsRef<Path>,
        options: impl Into<OpenOptions>,
    ) -> Result<TextEncoder, Error> {
        let options = options.into();
        let found = model_dir::open_with(path.as_ref(), &options)?;
        found.needs(Towers::Text, path.as_ref())?;
        let tokenizer = found.tokenizer()?;
        let model_dir::Found { config, tensors, origin, .. } = found;
        let mut supply = Supply::new(tensors, &config.model, options);
        let encoder = TextEncoder::read(Arc::new(config), tokenizer, &mut supply)?;
        Ok(TextEncoder { origin, ..encoder })
    }

    /// The text tower of the model inside the library, `draw-mini`.
    ///
    /// # Errors
    /// None, in a build that passed its tests.
    pub fn builtin() -> Result<TextEncoder, Error> {
        TextEncoder::builtin_with(Precision::F32)
    }

    /// As [`TextEncoder::builtin`], in this precision, or with other [`OpenOptions`].
    ///
    /// # Errors
    /// When the model cannot have the sizes asked for.
    pub fn builtin_with(options: impl Into<OpenOptions>) -> Result<TextEncoder, Error> {
        let options = options.into();
        let (config, tensors, origin) = builtin::open_with(&options)?;
        let mut supply = Supply::new(tensors, &config.model, options);
        let encoder = TextEncoder::read(Arc::new(config), builtin::tokenizer()?, &mut supply)?;
        Ok(TextEncoder { origin, ..encoder })
    }

    /// The encoder of these tensors, of which only the text tower's are read.
    pub(crate) fn read(
        config: Arc<Config>,
        tokenizer: Tokenizer,
        supply: &mut Supply,
    ) -> Result<TextEncoder, Error> {
        check_vocabulary(&config, &tokenizer)?;
        let model = &config.model;
        let tower = supply.build(model, |source| TextTower::build(model, source))?;
        let (origin, stream) = (Origin::default(), supply.stream());
        Ok(TextEncoder { config, tokenizer, tower, origin, stream })
    }

    /// The encoder of checked weights.
    pub(crate) fn new(
        config: Arc<Config>,
        tokenizer: Tokenizer,
        weights: Weights,
        precision: Precision,
    ) -> Result<TextEncoder, Error> {
        check_vocabulary(&config, &tokenizer)?;
        let tower = TextTower::packed(&config.model, weights, precision);
        Ok(TextEncoder { config, tokenizer, tower, origin: Origin::default(), stream: None })
    }

    /// Architecture and image pipeline.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// As [`ImageEncoder::origin`](crate::ImageEncoder::origin).
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The tower.
    pub fn tower(&self) -> &TextTower {
        &self.tower
    }

    /// The ids of a text as the model reads it.
    pub fn tokenize(&self, text: &str) -> Tokens {
        self.tokenizer.tokenize(text, self.config.model.text_cfg.context_length)
    }

    /// The ids as the tower reads them: up to the context length where it reads padding.
    fn filled(&self, mut ids: Vec<u32>) -> Vec<u32> {
        let text = &self.config.model.text_cfg;
        if text.reads_padding() {
            ids.resize(text.context_length, self.tokenizer.pad_id());
        }
        ids
    }

    /// Unit embeddings of texts. A text that is too long is cut, and its row listed in
    /// [`Embeddings::truncated`].
    ///
    /// # Errors
    /// As [`TextEncoder::embed_texts_with`].
    pub fn embed_texts<T: AsRef<str>>(&self, texts: &[T]) -> Result<Embeddings, Error> {
        self.embed_texts_with(texts, &EmbedOptions::default())
    }

    /// Embeddings of texts.
    ///
    /// # Errors
    /// When the caller raised the stop flag, or asks for patches, the model gives numbers that are not finite, or a
    /// tower that is [streamed](OpenOptions::streamed) can no longer be read.
    pub fn embed_texts_with<T: AsRef<str>>(
        &self,
        texts: &[T],
        options: &EmbedOptions<'_>,
    ) -> Result<Embeddings, Error> {
        let mut out = Embeddings::empty(match options.features {
            Features::Embedding => self.config.model.embed_dim,
            Features::Pooled => self.config.model.text_cfg.width,
            Features::Patches => return Err(Error::NoPatches),
        });
        let batch_size = options.batch_size.max(1);
        for (batch, texts) in texts.chunks(batch_size).enumerate() {
            options.check_stop()?;
            let first = batch * batch_size;
            let tokens: Vec<Tokens> = texts.iter().map(|t| self.tokenize(t.as_ref())).collect();
            let cut = (first..).zip(&tokens).filter(|(_, tokens)| tokens.truncated > 0);
            out.truncated.extend(cut.map(|(place, _)| place));
            let ids: Vec<Vec<u32>> =
                tokens.into_iter().map(|tokens| self.filled(tokens.ids)).collect();
            let x = match options.features {
                Features::Pooled => self.tower.pooled(&ids),
                _ => self.tower.forward(&ids),
            };
            self.stream.as_ref().map_or(Ok(()), Stream::check)?;
            out.append(&options.finish(x)?);
            options.report(first + texts.len());
        }
        Ok(out)
    }
}

/// Refuses the tokenizer of another model.
pub(crate) fn check_vocabulary(config: &Config, tokenizer: &Tokenizer) -> Result<(), Error> {
    let (expected, found) = (config.model.text_cfg.vocab_size, tokenizer.vocab_size());
    match tokenizer.fits(expected) {
        true => Ok(()),
        false => Err(Error::Vocabulary { expected, found }),
    }
}

impl fmt::Debug for TextEncoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TextEncoder").field("config", &self.config).finish_non_exhaustive()
    }
}
