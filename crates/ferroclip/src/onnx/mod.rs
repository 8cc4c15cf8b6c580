//! Towers as ONNX graphs, for programs that run those.
//!
//! | file | input | outputs |
//! |---|---|---|
//! | `image.onnx` | `pixels`, f32 `[batch, 3, height, width]`, as `preprocess` writes them | `embedding`, `unit_embedding`, f32 `[batch, embed_dim]` |
//! | `text.onnx` | `ids`, i64 `[batch, length]`, padded behind the end of the text | the same |
//! | `inputs_outputs.safetensors` | `images`, `ids` | `image_unit`, `text_unit`: what this library computes of them in f32 |
//!
//! The weights, all f32, lie in `image.onnx.data` and `text.onnx.data`: a graph holds at most 2 GB. Operators are those of
//! opset 17. `length` may be anything up to the context length, but where the tower reads padding: there it is that.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use burn::prelude::*;
use ferroclip_ops::{Precision, unit_rows};
use prost::Message;
use safetensors::Dtype;
use safetensors::tensor::{TensorView, serialize};

use crate::config::{Config, ModelConfig};
use crate::error::Error;
use crate::files::write_atomically;
use crate::model_dir::{self, Found, new_folder};
use crate::open_options::OpenOptions;
use crate::param::elements;
use crate::towers::{ImageTower, Source, TextTower};
use graph::Graph;

mod graph;
mod image;
mod layers;
mod proto;
mod text;

/// Inputs that the reference holds of each kind.
const N_CHECKED: usize = 3;

/// Most positions of a text tower with a mask.
const MAX_MASKED: usize = 4096;

/// A tower that was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportedTower {
    /// `image` or `text`.
    pub tower: &'static str,
    /// Operators of its graph.
    pub operators: usize,
    /// Bytes of its weights.
    pub bytes: u64,
}

/// Writes the towers of the model at `model` as ONNX graphs into the directory `out`, which must not exist, with a reference
/// that tells whether a program runs them exactly.
///
/// # Errors
/// When the model cannot be opened at the sizes asked for, or a file cannot be written.
pub fn export_onnx(
    model: &Path,
    options: impl Into<OpenOptions>,
    out: &Path,
) -> Result<Vec<ExportedTower>, Error> {
    if out.exists() {
        let source = io::Error::from(io::ErrorKind::AlreadyExists);
        return Err(Error::io("create", out, source));
    }
    let mut found = model_dir::open_with(model, &options.into())?;
    let (towers, text) = (found.config.model.towers, &found.config.model.text_cfg);
    if towers.has_text() && !text.no_causal_mask && text.context_length > MAX_MASKED {
        let reason = format!(
            "its causal mask would be {0} x {0} numbers, and a graph holds it whole; limit {MAX_MASKED}",
            text.context_length
        );
        return Err(Error::Conversion { path: model.to_owned(), reason });
    }
    let mut written = Vec::new();
    new_folder(out, |folder| {
        written.clear();
        if towers.has_image() {
            written.push(write_tower("image", &mut found, folder, image::tower)?);
        }
        if towers.has_text() {
            written.push(write_tower("text", &mut found, folder, text::tower)?);
        }
        write_reference(&mut found, &folder.join("inputs_outputs.safetensors"))
    })?;
    Ok(written)
}

/// Writes the graph that `build` makes of a config, and its weights.
fn write_tower(
    tower: &'static str,
    found: &mut Found,
    folder: &Path,
    build: fn(&ModelConfig, &mut Graph<'_>) -> Result<(), Error>,
) -> Result<ExportedTower, Error> {
    let data_file = format!("{tower}.onnx.data");
    let path = folder.join(&data_file);
    let failed = |source| Error::io("write", &path, source);
    let file = File::create(&path).map_err(failed)?;
    let mut data = BufWriter::new(file);
    let mut graph = Graph::new(&mut found.tensors, &mut data, &data_file, &path);
    build(&found.config.model, &mut graph)?;
    let (model, bytes) = graph.finish(tower);
    data.flush().and_then(|()| data.get_ref().sync_all()).map_err(failed)?;
    let operators = model.graph.as_ref().map_or(0, |graph| graph.node.len());
    let encoded = model.encode_to_vec();
    write_atomically(&folder.join(format!("{tower}.onnx")), |out| out.write_all(&encoded))?;
    Ok(ExportedTower { tower, operators, bytes })
}

/// Writes fixed inputs and the unit embeddings of them.
fn write_reference(found: &mut Found, path: &Path) -> Result<(), Error> {
    let config = found.config.clone();
    let model = &config.model;
    let mut tensors: Vec<(&str, Dtype, Vec<usize>, Vec<u8>)> = Vec::new();
    let bytes = |numbers: &[f32]| numbers.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    let unit = |x: Tensor<2>| (x.dims().to_vec(), elements(unit_rows(x)));
    if model.towers.has_image() {
        let [height, width] = model.vision_cfg.image_size.each();
        let pixels = pixels(&config);
        let build = |source: &dyn Source| ImageTower::build(model, source);
        let tower = found.tensors.build(model, Precision::F32, build)?;
        let (shape, rows) = unit(tower.forward(&pixels, N_CHECKED));
        tensors.push(("images", Dtype::F32, vec![N_CHECKED, 3, height, width], bytes(&pixels)));
        tensors.push(("image_unit", Dtype::F32, shape, bytes(&rows)));
    }
    if model.towers.has_text() {
        let ids = ids(&config);
        let build = |source: &dyn Source| TextTower::build(model, source);
        let tower = found.tensors.build(model, Precision::F32, build)?;
        let (shape, rows) = unit(tower.forward(&ids));
        let length = model.text_cfg.context_length;
        let raw = ids.iter().flatten().flat_map(|&id| i64::from(id).to_le_bytes()).collect();
        tensors.push(("ids", Dtype::I64, vec![N_CHECKED, length], raw));
        tensors.push(("text_unit", Dtype::F32, shape, bytes(&rows)));
    }
    let bad = |e: safetensors::SafeTensorError| Error::Reference {
        origin: path.display().to_string(),
        reason: e.to_string(),
    };
    let views: Result<Vec<_>, safetensors::SafeTensorError> = tensors
        .iter()
        .map(|(name, dtype, shape, bytes)| {
            Ok((*name, TensorView::new(*dtype, shape.clone(), bytes)?))
        })
        .collect();
    let encoded = serialize(views.map_err(bad)?, None).map_err(bad)?;
    write_atomically(path, |out| out.write_all(&encoded))
}

/// Pixels of images that are not alike.
fn pixels(config: &Config) -> Vec<f32> {
    let n = N_CHECKED * config.model.vision_cfg.image_len();
    (0..n).map(|i| (i as f32 * 0.37).sin() + (i as f32 * 0.0011).cos()).collect()
}

/// Texts of a third, two thirds and all of the context, padded with 0.
fn ids(config: &Config) -> Vec<Vec<u32>> {
    let (length, last) =
        (config.model.text_cfg.context_length, config.model.text_cfg.vocab_size - 1);
    let text = |n: usize| {
        let end = (length * (n + 1) / N_CHECKED).max(2) - 1;
        let mut ids: Vec<u32> = (0..end).map(|i| ((i + n) * 7919 % last) as u32).collect();
        ids.push(last as u32);
        ids.resize(length, 0);
        ids
    };
    (0..N_CHECKED).map(text).collect()
}
