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
            false if name != "logit_scale" => counts.text += n,
            false => {}
        }
    }
    let total = counts.image + counts.text + 1;
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
        "tokenizer": {
            "vocab_size": tokenizer.vocab_size(),
            "start_id": tokenizer.start_id(),
            "end_id": tokenizer.end_id(),
            "context_length": config.model.text_cfg.context_length,
        },
        "preprocess": config.preprocess,
        "templates": config.templates,
        "assumptions": assumptions(args),
        "licence": licence(args),
    });
    match common.json {
        true => output::print_json(&document)?,
        false => output::print(&lines(&document))?,
    }
    Ok(Done::All)
}

/// What the config file leaves open, so that open_clip's defaults decide.
fn assumptions(args: &InspectArgs) -> Vec<String> {
    let path = beside(args, "open_clip_config.json");
    let Ok(text) = std::fs::read_to_string(path) else { return Vec::new() };
    let config: Value = serde_json::from_str(&text).unwrap_or_default();
    let fields = [
        ("model_cfg", &["quick_gelu"][..]),
        ("preprocess_cfg", &["size", "mean", "std", "interpolation", "resize_mode"][..]),
    ];
    let absent = |&(section, name): &(&str, &str)| config[section].get(name).is_none();
    let all = fields.iter().flat_map(|&(section, names)| names.iter().map(move |&n| (section, n)));
    all.filter(absent)
        .map(|(section, name)| format!("`{section}.{name}` is not given: open_clip's default"))
        .collect()
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
