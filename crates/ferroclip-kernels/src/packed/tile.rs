//! Tiles of sums: the loop that all formats share, and its driver.

use std::ops::Range;

use super::lines::{Lines, numbers_mut};
use super::{KC, Kind, PackedRows, PackedWeights, Sizes};
#[cfg(target_arch = "x86_64")]
use super::{amx, x86};
use crate::Isa;
use crate::isa::Level;

/// Steps of k between two prefetches. With eight, the rows of a task pass an AVX-512 panel in fewer prefetches
/// than the next block has cache lines.
const AHEAD: usize = 2;

/// One tile: `rows` x NR sums over `depth` groups.
#[derive(Clone, Copy)]
pub(super) struct Tile {
    pub(super) depth: usize,
    pub(super) rows: usize,
    /// `[depth][mr]`.
    pub(super) a: *const u32,
    /// `[depth][nr]`.
    pub(super) b: *const u32,
    /// `[rows][nr]`: f32 or i32.
    pub(super) sums: *mut u32,
    /// Whether the sums go on from what is there.
    pub(super) resume: bool,
    /// What will be wanted soon; an address that need not be valid.
    pub(super) next: *const u8,
    /// Bytes between two prefetches.
    pub(super) step: usize,
}

/// A register of sums and how it is computed with.
pub(super) trait Lanes {
    /// A register.
    type V: Copy;
    /// Groups in a register; a panel has twice as many columns.
    const LANES: usize;

    unsafe fn zero() -> Self::V;
    unsafe fn load(from: *const u32) -> Self::V;
    unsafe fn store(to: *mut u32, x: Self::V);
    unsafe fn broadcast(from: *const u32) -> Self::V;
    /// `sum` plus the products of the elements of each group of `a` and `b`.
    unsafe fn dot(sum: Self::V, a: Self::V, b: Self::V) -> Self::V;
    unsafe fn prefetch(address: *const u8);
}

/// `R` rows of a tile whose rows are `M` groups apart.
///
/// # Safety
/// The processor has the instructions of `L`; the pointers of the tile hold what it says.
#[inline(always)]
pub(super) unsafe fn rows<L: Lanes, const R: usize, const M: usize>(tile: &Tile) {
    // SAFETY: the caller vouches for the instructions and the operands: `depth` groups of `M` and of
    // 2 LANES, and R rows of 2 LANES sums. Prefetching touches nothing.
    unsafe {
        let mut sums = [[L::zero(); 2]; R];
        if tile.resume {
            for (i, sums) in sums.iter_mut().enumerate() {
                for (w, sum) in sums.iter_mut().enumerate() {
                    *sum = L::load(tile.sums.add((2 * i + w) * L::LANES));
                }
            }
        }
        let (mut a, mut b, mut next) = (tile.a, tile.b, tile.next);
        for _ in 0..tile.depth / AHEAD {
            L::prefetch(next);
            next = next.wrapping_add(tile.step);
            for _ in 0..AHEAD {
                step::<L, R>(&mut sums, a, b);
                (a, b) = (a.add(M), b.add(2 * L::LANES));
            }
        }
        for _ in 0..tile.depth % AHEAD {
            step::<L, R>(&mut sums, a, b);
            (a, b) = (a.add(M), b.add(2 * L::LANES));
        }
        for (i, sums) in sums.iter().enumerate() {
            for (w, &sum) in sums.iter().enumerate() {
                L::store(tile.sums.add((2 * i + w) * L::LANES), sum);
            }
        }
    }
}

/// One group of each of `R` rows times one group of each column.
///
/// # Safety
/// `a` points to `R` groups, `b` to `2 LANES`.
#[inline(always)]
unsafe fn step<L: Lanes, const R: usize>(sums: &mut [[L::V; 2]; R], a: *const u32, b: *const u32) {
    // SAFETY: the caller vouches for the operands, and for the instructions.
    unsafe {
        let columns = [L::load(b), L::load(b.add(L::LANES))];
        for (i, sums) in sums.iter_mut().enumerate() {
            let x = L::broadcast(a.add(i));
            sums[0] = L::dot(sums[0], x, columns[0]);
            sums[1] = L::dot(sums[1], x, columns[1]);
        }
    }
}

