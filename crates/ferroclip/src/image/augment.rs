//! Random views of a picture, for training.
//!
//! Order: a random rectangle is cut out (torchvision's `RandomResizedCrop`) and mapped to the size,
//! turned, moved, zoomed and sheared about the middle, mirrored; then a background is put behind
//! what is transparent, colours are jittered, and the picture may turn grey.
//!
//! Without rotation, translation, zoom and shear the rectangle goes through the resize of the
//! evaluation pipeline, in the picture's own pixel format. With them the whole mapping is one: each
//! output pixel averages bilinear samples of the source over the area it covers, after the source
//! was shrunk where it is much larger. Both work on premultiplied alpha. What lies outside of the
//! picture is black.
//!
//! Where no background is drawn, alpha is dropped, as it is in evaluation: at the end, so that what
//! is transparent is black; but at once, so that the colours hidden there show, where evaluation
//! would not have to resize the picture and would show them too.
//!
//! All randomness comes from the generator given, so equal generators give equal pictures.

use ferroclip_kernels::Isa;
use ferroclip_kernels::resample::{Axis, Filter, Scratch, resample};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::RngCore;
use serde::{Deserialize, Serialize};

use super::color;
use super::decode::{Admission, DecodeLimits, decode};
use super::error::ImageError;
use super::picture::{Mode, Picture};
use super::pipeline::{Interpolation, Rgb8Image};
use super::resize::{premultiplied, resize_to_rgb};

/// Beyond this many source pixels for one output pixel (along a side) the source is shrunk first.
const MAX_TAPS: f64 = 3.0;

/// How training pictures vary. The default is open_clip's: a crop of 90 to 100 % of the area.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Augment {
    /// Least and greatest area of the crop, as a share of the picture's. Where both are 1, the
    /// whole picture is taken, whatever the ratio.
    pub scale: [f64; 2],
    /// Least and greatest width / height of the crop.
    pub ratio: [f64; 2],
    /// Greatest rotation either way, in degrees.
    pub rotate_degrees: f64,
    /// Greatest shift either way, as shares of width and height.
    pub translate: [f64; 2],
    /// Least and greatest magnification after the crop.
    pub zoom: [f64; 2],
    /// Greatest horizontal shear either way, in degrees.
    pub shear_degrees: f64,
    /// Probability that rotation, shift, zoom and shear are applied.
    pub affine_prob: f64,
    /// Probability of mirroring left and right.
    pub flip_prob: f64,
    /// Strengths of the colour jitter: brightness, contrast, saturation (factors 1 - s to 1 + s)
    /// and hue (turns of the colour circle either way, at most 0.5).
    pub color_jitter: [f64; 4],
    /// Probability of the colour jitter.
    pub color_jitter_prob: f64,
    /// Probability of grey.
    pub gray_scale_prob: f64,
    /// Probability that a random background is put behind a picture with transparent parts.
    pub background_prob: f64,
    /// Probability that such a background is a gradient between two colours; else it is one colour.
    pub background_gradient_prob: f64,
}

impl Default for Augment {
    fn default() -> Augment {
        Augment {
            scale: [0.9, 1.0],
            ratio: [3.0 / 4.0, 4.0 / 3.0],
            rotate_degrees: 0.0,
            translate: [0.0; 2],
            zoom: [1.0; 2],
            shear_degrees: 0.0,
            affine_prob: 1.0,
            flip_prob: 0.0,
            color_jitter: [0.0; 4],
            color_jitter_prob: 1.0,
            gray_scale_prob: 0.0,
            background_prob: 0.0,
            background_gradient_prob: 0.0,
        }
    }
}

impl Augment {
    /// The whole picture, squashed to the size: nothing is random.
    pub fn none() -> Augment {
        Augment { scale: [1.0; 2], ..Augment::default() }
    }

