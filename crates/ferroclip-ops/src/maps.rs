//! Feature maps of convolutional towers: rows, one for each position, `[n * height * width,
//! channels]`, beside their [`Maps`].
//!
//! | operation | x | parameter | y |
//! |---|---|---|---|
//! | [`conv3x3`] | `[rows, in]` | `[out, in * 9]`, as checkpoints store it | `[rows, out]` |
//! | [`avg_pool2`] | `[rows, c]` | | `[rows / 4, c]` |
//! | [`add_rectified`] | `[rows, c]`, twice | | `[rows, c]` |
//!
//! A convolution of one tap is [`Linear`](crate::Linear).

use burn::backend::Flex;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops};
use burn::prelude::*;
use burn::tensor::activation::relu;
use burn::tensor::module::conv2d;
use burn::tensor::ops::ConvOptions;
use ferroclip_kernels::{Isa, Maps, conv3x3_weight_gradient, flipped_taps};

use crate::cpu::{Cpu, input, operands};
use crate::threads::{in_chunks, in_rows};

/// 3 x 3 convolution: stride 1, a border of zeros, no bias; the formulas stand in
/// `ferroclip_kernels::conv3x3`.
pub fn conv3x3(x: Tensor<2>, weight: &Tensor<2>, maps: Maps) -> Tensor<2> {
    let ([rows, inputs], [outputs, taps]) = (x.dims(), weight.dims());
    assert_eq!((rows, taps), (maps.rows(), 9 * inputs), "conv3x3: x, maps and weight");
    let Some(operands) = operands([input(&x), input(weight)]) else {
        return portable_conv(x, weight, maps);
    };
    let [x, weight] = &operands.values;
    let channels = [inputs, outputs];
    let taps_first = Cpu::from_vec(swap_taps(weight.data(), [inputs, 9]), &[outputs, taps]);
    let mut y = vec![0.0; rows * outputs];
    ferroclip_kernels::conv3x3(Isa::active(), maps, channels, x.data(), taps_first.data(), &mut y);
    let state = (x.clone(), taps_first, maps, channels);
    operands.finish(Cpu::from_vec(y, &[rows, outputs]), ConvBackward, state)
}

/// Each row of `a x b` numbers transposed: the kernel wants `[out, 9, in]`, checkpoints hold `[out,
/// in, 9]`.
pub(crate) fn swap_taps(weight: &[f32], [a, b]: [usize; 2]) -> Vec<f32> {
    let mut swapped = Vec::with_capacity(weight.len());
    for row in weight.chunks_exact(a * b) {
        swapped.extend((0..a * b).map(|i| row[i % a * b + i / a]));
    }
    swapped
}

#[derive(Debug)]
struct ConvBackward;

impl Backward<Flex, 2> for ConvBackward {
    type State = (Cpu, Cpu, Maps, [usize; 2]);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = Cpu::gradient(grads.consume::<Flex>(&ops.node));
        let (x, weight, maps, channels @ [inputs, outputs]) = ops.state;
        let (isa, rows) = (Isa::active(), maps.rows());
        let [x_node, weight_node] = ops.parents;
        if let Some(node) = x_node {
            let flipped = flipped_taps(channels, weight.data());
            let mut dx = vec![0.0; rows * inputs];
            ferroclip_kernels::conv3x3(isa, maps, [outputs, inputs], dy.data(), &flipped, &mut dx);
            grads.register::<Flex>(node.id, Cpu::from_vec(dx, &[rows, inputs]).into_primitive());
        }
        if let Some(node) = weight_node {
            let mut dw = vec![0.0; weight.data().len()];
            conv3x3_weight_gradient(isa, maps, channels, x.data(), dy.data(), &mut dw);
            let dw = Cpu::from_vec(swap_taps(&dw, [9, inputs]), &[outputs, 9 * inputs]);
            grads.register::<Flex>(node.id, dw.into_primitive());
        }
    }
}

fn portable_conv(x: Tensor<2>, weight: &Tensor<2>, maps: Maps) -> Tensor<2> {
    let ([rows, inputs], [outputs, _]) = (x.dims(), weight.dims());
    let x: Tensor<4> = x.reshape([maps.n, maps.height, maps.width, inputs]);
    let weight: Tensor<4> = weight.clone().reshape([outputs, inputs, 3, 3]);
    let options = ConvOptions::new([1, 1], [1, 1], [1, 1], 1);
    let y = conv2d(x.permute([0, 3, 1, 2]), weight, None, options);
    y.permute([0, 2, 3, 1]).reshape([rows, outputs])
}

