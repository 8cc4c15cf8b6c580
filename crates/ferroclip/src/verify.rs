//! A model against what another program computed with it.

use std::path::{Path, PathBuf};

use burn::prelude::*;
use ferroclip_ops::unit_rows;
use safetensors::{Dtype, SafeTensors};

use crate::checkpoint::Supply;
use crate::config::{Config, Towers};
use crate::error::Error;
use crate::files::read_bytes;
use crate::model_dir;
use crate::open_options::OpenOptions;
use crate::param::elements;
use crate::towers::{ImageTower, TextTower};

/// The file of a reference in its directory.
const FILE: &str = "inputs_outputs.safetensors";
/// Largest reference that is read, and longest header in it: the crate that reads it takes 70 bytes for each.
const MAX_BYTES: u64 = 256 << 20;
const MAX_HEADER_BYTES: u64 = 1 << 20;
/// Inputs that go through a tower together.
const BATCH: usize = 8;

/// How far a model's unit embeddings lie from those of a reference.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Agreement {
    /// Those of images, where the reference has some.
    pub image: Option<Difference>,
    /// Those of texts, where the reference has some.
    pub text: Option<Difference>,
}

/// Largest absolute difference of an element.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Difference {
    /// Embeddings that were compared.
    pub n: usize,
    /// The largest difference.
    pub largest: f32,
}

/// Compares the model at `model` with a reference: a directory with `inputs_outputs.safetensors`, or such a file,
/// which holds any of
///
/// | tensor | shape | |
/// |---|---|---|
/// | `images` | `[n, 3, height, width]` | f32, what the image tower is fed |
/// | `image_unit` | `[n, embed_dim]` | f32, unit embeddings of them |
/// | `ids` | `[m, length]` | i64, token ids, padded with 0 behind the end of text |
/// | `text_unit` | `[m, embed_dim]` | f32, unit embeddings of them |
///
/// # Errors
/// When the model cannot be opened, or the reference cannot be read or is not one of this model.
pub fn verify(
    model: &Path,
    reference: &Path,
    options: impl Into<OpenOptions>,
) -> Result<Agreement, Error> {
    let options = options.into();
    let path = match reference.is_dir() {
        true => reference.join(FILE),
        false => reference.to_owned(),
    };
    let bytes = read_bytes(&path, MAX_BYTES)?;
    let reference = Reference::new(&bytes, path)?;
    let found = model_dir::open_with(model, &options)?;
    let images = reference.expected("images", "image_unit")?;
    let texts = reference.expected("ids", "text_unit")?;
    if images.is_some() {
        found.needs(Towers::Image, model)?;
    }
    if texts.is_some() {
        found.needs(Towers::Text, model)?;
    }
    let config = found.config;
    let (mut supply, model) = (Supply::new(found.tensors, &config.model, options), &config.model);
    let image = match images {
        None => None,
        Some(expected) => {
            let images = reference.images(&config)?;
            let tower = supply.build(model, |source| ImageTower::build(model, source))?;
            let length = model.vision_cfg.image_len();
            let forward = |pixels: &[f32]| tower.forward(pixels, pixels.len() / length);
            let batches = images.chunks(BATCH * length).map(forward);
            let difference = reference.compare(batches, &expected, &config);
            supply.check()?;
            Some(difference?)
        }
    };
    let text = match texts {
        None => None,
        Some(expected) => {
            let (length, ids) = reference.ids(&config)?;
            let tower = supply.build(model, |source| TextTower::build(model, source))?;
            let texts = |ids: &[u32]| ids.chunks(length).map(<[u32]>::to_vec).collect::<Vec<_>>();
            let batches = ids.chunks(BATCH * length).map(|ids| tower.forward(&texts(ids)));
            let difference = reference.compare(batches, &expected, &config);
            supply.check()?;
            Some(difference?)
        }
    };
    match image.is_none() && text.is_none() {
        true => Err(reference
            .bad("it has neither `images` with `image_unit` nor `ids` with `text_unit`".into())),
        false => Ok(Agreement { image, text }),
    }
}

struct Reference<'a> {
    tensors: SafeTensors<'a>,
    path: PathBuf,
}

/// Shape and elements.
type Numbers<T> = (Vec<usize>, Vec<T>);

