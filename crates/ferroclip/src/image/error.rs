//! What can be wrong with a picture or with the settings of the image pipeline.

use thiserror::Error;

/// Why a picture cannot be used. The caller adds the path.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ImageError {
    /// No bytes at all.
    #[error("the picture file is empty")]
    Empty,
    /// The first bytes belong to no format that is read.
    #[error("not a picture in a known format: {found}")]
    UnknownFormat {
        /// What the bytes look like.
        found: String,
    },
    /// More pixels than [`crate::image::DecodeLimits::max_pixels`], seen in the header.
    #[error("the picture is too large: {width} x {height} pixels, limit {max_pixels}")]
    TooLarge {
        /// Columns by the header.
        width: u64,
        /// Rows by the header.
        height: u64,
        /// The limit in force.
        max_pixels: u64,
    },
    /// More memory than [`crate::image::DecodeLimits::max_memory`], by what the header says.
    #[error(
        "the picture is too large: its {width} x {height} pixels take {} MB of memory, limit {} MB",
        bytes.div_ceil(1_000_000),
        limit / 1_000_000
    )]
    TooMuchMemory {
        /// Columns by the header.
        width: u64,
        /// Rows by the header.
        height: u64,
        /// The memory that it would take.
        bytes: u64,
        /// The limit in force.
        limit: u64,
    },
    /// A file of more bytes than [`crate::image::DecodeLimits::max_bytes`].
    #[error("the file is too large: more than {limit} bytes")]
    TooManyBytes {
        /// The limit in force.
        limit: u64,
    },
    /// A width or height of zero.
    #[error("the {format} picture has no pixels: {width} x {height}")]
    ZeroSize {
        /// Name of the format.
        format: &'static str,
        /// Columns by the header.
        width: u64,
        /// Rows by the header.
        height: u64,
    },
    /// The file ends before the picture does.
    #[error("the {format} file is truncated")]
    Truncated {
        /// Name of the format.
        format: &'static str,
    },
    /// The bytes contradict their format.
    #[error("the {format} file is damaged: {reason}")]
    Malformed {
        /// Name of the format.
        format: &'static str,
        /// What the decoder says.
        reason: String,
    },
    /// A variant of a known format that is not read.
    #[error("the {format} file uses what is not supported: {what}")]
    Unsupported {
        /// Name of the format.
        format: &'static str,
        /// The missing feature.
        what: String,
    },
    /// A setting of the pipeline or the augmentation is out of range.
    #[error("invalid `{field}`: {found}, expected {expected}")]
    Setting {
        /// Name of the field.
        field: &'static str,
        /// The value found.
        found: String,
        /// What would be accepted.
        expected: &'static str,
    },
}

impl ImageError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            ImageError::Empty => "copy or download the file again",
            ImageError::Truncated { .. } => "copy or download the file again; its end is missing",
            ImageError::UnknownFormat { .. } => {
                "PNG, JPEG, WebP, GIF, BMP and TIFF are read, told by content and not by name; convert the file to one of them"
            }
            ImageError::TooLarge { .. } => {
                "shrink the picture, or raise the pixel limit (`--max-pixels`; in training `run.max_pixels`)"
            }
            &ImageError::TooMuchMemory { width, height, .. } => {
                let pixels = width.saturating_mul(height);
                return Some(format!(
                    "shrink the picture, or allow as much as it takes: `--max-pixels {pixels}` (in training `run.max_pixels`)"
                ));
            }
            ImageError::TooManyBytes { .. } => "no picture is that large: give another file",
            ImageError::ZeroSize { .. } | ImageError::Malformed { .. } => {
                "save the picture again with an image editor, or remove it"
            }
            ImageError::Unsupported { .. } => "convert the picture to PNG or JPEG",
            ImageError::Setting { .. } => return None,
        };
        Some(hint.to_owned())
    }

    pub(super) fn malformed(format: &'static str, reason: impl ToString) -> ImageError {
        // One line, whatever a decoder puts into its message.
        let reason = reason.to_string().replace(['\n', '\r'], " ");
        ImageError::Malformed { format, reason }
    }

    pub(super) fn unsupported(format: &'static str, what: impl ToString) -> ImageError {
        let what = what.to_string().replace(['\n', '\r'], " ");
        ImageError::Unsupported { format, what }
    }

    /// An error of [`std::io`] inside a decoder: the input is in memory, so only its end can fail.
    pub(super) fn io(format: &'static str, error: &std::io::Error) -> ImageError {
        match error.kind() {
            std::io::ErrorKind::UnexpectedEof => ImageError::Truncated { format },
            _ => ImageError::malformed(format, error),
        }
    }
}
