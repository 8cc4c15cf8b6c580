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
/// From this depth on every thread computes rows of C of its own, over all of k: packing B once for
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
            pack_a(isa, a, t * chunk, rows, k0, depth, buffer);
            block.multiply(buffer, panels, c);
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
            pack_a(isa, a, i0, rows, k0, depth, &mut scratch.a);
            let block = Block { isa, rows, n, depth, ldc, add: accumulate || k0 > 0 };
            block.multiply(&scratch.a, &scratch.b, &mut c[i0 * ldc..]);
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
fn pack_b(isa: Isa, b: Matrix, k0: usize, depth: usize, n: usize, j0: usize, panel: &mut [f32]) {
    let cols = NR.min(n - j0);
    let data = &b.data[k0 * b.row + j0 * b.col..];
    pack::<NR>(isa, data, [b.col, b.row], cols, depth, panel);
}

/// Rows `i0..i0 + rows` of A at `k0..k0 + depth`, as panels `[depth][MR]`, zeros beyond the rows.
fn pack_a(
    isa: Isa,
    a: Matrix,
    i0: usize,
    rows: usize,
    k0: usize,
    depth: usize,
    packed: &mut Vec<f32>,
) {
    packed.resize(rows.div_ceil(MR) * MR * depth, 0.0);
    for (t, panel) in packed.chunks_exact_mut(MR * depth).enumerate() {
        let held = MR.min(rows - t * MR);
        let data = &a.data[(i0 + t * MR) * a.row + k0 * a.col..];
        pack::<MR>(isa, data, [a.row, a.col], held, depth, panel);
    }
}

/// `panel[p * W + r] = data[r * across + p * along]` for `r < held`, 0 from there to `W`.
fn pack<const W: usize>(
    isa: Isa,
    data: &[f32],
    [across, along]: [usize; 2],
    held: usize,
    depth: usize,
    panel: &mut [f32],
) {
    let places = panel.chunks_exact_mut(W).take(depth).enumerate();
    match (across, along) {
        (1, _) if held == W => {
            for (p, out) in places {
                // Of a fixed length, so that it is no call.
                let row: &[f32; W] = data[p * along..].first_chunk().expect("a row of W");
                out.copy_from_slice(row);
            }
        }
        (1, _) => {
            for (p, out) in places {
                let (row, rest) = out.split_at_mut(held);
                row.copy_from_slice(&data[p * along..p * along + held]);
                rest.fill(0.0);
            }
        }
        (_, 1) => interleave::<W>(isa, data, across, held, depth, panel),
        _ => {
            for (p, out) in places {
                for (r, out) in out.iter_mut().enumerate() {
                    *out = if r < held { data[r * across + p * along] } else { 0.0 };
                }
            }
        }
    }
}

