//! Rows of x in tiles.

use std::ops::Range;

use super::columns::{self, Form};
use super::interleave::{Rows, STEP, interleave};
#[cfg(target_arch = "x86_64")]
use super::interleave::{interleave_pairs, interleave_quads, tile_pairs, tile_quads};
use super::lines::{Lines, bits};
use super::weights::{self, bf16_bits, int8_scale, quantized};
use super::{Kind, Precision, Sizes};
use crate::Isa;
use crate::gemm::Matrix;
use crate::isa::dispatch;

/// Rows of x, packed for products with weights of one instruction set and precision. The memory is
/// kept from one filling to the next.
#[derive(Clone, Debug, Default)]
pub struct PackedRows {
    made_for: Option<(Isa, Precision)>,
    rows: usize,
    width: usize,
    /// `[tiles][depth][mr]`, where `depth` is a multiple of 16; of tiles that are multiplied whole
    /// `[tiles][depth / 16][mr][16]`.
    groups: Lines,
    /// Int8: what each row's integers are multiplied with.
    scales: Vec<f32>,
    /// The rows of one tile.
    plain: Vec<f32>,
    /// The groups of one tile, row by row, where they are not made while the tile is.
    grouped: Lines,
}

impl PackedRows {
    /// Packs the first `n` rows and `width` columns of a matrix.
    ///
    /// # Panics
    /// When the matrix is shorter.
    pub fn fill_matrix(
        &mut self,
        isa: Isa,
        precision: Precision,
        shape: [usize; 2],
        matrix: Matrix,
    ) {
        let Matrix { data, row, col } = matrix;
        match (row, col) {
            (_, 1) => self.fill_rows(isa, precision, shape, data, row),
            (1, _) if precision != Precision::Int8 => {
                self.fill_columns(isa, precision, shape, matrix)
            }
            _ => self.fill(isa, precision, shape, |i, out| {
                out.iter_mut().enumerate().for_each(|(k, x)| *x = data[i * row + k * col]);
            }),
        }
    }

    /// [`PackedRows::fill_matrix`] where the elements of a column lie side by side, as in a tile.
    fn fill_columns(
        &mut self,
        isa: Isa,
        precision: Precision,
        [n, width]: [usize; 2],
        Matrix { data, col, .. }: Matrix,
    ) {
        let kind = Kind::new(isa, precision);
        let mr = Sizes::of(isa, kind).mr;
        let depth = self.begin(isa, precision, [n, width]);
        let form = match (precision, kind) {
            (Precision::F32, _) => Form::F32,
            (_, Kind::Bf16Pairs | Kind::Bf16Tiles) => Form::Pairs,
            _ => Form::Rounded,
        };
        for first in (0..n).step_by(mr) {
            let held = mr.min(n - first);
            let tile = &mut self.groups.groups_mut()[first * depth..][..mr * depth];
            let shape = [held, col, width];
            if !kind.tiles() {
                columns::pack(isa, mr, form, &data[first..], shape, tile);
                continue;
            }
            self.grouped.reserve(mr * depth);
            let grouped = &mut self.grouped.groups_mut()[..mr * depth];
            grouped[width.div_ceil(2) * mr..].fill(0);
            columns::pack(isa, mr, form, &data[first..], shape, grouped);
            for (grouped, tile) in
                grouped.chunks_exact(mr * STEP).zip(tile.chunks_exact_mut(mr * STEP))
            {
                interleave(isa, mr, Rows { data: grouped, held: STEP, stride: mr }, STEP, tile);
            }
        }
    }

    /// [`PackedRows::fill_matrix`] where the elements of a row lie side by side.
    fn fill_rows(
        &mut self,
        isa: Isa,
        precision: Precision,
        [n, width]: [usize; 2],
        data: &[f32],
        stride: usize,
    ) {
        if !width.is_multiple_of(STEP * Kind::new(isa, precision).elements()) {
            return self.fill(isa, precision, [n, width], |i, out| {
                out.copy_from_slice(&data[i * stride..][..width]);
            });
        }
        self.begin(isa, precision, [n, width]);
        let mr = self.mr();
        for first in (0..n).step_by(mr) {
            let rows = Rows { data: &data[first * stride..], held: mr.min(n - first), stride };
            self.pack_tile(isa, precision, first, rows);
        }
    }

