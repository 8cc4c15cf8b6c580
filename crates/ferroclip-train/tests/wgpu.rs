//! The portable path on a Vulkan device against our kernels on the CPU: towers, and one training step.
//! Without a Vulkan device the tests fail.
#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "tests panic, and print distances")]

use std::path::Path;
use std::sync::LazyLock;
use std::sync::atomic::AtomicBool;

use burn::prelude::*;
use burn::tensor::wgpu::WgpuBackend;
use ferroclip::{
    Config, ImageTower, ModelConfig, Params, Precision, TextTower, Weights, is_buffer,
};
use ferroclip_train::{
    AdamW, Batch, BatchGradient, BatchOptions, Constants, Decay, Named, batch_gradient,
    batch_gradient_on,
};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

const PAIRS: usize = 6;

/// Both sides compute in f32, but add in another order, and the exponentials of a device are its own.
/// The bound of the towers against open_clip; a wrong operation moves an embedding by far more.
const EMBEDDINGS: f64 = 1e-5;
/// Sums over all rows, backward through each norm: the bound that `golden.rs` has for PyTorch.
const GRADIENTS: f64 = 1e-4;
/// Adam's first step divides each gradient by its own size, so that the relative error of the smallest
/// ones counts as much as that of the largest: the bound of `golden.rs` again.
const CHANGES: f64 = 2e-3;

/// One for all tests, as Burn makes a device once.
static VULKAN: LazyLock<Device> = LazyLock::new(|| {
    let options = Device::wgpu_options().graphics_api(WgpuBackend::Vulkan);
    let found = options.init_with_setup();
    let (device, setup) =
        found.expect("a Vulkan device; Debian's software one is in mesa-vulkan-drivers");
    let info = setup.adapter.get_info();
    eprintln!("{}, {:?}, {} {}", info.name, info.device_type, info.driver, info.driver_info);
    device
});

/// A model of `fixtures/towers`, where every parameter was redrawn, so that none is a neutral 0 or 1.
fn model(name: &str) -> (ModelConfig, Weights) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/towers").join(name);
    let json = std::fs::read_to_string(folder.join("open_clip_config.json")).unwrap();
    let config = Config::from_json(&json, name).unwrap().model;
    let weights = Weights::load_for(&folder.join("open_clip_model.safetensors"), &config).unwrap();
    (config, weights)
}

/// Pictures of noise, and texts of all lengths up to the context's, the first and the last the same.
fn batch(config: &ModelConfig) -> Batch {
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let mut number = || rng.next_u32();
    let pixels = (0..PAIRS * config.vision_cfg.image_len())
        .map(|_| number() as f32 / u32::MAX as f32 * 4.0 - 2.0)
        .collect();
    let (context, end) = (config.text_cfg.context_length, config.text_cfg.vocab_size as u32 - 1);
    let mut texts: Vec<Vec<u32>> = (0..PAIRS)
        .map(|i| {
            let words = (context - 2) * i / (PAIRS - 2);
            let words = (0..words).map(|_| number() % (end - 1));
            [end - 1].into_iter().chain(words).chain([end]).collect()
        })
        .collect();
    texts[PAIRS - 1] = texts[0].clone();
    Batch { pixels, texts, keep: None }
}

/// The norm of `a - b` divided by that of `b`.
fn distance(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let difference = norm(&mut a.iter().zip(b).map(|(&a, &b)| f64::from(a) - f64::from(b)));
    difference / norm(&mut b.iter().map(|&b| f64::from(b))).max(1e-30)
}

/// Distances by name: all within the tolerance, and printed.
fn check(what: &str, distances: Vec<(String, f64)>, tolerance: f64) {
    let order = |a: &&(String, f64), b: &&(String, f64)| a.1.total_cmp(&b.1);
    let (least, most) = (distances.iter().min_by(order), distances.iter().max_by(order));
    let ((least_name, least), (most_name, most)) = (least.unwrap(), most.unwrap());
    eprintln!("{what}: from {least:.1e} ({least_name}) to {most:.1e} ({most_name})");
    assert!(*most <= tolerance, "{what}: {most_name} is off by {most:e}");
    // Equal bits everywhere would mean that both were computed in one place.
    assert!(*most > 0.0, "{what}: nothing differs");
}

fn numbers(x: Tensor<2>) -> Vec<f32> {
    x.into_data().try_into_vec().unwrap()
}

fn outputs(name: &str, device: &Device) -> Vec<(&'static str, Vec<f32>)> {
    let (config, weights) = model(name);
    let Batch { pixels, texts, .. } = batch(&config);
    let params = Params::new(&weights, device);
    let (image, text) = (ImageTower::new(&config, &params), TextTower::new(&config, &params));
    let mut all = vec![
        ("images", numbers(image.forward(&pixels, PAIRS))),
        ("patches", numbers(image.patches(&pixels, PAIRS))),
        ("texts", numbers(text.forward(&texts))),
    ];
    if config.vision_cfg.layers.stages().is_none() {
        let keep = vec![vec![1, 2, 5]; PAIRS];
        all.push(("images of a few patches", numbers(image.forward_kept(&pixels, &keep))));
    }
    all
}

fn towers_agree(name: &str) {
    let pairs = outputs(name, &VULKAN).into_iter().zip(outputs(name, &Device::flex()));
    for ((what, found), (_, expected)) in pairs {
        let distance = distance(&found, &expected);
        check(name, vec![(what.to_owned(), distance)], EMBEDDINGS);
    }
}

#[test]
fn towers_of_a_transformer_agree() {
    towers_agree("base");
}

