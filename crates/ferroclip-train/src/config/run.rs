//! `[run]`.

use std::path::PathBuf;

use ferroclip::{FloatFormat, Precision};
use serde::{Deserialize, Serialize};

/// `[run]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunSection {
    /// Visits of all data; need not be whole.
    pub epochs: f64,
    /// Pairs that are contrasted with each other.
    pub batch_size: usize,
    /// Pairs in memory at a time, without influence on the gradients; 0 for the whole batch.
    #[serde(default)]
    pub micro_batch: usize,
    /// What the operands of the products of transformer blocks are rounded to, forward and backward.
    #[serde(default)]
    pub precision: TrainPrecision,
    /// Transformer blocks keep nothing but their inputs for the backward pass and compute the rest
    /// again: less memory, more time.
    #[serde(default)]
    pub recompute: bool,
    /// Of the initial weights, the order, captions and augmentation.
    #[serde(default)]
    pub seed: u64,
    /// Checkpoints kept, besides the best model.
    #[serde(default = "default_keep_last")]
    pub keep_last: usize,
    /// The run directory.
    pub out: PathBuf,
    /// Share of the old in the running average of the weights; 0 for none. The average is what is
    /// validated and saved as the final model.
    #[serde(default)]
    pub ema: f64,
    /// Steps between checkpoints; 0 for one an epoch.
    #[serde(default)]
    pub checkpoint_every: u64,
    /// Steps between validations; 0 for one an epoch.
    #[serde(default)]
    pub eval_every: u64,
    /// Steps between lines of `metrics.jsonl`.
    #[serde(default = "default_log_every")]
    pub log_every: u64,
    /// The share of bad samples at which the run stops.
    #[serde(default = "default_max_bad_share")]
    pub max_bad_share: f64,
    /// Most pixels of a picture, width times height; larger ones count as bad samples. Where it is missing, the default
    /// of [`DecodeLimits`](ferroclip::image::DecodeLimits).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_pixels: Option<u64>,
    /// Rows with equal texts are positives of each other.
    #[serde(default = "default_true")]
    pub multi_positive: bool,
    /// Share of an image's patches that are left out in training.
    #[serde(default)]
    pub patch_dropout: f64,
    /// What the batch norms of a ResNet use: `batch`, the statistics of the batch, or `frozen`,
    /// those that the model came with. Models without batch norms ignore it.
    #[serde(default)]
    pub batch_norm: BatchNormMode,
    /// How the model directories `best` and `final` store their weights: `f32` or `f16`.
    /// Checkpoints are f32 always.
    #[serde(default)]
    pub model_dtype: FloatFormat,
    /// Threads that compute, and threads that read; 0 for the cores that the process may use.
    #[serde(default)]
    pub threads: usize,
}

/// `run.batch_norm`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BatchNormMode {
    /// Normalise by the batch, and move the running statistics.
    #[default]
    Batch,
    /// Normalise by the running statistics, as constants.
    Frozen,
}

/// `run.precision`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TrainPrecision {
    /// Nothing is rounded.
    #[default]
    F32,
    /// To bf16; sums, norms, the loss and the weights themselves stay f32.
    Bf16,
}

impl TrainPrecision {
    /// The precision of products.
    pub fn precision(self) -> Precision {
        match self {
            TrainPrecision::F32 => Precision::F32,
            TrainPrecision::Bf16 => Precision::Bf16,
        }
    }
}

fn default_keep_last() -> usize {
    2
}

fn default_log_every() -> u64 {
    1
}

fn default_max_bad_share() -> f64 {
    0.01
}

fn default_true() -> bool {
    true
}