    /// Packs `n` rows of `width`; `write(i, row)` writes row `i`.
    pub fn fill(
        &mut self,
        isa: Isa,
        precision: Precision,
        [n, width]: [usize; 2],
        mut write: impl FnMut(usize, &mut [f32]),
    ) {
        let kind = Kind::new(isa, precision);
        let stride = self.begin(isa, precision, [n, width]) * kind.elements();
        let mr = self.mr();
        let mut plain = std::mem::take(&mut self.plain);
        if plain.len() != mr * stride || stride != width {
            // Behind a row's end there are zeros.
            plain.clear();
            plain.resize(mr * stride, 0.0);
        }
        for first in (0..n).step_by(mr) {
            let held = mr.min(n - first);
            for (i, row) in plain.chunks_exact_mut(stride.max(1)).enumerate().take(held) {
                write(first + i, &mut row[..width]);
            }
            self.pack_tile(isa, precision, first, Rows { data: &plain, held, stride });
        }
        self.plain = plain;
    }

    /// Writes the columns of a panel of a product, `nr` in each row of `sums`, into these rows, which begin with
    /// a tile. Panels come in order.
    pub(super) fn put(&mut self, held: Range<usize>, panel: usize, nr: usize, sums: &[f32]) {
        let Some((isa, precision)) = self.made_for else { return };
        assert_ne!(precision, Precision::Int8, "the scale of a row is not known before its end");
        let (kind, mr) = (Kind::new(isa, precision), self.mr());
        let (depth, in_panel) = (self.depth(kind), nr / kind.elements());
        let groups = panel * in_panel..((panel + 1) * in_panel).min(depth);
        for (first, sums) in held.step_by(mr).zip(sums.chunks(mr * nr)) {
            let rows = Rows { data: sums, held: sums.len() / nr, stride: nr };
            // The last panel of a tile would write into the next tile, which has its first groups.
            let end = first * depth + groups.end * mr;
            let beyond: [u32; STEP] = std::array::from_fn(|i| self.groups.groups()[end + i]);
            self.pack_groups(isa, precision, first, groups.clone(), rows);
            self.groups.groups_mut()[end..end + STEP].copy_from_slice(&beyond);
        }
    }

    /// Memory for `n` rows of `width`; returns the groups of a row.
    pub(super) fn begin(
        &mut self,
        isa: Isa,
        precision: Precision,
        [n, width]: [usize; 2],
    ) -> usize {
        self.made_for = Some((isa, precision));
        (self.rows, self.width) = (n, width);
        let (mr, depth) = (self.mr(), self.depth(Kind::new(isa, precision)));
        // `interleave` writes beyond the last tile.
        self.groups.reserve(n.div_ceil(mr) * mr * depth + STEP);
        self.scales.resize(n, 0.0);
        depth
    }

    /// The tile that begins with row `first`, from rows that are padded to whole groups.
    fn pack_tile(&mut self, isa: Isa, precision: Precision, first: usize, rows: Rows<f32>) {
        let kind = Kind::new(isa, precision);
        let depth = self.depth(kind);
        if precision == Precision::Int8 {
            for (r, scale) in self.scales[first..first + rows.held].iter_mut().enumerate() {
                *scale = row_scale(isa, &rows.data[r * rows.stride..][..depth * kind.elements()]);
            }
        }
        self.pack_groups(isa, precision, first, 0..depth, rows);
    }

