//! Everything that goes to standard output, and errors.

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use serde_json::Value;
use unicode_width::UnicodeWidthStr;

use crate::common::Common;
use crate::error::{Error, Result, one_line};

/// Cells of a full bar.
const BAR_WIDTH: usize = 20;
/// Blocks of one to eight eighths.
const EIGHTHS: [char; 8] = ['▏', '▎', '▍', '▌', '▋', '▊', '▉', '█'];

/// Prints text; every line must end with a line break.
pub(crate) fn print(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|e| Error::stdout(&e))
}

/// Prints the one JSON document.
pub(crate) fn print_json(value: &Value) -> Result<()> {
    print(&format!("{value}\n"))
}

/// Says something beside the result, unless `--quiet`.
pub(crate) fn note(common: &Common, text: &str) {
    if !common.quiet {
        // If standard error is closed there is nobody to tell.
        let _ = writeln!(io::stderr(), "note: {}", one_line(text));
    }
}

/// Prints the failure of a command.
pub(crate) fn print_error(error: &Error, json: bool) {
    if error.exit_code() == 0 {
        return;
    }
    // As in `note`; the exit status still tells.
    if json && print_json(&error.to_json()).is_ok() {
        return;
    }
    let _ = writeln!(io::stderr(), "error: {}", error.message);
    if let Some(hint) = &error.hint {
        let _ = writeln!(io::stderr(), "hint: {hint}");
    }
}

/// Prints what clap found wrong, or the help that was asked for.
pub(crate) fn command_line_error(error: &clap::Error) -> ExitCode {
    let json = std::env::args_os().any(|arg| arg == "--json");
    if error.use_stderr() && json {
        let text = error.to_string();
        let text = text.split("\n\n").next().unwrap_or_default().trim_start_matches("error: ");
        print_error(&Error::usage(text).hint("see `ferroclip --help`"), true);
    } else {
        // A closed pipe is not worth a word.
        let _ = error.print();
    }
    ExitCode::from(if error.use_stderr() { 2 } else { 0 })
}

/// Columns with a header; columns listed in `right` are aligned to the right.
pub(crate) fn table(header: &[&str], rows: &[Vec<String>], right: &[usize]) -> String {
    let mut widths: Vec<usize> = header.iter().map(|cell| cell.width()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(visible_width(cell));
        }
    }
    let mut text = String::new();
    let header: Vec<String> = header.iter().map(|&cell| cell.to_owned()).collect();
    for row in std::iter::once(&header).chain(rows) {
        let mut line = String::new();
        for (i, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let blanks = " ".repeat(width - visible_width(cell));
            match right.contains(&i) {
                true => line.extend([blanks.as_str(), cell, "  "]),
                false => line.extend([cell, blanks.as_str(), "  "]),
            }
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Cells on the terminal, colours left out.
fn visible_width(cell: &str) -> usize {
    let mut width = 0;
    for (i, part) in cell.split('\u{1b}').enumerate() {
        let shown = if i == 0 { part } else { part.split_once('m').map_or("", |(_, rest)| rest) };
        width += shown.width();
    }
    width
}

/// A bar for a share of 0 to 1.
pub(crate) fn bar(share: f32) -> String {
    let eighths = (share.clamp(0.0, 1.0) * (BAR_WIDTH * 8) as f32).round() as usize;
    let mut bar = EIGHTHS[7].to_string().repeat(eighths / 8);
    if !eighths.is_multiple_of(8) {
        bar.push(EIGHTHS[eighths % 8 - 1]);
    }
    match colours() {
        true => format!("\u{1b}[36m{bar}\u{1b}[0m"),
        false => bar,
    }
}

fn colours() -> bool {
    let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    io::stdout().is_terminal() && !refused
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_aligns_wide_characters() {
        let rows = vec![
            vec!["猫".to_owned(), "1".to_owned(), "x".to_owned()],
            vec!["cat".to_owned(), "10".to_owned(), "y".to_owned()],
        ];
        let text = table(&["label", "n", ""], &rows, &[1]);
        assert_eq!(text, "label   n\n猫      1  x\ncat    10  y\n");
    }

    #[test]
    fn bars_are_shares() {
        assert_eq!(bar(0.0), "");
        assert_eq!(bar(1.0).chars().count(), BAR_WIDTH);
        assert_eq!(bar(0.5), "█".repeat(10));
        assert_eq!(bar(f32::NAN), "");
    }
}
