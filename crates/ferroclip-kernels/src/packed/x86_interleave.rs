//! Rows to tiles and panels with AVX2 and AVX-512: their transpose, converted on the way.

use std::arch::x86_64::*;

/// What sixteen rows are made of, sixteen groups at a time.
trait Source {
    /// # Safety
    /// The processor has AVX-512 and what the source needs, and the row holds these groups.
    unsafe fn load(&self, row: usize, group: usize) -> __m512;
}

/// Groups as they are.
struct Groups {
    rows: *const u32,
    stride: usize,
}

/// Pairs of bf16 from numbers; the instruction takes those below 2^-126 for 0.
struct Pairs {
    rows: *const f32,
    stride: usize,
}

/// Four integers each from numbers and what takes each row's to -127..=127; where `MOVED`, moved to 0..=255.
struct Quads<'a, const MOVED: bool> {
    rows: *const f32,
    stride: usize,
    inverses: &'a [f32],
}

impl Source for Groups {
    #[inline(always)]
    unsafe fn load(&self, row: usize, group: usize) -> __m512 {
        // SAFETY: the caller vouches for the instructions and the memory.
        unsafe { _mm512_loadu_ps(self.rows.add(row * self.stride + group).cast()) }
    }
}

impl Source for Pairs {
    #[inline(always)]
    unsafe fn load(&self, row: usize, group: usize) -> __m512 {
        // SAFETY: likewise; a group is two numbers.
        unsafe {
            let from = self.rows.add(row * self.stride + 2 * group);
            let pairs = _mm512_cvtne2ps_pbh(_mm512_loadu_ps(from.add(16)), _mm512_loadu_ps(from));
            std::mem::transmute::<__m512bh, __m512>(pairs)
        }
    }
}

impl<const MOVED: bool> Source for Quads<'_, MOVED> {
    #[inline(always)]
    unsafe fn load(&self, row: usize, group: usize) -> __m512 {
        // SAFETY: likewise; a group is four numbers.
        unsafe {
            let from = self.rows.add(row * self.stride + 4 * group);
            let inverse = _mm512_set1_ps(self.inverses[row]);
            let quarter = |i: usize| {
                let scaled = _mm512_mul_ps(_mm512_loadu_ps(from.add(16 * i)), inverse);
                _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(scaled))
            };
            let bytes = _mm512_castsi128_si512(quarter(0));
            let bytes = _mm512_inserti32x4::<1>(bytes, quarter(1));
            let bytes = _mm512_inserti32x4::<2>(bytes, quarter(2));
            let bytes = _mm512_inserti32x4::<3>(bytes, quarter(3));
            match MOVED {
                true => _mm512_castsi512_ps(_mm512_xor_si512(bytes, _mm512_set1_epi8(i8::MIN))),
                false => _mm512_castsi512_ps(bytes),
            }
        }
    }
}

/// `n` rows of `depth` groups, transposed, eight rows at a time; rows from `held` on are zeros. Stores
/// are whole registers but for the last: what is too long in a column is overwritten by the next.
///
/// # Safety
/// `rows` points to `held <= n` rows of `depth` groups, `stride` apart, `depth` being a multiple of 8;
/// `out` to `n * depth`. `n` is 6 or a multiple of 8.
#[target_feature(enable = "avx2")]
pub(super) unsafe fn interleave_avx2(
    [n, held]: [usize; 2],
    rows: *const u32,
    stride: usize,
    depth: usize,
    out: *mut u32,
) {
    let first_six = _mm256_setr_epi32(-1, -1, -1, -1, -1, -1, 0, 0);
    for r0 in (0..n).step_by(8) {
        for p0 in (0..depth).step_by(8) {
            let mut block = [_mm256_setzero_ps(); 8];
            for (r, row) in block.iter_mut().enumerate().take(held.saturating_sub(r0)) {
                // SAFETY: 8 groups of row r0 + r < held.
                *row = unsafe { _mm256_loadu_ps(rows.add((r0 + r) * stride + p0).cast()) };
            }
            for (p, row) in transpose8(block).into_iter().enumerate() {
                // SAFETY: column p0 + p < depth: its rows, and two groups of the next where n is 6, if
                // there is one.
                unsafe {
                    let to = out.add((p0 + p) * n + r0).cast();
                    match n == 6 && p0 + p + 1 == depth {
                        true => _mm256_maskstore_ps(to, first_six, row),
                        false => _mm256_storeu_ps(to, row),
                    }
                };
            }
        }
    }
}

