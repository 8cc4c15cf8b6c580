//! OpenAI's modified ResNet: a stem of three convolutions, average pooling in place of strides, and
//! attention in place of the last pooling.
//!
//! ```text
//! stem        conv 3x3 /2, conv 3x3, conv 3x3, each with norm and rectifier; pool 2x2
//! bottleneck  conv 1x1, conv 3x3, [pool 2x2], conv 1x1, each with a norm; + shortcut; rectifier
//! shortcut    x, or [pool 2x2], conv 1x1, norm where the shape changes
//! pooling     rows: mean of the map, then its positions; + position table; the mean attends to all
//! ```
//!
//! Stages 2 to 4 pool in their first block. Activations are rows, see `ferroclip_ops::Maps`.

use std::collections::BTreeMap;

use burn::prelude::*;
use ferroclip_ops::{
    BatchNorm, Lead, Linear, Maps, Moments, PackedBottleneck, PackedConv, PackedStem,
    PooledAttention, Precision, Spans, add_rectified, attention_pooled, avg_pool2, conv3x3,
    mean_rows, patch_rows, select_rows, written_rows,
};

use super::source::Source;
use super::unfold::Unfold;
use crate::config::{BATCH_NORM_EPS, ModelConfig};

/// Mean and variance of the batch for each batch norm, by the norm's name in checkpoints, beside
/// the number of rows that they were taken over.
pub type BatchStatistics = BTreeMap<String, (Moments, usize)>;

/// Which statistics the batch norms use.
pub(super) enum NormMode<'a> {
    /// The running ones, as constants.
    Frozen,
    /// Those of the batch, which are noted.
    Batch(&'a mut BatchStatistics),
}

#[derive(Clone, Debug)]
pub(super) struct ResNet {
    image: [usize; 2],
    stem: Stem,
    blocks: Vec<Block>,
    pool: AttentionPool,
}

/// The first convolutions: with a gradient, or packed for inference.
#[derive(Clone, Debug)]
enum Stem {
    Parameters(Box<[NormedConv; 3]>),
    Packed(PackedStem),
}

/// A residual block, likewise.
#[derive(Clone, Debug)]
enum Block {
    Parameters(Box<Bottleneck>),
    Packed(PackedBottleneck),
}

impl ResNet {
    /// The tower of these parameters.
    pub(super) fn new(config: &ModelConfig, stages: [usize; 4], params: &dyn Source) -> ResNet {
        let vision = &config.vision_cfg;
        let stem = [1, 2, 3].map(|i| {
            NormedConv::new(params, &format!("visual.conv{i}"), &format!("visual.bn{i}"), true)
        });
        let mut blocks = Vec::new();
        for (stage, count) in (1..).zip(stages) {
            for block in 0..count {
                let name = format!("visual.layer{stage}.{block}");
                let block = Bottleneck::new(params, &name, stage > 1 && block == 0);
                blocks.push(match params.packing() {
                    // At once, so that one block at most lies in memory twice.
                    Some(_) => Block::Packed(block.packed()),
                    None => Block::Parameters(Box::new(block)),
                });
            }
        }
        let stem = match params.packing() {
            Some(_) => {
                let [first, second, third] = stem;
                let convs = [first.packed(), second.packed_3x3(), third.packed_3x3()];
                Stem::Packed(PackedStem { convs })
            }
            None => Stem::Parameters(Box::new(stem)),
        };
        let pool = AttentionPool::new(params, vision.heads());
        ResNet { image: vision.image_size.each(), stem, blocks, pool }
    }

    pub(super) fn forward(&self, pixels: &[f32], n: usize, mode: &mut NormMode<'_>) -> Tensor<2> {
        self.pool.c_proj.forward(self.pooled(pixels, n, mode))
    }

    /// What the last projection is applied to: `[n, 32 width]`.
    pub(super) fn pooled(&self, pixels: &[f32], n: usize, mode: &mut NormMode<'_>) -> Tensor<2> {
        let (x, maps) = self.maps(pixels, n, mode);
        self.pool.mix(x, maps)
    }

