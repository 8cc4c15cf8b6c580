//! The image towers.

use super::graph::{Graph, Name};
use super::layers::{Blocks, attention, linear, linear_part, mlp, norm, outputs, row, transformer};
use super::proto::{AttributeProto, FLOAT, Side, ValueInfoProto};
use crate::config::{ImagePool, ModelConfig, VisionConfig};
use crate::error::Error;

/// Epsilon of batch norms.
const BATCH_NORM_EPS: f32 = 1e-5;

/// Builds the graph.
pub(super) fn tower(config: &ModelConfig, graph: &mut Graph<'_>) -> Result<(), Error> {
    let [height, width] = config.vision_cfg.image_size.each();
    let sides = [Side::Any("batch"), Side::Fixed(3), Side::Fixed(height), Side::Fixed(width)];
    let pixels = graph.input(ValueInfoProto::new("pixels", FLOAT, &sides));
    let embedding = match config.vision_cfg.layers.stages() {
        None => vision_transformer(graph, config, &pixels)?,
        Some(stages) => resnet(graph, &config.vision_cfg, stages, &pixels)?,
    };
    outputs(graph, &embedding, config.embed_dim);
    Ok(())
}

fn vision_transformer(
    graph: &mut Graph<'_>,
    config: &ModelConfig,
    pixels: &str,
) -> Result<Name, Error> {
    let vision = &config.vision_cfg;
    let (eps, by_attention) = (vision.norm_eps(), vision.pool_type == ImagePool::Map);
    let blocks = Blocks {
        width: vision.width,
        heads: vision.heads(),
        eps,
        activation: config.image_activation(),
        mask: None,
    };
    let mut x = patches(graph, vision, pixels)?;
    if !by_attention {
        x = with_class_row(graph, pixels, &x, vision.width)?;
    }
    let positions = graph.weight("visual.positional_embedding")?;
    x = graph.op("Add", &[&x, &positions], vec![]);
    if !vision.no_ln_pre {
        x = norm(graph, &x, "visual.ln_pre", eps)?;
    }
    x = transformer(graph, x, "visual.transformer", vision.layers.blocks(), blocks)?;
    let pooled = match vision.pool_type {
        ImagePool::Tok => {
            let class = row(graph, &x, 0);
            norm(graph, &class, "visual.ln_post", eps)?
        }
        ImagePool::Avg if vision.final_ln_after_pool => {
            let mean = mean_of_patches(graph, &x);
            norm(graph, &mean, "visual.ln_post", eps)?
        }
        ImagePool::Avg => {
            let x = norm(graph, &x, "visual.ln_post", eps)?;
            mean_of_patches(graph, &x)
        }
        ImagePool::Map => {
            let x = norm(graph, &x, "visual.ln_post", eps)?;
            attention_pool(graph, &x, blocks)?
        }
    };
    if by_attention || vision.no_proj {
        return Ok(pooled);
    }
    let projection = graph.weight("visual.proj")?;
    Ok(graph.op("MatMul", &[&pooled, &projection], vec![]))
}

/// A row for each patch.
fn patches(graph: &mut Graph<'_>, vision: &VisionConfig, pixels: &str) -> Result<Name, Error> {
    let patch = vision.patch().map(|side| side as i64);
    let mut inputs = vec![pixels.to_owned(), graph.weight("visual.conv1.weight")?];
    if graph.has("visual.conv1.bias") {
        inputs.push(graph.weight("visual.conv1.bias")?);
    }
    let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
    let attributes =
        vec![AttributeProto::ints("kernel_shape", &patch), AttributeProto::ints("strides", &patch)];
    let map = graph.op("Conv", &inputs, attributes);
    Ok(rows_of_map(graph, &map))
}

