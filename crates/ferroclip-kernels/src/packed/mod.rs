//! Products with weights that were packed once: `out = x W^T`, in f32, bf16 or int8.
//!
//! ```text
//! weights  [panels][groups][NR]   NR outputs side by side, a group being 4 bytes of consecutive inputs
//! rows     [tiles][groups][MR]    MR rows of x side by side
//! sums     [rows][NR]             of one panel at a time, in the first-level cache
//! ```
//!
//! A group is one f32, two bf16, two 16-bit integers or four 8-bit integers ([`Kind`]), so all formats
//! share one loop: broadcast a group of a row, multiply it with the groups of NR outputs, add. For
//! each panel k runs in blocks of [`KC`] bytes that the first-level cache holds, and the rows pass by,
//! from the second level; meanwhile the next block of the panel is fetched. Each sum is one chain over
//! k, whatever the number of rows, tiles and threads is: a row's result does not depend on
//! its neighbours, bit for bit.
//!
//! | precision | weights | rows | sums |
//! |---|---|---|---|
//! | f32 | f32 | f32 | f32 |
//! | bf16 | bf16 | rounded to bf16 | f32 |
//! | int8 | 8 bits, one scale for each output | 8 bits, one scale for each row | exact integers, then f32 |
//!
//! Where there are registers for whole tiles (AMX), the loops are those of [`amx`] and [`split`]: sums of 16 rows and 16
//! columns at once, and f32 in three parts of bf16 ([`parts`]). Of a row and a column they, too, are added up in one
//! order whatever stands beside them.

#[cfg(target_arch = "x86_64")]
mod amx;
mod columns;
mod finish;
mod interleave;
mod lines;
mod pack;
mod parts;
mod rows;
#[cfg(target_arch = "x86_64")]
mod split;
mod tile;
mod weights;
#[cfg(target_arch = "x86_64")]
mod x86;
#[cfg(target_arch = "x86_64")]
mod x86_interleave;

use std::ops::Range;

use rayon::prelude::*;

use crate::Isa;
use crate::fetch::fetch_ahead;
use crate::isa::Level;
pub use finish::Finish;
use pack::Packer;
pub use rows::PackedRows;
use rows::Part;
pub use weights::PackedWeights;

/// The numbers that products are made of; sums, norms and everything else stay f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// As they are; where tiles are multiplied whole, as exact sums of three bf16.
    #[default]
    F32,
    /// Weights and rows rounded to 8 bits of mantissa.
    Bf16,
    /// Weights and rows rounded to integers of -127 to 127 times a scale.
    Int8,
}

/// What a group of the rows is, and with it which instruction multiplies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// One f32 (in bf16 precision one that was rounded).
    F32,
    /// Two bf16 of one of three parts of f32, 16 groups of a row at a time: `tdpbf16ps`.
    F32Tiles,
    /// Two bf16: `vdpbf16ps`.
    Bf16Pairs,
    /// Two 16-bit integers: `vpmaddwd`.
    I16Pairs,
    /// Four integers, the rows' moved to 0..=255: `vpdpbusd`.
    U8Quads,
    /// Two bf16, 16 groups of a row at a time: `tdpbf16ps`.
    Bf16Tiles,
    /// Four integers likewise: `tdpbssd`.
    I8Tiles,
}

/// Groups of a block of k: the panel's part is 24 KiB with 16 columns, 48 KiB with 32.
const KC: usize = 384;
/// Rows that pass by a panel together: their part of x stays in the second-level cache.
const BLOCK_ROWS: usize = 96;
/// Bytes of rows that pass by a panel together where tiles are multiplied whole, so fast that the panels, which
/// come from beyond the second-level cache, are what is waited for: as many rows as it holds.
const BLOCK_BYTES: usize = 1 << 20;

/// Bytes of an MLP's hidden rows that go through its products together where tiles are multiplied whole.
const HIDDEN_BYTES: usize = 1_200_000;

/// Rows that had best go through products with such weights together on one core: their values stay in its
/// second-level cache, and the weights are read once for all of them.
pub fn task_rows(weights: &PackedWeights) -> usize {
    match (weights.precision(), weights.kind()) {
        (_, kind) if kind.tiles() => {
            // The weights are what is waited for. Measured in bf16 and int8 at widths of 512, 768 and 1024; in f32
            // it is the least of these there.
            let groups = 4 * kind.groups(weights.inputs());
            (HIDDEN_BYTES / 4 / groups.max(1)).clamp(200, 400)
        }
        (Precision::F32, _) => 128,
        // Products take so little time that what lies between them counts for more, and it fits in less
        // memory.
        _ => 72,
    }
}

