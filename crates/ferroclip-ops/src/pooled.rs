//! Attention of one query for each sequence, without keys and values: with q the query of one head and x the rows,
//!
//! ```text
//! scores  q (x W_k^T + b_k)^T = (q W_k) x^T + a number that is the same for all rows
//! result  p (x W_v^T + b_v)   = (p x) W_v^T + b_v, as the weights p add up to 1
//! ```

use std::sync::Arc;

use burn::prelude::*;
use ferroclip_kernels::{
    AttentionShape, Finish, Isa, Matrix, PackedRows, PackedWeights, Precision, attend_row, multiply,
};
use rayon::prelude::*;

use crate::Spans;
use crate::block::rows_of;
use crate::cpu::Cpu;
use crate::engine::{Task, parts, run, span_tasks};
use crate::threads::zeros;

/// The weights of keys and values, head by head.
#[derive(Debug)]
pub(crate) struct HeadWeights {
    shape: AttentionShape,
    /// W_k of each head, transposed: `width` outputs from `head_width` inputs.
    keys: Vec<PackedWeights>,
    /// W_v of each head: `head_width` outputs from `width` inputs.
    values: Vec<PackedWeights>,
    value_bias: Option<Vec<f32>>,
}

impl HeadWeights {
    /// From both matrices, `[width, width]`.
    pub(crate) fn new(
        precision: Precision,
        [keys, values]: [&[f32]; 2],
        value_bias: Option<&[f32]>,
        heads: usize,
    ) -> HeadWeights {
        let (isa, width) = (Isa::active(), keys.len().isqrt());
        let d = width / heads;
        fn head(weight: &[f32], first: usize, width: usize) -> Matrix<'_> {
            Matrix::rows(&weight[first * width..], width)
        }
        HeadWeights {
            shape: AttentionShape { heads, head_width: d, causal: false },
            keys: (0..heads)
                .map(|h| {
                    PackedWeights::pack(
                        isa,
                        precision,
                        [width, d],
                        head(keys, h * d, width).transposed(),
                    )
                })
                .collect(),
            values: (0..heads)
                .map(|h| {
                    PackedWeights::pack(isa, precision, [d, width], head(values, h * d, width))
                })
                .collect(),
            value_bias: value_bias.map(<[f32]>::to_vec),
        }
    }

    fn width(&self) -> usize {
        self.shape.heads * self.shape.head_width
    }

    /// What each query of `q` (`[sequences, width]`) finds in its sequence: for each head `[sequences, head_width]`. With
    /// `split`, heads are shared by all cores.
    pub(crate) fn mix(&self, q: &[f32], sequences: &[&[f32]], split: bool) -> Vec<Vec<f32>> {
        let head = |head: usize| self.head(head, q, sequences);
        match split {
            true => (0..self.shape.heads).into_par_iter().map(head).collect(),
            false => (0..self.shape.heads).map(head).collect(),
        }
    }

    /// Row `i` of what [`HeadWeights::mix`] gives, its heads side by side.
    pub(crate) fn write_row(&self, heads: &[Vec<f32>], i: usize, row: &mut [f32]) {
        let d = self.shape.head_width;
        for (to, head) in row.chunks_exact_mut(d).zip(heads) {
            to.copy_from_slice(&head[i * d..][..d]);
        }
    }

    fn head(&self, head: usize, q: &[f32], sequences: &[&[f32]]) -> Vec<f32> {
        let (keys, values) = (&self.keys[head], &self.values[head]);
        let (isa, precision) = (Isa::active(), keys.precision());
        let (n, width, d) = (sequences.len(), self.width(), self.shape.head_width);
        let mut rows = PackedRows::default();
        rows.fill(isa, precision, [n, d], |i, row| {
            row.copy_from_slice(&q[i * width + head * d..][..d]);
        });
        let mut searched = vec![0.0; n * width];
        multiply(keys, &rows, None, Finish::Store, &mut searched, width, false);
        let mut scores = Vec::new();
        rows.fill(isa, precision, [n, width], |i, row| {
            let searched = &searched[i * width..][..width];
            attend_row(isa, self.shape.scale(), searched, sequences[i], &mut scores, row);
        });
        let mut out = vec![0.0; n * d];
        let bias = self.value_bias.as_ref().map(|bias| &bias[head * d..][..d]);
        multiply(values, &rows, bias, Finish::Store, &mut out, d, false);
        out
    }
}

/// Attention of one query for each sequence, for inference on the CPU.
#[derive(Clone, Debug)]
pub struct PooledAttention(Arc<HeadWeights>);

impl PooledAttention {
    /// With the weights of keys and values, `[width, width]`, and the values' bias. A bias of keys changes nothing.
    ///
    /// # Panics
    /// When a tensor is not f32 in CPU memory, or on a tape.
    pub fn new(
        keys: Tensor<2>,
        values: Tensor<2>,
        value_bias: Tensor<1>,
        heads: usize,
        precision: Precision,
    ) -> PooledAttention {
        let (keys, values) = (Cpu::packed_operand(keys), Cpu::packed_operand(values));
        let bias = Cpu::packed_operand(value_bias);
        let weights = [keys.data(), values.data()];
        PooledAttention(Arc::new(HeadWeights::new(precision, weights, Some(bias.data()), heads)))
    }

    /// `queries` (`[spans, width]`) over the rows `x` of their spans: `[spans, width]`.
    pub fn forward(&self, queries: Tensor<2>, x: Tensor<2>, spans: &Spans) -> Tensor<2> {
        let width = self.0.width();
        let (queries, x) = (Cpu::packed_operand(queries), Cpu::packed_operand(x));
        let (queries, x) = (queries.data(), x.data());
        assert_eq!([spans.count() * width, spans.rows() * width], [queries.len(), x.len()]);
        let mut out = zeros(queries.len());
        // A core reads all weights once: as many sequences as there are for it.
        let threads = rayon::current_num_threads();
        let tasks = span_tasks(spans, threads, spans.rows().div_ceil(threads));
        let length = |task: &Task| task.range.len() * width;
        run(&tasks, parts(&tasks, &mut out, length), |_, task, out| {
            let q = &queries[task.range.start * width..][..out.len()];
            let first = spans.offsets()[task.range.start];
            let x = &x[first * width..][..rows_of(spans, task) * width];
            let rows = |i: usize| spans.range(i).start - first..spans.range(i).end - first;
            let sequence = |i: usize| &x[rows(i).start * width..rows(i).end * width];
            let sequences: Vec<&[f32]> = task.range.clone().map(sequence).collect();
            let heads = self.0.mix(q, &sequences, task.split);
            for (i, row) in out.chunks_exact_mut(width).enumerate() {
                self.0.write_row(&heads, i, row);
            }
        });
        Cpu::from_vec(out, &[spans.count(), width]).into_tensor()
    }
}
