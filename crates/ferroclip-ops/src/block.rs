//! The two halves of a transformer block, each with its residual connection:
//!
//! ```text
//! x + out_proj(attention(in_proj(norm(x))))
//! x + c_proj(act(c_fc(norm(x))))
//! ```
//!
//! On the CPU a core walks some sequences (or rows) through a whole half, so that what lies between its
//! products stays in the core's caches: here with packed weights, in `half`, `attention_half` and
//! `mlp_half` with weights that have a gradient. Elsewhere the halves are made of the leaf
//! operations. In the pooled form only one row of each sequence is computed, and keys and values are not
//! formed: see `pooled`.

use std::sync::Arc;

use burn::prelude::*;
use ferroclip_kernels::{
    Activation, AttentionScratch, AttentionShape, Finish, Isa, Matrix, PackedWeights, Precision,
    Prefix, attend, multiply, task_rows,
};
use rayon::prelude::*;

use crate::cpu::Cpu;
use crate::engine::{Memory, Task, parts, row_tasks, run, span_tasks};
use crate::pooled::HeadWeights;
use crate::{
    LayerNorm, Linear, Spans, activation, attention, attention_half, attention_pooled, mlp_half,
    select_rows,
};

/// The half that mixes the rows of a sequence.
#[derive(Clone, Debug)]
pub struct AttentionBlock {
    /// What the rows pass first.
    pub norm: LayerNorm,
    /// `[3 width, width]`: queries, keys, values.
    pub in_proj: Linear,
    /// `[width, width]`.
    pub out_proj: Linear,
    /// Number of heads.
    pub heads: usize,
    /// Whether a row sees only itself and those before it.
    pub causal: bool,
    pub(crate) recompute: bool,
    pooled: Option<Arc<PooledWeights>>,
}

/// The weights for the pooled form.
#[derive(Debug)]
struct PooledWeights {
    query: PackedWeights,
    heads: HeadWeights,
}

impl AttentionBlock {
    /// The half of these parameters.
    pub fn new(
        norm: LayerNorm,
        in_proj: Linear,
        out_proj: Linear,
        heads: usize,
        causal: bool,
    ) -> Self {
        AttentionBlock { norm, in_proj, out_proj, heads, causal, recompute: false, pooled: None }
    }

    /// With `recompute`, [`AttentionBlock::forward`] keeps nothing but its input for the backward pass on
    /// the CPU, which then computes the rest again.
    pub fn recomputed(self, recompute: bool) -> Self {
        AttentionBlock { recompute, ..self }
    }

    /// With packed weights, for inference on the CPU; `pooled` also packs what
    /// [`AttentionBlock::forward_pooled`] reads.
    pub fn packed(self, precision: Precision, pooled: bool) -> Self {
        let pooled = if pooled { self.pooled_weights(precision).map(Arc::new) } else { None };
        AttentionBlock {
            in_proj: self.in_proj.packed(precision),
            out_proj: self.out_proj.packed(precision),
            pooled,
            ..self
        }
    }

    fn pooled_weights(&self, precision: Precision) -> Option<PooledWeights> {
        let weight = self.in_proj.parameter()?;
        let bias = self.in_proj.parameters().map(|(_, bias, _)| Cpu::packed_operand(bias.clone()));
        let (weight, width) = (weight.data(), self.width());
        let third = |i: usize| &weight[i * width * width..][..width * width];
        let value_bias = bias.as_ref().map(|bias| &bias.data()[2 * width..]);
        let query = Matrix::rows(third(0), width);
        Some(PooledWeights {
            query: PackedWeights::pack(Isa::active(), precision, [width, width], query),
            heads: HeadWeights::new(precision, [third(1), third(2)], value_bias, self.heads),
        })
    }

    fn width(&self) -> usize {
        self.norm.width()
    }

    pub(crate) fn shape(&self) -> AttentionShape {
        let head_width = self.width() / self.heads;
        AttentionShape { heads: self.heads, head_width, causal: self.causal }
    }

