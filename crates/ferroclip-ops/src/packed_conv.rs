//! A convolutional tower for inference on the CPU.
//!
//! The norm behind a convolution only scales and moves its outputs, so that both are one product:
//!
//! ```text
//! s   gain / sqrt(variance + eps)
//! W'  s W
//! b'  bias - s mean
//! ```
//!
//! A core walks some images through a whole block: what lies between its convolutions stays in the core's caches, and
//! the rectifier and the sum with the shortcut are the ends of the products. One image alone is for all cores, which
//! share each convolution. What the parts compute stands in `maps` and `batch_norm`, which the portable path is made of.

use std::sync::Arc;

use burn::prelude::*;
use ferroclip_kernels::{
    Finish, Isa, Maps, Matrix, PackedRows, PackedWeights, Precision, conv3x3_rows, multiply,
};
use rayon::prelude::*;

use crate::cpu::Cpu;
use crate::engine::{Memory, Task, parts, run, span_tasks};
use crate::maps::{pool_rows, swap_taps};
use crate::threads::zeros;
use crate::{BatchNorm, Spans};

/// Rows that a task has at least where its images are small: the weights of a block are read once for all of them.
const TASK_ROWS: usize = 128;
/// Floats of packed rows that are multiplied together: they stay in the second-level cache.
const PACKED: usize = 1 << 17;
/// Rows that are multiplied together: fewer would read the weights more often than it pays.
const CHUNK: std::ops::RangeInclusive<usize> = 48..=384;
/// Rows of one image below which cores share columns, not rows.
const SHARED_ROWS: usize = 192;

/// A convolution of one tap, or of 3 x 3 with a border of zeros, and the norm behind it.
#[derive(Clone, Debug)]
pub struct PackedConv(Arc<Packed>);

#[derive(Debug)]
struct Packed {
    weights: PackedWeights,
    bias: Vec<f32>,
    is_3x3: bool,
}

/// Where the rows of a convolution come from.
#[derive(Clone, Copy)]
enum Input<'a> {
    /// Feature maps.
    Rows(&'a [f32]),
    /// Rows as they are multiplied, each written when it is wanted.
    Written(&'a (dyn Fn(usize, &mut [f32]) + Sync)),
}

impl PackedConv {
    /// A convolution whose rows are multiplied as they are: of one tap, or of rows that hold all taps. The `weight` is
    /// `[out, in]`, the norm's statistics are the running ones.
    ///
    /// # Panics
    /// When a tensor is not f32 in CPU memory, or on a tape.
    pub fn new(weight: Tensor<2>, norm: &BatchNorm) -> PackedConv {
        PackedConv::folded(weight, norm, false)
    }

    /// A 3 x 3 convolution; the `weight` is `[out, in * 9]`, as checkpoints store it.
    ///
    /// # Panics
    /// As [`PackedConv::new`].
    pub fn new_3x3(weight: Tensor<2>, norm: &BatchNorm) -> PackedConv {
        PackedConv::folded(weight, norm, true)
    }

    fn folded(weight: Tensor<2>, norm: &BatchNorm, is_3x3: bool) -> PackedConv {
        let shape @ [_, inputs] = weight.dims();
        let weight = Cpu::packed_operand(weight);
        let mut folded = match is_3x3 {
            true => swap_taps(weight.data(), [inputs / 9, 9]),
            false => weight.data().to_vec(),
        };
        let of_norm = [&norm.gain, &norm.bias, &norm.mean, &norm.variance];
        let [gain, bias, mean, variance] = of_norm.map(|x| Cpu::packed_operand(x.clone()));
        let (gain, bias, mean) = (gain.data(), bias.data(), mean.data());
        let scale =
            |o: usize| f64::from(gain[o]) / (f64::from(variance.data()[o]) + norm.eps).sqrt();
        for (o, row) in folded.chunks_exact_mut(inputs).enumerate() {
            let scale = scale(o);
            row.iter_mut().for_each(|w| *w = (f64::from(*w) * scale) as f32);
        }
        let moved = |o: usize| (f64::from(bias[o]) - scale(o) * f64::from(mean[o])) as f32;
        let bias = (0..bias.len()).map(moved).collect();
        let matrix = Matrix::rows(&folded, inputs);
        let weights = PackedWeights::pack(Isa::active(), Precision::F32, shape, matrix);
        PackedConv(Arc::new(Packed { weights, bias, is_3x3 }))
    }

    fn outputs(&self) -> usize {
        self.0.weights.outputs()
    }

    /// All rows of these maps, on one core, or with `split` on all.
    fn run(
        &self,
        maps: Maps,
        input: Input<'_>,
        finish: Finish,
        rows: &mut PackedRows,
        y: &mut [f32],
        split: bool,
    ) {
        let threads = rayon::current_num_threads();
        if !split || maps.rows() < SHARED_ROWS * threads {
            return self.part(maps, 0, input, finish, rows, y, split);
        }
        let share = maps.rows().div_ceil(threads);
        let shares = y.par_chunks_mut(share * self.outputs()).enumerate();
        shares.for_each_init(PackedRows::default, |rows, (i, y)| {
            self.part(maps, i * share, input, finish, rows, y, false);
        });
    }

    /// Rows `first..` of the maps, as many as `y` has.
    #[expect(
        clippy::too_many_arguments,
        reason = "what is computed, from what, with what, and where to"
    )]
    fn part(
        &self,
        maps: Maps,
        first: usize,
        input: Input<'_>,
        finish: Finish,
        rows: &mut PackedRows,
        y: &mut [f32],
        split: bool,
    ) {
        let Packed { weights, bias, is_3x3 } = &*self.0;
        let (isa, inputs, outputs) = (weights.isa(), weights.inputs(), weights.outputs());
        let chunk = (PACKED / inputs).clamp(*CHUNK.start(), *CHUNK.end());
        for (i, y) in y.chunks_mut(chunk * outputs).enumerate() {
            let (first, shape) = (first + i * chunk, [y.len() / outputs, inputs]);
            match input {
                Input::Rows(x) if *is_3x3 => {
                    conv3x3_rows(isa, Precision::F32, maps, first, shape, x, rows, split);
                }
                Input::Rows(x) => {
                    let x = &x[first * inputs..][..shape[0] * inputs];
                    rows.fill_dense(isa, Precision::F32, shape, x, split);
                }
                Input::Written(write) if split => {
                    rows.fill_split(isa, Precision::F32, shape, |i, row| write(first + i, row));
                }
                Input::Written(write) => {
                    rows.fill(isa, Precision::F32, shape, |i, row| write(first + i, row));
                }
            }
            multiply(weights, rows, Some(bias), finish, y, outputs, split);
        }
    }
}

