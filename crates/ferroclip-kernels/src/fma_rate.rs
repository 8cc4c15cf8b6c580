//! What a core can do at all: the rate of multiply-adds whose operands stay in registers.

use std::hint::black_box;
use std::time::Instant;

use crate::isa::{Isa, Level};

/// Sums of the portable loop: twelve registers of four lanes.
const PORTABLE: usize = 48;

/// The GFLOP/s that the calling thread reaches in `steps` rounds of independent multiply-adds; an
/// addition and a multiplication count as two operations, fused or not.
pub fn fma_rate(isa: Isa, steps: usize) -> f64 {
    let begin = Instant::now();
    let n_sums = match isa.0 {
        Level::Scalar => portable(steps),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: an `Isa` value proves that the processor has these features.
        Level::Avx2 => unsafe { avx2(steps) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Level::Avx512(_) => unsafe { avx512(steps) },
    };
    2.0 * n_sums as f64 * steps as f64 / begin.elapsed().as_secs_f64() / 1e9
}

// Each loop returns how many sums it holds. The compiler knows neither where they begin nor what
// is multiplied and added, else equal sums would become one, and all of them a constant. They
// converge to 1: numbers that grow or vanish could take longer.

fn portable(steps: usize) -> usize {
    let mut sums: [f32; PORTABLE] = black_box(std::array::from_fn(|i| i as f32));
    let (factor, term) = black_box((0.5, 0.5));
    for _ in 0..steps {
        for sum in &mut sums {
            *sum = *sum * factor + term;
        }
    }
    black_box(sums).len()
}

/// Twelve of sixteen registers: two multiply-adds a cycle, each of which takes four or five.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn avx2(steps: usize) -> usize {
    use std::arch::x86_64::*;
    let mut sums: [__m256; 12] = black_box(std::array::from_fn(|i| _mm256_set1_ps(i as f32)));
    let (factor, term) = black_box((_mm256_set1_ps(0.5), _mm256_set1_ps(0.5)));
    for _ in 0..steps {
        for sum in &mut sums {
            *sum = _mm256_fmadd_ps(*sum, factor, term);
        }
    }
    8 * black_box(sums).len()
}

/// Twenty-four of thirty-two registers.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn avx512(steps: usize) -> usize {
    use std::arch::x86_64::*;
    let mut sums: [__m512; 24] = black_box(std::array::from_fn(|i| _mm512_set1_ps(i as f32)));
    let (factor, term) = black_box((_mm512_set1_ps(0.5), _mm512_set1_ps(0.5)));
    for _ in 0..steps {
        for sum in &mut sums {
            *sum = _mm512_fmadd_ps(*sum, factor, term);
        }
    }
    16 * black_box(sums).len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loops_are_not_folded() {
        for isa in Isa::available() {
            let rate = fma_rate(isa, 1_000_000);
            // 64 operations a cycle, at 6 GHz, are 384; a folded loop would take no time.
            assert!(rate > 0.0 && rate < 500.0, "{}: {rate}", isa.name());
        }
    }
}
