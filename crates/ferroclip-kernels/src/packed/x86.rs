//! The kernels of AVX2 and AVX-512.

use std::arch::x86_64::*;

use super::tile::{Lanes, Tile, by_rows};

struct Avx2F32;
struct Avx2I16;
struct Avx512F32;
struct Avx512I16;
struct Avx512Bf16;
struct Avx512Vnni;

/// [`Lanes`] of one register type: what differs is how a group is multiplied.
macro_rules! lanes {
    ($name:ty, $v:ty, $lanes:literal, $zero:expr, $load:expr, $store:expr, $broadcast:expr, $dot:expr) => {
        impl Lanes for $name {
            type V = $v;
            const LANES: usize = $lanes;

            #[inline(always)]
            unsafe fn zero() -> $v {
                // SAFETY: the caller vouches for the instructions.
                unsafe { $zero() }
            }
            #[inline(always)]
            unsafe fn load(from: *const u32) -> $v {
                // SAFETY: likewise, and for a register's length of memory.
                unsafe { $load(from.cast()) }
            }
            #[inline(always)]
            unsafe fn store(to: *mut u32, x: $v) {
                // SAFETY: likewise.
                unsafe { $store(to.cast(), x) }
            }
            #[inline(always)]
            unsafe fn broadcast(from: *const u32) -> $v {
                // SAFETY: likewise, and for one group.
                unsafe { $broadcast(from) }
            }
            #[inline(always)]
            unsafe fn dot(sum: $v, a: $v, b: $v) -> $v {
                // SAFETY: likewise.
                unsafe { $dot(sum, a, b) }
            }
            #[inline(always)]
            unsafe fn prefetch(address: *const u8) {
                // SAFETY: a hint, which never faults.
                unsafe { _mm_prefetch::<_MM_HINT_T1>(address.cast()) }
            }
        }
    };
}

lanes!(
    Avx2F32,
    __m256,
    8,
    _mm256_setzero_ps,
    _mm256_loadu_ps,
    _mm256_storeu_ps,
    |x: *const u32| _mm256_broadcast_ss(&*x.cast::<f32>()),
    |sum, a, b| _mm256_fmadd_ps(a, b, sum)
);
lanes!(
    Avx2I16,
    __m256i,
    8,
    _mm256_setzero_si256,
    _mm256_loadu_si256,
    _mm256_storeu_si256,
    |x: *const u32| _mm256_set1_epi32(x.read() as i32),
    |sum, a, b| _mm256_add_epi32(sum, _mm256_madd_epi16(a, b))
);
lanes!(
    Avx512F32,
    __m512,
    16,
    _mm512_setzero_ps,
    _mm512_loadu_ps,
    _mm512_storeu_ps,
    |x: *const u32| _mm512_set1_ps(f32::from_bits(x.read())),
    |sum, a, b| _mm512_fmadd_ps(a, b, sum)
);
lanes!(
    Avx512I16,
    __m512i,
    16,
    _mm512_setzero_si512,
    _mm512_loadu_si512,
    _mm512_storeu_si512,
    |x: *const u32| _mm512_set1_epi32(x.read() as i32),
    |sum, a, b| _mm512_add_epi32(sum, _mm512_madd_epi16(a, b))
);
lanes!(
    Avx512Bf16,
    __m512,
    16,
    _mm512_setzero_ps,
    _mm512_loadu_ps,
    _mm512_storeu_ps,
    |x: *const u32| _mm512_set1_ps(f32::from_bits(x.read())),
    |sum, a: __m512, b: __m512| {
        // The registers hold pairs of bf16; only the type says f32.
        let pairs = |x: __m512| std::mem::transmute::<__m512, __m512bh>(x);
        _mm512_dpbf16_ps(sum, pairs(a), pairs(b))
    }
);
lanes!(
    Avx512Vnni,
    __m512i,
    16,
    _mm512_setzero_si512,
    _mm512_loadu_si512,
    _mm512_storeu_si512,
    |x: *const u32| _mm512_set1_epi32(x.read() as i32),
    |sum, a, b| _mm512_dpbusd_epi32(sum, a, b)
);

/// A kernel: the shared loop compiled for one set.
macro_rules! kernel {
    ($name:ident, $features:literal, $lanes:ty, 6) => {
        /// # Safety
        /// As [`super::tile::rows`].
        #[target_feature(enable = $features)]
        pub(super) unsafe fn $name(tile: &Tile) {
            // SAFETY: the caller's promise, passed on.
            unsafe { by_rows!($lanes, 6, tile, 1 2 3 4 5 6) }
        }
    };
    ($name:ident, $features:literal, $lanes:ty, 12) => {
        /// # Safety
        /// As [`super::tile::rows`].
        #[target_feature(enable = $features)]
        pub(super) unsafe fn $name(tile: &Tile) {
            // SAFETY: the caller's promise, passed on.
            unsafe { by_rows!($lanes, 12, tile, 1 2 3 4 5 6 7 8 9 10 11 12) }
        }
    };
}

kernel!(avx2_f32, "avx2,fma", Avx2F32, 6);
kernel!(avx2_i16, "avx2", Avx2I16, 6);
kernel!(avx512_f32, "avx512f", Avx512F32, 12);
kernel!(avx512_i16, "avx512f,avx512bw", Avx512I16, 12);
kernel!(avx512_bf16, "avx512f,avx512bf16", Avx512Bf16, 12);
kernel!(avx512_vnni, "avx512f,avx512vnni", Avx512Vnni, 12);

