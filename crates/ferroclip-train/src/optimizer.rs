//! AdamW over named tensors, global-norm clipping, and the running average of the weights.
//!
//! The formula stands at [`ferroclip_kernels::adamw`]. State is keyed by the name that the
//! tensor has in checkpoints, so a state that does not match is noticed and never silently reset.

use std::collections::BTreeMap;

use ferroclip_kernels::{AdamStep, Isa, adamw};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// Tensors by name, as flat numbers.
pub type Named = BTreeMap<String, Vec<f32>>;

/// The largest `logit_scale`, ln 100; the smallest is 0.
const MAX_LOGIT_SCALE: f32 = 4.605_170_2;
/// Numbers that one task updates.
const CHUNK: usize = 1 << 14;

/// Which tensors decay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Decay {
    /// Those of rank 2 and more, but for position tables and the class embedding.
    #[default]
    Standard,
    /// As pip's open_clip 3.3: position tables decay too.
    Legacy,
}

impl Decay {
    /// Whether the tensor of this name and rank decays.
    pub fn applies(self, name: &str, rank: usize) -> bool {
        let excluded: &[&str] = match self {
            Decay::Standard => &["positional_embedding", "class_embedding", "logit_scale"],
            Decay::Legacy => &["bn", "ln", "bias", "logit_scale"],
        };
        rank >= 2 && !excluded.iter().any(|part| name.contains(part))
    }
}

/// The constants of AdamW.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Constants {
    /// Shares of the old in the running means of the gradient and of its square.
    pub betas: [f64; 2],
    /// Added to the denominator.
    pub eps: f64,
    /// Decoupled decay.
    pub weight_decay: f64,
}

/// The running means of AdamW.
#[derive(Clone, Debug, PartialEq)]
pub struct AdamW {
    constants: Constants,
    /// Steps taken.
    pub steps: u64,
    /// Running means of the gradients.
    pub first: Named,
    /// Running means of their squares.
    pub second: Named,
}

impl AdamW {
    /// A fresh state for tensors of these names and lengths.
    pub fn new<'a>(constants: Constants, tensors: impl Iterator<Item = (&'a str, usize)>) -> AdamW {
        let first: Named = tensors.map(|(name, len)| (name.to_owned(), vec![0.0; len])).collect();
        AdamW { constants, steps: 0, second: first.clone(), first }
    }

    /// Begins a step: the bias corrections count it.
    pub fn begin_step(&mut self) {
        self.steps += 1;
    }

    /// Updates one tensor in the step that [`AdamW::begin_step`] began.
    ///
    /// # Panics
    /// Where the name or the length is not one that the state was made for.
    pub fn update(
        &mut self,
        name: &str,
        weight: &mut [f32],
        gradient: &[f32],
        lr: f64,
        decays: bool,
    ) {
        let Constants { betas, eps, weight_decay } = self.constants;
        let first = self.first.get_mut(name).expect("a tensor that the optimiser knows");
        let second = self.second.get_mut(name).expect("both means have the same names");
        assert!(
            weight.len() == gradient.len() && weight.len() == first.len(),
            "length of `{name}`"
        );
        let weight_decay = if decays { weight_decay } else { 0.0 };
        let step = AdamStep::new(self.steps, lr, betas, eps, weight_decay);
        weight
            .par_chunks_mut(CHUNK)
            .zip(gradient.par_chunks(CHUNK))
            .zip(first.par_chunks_mut(CHUNK).zip(second.par_chunks_mut(CHUNK)))
            .for_each(|((weight, gradient), (first, second))| {
                adamw(Isa::active(), step, gradient, weight, first, second);
            });
    }
}

/// The Euclidean norm of all gradients together, summed in f64 in the order of names.
pub(crate) fn global_norm(gradients: &Named) -> f64 {
    let squares: Vec<f64> = gradients
        .par_iter()
        .map(|(_, gradient)| gradient.iter().map(|&g| f64::from(g) * f64::from(g)).sum())
        .collect();
    squares.iter().sum::<f64>().sqrt()
}

