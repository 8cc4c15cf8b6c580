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
//! Everything random is keyed by (seed, purpose, epoch, sample) and every sum has one order, so a run
//! that is killed and resumed gives the same bytes as one that is not.

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use ferroclip::{ModelConfig, ModelFiles, Weights, write_atomically};
use ferroclip_data::{Dataset, Tally};

use crate::checkpoint::{self, Best, Progress, RunState};
use crate::config::{OptimizerSection, TrainConfig, ValidData};
use crate::error::TrainError;
use crate::eval::{self, EvalOptions, SetScore, ZeroShotTask};
use crate::gradient::{Batch, BatchOptions, batch_gradient};
use crate::metrics::{self, MetricsLog, StepMetrics, StepTime, ValidMetrics};
use crate::model;
use crate::optimizer::{AdamW, Decay, Named, average, clamp_logit_scale, clip, global_norm};
use crate::samples::TrainSet;

const CONFIG_FILE: &str = "config.toml";
const FINAL: &str = "final";
const BEST: &str = "best";

/// Whether `out` must be new, or holds a run to go on with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// A new run.
    New,
    /// From the last checkpoint; from the beginning, where the run was killed before the first.
    Resume,
}

/// What a run tells while it runs.
#[derive(Clone, Debug)]
pub enum Event {
    /// Something to be told, once.
    Notice(String),
    /// The loop begins.
    Started {
        /// Steps done before.
        step: u64,
        /// Steps in all.
        steps: u64,
        /// Samples of an epoch.
        epoch_len: usize,
        /// Numbers that are trained.
        parameters: usize,
    },
    /// A step is done.
    Step {
        /// Its metrics.
        metrics: StepMetrics,
        /// Steps in all.
        steps: u64,
        /// Time left at the mean pace since the start of this part, without validations to come.
        seconds_left: f64,
    },
    /// Pictures of a validation set are done.
    Validating {
        /// How many.
        done: usize,
        /// Of how many.
        of: usize,
    },
    /// A validation is done.
    Validated {
        /// After which step.
        step: u64,
        /// A score for each set.
        scores: Vec<SetScore>,
        /// Whether it is the best so far.
        is_best: bool,
    },
    /// A checkpoint is written.
    Checkpoint {
        /// After which step.
        step: u64,
        /// Its directory.
        path: PathBuf,
    },
}

/// How a run ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The final model's directory; `None` where the run was interrupted.
    pub model: Option<PathBuf>,
    /// The last checkpoint.
    pub checkpoint: Option<PathBuf>,
    /// Steps done.
    pub step: u64,
    /// Steps in all.
    pub steps: u64,
    /// The last step's metrics, where this part took one.
    pub last: Option<StepMetrics>,
    /// The last validation of this part.
    pub scores: Vec<SetScore>,
    /// The best validation.
    pub best: Option<Best>,
    /// Good and bad samples.
    pub tally: Tally,
    /// Texts that were cut to the context length.
    pub truncated: u64,
}

/// What [`dry_run`] found.
#[derive(Clone, Debug)]
pub struct DryRun {
    /// Numbers that are trained.
    pub parameters: usize,
    /// Steps of the run.
    pub steps: u64,
    /// Samples of an epoch.
    pub epoch_len: usize,
    /// Weights, gradients, optimiser state and average.
    pub state_bytes: u64,
    /// The most memory that this process has used, where the system tells.
    pub peak_bytes: Option<u64>,
    /// A step, after a first one that warms up; reading the pictures included.
    pub seconds_per_step: f64,
    /// What reading the data passed over.
    pub notices: Vec<String>,
}

/// Receives events.
pub type Events<'a> = &'a mut (dyn FnMut(Event) + Send);

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

