//! The fast path (f32) against the portable path (f64), forward and backward, for every
//! operation that has both; and the portable path's gradients against finite differences.

use burn::prelude::*;
use burn::tensor::{DType, TensorData};

use crate::{
    Activation, AttentionBlock, BatchNorm, LayerNorm, Lead, Linear, Maps, Mlp, Precision,
    Projection, Spans, activation, add_rectified, attention, attention_pooled, avg_pool2, conv3x3,
    layer_norm, patch_rows,
};

type Op<'a> = dyn Fn(&[Tensor<2>]) -> Tensor<2> + 'a;

/// A matrix with the shape of an operand and values that repeat nowhere.
fn operand([rows, columns]: [usize; 2], seed: usize) -> TensorData {
    let value = |i: usize| (((i + 31 * seed) * (i + 7)) as f64 * 0.123).sin();
    TensorData::new((0..rows * columns).map(value).collect::<Vec<f64>>(), [rows, columns])
}

/// The result and the gradient of sum(result * weights) for each operand.
fn run(op: &Op<'_>, shapes: &[[usize; 2]], dtype: DType) -> Vec<Vec<f64>> {
    let device = Device::flex().autodiff();
    let make = |(i, &shape): (usize, &[usize; 2])| {
        Tensor::<2>::from_data(operand(shape, i), (&device, dtype)).require_grad()
    };
    let operands: Vec<_> = shapes.iter().enumerate().map(make).collect();
    let y = op(&operands);
    let weights = Tensor::from_data(operand(y.dims(), 99), (&device, dtype));
    let grads = (y.clone() * weights).sum().backward();
    let mut all = vec![values(y)];
    all.extend(
        operands.iter().map(|x| values(x.grad(&grads).expect("every operand has a gradient"))),
    );
    all
}

fn values(x: Tensor<2>) -> Vec<f64> {
    x.into_data().convert::<f64>().try_to_vec().expect("converted to f64")
}

fn check(name: &str, shapes: &[[usize; 2]], op: &Op<'_>) {
    let (fast, portable) = (run(op, shapes, DType::F32), run(op, shapes, DType::F64));
    for (which, (fast, portable)) in fast.iter().zip(&portable).enumerate() {
        let norm = portable.iter().map(|p| p * p).sum::<f64>().sqrt();
        let error = fast.iter().zip(portable).map(|(f, p)| (f - p).powi(2)).sum::<f64>().sqrt();
        // f32 rounding over sums of at most a few hundred terms.
        assert!(error <= 2e-6 * norm, "{name}: value {which} is off by {error:e} of {norm:e}");
    }
    finite_differences(name, shapes, op, &portable);
}

/// Moves one element of each operand in f64 and compares the slope with the gradient.
fn finite_differences(name: &str, shapes: &[[usize; 2]], op: &Op<'_>, grads: &[Vec<f64>]) {
    let device = Device::flex();
    for (which, shape) in shapes.iter().enumerate() {
        let moved = (shape[0] * shape[1]) / 2;
        let loss = |by: f64| {
            let make = |(i, &shape): (usize, &[usize; 2])| {
                let mut data = operand(shape, i).try_to_vec::<f64>().expect("f64");
                if i == which {
                    data[moved] += by;
                }
                Tensor::<2>::from_data(TensorData::new(data, shape), (&device, DType::F64))
            };
            let y = op(&shapes.iter().enumerate().map(make).collect::<Vec<_>>());
            let weights = operand(y.dims(), 99).try_to_vec::<f64>().expect("f64");
            values(y).iter().zip(&weights).map(|(y, w)| y * w).sum::<f64>()
        };
        let slope = (loss(1e-5) - loss(-1e-5)) / 2e-5;
        let grad = grads[which + 1][moved];
        assert!(
            (slope - grad).abs() < 1e-6 * (1.0 + slope.abs()),
            "{name}: {slope} against {grad}"
        );
    }
}

fn flat(x: &Tensor<2>) -> Tensor<1> {
    x.clone().flatten(0, 1)
}