/// `[batch, channels, height, width]` as rows of channels.
fn rows_of_map(graph: &mut Graph<'_>, map: &str) -> Name {
    let shape = graph.ints(&[0, 0, -1]);
    let flat = graph.op("Reshape", &[map, &shape], vec![]);
    graph.op("Transpose", &[&flat], vec![AttributeProto::ints("perm", &[0, 2, 1])])
}

fn with_class_row(
    graph: &mut Graph<'_>,
    pixels: &str,
    x: &str,
    width: usize,
) -> Result<Name, Error> {
    let class = graph.weight_as("visual.class_embedding", &[1, 1, width])?;
    let shape = vec![AttributeProto::int("start", 0), AttributeProto::int("end", 1)];
    let batch = graph.op("Shape", &[pixels], shape);
    let rest = graph.ints(&[1, width as i64]);
    let shape = graph.op("Concat", &[&batch, &rest], vec![AttributeProto::int("axis", 0)]);
    let class = graph.op("Expand", &[&class, &shape], vec![]);
    Ok(graph.op("Concat", &[&class, x], vec![AttributeProto::int("axis", 1)]))
}

/// The mean of the rows behind the class row.
fn mean_of_patches(graph: &mut Graph<'_>, x: &str) -> Name {
    let (start, end, axis) = (graph.ints(&[1]), graph.ints(&[i64::MAX]), graph.ints(&[1]));
    let rows = graph.op("Slice", &[x, &start, &end, &axis], vec![]);
    mean_of_rows(graph, &rows, 0)
}

fn mean_of_rows(graph: &mut Graph<'_>, x: &str, keepdims: i64) -> Name {
    let attributes =
        vec![AttributeProto::ints("axes", &[1]), AttributeProto::int("keepdims", keepdims)];
    graph.op("ReduceMean", &[x], attributes)
}

/// A learned query attends to the rows; an MLP follows.
fn attention_pool(graph: &mut Graph<'_>, x: &str, blocks: Blocks<'_>) -> Result<Name, Error> {
    let tensor = |name: &str| format!("visual.attn_pool.{name}");
    let in_proj = [tensor("attn.in_proj_weight"), tensor("attn.in_proj_bias")];
    let in_proj = [in_proj[0].as_str(), in_proj[1].as_str()];
    let width = blocks.width;
    // The same query for every image: its batch of one is broadcast.
    let probe = graph.weight_as(&tensor("probe"), &[1, 1, width])?;
    let q = linear_part(graph, &probe, in_proj, "q", 0..width)?;
    let k = linear_part(graph, x, in_proj, "k", width..2 * width)?;
    let v = linear_part(graph, x, in_proj, "v", 2 * width..3 * width)?;
    let mixed = attention(graph, [&q, &k, &v], [blocks.heads, width], None);
    let out = [tensor("attn.out_proj.weight"), tensor("attn.out_proj.bias")];
    let mixed = linear(graph, &mixed, &out[0], &out[1])?;
    let normed = norm(graph, &mixed, &tensor("ln"), blocks.eps)?;
    let hidden = mlp(graph, &normed, "visual.attn_pool", blocks.activation)?;
    let pooled = graph.op("Add", &[&mixed, &hidden], vec![]);
    Ok(row(graph, &pooled, 0))
}

