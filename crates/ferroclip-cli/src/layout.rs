//! The directory that `embed` writes: clip-retrieval's layout.
//!
//! ```text
//! img_emb/img_emb_0.npy            text_emb/text_emb_0.npy
//! metadata/metadata_0.parquet      text_metadata/text_metadata_0.parquet (texts on their own)
//! failures.jsonl                   embed.json (the settings; they may not change on the way)
//! ```
//!
//! Patch features are `[rows, patches, width]` in `img_emb`, and then there is no `text_emb`; all
//! else is `[rows, numbers]`. The rows are cut into files of a fixed number of rows. Each file
//! appears under its name when it is whole, the embeddings last: where they are, their number is
//! finished and never done again.

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use ferroclip::Embeddings;
use serde_json::{Value, json};

use crate::atomic::write_file;
use crate::error::{Error, Result};
use crate::inputs::Failure;
use crate::npy::{self, Dtype};
use crate::parquet;

/// Rows of a file, unless the user says otherwise.
pub(crate) const ROWS_PER_FILE: usize = 100_000;
const SETTINGS: &str = "embed.json";

/// Where and how to write.
#[derive(Debug)]
pub(crate) struct Layout {
    pub(crate) out: PathBuf,
    pub(crate) dtype: Dtype,
    pub(crate) rows_per_file: usize,
    /// This shard, counted from 0, and their number.
    pub(crate) shard: (usize, usize),
    pub(crate) resume: bool,
}

/// The rows that a file of embeddings comes from.
#[derive(Debug)]
pub(crate) struct Piece {
    pub(crate) number: usize,
    pub(crate) rows: Range<usize>,
}

/// What becomes of the rows of a piece.
#[derive(Debug, Default)]
pub(crate) struct Written {
    pub(crate) images: Option<Embeddings>,
    /// The shape of a picture's numbers, where they are more than a row.
    pub(crate) image_shape: Vec<usize>,
    pub(crate) texts: Option<Embeddings>,
    pub(crate) columns: Vec<String>,
    /// The cells of each row that has embeddings.
    pub(crate) cells: Vec<Vec<String>>,
    /// Objects with `path` and `error`.
    pub(crate) failures: Vec<Value>,
}

impl Layout {
    /// Makes the directory and checks that it was begun with the same settings.
    pub(crate) fn begin(&self, settings: &Value) -> Result<()> {
        fs::create_dir_all(&self.out).map_err(|e| Error::file("create", &self.out, &e))?;
        let path = self.out.join(SETTINGS);
        let found = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice::<Value>(&bytes).ok(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return write_file(&path, format!("{settings}\n").as_bytes());
            }
            Err(error) => return Err(Error::file("read", &path, &error)),
        };
        let found = found.unwrap_or_default();
        let names = settings.as_object().into_iter().flat_map(|settings| settings.keys());
        let other: Vec<&str> =
            names.map(String::as_str).filter(|name| found[name] != settings[name]).collect();
        match other.is_empty() {
            true => Ok(()),
            false => Err(Error::input(format!(
                "`{}` was begun with other settings or inputs: {}",
                path.display(),
                other.join(", ")
            ))
            .hint(
                "choose another `--out`, repeat what that file says, or delete it where no embeddings lie \
                 beside it",
            )),
        }
    }

    /// The failures of pieces that are finished, from the time when they were done.
    pub(crate) fn earlier_failures(&self, to_do: &[Piece]) -> Result<Vec<Failure>> {
        let text = self.read_failures(&self.failures_path())?;
        let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let done =
            lines.filter(|line| !to_do.iter().any(|piece| line["file"] == json!(piece.number)));
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let failure =
            |line: Value| Failure::new(text(&line["path"]), Error::input(text(&line["error"])));
        Ok(done.map(failure).collect())
    }

    /// The pieces of this shard that are still to do, and how many are finished. `folder` is that
    /// of the embeddings.
    pub(crate) fn pieces(&self, n_rows: usize, folder: &str) -> Result<(Vec<Piece>, usize)> {
        let (shard, n_shards) = self.shard;
        let mut pieces = Vec::new();
        let mut n_finished = 0;
        for number in (0..n_rows.div_ceil(self.rows_per_file)).skip(shard).step_by(n_shards) {
            let path = self.file(folder, number, "npy");
            if !path.exists() {
                let start = number * self.rows_per_file;
                let end = (start + self.rows_per_file).min(n_rows);
                pieces.push(Piece { number, rows: start..end });
            } else if self.resume {
                n_finished += 1;
            } else {
                return Err(Error::input(format!("`{}` exists already", path.display()))
                    .hint("go on with `--resume`, or choose another `--out`"));
            }
        }
        Ok((pieces, n_finished))
    }

    /// Writes the files of a piece.
    pub(crate) fn write(&self, number: usize, written: &Written) -> Result<()> {
        let metadata = if written.images.is_some() { "metadata" } else { "text_metadata" };
        let path = self.file(metadata, number, "parquet");
        parquet::write(&made(&path)?, &written.columns, &written.cells)?;
        self.write_failures(number, &written.failures)?;
        let parts = [
            ("text_emb", &written.texts, &[][..]),
            ("img_emb", &written.images, &written.image_shape),
        ];
        for (folder, embeddings, row_shape) in parts {
            if let Some(x) = embeddings {
                let path = self.file(folder, number, "npy");
                let row = if row_shape.is_empty() { &[x.dim][..] } else { row_shape };
                npy::write(&made(&path)?, self.dtype, &[&[x.rows], row].concat(), &x.data)?;
            }
        }
        Ok(())
    }

    fn file(&self, folder: &str, number: usize, extension: &str) -> PathBuf {
        self.out.join(folder).join(format!("{folder}_{number}.{extension}"))
    }

    fn failures_path(&self) -> PathBuf {
        self.out.join(match self.shard {
            (_, 1) => "failures.jsonl".to_owned(),
            (shard, n_shards) => format!("failures_{}_of_{n_shards}.jsonl", shard + 1),
        })
    }

    fn read_failures(&self, path: &Path) -> Result<String> {
        match fs::read_to_string(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
            read => read.map_err(|error| Error::file("read", path, &error)),
        }
    }

    /// Adds the failures of a piece to those of the others; an earlier try of the piece is dropped.
    fn write_failures(&self, number: usize, failures: &[Value]) -> Result<()> {
        let path = self.failures_path();
        let old = self.read_failures(&path)?;
        let of_others = |line: &&str| {
            let line: Option<Value> = serde_json::from_str(line).ok();
            line.is_some_and(|line| line["file"] != json!(number))
        };
        let mut text: String =
            old.lines().filter(of_others).flat_map(|line| [line, "\n"]).collect();
        for failure in failures {
            let line = json!({"file": number, "path": failure["path"], "error": failure["error"]});
            text.push_str(&format!("{line}\n"));
        }
        match text.is_empty() && old.is_empty() {
            true => Ok(()),
            false => write_file(&path, text.as_bytes()),
        }
    }
}

/// The path, once its directory is there.
fn made(path: &Path) -> Result<PathBuf> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(|e| Error::file("create", folder, &e))?;
    }
    Ok(path.to_owned())
}