#[test]
fn linear_agrees() {
    check("linear", &[[13, 37], [50, 37], [1, 50]], &|x| {
        Linear::new(x[1].clone(), Some(flat(&x[2]))).forward(x[0].clone())
    });
    check("linear without bias", &[[5, 8], [6, 8]], &|x| {
        Linear::new(x[1].clone(), None).forward(x[0].clone())
    });
    check("part of a linear", &[[5, 8], [6, 8], [1, 6]], &|x| {
        Linear::new(x[1].clone(), Some(flat(&x[2]))).outputs(2..5).forward(x[0].clone())
    });
    check("project", &[[40, 33], [33, 70]], &|x| {
        Projection::new(x[1].clone()).forward(x[0].clone())
    });
}

/// Forward and backward: off by the rounding of the operands to 8 bits of mantissa, and by no less.
#[test]
fn rounded_linear_is_close() {
    let shapes = [[13, 37], [50, 37], [1, 50]];
    let op = |x: &[Tensor<2>]| {
        let linear = Linear::new(x[1].clone(), Some(flat(&x[2]))).rounded(Precision::Bf16);
        linear.forward(x[0].clone())
    };
    let (fast, portable) = (run(&op, &shapes, DType::F32), run(&op, &shapes, DType::F64));
    // The gradient of the bias is a sum that nothing is rounded in.
    for (which, (fast, portable)) in fast.iter().zip(&portable).enumerate().take(3) {
        let norm = portable.iter().map(|p| p * p).sum::<f64>().sqrt();
        let error = fast.iter().zip(portable).map(|(f, p)| (f - p).powi(2)).sum::<f64>().sqrt();
        let share = error / norm;
        assert!((1e-5..4e-3).contains(&share), "value {which} is off by {share:e}");
    }
}

#[test]
fn layer_norm_agrees() {
    check("layer_norm", &[[9, 35], [1, 35], [1, 35]], &|x| {
        layer_norm(x[0].clone(), &flat(&x[1]), &flat(&x[2]), 1e-5)
    });
}

#[test]
fn activation_agrees() {
    for kind in [Activation::Gelu, Activation::QuickGelu, Activation::GeluTanh] {
        check("activation", &[[9, 35]], &|x| activation(x[0].clone() * 3.0, kind));
    }
}

#[test]
fn attention_agrees() {
    let spans = Spans::from_lengths([1, 7, 12]);
    for causal in [false, true] {
        check("attention", &[[20, 30]], &|x| attention(x[0].clone(), &spans, 2, causal));
    }
    check("attention_pooled", &[[3, 10], [20, 20]], &|x| {
        attention_pooled(x[0].clone(), x[1].clone(), &spans, 2)
    });
}

/// Inputs of a half of a block: x, the norm, and two layers with biases.
fn half_shapes(rows: usize, width: usize, inner: usize, outer: usize) -> [[usize; 2]; 7] {
    [[rows, width], [1, width], [1, width], [inner, width], [1, inner], [width, outer], [1, width]]
}

fn half_layers(x: &[Tensor<2>]) -> (LayerNorm, [Linear; 2]) {
    let linear = |weight: &Tensor<2>, bias: &Tensor<2>| {
        Linear::new(weight.clone() * 0.2, Some(flat(bias) * 0.2))
    };
    let norm = LayerNorm::new(flat(&x[1]) + 1.0, flat(&x[2]), 1e-5);
    (norm, [linear(&x[3], &x[4]), linear(&x[5], &x[6])])
}

