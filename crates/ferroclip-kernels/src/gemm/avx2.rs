//! The product with AVX2: the tile of C in registers, and the transpose for packing.

use std::arch::x86_64::*;

use super::tile::Tile;
use super::{MR, NR};

/// `c = a b` or `c += a b` for a tile of `rows` rows, in sub-tiles that the sixteen registers hold:
/// 6 x 16, or 12 x 8 where 8 columns are left.
///
/// # Safety
/// `a` points to `depth * MR` floats, `b` to `depth * NR`, `c` to `rows` rows of `cols` that
/// are `ldc` apart.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn multiply(tile: Tile, rows: usize, a: *const f32, b: *const f32, c: *mut f32) {
    for j0 in (0..tile.cols).step_by(16) {
        let part = Tile { cols: (tile.cols - j0).min(16), ..tile };
        let wide = part.cols > 8;
        for i0 in (0..rows).step_by(if wide { 6 } else { MR }) {
            let held = (rows - i0).min(if wide { 6 } else { MR });
            // SAFETY: the sub-tile lies in the tile that the caller vouches for.
            let (a, b, c) = unsafe { (a.add(i0), b.add(j0), c.add(i0 * tile.ldc + j0)) };
            macro_rules! by_rows {
                ($($rows:literal)*; $($narrow:literal)*) => {
                    match (held, wide) {
                        $(
                            // SAFETY: likewise.
                            ($rows, true) => unsafe { packed_rows::<$rows, 2>(part, a, b, c) },
                        )*
                        $(
                            // SAFETY: likewise.
                            ($narrow, false) => unsafe { packed_rows::<$narrow, 1>(part, a, b, c) },
                        )*
                        _ => unreachable!("a sub-tile of {held} rows"),
                    }
                };
            }
            by_rows!(1 2 3 4 5 6; 1 2 3 4 5 6 7 8 9 10 11 12);
        }
    }
}

/// [`multiply`] for `R` rows and `W` registers of columns.
///
/// # Safety
/// As [`multiply`].
#[target_feature(enable = "avx2,fma")]
unsafe fn packed_rows<const R: usize, const W: usize>(
    tile: Tile,
    a: *const f32,
    b: *const f32,
    c: *mut f32,
) {
    // SAFETY: only the columns of the tile are read.
    let mut sums = unsafe { load::<R, W>(tile, c) };
    for p in 0..tile.depth {
        // SAFETY: p < depth, and the caller vouches for `depth` rows of NR.
        let b: [__m256; W] =
            std::array::from_fn(|w| unsafe { _mm256_loadu_ps(b.add(p * NR + 8 * w)) });
        for (i, sums) in sums.iter_mut().enumerate() {
            // SAFETY: likewise, `depth` rows of MR.
            let x = unsafe { _mm256_broadcast_ss(&*a.add(p * MR + i)) };
            for (sum, &b) in sums.iter_mut().zip(&b) {
                *sum = _mm256_fmadd_ps(x, b, *sum);
            }
        }
    }
    // SAFETY: only the columns of the tile are written.
    unsafe { store(tile, c, sums) };
}

/// [`multiply`] for rows of A that are not packed: row `r` is the floats of `pieces[t][r]` for each
/// `t` in turn, `inputs` of them.
///
/// # Safety
/// The first `rows` slices of each piece hold `inputs` floats, `b` points to
/// `pieces.len() * inputs` rows of NR; `c` as in [`multiply`].
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn multiply_pieces(
    tile: Tile,
    rows: usize,
    pieces: &[[&[f32]; MR]],
    inputs: usize,
    b: *const f32,
    c: *mut f32,
) {
    for j0 in (0..tile.cols).step_by(16) {
        let part = Tile { cols: (tile.cols - j0).min(16), ..tile };
        let wide = part.cols > 8;
        for i0 in (0..rows).step_by(if wide { 6 } else { MR }) {
            let held = (rows - i0).min(if wide { 6 } else { MR });
            // SAFETY: the sub-tile lies in the tile that the caller vouches for.
            let (b, c) = unsafe { (b.add(j0), c.add(i0 * tile.ldc + j0)) };
            macro_rules! by_rows {
                ($($rows:literal)*; $($narrow:literal)*) => {
                    match (held, wide) {
                        $(
                            // SAFETY: likewise.
                            ($rows, true) => unsafe {
                                pieces_rows::<$rows, 2>(part, i0, pieces, inputs, b, c)
                            },
                        )*
                        $(
                            // SAFETY: likewise.
                            ($narrow, false) => unsafe {
                                pieces_rows::<$narrow, 1>(part, i0, pieces, inputs, b, c)
                            },
                        )*
                        _ => unreachable!("a sub-tile of {held} rows"),
                    }
                };
            }
            by_rows!(1 2 3 4 5 6; 1 2 3 4 5 6 7 8 9 10 11 12);
        }
    }
}

