//! Elementwise work over the threads of the pool.

use rayon::prelude::*;

/// Elements that one task takes: enough to hide the cost of handing it over.
const CHUNK: usize = 1 << 14;

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
