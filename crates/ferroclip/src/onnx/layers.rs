//! The parts of both towers as ONNX operators. Rows are `[batch, rows, width]`.

use ferroclip_ops::Activation;

use super::graph::{Graph, Name};
use super::proto::{AttributeProto, FLOAT, Side, ValueInfoProto};
use crate::error::Error;

/// What the blocks of a tower have in common.
#[derive(Clone, Copy)]
pub(super) struct Blocks<'a> {
    pub(super) width: usize,
    pub(super) heads: usize,
    pub(super) eps: f64,
    pub(super) activation: Activation,
    /// Added to the scores, where some keys are hidden.
    pub(super) mask: Option<&'a str>,
}

/// `x W^T + b` of a `[outputs, inputs]` matrix.
pub(super) fn linear(
    graph: &mut Graph<'_>,
    x: &str,
    weight: &str,
    bias: &str,
) -> Result<Name, Error> {
    let (matrix, b) = (graph.read(weight)?, graph.read(bias)?);
    let [outputs, _] = [matrix.shape[0], matrix.shape[1]];
    affine(graph, x, (weight, &matrix.data), (bias, &b.data), outputs)
}

/// The same of rows `from..to` of the matrix.
pub(super) fn linear_part(
    graph: &mut Graph<'_>,
    x: &str,
    name: [&str; 2],
    part: &str,
    rows: std::ops::Range<usize>,
) -> Result<Name, Error> {
    let (matrix, b) = (graph.read(name[0])?, graph.read(name[1])?);
    let inputs = matrix.shape[1];
    let data = &matrix.data[rows.start * inputs..rows.end * inputs];
    let names = name.map(|name| format!("{name}.{part}"));
    affine(graph, x, (&names[0], data), (&names[1], &b.data[rows.clone()]), rows.len())
}

fn affine(
    graph: &mut Graph<'_>,
    x: &str,
    (weight, matrix): (&str, &[f32]),
    (bias, b): (&str, &[f32]),
    outputs: usize,
) -> Result<Name, Error> {
    let inputs = matrix.len() / outputs;
    let column = |i: usize| (0..outputs).map(move |o| matrix[o * inputs + i]);
    let transposed: Vec<f32> = (0..inputs).flat_map(column).collect();
    let weight = graph.keep(weight, &[inputs, outputs], &transposed)?;
    let bias = graph.keep(bias, &[outputs], b)?;
    let product = graph.op("MatMul", &[x, &weight], vec![]);
    Ok(graph.op("Add", &[&product, &bias], vec![]))
}

/// The layer norm of this name.
pub(super) fn norm(graph: &mut Graph<'_>, x: &str, name: &str, eps: f64) -> Result<Name, Error> {
    let gain = graph.weight(&format!("{name}.weight"))?;
    let bias = graph.weight(&format!("{name}.bias"))?;
    let attributes =
        vec![AttributeProto::int("axis", -1), AttributeProto::float("epsilon", eps as f32)];
    Ok(graph.op("LayerNormalization", &[x, &gain, &bias], attributes))
}

/// The blocks `name.resblocks.0` and so on.
pub(super) fn transformer(
    graph: &mut Graph<'_>,
    x: Name,
    name: &str,
    layers: usize,
    blocks: Blocks<'_>,
) -> Result<Name, Error> {
    (0..layers).try_fold(x, |x, layer| {
        let block = format!("{name}.resblocks.{layer}");
        let normed = norm(graph, &x, &format!("{block}.ln_1"), blocks.eps)?;
        let in_proj = ["weight", "bias"].map(|kind| format!("{block}.attn.in_proj_{kind}"));
        let qkv = linear(graph, &normed, &in_proj[0], &in_proj[1])?;
        let [q, k, v] =
            graph.op_with_outputs("Split", &[&qkv], vec![AttributeProto::int("axis", -1)]);
        let mixed = attention(graph, [&q, &k, &v], [blocks.heads, blocks.width], blocks.mask);
        let out = ["weight", "bias"].map(|kind| format!("{block}.attn.out_proj.{kind}"));
        let attended = linear(graph, &mixed, &out[0], &out[1])?;
        let x = graph.op("Add", &[&x, &attended], vec![]);
        let normed = norm(graph, &x, &format!("{block}.ln_2"), blocks.eps)?;
        let hidden = mlp(graph, &normed, &block, blocks.activation)?;
        Ok(graph.op("Add", &[&x, &hidden], vec![]))
    })
}

/// The MLP `name.mlp`, without its norm and the sum behind it.
pub(super) fn mlp(
    graph: &mut Graph<'_>,
    x: &str,
    name: &str,
    activation: Activation,
) -> Result<Name, Error> {
    let tensor = |of: &str, kind: &str| format!("{name}.mlp.{of}.{kind}");
    let hidden = linear(graph, x, &tensor("c_fc", "weight"), &tensor("c_fc", "bias"))?;
    let active = activated(graph, &hidden, activation);
    linear(graph, &active, &tensor("c_proj", "weight"), &tensor("c_proj", "bias"))
}

