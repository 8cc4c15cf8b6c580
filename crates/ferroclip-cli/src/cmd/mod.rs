//! The commands, one file each.

pub(crate) mod bench;
pub(crate) mod classify;
pub(crate) mod convert;
pub(crate) mod embed;
pub(crate) mod eval;
pub(crate) mod export;
pub(crate) mod fetch;
pub(crate) mod inspect;
pub(crate) mod preprocess;
pub(crate) mod similarity;
pub(crate) mod tokenize;
pub(crate) mod train;
pub(crate) mod verify;

use crate::args::Command;
use crate::common::Common;
use crate::error::{Done, Result};

pub(crate) fn run(command: &Command, common: &Common) -> Result<Done> {
    match command {
        Command::Classify(args) => classify::run(args, common),
        Command::Embed(args) => embed::run(args, common),
        Command::Similarity(args) => similarity::run(args, common),
        Command::Tokenize(args) => tokenize::run(args, common),
        Command::Preprocess(args) => preprocess::run(args, common),
        Command::Inspect(args) => inspect::run(args, common),
        Command::Fetch(args) => fetch::run(args, common),
        Command::Convert(args) => convert::run(args, common),
        Command::Export(args) => export::run(args, common),
        Command::Verify(args) => verify::run(args, common),
        Command::Train(args) => train::run(args, common),
        Command::Eval(command) => eval::run(command, common),
        Command::Bench(args) => bench::run(args, common),
    }
}
