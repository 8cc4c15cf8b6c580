//! `tokenize`: the token ids of texts.

use clap::Args;
use serde_json::{Value, json};

use crate::common::Common;
use crate::error::{Done, Result, one_line};
use crate::inputs::TextArgs;
use crate::model::{ModelArgs, Need};
use crate::output;

#[derive(Debug, Args)]
pub(crate) struct TokenizeArgs {
    #[command(flatten)]
    texts: TextArgs,
    #[command(flatten)]
    model: ModelArgs,
}

pub(crate) fn run(args: &TokenizeArgs, common: &Common) -> Result<Done> {
    let texts = args.texts.read()?;
    let encoders = args.model.open_encoders(Need::Nothing, Need::Once, common)?;
    let encoder = encoders.text();
    let mut rows = Vec::with_capacity(texts.len());
    let mut values = Vec::with_capacity(texts.len());
    for text in &texts {
        let tokens = encoder.tokenize(text);
        if common.json {
            let truncated = tokens.truncated > 0;
            values.push(json!({"text": text, "ids": tokens.ids, "truncated": truncated}));
        } else {
            let ids: Vec<String> = tokens.ids.iter().map(u32::to_string).collect();
            let cut = match tokens.truncated {
                0 => String::new(),
                n => format!("(cut: {n} ids too many)"),
            };
            rows.push(vec![one_line(text), tokens.ids.len().to_string(), ids.join(" "), cut]);
        }
    }
    match common.json {
        true => output::print_json(&json!({
            "model": args.model.model, "texts": Value::Array(values),
        }))?,
        false => output::print(&output::table(&["text", "n", "ids", ""], &rows, &[1]))?,
    }
    Ok(Done::All)
}
