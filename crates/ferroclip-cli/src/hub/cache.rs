//! Where the files of a repository lie: in the layout of Python's `huggingface_hub`, which reads and writes the same
//! folders.
//!
//! ```text
//! models--owner--name/blobs/ETAG                   a file's content, named by the hub's word for it
//! models--owner--name/snapshots/COMMIT/FILE        a link to it
//! models--owner--name/refs/main                    the commit that a branch was last seen at
//! models--owner--name/.no_exist/COMMIT/FILE        the commit is known not to have this file
//! .locks/models--owner--name/ETAG.lock             held while the content is downloaded
//! ```

use std::fs;
use std::path::PathBuf;

use super::name::Name;
use super::{env, files};
use crate::error::Result;

/// The files of one repository.
#[derive(Debug)]
pub(super) struct RepoCache {
    /// Of all repositories.
    pub(super) root: PathBuf,
    /// `models--owner--name`.
    pub(super) name: String,
    pub(super) revision: String,
}

impl RepoCache {
    pub(super) fn of(name: &Name) -> Result<RepoCache> {
        Ok(RepoCache {
            root: env::cache_folder()?,
            name: format!("models--{}", name.repo.replace('/', "--")),
            revision: name.revision.clone(),
        })
    }

    pub(super) fn folder(&self) -> PathBuf {
        self.root.join(&self.name)
    }

    /// The files of a commit.
    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder().join("snapshots").join(commit)
    }

    /// What holds the commit of the revision.
    pub(super) fn reference(&self) -> PathBuf {
        self.folder().join("refs").join(&self.revision)
    }

    /// What is there when a commit is known not to have a file.
    pub(super) fn no_exist(&self, commit: &str, file: &str) -> PathBuf {
        self.folder().join(".no_exist").join(commit).join(file)
    }

    /// The commit that the revision was last seen at.
    pub(super) fn commit(&self) -> Option<String> {
        if is_commit(&self.revision) {
            return Some(self.revision.clone());
        }
        let commit = fs::read_to_string(self.reference()).ok()?;
        Some(commit.trim().to_owned()).filter(|commit| is_commit(commit))
    }

    /// The folder of the last commit, if the model in it can be opened.
    pub(super) fn usable(&self) -> Option<PathBuf> {
        let snapshot = self.snapshot(&self.commit()?);
        files::missing(&snapshot).is_none().then_some(snapshot)
    }

    /// The same, if nothing that the hub has for it is unknown: there is no need to ask.
    pub(super) fn complete(&self) -> Option<PathBuf> {
        let (snapshot, commit) = (self.usable()?, self.commit()?);
        let is_known =
            |file: &str| snapshot.join(file).is_file() || self.no_exist(&commit, file).is_file();
        files::optional().all(is_known).then_some(snapshot)
    }
}

/// Forty hexadecimal digits.
pub(super) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commits_are_forty_digits() {
        assert!(is_commit(&"0a".repeat(20)));
        for other in ["main", "", &"0A".repeat(20), &"0a".repeat(32)] {
            assert!(!is_commit(other), "{other}");
        }
    }
}
