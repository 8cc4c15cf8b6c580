//! Layer norm over each row; the formulas stand in `ferroclip_kernels::layer_norm`.
//!
//! | value | shape |
//! |---|---|
//! | `x`, y | `[rows, width]` |
//! | `gain`, `bias` | `[width]` |

use burn::backend::Flex;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops};
use burn::prelude::*;
use ferroclip_kernels::{Isa, PackedRows, fetch_ahead, layer_norm_backward};

use crate::cpu::{Cpu, input, operands};
use crate::linear::Packed;
use crate::threads::{in_rows, row_sums, zeros};

/// A layer norm with its parameters.
#[derive(Clone, Debug)]
pub struct LayerNorm {
    gain: Tensor<1>,
    bias: Tensor<1>,
    eps: f64,
}

impl LayerNorm {
    /// The norm of these parameters, `[width]` each.
    pub fn new(gain: Tensor<1>, bias: Tensor<1>, eps: f64) -> Self {
        LayerNorm { gain, bias, eps }
    }

    /// [`layer_norm`] of rows.
    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        layer_norm(x, &self.gain, &self.bias, self.eps)
    }

    pub(crate) fn width(&self) -> usize {
        self.gain.dims()[0]
    }

    /// The parameters: gain, bias and epsilon.
    pub(crate) fn parameters(&self) -> (&Tensor<1>, &Tensor<1>, f32) {
        (&self.gain, &self.bias, self.eps as f32)
    }

    /// The parameters as numbers, for operations with packed weights.
    pub(crate) fn values(&self) -> NormValues {
        let [gain, bias] = [&self.gain, &self.bias].map(|x| Cpu::packed_operand(x.clone()));
        NormValues { gain, bias, eps: self.eps as f32 }
    }
}

/// A layer norm in CPU memory.
#[derive(Clone, Debug)]
pub(crate) struct NormValues {
    pub(crate) gain: Cpu,
    pub(crate) bias: Cpu,
    pub(crate) eps: f32,
}

impl NormValues {
    /// `y = norm(x)`, any number of rows.
    pub(crate) fn apply(&self, x: &[f32], y: &mut [f32]) {
        let (gain, bias) = (self.gain.data(), self.bias.data());
        ferroclip_kernels::layer_norm(Isa::active(), x, gain, bias, self.eps, y);
    }

    /// Packs the normed rows of `x` for a layer, with `split` on all cores.
    pub(crate) fn fill(&self, rows: &mut PackedRows, layer: &Packed, x: &[f32], split: bool) {
        let width = layer.weights.inputs();
        layer.fill_written(rows, x.len() / width, split, |i, row| {
            if let Some(next) = x.get((i + 1) * width..(i + 2) * width) {
                // It was written by another operation, and lies beyond this core's caches.
                fetch_ahead(next);
            }
            self.apply(&x[i * width..][..width], row);
        });
    }

    /// `dx` of rows, and the gradients of gain and bias.
    pub(crate) fn backward(&self, x: &[f32], dy: &[f32], dx: &mut [f32]) -> [Vec<f32>; 2] {
        let (gain, width) = (self.gain.data(), self.gain.data().len());
        row_sums(dx, width, [width, width], |row, dx, [dgain, dbias]| {
            let range = row * width..row * width + dx.len();
            let (x, dy) = (&x[range.clone()], &dy[range]);
            layer_norm_backward(Isa::active(), x, gain, self.eps, dy, dx, dgain, dbias);
        })
    }
}

/// `(x - mean) / sqrt(variance + eps) * gain + bias`, row by row, with the biased variance.
pub fn layer_norm(x: Tensor<2>, gain: &Tensor<1>, bias: &Tensor<1>, eps: f64) -> Tensor<2> {
    let shape @ [_, width] = x.dims();
    assert_eq!([width, width], [gain.dims()[0], bias.dims()[0]], "layer_norm: x, gain and bias");
    let Some(operands) = operands([input(&x), input(gain), input(bias)]) else {
        let centred = x.clone() - x.mean_dim(1);
        let variance = (centred.clone() * centred.clone()).mean_dim(1);
        let unit = centred / (variance + eps).sqrt();
        return unit * gain.clone().unsqueeze::<2>() + bias.clone().unsqueeze::<2>();
    };
    let [x, gain, bias] = operands.values.each_ref().map(Cpu::clone);
    let norm = NormValues { gain, bias, eps: eps as f32 };
    let mut y = zeros(x.data().len());
    in_rows(&mut y, width, |row, y| norm.apply(&x.data()[row * width..][..y.len()], y));
    operands.finish(Cpu::from_vec(y, &shape), LayerNormBackward, (x, norm, shape))
}

#[derive(Debug)]
struct LayerNormBackward;

impl Backward<Flex, 3> for LayerNormBackward {
    type State = (Cpu, NormValues, [usize; 2]);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = Cpu::gradient(grads.consume::<Flex>(&ops.node));
        let (x, norm, shape @ [_, width]) = ops.state;
        let mut dx = zeros(x.data().len());
        let [dgain, dbias] = norm.backward(x.data(), dy.data(), &mut dx);
        let [x_node, gain_node, bias_node] = ops.parents;
        for (node, values, shape) in [
            (x_node, dx, &shape[..]),
            (gain_node, dgain, &[width][..]),
            (bias_node, dbias, &[width][..]),
        ] {
            if let Some(node) = node {
                grads.register::<Flex>(node.id, Cpu::from_vec(values, shape).into_primitive());
            }
        }
    }
}
