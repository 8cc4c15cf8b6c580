//! `vision_cfg`.

use serde::{Deserialize, Serialize};

use super::fields::{
    ActivationConfig, DEFAULT_NORM_EPS, NormConfig, Sides, check, is_4, is_64, is_default,
};

/// Pixels of an image for a position of a ResNet's last feature map, and channels there for each of
/// `width`.
const RESNET_REDUCTION: usize = 32;

/// open_clip's `vision_cfg` of a plain Vision Transformer or of OpenAI's modified ResNet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VisionConfig {
    /// Side of the input in pixels, or `[height, width]`.
    pub image_size: Sides,
    /// Blocks; or, for a ResNet, the blocks of its four stages.
    pub layers: Layers,
    /// Channels of the residual stream; for a ResNet those behind its stem, which its stages make
    /// 32 times as many.
    pub width: usize,
    /// Channels of an attention head: in the blocks, or in the pooling of a ResNet.
    #[serde(skip_serializing_if = "is_64")]
    pub head_width: usize,
    /// Side of a patch in pixels, or `[height, width]`. A ResNet has none.
    pub patch_size: Option<Sides>,
    /// The MLP has `width * mlp_ratio` hidden channels, rounded down.
    #[serde(skip_serializing_if = "is_4")]
    pub mlp_ratio: f64,
    /// What becomes of the rows of an image.
    #[serde(skip_serializing_if = "is_default")]
    pub pool_type: ImagePool,
    /// Apply `ln_post` after pooling; makes a difference for the mean only.
    #[serde(skip_serializing_if = "is_default")]
    pub final_ln_after_pool: bool,
    /// No norm before the first block.
    #[serde(skip_serializing_if = "is_default")]
    pub no_ln_pre: bool,
    /// Share of the patches that training leaves out. Inference ignores it.
    #[serde(skip_serializing_if = "is_default")]
    pub patch_dropout: f64,
    /// Settings of the layer norms.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub norm_kwargs: Option<NormConfig>,
    /// Settings of the activation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub act_kwargs: Option<ActivationConfig>,
    /// Nothing behind the pooling: the embedding is as wide as the tower. Only in transformers' models of one tower.
    #[serde(skip)]
    pub no_proj: bool,
    /// The name of the tower in timm, which stands for the fields above: SigLIP's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timm_model_name: Option<String>,
}

/// How an image's rows become one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ImagePool {
    /// The class token's row.
    #[default]
    Tok,
    /// The mean of the patch rows.
    Avg,
    /// What a learned query finds in the patch rows by attention, with an MLP behind it (MAP, SigLIP's). There is
    /// no class token, patches have a bias, and there is no projection.
    Map,
}

/// `layers` of `vision_cfg`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    untagged,
    expecting = "expected a number of blocks or those of the four stages of a ResNet"
)]
pub enum Layers {
    /// Blocks of a Vision Transformer.
    Blocks(usize),
    /// Blocks of each stage of a ResNet.
    Stages([usize; 4]),
}

impl Layers {
    /// The blocks of each stage, of a ResNet.
    pub fn stages(self) -> Option<[usize; 4]> {
        match self {
            Layers::Blocks(_) => None,
            Layers::Stages(stages) => Some(stages),
        }
    }

    /// All blocks together.
    pub fn blocks(self) -> usize {
        match self {
            Layers::Blocks(blocks) => blocks,
            Layers::Stages(stages) => stages.iter().fold(0, |sum, n| sum.saturating_add(*n)),
        }
    }
}

impl Default for VisionConfig {
    fn default() -> Self {
        VisionConfig {
            image_size: Sides::Square(224),
            layers: Layers::Blocks(12),
            width: 768,
            head_width: 64,
            patch_size: Some(Sides::Square(16)),
            mlp_ratio: 4.0,
            pool_type: ImagePool::Tok,
            final_ln_after_pool: false,
            no_ln_pre: false,
            patch_dropout: 0.0,
            norm_kwargs: None,
            act_kwargs: None,
            no_proj: false,
            timm_model_name: None,
        }
    }
}

impl VisionConfig {
    /// Patches down and across, what is left of the image beyond them is not seen; for a ResNet,
    /// the positions of its last feature map.
    pub fn grid(&self) -> [usize; 2] {
        let ([height, width], [down, across]) = (self.image_size.each(), self.patch());
        [height / down, width / across]
    }

