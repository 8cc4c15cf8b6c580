//! A config of ours as transformers writes it.

use ferroclip_ops::Activation;
use serde_json::json;

use super::pipeline;
use crate::config::{Config, ImagePool};

/// `config.json` and `preprocessor_config.json` of a config, as far as transformers can say it: what it cannot say is
/// lost, which reading them back shows.
pub(in crate::model_dir) fn written(config: &Config) -> (String, String) {
    let model = &config.model;
    let (vision, text) = (&model.vision_cfg, &model.text_cfg);
    let is_siglip = vision.pool_type == ImagePool::Map;
    let family = if is_siglip { "siglip" } else { "clip" };
    let [side, _] = vision.image_size.each();
    let mut of_text = json!({
        "model_type": format!("{family}_text_model"),
        "hidden_size": text.width,
        "intermediate_size": text.mlp_width(),
        "num_attention_heads": text.heads,
        "num_hidden_layers": text.layers,
        "max_position_embeddings": text.context_length,
        "vocab_size": text.vocab_size,
        "hidden_act": activation_name(model.text_activation()),
        "layer_norm_eps": text.norm_eps(),
        "bos_token_id": text.vocab_size - 2,
        "eos_token_id": text.vocab_size - 1,
    });
    let of_images = json!({
        "model_type": format!("{family}_vision_model"),
        "hidden_size": vision.width,
        "intermediate_size": vision.mlp_width(),
        "num_attention_heads": vision.heads(),
        "num_hidden_layers": vision.layers.blocks(),
        "image_size": side,
        "patch_size": vision.patch()[0],
        "hidden_act": activation_name(model.image_activation()),
        "layer_norm_eps": vision.norm_eps(),
    });
    let mut whole = json!({
        "architectures": [if is_siglip { "SiglipModel" } else { "CLIPModel" }],
        "model_type": family,
        "text_config": {},
        "vision_config": of_images,
    });
    match is_siglip {
        true => of_text["projection_size"] = json!(model.embed_dim),
        false => {
            whole["projection_dim"] = json!(model.embed_dim);
            whole["logit_scale_init_value"] = json!(model.init_logit_scale());
        }
    }
    whole["text_config"] = of_text;
    (format!("{whole:#}\n"), format!("{:#}\n", pipeline::written(&config.preprocess, family)))
}

fn activation_name(activation: Activation) -> &'static str {
    match activation {
        Activation::QuickGelu => "quick_gelu",
        Activation::Gelu => "gelu",
        Activation::GeluTanh => "gelu_pytorch_tanh",
    }
}
