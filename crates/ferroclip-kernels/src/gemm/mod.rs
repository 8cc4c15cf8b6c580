//! C = A B (+ C), f32, with any strides: the three products of a linear layer and its gradients.
//!
//! The method is Goto's: B is packed into panels of [`NR`] columns and A into panels of `MR` rows,
//! k in blocks of [`KC`], and a micro-kernel holds an `MR` x `NR` tile of C in registers over a
//! block of k. Tiles at the edges are padded with zeros and run through the same micro-kernel.
//! So each element of C is the same chain of multiply-adds over k whatever m, n and the number of
//! threads are: a row's result does not depend on its neighbours, bit for bit.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod pack;
mod tile;

use rayon::prelude::*;

use crate::Isa;
#[cfg(target_arch = "x86_64")]
pub(crate) use avx2::transpose as transpose8;
#[cfg(target_arch = "x86_64")]
pub(crate) use avx512::transpose as transpose16;
use pack::pack_a;
pub(crate) use pack::{interleave, pack_b};
pub(crate) use tile::Block;

/// Columns of a packed panel of B.
pub(crate) const NR: usize = 32;
/// Rows of a packed panel of A, one value for all instruction sets.
pub(crate) const MR: usize = 12;
/// Depth of a block of k: a panel of B (`KC * NR` floats, 32 KiB) stays in the first-level cache.
const KC: usize = 256;
/// Rows that one task packs and multiplies: `MC * KC` floats, 144 KiB, stay in the second level.
const MC: usize = 144;
/// Beyond this depth every thread computes rows of C of its own, over all of k: packing B once for
/// each thread then costs less than meeting after every block of k.
const DEEP: usize = 4 * KC;
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

    /// The matrix without its first `i` rows.
    fn rows_from(self, i: usize) -> Self {
        Matrix { data: &self.data[i * self.row..], ..self }
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
    let threads = rayon::current_num_threads();
    if m * n * k < SERIAL_WORK || threads == 1 {
        return gemm_serial(isa, [m, n, k], a, b, c, ldc, accumulate, &mut Scratch::default());
    }
    check([m, n, k], a, b, c, ldc);
    if k == 0 {
        return clear(m, n, c, ldc, accumulate);
    }
    // The last row of C may be shorter than `ldc`; chunks of whole rows never overlap.
    let c = &mut c[..(m - 1) * ldc + n];
    if k > DEEP {
        let chunk = m.div_ceil(threads).next_multiple_of(MR);
        c.par_chunks_mut(chunk * ldc).enumerate().for_each(|(t, c)| {
            let rows = chunk.min(m - t * chunk);
            let a = a.rows_from(t * chunk);
            let scratch = &mut Scratch::default();
            gemm_serial(isa, [rows, n, k], a, b, c, ldc, accumulate, scratch);
        });
        return;
    }
    let mut packed = vec![0.0; n.div_ceil(NR) * NR * KC.min(k)];
    // Enough tasks for balance, few enough that packing A stays small beside the product.
    let chunk = m.div_ceil(4 * threads).next_multiple_of(MR).min(MC);
    for k0 in (0..k).step_by(KC) {
        let depth = KC.min(k - k0);
        let panels = &mut packed[..n.div_ceil(NR) * NR * depth];
        panels
            .par_chunks_mut(NR * depth)
            .enumerate()
            .for_each(|(j, panel)| pack_b(isa, b, k0, depth, n, j * NR, panel));
        let panels = &*panels;
        let add = accumulate || k0 > 0;
        c.par_chunks_mut(chunk * ldc).enumerate().for_each_init(Vec::new, |buffer, (t, c)| {
            let rows = chunk.min(m - t * chunk);
            let block = Block { isa, rows, n, depth, ldc, add };
            multiply(&block, a, [t * chunk, k0], panels, c, buffer);
        });
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
            pack_b(isa, b, k0, depth, n, j * NR, panel);
        }
        for i0 in (0..m).step_by(MC) {
            let rows = MC.min(m - i0);
            let block = Block { isa, rows, n, depth, ldc, add: accumulate || k0 > 0 };
            multiply(&block, a, [i0, k0], &scratch.b, &mut c[i0 * ldc..], &mut scratch.a);
        }
    }
}

/// The block of C whose rows of A begin at (`i0`, `k0`). Rows that lie in one piece are packed only
/// for the sets whose kernel wants it.
fn multiply<'a>(
    block: &Block,
    a: Matrix<'a>,
    [i0, k0]: [usize; 2],
    panels: &[f32],
    c: &mut [f32],
    buffer: &mut Vec<f32>,
) {
    let (rows, depth) = (block.rows, block.depth);
    if a.col != 1 || !block.takes_rows() {
        pack_a(block.isa, a, i0, rows, k0, depth, buffer);
        return block.multiply(buffer, panels, c);
    }
    let row = |i: usize| -> &'a [f32] { &a.data[(i0 + i) * a.row + k0..][..depth] };
    let rows_of = |first: usize, pieces: &mut Vec<[&'a [f32]; MR]>| {
        let last = rows - 1;
        // Those beyond the last are not read.
        pieces.push(std::array::from_fn(|r| row((first + r).min(last))));
    };
    block.multiply_rows(depth, rows_of, panels, c, buffer);
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
            [30, 40, 1300],
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
