//! Telling formats apart and opening them, one file for each.

mod admission;
mod bmp;
mod gif;
mod jpeg;
mod png;
mod tiff;
mod webp;

use super::error::ImageError;
use super::picture::{Mode, Picture};
pub(super) use admission::Admission;

/// What a picture may cost. Checked on the header, before pixels are allocated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecodeLimits {
    /// Most pixels, width times height. The default, 178,956,970, is where PIL refuses too.
    pub max_pixels: u64,
    /// Most bytes of memory between the file and the tensor, as the header promises: 3 a pixel for RGB, 9 for a
    /// progressive JPEG. The default is 480 MB. Pictures that pass pipelines at the same time share it.
    pub max_memory: u64,
    /// Most bytes of a file that is read from a path. The default is 256 MiB.
    pub max_bytes: u64,
}

impl Default for DecodeLimits {
    fn default() -> DecodeLimits {
        DecodeLimits { max_pixels: 178_956_970, max_memory: 480_000_000, max_bytes: 256 << 20 }
    }
}

impl DecodeLimits {
    /// The defaults, or what a user says: pictures of up to `max_pixels`, whatever memory they take.
    pub fn of_pixels(max_pixels: Option<u64>) -> DecodeLimits {
        let limits = DecodeLimits::default();
        match max_pixels {
            Some(max_pixels) => DecodeLimits { max_pixels, max_memory: u64::MAX, ..limits },
            None => limits,
        }
    }

    /// What a picture takes that is within the limits with so many bytes for each pixel.
    fn check(
        &self,
        format: &'static str,
        [width, height]: [u64; 2],
        pixel_bytes: u64,
    ) -> Result<u64, ImageError> {
        if width == 0 || height == 0 {
            return Err(ImageError::ZeroSize { format, width, height });
        }
        // Eight bytes a pixel must be addressable, whatever limit was set.
        let max_pixels = self.max_pixels.min(isize::MAX as u64 / 8);
        let Some(pixels) = width.checked_mul(height).filter(|&pixels| pixels <= max_pixels) else {
            return Err(ImageError::TooLarge { width, height, max_pixels });
        };
        // What a filter of the resize may weigh counts beside the pixels: it is as long as a side.
        let bytes = pixels.saturating_mul(pixel_bytes).saturating_add(32 * (width + height));
        match bytes > self.max_memory {
            true => Err(ImageError::TooMuchMemory { width, height, bytes, limit: self.max_memory }),
            false => Ok(bytes),
        }
    }

    /// Whether there is memory for a turned copy of the picture.
    pub(crate) fn check_turn(&self, picture: &Picture) -> Result<(), ImageError> {
        let [width, height] = [picture.width(), picture.height()].map(|side| side as u64);
        let bytes = 2 * picture.pixels().len() as u64;
        let limit = self.max_memory;
        match bytes > limit && picture.orientation() > 1 {
            true => Err(ImageError::TooMuchMemory { width, height, bytes, limit }),
            false => Ok(()),
        }
    }
}

/// Bytes that a pixel takes behind the decoder: its own, and those of an RGB copy where that is larger.
fn pipeline_bytes(mode: Mode) -> u64 {
    match mode {
        Mode::Bilevel | Mode::Palette | Mode::L => 4,
        Mode::La => 5,
        Mode::Rgb => 3,
        Mode::Rgba | Mode::Cmyk => 4,
    }
}

