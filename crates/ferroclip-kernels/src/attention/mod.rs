//! Softmax attention within spans of packed rows, forward and backward.
//!
//! For one head of one span, with Q, K, V of `head_width` columns, s = head_width^-1/2:
//!
//! - P = softmax(s Q K^T) by rows, above the diagonal 0 where causal; O = P V
//! - dV = P^T dO; dP = dO V^T; dS = s P (dP - rowsum(P dP)); dQ = dS K; dK = dS^T Q
//!
//! P is formed for one head of one span at a time and formed again in the backward pass, so no
//! batch's score matrix is ever held. Spans run in parallel; each is computed by one thread.
//! A [`Prefix`] stands before the keys and values of every span, and every row sees all of it.
//! In [`pooled`] there is one query for each span.

mod pooled;
#[cfg(test)]
mod tests;

use rayon::prelude::*;

use crate::Isa;
use crate::gemm::{Matrix, Onto, Scratch, gemm_serial};
use crate::isa::{MulAdd, dispatch};
use crate::math::{LANES, exp, lane_max, lane_sum};
use crate::packed::Precision;
pub use pooled::{attend_row, attention_pooled, attention_pooled_backward};

/// What one attention operation looks like beside its spans.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionShape {
    /// Number of heads.
    pub heads: usize,
    /// Columns of a head; the width is `heads * head_width`.
    pub head_width: usize,
    /// Whether a row sees only itself and the rows before it.
    pub causal: bool,
}

impl AttentionShape {
    fn width(self) -> usize {
        self.heads * self.head_width
    }

    /// What scores are multiplied with before the softmax: `head_width^-1/2`.
    pub fn scale(self) -> f32 {
        (self.head_width as f32).sqrt().recip()
    }
}

/// Keys and values that all spans have before their own, `[rows, width]` each; none by default.
#[derive(Clone, Copy, Debug, Default)]
pub struct Prefix<'a> {
    /// The keys.
    pub keys: &'a [f32],
    /// The values.
    pub values: &'a [f32],
}

impl Prefix<'_> {
    fn rows(&self, shape: AttentionShape) -> usize {
        assert_eq!(self.keys.len(), self.values.len(), "keys and values of a prefix");
        self.keys.len() / shape.width()
    }

    /// Keys and values of one head.
    fn head(&self, shape: AttentionShape, head: usize) -> [Matrix<'_>; 2] {
        let columns = head * shape.head_width;
        [self.keys, self.values].map(|x| Matrix::rows(&x[columns.min(x.len())..], shape.width()))
    }
}

/// Spans whose gradients of a prefix are added up before those of others are.
const PREFIX_SPANS: usize = 16;

/// Memory of one thread, reused between calls.
#[derive(Debug)]
pub struct AttentionScratch {
    p: Vec<f32>,
    dp: Vec<f32>,
    gemm: Scratch,
}

impl AttentionScratch {
    /// Memory for this instruction set.
    pub fn new(isa: Isa) -> Self {
        let gemm = Scratch::new(isa, Precision::F32);
        AttentionScratch { p: Vec::new(), dp: Vec::new(), gemm }
    }
}

/// Rows of each span of `x`, `width` elements a row, as slices that threads may take.
fn split<'a>(mut x: &'a mut [f32], offsets: &[usize], width: usize) -> Vec<&'a mut [f32]> {
    let mut spans = Vec::with_capacity(offsets.len() - 1);
    for pair in offsets.windows(2) {
        let (span, rest) = x.split_at_mut((pair[1] - pair[0]) * width);
        spans.push(span);
        x = rest;
    }
    spans
}

/// `out` (`[rows, width]`) from `qkv` (`[rows, 3 width]`), span by span of `offsets`.
pub fn attention(
    isa: Isa,
    shape: AttentionShape,
    offsets: &[usize],
    qkv: &[f32],
    prefix: Prefix,
    out: &mut [f32],
) {
    let width = shape.width();
    let outs = split(out, offsets, width);
    let scratch = || AttentionScratch::new(isa);
    outs.into_par_iter().enumerate().for_each_init(scratch, |scratch, (i, out)| {
        let qkv = &qkv[offsets[i] * 3 * width..offsets[i + 1] * 3 * width];
        for head in 0..if out.is_empty() { 0 } else { shape.heads } {
            let out = &mut out[head * shape.head_width..];
            attend(isa, shape, head, qkv, prefix, out, width, scratch);
        }
    });
}

