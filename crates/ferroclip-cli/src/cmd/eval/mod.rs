//! `eval`: scores of a model on data.

mod retrieval;
mod zero_shot;

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use ferroclip::image::DecodeLimits;
use ferroclip_data::{Dataset, Failure, Filter};
use ferroclip_train::{EvalOptions, TrainError};
use serde::Serialize;
use serde_json::{Value, json};

use crate::atomic::write_file;
use crate::common::Common;
use crate::error::{Done, Error, Result};
use crate::inputs::{self, print_failures};
use crate::interrupt;
use crate::model::ModelArgs;
use crate::output;
use crate::progress::Progress;

#[derive(Debug, Subcommand)]
pub(crate) enum EvalCommand {
    /// Classify every picture by the name of its class
    ZeroShot(zero_shot::ZeroShotArgs),
    /// Find captions by pictures and pictures by captions
    Retrieval(retrieval::RetrievalArgs),
}

#[derive(Debug, Args)]
pub(crate) struct DataArgs {
    /// Class folders, a table, a zip, or tar shards
    #[arg(long)]
    data: PathBuf,
    /// Rows to use: `column=value`, `column!=value`; all must hold
    #[arg(long, value_name = "FILTER")]
    filter: Vec<String>,
    /// Write the scores to a `.json` file as CLIP_benchmark does, for its `build`
    #[arg(long, value_name = "FILE")]
    result: Option<PathBuf>,
    /// Pictures that go through the tower together
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = parse_batch)]
    batch: usize,
    /// Refuse pictures of more pixels, width times height, before they are decoded [default: 178956970, and what takes
    /// 480 MB of memory]
    #[arg(long, value_name = "N")]
    max_pixels: Option<u64>,
    #[command(flatten)]
    model: ModelArgs,
}

fn parse_batch(text: &str) -> std::result::Result<usize, String> {
    text.parse().ok().filter(|n| *n > 0).ok_or_else(|| "expected a number above 0".to_owned())
}

pub(crate) fn run(command: &EvalCommand, common: &Common) -> Result<Done> {
    match command {
        EvalCommand::ZeroShot(args) => zero_shot::run(args, common),
        EvalCommand::Retrieval(args) => retrieval::run(args, common),
    }
}

impl DataArgs {
    fn open(&self, common: &Common) -> Result<Dataset> {
        let filters = self.filter.iter().map(|filter| filter.parse());
        let filters: std::result::Result<Vec<Filter>, _> = filters.collect();
        let dataset = Dataset::open(&self.data, &filters?)?;
        for notice in dataset.notices() {
            output::note(common, notice);
        }
        Ok(dataset)
    }

    /// Calls `score` with a progress bar and the stop flag.
    fn score<T>(
        &self,
        common: &Common,
        dataset: &Dataset,
        score: impl FnOnce(&EvalOptions<'_>) -> std::result::Result<T, TrainError>,
    ) -> Result<T> {
        let progress = Progress::new(common, "pictures", dataset.len());
        let report = |done, _| progress.set(done);
        let options = EvalOptions {
            batch_size: self.batch,
            progress: Some(&report),
            stop: Some(&interrupt::STOP),
            limits: DecodeLimits::of_pixels(self.max_pixels),
        };
        Ok(score(&options)?)
    }
}

/// The scores as the library gives them, with model and data; failures have our usual shape.
fn document(data: &DataArgs, scores: &impl Serialize, failures: &[Failure]) -> Result<Value> {
    let mut document = json!({"model": data.model.model, "data": data.data});
    let scores = serde_json::to_value(scores)
        .map_err(|error| Error::input(format!("cannot write the scores: {error}")))?;
    if let (Some(document), Value::Object(scores)) = (document.as_object_mut(), scores) {
        document.extend(scores);
    }
    let failure = |failure: &Failure| json!({"path": failure.key, "error": failure.reason});
    document["failures"] = failures.iter().map(failure).collect();
    Ok(document)
}

impl DataArgs {
    /// Writes CLIP_benchmark's document, where it is asked for; `metrics` have its names.
    fn write_result(&self, dataset: &Dataset, task: &str, metrics: Value) -> Result<()> {
        let Some(path) = &self.result else { return Ok(()) };
        // Directories are called by all of their name, files without what stands behind the dot.
        let name = |path: &Path| {
            let name = if path.is_dir() { path.file_name() } else { path.file_stem() };
            name.unwrap_or_default().to_string_lossy().into_owned()
        };
        let dataset = dataset.benchmark().map_or(name(&self.data), |found| found.name.clone());
        let model = self.model.model.as_str();
        let (architecture, tag) = match model.split_once(':') {
            Some(("hf", repository)) => (name(Path::new(repository)), repository),
            Some((architecture, tag)) if !Path::new(model).exists() => {
                (architecture.to_owned(), tag)
            }
            _ => (name(Path::new(model)), model),
        };
        let document = json!({"dataset": dataset, "model": architecture, "pretrained": tag,
            "task": task, "metrics": metrics, "language": "en"});
        write_file(path, format!("{document}\n").as_bytes())
    }
}

/// Lists the failures; the scores are of the other pictures.
fn finish(common: &Common, failures: &[Failure]) -> Result<Done> {
    let failure = |failure: &Failure| {
        let message = format!("`{}`: {}", failure.key, failure.reason);
        inputs::Failure::new(&failure.key, Error::input(message))
    };
    let failures: Vec<inputs::Failure> = failures.iter().map(failure).collect();
    print_failures(&failures, common);
    Ok(Done::with_failures(failures.len()))
}
