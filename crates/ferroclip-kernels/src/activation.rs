//! The activations of the MLP, forward and backward.
//!
//! | kind | y | dy/dx |
//! |---|---|---|
//! | QuickGELU | x s(1.702 x) | s + 1.702 x s (1 - s) |
//! | GELU | x Phi(x) | Phi(x) + x phi(x) |
//! | GELU by tanh | x s(u), u = 2 sqrt(2 / pi) (x + 0.044715 x^3) | s + x s (1 - s) du/dx |
//!
//! with s the logistic function, Phi and phi the normal distribution and its density. The last one is usually written
//! 0.5 x (1 + tanh(u / 2)), which is the same.

use crate::isa::{MulAdd, dispatch};
use crate::math::{erf, exp};

/// Which activation an MLP has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// x Phi(x), with the exact error function.
    Gelu,
    /// x s(1.702 x), OpenAI's.
    QuickGelu,
    /// GELU with its approximation by tanh, SigLIP's.
    GeluTanh,
}

/// 2 sqrt(2 / pi).
const TANH_SCALE: f32 = 1.595_769_2;
const TANH_CUBE: f32 = 0.044_715;

#[inline(always)]
fn logistic<M: MulAdd>(x: f32) -> f32 {
    1.0 / (1.0 + exp::<M>(-x))
}

#[inline(always)]
fn normal_cdf<M: MulAdd>(x: f32) -> f32 {
    0.5 * (1.0 + erf::<M>(x * std::f32::consts::FRAC_1_SQRT_2))
}

/// The activation of one number.
#[inline(always)]
pub(crate) fn activated<M: MulAdd>(kind: Activation, x: f32) -> f32 {
    match kind {
        Activation::QuickGelu => x * logistic::<M>(1.702 * x),
        Activation::Gelu => x * normal_cdf::<M>(x),
        Activation::GeluTanh => x * logistic::<M>(TANH_SCALE * (x + TANH_CUBE * x * x * x)),
    }
}

#[inline(always)]
fn forward_body<M: MulAdd>(kind: Activation, x: &[f32], y: &mut [f32]) {
    for (y, &x) in y.iter_mut().zip(x) {
        *y = activated::<M>(kind, x);
    }
}

/// The activation of one number and its derivative there.
#[inline(always)]
fn with_slope<M: MulAdd>(kind: Activation, x: f32) -> [f32; 2] {
    const DENSITY: f32 = 0.398_942_3;
    match kind {
        Activation::QuickGelu => {
            let s = logistic::<M>(1.702 * x);
            [x * s, s + 1.702 * x * s * (1.0 - s)]
        }
        Activation::Gelu => {
            let cdf = normal_cdf::<M>(x);
            [x * cdf, cdf + x * (DENSITY * exp::<M>(-0.5 * x * x))]
        }
        Activation::GeluTanh => {
            let s = logistic::<M>(TANH_SCALE * (x + TANH_CUBE * x * x * x));
            let slope = TANH_SCALE * (1.0 + 3.0 * TANH_CUBE * x * x);
            [x * s, s + x * s * (1.0 - s) * slope]
        }
    }
}

/// [`backward_body`] of one kind. A function and no closure: one that is not inlined would be compiled without the
/// instruction set.
#[inline(always)]
fn backward_of<M: MulAdd>(kind: Activation, x: &[f32], dy: &[f32], dx: &mut [f32]) {
    for ((dx, &x), &dy) in dx.iter_mut().zip(x).zip(dy) {
        *dx = dy * with_slope::<M>(kind, x)[1];
    }
}

#[inline(always)]
fn backward_body<M: MulAdd>(kind: Activation, x: &[f32], dy: &[f32], dx: &mut [f32]) {
    // Decided here, so that each loop is of one kind.
    match kind {
        Activation::QuickGelu => backward_of::<M>(Activation::QuickGelu, x, dy, dx),
        Activation::Gelu => backward_of::<M>(Activation::Gelu, x, dy, dx),
        Activation::GeluTanh => backward_of::<M>(Activation::GeluTanh, x, dy, dx),
    }
}

/// [`both_body`] of one kind.
#[inline(always)]
fn both_of<M: MulAdd>(kind: Activation, x: &mut [f32], d: &mut [f32]) {
    for (x, d) in x.iter_mut().zip(d) {
        let [y, slope] = with_slope::<M>(kind, *x);
        *x = y;
        *d *= slope;
    }
}

#[inline(always)]
fn both_body<M: MulAdd>(kind: Activation, x: &mut [f32], d: &mut [f32]) {
    match kind {
        Activation::QuickGelu => both_of::<M>(Activation::QuickGelu, x, d),
        Activation::Gelu => both_of::<M>(Activation::Gelu, x, d),
        Activation::GeluTanh => both_of::<M>(Activation::GeluTanh, x, d),
    }
}

dispatch! {
    /// `y = act(x)`, elementwise over slices of equal length.
    pub fn activation(kind: Activation, x: &[f32], y: &mut [f32]) = forward_body
}
dispatch! {
    /// `dx = dy * act'(x)`, elementwise over slices of equal length.
    pub fn activation_backward(kind: Activation, x: &[f32], dy: &[f32], dx: &mut [f32]) = backward_body
}
dispatch! {
    /// In place: `x` becomes act(x), and `d`, a gradient of act(x), that of `x`.
    pub fn activation_and_backward(kind: Activation, x: &mut [f32], d: &mut [f32]) = both_body
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;

    fn reference(kind: Activation, x: f64) -> f64 {
        match kind {
            Activation::QuickGelu => x / (1.0 + (-1.702 * x).exp()),
            Activation::GeluTanh => {
                let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
                0.5 * x * (1.0 + u.tanh())
            }
            Activation::Gelu => {
                let (mut term, mut sum) = (x / 2f64.sqrt(), x / 2f64.sqrt());
                for n in 1..120 {
                    term *= -x * x / 2.0 / f64::from(n);
                    sum += term / f64::from(2 * n + 1);
                }
                x * 0.5 * (1.0 + sum * std::f64::consts::FRAC_2_SQRT_PI)
            }
        }
    }

    #[test]
    fn forward_and_backward_match_f64() {
        for isa in Isa::available() {
            for kind in [Activation::Gelu, Activation::QuickGelu, Activation::GeluTanh] {
                for n in [1, 7, 16, 33, 67] {
                    let x: Vec<f32> = (0..n).map(|i| (i as f32 * 0.37).sin() * 4.0).collect();
                    let (mut y, mut dx) = (vec![0.0; n], vec![0.0; n]);
                    activation(isa, kind, &x, &mut y);
                    activation_backward(isa, kind, &x, &vec![2.0; n], &mut dx);
                    let (mut in_place, mut d) = (x.clone(), vec![2.0; n]);
                    activation_and_backward(isa, kind, &mut in_place, &mut d);
                    assert_eq!([&in_place, &d], [&y, &dx]);
                    for i in 0..n {
                        let at = f64::from(x[i]);
                        let slope =
                            (reference(kind, at + 1e-5) - reference(kind, at - 1e-5)) / 2e-5;
                        assert!((f64::from(y[i]) - reference(kind, at)).abs() < 2e-6);
                        assert!((f64::from(dx[i]) - 2.0 * slope).abs() < 1e-5, "{kind:?} {at}");
                    }
                }
            }
        }
    }
}