/// Calls [`rows`] for the number of rows that the tile has.
macro_rules! by_rows {
    ($lanes:ty, $mr:literal, $tile:expr, $($rows:literal)*) => {
        match $tile.rows {
            $($rows => $crate::packed::tile::rows::<$lanes, $rows, $mr>($tile),)*
            rows => unreachable!("a tile of {rows} rows"),
        }
    };
}
pub(super) use by_rows;

/// Lanes without intrinsics.
struct PlainF32;
struct PlainI16;

impl Lanes for PlainF32 {
    type V = [f32; 8];
    const LANES: usize = 8;

    unsafe fn zero() -> Self::V {
        [0.0; 8]
    }
    #[inline(always)]
    unsafe fn load(from: *const u32) -> Self::V {
        // SAFETY: the caller vouches for 8 groups.
        unsafe { from.cast::<[f32; 8]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(to: *mut u32, x: Self::V) {
        // SAFETY: likewise.
        unsafe { to.cast::<[f32; 8]>().write_unaligned(x) }
    }
    #[inline(always)]
    unsafe fn broadcast(from: *const u32) -> Self::V {
        // SAFETY: the caller vouches for a group.
        [f32::from_bits(unsafe { from.read() }); 8]
    }
    #[inline(always)]
    unsafe fn dot(sum: Self::V, a: Self::V, b: Self::V) -> Self::V {
        std::array::from_fn(|i| sum[i] + a[i] * b[i])
    }
    #[inline(always)]
    unsafe fn prefetch(_: *const u8) {}
}

impl Lanes for PlainI16 {
    type V = [i32; 8];
    const LANES: usize = 8;

    unsafe fn zero() -> Self::V {
        [0; 8]
    }
    #[inline(always)]
    unsafe fn load(from: *const u32) -> Self::V {
        // SAFETY: the caller vouches for 8 groups.
        unsafe { from.cast::<[i32; 8]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(to: *mut u32, x: Self::V) {
        // SAFETY: likewise.
        unsafe { to.cast::<[i32; 8]>().write_unaligned(x) }
    }
    #[inline(always)]
    unsafe fn broadcast(from: *const u32) -> Self::V {
        // SAFETY: the caller vouches for a group.
        [unsafe { from.read() } as i32; 8]
    }
    #[inline(always)]
    unsafe fn dot(sum: Self::V, a: Self::V, b: Self::V) -> Self::V {
        let low = |x: i32| i32::from(x as i16);
        std::array::from_fn(|i| sum[i] + low(a[i]) * low(b[i]) + (a[i] >> 16) * (b[i] >> 16))
    }
    #[inline(always)]
    unsafe fn prefetch(_: *const u8) {}
}

type Kernel = unsafe fn(&Tile);

unsafe fn plain_f32(tile: &Tile) {
    // SAFETY: the caller's promise, passed on.
    unsafe { by_rows!(PlainF32, 6, tile, 1 2 3 4 5 6) }
}

unsafe fn plain_i16(tile: &Tile) {
    // SAFETY: likewise.
    unsafe { by_rows!(PlainI16, 6, tile, 1 2 3 4 5 6) }
}

/// The kernel of a set that multiplies groups of this kind. Sets are those that an [`Isa`] proves.
fn kernel(isa: Isa, kind: Kind) -> Kernel {
    match (isa.0, kind) {
        #[cfg(target_arch = "x86_64")]
        (Level::Avx2, Kind::F32) => x86::avx2_f32,
        #[cfg(target_arch = "x86_64")]
        (Level::Avx2, _) => x86::avx2_i16,
        #[cfg(target_arch = "x86_64")]
        (Level::Avx512(_), Kind::F32) => x86::avx512_f32,
        #[cfg(target_arch = "x86_64")]
        (Level::Avx512(_), Kind::I16Pairs) => x86::avx512_i16,
        #[cfg(target_arch = "x86_64")]
        (Level::Avx512(_), Kind::Bf16Pairs) => x86::avx512_bf16,
        #[cfg(target_arch = "x86_64")]
        (Level::Avx512(_), Kind::U8Quads) => x86::avx512_vnni,
        (_, Kind::F32Tiles | Kind::Bf16Tiles | Kind::I8Tiles) => {
            unreachable!("multiplied in tiles")
        }
        (Level::Scalar, Kind::F32) => plain_f32,
        (Level::Scalar, _) => plain_i16,
    }
}

/// Memory of one thread for the sums of a panel.
pub(super) struct Memory {
    sums: Lines,
    /// A block of a panel that was widened.
    wide: Lines,
    #[cfg(target_arch = "x86_64")]
    registers: Option<crate::amx::Tiles>,
}

impl Memory {
    /// Memory, and registers, for products of one kind.
    pub(super) fn new(weights: &PackedWeights) -> Memory {
        Memory {
            sums: Lines::default(),
            wide: Lines::default(),
            #[cfg(target_arch = "x86_64")]
            registers: if weights.kind().tiles() { amx::registers(weights.isa()) } else { None },
        }
    }

    /// The sums of some tiles of rows with one panel, as numbers, `[rows][nr]`; `done(rows, sums)` takes them,
    /// those of some rows at a time.
    pub(super) fn panel(
        &mut self,
        weights: &PackedWeights,
        rows: &PackedRows,
        tiles: Range<usize>,
        panel: usize,
        mut done: impl FnMut(Range<usize>, &mut [f32]),
    ) {
        let kind = weights.kind();
        let Sizes { mr, nr } = Sizes::of(weights.isa(), kind);
        let held = rows.rows_of(tiles.clone());
        let (n_sums, tile_rows) = (held.len() * nr, rows.tile_rows());
        self.sums.reserve(tiles.len() * mr * nr);
        #[cfg(target_arch = "x86_64")]
        if let Some(registers) = &self.registers {
            let sums = self.sums.groups_mut();
            amx::panel(registers, weights, rows, tiles, panel, sums, |tiles, sums| {
                let held = rows.rows_of(tiles);
                done(held.clone(), numbers(weights, rows, held, panel, sums));
            });
            return;
        }
        let stored = weights.panel(panel);
        // Widening makes two groups of one.
        let widened = if weights.widens() { 2 } else { 1 };
        let depth = stored.len() / nr * widened;
        if depth == 0 {
            self.sums.groups_mut()[..n_sums].fill(0);
        }
        let kernel = kernel(weights.isa(), kind);
        // Blocks of one length, rounded to whole stored groups.
        let length = depth.div_ceil(depth.div_ceil(KC).max(1)).next_multiple_of(2);
        for k0 in (0..depth).step_by(length.max(1)) {
            let k1 = (k0 + length).min(depth);
            let block = &stored[k0 / widened * nr..k1 / widened * nr];
            let block = match widened {
                1 => block,
                _ => {
                    self.wide.reserve((k1 - k0) * nr);
                    let wide = &mut self.wide.groups_mut()[..(k1 - k0) * nr];
                    weights.widen(block, wide);
                    wide
                }
            };
            let ahead = (k1 - k0) / AHEAD * tiles.len();
            let bytes = length / widened * nr * 4;
            let mut tile = Tile {
                depth: k1 - k0,
                rows: 0,
                a: std::ptr::null(),
                b: block.as_ptr(),
                sums: self.sums.groups_mut().as_mut_ptr(),
                resume: k0 > 0,
                next: stored.as_ptr().wrapping_add(k1 / widened * nr).cast(),
                step: bytes.div_ceil(ahead.max(1)),
            };
            let mut left = held.len();
            for i in tiles.clone() {
                let a = rows.tile(i, k0);
                tile.rows = left.min(tile_rows);
                assert!(a.len() >= tile.depth * mr);
                assert!(block.len() >= tile.depth * nr);
                tile.a = a.as_ptr();
                // SAFETY: the set is one that an `Isa` value proves; the tile and the block hold
                // `depth` groups (asserted), and `sums` has `nr` for each row that is left.
                unsafe {
                    kernel(&tile);
                    tile.sums = tile.sums.add(tile.rows * nr);
                }
                tile.next = tile.next.wrapping_add(tile.depth / AHEAD * tile.step);
                left -= tile.rows;
            }
        }
        let sums = numbers(weights, rows, held.clone(), panel, self.sums.groups_mut());
        done(held, sums);
    }
}

/// The sums of these rows with a panel, of integers or of numbers, as numbers.
fn numbers<'a>(
    weights: &PackedWeights,
    rows: &PackedRows,
    held: Range<usize>,
    panel: usize,
    sums: &'a mut [u32],
) -> &'a mut [f32] {
    let sums = &mut sums[..held.len() * weights.nr()];
    if weights.kind().integers() {
        weights.scale_sums(panel, rows.scales(held), sums);
    }
    numbers_mut(sums)
}
