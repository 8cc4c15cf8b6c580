//! A decoded picture in the pixel format that PIL would give it.

use std::borrow::Cow;

use super::decode::{self, Admission, DecodeLimits};
use super::error::ImageError;

/// How pixels are stored; the names are PIL's. Samples are 8 bits, interleaved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// PIL's `1`: one sample, 0 or 255, resized with nearest neighbour.
    Bilevel,
    /// PIL's `P`: one index into the palette, resized with nearest neighbour.
    Palette,
    /// Grey.
    L,
    /// Grey and alpha.
    La,
    /// Red, green, blue.
    Rgb,
    /// Red, green, blue, alpha.
    Rgba,
    /// Cyan, magenta, yellow, black; 255 is full ink.
    Cmyk,
}

impl Mode {
    /// Samples per pixel.
    pub fn channels(self) -> usize {
        match self {
            Mode::Bilevel | Mode::Palette | Mode::L => 1,
            Mode::La => 2,
            Mode::Rgb => 3,
            Mode::Rgba | Mode::Cmyk => 4,
        }
    }
}

/// A decoded picture. Width and height are at least 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    width: usize,
    height: usize,
    mode: Mode,
    pixels: Vec<u8>,
    /// RGBA; always 256 entries in mode [`Mode::Palette`], otherwise empty.
    palette: Vec<[u8; 4]>,
    /// The one colour that the file declares transparent (PNG `tRNS` without a palette). PIL's
    /// conversion to RGB ignores it; only a background behind the picture shows through it.
    transparent: Option<[u8; 3]>,
    /// EXIF orientation, 1 to 8.
    orientation: u8,
}

impl Picture {
    /// Decodes the bytes of a PNG, JPEG, WebP, GIF (first frame), BMP or TIFF file (first page).
    /// The format is told by the first bytes, never by a name.
    ///
    /// # Errors
    /// When the bytes are no picture, a damaged one, or one beyond the limits.
    pub fn decode(bytes: &[u8], limits: &DecodeLimits) -> Result<Picture, ImageError> {
        decode::decode(bytes, &Admission::alone(limits))
    }

    /// A picture from interleaved RGB bytes.
    ///
    /// # Panics
    /// When a side is zero or the length is not `width * height * 3`.
    pub fn from_rgb8(width: usize, height: usize, pixels: Vec<u8>) -> Picture {
        Picture::new(width, height, Mode::Rgb, pixels)
    }

    /// A picture from interleaved RGBA bytes, alpha not premultiplied.
    ///
    /// # Panics
    /// When a side is zero or the length is not `width * height * 4`.
    pub fn from_rgba8(width: usize, height: usize, pixels: Vec<u8>) -> Picture {
        Picture::new(width, height, Mode::Rgba, pixels)
    }

    pub(super) fn new(width: usize, height: usize, mode: Mode, pixels: Vec<u8>) -> Picture {
        assert!(width > 0 && height > 0, "a picture has no pixels: {width} x {height}");
        assert_eq!(pixels.len(), width * height * mode.channels(), "wrong number of samples");
        let (palette, transparent) = (Vec::new(), None);
        Picture { width, height, mode, pixels, palette, transparent, orientation: 1 }
    }

    /// A palette picture; entries that the palette lacks are opaque black.
    pub(super) fn with_palette(
        width: usize,
        height: usize,
        indices: Vec<u8>,
        mut palette: Vec<[u8; 4]>,
    ) -> Picture {
        palette.resize(256, [0, 0, 0, 255]);
        Picture { palette, ..Picture::new(width, height, Mode::Palette, indices) }
    }

    pub(super) fn with_transparent(self, transparent: Option<[u8; 3]>) -> Picture {
        Picture { transparent, ..self }
    }

    pub(super) fn with_orientation(self, orientation: u8) -> Picture {
        Picture { orientation, ..self }
    }

    /// Columns, as stored.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Rows, as stored.
    pub fn height(&self) -> usize {
        self.height
    }

    /// The pixel format.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// The samples: `[height, width, mode.channels()]`.
    pub fn pixels(&self) -> &[u8] {
        &self.pixels
    }

    /// The EXIF orientation, 1 (as stored) to 8, that [`Picture::apply_exif`] would apply.
    pub fn orientation(&self) -> u8 {
        self.orientation
    }

    /// Whether a background can show through.
    pub fn has_alpha(&self) -> bool {
        match self.mode {
            Mode::La | Mode::Rgba => true,
            Mode::Palette => self.palette.iter().any(|color| color[3] < 255),
            _ => self.transparent.is_some(),
        }
    }

    /// Turns the picture upright as its EXIF data says. The references do not do this.
    #[must_use]
    pub fn apply_exif(self) -> Picture {
        let (w, h, c) = (self.width, self.height, self.mode.channels());
        let swapped = self.orientation >= 5;
        let (width, height) = if swapped { (h, w) } else { (w, h) };
        let source = |x: usize, y: usize| match self.orientation {
            2 => (w - 1 - x, y),
            3 => (w - 1 - x, h - 1 - y),
            4 => (x, h - 1 - y),
            5 => (y, x),
            6 => (y, h - 1 - x),
            7 => (w - 1 - y, h - 1 - x),
            _ => (w - 1 - y, x),
        };
        if !(2..=8).contains(&self.orientation) {
            return self;
        }
        let mut pixels = Vec::with_capacity(self.pixels.len());
        for y in 0..height {
            for x in 0..width {
                let (from_x, from_y) = source(x, y);
                pixels.extend_from_slice(&self.pixels[(from_y * w + from_x) * c..][..c]);
            }
        }
        Picture { width, height, pixels, orientation: 1, ..self }
    }

