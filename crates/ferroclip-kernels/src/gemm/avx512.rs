//! The product with AVX-512: the tile of C in registers, and the transpose for packing.

use std::arch::x86_64::*;

use super::tile::Tile;
use super::{MR, NR};

/// `c = a b` or `c += a b` for a tile of `rows` rows, which stay in registers.
///
/// # Safety
/// `a` points to `depth * MR` floats, `b` to `depth * NR`, `c` to `rows` rows of `cols` that
/// are `ldc` apart.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn multiply(tile: Tile, rows: usize, a: *const f32, b: *const f32, c: *mut f32) {
    macro_rules! by_rows {
        ($($rows:literal)*) => {
            match (rows, tile.cols > 16) {
                $(
                    // SAFETY: the caller's promise, passed on.
                    ($rows, true) => unsafe { rows_by_cols::<$rows, 2>(tile, a, b, c) },
                    // SAFETY: likewise.
                    ($rows, false) => unsafe { rows_by_cols::<$rows, 1>(tile, a, b, c) },
                )*
                _ => unreachable!("a tile of {rows} rows"),
            }
        };
    }
    by_rows!(1 2 3 4 5 6 7 8 9 10 11 12);
}

/// [`multiply`] for `R` rows and `W` registers of columns: `R * W` of the 32 registers.
///
/// # Safety
/// As [`multiply`].
#[target_feature(enable = "avx512f")]
unsafe fn rows_by_cols<const R: usize, const W: usize>(
    Tile { depth, ldc, add, cols }: Tile,
    a: *const f32,
    b: *const f32,
    c: *mut f32,
) {
    let mask = |w: usize| first(cols - 16 * w);
    let mut sums = [[_mm512_setzero_ps(); W]; R];
    if add {
        for (i, sums) in sums.iter_mut().enumerate() {
            for (w, sum) in sums.iter_mut().enumerate() {
                // SAFETY: only the columns of the tile are read.
                *sum = unsafe { _mm512_maskz_loadu_ps(mask(w), c.add(i * ldc + 16 * w)) };
            }
        }
    }
    for p in 0..depth {
        // SAFETY: p < depth, and the caller vouches for `depth` rows of NR.
        let b: [__m512; W] =
            std::array::from_fn(|w| unsafe { _mm512_loadu_ps(b.add(p * NR + 16 * w)) });
        for (i, sums) in sums.iter_mut().enumerate() {
            // SAFETY: likewise, `depth` rows of MR.
            let x = _mm512_set1_ps(unsafe { *a.add(p * MR + i) });
            for (sum, &b) in sums.iter_mut().zip(&b) {
                *sum = _mm512_fmadd_ps(x, b, *sum);
            }
        }
    }
    for (i, sums) in sums.iter().enumerate() {
        for (w, &sum) in sums.iter().enumerate() {
            // SAFETY: only the columns of the tile are written.
            unsafe { _mm512_mask_storeu_ps(c.add(i * ldc + 16 * w), mask(w), sum) };
        }
    }
}

/// A mask of the first `n` of 16 lanes.
fn first(n: usize) -> __mmask16 {
    if n >= 16 { !0 } else { (1 << n) - 1 }
}

/// `out[p * ld + r] = rows[r][p]` for `p < depth`, 0 where a row is empty, by transposing 16 x 16
/// blocks in registers.
///
/// # Safety
/// There are at most 16 rows, each empty or of at least `depth` floats; `out` points to `depth`
/// rows of `rows.len()` that are `ld` apart.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn interleave(rows: &[&[f32]], depth: usize, out: *mut f32, ld: usize) {
    let written = first(rows.len());
    for p0 in (0..depth).step_by(16) {
        let read = first(depth - p0);
        let mut block = [_mm512_setzero_ps(); 16];
        for (row, from) in block.iter_mut().zip(rows) {
            if !from.is_empty() {
                // SAFETY: the row has `depth` floats, and the mask ends with them.
                *row = unsafe { _mm512_maskz_loadu_ps(read, from.as_ptr().add(p0)) };
            }
        }
        let block = transpose(block);
        for (p, &row) in block.iter().enumerate().take(depth - p0) {
            // SAFETY: p0 + p < depth, and the mask ends with the rows.
            unsafe { _mm512_mask_storeu_ps(out.add((p0 + p) * ld), written, row) };
        }
    }
}

/// The transpose of 16 rows of 16: pairs, then fours, then quarters of the registers.
#[target_feature(enable = "avx512f")]
pub(crate) fn transpose(x: [__m512; 16]) -> [__m512; 16] {
    let zero = _mm512_setzero_ps();
    let (mut y, mut z) = ([zero; 16], [zero; 16]);
    for i in 0..8 {
        y[2 * i] = _mm512_unpacklo_ps(x[2 * i], x[2 * i + 1]);
        y[2 * i + 1] = _mm512_unpackhi_ps(x[2 * i], x[2 * i + 1]);
    }
    let low = |a, b| _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
    let high =
        |a, b| _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
    // z[4 i + c] holds column c of each quarter of rows 4 i..4 i + 4.
    for i in 0..4 {
        z[4 * i] = low(y[4 * i], y[4 * i + 2]);
        z[4 * i + 1] = high(y[4 * i], y[4 * i + 2]);
        z[4 * i + 2] = low(y[4 * i + 1], y[4 * i + 3]);
        z[4 * i + 3] = high(y[4 * i + 1], y[4 * i + 3]);
    }
    for c in 0..4 {
        let (a, b, d, e) = (z[c], z[4 + c], z[8 + c], z[12 + c]);
        let (ab_even, ab_odd) =
            (_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0xdd>(a, b));
        let (de_even, de_odd) =
            (_mm512_shuffle_f32x4::<0x88>(d, e), _mm512_shuffle_f32x4::<0xdd>(d, e));
        y[c] = _mm512_shuffle_f32x4::<0x88>(ab_even, de_even);
        y[8 + c] = _mm512_shuffle_f32x4::<0xdd>(ab_even, de_even);
        y[4 + c] = _mm512_shuffle_f32x4::<0x88>(ab_odd, de_odd);
        y[12 + c] = _mm512_shuffle_f32x4::<0xdd>(ab_odd, de_odd);
    }
    y
}
