//! `config.json` and `preprocessor_config.json` of transformers, in open_clip's terms.
//!
//! A key that can change numbers is understood or refused. The others (names of classes, dropout, how weights begin)
//! are listed, so that `inspect` can show that nothing was lost in silence. Absent keys have the values that
//! `CLIPConfig` and `SiglipConfig` give them.

use ferroclip_ops::Activation;
use serde_json::{Map, Value};

use crate::checkpoint::ratio;
use crate::config::{
    ActivationConfig, Approximation, Config, ImagePool, Layers, ModelConfig, NormConfig, Sides,
    TextConfig, TextPool, TextProjection, Towers, VisionConfig,
};

mod pipeline;
mod write;

pub(super) use write::written;

/// The files of a directory of transformers.
pub(super) const CONFIG_FILE: &str = "config.json";
pub(super) const PREPROCESSOR_FILE: &str = "preprocessor_config.json";
/// What transformers 5 writes; it has the fields of the other one in a section, and comes first where both have them.
pub(super) const PROCESSOR_FILE: &str = "processor_config.json";
pub(super) const WEIGHTS_FILE: &str = "model.safetensors";
/// The epsilon that a config of ours need not name.
const PLAIN_EPS: f64 = 1e-5;
/// `projection_dim` where it is left out.
const PROJECTION_DIM: usize = 512;
/// The bias that SigLIP's training starts from.
const SIGLIP_BIAS: f32 = -10.0;

/// What the configs of a family mean where they leave a key out.
struct Family {
    is_siglip: bool,
    /// Width, hidden width, heads, blocks, then positions and ids, or the sides of image and patch.
    text: [usize; 6],
    vision: [usize; 6],
    activation: Activation,
    eps: f64,
}

const CLIP: Family = Family {
    is_siglip: false,
    text: [512, 2048, 8, 12, 77, 49_408],
    vision: [768, 3072, 12, 12, 224, 32],
    activation: Activation::QuickGelu,
    eps: 1e-5,
};

const SIGLIP: Family = Family {
    is_siglip: true,
    text: [768, 3072, 12, 12, 64, 32_000],
    vision: [768, 3072, 12, 12, 224, 16],
    activation: Activation::GeluTanh,
    eps: 1e-6,
};

/// A section of a config, and the keys of it that were understood.
struct Tower<'a> {
    name: &'static str,
    fields: &'a Map<String, Value>,
    /// Keys that were understood.
    known: Vec<&'static str>,
}

/// Keys that say nothing about the numbers of inference: most are those that transformers gave every config up to 4.x.
const HARMLESS: &[&str] = &[
    "_name_or_path",
    "add_cross_attention",
    "architectures",
    "attention_dropout",
    "bad_words_ids",
    "begin_suppress_tokens",
    "bos_token_id",
    "chunk_size_feed_forward",
    "cross_attention_hidden_size",
    "decoder_start_token_id",
    "diversity_penalty",
    "do_sample",
    "dropout",
    "dtype",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "eos_token_id",
    "exponential_decay_length_penalty",
    "finetuning_task",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "id2label",
    "initializer_factor",
    "initializer_range",
    "is_decoder",
    "is_encoder_decoder",
    "label2id",
    "length_penalty",
    "max_length",
    "min_length",
    "model_type",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "output_attentions",
    "output_hidden_states",
    "output_scores",
    "pad_token_id",
    "prefix",
    "problem_type",
    "projection_dim",
    "pruned_heads",
    "remove_invalid_values",
    "repetition_penalty",
    "return_dict",
    "return_dict_in_generate",
    "sep_token_id",
    "suppress_tokens",
    "task_specific_params",
    "temperature",
    "tf_legacy_loss",
    "tie_encoder_decoder",
    "tie_word_embeddings",
    "tokenizer_class",
    "top_k",
    "top_p",
    "torch_dtype",
    "torchscript",
    "transformers_version",
    "typical_p",
    "use_bfloat16",
    "use_cache",
];

