//! The leaf operations that the towers are written in.
//!
//! Activations are packed rows, `[rows, width]`, beside [`Spans`] that say where each sequence
//! starts. Each operation is one function in one file. A CPU f32 tensor goes to our kernels, with
//! a hand-written backward where autodiff is on; anything else (other devices, f64) goes to
//! plain Burn operations, which differentiate themselves. For inference on the CPU weights may be
//! packed, in a [`Precision`]; operations then have no gradient. Wrong shapes are our bugs and panic.
#![forbid(unsafe_code)]

mod activation;
mod attention;
mod attention_half;
mod batch_norm;
mod block;
mod cpu;
mod engine;
mod half;
mod layer_norm;
mod linear;
mod maps;
mod mlp_half;
mod packed_conv;
mod pooled;
mod rows;
mod spans;
mod threads;
mod tokens;

pub use activation::activation;
pub use attention::{attention, attention_pooled};
pub use batch_norm::BatchNorm;
pub use block::{AttentionBlock, Mlp};
pub use ferroclip_kernels::{Activation, Maps, Moments, Precision};
pub use layer_norm::{LayerNorm, layer_norm};
pub use linear::{Linear, Projection};
pub use maps::{add_rectified, avg_pool2, conv3x3};
pub use packed_conv::{PackedBottleneck, PackedConv, PackedStem};
pub use pooled::PooledAttention;
pub use rows::{Lead, embed_tokens, mean_rows, patch_rows, select_rows, unit_rows, written_rows};
pub use spans::Spans;
pub use tokens::TokenTable;

#[cfg(test)]
mod tests;
