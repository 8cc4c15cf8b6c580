//! The image tower: a Vision Transformer.

use burn::prelude::*;
use burn::tensor::TensorData;
use ferroclip_ops::{Linear, Spans, mean_rows, patch_rows, project, select_rows};

use super::block::{BlockConfig, Norm, Transformer};
use crate::config::{ImagePool, ModelConfig};
use crate::param::Params;

/// Images to embeddings.
#[derive(Clone, Debug)]
pub struct ImageTower {
    patches: PatchGrid,
    conv: Linear,
    class: Tensor<1>,
    positions: Tensor<2>,
    ln_pre: Option<Norm>,
    transformer: Transformer,
    ln_post: Norm,
    pool: ImagePool,
    norm_after_pool: bool,
    projection: Tensor<2>,
}

impl ImageTower {
    /// The tower of these parameters.
    ///
    /// # Panics
    /// When the parameters are not those of the config.
    pub fn new(config: &ModelConfig, params: &Params) -> Self {
        let vision = &config.vision_cfg;
        let eps = vision.norm_eps();
        let blocks = BlockConfig {
            width: vision.width,
            heads: vision.heads(),
            eps,
            activation: config.activation(),
            causal: false,
        };
        let ln_pre = (!vision.no_ln_pre).then(|| Norm::new(params, "visual.ln_pre", eps));
        ImageTower {
            patches: PatchGrid::new(config),
            conv: Linear::new(params.tensor2("visual.conv1.weight"), None),
            class: params.tensor1("visual.class_embedding"),
            positions: params.tensor2("visual.positional_embedding"),
            ln_pre,
            transformer: Transformer::new(params, "visual.transformer", vision.layers, blocks),
            ln_post: Norm::new(params, "visual.ln_post", eps),
            pool: vision.pool_type,
            norm_after_pool: vision.final_ln_after_pool,
            projection: params.tensor2("visual.proj"),
        }
    }

    /// Embeddings, not normalised: `[n, embed_dim]`. `pixels` is `[n, 3, height, width]` as the
    /// image pipeline makes it.
    ///
    /// # Panics
    /// When `pixels` does not hold `n` images of the config's size.
    pub fn forward(&self, pixels: &[f32], n: usize) -> Tensor<2> {
        project(self.pooled(pixels, n), &self.projection)
    }

    /// Pooled features: what the projection is applied to, `[n, width]`.
    ///
    /// # Panics
    /// As [`ImageTower::forward`].
    pub fn pooled(&self, pixels: &[f32], n: usize) -> Tensor<2> {
        let (x, spans) = self.rows(pixels, n);
        self.pool(x, &spans)
    }

    /// Patch features: the rows of the patches, along the rows of the grid, that leave the blocks,
    /// `[n * patches, width]`; open_clip's `output_tokens`. They have passed `ln_post`, unless
    /// the config applies it behind the pooling (`final_ln_after_pool`). The class row is left out.
    ///
    /// # Panics
    /// As [`ImageTower::forward`].
    pub fn patches(&self, pixels: &[f32], n: usize) -> Tensor<2> {
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
    pub fn patch_shape(&self) -> [usize; 2] {
        [self.patches.cells(), self.projection.dims()[0]]
    }

    /// The rows that enter the first block.
    fn rows(&self, pixels: &[f32], n: usize) -> (Tensor<2>, Spans) {
        let patches =
            self.conv.forward(self.patches.unfold_all(pixels, n, &self.positions.device()));
        let x = patch_rows(patches, Some(&self.class), &self.positions);
        (self.norm_pre(x), Spans::uniform(n, 1 + self.patches.cells()))
    }

    /// As [`ImageTower::forward`], but image `i` shows only its patches `keep[i]`, counted along
    /// the rows of the grid: patch dropout. The rows of the others do not exist.
    ///
    /// # Panics
    /// As `forward`; also when a patch is outside the grid, an image keeps none, or, with average
    /// pooling, the images keep unequally many.
    pub fn forward_kept(&self, pixels: &[f32], keep: &[Vec<usize>]) -> Tensor<2> {
        let n = keep.len();
        let kept =
            keep.iter().enumerate().flat_map(|(i, cells)| cells.iter().map(move |&c| (i, c)));
        let device = self.positions.device();
        let patches = self.conv.forward(self.patches.unfold(pixels, n, kept, &device));
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
        project(self.pool(self.norm_pre(x), &spans), &self.projection)
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

/// Where the patches of an image lie.
#[derive(Clone, Copy, Debug)]
struct PatchGrid {
    image: [usize; 2],
    patch: [usize; 2],
    grid: [usize; 2],
}

impl PatchGrid {
    fn new(config: &ModelConfig) -> Self {
        let vision = &config.vision_cfg;
        PatchGrid {
            image: vision.image_size.each(),
            patch: vision.patch_size.each(),
            grid: vision.grid(),
        }
    }

    fn cells(&self) -> usize {
        self.grid[0] * self.grid[1]
    }

    fn unfold_all(&self, pixels: &[f32], n: usize, device: &Device) -> Tensor<2> {
        let cells = (0..n).flat_map(|i| (0..self.cells()).map(move |cell| (i, cell)));
        self.unfold(pixels, n, cells, device)
    }

    /// A row for each (image, cell), in the order of the convolution's weight: channel, row,
    /// column.
    fn unfold(
        &self,
        pixels: &[f32],
        n: usize,
        cells: impl Iterator<Item = (usize, usize)>,
        device: &Device,
    ) -> Tensor<2> {
        let [height, width] = self.image;
        let [down, across] = self.patch;
        assert_eq!(pixels.len(), n * 3 * height * width, "pixels of {n} images");
        let mut rows = Vec::with_capacity(n * self.cells() * 3 * down * across);
        for (i, cell) in cells {
            assert!(cell < self.cells(), "patch {cell} of a grid of {}", self.cells());
            let (y, x) = (cell / self.grid[1] * down, cell % self.grid[1] * across);
            for c in 0..3 {
                let plane = &pixels[(i * 3 + c) * height * width..][..height * width];
                for y in y..y + down {
                    rows.extend_from_slice(&plane[y * width + x..][..across]);
                }
            }
        }
        let len = 3 * down * across;
        let n_rows = rows.len() / len;
        Tensor::from_data(TensorData::new(rows, [n_rows, len]), device)
    }
}
