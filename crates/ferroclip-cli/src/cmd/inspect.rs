//! `inspect`: what a model is made of.

use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::{Value, json};

use crate::common::Common;
use crate::error::{Done, Error, Result};
use crate::model::{BUILTIN, ModelArgs};
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
    let clip = args.model.open()?;
    let config = clip.config();
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
    let written: Value = serde_json::from_str(&config.to_json())
        .map_err(|error| Error::input(format!("cannot write the config: {error}")))?;
    let tokenizer = clip.tokenizer();
    let document = json!({
        "model": args.model.model,
        "config": written,
        "parameters": {"image": counts.image, "text": counts.text, "total": total},
        "memory": {"f32_bytes": total * 4},
        "logit_scale": clip.logit_scale(),
        "scale": clip.logit_scale().exp(),
        "logit_bias": clip.logit_bias(),
        "tokenizer": {
            "vocab_size": tokenizer.vocab_size(),
            "start_id": tokenizer.start_and_end().map(|[start, _]| start),
            "end_id": tokenizer.start_and_end().map(|[_, end]| end),
            "pad_id": tokenizer.pad_id(),
            "context_length": config.model.text_cfg.context_length,
        },
        "preprocess": config.preprocess,
        "templates": config.templates,
        "format": clip.origin().format,
        "dialect": clip.origin().dialect,
        "recognised": clip.origin().recognised,
        "conventions": clip.origin().conventions,
        "assumptions": clip.origin().assumptions,
        "ignored": clip.origin().ignored,
        "licence": licence(args),
    });
    match common.json {
        true => output::print_json(&document)?,
        false => output::print(&lines(&document))?,
    }
    Ok(Done::All)
}

/// A file of the model, which is a directory or a file of weights in it.
fn beside(args: &InspectArgs, name: &str) -> PathBuf {
    let path = Path::new(&args.model.model);
    match path.is_file() {
        true => path.with_file_name(name),
        false => path.join(name),
    }
}

/// The licence that the model card names, if there is one.
fn licence(args: &InspectArgs) -> Option<String> {
    if args.model.model == BUILTIN {
        return Some("MIT OR Apache-2.0; credits in models/draw-mini/README.md".to_owned());
    }
    let card = std::fs::read_to_string(beside(args, "README.md"));
    let card = card.ok()?;
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
