//! The text tower.

use super::graph::{Graph, Name};
use super::layers::{Blocks, norm, outputs, row, transformer};
use super::proto::{AttributeProto, INT64, Side, ValueInfoProto};
use crate::config::{ModelConfig, TextPool, TextProjection};
use crate::error::Error;

/// Builds the graph.
pub(super) fn tower(config: &ModelConfig, graph: &mut Graph<'_>) -> Result<(), Error> {
    let text = &config.text_cfg;
    let length = match text.reads_padding() {
        true => Side::Fixed(text.context_length),
        false => Side::Any("length"),
    };
    let ids = graph.input(ValueInfoProto::new("ids", INT64, &[Side::Any("batch"), length]));
    let table = graph.weight("token_embedding.weight")?;
    let tokens = graph.op("Gather", &[&table, &ids], vec![]);
    let shape = vec![AttributeProto::int("start", 1), AttributeProto::int("end", 2)];
    let n_ids = graph.op("Shape", &[&ids], shape);
    let (zero, axis) = (graph.ints(&[0]), graph.ints(&[0]));
    let positions = graph.weight("positional_embedding")?;
    let positions = graph.op("Slice", &[&positions, &zero, &n_ids, &axis], vec![]);
    let x = graph.op("Add", &[&tokens, &positions], vec![]);
    let mask = match text.no_causal_mask {
        true => None,
        false => Some(causal_mask(graph, text.context_length, &n_ids)?),
    };
    let blocks = Blocks {
        width: text.width,
        heads: text.heads,
        eps: text.norm_eps(),
        activation: config.text_activation(),
        mask: mask.as_deref(),
    };
    let x = transformer(graph, x, "transformer", text.layers, blocks)?;
    let x = norm(graph, &x, "ln_final", text.norm_eps())?;
    let mut pooled = match text.pool_type {
        TextPool::Last => row(graph, &x, -1),
        TextPool::Argmax => {
            let attributes =
                vec![AttributeProto::int("axis", 1), AttributeProto::int("keepdims", 1)];
            // Of equal ids the first.
            let end = graph.op("ArgMax", &[&ids], attributes);
            graph.op("GatherND", &[&x, &end], vec![AttributeProto::int("batch_dims", 1)])
        }
    };
    if text.proj_type == TextProjection::Linear {
        let projection = graph.weight("text_projection")?;
        pooled = graph.op("MatMul", &[&pooled, &projection], vec![]);
    }
    if text.proj_bias {
        let bias = graph.weight("text_projection_bias")?;
        pooled = graph.op("Add", &[&pooled, &bias], vec![]);
    }
    outputs(graph, &pooled, config.embed_dim);
    Ok(())
}

/// What hides later rows from earlier ones, for as many rows as there are ids.
fn causal_mask(graph: &mut Graph<'_>, context_length: usize, n_ids: &str) -> Result<Name, Error> {
    let hidden = |i: usize, j: usize| if j > i { f32::NEG_INFINITY } else { 0.0 };
    let cells = (0..context_length).flat_map(|i| (0..context_length).map(move |j| hidden(i, j)));
    let whole = graph.keep("causal_mask", &[context_length; 2], &cells.collect::<Vec<f32>>())?;
    let (start, axes) = (graph.ints(&[0, 0]), graph.ints(&[0, 1]));
    let end = graph.op("Concat", &[n_ids, n_ids], vec![AttributeProto::int("axis", 0)]);
    Ok(graph.op("Slice", &[&whole, &start, &end, &axes], vec![]))
}
