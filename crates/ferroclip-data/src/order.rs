//! The order in which a run visits its samples, and the position that a checkpoint saves.
//!
//! The order of an epoch is a function of (seed, epoch) and the sizes of the sources, nothing
//! else. So a run that continues from a [`Cursor`] sees exactly what it would have seen, and
//! nothing but the cursor need be saved.
//!
//! Random numbers are ChaCha8, keyed by (seed, purpose, epoch, sample); only `next_u32` and
//! `next_u64` are drawn, so that results do not change with a version of a crate.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::DataError;

/// The generator for one purpose at one place of a run.
///
/// The key is the SHA-256 of `ferroclip`, the purpose and a zero byte, then seed, epoch and sample
/// as little-endian 64-bit numbers.
pub fn keyed_rng(seed: u64, purpose: &str, epoch: u64, sample: u64) -> ChaCha8Rng {
    let mut hasher = Sha256::new();
    hasher.update(b"ferroclip");
    hasher.update(purpose.as_bytes());
    hasher.update([0]);
    for number in [seed, epoch, sample] {
        hasher.update(number.to_le_bytes());
    }
    ChaCha8Rng::from_seed(hasher.finalize().into())
}

/// A uniform number below `bound`, without bias (Lemire's multiplication); 0 for a bound of 0.
pub fn below(rng: &mut ChaCha8Rng, bound: u32) -> u32 {
    if bound == 0 {
        return 0;
    }
    let threshold = bound.wrapping_neg() % bound;
    loop {
        let product = u64::from(rng.next_u32()) * u64::from(bound);
        if product as u32 >= threshold {
            return (product >> 32) as u32;
        }
    }
}

/// The numbers below `n` in the order of one epoch: Fisher-Yates from the end.
pub fn permutation(n: u32, seed: u64, epoch: u64) -> Vec<u32> {
    shuffled(n, &mut keyed_rng(seed, "shuffle", epoch, 0))
}

fn shuffled(n: u32, rng: &mut ChaCha8Rng) -> Vec<u32> {
    let mut order: Vec<u32> = (0..n).collect();
    for last in (1..n).rev() {
        let chosen = below(rng, last + 1);
        order.swap(last as usize, chosen as usize);
    }
    order
}

/// How far a run has come. Saved in checkpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cursor {
    /// The seed of the order.
    pub seed: u64,
    /// The epoch, from 0.
    pub epoch: u64,
    /// Samples visited in the epoch; always below `epoch_len`.
    pub position: u64,
    /// Samples in an epoch, to notice that the data has changed.
    pub epoch_len: u64,
}

/// One sample's turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Visit {
    /// The epoch, from 0.
    pub epoch: u64,
    /// The sample's number, from 0 to the length of an epoch: the same in every epoch, and distinct
    /// for the repeats of a row. Key augmentation with (epoch, sample).
    pub sample: u32,
    /// Which of the joined datasets.
    pub dataset: usize,
    /// Which of its rows.
    pub row: usize,
    /// Where a run goes on that has used this sample and all before it.
    pub after: Cursor,
}

/// Several datasets joined to one epoch.
#[derive(Debug, Clone)]
pub struct Plan {
    sources: Vec<Share>,
    seed: u64,
    epoch_len: u32,
}

#[derive(Debug, Clone, Copy)]
struct Share {
    rows: u32,
    /// The first sample number after this source's.
    end: u32,
}

impl Plan {
    /// Joins datasets, given the rows and the repeat of each.
    ///
    /// A source with repeat 2.5 has every row twice an epoch, and half of its rows, another half
    /// each epoch, once more. Repeat 0 leaves a source out.
    pub fn new(sources: &[(usize, f64)], seed: u64) -> Result<Self, DataError> {
        let invalid = |reason: String| DataError::InvalidPlan { reason };
        let mut shares = Vec::with_capacity(sources.len());
        let mut end = 0_u32;
        for (number, &(rows, repeat)) in sources.iter().enumerate() {
            if !repeat.is_finite() || repeat < 0.0 {
                return Err(invalid(format!(
                    "source {number} has repeat {repeat}, not a number from 0"
                )));
            }
            // The cast saturates, and the sum below notices.
            let samples = (rows as f64 * repeat).round() as u64;
            let sum = u32::try_from(u64::from(end).saturating_add(samples)).ok();
            end = sum.filter(|&n| n < u32::MAX).ok_or_else(|| {
                invalid(format!("an epoch has more than {} samples", u32::MAX - 1))
            })?;
            let rows = u32::try_from(rows)
                .map_err(|_| invalid(format!("source {number} has {rows} rows")))?;
            shares.push(Share { rows, end });
        }
        if end == 0 {
            return Err(invalid("an epoch has no samples".to_owned()));
        }
        Ok(Self { sources: shares, seed, epoch_len: end })
    }