/// [`multiply_pieces`] for the `R` rows from `i0` on and `W` registers of columns.
///
/// # Safety
/// As [`multiply_pieces`].
#[target_feature(enable = "avx2,fma")]
unsafe fn pieces_rows<const R: usize, const W: usize>(
    tile: Tile,
    i0: usize,
    pieces: &[[&[f32]; MR]],
    inputs: usize,
    mut b: *const f32,
    c: *mut f32,
) {
    // SAFETY: only the columns of the tile are read.
    let mut sums = unsafe { load::<R, W>(tile, c) };
    for piece in pieces {
        let rows: [*const f32; R] = std::array::from_fn(|i| piece[i0 + i].as_ptr());
        for p in 0..inputs {
            // SAFETY: the caller vouches for `pieces.len() * inputs` rows of NR.
            let columns: [__m256; W] =
                std::array::from_fn(|w| unsafe { _mm256_loadu_ps(b.add(8 * w)) });
            for (row, sums) in rows.iter().zip(&mut sums) {
                // SAFETY: p < inputs, which each of these rows holds.
                let x = unsafe { _mm256_broadcast_ss(&*row.add(p)) };
                for (sum, &column) in sums.iter_mut().zip(&columns) {
                    *sum = _mm256_fmadd_ps(x, column, *sum);
                }
            }
            b = b.wrapping_add(NR);
        }
    }
    // SAFETY: only the columns of the tile are written.
    unsafe { store(tile, c, sums) };
}

/// What C holds where it is added to, else zeros.
///
/// # Safety
/// As [`multiply`].
#[target_feature(enable = "avx2,fma")]
unsafe fn load<const R: usize, const W: usize>(
    Tile { ldc, add, cols, .. }: Tile,
    c: *const f32,
) -> [[__m256; W]; R] {
    let mut sums = [[_mm256_setzero_ps(); W]; R];
    if add {
        for (i, sums) in sums.iter_mut().enumerate() {
            for (w, sum) in sums.iter_mut().enumerate() {
                // SAFETY: only the columns of the tile are read.
                *sum = unsafe { _mm256_maskload_ps(c.add(i * ldc + 8 * w), first(cols - 8 * w)) };
            }
        }
    }
    sums
}

/// Writes the columns of the tile.
///
/// # Safety
/// As [`multiply`].
#[target_feature(enable = "avx2,fma")]
unsafe fn store<const R: usize, const W: usize>(
    Tile { ldc, cols, .. }: Tile,
    c: *mut f32,
    sums: [[__m256; W]; R],
) {
    for (i, sums) in sums.iter().enumerate() {
        for (w, &sum) in sums.iter().enumerate() {
            let at = i * ldc + 8 * w;
            // SAFETY: only the columns of the tile are written.
            unsafe {
                if cols >= 8 * (w + 1) {
                    _mm256_storeu_ps(c.add(at), sum);
                } else {
                    _mm256_maskstore_ps(c.add(at), first(cols - 8 * w), sum);
                }
            }
        }
    }
}

/// A mask of the first `n` of 8 lanes.
#[target_feature(enable = "avx2")]
fn first(n: usize) -> __m256i {
    let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    _mm256_cmpgt_epi32(_mm256_set1_epi32(n.min(8) as i32), lanes)
}

/// `out[p * ld + r] = rows[r][p]` for `p < depth`, 0 where a row is empty, by transposing 8 x 8
/// blocks in registers.
///
/// # Safety
/// There are at most 8 rows, each empty or of at least `depth` floats; `out` points to `depth` rows
/// of `rows.len()` that are `ld` apart.
#[target_feature(enable = "avx2")]
pub(super) unsafe fn interleave(rows: &[&[f32]], depth: usize, out: *mut f32, ld: usize) {
    let written = first(rows.len());
    for p0 in (0..depth).step_by(8) {
        let read = first(depth - p0);
        let mut block = [_mm256_setzero_ps(); 8];
        for (row, from) in block.iter_mut().zip(rows) {
            if !from.is_empty() {
                // SAFETY: the row has `depth` floats, and the mask ends with them.
                *row = unsafe { _mm256_maskload_ps(from.as_ptr().add(p0), read) };
            }
        }
        let block = transpose(block);
        for (p, &row) in block.iter().enumerate().take(depth - p0) {
            // SAFETY: p0 + p < depth, and the mask ends with the rows.
            unsafe {
                if rows.len() == 8 {
                    _mm256_storeu_ps(out.add((p0 + p) * ld), row);
                } else if rows.len() == 4 {
                    _mm_storeu_ps(out.add((p0 + p) * ld), _mm256_castps256_ps128(row));
                } else {
                    _mm256_maskstore_ps(out.add((p0 + p) * ld), written, row);
                }
            }
        }
    }
}

/// The transpose of 8 rows of 8: pairs, then fours, then halves of the registers.
#[target_feature(enable = "avx2")]
pub(crate) fn transpose(x: [__m256; 8]) -> [__m256; 8] {
    let zero = _mm256_setzero_ps();
    let (mut y, mut z) = ([zero; 8], [zero; 8]);
    for i in 0..4 {
        y[2 * i] = _mm256_unpacklo_ps(x[2 * i], x[2 * i + 1]);
        y[2 * i + 1] = _mm256_unpackhi_ps(x[2 * i], x[2 * i + 1]);
    }
    // z[4 i + c] holds columns c and 4 + c of rows 4 i..4 i + 4.
    for i in 0..2 {
        let (a, b, c, d) = (y[4 * i], y[4 * i + 1], y[4 * i + 2], y[4 * i + 3]);
        z[4 * i] = _mm256_shuffle_ps::<0x44>(a, c);
        z[4 * i + 1] = _mm256_shuffle_ps::<0xee>(a, c);
        z[4 * i + 2] = _mm256_shuffle_ps::<0x44>(b, d);
        z[4 * i + 3] = _mm256_shuffle_ps::<0xee>(b, d);
    }
    for c in 0..4 {
        y[c] = _mm256_permute2f128_ps::<0x20>(z[c], z[4 + c]);
        y[4 + c] = _mm256_permute2f128_ps::<0x31>(z[c], z[4 + c]);
    }
    y
}
