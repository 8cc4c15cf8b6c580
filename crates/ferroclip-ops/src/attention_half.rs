//! The attention half in training: y = x + W2 attention(W1 norm(x) + b1) + b2.
//!
//! Kept for the backward pass: x, and queries, keys, values and the mixed rows unless they are to be
//! computed again. [`Half`] has the gradients of the parameters, `ferroclip_kernels::attention` that of
//! attention.

use burn::backend::Flex;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops};
use burn::prelude::*;
use ferroclip_kernels::{
    AttentionScratch, AttentionShape, Finish, Isa, Matrix, Prefix, attend_backward, multiply,
};

use crate::block::{mix, rows_of};
use crate::cpu::Cpu;
use crate::engine::{Memory, TRAINING_TASK_ROWS, Task, parts, run, span_tasks};
use crate::half::{Half, INPUTS};
use crate::threads::zeros;
use crate::{AttentionBlock, Spans};

/// What the backward pass needs.
#[derive(Clone, Debug)]
struct State {
    half: Half,
    shape: AttentionShape,
    spans: Spans,
    /// `[rows, 3 width]` and `[rows, width]`.
    kept: Option<[Cpu; 2]>,
}

/// The half, or `None` where its inputs are not for the fast path.
pub(crate) fn forward(block: &AttentionBlock, x: &Tensor<2>, spans: &Spans) -> Option<Tensor<2>> {
    let (operands, half) = Half::new(x, &block.norm, &block.in_proj, &block.out_proj)?;
    let ([n, width], shape) = (x.dims(), block.shape());
    assert_eq!(n, spans.rows(), "rows of x and of spans");
    let keep = operands.is_tracked() && !block.recompute;
    let (in_proj, out_proj) = (half.first.packed(), half.second.packed());
    let mut y = zeros(n * width);
    let kept_rows = if keep { n } else { 0 };
    let (mut qkv, mut mixed) = (zeros(kept_rows * 3 * width), zeros(kept_rows * width));
    let tasks = span_tasks(spans, rayon::current_num_threads(), TRAINING_TASK_ROWS);
    let length = |task: &Task| rows_of(spans, task) * width;
    let kept = |times: usize| move |task: &Task| if keep { times * length(task) } else { 0 };
    let ys = parts(&tasks, &mut y, length).into_iter();
    let kepts =
        parts(&tasks, &mut qkv, kept(3)).into_iter().zip(parts(&tasks, &mut mixed, kept(1)));
    run(&tasks, ys.zip(kepts), |memory, task, (y, (kept_qkv, kept_mixed))| {
        let x = &half.x.data()[spans.offsets()[task.range.start] * width..][..y.len()];
        let Memory { rows, wide, mixed, attention, .. } = memory;
        let (qkv, mixed) = match keep {
            true => (kept_qkv, kept_mixed),
            false => {
                wide.resize(3 * x.len(), 0.0);
                mixed.resize(x.len(), 0.0);
                (&mut wide[..], &mut mixed[..])
            }
        };
        half.norm.fill(rows, &in_proj, x, task.split);
        in_proj.multiply(rows, Finish::Store, qkv, task.split);
        mix(shape, spans, task, qkv, mixed, attention);
        let held = [x.len() / width, width];
        let matrix = Matrix::rows(mixed, width);
        rows.fill_matrix(Isa::active(), half.second.precision, held, matrix);
        y.copy_from_slice(x);
        out_proj.multiply(rows, Finish::Add, y, task.split);
    });
    let kept =
        keep.then(|| [Cpu::from_vec(qkv, &[n, 3 * width]), Cpu::from_vec(mixed, &[n, width])]);
    let state = State { half, shape, spans: spans.clone(), kept };
    Some(operands.finish(Cpu::from_vec(y, &[n, width]), AttentionBackward, state))
}

#[derive(Debug)]
struct AttentionBackward;

impl Backward<Flex, INPUTS> for AttentionBackward {
    type State = State;

