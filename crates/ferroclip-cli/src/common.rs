//! The options that all commands share.

use clap::{Args, ValueEnum};

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
