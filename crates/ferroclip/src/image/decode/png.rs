//! PNG by the crate `png`, without its colour transformations. Of an animation, the default image.

use std::io::Cursor;

use png::{BitDepth, ColorType, DecodingError, Transformations};

use super::{Admission, narrow, pipeline_bytes, unpack};
use crate::image::error::ImageError;
use crate::image::exif;
use crate::image::picture::{Mode, Picture};

const FORMAT: &str = "PNG";

pub(super) fn decode(bytes: &[u8], admission: &Admission<'_>) -> Result<Picture, ImageError> {
    let [width, height] = header(bytes, admission)?;
    let mut decoder = png::Decoder::new(Cursor::new(bytes));
    decoder.set_transformations(Transformations::IDENTITY);
    decoder.set_ignore_text_chunk(true);
    decoder.set_ignore_iccp_chunk(true);
    let mut reader = decoder.read_info().map_err(error)?;
    let size = reader.output_buffer_size();
    let size = size.ok_or_else(|| ImageError::malformed(FORMAT, "too many bytes"))?;
    let mut packed = vec![0; size];
    let frame = reader.next_frame(&mut packed).map_err(error)?;
    if [frame.width as usize, frame.height as usize] != [width, height] {
        return Err(ImageError::malformed(FORMAT, "a frame of another size"));
    }
    packed.truncate(frame.buffer_size());
    let info = reader.info();
    let orientation = info.exif_metadata.as_deref().map_or(1, exif::orientation);
    let row = Row { width, height, row_bytes: frame.line_size };
    Ok(picture(info, row, packed).with_orientation(orientation))
}

/// The sides from the header chunk, which stands first.
fn header(bytes: &[u8], admission: &Admission<'_>) -> Result<[usize; 2], ImageError> {
    let Some(header) = bytes.get(8..26) else {
        return Err(ImageError::Truncated { format: FORMAT });
    };
    if &header[4..8] != b"IHDR" {
        return Err(ImageError::malformed(FORMAT, "the first chunk is not `IHDR`"));
    }
    let side =
        |at: usize| header[at..at + 4].iter().fold(0, |value, &byte| value << 8 | u64::from(byte));
    admission.check(FORMAT, [side(8), side(12)], pixel_bytes(header[16], header[17]))
}

/// Bytes that a pixel takes, by the bits of a sample and the code of the colour type; as of RGBA for what is refused later.
fn pixel_bytes(bits: u8, color_type: u8) -> u64 {
    let mode = match color_type {
        0 => Mode::L,
        2 => Mode::Rgb,
        3 => Mode::Palette,
        // See `picture` for the wide ones.
        4 if bits < 16 => Mode::La,
        _ => Mode::Rgba,
    };
    // Samples of 16 bits stand beside those that become of them.
    let wide = if bits == 16 { 3 * mode.channels() as u64 } else { 0 };
    wide.max(pipeline_bytes(mode))
}

fn error(error: DecodingError) -> ImageError {
    match error {
        DecodingError::IoError(error) => ImageError::io(FORMAT, &error),
        other => ImageError::malformed(FORMAT, other),
    }
}

struct Row {
    width: usize,
    height: usize,
    row_bytes: usize,
}

/// PIL's mode for each kind of PNG.
fn picture(info: &png::Info<'_>, row: Row, packed: Vec<u8>) -> Picture {
    let Row { width, height, row_bytes } = row;
    let bits = info.bit_depth as u8;
    let wide = info.bit_depth == BitDepth::Sixteen;
    // PIL keeps the high byte of 16-bit colours.
    let high = |packed: Vec<u8>| match wide {
        true => packed.chunks_exact(2).map(|pair| pair[0]).collect(),
        false => packed,
    };
    let new = |mode, pixels| Picture::new(width, height, mode, pixels);
    match info.color_type {
        ColorType::Grayscale if wide => {
            let pair = |pair: &[u8]| narrow(u16::from_be_bytes([pair[0], pair[1]]));
            new(Mode::L, packed.chunks_exact(2).map(pair).collect())
        }
        ColorType::Grayscale => {
            let scale = 255 / ((1u16 << bits) - 1) as u8;
            let mut pixels = unpack(&packed, row_bytes, width, bits);
            pixels.iter_mut().for_each(|v| *v *= scale);
            let key = info.trns.as_deref().and_then(|key| key.get(1));
            let key = key.map(|&v| [v.wrapping_mul(scale); 3]);
            new(if bits == 1 { Mode::Bilevel } else { Mode::L }, pixels).with_transparent(key)
        }
        ColorType::GrayscaleAlpha if wide => {
            // PIL has no mode for this and opens it as RGBA.
            let pixels = packed.chunks_exact(4).flat_map(|p| [p[0], p[0], p[0], p[2]]);
            new(Mode::Rgba, pixels.collect())
        }
        ColorType::GrayscaleAlpha => new(Mode::La, packed),
        ColorType::Rgb => {
            let key = match info.trns.as_deref() {
                Some(&[_, r, _, g, _, b]) if !wide => Some([r, g, b]),
                _ => None,
            };
            new(Mode::Rgb, high(packed)).with_transparent(key)
        }
        ColorType::Rgba => new(Mode::Rgba, high(packed)),
        ColorType::Indexed => {
            let alpha = info.trns.as_deref().unwrap_or_default();
            let colors = info.palette.as_deref().unwrap_or_default().chunks_exact(3).take(256);
            let palette = colors.enumerate().map(|(i, color)| {
                [color[0], color[1], color[2], alpha.get(i).copied().unwrap_or(255)]
            });
            let indices = unpack(&packed, row_bytes, width, bits);
            Picture::with_palette(width, height, indices, palette.collect())
        }
    }
}
