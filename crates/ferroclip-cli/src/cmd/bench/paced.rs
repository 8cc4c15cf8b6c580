//! Rounds that another program asks for, so that it can run ours and its own in turn.

use std::io;
use std::path::Path;

use serde_json::json;

use super::Round;
use crate::error::{Error, Result};
use crate::{interrupt, output};

/// Warms up, says so, and runs a round for each line until standard input ends.
pub(super) fn run(round: &mut dyn FnMut() -> Round) -> Result<()> {
    round();
    output::print_json(&json!({"ready": true}))?;
    while wait_for_line()? {
        let Round { ms, per_s } = round();
        interrupt::check()?;
        output::print_json(&json!({"ms": ms, "per_s": per_s}))?;
    }
    Ok(())
}

/// Whether there was a line.
fn wait_for_line() -> Result<bool> {
    let mut line = String::new();
    let read = interrupt::while_blocked(|| io::stdin().read_line(&mut line));
    let n_bytes = read.map_err(|error| Error::file("read", Path::new("standard input"), &error))?;
    Ok(n_bytes > 0)
}
