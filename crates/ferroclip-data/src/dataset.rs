//! A [`Dataset`]: what can be opened, how it is told apart, and one way to read it all.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::benchmark::{self, Benchmark};
use crate::shards::{CLASS_COLUMN, ShardStore, expand_braces};
use crate::shared_file::open_regular;
use crate::table::{Table, TextFormat, read_text, stays_inside};
use crate::zip_store::ZipStore;
use crate::{DataError, Filter, folder};

/// The most bytes of a picture file, unless [`Dataset::with_max_bytes`] says otherwise.
pub const MAX_PICTURE_BYTES: u64 = 256 << 20;

/// The tables looked for in directories and archives.
const TABLE_NAMES: [&str; 3] = ["labels.tsv", "labels.csv", "labels.parquet"];
/// The number of an entry that is not in the archive.
const ABSENT: u32 = u32::MAX;

/// One source of a training run, as its configuration names it.
#[derive(Debug, Clone, PartialEq)]
pub struct Source {
    /// What [`Dataset::open`] takes.
    pub path: PathBuf,
    /// Conditions that every row must pass.
    pub filters: Vec<Filter>,
    /// How often each row comes in an epoch; see [`crate::Plan::new`].
    pub repeat: f64,
}

impl Source {
    /// Opens the source.
    pub fn open(&self) -> Result<Dataset, DataError> {
        Dataset::open(&self.path, &self.filters)
    }
}

/// Text columns in memory, and one picture per row where it lies. Shared by threads as it is.
#[derive(Debug)]
pub struct Dataset {
    path: PathBuf,
    table: Table,
    store: Store,
    notices: Vec<String>,
    max_bytes: u64,
    benchmark: Option<Benchmark>,
}

/// Where the pictures are.
#[derive(Debug)]
enum Store {
    Directory { root: PathBuf, table: PathBuf },
    Zip { zip: ZipStore, entries: Vec<u32>, table: PathBuf },
    Shards(ShardStore),
}

/// A store, its table, and what its reading passed over.
type Opened = (Store, Table, Vec<String>);

impl Dataset {
    /// Opens data; all `filters` must hold for a row to be kept.
    ///
    /// What may be opened, told by content:
    /// - a directory or zip with `labels.tsv`, `labels.csv` or `labels.parquet`, whose column
    ///   `file` (or `path`, `filepath`, `image`) holds paths below it; in a zip, all may lie in one
    ///   folder;
    /// - a directory of class folders: columns `file` and `label`;
    /// - a tsv, csv or parquet file: paths relative to it, or absolute;
    /// - WebDataset tars, one or a pattern such as `shards/{00000..00003}.tar`: columns `file`,
    ///   `caption` from the `.txt`, `cls` from the `.cls`, and the keys of the `.json`;
    /// - a dataset of CLIP_benchmark or one of its splits: tars as above, see [`Benchmark`].
    ///
    /// A picture that is absent or broken is an error when it is read, not here.
    pub fn open(path: &Path, filters: &[Filter]) -> Result<Self, DataError> {
        let found = if path.is_dir() { benchmark::find(path)? } else { None };
        let (benchmark, opened) = match found {
            Some((benchmark, shards)) => (Some(benchmark), open_shards(path, shards, filters)?),
            None => (None, open_any(path, filters)?),
        };
        let (store, table, notices) = opened;
        if table.rows() == 0 {
            return Err(DataError::NoSamples {
                path: path.to_owned(),
                filtered: !filters.is_empty(),
            });
        }
        let (path, max_bytes) = (path.to_owned(), MAX_PICTURE_BYTES);
        Ok(Self { path, table, store, notices, max_bytes, benchmark })
    }

    /// Sets the most bytes that a picture's file may have.
    pub fn with_max_bytes(mut self, limit: u64) -> Self {
        self.max_bytes = limit;
        self
    }

    /// The path as given.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Rows that passed the filters; at least one.
    pub fn len(&self) -> usize {
        self.table.rows()
    }

    /// Never: data without rows does not open.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The names of the text columns, in their order.
    pub fn columns(&self) -> &[String] {
        self.table.names()
    }

