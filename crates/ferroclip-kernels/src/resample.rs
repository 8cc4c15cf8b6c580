//! Resizing of 8-bit pictures, bit-exact with Pillow.
//!
//! The idea: an output sample is a weighted sum of the input samples under a filter whose width
//! grows with the shrink factor (so that shrinking does not alias). Rows and columns are
//! independent, so the picture is resized in two passes, along each row and along each column, with
//! the intermediate rounded to 8 bits. Which pass comes first is Pillow's choice too, see
//! `is_columns_first`. The weights are fixed-point numbers with `PRECISION_BITS` fractional bits:
//! integer sums give the same bytes on every machine and instruction set.
//!
//! Every output sample stands alone. [`Axis::window`] therefore forms only the samples that a later
//! crop keeps, at the cost of those samples, whatever the size of the whole resized picture.
//!
//! Limits: samples are `u8`, interleaved, one to four channels; alpha must be premultiplied by the
//! caller. The functions are single-threaded: callers parallelise over pictures.

use std::ops::Range;

use crate::isa::{MulAdd, dispatch};

/// Fractional bits of a weight: a sum of weighted 8-bit samples with overshoot fits 32 bits.
const PRECISION_BITS: u32 = 32 - 8 - 2;
/// One half in fixed point, where every sum starts so that the final shift rounds.
const HALF: i32 = 1 << (PRECISION_BITS - 1);
/// Columns summed at once in the vertical pass; the sums stay in the first-level cache.
const STRIP: usize = 512;

/// The interpolation filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    /// Triangle of half-width 1.
    Bilinear,
    /// Cubic convolution of half-width 2 with a = -0.5.
    Bicubic,
}

impl Filter {
    /// Half the width of the filter, in input samples when the picture is not shrunk.
    fn support(self) -> f64 {
        match self {
            Filter::Bilinear => 1.0,
            Filter::Bicubic => 2.0,
        }
    }

    fn weight(self, x: f64) -> f64 {
        const A: f64 = -0.5;
        let x = x.abs();
        match self {
            Filter::Bilinear if x < 1.0 => 1.0 - x,
            Filter::Bicubic if x < 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
            Filter::Bicubic if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
            _ => 0.0,
        }
    }
}

/// How one axis is resized: `source` samples become `target`, of which a window is formed.
#[derive(Clone, Debug, PartialEq)]
pub struct Axis {
    source: usize,
    target: usize,
    from: f64,
    span: f64,
    window: Range<usize>,
}

impl Axis {
    /// Resizes all `source` samples to `target` samples and forms all of these.
    ///
    /// # Panics
    /// When either length is zero.
    pub fn new(source: usize, target: usize) -> Axis {
        assert!(source > 0 && target > 0, "an axis has no samples: {source} to {target}");
        Axis { source, target, from: 0.0, span: source as f64, window: 0..target }
    }

    /// Maps the input interval `from..to` (Pillow's `box`) onto the whole target. Samples outside
    /// the interval still count where the filter reaches them.
    ///
    /// # Panics
    /// When the interval is empty or leaves the input.
    #[must_use]
    pub fn from_box(mut self, from: f32, to: f32) -> Axis {
        assert!(0.0 <= from && from < to && to <= self.source as f32, "box: {from}..{to}");
        // Pillow holds the box in single precision and subtracts there.
        (self.from, self.span) = (f64::from(from), f64::from(to - from));
        self
    }

    /// Forms only `window` of the target samples.
    ///
    /// # Panics
    /// When the window is empty or ends behind the target.
    #[must_use]
    pub fn window(mut self, window: Range<usize>) -> Axis {
        assert!(window.start < window.end && window.end <= self.target, "window: {window:?}");
        self.window = window;
        self
    }

    /// The number of samples formed.
    pub fn output(&self) -> usize {
        self.window.len()
    }

    /// The number of samples read.
    pub fn source(&self) -> usize {
        self.source
    }

    /// Whether the samples are copied unchanged, as Pillow skips a pass that does nothing.
    fn is_copy(&self) -> bool {
        self.source == self.target && self.from == 0.0 && self.span == self.source as f64
    }
}

