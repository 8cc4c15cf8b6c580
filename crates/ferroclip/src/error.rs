//! What can go wrong in this library, and what to do about it.

use std::path::{Path, PathBuf};

use crate::image::ImageError;
use crate::tokenizer::TokenizerError;

/// Why a model could not be read, written or run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused.
    #[error("cannot {action} `{}`: {source}", path.display())]
    Io {
        /// What was tried, for instance `read`.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the operating system says.
        source: std::io::Error,
    },
    /// No preset has this name.
    #[error("unknown model config: `{name}`")]
    UnknownPreset {
        /// The name asked for.
        name: String,
    },
    /// A model config cannot be read or contradicts itself.
    #[error("invalid model config in `{origin}`: {reason}")]
    Config {
        /// File or preset.
        origin: String,
        /// The field and what is wrong with it.
        reason: String,
    },
    /// The path holds no model.
    #[error("no model in `{}`: {reason}", path.display())]
    NoModel {
        /// The path as given.
        path: PathBuf,
        /// What was looked for.
        reason: String,
    },
    /// The model has only the other tower.
    #[error("the model `{}` has no {tower} tower", path.display())]
    NoTower {
        /// The path as given.
        path: PathBuf,
        /// `image` or `text`.
        tower: &'static str,
    },
    /// A file of weights is damaged or of a kind that is not read.
    #[error("cannot read the weights `{origin}`: {reason}")]
    Weights {
        /// The file.
        origin: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The weights are not those of the config.
    #[error("the weights `{origin}` do not fit the model config: {differences}")]
    Mismatch {
        /// The file.
        origin: String,
        /// Every missing, left-over and wrongly shaped tensor.
        differences: Differences,
    },
    /// A weight is NaN, infinite, or a value that it cannot have.
    #[error("the weights `{origin}` cannot be used: `{tensor}` holds {found}")]
    ImpossibleWeight {
        /// The file.
        origin: String,
        /// Name of the first such tensor.
        tensor: String,
        /// The value.
        found: f32,
    },
    /// Finite weights gave embeddings that are NaN or infinite.
    #[error("the model's embeddings are not finite numbers, though its weights are")]
    NotFinite,
    /// Another program could not use the model.
    #[error("cannot convert `{}`: {reason}", path.display())]
    Conversion {
        /// The model.
        path: PathBuf,
        /// What it could not do.
        reason: String,
    },
    /// What a model is to be compared with cannot be used.
    #[error("cannot compare with `{origin}`: {reason}")]
    Reference {
        /// The file.
        origin: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A vocabulary file is bad.
    #[error("cannot read the tokenizer `{origin}`: {source}")]
    Tokenizer {
        /// The file, or the config that asks for the tokenizer.
        origin: String,
        /// What is wrong with it.
        source: TokenizerError,
    },
    /// Tokenizer and text tower differ.
    #[error("the tokenizer has {found} entries, the model config expects `vocab_size`: {expected}")]
    Vocabulary {
        /// `vocab_size` of the config.
        expected: usize,
        /// Entries of the tokenizer.
        found: usize,
    },
    /// A picture cannot be used.
    #[error("cannot read the picture `{name}`: {source}")]
    Image {
        /// Its path, or its place in the input.
        name: String,
        /// What is wrong with it.
        source: ImageError,
    },
    /// Zero-shot classification without labels.
    #[error("the list of labels is empty")]
    NoLabels,
    /// Zero-shot classification without templates.
    #[error("the list of templates is empty")]
    NoTemplates,
    /// A template without a place for the label.
    #[error("the template has no `{{}}` for the label: `{template}`")]
    Template {
        /// The template as given.
        template: String,
    },
    /// Patch features of a text.
    #[error("texts have no patches")]
    NoPatches,
    /// The caller's flag was raised.
    #[error("cancelled")]
    Cancelled,
}

/// How the tensors of a file differ from those of a model config.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Differences {
    /// Names that the config needs and the file lacks.
    pub missing: Vec<String>,
    /// Names that the file has and the config does not know.
    pub left_over: Vec<String>,
    /// Name, shape by the config, shape in the file.
    pub misshapen: Vec<(String, Vec<usize>, Vec<usize>)>,
}

impl Differences {
    /// Whether the two agree.
    pub fn is_empty(&self) -> bool {
        self.missing.is_empty() && self.left_over.is_empty() && self.misshapen.is_empty()
    }
}

impl std::fmt::Display for Differences {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let quoted = |names: &[String]| names.iter().map(|n| format!("`{n}`")).collect::<Vec<_>>();
        let shapes = self.misshapen.iter();
        let shapes =
            shapes.map(|(n, want, got)| format!("`{n}` (expected {want:?}, found {got:?})"));
        let groups = [
            ("missing", quoted(&self.missing)),
            ("left over", quoted(&self.left_over)),
            ("wrong shape", shapes.collect()),
        ];
        let mut separator = "";
        for (title, items) in groups.iter().filter(|(_, items)| !items.is_empty()) {
            write!(f, "{separator}{title}: {}", items.join(", "))?;
            separator = "; ";
        }
        Ok(())
    }
}