impl Kind {
    fn new(isa: Isa, precision: Precision) -> Kind {
        match (precision, isa.0) {
            #[cfg(target_arch = "x86_64")]
            (Precision::F32, Level::Avx512(dots)) if dots.amx() => Kind::F32Tiles,
            (Precision::F32, _) => Kind::F32,
            #[cfg(target_arch = "x86_64")]
            (Precision::Bf16, Level::Avx512(dots)) if dots.amx() => Kind::Bf16Tiles,
            #[cfg(target_arch = "x86_64")]
            (Precision::Int8, Level::Avx512(dots)) if dots.amx() => Kind::I8Tiles,
            #[cfg(target_arch = "x86_64")]
            (Precision::Bf16, Level::Avx512(dots)) if dots.bf16() => Kind::Bf16Pairs,
            (Precision::Bf16, _) => Kind::F32,
            #[cfg(target_arch = "x86_64")]
            (Precision::Int8, Level::Avx512(dots)) if dots.vnni() => Kind::U8Quads,
            (Precision::Int8, _) => Kind::I16Pairs,
        }
    }

    /// The fewest elements that fill whole groups, and the number of these.
    fn unit(self) -> [usize; 2] {
        match self {
            Kind::F32 => [1, 1],
            Kind::F32Tiles => [parts::ELEMENTS, parts::GROUPS],
            Kind::Bf16Pairs | Kind::I16Pairs | Kind::Bf16Tiles => [2, 1],
            Kind::U8Quads | Kind::I8Tiles => [4, 1],
        }
    }

    /// Groups of this many elements of a row, rounded up.
    fn groups(self, elements: usize) -> usize {
        let [of, take] = self.unit();
        elements.div_ceil(of) * take
    }

    /// Elements that whole groups of a row hold.
    fn elements(self, groups: usize) -> usize {
        let [hold, of] = self.unit();
        groups / of * hold
    }

    /// Whether 16 groups of 16 rows are multiplied at once.
    fn tiles(self) -> bool {
        matches!(self, Kind::F32Tiles | Kind::Bf16Tiles | Kind::I8Tiles)
    }

    /// Rows of this many elements that pass by a panel together.
    fn block_rows(self, width: usize) -> usize {
        match self.tiles() {
            true => (BLOCK_BYTES / 4 / self.groups(width).max(1)).max(32),
            false => BLOCK_ROWS,
        }
    }

    /// Whether sums are integers.
    fn integers(self) -> bool {
        matches!(self, Kind::I16Pairs | Kind::U8Quads | Kind::I8Tiles)
    }
}

/// Rows of a tile and columns of a panel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sizes {
    pub(crate) mr: usize,
    pub(crate) nr: usize,
}

impl Sizes {
    /// As many sums as the registers hold: 6 x 2 of 16, or 12 x 2 of 32; or one of two tiles.
    fn of(isa: Isa, kind: Kind) -> Sizes {
        match isa.0 {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512(_) if kind.tiles() => Sizes { mr: 16, nr: 32 },
            #[cfg(target_arch = "x86_64")]
            Level::Avx512(_) => Sizes { mr: 12, nr: 32 },
            _ => Sizes { mr: 6, nr: 16 },
        }
    }
}

/// `out[i][j] = finish(sum over k of rows[i][k] weights[j][k] + bias[j])`, rows of `out` being `ld`
/// apart. On the calling thread, or where `split` is set on all threads of the pool, each of which
/// takes a part of the columns.
///
/// # Panics
/// When `out` is too short, or rows and weights differ in width, precision or instruction set.
pub fn multiply(
    weights: &PackedWeights,
    rows: &PackedRows,
    bias: Option<&[f32]>,
    finish: Finish,
    out: &mut [f32],
    ld: usize,
    split: bool,
) {
    assert!(weights.fits(rows), "rows were packed for other weights");
    assert!(ld >= weights.outputs() && bias.is_none_or(|bias| bias.len() == weights.outputs()));
    let n = rows.len();
    if n == 0 {
        return;
    }
    let mut out: Vec<&mut [f32]> =
        out.chunks_mut(ld).take(n).map(|row| &mut row[..weights.outputs()]).collect();
    assert_eq!(out.len(), n, "out is too short");
    let panels = weights.panels();
    let share = panel_share(panels, split);
    if share == panels {
        return part(weights, rows, bias, finish, 0..panels, &mut out);
    }
    let mut parts = Vec::with_capacity(panels.div_ceil(share));
    for first in (0..panels).step_by(share) {
        let last = (first + share).min(panels);
        let columns = (share * weights.nr()).min(out[0].len());
        let mine: Vec<&mut [f32]> = out
            .iter_mut()
            .map(|row| {
                let (mine, rest) = std::mem::take(row).split_at_mut(columns);
                *row = rest;
                mine
            })
            .collect();
        parts.push((first..last, mine));
    }
    parts.into_par_iter().for_each(|(panels, mut out)| {
        part(weights, rows, bias, finish, panels, &mut out);
    });
}

