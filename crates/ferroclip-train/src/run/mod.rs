//! The training loop.
//!
//! ```text
//! open data, model, and the last checkpoint where the run is resumed
//! until all steps are done:
//!     validate, where it is due; save the best model
//!     write a checkpoint, where it is due
//!     take a batch; loss and gradients; clip; AdamW; clamp logit_scale; average
//!     append to metrics.jsonl
//! write the final model
//! ```
//!
//! Everything random is keyed by (seed, purpose, epoch, sample) and every sum has one order, so a
//! run that is killed and resumed gives the same bytes as one that is not.

mod directory;
mod dry_run;
mod report;
mod step;

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use ferroclip::{Classifier, EmbedOptions, ModelFiles, Weights};
use ferroclip_data::Dataset;

use crate::checkpoint::{self, Best, RunState};
use crate::config::{TrainConfig, ValidData};
use crate::error::TrainError;
use crate::eval::{self, EvalOptions, SetScore, ZeroShotTask};
use crate::metrics::{self, MetricsLog, StepMetrics, StepTime, ValidMetrics};
use crate::model;
use crate::samples::TrainSet;

use directory::{Lock, create, resume, write_config};
pub use dry_run::dry_run;
pub use report::{DryRun, Event, Events, Outcome, Start};
pub use step::StepBench;
use step::{StepResult, fresh_state, step, total_steps};

const FINAL: &str = "final";
const BEST: &str = "best";

/// Trains. Once `stop` is true, the micro-batch at hand is finished, a checkpoint of the last whole
/// step is written, and the outcome has no model.
///
/// # Errors
/// When the config, the data or a checkpoint cannot be used, the disk refuses, too many samples are
/// bad, or the loss is no longer finite.
pub fn run(
    config: &TrainConfig,
    start: Start,
    events: Events<'_>,
    stop: &AtomicBool,
) -> Result<Outcome, TrainError> {
    in_pool(config, || Run::open(config, start, events)?.train(events, stop))
}

/// Runs `work` with the config's number of threads, leaving the global pool alone.
fn in_pool<T: Send>(
    config: &TrainConfig,
    work: impl FnOnce() -> Result<T, TrainError> + Send,
) -> Result<T, TrainError> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(config.threads()).build();
    let pool = pool.map_err(std::io::Error::other);
    pool.map_err(TrainError::io("start threads for", &config.run.out))?.install(work)
}

/// A run with all that it holds open.
struct Run<'a> {
    config: &'a TrainConfig,
    files: ModelFiles,
    data: TrainSet,
    valid: Vec<(Dataset, &'a ValidData)>,
    state: RunState,
    log: MetricsLog,
    steps: u64,
    /// The step of the last checkpoint.
    saved: Option<u64>,
    scores: Vec<SetScore>,
    /// Held as long as the run goes on.
    _lock: Lock,
}

impl<'a> Run<'a> {
    fn open(config: &'a TrainConfig, start: Start, events: Events<'_>) -> Result<Self, TrainError> {
        let data = TrainSet::open(config)?;
        let valid = config.data.valid.iter();
        let valid = valid.map(|set| Ok((set.source()?.open()?, set)));
        let valid: Vec<(Dataset, &ValidData)> = valid.collect::<Result<_, TrainError>>()?;
        check_columns(&valid)?;
        data.notices().for_each(|notice| events(Event::Notice(notice)));
        for (dataset, set) in &valid {
            let notices = dataset.notices().iter();
            notices.for_each(|notice| {
                events(Event::Notice(format!("`{}`: {notice}", set.path.display())));
            });
        }
        let steps = total_steps(config, data.plan.epoch_len());
        if steps == 0 {
            let reason = format!(
                "`run.epochs` of {} samples give no batch of {}",
                data.plan.epoch_len(),
                config.run.batch_size
            );
            return Err(TrainError::Unfit { reason });
        }
        let files = model::start(config)?;
        let fresh = fresh_state(config, &files, &data);
        let (state, saved, lock) = match start {
            Start::New => (fresh, None, create(config)?),
            Start::Resume => resume(config, &files, fresh)?,
        };
        if steps < state.progress.step {
            let reason = format!(
                "`run.epochs`: {} are {steps} steps, and the run has done {}",
                config.run.epochs, state.progress.step
            );
            return Err(TrainError::Unfit { reason });
        }
        // The number of epochs may have changed.
        write_config(config)?;
        let log = MetricsLog::open(&config.run.out, state.progress.metrics_bytes)?;
        Ok(Run {
            config,
            files,
            data,
            valid,
            state,
            log,
            steps,
            saved,
            scores: Vec::new(),
            _lock: lock,
        })
    }

