//! Weights in safetensors files.
//!
//! A file is an 8-byte length, a JSON header of that length, and the tensors' bytes. The header is
//! hostile until checked: it may not be longer than `MAX_HEADER_BYTES`, nothing is allocated for a
//! tensor before its bytes are known to be in the file, and names and shapes are compared with
//! the config before the first element is read. Tensors are then read one by one, through a small
//! buffer, into their final f32 form; files are not mapped into memory.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io::{self, Cursor, Read, Seek, SeekFrom, Write};
use std::path::Path;

use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Serialize};

use ferroclip_ops::Precision;

use crate::config::ModelConfig;
use crate::error::Error;
use crate::files::write_atomically;
use crate::param::{WeightTensor, Weights, differences, first_impossible};
use crate::towers::{Loader, Source};

/// Longest header that is read. The largest models in use stay below 1 MiB.
const MAX_HEADER_BYTES: u64 = 16 << 20;
/// Bytes that are converted at a time.
const CHUNK_BYTES: usize = 1 << 16;
/// What checkpoints hold besides parameters: OpenAI's buffers.
const BOOKKEEPING: [&str; 4] = ["attn_mask", "context_length", "input_resolution", "vocab_size"];
/// The step count of PyTorch's batch norms, which nothing reads.
const BATCHES_TRACKED: &str = ".num_batches_tracked";

fn is_bookkeeping(name: &str) -> bool {
    BOOKKEEPING.contains(&name) || name.ends_with(BATCHES_TRACKED)
}

/// How the elements are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FloatFormat {
    /// 4 bytes, exact.
    #[default]
    F32,
    /// 2 bytes, rounded to the nearest.
    F16,
}

impl Weights {
    /// Reads all tensors of a safetensors file, whatever they are called.
    ///
    /// # Errors
    /// When the file cannot be read, is damaged, or holds other elements than f32, f16 and bf16.
    pub fn load(path: &Path) -> Result<Weights, Error> {
        let mut file = SafetensorsFile::open(path)?;
        let infos = std::mem::take(&mut file.tensors);
        file.read_all(infos)
    }

    /// Reads the weights of a model of this config.
    ///
    /// # Errors
    /// As [`Weights::load`]; also when a tensor is missing, left over or wrongly shaped, or an
    /// element is NaN or infinite.
    pub fn load_for(path: &Path, config: &ModelConfig) -> Result<Weights, Error> {
        TensorReader::open(path, config)?.read_all()
    }

    /// As [`Weights::load_for`], from the bytes of a file that errors call `origin`.
    ///
    /// # Errors
    /// As [`Weights::load_for`].
    pub fn from_bytes(bytes: &[u8], origin: &str, config: &ModelConfig) -> Result<Weights, Error> {
        TensorReader::from_bytes(bytes, origin, config)?.read_all()
    }

    /// Writes a safetensors file; it appears whole or not at all. Equal weights give equal bytes.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&self, path: &Path, format: FloatFormat) -> Result<(), Error> {
        write_atomically(path, |out| self.write_to(out, format))
    }

    /// Writes the content of a safetensors file.
    ///
    /// # Errors
    /// When `out` does.
    pub fn write_to(&self, out: &mut impl Write, format: FloatFormat) -> io::Result<()> {
        let (dtype, size) = match format {
            FloatFormat::F32 => (Dtype::F32, 4),
            FloatFormat::F16 => (Dtype::F16, 2),
        };
        let mut end = 0;
        let infos = self.iter().map(|(name, tensor)| {
            let start = end;
            end += tensor.data.len() * size;
            let shape = tensor.shape.clone();
            (name.clone(), TensorInfo { dtype, shape, data_offsets: (start, end) })
        });
        // PyTorch's loaders look for this entry.
        let about = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        let metadata = Metadata::new(Some(about), infos.collect()).map_err(io::Error::other)?;
        let mut header = serde_json::to_vec(&metadata)?;
        header.resize(header.len().next_multiple_of(8), b' ');
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(&header)?;
        self.iter().try_for_each(|(_, tensor)| write_elements(out, &tensor.data, format))
    }
}

fn write_elements(out: &mut impl Write, data: &[f32], format: FloatFormat) -> io::Result<()> {
    let mut bytes = Vec::with_capacity(CHUNK_BYTES);
    for chunk in data.chunks(CHUNK_BYTES / 4) {
        bytes.clear();
        match format {
            FloatFormat::F32 => bytes.extend(chunk.iter().flat_map(|v| v.to_le_bytes())),
            FloatFormat::F16 => {
                bytes.extend(chunk.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()));
            }
        }
        out.write_all(&bytes)?;
    }
    Ok(())
}

