//! Pooling by attention (MAP, multi-head attention pooling; SigLIP's).
//!
//! ```text
//! q        probe W_q + b_q, the same for every image
//! k, v     rows W_kv + b_kv
//! mixed    attention(q, k, v) W_o + b_o
//! pooled   mixed + mlp(ln(mixed))
//! ```

use burn::prelude::*;
use ferroclip_ops::{Linear, Mlp, PooledAttention, Spans, attention_pooled, select_rows};

use super::block::{BlockConfig, mlp, norm};
use super::source::Source;

/// What tensors of the pooling are called before the dot.
const NAME: &str = "visual.attn_pool";

#[derive(Clone, Debug)]
pub(super) struct AttentionPool {
    probe: Tensor<1>,
    query: Linear,
    keys_values: KeysValues,
    out: Linear,
    mlp: Mlp,
    heads: usize,
}

/// The projection of keys and values; packed, neither is formed.
#[derive(Clone, Debug)]
enum KeysValues {
    Parameters(Linear),
    Packed(PooledAttention),
}

impl AttentionPool {
    /// The pooling of these parameters.
    pub(super) fn new(params: &dyn Source, config: BlockConfig) -> AttentionPool {
        let tensor1 = |name: &str| params.tensor1(&format!("{NAME}.{name}"));
        let tensor2 = |name: &str| params.tensor2(&format!("{NAME}.{name}"));
        let linear = |weight: Tensor<2>, bias: Tensor<1>| {
            let linear = Linear::new(weight, Some(bias)).rounded(params.rounding());
            match params.packing() {
                Some(precision) => linear.packed(precision),
                None => linear,
            }
        };
        let (weight, bias) = (tensor2("attn.in_proj_weight"), tensor1("attn.in_proj_bias"));
        let [rows, width] = weight.dims();
        let part = |from: usize, to: usize| {
            let n = to - from;
            linear(weight.clone().narrow(0, from, n), bias.clone().narrow(0, from, n))
        };
        let third = |i: usize| weight.clone().narrow(0, i * width, width);
        let keys_values = match params.packing() {
            Some(precision) => {
                let value_bias = bias.clone().narrow(0, 2 * width, width);
                let (keys, values) = (third(1), third(2));
                let heads = config.heads;
                KeysValues::Packed(PooledAttention::new(keys, values, value_bias, heads, precision))
            }
            None => KeysValues::Parameters(part(width, rows)),
        };
        AttentionPool {
            probe: tensor1("probe"),
            query: part(0, width),
            keys_values,
            out: linear(tensor2("attn.out_proj.weight"), tensor1("attn.out_proj.bias")),
            mlp: mlp(
                params,
                NAME,
                norm(params, &format!("{NAME}.ln"), config.eps),
                config.activation,
            ),
            heads: config.heads,
        }
    }

    /// A row for each span: `[spans, width]`.
    pub(super) fn forward(&self, x: Tensor<2>, spans: &Spans) -> Tensor<2> {
        let query = self.query.forward(self.probe.clone().unsqueeze::<2>());
        let queries = select_rows(query, &vec![0; spans.count()]);
        let mixed = match &self.keys_values {
            KeysValues::Packed(attention) => attention.forward(queries, x, spans),
            KeysValues::Parameters(layer) => {
                attention_pooled(queries, layer.forward(x), spans, self.heads)
            }
        };
        self.mlp.forward(self.out.forward(mixed))
    }
}
