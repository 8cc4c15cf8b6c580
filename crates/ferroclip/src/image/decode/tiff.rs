//! The first page of a TIFF, by the crate `tiff`.
//!
//! That crate reads no palettes. A palette picture is read as the grey picture that it is without
//! its palette: the tag that says so is overwritten in a copy of the file. Orientation is applied
//! at once, as PIL does for this format alone.

use std::borrow::Cow;
use std::io::Cursor;

use tiff::decoder::{Decoder, DecodingResult, Limits};
use tiff::tags::Tag;
use tiff::{ColorType, TiffError};

use super::{Admission, narrow, unpack};
use crate::image::error::ImageError;
use crate::image::exif::{Directory, orientation};
use crate::image::picture::{Mode, Picture};

const FORMAT: &str = "TIFF";
const PHOTOMETRIC: u16 = 262;
const PLANAR: u16 = 284;
const EXTRA_SAMPLES: u16 = 338;
const GREY: u16 = 1;
const PALETTE: u16 = 3;

type Pages<'a> = Decoder<Cursor<&'a [u8]>>;

pub(super) fn decode(bytes: &[u8], admission: &Admission<'_>) -> Result<Picture, ImageError> {
    let directory = Directory::first(bytes).ok_or(ImageError::Truncated { format: FORMAT })?;
    let photometric = directory.short(PHOTOMETRIC);
    let mut file = Cow::Borrowed(bytes);
    if photometric == Some(PALETTE)
        && let Some(at) = directory.entry(PHOTOMETRIC)
    {
        let grey = directory.short_bytes(GREY);
        file.to_mut()[at + 8..at + 10].copy_from_slice(&grey);
    }
    let mut pages = Decoder::new(Cursor::new(file.as_ref())).map_err(error)?;
    let (width, height) = pages.dimensions().map_err(error)?;
    let color = match (pages.colortype().map_err(error)?, directory.short(EXTRA_SAMPLES)) {
        (ColorType::Multiband { bit_depth, num_samples: 2 }, Some(2)) => {
            ColorType::GrayA(bit_depth)
        }
        (color, _) => color,
    };
    // Samples as stored and those of 8 bits that become of them, or those and their turned copy. An index has a colour.
    let sample_bytes = u64::from(color.bit_depth().div_ceil(8)) + 1;
    let pixel_bytes = (u64::from(color.num_samples()) * sample_bytes).max(4);
    let [width, height] =
        admission.check(FORMAT, [u64::from(width), u64::from(height)], pixel_bytes)?;
    if directory.short(PLANAR) == Some(2) && color.num_samples() > 1 {
        return Err(ImageError::unsupported(FORMAT, "planes stored apart"));
    }
    let mut decoder_limits = Limits::default();
    // Eight bytes a pixel is the widest format below; tags take their share.
    let buffer = width * height * 8 + (1 << 20);
    decoder_limits.decoding_buffer_size = buffer;
    decoder_limits.intermediate_buffer_size = buffer;
    pages = pages.with_limits(decoder_limits);
    let palette = match photometric {
        Some(PALETTE) => Some(palette(&mut pages)?),
        _ => None,
    };
    let samples = pages.read_image().map_err(error)?;
    let picture = picture([width, height], color, samples, palette)?;
    Ok(picture.with_orientation(orientation(bytes)).apply_exif())
}

/// The colour map: all reds, all greens, all blues, of 16 bits each.
fn palette(pages: &mut Pages<'_>) -> Result<Vec<[u8; 4]>, ImageError> {
    let map = pages.get_tag_u16_vec(Tag::ColorMap).map_err(error)?;
    let n = map.len() / 3;
    let color = |i: usize| [map[i], map[n + i], map[2 * n + i]].map(|v| (v >> 8) as u8);
    Ok((0..n.min(256)).map(|i| [color(i)[0], color(i)[1], color(i)[2], 255]).collect())
}

fn picture(
    [width, height]: [usize; 2],
    color: ColorType,
    samples: DecodingResult,
    palette: Option<Vec<[u8; 4]>>,
) -> Result<Picture, ImageError> {
    let wrong = || ImageError::unsupported(FORMAT, format!("pixels of the kind {color:?}"));
    let (mode, pixels) = match (color, samples) {
        (ColorType::Gray(bits @ (1 | 2 | 4 | 8)), DecodingResult::U8(packed)) => {
            let row_bytes = (width * usize::from(bits)).div_ceil(8);
            if packed.len() < row_bytes * height {
                return Err(ImageError::Truncated { format: FORMAT });
            }
            let mut pixels = unpack(&packed[..row_bytes * height], row_bytes, width, bits);
            if let Some(palette) = palette {
                return Ok(Picture::with_palette(width, height, pixels, palette));
            }
            let scale = 255 / ((1u16 << bits) - 1) as u8;
            pixels.iter_mut().for_each(|v| *v *= scale);
            (if bits == 1 { Mode::Bilevel } else { Mode::L }, pixels)
        }
        _ if palette.is_some() => return Err(wrong()),
        (ColorType::Gray(16), DecodingResult::U16(wide)) => {
            (Mode::L, wide.into_iter().map(narrow).collect())
        }
        (ColorType::GrayA(8), DecodingResult::U8(pixels)) => (Mode::La, pixels),
        (ColorType::RGB(8), DecodingResult::U8(pixels)) => (Mode::Rgb, pixels),
        (ColorType::RGBA(8), DecodingResult::U8(pixels)) => (Mode::Rgba, pixels),
        (ColorType::CMYK(8), DecodingResult::U8(pixels)) => (Mode::Cmyk, pixels),
        (ColorType::RGB(16), DecodingResult::U16(wide)) => (Mode::Rgb, high_bytes(&wide)),
        (ColorType::RGBA(16), DecodingResult::U16(wide)) => (Mode::Rgba, high_bytes(&wide)),
        (ColorType::CMYK(16), DecodingResult::U16(wide)) => (Mode::Cmyk, high_bytes(&wide)),
        _ => return Err(wrong()),
    };
    if pixels.len() != width * height * mode.channels() {
        return Err(ImageError::Truncated { format: FORMAT });
    }
    Ok(Picture::new(width, height, mode, pixels))
}

/// PIL keeps the high byte of 16-bit colours.
fn high_bytes(wide: &[u16]) -> Vec<u8> {
    wide.iter().map(|v| (v >> 8) as u8).collect()
}

fn error(error: TiffError) -> ImageError {
    match error {
        TiffError::IoError(error) => ImageError::io(FORMAT, &error),
        TiffError::UnsupportedError(what) => ImageError::unsupported(FORMAT, what),
        other => ImageError::malformed(FORMAT, other),
    }
}