/// One head of one span: `qkv` holds the rows of the span, `[rows, 3 width]`; row `i` of the result is
/// the first `head_width` elements of `out[i * ld..]`. On the calling thread.
#[expect(
    clippy::too_many_arguments,
    reason = "one head: its inputs, its output, and where it lies"
)]
pub fn attend(
    isa: Isa,
    shape: AttentionShape,
    head: usize,
    qkv: &[f32],
    prefix: Prefix,
    out: &mut [f32],
    ld: usize,
    scratch: &mut AttentionScratch,
) {
    let (n, d) = (qkv.len() / (3 * shape.width()), shape.head_width);
    if n == 0 {
        return;
    }
    let before = prefix.rows(shape);
    probabilities(isa, shape, qkv, prefix, n, head, scratch);
    let AttentionScratch { p, gemm, .. } = scratch;
    let [of_prefix, own] = columns(p, before, n);
    let v = part(qkv, shape, head, 2);
    gemm_serial([n, d, n], own, v, out, ld, Onto::Nothing, gemm);
    if before > 0 {
        let [_, v] = prefix.head(shape, head);
        gemm_serial([n, d, before], of_prefix, v, out, ld, Onto::Sum, gemm);
    }
}

/// `dqkv` (`[rows, 3 width]`) from `qkv` and `dout` (`[rows, width]`); the result is the gradients of
/// the prefix's keys and values, whose sums over spans have one order whatever the number of threads is.
pub fn attention_backward(
    isa: Isa,
    shape: AttentionShape,
    offsets: &[usize],
    qkv: &[f32],
    prefix: Prefix,
    dout: &[f32],
    dqkv: &mut [f32],
) -> [Vec<f32>; 2] {
    let width = shape.width();
    let zeros = || [vec![0.0; prefix.keys.len()], vec![0.0; prefix.values.len()]];
    let mut spans = split(dqkv, offsets, 3 * width);
    let groups = spans.par_chunks_mut(PREFIX_SPANS).enumerate();
    let sums: Vec<_> = groups
        .map_init(
            || AttentionScratch::new(isa),
            |scratch, (group, spans)| {
                let mut d_prefix = zeros();
                for (i, dqkv) in spans.iter_mut().enumerate() {
                    let i = group * PREFIX_SPANS + i;
                    let qkv = &qkv[offsets[i] * 3 * width..offsets[i + 1] * 3 * width];
                    let dout = &dout[offsets[i] * width..offsets[i + 1] * width];
                    for head in 0..shape.heads {
                        let d = &mut d_prefix;
                        attend_backward(isa, shape, head, qkv, prefix, dout, dqkv, d, scratch);
                    }
                }
                d_prefix
            },
        )
        .collect();
    sums.into_iter().fold(zeros(), |mut total, sums| {
        for (total, sums) in total.iter_mut().zip(&sums) {
            total.iter_mut().zip(sums).for_each(|(total, sum)| *total += sum);
        }
        total
    })
}

/// The gradient of [`attend`]: the head's columns of `dqkv` (`[rows, 3 width]`) from `qkv` and `dout`
/// (`[rows, width]`). Those of the prefix's keys and values are added to `d_prefix`. On the calling thread.
#[expect(clippy::too_many_arguments, reason = "one head: its inputs, its outputs, and memory")]
pub fn attend_backward(
    isa: Isa,
    shape: AttentionShape,
    head: usize,
    qkv: &[f32],
    prefix: Prefix,
    dout: &[f32],
    dqkv: &mut [f32],
    d_prefix: &mut [Vec<f32>; 2],
    scratch: &mut AttentionScratch,
) {
    let (width, d) = (shape.width(), shape.head_width);
    let n = dout.len() / width;
    if n == 0 {
        return;
    }
    let before = prefix.rows(shape);
    probabilities(isa, shape, qkv, prefix, n, head, scratch);
    let AttentionScratch { p, dp, gemm } = scratch;
    let (all, stride) = (before + n, row_of(before + n));
    dp.resize(n * stride, 0.0);
    let [q, k, v] = [0, 1, 2].map(|third| part(qkv, shape, head, third));
    let [prefix_k, prefix_v] = prefix.head(shape, head);
    let dout = Matrix::rows(&dout[head * d..], width);
    gemm_serial([n, n, d], dout, v.transposed(), &mut dp[before..], stride, Onto::Nothing, gemm);
    if before > 0 {
        gemm_serial([n, before, d], dout, prefix_v.transposed(), dp, stride, Onto::Nothing, gemm);
    }
    let ld = 3 * width;
    let place = |third: usize| third * width + head * d;
    let [p_prefix, p_own] = columns(p, before, n);
    let dv = &mut dqkv[place(2)..];
    gemm_serial([n, d, n], p_own.transposed(), dout, dv, ld, Onto::Nothing, gemm);
    score_gradient(isa, [all, stride], shape.scale(), p, dp);
    let [d_prefix_scores, d_scores] = columns(dp, before, n);
    let dk = &mut dqkv[place(1)..];
    gemm_serial([n, d, n], d_scores.transposed(), q, dk, ld, Onto::Nothing, gemm);
    let dq = &mut dqkv[place(0)..];
    gemm_serial([n, d, n], d_scores, k, dq, ld, Onto::Nothing, gemm);
    if before > 0 {
        gemm_serial([n, d, before], d_prefix_scores, prefix_k, dq, ld, Onto::Sum, gemm);
        let [dk, dv] = d_prefix.each_mut().map(|d_prefix| &mut d_prefix[head * d..]);
        let dims = [before, d, n];
        gemm_serial(dims, d_prefix_scores.transposed(), q, dk, width, Onto::Sum, gemm);
        gemm_serial(dims, p_prefix.transposed(), dout, dv, width, Onto::Sum, gemm);
    }
}

