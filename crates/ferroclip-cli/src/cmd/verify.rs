//! `verify`: a model against what another program computed with it.

use std::path::PathBuf;

use clap::Args;
use ferroclip::VerifiedDifference;
use serde_json::{Value, json};

use crate::common::Common;
use crate::error::{Done, Error, Result};
use crate::model::ModelArgs;
use crate::output;

#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    /// A directory with `inputs_outputs.safetensors`, or such a file: `images` and `image_unit`, `ids` and
    /// `text_unit`
    #[arg(long, value_name = "DIR")]
    against: PathBuf,
    /// Largest difference of an element of a unit embedding that passes
    #[arg(long, default_value_t = 1e-5, value_name = "D", value_parser = parse_limit)]
    limit: f32,
    #[command(flatten)]
    model: ModelArgs,
}

fn parse_limit(text: &str) -> std::result::Result<f32, String> {
    match text.parse() {
        Ok(limit) if limit >= 0.0 => Ok(limit),
        _ => Err("expected a number of at least 0".to_owned()),
    }
}

pub(crate) fn run(args: &VerifyArgs, common: &Common) -> Result<Done> {
    let path = args.model.path(common)?;
    let found = ferroclip::verify(&path, &args.against, args.model.options())?;
    let of = |difference: Option<VerifiedDifference>| match difference {
        Some(found) => json!({"n": found.n, "largest": found.largest}),
        None => Value::Null,
    };
    let all = [("image", found.image), ("text", found.text)];
    let fails = |difference: &VerifiedDifference| {
        difference.largest > args.limit || difference.largest.is_nan()
    };
    let failed = all.iter().find_map(|(tower, d)| Some((tower, (*d).filter(fails)?)));
    if !common.json {
        for (tower, difference) in all.iter().filter_map(|(tower, d)| Some((tower, (*d)?))) {
            let VerifiedDifference { n, largest } = difference;
            output::print(&format!(
                "{tower}: {n} unit embeddings, largest difference {largest:.1e}\n"
            ))?;
        }
    }
    if let Some((tower, VerifiedDifference { largest, .. })) = failed {
        let message = format!(
            "the embeddings of the {tower} tower differ by up to {largest:.1e}, limit {:.1e}",
            args.limit
        );
        return Err(Error::input(message).hint(
            "check that model and reference are of the same weights; `inspect` shows what was assumed about the model",
        ));
    }
    if common.json {
        output::print_json(&json!({
            "model": args.model.model, "against": args.against, "limit": args.limit,
            "image": of(found.image), "text": of(found.text),
        }))?;
    }
    Ok(Done::All)
}
