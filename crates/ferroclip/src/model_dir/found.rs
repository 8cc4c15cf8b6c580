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
use crate::checkpoint::{Checkpoint, FileKind, TensorReader, infer};
use crate::config::{Config, Towers};
use crate::error::Error;
use crate::files::{is_there, read_text};
use crate::image::ImagePipeline;
use crate::open_options::OpenOptions;
use crate::pretrained::{self, Pretrained};
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
    /// The public weights that the file is, by its checksum: `ViT-B-32:openai`.
    pub recognised: Option<String>,
    /// How texts and pictures are prepared: as in `open_clip` or in `transformers`.
    pub conventions: &'static str,
    /// The model's files that are there: config, weights, vocabulary.
    pub files: Vec<PathBuf>,
    /// Fields that the files do not tell, with what was assumed and why.
    pub assumptions: Vec<String>,
    /// Keys of the configs that change no numbers and were passed over.
    pub ignored: Vec<String>,
}

impl Origin {
    /// The assumptions that another file of the model would have settled, and that change all numbers: the activation of
    /// weights without a config, the image pipeline, and how texts become ids.
    pub fn guesses(&self) -> impl Iterator<Item = &str> {
        const DECISIVE: [&str; 4] =
            ["`quick_gelu`", "the image", "the vocabulary", "the preparation of texts"];
        let decisive = |line: &&str| DECISIVE.iter().any(|of| line.starts_with(of));
        self.assumptions.iter().map(String::as_str).filter(decisive)
    }
}

/// Opens the model at this path.
///
/// # Errors
/// When files are missing or damaged, or do not belong together.
pub(crate) fn open(path: &Path) -> Result<Found, Error> {
    open_known(path, pretrained::TABLE)
}

/// As [`open`], with this table of public weights.
fn open_known(path: &Path, table: &str) -> Result<Found, Error> {
    let layout = Layout::find(path)?;
    let checkpoint = match &layout.weights {
        WeightsFile::One(path) => Checkpoint::open(path)?,
        WeightsFile::Shards(index, paths) => Checkpoint::open_shards(paths, index)?,
    };
    let mut origin = Origin {
        format: checkpoint.kind().name(),
        dialect: checkpoint.dialect().name(),
        conventions: "open_clip",
        files: layout.files(),
        ..Origin::default()
    };
    let mut config = match &layout.config {
        ConfigFile::OpenClip(path) => {
            let text = read_text(path, MAX_CONFIG_BYTES)?;
            origin.assumptions = left_open(&text);
            Config::from_json(&text, &path.display().to_string())?
        }
        ConfigFile::HuggingFace(path) => {
            origin.conventions = "transformers";
            translated(path, &layout.folder, &checkpoint, &mut origin)?
        }
        ConfigFile::None => inferred(&checkpoint, path, &mut origin)?,
    };
    // No safetensors file was published with a checksum, and an archive alone is one of OpenAI's: reading all of it
    // would decide nothing.
    let is_settled = match checkpoint.kind() {
        FileKind::Safetensors => true,
        FileKind::TorchScript { .. } => layout.config == ConfigFile::None,
        FileKind::Torch => false,
    };
    if let WeightsFile::One(path) = &layout.weights
        && !is_settled
    {
        let known = pretrained::recognise(path, &config.model, table);
        let known = known.map_err(|source| Error::io("read", path, source))?;
        if let Some(known) = known {
            check_known(&known, &layout.config, &mut config, &mut origin)?;
        }
    }
    let conventions = match &layout.config {
        ConfigFile::HuggingFace(_) => Conventions::Transformers,
        _ => Conventions::OpenClip,
    };
    if config.model.towers.has_text() {
        origin.assumptions.extend(tokenizer::assumed(&layout.folder, &config, conventions)?);
    }
    let tensors = checkpoint.model(&config.model)?;
    Ok(Found { config, tensors, origin, folder: layout.folder, conventions })
}

/// As [`open`], at the sizes that are asked for.
///
/// # Errors
/// As [`open`]; and when the model cannot have such a size.
pub(crate) fn open_with(path: &Path, options: &OpenOptions) -> Result<Found, Error> {
    let mut found = open(path)?;
    let called = path.display().to_string();
    let notes = options.resize(&mut found.config, &mut found.tensors, &called)?;
    found.origin.assumptions.extend(notes);
    Ok(found)
}

impl Found {
    /// Whether the model, opened at this path, has the towers that are needed.
    ///
    /// # Errors
    /// When it has not.
    pub(crate) fn needs(&self, towers: Towers, path: &Path) -> Result<(), Error> {
        let has = self.config.model.towers;
        let tower = match () {
            () if towers.has_image() && !has.has_image() => "image",
            () if towers.has_text() && !has.has_text() => "text",
            () => return Ok(()),
        };
        Err(Error::NoTower { path: path.to_owned(), tower })
    }

