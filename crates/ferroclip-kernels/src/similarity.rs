//! Dot products of rows with rows, and the best of them.
//!
//! Each product is summed on its own in a fixed order: it does not depend on what it is computed
//! with. The rows of the second matrix pass by in blocks that stay in the second-level cache while
//! all rows of the first meet them, so a large one is read from memory once for many.

use std::cmp::Ordering;

use rayon::prelude::*;

use crate::Isa;
use crate::isa::dispatch;
use crate::math::lane_sum;

/// Numbers of the second matrix in a block.
const BLOCK: usize = 1 << 16;
/// Rows of the first matrix that a task of [`dots`] takes.
const TASK_ROWS: usize = 16;

/// A row that was found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hit {
    /// Its place.
    pub index: usize,
    /// Its dot product with the query.
    pub score: f32,
}

impl Hit {
    /// Best first; of equal ones the earlier first. NaN is better than every number, and so is seen.
    fn order(&self, other: &Hit) -> Ordering {
        other.score.total_cmp(&self.score).then(self.index.cmp(&other.index))
    }
}

/// `out[i * ld + j]` from row `i` of `a` and row `j` of `b`.
#[inline(always)]
fn dots_body(a: &[f32], b: &[f32], dim: usize, out: &mut [f32], ld: usize) {
    for (a, out) in a.chunks_exact(dim).zip(out.chunks_mut(ld)) {
        for (b, out) in b.chunks_exact(dim).zip(out) {
            *out = lane_sum([a, b], |[a, b]| a * b);
        }
    }
}

dispatch! {
    fn block_dots(a: &[f32], b: &[f32], dim: usize, out: &mut [f32], ld: usize) = dots_body unfused
}

/// The dot products of all rows of `a` with all rows of `b`, `[rows of a, rows of b]`; on the threads
/// of the current rayon pool.
///
/// # Panics
/// When the lengths are no multiples of `dim`, or `dim` is 0.
pub fn dots(isa: Isa, a: &[f32], b: &[f32], dim: usize) -> Vec<f32> {
    check(a, b, dim);
    let (n_a, n_b) = (a.len() / dim, b.len() / dim);
    let mut out = vec![0.0; n_a * n_b];
    if out.is_empty() {
        return out;
    }
    let held = (BLOCK / dim).max(1);
    let tasks = out.par_chunks_mut(TASK_ROWS * n_b).zip(a.par_chunks(TASK_ROWS * dim));
    tasks.for_each(|(out, a)| {
        for (block, b) in b.chunks(held * dim).enumerate() {
            block_dots(isa, a, b, dim, &mut out[block * held..], n_b);
        }
    });
    out
}

/// For each row of `queries` the `k` rows of `table` with the largest dot products, best first; of equal
/// ones the earlier first. All products of a block are held, never those of the whole table. On the
/// threads of the current rayon pool, which share the table.
///
/// # Panics
/// As [`dots`].
pub fn top_k(isa: Isa, queries: &[f32], table: &[f32], dim: usize, k: usize) -> Vec<Vec<Hit>> {
    check(queries, table, dim);
    let n = queries.len() / dim;
    let held = (BLOCK / dim).max(1);
    let found = || (vec![Vec::<Hit>::new(); n], Vec::new());
    let blocks = table.par_chunks(held * dim).enumerate();
    let parts = blocks.fold(found, |(mut best, mut products), (block, rows)| {
        let width = rows.len() / dim;
        products.resize(n * width, 0.0);
        block_dots(isa, queries, rows, dim, &mut products, width);
        for (best, products) in best.iter_mut().zip(products.chunks_exact(width)) {
            keep(best, products, block * held, k);
        }
        (best, products)
    });
    let mut all = parts.map(|(best, _)| best).reduce(
        || vec![Vec::new(); n],
        |mut one, other| {
            one.iter_mut().zip(other).for_each(|(one, other)| one.extend(other));
            one
        },
    );
    all.iter_mut().for_each(|hits| first(hits, k));
    all
}

/// The places of the `k` largest of these scores, largest first; of equal ones the earlier first.
pub fn largest(scores: &[f32], k: usize) -> Vec<usize> {
    let mut best = Vec::new();
    keep(&mut best, scores, 0, k);
    first(&mut best, k);
    best.into_iter().map(|hit| hit.index).collect()
}

