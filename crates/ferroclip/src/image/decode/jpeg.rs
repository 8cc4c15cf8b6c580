//! JPEG by `zune-jpeg`. Markers are walked here first: for the size, the orientation, and because a
//! file without its end marker is truncated (PIL refuses it, the decoder would fill in grey).

use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use super::{Admission, pipeline_bytes};
use crate::image::error::ImageError;
use crate::image::exif;
use crate::image::picture::{Mode, Picture};

const FORMAT: &str = "JPEG";

pub(super) fn decode(bytes: &[u8], admission: &Admission<'_>) -> Result<Picture, ImageError> {
    let header = Header::scan(bytes)?;
    let (mode, output) = match header.components {
        1 => (Mode::L, ColorSpace::Luma),
        3 => (Mode::Rgb, ColorSpace::RGB),
        4 if header.is_ycck => (Mode::Cmyk, ColorSpace::YCCK),
        4 => (Mode::Cmyk, ColorSpace::CMYK),
        n => return Err(ImageError::unsupported(FORMAT, format!("{n} components"))),
    };
    // Coefficients of 16 bits, where the first scan does not tell all.
    let staged = if header.is_staged { 2 * u64::from(header.components) } else { 0 };
    let pixel_bytes = (mode.channels() as u64 + staged).max(pipeline_bytes(mode));
    let [width, height] = admission.check(FORMAT, [header.width, header.height], pixel_bytes)?;
    let options = DecoderOptions::default()
        .set_max_width(usize::from(u16::MAX))
        .set_max_height(usize::from(u16::MAX))
        .set_strict_mode(false)
        .jpeg_set_out_colorspace(output);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    let mut pixels = decoder.decode().map_err(|e| ImageError::malformed(FORMAT, e))?;
    if decoder.info().map(|info| [usize::from(info.width), usize::from(info.height)])
        != Some([width, height])
        || pixels.len() != width * height * mode.channels()
    {
        return Err(ImageError::malformed(FORMAT, "sizes contradict each other"));
    }
    if mode == Mode::Cmyk {
        // Adobe stores ink inverted, and PIL takes every such file for Adobe's.
        let to_ink: fn(&mut [u8]) = if header.is_ycck { ycck_to_cmyk } else { invert };
        pixels.chunks_exact_mut(4).for_each(to_ink);
    }
    Ok(Picture::new(width, height, mode, pixels).with_orientation(header.orientation))
}

fn invert(pixel: &mut [u8]) {
    pixel.iter_mut().for_each(|v| *v = 255 - *v);
}

/// libjpeg's YCCK to CMYK, inverted: ink is the RGB that Y, Cb, Cr stand for.
fn ycck_to_cmyk(pixel: &mut [u8]) {
    let [y, cb, cr] = [pixel[0], pixel[1], pixel[2]].map(i32::from);
    let [cb, cr] = [cb - 128, cr - 128];
    // 16 fractional bits, as libjpeg's tables.
    let r = y + ((91_881 * cr + 32_768) >> 16);
    let g = y + ((-22_554 * cb - 46_802 * cr + 32_768) >> 16);
    let b = y + ((116_130 * cb + 32_768) >> 16);
    for (to, from) in pixel.iter_mut().zip([r, g, b]) {
        *to = from.clamp(0, 255) as u8;
    }
    pixel[3] = 255 - pixel[3];
}

/// What the markers tell.
struct Header {
    width: u64,
    height: u64,
    components: u8,
    /// Whether a pixel is spread over several scans.
    is_staged: bool,
    is_ycck: bool,
    orientation: u8,
}

impl Header {
    fn scan(bytes: &[u8]) -> Result<Header, ImageError> {
        let truncated = ImageError::Truncated { format: FORMAT };
        let mut header = Header {
            width: 0,
            height: 0,
            components: 0,
            is_staged: false,
            is_ycck: false,
            orientation: 1,
        };
        let mut at = 2;
        let mut seen_frame = false;
        loop {
            // Between segments, as within scans, everything up to a marker is skipped.
            let Some((marker, body)) = next_marker(bytes, at) else { return Err(truncated) };
            at = body;
            match marker {
                0xd9 if seen_frame => return Ok(header),
                0xd9 => return Err(ImageError::malformed(FORMAT, "there is no picture in it")),
                0x01 | 0xd0..=0xd8 => continue,
                _ => {}
            }
            let Some(segment) = segment(bytes, body) else { return Err(truncated) };
            at = body + 2 + segment.len();
            match marker {
                0xc0..=0xc3 | 0xc5..=0xc7 | 0xc9..=0xcb | 0xcd..=0xcf if !seen_frame => {
                    header.frame(marker, segment)?;
                    seen_frame = true;
                }
                0xe1 if segment.starts_with(b"Exif\0\0") => {
                    header.orientation = exif::orientation(segment);
                }
                0xda => {
                    header.is_staged |= segment.first().is_some_and(|&n| n < header.components);
                }
                0xee if segment.starts_with(b"Adobe") => {
                    header.is_ycck = segment.get(11) == Some(&2);
                }
                _ => {}
            }
        }
    }

    fn frame(&mut self, marker: u8, segment: &[u8]) -> Result<(), ImageError> {
        let &[precision, h1, h0, w1, w0, components, ..] = segment else {
            return Err(ImageError::malformed(FORMAT, "its frame header is too short"));
        };
        if marker > 0xc2 {
            return Err(ImageError::unsupported(FORMAT, "lossless or arithmetic coding"));
        }
        if precision != 8 {
            return Err(ImageError::unsupported(FORMAT, format!("{precision}-bit samples")));
        }
        self.is_staged = marker == 0xc2;
        self.width = u64::from(u16::from_be_bytes([w1, w0]));
        self.height = u64::from(u16::from_be_bytes([h1, h0]));
        self.components = components;
        Ok(())
    }
}

/// The next marker from `at` on, and where its segment begins.
fn next_marker(bytes: &[u8], mut at: usize) -> Option<(u8, usize)> {
    loop {
        at += bytes.get(at..)?.iter().position(|&byte| byte == 0xff)? + 1;
        match *bytes.get(at)? {
            0 | 0xff => {}
            marker => return Some((marker, at + 1)),
        }
    }
}

/// The body of a segment, without its length.
fn segment(bytes: &[u8], at: usize) -> Option<&[u8]> {
    let &[high, low] = bytes.get(at..at + 2)? else { return None };
    let length = usize::from(u16::from_be_bytes([high, low])).max(2);
    bytes.get(at + 2..at + length)
}
