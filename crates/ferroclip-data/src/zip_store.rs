//! Zip archives, read in place.
//!
//! The central directory is parsed once. Every read then makes its own small reader over the one
//! open file, so that any number of threads read at once and the archive is never copied.
//! Nothing is ever unpacked to disk; names that would leave the archive are refused all the same,
//! because they say that the archive was made to deceive.

use std::collections::HashMap;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use zip::read::ZipArchiveMetadata;
use zip::{ZipArchive, ZipReadOptions};

use crate::DataError;
use crate::shared_file::SharedFile;
use crate::table::{MAX_TABLE_BYTES, stays_inside};

/// An opened zip.
#[derive(Debug)]
pub(crate) struct ZipStore {
    path: PathBuf,
    file: SharedFile,
    metadata: Arc<ZipArchiveMetadata>,
}

impl ZipStore {
    /// Opens an archive and lists its files: name to entry number.
    pub(crate) fn open(path: &Path) -> Result<(Self, HashMap<String, u32>), DataError> {
        let file = SharedFile::open(path)?;
        let archive = ZipArchive::new(BufReader::new(file.clone()))
            .map_err(|error| DataError::archive(path, None, error))?;
        let metadata = archive.metadata();
        let store = Self { path: path.to_owned(), file, metadata };
        let names = store.list()?;
        // The parser keeps the last of two equal names; that there were two is all it tells.
        if store.metadata.has_duplicate_names() {
            return Err(DataError::archive(path, None, "a name is listed twice"));
        }
        Ok((store, names))
    }

    /// The most bytes of a table: what is packed can unfold to a thousand times as much, and a table is unpacked into
    /// memory. The pictures that it names take more than it does.
    pub(crate) fn table_limit(&self) -> u64 {
        const LEAST: u64 = 16 << 20;
        LEAST.saturating_add(self.file.len()).min(MAX_TABLE_BYTES)
    }

    fn list(&self) -> Result<HashMap<String, u32>, DataError> {
        let mut names = HashMap::with_capacity(self.metadata.len());
        for index in 0..self.metadata.len() {
            let entry = self.entry(index)?;
            let name = entry
                .name()
                .map_err(|error| DataError::archive(&self.path, None, error))?
                .into_owned();
            if !stays_inside(&name) {
                return Err(DataError::UnsafeName { path: self.path.clone(), line: None, name });
            }
            let number = u32::try_from(index).map_err(|_| DataError::TooLarge {
                path: self.path.clone(),
                what: "entries",
                limit: u64::from(u32::MAX),
            })?;
            if entry.is_file() && names.insert(name.clone(), number).is_some() {
                return Err(DataError::DuplicateEntry { path: self.path.clone(), name });
            }
        }
        Ok(names)
    }

    fn entry(&self, index: usize) -> Result<zip::read::ZipFileEntry<'_>, DataError> {
        self.metadata.entry(index).map_err(|error| DataError::archive(&self.path, None, error))
    }

    /// Reads an entry of at most `limit` bytes; what was read has the declared length and checksum.
    pub(crate) fn read(&self, index: u32, limit: u64) -> Result<Vec<u8>, DataError> {
        /// The most to allocate on the archive's word alone.
        const MAX_TRUSTED_BYTES: u64 = 1 << 20;

        let entry = self.entry(index as usize)?;
        let name = String::from_utf8_lossy(entry.name_raw()).into_owned();
        let size = entry.size();
        if size > limit {
            return Err(DataError::PictureTooLarge {
                path: self.path.clone(),
                name,
                found: size,
                limit,
            });
        }
        let archive = |error: String| DataError::archive(&self.path, Some(&name), error);
        let mut file = self.file.clone();
        let reader = entry
            .with_reader(&mut file, ZipReadOptions::new())
            .map_err(|error| archive(error.to_string()))?;
        let mut bytes = Vec::with_capacity(size.min(MAX_TRUSTED_BYTES) as usize);
        // One byte more than declared: it shows a lie, and makes the reader check the checksum.
        let mut reader = reader.take(size.saturating_add(1));
        let read = reader.read_to_end(&mut bytes);
        let found = read.map_err(|error| archive(error.to_string()))? as u64;
        if found != size {
            return Err(DataError::WrongSize {
                path: self.path.clone(),
                name,
                expected: size,
                found,
            });
        }
        Ok(bytes)
    }
}
