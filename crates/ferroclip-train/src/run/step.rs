//! One optimiser step.

use std::sync::atomic::AtomicBool;

use ferroclip::{ModelConfig, ModelFiles, Weights, is_buffer};

use crate::checkpoint::{Progress, RunState};
use crate::config::{OptimizerSection, TrainConfig};
use crate::error::TrainError;
use crate::gradient::{Batch, BatchOptions, batch_gradient};
use crate::optimizer::{AdamW, Decay, Named, average, clamp_logit_scale, clip, global_norm};
use crate::running_statistics::track;
use crate::samples::TrainSet;

/// Steps of a run: whole batches of all visits.
pub(super) fn total_steps(config: &TrainConfig, epoch_len: usize) -> u64 {
    let visits = config.run.epochs * epoch_len as f64;
    (visits / config.run.batch_size as f64) as u64
}

pub(super) fn fresh_state(config: &TrainConfig, files: &ModelFiles, data: &TrainSet) -> RunState {
    let weights = files.weights.clone();
    let sizes = weights.iter().map(|(name, tensor)| (name.as_str(), tensor.data.len()));
    let adam = AdamW::new(config.optimizer.constants(), sizes);
    let average = (config.run.ema > 0.0).then(|| weights.clone());
    let progress = Progress::new(data.plan.start(), data.fingerprints(), &files.config);
    RunState { weights, adam, average, progress }
}

/// What a step computes before its place in the log is known.
pub(super) struct StepResult {
    pub(super) loss: f64,
    pub(super) lr: f64,
    pub(super) grad_norm: f64,
}

/// One optimiser step; `None` where `stop` was raised, and then nothing has changed.
pub(super) fn step(
    config: &TrainConfig,
    files: &ModelFiles,
    state: &mut RunState,
    batch: &Batch,
    steps: u64,
    stop: &AtomicBool,
) -> Result<Option<StepResult>, TrainError> {
    let (run, optimizer) = (&config.run, &config.optimizer);
    let options = BatchOptions {
        micro_batch: config.micro_batch(),
        multi_positive: run.multi_positive,
        batch_statistics: config.batch_statistics(&files.config.model),
        precision: run.precision.precision(),
        recompute: run.recompute,
    };
    let found = batch_gradient(&files.config.model, &mut state.weights, batch, options, stop);
    let Some(mut found) = found else { return Ok(None) };

    let done = state.progress.step;
    let grad_norm = global_norm(&found.gradients);
    for (what, value) in [("the loss", found.loss), ("the gradient norm", grad_norm)] {
        if !value.is_finite() {
            return Err(TrainError::Diverged { step: done + 1, what, value, checkpoint: None });
        }
    }
    if optimizer.clip_norm > 0.0 {
        clip(&mut found.gradients, grad_norm, optimizer.clip_norm);
    }
    let lr = optimizer.schedule.rate(optimizer.lr, optimizer.warmup_steps, done, steps);
    update(&mut state.weights, &mut state.adam, &found.gradients, lr, optimizer.decay);
    track(&mut state.weights, &found.statistics);
    if let Some(averages) = &mut state.average {
        for ((_, a), (_, w)) in averages.iter_mut().zip(state.weights.iter()) {
            average(&mut a.data, &w.data, run.ema, done);
        }
    }
    Ok(Some(StepResult { loss: found.loss, lr, grad_norm }))
}

/// AdamW on every tensor that is trained, then the bounds of `logit_scale`.
fn update(weights: &mut Weights, adam: &mut AdamW, gradients: &Named, lr: f64, decay: Decay) {
    adam.begin_step();
    for (name, tensor) in weights.iter_mut().filter(|(name, _)| !is_buffer(name)) {
        let decays = decay.applies(name, tensor.shape.len());
        adam.update(name, &mut tensor.data, &gradients[name], lr, decays);
    }
    if let Some(scale) = weights.get_mut("logit_scale") {
        scale.data[0] = clamp_logit_scale(scale.data[0]);
    }
}

/// Optimiser steps on batches at hand, without data, log or schedule: to measure what a step costs.
#[derive(Debug)]
pub struct StepBench {
    config: ModelConfig,
    weights: Weights,
    adam: AdamW,
    optimizer: OptimizerSection,
    options: BatchOptions,
}

impl StepBench {
    /// Steps from these weights with the defaults of a training file.
    pub fn new(config: ModelConfig, weights: Weights, options: BatchOptions) -> StepBench {
        let optimizer = OptimizerSection::default();
        let sizes = weights.iter().map(|(name, tensor)| (name.as_str(), tensor.data.len()));
        let adam = AdamW::new(optimizer.constants(), sizes);
        StepBench { config, weights, adam, optimizer, options }
    }

    /// Forward, backward and AdamW; the loss before the step. `None` where `stop` was raised, and then
    /// nothing has changed.
    ///
    /// # Panics
    /// As [`batch_gradient`].
    pub fn step(&mut self, batch: &Batch, stop: &AtomicBool) -> Option<f64> {
        let found = batch_gradient(&self.config, &mut self.weights, batch, self.options, stop)?;
        let OptimizerSection { lr, decay, .. } = self.optimizer;
        update(&mut self.weights, &mut self.adam, &found.gradients, lr, decay);
        Some(found.loss)
    }
}