    /// All rows: `[rows, width]` to the same.
    pub fn forward(&self, x: Tensor<2>, spans: &Spans) -> Tensor<2> {
        let (Some(in_proj), Some(out_proj)) = (self.in_proj.as_packed(), self.out_proj.as_packed())
        else {
            if let Some(y) = attention_half::forward(self, &x, spans) {
                return y;
            }
            let qkv = self.in_proj.forward(self.norm.forward(x.clone()));
            let mixed = attention(qkv, spans, self.heads, self.causal);
            return x + self.out_proj.forward(mixed);
        };
        let mut x = Cpu::packed_operand(x);
        assert_eq!([spans.rows() * self.width()], [x.data().len()], "rows of x and of spans");
        let norm = self.norm.values();
        let tasks = span_tasks(spans, rayon::current_num_threads(), in_proj.task_rows());
        let length = |task: &Task| rows_of(spans, task) * self.width();
        run(&tasks, parts(&tasks, x.data_mut(), length), |memory, task, x| {
            let Memory { rows, wide: qkv, mixed, attention, .. } = memory;
            qkv.resize(3 * x.len(), 0.0);
            mixed.resize(x.len(), 0.0);
            norm.fill(rows, in_proj, x, task.split);
            in_proj.multiply(rows, Finish::Store, qkv, task.split);
            mix(self.shape(), spans, task, qkv, mixed, attention);
            out_proj.fill(rows, mixed, task.split);
            out_proj.multiply(rows, Finish::Add, x, task.split);
        });
        x.into_tensor()
    }

    /// The row `pooled[i]` of each sequence `i` alone: `[spans, width]`. Where `causal`, it must be the
    /// last of its sequence.
    pub fn forward_pooled(&self, x: Tensor<2>, spans: &Spans, pooled: &[usize]) -> Tensor<2> {
        let width = self.width();
        let (Some(weights), Some(out_proj)) = (&self.pooled, self.out_proj.as_packed()) else {
            let normed = self.norm.forward(x.clone());
            let queries = select_rows(normed.clone(), pooled);
            let q = self.in_proj.outputs(0..width).forward(queries);
            let kv = self.in_proj.outputs(width..3 * width).forward(normed);
            let mixed = attention_pooled(q, kv, spans, self.heads);
            return select_rows(x, pooled) + self.out_proj.forward(mixed);
        };
        let x = Cpu::packed_operand(x);
        let x = x.data();
        assert_eq!([spans.count(), spans.rows() * width], [pooled.len(), x.len()]);
        let norm = self.norm.values();
        let bias = self.in_proj.bias_values();
        let isa = Isa::active();
        let mut out = vec![0.0; pooled.len() * width];
        let task_rows = task_rows(&weights.query);
        let tasks = span_tasks(spans, rayon::current_num_threads(), task_rows);
        let length = |task: &Task| task.range.len() * width;
        run(&tasks, parts(&tasks, &mut out, length), |memory, task, out| {
            let first = spans.offsets()[task.range.start];
            let x = &x[first * width..][..rows_of(spans, task) * width];
            let Memory { rows, mixed: normed, wide: q, .. } = memory;
            normed.resize(x.len(), 0.0);
            norm.apply(x, normed);
            let places: Vec<usize> =
                task.range.clone().map(|i| (pooled[i] - first) * width).collect();
            for (out, &place) in out.chunks_exact_mut(width).zip(&places) {
                out.copy_from_slice(&x[place..][..width]);
            }
            let n = places.len();
            rows.fill(isa, weights.query.precision(), [n, width], |i, row| {
                row.copy_from_slice(&normed[places[i]..][..width]);
            });
            q.resize(n * width, 0.0);
            let query_bias = bias.map(|bias| &bias[..width]);
            multiply(&weights.query, rows, query_bias, Finish::Store, q, width, task.split);
            let sequences: Vec<&[f32]> = task
                .range
                .clone()
                .map(|i| {
                    &normed[(spans.range(i).start - first) * width..]
                        [..spans.range(i).len() * width]
                })
                .collect();
            let heads = weights.heads.mix(q, &sequences, task.split);
            rows.fill(isa, weights.query.precision(), [n, width], |i, row| {
                weights.heads.write_row(&heads, i, row);
            });
            out_proj.multiply(rows, Finish::Add, out, task.split);
        });
        Cpu::from_vec(out, &[pooled.len(), width]).into_tensor()
    }
}

