//! The weights of a new model, drawn as OpenAI's and open_clip's constructors do.
//!
//! The text tower follows OpenAI's `initialize_parameters`; the blocks of the image tower keep
//! PyTorch's defaults there, and so here. Each tensor has its own stream of random numbers keyed by
//! (seed, name): its values depend on nothing else, be it the number of layers or the order.

use std::f64::consts::TAU;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use crate::config::ModelConfig;
use crate::param::{WeightTensor, Weights};

/// How the elements of a tensor are drawn.
enum Law {
    Constant(f32),
    /// Mean 0, this standard deviation.
    Normal(f64),
    /// Between minus and plus this bound.
    Uniform(f64),
}

/// Weights for a new model.
pub fn init(config: &ModelConfig, seed: u64) -> Weights {
    let tensors = config.parameter_shapes().into_iter().map(|(name, shape)| {
        let n = shape.iter().product();
        let data = draw(law(config, &name, &shape), n, Stream::new(seed, &name));
        (name, WeightTensor { shape, data })
    });
    tensors.collect()
}

fn law(config: &ModelConfig, name: &str, shape: &[usize]) -> Law {
    let vision_std = (config.vision_cfg.pooled_width() as f64).powf(-0.5);
    let text_std = (config.text_cfg.width as f64).powf(-0.5);
    match name {
        "logit_scale" => Law::Constant(config.init_logit_scale()),
        "logit_bias" => Law::Constant(config.init_logit_bias.unwrap_or(0.0)),
        "token_embedding.weight" => Law::Normal(0.02),
        "positional_embedding" => Law::Normal(0.01),
        "text_projection" => Law::Normal(text_std),
        "text_projection_bias" | "visual.conv1.bias" => Law::Constant(0.0),
        "visual.class_embedding"
        | "visual.positional_embedding"
        | "visual.proj"
        | "visual.attn_pool.probe" => Law::Normal(vision_std),
        _ if name.ends_with(".running_var") => Law::Constant(1.0),
        _ if name.ends_with(".running_mean") => Law::Constant(0.0),
        _ if shape.len() == 4 => torch_default(shape[1..].iter().product()),
        _ if is_resnet(name) => resnet_vector_or_pool(name, vision_std),
        _ if is_norm(name) && name.ends_with(".weight") => Law::Constant(1.0),
        _ if is_norm(name) => Law::Constant(0.0),
        _ if name.ends_with("attn.in_proj_bias") => Law::Constant(0.0),
        _ if name.ends_with("attn.out_proj.bias") => Law::Constant(0.0),
        _ if name.ends_with(".bias") => torch_default(bias_fan_in(config, name)),
        _ if name.starts_with("visual.") => image_matrix(name, shape),
        _ => text_matrix(config, name),
    }
}

fn is_norm(name: &str) -> bool {
    name.contains("ln_") || name.starts_with("visual.attn_pool.ln.")
}

fn is_resnet(name: &str) -> bool {
    ["visual.bn", "visual.layer", "visual.attnpool."].iter().any(|part| name.starts_with(part))
}

/// What a ResNet has besides convolutions. The last norm of each block begins at zero, so that the
/// block begins as its shortcut.
fn resnet_vector_or_pool(name: &str, pooled_std: f64) -> Law {
    match name {
        _ if name.starts_with("visual.attnpool.") && name.ends_with(".bias") => {
            // PyTorch's linear layer: the bound is that of the weight, 1 / sqrt(inputs).
            Law::Uniform(pooled_std)
        }
        _ if name.starts_with("visual.attnpool.") => Law::Normal(pooled_std),
        _ if name.starts_with("visual.layer") && name.ends_with("bn3.weight") => Law::Constant(0.0),
        _ if name.ends_with(".weight") => Law::Constant(1.0),
        _ => Law::Constant(0.0),
    }
}

