//! The account of bad samples: each is skipped, counted and named, and too many stop the run.

use serde::{Deserialize, Serialize};

use crate::DataError;

/// Failures kept by name; the rest are only counted.
const MAX_NAMED: usize = 100;
/// Samples to see before a share means anything.
const MIN_SEEN: u64 = 100;

/// Samples seen and samples failed. Saved in checkpoints, so that a run cannot forget.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tally {
    seen: u64,
    failed: u64,
    failures: Vec<Failure>,
}

/// A sample that failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Failure {
    /// The sample's name.
    pub key: String,
    /// Why it failed.
    pub reason: String,
}

impl Tally {
    /// Counts a good sample.
    pub fn pass(&mut self) {
        self.seen += 1;
    }

    /// Counts a bad sample, and names it once.
    pub fn fail(&mut self, key: &str, reason: impl ToString) {
        self.seen += 1;
        self.failed += 1;
        if self.failures.len() < MAX_NAMED && !self.failures.iter().any(|f| f.key == key) {
            self.failures.push(Failure { key: key.to_owned(), reason: reason.to_string() });
        }
    }

    /// Samples tried.
    pub fn seen(&self) -> u64 {
        self.seen
    }

    /// Samples that failed, however often the same.
    pub fn failed(&self) -> u64 {
        self.failed
    }

    /// The first samples that failed, each once, with reasons.
    pub fn failures(&self) -> &[Failure] {
        &self.failures
    }

    /// An error where more than `max_share` (0 to 1) of at least 100 samples failed.
    pub fn check(&self, max_share: f64) -> Result<(), DataError> {
        let Some(first) = self.failures.first() else {
            return Ok(());
        };
        if self.seen < MIN_SEEN || self.failed as f64 <= max_share * self.seen as f64 {
            return Ok(());
        }
        Err(DataError::TooManyBad {
            seen: self.seen,
            failed: self.failed,
            max_share,
            key: first.key.clone(),
            reason: first.reason.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stops_above_the_share_and_not_before_the_minimum() {
        let mut tally = Tally::default();
        for n in 0..99 {
            tally.fail(&format!("{n}.png"), "not a picture");
        }
        assert!(tally.check(0.01).is_ok());
        tally.pass();
        let error = tally.check(0.01).unwrap_err();
        assert_eq!(
            error.to_string(),
            "99 of 100 samples failed, more than 1.0 %; first `0.png`: not a picture"
        );
        assert!(tally.check(0.99).is_ok());
        assert!(error.hint().is_some());
    }

    #[test]
    fn names_are_capped_and_come_once() {
        let mut tally = Tally::default();
        (0..500).for_each(|n| tally.fail(&(n % 120).to_string(), "bad"));
        (0..500).for_each(|_| tally.pass());
        assert_eq!((tally.seen(), tally.failed(), tally.failures().len()), (1000, 500, 100));
        assert_eq!(tally.failures()[99].key, "99");
        assert!(Tally::default().check(0.0).is_ok());
    }
}
