//! Pictures to embeddings: the image tower with its pipeline.

use std::fmt;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use ferroclip_ops::Precision;
use rayon::prelude::*;

use crate::builtin;
use crate::checkpoint::Supply;
use crate::config::{Config, Towers};
use crate::embed_options::{EmbedOptions, Features};
use crate::embeddings::Embeddings;
use crate::error::Error;
use crate::files::open_regular;
use crate::image::{ImageError, Picture};
use crate::model_dir::{self, Origin};
use crate::open_options::OpenOptions;
use crate::param::Weights;
use crate::towers::{ImageTower, Stream};

/// One half of a [`Clip`](crate::Clip): pictures to embeddings. Opened alone, it reads neither the
/// text tower nor the vocabulary. `Send + Sync`.
pub struct ImageEncoder {
    config: Arc<Config>,
    tower: ImageTower,
    origin: Origin,
    /// Where the tower reads its blocks, if it does not keep them.
    stream: Option<Stream>,
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

impl ImageEncoder {
    /// Opens the image tower of a model of any kind that [`Clip::open`](crate::Clip::open) knows. Names and
    /// shapes of all tensors are checked, only the image tower's are read.
    ///
    /// # Errors
    /// As [`Clip::open`](crate::Clip::open), but for faults inside the text tower's tensors.
    pub fn open(path: impl AsRef<Path>) -> Result<ImageEncoder, Error> {
        ImageEncoder::open_with(path, Precision::F32)
    }

    /// As [`ImageEncoder::open`], in this precision, or with other [`OpenOptions`].
    ///
    /// # Errors
    /// As [`ImageEncoder::open`]; and when the model cannot have the sizes asked for.
    pub fn open_with(
        path: impl AsRef<Path>,
        options: impl Into<OpenOptions>,
    ) -> Result<ImageEncoder, Error> {
        let options = options.into();
        let found = model_dir::open_with(path.as_ref(), &options)?;
        found.needs(Towers::Image, path.as_ref())?;
        let model_dir::Found { config, tensors, origin, .. } = found;
        let mut supply = Supply::new(tensors, &config.model, options);
        let encoder = ImageEncoder::read(Arc::new(config), &mut supply)?;
        Ok(ImageEncoder { origin, ..encoder })
    }

    /// The image tower of the model inside the library, `draw-mini`.
    ///
    /// # Errors
    /// None, in a build that passed its tests.
    pub fn builtin() -> Result<ImageEncoder, Error> {
        ImageEncoder::builtin_with(Precision::F32)
    }

    /// As [`ImageEncoder::builtin`], in this precision, or with other [`OpenOptions`].
    ///
    /// # Errors
    /// When the model cannot have the sizes asked for.
    pub fn builtin_with(options: impl Into<OpenOptions>) -> Result<ImageEncoder, Error> {
        let options = options.into();
        let (config, tensors, origin) = builtin::open_with(&options)?;
        let mut supply = Supply::new(tensors, &config.model, options);
        let encoder = ImageEncoder::read(Arc::new(config), &mut supply)?;
        Ok(ImageEncoder { origin, ..encoder })
    }

    /// The encoder of these tensors, of which only the image tower's are read.
    pub(crate) fn read(config: Arc<Config>, supply: &mut Supply) -> Result<ImageEncoder, Error> {
        let model = &config.model;
        let tower = supply.build(model, |source| ImageTower::build(model, source))?;
        Ok(ImageEncoder { config, tower, origin: Origin::default(), stream: supply.stream() })
    }

    /// The encoder of checked weights.
    pub(crate) fn new(config: Arc<Config>, weights: Weights, precision: Precision) -> ImageEncoder {
        let tower = ImageTower::packed(&config.model, weights, precision);
        ImageEncoder { config, tower, origin: Origin::default(), stream: None }
    }

    /// Architecture and image pipeline.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Where the model came from, and what was assumed about it; empty for one that was not opened by a path.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    pub(crate) fn set_origin(&mut self, origin: Origin) {
        self.origin = origin;
    }

    /// The tower.
    pub fn tower(&self) -> &ImageTower {
        &self.tower
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
        let mut pipeline = self.config.preprocess.clone();
        pipeline.exif |= options.exif;
        pipeline.rgb_first |= options.rgb_first;
        let limits = &options.limits;
        let named = |name: String| move |source| Error::Image { name, source };
        let image = match source {
            ImageSource::Path(path) => pipeline
                .open(&read_file(path, limits.max_bytes)?, limits)
                .map_err(named(path.display().to_string()))?,
            ImageSource::Bytes(bytes) => {
                pipeline.open(bytes, limits).map_err(named(format!("number {}", place + 1)))?
            }
            ImageSource::Picture(picture) => pipeline.rgb8(picture),
        };
        pipeline.tensor(&image, out);
        Ok(())
    }

