//! Directories of class folders: the folder's name is the label, underscores and all.
//!
//! Pictures may lie in folders below the class folder. Entries are sorted by name, so that row
//! numbers do not depend on the file system. Names that begin with a dot are passed over;
//! files without a picture's extension are passed over and counted.

use std::fs;
use std::path::{Path, PathBuf};

use crate::table::{Table, TableBuilder};
use crate::{DataError, Filter};

/// Extensions, in lower case, of the files that count as pictures.
pub const PICTURE_EXTENSIONS: [&str; 8] =
    ["jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff"];

/// How deep folders may be nested in a class folder.
const MAX_DEPTH: usize = 16;

/// Whether a file name has a picture's extension.
pub(crate) fn is_picture(name: &str) -> bool {
    let extension = name.rsplit_once('.').map(|(_, e)| e.to_ascii_lowercase());
    extension.is_some_and(|e| PICTURE_EXTENSIONS.contains(&e.as_str()))
}

/// Lists class folders as a table with the columns `file` and `label`, and a notice for what was
/// passed over. `None` where the directory has no folders.
pub(crate) fn read(
    root: &Path,
    filters: &[Filter],
) -> Result<Option<(Table, Vec<String>)>, DataError> {
    let classes: Vec<Entry> = entries(root)?.into_iter().filter(|e| e.is_dir).collect();
    if classes.is_empty() {
        return Ok(None);
    }
    let header = vec!["file".to_owned(), "label".to_owned()];
    let mut builder = TableBuilder::with_header(header, filters, root)?;
    let mut notices = Vec::new();
    let mut others = Others::default();
    for class in &classes {
        let mut files = Vec::new();
        walk(&class.path, &class.name, MAX_DEPTH, &mut files, &mut others)?;
        if files.is_empty() {
            notices.push(format!("class folder `{}` holds no pictures", class.name));
        }
        for file in &files {
            builder.push_line(&[file, &class.name], 0)?;
        }
    }
    if let Some(first) = others.first {
        notices.push(format!(
            "{} files are not named like pictures and were passed over; first `{first}`",
            others.count
        ));
    }
    Ok(Some((builder.finish().without_lines(), notices)))
}

#[derive(Default)]
struct Others {
    count: usize,
    first: Option<String>,
}

fn walk(
    folder: &Path,
    prefix: &str,
    depth: usize,
    files: &mut Vec<String>,
    others: &mut Others,
) -> Result<(), DataError> {
    for entry in entries(folder)? {
        let name = format!("{prefix}/{}", entry.name);
        // Links to folders are followed for the class itself only: deeper ones may form a loop.
        if entry.is_dir && !entry.is_link && depth > 0 {
            walk(&entry.path, &name, depth - 1, files, others)?;
        } else if !entry.is_dir && is_picture(&name) {
            files.push(name);
        } else {
            others.count += 1;
            others.first.get_or_insert(name);
        }
    }
    Ok(())
}

struct Entry {
    name: String,
    path: PathBuf,
    is_dir: bool,
    is_link: bool,
}

/// The entries of a directory, sorted, without those whose names begin with a dot.
fn entries(folder: &Path) -> Result<Vec<Entry>, DataError> {
    let io = |error| DataError::io(folder, error);
    let mut list = Vec::new();
    for entry in fs::read_dir(folder).map_err(io)? {
        let entry = entry.map_err(io)?;
        let path = entry.path();
        let Ok(name) = entry.file_name().into_string() else {
            return Err(DataError::NotUtf8 { path, line: None });
        };
        if name.starts_with('.') {
            continue;
        }
        let is_link = entry.file_type().map_err(io)?.is_symlink();
        // A dangling link is no directory; as a picture it fails when it is read.
        let is_dir = path.is_dir();
        list.push(Entry { name, path, is_dir, is_link });
    }
    list.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    Ok(list)
}
