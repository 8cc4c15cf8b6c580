//! Packing of matrices whose columns lie in one piece: nothing has to be transposed.

use super::weights::{bf16_bits, bf16_pair};
use crate::Isa;
use crate::fetch::fetch_ahead;
use crate::isa::dispatch;

/// Rows from one that is read to the one that is fetched meanwhile: they are as far apart as pages, and the processor
/// does not guess the next.
const AHEAD: usize = 32;

/// What a group is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// One f32.
    F32,
    /// One f32, rounded to bf16.
    Rounded,
    /// Two bf16.
    Pairs,
}

/// `out[k][r]` from `data[k * col + r]` for `depth` of k and `held` of `width` of r, zeros in place of
/// the others; `width` is one of [`Sizes`](super::Sizes). Groups behind the last are left alone.
pub(super) fn pack(
    isa: Isa,
    width: usize,
    form: Form,
    data: &[f32],
    [held, col, depth]: [usize; 3],
    out: &mut [u32],
) {
    let pack = match width {
        6 => pack6,
        12 => pack12,
        16 => pack16,
        32 => pack32,
        other => unreachable!("{other} side by side"),
    };
    pack(isa, form, data, [held, col, depth], out);
}

/// Row `k` of what is packed, with zeros in place of what is not held. A function, as a closure that is called
/// more than once would be compiled by itself, for the lowest set.
#[inline(always)]
fn row<const W: usize>(data: &[f32], [held, col, depth]: [usize; 3], k: usize) -> [f32; W] {
    if k >= depth {
        return [0.0; W];
    }
    if let Some(ahead) = data.get((k + AHEAD) * col..) {
        fetch_ahead(&ahead[..held.min(ahead.len())]);
    }
    let from = &data[k * col..];
    match from.first_chunk() {
        // Of a fixed length, so that it is no call.
        Some(whole) if held == W => *whole,
        Some(whole) => std::array::from_fn(|r| if r < held { whole[r] } else { 0.0 }),
        _ => std::array::from_fn(|r| if r < held { from[r] } else { 0.0 }),
    }
}

#[inline(always)]
fn pack_body<const W: usize>(
    form: Form,
    data: &[f32],
    shape @ [_, _, depth]: [usize; 3],
    out: &mut [u32],
) {
    let out = out.as_chunks_mut::<W>().0;
    match form {
        Form::F32 => {
            for (k, out) in out.iter_mut().take(depth).enumerate() {
                *out = row::<W>(data, shape, k).map(f32::to_bits);
            }
        }
        Form::Rounded => {
            // Weights in bf16 are pairs: behind an odd depth they have a zero, which wants another.
            for (k, out) in out.iter_mut().take(depth.next_multiple_of(2)).enumerate() {
                *out = row::<W>(data, shape, k).map(bf16_bits);
            }
        }
        Form::Pairs => {
            for (group, out) in out.iter_mut().take(depth.div_ceil(2)).enumerate() {
                let a = row::<W>(data, shape, 2 * group);
                let b = row::<W>(data, shape, 2 * group + 1);
                for (out, (a, b)) in out.iter_mut().zip(a.into_iter().zip(b)) {
                    *out = bf16_pair(a, b);
                }
            }
        }
    }
}

/// [`pack_body`] of one width, for every set.
macro_rules! of_width {
    ($name:ident, $body:ident, $width:literal) => {
        #[inline(always)]
        fn $body(form: Form, data: &[f32], shape: [usize; 3], out: &mut [u32]) {
            pack_body::<$width>(form, data, shape, out);
        }
        dispatch! {
            fn $name(form: Form, data: &[f32], shape: [usize; 3], out: &mut [u32]) = $body unfused
        }
    };
}

of_width!(pack6, pack6_body, 6);
of_width!(pack12, pack12_body, 12);
of_width!(pack16, pack16_body, 16);
of_width!(pack32, pack32_body, 32);
