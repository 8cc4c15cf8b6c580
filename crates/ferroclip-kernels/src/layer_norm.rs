//! Layer norm over rows, forward and backward.
//!
//! With m and v the mean and variance of a row x of n elements, r = 1 / sqrt(v + eps) and
//! h = (x - m) r:
//!
//! - y = gain h + bias
//! - dx = r (g - mean(g) - h mean(g h)) with g = gain dy
//! - dgain = sum over rows of dy h, dbias = sum over rows of dy

use crate::isa::{MulAdd, dispatch};
use crate::math::lane_sum;

#[inline(always)]
fn moments(x: &[f32], eps: f32) -> (f32, f32) {
    let n = x.len() as f32;
    let mean = lane_sum([x], |[x]| x) / n;
    let variance = lane_sum([x], |[x]| (x - mean) * (x - mean)) / n;
    (mean, 1.0 / (variance + eps).sqrt())
}

#[inline(always)]
fn forward_body<M: MulAdd>(x: &[f32], gain: &[f32], bias: &[f32], eps: f32, y: &mut [f32]) {
    let n = gain.len();
    assert!(bias.len() == n && x.len() == y.len() && x.len().is_multiple_of(n));
    for (x, y) in x.chunks_exact(n).zip(y.chunks_exact_mut(n)) {
        let (mean, r) = moments(x, eps);
        for i in 0..n {
            y[i] = M::mul_add((x[i] - mean) * r, gain[i], bias[i]);
        }
    }
}

#[inline(always)]
fn backward_body<M: MulAdd>(
    x: &[f32],
    gain: &[f32],
    eps: f32,
    dy: &[f32],
    dx: &mut [f32],
    dgain: &mut [f32],
    dbias: &mut [f32],
) {
    let n = gain.len();
    assert!(x.len() == dy.len() && x.len() == dx.len() && x.len().is_multiple_of(n));
    assert!(dgain.len() == n && dbias.len() == n);
    for ((x, dy), dx) in x.chunks_exact(n).zip(dy.chunks_exact(n)).zip(dx.chunks_exact_mut(n)) {
        let (mean, r) = moments(x, eps);
        let mean_g = lane_sum([gain, dy], |[gain, dy]| gain * dy) / n as f32;
        let gh = |[gain, dy, x]: [f32; 3]| gain * dy * ((x - mean) * r);
        let mean_gh = lane_sum([gain, dy, x], gh) / n as f32;
        for i in 0..n {
            let h = (x[i] - mean) * r;
            dx[i] = r * (gain[i] * dy[i] - mean_g - h * mean_gh);
            dgain[i] = M::mul_add(dy[i], h, dgain[i]);
            dbias[i] += dy[i];
        }
    }
}

dispatch! {
    /// `y = layer_norm(x)`, rows of `gain.len()` elements.
    pub fn layer_norm(x: &[f32], gain: &[f32], bias: &[f32], eps: f32, y: &mut [f32]) = forward_body
}
dispatch! {
    /// Writes `dx`; adds to `dgain` and `dbias`, row after row.
    #[expect(clippy::too_many_arguments, reason = "four inputs, three outputs")]
    pub fn layer_norm_backward(
        x: &[f32], gain: &[f32], eps: f32, dy: &[f32],
        dx: &mut [f32], dgain: &mut [f32], dbias: &mut [f32],
    ) = backward_body
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;

    fn reference(x: &[f64], gain: &[f64], bias: &[f64]) -> Vec<f64> {
        let n = x.len() as f64;
        let mean = x.iter().sum::<f64>() / n;
        let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
        (0..x.len()).map(|i| (x[i] - mean) / (variance + 1e-5).sqrt() * gain[i] + bias[i]).collect()
    }

    #[test]
    fn forward_and_gradient_match_f64() {
        for isa in Isa::available() {
            for n in [2, 5, 16, 33, 192] {
                let value = |i: usize, k: f64| ((i as f64) * k).sin();
                let x: Vec<f64> = (0..n).map(|i| value(i, 1.3) * 2.0 + 0.5).collect();
                let gain: Vec<f64> = (0..n).map(|i| 1.0 + value(i, 0.7) * 0.2).collect();
                let bias: Vec<f64> = (0..n).map(|i| value(i, 0.3)).collect();
                let dy: Vec<f64> = (0..n).map(|i| value(i, 2.1)).collect();
                let f32s = |v: &[f64]| v.iter().map(|&v| v as f32).collect::<Vec<f32>>();
                let mut y = vec![0.0; n];
                layer_norm(isa, &f32s(&x), &f32s(&gain), &f32s(&bias), 1e-5, &mut y);
                let want = reference(&x, &gain, &bias);
                assert!(y.iter().zip(&want).all(|(y, w)| (f64::from(*y) - w).abs() < 3e-6));

                let (mut dx, mut dg, mut db) = (vec![0.0; n], vec![0.0; n], vec![0.0; n]);
                layer_norm_backward(
                    isa,
                    &f32s(&x),
                    &f32s(&gain),
                    1e-5,
                    &f32s(&dy),
                    &mut dx,
                    &mut dg,
                    &mut db,
                );
                // Of two rows the gradients of gain and bias are added up.
                let twice = |v: &[f64]| [f32s(v), f32s(v)].concat();
                let (mut dx2, mut dg2, mut db2) = (vec![0.0; 2 * n], vec![0.0; n], vec![0.0; n]);
                layer_norm_backward(
                    isa,
                    &twice(&x),
                    &f32s(&gain),
                    1e-5,
                    &twice(&dy),
                    &mut dx2,
                    &mut dg2,
                    &mut db2,
                );
                assert_eq!(dx2, [&dx[..], &dx].concat());
                let doubled = |one: &[f32]| one.iter().map(|d| 2.0 * d).collect::<Vec<f32>>();
                let near = |(a, b): (&f32, &f32)| (a - b).abs() < 1e-5;
                assert!(dg2.iter().zip(&doubled(&dg)).all(near));
                assert!(db2.iter().zip(&doubled(&db)).all(near));

                let loss = |x: &[f64], gain: &[f64]| -> f64 {
                    reference(x, gain, &bias).iter().zip(&dy).map(|(y, d)| y * d).sum()
                };
                for i in 0..n {
                    let slope = |v: &[f64], at: &dyn Fn(&[f64]) -> f64| {
                        let (mut up, mut down) = (v.to_vec(), v.to_vec());
                        up[i] += 1e-5;
                        down[i] -= 1e-5;
                        (at(&up) - at(&down)) / 2e-5
                    };
                    assert!((f64::from(dx[i]) - slope(&x, &|x| loss(x, &gain))).abs() < 1e-4);
                    assert!((f64::from(dg[i]) - slope(&gain, &|g| loss(&x, g))).abs() < 1e-4);
                    assert!((f64::from(db[i]) - dy[i]).abs() < 1e-6);
                }
            }
        }
    }
}
