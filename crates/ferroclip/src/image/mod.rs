//! From the bytes of a picture file to the numbers that an image tower sees.
//!
//! 1. [`Picture::decode`] opens a file as PIL's `Image.open` does: the same pixel format, because
//!    the references resize in that format and turn to RGB only afterwards.
//! 2. [`ImagePipeline`] resizes, crops and normalises as open_clip's `image_transform` with
//!    `is_train=False`; on equal pixels it gives equal bytes.
//! 3. [`Augment`] takes the pipeline's place in training.
//!
//! Where we differ from PIL 13 and open_clip:
//! - 16-bit grey is scaled to 8 bits; PIL clips it, so that nearly all of it turns white.
//! - JPEG is decoded by `zune-jpeg`, lossy WebP by `image-webp`: pixels differ by a few units.
//! - A side that would vanish (`longest`, extreme shapes) is one pixel; PIL fails.
//! - TIFF: no planar, floating-point or Lab data and no fax compression. Colour profiles are
//!   ignored, as in PIL.
//!
//! All parsers here take hostile bytes: sizes are checked against [`DecodeLimits`] before pixels
//! are allocated, and whatever is wrong with a file is an [`ImageError`].

mod augment;
mod color;
mod decode;
mod error;
mod exif;
mod picture;
mod pipeline;
mod resize;
#[cfg(test)]
mod tests;

pub use augment::Augment;
pub use decode::DecodeLimits;
pub use error::ImageError;
pub use picture::{Mode, Picture};
pub use pipeline::{
    Convention, ImagePipeline, Interpolation, OneOrMore, PreprocessConfig, ResizeMode, Rgb8Image,
};