/// The half that treats each row alone.
#[derive(Clone, Debug)]
pub struct Mlp {
    /// What the rows pass first.
    pub norm: LayerNorm,
    /// `[hidden, width]`.
    pub c_fc: Linear,
    /// Between the two.
    pub activation: Activation,
    /// `[width, hidden]`.
    pub c_proj: Linear,
    /// Keep nothing but the input for the backward pass on the CPU, which then computes the rest again.
    pub recompute: bool,
}

impl Mlp {
    /// `[rows, width]` to the same.
    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        let (Some(c_fc), Some(c_proj)) = (self.c_fc.as_packed(), self.c_proj.as_packed()) else {
            if let Some(y) = mlp_half::forward(self, &x) {
                return y;
            }
            let hidden = self.c_fc.forward(self.norm.forward(x.clone()));
            return x + self.c_proj.forward(activation(hidden, self.activation));
        };
        let [n, width] = x.dims();
        let mut x = Cpu::packed_operand(x);
        let norm = self.norm.values();
        let tasks = row_tasks(n, rayon::current_num_threads(), c_fc.task_rows());
        let length = |task: &Task| task.range.len() * width;
        run(&tasks, parts(&tasks, x.data_mut(), length), |memory, task, x| {
            let Memory { rows, next, wide, .. } = memory;
            norm.fill(rows, c_fc, x, task.split);
            let finish = Finish::Activate(self.activation);
            c_fc.multiply_to_rows(rows, finish, wide, next, task.split);
            c_proj.multiply(next, Finish::Add, x, task.split);
        });
        x.into_tensor()
    }
}

/// Attention of the sequences of a task, from their `qkv` to `mixed`.
pub(crate) fn mix(
    shape: AttentionShape,
    spans: &Spans,
    task: &Task,
    qkv: &[f32],
    mixed: &mut [f32],
    scratch: &mut AttentionScratch,
) {
    let (width, isa) = (shape.heads * shape.head_width, Isa::active());
    let first = spans.offsets()[task.range.start];
    for span in task.range.clone().map(|i| spans.range(i)) {
        let (start, end) = (span.start - first, span.end - first);
        let qkv = &qkv[start * 3 * width..end * 3 * width];
        let mixed = &mut mixed[start * width..end * width];
        if qkv.is_empty() {
            continue;
        }
        if !task.split {
            for head in 0..shape.heads {
                let out = &mut mixed[head * shape.head_width..];
                attend(isa, shape, head, qkv, Prefix::default(), out, width, scratch);
            }
            continue;
        }
        let d = shape.head_width;
        let heads: Vec<Vec<f32>> = (0..shape.heads)
            .into_par_iter()
            .map_init(
                || AttentionScratch::new(isa),
                |scratch, head| {
                    let mut out = vec![0.0; (end - start) * d];
                    attend(isa, shape, head, qkv, Prefix::default(), &mut out, d, scratch);
                    out
                },
            )
            .collect();
        for (i, row) in mixed.chunks_exact_mut(width).enumerate() {
            for (to, head) in row.chunks_exact_mut(d).zip(&heads) {
                to.copy_from_slice(&head[i * d..][..d]);
            }
        }
    }
}

/// Rows of the sequences of a task.
pub(crate) fn rows_of(spans: &Spans, task: &Task) -> usize {
    spans.offsets()[task.range.end] - spans.offsets()[task.range.start]
}
