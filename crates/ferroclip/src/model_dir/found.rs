//! Models that any program wrote, found by their content.
//!
//! | path | config | dialect |
//! |---|---|---|
//! | a directory with `open_clip_config.json` | that | as the weights tell |
//! | a directory with `config.json` | translated from transformers' | as the weights tell |
//! | a file of weights beside one of these | as for the directory | as the weights tell |
//! | a file of weights alone: OpenAI's archives, state dictionaries, training checkpoints | inferred from shapes | open_clip |

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::layout::{ConfigFile, Layout, WeightsFile};
use super::tokenizer::Conventions;
use super::{hugging_face, tokenizer};
use crate::checkpoint::{Checkpoint, TensorReader, infer};
use crate::config::Config;
use crate::error::Error;
use crate::files::read_text;
use crate::image::ImagePipeline;
use crate::tokenizer::Tokenizer;

/// Longest config that is read.
const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// A model whose config is known and whose tensors are checked by name and shape. None of them is read yet.
pub(crate) struct Found {
    pub(crate) config: Config,
    pub(crate) tensors: TensorReader,
    pub(crate) origin: Origin,
    folder: PathBuf,
    conventions: Conventions,
}

/// Where a model came from, and what was decided where its files leave something open.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// The format of the weights: `safetensors`, `PyTorch` or `TorchScript`.
    pub format: &'static str,
    /// Whose names the weights have.
    pub dialect: &'static str,
    /// How texts and pictures are prepared: as in `open_clip` or in `transformers`.
    pub conventions: &'static str,
    /// Fields that the files do not tell, with what was assumed and why.
    pub assumptions: Vec<String>,
    /// Keys of the configs that change no numbers and were passed over.
    pub ignored: Vec<String>,
}

/// Opens the model at this path.
///
/// # Errors
/// When files are missing or damaged, or do not belong together.
pub(crate) fn open(path: &Path) -> Result<Found, Error> {
    let layout = Layout::find(path)?;
    let checkpoint = match &layout.weights {
        WeightsFile::One(path) => Checkpoint::open(path)?,
        WeightsFile::Shards(index, paths) => Checkpoint::open_shards(paths, index)?,
    };
    let mut origin = Origin {
        format: checkpoint.kind().name(),
        dialect: checkpoint.dialect().name(),
        conventions: "open_clip",
        ..Origin::default()
    };
    let config = match &layout.config {
        ConfigFile::OpenClip(path) => {
            let text = read_text(path, MAX_CONFIG_BYTES)?;
            origin.assumptions = left_open(&text);
            Config::from_json(&text, &path.display().to_string())?
        }
        ConfigFile::HuggingFace(path) => {
            origin.conventions = "transformers";
            translated(path, &layout.folder, &mut origin)?
        }
        ConfigFile::None => inferred(&checkpoint, path, &mut origin)?,
    };
    let conventions = match &layout.config {
        ConfigFile::HuggingFace(_) => Conventions::Transformers,
        _ => Conventions::OpenClip,
    };
    let tensors = checkpoint.model(&config.model)?;
    Ok(Found { config, tensors, origin, folder: layout.folder, conventions })
}

impl Found {
    /// The tokenizer of the model.
    pub(crate) fn tokenizer(&self) -> Result<Tokenizer, Error> {
        tokenizer::load(&self.folder, &self.config, self.conventions)
    }
}

/// The fields that a config of open_clip leaves out and that decide numbers most often.
fn left_open(config: &str) -> Vec<String> {
    let config: Value = serde_json::from_str(config).unwrap_or_default();
    let fields = [
        ("model_cfg", &["quick_gelu"][..]),
        ("preprocess_cfg", &["size", "mean", "std", "interpolation", "resize_mode"][..]),
    ];
    let all = fields.iter().flat_map(|&(section, names)| names.iter().map(move |&n| (section, n)));
    all.filter(|&(section, name)| config[section].get(name).is_none())
        .map(|(section, name)| format!("`{section}.{name}` is not given: open_clip's default"))
        .collect()
}

fn translated(path: &Path, folder: &Path, origin: &mut Origin) -> Result<Config, Error> {
    let preprocessor = folder.join(hugging_face::PREPROCESSOR_FILE);
    let of_images = match preprocessor.is_file() {
        true => Some(read_text(&preprocessor, MAX_CONFIG_BYTES)?),
        false => {
            let missing = format!(
                "the image pipeline: OpenAI's, as there is no `{}`",
                hugging_face::PREPROCESSOR_FILE
            );
            origin.assumptions.push(missing);
            None
        }
    };
    let text = read_text(path, MAX_CONFIG_BYTES)?;
    let (config, ignored) = hugging_face::translate(&text, of_images.as_deref())
        .map_err(|reason| Error::Config { origin: path.display().to_string(), reason })?;
    origin.ignored = ignored;
    Ok(config)
}

fn inferred(checkpoint: &Checkpoint, path: &Path, origin: &mut Origin) -> Result<Config, Error> {
    let no_model = |reason: String| Error::NoModel { path: path.to_owned(), reason };
    let (model, assumptions) = infer(checkpoint).map_err(|reason| {
        no_model(format!("there is no config beside it, and its tensors do not tell one: {reason}"))
    })?;
    origin.assumptions = assumptions;
    origin.assumptions.push("the image pipeline: OpenAI's".to_owned());
    let preprocess =
        ImagePipeline { size: model.vision_cfg.image_size.each(), ..Default::default() };
    Config::new(model, preprocess).map_err(no_model)
}