/// As [`interleave_avx2`], sixteen rows at a time.
///
/// # Safety
/// The processor has AVX-512 and what the source needs, which holds `held <= n` rows of `depth` groups,
/// `depth` being a multiple of 16; `out` points to `n * depth`. `n` is 12 or a multiple of 16.
#[inline(always)]
unsafe fn interleave16([n, held]: [usize; 2], source: &impl Source, depth: usize, out: *mut u32) {
    for r0 in (0..n).step_by(16) {
        for p0 in (0..depth).step_by(16) {
            // SAFETY: the caller vouches for the instructions.
            let mut block = [unsafe { _mm512_setzero_ps() }; 16];
            for (r, row) in block.iter_mut().enumerate().take(held.saturating_sub(r0)) {
                // SAFETY: 16 groups of row r0 + r < held.
                *row = unsafe { source.load(r0 + r, p0) };
            }
            // SAFETY: the caller vouches for the instructions.
            for (p, row) in unsafe { transpose16(block) }.into_iter().enumerate() {
                // SAFETY: column p0 + p < depth: its rows, and four groups of the next where n is 12,
                // if there is one.
                unsafe {
                    let to = out.add((p0 + p) * n + r0).cast();
                    match n == 12 && p0 + p + 1 == depth {
                        true => _mm512_mask_storeu_ps(to, 0xfff, row),
                        false => _mm512_storeu_ps(to, row),
                    }
                };
            }
        }
    }
}

/// Rows of groups.
///
/// # Safety
/// As [`interleave16`]; rows are `stride` groups apart.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn interleave_avx512(
    size: [usize; 2],
    rows: *const u32,
    stride: usize,
    depth: usize,
    out: *mut u32,
) {
    // SAFETY: the caller's promise, passed on.
    unsafe { interleave16(size, &Groups { rows, stride }, depth, out) }
}

/// Rows of numbers, to pairs of bf16.
///
/// # Safety
/// As [`interleave16`]; rows are `stride` numbers apart.
#[target_feature(enable = "avx512f,avx512bf16")]
pub(super) unsafe fn interleave_pairs(
    size: [usize; 2],
    rows: *const f32,
    stride: usize,
    depth: usize,
    out: *mut u32,
) {
    // SAFETY: the caller's promise, passed on.
    unsafe { interleave16(size, &Pairs { rows, stride }, depth, out) }
}

/// Rows of numbers, to four integers each.
///
/// # Safety
/// As [`interleave16`]; rows are `stride` numbers apart.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn interleave_quads(
    size: [usize; 2],
    rows: *const f32,
    stride: usize,
    inverses: &[f32],
    depth: usize,
    out: *mut u32,
) {
    // SAFETY: the caller's promise, passed on.
    unsafe { interleave16(size, &Quads::<true> { rows, stride, inverses }, depth, out) }
}

/// Sixteen rows of `depth` groups as `[depth / 16][16][16]`; those from `held` on are zeros.
///
/// # Safety
/// The processor has AVX-512 and what the source needs, which holds `held <= 16` rows of `depth` groups,
/// `depth` being a multiple of 16; `out` points to `16 * depth`.
#[inline(always)]
unsafe fn tile16(held: usize, source: &impl Source, depth: usize, out: *mut u32) {
    for r in 0..16 {
        for p in (0..depth).step_by(16) {
            // SAFETY: the caller vouches for the instructions, and for 16 groups from p on in row r.
            unsafe {
                let groups = if r < held { source.load(r, p) } else { _mm512_setzero_ps() };
                _mm512_storeu_ps(out.add(p * 16 + r * 16).cast(), groups);
            }
        }
    }
}

/// Rows of numbers, to a tile of pairs of bf16.
///
/// # Safety
/// As [`tile16`]; rows are `stride` numbers apart.
#[target_feature(enable = "avx512f,avx512bf16")]
pub(super) unsafe fn tile_pairs(
    held: usize,
    rows: *const f32,
    stride: usize,
    depth: usize,
    out: *mut u32,
) {
    // SAFETY: the caller's promise, passed on.
    unsafe { tile16(held, &Pairs { rows, stride }, depth, out) }
}

/// Rows of numbers, to a tile of four integers each.
///
/// # Safety
/// As [`tile16`]; rows are `stride` numbers apart.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn tile_quads(
    held: usize,
    rows: *const f32,
    stride: usize,
    inverses: &[f32],
    depth: usize,
    out: *mut u32,
) {
    // SAFETY: the caller's promise, passed on.
    unsafe { tile16(held, &Quads::<false> { rows, stride, inverses }, depth, out) }
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
