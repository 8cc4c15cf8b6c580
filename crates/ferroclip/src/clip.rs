//! The front door: a model with its tokenizer and image pipeline.

use std::borrow::Cow;
use std::fmt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use burn::prelude::*;
use ferroclip_ops::unit_rows;
use rayon::prelude::*;

use crate::builtin;
use crate::checkpoint::FloatFormat;
use crate::config::Config;
use crate::embeddings::Embeddings;
use crate::error::Error;
use crate::image::{DecodeLimits, Picture};
use crate::model_dir::ModelFiles;
use crate::param::{Params, Weights, elements};
use crate::tokenizer::{Tokenizer, Tokens};
use crate::towers::{ImageTower, TextTower};
use crate::zero_shot::{Classifier, Score};

/// A CLIP model, ready to embed on the CPU. `Send + Sync`; cheap to share behind a reference.
pub struct Clip {
    config: Config,
    tokenizer: Tokenizer,
    params: Params,
    image: ImageTower,
    text: TextTower,
    logit_scale: f32,
}

/// Where a picture comes from.
#[derive(Clone, Copy, Debug)]
pub enum ImageSource<'a> {
    /// A picture file.
    Path(&'a Path),
    /// The bytes of a picture file.
    Bytes(&'a [u8]),
    /// A decoded picture; RGB buffers become one with [`Picture::from_rgb8`].
    Picture(&'a Picture),
}

impl<'a, P: AsRef<Path> + ?Sized> From<&'a P> for ImageSource<'a> {
    fn from(path: &'a P) -> Self {
        ImageSource::Path(path.as_ref())
    }
}

impl<'a> From<&'a Picture> for ImageSource<'a> {
    fn from(picture: &'a Picture) -> Self {
        ImageSource::Picture(picture)
    }
}

/// How to embed.
#[derive(Clone, Copy)]
pub struct EmbedOptions<'a> {
    /// Inputs that go through a tower together. Results do not depend on it, memory does.
    pub batch_size: usize,
    /// Divide each embedding by its norm.
    pub normalize: bool,
    /// What a picture may cost.
    pub limits: DecodeLimits,
    /// Turn pictures upright by their EXIF data; the references do not.
    pub exif: bool,
    /// Called with the number of inputs done so far.
    pub progress: Option<&'a (dyn Fn(usize) + Sync)>,
    /// Looked at between batches; once it is true, the call ends with [`Error::Cancelled`].
    pub stop: Option<&'a AtomicBool>,
}

impl Default for EmbedOptions<'_> {
    fn default() -> Self {
        EmbedOptions {
            batch_size: 32,
            normalize: true,
            limits: DecodeLimits::default(),
            exif: false,
            progress: None,
            stop: None,
        }
    }
}

impl EmbedOptions<'_> {
    fn check_stop(&self) -> Result<(), Error> {
        match self.stop.is_some_and(|stop| stop.load(Ordering::Relaxed)) {
            true => Err(Error::Cancelled),
            false => Ok(()),
        }
    }

    fn report(&self, n_done: usize) {
        if let Some(progress) = self.progress {
            progress(n_done);
        }
    }

    fn finish(&self, x: Tensor<2>) -> Vec<f32> {
        elements(if self.normalize { unit_rows(x) } else { x })
    }
}

impl fmt::Debug for EmbedOptions<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EmbedOptions")
            .field("batch_size", &self.batch_size)
            .field("normalize", &self.normalize)
            .field("limits", &self.limits)
            .field("exif", &self.exif)
            .finish_non_exhaustive()
    }
}

/// Embeddings of those pictures that could be read.
#[derive(Debug, Default)]
pub struct ImageEmbeddings {
    /// A row for each picture that could be read.
    pub embeddings: Embeddings,
    /// The place in the input that each row belongs to.
    pub inputs: Vec<usize>,
    /// Place in the input and error of each other picture.
    pub failures: Vec<(usize, Error)>,
}

impl Clip {
    /// Opens a model directory, or a `.safetensors` file beside its `open_clip_config.json`.
    ///
    /// # Errors
    /// When a file is missing or damaged, or the files do not belong together.
    pub fn open(path: impl AsRef<Path>) -> Result<Clip, Error> {
        Clip::from_files(ModelFiles::load(path.as_ref())?)
    }

    /// The model inside the library, `draw-mini`.
    ///
    /// # Errors
    /// None, in a build that passed its tests.
    pub fn builtin() -> Result<Clip, Error> {
        Clip::from_files(builtin::draw_mini()?)
    }