impl<'a> Tower<'a> {
    fn new(name: &'static str, fields: &'a Map<String, Value>) -> Tower<'a> {
        Tower { name, fields, known: Vec::new() }
    }

    fn number(&mut self, key: &'static str, default: usize) -> Result<usize, String> {
        self.known.push(key);
        match self.fields.get(key) {
            None => Ok(default),
            Some(value) => {
                let number = value.as_u64().and_then(|n| usize::try_from(n).ok());
                number.ok_or_else(|| format!("`{}.{key}`: {value}, expected a number", self.name))
            }
        }
    }

    fn norm(&mut self, default: f64) -> Result<Option<NormConfig>, String> {
        self.known.push("layer_norm_eps");
        let eps = match self.fields.get("layer_norm_eps") {
            None => Some(default),
            Some(value) => value.as_f64(),
        };
        let eps =
            eps.ok_or_else(|| format!("`{}.layer_norm_eps`: expected a number", self.name))?;
        Ok((eps != PLAIN_EPS).then_some(NormConfig { eps }))
    }

    fn activation(&mut self, default: Activation) -> Result<Activation, String> {
        self.known.push("hidden_act");
        let Some(value) = self.fields.get("hidden_act") else { return Ok(default) };
        match value.as_str() {
            Some("quick_gelu") => Ok(Activation::QuickGelu),
            Some("gelu") => Ok(Activation::Gelu),
            Some("gelu_pytorch_tanh") => Ok(Activation::GeluTanh),
            _ => Err(format!(
                "`{}.hidden_act`: {value}, expected `quick_gelu`, `gelu` or `gelu_pytorch_tanh`",
                self.name
            )),
        }
    }

    /// Refuses a key whose value would change numbers in a way that is not known.
    fn only(&mut self, key: &'static str, expected: &Value) -> Result<(), String> {
        self.known.push(key);
        match self.fields.get(key).filter(|found| *found != expected) {
            None => Ok(()),
            Some(found) => Err(format!("`{}.{key}`: {found}, expected {expected}", self.name)),
        }
    }

    /// Notes the keys that were passed over; one that is neither understood nor known to be harmless is an error.
    fn rest(self, ignored: &mut Vec<String>) -> Result<(), String> {
        for key in self.fields.keys().filter(|key| !self.known.contains(&key.as_str())) {
            if !is_harmless(key) {
                return Err(format!("`{}.{key}` is not known", self.name));
            }
            ignored.push(format!("{}.{key}", self.name));
        }
        Ok(())
    }
}

/// The section of an image processor in a `processor_config.json`, where it has one.
pub(super) fn image_processor(text: &str) -> Option<String> {
    let file: Value = serde_json::from_str(text).ok()?;
    file.get("image_processor").filter(|section| section.is_object()).map(Value::to_string)
}

fn is_harmless(key: &str) -> bool {
    HARMLESS.contains(&key)
}

/// The config of a directory of transformers, and the keys that were passed over. Whether a model of one tower `projects`
/// its weights tell.
///
/// # Errors
/// When a text is no JSON, or asks for what is not supported.
pub(super) fn translate(
    model: &str,
    preprocessor: Option<&str>,
    projects: bool,
) -> Result<(Config, Vec<String>), String> {
    let object = |text: &str| -> Result<Map<String, Value>, String> {
        serde_json::from_str(text).map_err(|e| e.to_string())
    };
    let model = object(model)?;
    let mut ignored = Vec::new();
    let model_config = model_config(&model, projects, &mut ignored)?;
    let size = model_config.vision_cfg.image_size.each();
    let is_siglip = model_config.init_logit_bias.is_some();
    let fields = match preprocessor.filter(|_| model_config.towers.has_image()) {
        Some(text) => object(text)?,
        None => Map::new(),
    };
    let preprocess = pipeline::translated(&fields, size, is_siglip, &mut ignored)
        .map_err(|reason| format!("`{PREPROCESSOR_FILE}` or `{PROCESSOR_FILE}`: {reason}"))?;
    Ok((Config::new(model_config, preprocess)?, ignored))
}

