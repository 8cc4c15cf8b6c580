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
//! The pooled form has one query for each span, which sees all of the span's rows.

use rayon::prelude::*;

use crate::Isa;
use crate::gemm::{Matrix, Onto, Scratch, gemm_serial};
use crate::isa::{MulAdd, dispatch};
use crate::math::{exp, lane_sum};
use crate::packed::Precision;

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
    let all = before + n;
    dp.resize(n * all, 0.0);
    let [q, k, v] = [0, 1, 2].map(|third| part(qkv, shape, head, third));
    let [prefix_k, prefix_v] = prefix.head(shape, head);
    let dout = Matrix::rows(&dout[head * d..], width);
    gemm_serial([n, n, d], dout, v.transposed(), &mut dp[before..], all, Onto::Nothing, gemm);
    if before > 0 {
        gemm_serial([n, before, d], dout, prefix_v.transposed(), dp, all, Onto::Nothing, gemm);
    }
    let ld = 3 * width;
    let place = |third: usize| third * width + head * d;
    let [p_prefix, p_own] = columns(p, before, n);
    let dv = &mut dqkv[place(2)..];
    gemm_serial([n, d, n], p_own.transposed(), dout, dv, ld, Onto::Nothing, gemm);
    score_gradient(isa, all, shape.scale(), p, dp);
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
    [0, before].map(|first| Matrix::rows(&x[first..], before + n))
}

/// Q (0), K (1) or V (2) of one head.
fn part(qkv: &[f32], shape: AttentionShape, head: usize, third: usize) -> Matrix<'_> {
    let start = third * shape.width() + head * shape.head_width;
    Matrix::rows(&qkv[start..], 3 * shape.width())
}

/// P of one head into `buffers.p`, `[n, rows of the prefix + n]`.
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
    p.resize(n * all, 0.0);
    let (q, k) = (part(qkv, shape, head, 0), part(qkv, shape, head, 1));
    gemm_serial([n, n, d], q, k.transposed(), &mut p[before..], all, Onto::Nothing, gemm);
    if before > 0 {
        let [k, _] = prefix.head(shape, head);
        gemm_serial([n, before, d], q, k.transposed(), p, all, Onto::Nothing, gemm);
    }
    softmax_rows(isa, all, before, shape.scale(), shape.causal, p);
}

/// Each row of `x` becomes softmax(scale x) over its first `seen` elements, 0 beyond.
#[inline(always)]
fn softmax_row<M: MulAdd>(x: &mut [f32], seen: usize, scale: f32) {
    let (x, hidden) = x.split_at_mut(seen);
    let top = x.iter().fold(f32::NEG_INFINITY, |top, &x| if x > top { x } else { top });
    for x in x.iter_mut() {
        *x = exp::<M>((*x - top) * scale);
    }
    let inverse = 1.0 / lane_sum(x.len(), |i| x[i]);
    for x in x.iter_mut() {
        *x *= inverse;
    }
    hidden.fill(0.0);
}

/// Rows of `n` scores, the first `before` of which all rows see.
#[inline(always)]
fn softmax_rows_body<M: MulAdd>(n: usize, before: usize, scale: f32, causal: bool, x: &mut [f32]) {
    for (i, row) in x.chunks_exact_mut(n).enumerate() {
        softmax_row::<M>(row, if causal { before + i + 1 } else { n }, scale);
    }
}

dispatch! {
    fn softmax_rows(
        n: usize, before: usize, scale: f32, causal: bool, x: &mut [f32],
    ) = softmax_rows_body
}

/// dP becomes dS = s P (dP - rowsum(P dP)).
#[inline(always)]
fn score_gradient_body<M: MulAdd>(n: usize, scale: f32, p: &[f32], dp: &mut [f32]) {
    for (p, dp) in p.chunks_exact(n).zip(dp.chunks_exact_mut(n)) {
        let sum = lane_sum(n, |j| p[j] * dp[j]);
        for j in 0..n {
            dp[j] = scale * p[j] * (dp[j] - sum);
        }
    }
}

dispatch! {
    fn score_gradient(n: usize, scale: f32, p: &[f32], dp: &mut [f32]) = score_gradient_body
}