    /// The loop.
    fn train(mut self, events: Events<'_>, stop: &AtomicBool) -> Result<Outcome, TrainError> {
        let (config, steps) = (self.config, self.steps);
        let (began, first) = (Instant::now(), self.state.progress.step);
        let seconds_before = self.state.progress.seconds;
        events(Event::Started {
            step: first,
            steps,
            epoch_len: self.data.plan.epoch_len(),
            parameters: self.state.weights.n_parameters(),
        });
        let cursor = self.state.progress.cursor;
        let mut stream =
            self.data.stream(config, &self.files.config, &self.files.tokenizer, cursor)?;
        let mut last = None;
        loop {
            let done = self.state.progress.step;
            self.validate(events, stop)?;
            let stopped = stop.load(Ordering::Relaxed);
            if stopped || self.is_due(config.run.checkpoint_every) {
                self.save(events)?;
            }
            if stopped || done >= steps {
                return self.finish(stopped, last);
            }

            let step_began = Instant::now();
            let (n, share) = (config.run.batch_size, config.run.max_bad_share);
            let mut tally = self.state.progress.tally.clone();
            let next = stream.next_batch(n, &mut tally, share)?;
            let result = step(config, &self.files, &mut self.state, &next.batch, steps, stop);
            let Some(result) = result.map_err(|error| self.with_checkpoint(error))? else {
                continue; // Interrupted: the batch will come again.
            };
            let progress = &mut self.state.progress;
            progress.step += 1;
            progress.cursor = next.after;
            progress.tally = tally;
            progress.truncated += next.truncated;
            progress.seconds = seconds_before + began.elapsed().as_secs_f64();
            let pairs_per_s = n as f64 / step_began.elapsed().as_secs_f64();
            let metrics = self.log_step(&result, pairs_per_s)?;
            let pace = began.elapsed().as_secs_f64() / (done + 1 - first) as f64;
            let seconds_left = pace * (steps - done - 1) as f64;
            events(Event::Step { metrics: metrics.clone(), steps, seconds_left });
            last = Some(metrics);
        }
    }

    fn log_step(
        &mut self,
        result: &StepResult,
        pairs_per_s: f64,
    ) -> Result<StepMetrics, TrainError> {
        let progress = &self.state.progress;
        let cursor = progress.cursor;
        let metrics = StepMetrics {
            step: progress.step,
            epoch: cursor.epoch as f64 + cursor.position as f64 / cursor.epoch_len as f64,
            loss: result.loss,
            lr: result.lr,
            logit_scale: self.state.weights.get("logit_scale").map_or(0.0, |t| t.data[0]),
            grad_norm: result.grad_norm,
            time: StepTime { seconds: progress.seconds, pairs_per_s },
        };
        if progress.step.is_multiple_of(self.config.run.log_every) || progress.step == self.steps {
            self.log.append(&metrics)?;
        }
        Ok(metrics)
    }

    /// Whether something that comes every `every` steps (0: once an epoch) comes after this one.
    fn is_due(&self, every: u64) -> bool {
        let step = self.state.progress.step;
        let epoch = (self.data.plan.epoch_len() / self.config.run.batch_size).max(1) as u64;
        let every = if every == 0 { epoch } else { every };
        step > 0 && (step.is_multiple_of(every) || step == self.steps)
    }

    /// The weights that are judged and kept: the average, where it is on.
    fn judged(&self) -> &Weights {
        self.state.average.as_ref().unwrap_or(&self.state.weights)
    }

    /// The model to keep, which can be opened again.
    fn model(&self) -> Result<ModelFiles, TrainError> {
        let model = model::with_weights(&self.files, self.judged());
        model.check()?;
        Ok(model)
    }