/// Memory that [`resample`] keeps between pictures.
#[derive(Debug, Default)]
pub struct Scratch {
    horizontal: Weights,
    vertical: Weights,
    rows: Vec<u8>,
    wide: Vec<u8>,
}

dispatch! {
    /// Resizes a picture of interleaved 8-bit samples. Sums are integers: every instruction set
    /// gives the same bytes.
    ///
    /// | slice | shape |
    /// |---|---|
    /// | `src` | `[vertical.source(), horizontal.source(), channels]` |
    /// | `out` | `[vertical.output(), horizontal.output(), channels]` |
    ///
    /// `axes` are horizontal, vertical.
    ///
    /// # Panics
    /// When a length does not match its shape, or `channels` is not 1 to 4.
    pub fn resample(
        src: &[u8],
        channels: usize,
        axes: [&Axis; 2],
        filter: Filter,
        scratch: &mut Scratch,
        out: &mut [u8],
    ) = resample_body
}

#[inline(always)]
fn resample_body<M: MulAdd>(
    src: &[u8],
    channels: usize,
    axes: [&Axis; 2],
    filter: Filter,
    scratch: &mut Scratch,
    out: &mut [u8],
) {
    match channels {
        1 => resample_channels::<1>(src, axes, filter, scratch, out),
        2 => resample_channels::<2>(src, axes, filter, scratch, out),
        3 => resample_channels::<3>(src, axes, filter, scratch, out),
        4 => resample_channels::<4>(src, axes, filter, scratch, out),
        _ => panic!("channels must be 1 to 4: {channels}"),
    }
}

#[inline(always)]
fn resample_channels<const C: usize>(
    src: &[u8],
    [horizontal, vertical]: [&Axis; 2],
    filter: Filter,
    scratch: &mut Scratch,
    out: &mut [u8],
) {
    let source_row = horizontal.source * C;
    let row = horizontal.output() * C;
    assert_eq!(src.len(), vertical.source * source_row, "`src` does not match the axes");
    assert_eq!(out.len(), vertical.output() * row, "`out` does not match the axes");
    let Scratch { horizontal: weights, vertical: column_weights, rows, wide } = scratch;
    weights.set(horizontal, filter);
    column_weights.set(vertical, filter);

    if is_columns_first(horizontal, vertical) {
        // All columns: the rule holds only for pictures that are not much wider than the result.
        rows.resize(vertical.output() * source_row, 0);
        pass_columns(src, 0, column_weights, source_row, rows);
        return pass_rows::<C>(rows, source_row, horizontal, weights, wide, out);
    }
    let needed = column_weights.reach();
    let src = &src[needed.start * source_row..needed.end * source_row];
    if vertical.is_copy() {
        return pass_rows::<C>(src, source_row, horizontal, weights, wide, out);
    }
    // The intermediate holds the needed rows, narrowed to the window.
    rows.resize(needed.len() * row, 0);
    pass_rows::<C>(src, source_row, horizontal, weights, wide, rows);
    pass_columns(rows, needed.start, column_weights, row, out);
}

/// Whether the pass along the columns comes first: where it drops more than twice as many rows as
/// the other drops columns. Found by experiment on Pillow 13.0 (6,854 random sizes, boxes and
/// filters whose bytes tell the order, no exception). Older Pillow always begins with the rows, so
/// its bytes differ there.
fn is_columns_first(horizontal: &Axis, vertical: &Axis) -> bool {
    let dropped = |axis: &Axis| axis.source as i128 - axis.target as i128;
    dropped(vertical) > 0 && dropped(vertical) > 2 * dropped(horizontal)
}

/// The pass along each row.
#[inline(always)]
fn pass_rows<const C: usize>(
    src: &[u8],
    source_row: usize,
    axis: &Axis,
    weights: &Weights,
    wide: &mut Vec<u8>,
    out: &mut [u8],
) {
    let row = axis.output() * C;
    let pairs = src.chunks_exact(source_row).zip(out.chunks_exact_mut(row));
    if axis.is_copy() {
        let columns = axis.window.start * C..axis.window.end * C;
        for (src, out) in pairs {
            out.copy_from_slice(&src[columns.clone()]);
        }
    } else if C == 3 {
        // Four lanes fill a register and three do not, so each row is widened first.
        wide.resize(axis.source * 4, 0);
        for (src, out) in pairs {
            for (to, from) in wide.chunks_exact_mut(4).zip(src.chunks_exact(3)) {
                to[..3].copy_from_slice(from);
            }
            sum_columns::<4, 3>(wide, weights, out);
        }
    } else {
        for (src, out) in pairs {
            sum_columns::<C, C>(src, weights, out);
        }
    }
}