    /// Checks the ranges of the fields.
    ///
    /// # Errors
    /// Names the first field that is out of range.
    pub fn validate(&self) -> Result<(), ImageError> {
        let increasing =
            |[low, high]: [f64; 2], most: f64| 0.0 < low && low <= high && high <= most;
        let within = |value: f64, most: f64| (0.0..=most).contains(&value);
        let jitter = self.color_jitter;
        let checks: [(&str, bool, &str); 13] = [
            ("scale", increasing(self.scale, 1.0), "two shares, 0 < least <= greatest <= 1"),
            ("ratio", increasing(self.ratio, 100.0), "two ratios, 0 < least <= greatest <= 100"),
            ("rotate_degrees", within(self.rotate_degrees, 180.0), "0 to 180"),
            ("translate", self.translate.iter().all(|&v| within(v, 1.0)), "two shares, 0 to 1"),
            (
                "zoom",
                self.zoom[0] >= 0.01 && increasing(self.zoom, 100.0),
                "two factors, 0.01 <= least <= greatest <= 100",
            ),
            ("shear_degrees", within(self.shear_degrees, 80.0), "0 to 80"),
            ("affine_prob", within(self.affine_prob, 1.0), "0 to 1"),
            ("flip_prob", within(self.flip_prob, 1.0), "0 to 1"),
            (
                "color_jitter",
                jitter[..3].iter().all(|&v| within(v, 100.0)) && within(jitter[3], 0.5),
                "four strengths from 0 on, the last (hue) at most 0.5",
            ),
            ("color_jitter_prob", within(self.color_jitter_prob, 1.0), "0 to 1"),
            ("gray_scale_prob", within(self.gray_scale_prob, 1.0), "0 to 1"),
            ("background_prob", within(self.background_prob, 1.0), "0 to 1"),
            ("background_gradient_prob", within(self.background_gradient_prob, 1.0), "0 to 1"),
        ];
        match checks.into_iter().find(|(_, holds, _)| !holds) {
            None => Ok(()),
            Some((field, _, expected)) => {
                let found = "a value out of range".to_owned();
                Err(ImageError::Setting { field, found, expected })
            }
        }
    }

    /// [`Augment::rgb8`] of the bytes of a picture file. Where other threads are at pictures so large that this one would
    /// not fit beside them, it waits ([`DecodeLimits::max_memory`]).
    ///
    /// # Errors
    /// As [`Picture::decode`].
    ///
    /// # Panics
    /// As [`Augment::rgb8`].
    pub fn open(
        &self,
        bytes: &[u8],
        limits: &DecodeLimits,
        size: [usize; 2],
        interpolation: Interpolation,
        rng: &mut ChaCha8Rng,
    ) -> Result<Rgb8Image, ImageError> {
        let admission = Admission::shared(limits, false);
        let picture = decode(bytes, &admission)?;
        Ok(self.rgb8(&picture, size, interpolation, rng))
    }

    /// A random view of the picture, `size` being height and width. Call [`Augment::validate`] on
    /// settings from outside first.
    ///
    /// # Panics
    /// When a side of `size` is zero.
    pub fn rgb8(
        &self,
        picture: &Picture,
        size: [usize; 2],
        interpolation: Interpolation,
        rng: &mut ChaCha8Rng,
    ) -> Rgb8Image {
        assert!(size[0] > 0 && size[1] > 0, "a size has no pixels: {size:?}");
        let [height, width] = size;
        let crop = self.draw_crop([picture.width(), picture.height()], rng);
        let affine = self.draw_affine(size, rng);
        let flip = chance(self.flip_prob, rng);
        let background = self.draw_background(picture.has_alpha(), rng);
        let shows_hidden = picture.has_alpha()
            && background.is_none()
            && picture.width().min(picture.height()) == height.min(width);
        let picture = match shows_hidden {
            true => &picture.without_alpha(),
            false => picture,
        };

        let filter = Filter::from(interpolation);
        let mut pixels = match affine {
            Some(affine) => {
                let mapping = affine.inverse(crop, size);
                sample(picture, &mapping, size, background.as_ref())
            }
            None => resize_crop(picture, crop, size, filter, background.as_ref()),
        };
        if flip {
            pixels.chunks_exact_mut(width * 3).for_each(mirror);
        }
        self.jitter(&mut pixels, rng);
        if chance(self.gray_scale_prob, rng) {
            color::to_grey(&mut pixels);
        }
        Rgb8Image { width, height, pixels }
    }

    /// torchvision's `RandomResizedCrop.get_params`: left, top, width, height.
    fn draw_crop(&self, [width, height]: [usize; 2], rng: &mut ChaCha8Rng) -> [usize; 4] {
        if self.scale == [1.0; 2] {
            return [0, 0, width, height];
        }
        let area = width as f64 * height as f64;
        let [low, high] = self.ratio;
        for _ in 0..10 {
            let target = area * uniform(self.scale, rng);
            let ratio = uniform([low.ln(), high.ln()], rng).exp();
            let w = (target * ratio).sqrt().round_ties_even() as usize;
            let h = (target / ratio).sqrt().round_ties_even() as usize;
            if (1..=width).contains(&w) && (1..=height).contains(&h) {
                return [below(width - w + 1, rng), below(height - h + 1, rng), w, h];
            }
        }
        // No such rectangle fits: the middle, as near to the range of ratios as it goes.
        let ratio = width as f64 / height as f64;
        let side = |value: f64, most: usize| (value.round_ties_even() as usize).clamp(1, most);
        let [w, h] = if ratio < low {
            [width, side(width as f64 / low, height)]
        } else if ratio > high {
            [side(height as f64 * high, width), height]
        } else {
            [width, height]
        };
        [(width - w) / 2, (height - h) / 2, w, h]
    }

