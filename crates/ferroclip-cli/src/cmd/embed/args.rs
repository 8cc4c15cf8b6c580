//! What `embed` may be told.

use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, ValueEnum};

use crate::inputs::{PictureArgs, TextArgs};
use crate::model::ModelArgs;
use crate::npy::Dtype;

#[derive(Debug, Args)]
pub(crate) struct EmbedArgs {
    /// Data: class folders, a table, a zip, or tar shards such as `shards/{00000..00009}.tar`
    pub(super) data: Option<PathBuf>,
    /// Picture files or directories of them
    #[arg(long, value_name = "PATH", num_args = 1.., conflicts_with = "data")]
    pub(super) images: Vec<PathBuf>,
    #[command(flatten)]
    pub(super) texts: TextArgs,
    /// The directory to write
    #[arg(long, value_name = "DIR")]
    pub(super) out: PathBuf,
    /// Type of the numbers
    #[arg(long, default_value = "f16")]
    pub(super) dtype: Dtype,
    /// Leave embeddings as the tower gives them; other features always are
    #[arg(long)]
    pub(super) no_normalize: bool,
    /// What to write of each input
    #[arg(long, default_value = "embedding")]
    pub(super) features: Features,
    /// Inputs that go through a tower together
    #[arg(long, value_name = "N", default_value_t = 32)]
    pub(super) batch: usize,
    /// Do only part I of N, counted from 1
    #[arg(long, value_name = "I/N", default_value = "1/1")]
    pub(super) shard: Shard,
    /// Rows of a file [default: 100000, or a shard's share if that is less]
    #[arg(long, value_name = "R")]
    pub(super) rows_per_file: Option<usize>,
    /// Go on where a killed run stopped
    #[arg(long)]
    pub(super) resume: bool,
    /// Rows of DATA to use: `column=value`, `column!=value`
    #[arg(long, value_name = "FILTER", requires = "data")]
    pub(super) filter: Vec<String>,
    /// Columns of DATA with the caption; the first that is not empty counts
    #[arg(long, value_name = "NAMES", value_delimiter = ',', requires = "data")]
    pub(super) caption_columns: Vec<String>,
    #[command(flatten)]
    pub(super) pictures: PictureArgs,
    #[command(flatten)]
    pub(super) model: ModelArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Features {
    /// Unit embeddings, after the projection: rows x embed_dim
    Embedding,
    /// After the final norm and pooling, before the projection, not normalised: rows x width
    Pooled,
    /// Pictures only: the last row of each patch, not normalised: rows x patches x width
    Patches,
}

impl Features {
    pub(super) fn name(self) -> &'static str {
        match self {
            Features::Embedding => "embedding",
            Features::Pooled => "pooled",
            Features::Patches => "patches",
        }
    }

    pub(super) fn of_library(self) -> ferroclip::Features {
        match self {
            Features::Embedding => ferroclip::Features::Embedding,
            Features::Pooled => ferroclip::Features::Pooled,
            Features::Patches => ferroclip::Features::Patches,
        }
    }
}

/// Part and number of parts: typed as `I/N` counted from 1, kept counted from 0.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shard(pub(super) usize, pub(super) usize);

impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Shard, String> {
        let parts =
            text.split_once('/').and_then(|(i, n)| Some((i.parse().ok()?, n.parse().ok()?)));
        match parts {
            Some((i, n)) if (1..=n).contains(&i) => Ok(Shard(i - 1, n)),
            _ => Err("expected I/N with I from 1 to N, for instance 1/4".to_owned()),
        }
    }
}