    /// Scores the model where that is due, and keeps it where it is the best.
    fn validate(&mut self, events: Events<'_>, stop: &AtomicBool) -> Result<(), TrainError> {
        let step = self.state.progress.step;
        let due = self.is_due(self.config.run.eval_every) && self.state.progress.evaluated != step;
        if self.valid.is_empty() || !due {
            return Ok(());
        }
        let clip = model::clip(&self.files, self.judged())?;
        let mut scores = Vec::new();
        for (dataset, set) in &self.valid {
            match score(self.config, &clip, dataset, set, events, stop) {
                Ok(score) => scores.push(score),
                // The checkpoint remembers that this validation is still to be done.
                Err(TrainError::Cancelled) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        self.log.append(&ValidMetrics { step, valid: &scores })?;
        let score = scores.iter().map(|score| score.score).sum::<f64>() / scores.len() as f64;
        let is_best = self.state.progress.best.is_none_or(|best| score > best.score);
        if is_best {
            self.state.progress.best = Some(Best { step, score });
            checkpoint::replace_directory(&self.config.run.out, BEST, |hidden| {
                Ok(self.model()?.save(hidden, self.config.run.model_dtype)?)
            })?;
        }
        self.state.progress.evaluated = step;
        self.scores.clone_from(&scores);
        events(Event::Validated { step, scores, is_best });
        Ok(())
    }

    /// Writes a checkpoint, unless this step has one.
    fn save(&mut self, events: Events<'_>) -> Result<(), TrainError> {
        let (out, step) = (&self.config.run.out, self.state.progress.step);
        if self.saved == Some(step) && self.log.bytes == self.state.progress.metrics_bytes {
            return Ok(());
        }
        self.log.sync()?;
        self.state.progress.metrics_bytes = self.log.bytes;
        let path = checkpoint::save(out, &self.state, self.config.run.keep_last)?;
        self.saved = Some(step);
        metrics::draw_curves(out)?;
        events(Event::Checkpoint { step, path });
        Ok(())
    }

    /// Writes the final model, unless the run was interrupted before its last step.
    fn finish(self, stopped: bool, last: Option<StepMetrics>) -> Result<Outcome, TrainError> {
        let out = &self.config.run.out;
        let progress = &self.state.progress;
        let is_complete = progress.step >= self.steps && !(stopped && self.is_unscored());
        let model = if is_complete {
            let model = self.model()?;
            let save = |hidden: &Path| Ok(model.save(hidden, self.config.run.model_dtype)?);
            Some(checkpoint::replace_directory(out, FINAL, save)?)
        } else {
            None
        };
        Ok(Outcome {
            model,
            checkpoint: self.saved.map(|step| checkpoint::directory(out, step)),
            step: progress.step,
            steps: self.steps,
            last,
            best: progress.best,
            tally: progress.tally.clone(),
            truncated: progress.truncated,
            scores: self.scores,
        })
    }

    /// Whether the validation after the last step is still to be done.
    fn is_unscored(&self) -> bool {
        !self.valid.is_empty() && self.state.progress.evaluated != self.state.progress.step
    }

    /// Tells where the last good checkpoint is.
    fn with_checkpoint(&self, error: TrainError) -> TrainError {
        match error {
            TrainError::Diverged { step, what, value, .. } => {
                let saved =
                    self.saved.map(|step| checkpoint::directory(&self.config.run.out, step));
                TrainError::Diverged { step, what, value, checkpoint: saved }
            }
            other => other,
        }
    }
}

/// Every column that validation will read, so that a slip shows before hours of training.
fn check_columns(valid: &[(Dataset, &ValidData)]) -> Result<(), TrainError> {
    for (dataset, set) in valid {
        for column in set.captions.iter().chain(&set.label) {
            dataset.column_index(column)?;
        }
    }
    Ok(())
}

/// Scores one validation set.
fn score(
    config: &TrainConfig,
    clip: &ferroclip::Clip,
    dataset: &Dataset,
    set: &ValidData,
    events: Events<'_>,
    stop: &AtomicBool,
) -> Result<SetScore, TrainError> {
    let events = std::cell::RefCell::new(events);
    let progress = |done, of| (*events.borrow_mut())(Event::Validating { done, of });
    let limits = config.limits();
    let options =
        EvalOptions { progress: Some(&progress), stop: Some(stop), batch_size: 0, limits };
    let mut score = SetScore {
        path: set.path.display().to_string(),
        score: 0.0,
        top1: None,
        top5: None,
        image_to_text: None,
        text_to_image: None,
        failures: Vec::new(),
    };
    if !set.captions.is_empty() {
        let found = eval::retrieval(clip, dataset, &set.captions, &options)?;
        score.score = (found.image_to_text.r1 + found.text_to_image.r1) / 2.0;
        score.image_to_text = Some(found.image_to_text);
        score.text_to_image = Some(found.text_to_image);
        score.failures.extend(found.failures);
    }
    if let Some(label_column) = &set.label {
        let labels = eval::label_union(dataset, label_column)?;
        let own = &clip.config().templates;
        let templates = if set.templates.is_empty() { own } else { &set.templates };
        let embed = EmbedOptions { stop: Some(stop), ..EmbedOptions::default() };
        let classifier = Classifier::new_with(clip, &labels, templates, &embed);
        let classifier = classifier.map_err(eval::cancelled)?;
        let right = eval::right_labels(dataset, label_column, &labels)?;
        let task = ZeroShotTask { classifier: &classifier, right: &right };
        let found = eval::zero_shot(clip, dataset, &task, &options)?;
        score.score = found.top1;
        (score.top1, score.top5) = (Some(found.top1), Some(found.top5));
        score.failures.extend(found.failures);
    }
    Ok(score)
}
