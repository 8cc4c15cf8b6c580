//! Batch norm over the rows of a batch, with a rectifier behind it where one follows.
//!
//! With m and v the mean and the biased variance of a channel over all N rows, r = 1 / sqrt(v +
//! eps) and h = (x - m) r:
//!
//! - z = gain h + bias, and y = z, or max(z, 0) where rectified
//! - dz = dy, or 0 where z was not above 0
//! - dbias = sum over rows of dz, dgain = sum over rows of dz h
//! - dx = gain r (dz - dbias / N - h dgain / N)
//!
//! Sums run over blocks of a fixed number of rows, in f32 inside a block and in f64 over the blocks
//! in their order: they do not depend on the number of threads.

use rayon::prelude::*;

use crate::Isa;
use crate::isa::{MulAdd, dispatch};

/// Rows that one partial sum runs over.
const BLOCK_ROWS: usize = 256;
/// Rows of few channels are treated several at a time, in lengths of at least this.
const STRIPE: usize = 64;

/// Mean and biased variance of each channel.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Moments {
    /// The mean.
    pub mean: Vec<f32>,
    /// The mean square about the mean.
    pub variance: Vec<f32>,
}

impl Moments {
    /// Those of the columns of `x`, rows of `width` elements. Uses the threads of the current rayon
    /// pool.
    ///
    /// # Panics
    /// When there is no row, or `x` is not whole rows.
    pub fn of(isa: Isa, x: &[f32], width: usize) -> Moments {
        assert!(!x.is_empty() && x.len().is_multiple_of(width), "rows of {width} channels");
        let blocks = x.par_chunks(BLOCK_ROWS * width).map(|x| {
            let (mut mean, mut squares) = (vec![0.0; width], vec![0.0; width]);
            block_moments(isa, x, &mut mean, &mut squares);
            (x.len() / width, mean, squares)
        });
        let blocks: Vec<(usize, Vec<f32>, Vec<f32>)> = blocks.collect();
        // Chan, Golub and LeVeque: two sets of rows make one.
        let (mut rows, mut means, mut sums) = (0.0, vec![0.0_f64; width], vec![0.0_f64; width]);
        for (n, mean, squares) in blocks {
            let n = n as f64;
            let all = rows + n;
            for c in 0..width {
                let delta = f64::from(mean[c]) - means[c];
                means[c] += delta * n / all;
                sums[c] += f64::from(squares[c]) + delta * delta * rows * n / all;
            }
            rows = all;
        }
        Moments {
            mean: means.into_iter().map(|m| m as f32).collect(),
            variance: sums.into_iter().map(|s| (s / rows) as f32).collect(),
        }
    }
}

/// What a batch norm does to each channel, ready for rows that are treated several at a time.
#[derive(Clone, Debug)]
pub struct BatchNorm {
    width: usize,
    rectified: bool,
    mean: Vec<f32>,
    inverse: Vec<f32>,
    scale: Vec<f32>,
    shift: Vec<f32>,
}

impl BatchNorm {
    /// The norm of these statistics and parameters.
    ///
    /// # Panics
    /// When they are not of one length.
    pub fn new(moments: &Moments, gain: &[f32], bias: &[f32], eps: f32, rectified: bool) -> Self {
        let width = gain.len();
        let lengths = [moments.mean.len(), moments.variance.len(), bias.len()];
        assert_eq!(lengths, [width; 3], "channels of a batch norm");
        let inverse: Vec<f32> = moments.variance.iter().map(|v| 1.0 / (v + eps).sqrt()).collect();
        let scale: Vec<f32> = gain.iter().zip(&inverse).map(|(g, r)| g * r).collect();
        let folded = scale.iter().zip(&moments.mean).zip(bias);
        let shift: Vec<f32> = folded.map(|((s, m), b)| b - m * s).collect();
        let stripe = |values: &[f32]| values.repeat(STRIPE.div_ceil(width));
        BatchNorm {
            width,
            rectified,
            mean: stripe(&moments.mean),
            inverse,
            scale: stripe(&scale),
            shift: stripe(&shift),
        }
    }

