//! What both towers' configs are made of.

use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

/// The epsilon of PyTorch's layer norm.
pub(super) const DEFAULT_NORM_EPS: f64 = 1e-5;

/// `norm_kwargs`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NormConfig {
    /// Added to the variance.
    #[serde(default = "default_norm_eps")]
    pub eps: f64,
}

pub(super) fn default_norm_eps() -> f64 {
    DEFAULT_NORM_EPS
}

/// `act_kwargs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ActivationConfig {
    /// How GELU is computed.
    #[serde(default)]
    pub approximate: Approximation,
}

/// `approximate` of `act_kwargs`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Approximation {
    /// Exactly.
    #[default]
    None,
    /// By tanh.
    Tanh,
}

/// One side of a square, or `[height, width]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "expected a side in pixels or `[height, width]`")]
pub enum Sides {
    /// A square.
    Square(usize),
    /// Height and width.
    Rectangle([usize; 2]),
}

impl Sides {
    /// `[height, width]`.
    pub fn each(self) -> [usize; 2] {
        match self {
            Sides::Square(side) => [side, side],
            Sides::Rectangle(sides) => sides,
        }
    }
}

pub(super) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

pub(super) fn is_64(value: &usize) -> bool {
    *value == 64
}

pub(super) fn is_4(value: &f64) -> bool {
    *value == 4.0
}

pub(super) fn check<T: PartialOrd + std::fmt::Display>(
    field: &str,
    value: T,
    range: RangeInclusive<T>,
) -> Result<(), String> {
    match range.contains(&value) {
        true => Ok(()),
        false => Err(format!("`{field}`: {value}, expected {} to {}", range.start(), range.end())),
    }
}
