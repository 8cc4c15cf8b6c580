//! y = x W^T + b.
//!
//! | value | shape | gradient |
//! |---|---|---|
//! | `x` | `[rows, in]` | dx = dy W |
//! | `weight` | `[out, in]` | dW = dy^T x |
//! | `bias` | `[out]` | db = sum of dy over rows |
//! | y | `[rows, out]` | |

use std::ops::Range;
use std::sync::Arc;

use burn::backend::Flex;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops};
use burn::prelude::*;
use ferroclip_kernels::{
    Finish, Isa, Matrix, Onto, PackedRows, PackedWeights, Precision, gemm, multiply,
    multiply_to_rows, task_rows,
};

use crate::cpu::{Cpu, input, operands};
use crate::engine::{Memory, Task, parts, row_tasks, run};
use crate::rows::written_rows;
use crate::threads::{column_sums, zeros};

/// A linear layer: a weight `[out, in]` as checkpoints store it, and perhaps a bias `[out]`.
#[derive(Clone, Debug)]
pub struct Linear(Layer);

#[derive(Clone, Debug)]
enum Layer {
    /// On any device, with a gradient.
    Parameter(Box<Parameter>),
    /// For inference on the CPU.
    Packed(Arc<Packed>),
}

#[derive(Clone, Debug)]
struct Parameter {
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
    /// Of the operands of products.
    precision: Precision,
}

/// A layer whose weights are packed.
#[derive(Debug)]
pub(crate) struct Packed {
    pub(crate) weights: PackedWeights,
    bias: Option<Vec<f32>>,
}

impl Packed {
    pub(crate) fn new(
        precision: Precision,
        weight: Matrix,
        shape: [usize; 2],
        bias: Option<Vec<f32>>,
    ) -> Self {
        let weights = PackedWeights::pack(Isa::active(), precision, shape, weight);
        Packed { weights, bias }
    }

    /// `out`, `outputs` numbers a row, from packed rows.
    pub(crate) fn multiply(&self, rows: &PackedRows, finish: Finish, out: &mut [f32], split: bool) {
        let outputs = self.weights.outputs();
        multiply(&self.weights, rows, self.bias.as_deref(), finish, out, outputs, split);
    }

    /// [`Packed::multiply`] to the rows of the product behind it, of the same precision.
    pub(crate) fn multiply_to_rows(
        &self,
        rows: &PackedRows,
        finish: Finish,
        between: &mut Vec<f32>,
        next: &mut PackedRows,
        split: bool,
    ) {
        multiply_to_rows(&self.weights, rows, self.bias.as_deref(), finish, between, next, split);
    }

    /// Rows of a task.
    pub(crate) fn task_rows(&self) -> usize {
        task_rows(&self.weights)
    }

    /// Packs rows of numbers as operands, with `split` on all cores.
    pub(crate) fn fill(&self, rows: &mut PackedRows, x: &[f32], split: bool) {
        let (precision, width) = (self.weights.precision(), self.weights.inputs());
        rows.fill_dense(Isa::active(), precision, [x.len() / width, width], x, split);
    }

    /// Packs `n` rows that `write(i, row)` writes as operands, with `split` on all cores.
    pub(crate) fn fill_written(
        &self,
        rows: &mut PackedRows,
        n: usize,
        split: bool,
        write: impl Fn(usize, &mut [f32]) + Sync,
    ) {
        let (isa, precision) = (Isa::active(), self.weights.precision());
        let shape = [n, self.weights.inputs()];
        match split {
            true => rows.fill_split(isa, precision, shape, write),
            false => rows.fill(isa, precision, shape, write),
        }
    }

    fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        let [n, width] = x.dims();
        assert_eq!(width, self.weights.inputs(), "linear: columns of x");
        let x = Cpu::packed_operand(x);
        self.forward_filled(n, |rows, task| {
            let x = &x.data()[task.range.start * width..task.range.end * width];
            self.fill(rows, x, task.split);
        })
    }

    /// The products of `n` rows, of which `fill` packs those of a task.
    fn forward_filled(
        &self,
        n: usize,
        fill: impl Fn(&mut PackedRows, &Task) + Sync + Send,
    ) -> Tensor<2> {
        let outputs = self.weights.outputs();
        let mut y = zeros(n * outputs);
        let tasks = row_tasks(n, rayon::current_num_threads(), self.task_rows());
        let length = |task: &Task| task.range.len() * outputs;
        run(&tasks, parts(&tasks, &mut y, length), |Memory { rows, .. }, task, y| {
            fill(rows, task);
            self.multiply(rows, Finish::Store, y, task.split);
        });
        Cpu::from_vec(y, &[n, outputs]).into_tensor()
    }
}

