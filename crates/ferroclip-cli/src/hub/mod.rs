//! Models by name: files of a repository on the hub, downloaded once, checked, and kept in the cache that Python's
//! `huggingface_hub` uses as well.
//!
//! | file | holds |
//! |---|---|
//! | `name` | what may be typed |
//! | `env` | the environment variables |
//! | `cache` | where files lie |
//! | `files` | which files make a model |
//! | `fetch` | a repository, file by file |
//! | `client` | requests: token, redirects |
//! | `download` | a file's content: resumed, checked |
//! | `store` | how a download changes the cache |
//! | `failure` | what is tried again |
//!
//! Without the feature `hub` the last five are left out: what is in the cache is found all the same.

mod cache;
#[cfg(feature = "hub")]
mod client;
#[cfg(feature = "hub")]
mod download;
mod env;
#[cfg(feature = "hub")]
mod failure;
#[cfg(feature = "hub")]
mod fetch;
mod files;
mod name;
#[cfg(feature = "hub")]
mod store;

use std::path::PathBuf;

use crate::common::Common;
use crate::error::{Error, Kind, Result};

use self::cache::RepoCache;
pub(crate) use self::name::{Name, unknown};

/// The folder of a model: from the cache if it is whole there, or else downloaded.
pub(crate) fn locate(name: &Name, common: &Common) -> Result<PathBuf> {
    match RepoCache::of(name)?.complete() {
        Some(folder) => Ok(folder),
        None => fetch(name, common),
    }
}

/// The folder of a model as the hub has it now; from the cache where the hub cannot be asked.
pub(crate) fn fetch(name: &Name, common: &Common) -> Result<PathBuf> {
    let cache = RepoCache::of(name)?;
    if env::is_offline() {
        return cached(name, &cache, "`HF_HUB_OFFLINE` is set");
    }
    download(name, &cache, common)
}

#[cfg(feature = "hub")]
fn download(name: &Name, cache: &RepoCache, common: &Common) -> Result<PathBuf> {
    match fetch::fetch(name, cache, common) {
        Ok(folder) => Ok(folder),
        Err(failure::Failure::Final(error)) => Err(error),
        Err(failure::Failure::Broken(reason)) => {
            let reason = format!("the hub cannot be reached ({reason})");
            let folder = cached(name, cache, &reason)?;
            let text = format!("{reason}; `{}` is taken from the cache", name.text);
            crate::output::note(common, &text);
            Ok(folder)
        }
    }
}

#[cfg(not(feature = "hub"))]
fn download(name: &Name, cache: &RepoCache, _: &Common) -> Result<PathBuf> {
    cached(name, cache, "this build cannot download (it is without the feature `hub`)")
}

/// The folder of a model in the cache; the error says which files belong where, and `why` they are not downloaded.
fn cached(name: &Name, cache: &RepoCache, why: &str) -> Result<PathBuf> {
    if let Some(folder) = cache.usable() {
        return Ok(folder);
    }
    let snapshot = cache.commit().map(|commit| cache.snapshot(&commit));
    let begun = snapshot.filter(|snapshot| snapshot.is_dir());
    let missing = begun.and_then(|folder| Some((files::missing(&folder)?, folder)));
    let page = format!("{}/{}", env::shown_endpoint(), name.repo);
    let (what, hint) = match missing {
        Some((missing, folder)) => (
            format!("lacks {missing} in the cache"),
            format!(
                "put that, from {page}, into `{}`; or all files of the model into any folder, and \
                 give that with `--model FOLDER`",
                folder.display()
            ),
        ),
        None => (
            "is not in the cache".to_owned(),
            format!(
                "put its config (`open_clip_config.json` or `config.json`), its weights \
                 (`open_clip_model.safetensors`, `model.safetensors` or a `.bin`) and its \
                 `tokenizer.json`, from {page}, into a folder and give that with `--model FOLDER`; \
                 or copy `{}` from a computer that has it",
                cache.folder().display()
            ),
        ),
    };
    let message = format!("`{}` {what}, and {why}", name.text);
    Err(Error::new(Kind::Failed("offline"), message).hint(hint))
}
