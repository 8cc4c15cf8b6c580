//! Against open_clip under `torch.optim.AdamW`: `fixtures/training/make.py` made the goldens.
#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "tests panic, and print distances")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use ferroclip::{Config, Precision, Weights, is_buffer};
use ferroclip_train::{
    AdamW, Batch, BatchOptions, Constants, Decay, Named, batch_gradient, clamp_logit_scale, track,
};
use safetensors::SafeTensors;

const BATCH: usize = 16;
const OPTIONS: BatchOptions = BatchOptions {
    micro_batch: BATCH,
    multi_positive: true,
    batch_statistics: false,
    precision: Precision::F32,
    recompute: false,
};

/// A Vision Transformer for ten steps.
const VIT: &str = "";
/// A ResNet in training mode for five steps.
const RESNET: &str = "resnet";

fn fixtures(model: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/training").join(model)
}

fn initial(model: &str) -> (Config, Weights) {
    let json = std::fs::read_to_string(fixtures(model).join("open_clip_config.json")).unwrap();
    let config = Config::from_json(&json, "open_clip_config.json").unwrap();
    let path = fixtures(model).join("open_clip_model.safetensors");
    let weights = Weights::load_for(&path, &config.model).unwrap();
    (config, weights)
}

fn texts(ids: &[i64]) -> Vec<Vec<u32>> {
    let end = *ids.iter().max().unwrap();
    let row = |row: &[i64]| {
        let len = row.iter().position(|&id| id == end).unwrap() + 1;
        row[..len].iter().map(|&id| id as u32).collect()
    };
    ids.chunks_exact(ids.len() / BATCH).map(row).collect()
}

fn read<const N: usize, T>(
    tensors: &SafeTensors<'_>,
    name: &str,
    from: fn([u8; N]) -> T,
) -> Vec<T> {
    let bytes = tensors.tensor(name).unwrap().data();
    bytes.as_chunks::<N>().0.iter().map(|&bytes| from(bytes)).collect()
}

