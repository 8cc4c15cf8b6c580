//! Safetensors files: an 8-byte length, a JSON header of that length, and the tensors' bytes.

use std::collections::BTreeMap;
use std::io::{self, SeekFrom};

use safetensors::tensor::TensorInfo;
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};

use super::stored::{Bytes, MAX_SIDES, Stored, check_name};

/// Longest header that is read. The largest models in use stay below 1 MiB.
const MAX_HEADER_BYTES: u64 = 16 << 20;
/// The entry of a header that is no tensor.
const METADATA: &str = "__metadata__";

/// The tensors of a file of `len` bytes, by its header, which is checked against its length.
///
/// # Errors
/// When the header is damaged or does not describe the bytes behind it.
pub(super) fn read(source: &mut dyn Bytes, len: u64) -> Result<BTreeMap<String, Stored>, String> {
    let end_early = |e: io::Error| match e.kind() {
        io::ErrorKind::UnexpectedEof => "the file ends within its header".to_owned(),
        _ => e.to_string(),
    };
    let mut length = [0; 8];
    source.seek(SeekFrom::Start(0)).map_err(end_early)?;
    source.read_exact(&mut length).map_err(end_early)?;
    let header_len = u64::from_le_bytes(length);
    let limit = MAX_HEADER_BYTES.min(len - 8);
    if header_len > limit {
        return Err(format!(
            "not a safetensors file: its first bytes announce a header of {header_len} bytes, limit {limit}"
        ));
    }
    let mut header = vec![0; header_len as usize];
    source.read_exact(&mut header).map_err(end_early)?;
    let tensors = tensors_of(&header).map_err(|e| format!("bad header: {e}"))?;
    let data_start = 8 + header_len;
    check_layout(&tensors, len - data_start)?;
    let stored = tensors.into_iter().map(|(name, info)| {
        let start = data_start + info.data_offsets.0 as u64;
        (name, Stored { dtype: info.dtype, shape: info.shape, start, strides: None })
    });
    Ok(stored.collect())
}

/// The entries of a header by name.
///
/// Not by the crate's own `Metadata`, which holds every value of the JSON before it looks at it, 70 bytes for each of
/// the file, and of two entries of one name keeps the last in silence.
fn tensors_of(header: &[u8]) -> Result<BTreeMap<String, TensorInfo>, serde_json::Error> {
    let mut json = serde_json::Deserializer::from_slice(header);
    let tensors = json.deserialize_map(Entries)?;
    json.end()?;
    Ok(tensors)
}

struct Entries;

impl<'de> Visitor<'de> for Entries {
    type Value = BTreeMap<String, TensorInfo>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut tensors = BTreeMap::new();
        let mut has_metadata = false;
        let twice = |name: &str| A::Error::custom(format!("it has `{name}` twice"));
        while let Some(name) = map.next_key::<String>()? {
            if name == METADATA {
                let IgnoredAny = map.next_value()?;
                if std::mem::replace(&mut has_metadata, true) {
                    return Err(twice(METADATA));
                }
                continue;
            }
            if tensors.contains_key(&name) {
                return Err(twice(&name));
            }
            tensors.insert(name, map.next_value()?);
        }
        Ok(tensors)
    }
}

/// Every tensor lies in the file and has the length of its shape; together they fill the file.
fn check_layout(tensors: &BTreeMap<String, TensorInfo>, data_len: u64) -> Result<(), String> {
    let mut total: u64 = 0;
    for (name, info) in tensors {
        let (start, end) = info.data_offsets;
        check_name(name)?;
        if info.shape.len() > MAX_SIDES {
            return Err(format!("`{name}` has {} sides, limit {MAX_SIDES}", info.shape.len()));
        }
        let elements = info.shape.iter().try_fold(1usize, |n, &side| n.checked_mul(side));
        let bits = elements.and_then(|n| n.checked_mul(info.dtype.bitsize()));
        if start > end || bits.map(|bits| bits / 8) != Some(end - start) {
            return Err(format!(
                "the length of `{name}` does not match its shape {:?}",
                info.shape
            ));
        }
        if end as u64 > data_len {
            return Err(format!("the file ends before `{name}` does: it is truncated"));
        }
        total += (end - start) as u64;
    }
    let mut ranges: Vec<_> = tensors.iter().map(|(name, t)| (t.data_offsets, name)).collect();
    ranges.sort_unstable();
    let mut expected = 0;
    for ((start, end), name) in ranges {
        if start != expected {
            return Err(format!("`{name}` begins at byte {start}, expected {expected}"));
        }
        expected = end;
    }
    match total == data_len {
        true => Ok(()),
        false => Err(format!("the tensors take {total} bytes, the file has {data_len} for them")),
    }
}
