//! Progress on standard error: a bar with a rate and the time left, or lines of JSON.

use std::io::{self, IsTerminal, Write};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::common::{Common, ProgressMode};

/// The least time between two lines of JSON.
const JSON_PERIOD: Duration = Duration::from_millis(500);

/// Progress of one piece of work. It disappears when it is dropped.
pub(crate) struct Progress {
    what: &'static str,
    /// Done before this process began.
    begun: u64,
    total: u64,
    start: Instant,
    shown: Shown,
}

enum Shown {
    Nothing,
    Bar(ProgressBar),
    Json(Mutex<Instant>),
}

impl Progress {
    /// Progress through `total` of `what`, with a rate and the time left.
    pub(crate) fn new(common: &Common, what: &'static str, total: usize) -> Progress {
        Progress::with(common, what, 0, total as u64, "{pos}/{len}  {per_sec}  {eta} left")
    }

    /// The same for work of which `begun` are done, and whose messages tell rate and time left.
    pub(crate) fn resumed(common: &Common, what: &'static str, begun: u64, total: u64) -> Progress {
        Progress::with(common, what, begun, total, "{pos}/{len}")
    }

    /// Progress through a file of `total` bytes of which `begun` are there.
    #[cfg(feature = "hub")]
    pub(crate) fn bytes(common: &Common, begun: u64, total: u64) -> Progress {
        let figures = "{decimal_bytes}/{decimal_total_bytes}  {decimal_bytes_per_sec}  {eta} left";
        Progress::with(common, "bytes", begun, total, figures)
    }

    /// `figures` stands behind the bar.
    fn with(
        common: &Common,
        what: &'static str,
        begun: u64,
        total: u64,
        figures: &str,
    ) -> Progress {
        let shown = match common.progress {
            _ if common.quiet => Shown::Nothing,
            ProgressMode::Json => Shown::Json(Mutex::new(Instant::now())),
            ProgressMode::Auto if io::stderr().is_terminal() => {
                Shown::Bar(bar(what, begun, total, figures))
            }
            _ => Shown::Nothing,
        };
        Progress { what, begun, total, start: Instant::now(), shown }
    }

    /// Shows that `done` are done.
    pub(crate) fn set(&self, done: usize) {
        self.show(done as u64, None);
    }

    /// The same with words beside the bar.
    pub(crate) fn show(&self, done: u64, message: Option<String>) {
        match &self.shown {
            Shown::Nothing => {}
            Shown::Bar(bar) => {
                bar.set_position(done);
                if let Some(message) = message {
                    bar.set_message(message);
                }
            }
            Shown::Json(last) => {
                let mut last = last.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                if done < self.total && last.elapsed() < JSON_PERIOD {
                    return;
                }
                *last = Instant::now();
                let per_s = done.saturating_sub(self.begun) as f64
                    / self.start.elapsed().as_secs_f64().max(1e-9);
                let line = serde_json::json!({"progress": {
                    "what": self.what, "done": done, "total": self.total, "per_s": per_s,
                }});
                // Nobody to tell if standard error is closed.
                let _ = writeln!(io::stderr(), "{line}");
            }
        }
    }
}

impl Progress {
    /// Runs something that prints to standard error, with the bar out of its way.
    pub(crate) fn suspend<T>(&self, print: impl FnOnce() -> T) -> T {
        match &self.shown {
            Shown::Bar(bar) => bar.suspend(print),
            _ => print(),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Shown::Bar(bar) = &self.shown {
            bar.finish_and_clear();
        }
    }
}

fn bar(what: &'static str, begun: u64, total: u64, figures: &str) -> ProgressBar {
    let template = format!("{{prefix}} {{bar:30}} {figures}  {{msg}}");
    let style =
        ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = ProgressBar::new(total).with_style(style).with_prefix(what);
    bar.set_position(begun);
    // What was there before says nothing of the rate.
    bar.reset_eta();
    bar
}
