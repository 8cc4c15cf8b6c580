//! Labels as embeddings, kept on disk: a thousand labels in eighty templates take minutes and come out the same each time.

use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use clap::Args;
use ferroclip::{Classifier, Clip, EmbedOptions, Embeddings};
use ferroclip_data::digest;
use ferroclip_kernels::Isa;

use crate::common::Common;
use crate::error::{Error, Result};
use crate::interrupt::STOP;
use crate::model::ModelArgs;
use crate::npy::{self, Dtype};
use crate::output::note;
use crate::progress::Progress;

/// Fewer texts than this are embedded faster than anybody would notice.
const LEAST_TEXTS: usize = 256;

#[derive(Debug, Clone, Args)]
pub(crate) struct ClassArgs {
    /// Where the embeddings of many labels are kept [default: `ferroclip/classes` in the user's cache folder]
    #[arg(long, value_name = "DIR")]
    class_cache: Option<PathBuf>,
    /// Embed the labels anew, and keep nothing
    #[arg(long, conflicts_with = "class_cache")]
    no_class_cache: bool,
}

impl ClassArgs {
    /// The labels as embeddings: those that were kept, where model, labels and templates are the same.
    pub(crate) fn embed(
        &self,
        clip: &Clip,
        model: &ModelArgs,
        labels: &[String],
        templates: &[String],
        common: &Common,
    ) -> Result<Classifier> {
        let n_texts = labels.len().saturating_mul(templates.len());
        let folder = self.folder().filter(|_| n_texts >= LEAST_TEXTS);
        let path = match folder {
            Some(folder) => Some(folder.join(file_name(clip, model, labels, templates)?)),
            None => None,
        };
        if let Some(embeddings) = path.as_deref().and_then(|path| kept(path, clip, labels.len())) {
            return Ok(Classifier::from_embeddings(clip, labels.to_vec(), embeddings)?);
        }
        let progress = Progress::new(common, "labels", labels.len());
        let report = |n_done| progress.set(n_done);
        let options =
            EmbedOptions { progress: Some(&report), stop: Some(&STOP), ..EmbedOptions::default() };
        let found = Classifier::new_with(clip, labels, templates, &options)?;
        drop(progress);
        // Which labels were cut has to be said each time.
        if let Some(path) = path.filter(|_| found.embeddings().truncated.is_empty())
            && let Err(error) = keep(&path, found.embeddings())
        {
            note(common, &format!("the embeddings of the labels were not kept: {}", error.message));
        }
        Ok(found)
    }

    fn folder(&self) -> Option<PathBuf> {
        if self.no_class_cache {
            return None;
        }
        let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let user = || variable("XDG_CACHE_HOME").map(PathBuf::from);
        let home = || variable("HOME").map(|home| Path::new(&home).join(".cache"));
        let default = || user().or_else(home).map(|cache| cache.join("ferroclip/classes"));
        self.class_cache.clone().or_else(default)
    }
}

/// What every model is asked: files that look the same and are not show here.
const PROBE: &str = "a photo of 42 things, from A to Z";

/// A name that tells the model's files, how they are computed with, the labels and the templates.
fn file_name(
    clip: &Clip,
    model: &ModelArgs,
    labels: &[String],
    templates: &[String],
) -> Result<String> {
    let probe = clip
        .embed_texts(&[PROBE])?
        .data
        .iter()
        .map(|x| x.to_bits().to_string())
        .collect::<Vec<_>>();
    let how = [
        env!("CARGO_PKG_VERSION"),
        &model.model,
        &format!("{:?}", model.options()),
        Isa::active().name(),
    ];
    let files = clip.origin().files.iter().map(|path| stamp(path));
    let counts = [labels.len(), templates.len()].map(|n| n.to_string());
    let texts = how.map(str::to_owned).into_iter().chain(files).chain(probe).chain(counts);
    let texts = texts.chain(labels.iter().cloned()).chain(templates.iter().cloned());
    Ok(format!("{}.npy", digest(texts)))
}

/// Where a file is, how long it is and when it was written.
fn stamp(path: &Path) -> String {
    let place = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let Ok(metadata) = path.metadata() else { return place.display().to_string() };
    let written = metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    format!("{} {} {written:?}", place.display(), metadata.len())
}

/// The unit embeddings of a file that this program wrote whole; anything else is written anew.
fn kept(path: &Path, clip: &Clip, n_labels: usize) -> Option<Embeddings> {
    let dim = clip.config().model.embed_dim;
    let data = npy::read(path, &[n_labels, dim])?;
    let is_unit = |row: &[f32]| (row.iter().map(|x| x * x).sum::<f32>() - 1.0).abs() < 1e-3;
    let embeddings = Embeddings { rows: n_labels, dim, data, truncated: Vec::new() };
    let all_units = embeddings.iter().all(is_unit);
    all_units.then_some(embeddings)
}

fn keep(path: &Path, embeddings: &Embeddings) -> Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(|e| Error::file("create", folder, &e))?;
    }
    npy::write(path, Dtype::F32, &[embeddings.rows, embeddings.dim], &embeddings.data)
}
