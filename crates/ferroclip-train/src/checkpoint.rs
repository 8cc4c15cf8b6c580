//! Checkpoints: everything that a run needs to go on as if nothing had happened.
//!
//! ```text
//! checkpoint-STEP/
//!   weights.safetensors   moment1.safetensors   moment2.safetensors   [ema.safetensors]
//!   state.json            position in the data, counts, length of metrics.jsonl
//! ```
//!
//! A checkpoint is written into a hidden directory, forced to disk and renamed, so that one that
//! has its name is whole. Old ones are renamed before they are removed, for the same reason. One
//! that is replaced stays, under a hidden name, until the new one has its name.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use ferroclip::image::ImagePipeline;
use ferroclip::{Config, FloatFormat, ModelConfig, WeightTensor, Weights, write_atomically};
use ferroclip_data::{Cursor, Tally};
use serde::{Deserialize, Serialize};

use crate::error::TrainError;
use crate::optimizer::{AdamW, Constants, Named};

pub(crate) const PREFIX: &str = "checkpoint-";
const TEMPORARY: &str = ".unfinished-";
const REPLACED: &str = ".replaced-";
const WEIGHTS: &str = "weights.safetensors";
const FIRST: &str = "moment1.safetensors";
const SECOND: &str = "moment2.safetensors";
const AVERAGE: &str = "ema.safetensors";
const STATE: &str = "state.json";
/// The format that this version writes.
const VERSION: u32 = 2;
/// The largest `state.json`.
const MAX_STATE_BYTES: u64 = 16 << 20;

/// Where a run stands, but for its tensors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Progress {
    version: u32,
    /// Steps done.
    pub(crate) step: u64,
    /// The step after which validation ran last.
    pub(crate) evaluated: u64,
    /// Where the next sample is.
    pub(crate) cursor: Cursor,
    /// Good and bad samples so far.
    pub(crate) tally: Tally,
    /// Texts so far that were cut to the context length.
    pub(crate) truncated: u64,
    /// Length of `metrics.jsonl`.
    pub(crate) metrics_bytes: u64,
    /// Time spent.
    pub(crate) seconds: f64,
    /// The best validation score so far.
    pub(crate) best: Option<Best>,
    /// Digests of the data sets.
    pub(crate) data: Vec<String>,
    /// The model's image pipeline, to notice another one.
    pub(crate) preprocess: ImagePipeline,
    /// The model's architecture, likewise.
    model: ModelConfig,
}

/// The best validation score.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Best {
    /// After which step.
    pub step: u64,
    /// The score, 0 to 1.
    pub score: f64,
}

impl Progress {
    pub(crate) fn new(cursor: Cursor, data: Vec<String>, model: &Config) -> Progress {
        Progress {
            version: VERSION,
            step: 0,
            evaluated: 0,
            cursor,
            tally: Tally::default(),
            truncated: 0,
            metrics_bytes: 0,
            seconds: 0.0,
            best: None,
            data,
            preprocess: model.preprocess.clone(),
            model: model.model.clone(),
        }
    }
}

/// All that changes in a run.
#[derive(Clone, Debug)]
pub(crate) struct RunState {
    pub(crate) weights: Weights,
    pub(crate) adam: AdamW,
    /// The running average, where it is on.
    pub(crate) average: Option<Weights>,
    pub(crate) progress: Progress,
}

/// The directory of the checkpoint of a step.
pub(crate) fn directory(out: &Path, step: u64) -> PathBuf {
    out.join(format!("{PREFIX}{step}"))
}

/// The steps that have a checkpoint, in order.
pub(crate) fn list(out: &Path) -> Result<Vec<u64>, TrainError> {
    let mut steps = Vec::new();
    for entry in fs::read_dir(out).map_err(TrainError::io("list", out))? {
        let name = entry.map_err(TrainError::io("list", out))?.file_name();
        let step: Option<u64> =
            name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.parse().ok());
        steps.extend(step);
    }
    steps.sort_unstable();
    Ok(steps)
}

