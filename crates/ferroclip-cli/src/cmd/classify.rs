//! `classify`: for each picture the labels that fit it best.

use std::path::PathBuf;

use clap::Args;
use ferroclip::{Score, Scoring};
use serde_json::{Value, json};

use crate::classes::ClassArgs;
use crate::common::Common;
use crate::error::{Done, Result, one_line};
use crate::inputs::{self, Failure, LabelArgs, PictureArgs, Pictures, TemplateArgs};
use crate::model::{ModelArgs, Need};
use crate::output;

#[derive(Debug, Args)]
pub(crate) struct ClassifyArgs {
    /// Picture files, directories of them, or `-`
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<PathBuf>,
    #[command(flatten)]
    labels: LabelArgs,
    #[command(flatten)]
    templates: TemplateArgs,
    /// Labels shown for each picture; 0 is all
    #[arg(long, value_name = "K", default_value_t = 5)]
    top_k: usize,
    /// Show only labels with at least this score
    #[arg(long, value_name = "SCORE", default_value_t = 0.0, value_parser = parse_score)]
    threshold: f32,
    /// Any number of labels may apply: score each alone
    #[arg(long)]
    multi_label: bool,
    #[command(flatten)]
    classes: ClassArgs,
    #[command(flatten)]
    pictures: PictureArgs,
    #[command(flatten)]
    model: ModelArgs,
}

fn parse_score(text: &str) -> std::result::Result<f32, String> {
    let score = text.parse().ok().filter(|score| (0.0..=1.0).contains(score));
    score.ok_or_else(|| "expected a score, 0 to 1".to_owned())
}

/// The labels of one picture, best first.
struct Answer<'a> {
    path: &'a str,
    scores: Vec<Score>,
}

pub(crate) fn run(args: &ClassifyArgs, common: &Common) -> Result<Done> {
    // Whatever is wrong with the texts is said before the model is opened.
    let labels = args.labels.read(common)?;
    let given = args.templates.is_given().then(|| args.templates.read(&[])).transpose()?;
    let pictures = Pictures::list(&args.images);
    let options = args.pictures.options();
    // A model's own templates are one, mostly.
    let n_texts = labels.len() * given.as_ref().map_or(1, Vec::len);
    let most = pictures.names.len().max(n_texts);
    let clip = args.model.open(Need::of_batches(most.div_ceil(options.batch_size)), common)?;
    let templates = given.map_or_else(|| args.templates.read(&clip.config().templates), Ok)?;
    let classifier = args.classes.embed(&clip, &args.model, &labels, &templates, common)?;
    let classifier = match args.multi_label {
        true => classifier.with_scoring(Scoring::Sigmoid),
        false => classifier,
    };
    for &label_idx in &classifier.embeddings().truncated {
        output::note(common, &format!("the label `{}` is too long and was cut", labels[label_idx]));
    }
    let (result, failures) =
        inputs::embed_pictures(clip.image_encoder(), &pictures, &options, common)?;
    let top_k = if args.top_k == 0 { labels.len() } else { args.top_k };
    let answer = |(&place, embedding): (&usize, &[f32])| {
        let mut scores = classifier.classify(embedding, top_k);
        scores.retain(|score| score.score >= args.threshold);
        Answer { path: pictures.names[place].as_str(), scores }
    };
    let answers: Vec<Answer<'_>> =
        result.inputs.iter().zip(result.embeddings.iter()).map(answer).collect();
    match common.json {
        true => output::print_json(&document(args, &labels, &templates, &answers, &failures))?,
        false => output::print(&table(&answers))?,
    }
    inputs::print_failures(&failures, common);
    Ok(Done::with_failures(failures.len()))
}

fn document(
    args: &ClassifyArgs,
    labels: &[String],
    templates: &[String],
    answers: &[Answer<'_>],
    failures: &[Failure],
) -> Value {
    let score = |s: &Score| json!({"label": s.label, "score": s.score, "similarity": s.similarity});
    let image = |answer: &Answer<'_>| {
        let scores: Vec<Value> = answer.scores.iter().map(score).collect();
        json!({"path": answer.path, "scores": scores})
    };
    json!({
        "model": args.model.model,
        "labels": labels,
        "templates": templates,
        "images": answers.iter().map(image).collect::<Vec<_>>(),
        "failures": failures.iter().map(Failure::to_json).collect::<Vec<_>>(),
    })
}

fn table(answers: &[Answer<'_>]) -> String {
    let mut rows = Vec::new();
    for answer in answers {
        let mut path = answer.path;
        if answer.scores.is_empty() {
            rows.push(vec![path.to_owned(), "(none)".to_owned()]);
        }
        for score in &answer.scores {
            rows.push(vec![
                path.to_owned(),
                one_line(&score.label),
                format!("{:.1} %", 100.0 * score.score),
                output::bar(score.score),
            ]);
            path = "";
        }
    }
    output::table(&["picture", "label", "score", ""], &rows, &[2])
}
