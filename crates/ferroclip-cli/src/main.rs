//! The `ferroclip` program.
//!
//! `args` says what may be typed; each command is one file of `cmd/`: arguments to library
//! configuration, call, print. This crate is the only one that prints, and `error` the only place
//! that knows exit codes: 0 done, 1 failed, 2 wrong usage, 3 done but some inputs failed, 130
//! interrupted.

#![forbid(unsafe_code)]

mod args;
mod atomic;
mod classes;
mod cmd;
mod common;
mod error;
mod hub;
mod imagenet;
mod inputs;
mod interrupt;
mod layout;
mod model;
mod npy;
mod output;
mod parquet;
mod progress;

use std::process::ExitCode;

use clap::Parser;

use args::Cli;
use error::{Done, Result};

/// Towers allocate and free megabytes per operation: the system's allocator hands such blocks back
/// to the kernel each time, and the page faults cost more than the copying.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    ferroclip_kernels::keep_freed_memory();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return output::command_line_error(&error),
    };
    match run(&cli) {
        Ok(done) => ExitCode::from(done.exit_code()),
        Err(error) => {
            output::print_error(&error, cli.common.json);
            ExitCode::from(error.exit_code())
        }
    }
}

fn run(cli: &Cli) -> Result<Done> {
    interrupt::install()?;
    cmd::run(&cli.command, &cli.common)
}