    /// y of x. Uses the threads of the current rayon pool.
    ///
    /// # Panics
    /// When x and y are not whole rows, equally many.
    pub fn forward(&self, isa: Isa, x: &[f32], y: &mut [f32]) {
        assert!(x.len() == y.len() && x.len().is_multiple_of(self.width), "x and y");
        let chunk = BLOCK_ROWS * self.width;
        let chunks = y.par_chunks_mut(chunk).zip(x.par_chunks(chunk));
        chunks.for_each(|(y, x)| apply(isa, x, &self.scale, &self.shift, self.rectified, y));
    }

    /// The gradients of gain and bias, and dx into `dx`; the statistics are those of `x` itself.
    /// Uses the threads of the current rayon pool.
    ///
    /// # Panics
    /// When x, dy and dx are not whole rows, equally many.
    pub fn backward(&self, isa: Isa, x: &[f32], dy: &[f32], dx: &mut [f32]) -> [Vec<f32>; 2] {
        let [dgain, dbias] = self.sums(isa, x, dy);
        let rows = (x.len() / self.width) as f64;
        // dx = dz scale + constant + slope (x - mean)
        let per_row = |c: usize, sum: f64| -f64::from(self.scale[c]) * sum / rows;
        let constant = (0..self.width).map(|c| per_row(c, dbias[c]) as f32);
        let inverse = |c: usize| f64::from(self.inverse[c]);
        let slope = (0..self.width).map(|c| (per_row(c, dgain[c]) * inverse(c)) as f32);
        self.input_gradient(isa, [x, dy], [constant.collect(), slope.collect()], dx);
        [narrow(&dgain), narrow(&dbias)]
    }

    /// The gradients of gain and bias, and dx into `dx`, where the statistics are constants.
    ///
    /// # Panics
    /// As [`BatchNorm::backward`].
    pub fn backward_frozen(
        &self,
        isa: Isa,
        x: &[f32],
        dy: &[f32],
        dx: &mut [f32],
    ) -> [Vec<f32>; 2] {
        let [dgain, dbias] = self.sums(isa, x, dy);
        let nothing = || vec![0.0; self.width];
        self.input_gradient(isa, [x, dy], [nothing(), nothing()], dx);
        [narrow(&dgain), narrow(&dbias)]
    }

    /// dgain and dbias.
    fn sums(&self, isa: Isa, x: &[f32], dy: &[f32]) -> [Vec<f64>; 2] {
        assert!(x.len() == dy.len() && x.len().is_multiple_of(self.width), "x and dy");
        let (width, chunk) = (self.width, BLOCK_ROWS * self.width);
        let blocks = x.par_chunks(chunk).zip(dy.par_chunks(chunk)).map(|(x, dy)| {
            let (mut dz, mut dz_x) = (vec![0.0; width], vec![0.0; width]);
            block_sums(isa, x, dy, self, &mut dz, &mut dz_x);
            (dz, dz_x)
        });
        let blocks: Vec<(Vec<f32>, Vec<f32>)> = blocks.collect();
        let (mut dgain, mut dbias) = (vec![0.0_f64; width], vec![0.0_f64; width]);
        for (dz, dz_x) in &blocks {
            for c in 0..width {
                dbias[c] += f64::from(dz[c]);
                dgain[c] += f64::from(dz_x[c]) * f64::from(self.inverse[c]);
            }
        }
        [dgain, dbias]
    }

    fn input_gradient(
        &self,
        isa: Isa,
        [x, dy]: [&[f32]; 2],
        [constant, slope]: [Vec<f32>; 2],
        dx: &mut [f32],
    ) {
        assert_eq!(dx.len(), x.len(), "x and dx");
        let repeats = self.scale.len() / self.width;
        let (constant, slope) = (constant.repeat(repeats), slope.repeat(repeats));
        let chunk = BLOCK_ROWS * self.width;
        let chunks = dx.par_chunks_mut(chunk).zip(x.par_chunks(chunk).zip(dy.par_chunks(chunk)));
        chunks.for_each(|(dx, (x, dy))| input_gradient(isa, x, dy, self, &constant, &slope, dx));
    }
}

fn narrow(sums: &[f64]) -> Vec<f32> {
    sums.iter().map(|&sum| sum as f32).collect()
}