    /// `None` when no setting asks for it, or by chance.
    fn draw_affine(&self, size: [usize; 2], rng: &mut ChaCha8Rng) -> Option<Affine> {
        let idle = self.rotate_degrees == 0.0
            && self.shear_degrees == 0.0
            && self.translate == [0.0; 2]
            && self.zoom == [1.0; 2];
        if idle || !chance(self.affine_prob, rng) {
            return None;
        }
        let [height, width] = size.map(|side| side as f64);
        let mut either_way = |most: f64| uniform([-most, most], rng);
        let angle = either_way(self.rotate_degrees).to_radians();
        let shear = either_way(self.shear_degrees).to_radians().tan();
        let shift = [either_way(self.translate[0]) * width, either_way(self.translate[1]) * height];
        // Uniform in the logarithm, so that twice as large is as likely as half as large.
        let zoom = uniform(self.zoom.map(f64::ln), rng).exp();
        Some(Affine { angle, shear, shift, zoom })
    }

    fn draw_background(&self, has_alpha: bool, rng: &mut ChaCha8Rng) -> Option<Background> {
        if !has_alpha || !chance(self.background_prob, rng) {
            return None;
        }
        let gradient = chance(self.background_gradient_prob, rng);
        let mut color = || std::array::from_fn(|_| below(256, rng) as f32);
        let from = color();
        let to = if gradient { color() } else { from };
        let angle = uniform([0.0, std::f64::consts::TAU], rng);
        Some(Background { from, to, direction: [angle.cos() as f32, angle.sin() as f32] })
    }

    /// torchvision's `ColorJitter`: the four in random order.
    fn jitter(&self, pixels: &mut [u8], rng: &mut ChaCha8Rng) {
        if self.color_jitter == [0.0; 4] || !chance(self.color_jitter_prob, rng) {
            return;
        }
        let mut order = [0, 1, 2, 3];
        for last in (1..4).rev() {
            order.swap(last, below(last + 1, rng));
        }
        for kind in order {
            let strength = self.color_jitter[kind];
            if strength == 0.0 {
                continue;
            }
            if kind == 3 {
                color::adjust_hue(pixels, uniform([-strength, strength], rng));
                continue;
            }
            let factor = uniform([(1.0 - strength).max(0.0), 1.0 + strength], rng) as f32;
            let adjust =
                [color::adjust_brightness, color::adjust_contrast, color::adjust_saturation];
            adjust[kind](pixels, factor);
        }
    }
}