/// The best `k` of those found and of the scores of the rows from `start` on, in any order.
fn keep(best: &mut Vec<Hit>, scores: &[f32], start: usize, k: usize) {
    for (i, &score) in scores.iter().enumerate() {
        best.push(Hit { index: start + i, score });
        // Twice as many as wanted, so that the halves thrown away pay for choosing.
        if best.len() >= 2 * k.max(32) {
            cut(best, k);
        }
    }
    cut(best, k);
}

/// The best `k`, in any order.
fn cut(best: &mut Vec<Hit>, k: usize) {
    if k == 0 {
        best.clear();
    } else if best.len() > k {
        best.select_nth_unstable_by(k - 1, Hit::order);
        best.truncate(k);
    }
}

/// The best `k` in order.
fn first(best: &mut Vec<Hit>, k: usize) {
    best.sort_unstable_by(Hit::order);
    best.truncate(k);
}

fn check(a: &[f32], b: &[f32], dim: usize) {
    assert!(dim > 0, "rows of no numbers");
    assert!(a.len().is_multiple_of(dim) && b.len().is_multiple_of(dim), "rows of {dim} numbers");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(n: usize, seed: usize) -> Vec<f32> {
        (0..n).map(|i| (((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.5) - 1.0).collect()
    }

    #[test]
    fn dots_match_f64_whatever_stands_beside() {
        for isa in Isa::available() {
            for dim in [1, 7, 32, 33, 512, 700] {
                // Rows of the second matrix: up to ten blocks.
                let n = if dim == 700 { 903 } else { 203 };
                let (a, b) = (values(37 * dim, 1), values(n * dim, 2));
                let out = dots(isa, &a, &b, dim);
                for (i, a) in a.chunks(dim).enumerate() {
                    for (j, b) in b.chunks(dim).enumerate() {
                        let terms = || a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b));
                        let (sum, size) =
                            (terms().sum::<f64>(), terms().map(f64::abs).sum::<f64>());
                        let error = (f64::from(out[i * n + j]) - sum).abs();
                        assert!(error <= 1.2e-7 * (dim as f64).sqrt() * size, "{isa:?} {dim}");
                    }
                }
                assert_eq!(dots(isa, &a[36 * dim..], &b[(n - 1) * dim..], dim), out[37 * n - 1..]);
            }
        }
    }

    #[test]
    fn top_k_is_what_sorting_all_finds() {
        for isa in Isa::available() {
            // Few different numbers in few dimensions: many equal products. The table has many blocks.
            for (dim, n, different) in [(2, 200_000, 5), (96, 3000, 2003), (5, 3, 2003)] {
                let few = |n, seed| {
                    values(n, seed)
                        .iter()
                        .map(|x| (x * different as f32).round())
                        .collect::<Vec<_>>()
                };
                let (queries, table) = (few(3 * dim, 1), few(n * dim, 2));
                let all = dots(isa, &queries, &table, dim);
                for k in [0, 1, 10, 100, n + 1] {
                    let found = top_k(isa, &queries, &table, dim, k);
                    assert_eq!(found.len(), 3);
                    for (hits, products) in found.iter().zip(all.chunks(n)) {
                        let mut order: Vec<usize> = (0..n).collect();
                        order.sort_by(|&a, &b| products[b].total_cmp(&products[a]));
                        order.truncate(k);
                        let places: Vec<usize> = hits.iter().map(|hit| hit.index).collect();
                        assert_eq!(places, order, "{isa:?} {dim} {n} {k}");
                        assert!(hits.iter().all(|hit| hit.score == products[hit.index]));
                        assert_eq!(largest(products, k), order);
                    }
                }
            }
        }
    }

    #[test]
    fn nothing_in_nothing() {
        let isa = Isa::active();
        assert!(dots(isa, &[], &[1.0, 2.0], 2).is_empty());
        assert_eq!(top_k(isa, &[1.0, 2.0], &[], 2, 3), [vec![]]);
        assert!(top_k(isa, &[], &[1.0, 2.0], 2, 3).is_empty());
        assert_eq!(largest(&[f32::NAN, 1.0], 1), [0]);
    }
}
