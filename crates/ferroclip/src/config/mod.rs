//! The model config: open_clip's JSON vocabulary, read strictly.
//!
//! An unknown field is an error, because a field that is skipped can change numbers. What open_clip
//! knows and this library does not (timm trunks, attentional pooling) is thus refused by
//! name. Every size is bounded, so that a hostile config cannot ask for absurd memory.

use std::ops::RangeInclusive;

use ferroclip_ops::Activation;
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::image::{ImagePipeline, PreprocessConfig};
use crate::tokenizer::{OPENAI_VOCAB_SIZE, Tokenizer};

mod timm;

/// ln(1 / 0.07), the `logit_scale` that training starts from.
const DEFAULT_LOGIT_SCALE: f32 = 2.659_26;
/// The epsilon of PyTorch's layer norm.
const DEFAULT_NORM_EPS: f64 = 1e-5;
/// Pixels of an image for a position of a ResNet's last feature map, and channels there for each of
/// `width`.
const RESNET_REDUCTION: usize = 32;
/// The epsilon of PyTorch's batch norm.
pub(crate) const BATCH_NORM_EPS: f64 = 1e-5;
/// The template of models that do not bring their own.
const DEFAULT_TEMPLATE: &str = "a photo of a {}.";

macro_rules! presets {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_str!(concat!("../presets/", $name, ".json")))),*]
    };
}

/// Name and `model_cfg` of every preset.
const PRESETS: &[(&str, &str)] = presets![
    "draw-mini",
    "RN101",
    "RN101-quickgelu",
    "RN50",
    "RN50-quickgelu",
    "RN50x16",
    "RN50x16-quickgelu",
    "RN50x4",
    "RN50x4-quickgelu",
    "RN50x64",
    "RN50x64-quickgelu",
    "ViT-B-16",
    "ViT-B-16-SigLIP",
    "ViT-B-16-SigLIP-256",
    "ViT-B-16-SigLIP-384",
    "ViT-B-16-SigLIP-512",
    "ViT-B-16-SigLIP-i18n-256",
    "ViT-B-16-SigLIP2",
    "ViT-B-16-SigLIP2-256",
    "ViT-B-16-SigLIP2-384",
    "ViT-B-16-SigLIP2-512",
    "ViT-B-16-plus",
    "ViT-B-16-plus-240",
    "ViT-B-16-quickgelu",
    "ViT-B-32",
    "ViT-B-32-256",
    "ViT-B-32-SigLIP2-256",
    "ViT-B-32-plus-256",
    "ViT-B-32-quickgelu",
    "ViT-H-14",
    "ViT-H-14-378",
    "ViT-H-14-378-quickgelu",
    "ViT-H-14-quickgelu",
    "ViT-H-16",
    "ViT-L-14",
    "ViT-L-14-280",
    "ViT-L-14-336",
    "ViT-L-14-336-quickgelu",
    "ViT-L-14-quickgelu",
    "ViT-L-16",
    "ViT-L-16-320",
    "ViT-L-16-SigLIP-256",
    "ViT-L-16-SigLIP-384",
    "ViT-L-16-SigLIP2-256",
    "ViT-L-16-SigLIP2-384",
    "ViT-L-16-SigLIP2-512",
    "ViT-M-16",
    "ViT-M-32",
    "ViT-M-32-alt",
    "ViT-S-16",
    "ViT-S-16-alt",
    "ViT-S-32",
    "ViT-S-32-alt",
    "ViT-SO400M-14-SigLIP",
    "ViT-SO400M-14-SigLIP-378",
    "ViT-SO400M-14-SigLIP-384",
    "ViT-SO400M-14-SigLIP2",
    "ViT-SO400M-14-SigLIP2-378",
    "ViT-SO400M-16-SigLIP-i18n-256",
    "ViT-SO400M-16-SigLIP2-256",
    "ViT-SO400M-16-SigLIP2-384",
    "ViT-SO400M-16-SigLIP2-512",
    "ViT-bigG-14",
    "ViT-bigG-14-quickgelu",
    "ViT-e-14",
    "ViT-g-14",
    "ViT-gopt-16-SigLIP2-256",
    "ViT-gopt-16-SigLIP2-384",
];