/// What [`multiply`] would write, as rows of the next product, `next`, of the same precision. Sums become rows at
/// once, but for int8, where the whole row decides the scale: there they stand in `between` meanwhile.
///
/// # Panics
/// As [`multiply`], and where `finish` adds.
pub fn multiply_to_rows(
    weights: &PackedWeights,
    rows: &PackedRows,
    bias: Option<&[f32]>,
    finish: Finish,
    between: &mut Vec<f32>,
    next: &mut PackedRows,
    split: bool,
) {
    let is_alone = matches!(finish, Finish::Store | Finish::Activate(_));
    assert!(is_alone, "rows that are made have nothing to add to, and no rectifier yet");
    let (isa, precision, nr) = (weights.isa(), weights.precision(), weights.nr());
    let shape @ [n, outputs] = [rows.len(), weights.outputs()];
    if precision == Precision::Int8 {
        between.resize(n * outputs, 0.0);
        multiply(weights, rows, bias, finish, between, outputs, split);
        return next.fill_dense(isa, precision, shape, between, split);
    }
    assert!(weights.fits(rows), "rows were packed for other weights");
    assert!(bias.is_none_or(|bias| bias.len() == outputs));
    let panels = weights.panels();
    let share = panel_share(panels, split);
    let parts = next.parts(Packer::new(isa, precision), shape, share * nr);
    let fill = |(start, mut part): (usize, Part)| {
        each_panel(weights, rows, start..(start + share).min(panels), |held, panel, sums| {
            finish::in_place(isa, finish, sums, nr, weights.of_panel(panel, bias));
            part.put(held, panel - start, nr, sums);
        });
    };
    let parts = (0..panels).step_by(share).zip(parts);
    match split {
        true => parts.collect::<Vec<_>>().into_par_iter().for_each(fill),
        false => parts.for_each(fill),
    }
}

/// Panels of a thread.
fn panel_share(panels: usize, split: bool) -> usize {
    let threads = if split { rayon::current_num_threads() } else { 1 };
    panels.div_ceil(threads).max(1)
}

/// The columns of `panels`, which the rows of `out` are cut to.
fn part(
    weights: &PackedWeights,
    rows: &PackedRows,
    bias: Option<&[f32]>,
    finish: Finish,
    panels: Range<usize>,
    out: &mut [&mut [f32]],
) {
    let (nr, start) = (weights.nr(), panels.start);
    each_panel(weights, rows, panels, |held, panel, sums| {
        let place = [nr, (panel - start) * nr];
        let out = &mut out[held];
        finish::finish(weights.isa(), finish, sums, place, weights.of_panel(panel, bias), out);
        // What the next panel is written over, or added to, was written long ago.
        let next = place[1] + nr;
        for row in out {
            fetch_ahead(&row[next.min(row.len())..(next + nr).min(row.len())]);
        }
    });
}

/// Calls `done(rows, panel, sums)` with the sums, `[rows][nr]`, of some rows and each panel.
fn each_panel(
    weights: &PackedWeights,
    rows: &PackedRows,
    panels: Range<usize>,
    mut done: impl FnMut(Range<usize>, usize, &mut [f32]),
) {
    #[cfg(target_arch = "x86_64")]
    if weights.kind() == Kind::F32Tiles {
        return split::each_panel(weights, rows, panels, done);
    }
    let wanted = weights.kind().block_rows(weights.inputs());
    let blocks = ((rows.len() + wanted / 2) / wanted).max(1);
    // Two tiles go through a panel together where they are multiplied whole.
    let tiles = rows.tiles().div_ceil(blocks).next_multiple_of(2);
    let mut memory = tile::Memory::new(weights);
    for first in (0..rows.tiles()).step_by(tiles.max(1)) {
        let tiles = first..(first + tiles).min(rows.tiles());
        for panel in panels.clone() {
            memory.panel(weights, rows, tiles.clone(), panel, |held, sums| done(held, panel, sums));
        }
    }
}

#[cfg(test)]
mod tests;
