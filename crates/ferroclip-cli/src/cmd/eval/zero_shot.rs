//! `eval zero-shot`: every picture is classified by the name of its class.

use std::path::PathBuf;

use clap::Args;
use ferroclip_train::{ClassScore, Prediction, ZeroShot, ZeroShotTask};

use super::{DataArgs, document, finish};
use crate::atomic::write_file;
use crate::common::Common;
use crate::error::{Done, Error, Result, one_line};
use crate::inputs::{LabelArgs, TemplateArgs};
use crate::output;

#[derive(Debug, Args)]
pub(crate) struct ZeroShotArgs {
    #[command(flatten)]
    data: DataArgs,
    /// The column of the right labels
    #[arg(long, value_name = "NAME", default_value = "label")]
    label_column: String,
    #[command(flatten)]
    labels: LabelArgs,
    #[command(flatten)]
    templates: TemplateArgs,
    /// Write the answer for each picture to a `.csv` file
    #[arg(long, value_name = "FILE")]
    predictions: Option<PathBuf>,
}

pub(super) fn run(args: &ZeroShotArgs, common: &Common) -> Result<Done> {
    let labels = match args.labels.label.is_empty() && args.labels.labels.is_none() {
        true => None,
        false => Some(args.labels.read(common)?),
    };
    let dataset = args.data.open(common)?;
    let clip = args.data.model.open()?;
    let templates = args.templates.read(&clip.config().templates)?;
    let task = ZeroShotTask {
        label_column: &args.label_column,
        labels: labels.as_deref(),
        templates: &templates,
    };
    let scores = args.data.score(common, &dataset, |options| {
        ferroclip_train::zero_shot(&clip, &dataset, &task, options)
    })?;
    if scores.truncated > 0 {
        output::note(common, &format!("{} labels were too long and were cut", scores.truncated));
    }
    if let Some(path) = &args.predictions {
        write_file(path, &csv(&scores.predictions)?)?;
    }
    match common.json {
        true => output::print_json(&document(&args.data, &scores, &scores.failures)?)?,
        false => output::print(&zero_shot_table(&scores))?,
    }
    finish(common, &scores.failures)
}

fn zero_shot_table(scores: &ZeroShot) -> String {
    let percent = |share: f64| format!("{:.1} %", 100.0 * share);
    let class = |class: &ClassScore| {
        vec![one_line(&class.label), class.n.to_string(), percent(class.top1), percent(class.top5)]
    };
    let mut rows: Vec<Vec<String>> = scores.classes.iter().map(class).collect();
    let (top1, top5) = (percent(scores.top1), percent(scores.top5));
    rows.push(vec!["all".to_owned(), scores.n.to_string(), top1, top5]);
    let table = output::table(&["class", "n", "top-1", "top-5"], &rows, &[1, 2, 3]);
    let mean = percent(scores.mean_per_class_recall);
    format!("{table}mean over classes {mean}, {} labels to choose from\n", scores.n_labels)
}

fn csv(predictions: &[Prediction]) -> Result<Vec<u8>> {
    let failed = |error: &dyn std::fmt::Display| Error::input(format!("cannot write csv: {error}"));
    let mut writer = csv::Writer::from_writer(Vec::new());
    for prediction in predictions {
        writer.serialize(prediction).map_err(|error| failed(&error))?;
    }
    writer.into_inner().map_err(|error| failed(&error))
}