    /// These groups of the tile that begins with row `first`, a multiple of [`STEP`], from rows of them alone
    /// whose scales are known.
    fn pack_groups(
        &mut self,
        isa: Isa,
        precision: Precision,
        first: usize,
        groups: Range<usize>,
        rows: Rows<f32>,
    ) {
        let (kind, mr) = (Kind::new(isa, precision), self.mr());
        let Rows { data, held, stride } = rows;
        let at = first * self.depth(kind) + groups.start * mr;
        let depth = groups.len();
        let tile = &mut self.groups.groups_mut()[at..];
        let mut inverses = [0.0; 16];
        if precision == Precision::Int8 {
            let scales = &self.scales[first..first + held];
            scales.iter().zip(&mut inverses).for_each(|(&scale, to)| *to = weights::inverse(scale));
        }
        match (precision, kind) {
            (Precision::F32, _) => {
                let rows = Rows { data: bits(data), held, stride };
                return interleave(isa, mr, rows, depth, tile);
            }
            #[cfg(target_arch = "x86_64")]
            (_, Kind::Bf16Pairs) => return interleave_pairs(isa, mr, rows, depth, tile),
            #[cfg(target_arch = "x86_64")]
            (_, Kind::U8Quads) => return interleave_quads(isa, mr, rows, &inverses, depth, tile),
            #[cfg(target_arch = "x86_64")]
            (_, Kind::Bf16Tiles) => return tile_pairs(isa, rows, depth, tile),
            #[cfg(target_arch = "x86_64")]
            (_, Kind::I8Tiles) => return tile_quads(isa, rows, &inverses, depth, tile),
            _ => {}
        }
        self.grouped.reserve(held * depth);
        let grouped = &mut self.grouped.groups_mut()[..held * depth];
        for (r, grouped) in grouped.chunks_exact_mut(depth.max(1)).enumerate() {
            let row = &data[r * stride..][..depth * kind.elements()];
            match precision {
                Precision::Int8 => integer_pairs(isa, row, inverses[r], grouped),
                _ => rounded(isa, row, grouped),
            }
        }
        interleave(isa, mr, Rows { data: grouped, held, stride: depth }, depth, tile);
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.rows
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    pub(super) fn made_for(&self, isa: Isa, precision: Precision, width: usize) -> bool {
        self.made_for == Some((isa, precision)) && self.width == width
    }

    fn mr(&self) -> usize {
        self.made_for.map_or(1, |(isa, precision)| Sizes::of(isa, Kind::new(isa, precision)).mr)
    }

    pub(super) fn tiles(&self) -> usize {
        self.rows.div_ceil(self.mr())
    }

    /// The rows of these tiles.
    pub(super) fn rows_of(&self, tiles: Range<usize>) -> Range<usize> {
        let mr = self.mr();
        tiles.start * mr..(tiles.end * mr).min(self.rows)
    }

    /// The scales of these rows.
    pub(super) fn scales(&self, rows: Range<usize>) -> &[f32] {
        &self.scales[rows]
    }

    /// Groups of a row, rounded up.
    fn depth(&self, kind: Kind) -> usize {
        self.width.div_ceil(kind.elements()).next_multiple_of(STEP)
    }

    /// The groups of a tile from group `first` of each row on.
    pub(super) fn tile(&self, kind: Kind, tile: usize, first: usize) -> &[u32] {
        let (mr, depth) = (self.mr(), self.depth(kind));
        &self.groups.groups()[tile * mr * depth..][first * mr..mr * depth]
    }
}

#[inline(always)]
fn rounded_body(row: &[f32], groups: &mut [u32]) {
    row.iter().zip(groups).for_each(|(&x, to)| *to = bf16_bits(x));
}

#[inline(always)]
fn integer_pairs_body(row: &[f32], inverse: f32, groups: &mut [u32]) {
    for (x, to) in row.as_chunks::<2>().0.iter().zip(groups) {
        let [a, b] = x.map(|x| quantized(x, inverse) as u32 & 0xffff);
        *to = a | (b << 16);
    }
}

dispatch! {
    /// Numbers rounded to bf16, one in a group.
    fn rounded(row: &[f32], groups: &mut [u32]) = rounded_body unfused
}
dispatch! {
    /// Numbers to 16-bit integers, two in a group.
    fn integer_pairs(row: &[f32], inverse: f32, groups: &mut [u32]) = integer_pairs_body unfused
}
dispatch! {
    /// The scale that takes the largest number of a row to 127.
    fn row_scale(row: &[f32]) -> f32 = int8_scale unfused
}
