//! `inspect`: what a model is made of.

use std::path::Path;

use clap::Args;
use serde_json::{Value, json};

use crate::common::Common;
use crate::error::{Done, Error, Result};
use crate::model::ModelArgs;
use crate::output;
use ferroclip::is_buffer;

#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    #[command(flatten)]
    model: ModelArgs,
}

/// Parameters by part.
#[derive(Default)]
struct Counts {
    image: usize,
    text: usize,
    other: usize,
}

pub(crate) fn run(args: &InspectArgs, common: &Common) -> Result<Done> {
    let path = args.model.set_up(common)?;
    let found = ferroclip::inspect(path.as_deref(), args.model.options())?;
    let (config, origin) = (&found.config, &found.origin);
    let mut counts = Counts::default();
    let shapes = config.model.parameter_shapes().into_iter();
    for (name, shape) in shapes.filter(|(name, _)| !is_buffer(name)) {
        let n: usize = shape.iter().product();
        match name.starts_with("visual.") {
            true => counts.image += n,
            false if name.starts_with("logit_") => counts.other += n,
            false => counts.text += n,
        }
    }
    let total = counts.image + counts.text + counts.other;
    let towers = config.model.towers;
    let mut written: Value = serde_json::from_str(&config.to_json())
        .map_err(|error| Error::input(format!("cannot write the config: {error}")))?;
    // Of a tower that is not there the config says nothing.
    for (section, has) in [("vision_cfg", towers.has_image()), ("text_cfg", towers.has_text())] {
        if !has {
            written["model_cfg"][section] = Value::Null;
        }
    }
    let document = json!({
        "model": args.model.model,
        "config": written,
        "parameters": {"image": counts.image, "text": counts.text, "total": total},
        "memory": {"f32_bytes": total * 4},
        "logit_scale": found.logit_scale,
        "scale": found.logit_scale.map(f32::exp),
        "logit_bias": found.logit_bias,
        "tokenizer": found.tokenizer.as_ref().map(|tokenizer| match tokenizer {
            Ok(tokenizer) => json!({
                "vocab_size": tokenizer.vocab_size(),
                "start_id": tokenizer.start_and_end().map(|[start, _]| start),
                "end_id": tokenizer.start_and_end().map(|[_, end]| end),
                "pad_id": tokenizer.pad_id(),
                "context_length": config.model.text_cfg.context_length,
            }),
            // The rest of the model is sound; what reads texts says this as an error.
            Err(error) => json!({"error": error.to_string()}),
        }),
        "preprocess": towers.has_image().then_some(&config.preprocess),
        "templates": config.templates,
        "format": origin.format,
        "dialect": origin.dialect,
        "recognised": origin.recognised,
        "conventions": origin.conventions,
        "assumptions": origin.assumptions,
        "ignored": origin.ignored,
        "licence": licence(path.as_deref()),
    });
    match common.json {
        true => output::print_json(&document)?,
        false => output::print(&lines(&document))?,
    }
    Ok(Done::All)
}

/// The licence that the model card names, if there is one; without a path it is the built-in model.
fn licence(path: Option<&Path>) -> Option<String> {
    let Some(path) = path else {
        return Some("MIT OR Apache-2.0; credits in models/draw-mini/README.md".to_owned());
    };
    // The model is a directory or a file of weights in it.
    let card = match path.is_file() {
        true => path.with_file_name("README.md"),
        false => path.join("README.md"),
    };
    let card = std::fs::read_to_string(card).ok()?;
    let line = card.lines().take(100).find_map(|line| line.strip_prefix("license:"))?;
    Some(line.trim().to_owned())
}

/// Every leaf of the document as `path: value`, one a line, the paths in one column.
fn lines(document: &Value) -> String {
    let mut rows = Vec::new();
    flatten("", document, &mut rows);
    output::table(&["", ""], &rows, &[]).trim_start_matches('\n').to_owned()
}

pub(super) fn flatten(path: &str, value: &Value, rows: &mut Vec<Vec<String>>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                flatten(&path, value, rows);
            }
        }
        Value::Null => rows.push(vec![path.to_owned(), "unknown".to_owned()]),
        Value::String(text) => rows.push(vec![path.to_owned(), text.clone()]),
        other => rows.push(vec![path.to_owned(), other.to_string()]),
    }
}
