//! Safetensors files: an 8-byte length, a JSON header of that length, and the tensors' bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, SeekFrom};

use safetensors::tensor::{Metadata, TensorInfo};
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};

use super::stored::{Bytes, Stored};

/// Longest header that is read. The largest models in use stay below 1 MiB.
const MAX_HEADER_BYTES: u64 = 16 << 20;

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
    let repeated = RepeatedName::find(&header).map_err(|e| format!("bad header: {e}"))?;
    if let Some(name) = repeated {
        return Err(format!("its header has `{name}` twice"));
    }
    let metadata: Metadata =
        serde_json::from_slice(&header).map_err(|e| format!("bad header: {e}"))?;
    let data_start = 8 + header_len;
    let tensors: BTreeMap<String, TensorInfo> =
        metadata.tensors().into_iter().map(|(name, info)| (name, info.clone())).collect();
    check_layout(&tensors, len - data_start)?;
    let stored = tensors.into_iter().map(|(name, info)| {
        let start = data_start + info.data_offsets.0 as u64;
        (name, Stored { dtype: info.dtype, shape: info.shape, start, strides: None })
    });
    Ok(stored.collect())
}

/// The first name that a JSON object has twice, which a map would merge in silence.
struct RepeatedName(Option<String>);

impl RepeatedName {
    fn find(header: &[u8]) -> Result<Option<String>, serde_json::Error> {
        let mut json = serde_json::Deserializer::from_slice(header);
        json.deserialize_map(RepeatedName(None)).map(|found| found.0)
    }
}

impl<'de> Visitor<'de> for RepeatedName {
    type Value = RepeatedName;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<RepeatedName, A::Error> {
        let mut names = BTreeSet::new();
        while let Some((name, IgnoredAny)) = map.next_entry::<String, IgnoredAny>()? {
            if let Some(name) = names.replace(name) {
                self.0.get_or_insert(name);
            }
        }
        Ok(self)
    }
}

/// Every tensor lies in the file and has the length of its shape; together they fill the file.
fn check_layout(tensors: &BTreeMap<String, TensorInfo>, data_len: u64) -> Result<(), String> {
    let mut total: u64 = 0;
    for (name, info) in tensors {
        let (start, end) = info.data_offsets;
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