/// A number in `low..high`; `low` itself when both are equal.
fn uniform([low, high]: [f64; 2], rng: &mut ChaCha8Rng) -> f64 {
    // The 53 bits that a double holds exactly.
    let unit = (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
    low + (high - low) * unit
}

/// An integer in `0..n`, for `n` far below 2^32: the bias is n / 2^64.
fn below(n: usize, rng: &mut ChaCha8Rng) -> usize {
    ((u128::from(rng.next_u64()) * n as u128) >> 64) as usize
}

/// True with the given probability. Draws nothing where the outcome is certain.
fn chance(probability: f64, rng: &mut ChaCha8Rng) -> bool {
    probability > 0.0 && (probability >= 1.0 || uniform([0.0, 1.0], rng) < probability)
}

fn mirror(row: &mut [u8]) {
    let n = row.len() / 3;
    for x in 0..n / 2 {
        for c in 0..3 {
            row.swap(x * 3 + c, (n - 1 - x) * 3 + c);
        }
    }
}

/// The rectangle through the resize of the evaluation pipeline.
fn resize_crop(
    picture: &Picture,
    crop: [usize; 4],
    [height, width]: [usize; 2],
    filter: Filter,
    background: Option<&Background>,
) -> Vec<u8> {
    let part = picture.crop(crop);
    let Some(background) = background else {
        return resize_to_rgb(part.into(), [width, height], [0..width, 0..height], filter);
    };
    let mut rgba = vec![0; width * height * 4];
    let axes = [&Axis::new(part.width(), width), &Axis::new(part.height(), height)];
    let source = premultiplied(part.to_rgba().into_pixels(), 4);
    resample(Isa::active(), &source, 4, axes, filter, &mut Scratch::default(), &mut rgba);
    let pixel = |i: usize| std::array::from_fn(|c| f32::from(rgba[i * 4 + c]));
    compose([height, width], pixel, |rgba, x, y| background.behind(rgba, x, y))
}

/// Runs `finish` over premultiplied RGBA pixels; it gets positions from -1 to 1.
fn compose(
    [height, width]: [usize; 2],
    mut pixel: impl FnMut(usize) -> [f32; 4],
    finish: impl Fn([f32; 4], f32, f32) -> [f32; 3],
) -> Vec<u8> {
    let place = |i: usize, n: usize| (2 * i + 1) as f32 / n as f32 - 1.0;
    let mut out = Vec::with_capacity(width * height * 3);
    for y in 0..height {
        for x in 0..width {
            let rgb = finish(pixel(y * width + x), place(x, width), place(y, height));
            // `as` cuts and saturates.
            out.extend(rgb.map(|v| (v + 0.5) as u8));
        }
    }
    out
}

/// One colour, or two with a straight gradient between them.
struct Background {
    from: [f32; 3],
    to: [f32; 3],
    direction: [f32; 2],
}

impl Background {
    fn behind(&self, [r, g, b, alpha]: [f32; 4], x: f32, y: f32) -> [f32; 3] {
        let along = self.direction[0] * x + self.direction[1] * y;
        let share = (0.5 + 0.5 * along).clamp(0.0, 1.0);
        let through = (1.0 - alpha / 255.0).max(0.0);
        let color = |c: usize| self.from[c] + (self.to[c] - self.from[c]) * share;
        [r + color(0) * through, g + color(1) * through, b + color(2) * through]
    }
}

/// Rotation, shear and zoom about the middle, then a shift, in output pixels.
struct Affine {
    angle: f64,
    shear: f64,
    shift: [f64; 2],
    zoom: f64,
}

/// From output to source pixels: `source = at_x * x + at_y * y + start`.
struct Mapping {
    at_x: [f64; 2],
    at_y: [f64; 2],
    start: [f64; 2],
}

impl Affine {
    fn inverse(&self, crop: [usize; 4], size: [usize; 2]) -> Mapping {
        let [left, top, crop_w, crop_h] = crop.map(|v| v as f64);
        let [height, width] = size.map(|v| v as f64);
        // Forwards: zoom, shear x by y, rotate. Backwards in turn.
        let (sin, cos) = self.angle.sin_cos();
        let back = |[x, y]: [f64; 2]| {
            let [x, y] = [cos * x + sin * y, -sin * x + cos * y];
            let x = x - self.shear * y;
            [x / self.zoom * crop_w / width, y / self.zoom * crop_h / height]
        };
        let [at_x, at_y] = [back([1.0, 0.0]), back([0.0, 1.0])];
        let middle = back([-width / 2.0 - self.shift[0], -height / 2.0 - self.shift[1]]);
        let start = [left + crop_w / 2.0 + middle[0], top + crop_h / 2.0 + middle[1]];
        Mapping { at_x, at_y, start }
    }
}

impl Mapping {
    /// The same mapping into a source shrunk by a factor along each axis.
    fn shrunk(&self, factor: [f64; 2]) -> Mapping {
        let scaled = |v: [f64; 2]| [v[0] / factor[0], v[1] / factor[1]];
        let [at_x, at_y, start] = [self.at_x, self.at_y, self.start].map(scaled);
        Mapping { at_x, at_y, start }
    }

    /// Source pixels that one output pixel spans in its two directions.
    fn spans(&self) -> [f64; 2] {
        [self.at_x, self.at_y].map(|v| v[0].hypot(v[1]))
    }
}

/// Averages bilinear samples over the area of each output pixel.
fn sample(
    picture: &Picture,
    mapping: &Mapping,
    size: [usize; 2],
    background: Option<&Background>,
) -> Vec<u8> {
    let drops_alpha = background.is_none() && matches!(picture.mode(), Mode::La | Mode::Rgba);
    let (source, mapping) = Premultiplied::of(picture, mapping, background.is_some());
    let [n_x, n_y] = mapping.spans().map(|span| (span.ceil() as usize).clamp(1, 8));
    let weight = 1.0 / (n_x * n_y) as f32;
    let at = |x: f64, y: f64, axis: usize| {
        mapping.start[axis] + mapping.at_x[axis] * x + mapping.at_y[axis] * y
    };
    let pixel = |i: usize| {
        let (x, y) = ((i % size[1]) as f64, (i / size[1]) as f64);
        let mut sum = [0.0; 4];
        for sub_y in 0..n_y {
            let y = y + (sub_y as f64 + 0.5) / n_y as f64;
            for sub_x in 0..n_x {
                let x = x + (sub_x as f64 + 0.5) / n_x as f64;
                let value = source.bilinear(at(x, y, 0) as f32, at(x, y, 1) as f32);
                sum = std::array::from_fn(|c| sum[c] + value[c]);
            }
        }
        sum.map(|v| v * weight)
    };
    match background {
        Some(background) => compose(size, pixel, |rgba, x, y| background.behind(rgba, x, y)),
        None if drops_alpha => compose(size, pixel, |[r, g, b, alpha], _, _| {
            // Colour under less than half a step of alpha is nothing but rounding.
            let factor = if alpha >= 0.5 { 255.0 / alpha } else { 0.0 };
            [r * factor, g * factor, b * factor]
        }),
        None => compose(size, pixel, |[r, g, b, _], _, _| [r, g, b]),
    }
}

/// A picture of premultiplied RGBA floats with a transparent border of one pixel.
struct Premultiplied {
    width: usize,
    height: usize,
    pixels: Vec<[f32; 4]>,
}

impl Premultiplied {
    /// Takes over the picture, shrunk where the mapping is much coarser than its pixels.
    fn of(picture: &Picture, mapping: &Mapping, all_alpha: bool) -> (Premultiplied, Mapping) {
        let keeps_alpha = all_alpha || matches!(picture.mode(), Mode::La | Mode::Rgba);
        let rgba = if keeps_alpha {
            premultiplied(picture.to_rgba().into_pixels(), 4)
        } else {
            let rgb = picture.to_rgb(picture.pixels());
            rgb.chunks_exact(3).flat_map(|p| [p[0], p[1], p[2], 255]).collect()
        };
        let sides = [picture.width(), picture.height()];
        let span = mapping.spans().into_iter().fold(f64::INFINITY, f64::min);
        if span < MAX_TAPS {
            let plain = mapping.shrunk([1.0; 2]);
            return (Premultiplied::bordered(sides, &rgba), plain);
        }
        // One and a half pixels of the shrunk source remain for each output pixel.
        let shrunk = sides.map(|side| ((side as f64 / (span / 1.5)).ceil() as usize).max(1));
        let mut small = vec![0; shrunk[0] * shrunk[1] * 4];
        let axes = [&Axis::new(sides[0], shrunk[0]), &Axis::new(sides[1], shrunk[1])];
        resample(
            Isa::active(),
            &rgba,
            4,
            axes,
            Filter::Bilinear,
            &mut Scratch::default(),
            &mut small,
        );
        let factor = [0, 1].map(|i| sides[i] as f64 / shrunk[i] as f64);
        (Premultiplied::bordered(shrunk, &small), mapping.shrunk(factor))
    }

    fn bordered([width, height]: [usize; 2], rgba: &[u8]) -> Premultiplied {
        let mut pixels = vec![[0.0; 4]; (width + 2) * (height + 2)];
        let rows = pixels.chunks_exact_mut(width + 2).skip(1);
        for (to, from) in rows.zip(rgba.chunks_exact(width * 4)) {
            for (to, from) in to[1..].iter_mut().zip(from.chunks_exact(4)) {
                *to = std::array::from_fn(|c| f32::from(from[c]));
            }
        }
        Premultiplied { width: width + 2, height: height + 2, pixels }
    }

    /// The value at a point; pixel centres lie at halves.
    fn bilinear(&self, x: f32, y: f32) -> [f32; 4] {
        // Half a pixel to the centres, one to the border; beyond that border all is transparent.
        let x = (x + 0.5).clamp(0.0, (self.width - 1) as f32);
        let y = (y + 0.5).clamp(0.0, (self.height - 1) as f32);
        let (left, top) = ((x as usize).min(self.width - 2), (y as usize).min(self.height - 2));
        let (right, below) = (x - left as f32, y - top as f32);
        let row = &self.pixels[top * self.width + left..];
        let [a, b, c, d] = [row[0], row[1], row[self.width], row[self.width + 1]];
        std::array::from_fn(|i| {
            let upper = a[i] + (b[i] - a[i]) * right;
            let lower = c[i] + (d[i] - c[i]) * right;
            upper + (lower - upper) * below
        })
    }
}

#[cfg(test)]
mod tests;
