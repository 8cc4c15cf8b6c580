//! Rows of x in tiles.

use std::ops::Range;

use rayon::prelude::*;

use super::columns::{self, Form};
use super::interleave::{Rows, STEP, interleave};
use super::lines::Lines;
use super::pack::{Packer, Scratch};
use super::{Kind, Precision, parts};
use crate::Isa;
use crate::gemm::Matrix;

/// Rows of x, packed for products with weights of one instruction set and precision. The memory is
/// kept from one filling to the next.
#[derive(Clone, Debug, Default)]
pub struct PackedRows {
    packer: Option<Packer>,
    rows: usize,
    width: usize,
    /// `[tiles][depth][mr]`, where `depth` is a multiple of 16; of tiles that are multiplied whole
    /// `[tiles][depth / 16][mr][16]`.
    groups: Lines,
    /// Int8: what each row's integers are multiplied with.
    scales: Vec<f32>,
    scratch: Scratch,
}

/// Elements of each column that all tiles take before one takes the next: what they take of a row lies side by side, and
/// memory is read faster in long pieces. They are the pairs of one step.
const STRIP: usize = 2 * STEP;

/// One tile and its place.
struct Slot<'a> {
    first: usize,
    scales: &'a mut [f32],
    tile: &'a mut [u32],
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

    /// [`PackedRows::fill_matrix`] of rows one behind the other, with `split` by all threads of the pool.
    ///
    /// # Panics
    /// When `data` is shorter.
    pub fn fill_dense(
        &mut self,
        isa: Isa,
        precision: Precision,
        shape @ [_, width]: [usize; 2],
        data: &[f32],
        split: bool,
    ) {
        match split {
            true => self.fill_split(isa, precision, shape, |i, row| {
                row.copy_from_slice(&data[i * width..][..width]);
            }),
            false => self.fill_rows(isa, precision, shape, data, width),
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
        let packer @ Packer { kind, mr, .. } = Packer::new(isa, precision);
        let form = match (precision, kind) {
            (Precision::F32, _) => Form::F32,
            (_, Kind::Bf16Pairs | Kind::Bf16Tiles) => Form::Pairs,
            _ => Form::Rounded,
        };
        let (slots, scratch) = self.slots(packer, [n, width]);
        let mut slots: Vec<Slot> = slots.collect();
        for k0 in (0..width).step_by(STRIP) {
            let depth = STRIP.min(width - k0);
            for Slot { first, scales, tile } in &mut slots {
                let (data, shape) = (&data[k0 * col + *first..], [scales.len(), col, depth]);
                let tile = &mut tile[kind.groups(k0) * mr..];
                if !kind.tiles() {
                    columns::pack(isa, mr, form, data, shape, tile);
                    continue;
                }
                // Columns of a strip, and the parts of f32 of them.
                scratch.grouped.reserve((STRIP + kind.groups(STRIP)) * mr);
                let (columns, parts) = scratch.grouped.groups_mut().split_at_mut(STRIP * mr);
                let held = if form == Form::Pairs { depth.div_ceil(2) } else { depth };
                columns[held * mr..].fill(0);
                columns::pack(isa, mr, form, data, shape, columns);
                let groups = kind.groups(STRIP) * mr;
                let grouped = match kind {
                    Kind::F32Tiles => {
                        parts::columns(isa, mr, columns, parts);
                        parts
                    }
                    _ => columns,
                };
                let tiles = tile[..groups].chunks_exact_mut(STEP * mr);
                for (tile, grouped) in tiles.zip(grouped.chunks_exact(STEP * mr)) {
                    let rows = Rows { data: grouped, held: STEP, stride: mr };
                    interleave(isa, mr, rows, STEP, tile);
                }
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
        let packer = Packer::new(isa, precision);
        let packed = packer.kind.elements(packer.depth(width));
        // Where a group is one number, those behind a row's end are packed, too, but not multiplied.
        let has_room = packer.kind == Kind::F32
            && precision == Precision::F32
            && data.len() >= n.saturating_sub(1) * stride + packed;
        if packed != width && !has_room {
            return self.fill(isa, precision, [n, width], |i, out| {
                out.copy_from_slice(&data[i * stride..][..width]);
            });
        }
        let (slots, scratch) = self.slots(packer, [n, width]);
        for Slot { first, scales, tile } in slots {
            let rows = Rows { data: &data[first * stride..], held: scales.len(), stride };
            packer.tile(rows, scratch, scales, tile);
        }
    }

    /// Packs `n` rows of `width`; `write(i, row)` writes row `i`.
    pub fn fill(
        &mut self,
        isa: Isa,
        precision: Precision,
        shape @ [_, width]: [usize; 2],
        mut write: impl FnMut(usize, &mut [f32]),
    ) {
        let packer = Packer::new(isa, precision);
        let (slots, scratch) = self.slots(packer, shape);
        for Slot { first, scales, tile } in slots {
            let mut write = |i: usize, row: &mut [f32]| write(first + i, row);
            packer.written(width, &mut write, scratch, scales, tile);
        }
    }

    /// [`PackedRows::fill`] by all threads of the pool.
    pub fn fill_split(
        &mut self,
        isa: Isa,
        precision: Precision,
        shape @ [_, width]: [usize; 2],
        write: impl Fn(usize, &mut [f32]) + Sync,
    ) {
        let packer = Packer::new(isa, precision);
        let slots: Vec<Slot> = self.slots(packer, shape).0.collect();
        slots.into_par_iter().for_each_init(Scratch::default, |scratch, slot| {
            let Slot { first, scales, tile } = slot;
            let mut write = |i: usize, row: &mut [f32]| write(first + i, row);
            packer.written(width, &mut write, scratch, scales, tile);
        });
    }

    /// Memory for `n` rows of `width`: its tiles, and more for what is on its way there.
    fn slots(
        &mut self,
        packer: Packer,
        [n, width]: [usize; 2],
    ) -> (impl Iterator<Item = Slot<'_>>, &mut Scratch) {
        let Packer { mr, .. } = packer;
        let depth = packer.depth(width);
        let tile_rows = packer.tile_rows(n);
        (self.packer, self.rows, self.width) = (Some(packer), n, width);
        let groups = n.div_ceil(tile_rows) * mr * depth;
        self.groups.reserve(groups);
        // Rows of no width set none.
        self.scales.clear();
        self.scales.resize(n, 0.0);
        let tiles = self.groups.groups_mut()[..groups].chunks_mut((mr * depth).max(1));
        let slots = tiles.zip(self.scales.chunks_mut(tile_rows)).enumerate();
        let slots =
            slots.map(move |(i, (tile, scales))| Slot { first: i * tile_rows, scales, tile });
        (slots, &mut self.scratch)
    }

    /// Memory for `n` rows of `width`, in parts of `columns` of each row, the last one of what is left; not for int8,
    /// where the whole row decides the scale.
    pub(super) fn parts(
        &mut self,
        packer: Packer,
        shape: [usize; 2],
        columns: usize,
    ) -> Vec<Part<'_>> {
        assert_ne!(packer.precision, Precision::Int8, "the scale of a row is not known");
        let length = packer.kind.groups(columns) * packer.mr;
        let tile_rows = packer.tile_rows(shape[0]);
        let mut parts: Vec<Part> = Vec::new();
        for Slot { tile, .. } in self.slots(packer, shape).0 {
            for (i, groups) in tile.chunks_mut(length).enumerate() {
                if i == parts.len() {
                    let scratch = Scratch::default();
                    parts.push(Part { packer, tile_rows, tiles: Vec::new(), scratch });
                }
                parts[i].tiles.push(groups);
            }
        }
        parts
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
        self.packer == Some(Packer::new(isa, precision)) && self.width == width
    }

    fn mr(&self) -> usize {
        self.packer.map_or(1, |packer| packer.mr)
    }

    /// Rows of a tile but the last, which may have fewer.
    pub(super) fn tile_rows(&self) -> usize {
        self.packer.map_or(1, |packer| packer.tile_rows(self.rows))
    }

    pub(super) fn tiles(&self) -> usize {
        self.rows.div_ceil(self.tile_rows())
    }

    /// The rows of these tiles.
    pub(super) fn rows_of(&self, tiles: Range<usize>) -> Range<usize> {
        let rows = self.tile_rows();
        tiles.start * rows..(tiles.end * rows).min(self.rows)
    }

    /// The scales of these rows.
    pub(super) fn scales(&self, rows: Range<usize>) -> &[f32] {
        &self.scales[rows]
    }

    /// The groups of a tile from group `first` of each row on.
    pub(super) fn tile(&self, tile: usize, first: usize) -> &[u32] {
        let (mr, depth) = (self.mr(), self.packer.map_or(0, |packer| packer.depth(self.width)));
        &self.groups.groups()[tile * mr * depth..][first * mr..mr * depth]
    }
}

/// Some columns of all rows.
pub(super) struct Part<'a> {
    packer: Packer,
    tile_rows: usize,
    /// Those of each tile.
    tiles: Vec<&'a mut [u32]>,
    scratch: Scratch,
}

impl Part<'_> {
    /// Writes the columns of a panel, `nr` in each row of `sums`, the rows beginning with a tile. Panels are counted
    /// from the part's first.
    pub(super) fn put(&mut self, held: Range<usize>, panel: usize, nr: usize, sums: &[f32]) {
        let Part { packer, tile_rows, tiles, scratch } = self;
        let length = packer.kind.groups(nr) * packer.mr;
        let tiles = tiles[held.start / *tile_rows..].iter_mut();
        for (tile, sums) in tiles.zip(sums.chunks(*tile_rows * nr)) {
            let rows = Rows { data: sums, held: sums.len() / nr, stride: nr };
            let rest = &mut tile[panel * length..];
            let length = length.min(rest.len());
            packer.groups(rows, scratch, &[], &mut rest[..length]);
        }
    }
}
