//! WebP by `image-webp`; of an animation, the first frame.

use std::io::Cursor;

use image_webp::{DecodingError, WebPDecoder};

use super::Admission;
use crate::image::error::ImageError;
use crate::image::exif;
use crate::image::picture::{Mode, Picture};

const FORMAT: &str = "WebP";

pub(super) fn decode(bytes: &[u8], admission: &Admission<'_>) -> Result<Picture, ImageError> {
    // The container states its length; PIL refuses a file that is shorter.
    let length = bytes.get(4..8).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes);
    if (bytes.len() as u64) < u64::from(length) + 8 {
        return Err(ImageError::Truncated { format: FORMAT });
    }
    let mut decoder = WebPDecoder::new(Cursor::new(bytes)).map_err(error)?;
    // No chunk is longer than the file, whatever it says.
    decoder.set_memory_limit(bytes.len());
    let (width, height) = decoder.dimensions();
    // Beside the pixels: RGBA of a lossless picture, or planes and alpha; of an animation its ground as well.
    let pixel_bytes = match (decoder.is_animated(), decoder.has_alpha()) {
        (true, _) => 14,
        (false, true) => 11,
        (false, false) => 7,
    };
    let [width, height] =
        admission.check(FORMAT, [u64::from(width), u64::from(height)], pixel_bytes)?;
    let orientation = match decoder.exif_metadata() {
        Ok(Some(exif)) => exif::orientation(&exif),
        _ => 1,
    };
    let mode = if decoder.has_alpha() { Mode::Rgba } else { Mode::Rgb };
    let mut pixels = vec![0; width * height * mode.channels()];
    decoder.read_image(&mut pixels).map_err(error)?;
    Ok(Picture::new(width, height, mode, pixels).with_orientation(orientation))
}

fn error(error: DecodingError) -> ImageError {
    match error {
        DecodingError::IoError(error) => ImageError::io(FORMAT, &error),
        other => ImageError::malformed(FORMAT, other),
    }
}