/// One row: `C` interleaved channels in, the first `KEEP` of them out.
#[inline(always)]
fn sum_columns<const C: usize, const KEEP: usize>(src: &[u8], weights: &Weights, out: &mut [u8]) {
    for (x, pixel) in out.chunks_exact_mut(KEEP).enumerate() {
        let (first, taps) = weights.taps(x);
        let mut sums = [HALF; C];
        for (sample, &tap) in src[first * C..].chunks_exact(C).zip(taps) {
            for (sum, &value) in sums.iter_mut().zip(sample) {
                *sum += i32::from(value) * tap;
            }
        }
        for (byte, sum) in pixel.iter_mut().zip(sums) {
            *byte = clip(sum);
        }
    }
}

/// The pass along each column. `rows` begins with input row `start`; rows are `row` bytes long.
#[inline(always)]
fn pass_columns(rows: &[u8], start: usize, weights: &Weights, row: usize, out: &mut [u8]) {
    for (y, out_row) in out.chunks_exact_mut(row).enumerate() {
        let (first, taps) = weights.taps(y);
        let from = (first - start) * row;
        sum_rows(&rows[from..from + taps.len() * row], taps, out_row);
    }
}

/// One output row as the weighted sum of `taps.len()` consecutive rows.
#[inline(always)]
fn sum_rows(rows: &[u8], taps: &[i32], out: &mut [u8]) {
    let row = out.len();
    for (strip_idx, strip) in out.chunks_mut(STRIP).enumerate() {
        let start = strip_idx * STRIP;
        let mut sums = [HALF; STRIP];
        let sums = &mut sums[..strip.len()];
        for (source, &tap) in rows.chunks_exact(row).zip(taps) {
            let source = &source[start..start + strip.len()];
            for (sum, &sample) in sums.iter_mut().zip(source) {
                *sum += i32::from(sample) * tap;
            }
        }
        for (byte, &mut sum) in strip.iter_mut().zip(sums) {
            *byte = clip(sum);
        }
    }
}

#[inline(always)]
fn clip(sum: i32) -> u8 {
    (sum >> PRECISION_BITS).clamp(0, 255) as u8
}

/// The fixed-point weights of an axis' window.
#[derive(Debug, Default)]
struct Weights {
    /// First input sample and number of taps, for each output sample.
    bounds: Vec<(usize, usize)>,
    /// `stride` weights for each output sample, of which the first taps count.
    taps: Vec<i32>,
    stride: usize,
    exact: Vec<f64>,
}

impl Weights {
    /// Pillow's `precompute_coeffs` and `normalize_coeffs_8bpc`, operation by operation.
    fn set(&mut self, axis: &Axis, filter: Filter) {
        self.bounds.clear();
        self.taps.clear();
        if axis.is_copy() {
            self.stride = 1;
            self.bounds.extend(axis.window.clone().map(|x| (x, 1)));
            self.taps.resize(axis.output(), 1 << PRECISION_BITS);
            return;
        }
        let scale = axis.span / axis.target as f64;
        let filter_scale = scale.max(1.0);
        let support = filter.support() * filter_scale;
        self.stride = (support.ceil() as usize * 2 + 1).min(axis.source);
        self.taps.resize(axis.output() * self.stride, 0);
        for (x, taps) in axis.window.clone().zip(self.taps.chunks_exact_mut(self.stride)) {
            let center = axis.from + (x as f64 + 0.5) * scale;
            // `as` truncates and saturates below zero, as Pillow does in two steps.
            let first = (center - support + 0.5) as usize;
            let end = ((center + support + 0.5) as usize).min(axis.source);
            let position = |k: usize| (k as f64 - center + 0.5) * (1.0 / filter_scale);
            self.exact.clear();
            self.exact.extend((first..end).map(|k| filter.weight(position(k))));
            let total: f64 = self.exact.iter().sum();
            for (tap, &weight) in taps.iter_mut().zip(&self.exact) {
                *tap = fixed_point(if total != 0.0 { weight / total } else { weight });
            }
            self.bounds.push((first, end - first));
        }
    }

