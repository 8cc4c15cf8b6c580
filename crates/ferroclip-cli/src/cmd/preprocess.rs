//! `preprocess`: the tensor that the image tower sees.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use crate::common::Common;
use crate::error::{Done, Result};
use crate::inputs::{Failure, PictureArgs, Pictures};
use crate::model::{ModelArgs, Need};
use crate::npy::{self, Dtype};
use crate::output;

#[derive(Debug, Args)]
pub(crate) struct PreprocessArgs {
    /// A picture file, or `-`
    image: PathBuf,
    /// The `.npy` file to write: f32, channels x height x width
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    #[command(flatten)]
    picture: PictureArgs,
    #[command(flatten)]
    model: ModelArgs,
}

pub(crate) fn run(args: &PreprocessArgs, common: &Common) -> Result<Done> {
    let encoders = args.model.open_encoders(Need::Once, Need::Nothing, common)?;
    let encoder = encoders.image();
    let pictures = Pictures::list(std::slice::from_ref(&args.image));
    let [source] = pictures.sources()[..] else {
        let one = || crate::error::Error::usage("give one picture file, not a directory");
        return Err(pictures.failures.first().map_or_else(one, |failure| failure.error.clone()));
    };
    let tensor = encoder.preprocess(source, &args.picture.options());
    let tensor = tensor.map_err(|error| Failure::of_picture(&pictures.names[0], error).error)?;
    let [height, width] = encoder.config().preprocess.size;
    let shape = [3, height, width];
    npy::write(&args.out, Dtype::F32, &shape, &tensor)?;
    match common.json {
        true => output::print_json(&json!({
            "model": args.model.model, "path": args.image, "out": args.out, "shape": shape,
        }))?,
        false => {
            let out = args.out.display();
            output::print(&format!("{out}: 3 x {height} x {width}, f32\n"))?;
        }
    }
    Ok(Done::All)
}