    /// Samples in an epoch.
    pub fn epoch_len(&self) -> usize {
        self.epoch_len as usize
    }

    /// The position before the first sample.
    pub fn start(&self) -> Cursor {
        Cursor { seed: self.seed, epoch: 0, position: 0, epoch_len: u64::from(self.epoch_len) }
    }

    /// Visits from a position on, epoch after epoch without end.
    pub fn order(&self, cursor: Cursor) -> Result<Order, DataError> {
        let expected = Cursor { epoch: cursor.epoch, position: cursor.position, ..self.start() };
        if cursor != expected || cursor.position >= cursor.epoch_len || cursor.epoch == u64::MAX {
            let show = |c: &Cursor| format!("seed {} and {} samples an epoch", c.seed, c.epoch_len);
            return Err(DataError::CursorMismatch {
                expected: show(&self.start()),
                found: format!(
                    "{}, at epoch {} sample {}",
                    show(&cursor),
                    cursor.epoch,
                    cursor.position
                ),
            });
        }
        Ok(Order { epoch: EpochOrder::new(self, cursor.epoch), plan: self.clone(), cursor })
    }
}

/// The visits of a run; see [`Plan::order`]. Never ends: take [`Order::left_in_epoch`] for one
/// epoch.
#[derive(Debug, Clone)]
pub struct Order {
    plan: Plan,
    cursor: Cursor,
    epoch: EpochOrder,
}

/// What is drawn once an epoch.
#[derive(Debug, Clone)]
struct EpochOrder {
    /// Sample numbers in the order of their visits.
    samples: Vec<u32>,
    /// For each source, the rows that come once more than the whole repeats.
    extra_rows: Vec<Vec<u32>>,
}

impl EpochOrder {
    fn new(plan: &Plan, epoch: u64) -> Self {
        let mut start = 0;
        let mut extra_rows = Vec::with_capacity(plan.sources.len());
        for (number, &Share { rows, end }) in plan.sources.iter().enumerate() {
            let extra = (end - start).checked_rem(rows).unwrap_or(0);
            let mut chosen = Vec::new();
            if extra > 0 {
                chosen = shuffled(rows, &mut keyed_rng(plan.seed, "repeat", epoch, number as u64));
                chosen.truncate(extra as usize);
            }
            extra_rows.push(chosen);
            start = end;
        }
        Self { samples: permutation(plan.epoch_len, plan.seed, epoch), extra_rows }
    }
}

impl Order {
    /// Visits left in the current epoch.
    pub fn left_in_epoch(&self) -> usize {
        (self.cursor.epoch_len - self.cursor.position) as usize
    }

    fn locate(&self, sample: u32) -> (usize, usize) {
        let sources = &self.plan.sources;
        let number = sources.partition_point(|share| share.end <= sample);
        let start = number.checked_sub(1).map_or(0, |before| sources[before].end);
        let Share { rows, end } = sources[number];
        let within = sample - start;
        let whole = (end - start) / rows * rows;
        let row = match within.checked_sub(whole) {
            Some(extra) => self.epoch.extra_rows[number][extra as usize],
            None => within % rows,
        };
        (number, row as usize)
    }
}

impl Iterator for Order {
    type Item = Visit;