fn batches(model: &str) -> Vec<Batch> {
    let bytes = std::fs::read(fixtures(model).join("batches.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let images = read(&tensors, "images", f32::from_le_bytes);
    let ids = read(&tensors, "ids", i64::from_le_bytes);
    let steps = tensors.tensor("images").unwrap().shape()[0];
    let images = images.chunks_exact(images.len() / steps);
    let ids = ids.chunks_exact(ids.len() / steps);
    let batch = |(pixels, ids): (&[f32], &[i64])| Batch {
        pixels: pixels.to_vec(),
        texts: texts(ids),
        keep: None,
    };
    images.zip(ids).map(batch).collect()
}

fn golden(model: &str) -> serde_json::Value {
    let json = std::fs::read_to_string(fixtures(model).join("training.json")).unwrap();
    serde_json::from_str(&json).unwrap()
}

/// The norm of `a - b` divided by that of `b`.
fn distance(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let difference = norm(&mut a.iter().zip(b).map(|(&a, &b)| f64::from(a) - f64::from(b)));
    difference / norm(&mut b.iter().map(|&b| f64::from(b))).max(1e-30)
}

fn assert_gradients(found: &Named, expected: &BTreeMap<String, Vec<f32>>, tolerance: f64) -> f64 {
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    let mut worst = 0.0_f64;
    for (name, expected) in expected {
        let distance = distance(&found[name], expected);
        assert!(distance <= tolerance, "{name}: {distance:e}");
        worst = worst.max(distance);
    }
    worst
}

fn named(weights: &Weights) -> BTreeMap<String, Vec<f32>> {
    weights.iter().map(|(name, tensor)| (name.clone(), tensor.data.clone())).collect()
}

/// Each rounding moves an operand by at most 2^-9; through the blocks of these small towers gradients
/// end a few percent away.
#[test]
fn gradients_in_bf16_stay_close() {
    let (config, weights) = initial(VIT);
    let stop = AtomicBool::new(false);
    let options = BatchOptions { precision: Precision::Bf16, ..OPTIONS };
    let found =
        batch_gradient(&config.model, &mut weights.clone(), &batches(VIT)[0], options, &stop)
            .unwrap();
    let expected = Weights::load(&fixtures(VIT).join("gradients.safetensors")).unwrap();
    let worst = assert_gradients(&found.gradients, &named(&expected), 0.05);
    assert!(worst > 1e-4, "nothing was rounded: {worst:e}");
}

#[test]
fn first_gradients_are_open_clips() {
    let (config, weights) = initial(VIT);
    let stop = AtomicBool::new(false);
    let found =
        batch_gradient(&config.model, &mut weights.clone(), &batches(VIT)[0], OPTIONS, &stop)
            .unwrap();
    let expected = Weights::load(&fixtures(VIT).join("gradients.safetensors")).unwrap();
    // f32 against f64 in PyTorch itself lies at about 1e-6.
    let worst = assert_gradients(&found.gradients, &named(&expected), 1e-4);
    eprintln!("worst gradient distance {worst:e}");
}

#[test]
fn equal_texts_are_positives_as_in_pytorch() {
    let (config, weights) = initial(VIT);
    let bytes = std::fs::read(fixtures(VIT).join("multi_positive.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let mut batch = batches(VIT).swap_remove(0);
    batch.texts = texts(&read(&tensors, "ids", i64::from_le_bytes));
    let stop = AtomicBool::new(false);
    let found =
        batch_gradient(&config.model, &mut weights.clone(), &batch, OPTIONS, &stop).unwrap();
    let loss = golden(VIT)["multi_positive"]["loss"].as_f64().unwrap();
    assert!((found.loss / loss - 1.0).abs() < 1e-5, "{} {loss}", found.loss);
    let expected = tensors.names().into_iter().filter_map(|name| {
        let values = || read(&tensors, name, f32::from_le_bytes);
        Some((name.strip_prefix("grad.")?.to_owned(), values()))
    });
    let worst = assert_gradients(&found.gradients, &expected.collect(), 1e-4);
    eprintln!("worst multi-positive gradient distance {worst:e}");
}

/// Several steps; losses and every tensor's change are those of PyTorch.
fn follows(model: &str, options: BatchOptions, rule: &str, decay: Decay) {
    let (config, mut weights) = initial(model);
    let start = weights.clone();
    let golden = golden(model);
    let constants = Constants { betas: [0.9, 0.98], eps: 1e-6, weight_decay: 0.2 };
    let sizes = weights.iter().map(|(name, tensor)| (name.as_str(), tensor.data.len()));
    let mut adam = AdamW::new(constants, sizes);
    let stop = AtomicBool::new(false);
    for (step, batch) in batches(model).iter().enumerate() {
        let found =
            batch_gradient(&config.model, &mut weights.clone(), batch, options, &stop).unwrap();
        let expected = golden["rules"][rule]["loss"][step].as_f64().unwrap();
        assert!(
            (found.loss / expected - 1.0).abs() < 1e-5,
            "step {step}: {} {expected}",
            found.loss
        );
        adam.begin_step();
        for (name, tensor) in weights.iter_mut().filter(|(name, _)| !is_buffer(name)) {
            let decays = decay.applies(name, tensor.shape.len());
            adam.update(name, &mut tensor.data, &found.gradients[name], 5e-4, decays);
        }
        track(&mut weights, &found.statistics);
        let scale = weights.get_mut("logit_scale").unwrap();
        scale.data[0] = clamp_logit_scale(scale.data[0]);
        let expected = golden["rules"][rule]["logit_scale"][step].as_f64().unwrap();
        assert!((f64::from(scale.data[0]) - expected).abs() < 1e-5);
    }
    let path = fixtures(model).join(format!("final_{rule}.safetensors"));
    let expected = Weights::load_for(&path, &config.model).unwrap();
    let mut worst = 0.0_f64;
    for (name, end) in expected.iter().filter(|(name, _)| !name.ends_with("k_proj.bias")) {
        let change = |end: &[f32]| -> Vec<f32> {
            let before = &start.get(name).unwrap().data;
            let change: Vec<f32> = end.iter().zip(before).map(|(a, b)| a - b).collect();
            // The exact gradient of a key bias is zero: Adam makes noise of its rounding.
            let third = change.len() / 3;
            match name.ends_with("in_proj_bias") {
                true => [&change[..third], &change[2 * third..]].concat(),
                false => change,
            }
        };
        let distance = distance(&change(&weights.get(name).unwrap().data), &change(&end.data));
        assert!(distance <= 2e-3, "{name}: {distance:e}");
        worst = worst.max(distance);
    }
    eprintln!("{rule}: worst change distance {worst:e}");
}

#[test]
fn ten_steps_follow_open_clip() {
    follows(VIT, OPTIONS, "modern", Decay::Standard);
}

#[test]
fn ten_steps_follow_open_clip_with_its_old_decay() {
    follows(VIT, OPTIONS, "legacy", Decay::Legacy);
}

const BATCH_STATISTICS: BatchOptions = BatchOptions { batch_statistics: true, ..OPTIONS };

#[test]
fn first_gradients_of_a_resnet_are_open_clips() {
    let (config, weights) = initial(RESNET);
    let stop = AtomicBool::new(false);
    let batch = &batches(RESNET)[0];
    let found = batch_gradient(&config.model, &mut weights.clone(), batch, BATCH_STATISTICS, &stop)
        .unwrap();
    let expected = Weights::load(&fixtures(RESNET).join("gradients.safetensors")).unwrap();
    let mut found = found.gradients;
    // Not trained, so PyTorch has no gradient for them; and a key bias has none but rounding.
    found.retain(|name, _| !is_buffer(name) && !name.ends_with("k_proj.bias"));
    let mut expected = named(&expected);
    expected.retain(|name, _| !name.ends_with("k_proj.bias"));
    let worst = assert_gradients(&found, &expected, 1e-4);
    eprintln!("resnet: worst gradient distance {worst:e}");
}

#[test]
fn a_resnet_in_training_mode_follows_open_clip() {
    follows(RESNET, BATCH_STATISTICS, "modern", Decay::Standard);
}

/// One batch of 64 at once and in four parts.
#[test]
fn micro_batches_do_not_change_the_gradients() {
    let (config, weights) = initial(VIT);
    let mut whole = Batch::default();
    for batch in &batches(VIT)[..4] {
        whole.pixels.extend(&batch.pixels);
        whole.texts.extend(batch.texts.iter().cloned());
    }
    // Some images show half of their patches; the others all.
    let keep =
        |i: usize| (0..16).filter(|cell| !i.is_multiple_of(3) || cell % 2 == i % 2).collect();
    for keep in [None, Some((0..64).map(keep).collect::<Vec<Vec<usize>>>())] {
        whole.keep = keep;
        let stop = AtomicBool::new(false);
        let gradient = |micro_batch, recompute| {
            let options = BatchOptions { micro_batch, recompute, ..OPTIONS };
            batch_gradient(&config.model, &mut weights.clone(), &whole, options, &stop).unwrap()
        };
        let at_once = gradient(64, false);
        // The same sums of the same numbers.
        assert_eq!(gradient(64, true).gradients, at_once.gradients);
        for micro_batch in [16, 24] {
            let parts = gradient(micro_batch, false);
            assert!((parts.loss / at_once.loss - 1.0).abs() < 1e-6);
            let worst = assert_gradients(&parts.gradients, &at_once.gradients, 1e-5);
            let scale = |found: &Named| f64::from(found["logit_scale"][0]);
            let (a, b) = (scale(&parts.gradients), scale(&at_once.gradients));
            assert!((a / b - 1.0).abs() < 1e-6, "logit_scale: {a} {b}");
            eprintln!("micro_batch {micro_batch}: worst gradient distance {worst:e}");
        }
    }
}
