//! The evaluation pipeline: resize, crop, RGB, normalise, as open_clip's `preprocess_cfg` says.

use std::borrow::Cow;
use std::ops::Range;

use ferroclip_kernels::resample::Filter;
use serde::{Deserialize, Serialize};

use super::decode::{Admission, DecodeLimits, decode};
use super::error::ImageError;
use super::picture::{Mode, Picture};
use super::resize::resize_to_rgb;

/// OpenAI's mean of each channel, open_clip's default.
const OPENAI_MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
/// OpenAI's standard deviation of each channel.
const OPENAI_STD: [f32; 3] = [0.268_629_54, 0.261_302_6, 0.275_777_1];
/// The largest side of a pipeline; nothing trained comes near it.
const MAX_SIZE: usize = 16_384;

/// The resampling filter; both are antialiased.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Interpolation {
    /// Cubic convolution with a = -0.5. open_clip's `random` means this outside training.
    #[default]
    #[serde(alias = "random")]
    Bicubic,
    /// Triangle filter.
    Bilinear,
}

impl From<Interpolation> for Filter {
    fn from(interpolation: Interpolation) -> Filter {
        match interpolation {
            Interpolation::Bicubic => Filter::Bicubic,
            Interpolation::Bilinear => Filter::Bilinear,
        }
    }
}

/// How a picture of another shape is fitted into the size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ResizeMode {
    /// The shorter side fits; the middle of the longer one is kept.
    #[default]
    Shortest,
    /// The longer side fits; the rest is filled with `fill_color`.
    Longest,
    /// Both sides fit; the shape is lost.
    Squash,
}

/// Where the references differ about a picture that is no RGB picture of the right shape.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Convention {
    /// open_clip and OpenAI: the picture is resized in its own pixel format and becomes RGB behind the crop,
    /// which begins at the nearest even number where half a pixel is left over.
    #[default]
    OpenClip,
    /// transformers 5: the picture becomes RGB first, on a white ground where it has alpha, and the crop begins at the
    /// smaller number.
    HuggingFace,
}

/// An RGB picture of 8 bits a sample, ready for [`ImagePipeline::tensor`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rgb8Image {
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// `[height, width, 3]`.
    pub pixels: Vec<u8>,
}

/// open_clip's `preprocess_cfg` as written: strict, every field optional.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PreprocessConfig {
    /// Target side, or `[height, width]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<OneOrMore<usize, 2>>,
    /// Always `RGB`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    /// Mean of each channel, of samples in 0..1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mean: Option<OneOrMore<f32, 3>>,
    /// Standard deviation of each channel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub std: Option<OneOrMore<f32, 3>>,
    /// Resampling filter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interpolation: Option<Interpolation>,
    /// Fit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resize_mode: Option<ResizeMode>,
    /// Sample value of the border in resize mode `longest`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fill_color: Option<u8>,
}

/// One number for all, or one for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    untagged,
    expecting = "expected a number or a list of numbers, one for each channel or side"
)]
pub enum OneOrMore<T, const N: usize>
where
    [T; N]: Serialize + for<'a> Deserialize<'a>,
{
    /// The same for all.
    One(T),
    /// One for each.
    Each([T; N]),
}

impl<T: Copy, const N: usize> OneOrMore<T, N>
where
    [T; N]: Serialize + for<'a> Deserialize<'a>,
{
    fn each(self) -> [T; N] {
        match self {
            OneOrMore::One(value) => [value; N],
            OneOrMore::Each(values) => values,
        }
    }
}

impl PreprocessConfig {
    /// Fills in open_clip's defaults; `image_size` (height, width) is the image tower's and holds
    /// where the config names no size.
    ///
    /// # Errors
    /// When a value is out of range.
    pub fn resolve(&self, image_size: [usize; 2]) -> Result<ImagePipeline, ImageError> {
        if let Some(mode) = self.mode.as_deref().filter(|&mode| mode != "RGB") {
            return Err(setting("mode", mode, "`RGB`"));
        }
        let pipeline = ImagePipeline {
            size: self.size.map_or(image_size, OneOrMore::each),
            mean: self.mean.map_or(OPENAI_MEAN, OneOrMore::each),
            std: self.std.map_or(OPENAI_STD, OneOrMore::each),
            interpolation: self.interpolation.unwrap_or_default(),
            resize_mode: self.resize_mode.unwrap_or_default(),
            fill_color: self.fill_color.unwrap_or(0),
            convention: Convention::OpenClip,
            exif: false,
            rgb_first: false,
        };
        pipeline.validate()?;
        Ok(pipeline)
    }
}