impl<'a> Reference<'a> {
    fn new(bytes: &'a [u8], path: PathBuf) -> Result<Reference<'a>, Error> {
        let origin = || path.display().to_string();
        let header = bytes.first_chunk().map_or(0, |length| u64::from_le_bytes(*length));
        if header > MAX_HEADER_BYTES {
            let reason = format!("a header of {header} bytes, limit {MAX_HEADER_BYTES}");
            return Err(Error::Reference { origin: origin(), reason });
        }
        let tensors = SafeTensors::deserialize(bytes)
            .map_err(|e| Error::Reference { origin: origin(), reason: e.to_string() })?;
        Ok(Reference { tensors, path })
    }

    fn bad(&self, reason: String) -> Error {
        Error::Reference { origin: self.path.display().to_string(), reason }
    }

    /// The outputs, where there are inputs for them.
    fn expected(&self, inputs: &str, outputs: &str) -> Result<Option<Numbers<f32>>, Error> {
        let has = |name: &str| self.tensors.tensor(name).is_ok();
        match has(inputs) && has(outputs) {
            true => self.numbers(outputs, Dtype::F32, f32::from_le_bytes).map(Some),
            false => Ok(None),
        }
    }

    fn numbers<T, const N: usize>(
        &self,
        name: &str,
        dtype: Dtype,
        from: fn([u8; N]) -> T,
    ) -> Result<Numbers<T>, Error> {
        let view = self.tensors.tensor(name).map_err(|e| self.bad(e.to_string()))?;
        if view.dtype() != dtype {
            return Err(self.bad(format!("`{name}` holds {:?}, expected {dtype:?}", view.dtype())));
        }
        let elements = view.data().as_chunks::<N>().0.iter().map(|&bytes| from(bytes));
        Ok((view.shape().to_vec(), elements.collect()))
    }

    fn images(&self, config: &Config) -> Result<Vec<f32>, Error> {
        let (shape, images) = self.numbers("images", Dtype::F32, f32::from_le_bytes)?;
        let [height, width] = config.model.vision_cfg.image_size.each();
        match shape.as_slice() {
            [_, 3, h, w] if [*h, *w] == [height, width] => Ok(images),
            _ => Err(self.bad(format!(
                "`images` has the shape {shape:?}, the image tower expects [n, 3, {height}, {width}]"
            ))),
        }
    }

    /// Ids of a text, and those of all texts.
    fn ids(&self, config: &Config) -> Result<(usize, Vec<u32>), Error> {
        let (shape, ids) = self.numbers("ids", Dtype::I64, i64::from_le_bytes)?;
        let text = &config.model.text_cfg;
        let least = if text.reads_padding() { text.context_length } else { 1 };
        let length = match shape.as_slice() {
            [_, length] if (least..=text.context_length).contains(length) => *length,
            _ => {
                return Err(self.bad(format!(
                    "`ids` has the shape {shape:?}, the text tower reads {least} to {} ids a text",
                    text.context_length
                )));
            }
        };
        let id = |&id: &i64| {
            let known = u32::try_from(id).ok().filter(|&id| (id as usize) < text.vocab_size);
            known.ok_or_else(|| {
                self.bad(format!(
                    "`ids` holds {id}, the vocabulary has {} entries",
                    text.vocab_size
                ))
            })
        };
        let ids: Result<Vec<u32>, Error> = ids.iter().map(id).collect();
        Ok((length, ids?))
    }

    /// The largest difference of the unit rows of `batches` to those expected.
    fn compare(
        &self,
        batches: impl Iterator<Item = Tensor<2>>,
        (shape, expected): &Numbers<f32>,
        config: &Config,
    ) -> Result<Difference, Error> {
        let found: Vec<f32> = batches.flat_map(|rows| elements(unit_rows(rows))).collect();
        let n = found.len() / config.model.embed_dim;
        if n == 0 {
            return Err(self.bad("no rows to compare with".to_owned()));
        }
        if *shape != [n, config.model.embed_dim] {
            let wanted = [n, config.model.embed_dim];
            return Err(self.bad(format!("embeddings of the shape {shape:?}, expected {wanted:?}")));
        }
        // Not `max`, which would pass over NaN.
        let differences = found.iter().zip(expected).map(|(a, b)| (a - b).abs());
        let largest = differences.fold(0.0, |most: f32, d| if d <= most { most } else { d });
        Ok(Difference { n, largest })
    }
}
