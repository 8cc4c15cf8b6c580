//! What can go wrong in training and evaluation, and what to do about it.

use std::path::{Path, PathBuf};

use ferroclip_data::DataError;

use crate::checkpoint;

/// Why a run could not begin, go on or be scored.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
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
    /// The training file cannot be read or has a value out of range.
    #[error("invalid training config `{origin}`: {reason}")]
    Config {
        /// The file, or the override.
        origin: String,
        /// The field and what is wrong with it.
        reason: String,
    },
    /// Values that are right by themselves do not fit the data, the model or the run.
    #[error("the training settings do not fit: {reason}")]
    Unfit {
        /// The field and what it does not fit.
        reason: String,
    },
    /// `out` holds a run already.
    #[error("`{}` holds a run already", out.display())]
    RunExists {
        /// The run directory.
        out: PathBuf,
    },
    /// `out` holds something that is no run.
    #[error("`{}` is not empty, and holds no run", out.display())]
    OutNotEmpty {
        /// The directory.
        out: PathBuf,
    },
    /// Another process trains in `out`.
    #[error("another process trains in `{}`", out.display())]
    RunBusy {
        /// The run directory.
        out: PathBuf,
    },
    /// There is no run to go on with.
    #[error("`{}` holds no run to resume", out.display())]
    NoRun {
        /// The run directory.
        out: PathBuf,
    },
    /// The config is not that of the run to resume.
    #[error("the config differs from that of the run in `{}`: {differences}", out.display())]
    ConfigChanged {
        /// The run directory.
        out: PathBuf,
        /// Each field with its value then and now.
        differences: String,
    },
    /// The data is not that of the run to resume.
    #[error("the rows of `{}` are not those that the run began with", path.display())]
    DataChanged {
        /// The data.
        path: PathBuf,
    },
    /// A checkpoint cannot be read.
    #[error("cannot read the checkpoint `{}`: {reason}", path.display())]
    Checkpoint {
        /// Its directory or file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The loss or a gradient is NaN or infinite.
    #[error("training diverged in step {step}: {what} is {value}")]
    Diverged {
        /// The step, from 1.
        step: u64,
        /// `the loss` or `the gradient norm`.
        what: &'static str,
        /// What it is.
        value: f64,
        /// The last checkpoint before it.
        checkpoint: Option<PathBuf>,
    },
    /// Evaluation data cannot be scored.
    #[error("cannot evaluate `{}`: {reason}", path.display())]
    Evaluation {
        /// The data.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The flag was raised during an evaluation.
    #[error("cancelled")]
    Cancelled,
    /// The model.
    #[error(transparent)]
    Model(#[from] ferroclip::Error),
    /// The data.
    #[error(transparent)]
    Data(#[from] DataError),
}

impl TrainError {
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| TrainError::Io { action, path, source }
    }

    pub(crate) fn config(origin: impl Into<String>, reason: impl Into<String>) -> Self {
        TrainError::Config { origin: origin.into(), reason: reason.into() }
    }

    /// What makes room, where a file of the run could not be written for want of it.
    pub fn no_room(&self) -> Option<&'static str> {
        match self {
            TrainError::Io { source, .. }
            | TrainError::Model(ferroclip::Error::Io { source, .. }) => {
                ferroclip::make_room(source)
            }
            _ => None,
        }
    }

    /// One word for programs.
    pub fn kind(&self) -> &'static str {
        match self {
            TrainError::Io { .. } => "io",
            TrainError::Config { .. }
            | TrainError::Unfit { .. }
            | TrainError::ConfigChanged { .. } => "config",
            TrainError::RunExists { .. }
            | TrainError::OutNotEmpty { .. }
            | TrainError::RunBusy { .. }
            | TrainError::NoRun { .. } => "run",
            TrainError::DataChanged { .. } | TrainError::Data(_) => "data",
            TrainError::Checkpoint { .. } => "checkpoint",
            TrainError::Diverged { .. } => "diverged",
            TrainError::Evaluation { .. } => "evaluation",
            TrainError::Cancelled => "cancelled",
            TrainError::Model(error) => error.kind(),
        }
    }

    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        use std::io::ErrorKind;
        if let Some(hint) = self.no_room() {
            return Some(format!(
                "{hint}, then run it again; a run that has begun goes on with `--resume`"
            ));
        }
        let hint = match self {
            TrainError::Io { source, .. } => match source.kind() {
                ErrorKind::NotFound => "check the path",
                ErrorKind::PermissionDenied => "check the permissions",
                _ => return None,
            },
            TrainError::Config { .. } | TrainError::Unfit { .. } => {
                "correct the field named; docs/training.md lists them all"
            }
            TrainError::RunExists { .. } => {
                "go on with it by `--resume`, or choose another directory by `--set run.out=...`"
            }
            TrainError::OutNotEmpty { .. } => {
                "choose a new directory, by `run.out` or `--set run.out=...`"
            }
            TrainError::RunBusy { .. } => "wait for it, or stop it first",
            TrainError::NoRun { .. } => "start it without `--resume`, or correct `run.out`",
            TrainError::ConfigChanged { .. } => {
                "only `run.epochs`, `run.out`, `run.threads`, `optimizer.lr` and `optimizer.clip_norm` may change; undo the others or start a new run"
            }
            TrainError::DataChanged { .. } => "restore the data, or start a new run",
            TrainError::Checkpoint { path, .. }
                if path
                    .file_name()
                    .is_some_and(|name| name.to_string_lossy().starts_with(checkpoint::PREFIX)) =>
            {
                "if it is damaged, move it away and resume again: the one before it is used"
            }
            TrainError::Checkpoint { .. } => {
                "restore the run's files from a copy, or start a new run in another directory"
            }
            TrainError::Diverged { checkpoint: Some(path), .. } => {
                return Some(format!(
                    "the last good checkpoint is `{}`: go on from it by `--resume --set optimizer.lr=...` with a lower rate, or with `optimizer.clip_norm`",
                    path.display()
                ));
            }
            TrainError::Diverged { .. } => "lower `optimizer.lr` or set `optimizer.clip_norm`",
            TrainError::Evaluation { .. } => {
                "check the data, the column of its labels and the labels to choose from"
            }
            TrainError::Cancelled => return None,
            TrainError::Model(error) => return error.hint(),
            TrainError::Data(error) => return error.hint(),
        };
        Some(hint.to_owned())
    }
}