/// An opened file whose header has been checked against its length.
struct SafetensorsFile<R> {
    source: R,
    origin: String,
    /// Where the tensors' bytes begin.
    data_start: u64,
    tensors: BTreeMap<String, TensorInfo>,
}

impl SafetensorsFile<File> {
    fn open(path: &Path) -> Result<Self, Error> {
        let file = File::open(path).map_err(|source| Error::io("read", path, source))?;
        let is_file = file.metadata().map_err(|source| Error::io("read", path, source))?.is_file();
        if !is_file {
            let source = io::Error::from(io::ErrorKind::IsADirectory);
            return Err(Error::io("read", path, source));
        }
        SafetensorsFile::new(file, &path.display().to_string())
    }
}

impl<R: Read + Seek> SafetensorsFile<R> {
    fn new(mut source: R, origin: &str) -> Result<Self, Error> {
        let bad = |reason: String| Error::Weights { origin: origin.to_owned(), reason };
        let end_early = |e: io::Error| match e.kind() {
            io::ErrorKind::UnexpectedEof => bad("the file ends within its header".to_owned()),
            _ => bad(e.to_string()),
        };
        let file_len = source.seek(SeekFrom::End(0)).map_err(end_early)?;
        source.rewind().map_err(end_early)?;
        if file_len == 0 {
            return Err(bad("the file is empty".to_owned()));
        }
        let mut length = [0; 8];
        source.read_exact(&mut length).map_err(end_early)?;
        let header_len = u64::from_le_bytes(length);
        if header_len > MAX_HEADER_BYTES.min(file_len - 8) {
            let limit = MAX_HEADER_BYTES.min(file_len - 8);
            return Err(bad(format!(
                "not a safetensors file: its first bytes announce a header of {header_len} bytes, limit {limit}"
            )));
        }
        let mut header = vec![0; header_len as usize];
        source.read_exact(&mut header).map_err(end_early)?;
        let repeated = RepeatedName::find(&header).map_err(|e| bad(format!("bad header: {e}")))?;
        if let Some(name) = repeated {
            return Err(bad(format!("its header has `{name}` twice")));
        }
        let metadata: Metadata =
            serde_json::from_slice(&header).map_err(|e| bad(format!("bad header: {e}")))?;
        let data_start = 8 + header_len;
        let tensors: BTreeMap<String, TensorInfo> =
            metadata.tensors().into_iter().map(|(name, info)| (name, info.clone())).collect();
        check_layout(&tensors, file_len - data_start).map_err(bad)?;
        Ok(SafetensorsFile { source, origin: origin.to_owned(), data_start, tensors })
    }

    /// The tensors of a model of this config, once all names and shapes are those that it asks for.
    fn model(mut self, config: &ModelConfig) -> Result<TensorReader<R>, Error> {
        let mut infos = std::mem::take(&mut self.tensors);
        infos.retain(|name, _| !is_bookkeeping(name));
        let expected = config.parameter_shapes();
        let found = infos.iter().map(|(name, info)| (name.as_str(), info.shape.as_slice()));
        let differences = differences(&expected, found);
        if !differences.is_empty() {
            return Err(Error::Mismatch { origin: self.origin, differences });
        }
        for (name, shape) in expected {
            if let Some(info) = infos.get_mut(&name) {
                // One number, whether stored as [] or [1].
                info.shape = shape;
            }
        }
        Ok(TensorReader { file: self, infos })
    }

    fn read_all(mut self, infos: BTreeMap<String, TensorInfo>) -> Result<Weights, Error> {
        let mut weights = Weights::new();
        for (name, info) in infos {
            let data = self.read_elements(&name, &info)?;
            weights.insert(name, WeightTensor { shape: info.shape, data });
        }
        Ok(weights)
    }

    fn read_elements(&mut self, name: &str, info: &TensorInfo) -> Result<Vec<f32>, Error> {
        let mut data = Vec::with_capacity(info.shape.iter().product());
        self.pieces(name, info, |piece| {
            data.extend_from_slice(piece);
            Ok(())
        })?;
        Ok(data)
    }

