//! SigLIP's image towers, which open_clip's configs give by their names in timm.
//!
//! A name such as `vit_base_patch16_siglip_224` stands for width, depth and the rest. Here it is replaced by the fields
//! that it stands for, so that nothing else has to know names; a config that is written has the name again. A field
//! that a config gives beside the name holds in its place, which open_clip does not know: models of reduced depth have
//! no name.

use serde_json::{Map, Value, json};

use super::VisionConfig;

/// Width, blocks and heads by size.
const SIZES: [(&str, [usize; 3]); 4] = [
    ("base", [768, 12, 12]),
    ("large", [1024, 24, 16]),
    ("so400m", [1152, 27, 16]),
    ("giantopt", [1536, 40, 16]),
];

const NAME: &str = "timm_model_name";

/// The config with the fields that the name in it stands for; none where it has no name.
///
/// # Errors
/// When timm's tower is not one of SigLIP's, or is pooled or projected in another way.
pub(super) fn expanded(mut config: Value) -> Result<Option<String>, String> {
    let Some(vision) = vision_of(&mut config) else { return Ok(None) };
    let name = match vision.get(NAME) {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::String(name)) => name.clone(),
        Some(other) => return Err(format!("`vision_cfg.{NAME}`: {other}, expected a name")),
    };
    let fields =
        fields(&name).ok_or_else(|| format!("`vision_cfg.{NAME}`: `{name}` is not supported"))?;
    for (key, expected) in given() {
        match vision.remove(key) {
            None | Some(Value::Null) => {}
            Some(found) if found == expected => {}
            Some(found) => return Err(format!("`vision_cfg.{key}`: {found}, expected {expected}")),
        }
    }
    for (key, value) in fields {
        vision.entry(key).or_insert(value);
    }
    Ok(Some(config.to_string()))
}

/// The config without the fields that the name in it stands for; none where it has no name.
pub(super) fn shortened(config: &str) -> Option<String> {
    let mut config: Value = serde_json::from_str(config).ok()?;
    let vision = vision_of(&mut config)?;
    for (key, value) in fields(vision.get(NAME)?.as_str()?)? {
        if vision.get(&key) == Some(&value) {
            vision.remove(&key);
        }
    }
    vision.extend(given().map(|(key, value)| (key.to_owned(), value)));
    Some(format!("{config:#}"))
}

/// The name of timm's tower that computes the same, if it has one.
pub(super) fn named(vision: &VisionConfig) -> Option<String> {
    let [side, _] = vision.image_size.each();
    let patch = vision.patch()[0];
    let names = SIZES.iter().map(|(size, _)| format!("vit_{size}_patch{patch}_siglip_{side}"));
    let computes_the_same = |name: &String| {
        let Some(mut fields) = fields(name) else { return false };
        fields.insert("image_size".to_owned(), json!(side));
        let found = serde_json::from_value::<VisionConfig>(Value::Object(fields));
        found.is_ok_and(|found| {
            let mlp_ratio = match found.mlp_width() == vision.mlp_width() {
                true => vision.mlp_ratio,
                false => found.mlp_ratio,
            };
            let timm_model_name = vision.timm_model_name.clone();
            VisionConfig { mlp_ratio, timm_model_name, ..found } == *vision
        })
    };
    names.into_iter().find(computes_the_same)
}

fn vision_of(config: &mut Value) -> Option<&mut Map<String, Value>> {
    let model = match config.get("model_cfg") {
        Some(_) => config.get_mut("model_cfg")?,
        None => config,
    };
    model.get_mut("vision_cfg")?.as_object_mut()
}

/// What open_clip's configs say beside the name.
fn given() -> impl Iterator<Item = (&'static str, Value)> {
    [
        ("timm_model_pretrained", json!(false)),
        ("timm_pool", json!("map")),
        ("timm_proj", json!("none")),
    ]
    .into_iter()
}

/// What the name of one of SigLIP's towers stands for, as timm 1.0 has it.
fn fields(name: &str) -> Option<Map<String, Value>> {
    let rest = name.strip_prefix("vit_")?;
    let (size, rest) = rest.split_once("_patch")?;
    let (patch, side) = rest.split_once("_siglip_")?;
    let (patch, side): (usize, usize) = (patch.parse().ok()?, side.parse().ok()?);
    let &(_, [width, layers, heads]) = SIZES.iter().find(|(name, _)| *name == size)?;
    // Not by version: timm computes SigLIP2's B/16 and SO400M/14 by the error function.
    let tanh = matches!(
        (size, patch, side),
        ("base", 32, _) | ("large", _, 512) | ("so400m", 16, _) | ("giantopt", ..)
    );
    let mut fields = json!({
        "width": width,
        "layers": layers,
        "head_width": width / heads,
        "patch_size": patch,
        "pool_type": "map",
        "no_ln_pre": true,
        "norm_kwargs": {"eps": 1e-6},
    });
    if size == "so400m" {
        fields["mlp_ratio"] = json!(3.7362);
    }
    if tanh {
        fields["act_kwargs"] = json!({"approximate": "tanh"});
    }
    match fields {
        Value::Object(fields) => Some(fields),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use crate::config::{Config, ImagePool};
    use ferroclip_ops::Activation;

    const SO400M: &str = r#"{"embed_dim": 1152, "init_logit_bias": -10, "custom_text": true, "vision_cfg": {
        "image_size": 256, "timm_model_name": "vit_so400m_patch16_siglip_256", "timm_model_pretrained": false,
        "timm_pool": "map", "timm_proj": "none"}, "text_cfg": {"context_length": 64, "vocab_size": 250000,
        "width": 1152, "heads": 16, "layers": 27, "mlp_ratio": 3.7362, "no_causal_mask": true, "proj_bias": true,
        "pool_type": "last", "norm_kwargs": {"eps": 1e-6}}}"#;

    #[test]
    fn a_name_stands_for_the_fields_and_comes_back() {
        let config = Config::from_json(SO400M, "test").expect("a config");
        let vision = &config.model.vision_cfg;
        assert_eq!((vision.width, vision.layers.blocks(), vision.heads()), (1152, 27, 16));
        assert_eq!(
            (vision.mlp_width(), vision.pool_type, vision.no_ln_pre),
            (4304, ImagePool::Map, true)
        );
        // The image tower by tanh, the text tower by the error function: both are so in open_clip.
        assert_eq!(config.model.image_activation(), Activation::GeluTanh);
        assert_eq!(config.model.text_activation(), Activation::Gelu);
        let written: serde_json::Value = serde_json::from_str(&config.to_json()).expect("JSON");
        let read: serde_json::Value = serde_json::from_str(SO400M).expect("JSON");
        assert_eq!(written["model_cfg"]["vision_cfg"], read["vision_cfg"]);
        assert_eq!(Config::from_json(&config.to_json(), "test").expect("a config"), config);
    }

    #[test]
    fn other_towers_of_timm_are_refused_by_name() {
        let with = |from: &str, to: &str| {
            let error = Config::from_json(&SO400M.replace(from, to), "test").expect_err("refused");
            error.to_string()
        };
        assert!(with("vit_so400m_patch16_siglip_256", "convnext_base").contains("`convnext_base`"));
        assert!(with("siglip_256", "siglip_gap_256").contains("siglip_gap_256"));
        assert!(with("\"timm_pool\": \"map\"", "\"timm_pool\": \"avg\"").contains("timm_pool"));
        assert!(with("\"embed_dim\": 1152", "\"embed_dim\": 512").contains("embed_dim"));
    }
}
