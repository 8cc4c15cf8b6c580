//! The 3 x 3 convolution of the ResNet towers: stride 1, a border of zeros, no bias.
//!
//! Feature maps are rows, one for each position: map after map, along the rows of each map, `[rows,
//! channels]`. With p + t the position that tap t of nine lies on,
//!
//! - y\[p, o\] = sum over t and c of x\[p + t, c\] w\[o, t, c\], taps beyond the border giving 0
//! - dw\[o, t, c\] = sum over p of dy\[p, o\] x\[p + t, c\]
//! - dx is the same convolution of dy with w\[c, 8 - t, o\], see [`flipped_taps`]
//!
//! The forward product is that of packed weights with rows that are the neighbourhoods of positions, so
//! a position's result depends on no other row.

use std::ops::Range;

use rayon::prelude::*;

use crate::Isa;
use crate::gemm::{Matrix, Onto, Scratch, gemm_serial};
use crate::packed::{Finish, PackedRows, PackedWeights, Precision, multiply};

/// Taps of the kernel, row after row.
const TAPS: usize = 9;
/// Floats of the neighbourhoods that one task packs: 256 KiB stay in the second-level cache.
const PACKED: usize = 1 << 16;
/// Positions of a task at most.
const TASK_ROWS: usize = 384;
/// Positions whose neighbourhoods are written out at a time for the weight's gradient.
const GRADIENT_ROWS: usize = 256;
/// Partial sums of the weight's gradient. Their number is fixed, and they are added in order, so
/// that the sum does not depend on the number of threads.
const PARTS: usize = 16;

/// The shape of a batch of feature maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Maps {
    /// How many maps.
    pub n: usize,
    /// Positions down.
    pub height: usize,
    /// Positions across.
    pub width: usize,
}

impl Maps {
    /// Positions of all maps together.
    pub fn rows(self) -> usize {
        self.n * self.cells()
    }

    /// Positions of a map.
    pub fn cells(self) -> usize {
        self.height * self.width
    }

    /// Maps of half the sides; what is beyond an even number of positions is dropped.
    pub fn halved(self) -> Maps {
        Maps { n: self.n, height: self.height / 2, width: self.width / 2 }
    }

    /// For each of these rows, those that the nine taps around it lie on; `None` beyond the border.
    fn neighbours(self, rows: Range<usize>) -> impl Iterator<Item = [Option<usize>; TAPS]> {
        // Counted on, because a division takes longer than all the rest.
        let (mut y, mut x) = (rows.start / self.width % self.height, rows.start % self.width);
        rows.map(move |row| {
            let down = [y > 0, true, y + 1 < self.height];
            let across = [x > 0, true, x + 1 < self.width];
            x += 1;
            if x == self.width {
                (x, y) = (0, if y + 1 == self.height { 0 } else { y + 1 });
            }
            std::array::from_fn(|tap| {
                let inside = down[tap / 3] && across[tap % 3];
                inside.then(|| row + (tap / 3) * self.width + tap % 3 - self.width - 1)
            })
        })
    }
}

/// y (`[rows, outputs]`) of x (`[rows, inputs]`) and the weight (`[outputs, 9, inputs]`). Uses the
/// threads of the current rayon pool.
///
/// # Panics
/// When the slices do not have these lengths.
pub fn conv3x3(
    isa: Isa,
    maps: Maps,
    [inputs, outputs]: [usize; 2],
    x: &[f32],
    weight: &[f32],
    y: &mut [f32],
) {
    let depth = TAPS * inputs;
    check(maps, [inputs, outputs], x, weight, y);
    let weights =
        PackedWeights::pack(isa, Precision::F32, [outputs, depth], Matrix::rows(weight, depth));
    let rows = (PACKED / depth).clamp(1, TASK_ROWS);
    y.par_chunks_mut(rows * outputs).enumerate().for_each_init(
        PackedRows::default,
        |packed, (task, y)| {
            let (first, shape) = (task * rows, [y.len() / outputs, depth]);
            conv3x3_rows(isa, Precision::F32, maps, first, shape, x, packed, false);
            multiply(&weights, packed, None, Finish::Store, y, outputs, false);
        },
    );
}

