//! Packed panels to tiles of C.

#[cfg(target_arch = "x86_64")]
use super::x86;
use super::{MR, NR};
use crate::Isa;
use crate::isa::{Level, MulAdd, Unfused};

/// One block of rows of C against all panels of B.
pub(super) struct Block {
    pub(super) isa: Isa,
    pub(super) rows: usize,
    pub(super) n: usize,
    pub(super) depth: usize,
    pub(super) ldc: usize,
    pub(super) add: bool,
}

impl Block {
    pub(super) fn multiply(&self, a: &[f32], b: &[f32], c: &mut [f32]) {
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
pub(super) fn portable<M: MulAdd, const R: usize, const W: usize>(
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
