//! The numeric loops of ferroclip, over slices.
//!
//! Kernels take slices and dimensions and write into the caller's memory. They know nothing of
//! tensors with gradients, of files, or of the names of models. Each runs on the instruction set
//! that the caller names with an [`Isa`] value; [`Isa::active`] is the best one present. This is
//! the only crate with `unsafe`.

mod activation;
mod adamw;
#[cfg(feature = "mimalloc")]
mod allocator;
#[cfg(target_arch = "x86_64")]
mod amx;
mod attention;
mod batch_norm;
mod contrastive;
mod conv;
mod fetch;
mod fma_rate;
mod gemm;
mod isa;
mod layer_norm;
mod math;
mod packed;
pub mod resample;
mod similarity;

pub use activation::{Activation, activation, activation_and_backward, activation_backward};
pub use adamw::{AdamStep, adamw};
#[cfg(feature = "mimalloc")]
pub use allocator::keep_freed_memory;
pub use attention::{
    AttentionScratch, AttentionShape, Prefix, attend, attend_backward, attend_row, attention,
    attention_backward, attention_pooled, attention_pooled_backward,
};
pub use batch_norm::{BatchNorm, Moments};
pub use contrastive::{Loss, contrastive_loss};
pub use conv::{Maps, conv3x3, conv3x3_rows, conv3x3_weight_gradient, flipped_taps};
pub use fetch::fetch_ahead;
pub use fma_rate::fma_rate;
pub use gemm::{Matrix, Onto, Scratch, gemm, gemm_serial};
pub use isa::Isa;
pub use layer_norm::{layer_norm, layer_norm_backward};
pub use packed::{
    Finish, PackedRows, PackedWeights, Precision, multiply, multiply_to_rows, task_rows,
};
pub use similarity::{Hit, dots, largest, top_k};
