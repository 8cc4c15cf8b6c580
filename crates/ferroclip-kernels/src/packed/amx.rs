//! Sums of a panel in tiles: the loop of [`super::tile`] where 16 rows are multiplied at once.

use std::ops::Range;

use super::{Kind, PackedRows, PackedWeights};
use crate::amx::{Block, GROUPS, PREFETCHES, ROWS, Tiles, one_bf16, one_int8, two_bf16, two_int8};
use crate::isa::{Isa, Level};

/// Groups of a block of k: the panel's part, 16 KiB, stays in the first-level cache while rows pass by.
const KC: usize = 128;

/// The tile registers of this thread, where the set has them.
pub(super) fn registers(isa: Isa) -> Option<Tiles> {
    match isa.0 {
        // SAFETY: an `Isa` value proves that they are there.
        Level::Avx512(dots) if dots.amx() => Some(unsafe { Tiles::new() }),
        _ => None,
    }
}

/// The sums of the rows of `tiles` with a panel, in whole tiles, rows of `2 ROWS`. `done(tiles, sums)` takes
/// those of one or two tiles as soon as they are there: they still lie in the first-level cache, and the processor
/// multiplies the next tiles meanwhile.
pub(super) fn panel(
    registers: &Tiles,
    weights: &PackedWeights,
    rows: &PackedRows,
    tiles: Range<usize>,
    panel: usize,
    sums: &mut [u32],
    mut done: impl FnMut(Range<usize>, &mut [u32]),
) {
    let (kind, nr) = (weights.kind(), 2 * ROWS);
    let (two, one) = match kind {
        Kind::Bf16Tiles => (two_bf16 as Kernel, one_bf16 as Kernel),
        Kind::I8Tiles => (two_int8 as Kernel, one_int8 as Kernel),
        other => unreachable!("{other:?} are not multiplied in tiles"),
    };
    let stored = weights.panel(panel);
    let depth = stored.len() / nr;
    assert!(sums.len() >= tiles.len() * ROWS * nr && depth.is_multiple_of(GROUPS));
    if depth == 0 {
        sums.fill(0);
        return done(tiles, sums);
    }
    let length = depth.div_ceil(depth.div_ceil(KC)).next_multiple_of(GROUPS);
    for k0 in (0..depth).step_by(length) {
        let k1 = (k0 + length).min(depth);
        let b = &stored[k0 * nr..k1 * nr];
        let steps = (k1 - k0) / GROUPS * PREFETCHES * tiles.len().div_ceil(2);
        let mut block = Block {
            depth: (k1 - k0) / GROUPS,
            a: [std::ptr::null(); 2],
            b: b.as_ptr(),
            sums: std::ptr::null_mut(),
            resume: k0 > 0,
            next: stored.as_ptr().wrapping_add(k1 * nr).cast(),
            step: (length * nr * 4).div_ceil(steps),
        };
        for (first, sums) in tiles.clone().step_by(2).zip(sums.chunks_mut(2 * ROWS * nr)) {
            block.sums = sums.as_mut_ptr();
            let tile = |tile: usize| {
                let a = rows.tile(tile, k0);
                assert!(a.len() >= (k1 - k0) * ROWS);
                a.as_ptr()
            };
            block.a[0] = tile(first);
            // SAFETY: the kernel is one of the set's; rows and panel hold `depth` tiles (asserted, and by
            // the slice), and `sums` as many tiles as there are rows for (asserted).
            unsafe {
                if first + 1 < tiles.end {
                    block.a[1] = tile(first + 1);
                    two(registers, &block);
                } else {
                    one(registers, &block);
                }
            }
            if k1 == depth {
                done(first..(first + 2).min(tiles.end), sums);
            }
            block.next = block.next.wrapping_add(block.depth * PREFETCHES * block.step);
        }
    }
}

type Kernel = unsafe fn(&Tiles, &Block);
