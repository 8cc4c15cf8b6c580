//! Sums of f32 in tiles, of three parts each ([`parts`](super::parts)): for one load of a tile almost two products,
//! enough work for the second-level cache to keep up.

use std::cell::Cell;
use std::ops::Range;

use super::lines::{Lines, numbers_mut};
use super::parts::{ELEMENTS, GROUPS};
use super::{PackedRows, PackedWeights, amx};
use crate::amx::{ROWS, SPLIT_AHEAD, Split, Tiles, split_one, split_two};

/// Numbers along k that are multiplied before other panels are: 1 MiB of a block of rows and 144 KiB of a panel, which
/// stay in the second-level cache while panels and rows pass by.
const SLAB: usize = 768;
/// Tiles of rows of a block.
const TILES: usize = 14;
/// Panels that a slab of rows passes before the next one does.
const PANELS: usize = 4;
/// Columns of a panel: two tiles, one behind the other.
const NR: usize = 2 * ROWS;
/// Groups of all parts of a tile.
const TILE: usize = GROUPS * ROWS;
/// Sums of two tiles of rows with a panel.
const SUMS: usize = 2 * ROWS * NR;

thread_local! {
    /// Sums, kept from one product to the next.
    static MEMORY: Cell<Lines> = Cell::default();
}

/// Calls `done(rows, panel, sums)` with the sums, `[rows][NR]`, of some rows and each panel.
pub(super) fn each_panel(
    weights: &PackedWeights,
    rows: &PackedRows,
    panels: Range<usize>,
    mut done: impl FnMut(Range<usize>, usize, &mut [f32]),
) {
    let registers = amx::registers(weights.isa()).expect("rows that are packed for tiles");
    let mut memory = MEMORY.take();
    let together = if weights.inputs() > SLAB { PANELS } else { 1 };
    for first in (0..rows.tiles()).step_by(TILES) {
        let tiles = first..(first + TILES).min(rows.tiles());
        let held = rows.rows_of(tiles.clone());
        let n_sums = tiles.len().div_ceil(2) * SUMS;
        memory.reserve(together * n_sums);
        for first in panels.clone().step_by(together) {
            let group = first..(first + together).min(panels.end);
            let sums = &mut memory.groups_mut()[..group.len() * n_sums];
            each_slab(&registers, weights, rows, tiles.clone(), group.clone(), sums);
            for (panel, sums) in group.zip(sums.chunks_exact_mut(n_sums)) {
                done(held.clone(), panel, &mut numbers_mut(sums)[..held.len() * NR]);
            }
        }
    }
    MEMORY.set(memory);
}

/// The sums, `[panels][rows][NR]`, of some tiles of rows with some panels.
fn each_slab(
    registers: &Tiles,
    weights: &PackedWeights,
    rows: &PackedRows,
    tiles: Range<usize>,
    panels: Range<usize>,
    sums: &mut [u32],
) {
    let depth = weights.inputs().next_multiple_of(ELEMENTS);
    if depth == 0 {
        sums.fill(0);
    }
    let n_sums = sums.len() / panels.len();
    for k0 in (0..depth).step_by(SLAB) {
        let slab = k0 / ELEMENTS * TILE..(k0 + SLAB).min(depth) / ELEMENTS * TILE;
        for (panel, sums) in panels.clone().zip(sums.chunks_exact_mut(n_sums)) {
            let stored = weights.panel(panel);
            let (left, right) = stored.split_at(stored.len() / 2);
            let columns = [&left[slab.clone()], &right[slab.clone()]];
            // The next panel, where there is one slab; what the processor fetches by itself is enough for others.
            let next = columns[0].as_ptr().wrapping_add(stored.len()).cast();
            pass(registers, rows, tiles.clone(), k0, columns, next, sums);
        }
    }
}

/// Adds the products of tiles of rows with two tiles of columns, from `k0` on, to their sums. What lies behind `next` is
/// fetched meanwhile.
fn pass(
    registers: &Tiles,
    rows: &PackedRows,
    tiles: Range<usize>,
    k0: usize,
    columns: [&[u32]; 2],
    next: *const u8,
    sums: &mut [u32],
) {
    let depth = columns[0].len() / TILE;
    assert!(depth > 0 && columns[1].len() / TILE == depth);
    let mut block = Split {
        depth,
        a: [std::ptr::null(); 2],
        b: columns.map(<[u32]>::as_ptr),
        sums: std::ptr::null_mut(),
        resume: k0 > 0,
        next,
    };
    for (first, sums) in tiles.clone().step_by(2).zip(sums.chunks_exact_mut(SUMS)) {
        let last = (first + 1).min(tiles.end - 1);
        block.a = [first, last].map(|tile| {
            let a = rows.tile(tile, k0 / ELEMENTS * GROUPS);
            assert!(a.len() >= depth * TILE);
            a.as_ptr()
        });
        block.sums = sums.as_mut_ptr();
        // SAFETY: the set has the instructions, as there are registers; rows and columns hold `depth` tiles of each
        // part, at least one (asserted), and `sums` is of two tiles of rows.
        unsafe {
            match last > first {
                true => split_two(registers, &block),
                false => split_one(registers, &block),
            }
        }
        block.next = block.next.wrapping_add(depth * SPLIT_AHEAD);
    }
}