/// The pooled form: `out` (`[spans, width]`) from `q` (`[spans, width]`) and `kv`
/// (`[rows, 2 width]`). `shape.causal` has no meaning here.
pub fn attention_pooled(
    isa: Isa,
    shape: AttentionShape,
    offsets: &[usize],
    q: &[f32],
    kv: &[f32],
    out: &mut [f32],
) {
    let width = shape.width();
    let work = out.par_chunks_exact_mut(width).zip(q.par_chunks_exact(width)).enumerate();
    work.for_each_init(Vec::new, |p, (i, (out, q))| {
        let kv = &kv[offsets[i] * 2 * width..offsets[i + 1] * 2 * width];
        pooled(isa, shape, q, kv, p, out);
    });
}

/// Writes `dq` (`[spans, width]`) and `dkv` (`[rows, 2 width]`).
#[expect(clippy::too_many_arguments, reason = "three inputs, two outputs, and where they lie")]
pub fn attention_pooled_backward(
    isa: Isa,
    shape: AttentionShape,
    offsets: &[usize],
    q: &[f32],
    kv: &[f32],
    dout: &[f32],
    dq: &mut [f32],
    dkv: &mut [f32],
) {
    let width = shape.width();
    let dkvs = split(dkv, offsets, 2 * width);
    let work = dkvs.into_par_iter().zip(dq.par_chunks_exact_mut(width)).enumerate();
    work.for_each_init(
        || AttentionScratch::new(isa),
        |buffers, (i, (dkv, dq))| {
            let kv = &kv[offsets[i] * 2 * width..offsets[i + 1] * 2 * width];
            let row = i * width..(i + 1) * width;
            pooled_backward(isa, shape, &q[row.clone()], kv, &dout[row], buffers, dq, dkv);
        },
    );
}

#[inline(always)]
fn pooled_scores<M: MulAdd>(
    q: &[f32],
    kv: &[f32],
    head: usize,
    width: usize,
    scale: f32,
    p: &mut [f32],
) {
    let d = q.len();
    for (p, kv) in p.iter_mut().zip(kv.chunks_exact(2 * width)) {
        let k = &kv[head * d..(head + 1) * d];
        *p = lane_sum(d, |c| q[c] * k[c]);
    }
    softmax_row::<M>(p, p.len(), scale);
}

#[inline(always)]
fn pooled_body<M: MulAdd>(
    shape: AttentionShape,
    q: &[f32],
    kv: &[f32],
    p: &mut Vec<f32>,
    out: &mut [f32],
) {
    let (width, d) = (shape.width(), shape.head_width);
    p.resize(kv.len() / (2 * width), 0.0);
    out.fill(0.0);
    for head in 0..shape.heads {
        let columns = head * d..(head + 1) * d;
        pooled_scores::<M>(&q[columns.clone()], kv, head, width, shape.scale(), p);
        let out = &mut out[columns.clone()];
        for (&p, kv) in p.iter().zip(kv.chunks_exact(2 * width)) {
            let v = &kv[width..][columns.clone()];
            for c in 0..d {
                out[c] = M::mul_add(p, v[c], out[c]);
            }
        }
    }
}

dispatch! {
    fn pooled(shape: AttentionShape, q: &[f32], kv: &[f32], p: &mut Vec<f32>, out: &mut [f32]) = pooled_body
}

#[inline(always)]
fn pooled_backward_body<M: MulAdd>(
    shape: AttentionShape,
    q: &[f32],
    kv: &[f32],
    dout: &[f32],
    buffers: &mut AttentionScratch,
    dq: &mut [f32],
    dkv: &mut [f32],
) {
    let (width, d) = (shape.width(), shape.head_width);
    let rows = kv.len() / (2 * width);
    let AttentionScratch { p, dp, .. } = buffers;
    p.resize(rows, 0.0);
    dp.resize(rows, 0.0);
    dq.fill(0.0);
    for head in 0..shape.heads {
        let columns = head * d..(head + 1) * d;
        let (q, dout) = (&q[columns.clone()], &dout[columns.clone()]);
        pooled_scores::<M>(q, kv, head, width, shape.scale(), p);
        for (dp, kv) in dp.iter_mut().zip(kv.chunks_exact(2 * width)) {
            let v = &kv[width..][columns.clone()];
            *dp = lane_sum(d, |c| dout[c] * v[c]);
        }
        score_gradient_body::<M>(rows, shape.scale(), p, dp);
        let dq = &mut dq[columns.clone()];
        for (j, (kv, dkv)) in
            kv.chunks_exact(2 * width).zip(dkv.chunks_exact_mut(2 * width)).enumerate()
        {
            let (dk, dv) = dkv.split_at_mut(width);
            let (k, dk, dv) =
                (&kv[columns.clone()], &mut dk[columns.clone()], &mut dv[columns.clone()]);
            for c in 0..d {
                dq[c] = M::mul_add(dp[j], k[c], dq[c]);
                dk[c] = dp[j] * q[c];
                dv[c] = p[j] * dout[c];
            }
        }
    }
}

