use super::*;
use crate::Activation;
use crate::gemm::Matrix;

/// From -1 to 1, without a pattern: of a sum of equal products every rounding has one sign.
fn values(n: usize, seed: usize) -> Vec<f32> {
    let number = |i: usize| {
        let mixed = ((i + 1) as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)
            ^ (seed as u64).wrapping_mul(0xd1b5_4a32_d192_ed03);
        let mixed = (mixed ^ (mixed >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
        (mixed >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(number).collect()
}

fn packed(isa: Isa, precision: Precision, [n, k]: [usize; 2], x: &[f32]) -> PackedRows {
    let mut rows = PackedRows::default();
    rows.fill(isa, precision, [n, k], |i, row| row.copy_from_slice(&x[i * k..][..k]));
    rows
}

/// Rows, outputs and inputs: one, edges of tiles and panels, several blocks of k and of rows.
const SHAPES: [[usize; 3]; 11] = [
    [1, 1, 1],
    [3, 5, 7],
    [6, 16, 384],
    [12, 32, 256],
    [13, 33, 257],
    [50, 70, 900],
    [150, 96, 40],
    [257, 48, 33],
    [2, 200, 64],
    // As many blocks of k as an MLP has.
    [5, 33, 3100],
    // Several slabs, blocks of rows and groups of panels of f32 in tiles.
    [241, 193, 801],
];

fn product(
    isa: Isa,
    precision: Precision,
    [m, n, k]: [usize; 3],
    [x, w, bias]: [&[f32]; 3],
    split: bool,
) -> Vec<f32> {
    let weights = PackedWeights::pack(isa, precision, [n, k], Matrix::rows(w, k));
    let rows = packed(isa, precision, [m, k], x);
    let mut out = vec![0.0; m * n];
    multiply(&weights, &rows, Some(bias), Finish::Store, &mut out, n, split);
    out
}

#[test]
fn every_set_matches_the_naive_product() {
    for isa in Isa::available() {
        for [m, n, k] in SHAPES {
            let (x, w, bias) = (values(m * k, 1), values(n * k, 2), values(n, 3));
            let got = product(isa, Precision::F32, [m, n, k], [&x, &w, &bias], false);
            for i in 0..m {
                for j in 0..n {
                    let term = |p: usize| f64::from(x[i * k + p]) * f64::from(w[j * k + p]);
                    let sum = (0..k).map(term).sum::<f64>() + f64::from(bias[j]);
                    let size: f64 = (0..k).map(|p| term(p).abs()).sum();
                    // k roundings, at random: sqrt(k) epsilons of the terms' absolute sum.
                    let bound = 1.2e-7 * (k as f64).sqrt() * (size + 1.0);
                    let error = (f64::from(got[i * n + j]) - sum).abs();
                    assert!(error < bound, "{isa:?} {m} {n} {k}: {error}");
                }
            }
        }
    }
}

/// No set's sums are further from the exact ones than those of multiply-adds one after the other, whatever the sizes of
/// the numbers are: what f32 in three parts leaves out is not seen.
#[test]
fn every_set_is_as_exact_as_a_chain() {
    let shape @ [m, n, k] = [50, 70, 768];
    let spread = |x: Vec<f32>, seed: usize, by: f32| -> Vec<f32> {
        x.iter().zip(values(x.len(), seed)).map(|(x, e)| x * (by * e).exp2()).collect()
    };
    for by in [0.0, 4.0, 16.0] {
        let (x, w) = (spread(values(m * k, 1), 5, by), spread(values(n * k, 2), 6, by));
        let error = |isa: Isa| -> f64 {
            let got = product(isa, Precision::F32, shape, [&x, &w, &vec![0.0; n]], false);
            let errors = got.iter().enumerate().map(|(place, got)| {
                let (x, w) = (&x[place / n * k..][..k], &w[place % n * k..][..k]);
                let terms = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w));
                let size: f64 = terms.clone().map(f64::abs).sum();
                ((f64::from(*got) - terms.sum::<f64>()) / size).powi(2)
            });
            (errors.sum::<f64>() / (m * n) as f64).sqrt()
        };
        let sets = Isa::available();
        let chain = error(sets[0]);
        assert!(chain < 1e-6);
        for isa in sets {
            assert!(error(isa) <= 1.1 * chain, "{isa:?}, spread {by}: {} {chain}", error(isa));
        }
    }
}

/// Numbers of all sizes pass a matrix of ones and zeros, as rows and as weights, whatever stands beside them.
#[test]
fn tiny_numbers_leave_their_neighbours_alone() {
    let m = 40;
    for isa in Isa::available() {
        for k in [32, 70, 800] {
            let mut identity = vec![0.0; k * k];
            (0..k).for_each(|i| identity[i * k + i] = 1.0);
            let mut x = values(m * k, 1);
            for (i, x) in x.iter_mut().enumerate().filter(|(i, _)| i % 3 == 1) {
                *x = f32::from_bits(i as u32 * 7919);
            }
            let rows =
                product(isa, Precision::F32, [m, k, k], [&x, &identity, &vec![0.0; k]], false);
            let weights =
                product(isa, Precision::F32, [k, m, k], [&identity, &x, &vec![0.0; m]], false);
            for (i, x) in x.iter().enumerate() {
                for got in [rows[i], weights[i % k * m + i / k]] {
                    // Numbers below the normal ones, and parts of theirs, may be 0.
                    let error = 1.2e-7 * x.abs() + 1.2e-38;
                    assert!((got - x).abs() <= error, "{isa:?} {k} {i}: {got:e} {x:e}");
                }
            }
        }
    }
}

/// bf16 is f32 with rounded operands: `half` rounds them here.
#[test]
fn bf16_rounds_the_operands_only() {
    let round = |x: &f32| half::bf16::from_f32(*x).to_f32();
    for isa in Isa::available() {
        for [m, n, k] in SHAPES {
            let (mut x, w, bias) = (values(m * k, 1), values(n * k, 2), values(n, 3));
            // Halfway between two bf16, of which the even one is meant.
            x[0] = 1.0 + 1.0 / 256.0;
            let got = product(isa, Precision::Bf16, [m, n, k], [&x, &w, &bias], false);
            let (x, w): (Vec<f32>, Vec<f32>) =
                (x.iter().map(round).collect(), w.iter().map(round).collect());
            let want = product(isa, Precision::F32, [m, n, k], [&x, &w, &bias], false);
            for (place, (got, want)) in got.iter().zip(&want).enumerate() {
                // The order of sums differs where pairs are added first: as for f32, by the terms.
                let (x, w) = (&x[place / n * k..][..k], &w[place % n * k..][..k]);
                let size: f32 = x.iter().zip(w).map(|(x, w)| (x * w).abs()).sum();
                let bound = 1.2e-7 * (k as f32).sqrt() * (size + 1.0);
                assert!((got - want).abs() < bound, "{isa:?}: {got} {want}");
            }
        }
    }
}

#[test]
fn int8_is_the_same_on_every_set_and_close() {
    for [m, n, k] in SHAPES {
        let (x, w, bias) = (values(m * k, 1), values(n * k, 2), values(n, 3));
        let mut first: Option<Vec<f32>> = None;
        for isa in Isa::available() {
            let got = product(isa, Precision::Int8, [m, n, k], [&x, &w, &bias], false);
            let want = product(isa, Precision::F32, [m, n, k], [&x, &w, &bias], false);
            for (got, want) in got.iter().zip(&want) {
                // Two roundings of 1/254 a term, at random.
                assert!((got - want).abs() < 0.01 * (k as f32).sqrt(), "{isa:?}: {got} {want}");
            }
            assert_eq!(first.get_or_insert(got.clone()), &got, "{isa:?}: integers are exact");
        }
    }
}

/// A row that is lost is lost in every precision, and no other is.
#[test]
fn what_is_no_number_stays_none() {
    let [m, n, k] = [14, 33, 70];
    for isa in Isa::available() {
        for precision in [Precision::F32, Precision::Bf16, Precision::Int8] {
            for (lost, place) in [(f32::NAN, 3), (f32::INFINITY, 64), (f32::NAN, 69)] {
                let (mut x, w, bias) = (values(m * k, 1), values(n * k, 2), values(n, 3));
                x[5 * k + place] = lost;
                let got = product(isa, precision, [m, n, k], [&x, &w, &bias], false);
                for (i, row) in got.chunks_exact(n).enumerate() {
                    let is_lost = row.iter().all(|y| !y.is_finite());
                    assert_eq!(is_lost, i == 5, "{isa:?} {precision:?} {lost} row {i}");
                    assert!(is_lost || row.iter().all(|y| y.is_finite()), "{isa:?} {precision:?}");
                }
            }
        }
    }
}

#[test]
fn threads_and_neighbours_change_nothing() {
    let [m, n, k] = [200, 70, 800];
    let (x, w, bias) = (values(m * k, 1), values(n * k, 2), values(n, 3));
    for isa in Isa::available() {
        for precision in [Precision::F32, Precision::Bf16, Precision::Int8] {
            let all = product(isa, precision, [m, n, k], [&x, &w, &bias], false);
            assert_eq!(all, product(isa, precision, [m, n, k], [&x, &w, &bias], true));
            for i in (0..m).step_by(9) {
                let one = product(isa, precision, [1, n, k], [&x[i * k..], &w, &bias], false);
                assert_eq!(one, all[i * n..][..n]);
            }
        }
    }
}

#[test]
fn finishes() {
    let [m, n, k] = [7, 40, 9];
    let (x, w) = (values(m * k, 1), values(n * k, 2));
    for isa in Isa::available() {
        let weights = PackedWeights::pack(isa, Precision::F32, [n, k], Matrix::rows(&w, k));
        let rows = packed(isa, Precision::F32, [m, k], &x);
        let run = |finish, start: f32| {
            // Rows of `out` are longer than the result; what lies between is left alone.
            let mut out = vec![start; m * (n + 3)];
            multiply(&weights, &rows, None, finish, &mut out, n + 3, false);
            assert!(out.chunks(n + 3).all(|row| row[n..] == [start; 3]));
            out
        };
        let stored = run(Finish::Store, 2.0);
        for (added, stored) in run(Finish::Add, 2.0).iter().zip(&stored) {
            assert!((added - (stored + 2.0)).abs() < 1e-6 || (*added, *stored) == (2.0, 2.0));
        }
        let columns = |rows: Vec<f32>| -> Vec<f32> {
            rows.chunks(n + 3).flat_map(|row| row[..n].to_vec()).collect()
        };
        let added = columns(run(Finish::Add, 2.0)).iter().map(|x| x.max(0.0)).collect::<Vec<_>>();
        assert_eq!(columns(run(Finish::AddRectified, 2.0)), added);
        let mut nan = x.clone();
        nan[k] = f32::NAN;
        let mut out = vec![1.0; m * n];
        let bias = values(n, 3);
        let rows_with_nan = packed(isa, Precision::F32, [m, k], &nan);
        multiply(&weights, &rows_with_nan, Some(&bias), Finish::AddRectified, &mut out, n, true);
        for (i, row) in out.chunks(n).enumerate() {
            for (j, &y) in row.iter().enumerate() {
                let sum: f32 = (0..k).map(|c| nan[i * k + c] * w[j * k + c]).sum();
                let want = 1.0 + sum + bias[j];
                // A value that is lost stays lost.
                assert!(if i == 1 { y.is_nan() } else { (y - want.max(0.0)).abs() < 1e-5 });
            }
        }
        let rectified = columns(stored.clone()).iter().map(|x| x.max(0.0)).collect::<Vec<_>>();
        assert_eq!(columns(run(Finish::Rectify, 2.0)), rectified);
        let kind = Activation::QuickGelu;
        let mut want = vec![0.0; stored.len()];
        crate::activation(isa, kind, &stored, &mut want);
        for (row, want) in run(Finish::Activate(kind), 0.0).chunks(n + 3).zip(want.chunks(n + 3)) {
            assert_eq!(row[..n], want[..n]);
        }
    }
}

/// Rows that a product makes are its result, packed.
#[test]
fn a_product_makes_the_rows_of_the_next() {
    let n_last = 40;
    for isa in Isa::available() {
        for precision in [Precision::F32, Precision::Bf16, Precision::Int8] {
            for [m, n, k] in SHAPES {
                let (x, bias) = (values(m * k, 1), values(n, 3));
                let (w, w_last) = (values(n * k, 2), values(n_last * n, 4));
                let weights = PackedWeights::pack(isa, precision, [n, k], Matrix::rows(&w, k));
                let last =
                    PackedWeights::pack(isa, precision, [n_last, n], Matrix::rows(&w_last, n));
                let rows = packed(isa, precision, [m, k], &x);
                let product = |rows: &PackedRows| {
                    let mut out = vec![0.0; m * n_last];
                    multiply(&last, rows, None, Finish::Store, &mut out, n_last, false);
                    out
                };
                for finish in [Finish::Store, Finish::Activate(Activation::Gelu)] {
                    let mut between = vec![0.0; m * n];
                    multiply(&weights, &rows, Some(&bias), finish, &mut between, n, false);
                    let want = product(&packed(isa, precision, [m, n], &between));
                    for split in [false, true] {
                        // What was there before is of no meaning.
                        let mut next = packed(isa, precision, [200, 70], &[f32::NAN; 14_000]);
                        let bias = Some(&bias[..]);
                        let memory = &mut Vec::new();
                        multiply_to_rows(&weights, &rows, bias, finish, memory, &mut next, split);
                        assert_eq!(product(&next), want, "{isa:?} {precision:?} {m} {n} {k}");
                    }
                }
            }
        }
    }
}

/// What memory held before, NaN at worst, is never multiplied.
#[test]
fn memory_of_an_earlier_product_is_not_read() {
    for isa in Isa::available() {
        for precision in [Precision::F32, Precision::Bf16, Precision::Int8] {
            let lost = vec![f32::NAN; 40 * 100];
            let mut rows = packed(isa, precision, [40, 100], &lost);
            let mut weights =
                PackedWeights::pack(isa, precision, [40, 100], Matrix::rows(&lost, 100));
            for [m, n, k] in SHAPES.into_iter().chain([[13, 33, 0]]) {
                let (x, w) = (values(m * k, 1), values(n * k, 2));
                // What becomes of packing turned matrices goes through memory of its own.
                let turned = Matrix::rows(&lost, 40).transposed();
                rows.fill_matrix(isa, precision, [40, 100], turned);
                weights.repack([40, 100], turned);
                multiply(&weights, &rows, None, Finish::Store, &mut [0.0; 1600], 40, false);
                for transposed in [false, true] {
                    let turn = |data, rows, columns| match transposed {
                        true => Matrix::rows(data, rows).transposed(),
                        false => Matrix::rows(data, columns),
                    };
                    rows.fill_matrix(isa, precision, [m, k], turn(&x, m, k));
                    weights.repack([n, k], turn(&w, n, k));
                    let mut out = vec![0.0; m * n];
                    multiply(&weights, &rows, None, Finish::Store, &mut out, n, false);
                    assert!(out.iter().all(|y| y.is_finite()), "{isa:?} {precision:?} {m} {n} {k}");
                }
            }
        }
    }
}

/// Rows that lie in memory and rows that are written one by one become the same tiles, whatever their
/// length is.
#[test]
fn rows_are_packed_alike_from_where_they_lie() {
    for isa in Isa::available() {
        for precision in [Precision::F32, Precision::Bf16, Precision::Int8] {
            for [m, n, k] in [[13, 40, 64], [12, 33, 128], [25, 7, 192], [5, 16, 50]] {
                let (x, w) = (values(m * k, 1), values(n * k, 2));
                let weights = PackedWeights::pack(isa, precision, [n, k], Matrix::rows(&w, k));
                let mut lying = PackedRows::default();
                lying.fill_matrix(isa, precision, [m, k], Matrix::rows(&x, k));
                let products = [packed(isa, precision, [m, k], &x), lying].map(|rows| {
                    let mut out = vec![0.0; m * n];
                    multiply(&weights, &rows, None, Finish::Store, &mut out, n, false);
                    out
                });
                assert_eq!(products[0], products[1], "{isa:?} {precision:?} {m} {n} {k}");
            }
        }
    }
}
