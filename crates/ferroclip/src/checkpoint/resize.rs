//! Tables of positions at another size, as open_clip resizes them when it loads weights.
//!
//! The table of an image tower is a grid, which is resampled bicubically (Keys' filter, a = -0.5) along both sides; where
//! a side shrinks the filter grows, so that nothing aliases. A class row before the grid stays as it is. The table of a
//! text tower is a line, which is interpolated linearly. In both, place `i` of `n` lies at `(i + 1/2) / n`
//! (PyTorch's `align_corners=False`).

/// What becomes of a table of positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Resize {
    /// Places down and across, before and after; rows before them.
    Grid { class_rows: usize, from: [usize; 2], to: [usize; 2] },
    /// Places before and after.
    Line { from: usize, to: usize },
}

/// The places that a new one is a weighted sum of: the first of them, and a weight for each.
struct Taps {
    first: usize,
    weights: Vec<f64>,
}

impl Resize {
    /// Rows of the new table.
    pub(super) fn rows(self) -> usize {
        match self {
            Resize::Grid { class_rows, to: [down, across], .. } => class_rows + down * across,
            Resize::Line { to, .. } => to,
        }
    }

    /// The new table of an old one with rows of `width`.
    pub(super) fn apply(self, table: &[f32], width: usize) -> Vec<f32> {
        match self {
            Resize::Line { from, to } => along(table, from, width, &linear(from, to)),
            Resize::Grid { class_rows, from: [down, across], to } => {
                let (class, grid) = table.split_at(class_rows * width);
                let grid = along(grid, across, width, &bicubic(across, to[1]));
                let grid = along(&grid, down, to[1] * width, &bicubic(down, to[0]));
                [class, &grid].concat()
            }
        }
    }
}

/// Resamples `[outer, n, inner]` along its middle side.
fn along(table: &[f32], n: usize, inner: usize, taps: &[Taps]) -> Vec<f32> {
    let mut out = Vec::with_capacity(table.len() / n * taps.len());
    for outer in table.chunks_exact(n * inner) {
        for Taps { first, weights } in taps {
            let mut sums = vec![0.0_f64; inner];
            for (row, weight) in outer[first * inner..].chunks_exact(inner).zip(weights) {
                sums.iter_mut().zip(row).for_each(|(sum, &x)| *sum += weight * f64::from(x));
            }
            out.extend(sums.iter().map(|&sum| sum as f32));
        }
    }
    out
}

fn linear(from: usize, to: usize) -> Vec<Taps> {
    let scale = from as f64 / to as f64;
    let tap = |i: usize| {
        let place = (scale * (i as f64 + 0.5) - 0.5).max(0.0);
        let first = place as usize;
        let share = place - first as f64;
        match first + 1 < from {
            true => Taps { first, weights: vec![1.0 - share, share] },
            false => Taps { first, weights: vec![1.0] },
        }
    };
    (0..to).map(tap).collect()
}

fn bicubic(from: usize, to: usize) -> Vec<Taps> {
    let scale = from as f64 / to as f64;
    let widening = scale.max(1.0);
    let support = 2.0 * widening;
    let tap = |i: usize| {
        let centre = scale * (i as f64 + 0.5);
        let first = (centre - support + 0.5).max(0.0) as usize;
        let end = ((centre + support + 0.5) as usize).min(from);
        let weight = |j: usize| keys((j as f64 - centre + 0.5) / widening);
        let weights: Vec<f64> = (first..end).map(weight).collect();
        let sum: f64 = weights.iter().sum();
        Taps { first, weights: weights.iter().map(|weight| weight / sum).collect() }
    };
    (0..to).map(tap).collect()
}

/// Keys' cubic filter.
fn keys(x: f64) -> f64 {
    const A: f64 = -0.5;
    match x.abs() {
        x if x < 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
        x if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
        _ => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_interpolated_between_the_middles_of_its_places() {
        let found = Resize::Line { from: 2, to: 4 }.apply(&[0.0, 10.0, 4.0, 20.0], 2);
        assert_eq!(found, [0.0, 10.0, 1.0, 12.5, 3.0, 17.5, 4.0, 20.0]);
        assert_eq!(Resize::Line { from: 4, to: 2 }.apply(&[0.0, 1.0, 2.0, 3.0], 1), [0.5, 2.5]);
        assert_eq!(Resize::Line { from: 1, to: 3 }.apply(&[7.0], 1), [7.0; 3]);
    }

    #[test]
    fn a_grid_keeps_its_class_row_and_its_mean() {
        let table: Vec<f32> = (0..13).map(|i| i as f32).collect();
        let grid = Resize::Grid { class_rows: 1, from: [3, 4], to: [6, 2] };
        let found = grid.apply(&table, 1);
        assert_eq!((found.len(), grid.rows(), found[0]), (13, 13, 0.0));
        let mean = |values: &[f32]| values.iter().sum::<f32>() / values.len() as f32;
        assert!((mean(&found[1..]) - mean(&table[1..])).abs() < 1e-5);
        let same = Resize::Grid { class_rows: 1, from: [3, 4], to: [3, 4] };
        assert_eq!(same.apply(&table, 1), table);
    }
}
