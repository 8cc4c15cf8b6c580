//! The two towers, over packed rows and leaf operations.
//!
//! ```text
//! image   patches -> rows, class row, positions -> [ln_pre] -> blocks -> ln_post, pool -> proj
//!         or, where `layers` are those of four stages, OpenAI's ResNet (`resnet.rs`)
//! text    ids up to the end of text -> rows, positions -> blocks -> ln_final -> text_projection
//! ```
//!
//! There is one transformer block and no padding: rows of all sequences lie one behind the other.
//! Rows behind the end of text do not exist, because in a causal tower they cannot reach the pooled
//! row. Where a single row is pooled, the last block computes queries, output projection and MLP
//! for that row alone.
//!
//! A tower is cheap to build from [`Params`](crate::Params): it shares their tensors. All tensors
//! derived from parameters are formed inside `forward`, so that one tower can serve several forward
//! and backward passes.

mod attention_pool;
mod block;
mod image;
mod resnet;
mod source;
mod stream;
mod text;
mod unfold;
mod vit;

pub use image::ImageTower;
pub use resnet::BatchStatistics;
pub(crate) use source::{Elements, Loader, Source};
pub(crate) use stream::Stream;
pub use text::TextTower;