#[test]
fn halves_agree() {
    const WIDTH: usize = 20;
    for recompute in [false, true] {
        // One sequence; few, of which all threads share one; and many rows, an empty sequence among them.
        for lengths in [vec![9], vec![1, 7, 12], vec![40, 0, 90, 3, 60, 50, 1, 30, 33]] {
            let spans = Spans::from_lengths(lengths.iter().copied());
            for causal in [false, true] {
                let shapes = half_shapes(spans.rows(), WIDTH, 3 * WIDTH, WIDTH);
                check("attention half", &shapes, &|x| {
                    let (norm, [in_proj, out_proj]) = half_layers(x);
                    let block = AttentionBlock::new(norm, in_proj, out_proj, 2, causal);
                    block.recomputed(recompute).forward(x[0].clone(), &spans)
                });
            }
        }
        for (rows, activation) in [(9, Activation::Gelu), (300, Activation::QuickGelu)] {
            check("MLP half", &half_shapes(rows, WIDTH, 50, 50), &|x| {
                let (norm, [c_fc, c_proj]) = half_layers(x);
                Mlp { norm, c_fc, activation, c_proj, recompute }.forward(x[0].clone())
            });
        }
    }
}

fn packed_mlp(mlp: Mlp, precision: Precision) -> Mlp {
    Mlp { c_fc: mlp.c_fc.packed(precision), c_proj: mlp.c_proj.packed(precision), ..mlp }
}

/// The halves of a block with packed weights against the same halves in f64.
#[test]
fn packed_halves_agree() {
    const WIDTH: usize = 40;
    let plain = |dtype: DType| {
        let device = Device::flex();
        let matrix =
            |shape, seed| Tensor::<2>::from_data(operand(shape, seed), (&device, dtype)) * 0.2;
        let vector = |n, seed| flat(&matrix([1, n], seed));
        let linear = |shape: [usize; 2], seed| {
            Linear::new(matrix(shape, seed), Some(vector(shape[0], seed + 1)))
        };
        let norm = |seed| LayerNorm::new(vector(WIDTH, seed) + 1.0, vector(WIDTH, seed + 1), 1e-5);
        let [in_proj, out_proj] = [linear([3 * WIDTH, WIDTH], 3), linear([WIDTH, WIDTH], 5)];
        let attention = AttentionBlock::new(norm(1), in_proj, out_proj, 4, true);
        let mlp = Mlp {
            norm: norm(7),
            c_fc: linear([100, WIDTH], 9),
            activation: Activation::QuickGelu,
            c_proj: linear([WIDTH, 100], 11),
            recompute: false,
        };
        (attention, mlp)
    };
    // One sequence, which all threads share; and many, an empty one among them.
    for lengths in [vec![33], vec![1, 7, 0, 12, 130, 90, 3, 3, 3, 50]] {
        let spans = Spans::from_lengths(lengths.iter().copied());
        let kept = Spans::from_lengths(lengths.iter().copied().filter(|&n| n > 0));
        let last: Vec<usize> = kept.iter().map(|rows| rows.end - 1).collect();
        let x = |dtype| {
            let data = operand([spans.rows(), WIDTH], 13);
            Tensor::<2>::from_data(data, (&Device::flex(), dtype))
        };
        let run = |(attention, mlp): (AttentionBlock, Mlp), dtype| {
            [
                attention.forward(x(dtype), &spans),
                attention.forward_pooled(x(dtype), &kept, &last),
                mlp.forward(x(dtype)),
            ]
            .map(values)
        };
        let want = run(plain(DType::F64), DType::F64);
        // Roundings of f32; of 8 bits of mantissa; of 127 steps of the largest number of a row.
        for (precision, bound) in
            [(Precision::F32, 1e-6), (Precision::Bf16, 4e-3), (Precision::Int8, 2e-2)]
        {
            let (attention, mlp) = plain(DType::F32);
            let packed = (attention.packed(precision, true), packed_mlp(mlp, precision));
            for (which, (got, want)) in run(packed, DType::F32).iter().zip(&want).enumerate() {
                let norm = want.iter().map(|w| w * w).sum::<f64>().sqrt();
                let error = got.iter().zip(want).map(|(g, w)| (g - w).powi(2)).sum::<f64>().sqrt();
                assert!(error <= bound * norm, "{precision:?}, {which}: {error:e} of {norm:e}");
            }
        }
    }
}

