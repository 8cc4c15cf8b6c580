//! The symmetric contrastive loss over unit embeddings (InfoNCE), with its gradients.
//!
//! ```text
//! L   = s I T^T,  s = exp(logit_scale)           logits, [B, B]
//! Q   = 1 where the texts are equal, each row divided by its sum      targets, image to text
//! R   = the same, each column divided by its sum                      targets, text to image
//! loss = 1/2 (mean over rows of H(Q, softmax L) + mean over columns of H(R, softmax L))
//! G   = dloss/dL = 1/(2B) (softmax over rows - Q + softmax over columns - R)
//! dI  = s G T,  dT = s G^T I,  dlogit_scale = sum of G * L
//! ```
//!
//! Products are f32, softmax and sums f64; every sum runs in one fixed order, whatever the number
//! of threads. Memory: four times the batch squared, in f32.

use std::collections::HashMap;

use rayon::prelude::*;

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

/// Numbers the texts of a batch so that equal ones have the same number. Without
/// `multi_positive` every text is its own.
pub fn positive_groups(texts: &[Vec<u32>], multi_positive: bool) -> Vec<usize> {
    if !multi_positive {
        return (0..texts.len()).collect();
    }
    let mut known: HashMap<&[u32], usize> = HashMap::new();
    let mut groups = Vec::with_capacity(texts.len());
    for text in texts {
        let next = known.len();
        groups.push(*known.entry(text).or_insert(next));
    }
    groups
}

/// The loss of `images` and `texts`, `[B, D]` each, row `i` of one belonging to row `i` of the
/// other and to all rows whose number in `groups` is the same.
///
/// # Panics
/// Where the lengths do not go together.
pub fn contrastive_loss(images: &[f32], texts: &[f32], groups: &[usize], logit_scale: f32) -> Loss {
    let n = groups.len();
    assert!(
        n > 0 && images.len() == texts.len() && images.len().is_multiple_of(n),
        "rows of one width"
    );
    let dim = images.len() / n;
    let scale = logit_scale.exp();
    let mut logits = product(images, &transposed(texts, n, dim), n, dim, n);
    logits.par_iter_mut().for_each(|x| *x *= scale);

    let logits_t = transposed(&logits, n, n);
    let (by_row, mut gradient) = cross_entropy(&logits, groups);
    let (by_column, gradient_t) = cross_entropy(&logits_t, groups);
    let other = transposed(&gradient_t, n, n);
    gradient.par_iter_mut().zip(&other).for_each(|(g, &o)| *g += o);

    let d_logit_scale: f64 =
        gradient.iter().zip(&logits).map(|(&g, &l)| f64::from(g) * f64::from(l)).sum();
    let scaled = |mut d: Vec<f32>| {
        d.par_iter_mut().for_each(|x| *x *= scale);
        d
    };
    Loss {
        value: 0.5 * (by_row + by_column),
        d_images: scaled(product(&gradient, texts, n, n, dim)),
        d_texts: scaled(product(&transposed(&gradient, n, n), images, n, n, dim)),
        d_logit_scale: d_logit_scale as f32,
    }
}

/// The mean over rows of the cross-entropy against the row's positives, and the gradient of half
/// of it.
fn cross_entropy(logits: &[f32], groups: &[usize]) -> (f64, Vec<f32>) {
    let n = groups.len();
    let mut sizes = vec![0_usize; n];
    groups.iter().for_each(|&group| sizes[group] += 1);
    let mut gradient = vec![0.0_f32; n * n];
    let losses: Vec<f64> = gradient
        .par_chunks_exact_mut(n)
        .zip(logits.par_chunks_exact(n))
        .zip(groups)
        .map(|((gradient, logits), &group)| {
            let target = 1.0 / sizes[group] as f64;
            let top = f64::from(logits.iter().fold(f32::NEG_INFINITY, |a, &b| a.max(b)));
            let sum: f64 = logits.iter().map(|&x| (f64::from(x) - top).exp()).sum();
            let log_sum = top + sum.ln();
            let mut loss = 0.0;
            for ((g, &x), &other) in gradient.iter_mut().zip(logits).zip(groups) {
                let share = if other == group { target } else { 0.0 };
                let log_p = f64::from(x) - log_sum;
                loss -= share * log_p;
                *g = ((log_p.exp() - share) / (2 * n) as f64) as f32;
            }
            loss
        })
        .collect();
    (losses.iter().sum::<f64>() / n as f64, gradient)
}

/// `a b`: `[n, k]` times `[k, m]`. Each element sums in the order of `k`.
fn product(a: &[f32], b: &[f32], n: usize, k: usize, m: usize) -> Vec<f32> {
    let mut out = vec![0.0_f32; n * m];
    out.par_chunks_exact_mut(m).zip(a.par_chunks_exact(k)).for_each(|(out, a)| {
        for (&a, b) in a.iter().zip(b.chunks_exact(m)) {
            out.iter_mut().zip(b).for_each(|(out, &b)| *out += a * b);
        }
    });
    out
}

fn transposed(a: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    let mut out = vec![0.0; a.len()];
    out.par_chunks_exact_mut(rows).enumerate().for_each(|(column, out)| {
        for (row, out) in out.iter_mut().enumerate() {
            *out = a[row * columns + column];
        }
    });
    out
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
            let loss = contrastive_loss(&images, &texts, &groups, scale);
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
    fn equal_texts_share_a_number() {
        let texts = [vec![1, 2], vec![3], vec![1, 2], vec![]];
        assert_eq!(positive_groups(&texts, true), [0, 1, 0, 2]);
        assert_eq!(positive_groups(&texts, false), [0, 1, 2, 3]);
    }

    #[test]
    fn one_pair_has_no_loss() {
        let loss = contrastive_loss(&[0.6, 0.8], &[1.0, 0.0], &[0], 3.0);
        assert_eq!(loss.value, 0.0);
        assert!(loss.d_images.iter().chain(&loss.d_texts).all(|&d| d == 0.0));
    }
}
