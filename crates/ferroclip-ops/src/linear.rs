//! y = x W^T + b.
//!
//! | value | shape | gradient |
//! |---|---|---|
//! | `x` | `[rows, in]` | dx = dy W |
//! | `weight` | `[out, in]` | dW = dy^T x |
//! | `bias` | `[out]` | db = sum of dy over rows |
//! | y | `[rows, out]` | |

use std::ops::Range;

use burn::backend::Flex;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops};
use burn::prelude::*;
use ferroclip_kernels::{Isa, Matrix, gemm};

use crate::cpu::{Cpu, input, operands};
use crate::threads::column_sums;

/// A linear layer: a weight `[out, in]` as checkpoints store it, and perhaps a bias `[out]`.
#[derive(Clone, Debug)]
pub struct Linear {
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
}

impl Linear {
    /// A layer over these parameters.
    pub fn new(weight: Tensor<2>, bias: Option<Tensor<1>>) -> Self {
        Linear { weight, bias }
    }

    /// `x W^T + b`: `[rows, in]` to `[rows, out]`.
    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        match &self.bias {
            Some(bias) => with_bias(x, &self.weight, bias),
            None => product(x, &self.weight, true),
        }
    }

    /// The layer that holds the output features `range` alone (for instance the query third of
    /// a fused projection).
    pub fn outputs(&self, range: Range<usize>) -> Linear {
        let inputs = self.weight.dims()[1];
        let weight = self.weight.clone().slice([range.clone(), 0..inputs]);
        let bias = self.bias.as_ref().map(|bias| bias.clone().slice([range]));
        Linear { weight, bias }
    }
}

/// `x P`: `[rows, in]` times `[in, out]`, the layout in which open_clip keeps its projections.
pub fn project(x: Tensor<2>, projection: &Tensor<2>) -> Tensor<2> {
    product(x, projection, false)
}

fn with_bias(x: Tensor<2>, weight: &Tensor<2>, bias: &Tensor<1>) -> Tensor<2> {
    let ([rows, inputs], [outputs, of]) = (x.dims(), weight.dims());
    assert_eq!((inputs, outputs), (of, bias.dims()[0]), "linear: x, weight and bias");
    let Some(operands) = operands([input(&x), input(weight), input(bias)]) else {
        return x.matmul(weight.clone().transpose()) + bias.clone().unsqueeze::<2>();
    };
    let [x, weight, bias] = &operands.values;
    let mut y = Vec::with_capacity(rows * outputs);
    for _ in 0..rows {
        y.extend_from_slice(bias.data());
    }
    let w = Matrix::rows(weight.data(), inputs).transposed();
    let x_rows = Matrix::rows(x.data(), inputs);
    gemm(Isa::active(), [rows, outputs, inputs], x_rows, w, &mut y, outputs, true);
    let product = Product { rows, inputs, outputs, transposed: true };
    let state = (x.clone(), weight.clone(), product);
    operands.finish(Cpu::from_vec(y, &[rows, outputs]), LinearBackward, state)
}

/// `x W^T` (`transposed`) or `x W`.
fn product(x: Tensor<2>, weight: &Tensor<2>, transposed: bool) -> Tensor<2> {
    let ([rows, inputs], mut dims) = (x.dims(), weight.dims());
    if transposed {
        dims.reverse();
    }
    assert_eq!(inputs, dims[0], "linear: columns of x against the weight {:?}", weight.dims());
    let product = Product { rows, inputs, outputs: dims[1], transposed };
    let Some(operands) = operands([input(&x), input(weight)]) else {
        let weight = weight.clone();
        return x.matmul(if transposed { weight.transpose() } else { weight });
    };
    let [x, weight] = &operands.values;
    let mut y = vec![0.0; rows * product.outputs];
    let x_rows = Matrix::rows(x.data(), inputs);
    let dims = [rows, product.outputs, inputs];
    gemm(
        Isa::active(),
        dims,
        x_rows,
        product.weight(weight.data()),
        &mut y,
        product.outputs,
        false,
    );
    let state = (x.clone(), weight.clone(), product);
    operands.finish(Cpu::from_vec(y, &[rows, product.outputs]), ProductBackward, state)
}

/// The shape of one product and how its weight lies in memory.
#[derive(Clone, Copy, Debug)]
struct Product {
    rows: usize,
    inputs: usize,
    outputs: usize,
    transposed: bool,
}

impl Product {
    /// The weight as `[in, out]`.
    fn weight<'a>(&self, data: &'a [f32]) -> Matrix<'a> {
        if self.transposed {
            Matrix::rows(data, self.inputs).transposed()
        } else {
            Matrix::rows(data, self.outputs)
        }
    }

    /// dx = dy W.
    fn dx(&self, dy: &[f32], weight: &[f32]) -> Cpu {
        let mut dx = vec![0.0; self.rows * self.inputs];
        let w = self.weight(weight).transposed();
        let dims = [self.rows, self.inputs, self.outputs];
        gemm(Isa::active(), dims, Matrix::rows(dy, self.outputs), w, &mut dx, self.inputs, false);
        Cpu::from_vec(dx, &[self.rows, self.inputs])
    }

    /// dW, in the weight's own layout.
    fn dweight(&self, x: &[f32], dy: &[f32]) -> Cpu {
        let mut dw = vec![0.0; self.inputs * self.outputs];
        let (x, dy) = (Matrix::rows(x, self.inputs), Matrix::rows(dy, self.outputs));
        if self.transposed {
            let dims = [self.outputs, self.inputs, self.rows];
            gemm(Isa::active(), dims, dy.transposed(), x, &mut dw, self.inputs, false);
            Cpu::from_vec(dw, &[self.outputs, self.inputs])
        } else {
            let dims = [self.inputs, self.outputs, self.rows];
            gemm(Isa::active(), dims, x.transposed(), dy, &mut dw, self.outputs, false);
            Cpu::from_vec(dw, &[self.inputs, self.outputs])
        }
    }
}

#[derive(Debug)]
struct LinearBackward;

impl Backward<Flex, 3> for LinearBackward {
    type State = (Cpu, Cpu, Product);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = Cpu::gradient(grads.consume::<Flex>(&ops.node));
        let (x, weight, product) = ops.state;
        let [x_node, weight_node, bias_node] = ops.parents;
        if let Some(node) = x_node {
            grads.register::<Flex>(node.id, product.dx(dy.data(), weight.data()).into_primitive());
        }
        if let Some(node) = weight_node {
            grads.register::<Flex>(node.id, product.dweight(x.data(), dy.data()).into_primitive());
        }
        if let Some(node) = bias_node {
            let db = column_sums(dy.data(), product.outputs);
            let db = Cpu::from_vec(db, &[product.outputs]);
            grads.register::<Flex>(node.id, db.into_primitive());
        }
    }
}

#[derive(Debug)]
struct ProductBackward;

impl Backward<Flex, 2> for ProductBackward {
    type State = (Cpu, Cpu, Product);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = Cpu::gradient(grads.consume::<Flex>(&ops.node));
        let (x, weight, product) = ops.state;
        let [x_node, weight_node] = ops.parents;
        if let Some(node) = x_node {
            grads.register::<Flex>(node.id, product.dx(dy.data(), weight.data()).into_primitive());
        }
        if let Some(node) = weight_node {
            grads.register::<Flex>(node.id, product.dweight(x.data(), dy.data()).into_primitive());
        }
    }
}
