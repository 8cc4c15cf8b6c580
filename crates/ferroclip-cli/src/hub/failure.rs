//! What went wrong on the way, and whether another try may help.

use std::time::Duration;

use crate::error::{Error, Kind, Result};
use crate::interrupt;

/// How often a file is asked for, begun or taken up.
pub(super) const N_TRIES: u32 = 6;
/// The pause before the second try; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(200);

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Failure {
    /// There was no connection, it broke, or the server was busy: another try may help.
    Broken(String),
    /// It would not.
    Final(Error),
}

/// What one of several tries gives.
pub(super) type Tried<T> = std::result::Result<T, Failure>;

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::Final(error)
    }
}

impl Failure {
    /// The error of what was being done, once all tries are used up.
    pub(super) fn giving_up(self, doing: &str) -> Error {
        match self {
            Failure::Broken(reason) => {
                Error::new(Kind::Failed("network"), format!("cannot {doing}: {reason}"))
                    .hint("what has come is kept; run the command again to go on")
            }
            Failure::Final(error) => error,
        }
    }
}

/// Tries again where the connection broke.
pub(super) fn retry<T>(n_tries: u32, mut call: impl FnMut() -> Tried<T>) -> Tried<T> {
    let mut n = 1;
    loop {
        match call() {
            Err(Failure::Broken(_)) if n < n_tries => pause(FIRST_PAUSE * 2_u32.pow(n - 1))?,
            result => return result,
        }
        n += 1;
    }
}

/// Waits, unless the program is to stop.
pub(super) fn pause(time: Duration) -> Result<()> {
    const SLICE: Duration = Duration::from_millis(50);
    let mut left = time;
    while !left.is_zero() {
        stop_if_asked()?;
        std::thread::sleep(left.min(SLICE));
        left = left.saturating_sub(SLICE);
    }
    stop_if_asked()
}

/// An error once a signal has come.
pub(super) fn stop_if_asked() -> Result<()> {
    interrupt::check()
        .map_err(|error| error.hint("what has come is kept; run the command again to go on"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_broken_connections_are_tried_again() {
        let mut n = 0;
        let broken: Tried<()> = retry(2, || {
            n += 1;
            Err(Failure::Broken("reset".to_owned()))
        });
        assert!(matches!(broken, Err(Failure::Broken(_))) && n == 2);
        let mut n = 0;
        let refused: Tried<()> = retry(2, || {
            n += 1;
            Err(Error::input("no").into())
        });
        assert!(matches!(refused, Err(Failure::Final(_))) && n == 1);
    }
}
