//! The transformer block and the stack of blocks, shared by both towers.

use burn::prelude::*;
use ferroclip_ops::{
    Activation, AttentionBlock, LayerNorm, Linear, Mlp, Precision, Spans, select_rows,
};

use crate::param::Params;

/// The layer norm of this name.
pub(super) fn norm(params: &Params, name: &str, eps: f64) -> LayerNorm {
    let tensor = |kind: &str| params.tensor1(&format!("{name}.{kind}"));
    LayerNorm::new(tensor("weight"), tensor("bias"), eps)
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
    /// The blocks `name.resblocks.0` and so on.
    pub(super) fn new(params: &Params, name: &str, layers: usize, config: BlockConfig) -> Self {
        let block = |layer| Block::new(params, &format!("{name}.resblocks.{layer}"), config);
        Transformer { blocks: (0..layers).map(block).collect() }
    }

    /// With packed weights; `pooled` for [`Transformer::forward_pooled`].
    pub(super) fn packed(self, precision: Precision, pooled: bool) -> Self {
        let last = self.blocks.len().saturating_sub(1);
        let blocks = self.blocks.into_iter().enumerate();
        let pack = |(i, block): (usize, Block)| Block {
            attention: block.attention.packed(precision, pooled && i == last),
            mlp: block.mlp.packed(precision),
        };
        Transformer { blocks: blocks.map(pack).collect() }
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
    fn new(params: &Params, name: &str, config: BlockConfig) -> Self {
        let linear = |weight: &str, bias: &str| {
            let weight = params.tensor2(&format!("{name}.{weight}"));
            Linear::new(weight, Some(params.tensor1(&format!("{name}.{bias}"))))
        };
        let attention = AttentionBlock::new(
            norm(params, &format!("{name}.ln_1"), config.eps),
            linear("attn.in_proj_weight", "attn.in_proj_bias"),
            linear("attn.out_proj.weight", "attn.out_proj.bias"),
            config.heads,
            config.causal,
        );
        let mlp = Mlp {
            norm: norm(params, &format!("{name}.ln_2"), config.eps),
            c_fc: linear("mlp.c_fc.weight", "mlp.c_fc.bias"),
            activation: config.activation,
            c_proj: linear("mlp.c_proj.weight", "mlp.c_proj.bias"),
        };
        Block { attention, mlp }
    }

    fn forward(&self, x: Tensor<2>, spans: &Spans) -> Tensor<2> {
        self.mlp.forward(self.attention.forward(x, spans))
    }

    fn forward_pooled(&self, x: Tensor<2>, spans: &Spans, pooled: &[usize]) -> Tensor<2> {
        self.mlp.forward(self.attention.forward_pooled(x, spans, pooled))
    }
}
