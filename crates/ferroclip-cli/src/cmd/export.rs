//! `export`: the towers of a model as ONNX graphs.

use std::path::PathBuf;

use clap::Args;
use ferroclip::ExportedTower;
use serde_json::json;

use crate::common::Common;
use crate::error::{Done, Error, Result};
use crate::model::{ModelArgs, PrecisionArg};
use crate::output;

#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    /// The directory to make: `image.onnx`, `text.onnx`, their weights, and inputs with what this program makes of them
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    #[command(flatten)]
    model: ModelArgs,
}

pub(crate) fn run(args: &ExportArgs, common: &Common) -> Result<Done> {
    if !matches!(args.model.compute.precision, PrecisionArg::F32) {
        return Err(Error::usage("a graph is written in f32")
            .hint("leave `--precision` out; quantise the graph with the program that runs it"));
    }
    let path = args.model.path(common)?;
    let written = ferroclip::export_onnx(&path, args.model.options(), &args.out)?;
    let file = |tower: &ExportedTower| args.out.join(format!("{}.onnx", tower.tower));
    match common.json {
        true => {
            let tower = |tower: &ExportedTower| {
                json!({
                    "tower": tower.tower, "path": file(tower), "operators": tower.operators, "weights_bytes": tower.bytes,
                })
            };
            let towers: Vec<_> = written.iter().map(tower).collect();
            output::print_json(&json!({
                "model": args.model.model, "out": args.out, "towers": towers,
                "reference": args.out.join("inputs_outputs.safetensors"),
            }))?;
        }
        false => {
            for tower in &written {
                let megabytes = tower.bytes as f64 / 1e6;
                output::print(&format!(
                    "{}: {} operators, {megabytes:.1} MB of weights\n",
                    file(tower).display(),
                    tower.operators
                ))?;
            }
        }
    }
    Ok(Done::All)
}
