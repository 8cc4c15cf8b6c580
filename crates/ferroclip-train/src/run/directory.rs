//! The run directory: begun once, found again.

use std::fs;
use std::io::{Read, Write};
use std::path::Path;

use ferroclip::{ModelFiles, write_atomically};

use crate::checkpoint::{self, RunState};
use crate::config::TrainConfig;
use crate::error::TrainError;

use super::FINAL;

const CONFIG_FILE: &str = "config.toml";

/// The run directory, locked by the process that trains; the system lets go of it when that ends,
/// however it ends. None where the system cannot open or lock a directory: then the user must take
/// care.
pub(super) type Lock = Option<fs::File>;

/// Makes the run directory, which must not hold a run, and locks it.
pub(super) fn create(config: &TrainConfig) -> Result<Lock, TrainError> {
    let out = &config.run.out;
    fs::create_dir_all(out).map_err(TrainError::io("create", out))?;
    let entries = fs::read_dir(out).map_err(TrainError::io("list", out))?;
    let entries: Result<Vec<_>, _> = entries.map(|entry| entry.map(|e| e.path())).collect();
    let entries = entries.map_err(TrainError::io("list", out))?;
    if out.join(CONFIG_FILE).exists() {
        return Err(TrainError::RunExists { out: out.clone() });
    }
    if !entries.iter().all(|path| is_unfinished_config(path)) {
        return Err(TrainError::OutNotEmpty { out: out.clone() });
    }
    let lock = lock(out)?;
    for path in &entries {
        fs::remove_file(path).map_err(TrainError::io("remove", path))?;
    }
    Ok(lock)
}

/// Keeps other processes from training in the directory.
fn lock(out: &Path) -> Result<Lock, TrainError> {
    let Ok(directory) = fs::File::open(out) else { return Ok(None) };
    match directory.try_lock() {
        Ok(()) => Ok(Some(directory)),
        Err(fs::TryLockError::WouldBlock) => Err(TrainError::RunBusy { out: out.to_owned() }),
        Err(fs::TryLockError::Error(_)) => Ok(None),
    }
}

/// Whether a run was killed while it wrote this, its first file: then it can only begin again.
fn is_unfinished_config(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.starts_with(&format!(".{CONFIG_FILE}.")) && name.ends_with(".tmp")
}

pub(super) fn write_config(config: &TrainConfig) -> Result<(), TrainError> {
    let text = config.to_toml();
    write_atomically(&config.run.out.join(CONFIG_FILE), |file| file.write_all(text.as_bytes()))?;
    Ok(())
}

/// The last checkpoint of the run in `out`, or the fresh state where there is none yet; and the
/// lock.
pub(super) fn resume(
    config: &TrainConfig,
    files: &ModelFiles,
    fresh: RunState,
) -> Result<(RunState, Option<u64>, Lock), TrainError> {
    let out = &config.run.out;
    let path = out.join(CONFIG_FILE);
    let mut text = String::new();
    let file = fs::File::open(&path).map_err(|_| TrainError::NoRun { out: out.clone() })?;
    file.take(1 << 20).read_to_string(&mut text).map_err(TrainError::io("read", &path))?;
    let before = TrainConfig::from_toml(&text, &path.display().to_string(), &[])?;
    let differences = config.differences(&before);
    if !differences.is_empty() {
        let (out, differences) = (out.clone(), differences.join("; "));
        return Err(TrainError::ConfigChanged { out, differences });
    }
    let lock = lock(out)?;
    checkpoint::sweep(out)?;
    let Some(&last) = checkpoint::list(out)?.last() else {
        let path = out.join(FINAL);
        if path.exists() {
            // To begin again would replace a finished model.
            let reason = "the run is finished, and its checkpoints are gone".to_owned();
            return Err(TrainError::Checkpoint { path, reason });
        }
        return Ok((fresh, None, lock));
    };
    let (model, constants) = (&files.config.model, config.optimizer.constants());
    let state = checkpoint::load(out, last, model, constants, config.run.ema > 0.0)?;
    let (then, now) = (&state.progress.data, &fresh.progress.data);
    let changed = (0..now.len()).find(|&i| then.get(i) != now.get(i));
    let same_order = state.progress.cursor.epoch_len == fresh.progress.cursor.epoch_len;
    if let Some(i) = changed.or((!same_order).then_some(0)) {
        return Err(TrainError::DataChanged { path: config.data.train[i].path.clone() });
    }
    if state.progress.preprocess != fresh.progress.preprocess {
        let differences = "the image pipeline of `model.config`".to_owned();
        return Err(TrainError::ConfigChanged { out: out.clone(), differences });
    }
    Ok((state, Some(last), lock))
}
