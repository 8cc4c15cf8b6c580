//! The Vision Transformer.

use burn::prelude::*;
use ferroclip_ops::{
    LayerNorm, Lead, Linear, Precision, Projection, Spans, mean_rows, patch_rows, select_rows,
};

use super::block::{BlockConfig, Transformer, norm};
use super::source::Source;
use super::unfold::Unfold;
use crate::config::{ImagePool, ModelConfig};

#[derive(Clone, Debug)]
pub(super) struct VisionTransformer {
    patches: Unfold,
    conv: Linear,
    class: Tensor<1>,
    positions: Tensor<2>,
    ln_pre: Option<LayerNorm>,
    transformer: Transformer,
    ln_post: LayerNorm,
    pool: ImagePool,
    norm_after_pool: bool,
    projection: Projection,
}

impl VisionTransformer {
    /// The tower of these parameters.
    pub(super) fn new(config: &ModelConfig, params: &dyn Source) -> Self {
        let vision = &config.vision_cfg;
        let eps = vision.norm_eps();
        let blocks = BlockConfig {
            heads: vision.heads(),
            eps,
            activation: config.activation(),
            causal: false,
        };
        let ln_pre = (!vision.no_ln_pre).then(|| norm(params, "visual.ln_pre", eps));
        let patch = vision.patch();
        let patches =
            Unfold { image: vision.image_size.each(), kernel: patch, stride: patch, border: 0 };
        let conv = Linear::new(params.tensor2("visual.conv1.weight"), None);
        let mut conv = conv.rounded(params.rounding());
        let mut projection = Projection::new(params.tensor2("visual.proj"));
        if let Some(precision) = params.packing() {
            // Pixels are rounded to nothing less than bf16: they are not the activations that int8's
            // scales fit, and this is 3 % of the work.
            conv = conv.packed(match precision {
                Precision::Int8 => Precision::Bf16,
                other => other,
            });
            projection = projection.packed(Precision::F32);
        }
        VisionTransformer {
            patches,
            conv,
            class: params.tensor1("visual.class_embedding"),
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
            pool: vision.pool_type,
            norm_after_pool: vision.final_ln_after_pool,
            projection,
        }
    }

    /// From the width of the blocks to that of embeddings.
    pub(super) fn projection(&self) -> &Projection {
        &self.projection
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
        let of_patches: Vec<usize> =
            spans.iter().flat_map(|rows| rows.start + 1..rows.end).collect();
        let x = select_rows(x, &of_patches);
        match self.norm_after_pool {
            true => x,
            false => self.ln_post.forward(x),
        }
    }

    /// Patches of an image, and the width of a row.
    pub(super) fn patch_shape(&self) -> [usize; 2] {
        [self.patches.cells(), self.projection.inputs()]
    }

    /// The rows that enter the first block.
    fn rows(&self, pixels: &[f32], n: usize) -> (Tensor<2>, Spans) {
        let cells = self.patches.cells();
        let patches = self.embed(pixels, n, n * cells, |row| (row / cells, row % cells));
        let x = patch_rows(patches, Some(Lead::Shared(&self.class)), &self.positions);
        (self.norm_pre(x), Spans::uniform(n, 1 + self.patches.cells()))
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
        let places: Vec<usize> = keep.iter().flatten().map(|cell| cell + 1).collect();
        let patches = patches + select_rows(self.positions.clone(), &places);
        let class = self.class.clone().unsqueeze::<2>() + select_rows(self.positions.clone(), &[0]);
        // Row 0 of the source is the class row, which every image begins with.
        let mut order = Vec::with_capacity(n + places.len());
        let mut next = 1;
        for cells in keep {
            order.push(0);
            order.extend(next..next + cells.len());
            next += cells.len();
        }
        let x = select_rows(Tensor::cat(vec![class, patches], 0), &order);
        let spans = Spans::from_lengths(keep.iter().map(|cells| 1 + cells.len()));
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
        match self.pool {
            ImagePool::Tok => {
                let class_rows: Vec<usize> = spans.iter().map(|rows| rows.start).collect();
                self.ln_post.forward(self.transformer.forward_pooled(x, spans, &class_rows))
            }
            ImagePool::Avg => {
                let x = self.transformer.forward(x, spans);
                match self.norm_after_pool {
                    true => self.ln_post.forward(mean_rows(x, spans, 1)),
                    false => mean_rows(self.ln_post.forward(x), spans, 1),
                }
            }
        }
    }
}