    /// The first input sample and the weights of output sample `x` of the window.
    fn taps(&self, x: usize) -> (usize, &[i32]) {
        let (first, n_taps) = self.bounds[x];
        (first, &self.taps[x * self.stride..][..n_taps])
    }

    /// The input samples that the window needs.
    fn reach(&self) -> Range<usize> {
        let start = self.bounds.first().map_or(0, |&(first, _)| first);
        let end = self.bounds.last().map_or(0, |&(first, n_taps)| first + n_taps);
        start..end
    }
}

/// Rounds half away from zero.
fn fixed_point(weight: f64) -> i32 {
    let scaled = weight * f64::from(1 << PRECISION_BITS);
    (if weight < 0.0 { scaled - 0.5 } else { scaled + 0.5 }) as i32
}

/// For each of `target` output samples, the input sample that Pillow's nearest neighbour takes;
/// `None` where rounding errors lead outside, which Pillow leaves at zero. Only `window` is formed.
///
/// # Panics
/// When either length is zero.
pub fn nearest(
    source: usize,
    target: usize,
    window: Range<usize>,
) -> impl Iterator<Item = Option<usize>> {
    assert!(source > 0 && target > 0, "an axis has no samples: {source} to {target}");
    /// Beyond this Pillow has no memory for the picture: no sum of ours need be like its.
    const ADDED_UP: usize = 1 << 24;
    let step = source as f64 / target as f64;
    // Pillow adds up the step, rounding errors included, so the samples before the window count.
    let jump = if window.start > ADDED_UP { window.start } else { 0 };
    let mut position = step * (jump as f64 + 0.5);
    (jump..window.end)
        .map(move |_| {
            let here = position as usize;
            position += step;
            (here < source).then_some(here)
        })
        .skip(window.start - jump)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;

    /// A small generator, so that the kernels need no dependency for their tests.
    fn noise(n: usize, seed: u64) -> Vec<u8> {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 33) as u8
        };
        (0..n).map(|_| next()).collect()
    }

    /// The naive reference: one axis at a time in f64 weights, every sample by its formula.
    fn naive_rows(src: &[u8], width: usize, target: usize, filter: Filter) -> Vec<u8> {
        let scale = width as f64 / target as f64;
        let wide = scale.max(1.0);
        let mut out = Vec::new();
        for row in src.chunks_exact(width) {
            for x in 0..target {
                let center = (x as f64 + 0.5) * scale;
                let low = (center - filter.support() * wide + 0.5).max(0.0) as usize;
                let high = ((center + filter.support() * wide + 0.5) as usize).min(width);
                let weights: Vec<f64> =
                    (low..high).map(|k| filter.weight((k as f64 + 0.5 - center) / wide)).collect();
                let total: f64 = weights.iter().sum();
                let sum: f64 = row[low..high]
                    .iter()
                    .zip(&weights)
                    .map(|(&s, w)| f64::from(s) * w / total)
                    .sum();
                out.push(sum.round().clamp(0.0, 255.0) as u8);
            }
        }
        out
    }

    fn transposed(src: &[u8], width: usize) -> Vec<u8> {
        let height = src.len() / width;
        (0..src.len()).map(|i| src[i % height * width + i / height]).collect()
    }

    fn naive(src: &[u8], [w, h]: [usize; 2], [tw, th]: [usize; 2], filter: Filter) -> Vec<u8> {
        let along_rows = |src: &[u8], w: usize| match w == tw {
            true => src.to_vec(),
            false => naive_rows(src, w, tw, filter),
        };
        let along_columns = |src: &[u8], w: usize| match h == th {
            true => src.to_vec(),
            false => transposed(&naive_rows(&transposed(src, w), h, th, filter), th),
        };
        if th < h && (h - th) as i64 > 2 * (w as i64 - tw as i64) {
            return along_rows(&along_columns(src, w), w);
        }
        along_columns(&along_rows(src, w), tw)
    }

    const SIZES: [([usize; 2], [usize; 2]); 9] = [
        ([1, 1], [5, 3]),
        ([7, 5], [7, 5]),
        ([7, 5], [7, 9]),
        ([13, 5], [4, 5]),
        ([31, 17], [8, 8]),
        ([3, 40], [50, 2]),
        ([64, 64], [65, 63]),
        ([100, 3], [1, 1]),
        ([200, 9], [700, 4]),
    ];

    #[test]
    fn agrees_with_the_naive_reference() {
        let mut scratch = Scratch::default();
        for filter in [Filter::Bilinear, Filter::Bicubic] {
            for (from, to) in SIZES {
                for channels in 1..=4 {
                    let src = noise(from[0] * from[1] * channels, 7);
                    let mut out = vec![0; to[0] * to[1] * channels];
                    let axes = [&Axis::new(from[0], to[0]), &Axis::new(from[1], to[1])];
                    for isa in Isa::available() {
                        let mut again = vec![0; out.len()];
                        resample(isa, &src, channels, axes, filter, &mut scratch, &mut again);
                        assert!(isa == Isa::available()[0] || again == out, "{}", isa.name());
                        out = again;
                    }
                    for c in 0..channels {
                        let plane: Vec<u8> =
                            src.iter().skip(c).step_by(channels).copied().collect();
                        let want = naive(&plane, from, to, filter);
                        let got = out.iter().skip(c).step_by(channels);
                        // Exact and fixed-point weights may round an intermediate sum apart, and
                        // the second pass carries that on; Pillow's goldens ask for equal bytes.
                        let apart = got.zip(&want).map(|(&a, &b)| a.abs_diff(b)).max();
                        assert!(
                            apart <= Some(1),
                            "{from:?} {to:?} {channels} {filter:?}: {apart:?}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn a_window_is_a_crop_of_the_whole() {
        let mut scratch = Scratch::default();
        let src = noise(37 * 23 * 3, 3);
        for target in [[50, 11], [12, 90], [37, 40], [40, 23]] {
            let [h, v] = [Axis::new(37, target[0]), Axis::new(23, target[1])];
            let mut whole = vec![0; target[0] * target[1] * 3];
            resample(Isa::active(), &src, 3, [&h, &v], Filter::Bicubic, &mut scratch, &mut whole);
            let [h, v] = [h.window(4..9), v.window(3..8)];
            let mut part = vec![0; 5 * 5 * 3];
            resample(Isa::active(), &src, 3, [&h, &v], Filter::Bicubic, &mut scratch, &mut part);
            for (y, row) in part.chunks_exact(15).enumerate() {
                let from = ((y + 3) * target[0] + 4) * 3;
                assert_eq!(row, &whole[from..from + 15]);
            }
        }
    }

    #[test]
    fn a_box_of_everything_changes_nothing_and_constants_stay() {
        let mut scratch = Scratch::default();
        let src = noise(20 * 10, 5);
        let [h, v] = [Axis::new(20, 9), Axis::new(10, 13)];
        let mut plain = vec![0; 9 * 13];
        resample(Isa::active(), &src, 1, [&h, &v], Filter::Bilinear, &mut scratch, &mut plain);
        let mut boxed = vec![0; 9 * 13];
        let h = h.from_box(0.0, 20.0);
        resample(Isa::active(), &src, 1, [&h, &v], Filter::Bilinear, &mut scratch, &mut boxed);
        assert_eq!(plain, boxed);
        let h = h.from_box(2.5, 11.25);
        resample(
            Isa::active(),
            &[201; 200],
            1,
            [&h, &v],
            Filter::Bicubic,
            &mut scratch,
            &mut boxed,
        );
        assert_eq!(boxed, [201; 9 * 13]);
    }

    #[test]
    fn nearest_takes_centres() {
        let picks = |s, t| nearest(s, t, 0..t).map(Option::unwrap).collect::<Vec<_>>();
        assert_eq!(picks(4, 2), [1, 3]);
        assert_eq!(picks(3, 6), [0, 0, 1, 1, 2, 2]);
        assert_eq!(nearest(100, 7, 3..5).map(Option::unwrap).collect::<Vec<_>>(), [50, 64]);
    }
}