    /// The number of a column; an unknown one is an error that lists those there are.
    pub fn column_index(&self, column: &str) -> Result<usize, DataError> {
        self.table.column_index(column).ok_or_else(|| DataError::UnknownColumn {
            path: self.path.clone(),
            column: column.to_owned(),
            columns: self.columns().to_vec(),
        })
    }

    /// The name of a row's picture, as the table has it.
    ///
    /// # Panics
    /// Where `row` is not below [`Self::len`].
    pub fn key(&self, row: usize) -> &str {
        self.table.key(row)
    }

    /// What tells the picture of a row from those of others. Rows of a table that name one file share it; samples of
    /// shards never do, though names come again from shard to shard.
    ///
    /// # Panics
    /// Where `row` is not below [`Self::len`].
    pub fn picture(&self, row: usize) -> (Option<usize>, &str) {
        let sample = matches!(self.store, Store::Shards(_)).then_some(row);
        (sample, self.key(row))
    }

    /// A cell by column number.
    ///
    /// # Panics
    /// Where there is no such row or column.
    pub fn cell(&self, row: usize, column: usize) -> &str {
        self.table.cell(row, column)
    }

    /// A cell by column name; `None` where there is no such column.
    ///
    /// # Panics
    /// Where `row` is not below [`Self::len`].
    pub fn text(&self, row: usize, column: &str) -> Option<&str> {
        Some(self.cell(row, self.table.column_index(column)?))
    }

    /// What lies beside the data, where it is a dataset of CLIP_benchmark.
    pub fn benchmark(&self) -> Option<&Benchmark> {
        self.benchmark.as_ref()
    }

    /// The number of a row's class: its cell in the column `cls`. `None` where it has none, or no number.
    ///
    /// # Panics
    /// Where `row` is not below [`Self::len`].
    pub fn class(&self, row: usize) -> Option<usize> {
        self.text(row, CLASS_COLUMN)?.parse().ok()
    }

    /// What was passed over while opening, one sentence each, to be reported.
    pub fn notices(&self) -> &[String] {
        &self.notices
    }

    /// A digest of the names and cells of all rows in order: saved with a run, it shows that data
    /// changed.
    pub fn fingerprint(&self) -> String {
        let columns = self.columns().len();
        digest((0..self.len()).flat_map(|row| {
            let cells = (0..columns).map(move |column| self.cell(row, column));
            std::iter::once(self.key(row)).chain(cells)
        }))
    }

    /// Reads the bytes of a row's picture. Any number of threads may read at once.
    ///
    /// # Panics
    /// Where `row` is not below [`Self::len`].
    pub fn read(&self, row: usize) -> Result<Vec<u8>, DataError> {
        let name = self.key(row);
        let absent = |path: &Path| DataError::Absent {
            path: path.to_owned(),
            line: self.table.line(row),
            name: name.to_owned(),
        };
        match &self.store {
            Store::Zip { entries, table, .. } if entries[row] == ABSENT => Err(absent(table)),
            Store::Zip { zip, entries, .. } => zip.read(entries[row], self.max_bytes),
            Store::Shards(shards) => shards.read(row, name, self.max_bytes),
            Store::Directory { root, table } => {
                let read = read_file(&root.join(name), self.max_bytes);
                read.map_err(|error| match error {
                    DataError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                        absent(table)
                    }
                    error => error,
                })
            }
        }
    }
}

fn read_file(path: &Path, limit: u64) -> Result<Vec<u8>, DataError> {
    let io = |error| DataError::io(path, error);
    let file = open_regular(path)?;
    let fits = |found: u64| match found <= limit {
        true => Ok(()),
        false => Err(DataError::PictureTooLarge {
            path: path.parent().unwrap_or(path).to_owned(),
            name: path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            found,
            limit,
        }),
    };
    // Of a file that is too long nothing is read.
    let length = file.metadata().map_err(io)?.len();
    fits(length)?;
    let mut bytes = Vec::with_capacity(length as usize + 1);
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes).map_err(io)?;
    // It may have grown meanwhile.
    fits(bytes.len() as u64)?;
    Ok(bytes)
}