    /// The last feature maps.
    pub(super) fn maps(
        &self,
        pixels: &[f32],
        n: usize,
        mode: &mut NormMode<'_>,
    ) -> (Tensor<2>, Maps) {
        let [height, width] = self.image.map(|side| side / 2);
        let maps = Maps { n, height, width };
        let first = Unfold { image: self.image, kernel: [3, 3], stride: [2, 2], border: 1 };
        first.check(pixels, n);
        let cells = first.cells();
        let write =
            |row: usize, out: &mut [f32]| first.write(pixels, row / cells, row % cells, out);
        let pooled = match &self.stem {
            Stem::Packed(stem) => stem.forward(maps, write),
            Stem::Parameters(convs) => {
                let [a, b, c] = &**convs;
                let device = self.pool.positions.device();
                let x = a.linear(written_rows([n * cells, first.len()], &device, write), mode);
                let x = b.conv3x3(x, maps, mode);
                avg_pool2(c.conv3x3(x, maps, mode), maps)
            }
        };
        self.blocks.iter().fold(pooled, |(x, maps), block| match block {
            Block::Packed(block) => block.forward(x, maps),
            Block::Parameters(block) => block.forward(x, maps, mode),
        })
    }

    /// Positions of the last feature map and its channels.
    pub(super) fn patch_shape(&self) -> [usize; 2] {
        let [rows, width] = self.pool.positions.dims();
        [rows - 1, width]
    }
}

/// A convolution without bias and the norm behind it.
#[derive(Clone, Debug)]
struct NormedConv {
    weight: Tensor<2>,
    norm: BatchNorm,
    name: String,
}

impl NormedConv {
    fn new(params: &dyn Source, conv: &str, norm: &str, rectified: bool) -> NormedConv {
        let of_norm = |what: &str| params.tensor1(&format!("{norm}.{what}"));
        let batch_norm = BatchNorm {
            gain: of_norm("weight"),
            bias: of_norm("bias"),
            mean: of_norm("running_mean"),
            variance: of_norm("running_var"),
            eps: BATCH_NORM_EPS,
            rectified,
        };
        let weight = params.tensor2(&format!("{conv}.weight"));
        NormedConv { weight, norm: batch_norm, name: norm.to_owned() }
    }

    /// For inference: a convolution of one tap, or of rows that hold all taps. It stays f32, whatever the precision.
    fn packed(self) -> PackedConv {
        PackedConv::new(self.weight, &self.norm)
    }

    fn packed_3x3(self) -> PackedConv {
        PackedConv::new_3x3(self.weight, &self.norm)
    }

    /// A convolution of one tap, or of rows that hold all taps.
    fn linear(&self, x: Tensor<2>, mode: &mut NormMode<'_>) -> Tensor<2> {
        self.normed(Linear::new(self.weight.clone(), None).forward(x), mode)
    }

    fn conv3x3(&self, x: Tensor<2>, maps: Maps, mode: &mut NormMode<'_>) -> Tensor<2> {
        self.normed(conv3x3(x, &self.weight, maps), mode)
    }

    fn normed(&self, x: Tensor<2>, mode: &mut NormMode<'_>) -> Tensor<2> {
        match mode {
            NormMode::Frozen => self.norm.forward(x),
            NormMode::Batch(statistics) => {
                let rows = x.dims()[0];
                let (y, moments) = self.norm.forward_batch(x);
                statistics.insert(self.name.clone(), (moments, rows));
                y
            }
        }
    }
}

#[derive(Clone, Debug)]
struct Bottleneck {
    narrow: NormedConv,
    spatial: NormedConv,
    widen: NormedConv,
    shortcut: Option<NormedConv>,
    pools: bool,
}