/// PyTorch's linear and convolution layers, weight and bias.
fn torch_default(fan_in: usize) -> Law {
    Law::Uniform((fan_in as f64).powf(-0.5))
}

/// Inputs of the MLP layer that the bias belongs to.
fn bias_fan_in(config: &ModelConfig, name: &str) -> usize {
    let (vision, text) = (&config.vision_cfg, &config.text_cfg);
    match (name.starts_with("visual."), name.ends_with("c_fc.bias")) {
        (true, true) => vision.width,
        (true, false) => vision.mlp_width(),
        (false, true) => text.width,
        (false, false) => text.mlp_width(),
    }
}

fn image_matrix(name: &str, shape: &[usize]) -> Law {
    if name.ends_with("attn.in_proj_weight") {
        // Xavier's bound.
        return Law::Uniform((6.0 / (shape[0] + shape[1]) as f64).sqrt());
    }
    torch_default(shape[1])
}

fn text_matrix(config: &ModelConfig, name: &str) -> Law {
    let (width, layers) = (config.text_cfg.width as f64, config.text_cfg.layers as f64);
    Law::Normal(match name {
        _ if name.ends_with("attn.in_proj_weight") => width.powf(-0.5),
        _ if name.ends_with("mlp.c_fc.weight") => (2.0 * width).powf(-0.5),
        // The layers that write to the residual stream: smaller where there are more of them.
        _ => width.powf(-0.5) * (2.0 * layers).powf(-0.5),
    })
}

fn draw(law: Law, n: usize, mut stream: Stream) -> Vec<f32> {
    match law {
        Law::Constant(value) => vec![value; n],
        Law::Uniform(bound) => {
            (0..n).map(|_| ((2.0 * stream.unit() - 1.0) * bound) as f32).collect()
        }
        Law::Normal(std) => {
            let mut data = Vec::with_capacity(n + 1);
            while data.len() < n {
                data.extend(stream.normal_pair().map(|z| (z * std) as f32));
            }
            data.truncate(n);
            data
        }
    }
}

/// Random numbers of one tensor.
struct Stream(ChaCha8Rng);

impl Stream {
    fn new(seed: u64, name: &str) -> Self {
        // FNV-1a: a fixed function, unlike the standard library's hasher.
        let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        let mut key = [0; 32];
        key[..8].copy_from_slice(&seed.to_le_bytes());
        key[8..16].copy_from_slice(&hash.to_le_bytes());
        key[16..20].copy_from_slice(b"init");
        Stream(ChaCha8Rng::from_seed(key))
    }

    /// In [0, 1).
    fn unit(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 * (-53f64).exp2()
    }

    /// Two independent standard normal numbers, by Box and Muller.
    fn normal_pair(&mut self) -> [f64; 2] {
        let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        let (sin, cos) = (TAU * self.unit()).sin_cos();
        [radius * cos, radius * sin]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Layers};