    /// Height and width of a patch; of a ResNet's position in its last feature map.
    pub fn patch(&self) -> [usize; 2] {
        match (self.layers, self.patch_size) {
            (Layers::Blocks(_), Some(sides)) => sides.each(),
            _ => [RESNET_REDUCTION; 2],
        }
    }

    /// Patches of an image.
    pub fn grid_cells(&self) -> usize {
        let [rows, columns] = self.grid();
        rows * columns
    }

    /// Channels that are pooled.
    pub fn pooled_width(&self) -> usize {
        match self.layers {
            Layers::Blocks(_) => self.width,
            Layers::Stages(_) => RESNET_REDUCTION * self.width,
        }
    }

    /// Attention heads.
    pub fn heads(&self) -> usize {
        self.pooled_width() / self.head_width
    }

    /// Hidden channels of the MLP.
    pub fn mlp_width(&self) -> usize {
        (self.width as f64 * self.mlp_ratio) as usize
    }

    /// Numbers of one image: 3 x height x width.
    pub fn image_len(&self) -> usize {
        let [height, width] = self.image_size.each();
        3 * height * width
    }

    /// Epsilon of the layer norms.
    pub fn norm_eps(&self) -> f64 {
        self.norm_kwargs.map_or(DEFAULT_NORM_EPS, |norm| norm.eps)
    }

    pub(super) fn validate(&self) -> Result<(), String> {
        let field = |name: &str| format!("vision_cfg.{name}");
        check(&field("layers"), self.layers.blocks(), 1..=256)?;
        check(&field("width"), self.width, 1..=16_384)?;
        check(&field("head_width"), self.head_width, 1..=self.pooled_width())?;
        check(&field("mlp_ratio"), self.mlp_ratio, 1.0 / self.width as f64..=64.0)?;
        check(&field("patch_dropout"), self.patch_dropout, 0.0..=0.99)?;
        check(&field("norm_kwargs.eps"), self.norm_eps(), 1e-12..=1.0)?;
        match self.layers {
            Layers::Blocks(_) => self.validate_transformer()?,
            Layers::Stages(stages) => self.validate_resnet(stages)?,
        }
        match self.pooled_width() % self.heads() {
            0 => Ok(()),
            _ => Err(format!(
                "`vision_cfg.width`: {} channels, not a multiple of the {} heads",
                self.pooled_width(),
                self.heads()
            )),
        }
    }

    fn validate_transformer(&self) -> Result<(), String> {
        let Some(patch_size) = self.patch_size else {
            return Err("`vision_cfg.patch_size`: null, a Vision Transformer has patches".into());
        };
        for (image, patch) in self.image_size.each().into_iter().zip(patch_size.each()) {
            check("vision_cfg.image_size", image, 1..=4096)?;
            check("vision_cfg.patch_size", patch, 1..=image)?;
        }
        check("vision_cfg.image_size", self.grid_cells(), 1..=65_536)
            .map_err(|reason| format!("{reason} patches"))
    }

    fn validate_resnet(&self, stages: [usize; 4]) -> Result<(), String> {
        let [height, width] = self.image_size.each();
        check("vision_cfg.image_size", height, RESNET_REDUCTION..=4096)?;
        // As open_clip, whose position table is that of a square.
        if height != width || !height.is_multiple_of(RESNET_REDUCTION) {
            return Err(format!(
                "`vision_cfg.image_size`: {height} x {width}, a ResNet needs a square whose side is a \
                 multiple of {RESNET_REDUCTION}"
            ));
        }
        if stages.contains(&0) || !self.width.is_multiple_of(2) {
            return Err(format!(
                "`vision_cfg`: a ResNet has blocks in each stage and an even width, found {stages:?} and {}",
                self.width
            ));
        }
        let plain = VisionConfig { layers: self.layers, width: self.width, ..Self::default() };
        let unused = [
            ("mlp_ratio", self.mlp_ratio == plain.mlp_ratio),
            ("pool_type", self.pool_type == plain.pool_type),
            ("final_ln_after_pool", !self.final_ln_after_pool),
            ("no_ln_pre", !self.no_ln_pre),
            ("patch_dropout", self.patch_dropout == 0.0),
            ("norm_kwargs", self.norm_kwargs.is_none()),
            ("act_kwargs", self.act_kwargs.is_none()),
            ("timm_model_name", self.timm_model_name.is_none()),
        ];
        match unused.into_iter().find(|(_, is_default)| !is_default) {
            Some((name, _)) => Err(format!("`vision_cfg.{name}` has no meaning for a ResNet")),
            None => Ok(()),
        }
    }
}
