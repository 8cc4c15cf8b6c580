//! How a download changes the cache.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::cache::{RepoCache, is_commit};
use crate::atomic::write_file;
use crate::error::{Error, Result};

impl RepoCache {
    pub(super) fn blob(&self, etag: &str) -> PathBuf {
        self.folder().join("blobs").join(etag)
    }

    /// What is there of a blob so far.
    pub(super) fn incomplete(&self, etag: &str) -> PathBuf {
        self.folder().join("blobs").join(format!("{etag}.incomplete"))
    }

    pub(super) fn lock(&self, etag: &str) -> PathBuf {
        self.root.join(".locks").join(&self.name).join(format!("{etag}.lock"))
    }

    /// Gives a blob its name in a commit.
    pub(super) fn link(&self, etag: &str, commit: &str, file: &str) -> Result<()> {
        let (blob, link) = (self.blob(etag), self.snapshot(commit).join(file));
        make_folder_of(&link)?;
        if link.is_file() {
            // Another process was faster.
            return Ok(());
        }
        // What may stand there is a link that leads nowhere.
        let _ = fs::remove_file(&link);
        match place(&blob, &Path::new("../../blobs").join(etag), &link) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                Err(Error::file("create", &link, &error))
            }
            _ => Ok(()),
        }
    }

    /// Remembers which commit the revision is at.
    pub(super) fn set_commit(&self, commit: &str) -> Result<()> {
        if is_commit(&self.revision) || self.commit().as_deref() == Some(commit) {
            return Ok(());
        }
        let path = self.reference();
        make_folder_of(&path)?;
        write_file(&path, commit.as_bytes())
    }

    /// Remembers that a commit does not have a file.
    pub(super) fn set_absent(&self, commit: &str, file: &str) -> Result<()> {
        let path = self.no_exist(commit, file);
        if path.is_file() {
            return Ok(());
        }
        make_folder_of(&path)?;
        write_file(&path, b"")
    }
}

pub(super) fn make_folder_of(path: &Path) -> Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder).map_err(|error| Error::file("create", folder, &error))
}

/// A link where there can be links, else another name or a copy.
fn place(blob: &Path, relative: &Path, link: &Path) -> io::Result<()> {
    match symlink(relative, link) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(error),
        Err(_) => fs::hard_link(blob, link).or_else(|_| copy(blob, link)),
        Ok(()) => Ok(()),
    }
}

/// A copy that is there whole or not at all.
fn copy(blob: &Path, link: &Path) -> io::Result<()> {
    let name = link.file_name().unwrap_or_default().to_string_lossy();
    let temporary = link.with_file_name(format!(".{name}.{}.tmp", std::process::id()));
    fs::copy(blob, &temporary).and_then(|_| fs::rename(&temporary, link)).inspect_err(|_| {
        // The first error is the one to report.
        let _ = fs::remove_file(&temporary);
    })
}

#[cfg(unix)]
fn symlink(to: &Path, link: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(to, link)
}

#[cfg(not(unix))]
fn symlink(_: &Path, _: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}