fn setting(field: &'static str, found: impl ToString, expected: &'static str) -> ImageError {
    ImageError::Setting { field, found: found.to_string(), expected }
}

/// The image pipeline of a model. Serde reads and writes open_clip's `preprocess_cfg`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "PreprocessConfig", into = "PreprocessConfig")]
pub struct ImagePipeline {
    /// Height and width of the tensor.
    pub size: [usize; 2],
    /// Mean of each channel, of samples in 0..1.
    pub mean: [f32; 3],
    /// Standard deviation of each channel.
    pub std: [f32; 3],
    /// Resampling filter. As in open_clip, `shortest` with a size that is not square is always
    /// bicubic.
    pub interpolation: Interpolation,
    /// Fit.
    pub resize_mode: ResizeMode,
    /// Sample value of the border in resize mode `longest`, in the picture's own pixel format (an
    /// index where that has a palette), as in open_clip.
    pub fill_color: u8,
    /// Whose order of steps. No part of the file form: open_clip knows its own only.
    pub convention: Convention,
    /// Turn pictures upright by their EXIF data first. No part of the file form: the references
    /// never do it.
    pub exif: bool,
    /// Turn pictures to RGB before they are resized, as loaders of WebDataset do. No part of the file form.
    pub rgb_first: bool,
}

impl Default for ImagePipeline {
    /// open_clip's defaults: 224 pixels, shortest side, bicubic, OpenAI's mean and deviation.
    fn default() -> ImagePipeline {
        ImagePipeline {
            size: [224, 224],
            mean: OPENAI_MEAN,
            std: OPENAI_STD,
            interpolation: Interpolation::default(),
            resize_mode: ResizeMode::default(),
            fill_color: 0,
            convention: Convention::OpenClip,
            exif: false,
            rgb_first: false,
        }
    }
}

impl TryFrom<PreprocessConfig> for ImagePipeline {
    type Error = ImageError;

    fn try_from(config: PreprocessConfig) -> Result<ImagePipeline, ImageError> {
        config.resolve(ImagePipeline::default().size)
    }
}

impl From<ImagePipeline> for PreprocessConfig {
    fn from(pipeline: ImagePipeline) -> PreprocessConfig {
        let [height, width] = pipeline.size;
        let each = OneOrMore::Each([height, width]);
        PreprocessConfig {
            size: Some(if height == width { OneOrMore::One(height) } else { each }),
            mode: Some("RGB".to_owned()),
            mean: Some(OneOrMore::Each(pipeline.mean)),
            std: Some(OneOrMore::Each(pipeline.std)),
            interpolation: Some(pipeline.interpolation),
            resize_mode: Some(pipeline.resize_mode),
            fill_color: Some(pipeline.fill_color),
        }
    }
}

impl ImagePipeline {
    /// Checks the ranges of the fields, for a pipeline that was put together by hand.
    ///
    /// # Errors
    /// Names the first field that is out of range.
    pub fn validate(&self) -> Result<(), ImageError> {
        if self.size.iter().any(|side| !(1..=MAX_SIZE).contains(side)) {
            return Err(setting("size", format!("{:?}", self.size), "1 to 16384"));
        }
        if self.mean.iter().any(|v| !v.is_finite()) {
            return Err(setting("mean", format!("{:?}", self.mean), "finite numbers"));
        }
        if self.std.iter().any(|&v| !v.is_finite() || v <= 0.0) {
            return Err(setting("std", format!("{:?}", self.std), "finite numbers above zero"));
        }
        Ok(())
    }

    /// Samples in the tensor of a picture: 3 x height x width.
    pub fn tensor_len(&self) -> usize {
        3 * self.size[0] * self.size[1]
    }

    /// Decodes the bytes of a picture file, resizes and crops. Where other threads are at pictures so large that this one
    /// would not fit beside them, it waits ([`DecodeLimits::max_memory`]).
    ///
    /// # Errors
    /// As [`Picture::decode`].
    pub fn open(&self, bytes: &[u8], limits: &DecodeLimits) -> Result<Rgb8Image, ImageError> {
        let admission = Admission::shared(limits, self.exif);
        let picture = decode(bytes, &admission)?;
        if self.exif {
            limits.check_turn(&picture)?;
        }
        Ok(self.rgb8(picture))
    }

