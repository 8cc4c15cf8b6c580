//! Samples from storage: picture bytes and the text columns beside them.
//!
//! The crate knows nothing of models, tokens or pixels. A [`Dataset`] is a table of text columns,
//! held in memory, with one picture per row, left where it lies and read on demand from any
//! thread. What may be opened (a directory of class folders, a table beside pictures, a zip, tar
//! shards) is told by content; see [`Dataset::open`].
//!
//! A training run joins four small parts:
//!
//! 1. [`Source::open`] gives a [`Dataset`], reduced by its [`Filter`]s.
//! 2. [`Plan`] joins several datasets to one epoch, and [`Plan::order`] yields [`Visit`]s, shuffled
//!    from a seed, from any saved [`Cursor`] on.
//! 3. [`map_ordered`] reads and decodes on worker threads, in order, through a bounded queue.
//! 4. [`Tally`] counts the samples that failed, and stops a run with too many of them.
//!
//! Everything read is treated as hostile: sizes are bounded, names may not leave their archive,
//! and each malformation is one variant of [`DataError`].

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a panic is how a test fails"))]

mod benchmark;
mod dataset;
mod error;
mod filter;
mod folder;
mod order;
#[cfg(feature = "parquet")]
mod parquet_table;
mod prefetch;
mod shards;
mod shared_file;
mod table;
mod tally;
mod zip_store;

pub use benchmark::Benchmark;
pub use dataset::{Dataset, MAX_PICTURE_BYTES, Source, digest};
pub use error::DataError;
pub use filter::Filter;
pub use folder::PICTURE_EXTENSIONS;
pub use order::{Cursor, Order, Plan, Visit, below, keyed_rng, permutation};
pub use prefetch::{Ordered, map_ordered};
pub use shards::expand_braces;
pub use tally::{Failure, Tally};
