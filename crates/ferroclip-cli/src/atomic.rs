//! Files that are there whole or not at all: written under a temporary name, then renamed.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// A file that appears under its name on [`AtomicFile::commit`]; dropped before, it leaves nothing.
pub(crate) struct AtomicFile {
    path: PathBuf,
    temporary: PathBuf,
    /// `None` once committed.
    file: Option<BufWriter<File>>,
}

impl AtomicFile {
    pub(crate) fn create(path: &Path) -> Result<AtomicFile> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let temporary = path.with_file_name(format!(".{name}.{}.tmp", std::process::id()));
        // A special file such as /dev/stdout cannot be replaced by renaming.
        let special = fs::metadata(path).is_ok_and(|m| !m.is_file());
        let temporary = if special { path.to_owned() } else { temporary };
        let file = File::create(&temporary).map_err(|e| Error::file("create", path, &e))?;
        Ok(AtomicFile { path: path.to_owned(), temporary, file: Some(BufWriter::new(file)) })
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let written = match &mut self.file {
            Some(file) => file.write_all(bytes),
            None => Ok(()),
        };
        written.map_err(|e| Error::file("write", &self.path, &e))
    }

    /// Makes the file durable and gives it its name.
    pub(crate) fn commit(mut self) -> Result<()> {
        let error = |e| Error::file("write", &self.path, &e);
        if let Some(mut file) = self.file.take() {
            let flushed = file.flush().and_then(|()| match self.is_special() {
                true => Ok(()),
                false => file.get_ref().sync_all(),
            });
            // Taken out of its buffer, so that dropping it does not try to flush again.
            let _ = file.into_parts();
            if let Err(e) = flushed {
                self.remove();
                return Err(error(e));
            }
            if !self.is_special() {
                fs::rename(&self.temporary, &self.path).map_err(|e| {
                    self.remove();
                    error(e)
                })?;
            }
        }
        Ok(())
    }

    fn is_special(&self) -> bool {
        self.temporary == self.path
    }

    fn remove(&self) {
        if !self.is_special() {
            // Nothing more can be done if even this fails.
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        if let Some(file) = self.file.take() {
            let _ = file.into_parts();
            self.remove();
        }
    }
}

/// Writes a whole file.
pub(crate) fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = AtomicFile::create(path)?;
    file.write(bytes)?;
    file.commit()
}
