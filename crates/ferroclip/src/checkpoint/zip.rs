//! The directory of a zip archive as `torch.save` and TorchScript write it: one folder, tensors as they are.
//!
//! A general reader would take whatever a zip can hold. Here a name that occurs twice, entries that share bytes and names
//! outside the archive's one folder are refused: no such file comes from PyTorch. A compressed entry, which could unfold
//! to any size, is refused when it is asked for: TorchScript compresses its code, which nobody reads.

use std::collections::BTreeMap;
use std::io::SeekFrom;

use super::cursor::Cursor;
use super::stored::Bytes;

/// Longest directory that is read, and most entries.
const MAX_DIRECTORY_BYTES: u64 = 64 << 20;
const MAX_ENTRIES: usize = 1 << 16;
/// The end record and the longest comment behind it.
const MAX_END_BYTES: u64 = 22 + u16::MAX as u64;
const END: u32 = 0x0605_4b50;
const END_64: u32 = 0x0606_4b50;
const LOCATOR_64: u32 = 0x0706_4b50;
const DIRECTORY: u32 = 0x0201_4b50;
const LOCAL: u32 = 0x0403_4b50;

/// Where the bytes of an entry lie in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) start: u64,
    pub(super) len: u64,
    is_plain: bool,
}

/// Entries by their names inside the archive's folder.
#[derive(Debug)]
pub(super) struct Archive {
    entries: BTreeMap<String, Entry>,
}

impl Archive {
    /// Reads the directory of an archive of `len` bytes.
    ///
    /// # Errors
    /// When it is damaged, truncated, or not as PyTorch writes it.
    pub(super) fn read(source: &mut dyn Bytes, len: u64) -> Result<Archive, String> {
        let [start, size] = find_directory(source, len)?;
        if size > MAX_DIRECTORY_BYTES {
            return Err(format!("its directory takes {size} bytes, limit {MAX_DIRECTORY_BYTES}"));
        }
        let directory = read_at(source, start, size as usize)?;
        let mut input = Cursor::new(&directory);
        let mut entries = BTreeMap::new();
        while input.position() < directory.len() {
            let listed = Listed::read(&mut input)?;
            let entry = listed.locate(source, start)?;
            if entries.insert(listed.name.to_owned(), entry).is_some() {
                return Err(format!("`{}` is in it twice", shown(listed.name)));
            }
            if entries.len() > MAX_ENTRIES {
                return Err(format!("it has more than {MAX_ENTRIES} entries"));
            }
        }
        check_apart(&entries)?;
        Ok(Archive { entries: inside_folder(entries)? })
    }

    /// The entry of this name, if there is one.
    ///
    /// # Errors
    /// When it is compressed or encrypted.
    pub(super) fn get(&self, name: &str) -> Result<Option<Entry>, String> {
        match self.entries.get(name) {
            Some(entry) if !entry.is_plain => {
                Err(format!("`{}` in it is compressed or encrypted", shown(name)))
            }
            entry => Ok(entry.copied()),
        }
    }
}

fn read_at(source: &mut dyn Bytes, start: u64, len: usize) -> Result<Vec<u8>, String> {
    let mut bytes = vec![0; len];
    source.seek(SeekFrom::Start(start)).map_err(|e| e.to_string())?;
    source.read_exact(&mut bytes).map_err(|e| e.to_string())?;
    Ok(bytes)
}

/// Where the directory begins and how long it is.
fn find_directory(source: &mut dyn Bytes, len: u64) -> Result<[u64; 2], String> {
    let tail_len = len.min(MAX_END_BYTES);
    let tail_start = len - tail_len;
    let tail = read_at(source, tail_start, tail_len as usize)?;
    let is_end = |at: &usize| {
        let mut input = Cursor::new(&tail[*at..]);
        input.u32() == Ok(END)
            && input.take(16).is_ok()
            && input.u16().is_ok_and(|comment| at + 22 + usize::from(comment) == tail.len())
    };
    let at = (0..=tail.len().saturating_sub(22)).rev().find(is_end);
    let at = at.ok_or("it has no directory at its end: the file is truncated")?;
    let mut input = Cursor::new(&tail[at + 12..]);
    let (size, start) = (u64::from(input.u32()?), u64::from(input.u32()?));
    let mut end = tail_start + at as u64;
    let [mut start, mut size] = [start, size];
    // PyTorch writes the longer form beside the shorter one whatever the size.
    let locator = at.checked_sub(20).map(|from| Cursor::new(&tail[from..at]));
    if let Some(mut locator) = locator
        && locator.u32()? == LOCATOR_64
    {
        locator.take(4)?;
        end = locator.u64()?;
        if end.checked_add(56).is_none_or(|behind| behind > len) {
            return Err("its directory lies beyond the end of the file".to_owned());
        }
        let record = read_at(source, end, 56)?;
        let mut input = Cursor::new(&record);
        if input.u32()? != END_64 {
            return Err("its directory is damaged".to_owned());
        }
        input.take(36)?;
        [size, start] = [input.u64()?, input.u64()?];
    }
    match start.checked_add(size).is_some_and(|behind| behind <= end) {
        true => Ok([start, size]),
        false => Err("its directory lies beyond the end of the file".to_owned()),
    }
}

