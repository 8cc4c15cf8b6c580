//! Files that are whole or absent.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::error::Error;

/// Writes a file under a temporary name beside `path`, forces it to disk and renames it. Whatever
/// happens, `path` holds its old content or all of the new one.
///
/// # Errors
/// When the operating system refuses a step; the temporary file is then removed.
pub fn write_atomically(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
) -> Result<(), Error> {
    let temporary = sibling(path, "tmp");
    let result = write_and_rename(path, &temporary, write);
    if result.is_err() {
        // The first error is the one to report.
        let _ = fs::remove_file(&temporary);
    }
    result.map_err(|source| Error::io("write", path, source))
}

fn write_and_rename(
    path: &Path,
    temporary: &Path,
    write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
) -> io::Result<()> {
    let mut out = BufWriter::with_capacity(1 << 18, File::create(temporary)?);
    write(&mut out)?;
    out.flush()?;
    out.get_ref().sync_all()?;
    fs::rename(temporary, path)?;
    sync_directory(path);
    Ok(())
}

/// A hidden name beside `path` that no other process uses.
pub(crate) fn sibling(path: &Path, suffix: &str) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{}.{suffix}", std::process::id()))
}

/// Makes a rename durable. Not every file system can, and the content is safe without it.
pub(crate) fn sync_directory(path: &Path) {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    if let Ok(directory) = File::open(parent.unwrap_or(Path::new("."))) {
        let _ = directory.sync_all();
    }
}

/// Opens a file to be read. A pipe, whose opening would wait for a writer, is refused first.
pub(crate) fn open_regular(path: &Path) -> Result<File, Error> {
    let io = |source| Error::io("read", path, source);
    let found = fs::metadata(path).map_err(io)?;
    match () {
        () if found.is_dir() => Err(io(io::ErrorKind::IsADirectory.into())),
        () if !found.is_file() => {
            Err(io(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")))
        }
        () => File::open(path).map_err(io),
    }
}

/// Whether a file is there that need not be. A link to nothing, a directory or a pipe of its name is an error: to go on
/// as if there were none would be to guess.
pub(crate) fn is_there(path: &Path) -> Result<bool, Error> {
    match fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        _ => open_regular(path).map(|_| true),
    }
}

/// Reads a text file of at most `max_bytes`.
pub(crate) fn read_text(path: &Path, max_bytes: u64) -> Result<String, Error> {
    String::from_utf8(read_bytes(path, max_bytes)?).map_err(|_| {
        let reason = "the file is no UTF-8 text";
        Error::io("read", path, io::Error::new(io::ErrorKind::InvalidData, reason))
    })
}

/// Reads a file of at most `max_bytes`.
pub(crate) fn read_bytes(path: &Path, max_bytes: u64) -> Result<Vec<u8>, Error> {
    let io_error = |source| Error::io("read", path, source);
    let file = open_regular(path)?;
    let mut bytes = Vec::new();
    let read = io::Read::read_to_end(&mut io::Read::take(file, max_bytes + 1), &mut bytes);
    if read.map_err(io_error)? as u64 > max_bytes {
        let reason = format!("larger than {max_bytes} bytes");
        return Err(io_error(io::Error::new(io::ErrorKind::InvalidData, reason)));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_file_is_not_taken_for_none() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name);
        assert!(!is_there(&path("none")).expect("nothing"));
        fs::write(path("file"), "").expect("written");
        assert!(is_there(&path("file")).expect("a file"));
        fs::create_dir(path("directory")).expect("made");
        assert!(is_there(&path("directory")).is_err());
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink(path("file"), path("link")).expect("linked");
            assert!(is_there(&path("link")).expect("a link to a file"));
            std::os::unix::fs::symlink(path("none"), path("dangling")).expect("linked");
            assert!(is_there(&path("dangling")).is_err());
        }
    }

    #[test]
    fn a_failed_write_leaves_the_old_content_and_nothing_else() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.txt");
        write_atomically(&path, |out| out.write_all(b"old")).expect("written");
        use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
        for kind in [StorageFull, QuotaExceeded, FileTooLarge] {
            let failed = write_atomically(&path, |out| out.write_all(b"ne").and(Err(kind.into())));
            let error = failed.expect_err("there is no room");
            assert!(error.hint().expect("a hint").contains("another disk"), "{error}");
            assert_eq!(fs::read(&path).expect("still there"), b"old");
            assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 1);
        }
    }
}
