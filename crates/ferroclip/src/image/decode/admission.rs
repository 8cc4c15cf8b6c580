//! The memory that pictures take together.
//!
//! Each core decodes a picture of its own, and a few large ones at once would take many times what one may take. So a
//! picture waits until there is room for it beside the others that are on their way through a pipeline, of this
//! process: small ones never do.

use std::cell::Cell;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use super::DecodeLimits;
use crate::image::ImageError;

/// Bytes that are promised to pictures now.
static PROMISED: Mutex<u64> = Mutex::new(0);
/// Signalled when there are fewer.
static FEWER: Condvar = Condvar::new();

fn promised() -> MutexGuard<'static, u64> {
    PROMISED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a picture may cost, and what it has been promised until this is dropped.
///
/// Nobody may wait for another thread while one lives, unless that thread decodes no pictures.
pub(in crate::image) struct Admission<'a> {
    limits: &'a DecodeLimits,
    /// Whether it waits for the others, and how many times over it takes what its header says.
    times: Option<u64>,
    held: Cell<u64>,
}

impl<'a> Admission<'a> {
    /// For a picture that shares the memory of the limits with others. One that is `turned` by its EXIF data is there
    /// twice.
    pub(in crate::image) fn shared(limits: &'a DecodeLimits, turned: bool) -> Admission<'a> {
        Admission { limits, times: Some(1 + u64::from(turned)), held: Cell::new(0) }
    }

    /// For a picture that the caller keeps, and that therefore waits for nobody.
    pub(in crate::image) fn alone(limits: &'a DecodeLimits) -> Admission<'a> {
        Admission { limits, times: None, held: Cell::new(0) }
    }

    /// The sides as lengths in memory, when the picture is within the limits with so many bytes for each pixel, as
    /// soon as there is room for it.
    pub(super) fn check(
        &self,
        format: &'static str,
        sides: [u64; 2],
        pixel_bytes: u64,
    ) -> Result<[usize; 2], ImageError> {
        let bytes = self.limits.check(format, sides, pixel_bytes)?;
        if let Some(times) = self.times {
            self.wait(bytes.saturating_mul(times).min(self.limits.max_memory));
        }
        Ok(sides.map(|side| side as usize))
    }

    fn wait(&self, bytes: u64) {
        let held = self.held.get();
        let more = bytes.saturating_sub(held);
        let mut promised = promised();
        // One that holds memory already, and turns out to be larger, would wait for those who wait for it.
        while held == 0 && *promised > 0 && promised.saturating_add(more) > self.limits.max_memory {
            promised = FEWER.wait(promised).unwrap_or_else(PoisonError::into_inner);
        }
        *promised = promised.saturating_add(more);
        self.held.set(held.saturating_add(more));
    }
}

impl Drop for Admission<'_> {
    fn drop(&mut self) {
        if self.held.get() > 0 {
            let mut promised = promised();
            *promised = promised.saturating_sub(self.held.get());
            FEWER.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::thread;

    use super::*;

    /// Other tests decode small pictures beside this one: for them there is always room.
    #[test]
    fn large_pictures_wait_for_one_another() {
        let limits = DecodeLimits { max_memory: 1 << 40, ..DecodeLimits::default() };
        let (now, most) = (AtomicU64::new(0), AtomicU64::new(0));
        let picture = || {
            let admission = Admission::shared(&limits, false);
            admission.check("test", [10_000, 10_000], 4_000).expect("within the limits");
            most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            thread::yield_now();
            now.fetch_sub(1, Ordering::SeqCst);
        };
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| (0..50).for_each(|_| picture()));
            }
        });
        assert!((1..=2).contains(&most.into_inner()), "two are 800 GB of 1,100");
    }
}
