//! The learning rate of each step: a linear warm-up, then constant or a cosine to zero.

use serde::{Deserialize, Serialize};

/// What follows the warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    /// Half a cosine, down to zero after the last step.
    #[default]
    Cosine,
    /// The base rate.
    Constant,
}

impl Schedule {
    /// The rate of step `step` (from 0) of `total`, as open_clip's `cosine_lr` and `const_lr`.
    pub fn rate(self, base: f64, warmup: u64, step: u64, total: u64) -> f64 {
        if step < warmup {
            return base * (step + 1) as f64 / warmup as f64;
        }
        match self {
            Schedule::Constant => base,
            Schedule::Cosine => {
                let share = (step - warmup) as f64 / (total.saturating_sub(warmup)).max(1) as f64;
                0.5 * (1.0 + (std::f64::consts::PI * share).cos()) * base
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values of open_clip's `cosine_lr(optimizer, 5e-4, 4, 20)`.
    #[test]
    fn rates_are_open_clips() {
        let rate = |step| Schedule::Cosine.rate(5e-4, 4, step, 20);
        for (step, expected) in
            [(0, 1.25e-4), (3, 5e-4), (4, 5e-4), (12, 2.5e-4), (16, 7.322330470336313e-5)]
        {
            assert!((rate(step) - expected).abs() < 1e-18, "step {step}: {}", rate(step));
        }
        assert!(rate(20).abs() < 1e-18);
        assert_eq!(Schedule::Constant.rate(1.0, 2, 0, 9), 0.5);
        assert_eq!(Schedule::Constant.rate(1.0, 0, 7, 9), 1.0);
    }
}
