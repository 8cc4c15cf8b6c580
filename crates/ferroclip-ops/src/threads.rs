//! Elementwise work over the threads of the pool.

use rayon::prelude::*;

/// Elements that one task takes: enough to hide the cost of handing it over.
const CHUNK: usize = 1 << 14;

/// Numbers that one task zeroes.
const ZEROS: usize = 1 << 18;

/// Zeros, written by all threads: the pages of a large result are new to the caches, or to the process.
pub(crate) fn zeros(n: usize) -> Vec<f32> {
    let mut out = Vec::new();
    rayon::iter::repeat_n(0.0, n).with_min_len(ZEROS).collect_into_vec(&mut out);
    out
}

/// Calls `f(start, chunk)` for consecutive chunks of `out`, in parallel.
pub(crate) fn in_chunks(out: &mut [f32], f: impl Fn(usize, &mut [f32]) + Sync) {
    let chunks = out.par_chunks_mut(CHUNK).enumerate();
    chunks.for_each(|(i, chunk)| f(i * CHUNK, chunk));
}

/// Calls `f(first_row, rows)` for consecutive whole rows of `width` elements, in parallel.
pub(crate) fn in_rows(out: &mut [f32], width: usize, f: impl Fn(usize, &mut [f32]) + Sync) {
    let rows = (CHUNK / width).max(1);
    let chunks = out.par_chunks_mut(rows * width).enumerate();
    chunks.for_each(|(i, chunk)| f(i * rows, chunk));
}

/// Rows that one partial sum runs over. It is the same for any number of threads, and the partial
/// sums are added from the first to the last, so a sum over rows has one order.
const SUM_ROWS: usize = 128;

/// Calls `f(first_row, rows, sums)` for consecutive whole rows of `width` elements, in parallel;
/// each call adds to sums of its own, which begin at zero. Returns their total.
pub(crate) fn row_sums<const N: usize>(
    out: &mut [f32],
    width: usize,
    lengths: [usize; N],
    f: impl Fn(usize, &mut [f32], &mut [Vec<f32>; N]) + Sync,
) -> [Vec<f32>; N] {
    let chunks = out.par_chunks_mut(SUM_ROWS * width).enumerate();
    let parts = chunks.map(|(i, rows)| {
        let mut sums = lengths.map(|length| vec![0.0; length]);
        f(i * SUM_ROWS, rows, &mut sums);
        sums
    });
    total(lengths, parts.collect())
}

/// The sum of each column of `rows`, `width` elements a row.
pub(crate) fn column_sums(rows: &[f32], width: usize) -> Vec<f32> {
    let parts = rows.par_chunks(SUM_ROWS * width).map(|rows| {
        let mut sums = vec![0.0; width];
        for row in rows.chunks_exact(width) {
            add(&mut sums, row);
        }
        [sums]
    });
    let [sums] = total([width], parts.collect());
    sums
}

fn total<const N: usize>(lengths: [usize; N], parts: Vec<[Vec<f32>; N]>) -> [Vec<f32>; N] {
    let mut totals = lengths.map(|length| vec![0.0; length]);
    for part in parts {
        totals.iter_mut().zip(&part).for_each(|(total, part)| add(total, part));
    }
    totals
}

fn add(sums: &mut [f32], values: &[f32]) {
    sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
}
