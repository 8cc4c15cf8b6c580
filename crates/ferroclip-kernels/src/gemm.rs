//! C = A B (+ C), with any strides: the three products of a linear layer and its gradients.
//!
//! B is packed as weights are, A as rows are, and the product is [`multiply`]'s, over [`SLAB`] of k
//! at a time. Each element of C is the same sum whatever m, n and the number of threads are: a row's
//! result does not depend on its neighbours, bit for bit.

use std::cell::Cell;

use rayon::prelude::*;

use crate::Isa;
use crate::packed::{Finish, PackedRows, PackedWeights, Precision, multiply};

/// Inputs that are multiplied before C is written, in f32; twice as many in bf16. Rows of a
/// task and a slab of B stay in the caches.
const SLAB: usize = 768;
/// Rows of a task at most.
const TASK_ROWS: usize = 96;
/// A thread's share of rows below which all threads take columns of the same rows instead.
const MIN_SHARE: usize = 24;
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

    /// The matrix without its first `i` rows and `j` columns.
    fn from(self, i: usize, j: usize) -> Self {
        Matrix { data: &self.data[i * self.row + j * self.col..], ..self }
    }
}

/// What a product is added to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Onto<'a> {
    /// Nothing: C = A B.
    Nothing,
    /// A number for each column: C = A B + bias.
    Bias(&'a [f32]),
    /// What is there: C += A B.
    Sum,
}

impl<'a> Onto<'a> {
    /// How the slab of k that begins at `k0` ends.
    fn finish(self, k0: usize) -> (Option<&'a [f32]>, Finish) {
        match self {
            _ if k0 > 0 => (None, Finish::Add),
            Onto::Nothing => (None, Finish::Store),
            Onto::Bias(bias) => (Some(bias), Finish::Store),
            Onto::Sum => (None, Finish::Add),
        }
    }
}

/// Memory that [`gemm_serial`] reuses between calls.
#[derive(Debug)]
pub struct Scratch {
    rows: PackedRows,
    columns: PackedWeights,
}

impl Scratch {
    /// Memory for products of this instruction set and precision.
    pub fn new(isa: Isa, precision: Precision) -> Scratch {
        let columns = PackedWeights::pack(isa, precision, [0, 0], Matrix::rows(&[], 0));
        Scratch { rows: PackedRows::default(), columns }
    }
}

thread_local! {
    /// The rows of a task, kept from one product to the next. A thread that waits for others may be
    /// given another task meanwhile, which then has memory of its own.
    static ROWS: Cell<Option<Box<PackedRows>>> = const { Cell::new(None) };
}

/// C (`m` x `n`, rows of `ldc` elements) = A (`m` x `k`) B (`k` x `n`), added to what `onto` says, with
/// operands of a precision. Uses the threads of the current rayon pool.
#[expect(clippy::too_many_arguments, reason = "one product: its kind, shapes and matrices")]
pub fn gemm(
    isa: Isa,
    precision: Precision,
    [m, n, k]: [usize; 3],
    a: Matrix,
    b: Matrix,
    c: &mut [f32],
    ldc: usize,
    onto: Onto,
) {
    let threads = rayon::current_num_threads();
    let mut scratch = Scratch::new(isa, precision);
    if m * n * k < SERIAL_WORK || threads == 1 {
        return gemm_serial([m, n, k], a, b, c, ldc, onto, &mut scratch);
    }
    check([m, n, k], a, b, c, ldc);
    // The last row of C may be shorter than `ldc`; chunks of whole rows never overlap.
    let c = &mut c[..(m - 1) * ldc + n];
    let split = m < threads * MIN_SHARE;
    let tasks = if split { 1 } else { m.div_ceil(TASK_ROWS).next_multiple_of(threads) };
    let chunk = m.div_ceil(tasks);
    let slab = slab_of(precision, k);
    for k0 in (0..k).step_by(slab) {
        let depth = slab.min(k - k0);
        scratch.columns.repack([n, depth], b.from(k0, 0).transposed());
        let columns = &scratch.columns;
        let (bias, finish) = onto.finish(k0);
        c.par_chunks_mut(chunk * ldc).enumerate().for_each(|(task, c)| {
            let mut rows = ROWS.take().unwrap_or_default();
            let first = task * chunk;
            rows.fill_matrix(isa, precision, [chunk.min(m - first), depth], a.from(first, k0));
            multiply(columns, &rows, bias, finish, c, ldc, split);
            ROWS.set(Some(rows));
        });
    }
    if k == 0 {
        begin(m, n, c, ldc, onto);
    }
}