#[inline(always)]
fn block_moments_body<M: MulAdd>(x: &[f32], mean: &mut [f32], squares: &mut [f32]) {
    let width = mean.len();
    let len = width * STRIPE.div_ceil(width);
    let n = (x.len() / width) as f32;
    let mut sums = vec![0.0_f32; len];
    for x in x.chunks(len) {
        for (sum, &x) in sums[..x.len()].iter_mut().zip(x) {
            *sum += x;
        }
    }
    fold(&sums, mean);
    mean.iter_mut().for_each(|m| *m /= n);
    let means = mean.repeat(len / width);
    sums.fill(0.0);
    for x in x.chunks(len) {
        let sums = &mut sums[..x.len()];
        for ((sum, &x), &m) in sums.iter_mut().zip(x).zip(&means) {
            *sum = M::mul_add(x - m, x - m, *sum);
        }
    }
    fold(&sums, squares);
}

/// The sums of a stripe of several rows to those of one row.
#[inline(always)]
fn fold(stripe: &[f32], out: &mut [f32]) {
    out.fill(0.0);
    for row in stripe.chunks_exact(out.len()) {
        out.iter_mut().zip(row).for_each(|(out, value)| *out += value);
    }
}

#[inline(always)]
fn apply_body<M: MulAdd>(x: &[f32], scale: &[f32], shift: &[f32], rectified: bool, y: &mut [f32]) {
    let floor = if rectified { 0.0 } else { f32::NEG_INFINITY };
    for (x, y) in x.chunks(scale.len()).zip(y.chunks_mut(scale.len())) {
        for (((y, &x), &scale), &shift) in y.iter_mut().zip(x).zip(scale).zip(shift) {
            let z = M::mul_add(x, scale, shift);
            // Not `max`, which would turn NaN into the floor.
            *y = if z < floor { floor } else { z };
        }
    }
}

#[inline(always)]
fn block_sums_body<M: MulAdd>(
    x: &[f32],
    dy: &[f32],
    norm: &BatchNorm,
    dz_sum: &mut [f32],
    dz_x_sum: &mut [f32],
) {
    let len = norm.scale.len();
    let (mut sums, mut products) = (vec![0.0_f32; len], vec![0.0_f32; len]);
    let floor = if norm.rectified { 0.0 } else { f32::NEG_INFINITY };
    for (x, dy) in x.chunks(len).zip(dy.chunks(len)) {
        let n = x.len();
        let (scale, shift, mean) = (&norm.scale[..n], &norm.shift[..n], &norm.mean[..n]);
        let (sums, products, dy) = (&mut sums[..n], &mut products[..n], &dy[..n]);
        for i in 0..n {
            let dz = if M::mul_add(x[i], scale[i], shift[i]) > floor { dy[i] } else { 0.0 };
            sums[i] += dz;
            products[i] = M::mul_add(dz, x[i] - mean[i], products[i]);
        }
    }
    fold(&sums, dz_sum);
    fold(&products, dz_x_sum);
}

#[inline(always)]
fn input_gradient_body<M: MulAdd>(
    x: &[f32],
    dy: &[f32],
    norm: &BatchNorm,
    constant: &[f32],
    slope: &[f32],
    dx: &mut [f32],
) {
    let len = norm.scale.len();
    let floor = if norm.rectified { 0.0 } else { f32::NEG_INFINITY };
    for ((x, dy), dx) in x.chunks(len).zip(dy.chunks(len)).zip(dx.chunks_mut(len)) {
        let n = x.len();
        let (scale, shift, mean) = (&norm.scale[..n], &norm.shift[..n], &norm.mean[..n]);
        let (constant, slope) = (&constant[..n], &slope[..n]);
        let (dy, dx) = (&dy[..n], &mut dx[..n]);
        for i in 0..n {
            let dz = if M::mul_add(x[i], scale[i], shift[i]) > floor { dy[i] } else { 0.0 };
            let rest = M::mul_add(x[i] - mean[i], slope[i], constant[i]);
            dx[i] = M::mul_add(dz, scale[i], rest);
        }
    }
}

