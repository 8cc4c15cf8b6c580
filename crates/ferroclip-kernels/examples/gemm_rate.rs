//! Prints the rate of the matrix product on shapes of the towers, in GFLOP/s.
#![expect(clippy::print_stdout, reason = "a measuring program")]

use std::time::Instant;

use ferroclip_kernels::{Isa, Matrix, Onto, Precision, gemm};

fn main() {
    for [m, n, k] in [
        [16640, 576, 192],
        [16640, 768, 192],
        [16640, 192, 768],
        [192, 768, 16640],
        [1600, 3072, 768],
    ] {
        let (a, b, mut c) = (vec![0.5f32; m * k], vec![0.25f32; k * n], vec![0.0f32; m * n]);
        let mut best = f64::MAX;
        for _ in 0..5 {
            let start = Instant::now();
            gemm(
                Isa::active(),
                Precision::F32,
                [m, n, k],
                Matrix::rows(&a, k),
                Matrix::rows(&b, n),
                &mut c,
                n,
                Onto::Nothing,
            );
            best = best.min(start.elapsed().as_secs_f64());
        }
        let rate = 2.0 * (m * n * k) as f64 / best / 1e9;
        println!("{} {m} x {n} x {k}: {rate:.0} GFLOP/s", Isa::active().name());
    }
}