/// [`pack`] of rows that lie `stride` apart: a transpose.
fn interleave<const W: usize>(
    isa: Isa,
    rows: &[f32],
    stride: usize,
    held: usize,
    depth: usize,
    panel: &mut [f32],
) {
    assert!((held - 1) * stride + depth <= rows.len() && depth * W <= panel.len());
    #[cfg(target_arch = "x86_64")]
    if let Level::Avx512 = isa.0 {
        for r0 in (0..W).step_by(16) {
            let (held, width) = (held.saturating_sub(r0).min(16), (W - r0).min(16));
            // SAFETY: the `Isa` value proves the features; the assertion above covers all that
            // is read and written.
            unsafe {
                let rows = rows.as_ptr().wrapping_add(r0 * stride);
                x86::interleave(rows, stride, held, depth, panel.as_mut_ptr().add(r0), W, width);
            }
        }
        return;
    }
    for r in 0..W {
        for p in 0..depth {
            panel[p * W + r] = if r < held { rows[r * stride + p] } else { 0.0 };
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
        for (j, b) in b.chunks_exact(NR * self.depth).enumerate() {
            let cols = NR.min(self.n - j * NR);
            for (i, a) in a.chunks_exact(MR * self.depth).enumerate() {
                let rows = MR.min(self.rows - i * MR);
                self.tile(a, b, &mut c[i * MR * self.ldc + j * NR..], [rows, cols]);
            }
        }
    }

    /// One tile: `rows` x `cols` elements of `c`, in rows of `ldc`.
    fn tile(&self, a: &[f32], b: &[f32], c: &mut [f32], [rows, cols]: [usize; 2]) {
        assert!(a.len() >= self.depth * MR && b.len() >= self.depth * NR);
        assert!((1..=MR).contains(&rows) && (1..=NR).contains(&cols));
        assert!((rows - 1) * self.ldc + cols <= c.len());
        #[cfg(target_arch = "x86_64")]
        if let Level::Avx512 = self.isa.0 {
            let tile = x86::Tile { depth: self.depth, ldc: self.ldc, add: self.add, cols };
            // SAFETY: the `Isa` value proves the features; the panels hold `depth` rows and `c`
            // the tile (asserted).
            return unsafe { x86::avx512(tile, rows, a.as_ptr(), b.as_ptr(), c.as_mut_ptr()) };
        }
        let mut sums = [[0.0; NR]; MR];
        if self.add {
            for (sums, c) in sums.iter_mut().zip(c.chunks(self.ldc)).take(rows) {
                sums[..cols].copy_from_slice(&c[..cols]);
            }
        }
        micro_kernel(self.isa, self.depth, a, b, &mut sums);
        for (sums, c) in sums.iter().zip(c.chunks_mut(self.ldc)).take(rows) {
            c[..cols].copy_from_slice(&sums[..cols]);
        }
    }
}

/// `tile += a b` over one block of k, with the sets that have no kernel for C in place.
fn micro_kernel(isa: Isa, depth: usize, a: &[f32], b: &[f32], tile: &mut [[f32; NR]; MR]) {
    match isa.0 {
        Level::Scalar => portable::<Unfused, 4, 8>(depth, a, b, tile),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the `Isa` value proves the features.
        Level::Avx2 | Level::Avx512 => unsafe { x86::avx2(depth, a, b, tile) },
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

    /// What the tiles of a block have in common, and the columns of this one.
    #[derive(Clone, Copy)]
    pub(super) struct Tile {
        pub(super) depth: usize,
        pub(super) ldc: usize,
        pub(super) add: bool,
        pub(super) cols: usize,
    }

    /// `c = a b` or `c += a b` for a tile of `rows` rows, which stay in registers.
    ///
    /// # Safety
    /// `a` points to `depth * MR` floats, `b` to `depth * NR`, `c` to `rows` rows of `cols` that
    /// are `ldc` apart.
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn avx512(
        tile: Tile,
        rows: usize,
        a: *const f32,
        b: *const f32,
        c: *mut f32,
    ) {
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

    /// [`avx512`] for `R` rows and `W` registers of columns: `R * W` of the 32 registers.
    ///
    /// # Safety
    /// As [`avx512`].
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

    /// `out[p * ld + r] = rows[r * stride + p]` for `r < held`, 0 from there to `width` (at most
    /// 16), by transposing 16 x 16 blocks in registers.
    ///
    /// # Safety
    /// `rows` points to `held` rows of `depth` floats that are `stride` apart, `out` to `depth`
    /// rows of `width` that are `ld` apart.
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn interleave(
        rows: *const f32,
        stride: usize,
        held: usize,
        depth: usize,
        out: *mut f32,
        ld: usize,
        width: usize,
    ) {
        for p0 in (0..depth).step_by(16) {
            let read = first(depth - p0);
            let mut block = [_mm512_setzero_ps(); 16];
            for (r, row) in block.iter_mut().enumerate() {
                if r < held {
                    // SAFETY: r < held, and the mask ends with the row.
                    *row = unsafe { _mm512_maskz_loadu_ps(read, rows.add(r * stride + p0)) };
                }
            }
            let block = transpose(block);
            for (p, &row) in block.iter().enumerate().take(depth - p0) {
                // SAFETY: p0 + p < depth, and the mask ends with the width.
                unsafe { _mm512_mask_storeu_ps(out.add((p0 + p) * ld), first(width), row) };
            }
        }
    }

    /// The transpose of 16 rows of 16: pairs, then fours, then quarters of the registers.
    #[target_feature(enable = "avx512f")]
    fn transpose(x: [__m512; 16]) -> [__m512; 16] {
        let zero = _mm512_setzero_ps();
        let (mut y, mut z) = ([zero; 16], [zero; 16]);
        for i in 0..8 {
            y[2 * i] = _mm512_unpacklo_ps(x[2 * i], x[2 * i + 1]);
            y[2 * i + 1] = _mm512_unpackhi_ps(x[2 * i], x[2 * i + 1]);
        }
        let low =
            |a, b| _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
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
