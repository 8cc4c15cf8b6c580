//! The transformer block and the stack of blocks, shared by both towers.
//!
//! ```text
//! x = x + out_proj(attention(in_proj(ln_1(x))))
//! x = x + c_proj(act(c_fc(ln_2(x))))
//! ```

use burn::prelude::*;
use ferroclip_ops::{
    Activation, Linear, Spans, activation, attention, attention_pooled, layer_norm, select_rows,
};

use crate::param::Params;

/// A layer norm with its parameters.
#[derive(Clone, Debug)]
pub(super) struct Norm {
    gain: Tensor<1>,
    bias: Tensor<1>,
    eps: f64,
}

impl Norm {
    pub(super) fn new(params: &Params, name: &str, eps: f64) -> Self {
        let tensor = |kind: &str| params.tensor1(&format!("{name}.{kind}"));
        Norm { gain: tensor("weight"), bias: tensor("bias"), eps }
    }

    pub(super) fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        layer_norm(x, &self.gain, &self.bias, self.eps)
    }
}

/// What the blocks of a tower have in common.
#[derive(Clone, Copy, Debug)]
pub(super) struct BlockConfig {
    pub(super) width: usize,
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
    ln_1: Norm,
    in_proj: Linear,
    out_proj: Linear,
    ln_2: Norm,
    c_fc: Linear,
    c_proj: Linear,
    config: BlockConfig,
}

impl Block {
    fn new(params: &Params, name: &str, config: BlockConfig) -> Self {
        let linear = |weight: &str, bias: &str| {
            let weight = params.tensor2(&format!("{name}.{weight}"));
            Linear::new(weight, Some(params.tensor1(&format!("{name}.{bias}"))))
        };
        Block {
            ln_1: Norm::new(params, &format!("{name}.ln_1"), config.eps),
            in_proj: linear("attn.in_proj_weight", "attn.in_proj_bias"),
            out_proj: linear("attn.out_proj.weight", "attn.out_proj.bias"),
            ln_2: Norm::new(params, &format!("{name}.ln_2"), config.eps),
            c_fc: linear("mlp.c_fc.weight", "mlp.c_fc.bias"),
            c_proj: linear("mlp.c_proj.weight", "mlp.c_proj.bias"),
            config,
        }
    }

    fn forward(&self, x: Tensor<2>, spans: &Spans) -> Tensor<2> {
        let BlockConfig { heads, causal, .. } = self.config;
        let qkv = self.in_proj.forward(self.ln_1.forward(x.clone()));
        let mixed = attention(qkv, spans, heads, causal);
        self.mlp(x + self.out_proj.forward(mixed))
    }

    fn forward_pooled(&self, x: Tensor<2>, spans: &Spans, pooled: &[usize]) -> Tensor<2> {
        let BlockConfig { width, heads, .. } = self.config;
        let normed = self.ln_1.forward(x.clone());
        let q = self.in_proj.outputs(0..width).forward(select_rows(normed.clone(), pooled));
        let kv = self.in_proj.outputs(width..3 * width).forward(normed);
        let mixed = attention_pooled(q, kv, spans, heads);
        self.mlp(select_rows(x, pooled) + self.out_proj.forward(mixed))
    }

    fn mlp(&self, x: Tensor<2>) -> Tensor<2> {
        let hidden = self.c_fc.forward(self.ln_2.forward(x.clone()));
        x + self.c_proj.forward(activation(hidden, self.config.activation))
    }
}
