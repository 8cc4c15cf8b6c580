//! WebDataset tar shards, as img2dataset writes them.
//!
//! A sample is the files of one shard that share a name up to the first dot: a picture, a `.txt`
//! (the caption), a `.cls` (the number of a class) and a `.json` (further columns). One pass over the headers, skipping the
//! pictures, builds the table; pictures are then read by position.
//!
//! Limits: regular files only; names from GNU long names and pax headers; no compressed tars.

use std::collections::HashMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tar::EntryType;

use crate::folder::is_picture;
use crate::shared_file::SharedFile;
use crate::table::{OpenTableBuilder, Table, stays_inside};
use crate::{DataError, Filter};

/// The most bytes of a caption, of a json, and of a header extension.
const MAX_TEXT_BYTES: u64 = 1 << 20;
/// The most bytes of a name: a sample keeps its name three times.
const MAX_NAME_BYTES: usize = 1 << 10;
/// The most columns: every sample pays for each.
const MAX_COLUMNS: usize = 256;
/// The most shards that a pattern may name.
pub(crate) const MAX_SHARDS: usize = 1 << 20;

/// The column of the numbers of classes.
pub(crate) const CLASS_COLUMN: &str = "cls";

/// Opened shards, and where each row's picture lies.
#[derive(Debug)]
pub(crate) struct ShardStore {
    shards: Vec<(PathBuf, SharedFile)>,
    spans: Vec<Span>,
}

/// A picture in a shard.
#[derive(Debug, Clone, Copy)]
struct Span {
    shard: u32,
    offset: u64,
    len: u64,
}

impl ShardStore {
    /// Indexes shards; `path` is the pattern as given. Also returns notices for what was skipped.
    pub(crate) fn open(
        path: &Path,
        shards: Vec<PathBuf>,
        filters: &[Filter],
    ) -> Result<(Self, Table, Vec<String>), DataError> {
        let mut builder = OpenTableBuilder::new(filters, path, MAX_COLUMNS);
        let mut store = Self { shards: Vec::new(), spans: Vec::new() };
        let mut without_picture = 0_usize;
        for path in shards {
            let file = SharedFile::open(&path)?;
            for sample in index_shard(&path, &file)? {
                let cells = sample.cells(&path)?;
                let Some((name, offset, len)) = sample.picture else {
                    without_picture += 1;
                    continue;
                };
                if builder.push(&name, &cells)? {
                    let shard = store.shards.len() as u32;
                    store.spans.push(Span { shard, offset, len });
                }
            }
            store.shards.push((path, file));
        }
        let notices = match without_picture {
            0 => Vec::new(),
            n => vec![format!("{n} samples without a picture were passed over")],
        };
        Ok((store, builder.finish()?, notices))
    }

    pub(crate) fn read(&self, row: usize, name: &str, limit: u64) -> Result<Vec<u8>, DataError> {
        let Span { shard, offset, len } = self.spans[row];
        let (path, file) = &self.shards[shard as usize];
        if len > limit {
            return Err(DataError::PictureTooLarge {
                path: path.clone(),
                name: name.to_owned(),
                found: len,
                limit,
            });
        }
        file.read_span(offset, len as usize)
            .map_err(|error| DataError::archive(path, Some(name), error))
    }
}

/// The files of one key.
#[derive(Default)]
struct Sample {
    /// Name, offset and length.
    picture: Option<(String, u64, u64)>,
    caption: Option<String>,
    class: Option<String>,
    /// Name and text. It is parsed when the row is made: as text it takes no more than the file.
    json: Option<(String, String)>,
}

impl Sample {
    /// The further columns: caption and class, and the members of the json.
    fn cells(&self, path: &Path) -> Result<Vec<(String, String)>, DataError> {
        let mut cells = match &self.json {
            Some((name, text)) => json_cells(path, name, text)?,
            None => Vec::new(),
        };
        if let Some(caption) = &self.caption {
            // The text file is the caption itself; the json only repeats it.
            cells.retain(|(name, _)| name != "caption");
            cells.insert(0, ("caption".to_owned(), caption.clone()));
        }
        if let Some(class) = &self.class {
            cells.retain(|(name, _)| name != CLASS_COLUMN);
            cells.push((CLASS_COLUMN.to_owned(), class.clone()));
        }
        Ok(cells)
    }
}

