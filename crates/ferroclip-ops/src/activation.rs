//! The activation of an MLP, elementwise: y = act(x), dx = dy act'(x).

use std::f64::consts::{FRAC_1_PI, FRAC_1_SQRT_2};

use burn::backend::Flex;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops};
use burn::prelude::*;
use burn::tensor::activation::sigmoid;
use ferroclip_kernels::{Activation, Isa};

use crate::cpu::{Cpu, input, operands};
use crate::threads::in_chunks;

/// `act(x)`, any shape `[rows, width]`.
pub fn activation(x: Tensor<2>, kind: Activation) -> Tensor<2> {
    let shape = x.dims();
    let Some(operands) = operands([input(&x)]) else {
        return match kind {
            // Burn's own GELU has the gradient of its tanh form on some devices: off by a thousandth.
            Activation::Gelu => x.clone() * ((x * FRAC_1_SQRT_2).erf() + 1.0) * 0.5,
            Activation::QuickGelu => x.clone() * sigmoid(x * 1.702),
            Activation::GeluTanh => {
                let cube = x.clone() * x.clone() * x.clone() * 0.044_715;
                x.clone() * sigmoid((x + cube) * (2.0 * (2.0 * FRAC_1_PI).sqrt()))
            }
        };
    };
    let [x] = &operands.values;
    let mut y = vec![0.0; x.data().len()];
    in_chunks(&mut y, |start, y| {
        let x = &x.data()[start..start + y.len()];
        ferroclip_kernels::activation(Isa::active(), kind, x, y);
    });
    let state = (x.clone(), kind, shape);
    operands.finish(Cpu::from_vec(y, &shape), ActivationBackward, state)
}

#[derive(Debug)]
struct ActivationBackward;

impl Backward<Flex, 1> for ActivationBackward {
    type State = (Cpu, Activation, [usize; 2]);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = Cpu::gradient(grads.consume::<Flex>(&ops.node));
        let (x, kind, shape) = ops.state;
        let [Some(node)] = ops.parents else { return };
        let mut dx = vec![0.0; dy.data().len()];
        in_chunks(&mut dx, |start, dx| {
            let range = start..start + dx.len();
            let (x, dy) = (&x.data()[range.clone()], &dy.data()[range]);
            ferroclip_kernels::activation_backward(Isa::active(), kind, x, dy, dx);
        });
        grads.register::<Flex>(node.id, Cpu::from_vec(dx, &shape).into_primitive());
    }
}
