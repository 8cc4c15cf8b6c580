//! Prints the rate of products with packed weights on shapes of the towers, one thread each.
#![expect(clippy::print_stdout, reason = "a measuring program")]

use std::time::Instant;

use ferroclip_kernels::{Finish, Isa, Matrix, PackedRows, PackedWeights, Precision, multiply};

fn main() {
    let isa = Isa::active();
    for precision in [Precision::F32, Precision::Bf16, Precision::Int8] {
        for [m, n, k] in [
            [100, 2304, 768],
            [100, 768, 768],
            [100, 3072, 768],
            [100, 768, 3072],
            [50, 3072, 768],
            [400, 3072, 768],
            [400, 768, 3072],
        ] {
            let (x, w) = (vec![0.5f32; m * k], vec![0.25f32; k * n]);
            let weights = PackedWeights::pack(isa, precision, [n, k], Matrix::rows(&w, k));
            let threads =
                std::env::args().nth(1).map_or(2, |n| n.parse().expect("a number of threads"));
            let rates: Vec<(f64, f64)> = std::thread::scope(|s| {
                let run = || {
                    let mut out = vec![0.0f32; m * n];
                    let mut rows = PackedRows::default();
                    let (mut times, mut packs) = (Vec::new(), Vec::new());
                    for _ in 0..40 {
                        let start = Instant::now();
                        rows.fill(isa, precision, [m, k], |i, row| {
                            row.copy_from_slice(&x[i * k..][..k]);
                        });
                        packs.push(start.elapsed().as_secs_f64());
                        let start = Instant::now();
                        multiply(&weights, &rows, None, Finish::Store, &mut out, n, false);
                        times.push(start.elapsed().as_secs_f64());
                    }
                    times.sort_by(f64::total_cmp);
                    packs.sort_by(f64::total_cmp);
                    (2.0 * (m * n * k) as f64 / times[20] / 1e9, packs[20] / times[20])
                };
                let all: Vec<_> = (0..threads).map(|_| s.spawn(run)).collect();
                all.into_iter().map(|t| t.join().expect("no panic")).collect()
            });
            let rate: f64 = rates.iter().map(|r| r.0).sum();
            println!(
                "{} {precision:?} {m} x {n} x {k}: {rate:.0} Gop/s, packing rows {:.1} %",
                isa.name(),
                100.0 * rates[0].1
            );
        }
    }
}