    /// Calls `each` with the elements of a tensor, some at a time.
    fn pieces(
        &mut self,
        name: &str,
        info: &TensorInfo,
        mut each: impl FnMut(&[f32]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let bad = |reason: String| Error::Weights { origin: self.origin.clone(), reason };
        let convert: fn(&[u8], &mut Vec<f32>) = match info.dtype {
            Dtype::F32 => |bytes, out| out.extend(elements(bytes, f32::from_le_bytes)),
            Dtype::F16 => {
                |bytes, out| out.extend(elements(bytes, f16::from_le_bytes).map(f16::to_f32))
            }
            Dtype::BF16 => {
                |bytes, out| out.extend(elements(bytes, bf16::from_le_bytes).map(bf16::to_f32))
            }
            other => {
                return Err(bad(format!(
                    "`{name}` has elements of type {other:?}, expected F32, F16 or BF16"
                )));
            }
        };
        let (start, end) = info.data_offsets;
        let read_error = |e: io::Error| bad(format!("`{name}`: {e}"));
        let position = self.data_start + start as u64;
        self.source.seek(SeekFrom::Start(position)).map_err(read_error)?;
        let mut buffer = vec![0; CHUNK_BYTES.min(end - start)];
        let mut piece = Vec::new();
        let mut left = end - start;
        while left > 0 {
            let chunk = &mut buffer[..left.min(CHUNK_BYTES)];
            self.source.read_exact(chunk).map_err(read_error)?;
            piece.clear();
            convert(chunk, &mut piece);
            each(&piece)?;
            left -= chunk.len();
        }
        Ok(())
    }
}

/// The tensors of a model, checked by name and shape and read one by one.
pub(crate) struct TensorReader<R> {
    file: SafetensorsFile<R>,
    infos: BTreeMap<String, TensorInfo>,
}

impl TensorReader<File> {
    /// The tensors of a file. Nothing is read yet but the header.
    pub(crate) fn open(path: &Path, config: &ModelConfig) -> Result<Self, Error> {
        SafetensorsFile::open(path)?.model(config)
    }
}

impl<'a> TensorReader<Cursor<&'a [u8]>> {
    /// The tensors in the bytes of a file that errors call `origin`.
    pub(crate) fn from_bytes(
        bytes: &'a [u8],
        origin: &str,
        config: &ModelConfig,
    ) -> Result<Self, Error> {
        SafetensorsFile::new(Cursor::new(bytes), origin)?.model(config)
    }
}

impl<R: Read + Seek> TensorReader<R> {
    /// One tensor.
    ///
    /// # Panics
    /// When the config has none of this name.
    pub(crate) fn read(&mut self, name: &str) -> Result<WeightTensor, Error> {
        let shape = self.infos.get(name).expect("a tensor of the config").shape.clone();
        let mut data = Vec::with_capacity(shape.iter().product());
        self.pieces(name, &mut |piece| data.extend_from_slice(piece))?;
        Ok(WeightTensor { shape, data })
    }

    /// The elements of one tensor, some at a time.
    fn pieces(&mut self, name: &str, each: &mut dyn FnMut(&[f32])) -> Result<(), Error> {
        let info = self.infos.get(name).expect("a tensor of the config");
        let origin = self.file.origin.clone();
        self.file.pieces(name, info, |piece| match first_impossible(name, piece) {
            Some(found) => {
                let (origin, tensor) = (origin.clone(), name.to_owned());
                Err(Error::ImpossibleWeight { origin, tensor, found })
            }
            None => {
                each(piece);
                Ok(())
            }
        })
    }

    fn read_all(mut self) -> Result<Weights, Error> {
        let names: Vec<String> = self.infos.keys().cloned().collect();
        names.into_iter().map(|name| Ok((name.clone(), self.read(&name)?))).collect()
    }

    /// What `new` builds of the tensors for inference, each of which is read when it is wanted.
    pub(crate) fn build<T>(
        &mut self,
        config: &ModelConfig,
        precision: Precision,
        new: impl FnOnce(&dyn Source) -> T,
    ) -> Result<T, Error> {
        let mut read = |name: &str, each: &mut dyn FnMut(&[f32])| self.pieces(name, each);
        Loader::new(config.parameter_shapes(), precision, &mut read).build(new)
    }
}

fn elements<'a, T: 'a, const N: usize>(
    bytes: &'a [u8],
    from: fn([u8; N]) -> T,
) -> impl Iterator<Item = T> + 'a {
    bytes.as_chunks::<N>().0.iter().map(move |&bytes| from(bytes))
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