/// Mixes values by the softmax of scaled dot products of queries and keys, in heads. The `mask`, if there is one, is added to
/// the products.
pub(super) fn attention(
    graph: &mut Graph<'_>,
    [q, k, v]: [&str; 3],
    [heads, width]: [usize; 2],
    mask: Option<&str>,
) -> Name {
    let head_width = width / heads;
    let in_shape = graph.ints(&[0, -1, heads as i64, head_width as i64]);
    let mut in_heads = |x: &str, order: &[i64]| {
        let split = graph.op("Reshape", &[x, &in_shape], vec![]);
        graph.op("Transpose", &[&split], vec![AttributeProto::ints("perm", order)])
    };
    let (q, k, v) =
        (in_heads(q, &[0, 2, 1, 3]), in_heads(k, &[0, 2, 3, 1]), in_heads(v, &[0, 2, 1, 3]));
    let scale = graph.scalar((head_width as f32).powf(-0.5));
    let scaled = graph.op("Mul", &[&q, &scale], vec![]);
    let mut scores = graph.op("MatMul", &[&scaled, &k], vec![]);
    if let Some(mask) = mask {
        scores = graph.op("Add", &[&scores, mask], vec![]);
    }
    let shares = graph.op("Softmax", &[&scores], vec![AttributeProto::int("axis", -1)]);
    let mixed = graph.op("MatMul", &[&shares, &v], vec![]);
    let perm = vec![AttributeProto::ints("perm", &[0, 2, 1, 3])];
    let rows = graph.op("Transpose", &[&mixed], perm);
    let flat = graph.ints(&[0, -1, width as i64]);
    graph.op("Reshape", &[&rows, &flat], vec![])
}

fn activated(graph: &mut Graph<'_>, x: &str, activation: Activation) -> Name {
    match activation {
        Activation::QuickGelu => {
            let slope = graph.scalar(1.702);
            let scaled = graph.op("Mul", &[x, &slope], vec![]);
            let gate = graph.op("Sigmoid", &[&scaled], vec![]);
            graph.op("Mul", &[x, &gate], vec![])
        }
        Activation::Gelu => {
            let scale = graph.scalar(std::f32::consts::FRAC_1_SQRT_2);
            let scaled = graph.op("Mul", &[x, &scale], vec![]);
            let erf = graph.op("Erf", &[&scaled], vec![]);
            half_of_one_more(graph, x, &erf)
        }
        Activation::GeluTanh => {
            let (cubic, scale) = (graph.scalar(0.044_715), graph.scalar(0.797_884_6));
            let square = graph.op("Mul", &[x, x], vec![]);
            let cube = graph.op("Mul", &[&square, x], vec![]);
            let cube = graph.op("Mul", &[&cube, &cubic], vec![]);
            let sum = graph.op("Add", &[x, &cube], vec![]);
            let scaled = graph.op("Mul", &[&sum, &scale], vec![]);
            let tanh = graph.op("Tanh", &[&scaled], vec![]);
            half_of_one_more(graph, x, &tanh)
        }
    }
}

/// `x (1 + y) / 2`.
fn half_of_one_more(graph: &mut Graph<'_>, x: &str, y: &str) -> Name {
    let (one, half) = (graph.scalar(1.0), graph.scalar(0.5));
    let gate = graph.op("Add", &[y, &one], vec![]);
    let product = graph.op("Mul", &[x, &gate], vec![]);
    graph.op("Mul", &[&product, &half], vec![])
}

/// Makes the embedding, and the same divided by its norm, the outputs.
pub(super) fn outputs(graph: &mut Graph<'_>, embedding: &str, embed_dim: usize) {
    let axes = vec![AttributeProto::ints("axes", &[-1]), AttributeProto::int("keepdims", 1)];
    let norm = graph.op("ReduceL2", &[embedding], axes);
    let unit = graph.op("Div", &[embedding, &norm], vec![]);
    for (value, name) in [(embedding, "embedding"), (unit.as_str(), "unit_embedding")] {
        let sides = [Side::Any("batch"), Side::Fixed(embed_dim)];
        graph.output(value, ValueInfoProto::new(name, FLOAT, &sides));
    }
}

/// One of the rows of each input: `[batch, width]`.
pub(super) fn row(graph: &mut Graph<'_>, x: &str, place: i64) -> Name {
    let place = graph.ints(&[place]);
    let rows = graph.op("Gather", &[x, &place], vec![AttributeProto::int("axis", 1)]);
    let axis = graph.ints(&[1]);
    graph.op("Squeeze", &[&rows, &axis], vec![])
}