impl Bottleneck {
    fn new(params: &dyn Source, name: &str, pools: bool) -> Bottleneck {
        let conv = |i: usize, rectified: bool| {
            let names = (format!("{name}.conv{i}"), format!("{name}.bn{i}"));
            NormedConv::new(params, &names.0, &names.1, rectified)
        };
        let shortcut = format!("{name}.downsample.0");
        let has_shortcut = params.contains(&format!("{shortcut}.weight"));
        let norm = format!("{name}.downsample.1");
        Bottleneck {
            narrow: conv(1, true),
            spatial: conv(2, true),
            widen: conv(3, false),
            shortcut: has_shortcut.then(|| NormedConv::new(params, &shortcut, &norm, false)),
            pools,
        }
    }

    fn packed(self) -> PackedBottleneck {
        PackedBottleneck {
            narrow: self.narrow.packed(),
            spatial: self.spatial.packed_3x3(),
            widen: self.widen.packed(),
            shortcut: self.shortcut.map(NormedConv::packed),
            pools: self.pools,
        }
    }

    fn forward(&self, x: Tensor<2>, maps: Maps, mode: &mut NormMode<'_>) -> (Tensor<2>, Maps) {
        let pool = |x: Tensor<2>| if self.pools { avg_pool2(x, maps) } else { (x, maps) };
        let y = self.narrow.linear(x.clone(), mode);
        let y = self.spatial.conv3x3(y, maps, mode);
        let (y, after) = pool(y);
        let y = self.widen.linear(y, mode);
        let shortcut = match &self.shortcut {
            Some(shortcut) => shortcut.linear(pool(x).0, mode),
            None => x,
        };
        (add_rectified(y, shortcut), after)
    }
}

/// The mean of a map attends to the map.
#[derive(Clone, Debug)]
struct AttentionPool {
    positions: Tensor<2>,
    q_proj: Linear,
    keys_values: KeysValues,
    c_proj: Linear,
    heads: usize,
}

/// The projections of keys and values; packed, neither is formed.
#[derive(Clone, Debug)]
enum KeysValues {
    Parameters(Box<[Linear; 2]>),
    Packed(PooledAttention),
}

impl AttentionPool {
    fn new(params: &dyn Source, heads: usize) -> AttentionPool {
        let weight = |name: &str| params.tensor2(&format!("visual.attnpool.{name}.weight"));
        let bias = |name: &str| params.tensor1(&format!("visual.attnpool.{name}.bias"));
        let linear = |name: &str| {
            let linear = Linear::new(weight(name), Some(bias(name)));
            match params.packing() {
                Some(_) => linear.packed(Precision::F32),
                None => linear,
            }
        };
        let keys_values = match params.packing() {
            Some(_) => {
                let (keys, values) = (weight("k_proj"), weight("v_proj"));
                let bias = bias("v_proj");
                KeysValues::Packed(PooledAttention::new(keys, values, bias, heads, Precision::F32))
            }
            None => KeysValues::Parameters(Box::new([linear("k_proj"), linear("v_proj")])),
        };
        AttentionPool {
            positions: params.tensor2("visual.attnpool.positional_embedding"),
            q_proj: linear("q_proj"),
            keys_values,
            c_proj: linear("c_proj"),
            heads,
        }
    }

    /// `[n * cells, width]` to `[n, width]`.
    fn mix(&self, x: Tensor<2>, maps: Maps) -> Tensor<2> {
        let (n, cells) = (maps.n, maps.cells());
        let means = mean_rows(x.clone(), &Spans::uniform(n, cells), 0);
        let x = patch_rows(x, Some(Lead::Each(&means)), &self.positions);
        let spans = Spans::uniform(n, cells + 1);
        let first: Vec<usize> = spans.iter().map(|rows| rows.start).collect();
        let q = self.q_proj.forward(select_rows(x.clone(), &first));
        match &self.keys_values {
            KeysValues::Packed(attention) => attention.forward(q, x, &spans),
            KeysValues::Parameters(layers) => {
                let [keys, values] = &**layers;
                let kv = Tensor::cat(vec![keys.forward(x.clone()), values.forward(x)], 1);
                attention_pooled(q, kv, &spans, self.heads)
            }
        }
    }
}