    fn transformer() -> ModelConfig {
        let json = r#"{
            "embed_dim": 192,
            "vision_cfg": {"image_size": 64, "layers": 4, "width": 192, "head_width": 32, "patch_size": 16},
            "text_cfg": {"context_length": 32, "vocab_size": 2048, "width": 128, "heads": 4, "layers": 3}
        }"#;
        Config::from_json(json, "a test").expect("a valid config").model
    }

    fn moments(data: &[f32]) -> (f64, f64) {
        let n = data.len() as f64;
        let mean = data.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
        let variance = data.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / n;
        (mean, variance.sqrt())
    }

    #[test]
    fn standard_deviations_are_those_of_open_clip() {
        let config = transformer();
        let weights = init(&config, 3);
        let (w, l) = (config.text_cfg.width as f64, config.text_cfg.layers as f64);
        let (vision, mlp) = (config.vision_cfg.width as f64, config.vision_cfg.mlp_width() as f64);
        let uniform = |fan_in: f64| (1.0 / (3.0 * fan_in)).sqrt();
        let cases = [
            ("token_embedding.weight", 0.02),
            ("positional_embedding", 0.01),
            ("text_projection", w.powf(-0.5)),
            ("transformer.resblocks.1.attn.in_proj_weight", w.powf(-0.5)),
            ("transformer.resblocks.1.attn.out_proj.weight", (2.0 * w * l).powf(-0.5)),
            ("transformer.resblocks.1.mlp.c_fc.weight", (2.0 * w).powf(-0.5)),
            ("transformer.resblocks.1.mlp.c_proj.weight", (2.0 * w * l).powf(-0.5)),
            ("visual.proj", vision.powf(-0.5)),
            ("visual.conv1.weight", uniform(768.0)),
            ("visual.transformer.resblocks.0.attn.in_proj_weight", (0.5 / vision).sqrt()),
            ("visual.transformer.resblocks.0.mlp.c_proj.weight", uniform(mlp)),
        ];
        for (name, std) in cases {
            let (mean, found) = moments(&weights.get(name).expect(name).data);
            assert!((found / std - 1.0).abs() < 0.04, "{name}: {found} for {std}");
            assert!(mean.abs() < 0.05 * std, "{name}: mean {mean}");
        }
        assert!(weights.differences(&config).is_empty());
    }

    #[test]
    fn a_resnet_begins_as_open_clips() {
        let json = r#"{
            "embed_dim": 192,
            "vision_cfg": {"image_size": 64, "layers": [1, 2, 1, 1], "width": 16, "patch_size": null},
            "text_cfg": {"context_length": 32, "vocab_size": 514, "width": 32, "heads": 4, "layers": 1}
        }"#;
        let config = Config::from_json(json, "a test").expect("a valid config").model;
        let weights = init(&config, 3);
        let (pooled, uniform) = (512.0_f64, |fan_in: f64| (1.0 / (3.0 * fan_in)).sqrt());
        let cases = [
            ("visual.conv3.weight", uniform(8.0 * 9.0)),
            ("visual.layer4.0.conv1.weight", uniform(256.0)),
            ("visual.layer4.0.downsample.0.weight", uniform(256.0)),
            ("visual.attnpool.positional_embedding", pooled.powf(-0.5)),
            ("visual.attnpool.k_proj.weight", pooled.powf(-0.5)),
            ("visual.attnpool.c_proj.weight", pooled.powf(-0.5)),
            ("visual.attnpool.q_proj.bias", uniform(pooled)),
        ];
        for (name, std) in cases {
            let found = moments(&weights.get(name).expect(name).data).1;
            assert!((found / std - 1.0).abs() < 0.05, "{name}: {found} for {std}");
        }
        let all = |name: &str, value: f32| {
            weights.get(name).expect(name).data.iter().all(|&found| found == value)
        };
        assert!(all("visual.layer2.1.bn3.weight", 0.0) && all("visual.layer2.1.bn2.weight", 1.0));
        assert!(all("visual.bn3.weight", 1.0) && all("visual.bn1.bias", 0.0));
        assert!(all("visual.layer2.0.downsample.1.running_var", 1.0));
        assert!(all("visual.layer2.0.downsample.1.running_mean", 0.0));
        assert!(weights.differences(&config).is_empty());
    }

    #[test]
    fn a_tensor_depends_on_seed_and_name_only() {
        let config = transformer();
        let mut deeper = config.clone();
        deeper.vision_cfg.layers = Layers::Blocks(deeper.vision_cfg.layers.blocks() + 1);
        let (a, b, other) = (init(&config, 1), init(&deeper, 1), init(&config, 2));
        assert_eq!(a.get("visual.proj"), b.get("visual.proj"));
        assert_ne!(a.get("visual.proj"), other.get("visual.proj"));
        assert_ne!(
            a.get("transformer.resblocks.0.mlp.c_fc.weight"),
            a.get("transformer.resblocks.1.mlp.c_fc.weight")
        );
    }
}
