//! Batch norm over rows, rectified or not; the formulas stand in `ferroclip_kernels::BatchNorm`.
//!
//! | value | shape |
//! |---|---|
//! | `x`, y | `[rows, channels]` |
//! | gain, bias, mean, variance | `[channels]` |

use burn::backend::Flex;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops};
use burn::prelude::*;
use burn::tensor::activation::relu;
use ferroclip_kernels::{BatchNorm as Norm, Isa, Moments};

use crate::cpu::{Cpu, input, operands};

/// A batch norm: its parameters, and the statistics that inference uses.
#[derive(Clone, Debug)]
pub struct BatchNorm {
    /// Gain, `[channels]`.
    pub gain: Tensor<1>,
    /// Bias, `[channels]`.
    pub bias: Tensor<1>,
    /// Running mean, `[channels]`. It gets no gradient.
    pub mean: Tensor<1>,
    /// Running variance, `[channels]`. It gets no gradient.
    pub variance: Tensor<1>,
    /// Added to the variance.
    pub eps: f64,
    /// Whether a rectifier follows: max(y, 0).
    pub rectified: bool,
}

impl BatchNorm {
    /// y by the running statistics, which are constants.
    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        let Some(operands) = operands([input(&x), input(&self.gain), input(&self.bias)]) else {
            return self.portable(x, self.mean.clone(), self.variance.clone());
        };
        let moments = Moments { mean: numbers(&self.mean), variance: numbers(&self.variance) };
        self.finish(operands, moments, true)
    }

    /// y by the statistics of the batch itself, and these statistics.
    pub fn forward_batch(&self, x: Tensor<2>) -> (Tensor<2>, Moments) {
        let channels = x.dims()[1];
        let Some(operands) = operands([input(&x), input(&self.gain), input(&self.bias)]) else {
            let mean = x.clone().mean_dim(0);
            let centred = x.clone() - mean.clone();
            let variance = (centred.clone() * centred).mean_dim(0);
            let (mean, variance) = (mean.reshape([channels]), variance.reshape([channels]));
            let moments = Moments { mean: numbers(&mean), variance: numbers(&variance) };
            return (self.portable(x, mean, variance), moments);
        };
        let moments = Moments::of(Isa::active(), operands.values[0].data(), channels);
        (self.finish(operands, moments.clone(), false), moments)
    }

    fn finish(
        &self,
        operands: crate::cpu::Operands<3>,
        moments: Moments,
        frozen: bool,
    ) -> Tensor<2> {
        let [x, gain, bias] = &operands.values;
        let (eps, channels) = (self.eps as f32, gain.data().len());
        let norm = Norm::new(&moments, gain.data(), bias.data(), eps, self.rectified);
        let shape = [x.data().len() / channels, channels];
        let mut y = vec![0.0; x.data().len()];
        norm.forward(Isa::active(), x.data(), &mut y);
        let state = (x.clone(), norm, frozen, shape);
        operands.finish(Cpu::from_vec(y, &shape), NormBackward, state)
    }

    fn portable(&self, x: Tensor<2>, mean: Tensor<1>, variance: Tensor<1>) -> Tensor<2> {
        let unit = (x - mean.unsqueeze::<2>()) / (variance + self.eps).sqrt().unsqueeze::<2>();
        let y = unit * self.gain.clone().unsqueeze::<2>() + self.bias.clone().unsqueeze::<2>();
        if self.rectified { relu(y) } else { y }
    }
}

fn numbers(x: &Tensor<1>) -> Vec<f32> {
    x.clone().into_data().convert::<f32>().try_into_vec().expect("just converted to f32")
}

#[derive(Debug)]
struct NormBackward;

impl Backward<Flex, 3> for NormBackward {
    type State = (Cpu, Norm, bool, [usize; 2]);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = Cpu::gradient(grads.consume::<Flex>(&ops.node));
        let (x, norm, frozen, shape @ [_, channels]) = ops.state;
        let mut dx = vec![0.0; x.data().len()];
        let (isa, x, dy) = (Isa::active(), x.data(), dy.data());
        let [dgain, dbias] = match frozen {
            true => norm.backward_frozen(isa, x, dy, &mut dx),
            false => norm.backward(isa, x, dy, &mut dx),
        };
        let [x_node, gain_node, bias_node] = ops.parents;
        for (node, values, shape) in [
            (x_node, dx, &shape[..]),
            (gain_node, dgain, &[channels][..]),
            (bias_node, dbias, &[channels][..]),
        ] {
            if let Some(node) = node {
                grads.register::<Flex>(node.id, Cpu::from_vec(values, shape).into_primitive());
            }
        }
    }
}