    /// Numbers that the tower gives for a picture.
    pub fn dim(&self, features: Features) -> usize {
        let [patches, width] = self.tower.patch_shape();
        match features {
            Features::Embedding => self.config.model.embed_dim,
            Features::Pooled => width,
            Features::Patches => patches * width,
        }
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
    /// When the caller raised the stop flag, the model gives numbers that are not finite, or a tower that is
    /// [streamed](OpenOptions::streamed) can no longer be read.
    pub fn embed_images_with(
        &self,
        images: &[ImageSource<'_>],
        options: &EmbedOptions<'_>,
    ) -> Result<ImageEmbeddings, Error> {
        let embeddings = Embeddings::empty(self.dim(options.features));
        let mut out = ImageEmbeddings { embeddings, ..ImageEmbeddings::default() };
        let mut batches = images.chunks(options.batch_size.max(1));
        let (mut batch, mut next) = (PixelBatch::default(), PixelBatch::default());
        options.check_stop()?;
        self.read_batch(batches.next().unwrap_or_default(), 0, options, &mut batch);
        let mut done = 0;
        while batch.sources > 0 {
            let first = done + batch.sources;
            let sources = batches.next().unwrap_or_default();
            // Cores that the tower leaves idle, as at the end of a layer, decode the next batch.
            let (rows, ()) = rayon::join(
                || self.features(&batch, options),
                || self.read_batch(sources, first, options, &mut next),
            );
            out.embeddings.append(&rows?);
            out.inputs.append(&mut batch.inputs);
            out.failures.append(&mut batch.failures);
            done = first;
            options.report(done);
            std::mem::swap(&mut batch, &mut next);
            if batch.sources > 0 {
                options.check_stop()?;
            }
        }
        Ok(out)
    }

    /// What the options ask for, of the pictures of a batch.
    fn features(&self, batch: &PixelBatch, options: &EmbedOptions<'_>) -> Result<Vec<f32>, Error> {
        let n = batch.inputs.len();
        if n == 0 {
            return Ok(Vec::new());
        }
        let rows = match options.features {
            Features::Embedding => self.tower.forward(&batch.pixels, n),
            Features::Pooled => self.tower.pooled(&batch.pixels, n),
            Features::Patches => self.tower.patches(&batch.pixels, n),
        };
        self.stream.as_ref().map_or(Ok(()), Stream::check)?;
        options.finish(rows)
    }

    /// Decodes pictures, of which the first is number `first` of the input, on all cores.
    fn read_batch(
        &self,
        sources: &[ImageSource<'_>],
        first: usize,
        options: &EmbedOptions<'_>,
        batch: &mut PixelBatch,
    ) {
        let len = self.config.model.vision_cfg.image_len();
        let PixelBatch { pixels, .. } = batch;
        pixels.resize(sources.len() * len, 0.0);
        let slots = pixels.par_chunks_exact_mut(len).zip(sources).enumerate();
        let results: Vec<Result<(), Error>> = slots
            .map(|(i, (slot, source))| self.read_pixels(*source, first + i, options, slot))
            .collect();
        batch.sources = sources.len();
        for (i, result) in results.into_iter().enumerate() {
            match result {
                Ok(()) => {
                    let good = batch.inputs.len();
                    pixels.copy_within(i * len..(i + 1) * len, good * len);
                    batch.inputs.push(first + i);
                }
                Err(error) => batch.failures.push((first + i, error)),
            }
        }
        pixels.truncate(batch.inputs.len() * len);
    }
}

/// Decoded pictures on their way to the tower.
#[derive(Default)]
struct PixelBatch {
    /// Tensors of the good ones, one behind the other.
    pixels: Vec<f32>,
    /// Pictures that were looked at.
    sources: usize,
    /// Places of the good ones in the input.
    inputs: Vec<usize>,
    /// Places of the others, and what is wrong with them.
    failures: Vec<(usize, Error)>,
}

/// The bytes of a picture file, if they are not more than `limit`.
fn read_file(path: &Path, limit: u64) -> Result<Vec<u8>, Error> {
    let read_error = |error| Error::io("read", path, error);
    let file = open_regular(path)?;
    let too_long = || Error::Image {
        name: path.display().to_string(),
        source: ImageError::TooManyBytes { limit },
    };
    let length = file.metadata().map_err(read_error)?.len();
    if length > limit {
        return Err(too_long());
    }
    // At once: bytes that grow as they are read are there twice.
    let mut bytes = Vec::with_capacity(length as usize + 1);
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes).map_err(read_error)?;
    // It may have grown meanwhile.
    match bytes.len() as u64 > limit {
        true => Err(too_long()),
        false => Ok(bytes),
    }
}

impl fmt::Debug for ImageEncoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ImageEncoder").field("config", &self.config).finish_non_exhaustive()
    }
}