fn open_any(path: &Path, filters: &[Filter]) -> Result<Opened, DataError> {
    let metadata = match std::fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) => {
            return match path.to_str() {
                Some(pattern) if pattern.contains('{') => {
                    open_shards(path, expand_braces(pattern)?, filters)
                }
                _ => Err(DataError::io(path, error)),
            };
        }
    };
    if metadata.is_dir() { open_directory(path, filters) } else { open_file(path, filters) }
}

fn open_shards(
    path: &Path,
    shards: Vec<impl Into<PathBuf>>,
    filters: &[Filter],
) -> Result<Opened, DataError> {
    let shards = shards.into_iter().map(Into::into).collect();
    let (store, table, notices) = ShardStore::open(path, shards, filters)?;
    Ok((Store::Shards(store), table, notices))
}

fn open_directory(path: &Path, filters: &[Filter]) -> Result<Opened, DataError> {
    let tables: Vec<&str> =
        TABLE_NAMES.into_iter().filter(|name| path.join(name).is_file()).collect();
    if let Some(name) = only_table(path, &tables)? {
        let file = path.join(name);
        let table = read_table_file(&file, table_kind(name), filters)?;
        check_names(&file, &table)?;
        let root = path.to_owned();
        return Ok((Store::Directory { root, table: file }, table, Vec::new()));
    }
    let Some((table, notices)) = folder::read(path, filters)? else {
        return Err(DataError::UnknownKind {
            path: path.to_owned(),
            found: "a directory without class folders and without labels.tsv".to_owned(),
        });
    };
    let (root, file) = (path.to_owned(), path.to_owned());
    Ok((Store::Directory { root, table: file }, table, notices))
}

fn only_table<'n>(path: &Path, tables: &[&'n str]) -> Result<Option<&'n str>, DataError> {
    match tables {
        [first, second, ..] => Err(DataError::TwoTables {
            path: path.to_owned(),
            first: (*first).to_owned(),
            second: (*second).to_owned(),
        }),
        _ => Ok(tables.first().copied()),
    }
}

/// What a file that is no directory may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FileKind {
    Zip,
    Tar,
    Table(TableKind),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TableKind {
    Text(TextFormat),
    Parquet,
}

fn open_file(path: &Path, filters: &[Filter]) -> Result<Opened, DataError> {
    let mut head = Vec::new();
    let read = open_regular(path)?.take(4096).read_to_end(&mut head);
    read.map_err(|error| DataError::io(path, error))?;
    match file_kind(path, &head)? {
        FileKind::Zip => open_zip(path, filters),
        FileKind::Tar => open_shards(path, vec![path], filters),
        FileKind::Table(kind) => {
            let table = read_table_file(path, kind, filters)?;
            let root = path.parent().unwrap_or(Path::new("")).to_owned();
            let store = Store::Directory { root, table: path.to_owned() };
            Ok((store, table, Vec::new()))
        }
    }
}

fn file_kind(path: &Path, head: &[u8]) -> Result<FileKind, DataError> {
    let extension = path.extension().unwrap_or_default().to_ascii_lowercase();
    let line = head.split(|&byte| byte == b'\n').next().unwrap_or_default();
    let found = if head.starts_with(b"PK\x03\x04") || head.starts_with(b"PK\x05\x06") {
        return Ok(FileKind::Zip);
    } else if head.starts_with(b"PAR1") {
        return Ok(FileKind::Table(TableKind::Parquet));
    } else if head.get(257..262) == Some(b"ustar") || extension == "tar" {
        return Ok(FileKind::Tar);
    } else if extension == "tsv" {
        return Ok(FileKind::Table(TableKind::Text(TextFormat::Tsv)));
    } else if extension == "csv" {
        return Ok(FileKind::Table(TableKind::Text(TextFormat::Csv)));
    } else if head.is_empty() {
        "an empty file"
    } else if head.starts_with(b"\x1f\x8b") {
        "a gzip file, which cannot be read in place; unpack it"
    } else if head.contains(&0) || std::str::from_utf8(line).is_err() {
        "a binary file of an unknown kind"
    } else {
        let format = if line.contains(&b'\t') { TextFormat::Tsv } else { TextFormat::Csv };
        return Ok(FileKind::Table(TableKind::Text(format)));
    };
    Err(DataError::UnknownKind { path: path.to_owned(), found: found.to_owned() })
}

