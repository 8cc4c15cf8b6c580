//! The content of one file: taken up where an earlier try ended, checked, and only then given its name.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::Duration;

use sha1::Sha1;
use sha2::{Digest, Sha256};
use ureq::Body;
use ureq::http::{Response, StatusCode};

use super::cache::RepoCache;
use super::client::Client;
use super::failure::{Failure, N_TRIES, Tried, pause, retry, stop_if_asked};
use super::store::make_folder_of;
use crate::common::Common;
use crate::error::{Error, Kind, Result};
use crate::output;
use crate::progress::Progress;

/// Between two looks at a lock that another process holds.
const LOCK_PERIOD: Duration = Duration::from_millis(200);

/// A content to download.
pub(super) struct Download<'a> {
    pub(super) client: &'a Client,
    pub(super) cache: &'a RepoCache,
    pub(super) common: &'a Common,
    /// The file's name, for people.
    pub(super) file: &'a str,
    pub(super) url: &'a str,
    pub(super) etag: &'a str,
    pub(super) size: u64,
}

impl Download<'_> {
    /// Makes the blob, if it is not there.
    pub(super) fn run(&self) -> Tried<()> {
        let blob = self.cache.blob(self.etag);
        make_folder_of(&blob)?;
        let _lock = self.lock()?;
        let size_of = |path: &Path| fs::metadata(path).map(|found| found.len()).ok();
        if size_of(&blob) == Some(self.size) {
            return Ok(());
        }
        let incomplete = self.cache.incomplete(self.etag);
        retry(N_TRIES, || self.transfer(&incomplete))?;
        self.check(&incomplete)?;
        fs::rename(&incomplete, &blob).map_err(|error| Error::file("create", &blob, &error))?;
        Ok(())
    }

    /// Waits until no other process, of ours or of Python's, downloads the same.
    fn lock(&self) -> Result<File> {
        let path = self.cache.lock(self.etag);
        make_folder_of(&path)?;
        let file = File::options().create(true).append(true).open(&path);
        let file = file.map_err(|error| Error::file("open", &path, &error))?;
        let mut is_told = false;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::Error(error)) => return Err(Error::file("lock", &path, &error)),
                Err(TryLockError::WouldBlock) if !is_told => {
                    is_told = true;
                    let text = format!("another process downloads `{}`; waiting for it", self.file);
                    output::note(self.common, &text);
                }
                Err(TryLockError::WouldBlock) => pause(LOCK_PERIOD)?,
            }
        }
    }

    /// Gets what is still missing of the file.
    fn transfer(&self, path: &Path) -> Tried<()> {
        let failed = |error: io::Error| Error::file("write", path, &error);
        let file = File::options().create(true).write(true).truncate(false).open(path);
        let mut file = file.map_err(failed)?;
        let mut begin = file.metadata().map_err(failed)?.len();
        // What no checksum can tell from what it should be is not gone on with.
        if begin > self.size || Checksum::of(self.etag).is_none() {
            begin = 0;
            file.set_len(0).map_err(failed)?;
        }
        if begin != self.size {
            let response = self.client.get(self.url, begin)?;
            begin = match begins_at(&response) {
                Some(at) if at == begin || at == 0 => at,
                _ => {
                    // What is there is of no use to this server.
                    file.set_len(0).map_err(failed)?;
                    return Err(Failure::Broken("the server sends another part".to_owned()));
                }
            };
            file.set_len(begin).map_err(failed)?;
            file.seek(SeekFrom::Start(begin)).map_err(failed)?;
            self.receive(response, &mut file, begin, path)?;
        }
        file.sync_all().map_err(failed)?;
        Ok(())
    }

    /// Writes the rest of the file as it comes.
    fn receive(
        &self,
        response: Response<Body>,
        file: &mut File,
        begin: u64,
        path: &Path,
    ) -> Tried<()> {
        let progress = Progress::bytes(self.common, begin, self.size);
        let (mut reader, mut done) = (response.into_body().into_reader(), begin);
        let mut buffer = vec![0; 1 << 17];
        loop {
            stop_if_asked()?;
            let n = reader.read(&mut buffer).map_err(|error| Failure::Broken(error.to_string()))?;
            if n == 0 {
                break;
            }
            done += n as u64;
            if done > self.size {
                // Nothing more can be done if even this fails.
                let _ = fs::remove_file(path);
                let found = format!("more than the {} bytes it should have", self.size);
                return Err(self.damaged(&found));
            }
            let written = file.write_all(&buffer[..n]);
            written.map_err(|error| Error::file("write", path, &error))?;
            progress.show(done, Some(self.file.to_owned()));
        }
        match done < self.size {
            true => Err(Failure::Broken(format!(
                "the connection ended after {done} of {} bytes",
                self.size
            ))),
            false => Ok(()),
        }
    }

    /// Compares with the checksum, where the hub gives one; a file that is not what it should be is removed.
    fn check(&self, path: &Path) -> Tried<()> {
        let Some(checksum) = Checksum::of(self.etag) else { return Ok(()) };
        let (found, name) = match checksum {
            Checksum::Sha256 => (digest(Sha256::new(), path)?, "SHA-256"),
            Checksum::GitBlob => {
                let header = format!("blob {}\0", self.size);
                (digest(Sha1::new_with_prefix(header), path)?, "SHA-1 in git")
            }
        };
        if self.etag.eq_ignore_ascii_case(&found) {
            return Ok(());
        }
        let _ = fs::remove_file(path);
        Err(self.damaged(&format!("{name} {found}, expected {}", self.etag)))
    }

    fn damaged(&self, found: &str) -> Failure {
        let message = format!("what was downloaded as `{}` has {found}", self.file);
        let hint = "it is deleted; run the command again, and if that does not help, ask the owner \
                    of the server";
        Failure::Final(Error::new(Kind::Failed("checksum"), message).hint(hint))
    }
}

/// Where in the file an answer begins.
fn begins_at(response: &Response<Body>) -> Option<u64> {
    match response.status() {
        StatusCode::OK => Some(0),
        StatusCode::PARTIAL_CONTENT => {
            let range = response.headers().get("content-range")?.to_str().ok()?;
            range.strip_prefix("bytes ")?.split('-').next()?.parse().ok()
        }
        _ => None,
    }
}

/// What the name of a content on the hub is a checksum by.
enum Checksum {
    /// Of large files.
    Sha256,
    /// SHA-1 of a header of git's and the content: of files that git keeps itself.
    GitBlob,
}

impl Checksum {
    fn of(etag: &str) -> Option<Checksum> {
        match etag.len() {
            _ if !etag.bytes().all(|b| b.is_ascii_hexdigit()) => None,
            64 => Some(Checksum::Sha256),
            40 => Some(Checksum::GitBlob),
            _ => None,
        }
    }
}

/// The digits of a hash that a file is added to.
fn digest(mut hash: impl Digest, path: &Path) -> Result<String> {
    let failed = |error: io::Error| Error::file("read", path, &error);
    let mut file = File::open(path).map_err(failed)?;
    let mut buffer = vec![0; 1 << 18];
    loop {
        stop_if_asked()?;
        match file.read(&mut buffer).map_err(failed)? {
            0 => break,
            n => hash.update(&buffer[..n]),
        }
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}
