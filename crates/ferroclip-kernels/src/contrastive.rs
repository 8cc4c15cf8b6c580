//! The symmetric contrastive loss over unit embeddings (InfoNCE), with its gradients.
//!
//! ```text
//! L   = s I T^T,  s = exp(logit_scale)           logits, [B, B]
//! Q   = 1 where the numbers are equal, each row divided by its sum    targets, both ways
//! r, c  log of the sum of exp L over each row, each column
//! loss = 1/2B (sum of Q (r - L) + sum of Q (c - L))
//! G   = dloss/dL = 1/2B (exp(L - r) + exp(L - c) - 2 Q)
//! dI  = s G T,  dT = s G^T I,  dlogit_scale = sum of G * L
//! ```
//!
//! [`TILE`] rows of L are in memory at a time and are computed twice, once for r and once for G; c
//! comes from rows of the transpose. Products are f32, softmax and sums f64; every sum runs in one
//! fixed order, whatever the number of threads.

use rayon::prelude::*;

use crate::{Isa, Matrix, Onto, Precision, gemm};

/// Rows of the similarity matrix in memory at a time.
const TILE: usize = 256;

/// The loss of a batch and its gradients.
#[derive(Clone, Debug, PartialEq)]
pub struct Loss {
    /// The value.
    pub value: f64,
    /// Gradient of the unit image embeddings, `[B, D]`.
    pub d_images: Vec<f32>,
    /// Gradient of the unit text embeddings, `[B, D]`.
    pub d_texts: Vec<f32>,
    /// Gradient of the logarithmic `logit_scale`.
    pub d_logit_scale: f32,
}

/// The loss of `images` and `texts`, `[B, D]` each, row `i` of one belonging to row `i` of the
/// other and to all rows whose number in `groups`, below B, is the same.
///
/// # Panics
/// Where the lengths do not go together.
pub fn contrastive_loss(
    isa: Isa,
    images: &[f32],
    texts: &[f32],
    groups: &[usize],
    logit_scale: f32,
) -> Loss {
    let n = groups.len();
    assert!(
        n > 0 && images.len() == texts.len() && images.len().is_multiple_of(n),
        "rows of one width"
    );
    let (dim, scale) = (images.len() / n, logit_scale.exp());
    let log_sums = [log_sums(isa, images, texts, n, scale), log_sums(isa, texts, images, n, scale)];
    let mut sizes = vec![0_usize; n];
    groups.iter().for_each(|&group| sizes[group] += 1);
    let targets = Targets { groups, sizes, log_sums };

    let (mut d_images, mut d_texts) = (vec![0.0; n * dim], vec![0.0; n * dim]);
    let (mut value, mut d_logit_scale) = (0.0, 0.0);
    let mut tile = vec![0.0; TILE.min(n) * n];
    let parts = images.chunks(TILE * dim).zip(d_images.chunks_mut(TILE * dim));
    for (part, (images, d_images)) in parts.enumerate() {
        let rows = images.len() / dim;
        let tile = &mut tile[..rows * n];
        logits(isa, images, texts, n, scale, tile);
        let row_sums: Vec<[f64; 2]> = tile
            .par_chunks_exact_mut(n)
            .enumerate()
            .map(|(row, logits)| targets.gradient(part * TILE + row, logits))
            .collect();
        for [loss, slope] in row_sums {
            value += loss;
            d_logit_scale += slope;
        }
        let gradient = Matrix::rows(tile, n);
        let (images, texts) = (Matrix::rows(images, dim), Matrix::rows(texts, dim));
        let precision = Precision::F32;
        gemm(isa, precision, [rows, dim, n], gradient, texts, d_images, dim, Onto::Nothing);
        let gradient = gradient.transposed();
        gemm(isa, precision, [n, dim, rows], gradient, images, &mut d_texts, dim, Onto::Sum);
    }
    d_images.iter_mut().chain(&mut d_texts).for_each(|x| *x *= scale);
    Loss { value, d_images, d_texts, d_logit_scale: d_logit_scale as f32 }
}

/// Some rows of `scale a b^T`, of which each has `n` numbers, one for each row of `b`.
fn logits(isa: Isa, a: &[f32], b: &[f32], n: usize, scale: f32, out: &mut [f32]) {
    let (rows, dim) = (out.len() / n, b.len() / n);
    let (a, b) = (Matrix::rows(a, dim), Matrix::rows(b, dim).transposed());
    gemm(isa, Precision::F32, [rows, n, dim], a, b, out, n, Onto::Nothing);
    out.par_chunks_exact_mut(n).for_each(|row| row.iter_mut().for_each(|x| *x *= scale));
}

/// The logarithm of the sum of exp over each row of `scale a b^T`.
fn log_sums(isa: Isa, a: &[f32], b: &[f32], n: usize, scale: f32) -> Vec<f64> {
    let mut sums = Vec::with_capacity(n);
    let mut tile = vec![0.0; TILE.min(n) * n];
    for a in a.chunks(TILE * a.len() / n) {
        let tile = &mut tile[..a.len() / (b.len() / n) * n];
        logits(isa, a, b, n, scale, tile);
        sums.par_extend(tile.par_chunks_exact(n).map(|row| {
            let top = f64::from(row.iter().fold(f32::NEG_INFINITY, |a, &b| a.max(b)));
            top + row.iter().map(|&x| (f64::from(x) - top).exp()).sum::<f64>().ln()
        }));
    }
    sums
}

/// What the rows of logits are compared with.
struct Targets<'a> {
    groups: &'a [usize],
    /// Members of each group.
    sizes: Vec<usize>,
    /// Over rows, over columns.
    log_sums: [Vec<f64>; 2],
}

