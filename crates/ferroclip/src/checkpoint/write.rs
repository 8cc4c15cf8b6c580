//! Writing the tensors of a model in any dialect: safetensors, or what `torch.save` writes.
//!
//! Tensors are read one by one, put into the layout of the dialect and written, so that no more than one of them lies in
//! memory.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use zip::CompressionMethod;
use zip::write::{SimpleFileOptions, ZipWriter};

use super::FloatFormat;
use super::dialect::{Dialect, Place, transposed};
use crate::config::ModelConfig;
use crate::error::Error;
use crate::files::write_atomically;
use crate::param::{WeightTensor, Weights};

/// Elements that are converted at a time.
const CHUNK: usize = 1 << 14;
/// Where PyTorch aligns the bytes of a storage.
const ALIGNMENT: u16 = 64;

/// A tensor as a file will hold it.
struct Part {
    name: String,
    shape: Vec<usize>,
    dtype: Dtype,
}

impl Part {
    fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    fn bytes(&self) -> usize {
        self.elements() * self.dtype.bitsize() / 8
    }
}

/// One of our tensors with the parts that a file holds of it.
struct Item {
    name: String,
    transposed: bool,
    parts: Vec<Part>,
}

/// Tensors on their way into a file.
pub(crate) struct Outgoing<'a> {
    items: Vec<Item>,
    /// Gives a tensor by our name.
    read: Box<Read<'a>>,
}

type Read<'a> = dyn FnMut(&str) -> Result<Cow<'a, WeightTensor>, Error> + 'a;

impl<'a> Outgoing<'a> {
    /// Tensors that a file keeps in these places, stored in the format that `dtype` gives for each.
    pub(crate) fn new(
        places: BTreeMap<String, Place>,
        dtype: impl Fn(&str) -> Dtype,
        read: impl FnMut(&str) -> Result<Cow<'a, WeightTensor>, Error> + 'a,
    ) -> Outgoing<'a> {
        let items = places.into_iter().map(|(name, place)| {
            let dtype = dtype(&name);
            let part = |(name, shape)| Part { name, shape, dtype };
            let parts = place.parts.into_iter().map(part).collect();
            Item { name, transposed: place.transposed, parts }
        });
        Outgoing { items: items.collect(), read: Box::new(read) }
    }

    fn parts(&self) -> impl Iterator<Item = &Part> {
        self.items.iter().flat_map(|item| &item.parts)
    }

    /// Calls `each` with the parts, one by one, and their elements.
    fn each(
        &mut self,
        mut each: impl FnMut(&Part, &[f32]) -> io::Result<()>,
    ) -> Result<(), Failed> {
        for item in &self.items {
            let tensor = (self.read)(&item.name).map_err(|e| Failed::Reading(Box::new(e)))?;
            let columns = tensor.shape.last().copied().unwrap_or(1);
            let data = match item.transposed {
                true => Cow::Owned(transposed(&tensor.data, columns)),
                false => Cow::Borrowed(tensor.data.as_slice()),
            };
            let mut rest = &data[..];
            for part in &item.parts {
                let (mine, behind) = rest.split_at(part.elements());
                each(part, mine).map_err(Failed::Writing)?;
                rest = behind;
            }
        }
        Ok(())
    }

    /// Writes a safetensors file; it appears whole or not at all. Equal tensors give equal bytes.
    ///
    /// # Errors
    /// When a tensor cannot be read, or the file not be written.
    pub(crate) fn save_safetensors(mut self, path: &Path) -> Result<(), Error> {
        saved(path, |out| self.write_safetensors(out))
    }

    fn write_safetensors(&mut self, out: &mut impl Write) -> Result<(), Failed> {
        let mut end = 0;
        let infos = self.parts().map(|part| {
            let start = end;
            end += part.bytes();
            let (dtype, shape) = (part.dtype, part.shape.clone());
            (part.name.clone(), TensorInfo { dtype, shape, data_offsets: (start, end) })
        });
        // PyTorch's loaders look for this entry.
        let about = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        let metadata = Metadata::new(Some(about), infos.collect()).map_err(io::Error::other)?;
        let mut header = serde_json::to_vec(&metadata).map_err(io::Error::other)?;
        header.resize(header.len().next_multiple_of(8), b' ');
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(&header)?;
        self.each(|part, data| write_elements(out, data, part.dtype))
    }

    /// Writes a dictionary of tensors as `torch.save` does; the file appears whole or not at all.
    ///
    /// # Errors
    /// As [`Outgoing::save_safetensors`].
    pub(crate) fn save_torch(mut self, path: &Path) -> Result<(), Error> {
        saved(path, |out| self.write_torch(out))
    }

    fn write_torch(&mut self, out: &mut BufWriter<File>) -> Result<(), Failed> {
        let mut zip = ZipWriter::new(out);
        let options = SimpleFileOptions::default()
            .compression_method(CompressionMethod::Stored)
            .with_alignment(ALIGNMENT)
            .large_file(true);
        let mut put = |name: &str, bytes: &[u8]| -> io::Result<()> {
            zip.start_file(format!("archive/{name}"), options).map_err(io::Error::other)?;
            zip.write_all(bytes)
        };
        put("data.pkl", &pickle(self.parts()))?;
        put("byteorder", b"little")?;
        put("version", b"3\n")?;
        let mut key = 0;
        self.each(|part, data| {
            zip.start_file(format!("archive/data/{key}"), options).map_err(io::Error::other)?;
            key += 1;
            write_elements(&mut zip, data, part.dtype)
        })?;
        zip.finish().map_err(io::Error::other)?;
        Ok(())
    }
}