fn index_shard(path: &Path, file: &SharedFile) -> Result<Vec<Sample>, DataError> {
    let mut samples: Vec<Sample> = Vec::new();
    let mut by_key: HashMap<String, usize> = HashMap::new();
    for_each_file(path, file, |name, offset, len| {
        let Some((key, extension)) = split_key(&name) else {
            return Ok(());
        };
        let position = *by_key.entry(key.to_owned()).or_insert_with(|| {
            samples.push(Sample::default());
            samples.len() - 1
        });
        let sample = &mut samples[position];
        let twice = || DataError::DuplicateEntry { path: path.to_owned(), name: name.clone() };
        match extension {
            "txt" if sample.caption.is_some() => return Err(twice()),
            "txt" => {
                let text = read_text(path, file, &name, offset, len)?;
                sample.caption = Some(text.trim_end_matches(['\r', '\n']).to_owned());
            }
            "cls" if sample.class.is_some() => return Err(twice()),
            "cls" => {
                let text = read_text(path, file, &name, offset, len)?;
                sample.class = Some(text.trim().to_owned());
            }
            "json" if sample.json.is_some() => return Err(twice()),
            "json" => {
                let text = read_text(path, file, &name, offset, len)?;
                sample.json = Some((name, text));
            }
            _ if is_picture(&name) && sample.picture.is_some() => return Err(twice()),
            _ if is_picture(&name) => sample.picture = Some((name, offset, len)),
            _ => {}
        }
        Ok(())
    })?;
    Ok(samples)
}

/// Calls `each(name, offset, length)` for every regular file of a tar.
fn for_each_file(
    path: &Path,
    file: &SharedFile,
    mut each: impl FnMut(String, u64, u64) -> Result<(), DataError>,
) -> Result<(), DataError> {
    let malformed = |entry: Option<&str>, error: &dyn ToString| {
        DataError::archive(path, entry, error.to_string())
    };
    let mut archive = tar::Archive::new(file.clone());
    // Raw, because the crate reads header extensions of any length into memory.
    let entries = archive.entries_with_seek().map_err(|e| malformed(None, &e))?.raw(true);
    let mut long_name: Option<String> = None;
    for entry in entries {
        let mut entry = entry.map_err(|e| malformed(None, &e))?;
        let (kind, offset, len) =
            (entry.header().entry_type(), entry.raw_file_position(), entry.size());
        if offset.checked_add(len).is_none_or(|end| end > file.len()) {
            return Err(malformed(None, &"cut short: an entry reaches beyond the end of the file"));
        }
        match kind {
            EntryType::GNULongName | EntryType::XHeader => {
                if len > MAX_TEXT_BYTES {
                    return Err(malformed(None, &"a header extension is too long"));
                }
                let mut bytes = Vec::new();
                entry.read_to_end(&mut bytes).map_err(|e| malformed(None, &e))?;
                let name = extended_name(kind, &bytes).map_err(|e| malformed(None, &e))?;
                long_name = name.or(long_name);
            }
            EntryType::Regular | EntryType::Continuous => {
                let bytes = match long_name.take() {
                    Some(name) => name.into_bytes(),
                    None => entry.header().path_bytes().into_owned(),
                };
                let name = String::from_utf8(bytes)
                    .map_err(|_| malformed(None, &"a name is not UTF-8"))?;
                if name.len() > MAX_NAME_BYTES {
                    return Err(malformed(None, &"a name is too long"));
                }
                if !stays_inside(&name) {
                    return Err(DataError::UnsafeName { path: path.to_owned(), line: None, name });
                }
                each(name, offset, len)?;
            }
            _ => long_name = None,
        }
    }
    Ok(())
}

/// The name in a GNU long name or a pax header; a pax header without one gives `None`.
fn extended_name(kind: EntryType, bytes: &[u8]) -> Result<Option<String>, String> {
    let text = |bytes: &[u8]| {
        String::from_utf8(bytes.to_vec()).map_err(|_| "a name is not UTF-8".to_owned())
    };
    if kind == EntryType::GNULongName {
        return Ok(Some(text(bytes.strip_suffix(b"\0").unwrap_or(bytes))?));
    }
    let mut name = None;
    for extension in tar::PaxExtensions::new(bytes) {
        let extension = extension.map_err(|e| e.to_string())?;
        match extension.key_bytes() {
            b"path" => name = Some(text(extension.value_bytes())?),
            // An entry whose header lies about its size would be indexed wrongly.
            b"size" => return Err("sizes in pax headers are not supported".to_owned()),
            _ => {}
        }
    }
    Ok(name)
}

/// `a/b.c.jpg` is key `a/b` and extension `c.jpg`; hidden files are no samples.
fn split_key(name: &str) -> Option<(&str, &str)> {
    let base = name.rfind('/').map_or(0, |slash| slash + 1);
    let dot = base + name[base..].find('.')?;
    (dot > base).then(|| (&name[..dot], &name[dot + 1..]))
}