/// Packs what a 3 x 3 convolution multiplies with its weights (`[outputs, 9, inputs]`): rows `first..` of `shape`, `[n, 9
/// inputs]`, each the neighbourhood of a position of x (`[rows, inputs]`). On the calling thread, or with `split` on all
/// threads of the pool.
///
/// # Panics
/// When x does not have this length, or the maps have fewer rows.
#[expect(
    clippy::too_many_arguments,
    reason = "the format, the maps, what part of them, and where to"
)]
pub fn conv3x3_rows(
    isa: Isa,
    precision: Precision,
    maps: Maps,
    first: usize,
    shape @ [n, depth]: [usize; 2],
    x: &[f32],
    packed: &mut PackedRows,
    split: bool,
) {
    let inputs = depth / TAPS;
    assert!(x.len() == maps.rows() * inputs && first + n <= maps.rows(), "rows of x");
    if split {
        return packed.fill_split(isa, precision, shape, |i, row| {
            let neighbours = maps.neighbours(first + i..first + i + 1).next();
            write_neighbours(inputs, x, neighbours.expect("one row"), row);
        });
    }
    let mut neighbours = maps.neighbours(first..first + n);
    packed.fill(isa, precision, shape, |_, row| {
        let neighbours = neighbours.next().expect("one for each row");
        write_neighbours(inputs, x, neighbours, row);
    });
}

/// dw (`[outputs, 9, inputs]`) of x (`[rows, inputs]`) and dy (`[rows, outputs]`). Uses the threads
/// of the current rayon pool.
///
/// # Panics
/// As [`conv3x3`].
pub fn conv3x3_weight_gradient(
    isa: Isa,
    maps: Maps,
    [inputs, outputs]: [usize; 2],
    x: &[f32],
    dy: &[f32],
    dw: &mut [f32],
) {
    let depth = TAPS * inputs;
    check(maps, [inputs, outputs], x, dw, dy);
    let blocks = maps.rows().div_ceil(GRADIENT_ROWS);
    let rows = blocks.div_ceil(PARTS).max(1) * GRADIENT_ROWS;
    let parts = dy.par_chunks(rows * outputs).enumerate().map(|(part, dy)| {
        let (mut sum, mut scratch) = (vec![0.0; dw.len()], Scratch::new(isa, Precision::F32));
        let mut columns = vec![0.0; GRADIENT_ROWS * depth];
        for (block, dy) in dy.chunks(GRADIENT_ROWS * outputs).enumerate() {
            let held = dy.len() / outputs;
            let columns = &mut columns[..held * depth];
            let first = part * rows + block * GRADIENT_ROWS;
            let rows = columns.chunks_exact_mut(depth).zip(maps.neighbours(first..first + held));
            rows.for_each(|(row, neighbours)| write_neighbours(inputs, x, neighbours, row));
            let a = Matrix::rows(dy, outputs).transposed();
            let (b, dims) = (Matrix::rows(columns, depth), [outputs, depth, held]);
            gemm_serial(dims, a, b, &mut sum, depth, Onto::Sum, &mut scratch);
        }
        sum
    });
    let parts: Vec<Vec<f32>> = parts.collect();
    dw.fill(0.0);
    for part in parts {
        dw.iter_mut().zip(part).for_each(|(dw, part)| *dw += part);
    }
}

/// The weight (`[outputs, 9, inputs]`) as `[inputs, 9, outputs]` with its taps turned by 180
/// degrees: with it, [`conv3x3`] of dy is dx.
pub fn flipped_taps([inputs, outputs]: [usize; 2], weight: &[f32]) -> Vec<f32> {
    let mut flipped = Vec::with_capacity(weight.len());
    for c in 0..inputs {
        for tap in (0..TAPS).rev() {
            flipped.extend((0..outputs).map(|o| weight[(o * TAPS + tap) * inputs + c]));
        }
    }
    flipped
}

fn check(maps: Maps, [inputs, outputs]: [usize; 2], x: &[f32], weight: &[f32], y: &[f32]) {
    assert!(inputs > 0 && outputs > 0, "a convolution of no channels");
    assert_eq!(x.len(), maps.rows() * inputs, "length of x");
    assert_eq!(y.len(), maps.rows() * outputs, "length of y");
    assert_eq!(weight.len(), outputs * TAPS * inputs, "length of the weight");
}

