//! The crate's error: one variant for each way in which data can be wrong.

use std::io;
use std::path::{Path, PathBuf};

/// Why data could not be opened or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// The operating system refused a read.
    #[error("cannot read `{}`: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The path is none of the kinds of data that can be opened.
    #[error("`{}` is no data that can be read: {found}", path.display())]
    UnknownKind {
        /// The path as given.
        path: PathBuf,
        /// What was found instead.
        found: String,
    },
    /// A directory or archive holds two tables.
    #[error("`{}` holds two tables: `{first}` and `{second}`", path.display())]
    TwoTables {
        /// The directory or archive.
        path: PathBuf,
        /// One of the tables.
        first: String,
        /// The other.
        second: String,
    },
    /// A name in a directory, or text in a table, is not UTF-8.
    #[error("`{}` is not UTF-8{}", path.display(), at_line(*line))]
    NotUtf8 {
        /// The table, or the file with that name.
        path: PathBuf,
        /// The line, where it is a table.
        line: Option<u64>,
    },
    /// A table has no header line.
    #[error("`{}` is an empty table, without even a header", path.display())]
    EmptyTable {
        /// The table.
        path: PathBuf,
    },
    /// A header names a column twice.
    #[error("`{}` has two columns `{column}`", path.display())]
    DuplicateColumn {
        /// The table.
        path: PathBuf,
        /// The column.
        column: String,
    },
    /// No column holds the paths of the pictures.
    #[error("`{}` has no column `file`, only: {}", path.display(), list(columns))]
    MissingFileColumn {
        /// The table.
        path: PathBuf,
        /// The columns that there are.
        columns: Vec<String>,
    },
    /// A row has more or fewer cells than the header.
    #[error("`{}`, line {line}: expected {expected} cells, found {found}", path.display())]
    RaggedRow {
        /// The table.
        path: PathBuf,
        /// The line.
        line: u64,
        /// Cells in the header.
        expected: u64,
        /// Cells in the row.
        found: u64,
    },
    /// A row names no picture.
    #[error("`{}`, line {line}: the path of the picture is empty", path.display())]
    EmptyFileCell {
        /// The table.
        path: PathBuf,
        /// The line.
        line: u64,
    },
    /// A table is malformed in another way.
    #[error("`{}` is a malformed table{}: {reason}", path.display(), at_line(*line))]
    Table {
        /// The table.
        path: PathBuf,
        /// The line, where known.
        line: Option<u64>,
        /// What is wrong.
        reason: String,
    },
    /// A Parquet table, but this program was built without the feature `parquet`.
    #[error("`{}` is a Parquet table, and this program was built without Parquet", path.display())]
    ParquetNotBuilt {
        /// The table.
        path: PathBuf,
    },
    /// A filter or label asks for a column that does not exist.
    #[error("`{}` has no column `{column}`, only: {}", path.display(), list(columns))]
    UnknownColumn {
        /// The data.
        path: PathBuf,
        /// The column asked for.
        column: String,
        /// The columns that there are.
        columns: Vec<String>,
    },
    /// A filter could not be understood.
    #[error("filter `{filter}` cannot be understood: {reason}")]
    InvalidFilter {
        /// The filter as typed.
        filter: String,
        /// What is wrong.
        reason: String,
    },
    /// No row is left.
    #[error("`{}` has no samples{}", path.display(), if *filtered { " that pass the filters" } else { "" })]
    NoSamples {
        /// The data.
        path: PathBuf,
        /// Whether filters were in effect.
        filtered: bool,
    },
    /// There are more rows, columns or bytes than this crate takes.
    #[error("`{}` is too large: more than {limit} {what}", path.display())]
    TooLarge {
        /// The data.
        path: PathBuf,
        /// What there is too much of.
        what: &'static str,
        /// The most that is taken.
        limit: u64,
    },
    /// A name would leave its directory or archive.
    #[error("`{}`{} names a file outside: `{name}`", path.display(), in_line(*line))]
    UnsafeName {
        /// The table or archive.
        path: PathBuf,
        /// The line, where it is a table.
        line: Option<u64>,
        /// The name.
        name: String,
    },
    /// An archive holds one name twice.
    #[error("`{}` holds two entries `{name}`", path.display())]
    DuplicateEntry {
        /// The archive.
        path: PathBuf,
        /// The name.
        name: String,
    },
    /// An archive or one of its entries is malformed.
    #[error("`{}` is a malformed archive{}: {reason}", path.display(), at_entry(entry))]
    Archive {
        /// The archive.
        path: PathBuf,
        /// The entry, where it is one.
        entry: Option<String>,
        /// What is wrong.
        reason: String,
    },
    /// A listed picture does not exist.
    #[error("`{name}`, listed in `{}`{}, does not exist", path.display(), at_line(*line))]
    Absent {
        /// The table or directory.
        path: PathBuf,
        /// The line, where it is a table.
        line: Option<u64>,
        /// The picture.
        name: String,
    },
    /// A picture is larger than the limit.
    #[error("`{name}` in `{}` is too large: {found} bytes, the limit is {limit}", path.display())]
    PictureTooLarge {
        /// The data.
        path: PathBuf,
        /// The picture.
        name: String,
        /// Its size, or the size at which reading stopped.
        found: u64,
        /// The limit.
        limit: u64,
    },
    /// An archive's entry is not as long as the archive says.
    #[error("`{name}` in `{}` lies about its size: expected {expected} bytes, found {found}", path.display())]
    WrongSize {
        /// The archive.
        path: PathBuf,
        /// The entry.
        name: String,
        /// Bytes declared.
        expected: u64,
        /// Bytes there are, or at which reading stopped.
        found: u64,
    },
    /// A pattern of shards cannot be expanded.
    #[error("pattern `{pattern}` cannot be expanded: {reason}")]
    InvalidPattern {
        /// The pattern.
        pattern: String,
        /// What is wrong.
        reason: String,
    },
    /// The datasets of a run cannot be joined.
    #[error("the sources of a run cannot be joined: {reason}")]
    InvalidPlan {
        /// What is wrong.
        reason: String,
    },
    /// A saved cursor does not fit the data.
    #[error("the saved position does not fit the data: expected {expected}, found {found}")]
    CursorMismatch {
        /// What the data asks for.
        expected: String,
        /// What the cursor holds.
        found: String,
    },
    /// Too large a share of the samples failed.
    #[error("{failed} of {seen} samples failed, more than {:.1} %; first `{key}`: {reason}", max_share * 100.0)]
    TooManyBad {
        /// Samples tried.
        seen: u64,
        /// Samples that failed.
        failed: u64,
        /// The share that is allowed.
        max_share: f64,
        /// The first sample that failed.
        key: String,
        /// Why it failed.
        reason: String,
    },
}

