//! `eval zero-shot`: every picture is classified by the name of its class.

use std::path::PathBuf;

use clap::Args;
use ferroclip_data::Dataset;
use ferroclip_train::{ClassScore, Prediction, ZeroShot, ZeroShotTask};
use ferroclip_train::{label_union, right_classes, right_labels};
use serde_json::{Value, json};

use super::{DataArgs, document, finish};
use crate::atomic::write_file;
use crate::classes::ClassArgs;
use crate::common::Common;
use crate::error::{Done, Error, Result, one_line};
use crate::imagenet;
use crate::inputs::{LabelArgs, TemplateArgs};
use crate::model::Need;
use crate::output;

#[derive(Debug, Args)]
pub(crate) struct ZeroShotArgs {
    #[command(flatten)]
    data: DataArgs,
    /// The column of the right labels [default: `label`; of a CLIP_benchmark dataset the `.cls` files]
    #[arg(long, value_name = "NAME")]
    label_column: Option<String>,
    #[command(flatten)]
    labels: LabelArgs,
    #[command(flatten)]
    templates: TemplateArgs,
    #[command(flatten)]
    classes: ClassArgs,
    /// Write the answer for each picture to a `.csv` file
    #[arg(long, value_name = "FILE")]
    predictions: Option<PathBuf>,
}

pub(super) fn run(args: &ZeroShotArgs, common: &Common) -> Result<Done> {
    let given = args.labels.is_given().then(|| args.labels.read(common)).transpose()?;
    let dataset = args.data.open(common)?;
    let (labels, right) = choice(args, &dataset, given)?;
    let model = &args.data.model;
    let clip = model.open(Need::Often, common)?;
    let of_data = dataset.benchmark().map(|found| &found.templates).filter(|own| !own.is_empty());
    let templates = args.templates.read(of_data.unwrap_or(&clip.config().templates))?;
    let classifier = args.classes.embed(&clip, model, &labels, &templates, common)?;
    let task = ZeroShotTask { classifier: &classifier, right: &right };
    let scores = args.data.score(common, &dataset, |options| {
        ferroclip_train::zero_shot(&clip, &dataset, &task, options)
    })?;
    if scores.truncated > 0 {
        output::note(common, &format!("{} labels were too long and were cut", scores.truncated));
    }
    if let Some(path) = &args.predictions {
        write_file(path, &csv(&scores.predictions)?)?;
    }
    args.data.write_result(&dataset, "zeroshot_classification", metrics(&scores))?;
    match common.json {
        true => {
            let mut document = document(&args.data, &scores, &scores.failures)?;
            document["templates"] = json!(templates);
            output::print_json(&document)?;
        }
        false => output::print(&zero_shot_table(&scores))?,
    }
    finish(common, &scores.failures)
}

/// The labels to choose from, and the place of each row's right one.
fn choice(
    args: &ZeroShotArgs,
    dataset: &Dataset,
    given: Option<Vec<String>>,
) -> Result<(Vec<String>, Vec<Option<usize>>)> {
    if let (Some(benchmark), None) = (dataset.benchmark(), &args.label_column) {
        let labels = numbered(given, &benchmark.classes)?;
        let right = right_classes(dataset, labels.len())?;
        return Ok((labels, right));
    }
    let column = args.label_column.as_deref().unwrap_or("label");
    let union = label_union(dataset, column)?;
    let right = match &given {
        Some(_)
            if args.labels.is_imagenet() && union.iter().all(|label| imagenet::is_id(label)) =>
        {
            right_labels(dataset, column, &imagenet::ids())?
        }
        labels => right_labels(dataset, column, labels.as_ref().unwrap_or(&union))?,
    };
    Ok((given.unwrap_or(union), right))
}

/// Labels that the data counts: its own, or as many others in their place.
fn numbered(given: Option<Vec<String>>, classes: &[String]) -> Result<Vec<String>> {
    let labels = given.unwrap_or_else(|| classes.to_vec());
    if labels.is_empty() {
        return Err(Error::input("the data counts its classes and has no `classnames.txt`")
            .hint("give their names in order with `--labels FILE`"));
    }
    if !classes.is_empty() && labels.len() != classes.len() {
        let message =
            format!("{} labels for the {} classes of the data", labels.len(), classes.len());
        return Err(Error::usage(message).hint("give one for each line of `classnames.txt`"));
    }
    Ok(labels)
}

/// The scores as CLIP_benchmark names them. Where there are fewer than five classes it has no `acc5`.
fn metrics(scores: &ZeroShot) -> Value {
    let acc5 = (scores.n_labels >= 5).then_some(scores.top5);
    json!({"acc1": scores.top1, "acc5": acc5, "mean_per_class_recall": scores.mean_per_class_recall})
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