/// Removes what a killed run left half-written or half-removed, and gives back its name to what was
/// about to be replaced.
pub(crate) fn sweep(out: &Path) -> Result<(), TrainError> {
    for entry in fs::read_dir(out).map_err(TrainError::io("list", out))? {
        let path = entry.map_err(TrainError::io("list", out))?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let replaced = name.strip_prefix(REPLACED).map(|name| out.join(name));
        if let Some(place) = replaced.as_ref().filter(|place| !place.exists()) {
            fs::rename(&path, place).map_err(TrainError::io("create", place))?;
            continue;
        }
        let of_a_model = name.starts_with('.') && name.ends_with(".tmp");
        if !name.starts_with(TEMPORARY) && !of_a_model && replaced.is_none() {
            continue;
        }
        let removed =
            if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.map_err(TrainError::io("remove", &path))?;
    }
    Ok(())
}

/// Lets `write` fill a hidden directory and gives it the name `name`, in place of what had it.
pub(crate) fn replace_directory(
    out: &Path,
    name: &str,
    write: impl FnOnce(&Path) -> Result<(), TrainError>,
) -> Result<PathBuf, TrainError> {
    let path = out.join(name);
    let hidden = out.join(format!("{TEMPORARY}{name}"));
    let old = out.join(format!("{REPLACED}{name}"));
    let written = (|| {
        if hidden.exists() {
            fs::remove_dir_all(&hidden).map_err(TrainError::io("remove", &hidden))?;
        }
        fs::create_dir(&hidden).map_err(TrainError::io("create", &path))?;
        write(&hidden).map_err(|error| match error {
            TrainError::Model(error) => error.renamed(&hidden, &path).into(),
            other => other,
        })?;
        sync(&hidden)?;
        if path.exists() {
            fs::rename(&path, &old).map_err(TrainError::io("replace", &path))?;
        }
        fs::rename(&hidden, &path).map_err(TrainError::io("create", &path))?;
        sync(out)?;
        if old.exists() {
            fs::remove_dir_all(&old).map_err(TrainError::io("remove", &old))?;
        }
        Ok(())
    })();
    if written.is_err() {
        // The first error is the one to report.
        let _ = fs::remove_dir_all(&hidden);
        if !path.exists() {
            let _ = fs::rename(&old, &path);
        }
    }
    written.map(|()| path)
}

/// Removes a directory of this name, if there is one, under another name.
fn remove(out: &Path, name: &str) -> Result<(), TrainError> {
    let path = out.join(name);
    if !path.exists() {
        return Ok(());
    }
    let hidden = out.join(format!("{TEMPORARY}old-{name}"));
    if hidden.exists() {
        fs::remove_dir_all(&hidden).map_err(TrainError::io("remove", &hidden))?;
    }
    fs::rename(&path, &hidden).map_err(TrainError::io("remove", &path))?;
    fs::remove_dir_all(&hidden).map_err(TrainError::io("remove", &hidden))
}

/// Forces a directory's names to disk, where the system can.
fn sync(path: &Path) -> Result<(), TrainError> {
    #[cfg(unix)]
    File::open(path).and_then(|dir| dir.sync_all()).map_err(TrainError::io("sync", path))?;
    #[cfg(not(unix))]
    let _ = path;
    Ok(())
}

/// Writes the checkpoint of the state's step and removes all but the last `keep_last`.
pub(crate) fn save(out: &Path, state: &RunState, keep_last: usize) -> Result<PathBuf, TrainError> {
    let step = state.progress.step;
    let path = replace_directory(out, &format!("{PREFIX}{step}"), |hidden| write(hidden, state))?;
    let steps = list(out)?;
    for old in &steps[..steps.len().saturating_sub(keep_last.max(1))] {
        remove(out, &format!("{PREFIX}{old}"))?;
    }
    Ok(path)
}

fn write(directory: &Path, state: &RunState) -> Result<(), TrainError> {
    let save = |name: &str, weights: &Weights| {
        weights.save(&directory.join(name), FloatFormat::F32).map_err(TrainError::from)
    };
    save(WEIGHTS, &state.weights)?;
    save(FIRST, &shaped(&state.adam.first, &state.weights))?;
    save(SECOND, &shaped(&state.adam.second, &state.weights))?;
    if let Some(average) = &state.average {
        save(AVERAGE, average)?;
    }
    let json = serde_json::to_vec_pretty(&state.progress).map_err(std::io::Error::other);
    let json = json.map_err(TrainError::io("write", directory))?;
    write_atomically(&directory.join(STATE), |file| file.write_all(&json))?;
    Ok(())
}

