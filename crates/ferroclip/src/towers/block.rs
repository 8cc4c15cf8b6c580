//! The transformer block and the stack of blocks, shared by both towers.

use burn::prelude::*;
use ferroclip_ops::{Activation, AttentionBlock, LayerNorm, Linear, Mlp, Spans, select_rows};

use super::source::Source;

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
    blocks: Vec<Block>,
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
        let block = |layer| {
            let pooled = pooled && layer + 1 == layers;
            Block::new(params, &format!("{name}.resblocks.{layer}"), config, pooled)
        };
        Transformer { blocks: (0..layers).map(block).collect() }
    }

    /// All rows.
    pub(super) fn forward(&self, x: Tensor<2>, spans: &Spans) -> Tensor<2> {
        self.blocks.iter().fold(x, |x, block| block.forward(x, spans))
    }

    /// The row `pooled[i]` of each span `i` alone: `[spans, width]`. In a causal tower it must be
    /// the last of its span.
    pub(super) fn forward_pooled(
        &self,
        x: Tensor<2>,
        spans: &Spans,
        pooled: &[usize],
    ) -> Tensor<2> {
        let Some((last, before)) = self.blocks.split_last() else {
            return select_rows(x, pooled);
        };
        let x = before.iter().fold(x, |x, block| block.forward(x, spans));
        last.forward_pooled(x, spans, pooled)
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
