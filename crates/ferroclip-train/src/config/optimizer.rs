//! `[optimizer]`.

use serde::{Deserialize, Serialize};

use crate::optimizer::{Constants, Decay};
use crate::schedule::Schedule;

/// `[optimizer]`: AdamW.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OptimizerSection {
    /// The base learning rate.
    pub lr: f64,
    /// Shares of the old in the running means.
    pub betas: [f64; 2],
    /// Added to the denominator.
    pub eps: f64,
    /// Decoupled decay.
    pub weight_decay: f64,
    /// Steps of linear warm-up.
    pub warmup_steps: u64,
    /// What follows.
    pub schedule: Schedule,
    /// Which tensors decay.
    pub decay: Decay,
    /// The largest global gradient norm; 0 for no limit.
    pub clip_norm: f64,
}

impl Default for OptimizerSection {
    fn default() -> Self {
        OptimizerSection {
            lr: 5e-4,
            betas: [0.9, 0.98],
            eps: 1e-6,
            weight_decay: 0.2,
            warmup_steps: 0,
            schedule: Schedule::Cosine,
            decay: Decay::Standard,
            clip_norm: 0.0,
        }
    }
}

impl OptimizerSection {
    pub(crate) fn constants(&self) -> Constants {
        Constants { betas: self.betas, eps: self.eps, weight_decay: self.weight_decay }
    }
}
