//! The front door: a model with its tokenizer and image pipeline.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use ferroclip_ops::Precision;

use crate::builtin;
use crate::checkpoint::{Supply, TensorReader};
use crate::config::{Config, Towers};
use crate::embed_options::EmbedOptions;
use crate::embeddings::Embeddings;
use crate::error::Error;
use crate::image_encoder::{ImageEmbeddings, ImageEncoder, ImageSource};
use crate::model_dir::{self, ModelFiles, Origin};
use crate::open_options::OpenOptions;
use crate::param::{Weights, is_of_image};
use crate::text_encoder::TextEncoder;
use crate::tokenizer::{Tokenizer, Tokens};
use crate::towers::{ImageTower, TextTower};
use crate::zero_shot::{Classifier, Score};

/// A CLIP model, ready to embed on the CPU: an [`ImageEncoder`] and a [`TextEncoder`], which can
/// also be opened alone. `Send + Sync`; cheap to share behind a reference.
pub struct Clip {
    image: ImageEncoder,
    text: TextEncoder,
    logit_scale: f32,
    logit_bias: Option<f32>,
}

impl Clip {
    /// Opens a model, found by its content, whatever its files are called:
    ///
    /// - a directory of open_clip (`open_clip_config.json`) or of transformers (`config.json`), with weights in
    ///   safetensors, cut into several files or not, or written by `torch.save`;
    /// - a file of weights beside one of these configs;
    /// - a file of weights alone, of a plain CLIP model: OpenAI's TorchScript archives, state dictionaries and
    ///   training checkpoints. The architecture follows from the shapes; [`Clip::origin`] says what was assumed.
    ///
    /// # Errors
    /// When a file is missing or damaged, or the files do not belong together.
    pub fn open(path: impl AsRef<Path>) -> Result<Clip, Error> {
        Clip::open_with(path, Precision::F32)
    }

    /// As [`Clip::open`], in this precision, or with other [`OpenOptions`].
    ///
    /// # Errors
    /// As [`Clip::open`]; and when the model cannot have the sizes asked for.
    pub fn open_with(
        path: impl AsRef<Path>,
        options: impl Into<OpenOptions>,
    ) -> Result<Clip, Error> {
        let options = options.into();
        let found = model_dir::open_with(path.as_ref(), &options)?;
        found.needs(Towers::Both, path.as_ref())?;
        let tokenizer = found.tokenizer()?;
        let model_dir::Found { config, tensors, origin, .. } = found;
        let mut clip = Clip::read(config, tokenizer, tensors, options)?;
        clip.image.set_origin(origin);
        Ok(clip)
    }

    /// The model inside the library, `draw-mini`.
    ///
    /// # Errors
    /// None, in a build that passed its tests.
    pub fn builtin() -> Result<Clip, Error> {
        Clip::builtin_with(Precision::F32)
    }

    /// As [`Clip::builtin`], in this precision, or with other [`OpenOptions`].
    ///
    /// # Errors
    /// When the model cannot have the sizes asked for.
    pub fn builtin_with(options: impl Into<OpenOptions>) -> Result<Clip, Error> {
        let options = options.into();
        let (config, tensors, origin) = builtin::open_with(&options)?;
        let mut clip = Clip::read(config, builtin::tokenizer()?, tensors, options)?;
        clip.image.set_origin(origin);
        Ok(clip)
    }

    /// A model from its parts, for instance one that was just trained.
    ///
    /// # Errors
    /// When the parts do not belong together, or a weight is NaN, infinite or impossible.
    pub fn from_parts(
        config: Config,
        weights: Weights,
        tokenizer: Tokenizer,
    ) -> Result<Clip, Error> {
        let files = ModelFiles { config, weights, tokenizer };
        files.check()?;
        let ModelFiles { config, weights, tokenizer } = files;
        let logit_scale = weights.get("logit_scale").map_or(0.0, |tensor| tensor.data[0]);
        let logit_bias = weights.get("logit_bias").map(|tensor| tensor.data[0]);
        let config = Arc::new(config);
        let (of_image, of_text) = weights.into_iter().partition(|(name, _)| is_of_image(name));
        let image = ImageEncoder::new(Arc::clone(&config), of_image, Precision::F32);
        let text = TextEncoder::new(config, tokenizer, of_text, Precision::F32)?;
        Ok(Clip { image, text, logit_scale, logit_bias })
    }

