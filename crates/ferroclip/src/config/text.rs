//! `text_cfg`.

use serde::{Deserialize, Serialize};

use super::fields::{ActivationConfig, DEFAULT_NORM_EPS, NormConfig, check, is_4, is_default};

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

    pub(super) fn validate(&self) -> Result<(), String> {
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
