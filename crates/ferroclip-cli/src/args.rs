//! What may be typed: the list of commands.

use clap::{Parser, Subcommand};

use crate::cmd;
use crate::common::Common;

/// CLIP on the command line: classify and embed pictures and texts, train, evaluate.
#[derive(Debug, Parser)]
#[command(name = "ferroclip", version, propagate_version = true, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(subcommand)]
    pub(crate) command: Command,
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
    /// Download a model, check it and keep it in the cache
    Fetch(cmd::fetch::FetchArgs),
    /// Write a model in the files of open_clip, transformers or OpenAI's code
    Convert(cmd::convert::ConvertArgs),
    /// Write the towers as ONNX graphs
    Export(cmd::export::ExportArgs),
    /// Compare a model with what another program computed with it
    Verify(cmd::verify::VerifyArgs),
    /// Train a model from a TOML file
    Train(cmd::train::TrainArgs),
    /// Score a model on data
    #[command(subcommand)]
    Eval(cmd::eval::EvalCommand),
    /// Rates of the towers and of training steps, and of the cores themselves
    Bench(cmd::bench::BenchArgs),
}
