//! The Vision Transformer.

use burn::prelude::*;
use ferroclip_ops::{
    LayerNorm, Lead, Linear, Precision, Projection, Spans, mean_rows, patch_rows, select_rows,
};

use super::attention_pool::AttentionPool;
use super::block::{BlockConfig, Transformer, norm};
use super::source::Source;
use super::unfold::Unfold;
use crate::config::{ImagePool, ModelConfig};

#[derive(Clone, Debug)]
pub(super) struct VisionTransformer {
    patches: Unfold,
    conv: Linear,
    class: Option<Tensor<1>>,
    positions: Tensor<2>,
    ln_pre: Option<LayerNorm>,
    transformer: Transformer,
    ln_post: LayerNorm,
    pool: Pool,
    norm_after_pool: bool,
    projection: Option<Projection>,
}

/// How the rows of an image become one.
#[derive(Clone, Debug)]
enum Pool {
    Class,
    Mean,
    Attention(Box<AttentionPool>),
}

impl VisionTransformer {
    /// The tower of these parameters.
    pub(super) fn new(config: &ModelConfig, params: &dyn Source) -> Self {
        let vision = &config.vision_cfg;
        let eps = vision.norm_eps();
        let blocks = BlockConfig {
            heads: vision.heads(),
            eps,
            activation: config.image_activation(),
            causal: false,
        };
        let ln_pre = (!vision.no_ln_pre).then(|| norm(params, "visual.ln_pre", eps));
        let patch = vision.patch();
        let patches =
            Unfold { image: vision.image_size.each(), kernel: patch, stride: patch, border: 0 };
        let by_attention = vision.pool_type == ImagePool::Map;
        let bias = by_attention.then(|| params.tensor1("visual.conv1.bias"));
        let conv = Linear::new(params.tensor2("visual.conv1.weight"), bias);
        let mut conv = conv.rounded(params.rounding());
        let mut projection = (!by_attention && !vision.no_proj)
            .then(|| Projection::new(params.tensor2("visual.proj")));
        if let Some(precision) = params.packing() {
            // Pixels are rounded to nothing less than bf16: they are not the activations that int8's
            // scales fit, and this is 3 % of the work.
            conv = conv.packed(match precision {
                Precision::Int8 => Precision::Bf16,
                other => other,
            });
            projection = projection.map(|projection| projection.packed(Precision::F32));
        }
        VisionTransformer {
            patches,
            conv,
            class: (!by_attention).then(|| params.tensor1("visual.class_embedding")),
            positions: params.tensor2("visual.positional_embedding"),
            ln_pre,
            transformer: Transformer::new(
                params,
                "visual.transformer",
                vision.layers.blocks(),
                blocks,
                vision.pool_type == ImagePool::Tok,
            ),
            ln_post: norm(params, "visual.ln_post", eps),
            pool: match vision.pool_type {
                ImagePool::Tok => Pool::Class,
                ImagePool::Avg => Pool::Mean,
                ImagePool::Map => Pool::Attention(Box::new(AttentionPool::new(params, blocks))),
            },
            norm_after_pool: vision.final_ln_after_pool,
            projection,
        }
    }

    /// Embeddings, `[n, embed_dim]`, of what [`VisionTransformer::pooled`] gives.
    pub(super) fn project(&self, pooled: Tensor<2>) -> Tensor<2> {
        match &self.projection {
            Some(projection) => projection.forward(pooled),
            None => pooled,
        }
    }

    /// What the projection is applied to, `[n, width]`.
    pub(super) fn pooled(&self, pixels: &[f32], n: usize) -> Tensor<2> {
        let (x, spans) = self.rows(pixels, n);
        self.pool(x, &spans)
    }

    /// Patch features, `[n * patches, width]`.
    pub(super) fn patches(&self, pixels: &[f32], n: usize) -> Tensor<2> {
        let (x, spans) = self.rows(pixels, n);
        let x = self.transformer.forward(x, &spans);
        let x = match self.n_class() {
            0 => x,
            n => {
                let rows = spans.iter().flat_map(|rows| rows.start + n..rows.end);
                select_rows(x, &rows.collect::<Vec<usize>>())
            }
        };
        match self.norm_after_pool {
            true => x,
            false => self.ln_post.forward(x),
        }
    }