/// Takes two steps without writing anything and tells what the run will cost.
///
/// # Errors
/// As [`run`].
pub fn dry_run(config: &TrainConfig, stop: &AtomicBool) -> Result<DryRun, TrainError> {
    in_pool(config, || {
        let data = TrainSet::open(config)?;
        let files = model::start(&config.model, config.run.seed)?;
        let mut state = fresh_state(config, &files, &data);
        let steps = total_steps(config, data.plan.epoch_len());
        let mut stream = data.stream(config, &files.config, &files.tokenizer, data.plan.start())?;
        let mut seconds = 0.0;
        for _ in 0..2 {
            let began = Instant::now();
            let (n, share) = (config.run.batch_size, config.run.max_bad_share);
            let next = stream.next_batch(n, &mut state.progress.tally, share)?;
            if step(config, &files, &mut state, &next.batch, steps, stop)?.is_none() {
                return Err(TrainError::Cancelled);
            }
            state.progress.step += 1;
            seconds = began.elapsed().as_secs_f64();
        }
        let parameters = state.weights.n_elements();
        let copies = 4 + u64::from(config.run.ema > 0.0);
        Ok(DryRun {
            parameters,
            steps,
            epoch_len: data.plan.epoch_len(),
            state_bytes: 4 * copies * parameters as u64,
            peak_bytes: peak_bytes(),
            seconds_per_step: seconds,
            notices: data.notices().collect(),
        })
    })
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

/// The most memory that this process has used.
fn peak_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// Steps of a run: whole batches of all visits.
fn total_steps(config: &TrainConfig, epoch_len: usize) -> u64 {
    let visits = config.run.epochs * epoch_len as f64;
    (visits / config.run.batch_size as f64) as u64
}

fn fresh_state(config: &TrainConfig, files: &ModelFiles, data: &TrainSet) -> RunState {
    let weights = files.weights.clone();
    let sizes = weights.iter().map(|(name, tensor)| (name.as_str(), tensor.data.len()));
    let adam = AdamW::new(config.optimizer.constants(), sizes);
    let average = (config.run.ema > 0.0).then(|| weights.clone());
    let preprocess = files.config.preprocess.clone();
    let progress = Progress::new(data.plan.start(), data.fingerprints(), preprocess);
    RunState { weights, adam, average, progress }
}

/// What a step computes before its place in the log is known.
struct StepResult {
    loss: f64,
    lr: f64,
    grad_norm: f64,
}

/// One optimiser step; `None` where `stop` was raised, and then nothing has changed.
fn step(
    config: &TrainConfig,
    files: &ModelFiles,
    state: &mut RunState,
    batch: &Batch,
    steps: u64,
    stop: &AtomicBool,
) -> Result<Option<StepResult>, TrainError> {
    let (run, optimizer) = (&config.run, &config.optimizer);
    let options =
        BatchOptions { micro_batch: config.micro_batch(), multi_positive: run.multi_positive };
    let found = batch_gradient(&files.config.model, &state.weights, batch, options, stop);
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
    if let Some(averages) = &mut state.average {
        for ((_, a), (_, w)) in averages.iter_mut().zip(state.weights.iter()) {
            average(&mut a.data, &w.data, run.ema, done);
        }
    }
    Ok(Some(StepResult { loss: found.loss, lr, grad_norm }))
}

/// AdamW on every tensor, then the bounds of `logit_scale`.
fn update(weights: &mut Weights, adam: &mut AdamW, gradients: &Named, lr: f64, decay: Decay) {
    adam.begin_step();
    for (name, tensor) in weights.iter_mut() {
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
}

impl StepBench {
    /// Steps from these weights with the defaults of a training file.
    pub fn new(config: ModelConfig, weights: Weights) -> StepBench {
        let optimizer = OptimizerSection::default();
        let sizes = weights.iter().map(|(name, tensor)| (name.as_str(), tensor.data.len()));
        let adam = AdamW::new(optimizer.constants(), sizes);
        StepBench { config, weights, adam, optimizer }
    }

    /// Forward, backward and AdamW, the whole batch at once; the loss before the step. `None` where
    /// `stop` was raised, and then nothing has changed.
    ///
    /// # Panics
    /// As [`batch_gradient`].
    pub fn step(&mut self, batch: &Batch, stop: &AtomicBool) -> Option<f64> {
        let options = BatchOptions { micro_batch: batch.texts.len(), multi_positive: true };
        let found = batch_gradient(&self.config, &self.weights, batch, options, stop)?;
        let OptimizerSection { lr, decay, .. } = self.optimizer;
        update(&mut self.weights, &mut self.adam, &found.gradients, lr, decay);
        Some(found.loss)
    }
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
}

impl<'a> Run<'a> {
    fn open(config: &'a TrainConfig, start: Start, events: Events<'_>) -> Result<Self, TrainError> {
        let data = TrainSet::open(config)?;
        let valid = config.data.valid.iter();
        let valid = valid.map(|set| Ok((set.source()?.open()?, set)));
        let valid: Vec<(Dataset, &ValidData)> = valid.collect::<Result<_, TrainError>>()?;
        check_columns(&valid)?;
        data.notices().for_each(|notice| events(Event::Notice(notice)));
        let steps = total_steps(config, data.plan.epoch_len());
        if steps == 0 {
            let reason = format!(
                "`run.epochs` of {} samples give no batch of {}",
                data.plan.epoch_len(),
                config.run.batch_size
            );
            return Err(TrainError::config("the training file", reason));
        }
        let files = model::start(&config.model, config.run.seed)?;
        let fresh = fresh_state(config, &files, &data);
        let (state, saved) = match start {
            Start::New => {
                create(config)?;
                (fresh, None)
            }
            Start::Resume => resume(config, &files, fresh)?,
        };
        let log = MetricsLog::open(&config.run.out, state.progress.metrics_bytes)?;
        Ok(Run { config, files, data, valid, state, log, steps, saved, scores: Vec::new() })
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
            parameters: self.state.weights.n_elements(),
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
            match score(&clip, dataset, set, events, stop) {
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
                Ok(clip.save(hidden, self.config.run.model_dtype)?)
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
            let clip = model::clip(&self.files, self.judged())?;
            let save = |hidden: &Path| Ok(clip.save(hidden, self.config.run.model_dtype)?);
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

/// Makes the run directory, which must not hold a run, and writes the config into it.
fn create(config: &TrainConfig) -> Result<(), TrainError> {
    let out = &config.run.out;
    fs::create_dir_all(out).map_err(TrainError::io("create", out))?;
    let entries = fs::read_dir(out).map_err(TrainError::io("list", out))?;
    let entries: Result<Vec<_>, _> = entries.map(|entry| entry.map(|e| e.path())).collect();
    let entries = entries.map_err(TrainError::io("list", out))?;
    if !entries.iter().all(|path| is_unfinished_config(path)) {
        return Err(TrainError::RunExists { out: out.clone() });
    }
    for path in &entries {
        fs::remove_file(path).map_err(TrainError::io("remove", path))?;
    }
    write_config(config)
}

/// Whether a run was killed while it wrote this, its first file: then it can only begin again.
fn is_unfinished_config(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.starts_with(&format!(".{CONFIG_FILE}.")) && name.ends_with(".tmp")
}

fn write_config(config: &TrainConfig) -> Result<(), TrainError> {
    let text = config.to_toml();
    write_atomically(&config.run.out.join(CONFIG_FILE), |file| file.write_all(text.as_bytes()))?;
    Ok(())
}

/// The last checkpoint of the run in `out`, or the fresh state where there is none yet.
fn resume(
    config: &TrainConfig,
    files: &ModelFiles,
    fresh: RunState,
) -> Result<(RunState, Option<u64>), TrainError> {
    let out = &config.run.out;
    let path = out.join(CONFIG_FILE);
    let mut text = String::new();
    let file = fs::File::open(&path).map_err(|_| TrainError::NoRun { out: out.clone() })?;
    file.take(1 << 20).read_to_string(&mut text).map_err(TrainError::io("read", &path))?;
    let before = TrainConfig::from_toml(&text, &path.display().to_string(), &[])?;
    let differences = config.differences(&before);
    if !differences.is_empty() {
        let (out, differences) = (out.clone(), differences.join("; "));
        return Err(TrainError::ConfigChanged { out, differences });
    }
    checkpoint::sweep(out)?;
    write_config(config)?;
    let Some(&last) = checkpoint::list(out)?.last() else { return Ok((fresh, None)) };
    let (model, constants) = (&files.config.model, config.optimizer.constants());
    let state = checkpoint::load(out, last, model, constants, config.run.ema > 0.0)?;
    let (then, now) = (&state.progress.data, &fresh.progress.data);
    let changed = (0..now.len()).find(|&i| then.get(i) != now.get(i));
    let same_order = state.progress.cursor.epoch_len == fresh.progress.cursor.epoch_len;
    if let Some(i) = changed.or((!same_order).then_some(0)) {
        return Err(TrainError::DataChanged { path: config.data.train[i].path.clone() });
    }
    if state.progress.preprocess != fresh.progress.preprocess {
        let reason = "the model's image pipeline is another one".to_owned();
        return Err(TrainError::Checkpoint { path: checkpoint::directory(out, last), reason });
    }
    Ok((state, Some(last)))
}

/// Scores one validation set.
fn score(
    clip: &ferroclip::Clip,
    dataset: &Dataset,
    set: &ValidData,
    events: Events<'_>,
    stop: &AtomicBool,
) -> Result<SetScore, TrainError> {
    let events = std::cell::RefCell::new(events);
    let progress = |done, of| (*events.borrow_mut())(Event::Validating { done, of });
    let options = EvalOptions { progress: Some(&progress), stop: Some(stop), batch_size: 0 };
    let mut score = SetScore {
        path: set.path.display().to_string(),
        score: 0.0,
        top1: None,
        top5: None,
        image_to_text: None,
        text_to_image: None,
    };
    if !set.captions.is_empty() {
        let found = eval::retrieval(clip, dataset, &set.captions, &options)?;
        score.score = (found.image_to_text.r1 + found.text_to_image.r1) / 2.0;
        score.image_to_text = Some(found.image_to_text);
        score.text_to_image = Some(found.text_to_image);
    }
    if let Some(label_column) = &set.label {
        let task = ZeroShotTask { label_column, labels: None, templates: &set.templates };
        let found = eval::zero_shot(clip, dataset, &task, &options)?;
        score.score = found.top1;
        (score.top1, score.top5) = (Some(found.top1), Some(found.top5));
    }
    Ok(score)
}
