//! The towers against open_clip: `fixtures/towers` holds small models that open_clip built, with
//! every parameter redrawn, and what PyTorch computed with them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::prelude::*;
use ferroclip::{Config, ImageTower, Params, Precision, TextTower, Weights, init};
use ferroclip_ops::unit_rows;
use safetensors::{Dtype, SafeTensors};

/// Vision Transformers.
const VARIANTS: [&str; 6] =
    ["base", "gelu-head20", "avgpool", "no-ln-pre", "patch14-odd", "non-square"];
const RESNET: &str = "resnet";

fn all_variants() -> impl Iterator<Item = &'static str> {
    VARIANTS.into_iter().chain([RESNET])
}

/// Unit embeddings: the bound of the design. PyTorch's own f32 noise is below 1e-6.
const UNIT_TOLERANCE: f32 = 1e-5;

fn folder(variant: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/towers").join(variant)
}

/// A golden tensor: shape and elements, integers as f32 too (ids are small).
type Golden = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

fn golden(variant: &str) -> Golden {
    let bytes =
        std::fs::read(folder(variant).join("inputs_outputs.safetensors")).expect("a golden");
    let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let tensors = file.tensors().into_iter().map(|(name, view)| {
        let data = match view.dtype() {
            Dtype::F32 => {
                view.data().as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect()
            }
            Dtype::I64 => {
                view.data().as_chunks().0.iter().map(|&b| i64::from_le_bytes(b) as f32).collect()
            }
            other => panic!("`{name}` is {other:?}"),
        };
        (name, (view.shape().to_vec(), data))
    });
    tensors.collect()
}

fn parts(variant: &str) -> (Config, Weights) {
    let json = std::fs::read_to_string(folder(variant).join("open_clip_config.json"));
    let config = Config::from_json(&json.expect("a config"), variant).expect("a valid config");
    let path = folder(variant).join("open_clip_model.safetensors");
    let weights = Weights::load_for(&path, &config.model).expect("the weights of the config");
    (config, weights)
}

struct Case {
    golden: Golden,
    image: ImageTower,
    text: TextTower,
}

impl Case {
    fn new(variant: &str, device: &Device) -> Case {
        let (config, weights) = parts(variant);
        let params = Params::new(&weights, device);
        Case {
            golden: golden(variant),
            image: ImageTower::new(&config.model, &params),
            text: TextTower::new(&config.model, &params),
        }
    }

    /// With packed weights, on the CPU.
    fn packed(variant: &str, precision: Precision) -> Case {
        let (config, weights) = parts(variant);
        Case {
            golden: golden(variant),
            image: ImageTower::packed(&config.model, weights.clone(), precision),
            text: TextTower::packed(&config.model, weights, precision),
        }
    }

    fn images(&self) -> (&[f32], usize) {
        let (shape, data) = &self.golden["images"];
        (data, shape[0])
    }

    fn texts(&self) -> Vec<Vec<u32>> {
        let (shape, data) = &self.golden["ids"];
        data.chunks(shape[1]).map(|ids| ids.iter().map(|&id| id as u32).collect()).collect()
    }
}