/// Decodes a picture of any known format.
pub(super) fn decode(bytes: &[u8], admission: &Admission<'_>) -> Result<Picture, ImageError> {
    match bytes {
        [] => Err(ImageError::Empty),
        [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1a, b'\n', ..] => png::decode(bytes, admission),
        [0xff, 0xd8, 0xff, ..] => jpeg::decode(bytes, admission),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => {
            webp::decode(bytes, admission)
        }
        [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => gif::decode(bytes, admission),
        [b'B', b'M', ..] => bmp::decode(bytes, admission),
        [b'I', b'I', b'*', 0, ..] | [b'M', b'M', 0, b'*', ..] => tiff::decode(bytes, admission),
        _ => Err(ImageError::UnknownFormat { found: describe(bytes) }),
    }
}

/// What bytes of no known picture format look like.
fn describe(bytes: &[u8]) -> String {
    let head = &bytes[..bytes.len().min(64)];
    let text = String::from_utf8_lossy(head);
    let text = text.trim_start_matches('\u{feff}').trim_start();
    let named = match head {
        [_, _, _, _, b'f', b't', b'y', b'p', brand @ ..] => match brand.get(..4) {
            Some(b"avif" | b"avis") => Some("an AVIF picture"),
            Some(b"heic" | b"heix" | b"mif1" | b"msf1") => Some("a HEIF picture"),
            _ => Some("a video file"),
        },
        [0xff, 0x0a, ..] | [0, 0, 0, 0x0c, b'J', b'X', b'L', ..] => Some("a JPEG XL picture"),
        [0, 0, 0, 0x0c, b'j', b'P', ..] => Some("a JPEG 2000 picture"),
        [0, 0, 1, 0, ..] => Some("an icon"),
        [b'8', b'B', b'P', b'S', ..] => Some("a Photoshop file"),
        [b'%', b'P', b'D', b'F', ..] => Some("a PDF file"),
        [b'P', b'K', 3, 4, ..] => Some("a zip archive"),
        [b'I', b'I', b'+', 0, ..] | [b'M', b'M', 0, b'+', ..] => Some("a BigTIFF picture"),
        _ if text.starts_with("<svg") || text.starts_with("<?xml") => Some("an SVG or XML text"),
        _ if text.starts_with('<') => Some("an HTML page"),
        _ => None,
    };
    if let Some(name) = named {
        return name.to_owned();
    }
    let binary = |c: char| c == '\u{fffd}' || (c.is_control() && !c.is_whitespace());
    // A character cut at the end of the head is no sign of binary data.
    if !text.trim_end_matches('\u{fffd}').contains(binary) {
        let start: String = text.chars().take(20).collect();
        return format!("a text that begins with {start:?}");
    }
    let start: Vec<String> = head.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    format!("it begins with the bytes {}", start.join(" "))
}

/// Opens packed samples of 1, 2, 4 or 8 bits into one byte each. Rows begin at a byte.
fn unpack(packed: &[u8], row_bytes: usize, width: usize, bits: u8) -> Vec<u8> {
    let rows = packed.chunks_exact(row_bytes);
    let n = rows.len() * width;
    if bits == 8 {
        return gather(n, rows.flat_map(|row| &row[..width]).map(|&sample| [sample]));
    }
    let per_byte = usize::from(8 / bits);
    let mask = 0xff >> (8 - bits);
    let sample = |row: &[u8], x: usize| {
        let shift = 8 - bits - (x % per_byte) as u8 * bits;
        [(row[x / per_byte] >> shift) & mask]
    };
    gather(n, rows.flat_map(|row| (0..width).map(move |x| sample(row, x))))
}

/// The samples of `n` pixels. Their memory is taken at once: a vector that grows is there twice.
pub(super) fn gather<const N: usize>(n: usize, pixels: impl Iterator<Item = [u8; N]>) -> Vec<u8> {
    let mut samples = Vec::with_capacity(n * N);
    samples.extend(pixels.flatten());
    samples
}

/// Scales 16-bit samples to 8 bits, rounded.
fn narrow(sample: u16) -> u8 {
    ((u32::from(sample) + 128) / 257) as u8
}

/// Whether a grey ramp stands in for a palette, which makes PIL open the picture as grey.
fn is_grey_ramp(palette: &[u8]) -> bool {
    palette.chunks_exact(3).enumerate().all(|(i, color)| color.iter().all(|&v| usize::from(v) == i))
}