impl Error {
    pub(crate) fn io(action: &'static str, path: &Path, source: std::io::Error) -> Error {
        Error::Io { action, path: path.to_owned(), source }
    }

    /// Tells of a file below `to` instead of `from`: where a directory is written under a temporary
    /// name, the user knows the other one.
    #[must_use]
    pub fn renamed(self, from: &Path, to: &Path) -> Error {
        match self {
            Error::Io { action, path, source } => {
                let path = path.strip_prefix(from).map(|file| to.join(file)).unwrap_or(path);
                Error::Io { action, path, source }
            }
            other => other,
        }
    }

    /// One word for programs: `io`, `config`, `model`, `weights`, `tokenizer`, `image`, `input` or
    /// `cancelled`.
    pub fn kind(&self) -> &'static str {
        match self {
            Error::Io { .. } => "io",
            Error::UnknownPreset { .. } | Error::Config { .. } => "config",
            Error::NoModel { .. } | Error::NoTower { .. } | Error::Conversion { .. } => "model",
            Error::Weights { .. }
            | Error::Mismatch { .. }
            | Error::ImpossibleWeight { .. }
            | Error::NotFinite => "weights",
            Error::Tokenizer { .. } | Error::Vocabulary { .. } => "tokenizer",
            Error::Image { .. } => "image",
            Error::NoLabels
            | Error::NoTemplates
            | Error::NoPatches
            | Error::Template { .. }
            | Error::Reference { .. } => "input",
            Error::Cancelled => "cancelled",
        }
    }

    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Error::Io { source, .. } => return io_hint(source),
            Error::UnknownPreset { .. } => {
                let names: Vec<&str> = crate::Config::preset_names().collect();
                return Some(format!("known configs: {}", names.join(", ")));
            }
            Error::Config { .. } => {
                "plain ViT and ResNet models of open_clip and CLIP models of transformers are supported; correct or remove the field named"
            }
            Error::NoModel { .. } => {
                "give a directory of open_clip or transformers, with its config and weights, or a file of weights"
            }
            Error::NoTower { .. } => {
                "it is a model of one tower, for `embed` of what that tower reads; take the whole model for anything else"
            }
            Error::Weights { .. } => {
                "if it is damaged, copy or download it again; if it holds more than weights, save `model.state_dict()` alone, \
                 in f32, f16 or bf16"
            }
            Error::Mismatch { .. } => {
                "config and weights belong to different models, or the file is incomplete; take both from one source"
            }
            Error::ImpossibleWeight { .. } | Error::NotFinite => {
                "the training that wrote the weights diverged, or they are damaged; use another checkpoint"
            }
            Error::Tokenizer { source, .. } => return source.hint(),
            Error::Vocabulary { .. } => "use the `tokenizer.json` that came with the model",
            Error::Image { source, .. } => return source.hint(),
            Error::Conversion { .. } => {
                "convert it for another program; open_clip's form holds most models"
            }
            Error::Reference { .. } => {
                "a reference is a safetensors file as `fixtures/towers/make.py` writes it: `images` with `image_unit`, `ids` with `text_unit`"
            }
            Error::NoPatches => "ask for embeddings or pooled features of texts",
            Error::NoLabels => "give at least one label",
            Error::NoTemplates => "give at least one template, for instance `a photo of a {}.`",
            Error::Template { .. } => "write `{}` where the label belongs: `a photo of a {}.`",
            Error::Cancelled => return None,
        };
        Some(hint.to_owned())
    }
}

/// What makes room, where a file could not be written for want of it: the disk is full, a quota is
/// used up, or the file is larger than it may be. `None` for every other error.
pub fn make_room(error: &std::io::Error) -> Option<&'static str> {
    use std::io::ErrorKind;
    match error.kind() {
        ErrorKind::StorageFull => Some("free some space"),
        ErrorKind::QuotaExceeded => Some("free some space, or raise the quota"),
        ErrorKind::FileTooLarge => Some("raise the limit on the size of a file (`ulimit -f`)"),
        _ => None,
    }
}

fn io_hint(error: &std::io::Error) -> Option<String> {
    use std::io::ErrorKind;
    if let Some(hint) = make_room(error) {
        return Some(format!("{hint}, or write to another disk"));
    }
    let hint = match error.kind() {
        ErrorKind::NotFound => "check the path",
        ErrorKind::PermissionDenied => "check the permissions of the file and its directory",
        ErrorKind::IsADirectory => "give a file, not a directory",
        ErrorKind::AlreadyExists => "give a path that does not exist yet",
        _ => return None,
    };
    Some(hint.to_owned())
}