impl DataError {
    /// What the user may do about it.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                "check the path; relative paths start at the current directory"
            }
            Self::UnknownKind { .. } => {
                "give a directory of class folders, a directory or zip with labels.tsv, a csv or tsv \
                 with a column `file`, tar shards such as `shards/{00000..00003}.tar`, or a dataset \
                 of CLIP_benchmark (of type `retrieval` or `classification`)"
            }
            Self::TwoTables { .. } => {
                "remove one of them; in a directory, the path of the right one may be given instead"
            }
            Self::NotUtf8 { line: Some(_), .. } => "save the table as UTF-8",
            Self::NotUtf8 { line: None, .. } => "rename the file",
            Self::EmptyTable { .. } => "the first line names the columns; one of them is `file`",
            Self::MissingFileColumn { .. } => {
                "name the column of paths `file` (`path`, `filepath` and `image` are taken as well)"
            }
            Self::RaggedRow { .. } => {
                "a tsv has no quoting: cells hold neither tabs nor line breaks; a csv may quote them"
            }
            Self::ParquetNotBuilt { .. } => {
                "build with `--features parquet`, or save the table as csv or tsv"
            }
            Self::InvalidFilter { .. } => {
                "write `column=value`, `column!=value`, or `hash%20!=0` for 19 of 20 rows"
            }
            Self::NoSamples { filtered: true, .. } => {
                "filters must all hold for a row; values are compared exactly"
            }
            Self::UnsafeName { .. } => {
                "paths are relative to the table and stay below it, without `..`"
            }
            Self::DuplicateEntry { .. } => "pack it again, with every name once",
            Self::Archive { .. } | Self::WrongSize { .. } => {
                "copy or download the archive again, or pack it again"
            }
            Self::Absent { .. } => {
                "names are relative to the table; add the file or remove its row"
            }
            Self::PictureTooLarge { .. } => "raise the limit, or make the picture smaller",
            Self::InvalidPlan { .. } => "check `path`, `filter` and `weight` of each source",
            Self::InvalidPattern { .. } => "write for example `shards/{00000..00003}.tar`",
            Self::CursorMismatch { .. } => {
                "continue with the data, filters and seed that the run was started with"
            }
            Self::TooManyBad { .. } => {
                "check the data, or raise the share allowed (`run.max_bad_share`)"
            }
            _ => return None,
        };
        Some(hint.to_owned())
    }

    pub(crate) fn io(path: &Path, source: io::Error) -> Self {
        Self::Io { path: path.to_owned(), source }
    }

    pub(crate) fn archive(path: &Path, entry: Option<&str>, reason: impl ToString) -> Self {
        Self::Archive {
            path: path.to_owned(),
            entry: entry.map(str::to_owned),
            reason: reason.to_string(),
        }
    }
}

fn at_line(line: Option<u64>) -> String {
    line.map(|n| format!(" at line {n}")).unwrap_or_default()
}

fn in_line(line: Option<u64>) -> String {
    line.map(|n| format!(", line {n},")).unwrap_or_default()
}

fn at_entry(entry: &Option<String>) -> String {
    entry.as_ref().map(|name| format!(", entry `{name}`")).unwrap_or_default()
}

/// The first names of a list; hostile headers may hold thousands.
fn list(names: &[String]) -> String {
    const SHOWN: usize = 20;
    let mut text =
        names.iter().take(SHOWN).map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN {
        text.push_str(&format!(" and {} more", names.len() - SHOWN));
    }
    text
}
