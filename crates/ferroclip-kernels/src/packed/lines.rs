//! Memory in whole cache lines.

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

impl Lines {
    /// At least `n` groups; what they hold is left as it is, or all are zero.
    pub(super) fn reserve(&mut self, n: usize) {
        let lines = n.div_ceil(16);
        if lines <= self.0.len() {
            return;
        }
        if lines > ZEROS {
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
