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
