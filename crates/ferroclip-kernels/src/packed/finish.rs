//! From sums to the result.

use crate::Activation;
use crate::activation::activated;
use crate::isa::{MulAdd, dispatch};

/// What becomes of a sum (with its bias).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// It is the result.
    Store,
    /// The result is its activation.
    Activate(Activation),
    /// It is added to what is there.
    Add,
    /// The result is max(sum, 0).
    Rectify,
    /// It is added to what is there, and the result is max(that, 0).
    AddRectified,
}

/// Columns `at..` of the rows `out` from rows of `nr` sums; the last panel has fewer columns.
#[inline(always)]
fn finish_body<M: MulAdd>(
    finish: Finish,
    sums: &mut [f32],
    [nr, at]: [usize; 2],
    bias: Option<&[f32]>,
    out: &mut [&mut [f32]],
) {
    match finish {
        Finish::Store => each(sums, [nr, at], bias, out, |_, sum| sum),
        Finish::Add => each(sums, [nr, at], bias, out, |was, sum| was + sum),
        Finish::Rectify => each(sums, [nr, at], bias, out, |_, sum| rectified(sum)),
        Finish::AddRectified => {
            each(sums, [nr, at], bias, out, |was, sum| rectified(was + sum));
        }
        Finish::Activate(activation) => {
            in_place_body::<M>(Finish::Activate(activation), sums, nr, bias);
            each(sums, [nr, at], None, out, |_, sum| sum);
        }
    }
}

/// What becomes of rows of `nr` sums, where they are.
#[inline(always)]
fn in_place_body<M: MulAdd>(finish: Finish, sums: &mut [f32], nr: usize, bias: Option<&[f32]>) {
    if let Some(bias) = bias {
        sums.chunks_exact_mut(nr).for_each(|sums| {
            sums.iter_mut().zip(bias).for_each(|(sum, bias)| *sum += bias);
        });
    }
    // In one long loop of one kind, which the compiler gives whole registers.
    match finish {
        Finish::Activate(Activation::QuickGelu) => activate::<M>(Activation::QuickGelu, sums),
        Finish::Activate(Activation::Gelu) => activate::<M>(Activation::Gelu, sums),
        Finish::Activate(Activation::GeluTanh) => activate::<M>(Activation::GeluTanh, sums),
        Finish::Store | Finish::Add | Finish::Rectify | Finish::AddRectified => {}
    }
}

/// Not `max`, which would hide NaN.
#[inline(always)]
fn rectified(x: f32) -> f32 {
    if x < 0.0 { 0.0 } else { x }
}

#[inline(always)]
fn activate<M: MulAdd>(kind: Activation, sums: &mut [f32]) {
    // A loop and no closure: one that is not inlined would be compiled without the instruction set.
    for sum in sums {
        *sum = activated::<M>(kind, *sum);
    }
}

/// `out = become(out, sum + bias)`, in runs of a fixed length where the panel is whole.
#[inline(always)]
fn each(
    sums: &mut [f32],
    [nr, at]: [usize; 2],
    bias: Option<&[f32]>,
    out: &mut [&mut [f32]],
    new: impl Fn(f32, f32) -> f32,
) {
    const RUN: usize = 16;
    let cols = out.first().map_or(0, |row| nr.min(row.len() - at));
    let mut whole_bias = [0.0; 2 * RUN];
    if let Some(bias) = bias {
        whole_bias[..cols].copy_from_slice(&bias[..cols]);
    }
    for (sums, out) in sums.chunks_exact(nr).zip(out) {
        let out = &mut out[at..at + cols];
        let (runs, rest) = out.as_chunks_mut::<RUN>();
        let (sum_runs, _) = sums.as_chunks::<RUN>();
        let (bias_runs, _) = whole_bias.as_chunks::<RUN>();
        let n_runs = runs.len();
        for ((out, sums), bias) in runs.iter_mut().zip(sum_runs).zip(bias_runs) {
            // Whole before it is written: else the compiler fears that the slices overlap.
            *out = std::array::from_fn(|i| new(out[i], sums[i] + bias[i]));
        }
        let (sums, bias) = (&sums[n_runs * RUN..], &whole_bias[n_runs * RUN..]);
        for ((out, sum), bias) in rest.iter_mut().zip(sums).zip(bias) {
            *out = new(*out, sum + bias);
        }
    }
}

dispatch! {
    pub(super) fn in_place(
        finish: Finish, sums: &mut [f32], nr: usize, bias: Option<&[f32]>,
    ) = in_place_body
}
dispatch! {
    pub(super) fn finish(
        finish: Finish, sums: &mut [f32], place: [usize; 2], bias: Option<&[f32]>,
        out: &mut [&mut [f32]],
    ) = finish_body
}