    fn read(
        config: Config,
        tokenizer: Tokenizer,
        mut tensors: TensorReader,
        options: OpenOptions,
    ) -> Result<Clip, Error> {
        let config = Arc::new(config);
        let logit_scale = tensors.read("logit_scale")?.data[0];
        let logit_bias = match config.model.init_logit_bias {
            Some(_) => Some(tensors.read("logit_bias")?.data[0]),
            None => None,
        };
        let mut supply = Supply::new(tensors, &config.model, options);
        let text = TextEncoder::read(Arc::clone(&config), tokenizer, &mut supply)?;
        let image = ImageEncoder::read(config, &mut supply)?;
        Ok(Clip { image, text, logit_scale, logit_bias })
    }

    /// Architecture and image pipeline.
    pub fn config(&self) -> &Config {
        self.image.config()
    }

    /// Where the model came from, and what was assumed about it; empty for one that was not opened by a path.
    pub fn origin(&self) -> &Origin {
        self.image.origin()
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        self.text.tokenizer()
    }

    /// The half that embeds pictures.
    pub fn image_encoder(&self) -> &ImageEncoder {
        &self.image
    }

    /// The half that embeds texts.
    pub fn text_encoder(&self) -> &TextEncoder {
        &self.text
    }

    /// The image tower.
    pub fn image_tower(&self) -> &ImageTower {
        self.image.tower()
    }

    /// The text tower.
    pub fn text_tower(&self) -> &TextTower {
        self.text.tower()
    }

    /// `logit_scale` as stored: the logarithm of what cosines are multiplied with.
    pub fn logit_scale(&self) -> f32 {
        self.logit_scale
    }

    /// What is added to scaled cosines, in models that have it: SigLIP's.
    pub fn logit_bias(&self) -> Option<f32> {
        self.logit_bias
    }

    /// The ids of a text as the model reads it.
    pub fn tokenize(&self, text: &str) -> Tokens {
        self.text.tokenize(text)
    }

    /// As [`ImageEncoder::preprocess`].
    ///
    /// # Errors
    /// When the picture cannot be read.
    pub fn preprocess<'a>(
        &self,
        image: impl Into<ImageSource<'a>>,
        options: &EmbedOptions<'_>,
    ) -> Result<Vec<f32>, Error> {
        self.image.preprocess(image, options)
    }

    /// As [`ImageEncoder::embed_images`].
    ///
    /// # Errors
    /// When a picture cannot be read; the error names it.
    pub fn embed_images<'a, I>(&self, images: I) -> Result<Embeddings, Error>
    where
        I: IntoIterator,
        I::Item: Into<ImageSource<'a>>,
    {
        self.image.embed_images(images)
    }

    /// As [`ImageEncoder::embed_images_with`].
    ///
    /// # Errors
    /// When the caller raised the stop flag.
    pub fn embed_images_with(
        &self,
        images: &[ImageSource<'_>],
        options: &EmbedOptions<'_>,
    ) -> Result<ImageEmbeddings, Error> {
        self.image.embed_images_with(images, options)
    }

    /// As [`TextEncoder::embed_texts`].
    ///
    /// # Errors
    /// As [`TextEncoder::embed_texts_with`].
    pub fn embed_texts<T: AsRef<str>>(&self, texts: &[T]) -> Result<Embeddings, Error> {
        self.text.embed_texts(texts)
    }

    /// As [`TextEncoder::embed_texts_with`].
    ///
    /// # Errors
    /// When the caller raised the stop flag, or asks for patches.
    pub fn embed_texts_with<T: AsRef<str>>(
        &self,
        texts: &[T],
        options: &EmbedOptions<'_>,
    ) -> Result<Embeddings, Error> {
        self.text.embed_texts_with(texts, options)
    }

    /// Zero-shot classification with the model's own templates: for each picture the `top_k` best
    /// labels, best first. [`Classifier`] does the same in steps.
    ///
    /// # Errors
    /// When there is no label or a picture cannot be read.
    pub fn classify<'a, I, L>(
        &self,
        images: I,
        labels: &[L],
        top_k: usize,
    ) -> Result<Vec<Vec<Score>>, Error>
    where
        I: IntoIterator,
        I::Item: Into<ImageSource<'a>>,
        L: AsRef<str>,
    {
        let classifier = Classifier::new(self, labels, &self.config().templates)?;
        let images = self.embed_images(images)?;
        Ok(images.iter().map(|image| classifier.classify(image, top_k)).collect())
    }
}

impl fmt::Debug for Clip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Clip")
            .field("config", self.config())
            .field("logit_scale", &self.logit_scale)
            .finish_non_exhaustive()
    }
}
