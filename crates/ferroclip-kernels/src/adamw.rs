//! AdamW over one tensor, or a part of it: one pass over memory.
//!
//! ```text
//! w -= lr wd w                                 tensors that decay
//! m += (1 - b1) (g - m),  v = b2 v + (1 - b2) g^2
//! w -= lr / (1 - b1^t) * m / (sqrt(v) / sqrt(1 - b2^t) + eps)
//! ```
//!
//! This is PyTorch's formula in PyTorch's order of rounding, the same bits on every instruction set.

use crate::isa::dispatch;

/// The constants of one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamStep {
    /// What weights are multiplied with first: 1 - lr wd, or 1.
    pub keep: f32,
    /// 1 - b1.
    pub rise: f32,
    /// b2.
    pub b2: f32,
    /// 1 - b2, rounded from f64.
    pub square: f32,
    /// lr / (1 - b1^t).
    pub step_size: f32,
    /// sqrt(1 - b2^t).
    pub root: f32,
    /// Added to the denominator.
    pub eps: f32,
}

impl AdamStep {
    /// Step `t`, counted from 1, with learning rate `lr`; `weight_decay` is 0 for tensors that do not
    /// decay.
    pub fn new(t: u64, lr: f64, [b1, b2]: [f64; 2], eps: f64, weight_decay: f64) -> AdamStep {
        let t = i32::try_from(t).unwrap_or(i32::MAX);
        AdamStep {
            keep: (1.0 - lr * weight_decay) as f32,
            rise: (1.0 - b1) as f32,
            b2: b2 as f32,
            square: (1.0 - b2) as f32,
            step_size: (lr / (1.0 - b1.powi(t))) as f32,
            root: (1.0 - b2.powi(t)).sqrt() as f32,
            eps: eps as f32,
        }
    }
}

#[inline(always)]
fn adamw_body(
    step: AdamStep,
    gradient: &[f32],
    weight: &mut [f32],
    first: &mut [f32],
    second: &mut [f32],
) {
    let AdamStep { keep, rise, b2, square, step_size, root, eps } = step;
    let means = first.iter_mut().zip(second);
    for ((w, &g), (m, v)) in weight.iter_mut().zip(gradient).zip(means) {
        *w *= keep;
        *m += rise * (g - *m);
        *v = *v * b2 + square * g * g;
        *w -= step_size * (*m / (v.sqrt() / root + eps));
    }
}

dispatch! {
    /// Updates weights and both running means, elementwise over slices of equal length; on the calling
    /// thread.
    pub fn adamw(
        step: AdamStep, gradient: &[f32], weight: &mut [f32], first: &mut [f32], second: &mut [f32],
    ) = adamw_body unfused
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;

    /// The formula in f64, and the same bits on every set.
    #[test]
    fn every_set_follows_the_formula() {
        let n = 37;
        let start: Vec<f32> = (0..n).map(|i| (i as f32 * 0.7).sin()).collect();
        let mut of_all = Vec::new();
        for isa in Isa::available() {
            let (mut w, mut m, mut v) = (start.clone(), vec![0.0; n], vec![0.0; n]);
            let (mut w64, mut m64, mut v64) = (
                start.iter().map(|&w| f64::from(w)).collect::<Vec<_>>(),
                vec![0.0; n],
                vec![0.0; n],
            );
            for t in 1..4 {
                let gradient: Vec<f32> = (0..n).map(|i| ((i + t) as f32).cos() * 1e-2).collect();
                let step = AdamStep::new(t as u64, 1e-3, [0.9, 0.98], 1e-6, 0.2);
                adamw(isa, step, &gradient, &mut w, &mut m, &mut v);
                let (c1, c2) = (1.0 - 0.9f64.powi(t as i32), 1.0 - 0.98f64.powi(t as i32));
                for i in 0..n {
                    let g = f64::from(gradient[i]);
                    m64[i] = 0.9 * m64[i] + 0.1 * g;
                    v64[i] = 0.98 * v64[i] + 0.02 * g * g;
                    w64[i] -= 1e-3 * 0.2 * w64[i];
                    w64[i] -= 1e-3 * (m64[i] / c1) / ((v64[i] / c2).sqrt() + 1e-6);
                    assert!((f64::from(w[i]) - w64[i]).abs() < 3e-7, "{isa:?} {t} {i}");
                }
            }
            of_all.push([w, m, v]);
        }
        assert!(of_all.windows(2).all(|two| two[0] == two[1]), "the same bits on every set");
    }
}
