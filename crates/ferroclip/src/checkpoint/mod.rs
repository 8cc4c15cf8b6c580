//! Files of weights: safetensors, and what `torch.save` and TorchScript write.
//!
//! | module | |
//! |---|---|
//! | `safetensors` | the header of a safetensors file |
//! | `torch`, `zip`, `pickle` | the directory of a PyTorch archive, read as data: nothing in it is executed |
//! | `stored` | a tensor in a file, whatever the format, and its elements as f32 |
//! | `dialect` | the names and layouts that other programs keep the same tensors under |
//! | `reader` | the tensors of a model by our names, checked against the config |
//! | `supply` | those tensors for towers that keep them, or read them while inputs pass |
//! | `infer` | the architecture, where there is no config |
//! | `write` | files in any dialect |
//!
//! A file is hostile until checked: what says where tensors lie is bounded and compared with the length of the file,
//! names and shapes with the config, before the first element is read. Tensors are then read one by one, through a
//! small buffer, into their final form; files are not mapped into memory.

use std::io::SeekFrom;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::config::ModelConfig;
use crate::error::Error;
use crate::files::open_regular;
use crate::param::Weights;
use stored::{Bytes, TensorFile};

mod cursor;
mod dialect;
mod infer;
mod pickle;
mod reader;
mod resize;
mod safetensors;
mod stored;
mod supply;
mod torch;
mod write;
mod zip;

pub(crate) use dialect::Dialect;
pub(crate) use infer::{infer, infer_shapes, ratio};
pub(crate) use reader::{Checkpoint, TensorReader};
pub(crate) use resize::Resize;
pub(crate) use supply::Supply;

/// What checkpoints hold besides parameters: OpenAI's buffers and, in older files of transformers, the numbers of
/// the positions.
const BOOKKEEPING: [&str; 6] = [
    "attn_mask",
    "context_length",
    "input_resolution",
    "vocab_size",
    "text_model.embeddings.position_ids",
    "vision_model.embeddings.position_ids",
];
/// The step count of PyTorch's batch norms, which nothing reads.
const BATCHES_TRACKED: &str = ".num_batches_tracked";

fn is_bookkeeping(name: &str) -> bool {
    BOOKKEEPING.contains(&name) || name.ends_with(BATCHES_TRACKED)
}

/// How the elements are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FloatFormat {
    /// 4 bytes, exact.
    #[default]
    F32,
    /// 2 bytes, rounded to the nearest.
    F16,
}

/// The format of a file of weights, found by its first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FileKind {
    Safetensors,
    /// A dictionary written by `torch.save`.
    Torch,
    /// A module with its code, as OpenAI published its models. Those have modules `QuickGELU`, and open_clip's may have
    /// `GELU`.
    TorchScript {
        has_gelu: bool,
    },
}

impl FileKind {
    /// What `inspect` calls it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            FileKind::Safetensors => "safetensors",
            FileKind::Torch => "PyTorch",
            FileKind::TorchScript { .. } => "TorchScript",
        }
    }
}

impl TensorFile {
    pub(super) fn open(path: &Path) -> Result<(TensorFile, FileKind), Error> {
        let file = open_regular(path)?;
        TensorFile::new(Box::new(file), &path.display().to_string())
    }

    pub(super) fn new(
        mut source: Box<dyn Bytes>,
        origin: &str,
    ) -> Result<(TensorFile, FileKind), Error> {
        let bad = |reason: String| Error::Weights { origin: origin.to_owned(), reason };
        let len = source.seek(SeekFrom::End(0)).map_err(|e| bad(e.to_string()))?;
        let mut first = [0; 8];
        let start = &mut first[..len.min(8) as usize];
        source.seek(SeekFrom::Start(0)).map_err(|e| bad(e.to_string()))?;
        source.read_exact(start).map_err(|e| bad(e.to_string()))?;
        let (tensors, kind) = match first {
            _ if len == 0 => return Err(bad("the file is empty".to_owned())),
            [b'P', b'K', 3 | 5 | 6, 4 | 6, ..] => {
                let torch = torch::read(&mut *source, len).map_err(bad)?;
                (torch.tensors, torch.kind)
            }
            // The pickles of `torch.save` before PyTorch 1.6 begin with this number of theirs.
            [0x80, 2, 0x8a, 10, ..] => {
                return Err(bad(
                    "a file of PyTorch's format before version 1.6; load it in PyTorch and save it again".into(),
                ));
            }
            _ if len < 8 => return Err(bad("the file ends within its header".to_owned())),
            _ => (safetensors::read(&mut *source, len).map_err(bad)?, FileKind::Safetensors),
        };
        Ok((TensorFile { source, len, origin: origin.to_owned(), tensors }, kind))
    }

    /// Takes this away from the beginning of all names, if all have it: training on several devices adds it.
    fn strip(&mut self, prefix: &str) {
        if self.tensors.keys().all(|name| name.starts_with(prefix)) {
            let tensors = std::mem::take(&mut self.tensors).into_iter();
            self.tensors =
                tensors.map(|(name, stored)| (name[prefix.len()..].to_owned(), stored)).collect();
        }
    }

    /// Puts this before the names of the parts that transformers' towers have.
    fn put_below(&mut self, tower: &str) {
        const PARTS: [&str; 6] = [
            "embeddings.",
            "encoder.",
            "final_layer_norm.",
            "pre_layrnorm.",
            "post_layernorm.",
            "head.",
        ];
        let tensors = std::mem::take(&mut self.tensors).into_iter();
        let named = |name: String| match PARTS.iter().any(|part| name.starts_with(part)) {
            true => format!("{tower}{name}"),
            false => name,
        };
        self.tensors = tensors.map(|(name, stored)| (named(name), stored)).collect();
    }
}

impl Weights {
    /// Reads all tensors of a file of weights, whatever they are called.
    ///
    /// # Errors
    /// When the file cannot be read, is damaged, or holds other elements than f32, f16 and bf16.
    pub fn load(path: &Path) -> Result<Weights, Error> {
        Checkpoint::open(path)?.read_all()
    }

    /// Reads the weights of a model of this config, in any dialect.
    ///
    /// # Errors
    /// As [`Weights::load`]; also when a tensor is missing, left over or wrongly shaped, or an
    /// element is NaN or infinite.
    pub fn load_for(path: &Path, config: &ModelConfig) -> Result<Weights, Error> {
        Checkpoint::open(path)?.model(config)?.read_all()
    }

    /// As [`Weights::load_for`], from the bytes of a file that errors call `origin`.
    ///
    /// # Errors
    /// As [`Weights::load_for`].
    pub fn from_bytes(
        bytes: &'static [u8],
        origin: &str,
        config: &ModelConfig,
    ) -> Result<Weights, Error> {
        Checkpoint::from_bytes(bytes, origin)?.model(config)?.read_all()
    }
}