fn model_config(
    model: &Map<String, Value>,
    projects: bool,
    ignored: &mut Vec<String>,
) -> Result<ModelConfig, String> {
    let kind = model.get("model_type").and_then(Value::as_str).unwrap_or("none");
    let (family, towers) = match kind {
        "clip" => (&CLIP, Towers::Both),
        "clip_text_model" => (&CLIP, Towers::Text),
        "clip_vision_model" => (&CLIP, Towers::Image),
        "siglip" => (&SIGLIP, Towers::Both),
        "siglip_text_model" => (&SIGLIP, Towers::Text),
        "siglip_vision_model" => (&SIGLIP, Towers::Image),
        _ => return Err(format!("`model_type`: {kind}, expected `clip` or `siglip`")),
    };
    match towers {
        Towers::Both => both_towers(model, family, ignored),
        Towers::Image | Towers::Text => one_tower(model, family, towers, projects, ignored),
    }
}

fn both_towers(
    model: &Map<String, Value>,
    family: &Family,
    ignored: &mut Vec<String>,
) -> Result<ModelConfig, String> {
    let mut top = Tower::new("config", model);
    top.known.extend([
        "text_config",
        "text_config_dict",
        "vision_config",
        "vision_config_dict",
        "logit_scale_init_value",
    ]);
    let projection_dim = top.number("projection_dim", PROJECTION_DIM)?;
    top.rest(ignored)?;
    let (text, vision) = (section(model, "text_config")?, section(model, "vision_config")?);
    let (mut text_cfg, of_text) = text_config(&text, family, ignored)?;
    let (mut vision_cfg, of_image) = vision_config(&vision, family, ignored)?;
    let quick_gelu = of_text == Activation::QuickGelu;
    if quick_gelu != (of_image == Activation::QuickGelu) {
        return Err("`hidden_act`: QuickGELU in one tower alone is not supported".to_owned());
    }
    text_cfg.act_kwargs = approximation(of_text);
    vision_cfg.act_kwargs = approximation(of_image);
    let init_logit_scale = model.get("logit_scale_init_value").and_then(Value::as_f64);
    Ok(ModelConfig {
        embed_dim: if family.is_siglip { vision_cfg.width } else { projection_dim },
        quick_gelu,
        init_logit_scale: init_logit_scale.map(|scale| scale as f32),
        init_logit_bias: family.is_siglip.then_some(SIGLIP_BIAS),
        custom_text: family.is_siglip,
        vision_cfg,
        text_cfg,
        towers: Towers::Both,
    })
}

/// The config of a model of one tower: its fields stand at the top.
fn one_tower(
    model: &Map<String, Value>,
    family: &Family,
    towers: Towers,
    projects: bool,
    ignored: &mut Vec<String>,
) -> Result<ModelConfig, String> {
    let projection_dim = Tower::new("config", model).number("projection_dim", PROJECTION_DIM)?;
    let (mut vision_cfg, mut text_cfg) = (VisionConfig::default(), TextConfig::default());
    let (width, activation) = match towers.has_text() {
        true => {
            let (config, activation) = text_config(model, family, ignored)?;
            text_cfg = TextConfig { act_kwargs: approximation(activation), ..config };
            (text_cfg.width, activation)
        }
        false => {
            let (config, activation) = vision_config(model, family, ignored)?;
            vision_cfg = VisionConfig { act_kwargs: approximation(activation), ..config };
            (vision_cfg.width, activation)
        }
    };
    // SigLIP's towers end as they do in the whole model.
    let ends_bare = !projects && !family.is_siglip;
    vision_cfg.no_proj = ends_bare && towers.has_image();
    if ends_bare && towers.has_text() {
        text_cfg.proj_type = TextProjection::None;
    }
    Ok(ModelConfig {
        embed_dim: if projects && !family.is_siglip { projection_dim } else { width },
        quick_gelu: activation == Activation::QuickGelu,
        init_logit_scale: None,
        init_logit_bias: None,
        custom_text: family.is_siglip,
        vision_cfg,
        text_cfg,
        towers,
    })
}