    /// Patches of an image, and the width of a row.
    pub(super) fn patch_shape(&self) -> [usize; 2] {
        [self.patches.cells(), self.positions.dims()[1]]
    }

    /// The rows that enter the first block.
    fn rows(&self, pixels: &[f32], n: usize) -> (Tensor<2>, Spans) {
        let cells = self.patches.cells();
        let patches = self.embed(pixels, n, n * cells, |row| (row / cells, row % cells));
        let x = patch_rows(patches, self.class.as_ref().map(Lead::Shared), &self.positions);
        (self.norm_pre(x), Spans::uniform(n, self.n_class() + self.patches.cells()))
    }

    /// Rows before those of the patches.
    fn n_class(&self) -> usize {
        usize::from(self.class.is_some())
    }

    /// A row for each patch, `of(row)` being its image and its place there.
    fn embed(
        &self,
        pixels: &[f32],
        n: usize,
        rows: usize,
        of: impl Fn(usize) -> (usize, usize) + Sync,
    ) -> Tensor<2> {
        self.patches.check(pixels, n);
        self.conv.forward_written(rows, |row, out| {
            let (image, cell) = of(row);
            self.patches.write(pixels, image, cell, out);
        })
    }

    /// As [`VisionTransformer::pooled`], but image `i` shows only its patches `keep[i]`.
    pub(super) fn pooled_kept(&self, pixels: &[f32], keep: &[Vec<usize>]) -> Tensor<2> {
        let n = keep.len();
        let kept: Vec<(usize, usize)> = keep
            .iter()
            .enumerate()
            .flat_map(|(i, cells)| cells.iter().map(move |&c| (i, c)))
            .collect();
        let patches = self.embed(pixels, n, kept.len(), |row| kept[row]);
        let n_class = self.n_class();
        let places: Vec<usize> = keep.iter().flatten().map(|cell| cell + n_class).collect();
        let patches = patches + select_rows(self.positions.clone(), &places);
        let spans = Spans::from_lengths(keep.iter().map(|cells| n_class + cells.len()));
        let Some(class) = &self.class else {
            return self.pool(self.norm_pre(patches), &spans);
        };
        let class = class.clone().unsqueeze::<2>() + select_rows(self.positions.clone(), &[0]);
        // Row 0 of the source is the class row, which every image begins with.
        let mut order = Vec::with_capacity(n + places.len());
        let mut next = 1;
        for cells in keep {
            order.push(0);
            order.extend(next..next + cells.len());
            next += cells.len();
        }
        let x = select_rows(Tensor::cat(vec![class, patches], 0), &order);
        self.pool(self.norm_pre(x), &spans)
    }

    fn norm_pre(&self, x: Tensor<2>) -> Tensor<2> {
        match &self.ln_pre {
            Some(norm) => norm.forward(x),
            None => x,
        }
    }

    /// From the rows that enter the first block to pooled features.
    fn pool(&self, x: Tensor<2>, spans: &Spans) -> Tensor<2> {
        // With pooling by the class row `final_ln_after_pool` makes no difference.
        match &self.pool {
            Pool::Class => {
                let class_rows: Vec<usize> = spans.iter().map(|rows| rows.start).collect();
                self.ln_post.forward(self.transformer.forward_pooled(x, spans, &class_rows))
            }
            Pool::Attention(pool) => {
                let x = self.ln_post.forward(self.transformer.forward(x, spans));
                pool.forward(x, spans)
            }
            Pool::Mean => {
                let x = self.transformer.forward(x, spans);
                match self.norm_after_pool {
                    true => self.ln_post.forward(mean_rows(x, spans, 1)),
                    false => mean_rows(self.ln_post.forward(x), spans, 1),
                }
            }
        }
    }
}
