//! Which files of a directory make a model.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Component, Path, PathBuf};

use serde_json::Value;

use super::hugging_face::{self, CONFIG_FILE as HF_CONFIG_FILE};
use super::{CONFIG_FILE, TOKENIZER_CONFIG_FILE, TOKENIZER_FILE, WEIGHTS_FILE, tokenizer};
use crate::error::Error;
use crate::files::{is_there, read_text};

/// Files of weights by program, the preferred one first.
const OPEN_CLIP_WEIGHTS: [&str; 2] = [WEIGHTS_FILE, "open_clip_pytorch_model.bin"];
const HF_WEIGHTS: [&str; 2] = [hugging_face::WEIGHTS_FILE, "pytorch_model.bin"];
/// Last parts of the names of other files of weights.
const WEIGHTS_EXTENSIONS: [&str; 4] = ["bin", "pt", "pth", "safetensors"];
/// Files that may lie beside config and weights.
const BESIDE: [&str; 5] = [
    TOKENIZER_FILE,
    TOKENIZER_CONFIG_FILE,
    tokenizer::MERGES_FILE,
    hugging_face::PREPROCESSOR_FILE,
    hugging_face::PROCESSOR_FILE,
];
/// What stands behind the name of the list of files that weights were cut into.
const INDEX: &str = ".index.json";
/// Longest list of files, and most files.
const MAX_INDEX_BYTES: u64 = 4 << 20;
const MAX_SHARDS: usize = 1024;

/// Where the config of a model is.
#[derive(Debug, PartialEq)]
pub(super) enum ConfigFile {
    OpenClip(PathBuf),
    HuggingFace(PathBuf),
    /// Nowhere: the weights have to tell.
    None,
}

/// Where the weights of a model are.
#[derive(Debug, PartialEq)]
pub(super) enum WeightsFile {
    One(PathBuf),
    /// The list of files, and the files.
    Shards(PathBuf, Vec<PathBuf>),
}

/// The files of a model.
#[derive(Debug, PartialEq)]
pub(super) struct Layout {
    pub(super) folder: PathBuf,
    pub(super) config: ConfigFile,
    pub(super) weights: WeightsFile,
}

impl Layout {
    /// The files of the model at this path, a directory or a file of weights.
    pub(super) fn find(path: &Path) -> Result<Layout, Error> {
        let metadata = fs::metadata(path).map_err(|source| Error::io("open", path, source))?;
        let no_model =
            |reason: &str| Err(Error::NoModel { path: path.to_owned(), reason: reason.to_owned() });
        let is_json = path.extension().is_some_and(|extension| extension == "json");
        match () {
            () if metadata.is_dir() => Layout::of_directory(path),
            // Opening a pipe would wait for a writer.
            () if !metadata.is_file() => no_model("it is neither a file nor a directory"),
            () if is_json && !path.to_string_lossy().ends_with(INDEX) => no_model(
                "it holds no weights; a config belongs to the directory or weights beside it",
            ),
            () => Layout::of_file(path),
        }
    }

    /// All of them that are there, with those that a vocabulary and an image pipeline may lie in.
    pub(super) fn files(&self) -> Vec<PathBuf> {
        let config = match &self.config {
            ConfigFile::OpenClip(path) | ConfigFile::HuggingFace(path) => Some(path.clone()),
            ConfigFile::None => None,
        };
        let weights = match &self.weights {
            WeightsFile::One(path) => vec![path.clone()],
            WeightsFile::Shards(index, paths) => [&[index.clone()][..], paths].concat(),
        };
        let beside = BESIDE.map(|name| self.folder.join(name)).into_iter();
        config.into_iter().chain(weights).chain(beside.filter(|path| path.is_file())).collect()
    }

    fn of_directory(folder: &Path) -> Result<Layout, Error> {
        let no_model = |reason: String| Error::NoModel { path: folder.to_owned(), reason };
        let config = config_in(folder)?;
        let names = match &config {
            ConfigFile::None => {
                return Err(no_model(format!(
                    "there is neither `{CONFIG_FILE}` nor `{HF_CONFIG_FILE}` in it"
                )));
            }
            // LAION's directories have the weights of both programs beside both configs.
            ConfigFile::OpenClip(_) => [OPEN_CLIP_WEIGHTS, HF_WEIGHTS].concat(),
            ConfigFile::HuggingFace(_) => HF_WEIGHTS.to_vec(),
        };
        for name in &names {
            if is_there(&folder.join(name))? {
                let weights = WeightsFile::One(folder.join(name));
                return Ok(Layout { folder: folder.to_owned(), config, weights });
            }
            let index = folder.join(format!("{name}{INDEX}"));
            if is_there(&index)? {
                let weights = shards(&index)?;
                return Ok(Layout { folder: folder.to_owned(), config, weights });
            }
        }
        let reason = format!("there is no file of weights in it: none of `{}`", names.join("`, `"));
        Err(no_model(match other_weights(folder) {
            Some(path) => format!("{reason}; `{}` can be given by its path", path.display()),
            None => reason,
        }))
    }

    fn of_file(path: &Path) -> Result<Layout, Error> {
        let folder = path.parent().unwrap_or(Path::new("")).to_owned();
        let weights = match path.to_string_lossy().ends_with(INDEX) {
            true => shards(path)?,
            false => WeightsFile::One(path.to_owned()),
        };
        Ok(Layout { config: config_in(&folder)?, folder, weights })
    }
}

fn config_in(folder: &Path) -> Result<ConfigFile, Error> {
    let (open_clip, hugging_face) = (folder.join(CONFIG_FILE), folder.join(HF_CONFIG_FILE));
    Ok(match () {
        () if is_there(&open_clip)? => ConfigFile::OpenClip(open_clip),
        () if is_there(&hugging_face)? => ConfigFile::HuggingFace(hugging_face),
        () => ConfigFile::None,
    })
}

/// A file in this directory that has another name than programs look for, but looks like weights: a training
/// checkpoint, say.
fn other_weights(folder: &Path) -> Option<PathBuf> {
    let paths = fs::read_dir(folder).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    let is_weights = |path: &PathBuf| {
        let extension = path.extension().and_then(|extension| extension.to_str());
        path.is_file() && extension.is_some_and(|it| WEIGHTS_EXTENSIONS.contains(&it))
    };
    paths.filter(is_weights).min()
}

/// The files that an index names. They lie beside it: a name with a path in it is refused.
fn shards(index: &Path) -> Result<WeightsFile, Error> {
    let bad = |reason: String| Error::Weights { origin: index.display().to_string(), reason };
    let text = read_text(index, MAX_INDEX_BYTES)?;
    let value: Value = serde_json::from_str(&text).map_err(|e| bad(e.to_string()))?;
    let map =
        value["weight_map"].as_object().ok_or_else(|| bad("it has no `weight_map`".into()))?;
    let names: BTreeSet<&str> = map.values().filter_map(Value::as_str).collect();
    if names.is_empty() || names.len() > MAX_SHARDS {
        return Err(bad(format!("it names {} files, expected 1 to {MAX_SHARDS}", names.len())));
    }
    let beside = |name: &&str| {
        let mut parts = Path::new(name).components();
        matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None))
    };
    match names.iter().find(|name| !beside(name)) {
        Some(name) => Err(bad(format!("`{}` is no name of a file beside it", name.escape_debug()))),
        None => {
            let paths = names.iter().map(|name| index.with_file_name(name)).collect();
            Ok(WeightsFile::Shards(index.to_owned(), paths))
        }
    }
}