impl Linear {
    /// A layer over these parameters.
    pub fn new(weight: Tensor<2>, bias: Option<Tensor<1>>) -> Self {
        Linear(Layer::Parameter(Box::new(Parameter { weight, bias, precision: Precision::F32 })))
    }

    /// The layer whose products, those of the gradients too, round their operands to this precision
    /// and sum in f32; the parameters stay as they are. On the portable path nothing is rounded.
    ///
    /// # Panics
    /// When the weights are packed, or the precision is int8, which has no gradient.
    pub fn rounded(self, precision: Precision) -> Self {
        assert_ne!(precision, Precision::Int8, "gradients in 8 bits");
        let Layer::Parameter(mut parameter) = self.0 else {
            panic!("packed weights have their precision");
        };
        parameter.precision = precision;
        Linear(Layer::Parameter(parameter))
    }

    /// The layer with its weights packed for inference on the CPU, for the active instruction set.
    /// There is then no gradient.
    ///
    /// # Panics
    /// When the weights are not f32 in CPU memory, or on a tape.
    pub fn packed(self, precision: Precision) -> Self {
        let Layer::Parameter(parameter) = self.0 else { return self };
        let Parameter { weight, bias, .. } = *parameter;
        let shape @ [_, inputs] = weight.dims();
        let weight = Cpu::packed_operand(weight);
        let bias = bias.map(|bias| Cpu::packed_operand(bias).data().to_vec());
        let matrix = Matrix::rows(weight.data(), inputs);
        Linear(Layer::Packed(Arc::new(Packed::new(precision, matrix, shape, bias))))
    }

    /// `x W^T + b`: `[rows, in]` to `[rows, out]`.
    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        match &self.0 {
            Layer::Parameter(parameter) => {
                let Parameter { weight, bias, precision } = &**parameter;
                match bias {
                    Some(bias) => with_bias(x, weight, bias, *precision),
                    None => product(x, weight, true, *precision),
                }
            }
            Layer::Packed(packed) => packed.forward(x),
        }
    }

    /// [`Linear::forward`] of `n` rows that `write(i, row)` writes: where the weights are packed, each just
    /// before it is multiplied.
    pub fn forward_written(&self, n: usize, write: impl Fn(usize, &mut [f32]) + Sync) -> Tensor<2> {
        match &self.0 {
            Layer::Parameter(parameter) => {
                let weight = &parameter.weight;
                self.forward(written_rows([n, weight.dims()[1]], &weight.device(), write))
            }
            Layer::Packed(packed) => packed.forward_filled(n, |rows, task| {
                packed.fill_written(rows, task.range.len(), task.split, |i, row| {
                    write(task.range.start + i, row);
                });
            }),
        }
    }

    /// The layer that holds the output features `range` alone (for instance the query third of
    /// a fused projection).
    ///
    /// # Panics
    /// When the weights are packed.
    pub fn outputs(&self, range: Range<usize>) -> Linear {
        let Layer::Parameter(parameter) = &self.0 else {
            panic!("packed weights are not cut");
        };
        let Parameter { weight, bias, precision } = &**parameter;
        let inputs = weight.dims()[1];
        let weight = weight.clone().slice([range.clone(), 0..inputs]);
        let bias = bias.as_ref().map(|bias| bias.clone().slice([range]));
        Linear::new(weight, bias).rounded(*precision)
    }

    pub(crate) fn as_packed(&self) -> Option<&Packed> {
        match &self.0 {
            Layer::Packed(packed) => Some(packed),
            Layer::Parameter(_) => None,
        }
    }

    /// The weight, `[out, in]`, where it is not packed.
    pub(crate) fn parameter(&self) -> Option<Cpu> {
        match &self.0 {
            Layer::Parameter(parameter) => Some(Cpu::packed_operand(parameter.weight.clone())),
            Layer::Packed(_) => None,
        }
    }

    /// Weight, bias and precision of a layer that has a bias and is not packed.
    pub(crate) fn parameters(&self) -> Option<(&Tensor<2>, &Tensor<1>, Precision)> {
        match &self.0 {
            Layer::Parameter(p) => Some((&p.weight, p.bias.as_ref()?, p.precision)),
            Layer::Packed(_) => None,
        }
    }

    /// The bias of packed weights.
    pub(crate) fn bias_values(&self) -> Option<&[f32]> {
        self.as_packed()?.bias.as_deref()
    }
}

/// A projection without bias, `x P`, whose matrix `[in, out]` is kept as open_clip does.
#[derive(Clone, Debug)]
pub struct Projection(Project);

#[derive(Clone, Debug)]
enum Project {
    Parameter(Box<Tensor<2>>),
    Packed(Arc<Packed>),
}

