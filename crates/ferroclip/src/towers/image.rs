//! The image tower: a Vision Transformer or a ResNet, as the config says.

use burn::prelude::*;
use ferroclip_ops::Precision;

use super::resnet::{BatchStatistics, NormMode, ResNet};
use super::source::Source;
use super::vit::VisionTransformer;
use crate::config::ModelConfig;
use crate::param::{Params, Weights};

/// Images to embeddings.
#[derive(Clone, Debug)]
pub struct ImageTower(Trunk);

#[derive(Clone, Debug)]
enum Trunk {
    Transformer(Box<VisionTransformer>),
    ResNet(Box<ResNet>),
}

impl ImageTower {
    /// The tower of these parameters.
    ///
    /// # Panics
    /// When the parameters are not those of the config.
    pub fn new(config: &ModelConfig, params: &Params) -> Self {
        ImageTower::build(config, params)
    }

    /// The tower of weights for inference on the CPU, packed in this precision: the same numbers in
    /// f32, and no gradient. Weights that the tower does not need are dropped. A ResNet's stay f32.
    ///
    /// # Panics
    /// As [`ImageTower::new`].
    pub fn packed(config: &ModelConfig, weights: Weights, precision: Precision) -> Self {
        let tower = weights.build(config, precision, |source| ImageTower::build(config, source));
        tower.expect("nothing is read from a file")
    }

    pub(crate) fn build(config: &ModelConfig, params: &dyn Source) -> Self {
        ImageTower(match config.vision_cfg.layers.stages() {
            None => Trunk::Transformer(Box::new(VisionTransformer::new(config, params))),
            Some(stages) => Trunk::ResNet(Box::new(ResNet::new(config, stages, params))),
        })
    }

    /// Embeddings, not normalised: `[n, embed_dim]`. `pixels` is `[n, 3, height, width]` as the
    /// image pipeline makes it.
    ///
    /// # Panics
    /// When `pixels` does not hold `n` images of the config's size.
    pub fn forward(&self, pixels: &[f32], n: usize) -> Tensor<2> {
        match &self.0 {
            Trunk::Transformer(vit) => vit.project(vit.pooled(pixels, n)),
            Trunk::ResNet(resnet) => resnet.forward(pixels, n, &mut NormMode::Frozen),
        }
    }

    /// As [`ImageTower::forward`], but batch norms use the statistics of the batch, which are
    /// added to `statistics`. A tower without batch norms adds nothing.
    ///
    /// # Panics
    /// As [`ImageTower::forward`].
    pub fn forward_batch(
        &self,
        pixels: &[f32],
        n: usize,
        statistics: &mut BatchStatistics,
    ) -> Tensor<2> {
        match &self.0 {
            Trunk::Transformer(_) => self.forward(pixels, n),
            Trunk::ResNet(resnet) => resnet.forward(pixels, n, &mut NormMode::Batch(statistics)),
        }
    }

    /// As [`ImageTower::forward`], but image `i` shows only its patches `keep[i]`, counted along
    /// the rows of the grid: patch dropout. The rows of the others do not exist.
    ///
    /// # Panics
    /// As `forward`; also when a patch is outside the grid, an image keeps none, with average
    /// pooling the images keep unequally many, or the tower is a ResNet, which has no patches.
    pub fn forward_kept(&self, pixels: &[f32], keep: &[Vec<usize>]) -> Tensor<2> {
        let Trunk::Transformer(vit) = &self.0 else { panic!("a ResNet has no patches to drop") };
        vit.project(vit.pooled_kept(pixels, keep))
    }

    /// Pooled features: what the projection is applied to, `[n, width]`; `32 width` numbers for a
    /// ResNet, whose pooling ends with its projection.
    ///
    /// # Panics
    /// As [`ImageTower::forward`].
    pub fn pooled(&self, pixels: &[f32], n: usize) -> Tensor<2> {
        match &self.0 {
            Trunk::Transformer(vit) => vit.pooled(pixels, n),
            Trunk::ResNet(resnet) => resnet.pooled(pixels, n, &mut NormMode::Frozen),
        }
    }

    /// Patch features, `[n * patches, width]`, along the rows of the grid: open_clip's
    /// `output_tokens`. Those of a Vision Transformer leave its blocks and have passed `ln_post`,
    /// unless the config applies it behind the pooling (`final_ln_after_pool`); the class row is
    /// left out. Those of a ResNet are the positions of its last feature map.
    ///
    /// # Panics
    /// As [`ImageTower::forward`].
    pub fn patches(&self, pixels: &[f32], n: usize) -> Tensor<2> {
        match &self.0 {
            Trunk::Transformer(vit) => vit.patches(pixels, n),
            Trunk::ResNet(resnet) => resnet.maps(pixels, n, &mut NormMode::Frozen).0,
        }
    }

    /// Patches of an image, and the width of a row.
    pub fn patch_shape(&self) -> [usize; 2] {
        match &self.0 {
            Trunk::Transformer(vit) => vit.patch_shape(),
            Trunk::ResNet(resnet) => resnet.patch_shape(),
        }
    }
}
