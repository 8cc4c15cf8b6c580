//! Ctrl-C and SIGTERM: the first one asks, the second one exits at once.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{Error, Result};

/// Set by the first signal. Long jobs look at it between units of work.
pub(crate) static STOP: AtomicBool = AtomicBool::new(false);
/// Whether the program is blocked where nobody can look at [`STOP`].
static BLOCKED: AtomicBool = AtomicBool::new(false);

/// Takes over both signals.
pub(crate) fn install() -> Result<()> {
    let handler = || {
        if STOP.swap(true, Ordering::SeqCst) || BLOCKED.load(Ordering::SeqCst) {
            std::process::exit(130);
        }
    };
    ctrlc::set_handler(handler)
        .map_err(|error| Error::input(format!("cannot handle signals: {error}")))
}

/// Runs a read that may wait for ever, such as one from a terminal: a signal ends it at once.
pub(crate) fn while_blocked<T>(read: impl FnOnce() -> T) -> T {
    BLOCKED.store(true, Ordering::SeqCst);
    let value = read();
    BLOCKED.store(false, Ordering::SeqCst);
    value
}

/// An error once a signal has come.
pub(crate) fn check() -> Result<()> {
    if STOP.load(Ordering::SeqCst) {
        return Err(Error::interrupted("nothing was written; run the command again"));
    }
    Ok(())
}
