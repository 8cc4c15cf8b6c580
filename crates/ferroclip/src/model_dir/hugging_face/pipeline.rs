//! The image pipeline of transformers: `preprocessor_config.json`, or a section of `processor_config.json`.

use serde_json::{Map, Value, json};

use crate::image::{Convention, ImagePipeline, Interpolation, ResizeMode};

/// The image pipeline of `CLIPImageProcessor`, or of `SiglipImageProcessor`, which has other defaults; a model's
/// `is_siglip` decides where the fields do not say.
pub(super) fn translated(
    fields: &Map<String, Value>,
    size: [usize; 2],
    is_siglip: bool,
    ignored: &mut Vec<String>,
) -> Result<ImagePipeline, String> {
    let flag = |key: &str| fields.get(key).and_then(Value::as_bool).unwrap_or(true);
    for key in ["do_resize", "do_rescale", "do_normalize", "do_convert_rgb"] {
        if !flag(key) {
            return Err(format!("`{key}`: false, which is not supported"));
        }
    }
    let factor = fields.get("rescale_factor").and_then(Value::as_f64).unwrap_or(1.0 / 255.0);
    if (factor * 255.0 - 1.0).abs() > 1e-6 {
        return Err(format!("`rescale_factor`: {factor}, expected 1/255"));
    }
    let class = fields.get("image_processor_type").and_then(Value::as_str);
    let is_siglip = class.map_or(is_siglip, |class| class.starts_with("Siglip"));
    let resize_mode = match fields.get("size") {
        None if is_siglip => ResizeMode::Squash,
        None => ResizeMode::Shortest,
        Some(value) => resize_mode(value, size)?,
    };
    if resize_mode == ResizeMode::Shortest {
        let crop = fields.get("crop_size").map_or(Some(size), sides);
        if !flag("do_center_crop") || crop != Some(size) {
            return Err(
                "`crop_size` and `do_center_crop` do not give the image tower's size".to_owned()
            );
        }
    }
    let interpolation = match fields.get("resample").map_or(Some(3), Value::as_u64) {
        Some(2) => Interpolation::Bilinear,
        Some(3) => Interpolation::Bicubic,
        _ => return Err(format!("`resample`: {}, expected 2 or 3", fields["resample"])),
    };
    let usual = ImagePipeline::default();
    let [usual_mean, usual_std] = match is_siglip {
        true => [[0.5; 3]; 2],
        false => [usual.mean, usual.std],
    };
    let known = [
        "do_resize",
        "do_rescale",
        "do_normalize",
        "do_convert_rgb",
        "do_center_crop",
        "rescale_factor",
        "size",
        "crop_size",
        "resample",
        "image_mean",
        "image_std",
    ];
    let left = fields.keys().filter(|key| !known.contains(&key.as_str()));
    ignored.extend(left.map(|key| format!("preprocessor_config.{key}")));
    let pipeline = ImagePipeline {
        size,
        mean: numbers(fields, "image_mean")?.unwrap_or(usual_mean),
        std: numbers(fields, "image_std")?.unwrap_or(usual_std),
        interpolation,
        resize_mode,
        convention: Convention::HuggingFace,
        ..usual
    };
    pipeline.validate().map_err(|e| e.to_string())?;
    Ok(pipeline)
}

/// How `size` asks for a picture to be fitted into the image tower's.
fn resize_mode(value: &Value, size: [usize; 2]) -> Result<ResizeMode, String> {
    let shortest = value.as_u64().or_else(|| value.get("shortest_edge").and_then(Value::as_u64));
    if size[0] == size[1] && shortest == Some(size[0] as u64) {
        return Ok(ResizeMode::Shortest);
    }
    match sides(value) {
        Some(found) if found == size && shortest.is_none() => Ok(ResizeMode::Squash),
        _ => Err(format!("`size`: {value}, the image tower has {size:?}")),
    }
}

/// `[height, width]` of a number or of an object with both.
fn sides(value: &Value) -> Option<[usize; 2]> {
    let side = |value: &Value| value.as_u64().and_then(|n| usize::try_from(n).ok());
    match side(value) {
        Some(square) => Some([square; 2]),
        None => Some([side(value.get("height")?)?, side(value.get("width")?)?]),
    }
}

fn numbers(fields: &Map<String, Value>, key: &str) -> Result<Option<[f32; 3]>, String> {
    let Some(value) = fields.get(key) else { return Ok(None) };
    serde_json::from_value(value.clone()).map(Some).map_err(|e| format!("`{key}`: {e}"))
}

/// What says the same to transformers.
pub(super) fn written(pipeline: &ImagePipeline, family: &str) -> Value {
    let [height, width] = pipeline.size;
    let both = json!({"height": height, "width": width});
    let crops = pipeline.resize_mode == ResizeMode::Shortest;
    // As written in f32: the nearest f64 has twice as many digits.
    let short = |numbers: [f32; 3]| numbers.map(|n| n.to_string().parse().unwrap_or(f64::from(n)));
    json!({
        "image_processor_type": if family == "clip" { "CLIPImageProcessor" } else { "SiglipImageProcessor" },
        "do_resize": true,
        "size": if crops { json!({"shortest_edge": height}) } else { both.clone() },
        "resample": match pipeline.interpolation {
            Interpolation::Bilinear => 2,
            Interpolation::Bicubic => 3,
        },
        "do_center_crop": crops,
        "crop_size": both,
        "do_rescale": true,
        "rescale_factor": 1.0 / 255.0,
        "do_normalize": true,
        "image_mean": short(pipeline.mean),
        "image_std": short(pipeline.std),
        "do_convert_rgb": true,
    })
}