/// [`gemm`] on the calling thread alone, with memory that is kept between calls and decides
/// instruction set and precision.
pub fn gemm_serial(
    [m, n, k]: [usize; 3],
    a: Matrix,
    b: Matrix,
    c: &mut [f32],
    ldc: usize,
    onto: Onto,
    scratch: &mut Scratch,
) {
    check([m, n, k], a, b, c, ldc);
    if k == 0 {
        begin(m, n, c, ldc, onto);
    }
    let Scratch { rows, columns } = scratch;
    let slab = slab_of(columns.precision(), k);
    for k0 in (0..k).step_by(slab) {
        let depth = slab.min(k - k0);
        columns.repack([n, depth], b.from(k0, 0).transposed());
        rows.fill_matrix(columns.isa(), columns.precision(), [m, depth], a.from(0, k0));
        let (bias, finish) = onto.finish(k0);
        multiply(columns, rows, bias, finish, c, ldc, false);
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

/// Length of the slabs that cover `k`: all but the same, as a short one costs a pass over C, too.
fn slab_of(precision: Precision, k: usize) -> usize {
    let longest = match precision {
        Precision::F32 => SLAB,
        Precision::Bf16 | Precision::Int8 => 2 * SLAB,
    };
    k.div_ceil(k.div_ceil(longest).max(1)).max(1)
}

/// A product of no terms.
fn begin(m: usize, n: usize, c: &mut [f32], ldc: usize, onto: Onto) {
    let rows = c.chunks_mut(ldc.max(1)).take(if n > 0 { m } else { 0 });
    match onto {
        Onto::Nothing => rows.for_each(|row| row[..n].fill(0.0)),
        Onto::Bias(bias) => rows.for_each(|row| row[..n].copy_from_slice(bias)),
        Onto::Sum => {}
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
            [30, 40, 3300],
            [60, 50, 2000],
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
                    let onto = if accumulate { Onto::Sum } else { Onto::Nothing };
                    let (mut c, mut serial) = (start.clone(), start.clone());
                    let f32 = Precision::F32;
                    gemm(isa, f32, [m, n, k], am, bm, &mut c, n, onto);
                    let scratch = &mut Scratch::new(isa, f32);
                    gemm_serial([m, n, k], am, bm, &mut serial, n, onto, scratch);
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
        let product = |isa, m: usize, a: &[f32]| {
            let mut c = vec![0.0; m * n];
            let (a, b) = (Matrix::rows(a, k), Matrix::rows(&b, n));
            gemm(isa, Precision::F32, [m, n, k], a, b, &mut c, n, Onto::Nothing);
            c
        };
        for isa in Isa::available() {
            let all = product(isa, 200, &a);
            assert_eq!(product(isa, 1, &a[137 * k..]), all[137 * n..138 * n]);
        }
    }

    /// Memory is used again, and infinity times the zero behind an odd depth would be no number.
    #[test]
    fn what_was_packed_before_does_not_come_back() {
        let [m, n, k] = [50, 70, 601];
        let (large, a, b) = (vec![f32::INFINITY; 96 * 800], values(m * k, 1), values(k * n, 2));
        for isa in Isa::available() {
            for precision in [Precision::F32, Precision::Bf16] {
                let scratch = &mut Scratch::new(isa, precision);
                let mut product = |shape @ [m, n, _]: [usize; 3], a: Matrix, b: Matrix| {
                    let mut c = vec![0.0; m * n];
                    gemm_serial(shape, a, b, &mut c, n, Onto::Nothing, scratch);
                    c
                };
                let infinite = Matrix::rows(&large, 96).transposed();
                product([96, 96, 800], infinite, Matrix::rows(&large, 96));
                let (a, b) = (Matrix::rows(&a, m).transposed(), Matrix::rows(&b, n));
                assert!(product([m, n, k], a, b).iter().all(|x| x.is_finite()), "{isa:?}");
            }
        }
    }

    /// Rows of the first operand, and of the second, may be packed with what stands behind them.
    #[test]
    fn what_lies_behind_a_row_is_not_multiplied() {
        let ([m, n, k], stride) = ([50, 70, 50], 64);
        let padded = |rows: usize, seed| {
            let mut x = values(rows * stride, seed);
            x.chunks_exact_mut(stride).for_each(|row| row[k..].fill(f32::NAN));
            x
        };
        let dense = |x: &[f32]| x.chunks_exact(stride).flat_map(|row| row[..k].to_vec()).collect();
        let (a, b) = (padded(m, 1), padded(n, 2));
        let (dense_a, dense_b): (Vec<f32>, Vec<f32>) = (dense(&a), dense(&b));
        for isa in Isa::available() {
            for precision in [Precision::F32, Precision::Bf16] {
                let product = |a: &[f32], b: &[f32], stride| {
                    let mut c = vec![0.0; m * n];
                    let (a, b) = (Matrix::rows(a, stride), Matrix::rows(b, stride).transposed());
                    gemm(isa, precision, [m, n, k], a, b, &mut c, n, Onto::Nothing);
                    c
                };
                assert_eq!(product(&a, &b, stride), product(&dense_a, &dense_b, k), "{isa:?}");
            }
        }
    }

    /// bf16 is f32 with rounded operands, however the matrices lie.
    #[test]
    fn bf16_rounds_the_operands_only() {
        let round = |x: &[f32]| -> Vec<f32> {
            x.iter().map(|x| half::bf16::from_f32(*x).to_f32()).collect()
        };
        for isa in Isa::available() {
            for [m, n, k] in [[3, 5, 7], [50, 70, 601], [96, 64, 1601]] {
                let (a, b) = (values(m * k, 1), values(k * n, 2));
                for flags in 0..4 {
                    let product = |precision, a: &[f32], b: &[f32]| {
                        let am = match flags & 1 > 0 {
                            true => Matrix::rows(a, m).transposed(),
                            false => Matrix::rows(a, k),
                        };
                        let bm = match flags & 2 > 0 {
                            true => Matrix::rows(b, k).transposed(),
                            false => Matrix::rows(b, n),
                        };
                        let mut c = vec![0.0; m * n];
                        gemm(isa, precision, [m, n, k], am, bm, &mut c, n, Onto::Nothing);
                        c
                    };
                    let got = product(Precision::Bf16, &a, &b);
                    let want = product(Precision::F32, &round(&a), &round(&b));
                    for (place, (got, want)) in got.iter().zip(&want).enumerate() {
                        let (i, j) = (place / n, place % n);
                        let term = |p: usize| {
                            let a = a[if flags & 1 > 0 { p * m + i } else { i * k + p }];
                            let b = b[if flags & 2 > 0 { j * k + p } else { p * n + j }];
                            (a * b).abs()
                        };
                        let size: f32 = (0..k).map(term).sum();
                        // The order of sums differs where pairs are added first: as for f32.
                        let bound = 1.2e-7 * (k as f32).sqrt() * (size + 1.0);
                        assert!((got - want).abs() < bound, "{isa:?}: {got} {want}");
                    }
                }
            }
        }
    }
}
