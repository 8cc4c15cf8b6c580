//! Files of `torch.save` and TorchScript archives: a zip with a pickle that says what the tensors are, and a file for
//! the storage of each.
//!
//! | the pickle holds | tensors |
//! |---|---|
//! | a dictionary of tensors | its entries |
//! | a training checkpoint: a dictionary with `state_dict`, `model_state_dict` or `model` | the entries of that; the rest is passed over |
//! | a TorchScript module (OpenAI's archives) | the attributes of it and of the modules in it, `a.b.c` |

use std::collections::BTreeMap;
use std::io::SeekFrom;

use safetensors::Dtype;

use super::FileKind;
use super::pickle::{Node, Pickle, Value, size};
use super::stored::{Bytes, MAX_SIDES, Stored, check_name};
use super::zip::{Archive, Entry};

/// Longest pickle that is read: names and places of tensors, never their elements.
const MAX_PICKLE_BYTES: u64 = 16 << 20;
/// Most modules inside each other; a transformer has five.
const MAX_DEPTH: usize = 64;

/// What a training checkpoint calls the weights, by how common it is.
const STATE_DICTS: [&str; 3] = ["state_dict", "model_state_dict", "model"];

/// The tensors of a file, and whether it is a TorchScript archive.
pub(super) struct Torch {
    pub(super) tensors: BTreeMap<String, Stored>,
    pub(super) kind: FileKind,
}

/// Reads the directory and the pickle of an archive of `len` bytes.
///
/// # Errors
/// When they are damaged, hold what is no part of weights, or no tensors.
pub(super) fn read(source: &mut dyn Bytes, len: u64) -> Result<Torch, String> {
    let archive = Archive::read(source, len)?;
    let Some(entry) = archive.get("data.pkl")? else {
        return Err("it holds no `data.pkl`: no file of PyTorch".to_owned());
    };
    check_byte_order(source, &archive)?;
    if entry.len > MAX_PICKLE_BYTES {
        return Err(format!("its pickle takes {} bytes, limit {MAX_PICKLE_BYTES}", entry.len));
    }
    let bytes = read_entry(source, entry)?;
    let pickle = Pickle::read(&bytes)?;
    let found = match pickle.node(&pickle.root) {
        Some(Node::Record(_)) => Found::of_module(&pickle)?,
        Some(Node::Dict(_)) => Found::of_dictionary(&pickle)?,
        _ => return Err("its pickle holds neither a dictionary nor a module".to_owned()),
    };
    let mut tensors = BTreeMap::new();
    for (name, value) in found.tensors {
        let stored = stored(&pickle, &value, &archive).map_err(|e| format!("`{name}`: {e}"))?;
        tensors.insert(name, stored);
    }
    let kind = match pickle.node(&pickle.root) {
        Some(Node::Record(_)) => FileKind::TorchScript { has_gelu: pickle.has_gelu },
        _ => FileKind::Torch,
    };
    Ok(Torch { tensors, kind })
}

fn read_entry(source: &mut dyn Bytes, entry: Entry) -> Result<Vec<u8>, String> {
    let mut bytes = vec![0; entry.len as usize];
    source.seek(SeekFrom::Start(entry.start)).map_err(|e| e.to_string())?;
    source.read_exact(&mut bytes).map_err(|e| e.to_string())?;
    Ok(bytes)
}

fn check_byte_order(source: &mut dyn Bytes, archive: &Archive) -> Result<(), String> {
    let Some(entry) = archive.get("byteorder")?.filter(|entry| entry.len < 16) else {
        return Ok(());
    };
    match read_entry(source, entry)?.as_slice() {
        b"little" => Ok(()),
        other => Err(format!("its byte order is `{}`, expected `little`", other.escape_ascii())),
    }
}

/// The tensors of a pickle by name.
struct Found {
    tensors: BTreeMap<String, Value>,
}

impl Found {
    fn add(&mut self, name: String, value: &Value) -> Result<(), String> {
        match self.tensors.insert(name.clone(), value.clone()) {
            None => Ok(()),
            Some(_) => Err(format!("its pickle has `{name}` twice")),
        }
    }

