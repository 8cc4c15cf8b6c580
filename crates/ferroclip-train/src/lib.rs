//! Training and evaluation of CLIP models.
//!
//! [`run()`] trains from a [`TrainConfig`] and leaves a run directory; [`zero_shot`] and
//! [`retrieval`] score a model on data. The loop is in `run/mod.rs` and can be read from top to
//! bottom; each of its parts is a file:
//!
//! | file | holds |
//! |---|---|
//! | `config.rs` | the training file |
//! | `samples.rs` | rows to batches: decode, augment, draw a caption, on threads |
//! | `gradient.rs` | the exact gradient of a batch, a micro-batch in memory at a time |
//! | `positives.rs` | which pairs of a batch belong together |
//! | `optimizer.rs`, `schedule.rs` | AdamW, clipping, weight averaging; the learning rate |
//! | `running_statistics.rs` | what batch norms remember of the batches |
//! | `checkpoint.rs`, `metrics.rs` | what a run writes |
//! | `eval.rs` | scores |
//!
//! Nothing is printed: progress comes as [`Event`]s, and a flag that the caller raises stops the
//! work in good order. A run directory holds `config.toml` (every default written out),
//! `metrics.jsonl`, `curves.svg`, `checkpoint-STEP/`, `best/` (by validation) and `final/`.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a panic is how a test fails"))]

mod captions;
mod checkpoint;
mod config;
mod error;
mod eval;
mod gradient;
mod metrics;
mod model;
mod optimizer;
mod positives;
mod run;
mod running_statistics;
mod samples;
mod schedule;

pub use checkpoint::Best;
pub use config::{
    BatchNormMode, DataSection, ModelSection, OptimizerSection, RunSection, TrainConfig, TrainData,
    TrainPrecision, ValidData,
};
pub use error::TrainError;
pub use eval::{
    ClassScore, EvalOptions, Pictures, Prediction, Recall, Retrieval, SetScore, ZeroShot,
    ZeroShotTask, embed_pictures, label_union, retrieval, right_classes, right_labels, zero_shot,
};
pub use gradient::{Batch, BatchGradient, BatchOptions, batch_gradient, batch_gradient_on};
pub use metrics::{StepMetrics, StepTime};
pub use optimizer::{AdamW, Constants, Decay, Named, clamp_logit_scale};
pub use positives::positive_groups;
pub use run::{DryRun, Event, Events, Outcome, Start, StepBench, dry_run, run};
pub use running_statistics::track;
pub use schedule::Schedule;