    /// The rectangle at `left`, `top` of `width` x `height` pixels, which must lie inside.
    pub(super) fn crop(&self, [left, top, width, height]: [usize; 4]) -> Picture {
        let c = self.mode.channels();
        let rows = self.pixels.chunks_exact(self.width * c).skip(top).take(height);
        let pixels = rows.flat_map(|row| &row[left * c..(left + width) * c]).copied().collect();
        let palette = self.palette.clone();
        Picture { width, height, pixels, palette, ..*self }
    }

    /// PIL's `convert("RGB")` of samples in this picture's format.
    pub(super) fn to_rgb(&self, samples: &[u8]) -> Vec<u8> {
        if self.mode == Mode::Rgb {
            return samples.to_vec();
        }
        let samples = samples.chunks_exact(self.mode.channels());
        decode::gather(samples.len(), samples.map(|p| self.rgba(p)).map(|[r, g, b, _]| [r, g, b]))
    }

    /// The picture with the colours that lie hidden behind its transparent parts, as PIL's
    /// `convert("RGB")` shows them.
    pub(super) fn without_alpha(&self) -> Picture {
        Picture {
            orientation: self.orientation,
            ..Picture::from_rgb8(self.width, self.height, self.to_rgb(&self.pixels))
        }
    }

    /// The picture on a white ground, as PIL's `alpha_composite` puts it there.
    pub(super) fn on_white(self) -> Picture {
        self.recolored(white_behind)
    }

    /// [`Picture::without_alpha`] of a picture that is given away.
    pub(super) fn into_rgb(self) -> Picture {
        self.recolored(|[r, g, b, _]| [r, g, b])
    }

    /// The picture in RGB, each pixel's colour made of what it was, with its transparency.
    fn recolored(mut self, color: fn([u8; 4]) -> [u8; 3]) -> Picture {
        let channels = self.mode.channels();
        let n = self.width * self.height;
        let mut pixels = std::mem::take(&mut self.pixels);
        if channels < 3 {
            let colors = pixels.chunks_exact(channels).map(|p| color(self.rgba(p)));
            pixels = decode::gather(n, colors);
        } else {
            // Where they are: a large picture does not fit twice.
            for i in 0..n {
                let color = color(self.rgba(&pixels[i * channels..][..channels]));
                pixels[i * 3..][..3].copy_from_slice(&color);
            }
            pixels.truncate(n * 3);
        }
        Picture {
            orientation: self.orientation,
            ..Picture::from_rgb8(self.width, self.height, pixels)
        }
    }

    /// The picture with all its transparency as an alpha channel.
    pub(super) fn to_rgba(&self) -> Picture {
        let samples = self.pixels.chunks_exact(self.mode.channels());
        let pixels = decode::gather(samples.len(), samples.map(|p| self.rgba(p)));
        Picture {
            orientation: self.orientation,
            ..Picture::from_rgba8(self.width, self.height, pixels)
        }
    }

    /// The colour and transparency of one pixel in this picture's format.
    fn rgba(&self, samples: &[u8]) -> [u8; 4] {
        let [r, g, b] = match *samples {
            [index] if self.mode == Mode::Palette => return self.palette[usize::from(index)],
            [grey, alpha] => return [grey, grey, grey, alpha],
            [r, g, b, alpha] if self.mode == Mode::Rgba => return [r, g, b, alpha],
            [grey] => [if self.mode == Mode::Bilevel && grey > 0 { 255 } else { grey }; 3],
            [r, g, b] => [r, g, b],
            _ => cmyk_to_rgb(samples),
        };
        let hidden = self.transparent == Some([r, g, b]);
        [r, g, b, if hidden { 0 } else { 255 }]
    }

    /// Its samples, alone.
    pub(super) fn into_pixels(self) -> Vec<u8> {
        self.pixels
    }
}

impl From<Picture> for Cow<'_, Picture> {
    fn from(picture: Picture) -> Self {
        Cow::Owned(picture)
    }
}

impl<'a> From<&'a Picture> for Cow<'a, Picture> {
    fn from(picture: &'a Picture) -> Self {
        Cow::Borrowed(picture)
    }
}

fn white_behind([r, g, b, alpha]: [u8; 4]) -> [u8; 3] {
    let alpha = u32::from(alpha);
    [r, g, b].map(|v| {
        // Seven bits more than a sample has, and a division by 255 that rounds.
        let sum = ((u32::from(v) * alpha + 255 * (255 - alpha)) << 7) + (0x80 << 7);
        ((((sum >> 8) + sum) >> 8) >> 7) as u8
    })
}

/// `a * b / 255`, rounded, for values up to 255.
pub(super) fn scale_255(a: u8, b: u8) -> u8 {
    let product = u32::from(a) * u32::from(b) + 128;
    (((product >> 8) + product) >> 8) as u8
}

fn cmyk_to_rgb(cmyk: &[u8]) -> [u8; 3] {
    let paper = 255 - cmyk[3];
    [cmyk[0], cmyk[1], cmyk[2]].map(|ink| paper - scale_255(ink, paper))
}