#[test]
fn patch_rows_agree() {
    let [n, cells, width] = [3, 5, 7];
    let each = |dtype| {
        let make = |rows, seed| {
            let data = operand([rows, width], seed);
            Tensor::<2>::from_data(data, (&Device::flex(), dtype))
        };
        let (patches, positions) = (make(n * cells, 1), make(1 + cells, 2));
        let (shared, leads) = (flat(&make(1, 3)), make(n, 4));
        [
            patch_rows(patches.clone(), Some(Lead::Shared(&shared)), &positions),
            patch_rows(patches.clone(), Some(Lead::Each(&leads)), &positions),
            patch_rows(patches, None, &make(cells, 5)),
        ]
        .map(values)
    };
    for (got, want) in each(DType::F32).iter().zip(&each(DType::F64)) {
        assert_eq!(got.len(), want.len());
        assert!(got.iter().zip(want).all(|(got, want)| (got - want).abs() < 1e-6));
    }
}

#[test]
fn rows_that_are_written_are_rows() {
    let [n, width, outputs] = [150, 37, 20];
    let device = Device::flex();
    let tensor = |shape, seed| Tensor::<2>::from_data(operand(shape, seed), (&device, DType::F32));
    let x = tensor([n, width], 1);
    let numbers: Vec<f32> = values(x.clone()).iter().map(|&x| x as f32).collect();
    let layer = Linear::new(tensor([outputs, width], 2), None);
    for layer in [layer.clone(), layer.packed(Precision::F32)] {
        let written = layer.forward_written(n, |i, row| {
            row.copy_from_slice(&numbers[i * width..][..width]);
        });
        assert_eq!(values(written), values(layer.forward(x.clone())));
    }
}

#[test]
fn maps_agree() {
    let maps = Maps { n: 2, height: 3, width: 5 };
    check("conv3x3", &[[30, 4], [6, 36]], &|x| conv3x3(x[0].clone(), &x[1], maps));
    check("avg_pool2", &[[30, 4]], &|x| avg_pool2(x[0].clone(), maps).0);
    check("add_rectified", &[[30, 4], [30, 4]], &|x| add_rectified(x[0].clone(), x[1].clone()));
}

#[test]
fn batch_norm_agrees() {
    for rectified in [false, true] {
        let norm = |x: &[Tensor<2>]| BatchNorm {
            gain: flat(&x[1]),
            bias: flat(&x[2]),
            // Constants: cut from the tape.
            mean: flat(&x[2]).detach() * 0.5,
            variance: flat(&x[1]).detach().abs() + 0.5,
            eps: 1e-5,
            rectified,
        };
        let shapes = [[19, 5], [1, 5], [1, 5]];
        check("batch_norm of the batch", &shapes, &|x| norm(x).forward_batch(x[0].clone()).0);
        // Constants cannot be moved by finite differences: they come from elsewhere.
        let fixed = |seed| {
            let device = Device::flex();
            let data = operand([1, 5], seed);
            Tensor::<2>::from_data(data, (&device, DType::F64)).into_data()
        };
        check("batch_norm, frozen", &shapes, &|x| {
            let like = |data: TensorData| {
                let data = data.convert_dtype(x[0].dtype());
                Tensor::<2>::from_data(data, (&x[0].device(), x[0].dtype()))
            };
            let frozen = BatchNorm {
                mean: flat(&like(fixed(7))),
                variance: flat(&(like(fixed(8)).abs() + 0.5)),
                ..norm(x)
            };
            frozen.forward(x[0].clone())
        });
    }
}

#[test]
fn the_fast_path_is_taken_and_f64_is_not() {
    let device = Device::flex();
    let x = Tensor::<2>::from_data(operand([2, 3], 1), (&device, DType::F32));
    assert!(crate::cpu::operands([crate::cpu::input(&x)]).is_some());
    let x = Tensor::<2>::from_data(operand([2, 3], 1), (&device, DType::F64));
    assert!(crate::cpu::operands([crate::cpu::input(&x)]).is_none());
}