/// A model's architecture with its image pipeline: `open_clip_config.json`.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// `model_cfg`.
    pub model: ModelConfig,
    /// `preprocess_cfg`.
    pub preprocess: ImagePipeline,
    /// `templates`: the prompts that the model is used with by default. open_clip ignores the
    /// field.
    pub templates: Vec<String>,
}

/// `open_clip_config.json` as written.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ConfigFile {
    model_cfg: ModelConfig,
    #[serde(default)]
    preprocess_cfg: PreprocessConfig,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    templates: Vec<String>,
}

/// open_clip's `model_cfg`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// Dimension of the space that images and texts share.
    pub embed_dim: usize,
    /// QuickGELU instead of GELU in both towers.
    #[serde(default, skip_serializing_if = "is_default")]
    pub quick_gelu: bool,
    /// `logit_scale` that training starts from; ln(1 / 0.07) by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init_logit_scale: Option<f32>,
    /// `logit_bias` that training starts from, in models that have one: SigLIP's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init_logit_bias: Option<f32>,
    /// open_clip's class for models whose text tower is a part of its own. It gives the tensors other names and
    /// changes no numbers.
    #[serde(default, skip_serializing_if = "is_default")]
    pub custom_text: bool,
    /// The image tower.
    pub vision_cfg: VisionConfig,
    /// The text tower.
    pub text_cfg: TextConfig,
    /// Which of them the model has. A file of open_clip has both.
    #[serde(skip)]
    pub towers: Towers,
}

/// The towers of a model: both, but in transformers' models of one. The config of a tower that is not there says nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Towers {
    /// Images and texts.
    #[default]
    Both,
    /// Images alone.
    Image,
    /// Texts alone.
    Text,
}

impl Towers {
    /// Whether images can be embedded.
    pub fn has_image(self) -> bool {
        self != Towers::Text
    }

    /// Whether texts can be embedded.
    pub fn has_text(self) -> bool {
        self != Towers::Image
    }
}

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

/// open_clip's `text_cfg` of its own transformer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TextConfig {
    /// Positions.
    pub context_length: usize,
    /// Entries of the token table.
    pub vocab_size: usize,
    /// Set where the tokenizer is the `tokenizer.json` beside the config and not OpenAI's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hf_tokenizer_name: Option<String>,
    /// How open_clip cleans a text before `tokenizer.json` sees it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokenizer_kwargs: Option<TokenizerConfig>,
    /// Channels of the residual stream.
    pub width: usize,
    /// Attention heads.
    pub heads: usize,
    /// Blocks.
    pub layers: usize,
    /// The MLP has `width * mlp_ratio` hidden channels, rounded down.
    #[serde(skip_serializing_if = "is_4")]
    pub mlp_ratio: f64,
    /// Which row stands for the text.
    #[serde(skip_serializing_if = "is_default")]
    pub pool_type: TextPool,
    /// Every row sees all rows, those of padding too.
    #[serde(skip_serializing_if = "is_default")]
    pub no_causal_mask: bool,
    /// The projection has a bias.
    #[serde(skip_serializing_if = "is_default")]
    pub proj_bias: bool,
    /// What comes behind the pooling.
    #[serde(skip_serializing_if = "is_default")]
    pub proj_type: TextProjection,
    /// Settings of the layer norms.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub norm_kwargs: Option<NormConfig>,
    /// Settings of the activation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub act_kwargs: Option<ActivationConfig>,
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

/// How a text's rows become one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TextPool {
    /// The row of the first largest id, which is the end of text.
    #[default]
    Argmax,
    /// The last row, at the end of the context: padding is read.
    Last,
}

/// `norm_kwargs`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NormConfig {
    /// Added to the variance.
    pub eps: f64,
}

