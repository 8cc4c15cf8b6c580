//! Elementary functions without branches, so that loops over them vectorise.

use crate::isa::MulAdd;

/// 1.5 * 2^23: adding it and taking it away rounds to the nearest integer, of two to the even one.
const ROUND: f32 = 12_582_912.0;

/// The nearest integer of a number below 2^22 in size, without a branch.
#[inline(always)]
pub(crate) fn nearest(x: f32) -> i32 {
    (x + ROUND).to_bits().wrapping_sub(ROUND.to_bits()) as i32
}

/// `e^x`, within 2 ulp over the range that does not overflow; inputs outside are clamped.
///
/// Cephes' method: x = n ln 2 + r with ln 2 in two parts, a polynomial of degree 5 for e^r, and
/// the power of two put into the exponent bits.
#[inline(always)]
#[expect(clippy::excessive_precision, reason = "the published coefficients, digit by digit")]
pub(crate) fn exp<M: MulAdd>(x: f32) -> f32 {
    let x = x.clamp(-87.0, 88.0);
    let shifted = M::mul_add(x, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = M::mul_add(n, -0.693_359_375, x);
    let r = M::mul_add(n, 2.121_944_4e-4, r);
    let mut p = 1.987_569_1e-4;
    p = M::mul_add(p, r, 1.398_199_9e-3);
    p = M::mul_add(p, r, 8.333_452e-3);
    p = M::mul_add(p, r, 4.166_579_6e-2);
    p = M::mul_add(p, r, 1.666_666_5e-1);
    p = M::mul_add(p, r, 5.000_000_1e-1);
    let e = M::mul_add(p * r, r, r) + 1.0;
    // n stands in the lowest bits of `shifted`. A cast, which must also be right for numbers that no i32
    // holds, would be done lane by lane.
    e * f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23))
}

/// The error function, within 3e-7 absolute.
///
/// A rational approximation on [-4, 4] (as in Eigen and XLA); beyond, f32 erf is +-1.
#[inline(always)]
#[expect(clippy::excessive_precision, reason = "the published coefficients, digit by digit")]
pub(crate) fn erf<M: MulAdd>(x: f32) -> f32 {
    let x = x.clamp(-4.0, 4.0);
    let z = x * x;
    let mut p = -2.726_142_4e-10;
    p = M::mul_add(p, z, 2.770_681_4e-8);
    p = M::mul_add(p, z, -2.101_024e-6);
    p = M::mul_add(p, z, -5.692_506_4e-5);
    p = M::mul_add(p, z, -7.349_906_3e-4);
    p = M::mul_add(p, z, -2.954_599_8e-3);
    p = M::mul_add(p, z, -1.609_603_3e-2);
    let mut q = -1.456_607_2e-5;
    q = M::mul_add(q, z, -2.133_740_6e-4);
    q = M::mul_add(q, z, -1.682_827e-3);
    q = M::mul_add(q, z, -7.373_329_2e-3);
    q = M::mul_add(q, z, -1.426_473_9e-2);
    (x * p / q).clamp(-1.0, 1.0)
}

/// Numbers that a lane-wise sum takes at a time.
pub(crate) const LANES: usize = 16;

/// Sum of `f` over the elements of slices of one length, in sixteen lanes that are added in a fixed order:
/// the same value on every call, and a shape that the compiler turns into vector code.
#[inline(always)]
pub(crate) fn lane_sum<const K: usize>(xs: [&[f32]; K], f: impl Fn([f32; K]) -> f32) -> f32 {
    // Blocks of a fixed length have no bounds to check, which would keep the loop scalar.
    let parts = xs.map(|x| x.as_chunks::<LANES>());
    let mut lanes = [0.0; LANES];
    for i in 0..parts[0].0.len() {
        let blocks = parts.map(|(blocks, _)| &blocks[i]);
        for (l, lane) in lanes.iter_mut().enumerate() {
            *lane += f(blocks.map(|block| block[l]));
        }
    }
    for (l, lane) in lanes.iter_mut().enumerate().take(parts[0].1.len()) {
        *lane += f(parts.map(|(_, rest)| rest[l]));
    }
    lanes.iter().sum()
}

/// The largest element, or minus infinity; NaN is passed over.
#[inline(always)]
pub(crate) fn lane_max(x: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let (blocks, rest) = x.as_chunks::<LANES>();
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for block in blocks {
        lanes.iter_mut().zip(block).for_each(|(lane, &x)| *lane = larger(*lane, x));
    }
    lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |top, &x| larger(top, x))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::{Fused, Unfused};

    #[test]
    fn exp_is_close_to_the_standard_library() {
        for i in -8700..8800 {
            let x = i as f32 * 0.01;
            let want = f64::from(x).exp();
            for got in [exp::<Fused>(x), exp::<Unfused>(x)] {
                assert!((f64::from(got) / want - 1.0).abs() < 3e-7, "exp({x}) = {got}");
            }
        }
    }

    #[test]
    fn erf_matches_its_series() {
        // Maclaurin series in f64, good up to 3.
        for i in -300..=300 {
            let x = f64::from(i) * 0.01;
            let (mut term, mut sum) = (x, x);
            for n in 1..80 {
                term *= -x * x / f64::from(n);
                sum += term / f64::from(2 * n + 1);
            }
            let want = sum * std::f64::consts::FRAC_2_SQRT_PI;
            let got = f64::from(erf::<Fused>(x as f32));
            assert!((got - want).abs() < 3e-7, "erf({x}) = {got}, not {want}");
        }
        assert!((erf::<Unfused>(9.0) - 1.0).abs() < 3e-7);
    }
}
