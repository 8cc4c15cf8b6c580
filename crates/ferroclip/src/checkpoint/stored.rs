//! Tensors where they lie in files, whatever the format of the file.

use std::collections::BTreeMap;
use std::io::{self, Read, Seek, SeekFrom};

use half::{bf16, f16};
use safetensors::Dtype;

use crate::error::Error;

/// Bytes that are converted at a time.
const CHUNK_BYTES: usize = 1 << 16;
/// Longest name of a tensor.
const MAX_NAME: usize = 256;
/// Most sides of a tensor. A pickle can give the same long list of sides to each of its tensors.
pub(super) const MAX_SIDES: usize = 8;

/// A name that errors can show and that many tensors can have.
pub(super) fn check_name(name: &str) -> Result<(), String> {
    match name.len() <= MAX_NAME {
        true => Ok(()),
        false => Err(format!("the name of a tensor takes {} bytes, limit {MAX_NAME}", name.len())),
    }
}

/// A file, or the bytes of one.
pub(crate) trait Bytes: Read + Seek + Send {}

impl<T: Read + Seek + Send> Bytes for T {}

/// A tensor in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stored {
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    /// Where its first element lies in the file.
    pub(super) start: u64,
    /// Elements from one index to the next in each dimension, where they are not those of rows one behind
    /// the other.
    pub(super) strides: Option<Vec<usize>>,
}

impl Stored {
    /// Elements; what parsers let pass does not overflow.
    fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    pub(super) fn bytes(&self) -> u64 {
        (self.elements() * self.dtype.bitsize() / 8) as u64
    }
}

/// A file whose tensors are known: their places lie in it, and nothing of them has been read.
pub(crate) struct TensorFile {
    pub(super) source: Box<dyn Bytes>,
    /// Its bytes.
    pub(super) len: u64,
    /// What errors call it.
    pub(super) origin: String,
    pub(super) tensors: BTreeMap<String, Stored>,
}

impl TensorFile {
    /// Calls `each` with the elements of a tensor as f32, some at a time.
    pub(super) fn pieces(
        &mut self,
        name: &str,
        each: &mut dyn FnMut(&[f32]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let stored = self.tensors[name].clone();
        let Some(convert) = conversion(stored.dtype) else {
            return Err(self.bad(format!(
                "`{name}` has elements of type {:?}, expected F32, F16 or BF16",
                stored.dtype
            )));
        };
        if let Some(strides) = &stored.strides {
            return self.gather(name, &stored, strides, convert, each);
        }
        let mut piece = Vec::new();
        self.run(name, stored.start, stored.bytes(), &mut |chunk| {
            piece.clear();
            convert(chunk, &mut piece);
            each(&piece)
        })
    }

    /// The bytes of a part of the file, some at a time.
    fn run(
        &mut self,
        name: &str,
        start: u64,
        bytes: u64,
        each: &mut dyn FnMut(&[u8]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let read_error = |origin: &str, e: io::Error| {
            let reason = match e.kind() {
                io::ErrorKind::UnexpectedEof => {
                    format!("the file ends within `{name}`: it was cut while it was read")
                }
                _ => format!("`{name}`: {e}"),
            };
            Error::Weights { origin: origin.to_owned(), reason }
        };
        let sought = self.source.seek(SeekFrom::Start(start));
        sought.map_err(|e| read_error(&self.origin, e))?;
        let mut left = bytes;
        let mut buffer = vec![0; left.min(CHUNK_BYTES as u64) as usize];
        while left > 0 {
            let chunk = &mut buffer[..left.min(CHUNK_BYTES as u64) as usize];
            self.source.read_exact(chunk).map_err(|e| read_error(&self.origin, e))?;
            each(chunk)?;
            left -= chunk.len() as u64;
        }
        Ok(())
    }

    /// The elements of a tensor that does not lie row behind row: all that it spans is read.
    fn gather(
        &mut self,
        name: &str,
        stored: &Stored,
        strides: &[usize],
        convert: Convert,
        each: &mut dyn FnMut(&[f32]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        if stored.elements() == 0 {
            return Ok(());
        }
        let last: usize =
            stored.shape.iter().zip(strides).map(|(n, stride)| (n - 1) * stride).sum();
        let width = stored.dtype.bitsize() / 8;
        let bytes = (last + 1) * width;
        // As they are: widened they could take more memory than the file.
        let mut all = Vec::with_capacity(bytes);
        self.run(name, stored.start, bytes as u64, &mut |chunk| {
            all.extend_from_slice(chunk);
            Ok(())
        })?;
        let mut index = vec![0; stored.shape.len()];
        let mut piece = Vec::with_capacity(CHUNK_BYTES / 4);
        for _ in 0..stored.elements() {
            let place: usize = index.iter().zip(strides).map(|(i, stride)| i * stride).sum();
            convert(&all[place * width..][..width], &mut piece);
            if piece.len() == CHUNK_BYTES / 4 {
                each(&piece)?;
                piece.clear();
            }
            for (i, &n) in index.iter_mut().zip(&stored.shape).rev() {
                *i += 1;
                if *i < n {
                    break;
                }
                *i = 0;
            }
        }
        each(&piece)
    }

    pub(super) fn bad(&self, reason: String) -> Error {
        Error::Weights { origin: self.origin.clone(), reason }
    }
}

/// Appends the elements of bytes to a list.
type Convert = fn(&[u8], &mut Vec<f32>);

fn conversion(dtype: Dtype) -> Option<Convert> {
    Some(match dtype {
        Dtype::F32 => |bytes, out| out.extend(elements(bytes, f32::from_le_bytes)),
        Dtype::F16 => |bytes, out| out.extend(elements(bytes, f16::from_le_bytes).map(f16::to_f32)),
        Dtype::BF16 => {
            |bytes, out| out.extend(elements(bytes, bf16::from_le_bytes).map(bf16::to_f32))
        }
        _ => return None,
    })
}

fn elements<'a, T: 'a, const N: usize>(
    bytes: &'a [u8],
    from: fn([u8; N]) -> T,
) -> impl Iterator<Item = T> + 'a {
    bytes.as_chunks::<N>().0.iter().map(move |&bytes| from(bytes))
}

#[cfg(test)]
mod tests {
    use std::fs::{self, OpenOptions};

    use crate::checkpoint::Checkpoint;

    #[test]
    fn a_file_that_shrinks_is_an_error() {
        let header = br#"{"a":{"dtype":"F32","shape":[65536],"data_offsets":[0,262144]}}"#;
        let length = (header.len() as u64).to_le_bytes();
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.safetensors");
        fs::write(&path, [&length[..], header, &vec![0; 262_144]].concat()).expect("written");
        let checkpoint = Checkpoint::open(&path).expect("whole");
        let file = OpenOptions::new().write(true).open(&path).expect("opened");
        file.set_len(100_000).expect("cut");
        let shown = checkpoint.read_all().expect_err("it is cut").to_string();
        assert!(shown.contains("the file ends within `a`"), "{shown}");
    }
}
