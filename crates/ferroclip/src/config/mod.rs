//! The model config: open_clip's JSON vocabulary, read strictly.
//!
//! An unknown field is an error, because a field that is skipped can change numbers. What open_clip
//! knows and this library does not (timm trunks, attentional pooling) is thus refused by
//! name. Every size is bounded, so that a hostile config cannot ask for absurd memory.
//!
//! | file | holds |
//! |---|---|
//! | `mod` | the whole config, and how the towers go together |
//! | `vision`, `text` | the config of a tower |
//! | `fields` | what both are made of |
//! | `presets` | configs by their names in open_clip |
//! | `timm` | the names that timm has for SigLIP's image towers |

use ferroclip_ops::Activation;
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::image::{ImagePipeline, PreprocessConfig};
use crate::tokenizer::{OPENAI_VOCAB_SIZE, Tokenizer};

mod fields;
mod presets;
mod text;
mod timm;
mod vision;

use fields::{check, is_default};
use presets::PRESETS;

pub use fields::{ActivationConfig, Approximation, NormConfig, Sides};
pub use text::{Cleaning, TextConfig, TextPool, TextProjection, TokenizerConfig};
pub use vision::{ImagePool, Layers, VisionConfig};

/// ln(1 / 0.07), the `logit_scale` that training starts from.
const DEFAULT_LOGIT_SCALE: f32 = 2.659_26;
/// The epsilon of PyTorch's batch norm.
pub(crate) const BATCH_NORM_EPS: f64 = 1e-5;
/// The template of models that do not bring their own.
const DEFAULT_TEMPLATE: &str = "a photo of a {}.";

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