fn approximation(activation: Activation) -> Option<ActivationConfig> {
    let approximate = Approximation::Tanh;
    (activation == Activation::GeluTanh).then_some(ActivationConfig { approximate })
}

/// The fields of a tower. Files of old versions have a second section, which wins, as in transformers.
fn section(model: &Map<String, Value>, name: &str) -> Result<Map<String, Value>, String> {
    let mut fields = Map::new();
    for name in [name.to_owned(), format!("{name}_dict")] {
        match model.get(&name) {
            None | Some(Value::Null) => {}
            Some(Value::Object(section)) => fields.extend(section.clone()),
            Some(other) => return Err(format!("`{name}`: {other}, expected an object")),
        }
    }
    Ok(fields)
}

fn text_config(
    fields: &Map<String, Value>,
    family: &Family,
    ignored: &mut Vec<String>,
) -> Result<(TextConfig, Activation), String> {
    let mut tower = Tower::new("text_config", fields);
    let [width, hidden, heads, layers, context_length, vocab_size] = family.text;
    let width = tower.number("hidden_size", width)?;
    let mut config = TextConfig {
        context_length: tower.number("max_position_embeddings", context_length)?,
        vocab_size: tower.number("vocab_size", vocab_size)?,
        width,
        heads: tower.number("num_attention_heads", heads)?,
        layers: tower.number("num_hidden_layers", layers)?,
        mlp_ratio: ratio(tower.number("intermediate_size", hidden)?, width.max(1)),
        norm_kwargs: tower.norm(family.eps)?,
        ..TextConfig::default()
    };
    let end = tower.number("eos_token_id", 49_407)?;
    if family.is_siglip {
        let projected = tower.number("projection_size", width)?;
        if projected != width {
            return Err(format!("`text_config.projection_size`: {projected}, expected {width}"));
        }
        config.no_causal_mask = true;
        config.proj_bias = true;
        config.pool_type = TextPool::Last;
    } else if end != 2 && end.checked_add(1) != Some(config.vocab_size) {
        // 2, which most files say and no text holds, stands for the largest id; so does the last one.
        return Err(format!(
            "`text_config.eos_token_id`: {end}, expected 2 or the last of {} ids",
            config.vocab_size
        ));
    }
    let activation = tower.activation(family.activation)?;
    tower.rest(ignored)?;
    Ok((config, activation))
}

fn vision_config(
    fields: &Map<String, Value>,
    family: &Family,
    ignored: &mut Vec<String>,
) -> Result<(VisionConfig, Activation), String> {
    let mut tower = Tower::new("vision_config", fields);
    let [width, hidden, heads, layers, image_size, patch_size] = family.vision;
    let (width, heads) =
        (tower.number("hidden_size", width)?, tower.number("num_attention_heads", heads)?);
    if heads == 0 || !width.is_multiple_of(heads) {
        return Err(format!(
            "`vision_config`: {width} channels and {heads} heads do not go together"
        ));
    }
    tower.only("num_channels", &Value::from(3))?;
    if family.is_siglip {
        tower.only("vision_use_head", &Value::from(true))?;
    }
    let config = VisionConfig {
        image_size: Sides::Square(tower.number("image_size", image_size)?),
        layers: Layers::Blocks(tower.number("num_hidden_layers", layers)?),
        width,
        head_width: width / heads,
        patch_size: Some(Sides::Square(tower.number("patch_size", patch_size)?)),
        mlp_ratio: ratio(tower.number("intermediate_size", hidden)?, width.max(1)),
        norm_kwargs: tower.norm(family.eps)?,
        pool_type: if family.is_siglip { ImagePool::Map } else { ImagePool::Tok },
        no_ln_pre: family.is_siglip,
        ..VisionConfig::default()
    };
    let activation = tower.activation(family.activation)?;
    tower.rest(ignored)?;
    Ok((config, activation))
}

#[cfg(test)]
mod tests;