fn numbers<const D: usize>(x: Tensor<D>) -> Vec<f32> {
    x.into_data().try_into_vec().expect("f32")
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

fn check_against_open_clip(case: impl Fn(&str) -> Case) {
    for variant in all_variants() {
        let case = case(variant);
        let (pixels, n) = case.images();
        let image = case.image.forward(pixels, n);
        let text = case.text.forward(&case.texts());
        for (name, x) in [("image", image), ("text", text)] {
            let unit = largest_difference(
                &numbers(unit_rows(x.clone())),
                &case.golden[&format!("{name}_unit")].1,
            );
            assert!(unit <= UNIT_TOLERANCE, "{variant}: {name} unit embedding off by {unit}");
            // Before normalisation the tolerance grows with the embedding.
            let reference = &case.golden[&format!("{name}_embedding")].1;
            let size = reference.iter().fold(1.0, |m: f32, v| m.max(v.abs()));
            let off = largest_difference(&numbers(x), reference);
            assert!(off <= UNIT_TOLERANCE * size, "{variant}: {name} embedding off by {off}");
        }
    }
}

#[test]
fn embeddings_are_open_clips() {
    check_against_open_clip(|variant| Case::new(variant, &Device::flex()));
}

#[test]
fn embeddings_with_packed_weights_are_open_clips() {
    check_against_open_clip(|variant| Case::packed(variant, Precision::F32));
}

/// The smallest cosine of a row to open_clip's. These models are narrow and their weights redrawn:
/// fewer terms than in a real one for roundings to cancel in.
#[test]
fn short_numbers_stay_close_to_open_clip() {
    for (precision, bound) in [(Precision::Bf16, 0.9998), (Precision::Int8, 0.998)] {
        for variant in VARIANTS {
            let case = Case::packed(variant, precision);
            let (pixels, n) = case.images();
            for (name, x) in [
                ("image", case.image.forward(pixels, n)),
                ("text", case.text.forward(&case.texts())),
            ] {
                let dim = x.dims()[1];
                let unit = numbers(unit_rows(x));
                let reference = &case.golden[&format!("{name}_unit")].1;
                for (a, b) in unit.chunks(dim).zip(reference.chunks(dim)) {
                    let cosine: f32 = a.iter().zip(b).map(|(a, b)| a * b).sum();
                    assert!(cosine >= bound, "{variant}, {precision:?}: {name} {cosine}");
                }
            }
        }
    }
}

#[test]
fn features_before_the_projection_are_open_clips() {
    let kinds: [fn(&str) -> Case; 2] =
        [|v| Case::new(v, &Device::flex()), |v| Case::packed(v, Precision::F32)];
    for (variant, case) in all_variants().flat_map(|v| kinds.map(|case| (v, case(v)))) {
        let (pixels, n) = case.images();
        let found = [
            ("image_pooled", case.image.pooled(pixels, n)),
            ("image_patches", case.image.patches(pixels, n)),
            ("text_pooled", case.text.pooled(&case.texts())),
        ];
        for (name, x) in found {
            let (shape, reference) = &case.golden[name];
            if name == "image_patches" {
                assert_eq!(shape[1..], case.image.patch_shape(), "{variant}");
            }
            let size = reference.iter().fold(1.0, |m: f32, v| m.max(v.abs()));
            let off = largest_difference(&numbers(x), reference);
            assert!(off <= UNIT_TOLERANCE * size, "{variant}: {name} off by {off}");
        }
    }
}

#[test]
fn embeddings_are_open_clips_with_autodiff_on() {
    check_against_open_clip(|variant| Case::new(variant, &Device::flex().autodiff()));
}

#[test]
fn a_row_does_not_depend_on_its_batch() {
    let all = [Precision::F32, Precision::Bf16, Precision::Int8];
    let packed = all_variants().flat_map(|v| all.map(|precision| (v, Case::packed(v, precision))));
    let plain = all_variants().map(|v| (v, Case::new(v, &Device::flex())));
    for (variant, case) in plain.chain(packed) {
        let (pixels, n) = case.images();
        let together = numbers(case.image.forward(pixels, n));
        let alone = pixels.chunks(pixels.len() / n);
        let alone: Vec<f32> =
            alone.flat_map(|image| numbers(case.image.forward(image, 1))).collect();
        assert_eq!(together, alone, "{variant}: images");
        let texts = case.texts();
        let together = numbers(case.text.forward(&texts));
        let alone: Vec<f32> =
            texts.iter().flat_map(|text| numbers(case.text.forward(&[text]))).collect();
        assert_eq!(together, alone, "{variant}: texts");
    }
}

#[test]
fn nothing_behind_the_end_of_text_is_read() {
    let case = Case::new("base", &Device::flex());
    let short: [u32; 4] = [510, 3, 7, 511];
    let long: [u32; 8] = [510, 3, 7, 511, 9, 511, 0, 0];
    assert_eq!(numbers(case.text.forward(&[short])), numbers(case.text.forward(&[long])));
}

#[test]
fn keeping_all_patches_changes_nothing_and_their_order_hardly() {
    for variant in VARIANTS {
        let case = Case::new(variant, &Device::flex());
        let (pixels, n) = case.images();
        let cells = case.golden["image_rows.0"].0[1] - 1;
        let all: Vec<usize> = (0..cells).collect();
        let reversed: Vec<usize> = (0..cells).rev().collect();
        let usual = numbers(case.image.forward(pixels, n));
        let kept = numbers(case.image.forward_kept(pixels, &vec![all; n]));
        assert!(largest_difference(&usual, &kept) <= 1e-5, "{variant}");
        let kept = numbers(case.image.forward_kept(pixels, &vec![reversed; n]));
        // Sums in another order.
        assert!(largest_difference(&usual, &kept) <= 2e-5, "{variant}");
    }
}

#[test]
fn one_tower_serves_several_backward_passes() {
    let json = std::fs::read_to_string(folder("base").join("open_clip_config.json"));
    let small = Config::from_json(&json.expect("a config"), "base").expect("a valid config").model;
    let params = Params::new(&init(&small, 5), &Device::flex().autodiff());
    let (image, text) = (ImageTower::new(&small, &params), TextTower::new(&small, &params));
    let pixels: Vec<f32> = (0..small.vision_cfg.image_len()).map(|i| (i as f32).sin()).collect();
    let end = small.text_cfg.vocab_size as u32 - 1;
    let gradients = || {
        let x = image.forward(&pixels, 1) + text.forward(&[[end - 1, 5, 9, end]]);
        let mut found = BTreeMap::new();
        params.gradients(&mut (x.clone() * x).sum().backward(), |name, len, gradient| {
            found.insert(name.to_owned(), gradient.unwrap_or_else(|| vec![0.0; len]));
        });
        found
    };
    let (first, second) = (gradients(), gradients());
    assert_eq!(first, second);
    for (name, gradient) in &first {
        let norm: f32 = gradient.iter().map(|v| v * v).sum();
        // The scale has no part in this loss.
        assert_eq!(norm == 0.0, name == "logit_scale", "{name}: {norm}");
    }
}
