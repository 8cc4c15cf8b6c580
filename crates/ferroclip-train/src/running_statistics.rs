//! The running statistics of batch norms: what inference normalises by.

use ferroclip::{BatchStatistics, Weights};

/// The share of the batch: PyTorch's default.
const MOMENTUM: f32 = 0.1;

/// Moves the running statistics towards those of the batch, as PyTorch does: the variance is that
/// of a sample, divided by rows - 1.
///
/// # Panics
/// When the weights have no running statistics of a norm's name.
pub fn track(weights: &mut Weights, statistics: &BatchStatistics) {
    for (norm, (moments, rows)) in statistics {
        let unbiased = *rows as f32 / (*rows as f32 - 1.0).max(1.0);
        let mut rise = |name: &str, found: &[f32], factor: f32| {
            let name = format!("{norm}.{name}");
            let running = weights.get_mut(&name).expect("every batch norm has running statistics");
            for (running, found) in running.data.iter_mut().zip(found) {
                *running += MOMENTUM * (factor * found - *running);
            }
        };
        rise("running_mean", &moments.mean, 1.0);
        rise("running_var", &moments.variance, unbiased);
    }
}
