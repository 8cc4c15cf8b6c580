//! Packed panels to tiles of C.

use super::{MR, NR, interleave};
#[cfg(target_arch = "x86_64")]
use super::{avx2, avx512};
use crate::Isa;
#[cfg(target_arch = "x86_64")]
use crate::isa::Level;

/// Tiles of rows that go through one panel of B before the next.
const GROUP: usize = 4;

/// What a kernel has to know of a tile, beside its rows.
#[derive(Clone, Copy)]
#[cfg(target_arch = "x86_64")]
pub(super) struct Tile {
    /// Rows of the panels.
    pub(super) depth: usize,
    /// Distance between rows of C.
    pub(super) ldc: usize,
    /// Whether C is added to.
    pub(super) add: bool,
    /// Columns.
    pub(super) cols: usize,
}

/// One block of rows of C against all panels of B.
#[derive(Clone, Copy)]
pub(crate) struct Block {
    pub(crate) isa: Isa,
    pub(crate) rows: usize,
    pub(crate) n: usize,
    pub(crate) depth: usize,
    pub(crate) ldc: usize,
    pub(crate) add: bool,
}

impl Block {
    pub(crate) fn multiply(&self, a: &[f32], b: &[f32], c: &mut [f32]) {
        for (j, b) in b.chunks_exact(NR * self.depth).enumerate() {
            let cols = NR.min(self.n - j * NR);
            for (i, a) in a.chunks_exact(MR * self.depth).enumerate() {
                let rows = MR.min(self.rows - i * MR);
                self.tile(a, b, &mut c[i * MR * self.ldc + j * NR..], [rows, cols]);
            }
        }
    }

    /// Whether there is a kernel for rows of A that are not packed.
    pub(crate) fn takes_rows(&self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return matches!(self.isa.0, Level::Avx2);
        #[cfg(not(target_arch = "x86_64"))]
        false
    }

    /// As [`Block::multiply`], but the rows of A are not packed: `rows_of(first, pieces)` names
    /// those of the tile that begins with row `first`, as `depth / inputs` pieces of `inputs`
    /// floats. Sets without a kernel for that pack them into `buffer`.
    pub(crate) fn multiply_rows<'a>(
        &self,
        inputs: usize,
        rows_of: impl Fn(usize, &mut Vec<[&'a [f32]; MR]>),
        b: &[f32],
        c: &mut [f32],
        buffer: &mut Vec<f32>,
    ) {
        let mut group: [Vec<[&[f32]; MR]>; GROUP] = Default::default();
        for first in (0..self.rows).step_by(GROUP * MR) {
            let held = (self.rows - first).min(GROUP * MR);
            for (tile, pieces) in group.iter_mut().enumerate().take(held.div_ceil(MR)) {
                pieces.clear();
                rows_of(first + tile * MR, pieces);
                assert_eq!(pieces.len() * inputs, self.depth, "the pieces of a row");
            }
            let c = &mut c[first * self.ldc..];
            #[cfg(target_arch = "x86_64")]
            if let Level::Avx2 = self.isa.0 {
                self.multiply_pieces(inputs, &group[..held.div_ceil(MR)], held, b, c);
                continue;
            }
            buffer.resize(held.div_ceil(MR) * MR * self.depth, 0.0);
            let panels = buffer.chunks_exact_mut(MR * self.depth);
            for (panel, pieces) in panels.zip(&group) {
                for (out, rows) in panel.chunks_exact_mut(MR * inputs).zip(pieces) {
                    interleave::<MR>(self.isa, rows, inputs, out);
                }
            }
            let part = Block { rows: held, ..*self };
            part.multiply(buffer, b, c);
        }
    }

    #[cfg(target_arch = "x86_64")]
    fn multiply_pieces(
        &self,
        inputs: usize,
        group: &[Vec<[&[f32]; MR]>],
        held: usize,
        b: &[f32],
        c: &mut [f32],
    ) {
        for (j, b) in b.chunks_exact(NR * self.depth).enumerate() {
            let cols = NR.min(self.n - j * NR);
            for (i, pieces) in group.iter().enumerate() {
                let rows = MR.min(held - i * MR);
                let c = &mut c[i * MR * self.ldc + j * NR..];
                let tile = Tile { depth: self.depth, ldc: self.ldc, add: self.add, cols };
                assert!((rows - 1) * self.ldc + cols <= c.len());
                assert!(pieces.iter().all(|p| p[..rows].iter().all(|row| row.len() >= inputs)));
                // SAFETY: the set is AVX2, which an `Isa` value proves; the pieces, the panel and
                // `c` hold what is read and written (asserted).
                unsafe {
                    avx2::multiply_pieces(tile, rows, pieces, inputs, b.as_ptr(), c.as_mut_ptr());
                }
            }
        }
    }

    /// One tile: `rows` x `cols` elements of `c`, in rows of `ldc`.
    fn tile(&self, a: &[f32], b: &[f32], c: &mut [f32], [rows, cols]: [usize; 2]) {
        assert!(a.len() >= self.depth * MR && b.len() >= self.depth * NR);
        assert!((1..=MR).contains(&rows) && (1..=NR).contains(&cols));
        assert!((rows - 1) * self.ldc + cols <= c.len());
        #[cfg(target_arch = "x86_64")]
        {
            let tile = Tile { depth: self.depth, ldc: self.ldc, add: self.add, cols };
            let (a, b, c) = (a.as_ptr(), b.as_ptr(), c.as_mut_ptr());
            match self.isa.0 {
                Level::Scalar => {}
                // SAFETY: the `Isa` value proves the features; the panels hold `depth` rows and `c`
                // the tile (asserted).
                Level::Avx2 => return unsafe { avx2::multiply(tile, rows, a, b, c) },
                // SAFETY: likewise.
                Level::Avx512(_) => return unsafe { avx512::multiply(tile, rows, a, b, c) },
            }
        }
        let mut sums = [[0.0; NR]; MR];
        if self.add {
            for (sums, c) in sums.iter_mut().zip(c.chunks(self.ldc)).take(rows) {
                sums[..cols].copy_from_slice(&c[..cols]);
            }
        }
        portable::<4, 8>(self.depth, a, b, &mut sums);
        for (sums, c) in sums.iter().zip(c.chunks_mut(self.ldc)).take(rows) {
            c[..cols].copy_from_slice(&sums[..cols]);
        }
    }
}

/// `tile += a b` over one block of k, without intrinsics: in sub-tiles of `R` x `W` that fit the
/// registers.
fn portable<const R: usize, const W: usize>(
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
                        sums[i][j] += a[i0 + i] * b[j0 + j];
                    }
                }
            }
            for (i, sums) in sums.iter().enumerate() {
                tile[i0 + i][j0..j0 + W].copy_from_slice(sums);
            }
        }
    }
}
