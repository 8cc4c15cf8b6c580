//! f32 as sums of bf16, so that tiles multiply it.
//!
//! x = x1 + x2 + x3, each part the nearest bf16 of what the ones before it leave: three times 8 bits hold the 24 of an
//! f32, so the sum is exact. Of the nine products of the parts of two numbers six are computed,
//!
//! ```text
//! x w = x1 w1 + x1 w3 + x1 w2 + x2 w2 + x2 w1 + x3 w1
//! ```
//!
//! each exact and added up in f32. What is left out, x2 w3 + x3 w2 + x3 w3, is at most 2^-24 of x w: what one
//! rounding of an f32 product may be. The way is that of Henry, Tang and Heinecke, "Leveraging the bfloat16
//! Artificial Intelligence Datatype For Higher-Precision Computations" (2019), there with six products, too.
//!
//! At the ends of the range it is less: the processor takes parts, products and sums below 2^-126 for 0, so that a number
//! below 2^-110 or a product below 2^-102 has fewer digits, and infinity times a number is NaN.

use super::interleave::Rows;
use crate::Isa;
use crate::isa::dispatch;

/// Elements that are split together: what one tile holds of a row in pairs.
pub(super) const ELEMENTS: usize = 32;
/// Pairs of each part of them.
const PAIRS: usize = ELEMENTS / 2;
/// Groups of all parts of them.
pub(super) const GROUPS: usize = 3 * PAIRS;

/// The parts of a number, each in the upper half of its bits.
#[inline(always)]
fn parts(bits: u32) -> [u32; 3] {
    let nearest = |bits: u32| bits.wrapping_add(0x8000) & 0xffff_0000;
    let less = |x: u32, part: u32| (f32::from_bits(x) - f32::from_bits(part)).to_bits();
    // The nearest bf16 of the largest numbers would be infinity: there the next lower one.
    let largest = f32::MAX.to_bits() & 0xffff_0000;
    let is_large = bits & 0x7fff_0000 >= largest;
    let first = if is_large { bits & 0xffff_0000 } else { nearest(bits) };
    let rest = less(bits, first);
    let second = nearest(rest);
    // Below 2^-110 more is left than a bf16 holds, and would get into the number beside it.
    [first, second, less(rest, second) & 0xffff_0000]
}

/// The parts of two numbers, side by side.
#[inline(always)]
fn pair(first: u32, second: u32) -> [u32; 3] {
    let (a, b) = (parts(first), parts(second));
    [a[0] >> 16 | b[0], a[1] >> 16 | b[1], a[2] >> 16 | b[2]]
}

/// `[n / 16][k / 32][part][16][16]` from `[k][n]`: pairs of what follows one another along k.
#[inline(always)]
fn columns_body(n: usize, stored: &[u32], out: &mut [u32]) {
    const RUN: usize = 16;
    let length = stored.len() / (ELEMENTS * n) * GROUPS * RUN;
    for (i, out) in out.chunks_exact_mut(length.max(1)).take(n / RUN).enumerate() {
        let blocks = stored.chunks_exact(ELEMENTS * n).zip(out.chunks_exact_mut(GROUPS * RUN));
        for (block, out) in blocks {
            let (first, rest) = out.as_chunks_mut::<RUN>().0.split_at_mut(PAIRS);
            let (second, third) = rest.split_at_mut(PAIRS);
            let out = first.iter_mut().zip(second).zip(third);
            for (rows, ((first, second), third)) in block.chunks_exact(2 * n).zip(out) {
                let (even, odd) = rows.split_at(n);
                let even: &[u32; RUN] = even[i * RUN..].first_chunk().expect("a run");
                let odd: &[u32; RUN] = odd[i * RUN..].first_chunk().expect("a run");
                for r in 0..RUN {
                    [first[r], second[r], third[r]] = pair(even[r], odd[r]);
                }
            }
        }
    }
}

/// `[k / 32][part][16 rows][16]` from 16 rows of numbers, zeros in place of those that are not held.
#[inline(always)]
fn tile_body(rows: Rows<f32>, out: &mut [u32]) {
    const TILE: usize = 16 * PAIRS;
    let Rows { data, held, stride } = rows;
    for (block, out) in out.chunks_exact_mut(3 * TILE).enumerate() {
        let (first, rest) = out.split_at_mut(TILE);
        let (second, third) = rest.split_at_mut(TILE);
        let lines = first.as_chunks_mut::<PAIRS>().0.iter_mut();
        let lines = lines.zip(second.as_chunks_mut::<PAIRS>().0);
        let lines = lines.zip(third.as_chunks_mut::<PAIRS>().0);
        for (r, ((first, second), third)) in lines.enumerate() {
            let from: &[f32; ELEMENTS] = match r < held {
                true => data[r * stride + block * ELEMENTS..].first_chunk().expect("32 numbers"),
                false => &[0.0; ELEMENTS],
            };
            for i in 0..PAIRS {
                [first[i], second[i], third[i]] =
                    pair(from[2 * i].to_bits(), from[2 * i + 1].to_bits());
            }
        }
    }
}

dispatch! {
    fn columns_of(n: usize, stored: &[u32], out: &mut [u32]) = columns_body unfused
}
dispatch! {
    fn tile_of(rows: Rows<f32>, out: &mut [u32]) = tile_body unfused
}

/// The parts of columns of f32, `n` side by side: `[n / 16][k / 32][part][16][16]` from `[k][n]`.
///
/// # Panics
/// Where `out` is shorter, or `n` no multiple of 16.
pub(super) fn columns(isa: Isa, n: usize, stored: &[u32], out: &mut [u32]) {
    assert!(n.is_multiple_of(16) && out.len() / GROUPS >= stored.len() / ELEMENTS);
    columns_of(isa, n, stored, out);
}

/// The parts of up to 16 rows, `depth` groups of each: `[depth / 48][part][16][16]`.
///
/// # Panics
/// Where rows are shorter.
pub(super) fn tile(isa: Isa, rows: Rows<f32>, depth: usize, out: &mut [u32]) {
    assert!(depth.is_multiple_of(GROUPS) && out.len() >= 16 * depth);
    tile_of(isa, rows, &mut out[..16 * depth]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_add_up_to_the_number() {
        let mut bits = 1u32;
        let ends =
            [0, 1, 0x7fff, 0x8000, 0x7f7f_8000, 0x7f7f_ffff, 0x7f80_0000, 0x7f80_0001, u32::MAX];
        for i in 0..100_000 {
            bits = bits.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let bits = *ends.get(i).unwrap_or(&bits);
            let x = f32::from_bits(bits);
            let [a, b, c] = parts(bits).map(|part| {
                assert_eq!(part & 0xffff, 0, "{x:e}: a bf16");
                f64::from(f32::from_bits(part))
            });
            if !x.is_finite() {
                assert!((a + b + c).is_nan());
                continue;
            }
            // What is left of smaller numbers is more than a third part holds.
            if x.abs() < 2f32.powi(-110) {
                assert!((a + b + c - f64::from(x)).abs() <= 2f64.powi(-133));
                continue;
            }
            assert_eq!(a + b + c, f64::from(x));
            // Of the largest numbers, which are rounded down, twice as much is left.
            let share = if x.abs() < 3.38e38 { 1.0 } else { 2.0 };
            assert!(
                b.abs() <= share * 2f64.powi(-8) * a.abs() && c.abs() <= 2f64.powi(-16) * a.abs()
            );
        }
    }
}