/// How a pooled text becomes an embedding.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TextProjection {
    /// By a matrix.
    #[default]
    Linear,
    /// It is one: the width is `embed_dim`.
    None,
}

/// `act_kwargs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ActivationConfig {
    /// How GELU is computed.
    pub approximate: Approximation,
}

/// `approximate` of `act_kwargs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Approximation {
    /// Exactly.
    None,
    /// By tanh.
    Tanh,
}

/// `tokenizer_kwargs`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenizerConfig {
    /// What is done to a text before it is split.
    #[serde(default, skip_serializing_if = "is_default")]
    pub clean: Cleaning,
    /// The separator at the end of a text becomes padding (CLIPA's).
    #[serde(default, skip_serializing_if = "is_default")]
    pub strip_sep_token: bool,
}

/// `clean` of `tokenizer_kwargs`. All of them repair and unescape the text and make white space single spaces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cleaning {
    /// No more than that.
    #[default]
    Whitespace,
    /// Capitals become small: OpenAI's.
    Lower,
    /// Capitals become small, `_` a space, and other punctuation of ASCII goes: SigLIP's.
    Canonicalize,
}

/// One side of a square, or `[height, width]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "expected a side in pixels or `[height, width]`")]
pub enum Sides {
    /// A square.
    Square(usize),
    /// Height and width.
    Rectangle([usize; 2]),
}

