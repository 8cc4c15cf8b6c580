//! Rows to tiles and panels: `out[p][r]` from row `r`, group `p`.

#[cfg(target_arch = "x86_64")]
use super::x86_interleave as x86;
use crate::Isa;
use crate::isa::Level;

/// Depth to which rows are padded before they are transposed, so that there are no edges.
pub(super) const STEP: usize = 16;

/// Rows of one tile or panel.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rows<'a, T> {
    pub(super) data: &'a [T],
    /// How many there are.
    pub(super) held: usize,
    /// From one to the next.
    pub(super) stride: usize,
}

impl<T> Rows<'_, T> {
    /// Whether each row has `width` elements.
    fn have(&self, width: usize) -> bool {
        self.held == 0 || self.data.len() >= (self.held - 1) * self.stride + width
    }
}

/// `out[p * n + r] = rows[r][p]`: the transpose of `n` rows of `depth` groups, `n` being 6, 12, 16 or 32
/// and `depth` a multiple of [`STEP`]. Rows that are not held become zeros.
pub(super) fn interleave(isa: Isa, n: usize, rows: Rows<u32>, depth: usize, out: &mut [u32]) {
    check(n, rows, depth, depth, out);
    let Rows { data, held, stride } = rows;
    match isa.0 {
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => {
            // SAFETY: the `Isa` value proves the features; the lengths are checked.
            unsafe {
                x86::interleave_avx2([n, held], data.as_ptr(), stride, depth, out.as_mut_ptr())
            }
        }
        #[cfg(target_arch = "x86_64")]
        Level::Avx512(_) => {
            // SAFETY: likewise.
            unsafe {
                x86::interleave_avx512([n, held], data.as_ptr(), stride, depth, out.as_mut_ptr())
            }
        }
        Level::Scalar => {
            let group = |r: usize, p: usize| if r < held { data[r * stride + p] } else { 0 };
            for (p, out) in out.chunks_exact_mut(n).take(depth).enumerate() {
                out.iter_mut().enumerate().for_each(|(r, out)| *out = group(r, p));
            }
        }
    }
}

/// [`interleave`] of numbers that are rounded to pairs of bf16 on the way.
///
/// # Panics
/// Where the set has no products of such pairs.
#[cfg(target_arch = "x86_64")]
pub(super) fn interleave_pairs(isa: Isa, n: usize, rows: Rows<f32>, depth: usize, out: &mut [u32]) {
    check(n, rows, depth, 2 * depth, out);
    assert!(matches!(isa.0, Level::Avx512(dots) if dots.bf16()));
    // SAFETY: the `Isa` value proves the features; the lengths are checked.
    unsafe {
        let size = [n, rows.held];
        x86::interleave_pairs(size, rows.data.as_ptr(), rows.stride, depth, out.as_mut_ptr());
    }
}

/// [`interleave`] of numbers that become integers on the way, four in a group, each row's times its inverse
/// scale.
///
/// # Panics
/// Where the set has no products of such groups.
#[cfg(target_arch = "x86_64")]
pub(super) fn interleave_quads(
    isa: Isa,
    n: usize,
    rows: Rows<f32>,
    inverses: &[f32],
    depth: usize,
    out: &mut [u32],
) {
    check(n, rows, depth, 4 * depth, out);
    assert!(matches!(isa.0, Level::Avx512(dots) if dots.vnni()) && inverses.len() >= rows.held);
    // SAFETY: the `Isa` value proves the features; the lengths are checked.
    unsafe {
        let size = [n, rows.held];
        x86::interleave_quads(
            size,
            rows.data.as_ptr(),
            rows.stride,
            inverses,
            depth,
            out.as_mut_ptr(),
        );
    }
}

/// Rows of numbers that are rounded to pairs of bf16, 16 groups of a row side by side: `out[p / 16][r][p % 16]`
/// from row `r`, group `p`. Rows that are not held become zeros.
///
/// # Panics
/// Where the set has no products of such tiles.
#[cfg(target_arch = "x86_64")]
pub(super) fn tile_pairs(isa: Isa, rows: Rows<f32>, depth: usize, out: &mut [u32]) {
    check(16, rows, depth, 2 * depth, out);
    assert!(matches!(isa.0, Level::Avx512(dots) if dots.amx()));
    // SAFETY: the `Isa` value proves the features; the lengths are checked.
    unsafe {
        x86::tile_pairs(rows.held, rows.data.as_ptr(), rows.stride, depth, out.as_mut_ptr());
    }
}

/// [`tile_pairs`] of integers, four in a group, each row's times its inverse scale.
///
/// # Panics
/// Where the set has no products of such tiles.
#[cfg(target_arch = "x86_64")]
pub(super) fn tile_quads(
    isa: Isa,
    rows: Rows<f32>,
    inverses: &[f32],
    depth: usize,
    out: &mut [u32],
) {
    check(16, rows, depth, 4 * depth, out);
    assert!(matches!(isa.0, Level::Avx512(dots) if dots.amx()) && inverses.len() >= rows.held);
    // SAFETY: the `Isa` value proves the features; the lengths are checked.
    unsafe {
        let Rows { data, held, stride } = rows;
        x86::tile_quads(held, data.as_ptr(), stride, inverses, depth, out.as_mut_ptr());
    }
}

fn check<T>(n: usize, rows: Rows<T>, depth: usize, width: usize, out: &[u32]) {
    assert!(matches!(n, 6 | 12 | 16 | 32));
    assert!(depth.is_multiple_of(STEP) && rows.held <= n && rows.have(width));
    assert!(out.len() >= n * depth);
}