/// The first convolutions of a tower and the pooling behind them.
#[derive(Clone, Debug)]
pub struct PackedStem {
    /// The first takes rows that hold all taps, the others are of 3 x 3. A rectifier follows each.
    pub convs: [PackedConv; 3],
}

impl PackedStem {
    /// Maps of half the sides, whose rows before the first convolution `write` gives.
    pub fn forward(
        &self,
        maps: Maps,
        write: impl Fn(usize, &mut [f32]) + Sync + Send,
    ) -> (Tensor<2>, Maps) {
        let half = maps.halved();
        let channels = self.convs[2].outputs();
        let mut out = zeros(half.rows() * channels);
        let tasks = tasks(maps, maps.cells());
        let length = |task: &Task| task.range.len() * half.cells() * channels;
        run(&tasks, parts(&tasks, &mut out, length), |memory, task, out| {
            let Memory { rows, wide, mixed, .. } = memory;
            let held = Maps { n: task.range.len(), ..maps };
            let first = task.range.start * maps.cells();
            let write = |row: usize, out: &mut [f32]| write(first + row, out);
            let [a, b, c] = &self.convs;
            wide.resize(held.rows() * a.outputs(), 0.0);
            a.run(held, Input::Written(&write), Finish::Rectify, rows, wide, task.split);
            mixed.resize(held.rows() * b.outputs(), 0.0);
            b.run(held, Input::Rows(wide), Finish::Rectify, rows, mixed, task.split);
            wide.resize(held.rows() * channels, 0.0);
            c.run(held, Input::Rows(mixed), Finish::Rectify, rows, wide, task.split);
            pool_rows(held, channels, wide, 0, out);
        });
        (Cpu::from_vec(out, &[half.rows(), channels]).into_tensor(), half)
    }
}

/// A residual block of three convolutions.
#[derive(Clone, Debug)]
pub struct PackedBottleneck {
    /// 1 x 1, to fewer channels.
    pub narrow: PackedConv,
    /// 3 x 3.
    pub spatial: PackedConv,
    /// 1 x 1, to more channels.
    pub widen: PackedConv,
    /// What the block's input passes where its shape changes.
    pub shortcut: Option<PackedConv>,
    /// Whether the maps are halved, behind the second convolution and before the shortcut.
    pub pools: bool,
}

