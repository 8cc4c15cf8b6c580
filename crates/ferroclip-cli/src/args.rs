//! What may be typed: the options that all commands share, and the list of commands.

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::cmd;

/// CLIP on the command line: classify and embed pictures and texts, train, evaluate.
#[derive(Debug, Parser)]
#[command(name = "ferroclip", version, propagate_version = true, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Options of every command.
#[derive(Debug, Clone, Args)]
pub(crate) struct Common {
    /// Print one JSON document on standard output, and nothing else there
    #[arg(long, global = true, help_heading = "Output")]
    pub(crate) json: bool,
    /// Progress on standard error
    #[arg(
        long,
        global = true,
        value_name = "MODE",
        default_value = "auto",
        help_heading = "Output"
    )]
    pub(crate) progress: ProgressMode,
    /// No progress, no notes
    #[arg(long, short, global = true, help_heading = "Output")]
    pub(crate) quiet: bool,
}

/// How progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ProgressMode {
    /// A bar, if standard error is a terminal
    Auto,
    /// None
    Never,
    /// Lines of JSON
    Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Find the best of your labels for each picture (zero-shot classification)
    Classify(cmd::classify::ClassifyArgs),
    /// Write embeddings of pictures and texts as NumPy files
    Embed(cmd::embed::EmbedArgs),
    /// Cosines between pictures and texts
    Similarity(cmd::similarity::SimilarityArgs),
    /// Token ids of texts
    Tokenize(cmd::tokenize::TokenizeArgs),
    /// The tensor that the image tower sees, as a NumPy file
    Preprocess(cmd::preprocess::PreprocessArgs),
    /// Architecture, parameters, tokenizer and image pipeline of a model
    Inspect(cmd::inspect::InspectArgs),
    /// Train a model from a TOML file
    Train(cmd::train::TrainArgs),
    /// Score a model on data
    #[command(subcommand)]
    Eval(cmd::eval::EvalCommand),
    /// Rates of the towers and of training steps on random inputs
    Bench(cmd::bench::BenchArgs),
}
