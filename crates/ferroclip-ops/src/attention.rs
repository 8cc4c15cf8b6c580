//! Softmax attention within spans; the formulas stand in `ferroclip_kernels::attention`.
//!
//! | value | shape |
//! |---|---|
//! | `qkv` | `[rows, 3 width]`: query, key, value thirds, heads side by side in each |
//! | `q`, `kv` (pooled form) | `[spans, width]`, `[rows, 2 width]` |
//! | result | `[rows, width]`; pooled `[spans, width]` |

use burn::backend::Flex;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops};
use burn::prelude::*;
use burn::tensor::activation::softmax;
use ferroclip_kernels::{AttentionShape, Isa, Prefix};

use crate::Spans;
use crate::cpu::{Cpu, input, operands};

/// Self-attention within each span; where `causal`, a row sees itself and those before it.
pub fn attention(qkv: Tensor<2>, spans: &Spans, heads: usize, causal: bool) -> Tensor<2> {
    let [rows, columns] = qkv.dims();
    let width = columns / 3;
    assert_eq!((rows, width % heads), (spans.rows(), 0), "attention: rows, width and heads");
    let Some(operands) = operands([input(&qkv)]) else {
        return portable(qkv, spans, heads, causal);
    };
    let shape = AttentionShape { heads, head_width: width / heads, causal };
    let [qkv] = &operands.values;
    let mut out = vec![0.0; rows * width];
    let (isa, none) = (Isa::active(), Prefix::default());
    ferroclip_kernels::attention(isa, shape, spans.offsets(), qkv.data(), none, &mut out);
    let state = (qkv.clone(), shape, spans.clone());
    operands.finish(Cpu::from_vec(out, &[rows, width]), AttentionBackward, state)
}

/// One query a span, which sees all rows of its span.
pub fn attention_pooled(q: Tensor<2>, kv: Tensor<2>, spans: &Spans, heads: usize) -> Tensor<2> {
    let ([n, width], [rows, columns]) = (q.dims(), kv.dims());
    assert_eq!((n, rows, columns), (spans.count(), spans.rows(), 2 * width), "attention_pooled");
    let Some(operands) = operands([input(&q), input(&kv)]) else {
        return portable_pooled(q, kv, spans, heads);
    };
    let shape = AttentionShape { heads, head_width: width / heads, causal: false };
    let [q, kv] = &operands.values;
    let mut out = vec![0.0; n * width];
    let offsets = spans.offsets();
    ferroclip_kernels::attention_pooled(
        Isa::active(),
        shape,
        offsets,
        q.data(),
        kv.data(),
        &mut out,
    );
    let state = (q.clone(), kv.clone(), shape, spans.clone());
    operands.finish(Cpu::from_vec(out, &[n, width]), PooledBackward, state)
}

#[derive(Debug)]
struct AttentionBackward;

impl Backward<Flex, 1> for AttentionBackward {
    type State = (Cpu, AttentionShape, Spans);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dout = Cpu::gradient(grads.consume::<Flex>(&ops.node));
        let (qkv, shape, spans) = ops.state;
        let [Some(node)] = ops.parents else { return };
        let mut dqkv = vec![0.0; qkv.data().len()];
        let (isa, offsets) = (Isa::active(), spans.offsets());
        ferroclip_kernels::attention_backward(
            isa,
            shape,
            offsets,
            qkv.data(),
            Prefix::default(),
            dout.data(),
            &mut dqkv,
        );
        let columns = 3 * shape.heads * shape.head_width;
        let dqkv = Cpu::from_vec(dqkv, &[spans.rows(), columns]);
        grads.register::<Flex>(node.id, dqkv.into_primitive());
    }
}

#[derive(Debug)]
struct PooledBackward;

impl Backward<Flex, 2> for PooledBackward {
    type State = (Cpu, Cpu, AttentionShape, Spans);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dout = Cpu::gradient(grads.consume::<Flex>(&ops.node));
        let (q, kv, shape, spans) = ops.state;
        let width = shape.heads * shape.head_width;
        let (mut dq, mut dkv) = (vec![0.0; q.data().len()], vec![0.0; kv.data().len()]);
        ferroclip_kernels::attention_pooled_backward(
            Isa::active(),
            shape,
            spans.offsets(),
            q.data(),
            kv.data(),
            dout.data(),
            &mut dq,
            &mut dkv,
        );
        let [q_node, kv_node] = ops.parents;
        if let Some(node) = q_node {
            grads.register::<Flex>(
                node.id,
                Cpu::from_vec(dq, &[spans.count(), width]).into_primitive(),
            );
        }
        if let Some(node) = kv_node {
            grads.register::<Flex>(
                node.id,
                Cpu::from_vec(dkv, &[spans.rows(), 2 * width]).into_primitive(),
            );
        }
    }
}

/// Plain Burn operations, span by span.
fn portable(qkv: Tensor<2>, spans: &Spans, heads: usize, causal: bool) -> Tensor<2> {
    let width = qkv.dims()[1] / 3;
    let outs = spans.iter().filter(|rows| !rows.is_empty()).map(|rows| {
        let n = rows.len();
        let third = |t: usize| {
            split_heads(qkv.clone().slice([rows.clone(), t * width..(t + 1) * width]), heads)
        };
        let mut scores = third(0).matmul(third(1).swap_dims(1, 2));
        scores = scores * ((width / heads) as f64).powf(-0.5);
        if causal {
            let hidden = Tensor::<2, Bool>::tril_mask([n, n], 0, &qkv.device());
            scores = scores.mask_fill(hidden.unsqueeze::<3>(), f64::NEG_INFINITY);
        }
        softmax(scores, 2).matmul(third(2)).swap_dims(0, 1).reshape([n, width])
    });
    Tensor::cat(outs.collect(), 0)
}

fn portable_pooled(q: Tensor<2>, kv: Tensor<2>, spans: &Spans, heads: usize) -> Tensor<2> {
    let width = q.dims()[1];
    let outs = spans.iter().enumerate().map(|(i, rows)| {
        let half = |t: usize| {
            split_heads(kv.clone().slice([rows.clone(), t * width..(t + 1) * width]), heads)
        };
        let q = split_heads(q.clone().slice([i..i + 1, 0..width]), heads);
        let scores = q.matmul(half(0).swap_dims(1, 2)) * ((width / heads) as f64).powf(-0.5);
        softmax(scores, 2).matmul(half(1)).reshape([1, width])
    });
    Tensor::cat(outs.collect(), 0)
}

/// `[n, width]` to `[heads, n, head_width]`.
fn split_heads(x: Tensor<2>, heads: usize) -> Tensor<3> {
    let [n, width] = x.dims();
    x.reshape([n, heads, width / heads]).swap_dims(0, 1)
}