    fn next(&mut self) -> Option<Visit> {
        let epoch = self.cursor.epoch;
        let sample = self.epoch.samples[self.cursor.position as usize];
        let (dataset, row) = self.locate(sample);
        self.cursor.position += 1;
        if self.cursor.position == self.cursor.epoch_len {
            self.cursor.position = 0;
            self.cursor.epoch += 1;
            self.epoch = EpochOrder::new(&self.plan, self.cursor.epoch);
        }
        Some(Visit { epoch, sample, dataset, row, after: self.cursor })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made by an independent ChaCha8 in Python: `fixtures/data/permutation.py`.
    #[test]
    fn permutation_equals_the_golden() {
        let golden = include_str!("../../../fixtures/data/permutation.txt");
        for line in golden.lines() {
            let numbers: Vec<u64> = line.split(' ').map(|n| n.parse().unwrap()).collect();
            let (seed, epoch) = (numbers[0], numbers[1]);
            let expected: Vec<u32> = numbers[2..].iter().map(|&n| n as u32).collect();
            assert_eq!(permutation(expected.len() as u32, seed, epoch), expected);
        }
        assert_eq!(golden.lines().count(), 4);
    }

    #[test]
    fn permutation_holds_every_number_once() {
        for n in [0, 1, 2, 3, 1000] {
            let mut order = permutation(n, 7, 3);
            order.sort_unstable();
            assert_eq!(order, (0..n).collect::<Vec<_>>());
        }
        assert_ne!(permutation(100, 0, 0), permutation(100, 0, 1));
        assert_ne!(permutation(100, 0, 0), permutation(100, 1, 0));
    }

    #[test]
    fn below_is_uniform() {
        let mut rng = keyed_rng(0, "test", 0, 0);
        let mut counts = [0_u32; 6];
        (0..60_000).for_each(|_| counts[below(&mut rng, 6) as usize] += 1);
        // Five standard deviations of a binomial count with mean 10,000.
        assert!(counts.iter().all(|&n| n.abs_diff(10_000) < 460), "{counts:?}");
    }

    #[test]
    fn going_on_from_any_cursor_equals_the_undisturbed_order() {
        let plan = Plan::new(&[(13, 1.0), (5, 2.5), (7, 0.0), (4, 0.5)], 11).unwrap();
        assert_eq!(plan.epoch_len(), 13 + 13 + 2);
        let undisturbed: Vec<Visit> = plan.order(plan.start()).unwrap().take(90).collect();
        for stop in 0..60 {
            let saved = serde_json::to_string(&undisturbed[stop].after).unwrap();
            let cursor = serde_json::from_str(&saved).unwrap();
            let resumed: Vec<Visit> = plan.order(cursor).unwrap().take(29).collect();
            assert_eq!(resumed, undisturbed[stop + 1..stop + 30], "after {stop}");
        }
    }

    #[test]
    fn an_epoch_repeats_rows_as_asked() {
        let plan = Plan::new(&[(3, 1.0), (4, 2.5), (5, 0.0), (2, 3.0)], 0).unwrap();
        let mut order = plan.order(plan.start()).unwrap();
        let mut extras = Vec::new();
        for epoch in 0..20 {
            let length = order.left_in_epoch();
            let visits: Vec<Visit> = order.by_ref().take(length).collect();
            assert!(visits.iter().all(|v| v.epoch == epoch));
            let mut samples: Vec<u32> = visits.iter().map(|v| v.sample).collect();
            samples.sort_unstable();
            assert_eq!(samples, (0..19).collect::<Vec<_>>());
            let count = |dataset, row| {
                visits.iter().filter(|v| (v.dataset, v.row) == (dataset, row)).count()
            };
            assert!((0..3).all(|row| count(0, row) == 1) && (0..2).all(|row| count(3, row) == 3));
            let more: Vec<usize> = (0..4).filter(|&row| count(1, row) == 3).collect();
            assert_eq!(((0..4).map(|row| count(1, row)).sum::<usize>(), more.len()), (10, 2));
            extras.push(more);
        }
        extras.dedup();
        assert!(extras.len() > 5, "the rows that come once more change: {extras:?}");
    }

    #[test]
    fn refuses_what_does_not_fit() {
        for sources in [
            &[][..],
            &[(0, 1.0)],
            &[(3, -1.0)],
            &[(3, f64::NAN)],
            &[(3, f64::INFINITY)],
            &[(3, 1e300)],
            &[(usize::MAX, 1.0)],
            &[(usize::MAX, 0.0)],
            &[(5, 0.0)],
        ] {
            let error = Plan::new(sources, 0).unwrap_err();
            assert!(matches!(error, DataError::InvalidPlan { .. }), "{sources:?}");
        }
        let plan = Plan::new(&[(10, 1.0)], 5).unwrap();
        let start = plan.start();
        for cursor in [
            Cursor { seed: 6, ..start },
            Cursor { epoch_len: 9, ..start },
            Cursor { position: 10, ..start },
            Cursor { epoch: u64::MAX, ..start },
        ] {
            assert!(matches!(plan.order(cursor), Err(DataError::CursorMismatch { .. })));
        }
    }
}
