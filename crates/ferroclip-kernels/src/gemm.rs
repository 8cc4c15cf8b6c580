//! C = A B (+ C), f32, with any strides: the three products of a linear layer and its gradients.
//!
//! The method is Goto's: B is packed into panels of [`NR`] columns and A into panels of `MR` rows,
//! k in blocks of [`KC`], and a micro-kernel holds an `MR` x `NR` tile of C in registers over a
//! block of k. Tiles at the edges are padded with zeros and run through the same micro-kernel.
//! So each element of C is the same chain of multiply-adds over k whatever m, n and the number of
//! threads are: a row's result does not depend on its neighbours, bit for bit.

use rayon::prelude::*;

use crate::Isa;
use crate::isa::{Fused, Level, MulAdd, Unfused};

/// Columns of a packed panel of B.
const NR: usize = 32;
/// Rows of a packed panel of A, one value for all instruction sets.
const MR: usize = 12;
/// Depth of a block of k: a panel of B (`KC * NR` floats, 32 KiB) stays in the first-level cache.
const KC: usize = 256;
/// Rows that one task packs and multiplies: `MC * KC` floats, 144 KiB, stay in the second level.
const MC: usize = 144;
/// Below this many multiply-adds a product is not worth a second thread.
const SERIAL_WORK: usize = 1 << 17;

/// A matrix in a slice: element (i, j) is `data[i * row + j * col]`.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    /// The elements.
    pub data: &'a [f32],
    /// Distance between rows.
    pub row: usize,
    /// Distance between columns.
    pub col: usize,
}

impl<'a> Matrix<'a> {
    /// Rows of `width` elements one after the other.
    pub fn rows(data: &'a [f32], width: usize) -> Self {
        Matrix { data, row: width, col: 1 }
    }

    /// The transpose, without moving anything.
    pub fn transposed(self) -> Self {
        Matrix { data: self.data, row: self.col, col: self.row }
    }
}

/// Memory that [`gemm_serial`] reuses between calls.
#[derive(Debug, Default)]
pub struct Scratch {
    a: Vec<f32>,
    b: Vec<f32>,
}

/// C (`m` x `n`, rows of `ldc` elements) = A (`m` x `k`) B (`k` x `n`), or += where `accumulate`.
/// Uses the threads of the current rayon pool.
pub fn gemm(
    isa: Isa,
    [m, n, k]: [usize; 3],
    a: Matrix,
    b: Matrix,
    c: &mut [f32],
    ldc: usize,
    accumulate: bool,
) {
    if m * n * k < SERIAL_WORK || rayon::current_num_threads() == 1 {
        return gemm_serial(isa, [m, n, k], a, b, c, ldc, accumulate, &mut Scratch::default());
    }
    check([m, n, k], a, b, c, ldc);
    if k == 0 {
        return clear(m, n, c, ldc, accumulate);
    }
    let mut packed = vec![0.0; n.div_ceil(NR) * NR * KC.min(k)];
    // Enough tasks for balance, few enough that packing A stays small beside the product.
    let chunk = (m.div_ceil(4 * rayon::current_num_threads())).div_ceil(MR).max(1) * MR;
    let chunk = chunk.min(MC);
    for k0 in (0..k).step_by(KC) {
        let depth = KC.min(k - k0);
        let panels = &mut packed[..n.div_ceil(NR) * NR * depth];
        panels
            .par_chunks_mut(NR * depth)
            .enumerate()
            .for_each(|(j, panel)| pack_b(b, k0, depth, n, j * NR, panel));
        let panels = &*panels;
        let add = accumulate || k0 > 0;
        // The last row of C may be shorter than `ldc`; chunks of whole rows never overlap.
        c[..(m - 1) * ldc + n].par_chunks_mut(chunk * ldc).enumerate().for_each_init(
            Vec::new,
            |buffer, (t, c)| {
                let rows = chunk.min(m - t * chunk);
                let tile = Block { isa, rows, n, depth, ldc, add };
                pack_a(a, t * chunk, rows, k0, depth, buffer);
                tile.multiply(buffer, panels, c);
            },
        );
    }
}