/// Which side of a copy failed.
enum Failed {
    Reading(Box<Error>),
    Writing(io::Error),
}

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Failed {
        Failed::Writing(error)
    }
}

fn saved(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<File>) -> Result<(), Failed>,
) -> Result<(), Error> {
    let mut reading = None;
    let result = write_atomically(path, |out| match write(out) {
        Ok(()) => Ok(()),
        Err(Failed::Writing(error)) => Err(error),
        Err(Failed::Reading(error)) => {
            reading = Some(*error);
            Err(io::Error::other("the tensors cannot be read"))
        }
    });
    match reading {
        Some(error) => Err(error),
        None => result,
    }
}

fn write_elements(out: &mut impl Write, data: &[f32], dtype: Dtype) -> io::Result<()> {
    let mut bytes = Vec::with_capacity(4 * CHUNK);
    for chunk in data.chunks(CHUNK) {
        bytes.clear();
        match dtype {
            Dtype::F16 => {
                bytes.extend(chunk.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()));
            }
            Dtype::BF16 => {
                bytes.extend(chunk.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()));
            }
            _ => bytes.extend(chunk.iter().flat_map(|v| v.to_le_bytes())),
        }
        out.write_all(&bytes)?;
    }
    Ok(())
}

/// A dictionary of tensors, each with a storage of its own: protocol 2, without what only makes pickles shorter.
fn pickle<'a>(parts: impl Iterator<Item = &'a Part>) -> Vec<u8> {
    let text =
        |text: &str| [&b"X"[..], &(text.len() as u32).to_le_bytes(), text.as_bytes()].concat();
    let number = |n: usize| [&b"\x8a\x08"[..], &(n as u64).to_le_bytes()].concat();
    let tuple = |numbers: &[usize]| {
        let numbers = numbers.iter().flat_map(|&n| number(n)).collect::<Vec<u8>>();
        [&b"("[..], &numbers, b"t"].concat()
    };
    let mut out = b"\x80\x02}(".to_vec();
    for (key, part) in parts.enumerate() {
        let storage = match part.dtype {
            Dtype::F16 => "HalfStorage",
            Dtype::BF16 => "BFloat16Storage",
            _ => "FloatStorage",
        };
        out.extend(text(&part.name));
        out.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        out.extend(text("storage"));
        out.extend(format!("ctorch\n{storage}\n").bytes());
        out.extend([text(&key.to_string()), text("cpu"), number(part.elements())].concat());
        out.extend(b"tQK\0");
        out.extend([tuple(&part.shape), tuple(&strides(&part.shape))].concat());
        out.extend(b"\x89ccollections\nOrderedDict\n)RtR");
    }
    out.extend(b"u.");
    out
}

/// Strides of rows one behind the other.
fn strides(shape: &[usize]) -> Vec<usize> {
    (0..shape.len()).map(|i| shape[i + 1..].iter().product()).collect()
}

impl FloatFormat {
    fn dtype(self) -> Dtype {
        match self {
            FloatFormat::F32 => Dtype::F32,
            FloatFormat::F16 => Dtype::F16,
        }
    }
}

impl Weights {
    /// Writes a safetensors file; it appears whole or not at all. Equal weights give equal bytes. Names and shapes
    /// are those of the weights.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&self, path: &Path, format: FloatFormat) -> Result<(), Error> {
        let whole = |(name, tensor): (&String, &WeightTensor)| {
            (name.clone(), Place::whole(name.clone(), &tensor.shape))
        };
        self.outgoing(self.iter().map(whole).collect(), format).save_safetensors(path)
    }

    /// Writes the weights of a model of this config under the names that open_clip gives them.
    ///
    /// # Errors
    /// As [`Weights::save`]; also when these are not our names, and the weights not those of the config.
    pub(crate) fn save_model(
        &self,
        path: &Path,
        config: &ModelConfig,
        format: FloatFormat,
    ) -> Result<(), Error> {
        let places = Dialect::of_open_clip(config).places(&config.parameter_shapes());
        if places.iter().all(|(name, place)| place.parts.iter().all(|(part, _)| part == name)) {
            return self.save(path, format);
        }
        let differences = self.differences(config);
        if !differences.is_empty() {
            return Err(Error::Mismatch { origin: path.display().to_string(), differences });
        }
        self.outgoing(places, format).save_safetensors(path)
    }

    fn outgoing(&self, places: BTreeMap<String, Place>, format: FloatFormat) -> Outgoing<'_> {
        let read = |name: &str| Ok(Cow::Borrowed(self.get(name).expect("one of these weights")));
        Outgoing::new(places, |_| format.dtype(), read)
    }
}