fn read_text(
    path: &Path,
    file: &SharedFile,
    name: &str,
    offset: u64,
    len: u64,
) -> Result<String, DataError> {
    let malformed = |reason: &str| DataError::archive(path, Some(name), reason);
    if len > MAX_TEXT_BYTES {
        return Err(malformed("text of more than 1 MiB"));
    }
    let bytes =
        file.read_span(offset, len as usize).map_err(|error| malformed(&error.to_string()))?;
    String::from_utf8(bytes).map_err(|_| malformed("text that is not UTF-8"))
}

/// The members of a json object as text: strings as they are, null as nothing, the rest as json.
fn json_cells(path: &Path, name: &str, text: &str) -> Result<Vec<(String, String)>, DataError> {
    let malformed =
        |reason: &dyn ToString| DataError::archive(path, Some(name), reason.to_string());
    let object = match serde_json::from_str(text).map_err(|e| malformed(&e))? {
        Value::Object(object) => object,
        _ => return Err(malformed(&"the json is no object")),
    };
    let cell = |value| match value {
        Value::String(text) => text,
        Value::Null => String::new(),
        other => other.to_string(),
    };
    // `file` is the name of the picture in the shard.
    let members = object.into_iter().filter(|(key, _)| key != "file");
    Ok(members.map(|(key, value)| (key, cell(value))).collect())
}

/// Expands brace ranges and lists: `{000..012}`, `{train,val}`. Without braces, the pattern itself.
///
/// Numbers are padded as bash pads them: to the longer of the two where one begins with a zero.
pub fn expand_braces(pattern: &str) -> Result<Vec<String>, DataError> {
    let invalid = |reason: &str| DataError::InvalidPattern {
        pattern: pattern.to_owned(),
        reason: reason.to_owned(),
    };
    let mut expanded = vec![String::new()];
    let mut rest = pattern;
    while let Some((before, after)) = rest.split_once('{') {
        let (inside, after) = after.split_once('}').ok_or_else(|| invalid("`{` without `}`"))?;
        let choices = match inside.split_once("..") {
            Some((first, last)) => numbers(first, last).map_err(invalid)?,
            None if inside.contains(',') && !inside.contains('{') => {
                inside.split(',').map(str::to_owned).collect()
            }
            None => return Err(invalid("braces hold a range such as `00..12` or a list")),
        };
        if expanded.len().saturating_mul(choices.len()) > MAX_SHARDS {
            return Err(invalid("more than a million shards"));
        }
        expanded = expanded
            .iter()
            .flat_map(|head| choices.iter().map(move |choice| format!("{head}{before}{choice}")))
            .collect();
        rest = after;
    }
    if rest.contains('}') {
        return Err(invalid("`}` without `{`"));
    }
    expanded.iter_mut().for_each(|name| name.push_str(rest));
    Ok(expanded)
}

fn numbers(first: &str, last: &str) -> Result<Vec<String>, &'static str> {
    let parse = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        let number = text.parse::<u64>().ok().filter(|_| digits && text.len() <= 20);
        number.ok_or("a range goes from a number to a number")
    };
    let (from, to) = (parse(first)?, parse(last)?);
    if from > to {
        return Err("a range goes upwards");
    }
    if to - from >= MAX_SHARDS as u64 {
        return Err("more than a million shards");
    }
    let padded = [first, last].iter().any(|text| text.len() > 1 && text.starts_with('0'));
    let width = if padded { first.len().max(last.len()) } else { 0 };
    Ok((from..=to).map(|n| format!("{n:0width$}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expands_as_bash_does() {
        for (pattern, expected) in [
            ("a.tar", vec!["a.tar"]),
            ("s/{00009..00011}.tar", vec!["s/00009.tar", "s/00010.tar", "s/00011.tar"]),
            ("{9..11}", vec!["9", "10", "11"]),
            ("{09..11}", vec!["09", "10", "11"]),
            ("{0..1}{a,b}.tar", vec!["0a.tar", "0b.tar", "1a.tar", "1b.tar"]),
        ] {
            assert_eq!(expand_braces(pattern).unwrap(), expected, "{pattern}");
        }
    }

    #[test]
    fn refuses_bad_patterns() {
        for pattern in [
            "{0..1",
            "0}",
            "{}",
            "{a}",
            "{a..b}",
            "{3..1}",
            "{0..}",
            "{..3}",
            "{+1..3}",
            "{0..99999999}",
            "{0..18446744073709551615}",
            "{0..9999}{0..9999}",
            "{a,{b,c}}",
        ] {
            let error = expand_braces(pattern).unwrap_err();
            assert!(matches!(error, DataError::InvalidPattern { .. }), "{pattern}");
        }
    }

    #[test]
    fn splits_keys_at_the_first_dot() {
        assert_eq!(split_key("a.b/c.seg.png"), Some(("a.b/c", "seg.png")));
        assert_eq!(split_key("a/.hidden.png"), None);
        assert_eq!(split_key("README"), None);
    }
}
