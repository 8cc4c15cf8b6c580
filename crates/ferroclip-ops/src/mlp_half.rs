//! The MLP half in training: y = x + W2 act(W1 norm(x) + b1) + b2.
//!
//! Kept for the backward pass: x, and the hidden rows before the activation unless they are to be
//! computed again. [`Half`] has the gradients of the parameters; here stand
//!
//! ```text
//! d first = (dy W2) act'(hidden),  d norm = d first W1
//! ```

use burn::backend::Flex;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops};
use burn::prelude::*;
use ferroclip_kernels::{
    Activation, Finish, Isa, Matrix, activation, activation_and_backward, multiply,
};

use crate::Mlp;
use crate::cpu::Cpu;
use crate::engine::{Memory, TRAINING_TASK_ROWS, Task, parts, row_tasks, run};
use crate::half::{Half, INPUTS};
use crate::threads::zeros;

/// The half, or `None` where its inputs are not for the fast path.
pub(crate) fn forward(mlp: &Mlp, x: &Tensor<2>) -> Option<Tensor<2>> {
    let (operands, half) = Half::new(x, &mlp.norm, &mlp.c_fc, &mlp.c_proj)?;
    let ([n, width], inner, kind) = (x.dims(), half.first.outputs, mlp.activation);
    let keep = operands.is_tracked() && !mlp.recompute;
    let (c_fc, c_proj) = (half.first.packed(), half.second.packed());
    let mut y = zeros(n * width);
    let mut hidden = zeros(if keep { n * inner } else { 0 });
    let tasks = row_tasks(n, rayon::current_num_threads(), TRAINING_TASK_ROWS);
    let ys = parts(&tasks, &mut y, |task| task.range.len() * width);
    let hiddens =
        parts(&tasks, &mut hidden, |task| if keep { task.range.len() * inner } else { 0 });
    run(&tasks, ys.into_iter().zip(hiddens), |Memory { rows, wide, .. }, task, (y, kept)| {
        let x = rows_of(&half.x, task, width);
        let hidden = match keep {
            true => kept,
            false => sized(wide, task.range.len() * inner),
        };
        half.norm.fill(rows, &c_fc, x, task.split);
        c_fc.multiply(rows, Finish::Store, hidden, task.split);
        rows.fill(Isa::active(), half.second.precision, [task.range.len(), inner], |i, row| {
            activation(Isa::active(), kind, &hidden[i * inner..][..inner], row);
        });
        y.copy_from_slice(x);
        c_proj.multiply(rows, Finish::Add, y, task.split);
    });
    let hidden = keep.then(|| Cpu::from_vec(hidden, &[n, inner]));
    Some(operands.finish(Cpu::from_vec(y, &[n, width]), MlpBackward, (half, hidden, kind)))
}

#[derive(Debug)]
struct MlpBackward;

impl Backward<Flex, INPUTS> for MlpBackward {
    type State = (Half, Option<Cpu>, Activation);

    fn backward(self, ops: Ops<Self::State, INPUTS>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = Cpu::gradient(grads.consume::<Flex>(&ops.node));
        let nodes = ops.parents.map(|node| node.map(|node| node.id));
        let (half, hidden, kind) = ops.state;
        let (width, inner, isa) = (half.first.inputs, half.first.outputs, Isa::active());
        let n = dy.data().len() / width;
        let back = [half.first.packed_transposed(), half.second.packed_transposed()];
        let c_fc = hidden.is_none().then(|| half.first.packed());
        // The hidden rows, which become activated in place.
        let mut wide = hidden.unwrap_or_else(|| Cpu::from_vec(zeros(n * inner), &[n, inner]));
        let (mut d_hidden, mut d_norm) = (zeros(n * inner), zeros(n * width));
        let tasks = row_tasks(n, rayon::current_num_threads(), TRAINING_TASK_ROWS);
        let inners = |out| parts(&tasks, out, |task| task.range.len() * inner);
        let wides = inners(wide.data_mut()).into_iter().zip(inners(&mut d_hidden));
        let d_norms = parts(&tasks, &mut d_norm, |task| task.range.len() * width);
        run(&tasks, wides.zip(d_norms), |memory, task, ((wide, d_hidden), d_norm)| {
            let Memory { rows, .. } = memory;
            let held = task.range.len();
            if let Some(c_fc) = &c_fc {
                half.norm.fill(rows, c_fc, rows_of(&half.x, task, width), task.split);
                c_fc.multiply(rows, Finish::Store, wide, task.split);
            }
            let dy = Matrix::rows(rows_of(&dy, task, width), width);
            rows.fill_matrix(isa, half.second.precision, [held, width], dy);
            multiply(&back[1], rows, None, Finish::Store, d_hidden, inner, task.split);
            activation_and_backward(isa, kind, wide, d_hidden);
            let d_hidden = Matrix::rows(d_hidden, inner);
            rows.fill_matrix(isa, half.first.precision, [held, inner], d_hidden);
            multiply(&back[0], rows, None, Finish::Store, d_norm, width, task.split);
        });
        drop((back, c_fc));
        half.register(grads, nodes, wide, &d_hidden, d_norm, dy.data());
    }
}

/// Rows of a task.
fn rows_of<'a>(x: &'a Cpu, task: &Task, width: usize) -> &'a [f32] {
    &x.data()[task.range.start * width..task.range.end * width]
}

fn sized(memory: &mut Vec<f32>, n: usize) -> &mut [f32] {
    memory.resize(n, 0.0);
    memory
}