impl Targets<'_> {
    /// Turns a row of L into one of G; its share of the loss and of the gradient of `logit_scale`.
    fn gradient(&self, row: usize, logits: &mut [f32]) -> [f64; 2] {
        let Targets { groups, sizes, log_sums: [by_row, by_column] } = self;
        let each = 1.0 / (2 * groups.len()) as f64;
        let share = 1.0 / sizes[groups[row]] as f64;
        let (mut loss, mut slope) = (0.0, 0.0);
        for ((x, &group), column) in logits.iter_mut().zip(*groups).zip(by_column) {
            let logit = f64::from(*x);
            let log_p = [logit - by_row[row], logit - column];
            let target = if group == groups[row] { share } else { 0.0 };
            loss -= each * target * (log_p[0] + log_p[1]);
            let gradient = each * (log_p[0].exp() + log_p[1].exp() - 2.0 * target);
            slope += gradient * logit;
            *x = gradient as f32;
        }
        [loss, slope]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reproducible numbers in -1..1.
    fn numbers(n: usize, seed: u64) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..n).map(|_| next()).collect()
    }

    /// The formula at the top of the file, in f64 and without any rearrangement.
    fn naive(images: &[f64], texts: &[f64], groups: &[usize], logit_scale: f64) -> f64 {
        let n = groups.len();
        let dim = images.len() / n;
        let dot = |i: usize, j: usize| {
            (0..dim).map(|d| images[i * dim + d] * texts[j * dim + d]).sum::<f64>()
        };
        let logit = |i, j| logit_scale.exp() * dot(i, j);
        let mut loss = 0.0;
        for i in 0..n {
            let size = groups.iter().filter(|&&g| g == groups[i]).count() as f64;
            let row: f64 = (0..n).map(|j| f64::exp(logit(i, j))).sum();
            let column: f64 = (0..n).map(|j| f64::exp(logit(j, i))).sum();
            for j in (0..n).filter(|&j| groups[j] == groups[i]) {
                loss -= (logit(i, j) - row.ln()) / size;
                loss -= (logit(j, i) - column.ln()) / size;
            }
        }
        loss / (2 * n) as f64
    }

    #[test]
    fn value_and_gradients_agree_with_finite_differences() {
        let (n, dim, scale) = (5, 3, 0.7_f32);
        let (images, texts) = (numbers(n * dim, 1), numbers(n * dim, 2));
        for groups in [[0, 1, 2, 3, 4], [0, 1, 0, 2, 1]] {
            let loss = contrastive_loss(Isa::active(), &images, &texts, &groups, scale);
            let wide = |v: &[f32]| v.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
            let (i64s, t64s) = (wide(&images), wide(&texts));
            let value = |di: usize, dt: usize, ds: f64, h: f64| {
                let (mut i, mut t) = (i64s.clone(), t64s.clone());
                if let Some(x) = i.get_mut(di) {
                    *x += h;
                }
                if let Some(x) = t.get_mut(dt) {
                    *x += h;
                }
                naive(&i, &t, &groups, f64::from(scale) + ds * h)
            };
            let none = usize::MAX;
            let slope = |di, dt, ds| (value(di, dt, ds, 1e-5) - value(di, dt, ds, -1e-5)) / 2e-5;
            assert!((loss.value - value(none, none, 0.0, 0.0)).abs() < 1e-6);
            for k in 0..n * dim {
                // f32 products: a few units of rounding on gradients of order 0.1.
                assert!((f64::from(loss.d_images[k]) - slope(k, none, 0.0)).abs() < 1e-6);
                assert!((f64::from(loss.d_texts[k]) - slope(none, k, 0.0)).abs() < 1e-6);
            }
            let d_scale = f64::from(loss.d_logit_scale);
            assert!((d_scale - slope(none, none, 1.0)).abs() < 1e-6);
        }
    }

    #[test]
    fn one_pair_has_no_loss() {
        let loss = contrastive_loss(Isa::active(), &[0.6, 0.8], &[1.0, 0.0], &[0], 3.0);
        assert_eq!(loss.value, 0.0);
        assert!(loss.d_images.iter().chain(&loss.d_texts).all(|&d| d == 0.0));
    }

    #[test]
    fn every_set_agrees_over_several_tiles() {
        let (n, dim, scale) = (2 * TILE + 3, 5, 1.1_f32);
        let (images, texts) = (numbers(n * dim, 3), numbers(n * dim, 4));
        // The last rows belong to the first ones: positives in different tiles.
        let groups: Vec<usize> = (0..n).map(|i| i % (n - 2)).collect();
        let wide = |v: &[f32]| v.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
        let expected = naive(&wide(&images), &wide(&texts), &groups, f64::from(scale));
        for isa in Isa::available() {
            let loss = contrastive_loss(isa, &images, &texts, &groups, scale);
            assert!((loss.value - expected).abs() < 1e-6, "{isa:?}: {}, {expected}", loss.value);
            for k in [0, TILE * dim, (n - 1) * dim + 3] {
                let moved = |by: f64, of_images: bool| {
                    let (mut i, mut t) = (wide(&images), wide(&texts));
                    if of_images {
                        i[k] += by
                    } else {
                        t[k] += by
                    }
                    naive(&i, &t, &groups, f64::from(scale))
                };
                for (of_images, d) in [(true, &loss.d_images), (false, &loss.d_texts)] {
                    let slope = (moved(1e-4, of_images) - moved(-1e-4, of_images)) / 2e-4;
                    // Gradients here are of order 1e-3, logits of order 10 with f32 rounding.
                    assert!((f64::from(d[k]) - slope).abs() < 1e-7, "{isa:?}: {}, {slope}", d[k]);
                }
            }
        }
    }
}