    /// A model from its parts, for instance one that was just trained.
    ///
    /// # Errors
    /// When the parts do not belong together, or a weight is NaN or infinite.
    pub fn from_parts(
        config: Config,
        weights: Weights,
        tokenizer: Tokenizer,
    ) -> Result<Clip, Error> {
        Clip::from_files(ModelFiles { config, weights, tokenizer })
    }

    fn from_files(files: ModelFiles) -> Result<Clip, Error> {
        let ModelFiles { config, weights, tokenizer } = files;
        let (expected, found) = (config.model.text_cfg.vocab_size, tokenizer.vocab_size());
        if expected != found {
            return Err(Error::Vocabulary { expected, found });
        }
        let origin = || "the parts given".to_owned();
        let differences = weights.differences(&config.model);
        if !differences.is_empty() {
            return Err(Error::Mismatch { origin: origin(), differences });
        }
        if let Some((tensor, found)) = weights.first_not_finite() {
            let tensor = tensor.to_owned();
            return Err(Error::NotFinite { origin: origin(), tensor, found });
        }
        let logit_scale = weights.get("logit_scale").map_or(0.0, |tensor| tensor.data[0]);
        let params = Params::new(&weights, &Device::flex());
        let image = ImageTower::new(&config.model, &params);
        let text = TextTower::new(&config.model, &params);
        Ok(Clip { config, tokenizer, params, image, text, logit_scale })
    }

    /// Writes a model directory that open_clip reads too.
    ///
    /// # Errors
    /// When a file cannot be written; a new directory is then not left behind.
    pub fn save(&self, folder: impl AsRef<Path>, format: FloatFormat) -> Result<(), Error> {
        let files = ModelFiles {
            config: self.config.clone(),
            weights: self.params.to_weights(&self.config.model),
            tokenizer: self.tokenizer.clone(),
        };
        files.save(folder.as_ref(), format)
    }

    /// Architecture and image pipeline.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The parameters, on the device of this model.
    pub fn params(&self) -> &Params {
        &self.params
    }

    /// The image tower.
    pub fn image_tower(&self) -> &ImageTower {
        &self.image
    }

    /// The text tower.
    pub fn text_tower(&self) -> &TextTower {
        &self.text
    }

    /// `logit_scale` as stored: the logarithm of what cosines are multiplied with.
    pub fn logit_scale(&self) -> f32 {
        self.logit_scale
    }

    /// The ids of a text as the model reads it.
    pub fn tokenize(&self, text: &str) -> Tokens {
        self.tokenizer.tokenize(text, self.config.model.text_cfg.context_length)
    }