/// `n` rows of `depth` groups, transposed, eight rows at a time. Stores are whole registers: what is
/// too long in a column is overwritten by the next.
///
/// # Safety
/// `rows` points to `n * depth` groups, `depth` being a multiple of 8, `out` to as many, and to two
/// more where `n` is 6. `n` is 6 or a multiple of 8.
#[target_feature(enable = "avx2")]
pub(super) unsafe fn interleave_avx2(n: usize, rows: *const u32, depth: usize, out: *mut u32) {
    for r0 in (0..n).step_by(8) {
        for p0 in (0..depth).step_by(8) {
            let mut block = [_mm256_setzero_ps(); 8];
            for (r, row) in block.iter_mut().enumerate().take(n - r0) {
                // SAFETY: 8 groups of row r0 + r < n.
                *row = unsafe { _mm256_loadu_ps(rows.add((r0 + r) * depth + p0).cast()) };
            }
            for (p, row) in transpose8(block).into_iter().enumerate() {
                // SAFETY: column p0 + p < depth, and two groups more where n is 6.
                unsafe { _mm256_storeu_ps(out.add((p0 + p) * n + r0).cast(), row) };
            }
        }
    }
}

/// As [`interleave_avx2`], sixteen rows at a time.
///
/// # Safety
/// `rows` points to `n * depth` groups, `depth` being a multiple of 16, `out` to as many, and to four
/// more where `n` is 12. `n` is 12 or a multiple of 16.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn interleave_avx512(n: usize, rows: *const u32, depth: usize, out: *mut u32) {
    for r0 in (0..n).step_by(16) {
        for p0 in (0..depth).step_by(16) {
            let mut block = [_mm512_setzero_ps(); 16];
            for (r, row) in block.iter_mut().enumerate().take(n - r0) {
                // SAFETY: 16 groups of row r0 + r < n.
                *row = unsafe { _mm512_loadu_ps(rows.add((r0 + r) * depth + p0).cast()) };
            }
            for (p, row) in transpose16(block).into_iter().enumerate() {
                // SAFETY: column p0 + p < depth, and four groups more where n is 12.
                unsafe { _mm512_storeu_ps(out.add((p0 + p) * n + r0).cast(), row) };
            }
        }
    }
}

/// The transpose of 8 rows of 8: pairs, then fours, then halves of the registers.
#[target_feature(enable = "avx2")]
fn transpose8(x: [__m256; 8]) -> [__m256; 8] {
    let zero = _mm256_setzero_ps();
    let (mut y, mut z) = ([zero; 8], [zero; 8]);
    for i in 0..4 {
        y[2 * i] = _mm256_unpacklo_ps(x[2 * i], x[2 * i + 1]);
        y[2 * i + 1] = _mm256_unpackhi_ps(x[2 * i], x[2 * i + 1]);
    }
    // z[4 i + c] holds columns c and 4 + c of rows 4 i..4 i + 4.
    for i in 0..2 {
        let (a, b, c, d) = (y[4 * i], y[4 * i + 1], y[4 * i + 2], y[4 * i + 3]);
        z[4 * i] = _mm256_shuffle_ps::<0x44>(a, c);
        z[4 * i + 1] = _mm256_shuffle_ps::<0xee>(a, c);
        z[4 * i + 2] = _mm256_shuffle_ps::<0x44>(b, d);
        z[4 * i + 3] = _mm256_shuffle_ps::<0xee>(b, d);
    }
    for c in 0..4 {
        y[c] = _mm256_permute2f128_ps::<0x20>(z[c], z[4 + c]);
        y[4 + c] = _mm256_permute2f128_ps::<0x31>(z[c], z[4 + c]);
    }
    y
}

/// The transpose of 16 rows of 16: pairs, then fours, then quarters of the registers.
#[target_feature(enable = "avx512f")]
fn transpose16(x: [__m512; 16]) -> [__m512; 16] {
    let zero = _mm512_setzero_ps();
    let (mut y, mut z) = ([zero; 16], [zero; 16]);
    for i in 0..8 {
        y[2 * i] = _mm512_unpacklo_ps(x[2 * i], x[2 * i + 1]);
        y[2 * i + 1] = _mm512_unpackhi_ps(x[2 * i], x[2 * i + 1]);
    }
    let low = |a, b| _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
    let high =
        |a, b| _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
    // z[4 i + c] holds column c of each quarter of rows 4 i..4 i + 4.
    for i in 0..4 {
        z[4 * i] = low(y[4 * i], y[4 * i + 2]);
        z[4 * i + 1] = high(y[4 * i], y[4 * i + 2]);
        z[4 * i + 2] = low(y[4 * i + 1], y[4 * i + 3]);
        z[4 * i + 3] = high(y[4 * i + 1], y[4 * i + 3]);
    }
    for c in 0..4 {
        let (a, b, d, e) = (z[c], z[4 + c], z[8 + c], z[12 + c]);
        let (ab_even, ab_odd) =
            (_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0xdd>(a, b));
        let (de_even, de_odd) =
            (_mm512_shuffle_f32x4::<0x88>(d, e), _mm512_shuffle_f32x4::<0xdd>(d, e));
        y[c] = _mm512_shuffle_f32x4::<0x88>(ab_even, de_even);
        y[8 + c] = _mm512_shuffle_f32x4::<0xdd>(ab_even, de_even);
        y[4 + c] = _mm512_shuffle_f32x4::<0x88>(ab_odd, de_odd);
        y[12 + c] = _mm512_shuffle_f32x4::<0xdd>(ab_odd, de_odd);
    }
    y
}
