use serde_json::json;

use super::*;
use crate::image::{Convention, Interpolation, ResizeMode};

/// What OpenAI's models carry on the hub, in short.
fn usual() -> Value {
    json!({
        "architectures": ["CLIPModel"], "initializer_factor": 1.0, "logit_scale_init_value": 2.6592,
        "model_type": "clip", "projection_dim": 512, "torch_dtype": "float32",
        "text_config": {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1, "model_type": "clip_text_model", "num_hidden_layers": 12},
        "text_config_dict": null,
        "vision_config": {"hidden_size": 1024, "patch_size": 14, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
    })
}

fn read(model: &Value) -> Result<(Config, Vec<String>), String> {
    translate(&model.to_string(), None, true)
}

fn with(pointer: &str, value: Value) -> Value {
    let mut model = usual();
    let (section, key) = pointer.rsplit_once('/').expect("a path");
    let section = if section.is_empty() {
        &mut model
    } else {
        model.pointer_mut(section).expect("a section")
    };
    section[key] = value;
    model
}

#[track_caller]
fn assert_error(found: Result<(Config, Vec<String>), String>, part: &str) {
    let shown = found.expect_err("refused");
    assert!(shown.contains(part), "`{part}` is not in: {shown}");
}

#[test]
fn the_usual_config_is_understood() {
    let (config, ignored) = read(&usual()).expect("understood");
    let expected = Config::preset("ViT-L-14-quickgelu").expect("a preset").model;
    let text_cfg = TextConfig { width: 512, heads: 8, ..expected.text_cfg.clone() };
    let init_logit_scale = Some(2.6592);
    assert_eq!(
        config.model,
        ModelConfig { embed_dim: 512, text_cfg, init_logit_scale, ..expected }
    );
    assert_eq!(config.preprocess.convention, Convention::HuggingFace);
    assert!(ignored.contains(&"text_config.pad_token_id".to_owned()), "{ignored:?}");
}

#[test]
fn the_second_section_of_old_files_wins() {
    let (config, _) =
        read(&with("/text_config_dict", json!({"num_hidden_layers": 3}))).expect("understood");
    assert_eq!(config.model.text_cfg.layers, 3);
}

#[test]
fn what_can_change_numbers_is_understood_or_refused() {
    let (found, _) = read(&with("/vision_config/layer_norm_eps", json!(1e-6))).expect("understood");
    assert_eq!(found.model.vision_cfg.norm_eps(), 1e-6);
    for (pointer, value, part) in [
        ("/model_type", json!("blip"), "expected `clip` or `siglip`"),
        ("/rope_theta", json!(1), "`config.rope_theta` is not known"),
        ("/text_config/hidden_act", json!("relu"), "`text_config.hidden_act`"),
        ("/text_config/hidden_act", json!("gelu"), "one tower alone"),
        ("/text_config/eos_token_id", json!(7), "eos_token_id"),
        ("/text_config/num_attention_heads", json!(-1), "expected a number"),
        ("/text_config/num_attention_heads", json!(7), "not a multiple"),
        ("/text_config/hidden_size", json!(0), "text_cfg.width"),
        ("/vision_config/num_channels", json!(1), "num_channels"),
        ("/vision_config/num_attention_heads", json!(0), "do not go together"),
        ("/vision_config/rotary", json!(true), "`vision_config.rotary` is not known"),
        ("/vision_config", json!([]), "expected an object"),
    ] {
        assert_error(read(&with(pointer, value)), part);
    }
    assert!(translate("[]", None, true).is_err() && translate("", None, true).is_err());
}

#[test]
fn siglip_has_its_own_defaults() {
    let siglip = json!({"model_type": "siglip", "text_config": {"vocab_size": 32000}, "vision_config": {"image_size": 256}});
    let (config, _) = read(&siglip).expect("understood");
    let expected = Config::preset("ViT-B-16-SigLIP-256").expect("a preset").model;
    // transformers computes GELU by tanh where open_clip takes the error function.
    let act_kwargs = Some(ActivationConfig { approximate: Approximation::Tanh });
    let vision_cfg = VisionConfig { act_kwargs, timm_model_name: None, ..expected.vision_cfg };
    let text_cfg = TextConfig {
        act_kwargs,
        hf_tokenizer_name: None,
        tokenizer_kwargs: None,
        ..expected.text_cfg
    };
    assert_eq!(config.model, ModelConfig { vision_cfg, text_cfg, ..expected });
    let headless = json!({"model_type": "siglip", "vision_config": {"vision_use_head": false}});
    assert_error(read(&headless), "vision_use_head");
}

#[test]
fn image_pipelines_of_old_and_new_files_are_understood() {
    let read = |fields: Value| translate(&usual().to_string(), Some(&fields.to_string()), true);
    let old = json!({"crop_size": 224, "do_center_crop": true, "do_resize": true, "resample": 3, "size": 224,
        "feature_extractor_type": "CLIPFeatureExtractor", "image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.5, 0.5]});
    let (found, ignored) = read(old).expect("understood");
    assert_eq!((found.preprocess.mean, found.preprocess.std), ([0.5; 3], [0.25, 0.5, 0.5]));
    assert_eq!(found.preprocess.resize_mode, ResizeMode::Shortest);
    assert!(ignored.contains(&"preprocessor_config.feature_extractor_type".to_owned()));
    let new = json!({"crop_size": {"height": 224, "width": 224}, "size": {"shortest_edge": 224}, "resample": 2});
    assert_eq!(read(new).expect("understood").0.preprocess.interpolation, Interpolation::Bilinear);
    let squash = json!({"size": {"height": 224, "width": 224}, "do_center_crop": false});
    assert_eq!(read(squash).expect("understood").0.preprocess.resize_mode, ResizeMode::Squash);
    for (fields, part) in [
        (json!({"do_normalize": false}), "do_normalize"),
        (json!({"resample": 0}), "resample"),
        (json!({"size": 256}), "`size`"),
        (json!({"crop_size": 256}), "crop_size"),
        (json!({"rescale_factor": 1.0}), "rescale_factor"),
        (json!({"image_std": [0.0, 1.0, 1.0]}), "std"),
        (json!({"image_mean": [0.0]}), "image_mean"),
    ] {
        assert_error(read(fields), part);
    }
}

#[test]
fn a_model_of_one_tower_ends_as_its_weights_tell() {
    let text = json!({"model_type": "clip_text_model", "projection_dim": 20, "hidden_size": 32, "num_attention_heads": 4,
        "intermediate_size": 128, "architectures": ["CLIPTextModelWithProjection"]});
    let read = |model: &Value, projects| {
        translate(&model.to_string(), Some("not even JSON"), projects).expect("understood").0.model
    };
    let whole = read(&text, true);
    assert_eq!((whole.towers, whole.embed_dim, whole.text_cfg.width), (Towers::Text, 20, 32));
    assert!(whole.quick_gelu && whole.parameter_shapes().contains_key("text_projection"));
    let bare = read(&text, false);
    assert_eq!((bare.embed_dim, bare.text_cfg.proj_type), (32, TextProjection::None));
    let shapes = bare.parameter_shapes();
    assert!(!shapes.keys().any(|name| name.starts_with("visual.") || name.starts_with("logit_")));

    let vision = json!({"model_type": "clip_vision_model", "hidden_size": 64, "num_attention_heads": 4, "hidden_act": "gelu"});
    let (config, _) = translate(&vision.to_string(), None, false).expect("understood");
    let shapes = config.model.parameter_shapes();
    assert_eq!((config.model.towers, config.model.embed_dim), (Towers::Image, 64));
    assert!(shapes.keys().all(|name| name.starts_with("visual.") && name != "visual.proj"));
}

/// What transformers 4.16 gave every section, as in the files of OpenAI's models on the hub.
#[test]
fn generic_keys_of_old_files_change_nothing() {
    let generic = json!({
        "bad_words_ids": null, "decoder_start_token_id": null, "encoder_no_repeat_ngram_size": 0, "eos_token_id": null,
        "forced_bos_token_id": null, "forced_eos_token_id": null, "num_beam_groups": 1, "num_return_sequences": 1,
        "prefix": null, "pruned_heads": {}, "remove_invalid_values": false, "repetition_penalty": 1.0,
        "sep_token_id": null, "task_specific_params": null, "tie_encoder_decoder": false, "tie_word_embeddings": true,
    });
    let mut model = usual();
    for (key, value) in generic.as_object().expect("an object") {
        for section in ["text_config", "vision_config"] {
            model[section].as_object_mut().expect("a section").entry(key).or_insert(value.clone());
        }
    }
    let (config, ignored) = read(&model).expect("understood");
    assert_eq!(config, read(&usual()).expect("understood").0);
    assert!(ignored.contains(&"vision_config.pruned_heads".to_owned()));
}

/// `SiglipImageProcessor` has other defaults than `CLIPImageProcessor`, and its class is asked before the model's family.
#[test]
fn image_processors_have_the_defaults_of_their_class() {
    let siglip = json!({"model_type": "siglip", "text_config": {}, "vision_config": {}});
    for fields in [None, Some("{}"), Some(r#"{"size": {"height": 224, "width": 224}}"#)] {
        let (config, _) = translate(&siglip.to_string(), fields, true).expect("understood");
        assert_eq!([config.preprocess.mean, config.preprocess.std], [[0.5; 3]; 2]);
        assert_eq!(config.preprocess.resize_mode, ResizeMode::Squash);
    }
    let other = r#"{"image_processor_type": "SiglipImageProcessor"}"#;
    let (config, _) = translate(&usual().to_string(), Some(other), true).expect("understood");
    assert_eq!(config.preprocess.mean, [0.5; 3]);
    let (config, _) = read(&usual()).expect("understood");
    assert_ne!(config.preprocess.mean, [0.5; 3]);
}

#[test]
fn processors_hold_the_image_processor_in_a_section() {
    let nested = r#"{"image_processor": {"resample": 2}, "processor_class": "CLIPProcessor"}"#;
    assert_eq!(image_processor(nested).as_deref(), Some(r#"{"resample":2}"#));
    for without in ["{}", "[]", "no JSON", r#"{"image_processor": 1}"#] {
        assert_eq!(image_processor(without), None);
    }
}
