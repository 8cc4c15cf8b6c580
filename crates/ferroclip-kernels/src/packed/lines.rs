//! Memory in whole cache lines.

use std::sync::{Mutex, MutexGuard, PoisonError};

use rayon::prelude::*;

/// Sixteen groups: one cache line.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, align(64))]
struct Line([u32; 16]);

/// 4-byte groups that begin at a cache line, so that no vector load straddles two.
#[derive(Clone, Debug, Default)]
pub(super) struct Lines(Vec<Line>);

/// Lines that one task zeroes.
const ZEROS: usize = 1 << 14;
/// Large buffers that are kept for the next products.
const KEPT: usize = 16;

/// A training step packs each weight twice, and a tower that is streamed packs one block after the other, each on any
/// thread: memory that was not used before would be zeroed each time.
static FREED: Mutex<Vec<Vec<Line>>> = Mutex::new(Vec::new());

fn freed() -> MutexGuard<'static, Vec<Vec<Line>>> {
    FREED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The smallest kept buffer that is long enough; not one of more than twice the length, which weights that stay
/// would hold for nothing.
fn recycled(lines: usize) -> Option<Vec<Line>> {
    let mut freed = freed();
    let fits = lines..=2 * lines;
    let fitting = freed.iter().enumerate().filter(|(_, buffer)| fits.contains(&buffer.len()));
    let (place, _) = fitting.min_by_key(|(_, buffer)| buffer.len())?;
    Some(freed.swap_remove(place))
}

impl Drop for Lines {
    fn drop(&mut self) {
        let buffer = std::mem::take(&mut self.0);
        if buffer.len() <= ZEROS {
            return;
        }
        let mut freed = freed();
        freed.push(buffer);
        let smallest = freed.iter().enumerate().min_by_key(|(_, buffer)| buffer.len());
        let place = smallest.map(|(place, _)| place).filter(|_| freed.len() > KEPT);
        let dropped = place.map(|place| freed.swap_remove(place));
        // Nobody waits while memory is given back.
        drop(freed);
        drop(dropped);
    }
}

impl Lines {
    /// At least `n` groups; what they hold is of no meaning.
    pub(super) fn reserve(&mut self, n: usize) {
        let lines = n.div_ceil(16);
        if lines <= self.0.len() {
            return;
        }
        if lines > ZEROS {
            if let Some(buffer) = recycled(lines) {
                self.0 = buffer;
                return;
            }
            let zeros = rayon::iter::repeat_n(Line::default(), lines).with_min_len(ZEROS);
            zeros.collect_into_vec(&mut self.0);
        } else {
            self.0.resize(lines, Line::default());
        }
    }

    pub(super) fn groups(&self) -> &[u32] {
        // SAFETY: a `Line` is sixteen `u32` without padding, and the length counts them.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr().cast(), self.0.len() * 16) }
    }

    pub(super) fn groups_mut(&mut self) -> &mut [u32] {
        // SAFETY: as above; the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), self.0.len() * 16) }
    }
}

/// The bits of numbers.
pub(super) fn bits(x: &[f32]) -> &[u32] {
    // SAFETY: f32 and u32 have one size and alignment, and every bit pattern is a u32.
    unsafe { std::slice::from_raw_parts(x.as_ptr().cast(), x.len()) }
}

/// What groups are as numbers.
pub(super) fn numbers_mut(groups: &mut [u32]) -> &mut [f32] {
    // SAFETY: likewise; every bit pattern is an f32.
    unsafe { std::slice::from_raw_parts_mut(groups.as_mut_ptr().cast(), groups.len()) }
}