    /// The tensor that the image tower sees: `[3, height, width]`.
    ///
    /// # Errors
    /// When the picture cannot be read.
    pub fn preprocess<'a>(
        &self,
        image: impl Into<ImageSource<'a>>,
        options: &EmbedOptions<'_>,
    ) -> Result<Vec<f32>, Error> {
        let mut pixels = vec![0.0; self.config.model.vision_cfg.image_len()];
        self.read_pixels(image.into(), 0, options, &mut pixels)?;
        Ok(pixels)
    }

    fn read_pixels(
        &self,
        source: ImageSource<'_>,
        place: usize,
        options: &EmbedOptions<'_>,
        out: &mut [f32],
    ) -> Result<(), Error> {
        let bytes = match source {
            ImageSource::Path(path) => {
                Cow::Owned(std::fs::read(path).map_err(|e| Error::io("read", path, e))?)
            }
            ImageSource::Bytes(bytes) => Cow::Borrowed(bytes),
            ImageSource::Picture(_) => Cow::Borrowed(&[][..]),
        };
        let picture = match source {
            ImageSource::Picture(picture) => Cow::Borrowed(picture),
            _ => Cow::Owned(Picture::decode(&bytes, &options.limits).map_err(|source_error| {
                let name = match source {
                    ImageSource::Path(path) => path.display().to_string(),
                    _ => format!("number {}", place + 1),
                };
                Error::Image { name, source: source_error }
            })?),
        };
        let mut pipeline = self.config.preprocess.clone();
        pipeline.exif |= options.exif;
        pipeline.tensor(&pipeline.rgb8(&picture), out);
        Ok(())
    }

    /// Unit embeddings of pictures: paths, or other [`ImageSource`]s.
    ///
    /// # Errors
    /// When a picture cannot be read; the error names it.
    pub fn embed_images<'a, I>(&self, images: I) -> Result<Embeddings, Error>
    where
        I: IntoIterator,
        I::Item: Into<ImageSource<'a>>,
    {
        let sources: Vec<ImageSource<'_>> = images.into_iter().map(Into::into).collect();
        let result = self.embed_images_with(&sources, &EmbedOptions::default())?;
        match result.failures.into_iter().next() {
            Some((_, error)) => Err(error),
            None => Ok(result.embeddings),
        }
    }

    /// Embeddings of those pictures that can be read, and what is wrong with the others.
    ///
    /// # Errors
    /// When the caller raised the stop flag.
    pub fn embed_images_with(
        &self,
        images: &[ImageSource<'_>],
        options: &EmbedOptions<'_>,
    ) -> Result<ImageEmbeddings, Error> {
        let embeddings = Embeddings::empty(self.config.model.embed_dim);
        let mut out = ImageEmbeddings { embeddings, ..ImageEmbeddings::default() };
        let batch_size = options.batch_size.max(1);
        let mut pixels = Vec::new();
        for (batch, sources) in images.chunks(batch_size).enumerate() {
            options.check_stop()?;
            let first = batch * batch_size;
            let n = self.read_batch(sources, first, options, &mut pixels, &mut out);
            if n > 0 {
                let x = self.image.forward(&pixels, n);
                out.embeddings.append(&options.finish(x));
            }
            options.report(first + sources.len());
        }
        Ok(out)
    }

    /// Decodes pictures on all cores; the tensors of the good ones stand together in `pixels`.
    fn read_batch(
        &self,
        sources: &[ImageSource<'_>],
        first: usize,
        options: &EmbedOptions<'_>,
        pixels: &mut Vec<f32>,
        out: &mut ImageEmbeddings,
    ) -> usize {
        let len = self.config.model.vision_cfg.image_len();
        pixels.resize(sources.len() * len, 0.0);
        let slots = pixels.par_chunks_exact_mut(len).zip(sources).enumerate();
        let results: Vec<Result<(), Error>> = slots
            .map(|(i, (slot, source))| self.read_pixels(*source, first + i, options, slot))
            .collect();
        let mut n = 0;
        for (i, result) in results.into_iter().enumerate() {
            match result {
                Ok(()) => {
                    pixels.copy_within(i * len..(i + 1) * len, n * len);
                    out.inputs.push(first + i);
                    n += 1;
                }
                Err(error) => out.failures.push((first + i, error)),
            }
        }
        pixels.truncate(n * len);
        n
    }

    /// Unit embeddings of texts. A text that is too long is cut, and its row listed in
    /// [`Embeddings::truncated`].
    ///
    /// # Errors
    /// None; the type leaves room for devices that can fail.
    pub fn embed_texts<T: AsRef<str>>(&self, texts: &[T]) -> Result<Embeddings, Error> {
        self.embed_texts_with(texts, &EmbedOptions::default())
    }

    /// Embeddings of texts.
    ///
    /// # Errors
    /// When the caller raised the stop flag.
    pub fn embed_texts_with<T: AsRef<str>>(
        &self,
        texts: &[T],
        options: &EmbedOptions<'_>,
    ) -> Result<Embeddings, Error> {
        let mut out = Embeddings::empty(self.config.model.embed_dim);
        let batch_size = options.batch_size.max(1);
        for (batch, texts) in texts.chunks(batch_size).enumerate() {
            options.check_stop()?;
            let first = batch * batch_size;
            let tokens: Vec<Tokens> = texts.iter().map(|t| self.tokenize(t.as_ref())).collect();
            let cut = (first..).zip(&tokens).filter(|(_, tokens)| tokens.truncated > 0);
            out.truncated.extend(cut.map(|(place, _)| place));
            let ids: Vec<&[u32]> = tokens.iter().map(|tokens| tokens.ids.as_slice()).collect();
            out.append(&options.finish(self.text.forward(&ids)));
            options.report(first + texts.len());
        }
        Ok(out)
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
        let classifier = Classifier::new(self, labels, &self.config.templates)?;
        let images = self.embed_images(images)?;
        Ok(images.iter().map(|image| classifier.classify(image, top_k)).collect())
    }
}

impl fmt::Debug for Clip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Clip")
            .field("config", &self.config)
            .field("logit_scale", &self.logit_scale)
            .finish_non_exhaustive()
    }
}