dispatch! {
    #[expect(clippy::too_many_arguments, reason = "one span: its operands and its memory")]
    fn pooled_backward(
        shape: AttentionShape, q: &[f32], kv: &[f32], dout: &[f32],
        buffers: &mut AttentionScratch, dq: &mut [f32], dkv: &mut [f32],
    ) = pooled_backward_body
}

#[inline(always)]
fn attend_row_body<M: MulAdd>(
    scale: f32,
    query: &[f32],
    rows: &[f32],
    p: &mut Vec<f32>,
    out: &mut [f32],
) {
    let width = query.len();
    p.clear();
    p.extend(rows.chunks_exact(width).map(|row| lane_sum(width, |c| query[c] * row[c])));
    let n = p.len();
    softmax_row::<M>(p, n, scale);
    out.fill(0.0);
    for (&p, row) in p.iter().zip(rows.chunks_exact(width)) {
        for (out, &x) in out.iter_mut().zip(row) {
            *out = M::mul_add(p, x, *out);
        }
    }
}

dispatch! {
    /// The mean of `rows` (`[n, width]`) weighted by softmax(scale query . row) into `out`; `p` is
    /// memory.
    pub fn attend_row(
        scale: f32, query: &[f32], rows: &[f32], p: &mut Vec<f32>, out: &mut [f32],
    ) = attend_row_body
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Attention of `q[i]` over `k[..seen(i)]`, in f64, one head of one span.
    fn head(
        q: &[Vec<f64>],
        k: &[Vec<f64>],
        v: &[Vec<f64>],
        seen: impl Fn(usize) -> usize,
    ) -> Vec<Vec<f64>> {
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let scale = (q[0].len() as f64).powf(-0.5);
        let row = |i: usize| {
            let e: Vec<f64> = k[..seen(i)].iter().map(|k| (scale * dot(&q[i], k)).exp()).collect();
            let sum: f64 = e.iter().sum();
            (0..v[0].len()).map(|c| e.iter().zip(v).map(|(e, v)| e / sum * v[c]).sum()).collect()
        };
        (0..q.len()).map(row).collect()
    }

    const SHAPE: AttentionShape = AttentionShape { heads: 2, head_width: 5, causal: false };
    const OFFSETS: [usize; 4] = [0, 1, 8, 20];

    fn values(n: usize) -> Vec<f64> {
        (0..n).map(|i| ((i * i + 3 * i) as f64 * 0.37).sin()).collect()
    }

    /// `prefix` holds the rows of the keys, then those of the values.
    fn full(shape: AttentionShape, qkv: &[f64], prefix: &[f64]) -> Vec<f64> {
        let (w, d) = (10, 5);
        let before = prefix.len() / (2 * w);
        let mut out = vec![0.0; qkv.len() / 3];
        for span in OFFSETS.windows(2) {
            for h in 0..2 {
                let third = |t: usize| -> Vec<Vec<f64>> {
                    (span[0]..span[1])
                        .map(|r| qkv[r * 3 * w + t * w + h * d..][..d].to_vec())
                        .collect()
                };
                let after_prefix = |t: usize| -> Vec<Vec<f64>> {
                    let rows = prefix[(t - 1) * before * w..][..before * w].chunks(w);
                    rows.map(|row| row[h * d..][..d].to_vec()).chain(third(t)).collect()
                };
                let all = before + span[1] - span[0];
                let seen = |i| if shape.causal { before + i + 1 } else { all };
                let o = head(&third(0), &after_prefix(1), &after_prefix(2), seen);
                for (i, o) in o.iter().enumerate() {
                    out[(span[0] + i) * w + h * d..][..d].copy_from_slice(o);
                }
            }
        }
        out
    }

    fn pooled_reference(q: &[f64], kv: &[f64]) -> Vec<f64> {
        let (w, d) = (10, 5);
        let mut out = vec![0.0; q.len()];
        for (i, span) in OFFSETS.windows(2).enumerate() {
            for h in 0..2 {
                let half = |t: usize| -> Vec<Vec<f64>> {
                    (span[0]..span[1])
                        .map(|r| kv[r * 2 * w + t * w + h * d..][..d].to_vec())
                        .collect()
                };
                let o = head(&[q[i * w + h * d..][..d].to_vec()], &half(0), &half(1), |_| {
                    span[1] - span[0]
                });
                out[i * w + h * d..][..d].copy_from_slice(&o[0]);
            }
        }
        out
    }

    fn f32s(x: &[f64]) -> Vec<f32> {
        x.iter().map(|&x| x as f32).collect()
    }

    /// d(sum of f(x) weights)/dx by central differences.
    fn slopes(x: &[f64], weights: &[f64], f: impl Fn(&[f64]) -> Vec<f64>) -> Vec<f64> {
        let loss = |x: &[f64]| f(x).iter().zip(weights).map(|(y, w)| y * w).sum::<f64>();
        let at = |i: usize, by: f64| {
            let mut x = x.to_vec();
            x[i] += by;
            loss(&x)
        };
        (0..x.len()).map(|i| (at(i, 1e-5) - at(i, -1e-5)) / 2e-5).collect()
    }

    fn close(got: &[f32], want: &[f64]) {
        let worst =
            got.iter().zip(want).map(|(g, w)| (f64::from(*g) - w).abs()).fold(0.0, f64::max);
        assert!(worst < 3e-6, "{worst}");
    }

    #[test]
    fn full_and_causal_match_f64() {
        let (qkv, dout) = (values(20 * 30), values(20 * 10));
        for isa in Isa::available() {
            for (causal, before) in [(false, 0), (true, 0), (false, 3), (true, 4)] {
                let shape = AttentionShape { causal, ..SHAPE };
                let both: Vec<f64> = values(2 * before * 10).iter().map(|x| x * 1.5).collect();
                let singles = f32s(&both);
                let (keys, values) = singles.split_at(before * 10);
                let prefix = Prefix { keys, values };
                let (x, d) = (f32s(&qkv), f32s(&dout));
                let (mut out, mut dqkv) = (vec![0.0; 200], vec![0.0; 600]);
                attention(isa, shape, &OFFSETS, &x, prefix, &mut out);
                close(&out, &full(shape, &qkv, &both));
                let d_prefix = attention_backward(isa, shape, &OFFSETS, &x, prefix, &d, &mut dqkv);
                close(&dqkv, &slopes(&qkv, &dout, |x| full(shape, x, &both)));
                let slopes = slopes(&both, &dout, |prefix| full(shape, &qkv, prefix));
                close(&d_prefix.concat(), &slopes);
            }
        }
    }

    #[test]
    fn pooled_matches_f64() {
        let (q, kv, dout) = (values(3 * 10), values(20 * 20), values(30));
        for isa in Isa::available() {
            let mut out = vec![0.0; 30];
            attention_pooled(isa, SHAPE, &OFFSETS, &f32s(&q), &f32s(&kv), &mut out);
            close(&out, &pooled_reference(&q, &kv));
            let (mut dq, mut dkv) = (vec![0.0; 30], vec![0.0; 400]);
            attention_pooled_backward(
                isa,
                SHAPE,
                &OFFSETS,
                &f32s(&q),
                &f32s(&kv),
                &f32s(&dout),
                &mut dq,
                &mut dkv,
            );
            close(&dq, &slopes(&q, &dout, |q| pooled_reference(q, &kv)));
            close(&dkv, &slopes(&kv, &dout, |kv| pooled_reference(&q, kv)));
        }
    }
}