/// OpenAI's modified ResNet: three convolutions as stem, averages in place of strides, pooling by attention.
fn resnet(
    graph: &mut Graph<'_>,
    vision: &VisionConfig,
    stages: [usize; 4],
    pixels: &str,
) -> Result<Name, Error> {
    let mut x = pixels.to_owned();
    for (i, stride) in [(1, 2), (2, 1), (3, 1)] {
        let (conv, bn) = (format!("visual.conv{i}"), format!("visual.bn{i}"));
        x = normed_conv(graph, &x, &conv, &bn, stride)?;
        x = graph.op("Relu", &[&x], vec![]);
    }
    x = halved(graph, &x);
    for (stage, count) in (1..).zip(stages) {
        for block in 0..count {
            let name = format!("visual.layer{stage}.{block}");
            x = bottleneck(graph, &x, &name, stage > 1 && block == 0)?;
        }
    }
    let rows = rows_of_map(graph, &x);
    let mean = mean_of_rows(graph, &rows, 1);
    let rows = graph.op("Concat", &[&mean, &rows], vec![AttributeProto::int("axis", 1)]);
    let positions = graph.weight("visual.attnpool.positional_embedding")?;
    let rows = graph.op("Add", &[&rows, &positions], vec![]);
    let (place, axis) = (graph.ints(&[0]), AttributeProto::int("axis", 1));
    let first = graph.op("Gather", &[&rows, &place], vec![axis]);
    let project = |graph: &mut Graph<'_>, x: &str, name: &str| {
        let tensor = ["weight", "bias"].map(|kind| format!("visual.attnpool.{name}.{kind}"));
        linear(graph, x, &tensor[0], &tensor[1])
    };
    let q = project(graph, &first, "q_proj")?;
    let (k, v) = (project(graph, &rows, "k_proj")?, project(graph, &rows, "v_proj")?);
    let mixed = attention(graph, [&q, &k, &v], [vision.heads(), vision.pooled_width()], None);
    let pooled = row(graph, &mixed, 0);
    project(graph, &pooled, "c_proj")
}

fn bottleneck(graph: &mut Graph<'_>, x: &str, name: &str, pools: bool) -> Result<Name, Error> {
    let mut y = x.to_owned();
    for i in 1..=2 {
        y = normed_conv(graph, &y, &format!("{name}.conv{i}"), &format!("{name}.bn{i}"), 1)?;
        y = graph.op("Relu", &[&y], vec![]);
    }
    if pools {
        y = halved(graph, &y);
    }
    y = normed_conv(graph, &y, &format!("{name}.conv3"), &format!("{name}.bn3"), 1)?;
    let mut shortcut = x.to_owned();
    if graph.has(&format!("{name}.downsample.0.weight")) {
        if pools {
            shortcut = halved(graph, &shortcut);
        }
        let (conv, bn) = (format!("{name}.downsample.0"), format!("{name}.downsample.1"));
        shortcut = normed_conv(graph, &shortcut, &conv, &bn, 1)?;
    }
    let sum = graph.op("Add", &[&y, &shortcut], vec![]);
    Ok(graph.op("Relu", &[&sum], vec![]))
}

/// A convolution without bias, its map as large as before where the stride is 1, and the norm behind it.
fn normed_conv(
    graph: &mut Graph<'_>,
    x: &str,
    conv: &str,
    bn: &str,
    stride: i64,
) -> Result<Name, Error> {
    let name = format!("{conv}.weight");
    let tensor = graph.read(&name)?;
    let kernel = tensor.shape[3] as i64;
    let weight = graph.keep(&name, &tensor.shape, &tensor.data)?;
    let attributes = vec![
        AttributeProto::ints("kernel_shape", &[kernel; 2]),
        AttributeProto::ints("strides", &[stride; 2]),
        AttributeProto::ints("pads", &[kernel / 2; 4]),
    ];
    let y = graph.op("Conv", &[x, &weight], attributes);
    let mut inputs = vec![y];
    for kind in ["weight", "bias", "running_mean", "running_var"] {
        inputs.push(graph.weight(&format!("{bn}.{kind}"))?);
    }
    let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
    let eps = vec![AttributeProto::float("epsilon", BATCH_NORM_EPS)];
    Ok(graph.op("BatchNormalization", &inputs, eps))
}

/// The mean of each 2 x 2 cells.
fn halved(graph: &mut Graph<'_>, x: &str) -> Name {
    let attributes = vec![
        AttributeProto::ints("kernel_shape", &[2; 2]),
        AttributeProto::ints("strides", &[2; 2]),
    ];
    graph.op("AveragePool", &[x], attributes)
}