    /// The tokenizer of the model.
    pub(crate) fn tokenizer(&self) -> Result<Tokenizer, Error> {
        tokenizer::load(&self.folder, &self.config, self.conventions)
    }
}

/// A config file must say what is known of public weights; an inferred config is corrected.
fn check_known(
    known: &Pretrained<'_>,
    file: &ConfigFile,
    config: &mut Config,
    origin: &mut Origin,
) -> Result<(), Error> {
    match file {
        ConfigFile::OpenClip(path) | ConfigFile::HuggingFace(path) => {
            if let Some(reason) = known.contradiction(&config.model, "checksum") {
                return Err(Error::Config { origin: path.display().to_string(), reason });
            }
        }
        ConfigFile::None => {
            config.model.quick_gelu = known.quick_gelu;
            let size = config.preprocess.size;
            config.preprocess = ImagePipeline { size, ..known.pipeline.clone() };
            origin
                .assumptions
                .retain(|line| !line.starts_with("`quick_gelu`") && !line.starts_with("the image"));
        }
    }
    origin.recognised = Some(known.name());
    Ok(())
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

fn translated(
    path: &Path,
    folder: &Path,
    checkpoint: &Checkpoint,
    origin: &mut Origin,
) -> Result<Config, Error> {
    let file = |name: &str| {
        let path = folder.join(name);
        is_there(&path)?.then(|| read_text(&path, MAX_CONFIG_BYTES)).transpose()
    };
    let nested = file(hugging_face::PROCESSOR_FILE)?;
    let of_images = match nested.as_deref().and_then(hugging_face::image_processor) {
        Some(section) => Some(section),
        None => file(hugging_face::PREPROCESSOR_FILE)?,
    };
    if of_images.is_none() {
        let missing = "the image pipeline: transformers' default for this family, as there is no \
                       `preprocessor_config.json`";
        origin.assumptions.push(missing.to_owned());
    }
    let text = read_text(path, MAX_CONFIG_BYTES)?;
    // `CLIPTextModel` and `CLIPVisionModel` end where the others project, and their configs do not tell.
    let projects = checkpoint.shapes().keys().any(|name| name.ends_with("_projection.weight"));
    let (config, ignored) = hugging_face::translate(&text, of_images.as_deref(), projects)
        .map_err(|reason| Error::Config { origin: path.display().to_string(), reason })?;
    origin.ignored = ignored;
    if !config.model.towers.has_image() {
        origin.assumptions.retain(|line| !line.starts_with("the image pipeline"));
    }
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

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// A model of the fixtures as if it were public weights.
    #[test]
    fn public_weights_are_recognised_and_may_not_be_contradicted() {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/checkpoints");
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("model.pt");
        fs::copy(fixtures.join("openai-state-dict/model.pt"), &path).expect("copied");
        let found = open(&path).expect("opened");
        assert!(!found.config.model.quick_gelu && found.origin.recognised.is_none());
        assert!(found.origin.assumptions.iter().any(|line| line.starts_with("`quick_gelu`")));

        // Eight digits, as open_clip's releases have them.
        let sha256 = &pretrained::sha256(&path).expect("read")[..8];
        let line = [
            "ViT-X",
            "openai",
            "",
            "",
            sha256,
            "1",
            "0.5,0.5,0.5",
            "0.5,0.5,0.5",
            "bilinear",
            "squash",
        ];
        let table = line.join("\t");
        let known = open_known(&path, &table).expect("opened");
        assert!(known.config.model.quick_gelu);
        assert_eq!(known.config.preprocess.mean, [0.5; 3]);
        assert_eq!(known.origin.recognised.as_deref(), Some("ViT-X:openai"));
        assert!(!known.origin.assumptions.iter().any(|line| line.starts_with("`quick_gelu`")));

        let config_file = folder.path().join(super::super::CONFIG_FILE);
        fs::write(&config_file, found.config.to_json()).expect("written");
        assert!(open(&path).is_ok(), "nothing is known of it");
        let error = open_known(&path, &table).err().expect("the config says GELU");
        let shown = error.to_string();
        assert!(
            shown.contains("asks for GELU")
                && shown.contains("`ViT-X:openai`, which have QuickGELU"),
            "{shown}"
        );
        assert_eq!(error.kind(), "config");
        fs::write(&config_file, known.config.to_json()).expect("written");
        assert!(open_known(&path, &table).expect("right").config.model.quick_gelu);
    }
}