impl Sides {
    /// `[height, width]`.
    pub fn each(self) -> [usize; 2] {
        match self {
            Sides::Square(side) => [side, side],
            Sides::Rectangle(sides) => sides,
        }
    }
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

impl Default for TextConfig {
    fn default() -> Self {
        TextConfig {
            context_length: 77,
            vocab_size: 49_408,
            hf_tokenizer_name: None,
            tokenizer_kwargs: None,
            width: 512,
            heads: 8,
            layers: 12,
            mlp_ratio: 4.0,
            pool_type: TextPool::Argmax,
            no_causal_mask: false,
            proj_bias: false,
            proj_type: TextProjection::Linear,
            norm_kwargs: None,
            act_kwargs: None,
        }
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

fn is_64(value: &usize) -> bool {
    *value == 64
}

fn is_4(value: &f64) -> bool {
    *value == 4.0
}

impl Config {
    /// The names that [`Config::preset`] knows.
    pub fn preset_names() -> impl Iterator<Item = &'static str> {
        PRESETS.iter().map(|(name, _)| *name)
    }

    /// A config by its open_clip name, or `draw-mini`.
    ///
    /// # Errors
    /// When no preset has this name.
    pub fn preset(name: &str) -> Result<Config, Error> {
        let found = PRESETS.iter().find(|(preset, _)| *preset == name);
        let (name, json) = found.ok_or_else(|| Error::UnknownPreset { name: name.to_owned() })?;
        Config::from_json(json, name)
    }

    /// Reads `open_clip_config.json`, or a bare `model_cfg` as open_clip's own configs are, which
    /// gets the default image pipeline at its image size. `origin` names the text in errors.
    ///
    /// # Errors
    /// When the text is no JSON, has an unknown field or a value out of range.
    pub fn from_json(json: &str, origin: &str) -> Result<Config, Error> {
        let bad = |reason: String| Error::Config { origin: origin.to_owned(), reason };
        let json = json.trim_start_matches('\u{feff}');
        let value: serde_json::Value =
            serde_json::from_str(json).map_err(|e| bad(e.to_string()))?;
        let is_whole = value.get("model_cfg").is_some();
        let expanded = timm::expanded(value).map_err(bad)?;
        let json = expanded.as_deref().unwrap_or(json);
        let file = if is_whole {
            serde_json::from_str(json).map_err(|e| bad(e.to_string()))?
        } else {
            let model_cfg = serde_json::from_str(json).map_err(|e| bad(e.to_string()))?;
            ConfigFile { model_cfg, preprocess_cfg: PreprocessConfig::default(), templates: vec![] }
        };
        let ConfigFile { model_cfg: model, preprocess_cfg, templates } = file;
        model.validate().map_err(bad)?;
        let image_size = model.vision_cfg.image_size.each();
        let preprocess = preprocess_cfg.resolve(image_size);
        let preprocess = preprocess.map_err(|e| bad(format!("`preprocess_cfg`: {e}")))?;
        let config = Config { model, preprocess, templates };
        config.validate().map_err(bad)?;
        Ok(config.with_default_template())
    }

    /// The config of an architecture and its image pipeline, with the usual template.
    ///
    /// # Errors
    /// Names the first field that is out of range.
    pub(crate) fn new(model: ModelConfig, preprocess: ImagePipeline) -> Result<Config, String> {
        model.validate()?;
        let config = Config { model, preprocess, templates: Vec::new() };
        config.validate()?;
        Ok(config.with_default_template())
    }

    fn with_default_template(mut self) -> Config {
        if self.templates.is_empty() {
            self.templates.push(DEFAULT_TEMPLATE.to_owned());
        }
        self
    }

    /// The text of `open_clip_config.json`, which open_clip reads as well.
    pub fn to_json(&self) -> String {
        let is_usual = self.templates == [DEFAULT_TEMPLATE];
        let file = ConfigFile {
            model_cfg: self.model.clone(),
            preprocess_cfg: self.preprocess.clone().into(),
            templates: if is_usual { Vec::new() } else { self.templates.clone() },
        };
        let json = serde_json::to_string_pretty(&file);
        let json = json.expect("a config has string keys and finite numbers");
        timm::shortened(&json).unwrap_or(json) + "\n"
    }

    /// The tokenizer that a new model of this config gets: OpenAI's, cut to `vocab_size`.
    ///
    /// # Errors
    /// When `vocab_size` is below 514 or above 49,408.
    pub fn new_tokenizer(&self) -> Result<Tokenizer, Error> {
        let tokenizer = Tokenizer::openai_prefix(self.model.text_cfg.vocab_size);
        tokenizer.map_err(|source| Error::Tokenizer { origin: "text_cfg".to_owned(), source })
    }

    fn validate(&self) -> Result<(), String> {
        if self.preprocess.size != self.model.vision_cfg.image_size.each() {
            let (found, expected) = (self.preprocess.size, self.model.vision_cfg.image_size.each());
            return Err(format!(
                "`preprocess_cfg.size`: {found:?}, the image tower has {expected:?}"
            ));
        }
        match self.templates.iter().find(|template| !template.contains("{}")) {
            Some(template) => Err(format!("`templates`: `{template}` has no `{{}}`")),
            None => Ok(()),
        }
    }
}

fn check<T: PartialOrd + std::fmt::Display>(
    field: &str,
    value: T,
    range: RangeInclusive<T>,
) -> Result<(), String> {
    match range.contains(&value) {
        true => Ok(()),
        false => Err(format!("`{field}`: {value}, expected {} to {}", range.start(), range.end())),
    }
}

impl ModelConfig {
    /// Checks the ranges of the fields and that they go together.
    ///
    /// # Errors
    /// Names the first field that is out of range.
    pub fn validate(&self) -> Result<(), String> {
        check("embed_dim", self.embed_dim, 1..=65_536)?;
        check("init_logit_scale", self.init_logit_scale(), -100.0..=100.0)?;
        check("init_logit_bias", self.init_logit_bias.unwrap_or(0.0), -1000.0..=1000.0)?;
        self.vision_cfg.validate()?;
        self.text_cfg.validate()?;
        let (vision, text) = (&self.vision_cfg, &self.text_cfg);
        if vision.pool_type == ImagePool::Map && vision.width != self.embed_dim {
            return Err(format!(
                "`embed_dim`: {}, an image tower that pools by attention gives its width, {}",
                self.embed_dim, vision.width
            ));
        }
        if text.proj_type == TextProjection::None
            && (text.width != self.embed_dim || text.proj_bias)
        {
            return Err(format!(
                "`text_cfg.proj_type`: none, with a width of {} for an `embed_dim` of {}, or with a bias",
                text.width, self.embed_dim
            ));
        }
        // What open_clip's constructors would be given twice.
        if self.quick_gelu && (vision.act_kwargs.is_some() || text.act_kwargs.is_some()) {
            return Err("`act_kwargs` has no meaning beside `quick_gelu`".to_owned());
        }
        Ok(())
    }

