//! What the two halves of a block have in common in training: a norm, a first layer, something between,
//! a second layer, and the residual connection,
//!
//! ```text
//! y = x + second(between(first(norm(x))))
//! ```
//!
//! | input | shape | gradient |
//! |---|---|---|
//! | `x` | `[rows, width]` | dy + dnorm(d first W1) |
//! | gain and bias of the norm | `[width]` | sums over rows |
//! | W1, b1 | `[inner, width]`, `[inner]` | (d first)^T norm(x), sum of d first |
//! | W2, b2 | `[width, outer]`, `[width]` | dy^T between, sum of dy |
//!
//! norm(x) is not kept but computed again.

use burn::backend::Flex;
use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::grads::Gradients;
use burn::prelude::*;
use ferroclip_kernels::{Isa, Matrix, Onto, PackedWeights, Precision, gemm};

use crate::cpu::{Cpu, Operands, input, operands};
use crate::layer_norm::NormValues;
use crate::linear::Packed;
use crate::threads::{column_sums, in_chunks, in_rows, zeros};
use crate::{LayerNorm, Linear};

/// `x`, gain, bias, W1, b1, W2, b2.
pub(crate) const INPUTS: usize = 7;

/// The inputs of a half in CPU memory.
#[derive(Clone, Debug)]
pub(crate) struct Half {
    pub(crate) x: Cpu,
    pub(crate) norm: NormValues,
    pub(crate) first: Layer,
    pub(crate) second: Layer,
}

/// A linear layer whose weight, `[outputs, inputs]`, may have a gradient.
#[derive(Clone, Debug)]
pub(crate) struct Layer {
    weight: Cpu,
    bias: Cpu,
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
    pub(crate) precision: Precision,
}

impl Half {
    /// The inputs, or `None` where they are not for the fast path or a layer has no bias.
    pub(crate) fn new(
        x: &Tensor<2>,
        norm: &LayerNorm,
        first: &Linear,
        second: &Linear,
    ) -> Option<(Operands<INPUTS>, Half)> {
        let (gain, shift, eps) = norm.parameters();
        let (w1, b1, precision1) = first.parameters()?;
        let (w2, b2, precision2) = second.parameters()?;
        let operands = operands([
            input(x),
            input(gain),
            input(shift),
            input(w1),
            input(b1),
            input(w2),
            input(b2),
        ])?;
        let layer = |weight: Cpu, bias: Cpu, [outputs, inputs]: [usize; 2], precision| Layer {
            weight,
            bias,
            inputs,
            outputs,
            precision,
        };
        let [x, gain, bias, weight1, bias1, weight2, bias2] =
            operands.values.each_ref().map(Cpu::clone);
        let half = Half {
            x,
            norm: NormValues { gain, bias, eps },
            first: layer(weight1, bias1, w1.dims(), precision1),
            second: layer(weight2, bias2, w2.dims(), precision2),
        };
        Some((operands, half))
    }

    /// Registers the gradients of all inputs.
    ///
    /// | value | shape | |
    /// |---|---|---|
    /// | `between` | `[rows, outer]` | what entered the second layer |
    /// | `d_first` | `[rows, inner]` | gradient of the first layer's result |
    /// | `d_norm` | `[rows, width]` | gradient of the norm's result |
    /// | `dy` | `[rows, width]` | gradient of the half's result |
    pub(crate) fn register(
        self,
        grads: &mut Gradients,
        nodes: [Option<NodeId>; INPUTS],
        between: Cpu,
        d_first: &[f32],
        d_norm: Vec<f32>,
        dy: &[f32],
    ) {
        let Half { x, norm, first, second } = self;
        let (x, width) = (x.data(), first.inputs);
        let [x_node, gain_node, shift_node, w1, b1, w2, b2] = nodes;
        second.register(grads, [w2, b2], between.data(), dy);
        drop(between);
        let mut normed = zeros(x.len());
        in_rows(&mut normed, width, |row, y| norm.apply(&x[row * width..][..y.len()], y));
        first.register(grads, [w1, b1], &normed, d_first);
        let mut dx = normed;
        let [dgain, dshift] = norm.backward(x, &d_norm, &mut dx);
        in_chunks(&mut dx, |start, dx| {
            dx.iter_mut().zip(&dy[start..]).for_each(|(dx, dy)| *dx += dy)
        });
        give(grads, x_node, || Cpu::from_vec(dx, &[x.len() / width, width]));
        give(grads, gain_node, || Cpu::from_vec(dgain, &[width]));
        give(grads, shift_node, || Cpu::from_vec(dshift, &[width]));
    }
}

impl Layer {
    /// Packed for `x W^T + b`.
    pub(crate) fn packed(&self) -> Packed {
        let weight = Matrix::rows(self.weight.data(), self.inputs);
        let bias = Some(self.bias.data().to_vec());
        Packed::new(self.precision, weight, [self.outputs, self.inputs], bias)
    }

    /// Packed for `dy W`.
    pub(crate) fn packed_transposed(&self) -> PackedWeights {
        let weight = Matrix::rows(self.weight.data(), self.inputs).transposed();
        PackedWeights::pack(Isa::active(), self.precision, [self.inputs, self.outputs], weight)
    }

    /// dW = dy^T x, db = sum of dy over rows.
    fn register(
        &self,
        grads: &mut Gradients,
        [weight, bias]: [Option<NodeId>; 2],
        x: &[f32],
        dy: &[f32],
    ) {
        let Layer { inputs, outputs, precision, .. } = *self;
        give(grads, weight, || {
            let mut dw = zeros(outputs * inputs);
            let (x, dy) = (Matrix::rows(x, inputs), Matrix::rows(dy, outputs).transposed());
            let dims = [outputs, inputs, dy.data.len() / outputs];
            gemm(Isa::active(), precision, dims, dy, x, &mut dw, inputs, Onto::Nothing);
            Cpu::from_vec(dw, &[outputs, inputs])
        });
        give(grads, bias, || Cpu::from_vec(column_sums(dy, outputs), &[outputs]));
    }
}

/// Registers a gradient where it is wanted.
fn give(grads: &mut Gradients, node: Option<NodeId>, gradient: impl FnOnce() -> Cpu) {
    if let Some(node) = node {
        grads.register::<Flex>(node, gradient().into_primitive());
    }
}
