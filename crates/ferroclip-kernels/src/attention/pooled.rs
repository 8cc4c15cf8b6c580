//! The pooled form of attention: one query for each span, which sees all of the span's rows.

use rayon::prelude::*;

use super::{AttentionScratch, AttentionShape, score_gradient_body, softmax_row, split};
use crate::Isa;
use crate::isa::{MulAdd, dispatch};
use crate::math::lane_sum;

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
        *p = lane_sum([q, k], |[q, k]| q * k);
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
            *dp = lane_sum([dout, v], |[dout, v]| dout * v);
        }
        score_gradient_body::<M>([rows, rows], shape.scale(), p, dp);
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
    let score = |row| lane_sum([query, row], |[query, x]| query * x);
    p.extend(rows.chunks_exact(width).map(score));
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