/// [`gemm`] on the calling thread alone, with memory that is kept between calls.
#[expect(
    clippy::too_many_arguments,
    reason = "one product is three shapes, three matrices and its memory"
)]
pub fn gemm_serial(
    isa: Isa,
    [m, n, k]: [usize; 3],
    a: Matrix,
    b: Matrix,
    c: &mut [f32],
    ldc: usize,
    accumulate: bool,
    scratch: &mut Scratch,
) {
    check([m, n, k], a, b, c, ldc);
    if k == 0 {
        return clear(m, n, c, ldc, accumulate);
    }
    for k0 in (0..k).step_by(KC) {
        let depth = KC.min(k - k0);
        scratch.b.resize(n.div_ceil(NR) * NR * depth, 0.0);
        for (j, panel) in scratch.b.chunks_mut(NR * depth).enumerate() {
            pack_b(b, k0, depth, n, j * NR, panel);
        }
        for i0 in (0..m).step_by(MC) {
            let rows = MC.min(m - i0);
            pack_a(a, i0, rows, k0, depth, &mut scratch.a);
            let tile = Block { isa, rows, n, depth, ldc, add: accumulate || k0 > 0 };
            tile.multiply(&scratch.a, &scratch.b, &mut c[i0 * ldc..]);
        }
    }
}

fn check([m, n, k]: [usize; 3], a: Matrix, b: Matrix, c: &[f32], ldc: usize) {
    let last = |rows: usize, cols: usize, x: &Matrix| (rows - 1) * x.row + (cols - 1) * x.col;
    assert!(ldc >= n, "rows of C overlap");
    if m > 0 && n > 0 {
        assert!((m - 1) * ldc + n <= c.len(), "C is too short");
        if k > 0 {
            assert!(last(m, k, &a) < a.data.len(), "A is too short");
            assert!(last(k, n, &b) < b.data.len(), "B is too short");
        }
    }
}

fn clear(m: usize, n: usize, c: &mut [f32], ldc: usize, accumulate: bool) {
    if !accumulate && n > 0 {
        c.chunks_mut(ldc).take(m).for_each(|row| row[..n].fill(0.0));
    }
}

/// Columns `j0..j0 + NR` of rows `k0..k0 + depth` of B, as `[depth][NR]`, zeros beyond column n.
fn pack_b(b: Matrix, k0: usize, depth: usize, n: usize, j0: usize, panel: &mut [f32]) {
    let cols = NR.min(n - j0);
    if b.col == 1 {
        for (p, row) in panel.chunks_exact_mut(NR).enumerate().take(depth) {
            let start = (k0 + p) * b.row + j0;
            row[..cols].copy_from_slice(&b.data[start..start + cols]);
            row[cols..].fill(0.0);
        }
    } else {
        for j in 0..NR {
            for p in 0..depth {
                panel[p * NR + j] =
                    if j < cols { b.data[(k0 + p) * b.row + (j0 + j) * b.col] } else { 0.0 };
            }
        }
    }
}

/// Rows `i0..i0 + rows` of A at `k0..k0 + depth`, as panels `[depth][MR]`, zeros beyond the rows.
fn pack_a(a: Matrix, i0: usize, rows: usize, k0: usize, depth: usize, packed: &mut Vec<f32>) {
    packed.resize(rows.div_ceil(MR) * MR * depth, 0.0);
    for (t, panel) in packed.chunks_exact_mut(MR * depth).enumerate() {
        let first = t * MR;
        let held = MR.min(rows - first);
        if held < MR {
            panel.fill(0.0);
        }
        if a.row == 1 {
            for (p, out) in panel.chunks_exact_mut(MR).enumerate() {
                let start = (k0 + p) * a.col + i0 + first;
                out[..held].copy_from_slice(&a.data[start..start + held]);
            }
        } else {
            for r in 0..held {
                let start = (i0 + first + r) * a.row + k0 * a.col;
                for p in 0..depth {
                    panel[p * MR + r] = a.data[start + p * a.col];
                }
            }
        }
    }
}