    /// Resizes, crops or pads to `size`, and converts to RGB. A picture that is given away needs less memory.
    ///
    /// # Panics
    /// When a side of `size` is zero.
    pub fn rgb8<'a>(&self, picture: impl Into<Cow<'a, Picture>>) -> Rgb8Image {
        let mut picture = picture.into();
        if self.exif && picture.orientation() > 1 {
            picture = Cow::Owned(picture.into_owned().apply_exif());
        }
        let is_plain = picture.mode() == Mode::Rgb && !picture.has_alpha();
        if self.convention == Convention::HuggingFace && !is_plain {
            picture = Cow::Owned(picture.into_owned().on_white());
        } else if self.rgb_first && !is_plain {
            picture = Cow::Owned(picture.into_owned().into_rgb());
        }
        let [height, width] = self.size;
        let (resized, filter) = self.resized([picture.width(), picture.height()]);
        let [x, y] = [(resized[0], width), (resized[1], height)]
            .map(|(resized, size)| Fit::new(resized, size, self.convention));
        let (columns, n_rows) = (x.window.len(), y.window.len());
        let border = match self.resize_mode {
            ResizeMode::Longest => self.fill_color,
            _ => 0,
        };
        let border = picture.to_rgb(&[border; 4][..picture.mode().channels()]);
        let window = resize_to_rgb(picture, resized, [x.window, y.window], filter);
        if [columns, n_rows] == [width, height] {
            return Rgb8Image { width, height, pixels: window };
        }
        let mut pixels = border.repeat(width * height);
        let rows = pixels.chunks_exact_mut(width * 3).skip(y.offset);
        for (to, from) in rows.zip(window.chunks_exact(columns * 3)) {
            to[x.offset * 3..][..columns * 3].copy_from_slice(from);
        }
        Rgb8Image { width, height, pixels }
    }

    /// Width and height after the resize and before the crop, and the filter.
    fn resized(&self, [w, h]: [usize; 2]) -> ([usize; 2], Filter) {
        let [height, width] = self.size;
        let filter = self.interpolation.into();
        match self.resize_mode {
            ResizeMode::Squash => ([width, height], filter),
            ResizeMode::Shortest if width == height => {
                // torchvision: the longer side is cut to an integer.
                let long = |short: usize, long: usize| {
                    ((width as u64 * long as u64) as f64 / short as f64) as usize
                };
                let size = if w <= h { [width, long(w, h)] } else { [long(h, w), height] };
                (size, filter)
            }
            // open_clip builds this step without its filter argument.
            ResizeMode::Shortest => (self.keep_ratio([w, h], 0.0), Filter::Bicubic),
            ResizeMode::Longest => (self.keep_ratio([w, h], 1.0), filter),
        }
    }

    /// open_clip's `ResizeKeepRatio`: `longest` is 1 to fit the longer side, 0 the shorter.
    fn keep_ratio(&self, [w, h]: [usize; 2], longest: f64) -> [usize; 2] {
        let ratio_h = h as f64 / self.size[0] as f64;
        let ratio_w = w as f64 / self.size[1] as f64;
        let ratio = ratio_h.max(ratio_w) * longest + ratio_h.min(ratio_w) * (1.0 - longest);
        [w, h].map(|side| ((side as f64 / ratio).round_ties_even() as usize).max(1))
    }

    /// Writes the normalised tensor, `[3, height, width]`: (sample / 255 - mean) / std.
    ///
    /// # Panics
    /// When `out` does not hold 3 x height x width numbers.
    pub fn tensor(&self, image: &Rgb8Image, out: &mut [f32]) {
        let plane = image.width * image.height;
        assert_eq!(out.len(), 3 * plane, "`out` does not hold the tensor");
        assert_eq!(image.pixels.len(), 3 * plane, "the picture does not match its sides");
        for (c, out) in out.chunks_exact_mut(plane).enumerate() {
            let value = |v: usize| (v as f32 / 255.0 - self.mean[c]) / self.std[c];
            let table: [f32; 256] = std::array::from_fn(value);
            for (to, pixel) in out.iter_mut().zip(image.pixels.chunks_exact(3)) {
                *to = table[usize::from(pixel[c])];
            }
        }
    }
}

/// How `resized` samples meet `size` places: the middle of what is too long, or a border around
/// what is too short.
struct Fit {
    /// The samples kept.
    window: Range<usize>,
    /// Where the first of them goes.
    offset: usize,
}

impl Fit {
    fn new(resized: usize, size: usize, convention: Convention) -> Fit {
        if resized < size {
            return Fit { window: 0..resized, offset: (size - resized) / 2 };
        }
        let spare = resized - size;
        let start = match convention {
            // Python rounds a half to the even neighbour.
            Convention::OpenClip => spare / 2 + usize::from(spare % 4 == 3),
            Convention::HuggingFace => spare / 2,
        };
        Fit { window: start..start + size, offset: 0 }
    }
}