impl PackedBottleneck {
    /// `[rows, in]` to `[rows, out]`, with the maps that are left.
    pub fn forward(&self, x: Tensor<2>, maps: Maps) -> (Tensor<2>, Maps) {
        let after = if self.pools { maps.halved() } else { maps };
        let ([_, inputs], outputs) = (x.dims(), self.widen.outputs());
        let mut x = Cpu::packed_operand(x);
        let tasks = tasks(maps, TASK_ROWS.max(maps.cells()));
        let length = |task: &Task| task.range.len() * after.cells() * outputs;
        if self.shortcut.is_none() {
            run(&tasks, parts(&tasks, x.data_mut(), length), |memory, task, x| {
                let held = Maps { n: task.range.len(), ..maps };
                self.hidden(held, x, memory, task.split);
                self.add_onto(held, memory, x, task.split);
            });
            return (x.into_tensor(), after);
        }
        let mut out = zeros(after.rows() * outputs);
        let x = x.data();
        run(&tasks, parts(&tasks, &mut out, length), |memory, task, out| {
            let held = Maps { n: task.range.len(), ..maps };
            let x = &x[task.range.start * maps.cells() * inputs..][..held.rows() * inputs];
            self.shortcut_of(held, x, memory, out, task.split);
            self.hidden(held, x, memory, task.split);
            self.add_onto(held, memory, out, task.split);
        });
        (Cpu::from_vec(out, &[after.rows(), outputs]).into_tensor(), after)
    }

    fn shortcut_of(
        &self,
        held: Maps,
        x: &[f32],
        memory: &mut Memory,
        out: &mut [f32],
        split: bool,
    ) {
        let Some(shortcut) = &self.shortcut else { return };
        let Memory { rows, wide, .. } = memory;
        let (x, maps) = match self.pools {
            true => (pooled(held, x, wide), held.halved()),
            false => (x, held),
        };
        shortcut.run(maps, Input::Rows(x), Finish::Store, rows, out, split);
    }

    /// What the last convolution takes, in `memory.wide` where the maps are halved, else in `memory.mixed`.
    fn hidden(&self, held: Maps, x: &[f32], memory: &mut Memory, split: bool) {
        let Memory { rows, wide, mixed, .. } = memory;
        wide.resize(held.rows() * self.narrow.outputs(), 0.0);
        self.narrow.run(held, Input::Rows(x), Finish::Rectify, rows, wide, split);
        mixed.resize(held.rows() * self.spatial.outputs(), 0.0);
        self.spatial.run(held, Input::Rows(wide), Finish::Rectify, rows, mixed, split);
        if self.pools {
            pooled(held, mixed, wide);
        }
    }

    /// The last convolution, added onto the shortcut.
    fn add_onto(&self, held: Maps, memory: &mut Memory, out: &mut [f32], split: bool) {
        let Memory { rows, wide, mixed, .. } = memory;
        let (x, maps) = if self.pools { (wide, held.halved()) } else { (mixed, held) };
        self.widen.run(maps, Input::Rows(x), Finish::AddRectified, rows, out, split);
    }
}

/// The mean of each 2 x 2 positions, in `out`.
fn pooled<'a>(maps: Maps, x: &[f32], out: &'a mut Vec<f32>) -> &'a [f32] {
    let channels = x.len() / maps.rows().max(1);
    out.resize(maps.halved().rows() * channels, 0.0);
    pool_rows(maps, channels, x, 0, out);
    out
}