dispatch! {
    /// Mean, and sum of squares about it, of each column of a block of rows.
    fn block_moments(x: &[f32], mean: &mut [f32], squares: &mut [f32]) = block_moments_body
}
dispatch! {
    /// `y = x scale + shift`, perhaps rectified; scale and shift repeat along the rows.
    fn apply(x: &[f32], scale: &[f32], shift: &[f32], rectified: bool, y: &mut [f32]) = apply_body
}
dispatch! {
    /// The sums of dz and of dz (x - mean) over a block of rows.
    fn block_sums(
        x: &[f32], dy: &[f32], norm: &BatchNorm, dz_sum: &mut [f32], dz_x_sum: &mut [f32],
    ) = block_sums_body
}
dispatch! {
    /// `dx = dz scale + (x - mean) slope + constant`.
    fn input_gradient(
        x: &[f32], dy: &[f32], norm: &BatchNorm, constant: &[f32], slope: &[f32], dx: &mut [f32],
    ) = input_gradient_body
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(n: usize, seed: f64) -> Vec<f32> {
        (0..n).map(|i| ((i as f64 * seed).sin() * 2.0 + 0.5) as f32).collect()
    }

    /// The formula in f64: y, and the moments.
    fn naive(x: &[f64], gain: &[f64], bias: &[f64], rectified: bool) -> Vec<f64> {
        let width = gain.len();
        let rows = x.len() / width;
        let mut y = vec![0.0; x.len()];
        for c in 0..width {
            let column: Vec<f64> = (0..rows).map(|i| x[i * width + c]).collect();
            let mean = column.iter().sum::<f64>() / rows as f64;
            let variance = column.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / rows as f64;
            for (i, v) in column.iter().enumerate() {
                let z = gain[c] * (v - mean) / (variance + 1e-5).sqrt() + bias[c];
                y[i * width + c] = if rectified { z.max(0.0) } else { z };
            }
        }
        y
    }

    #[test]
    fn forward_and_gradients_match_f64() {
        for isa in Isa::available() {
            for (rows, width) in [(3, 1), (7, 8), (300, 5), (600, 70)] {
                for rectified in [false, true] {
                    check(isa, rows, width, rectified);
                }
            }
        }
    }

    fn check(isa: Isa, rows: usize, width: usize, rectified: bool) {
        let (x, dy) = (values(rows * width, 1.3), values(rows * width, 2.1));
        let (gain, bias) = (values(width, 0.7), values(width, 0.3));
        let wide = |v: &[f32]| v.iter().map(|&v| f64::from(v)).collect::<Vec<f64>>();
        let moments = Moments::of(isa, &x, width);
        let norm = BatchNorm::new(&moments, &gain, &bias, 1e-5, rectified);
        let (mut y, mut dx) = (vec![0.0; x.len()], vec![0.0; x.len()]);
        norm.forward(isa, &x, &mut y);
        let (x64, g64, b64) = (wide(&x), wide(&gain), wide(&bias));
        let want = naive(&x64, &g64, &b64, rectified);
        assert!(y.iter().zip(&want).all(|(y, w)| (f64::from(*y) - w).abs() < 2e-5));

        let [dgain, dbias] = norm.backward(isa, &x, &dy, &mut dx);
        let dy64 = wide(&dy);
        let loss = |x: &[f64], gain: &[f64], bias: &[f64]| -> f64 {
            naive(x, gain, bias, rectified).iter().zip(&dy64).map(|(y, d)| y * d).sum()
        };
        let slope = |v: &[f64], at: usize, f: &dyn Fn(&[f64]) -> f64| {
            let (mut up, mut down) = (v.to_vec(), v.to_vec());
            up[at] += 1e-6;
            down[at] -= 1e-6;
            (f(&up) - f(&down)) / 2e-6
        };
        let near = |found: f32, want: f64| {
            let found = f64::from(found);
            assert!((found - want).abs() < 1e-4 * (1.0 + want.abs()), "{found} against {want}");
        };
        for at in [0, x.len() / 2, x.len() - 1] {
            near(dx[at], slope(&x64, at, &|x| loss(x, &g64, &b64)));
        }
        for c in [0, width - 1] {
            near(dgain[c], slope(&g64, c, &|g| loss(&x64, g, &b64)));
            near(dbias[c], slope(&b64, c, &|b| loss(&x64, &g64, b)));
        }
        norm.backward_frozen(isa, &x, &dy, &mut dx);
        let passes = !rectified || y[0] > 0.0;
        let frozen = if passes { gain[0] * norm.inverse[0] * dy[0] } else { 0.0 };
        near(dx[0], f64::from(frozen));
    }

    #[test]
    fn a_large_mean_keeps_its_variance() {
        let x: Vec<f32> = (0..40_000).map(|i| 1000.0 + (i % 5) as f32).collect();
        for isa in Isa::available() {
            let found = Moments::of(isa, &x, 1);
            assert!(
                (found.mean[0] - 1002.0).abs() < 1e-3 && (found.variance[0] - 2.0).abs() < 1e-3
            );
        }
    }
}