/// The kind of one of [`TABLE_NAMES`], which may have a folder before it.
fn table_kind(name: &str) -> TableKind {
    match name.rsplit_once('.') {
        Some((_, "csv")) => TableKind::Text(TextFormat::Csv),
        Some((_, "parquet")) => TableKind::Parquet,
        _ => TableKind::Text(TextFormat::Tsv),
    }
}

fn read_table_file(path: &Path, kind: TableKind, filters: &[Filter]) -> Result<Table, DataError> {
    let file = open_regular(path)?;
    match kind {
        TableKind::Text(format) => read_text(file, format, path, filters),
        TableKind::Parquet => read_parquet_file(file, path, filters),
    }
}

fn open_zip(path: &Path, filters: &[Filter]) -> Result<Opened, DataError> {
    let (zip, names) = ZipStore::open(path)?;
    let mut tables: Vec<&str> =
        TABLE_NAMES.into_iter().filter(|&name| names.contains_key(name)).collect();
    if tables.is_empty() {
        // A folder that was zipped whole.
        let in_folder =
            |name: &&str| name.split_once('/').is_some_and(|(_, rest)| TABLE_NAMES.contains(&rest));
        tables = names.keys().map(String::as_str).filter(in_folder).collect();
        tables.sort_unstable();
    }
    let Some(name) = only_table(path, &tables)? else {
        return Err(DataError::UnknownKind {
            path: path.to_owned(),
            found: "a zip without labels.tsv".to_owned(),
        });
    };
    let file = path.join(name);
    let bytes = zip.read(names[name], zip.table_limit()).map_err(|error| match error {
        DataError::PictureTooLarge { limit, .. } => {
            DataError::TooLarge { path: file.clone(), what: "bytes", limit }
        }
        other => other,
    })?;
    let table = match table_kind(name) {
        TableKind::Text(format) => read_text(&*bytes, format, &file, filters)?,
        TableKind::Parquet => read_parquet_bytes(bytes, &file, filters)?,
    };
    check_names(&file, &table)?;
    let folder = name.rfind('/').map_or("", |slash| &name[..=slash]);
    let entry = |row| {
        let key = table.key(row);
        let name = format!("{folder}{}", key.strip_prefix("./").unwrap_or(key));
        names.get(&name).copied().unwrap_or(ABSENT)
    };
    let entries = (0..table.rows()).map(entry).collect();
    Ok((Store::Zip { zip, entries, table: file }, table, Vec::new()))
}

/// Names in a directory's or archive's own table stay below it.
fn check_names(path: &Path, table: &Table) -> Result<(), DataError> {
    match (0..table.rows()).find(|&row| !stays_inside(table.key(row))) {
        None => Ok(()),
        Some(row) => Err(DataError::UnsafeName {
            path: path.to_owned(),
            line: table.line(row),
            name: table.key(row).to_owned(),
        }),
    }
}

#[cfg(feature = "parquet")]
fn read_parquet_file(file: File, path: &Path, filters: &[Filter]) -> Result<Table, DataError> {
    crate::parquet_table::read(file, path, filters)
}

#[cfg(feature = "parquet")]
fn read_parquet_bytes(bytes: Vec<u8>, path: &Path, filters: &[Filter]) -> Result<Table, DataError> {
    crate::parquet_table::read(bytes::Bytes::from(bytes), path, filters)
}

#[cfg(not(feature = "parquet"))]
fn read_parquet_file(_: File, path: &Path, _: &[Filter]) -> Result<Table, DataError> {
    Err(DataError::ParquetNotBuilt { path: path.to_owned() })
}

#[cfg(not(feature = "parquet"))]
fn read_parquet_bytes(_: Vec<u8>, path: &Path, _: &[Filter]) -> Result<Table, DataError> {
    Err(DataError::ParquetNotBuilt { path: path.to_owned() })
}

/// A short digest of texts in order, to notice that they are others.
pub fn digest<T: AsRef<str>>(texts: impl IntoIterator<Item = T>) -> String {
    let mut hasher = Sha256::new();
    for text in texts {
        hasher.update((text.as_ref().len() as u64).to_le_bytes());
        hasher.update(text.as_ref().as_bytes());
    }
    hasher.finalize()[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests;