impl Projection {
    /// The projection by this matrix.
    pub fn new(matrix: Tensor<2>) -> Self {
        Projection(Project::Parameter(Box::new(matrix)))
    }

    /// As [`Linear::packed`].
    ///
    /// # Panics
    /// As [`Linear::packed`].
    pub fn packed(self, precision: Precision) -> Self {
        let Project::Parameter(matrix) = self.0 else { return self };
        let [inputs, outputs] = matrix.dims();
        let matrix = Cpu::packed_operand(*matrix);
        let weight = Matrix::rows(matrix.data(), outputs).transposed();
        let packed = Packed::new(precision, weight, [outputs, inputs], None);
        Projection(Project::Packed(Arc::new(packed)))
    }

    /// `[rows, in]` to `[rows, out]`.
    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        match &self.0 {
            Project::Parameter(matrix) => product(x, matrix, false, Precision::F32),
            Project::Packed(packed) => packed.forward(x),
        }
    }

    /// Numbers of a row before the projection.
    pub fn inputs(&self) -> usize {
        match &self.0 {
            Project::Parameter(matrix) => matrix.dims()[0],
            Project::Packed(packed) => packed.weights.inputs(),
        }
    }
}

fn with_bias(
    x: Tensor<2>,
    weight: &Tensor<2>,
    bias: &Tensor<1>,
    precision: Precision,
) -> Tensor<2> {
    let ([rows, inputs], [outputs, of]) = (x.dims(), weight.dims());
    assert_eq!((inputs, outputs), (of, bias.dims()[0]), "linear: x, weight and bias");
    let Some(operands) = operands([input(&x), input(weight), input(bias)]) else {
        return x.matmul(weight.clone().transpose()) + bias.clone().unsqueeze::<2>();
    };
    let [x, weight, bias] = &operands.values;
    let mut y = zeros(rows * outputs);
    let onto = Onto::Bias(bias.data());
    let w = Matrix::rows(weight.data(), inputs).transposed();
    let x_rows = Matrix::rows(x.data(), inputs);
    gemm(Isa::active(), precision, [rows, outputs, inputs], x_rows, w, &mut y, outputs, onto);
    let product = Product { rows, inputs, outputs, transposed: true, precision };
    let state = (x.clone(), weight.clone(), product);
    operands.finish(Cpu::from_vec(y, &[rows, outputs]), LinearBackward, state)
}

/// `x W^T` (`transposed`) or `x W`.
fn product(x: Tensor<2>, weight: &Tensor<2>, transposed: bool, precision: Precision) -> Tensor<2> {
    let ([rows, inputs], mut dims) = (x.dims(), weight.dims());
    if transposed {
        dims.reverse();
    }
    assert_eq!(inputs, dims[0], "linear: columns of x against the weight {:?}", weight.dims());
    let product = Product { rows, inputs, outputs: dims[1], transposed, precision };
    let Some(operands) = operands([input(&x), input(weight)]) else {
        let weight = weight.clone();
        return x.matmul(if transposed { weight.transpose() } else { weight });
    };
    let [x, weight] = &operands.values;
    let mut y = zeros(rows * product.outputs);
    let x_rows = Matrix::rows(x.data(), inputs);
    let dims = [rows, product.outputs, inputs];
    gemm(
        Isa::active(),
        precision,
        dims,
        x_rows,
        product.weight(weight.data()),
        &mut y,
        product.outputs,
        Onto::Nothing,
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
    precision: Precision,
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
        let mut dx = zeros(self.rows * self.inputs);
        let w = self.weight(weight).transposed();
        let dims = [self.rows, self.inputs, self.outputs];
        gemm(
            Isa::active(),
            self.precision,
            dims,
            Matrix::rows(dy, self.outputs),
            w,
            &mut dx,
            self.inputs,
            Onto::Nothing,
        );
        Cpu::from_vec(dx, &[self.rows, self.inputs])
    }

    /// dW, in the weight's own layout.
    fn dweight(&self, x: &[f32], dy: &[f32]) -> Cpu {
        let mut dw = zeros(self.inputs * self.outputs);
        let (x, dy) = (Matrix::rows(x, self.inputs), Matrix::rows(dy, self.outputs));
        if self.transposed {
            let dims = [self.outputs, self.inputs, self.rows];
            gemm(
                Isa::active(),
                self.precision,
                dims,
                dy.transposed(),
                x,
                &mut dw,
                self.inputs,
                Onto::Nothing,
            );
            Cpu::from_vec(dw, &[self.outputs, self.inputs])
        } else {
            let dims = [self.inputs, self.outputs, self.rows];
            gemm(
                Isa::active(),
                self.precision,
                dims,
                x.transposed(),
                dy,
                &mut dw,
                self.outputs,
                Onto::Nothing,
            );
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