/// Scales the gradients down to `max_norm`, as PyTorch's `clip_grad_norm_`.
pub(crate) fn clip(gradients: &mut Named, norm: f64, max_norm: f64) {
    let factor = (max_norm / (norm + 1e-6)) as f32;
    if factor < 1.0 {
        gradients.par_iter_mut().for_each(|(_, gradient)| {
            gradient.iter_mut().for_each(|g| *g *= factor);
        });
    }
}

/// `logit_scale` within 0 and ln 100, as after every step of the references.
pub fn clamp_logit_scale(logit_scale: f32) -> f32 {
    logit_scale.clamp(0.0, MAX_LOGIT_SCALE)
}

/// Moves the average towards the weights. The share of the old rises from 2/11 to `decay`, so
/// that the average forgets the initial weights soon.
pub(crate) fn average(average: &mut [f32], weight: &[f32], decay: f64, step: u64) {
    let warm = (1 + step) as f64 / (10 + step) as f64;
    let rise = (1.0 - decay.min(warm)) as f32;
    average
        .par_chunks_mut(CHUNK)
        .zip(weight.par_chunks(CHUNK))
        .for_each(|(a, w)| a.iter_mut().zip(w).for_each(|(a, &w)| *a += rise * (w - *a)));
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONSTANTS: Constants = Constants { betas: [0.9, 0.98], eps: 1e-6, weight_decay: 0.2 };

    /// Two steps worked out by hand in f64.
    #[test]
    fn follows_the_formula() {
        let mut weight = [0.5_f32, -1.0];
        let (mut m, mut v, mut w) = ([0.0_f64; 2], [0.0_f64; 2], [0.5_f64, -1.0]);
        let mut adam = AdamW::new(CONSTANTS, [("a", 2)].into_iter());
        for (t, gradient) in [[0.1_f32, -3.0], [0.2, 1e-7]].into_iter().enumerate() {
            adam.begin_step();
            adam.update("a", &mut weight, &gradient, 1e-2, true);
            for i in 0..2 {
                let g = f64::from(gradient[i]);
                m[i] = 0.9 * m[i] + 0.1 * g;
                v[i] = 0.98 * v[i] + 0.02 * g * g;
                let t = t as i32 + 1;
                let (m_hat, v_hat) =
                    (m[i] / (1.0 - 0.9_f64.powi(t)), v[i] / (1.0 - 0.98_f64.powi(t)));
                w[i] -= 1e-2 * 0.2 * w[i];
                w[i] -= 1e-2 * m_hat / (v_hat.sqrt() + 1e-6);
            }
        }
        for i in 0..2 {
            assert!((f64::from(weight[i]) - w[i]).abs() < 1e-6, "{weight:?} {w:?}");
        }
    }

    #[test]
    fn decay_groups() {
        for (name, rank, standard, legacy) in [
            ("visual.conv1.weight", 4, true, true),
            ("token_embedding.weight", 2, true, true),
            ("positional_embedding", 2, false, true),
            ("visual.positional_embedding", 2, false, true),
            ("visual.class_embedding", 1, false, false),
            ("transformer.resblocks.0.attn.in_proj_bias", 1, false, false),
            ("ln_final.weight", 1, false, false),
            ("logit_scale", 0, false, false),
            ("visual.proj", 2, true, true),
        ] {
            assert_eq!(Decay::Standard.applies(name, rank), standard, "{name}");
            assert_eq!(Decay::Legacy.applies(name, rank), legacy, "{name}");
        }
    }

    #[test]
    fn clips_to_the_norm() {
        let mut gradients = Named::from([("a".into(), vec![3.0]), ("b".into(), vec![4.0])]);
        let norm = global_norm(&gradients);
        assert_eq!(norm, 5.0);
        clip(&mut gradients, norm, 10.0);
        assert_eq!(gradients["a"], [3.0]);
        clip(&mut gradients, norm, 1.0);
        assert!((global_norm(&gradients) - 1.0).abs() < 1e-6);
    }

    #[test]
    fn average_converges() {
        let mut mean = [0.0_f32];
        (0..2000).for_each(|step| average(&mut mean, &[1.0], 0.99, step));
        assert!((mean[0] - 1.0).abs() < 1e-4);
        assert_eq!([clamp_logit_scale(9.0), clamp_logit_scale(-1.0)], [100_f32.ln(), 0.0]);
    }
}