/// Whole images, about `rows` rows, for each task.
fn tasks(maps: Maps, rows: usize) -> Vec<Task> {
    span_tasks(&Spans::uniform(maps.n, maps.cells()), rayon::current_num_threads(), rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Linear, PooledAttention, add_rectified, attention_pooled, avg_pool2, conv3x3};

    fn tensor<const D: usize>(shape: [usize; D], seed: usize) -> Tensor<D> {
        let n = shape.iter().product();
        let value = |i: usize| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.5 - 1.0;
        let data: Vec<f32> = (0..n).map(value).collect();
        Tensor::from_data(burn::tensor::TensorData::new(data, shape), &Device::flex())
    }

    fn norm(channels: usize, seed: usize, rectified: bool) -> BatchNorm {
        let vector = |seed: usize| tensor([channels], seed);
        BatchNorm {
            gain: vector(seed) + 1.5,
            bias: vector(seed + 1),
            mean: vector(seed + 2),
            variance: vector(seed + 3) + 2.0,
            eps: 1e-5,
            rectified,
        }
    }

    fn values(x: Tensor<2>) -> Vec<f32> {
        x.into_data().try_to_vec().expect("f32")
    }

    /// `packed` against the operations that it is made of, and bit for bit against itself in pools of other sizes and
    /// batches of one.
    fn check(
        [height, width]: [usize; 2],
        inputs: usize,
        layered: impl Fn(Tensor<2>, Maps) -> Tensor<2> + Sync,
        packed: impl Fn(Tensor<2>, Maps) -> Tensor<2> + Sync,
    ) {
        for n in [1, 2, 3, 7, 17] {
            let maps = Maps { n, height, width };
            let x = tensor([maps.rows(), inputs], 9);
            let in_pool = |threads: usize| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                pool.install(|| values(packed(x.clone(), maps)))
            };
            let found = in_pool(1);
            let expected = values(layered(x.clone(), maps));
            let far = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(
                found.len() == expected.len() && far < 2e-5,
                "{n} of {height} x {width}: {far}"
            );
            for threads in [2, 3, 8] {
                assert_eq!(found, in_pool(threads), "{n} maps, {threads} threads");
            }
            let rows = maps.cells();
            let last = x.clone().narrow(0, (n - 1) * rows, rows);
            let alone = values(packed(last, Maps { n: 1, ..maps }));
            assert_eq!(alone, found[found.len() - alone.len()..], "the last of {n} alone");
        }
    }

    #[test]
    fn bottlenecks_are_their_layers() {
        let (inputs, inner, outputs) = (24, 8, 40);
        for (pools, shortcut) in [(false, true), (true, true), (false, false)] {
            let outputs = if shortcut { outputs } else { inputs };
            let weights = [
                tensor([inner, inputs], 1) * 0.2,
                tensor([inner, inner * 9], 2) * 0.1,
                tensor([outputs, inner], 3) * 0.3,
                tensor([outputs, inputs], 4) * 0.2,
            ];
            let norms = [
                norm(inner, 5, true),
                norm(inner, 6, true),
                norm(outputs, 7, false),
                norm(outputs, 8, false),
            ];
            let conv = |i: usize| PackedConv::new(weights[i].clone(), &norms[i]);
            let block = PackedBottleneck {
                narrow: conv(0),
                spatial: PackedConv::new_3x3(weights[1].clone(), &norms[1]),
                widen: conv(2),
                shortcut: shortcut.then(|| conv(3)),
                pools,
            };
            let normed = |i: usize, x: Tensor<2>| {
                norms[i].forward(Linear::new(weights[i].clone(), None).forward(x))
            };
            let layered = |x: Tensor<2>, maps: Maps| {
                let pool = |x: Tensor<2>| if pools { avg_pool2(x, maps).0 } else { x };
                let y = norms[1].forward(conv3x3(normed(0, x.clone()), &weights[1], maps));
                let by = if shortcut { normed(3, pool(x)) } else { x };
                add_rectified(normed(2, pool(y)), by)
            };
            for sides in [[5, 7], [14, 14]] {
                check(sides, inputs, layered, |x, maps| block.forward(x, maps).0);
            }
        }
    }

    #[test]
    fn stems_are_their_layers() {
        let shapes = [[6, 27], [6, 54], [10, 54]];
        let weights: Vec<Tensor<2>> = (0..3).map(|i| tensor(shapes[i], i + 1) * 0.2).collect();
        let norms: Vec<BatchNorm> = (0..3).map(|i| norm(shapes[i][0], i + 4, true)).collect();
        let convs = [
            PackedConv::new(weights[0].clone(), &norms[0]),
            PackedConv::new_3x3(weights[1].clone(), &norms[1]),
            PackedConv::new_3x3(weights[2].clone(), &norms[2]),
        ];
        let stem = PackedStem { convs };
        let layered = |x: Tensor<2>, maps: Maps| {
            let x = norms[0].forward(Linear::new(weights[0].clone(), None).forward(x));
            let x = norms[1].forward(conv3x3(x, &weights[1], maps));
            avg_pool2(norms[2].forward(conv3x3(x, &weights[2], maps)), maps).0
        };
        let packed = |x: Tensor<2>, maps: Maps| {
            let x = values(x);
            stem.forward(maps, |row, out: &mut [f32]| out.copy_from_slice(&x[row * 27..][..27])).0
        };
        for sides in [[5, 6], [20, 22]] {
            check(sides, 27, layered, packed);
        }
    }

    #[test]
    fn attention_without_keys_and_values_is_that_with_them() {
        let (width, heads) = (24, 3);
        let [keys, values_of] = [1, 2].map(|seed| tensor([width, width], seed) * 0.3);
        let biases = [3, 4].map(|seed| tensor([width], seed));
        let attention = PooledAttention::new(
            keys.clone(),
            values_of.clone(),
            biases[1].clone(),
            heads,
            Precision::F32,
        );
        let spans = |maps: Maps| Spans::uniform(maps.n, maps.cells());
        let first = |x: &Tensor<2>, maps: Maps| {
            crate::select_rows(
                x.clone(),
                &(0..maps.n).map(|i| i * maps.cells()).collect::<Vec<_>>(),
            )
        };
        let layered = |x: Tensor<2>, maps: Maps| {
            let layer = |weight: &Tensor<2>, bias: &Tensor<1>| {
                Linear::new(weight.clone(), Some(bias.clone())).forward(x.clone())
            };
            let kv = Tensor::cat(vec![layer(&keys, &biases[0]), layer(&values_of, &biases[1])], 1);
            attention_pooled(first(&x, maps), kv, &spans(maps), heads)
        };
        check([5, 7], width, layered, |x, maps| {
            attention.forward(first(&x, maps), x, &spans(maps))
        });
    }
}