    fn backward(self, ops: Ops<State, INPUTS>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = Cpu::gradient(grads.consume::<Flex>(&ops.node));
        let nodes = ops.parents.map(|node| node.map(|node| node.id));
        let State { half, shape, spans, kept } = ops.state;
        let (width, isa) = (half.first.inputs, Isa::active());
        let n = spans.rows();
        let [qkv, mixed] = kept.unwrap_or_else(|| again(&half, shape, &spans));
        let back = [half.first.packed_transposed(), half.second.packed_transposed()];
        let (mut d_qkv, mut d_norm) = (zeros(n * 3 * width), zeros(n * width));
        let tasks = span_tasks(&spans, rayon::current_num_threads(), TRAINING_TASK_ROWS);
        let length = |task: &Task| rows_of(&spans, task) * width;
        let d_qkvs = parts(&tasks, &mut d_qkv, |task| 3 * length(task)).into_iter();
        let d_norms = parts(&tasks, &mut d_norm, length);
        run(&tasks, d_qkvs.zip(d_norms), |memory, task, (d_qkv, d_norm)| {
            let Memory { rows, mixed: d_mixed, attention, .. } = memory;
            let (first, held) = (spans.offsets()[task.range.start], rows_of(&spans, task));
            let dy = Matrix::rows(&dy.data()[first * width..], width);
            rows.fill_matrix(isa, half.second.precision, [held, width], dy);
            d_mixed.resize(held * width, 0.0);
            multiply(&back[1], rows, None, Finish::Store, d_mixed, width, task.split);
            let qkv = &qkv.data()[first * 3 * width..][..held * 3 * width];
            unmix(shape, &spans, task, [qkv, d_mixed], d_qkv, attention);
            let d_qkv = Matrix::rows(d_qkv, 3 * width);
            rows.fill_matrix(isa, half.first.precision, [held, 3 * width], d_qkv);
            multiply(&back[0], rows, None, Finish::Store, d_norm, width, task.split);
        });
        drop((qkv, back));
        half.register(grads, nodes, mixed, &d_qkv, d_norm, dy.data());
    }
}

/// Queries, keys and values, and the mixed rows, as the forward pass had them.
fn again(half: &Half, shape: AttentionShape, spans: &Spans) -> [Cpu; 2] {
    let (n, width, in_proj) = (spans.rows(), half.first.inputs, half.first.packed());
    let (mut qkv, mut mixed) = (zeros(n * 3 * width), zeros(n * width));
    let tasks = span_tasks(spans, rayon::current_num_threads(), TRAINING_TASK_ROWS);
    let length = |task: &Task| rows_of(spans, task) * width;
    let qkvs = parts(&tasks, &mut qkv, |task| 3 * length(task)).into_iter();
    let mixeds = parts(&tasks, &mut mixed, length);
    run(&tasks, qkvs.zip(mixeds), |Memory { rows, attention, .. }, task, (qkv, mixed)| {
        let x = &half.x.data()[spans.offsets()[task.range.start] * width..][..mixed.len()];
        half.norm.fill(rows, &in_proj, x, task.split);
        in_proj.multiply(rows, Finish::Store, qkv, task.split);
        mix(shape, spans, task, qkv, mixed, attention);
    });
    [Cpu::from_vec(qkv, &[n, 3 * width]), Cpu::from_vec(mixed, &[n, width])]
}

/// The gradient of attention for the sequences of a task.
fn unmix(
    shape: AttentionShape,
    spans: &Spans,
    task: &Task,
    [qkv, d_mixed]: [&[f32]; 2],
    d_qkv: &mut [f32],
    scratch: &mut AttentionScratch,
) {
    let (width, isa) = (shape.heads * shape.head_width, Isa::active());
    let first = spans.offsets()[task.range.start];
    for span in task.range.clone().map(|i| spans.range(i)) {
        let (start, end) = ((span.start - first) * width, (span.end - first) * width);
        let (qkv, d_mixed) = (&qkv[3 * start..3 * end], &d_mixed[start..end]);
        let d_qkv = &mut d_qkv[3 * start..3 * end];
        for head in 0..shape.heads {
            let none = Prefix::default();
            let d_none = &mut Default::default();
            attend_backward(isa, shape, head, qkv, none, d_mixed, d_qkv, d_none, scratch);
        }
    }
}
