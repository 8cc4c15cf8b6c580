//! How to embed, for pictures and texts alike.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};

use burn::prelude::*;
use ferroclip_ops::unit_rows;

use crate::error::Error;
use crate::image::DecodeLimits;
use crate::param::elements;

/// What a tower gives for each input.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Features {
    /// The embedding, behind the projection: `embed_dim` numbers.
    #[default]
    Embedding,
    /// What the projection is applied to: the tower's `width` numbers, behind the final norm and
    /// pooling. Never normalised.
    Pooled,
    /// Pictures only: the rows of all patches, `patches * width` numbers. See
    /// [`ImageTower::patches`](crate::ImageTower::patches). Never normalised.
    Patches,
}

/// How to embed.
#[derive(Clone, Copy)]
pub struct EmbedOptions<'a> {
    /// Inputs that go through a tower together. Results do not depend on it, memory does.
    pub batch_size: usize,
    /// What to give for each input.
    pub features: Features,
    /// Divide each embedding by its norm; other features are left as they are.
    pub normalize: bool,
    /// What a picture may cost.
    pub limits: DecodeLimits,
    /// Turn pictures upright by their EXIF data; the references do not.
    pub exif: bool,
    /// Turn pictures to RGB before they are resized. CLIP_benchmark's loader does; open_clip resizes a palette's
    /// indices, and grey with alpha or CMYK as they are.
    pub rgb_first: bool,
    /// Called with the number of inputs done so far.
    pub progress: Option<&'a (dyn Fn(usize) + Sync)>,
    /// Looked at between batches; once it is true, the call ends with [`Error::Cancelled`].
    pub stop: Option<&'a AtomicBool>,
}

impl Default for EmbedOptions<'_> {
    fn default() -> Self {
        EmbedOptions {
            batch_size: 32,
            features: Features::default(),
            normalize: true,
            limits: DecodeLimits::default(),
            exif: false,
            rgb_first: false,
            progress: None,
            stop: None,
        }
    }
}

impl EmbedOptions<'_> {
    pub(crate) fn check_stop(&self) -> Result<(), Error> {
        match self.stop.is_some_and(|stop| stop.load(Ordering::Relaxed)) {
            true => Err(Error::Cancelled),
            false => Ok(()),
        }
    }

    pub(crate) fn report(&self, n_done: usize) {
        if let Some(progress) = self.progress {
            progress(n_done);
        }
    }

    /// The rows on the host, divided by their norm where that is asked for.
    pub(crate) fn finish(&self, x: Tensor<2>) -> Result<Vec<f32>, Error> {
        let unit = self.normalize && self.features == Features::Embedding;
        let dim = x.dims()[1].max(1);
        let rows = elements(if unit { unit_rows(x) } else { x });
        // A norm that overflows leaves zeros.
        let sound = |row: &[f32]| {
            row.iter().all(|value| value.is_finite()) && !(unit && row.iter().all(|&v| v == 0.0))
        };
        match rows.chunks_exact(dim).all(sound) {
            true => Ok(rows),
            false => Err(Error::NotFinite),
        }
    }
}

impl fmt::Debug for EmbedOptions<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EmbedOptions")
            .field("batch_size", &self.batch_size)
            .field("features", &self.features)
            .field("normalize", &self.normalize)
            .field("limits", &self.limits)
            .field("exif", &self.exif)
            .field("rgb_first", &self.rgb_first)
            .finish_non_exhaustive()
    }
}