/// The columns of the prefix and those of the span itself, of a matrix with a row for each of its `n` rows.
fn columns(x: &[f32], before: usize, n: usize) -> [Matrix<'_>; 2] {
    [0, before].map(|first| Matrix::rows(&x[first..], row_of(before + n)))
}

/// Q (0), K (1) or V (2) of one head.
fn part(qkv: &[f32], shape: AttentionShape, head: usize, third: usize) -> Matrix<'_> {
    let start = third * shape.width() + head * shape.head_width;
    Matrix::rows(&qkv[start..], 3 * shape.width())
}

/// Elements from one row of scores to the next: whole registers.
fn row_of(scores: usize) -> usize {
    scores.next_multiple_of(LANES)
}

/// P of one head into `buffers.p`: `n` rows of the prefix's and `n` scores, [`row_of`] them apart.
fn probabilities(
    isa: Isa,
    shape: AttentionShape,
    qkv: &[f32],
    prefix: Prefix,
    n: usize,
    head: usize,
    buffers: &mut AttentionScratch,
) {
    let (before, d) = (prefix.rows(shape), shape.head_width);
    let all = before + n;
    let AttentionScratch { p, gemm, .. } = buffers;
    let stride = row_of(all);
    p.resize(n * stride, 0.0);
    let (q, k) = (part(qkv, shape, head, 0), part(qkv, shape, head, 1));
    gemm_serial([n, n, d], q, k.transposed(), &mut p[before..], stride, Onto::Nothing, gemm);
    if before > 0 {
        let [k, _] = prefix.head(shape, head);
        gemm_serial([n, before, d], q, k.transposed(), p, stride, Onto::Nothing, gemm);
    }
    softmax_rows(isa, [all, stride], before, shape.scale(), shape.causal, p);
}

/// Each row of `x` becomes softmax(scale x) over its first `seen` elements, 0 beyond.
#[inline(always)]
fn softmax_row<M: MulAdd>(x: &mut [f32], seen: usize, scale: f32) {
    let top = lane_max(&x[..seen]);
    // A few more than are seen, where the row has them: whole registers are faster.
    let (x, hidden) = x.split_at_mut(seen.next_multiple_of(LANES).min(x.len()));
    for x in x.iter_mut() {
        *x = exp::<M>((*x - top) * scale);
    }
    x[seen..].fill(0.0);
    let inverse = 1.0 / lane_sum([x], |[x]| x);
    for x in x.iter_mut() {
        *x *= inverse;
    }
    hidden.fill(0.0);
}

/// Rows of `n` scores, `stride` apart, the first `before` of which all rows see; what lies between them
/// becomes 0.
#[inline(always)]
fn softmax_rows_body<M: MulAdd>(
    [n, stride]: [usize; 2],
    before: usize,
    scale: f32,
    causal: bool,
    x: &mut [f32],
) {
    for (i, row) in x.chunks_exact_mut(stride).enumerate() {
        softmax_row::<M>(row, if causal { before + i + 1 } else { n }, scale);
    }
}

dispatch! {
    fn softmax_rows(
        row: [usize; 2], before: usize, scale: f32, causal: bool, x: &mut [f32],
    ) = softmax_rows_body
}

/// dP becomes dS = s P (dP - rowsum(P dP)), for rows of `n` elements, `stride` apart.
#[inline(always)]
fn score_gradient_body<M: MulAdd>([n, stride]: [usize; 2], scale: f32, p: &[f32], dp: &mut [f32]) {
    for (p, dp) in p.chunks_exact(stride).zip(dp.chunks_exact_mut(stride)) {
        let (p, dp) = (&p[..n], &mut dp[..n]);
        let sum = lane_sum([p, dp], |[p, dp]| p * dp);
        for (dp, p) in dp.iter_mut().zip(p) {
            *dp = scale * p * (*dp - sum);
        }
    }
}

dispatch! {
    fn score_gradient(
        row: [usize; 2], scale: f32, p: &[f32], dp: &mut [f32],
    ) = score_gradient_body
}
