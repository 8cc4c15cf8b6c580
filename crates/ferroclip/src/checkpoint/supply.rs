//! What towers are built of.

use ferroclip_ops::Precision;

use super::TensorReader;
use crate::config::ModelConfig;
use crate::error::Error;
use crate::open_options::OpenOptions;
use crate::towers::{Source, Stream};

/// The tensors of a model for towers that keep theirs or for towers that do not.
pub(crate) enum Supply {
    Kept(TensorReader, Precision),
    Streamed(Stream),
}

impl Supply {
    /// For towers of a model of this config, as the options say.
    pub(crate) fn new(tensors: TensorReader, config: &ModelConfig, options: OpenOptions) -> Supply {
        let precision = options.precision;
        match options.streamed {
            false => Supply::Kept(tensors, precision),
            true => {
                let shapes = config.parameter_shapes();
                Supply::Streamed(Stream::new(shapes, precision, Box::new(tensors)))
            }
        }
    }

    /// What `new` builds of the tensors for inference, each of which is read when it is wanted.
    pub(crate) fn build<T>(
        &mut self,
        config: &ModelConfig,
        new: impl FnOnce(&dyn Source) -> T,
    ) -> Result<T, Error> {
        match self {
            Supply::Streamed(stream) => stream.build(new),
            Supply::Kept(tensors, precision) => tensors.build(config, *precision, new),
        }
    }

    /// As [`Stream::check`].
    pub(crate) fn check(&self) -> Result<(), Error> {
        self.stream().map_or(Ok(()), |stream| stream.check())
    }

    /// Where its towers read on.
    pub(crate) fn stream(&self) -> Option<Stream> {
        match self {
            Supply::Streamed(stream) => Some(stream.clone()),
            Supply::Kept(..) => None,
        }
    }
}
