//! `train`: a training run from a TOML file.

use std::path::PathBuf;

use clap::Args;
use ferroclip_train::{DryRun, Event, Outcome, Start, StepMetrics, TrainConfig};
use serde_json::{Value, json};

use crate::common::Common;
use crate::error::{Done, Error, Result};
use crate::inputs::{Failure, print_failures};
use crate::interrupt;
use crate::model::from_hub;
use crate::output::{note, print, print_json, table};
use crate::progress::Progress;

#[derive(Debug, Args)]
pub(crate) struct TrainArgs {
    /// The training file
    config: PathBuf,
    /// Override a field, for instance `run.epochs=1`; may be given several times
    #[arg(long, value_name = "FIELD=VALUE")]
    set: Vec<String>,
    /// Go on from the last checkpoint of the run
    #[arg(long, conflicts_with = "dry_run")]
    resume: bool,
    /// Take two steps, write nothing, and tell what the run will cost
    #[arg(long)]
    dry_run: bool,
    /// Threads [default: those of the file]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
}

pub(crate) fn run(args: &TrainArgs, common: &Common) -> Result<Done> {
    let mut overrides = args.set.clone();
    overrides.extend(args.threads.map(|n| format!("run.threads={n}")));
    let mut config = TrainConfig::load(&args.config, &overrides)?;
    if let Some(folder) = from_hub(&config.model.config, common)? {
        config.model.config = folder.display().to_string();
    }
    if args.dry_run {
        let cost = ferroclip_train::dry_run(&config, &interrupt::STOP)?;
        print_cost(common, &cost)?;
        return Ok(Done::All);
    }
    let start = if args.resume { Start::Resume } else { Start::New };
    let mut teller = Teller { common, steps: None, validation: None };
    let mut events = |event| teller.tell(event);
    let outcome = ferroclip_train::run(&config, start, &mut events, &interrupt::STOP)?;
    drop(teller);
    if outcome.model.is_none() {
        let at = match &outcome.checkpoint {
            Some(path) => format!("the checkpoint `{}` is written; ", path.display()),
            None => String::new(),
        };
        let command = format!("ferroclip train \"{}\" --resume", args.config.display());
        return Err(Error::interrupted(&format!("{at}go on with `{command}` and the same --set")));
    }
    let failures = failures(&outcome);
    print_outcome(common, &outcome, &failures)?;
    print_failures(&failures, common);
    Ok(Done::with_failures(failures.len()))
}

/// The pictures that were passed over, in training (the first hundred) and in the last validation.
fn failures(outcome: &Outcome) -> Vec<Failure> {
    let of_validation = outcome.scores.iter().flat_map(|set| &set.failures);
    let all = outcome.tally.failures().iter().chain(of_validation);
    let mut failures: Vec<Failure> = Vec::new();
    for failure in all {
        if !failures.iter().any(|known| known.path == failure.key) {
            let message = format!("`{}`: {}", failure.key, failure.reason);
            failures.push(Failure::new(&failure.key, Error::input(message)));
        }
    }
    failures
}

/// Turns events into progress and notes.
struct Teller<'a> {
    common: &'a Common,
    steps: Option<Progress>,
    validation: Option<Progress>,
}

impl Teller<'_> {
    fn tell(&mut self, event: Event) {
        match event {
            Event::Notice(text) => self.note(&text),
            Event::Started { step, steps, epoch_len, parameters } => {
                self.note(&format!(
                    "{parameters} parameters, {epoch_len} samples an epoch, steps {step} to {steps}"
                ));
                self.steps = Some(Progress::resumed(self.common, "steps", step, steps));
            }
            Event::Step { metrics, seconds_left, .. } => {
                if let Some(progress) = &self.steps {
                    progress.show(metrics.step, Some(words(&metrics, seconds_left)));
                }
            }
            Event::Validating { done, of } => {
                let start = || Progress::new(self.common, "validating", of);
                self.validation.get_or_insert_with(start).set(done);
            }
            Event::Validated { step, scores, is_best } => {
                self.validation = None;
                let best = if is_best { ", the best so far" } else { "" };
                for set in scores {
                    let failed = match set.failures.len() {
                        0 => String::new(),
                        n => format!("; {n} pictures could not be scored"),
                    };
                    self.note(&format!("step {step}: {} {:.4}{best}{failed}", set.path, set.score));
                }
            }
            Event::Checkpoint { .. } => {}
        }
    }

    /// A note above the bar, which is drawn again afterwards.
    fn note(&self, text: &str) {
        match &self.steps {
            Some(progress) => progress.suspend(|| note(self.common, text)),
            None => note(self.common, text),
        }
    }
}

fn words(metrics: &StepMetrics, seconds_left: f64) -> String {
    let StepMetrics { loss, time, .. } = metrics;
    let minutes = seconds_left / 60.0;
    format!("loss {loss:.4}, {:.0} pairs/s, {minutes:.1} min to go", time.pairs_per_s)
}

fn print_cost(common: &Common, cost: &DryRun) -> Result<()> {
    for text in &cost.notices {
        note(common, text);
    }
    let seconds = cost.seconds_per_step * cost.steps as f64;
    let document = json!({
        "parameters": cost.parameters, "steps": cost.steps, "epoch_len": cost.epoch_len,
        "state_bytes": cost.state_bytes, "peak_bytes": cost.peak_bytes,
        "seconds_per_step": cost.seconds_per_step, "seconds": seconds,
    });
    print_fields(common, &document)
}

fn print_outcome(common: &Common, outcome: &Outcome, failures: &[Failure]) -> Result<()> {
    let best = outcome.best.as_ref().map(|best| json!({"step": best.step, "score": best.score}));
    let mut document = json!({
        "model": outcome.model, "step": outcome.step, "steps": outcome.steps,
        "last": outcome.last, "valid": outcome.scores, "best": best,
        "samples": outcome.tally.seen(), "bad_samples": outcome.tally.failed(),
        "truncated_texts": outcome.truncated,
    });
    if common.json {
        document["failures"] = failures.iter().map(Failure::to_json).collect();
    }
    print_fields(common, &document)
}

fn print_fields(common: &Common, document: &Value) -> Result<()> {
    if common.json {
        return print_json(document);
    }
    let mut rows = Vec::new();
    super::inspect::flatten("", document, &mut rows);
    print(&table(&["field", "value"], &rows, &[]))
}
