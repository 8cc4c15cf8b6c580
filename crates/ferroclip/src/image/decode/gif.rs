//! The first frame of a GIF, by the crate `gif`, on its screen.

use std::io::Cursor;

use gif::{ColorOutput, DecodeOptions, DecodingError, MemoryLimit};

use super::{Admission, is_grey_ramp, pipeline_bytes};
use crate::image::error::ImageError;
use crate::image::picture::{Mode, Picture};

const FORMAT: &str = "GIF";

pub(super) fn decode(bytes: &[u8], admission: &Admission<'_>) -> Result<Picture, ImageError> {
    let mut options = DecodeOptions::new();
    options.set_color_output(ColorOutput::Indexed);
    options.set_memory_limit(MemoryLimit::Unlimited);
    let mut reader = options.read_info(Cursor::new(bytes)).map_err(error)?;
    let screen = [reader.width(), reader.height()].map(u64::from);
    let global = reader.global_palette().map(<[u8]>::to_vec);

    let Some(frame) = reader.next_frame_info().map_err(error)? else {
        return Err(ImageError::malformed(FORMAT, "there is no picture in it"));
    };
    let [left, top] = [frame.left, frame.top].map(usize::from);
    let [columns, rows] = [frame.width, frame.height].map(usize::from);
    let transparent = frame.transparent;
    let palette = frame.palette.clone().or(global);
    // A frame that leaves the screen makes it larger, as in PIL.
    let width = screen[0].max((left + columns) as u64);
    let height = screen[1].max((top + rows) as u64);
    let [width, height] =
        admission.check(FORMAT, [width, height], pipeline_bytes(Mode::Palette))?;
    admission.check(FORMAT, [columns as u64, rows as u64], pipeline_bytes(Mode::Palette))?;

    let mut frame = vec![0; reader.buffer_size()];
    reader.read_into_buffer(&mut frame).map_err(error)?;
    let mut indices = vec![transparent.unwrap_or(0); width * height];
    let lines = indices.chunks_exact_mut(width).skip(top);
    for (to, from) in lines.zip(frame.chunks_exact(columns)) {
        to[left..left + columns].copy_from_slice(from);
    }
    Ok(picture(width, height, indices, palette, transparent))
}

/// PIL opens a GIF without a palette, or with a ramp of greys for one, as grey.
fn picture(
    width: usize,
    height: usize,
    indices: Vec<u8>,
    palette: Option<Vec<u8>>,
    transparent: Option<u8>,
) -> Picture {
    match palette {
        Some(palette) if !is_grey_ramp(&palette) => {
            let colors = palette.chunks_exact(3).take(256).enumerate().map(|(i, color)| {
                let hidden = transparent.is_some_and(|index| usize::from(index) == i);
                [color[0], color[1], color[2], if hidden { 0 } else { 255 }]
            });
            Picture::with_palette(width, height, indices, colors.collect())
        }
        _ => Picture::new(width, height, Mode::L, indices)
            .with_transparent(transparent.map(|v| [v; 3])),
    }
}

fn error(error: DecodingError) -> ImageError {
    match error {
        DecodingError::Io(error) => ImageError::io(FORMAT, &error),
        DecodingError::UnexpectedEof => ImageError::Truncated { format: FORMAT },
        other => ImageError::malformed(FORMAT, other),
    }
}