/// Numbers by name in the shapes that the weights have.
fn shaped(named: &Named, weights: &Weights) -> Weights {
    let tensors = weights.iter().map(|(name, weight)| {
        let data = named.get(name).cloned().unwrap_or_default();
        (name.clone(), WeightTensor { shape: weight.shape.clone(), data })
    });
    tensors.collect()
}

/// Reads the checkpoint of a step.
pub(crate) fn load(
    out: &Path,
    step: u64,
    model: &ModelConfig,
    constants: Constants,
    has_average: bool,
) -> Result<RunState, TrainError> {
    let path = directory(out, step);
    let bad = |reason: String| TrainError::Checkpoint { path: path.clone(), reason };
    let mut json = String::new();
    let file = File::open(path.join(STATE)).map_err(|error| bad(error.to_string()))?;
    let read = file.take(MAX_STATE_BYTES).read_to_string(&mut json);
    read.map_err(|error| bad(format!("`{STATE}`: {error}")))?;
    let progress: Progress =
        serde_json::from_str(&json).map_err(|error| bad(format!("`{STATE}`: {error}")))?;
    if progress.version != VERSION || progress.step != step {
        return Err(bad(format!(
            "`{STATE}` is of version {}, step {}",
            progress.version, progress.step
        )));
    }
    if progress.model != *model {
        let differences = "the architecture of `model.config`".to_owned();
        return Err(TrainError::ConfigChanged { out: out.to_owned(), differences });
    }
    let load = |name: &str| {
        Weights::load_for(&path.join(name), model).map_err(|error| bad(error.to_string()))
    };
    let flat = |weights: Weights| -> Named {
        weights.iter().map(|(name, tensor)| (name.clone(), tensor.data.clone())).collect()
    };
    let weights = load(WEIGHTS)?;
    let sizes = weights.iter().map(|(name, tensor)| (name.as_str(), tensor.data.len()));
    let mut adam = AdamW::new(constants, sizes);
    adam.steps = step;
    adam.first = flat(load(FIRST)?);
    adam.second = flat(load(SECOND)?);
    let average = has_average.then(|| load(AVERAGE)).transpose()?;
    Ok(RunState { weights, adam, average, progress })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The directory's only file, and how many hidden names there are beside it.
    fn found(out: &Path) -> (String, usize) {
        let hidden = |entry: &fs::DirEntry| entry.file_name().to_string_lossy().starts_with('.');
        let entries = fs::read_dir(out).unwrap().map(Result::unwrap);
        let text = fs::read_to_string(out.join("a/file")).unwrap_or_default();
        (text, entries.filter(hidden).count())
    }

    fn put(out: &Path, name: &str, text: &str) {
        fs::create_dir(out.join(name)).unwrap();
        fs::write(out.join(name).join("file"), text).unwrap();
    }

    #[test]
    fn a_directory_is_replaced_or_stays() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path();
        let write = |text: &'static str| {
            move |hidden: &Path| {
                fs::write(hidden.join("file"), text).map_err(TrainError::io("write", hidden))
            }
        };
        replace_directory(out, "a", write("1")).unwrap();
        replace_directory(out, "a", write("2")).unwrap();
        assert_eq!(found(out), ("2".to_owned(), 0));
        let fails = |_: &Path| Err(TrainError::Cancelled);
        replace_directory(out, "a", fails).unwrap_err();
        assert_eq!(found(out), ("2".to_owned(), 0));
    }

    #[test]
    fn a_kill_between_the_two_renames_loses_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path();
        put(out, ".unfinished-a", "half");
        put(out, ".replaced-a", "old");
        sweep(out).unwrap();
        assert_eq!(found(out), ("old".to_owned(), 0));
        // After the second one, the new directory counts.
        put(out, ".replaced-a", "older");
        put(out, ".unfinished-old-b", "");
        sweep(out).unwrap();
        assert_eq!(found(out), ("old".to_owned(), 0));
    }
}
