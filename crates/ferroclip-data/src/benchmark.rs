//! The layout in which CLIP_benchmark keeps a dataset:
//!
//! ```text
//! NAME/classnames.txt                          a class a line; the numbers in the `.cls` files count them from 0
//! NAME/zeroshot_classification_templates.txt   a template a line, such as `a photo of a {c}.`
//! NAME/dataset_type.txt                        `retrieval`, or nothing: classification
//! NAME/test/nshards.txt, 0.tar, 1.tar ...      samples of a picture and a `.cls`, or a `.txt` of captions, one a line
//! ```

use std::io::Read;
use std::path::{Path, PathBuf};

use crate::DataError;
use crate::shards::MAX_SHARDS;
use crate::shared_file::open_regular;

/// The split that is read where the dataset is given as a whole.
const DEFAULT_SPLIT: &str = "test";
const N_SHARDS: &str = "nshards.txt";
/// The most bytes of one of the files beside the shards.
const MAX_BYTES: u64 = 16 << 20;

/// What lies beside the shards of a CLIP_benchmark dataset.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Benchmark {
    /// The dataset's name: its folder's.
    pub name: String,
    /// The classes in the order that the column `cls` counts them in, not always each once; empty where the dataset
    /// has none.
    pub classes: Vec<String>,
    /// Templates with `{}` for the class; empty where the dataset has none.
    pub templates: Vec<String>,
    /// Whether the dataset is one of captions: each line of `caption` is one.
    pub is_retrieval: bool,
}

/// A dataset's split: its folder, and the folder of the dataset.
struct Split {
    folder: PathBuf,
    root: PathBuf,
}

/// The shards of a directory in this layout, and what lies beside them; `None` for another directory.
///
/// # Errors
/// When one of the files cannot be read or says what cannot be.
pub(crate) fn find(path: &Path) -> Result<Option<(Benchmark, Vec<PathBuf>)>, DataError> {
    let Some(Split { folder, root }) = split(path) else { return Ok(None) };
    let shards = (0..n_shards(&folder)?).map(|n| folder.join(format!("{n}.tar"))).collect();
    let kind = lines(&root.join("dataset_type.txt"))?.into_iter().next().unwrap_or_default();
    let is_retrieval = kind.eq_ignore_ascii_case("retrieval");
    if !is_retrieval && !["", "classification"].iter().any(|known| kind.eq_ignore_ascii_case(known))
    {
        let found = format!("a CLIP_benchmark dataset of type `{kind}`");
        return Err(DataError::UnknownKind { path: path.to_owned(), found });
    }
    let templates = lines(&root.join("zeroshot_classification_templates.txt"))?;
    let benchmark = Benchmark {
        name: root.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        classes: lines(&root.join("classnames.txt"))?,
        templates: templates.iter().map(|template| template.replace("{c}", "{}")).collect(),
        is_retrieval,
    };
    Ok(Some((benchmark, shards)))
}

fn split(path: &Path) -> Option<Split> {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let inside = absolute.join(DEFAULT_SPLIT);
    if absolute.join(N_SHARDS).is_file() {
        let root = absolute.parent().unwrap_or(&absolute).to_owned();
        return Some(Split { folder: absolute, root });
    }
    inside.join(N_SHARDS).is_file().then_some(Split { folder: inside, root: absolute })
}

fn n_shards(folder: &Path) -> Result<usize, DataError> {
    let path = folder.join(N_SHARDS);
    let text = text(&path)?.unwrap_or_default();
    let n = text.trim().parse().ok().filter(|n| (1..=MAX_SHARDS).contains(n));
    n.ok_or_else(|| DataError::Table {
        path,
        line: Some(1),
        reason: "expected the number of shards".to_owned(),
    })
}

/// The lines of a file without blanks around them; none where there is no file.
fn lines(path: &Path) -> Result<Vec<String>, DataError> {
    let text = text(path)?.unwrap_or_default();
    Ok(text.lines().map(|line| line.trim().to_owned()).collect())
}

fn text(path: &Path) -> Result<Option<String>, DataError> {
    if !path.exists() {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    let read = open_regular(path)?.take(MAX_BYTES + 1).read_to_end(&mut bytes);
    read.map_err(|error| DataError::io(path, error))?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(DataError::TooLarge { path: path.to_owned(), what: "bytes", limit: MAX_BYTES });
    }
    let text = String::from_utf8(bytes);
    let text = text.map_err(|_| DataError::NotUtf8 { path: path.to_owned(), line: Some(1) })?;
    Ok(Some(text))
}