/// The neighbourhood of a position, `[9 * inputs]`.
fn write_neighbours(inputs: usize, x: &[f32], neighbours: [Option<usize>; TAPS], out: &mut [f32]) {
    for (out, neighbour) in out.chunks_exact_mut(inputs).zip(neighbours) {
        match neighbour {
            Some(row) => out.copy_from_slice(&x[row * inputs..][..inputs]),
            None => out.fill(0.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(n: usize, seed: usize) -> Vec<f32> {
        (0..n).map(|i| (((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.5) - 1.0).collect()
    }

    /// The formula, with the border written out.
    fn naive(maps: Maps, [inputs, outputs]: [usize; 2], x: &[f32], w: &[f32]) -> Vec<f64> {
        let mut y = Vec::new();
        for row in 0..maps.rows() {
            let (map, cell) = (row / maps.cells(), row % maps.cells());
            let (down, across) = ((cell / maps.width) as isize, (cell % maps.width) as isize);
            for o in 0..outputs {
                let mut sum = 0.0;
                for tap in 0..TAPS as isize {
                    let (v, u) = (down + tap / 3 - 1, across + tap % 3 - 1);
                    if v < 0 || u < 0 || v >= maps.height as isize || u >= maps.width as isize {
                        continue;
                    }
                    let at = map * maps.cells() + v as usize * maps.width + u as usize;
                    for c in 0..inputs {
                        let w = w[(o * TAPS + tap as usize) * inputs + c];
                        sum += f64::from(x[at * inputs + c]) * f64::from(w);
                    }
                }
                y.push(sum);
            }
        }
        y
    }

    fn close(a: &[f32], b: &[f64], bound: f64) -> bool {
        a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (f64::from(*a) - b).abs() < bound)
    }

    const SHAPES: [(Maps, [usize; 2]); 6] = [
        (Maps { n: 1, height: 1, width: 1 }, [1, 1]),
        (Maps { n: 2, height: 3, width: 5 }, [3, 7]),
        (Maps { n: 3, height: 4, width: 4 }, [16, 33]),
        (Maps { n: 1, height: 2, width: 9 }, [40, 8]),
        (Maps { n: 30, height: 6, width: 5 }, [8, 16]),
        // Several blocks in a part of the weights' gradient.
        (Maps { n: 70, height: 12, width: 11 }, [1, 2]),
    ];

    #[test]
    fn every_set_matches_the_formula() {
        for isa in Isa::available() {
            for (maps, channels @ [inputs, outputs]) in SHAPES {
                let x = values(maps.rows() * inputs, 1);
                let w = values(outputs * TAPS * inputs, 2);
                let dy = values(maps.rows() * outputs, 3);
                let mut y = vec![0.0; maps.rows() * outputs];
                conv3x3(isa, maps, channels, &x, &w, &mut y);
                // Up to 360 terms of about 1/4: sqrt(360) roundings of 1.2e-7 of their sum.
                assert!(close(&y, &naive(maps, channels, &x, &w), 2e-4), "{isa:?} {maps:?}");

                // y is linear in w and in x: <dy, conv(x, e)> is the gradient at e.
                let mut dw = vec![1.0; w.len()];
                conv3x3_weight_gradient(isa, maps, channels, &x, &dy, &mut dw);
                for at in [0, w.len() / 2, w.len() - 1] {
                    let mut unit = vec![0.0; w.len()];
                    unit[at] = 1.0;
                    let slope = dot(&naive(maps, channels, &x, &unit), &dy);
                    // A sum over all rows.
                    let bound = 1e-4_f64.max(1e-6 * maps.rows() as f64);
                    assert!((f64::from(dw[at]) - slope).abs() < bound, "{isa:?} {maps:?}");
                }
                let mut dx = vec![0.0; x.len()];
                let flipped = flipped_taps(channels, &w);
                conv3x3(isa, maps, [outputs, inputs], &dy, &flipped, &mut dx);
                for at in [0, x.len() / 3, x.len() - 1] {
                    let mut unit = vec![0.0; x.len()];
                    unit[at] = 1.0;
                    let slope = dot(&naive(maps, channels, &unit, &w), &dy);
                    assert!((f64::from(dx[at]) - slope).abs() < 1e-4, "{isa:?} {maps:?}");
                }
            }
        }
    }

    fn dot(a: &[f64], b: &[f32]) -> f64 {
        a.iter().zip(b).map(|(a, &b)| a * f64::from(b)).sum()
    }

    #[test]
    fn neither_threads_nor_neighbours_change_a_result() {
        let (maps, channels) = (Maps { n: 40, height: 5, width: 5 }, [8, 20]);
        let x = values(maps.rows() * 8, 1);
        let (w, dy) = (values(20 * TAPS * 8, 2), values(maps.rows() * 20, 3));
        for isa in Isa::available() {
            let run = |threads: usize| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                let (mut y, mut dw) = (vec![0.0; maps.rows() * 20], vec![0.0; w.len()]);
                pool.install(|| {
                    conv3x3(isa, maps, channels, &x, &w, &mut y);
                    conv3x3_weight_gradient(isa, maps, channels, &x, &dy, &mut dw);
                });
                (y, dw)
            };
            let (y, dw) = run(1);
            assert_eq!((y.clone(), dw), run(3));
            let mut one = vec![0.0; 25 * 20];
            conv3x3(isa, Maps { n: 1, ..maps }, channels, &x[25 * 8..50 * 8], &w, &mut one);
            assert_eq!(one, y[25 * 20..50 * 20]);
        }
    }
}
