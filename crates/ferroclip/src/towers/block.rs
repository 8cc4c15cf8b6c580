//! The transformer block and the stack of blocks, shared by both towers.

use burn::prelude::*;
use ferroclip_ops::{Activation, AttentionBlock, LayerNorm, Linear, Mlp, Spans, select_rows};

use super::source::Source;
use super::stream::Stream;

/// The layer norm of this name.
pub(super) fn norm(params: &dyn Source, name: &str, eps: f64) -> LayerNorm {
    let tensor = |kind: &str| params.tensor1(&format!("{name}.{kind}"));
    LayerNorm::new(tensor("weight"), tensor("bias"), eps)
}

/// The MLP `name.mlp` with its norm.
pub(super) fn mlp(params: &dyn Source, name: &str, norm: LayerNorm, activation: Activation) -> Mlp {
    let linear = |of: &str| {
        let tensor2 = params.tensor2(&format!("{name}.mlp.{of}.weight"));
        let bias = params.tensor1(&format!("{name}.mlp.{of}.bias"));
        let linear = Linear::new(tensor2, Some(bias)).rounded(params.rounding());
        // At once, so that one matrix at most lies in memory twice.
        match params.packing() {
            Some(precision) => linear.packed(precision),
            None => linear,
        }
    };
    let (c_fc, c_proj) = (linear("c_fc"), linear("c_proj"));
    Mlp { norm, c_fc, activation, c_proj, recompute: params.recomputes() }
}

/// What the blocks of a tower have in common.
#[derive(Clone, Copy, Debug)]
pub(super) struct BlockConfig {
    pub(super) heads: usize,
    pub(super) eps: f64,
    pub(super) activation: Activation,
    pub(super) causal: bool,
}

/// The blocks of a tower.
#[derive(Clone, Debug)]
pub(super) struct Transformer {
    stack: Stack,
    blocks: Blocks,
}

/// Which blocks a tower has.
#[derive(Clone, Debug)]
struct Stack {
    name: String,
    layers: usize,
    config: BlockConfig,
    /// Whether the last is packed for its pooled form.
    pooled: bool,
}

#[derive(Clone, Debug)]
enum Blocks {
    Kept(Vec<Block>),
    Streamed(Stream),
}

impl Stack {
    fn block(&self, params: &dyn Source, layer: usize) -> Block {
        let pooled = self.pooled && layer + 1 == self.layers;
        let name = format!("{}.resblocks.{layer}", self.name);
        Block::new(params, &name, self.config, pooled)
    }
}

impl Transformer {
    /// The blocks `name.resblocks.0` and so on. Where they are packed, `pooled` says that
    /// [`Transformer::forward_pooled`] will be called.
    pub(super) fn new(
        params: &dyn Source,
        name: &str,
        layers: usize,
        config: BlockConfig,
        pooled: bool,
    ) -> Self {
        let stack = Stack { name: name.to_owned(), layers, config, pooled };
        let blocks = match params.stream() {
            Some(stream) => Blocks::Streamed(stream),
            None => Blocks::Kept((0..layers).map(|layer| stack.block(params, layer)).collect()),
        };
        Transformer { stack, blocks }
    }

    /// All rows.
    pub(super) fn forward(&self, x: Tensor<2>, spans: &Spans) -> Tensor<2> {
        self.pass(x, |_, block, x| block.forward(x, spans))
    }

    /// The row `pooled[i]` of each span `i` alone: `[spans, width]`. In a causal tower it must be
    /// the last of its span.
    pub(super) fn forward_pooled(
        &self,
        x: Tensor<2>,
        spans: &Spans,
        pooled: &[usize],
    ) -> Tensor<2> {
        let layers = self.stack.layers;
        if layers == 0 {
            return select_rows(x, pooled);
        }
        self.pass(x, |layer, block, x| match layer + 1 == layers {
            true => block.forward_pooled(x, spans, pooled),
            false => block.forward(x, spans),
        })
    }

    /// Passes `x` through one block after the other. Of those that are streamed the next is read meanwhile.
    fn pass(
        &self,
        x: Tensor<2>,
        through: impl Fn(usize, &Block, Tensor<2>) -> Tensor<2> + Sync,
    ) -> Tensor<2> {
        let stream = match &self.blocks {
            Blocks::Kept(blocks) => {
                let blocks = blocks.iter().enumerate();
                return blocks.fold(x, |x, (layer, block)| through(layer, block, x));
            }
            Blocks::Streamed(stream) => stream,
        };
        let read = |layer: usize| {
            (layer < self.stack.layers)
                .then(|| stream.part(|source| self.stack.block(source, layer)))
        };
        let (mut x, mut next) = (x, read(0));
        for layer in 0.. {
            let Some(block) = next else { break };
            (x, next) = rayon::join(|| through(layer, &block, x), || read(layer + 1));
        }
        x
    }
}

#[derive(Clone, Debug)]
struct Block {
    attention: AttentionBlock,
    mlp: Mlp,
}

impl Block {
    fn new(params: &dyn Source, name: &str, config: BlockConfig, pooled: bool) -> Self {
        let linear = |weight: &str, bias: &str| {
            let weight = params.tensor2(&format!("{name}.{weight}"));
            let bias = params.tensor1(&format!("{name}.{bias}"));
            Linear::new(weight, Some(bias)).rounded(params.rounding())
        };
        // At once, so that one matrix at most lies in memory twice.
        let packed = |linear: Linear| match params.packing() {
            Some(precision) => linear.packed(precision),
            None => linear,
        };
        let in_proj = linear("attn.in_proj_weight", "attn.in_proj_bias");
        let out_proj = packed(linear("attn.out_proj.weight", "attn.out_proj.bias"));
        let ln_1 = norm(params, &format!("{name}.ln_1"), config.eps);
        let attention = AttentionBlock::new(ln_1, in_proj, out_proj, config.heads, config.causal);
        let recompute = params.recomputes();
        let attention = attention.recomputed(recompute);
        let attention = match params.packing() {
            Some(precision) => attention.packed(precision, pooled),
            None => attention,
        };
        let norm = norm(params, &format!("{name}.ln_2"), config.eps);
        let mlp = mlp(params, name, norm, config.activation);
        Block { attention, mlp }
    }

    fn forward(&self, x: Tensor<2>, spans: &Spans) -> Tensor<2> {
        self.mlp.forward(self.attention.forward(x, spans))
    }

    fn forward_pooled(&self, x: Tensor<2>, spans: &Spans, pooled: &[usize]) -> Tensor<2> {
        self.mlp.forward(self.attention.forward_pooled(x, spans, pooled))
    }
}
