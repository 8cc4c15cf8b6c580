//! Rows to one tile.

use super::interleave::{Rows, STEP, interleave};
#[cfg(target_arch = "x86_64")]
use super::interleave::{interleave_pairs, interleave_quads, tile_pairs, tile_quads};
use super::lines::{Lines, bits};
use super::parts;
use super::weights::{self, bf16_bits, int8_scale, quantized};
use super::{Kind, Precision, Sizes};
use crate::Isa;
use crate::isa::dispatch;

/// Tiles of one instruction set and precision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Packer {
    pub(super) isa: Isa,
    pub(super) precision: Precision,
    pub(super) kind: Kind,
    /// Rows that a tile has room for.
    pub(super) mr: usize,
}

/// Memory of one thread for what is on its way into a tile.
#[derive(Clone, Debug, Default)]
pub(super) struct Scratch {
    /// The rows of a tile.
    plain: Vec<f32>,
    /// Its groups, row by row, where they are not made while the tile is.
    pub(super) grouped: Lines,
}

impl Packer {
    pub(super) fn new(isa: Isa, precision: Precision) -> Packer {
        let kind = Kind::new(isa, precision);
        Packer { isa, precision, kind, mr: Sizes::of(isa, kind).mr }
    }

    /// Rows of each tile of `n`, but the last: equally many. A tile of few rows takes as long as one of several, as each
    /// of its sums waits for the one before.
    pub(super) fn tile_rows(self, n: usize) -> usize {
        match self.kind.tiles() || n == 0 {
            true => self.mr,
            false => n.div_ceil(n.div_ceil(self.mr)),
        }
    }

    /// Groups of a row of this many numbers, rounded up.
    pub(super) fn depth(self, width: usize) -> usize {
        self.kind.groups(width).next_multiple_of(STEP)
    }

    /// A tile of as many rows as there are `scales`, of `width` numbers, which `write(i, row)` writes.
    pub(super) fn written(
        self,
        width: usize,
        write: &mut dyn FnMut(usize, &mut [f32]),
        scratch: &mut Scratch,
        scales: &mut [f32],
        tile: &mut [u32],
    ) {
        let stride = self.kind.elements(self.depth(width));
        let mut plain = std::mem::take(&mut scratch.plain);
        if plain.len() != self.mr * stride || stride != width {
            // Behind a row's end there are zeros.
            plain.clear();
            plain.resize(self.mr * stride, 0.0);
        }
        for (i, row) in plain.chunks_exact_mut(stride.max(1)).enumerate().take(scales.len()) {
            write(i, &mut row[..width]);
        }
        let rows = Rows { data: &plain, held: scales.len(), stride };
        self.tile(rows, scratch, scales, tile);
        scratch.plain = plain;
    }

    /// A tile of rows that are padded to whole groups, and their scales.
    pub(super) fn tile(
        self,
        rows: Rows<f32>,
        scratch: &mut Scratch,
        scales: &mut [f32],
        tile: &mut [u32],
    ) {
        let depth = tile.len() / self.mr;
        if self.precision == Precision::Int8 {
            for (r, scale) in scales.iter_mut().enumerate() {
                let row = &rows.data[r * rows.stride..][..self.kind.elements(depth)];
                *scale = row_scale(self.isa, row);
            }
        }
        self.groups(rows, scratch, scales, tile);
    }

    /// Some groups of a tile, a multiple of [`STEP`] in each row, from rows of them alone whose scales are known.
    pub(super) fn groups(
        self,
        rows: Rows<f32>,
        scratch: &mut Scratch,
        scales: &[f32],
        out: &mut [u32],
    ) {
        let Packer { isa, precision, kind, mr } = self;
        let (Rows { data, held, stride }, depth) = (rows, out.len() / mr);
        let mut inverses = [0.0; 16];
        if precision == Precision::Int8 {
            scales.iter().zip(&mut inverses).for_each(|(&scale, to)| *to = weights::inverse(scale));
        }
        match (precision, kind) {
            (_, Kind::F32Tiles) => return parts::tile(isa, rows, depth, out),
            (Precision::F32, _) => {
                let rows = Rows { data: bits(data), held, stride };
                return interleave(isa, mr, rows, depth, out);
            }
            #[cfg(target_arch = "x86_64")]
            (_, Kind::Bf16Pairs) => return interleave_pairs(isa, mr, rows, depth, out),
            #[cfg(target_arch = "x86_64")]
            (_, Kind::U8Quads) => return interleave_quads(isa, mr, rows, &inverses, depth, out),
            #[cfg(target_arch = "x86_64")]
            (_, Kind::Bf16Tiles) => return tile_pairs(isa, rows, depth, out),
            #[cfg(target_arch = "x86_64")]
            (_, Kind::I8Tiles) => return tile_quads(isa, rows, &inverses, depth, out),
            _ => {}
        }
        scratch.grouped.reserve(held * depth);
        let grouped = &mut scratch.grouped.groups_mut()[..held * depth];
        for (r, grouped) in grouped.chunks_exact_mut(depth.max(1)).enumerate() {
            let row = &data[r * stride..][..kind.elements(depth)];
            match precision {
                Precision::Int8 => integer_pairs(isa, row, inverses[r], grouped),
                _ => rounded(isa, row, grouped),
            }
        }
        interleave(isa, mr, Rows { data: grouped, held, stride: depth }, depth, out);
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