/// The mean of each 2 x 2 positions, with the maps that are left. What is beyond an even number of
/// positions is dropped.
pub fn avg_pool2(x: Tensor<2>, maps: Maps) -> (Tensor<2>, Maps) {
    let [rows, channels] = x.dims();
    assert_eq!(rows, maps.rows(), "avg_pool2: x and maps");
    let half = maps.halved();
    let Some(operands) = operands([input(&x)]) else {
        let x: Tensor<4> = x.reshape([maps.n, maps.height, maps.width, channels]);
        let x = x.slice([0..maps.n, 0..2 * half.height, 0..2 * half.width, 0..channels]);
        let x: Tensor<6> = x.reshape([half.n, half.height, 2, half.width, 2, channels]);
        return (x.mean_dim(2).mean_dim(4).reshape([half.rows(), channels]), half);
    };
    let [x] = &operands.values;
    let mut y = vec![0.0; half.rows() * channels];
    in_rows(&mut y, channels, |first, y| pool_rows(maps, channels, x.data(), first, y));
    let y = Cpu::from_vec(y, &[half.rows(), channels]);
    (operands.finish(y, PoolBackward, (maps, channels)), half)
}

/// Rows `first..` of the maps of half the sides, as many as `y` has, from all rows of `maps`.
pub(crate) fn pool_rows(maps: Maps, channels: usize, x: &[f32], first: usize, y: &mut [f32]) {
    for (row, y) in (first..).zip(y.chunks_exact_mut(channels)) {
        let [a, b, c, d] = quad(row, maps).map(|row| &x[row * channels..][..channels]);
        for (i, y) in y.iter_mut().enumerate() {
            *y = 0.25 * ((a[i] + b[i]) + (c[i] + d[i]));
        }
    }
}

/// The four rows that become row `row` of the maps of half the size.
fn quad(row: usize, from: Maps) -> [usize; 4] {
    let [height, width] = [from.height / 2, from.width / 2];
    let (map, y, x) = (row / (height * width), row / width % height, row % width);
    let first = map * from.cells() + 2 * y * from.width + 2 * x;
    [first, first + 1, first + from.width, first + from.width + 1]
}

#[derive(Debug)]
struct PoolBackward;

impl Backward<Flex, 1> for PoolBackward {
    type State = (Maps, usize);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = Cpu::gradient(grads.consume::<Flex>(&ops.node));
        let (maps, channels) = ops.state;
        let [Some(node)] = ops.parents else { return };
        let [height, width] = [maps.height / 2, maps.width / 2];
        let mut dx = vec![0.0; maps.rows() * channels];
        in_rows(&mut dx, channels, |first, dx| {
            for (row, dx) in (first..).zip(dx.chunks_exact_mut(channels)) {
                let (map, cell) = (row / maps.cells(), row % maps.cells());
                let (y, x) = (cell / maps.width / 2, cell % maps.width / 2);
                if y < height && x < width {
                    let dy = &dy.data()[((map * height + y) * width + x) * channels..][..channels];
                    dx.iter_mut().zip(dy).for_each(|(dx, dy)| *dx = 0.25 * dy);
                }
            }
        });
        let dx = Cpu::from_vec(dx, &[maps.rows(), channels]);
        grads.register::<Flex>(node.id, dx.into_primitive());
    }
}

/// max(a + b, 0), elementwise: the end of a residual block. da = db = dy where y > 0, else 0.
pub fn add_rectified(a: Tensor<2>, b: Tensor<2>) -> Tensor<2> {
    let shape = a.dims();
    assert_eq!(shape, b.dims(), "add_rectified: a and b");
    let Some(operands) = operands([input(&a), input(&b)]) else {
        return relu(a + b);
    };
    let [a, b] = &operands.values;
    let mut y = vec![0.0; a.data().len()];
    in_chunks(&mut y, |start, y| {
        let terms = a.data()[start..].iter().zip(&b.data()[start..]);
        for (y, (a, b)) in y.iter_mut().zip(terms) {
            let sum = a + b;
            // Not `max`, which would hide NaN.
            *y = if sum < 0.0 { 0.0 } else { sum };
        }
    });
    let y = Cpu::from_vec(y, &shape);
    operands.finish(y.clone(), AddBackward, (y, shape))
}

#[derive(Debug)]
struct AddBackward;

impl Backward<Flex, 2> for AddBackward {
    type State = (Cpu, [usize; 2]);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = Cpu::gradient(grads.consume::<Flex>(&ops.node));
        let (y, shape) = ops.state;
        let mut d = vec![0.0; y.data().len()];
        in_chunks(&mut d, |start, d| {
            let known = dy.data()[start..].iter().zip(&y.data()[start..]);
            for (d, (dy, y)) in d.iter_mut().zip(known) {
                *d = if *y > 0.0 { *dy } else { 0.0 };
            }
        });
        let d = Cpu::from_vec(d, &shape);
        for node in ops.parents.into_iter().flatten() {
            grads.register::<Flex>(node.id, d.clone().into_primitive());
        }
    }
}
