//! Rows of x in tiles.

use std::ops::Range;

use super::columns::{self, Form};
use super::lines::{Lines, bits};
use super::tile::{STEP, interleave};
use super::weights::{bf16_bits, bf16_pair, int8_scale, inverse, quantized};
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
    /// `[tiles][depth][mr]`, where `depth` is a multiple of 16.
    groups: Lines,
    /// Int8: what each row's integers are multiplied with.
    scales: Vec<f32>,
    /// The rows of one tile.
    plain: Vec<f32>,
    /// The groups of one tile, row by row.
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
        shape @ [_, width]: [usize; 2],
        matrix: Matrix,
    ) {
        let Matrix { data, row, col } = matrix;
        match (row, col) {
            (_, 1) => self.fill(isa, precision, shape, |i, out| {
                out.copy_from_slice(&data[i * row..][..width]);
            }),
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
        let (kind, Sizes { mr, .. }) = (Kind::new(isa, precision), Sizes::of(isa));
        self.made_for = Some((isa, precision));
        (self.rows, self.width) = (n, width);
        let depth = self.depth(kind);
        self.groups.reserve(n.div_ceil(mr) * mr * depth + STEP);
        let form = match (precision, kind) {
            (Precision::F32, _) => Form::F32,
            (_, Kind::Bf16Pairs) => Form::Pairs,
            _ => Form::Rounded,
        };
        for first in (0..n).step_by(mr) {
            let held = mr.min(n - first);
            let tile = &mut self.groups.groups_mut()[first * depth..][..mr * depth];
            columns::pack(isa, mr, form, &data[first..], [held, col, width], tile);
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
        let (kind, Sizes { mr, .. }) = (Kind::new(isa, precision), Sizes::of(isa));
        self.made_for = Some((isa, precision));
        (self.rows, self.width) = (n, width);
        let depth = self.depth(kind);
        // `interleave` writes beyond the last tile.
        self.groups.reserve(n.div_ceil(mr) * mr * depth + STEP);
        self.scales.resize(n, 0.0);
        let plain_width = depth * kind.elements();
        if self.plain.len() != mr * plain_width || plain_width != width {
            // Behind a row's end there are zeros.
            self.plain.clear();
            self.plain.resize(mr * plain_width, 0.0);
        }
        self.grouped.reserve(mr * depth);
        for first in (0..n).step_by(mr) {
            let held = mr.min(n - first);
            for (i, row) in self.plain.chunks_exact_mut(plain_width.max(1)).enumerate().take(held) {
                write(first + i, &mut row[..width]);
            }
            let tile = &mut self.groups.groups_mut()[first * depth..];
            if precision == Precision::F32 {
                interleave(isa, mr, bits(&self.plain), depth, tile);
                continue;
            }
            // Rows beyond the last hold what was there before; no kernel reads them.
            let grouped = &mut self.grouped.groups_mut()[..mr * depth];
            let rounded = precision == Precision::Bf16;
            let scales = &mut self.scales[first..first + held];
            let plain = &self.plain[..held * plain_width];
            group(isa, kind, rounded, plain, &mut grouped[..held * depth], scales);
            interleave(isa, mr, grouped, depth, tile);
        }
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
        self.made_for.map_or(1, |(isa, _)| Sizes::of(isa).mr)
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

/// Rows of numbers to rows of groups.
#[inline(always)]
fn group_body(kind: Kind, rounded: bool, plain: &[f32], grouped: &mut [u32], scales: &mut [f32]) {
    let n = scales.len();
    let (width, depth) = ((plain.len() / n).max(1), (grouped.len() / n).max(1));
    let rows = plain.chunks_exact(width).zip(grouped.chunks_exact_mut(depth));
    match kind {
        Kind::F32 if rounded => {
            plain.iter().zip(grouped).for_each(|(&x, to)| *to = bf16_bits(x));
        }
        Kind::F32 => plain.iter().zip(grouped).for_each(|(&x, to)| *to = x.to_bits()),
        Kind::Bf16Pairs => {
            let pairs = plain.as_chunks::<2>().0;
            pairs.iter().zip(grouped).for_each(|(x, to)| *to = bf16_pair(x[0], x[1]));
        }
        Kind::I16Pairs => {
            for ((row, grouped), scale) in rows.zip(scales) {
                *scale = int8_scale(row);
                let inverse = inverse(*scale);
                for (x, to) in row.as_chunks::<2>().0.iter().zip(grouped) {
                    let [a, b] = x.map(|x| quantized(x, inverse) as u32 & 0xffff);
                    *to = a | (b << 16);
                }
            }
        }
        Kind::U8Quads => {
            for ((row, grouped), scale) in rows.zip(scales) {
                *scale = int8_scale(row);
                let inverse = inverse(*scale);
                for (x, to) in row.as_chunks::<4>().0.iter().zip(grouped) {
                    let [a, b, c, d] = x.map(|x| (quantized(x, inverse) + 128) as u32);
                    *to = a | (b << 8) | (c << 16) | (d << 24);
                }
            }
        }
    }
}

dispatch! {
    fn group(
        kind: Kind, rounded: bool, plain: &[f32], grouped: &mut [u32], scales: &mut [f32],
    ) = group_body unfused
}