/// GELU in place of its quick form; the mean of all rows in place of the class row.
#[test]
fn towers_with_other_options_agree() {
    towers_agree("gelu-head20");
    towers_agree("avgpool");
}

#[test]
fn towers_of_a_resnet_agree() {
    towers_agree("resnet");
}

/// Means and variances that the batch norms saw.
fn statistics(side: &BatchGradient) -> Named {
    let moments = side.statistics.iter();
    moments.map(|(name, (m, _))| (name.clone(), [&m.mean[..], &m.variance].concat())).collect()
}

/// The change of each tensor by one step of AdamW.
fn changes(weights: &Weights, gradients: &Named) -> Named {
    let constants = Constants { betas: [0.9, 0.98], eps: 1e-6, weight_decay: 0.2 };
    let sizes = weights.iter().map(|(name, tensor)| (name.as_str(), tensor.data.len()));
    let mut adam = AdamW::new(constants, sizes);
    adam.begin_step();
    let trained = weights.iter().filter(|(name, _)| !is_buffer(name));
    let change = trained.map(|(name, before)| {
        let mut after = before.data.clone();
        let decays = Decay::Standard.applies(name, before.shape.len());
        adam.update(name, &mut after, &gradients[name], 5e-4, decays);
        (name.clone(), after.iter().zip(&before.data).map(|(a, b)| a - b).collect())
    });
    change.collect()
}

/// The exact gradient of a key bias is zero: what is found are roundings, which Adam makes large.
fn without_key_bias(name: &str, values: &[f32]) -> Vec<f32> {
    let third = values.len() / 3;
    match name {
        name if name.ends_with("k_proj.bias") => Vec::new(),
        name if name.ends_with("in_proj_bias") => [&values[..third], &values[2 * third..]].concat(),
        _ => values.to_vec(),
    }
}

/// Distances by the tensors' names.
fn distances(found: &Named, expected: &Named) -> Vec<(String, f64)> {
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    let distance = |(name, expected): (&String, &Vec<f32>)| {
        let [found, expected] = [&found[name], expected].map(|x| without_key_bias(name, x));
        (name.clone(), distance(&found, &expected))
    };
    expected.iter().map(distance).collect()
}

/// The gradients on the CPU and on the device; the weights stay as they are.
fn gradients(
    config: &ModelConfig,
    weights: &Weights,
    batch: &Batch,
    options: BatchOptions,
) -> [BatchGradient; 2] {
    let stop = AtomicBool::new(false);
    let expected = batch_gradient(config, &mut weights.clone(), batch, options, &stop).unwrap();
    let mut lent = weights.clone();
    let found = batch_gradient_on(&VULKAN, config, &mut lent, batch, options, &stop).unwrap();
    assert_eq!(lent, *weights, "weights that were lent to the device");
    [expected, found]
}

fn step_agrees(name: &str, what: &str, keep: Option<Vec<Vec<usize>>>, options: BatchOptions) {
    let (config, weights) = model(name);
    let batch = Batch { keep, ..batch(&config) };
    let [expected, found] = gradients(&config, &weights, &batch, options);
    let loss = (found.loss / expected.loss - 1.0).abs();
    eprintln!("{what}: loss {}, off by {loss:.1e}", expected.loss);
    // Logits are up to e^3 times a product of unit embeddings.
    assert!(loss <= EMBEDDINGS, "{what}: loss {} against {}", found.loss, expected.loss);
    let compare = |which: &str, of: &dyn Fn(&BatchGradient) -> Named, tolerance: f64| {
        check(&format!("{what}, {which}"), distances(&of(&found), &of(&expected)), tolerance);
    };
    compare("gradients", &|side| side.gradients.clone(), GRADIENTS);
    compare("changes", &|side| changes(&weights, &side.gradients), CHANGES);
}

const WHOLE: BatchOptions = BatchOptions {
    micro_batch: PAIRS,
    multi_positive: true,
    batch_statistics: false,
    precision: Precision::F32,
    recompute: false,
};

#[test]
fn a_step_of_a_transformer_agrees() {
    step_agrees("base", "transformer", None, WHOLE);
}

/// Two passes, and images that show unequally many patches.
#[test]
fn a_step_in_parts_agrees() {
    let keep = (0..PAIRS).map(|i| (0..16).filter(|cell| cell % (i + 1) == 0).collect()).collect();
    let parts = BatchOptions { micro_batch: 4, ..WHOLE };
    step_agrees("base", "transformer in parts", Some(keep), parts);
}

#[test]
fn a_step_of_a_resnet_agrees() {
    step_agrees("resnet", "resnet, frozen norms", None, WHOLE);
}

/// With the statistics of the batch. The gradients are compared as one vector: a shift in front of a
/// norm that takes means away has hardly a gradient, which is a difference of large numbers.
#[test]
fn a_step_of_a_resnet_by_the_batch_agrees() {
    let (config, weights) = model("resnet");
    let options = BatchOptions { batch_statistics: true, ..WHOLE };
    let [expected, found] = gradients(&config, &weights, &batch(&config), options);
    let loss = (found.loss / expected.loss - 1.0).abs();
    check("resnet", vec![("loss".to_owned(), loss)], EMBEDDINGS);
    let seen = distances(&statistics(&found), &statistics(&expected));
    check("resnet, statistics", seen, EMBEDDINGS);
    let all = |side: BatchGradient| side.gradients.into_values().flatten().collect::<Vec<f32>>();
    let [found, expected] = [found, expected].map(all);
    check("resnet, gradients", vec![("all".to_owned(), distance(&found, &expected))], GRADIENTS);
}