    /// The activation of the image tower.
    pub fn image_activation(&self) -> Activation {
        self.activation(self.vision_cfg.act_kwargs)
    }

    /// The activation of the text tower.
    pub fn text_activation(&self) -> Activation {
        self.activation(self.text_cfg.act_kwargs)
    }

    fn activation(&self, act_kwargs: Option<ActivationConfig>) -> Activation {
        match act_kwargs {
            _ if self.quick_gelu => Activation::QuickGelu,
            Some(ActivationConfig { approximate: Approximation::Tanh }) => Activation::GeluTanh,
            _ => Activation::Gelu,
        }
    }

    /// Says that the vocabulary is the `tokenizer.json` beside the config, where it is not OpenAI's whole one and no name
    /// says so: readers would take OpenAI's.
    pub fn name_vocabulary(&mut self) {
        let clean = match self.text_cfg.pool_type {
            TextPool::Argmax => Cleaning::Lower,
            TextPool::Last => Cleaning::Canonicalize,
        };
        let text = &mut self.text_cfg;
        if text.vocab_size != OPENAI_VOCAB_SIZE && text.hf_tokenizer_name.is_none() {
            text.hf_tokenizer_name = Some("ferroclip".to_owned());
            text.tokenizer_kwargs = Some(TokenizerConfig { clean, strip_sep_token: false });
        }
    }

    /// The config as open_clip reads it: a tower that pools by attention has its name in timm.
    ///
    /// # Errors
    /// When timm has no tower that computes the same.
    pub(crate) fn with_timm_name(mut self) -> Result<ModelConfig, String> {
        if self.vision_cfg.pool_type == ImagePool::Map {
            let name = timm::named(&self.vision_cfg);
            let name = name
                .ok_or("open_clip has no image tower of timm that computes the same as this one")?;
            self.vision_cfg.timm_model_name = Some(name);
        }
        Ok(self)
    }

    /// `logit_scale` that training starts from.
    pub fn init_logit_scale(&self) -> f32 {
        self.init_logit_scale.unwrap_or(DEFAULT_LOGIT_SCALE)
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

    fn validate(&self) -> Result<(), String> {
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

impl TextConfig {
    /// Whether padding reaches the pooled row, so that texts have to be filled up to the context length.
    pub fn reads_padding(&self) -> bool {
        self.no_causal_mask || self.pool_type == TextPool::Last
    }

    /// Hidden channels of the MLP.
    pub fn mlp_width(&self) -> usize {
        (self.width as f64 * self.mlp_ratio) as usize
    }

    /// Epsilon of the layer norms.
    pub fn norm_eps(&self) -> f64 {
        self.norm_kwargs.map_or(DEFAULT_NORM_EPS, |norm| norm.eps)
    }

    fn validate(&self) -> Result<(), String> {
        let field = |name: &str| format!("text_cfg.{name}");
        check(&field("context_length"), self.context_length, 2..=65_536)?;
        check(&field("vocab_size"), self.vocab_size, 3..=1 << 21)?;
        check(&field("layers"), self.layers, 1..=256)?;
        check(&field("width"), self.width, 1..=16_384)?;
        check(&field("heads"), self.heads, 1..=self.width)?;
        check(&field("mlp_ratio"), self.mlp_ratio, 1.0 / self.width as f64..=64.0)?;
        check(&field("norm_kwargs.eps"), self.norm_eps(), 1e-12..=1.0)?;
        match self.width % self.heads {
            0 => Ok(()),
            _ => Err(format!(
                "`text_cfg.width`: {}, not a multiple of its {} heads",
                self.width, self.heads
            )),
        }
    }
}