    fn of_dictionary(pickle: &Pickle<'_>) -> Result<Found, String> {
        let entries = pickle.entries(&pickle.root).unwrap_or_default();
        let is_tensor = |value: &Value| matches!(pickle.node(value), Some(Node::Tensor { .. }));
        // `model` may also be the name of the architecture, or its config.
        let state_dict = |(key, value): &'_ (Value, Value)| {
            let name = pickle.text(key).filter(|name| STATE_DICTS.contains(name))?;
            let nested = pickle.entries(value)?;
            nested.iter().any(|(_, value)| is_tensor(value)).then_some((name, nested))
        };
        let nested: Vec<_> = entries.iter().filter_map(state_dict).collect();
        let entries = match nested[..] {
            [] => entries,
            [(_, nested)] => nested,
            [(first, _), (second, _), ..] => {
                return Err(format!(
                    "it holds weights as `{first}` and as `{second}`: save one of them alone"
                ));
            }
        };
        let mut found = Found { tensors: BTreeMap::new() };
        for (key, value) in entries {
            let name = pickle.text(key).ok_or("a key of its dictionary is no text")?;
            check_name(name)?;
            match (pickle.node(value), super::is_bookkeeping(name)) {
                (Some(Node::Tensor { .. }), _) => found.add(name.to_owned(), value)?,
                // A plain number.
                (_, true) => {}
                _ => return Err(format!("`{name}` is no tensor")),
            }
        }
        match found.tensors.is_empty() {
            true => Err("its dictionary holds no tensors".to_owned()),
            false => Ok(found),
        }
    }

    /// Walks through the modules without recursion; a module inside itself ends at [`MAX_DEPTH`].
    fn of_module(pickle: &Pickle<'_>) -> Result<Found, String> {
        let mut found = Found { tensors: BTreeMap::new() };
        let mut waiting = vec![(String::new(), pickle.root.clone(), 0)];
        let mut seen = 0;
        while let Some((prefix, module, depth)) = waiting.pop() {
            for (key, value) in pickle.entries(&module).unwrap_or_default() {
                let key = pickle.text(key).ok_or("a name in its module is no text")?;
                let name =
                    if prefix.is_empty() { key.to_owned() } else { format!("{prefix}.{key}") };
                check_name(&name)?;
                match pickle.node(value) {
                    Some(Node::Tensor { .. }) => found.add(name, value)?,
                    Some(Node::Record(_)) if depth == MAX_DEPTH => {
                        return Err("its modules lie too deep inside each other".to_owned());
                    }
                    Some(Node::Record(_)) => waiting.push((name, value.clone(), depth + 1)),
                    _ => {}
                }
                seen += 1;
                if seen > super::pickle::MAX_NODES {
                    return Err("its modules lie inside each other many times".to_owned());
                }
            }
        }
        Ok(found)
    }
}

/// The place of a tensor, which must lie inside its storage, and that inside the archive.
fn stored(pickle: &Pickle<'_>, tensor: &Value, archive: &Archive) -> Result<Stored, String> {
    let Some(Node::Tensor { storage, offset, size: shape, stride }) = pickle.node(tensor) else {
        return Err("no tensor".to_owned());
    };
    let Some(Node::Storage { dtype, key, elements }) = pickle.node(storage) else {
        return Err("a tensor without a storage".to_owned());
    };
    let numbers = size(offset).zip(size(elements));
    let (offset, held) = numbers.ok_or("an offset or length that is no number")?;
    let shapes = pickle.sizes(shape).zip(pickle.sizes(stride));
    let no_shape = || format!("a shape that is no list of at most {MAX_SIDES} numbers");
    let (shape, strides) = shapes.ok_or_else(no_shape)?;
    let key = pickle.text(key).ok_or("a storage without a name")?;
    let entry = archive.get(&format!("data/{key}"))?;
    let entry = entry.ok_or_else(|| format!("its storage `{}` is missing", key.escape_debug()))?;
    let width = dtype_bytes(*dtype);
    if (held as u64).checked_mul(width).is_none_or(|bytes| bytes != entry.len) {
        return Err(format!("its storage holds {} bytes, expected {held} elements", entry.len));
    }
    let n = shape.iter().try_fold(1usize, |n, &side| n.checked_mul(side));
    let n = n.filter(|&n| n <= held);
    let n = n.ok_or_else(|| format!("the shape {shape:?} does not fit its storage of {held}"))?;
    // Where an empty tensor begins does not matter, but it must be a place.
    if offset > held {
        return Err(format!("it begins beyond its storage of {held} elements"));
    }
    if n > 0 {
        let last = span(&shape, &strides).and_then(|last| last.checked_add(offset));
        if last.is_none_or(|last| last >= held) {
            return Err(format!("it reaches beyond its storage of {held} elements"));
        }
    }
    let strides = (!follows(&shape, &strides)).then_some(strides);
    Ok(Stored { dtype: *dtype, shape, start: entry.start + offset as u64 * width, strides })
}

/// Bytes of an element.
fn dtype_bytes(dtype: Dtype) -> u64 {
    dtype.bitsize() as u64 / 8
}

/// The place of the last element.
fn span(shape: &[usize], strides: &[usize]) -> Option<usize> {
    if shape.len() != strides.len() {
        return None;
    }
    let mut sides = shape.iter().zip(strides);
    sides.try_fold(0usize, |last, (&n, &stride)| last.checked_add((n - 1).checked_mul(stride)?))
}

/// Whether elements lie row behind row. The stride of a single index does not matter.
fn follows(shape: &[usize], strides: &[usize]) -> bool {
    let mut expected = 1usize;
    shape.iter().zip(strides).rev().all(|(&n, &stride)| {
        let fits = n <= 1 || stride == expected;
        // An empty tensor may have sides of any length.
        expected = expected.saturating_mul(n.max(1));
        fits
    })
}

#[cfg(test)]
mod tests;