/// One block of rows of C against all panels of B.
struct Block {
    isa: Isa,
    rows: usize,
    n: usize,
    depth: usize,
    ldc: usize,
    add: bool,
}

impl Block {
    fn multiply(&self, a: &[f32], b: &[f32], c: &mut [f32]) {
        let mut tile = [[0.0; NR]; MR];
        for (j, b) in b.chunks_exact(NR * self.depth).enumerate() {
            let cols = NR.min(self.n - j * NR);
            for (i, a) in a.chunks_exact(MR * self.depth).enumerate() {
                let rows = MR.min(self.rows - i * MR);
                let c = &mut c[i * MR * self.ldc + j * NR..];
                if self.add {
                    for (tile, c) in tile.iter_mut().zip(c.chunks(self.ldc)).take(rows) {
                        tile[..cols].copy_from_slice(&c[..cols]);
                    }
                } else {
                    tile = [[0.0; NR]; MR];
                }
                micro_kernel(self.isa, self.depth, a, b, &mut tile);
                for (tile, c) in tile.iter().zip(c.chunks_mut(self.ldc)).take(rows) {
                    c[..cols].copy_from_slice(&tile[..cols]);
                }
            }
        }
    }
}

/// `tile += a b` over one block of k.
fn micro_kernel(isa: Isa, depth: usize, a: &[f32], b: &[f32], tile: &mut [[f32; NR]; MR]) {
    assert!(a.len() >= depth * MR && b.len() >= depth * NR);
    match isa.0 {
        Level::Scalar => portable::<Unfused, 4, 8>(depth, a, b, tile),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the `Isa` value proves the features; the panels hold `depth` rows (asserted).
        Level::Avx2 => unsafe { x86::avx2(depth, a, b, tile) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Level::Avx512 => unsafe { x86::avx512(depth, a.as_ptr(), b.as_ptr(), tile) },
    }
}

/// The tile in sub-tiles of `R` x `W` that fit the registers.
#[inline(always)]
fn portable<M: MulAdd, const R: usize, const W: usize>(
    depth: usize,
    a: &[f32],
    b: &[f32],
    tile: &mut [[f32; NR]; MR],
) {
    for i0 in (0..MR).step_by(R) {
        for j0 in (0..NR).step_by(W) {
            let mut sums = [[0.0; W]; R];
            for (i, sums) in sums.iter_mut().enumerate() {
                sums.copy_from_slice(&tile[i0 + i][j0..j0 + W]);
            }
            for (a, b) in a.chunks_exact(MR).zip(b.chunks_exact(NR)).take(depth) {
                for i in 0..R {
                    for j in 0..W {
                        sums[i][j] = M::mul_add(a[i0 + i], b[j0 + j], sums[i][j]);
                    }
                }
            }
            for (i, sums) in sums.iter().enumerate() {
                tile[i0 + i][j0..j0 + W].copy_from_slice(sums);
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Fused, MR, NR, portable};
    use std::arch::x86_64::*;

    /// 6 x 16 sub-tiles: twelve accumulators of the sixteen registers.
    #[target_feature(enable = "avx2,fma")]
    pub(super) fn avx2(depth: usize, a: &[f32], b: &[f32], tile: &mut [[f32; NR]; MR]) {
        portable::<Fused, 6, 16>(depth, a, b, tile);
    }

    /// The whole 12 x 32 tile in 24 of the 32 registers.
    ///
    /// # Safety
    /// `a` points to `depth * MR` floats, `b` to `depth * NR`.
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn avx512(
        depth: usize,
        a: *const f32,
        b: *const f32,
        tile: &mut [[f32; NR]; MR],
    ) {
        let mut sums = [[_mm512_setzero_ps(); 2]; MR];
        for (sums, row) in sums.iter_mut().zip(tile.iter()) {
            // SAFETY: a row of the tile has 32 floats.
            *sums =
                unsafe { [_mm512_loadu_ps(row.as_ptr()), _mm512_loadu_ps(row.as_ptr().add(16))] };
        }
        for p in 0..depth {
            // SAFETY: p < depth, and the caller vouches for `depth` rows of 32.
            let (b0, b1) =
                unsafe { (_mm512_loadu_ps(b.add(p * NR)), _mm512_loadu_ps(b.add(p * NR + 16))) };
            for (i, sums) in sums.iter_mut().enumerate() {
                // SAFETY: likewise, `depth` rows of MR.
                let x = _mm512_set1_ps(unsafe { *a.add(p * MR + i) });
                sums[0] = _mm512_fmadd_ps(x, b0, sums[0]);
                sums[1] = _mm512_fmadd_ps(x, b1, sums[1]);
            }
        }
        for (sums, row) in sums.iter().zip(tile.iter_mut()) {
            // SAFETY: a row of the tile has 32 floats.
            unsafe {
                _mm512_storeu_ps(row.as_mut_ptr(), sums[0]);
                _mm512_storeu_ps(row.as_mut_ptr().add(16), sums[1]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(n: usize, seed: usize) -> Vec<f32> {
        (0..n).map(|i| (((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.5) - 1.0).collect()
    }

    #[test]
    fn every_set_matches_the_naive_product() {
        let shapes = [
            [1, 1, 1],
            [3, 5, 7],
            [12, 32, 256],
            [13, 33, 257],
            [50, 70, 600],
            [150, 96, 300],
            [1, 200, 64],
            [400, 1, 9],
        ];
        for isa in Isa::available() {
            for [m, n, k] in shapes {
                let (a, b, start) = (values(m * k, 1), values(k * n, 2), values(m * n, 3));
                for flags in 0..8 {
                    let (ta, tb, accumulate) = (flags & 1 > 0, flags & 2 > 0, flags & 4 > 0);
                    let am =
                        if ta { Matrix::rows(&a, m).transposed() } else { Matrix::rows(&a, k) };
                    let bm =
                        if tb { Matrix::rows(&b, k).transposed() } else { Matrix::rows(&b, n) };
                    let (mut c, mut serial) = (start.clone(), start.clone());
                    gemm(isa, [m, n, k], am, bm, &mut c, n, accumulate);
                    gemm_serial(
                        isa,
                        [m, n, k],
                        am,
                        bm,
                        &mut serial,
                        n,
                        accumulate,
                        &mut Scratch::default(),
                    );
                    assert_eq!(c, serial, "threads change nothing");
                    for i in 0..m {
                        for j in 0..n {
                            let term = |p| {
                                f64::from(
                                    am.data[i * am.row + p * am.col]
                                        * bm.data[p * bm.row + j * bm.col],
                                )
                            };
                            let sum: f64 = (0..k).map(term).sum();
                            let size: f64 = (0..k).map(|p| term(p).abs()).sum();
                            let want =
                                sum + if accumulate { f64::from(start[i * n + j]) } else { 0.0 };
                            // k roundings, at random: sqrt(k) epsilons of the terms' absolute sum.
                            let bound = 1.2e-7 * (k as f64).sqrt() * (size + 1.0);
                            assert!(
                                (f64::from(c[i * n + j]) - want).abs() < bound,
                                "{isa:?} {m} {n} {k}"
                            );
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_row_does_not_depend_on_its_batch() {
        let (n, k) = (70, 300);
        let (a, b) = (values(200 * k, 1), values(k * n, 2));
        for isa in Isa::available() {
            let mut all = vec![0.0; 200 * n];
            gemm(isa, [200, n, k], Matrix::rows(&a, k), Matrix::rows(&b, n), &mut all, n, false);
            let mut one = vec![0.0; n];
            gemm(
                isa,
                [1, n, k],
                Matrix::rows(&a[137 * k..], k),
                Matrix::rows(&b, n),
                &mut one,
                n,
                false,
            );
            assert_eq!(one, all[137 * n..138 * n]);
        }
    }
}
