//! `convert`: a model in the files of another program.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use ferroclip::Program;
use serde_json::json;

use crate::common::Common;
use crate::error::{Done, Error, Result};
use crate::model::{ModelArgs, PrecisionArg};
use crate::output;

#[derive(Debug, Args)]
pub(crate) struct ConvertArgs {
    /// Whose files to write
    #[arg(long, value_enum)]
    to: ProgramArg,
    /// The directory to make
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    #[command(flatten)]
    model: ModelArgs,
}

/// [`Program`] on the command line.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum ProgramArg {
    /// A directory with `open_clip_config.json`
    OpenClip,
    /// A directory of transformers with `config.json`
    Hf,
    /// A `model.pt` that OpenAI's `clip.load` reads
    Openai,
}

pub(crate) fn run(args: &ConvertArgs, common: &Common) -> Result<Done> {
    args.model.refuse_sizes("a conversion")?;
    if !matches!(args.model.compute.precision, PrecisionArg::F32) {
        return Err(Error::usage("`--precision` has no meaning for a conversion")
            .hint("leave it out: tensors are written in the format that they are stored in"));
    }
    let path = args.model.path(common)?;
    let to = match args.to {
        ProgramArg::OpenClip => Program::OpenClip,
        ProgramArg::Hf => Program::Transformers,
        ProgramArg::Openai => Program::OpenAi,
    };
    let done = ferroclip::convert(&path, to, &args.out)?;
    for note in &done.notes {
        output::note(common, note);
    }
    let file = args.out.join(done.weights_file);
    match common.json {
        true => output::print_json(&json!({
            "model": args.model.model, "out": args.out, "weights": file, "tensors": done.tensors,
            "verified": true, "notes": done.notes,
        }))?,
        false => output::print(&format!(
            "{}: {} tensors; read back, they give the same embeddings\n",
            file.display(),
            done.tensors
        ))?,
    }
    Ok(Done::All)
}
