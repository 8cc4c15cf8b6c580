//! Matrices in NumPy's `.npy` format, version 1.0, little-endian.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use half::f16;

use crate::atomic::AtomicFile;
use crate::error::Result;

/// Bytes of the header: room for any shape, and a multiple of 64 as NumPy wants it.
const HEADER_BYTES: usize = 128;

/// Type of the numbers in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Dtype {
    /// 16-bit floats.
    F16,
    /// 32-bit floats.
    F32,
}

impl Dtype {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Dtype::F16 => "f16",
            Dtype::F32 => "f32",
        }
    }
}

/// Writes an array.
pub(crate) fn write(path: &Path, dtype: Dtype, shape: &[usize], numbers: &[f32]) -> Result<()> {
    assert_eq!(shape.iter().product::<usize>(), numbers.len(), "numbers fill the shape");
    let mut file = AtomicFile::create(path)?;
    file.write(&header(dtype, shape))?;
    for numbers in numbers.chunks(1 << 16) {
        let bytes: Vec<u8> = match dtype {
            Dtype::F32 => numbers.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Dtype::F16 => numbers.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect(),
        };
        file.write(&bytes)?;
    }
    file.commit()
}

/// The numbers of a file that [`write()`] made with this shape in f32; `None` for any other file.
pub(crate) fn read(path: &Path, shape: &[usize]) -> Option<Vec<f32>> {
    let n_bytes = HEADER_BYTES as u64 + 4 * shape.iter().product::<usize>() as u64;
    let file =
        File::open(path).ok().filter(|file| file.metadata().is_ok_and(|m| m.len() == n_bytes))?;
    let mut bytes = Vec::new();
    file.take(n_bytes).read_to_end(&mut bytes).ok()?;
    let numbers = bytes.strip_prefix(header(Dtype::F32, shape).as_slice())?.as_chunks::<4>().0;
    let numbers: Vec<f32> = numbers.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
    (numbers.len() == shape.iter().product::<usize>()).then_some(numbers)
}

/// The header for an array of this shape.
fn header(dtype: Dtype, shape: &[usize]) -> Vec<u8> {
    let descr = match dtype {
        Dtype::F16 => "<f2",
        Dtype::F32 => "<f4",
    };
    let sides: String = shape.iter().map(|side| format!("{side},")).collect();
    let dict = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({sides}), }}");
    let mut header = b"\x93NUMPY\x01\x00".to_vec();
    header.extend(((HEADER_BYTES - 10) as u16).to_le_bytes());
    header.extend(dict.bytes());
    header.resize(HEADER_BYTES - 1, b' ');
    header.push(b'\n');
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_is_numpys() {
        let header = header(Dtype::F16, &[3, 512]);
        assert_eq!(header.len(), HEADER_BYTES);
        assert_eq!(&header[..10], b"\x93NUMPY\x01\x00\x76\x00");
        let text = std::str::from_utf8(&header[10..]).expect("ASCII");
        assert!(text.starts_with("{'descr': '<f2', 'fortran_order': False, 'shape': (3,512,), }"));
        assert!(text.ends_with(" \n"));
    }

    #[test]
    fn only_what_was_written_whole_is_read() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.npy");
        let numbers = [1.0, -2.5, 3.0, f32::MIN_POSITIVE, 5.0, 6.0];
        write(&path, Dtype::F32, &[2, 3], &numbers).expect("written");
        assert_eq!(read(&path, &[2, 3]).as_deref(), Some(&numbers[..]));
        assert_eq!((read(&path, &[3, 2]), read(&path, &[2, 4])), (None, None));
        let bytes = std::fs::read(&path).expect("read");
        std::fs::write(&path, &bytes[..bytes.len() - 1]).expect("written");
        assert_eq!(read(&path, &[2, 3]), None);
        write(&path, Dtype::F16, &[2, 6], &[0.0; 12]).expect("written");
        assert_eq!(read(&path, &[2, 3]), None, "as long, of another kind");
    }
}