/// An entry as the directory lists it.
struct Listed<'a> {
    name: &'a str,
    /// Where its local header is.
    header: u64,
    /// Bytes in the file.
    len: u64,
    is_plain: bool,
}

impl<'a> Listed<'a> {
    fn read(input: &mut Cursor<'a>) -> Result<Listed<'a>, String> {
        if input.u32()? != DIRECTORY {
            return Err("its directory is damaged".to_owned());
        }
        input.take(4)?;
        let (flags, method) = (input.u16()?, input.u16()?);
        input.take(8)?;
        let sizes = [u64::from(input.u32()?), u64::from(input.u32()?)];
        let [name, extra, comment] = [input.u16()?, input.u16()?, input.u16()?].map(usize::from);
        input.take(8)?;
        let header = u64::from(input.u32()?);
        let name = std::str::from_utf8(input.take(name)?).map_err(|_| "a name in it is no text")?;
        let [packed, size, header] = wide(input.take(extra)?, [sizes[0], sizes[1], header])?;
        input.take(comment)?;
        let is_plain = method == 0 && packed == size && flags & 1 == 0;
        Ok(Listed { name, header, len: packed, is_plain })
    }

    /// Where its bytes lie: behind its local header, before the directory.
    fn locate(&self, source: &mut dyn Bytes, directory: u64) -> Result<Entry, String> {
        let bad = || format!("`{}` in it lies outside the file", shown(self.name));
        if self.header.checked_add(30).is_none_or(|behind| behind > directory) {
            return Err(bad());
        }
        let local = read_at(source, self.header, 30)?;
        let mut input = Cursor::new(&local);
        if input.u32()? != LOCAL {
            return Err(format!("`{}` in it has no header", shown(self.name)));
        }
        input.take(22)?;
        let start = self.header + 30 + u64::from(input.u16()?) + u64::from(input.u16()?);
        match start.checked_add(self.len).is_some_and(|end| end <= directory) {
            true => Ok(Entry { start, len: self.len, is_plain: self.is_plain }),
            false => Err(bad()),
        }
    }
}

/// The beginning of a name, as an error can show it.
fn shown(name: &str) -> String {
    name.chars().take(80).flat_map(char::escape_debug).collect()
}

/// Packed size, size and place; those that do not fit in 32 bits stand in the extra field, in this order but
/// for the sizes, the larger first.
fn wide(extra: &[u8], [packed, size, header]: [u64; 3]) -> Result<[u64; 3], String> {
    let mut fields = Cursor::new(extra);
    while fields.position() + 4 <= extra.len() {
        let (id, length) = (fields.u16()?, usize::from(fields.u16()?));
        let mut field = Cursor::new(fields.take(length)?);
        if id == 1 {
            let mut read = |narrow: u64| match narrow == u64::from(u32::MAX) {
                true => field.u64(),
                false => Ok(narrow),
            };
            let size = read(size)?;
            return Ok([read(packed)?, size, read(header)?]);
        }
    }
    Ok([packed, size, header])
}

/// No two entries share bytes.
fn check_apart(entries: &BTreeMap<String, Entry>) -> Result<(), String> {
    let mut ranges: Vec<(&Entry, &String)> = entries.iter().map(|(name, e)| (e, name)).collect();
    ranges.retain(|(entry, _)| entry.len > 0);
    ranges.sort_unstable_by_key(|(entry, _)| entry.start);
    let overlap = ranges.windows(2).find(|pair| pair[0].0.start + pair[0].0.len > pair[1].0.start);
    match overlap {
        Some(pair) => {
            Err(format!("`{}` and `{}` in it share bytes", shown(pair[0].1), shown(pair[1].1)))
        }
        None => Ok(()),
    }
}

/// The names without the folder that all of them are in.
fn inside_folder(entries: BTreeMap<String, Entry>) -> Result<BTreeMap<String, Entry>, String> {
    let first = entries.keys().next().ok_or("it is empty")?;
    let folder = first.split('/').next().unwrap_or_default().to_owned() + "/";
    let inside = entries.into_iter().map(|(name, entry)| match name.strip_prefix(&folder) {
        Some(rest) if !rest.split('/').any(|part| part == "..") => Ok((rest.to_owned(), entry)),
        _ => Err(format!("`{}` in it lies outside its folder `{}`", shown(&name), shown(&folder))),
    });
    inside.collect()
}
