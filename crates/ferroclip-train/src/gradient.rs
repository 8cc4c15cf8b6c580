//! The exact gradient of one big batch, a part of it in memory at a time (gradient caching).
//!
//! ```text
//! for each micro-batch   unit embeddings, without a tape
//! once                   loss of all pairs; its gradient d by each unit embedding
//! for each micro-batch   unit embeddings with a tape; backward from sum(unit * d); add up
//! ```
//!
//! By the chain rule the sum over micro-batches is the gradient of the whole, `logit_scale`
//! included; only the order of f32 sums differs. A batch that is one micro-batch keeps its tape
//! from the first pass and needs no second one.

use std::sync::atomic::{AtomicBool, Ordering};

use burn::prelude::*;
use burn::tensor::TensorData;
use ferroclip::{BatchStatistics, ImageTower, ModelConfig, Params, Precision, TextTower, Weights};
use ferroclip_kernels::{Isa, contrastive_loss};
use ferroclip_ops::unit_rows;
use rayon::prelude::*;

use crate::optimizer::Named;
use crate::positives::positive_groups;

/// The pairs of one step.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// `[B, 3, height, width]`.
    pub pixels: Vec<f32>,
    /// Token ids of each text, with start and end.
    pub texts: Vec<Vec<u32>>,
    /// The patches that each image shows; none for all.
    pub keep: Option<Vec<Vec<usize>>>,
}

/// What a batch gives.
#[derive(Clone, Debug)]
pub struct BatchGradient {
    /// The loss.
    pub loss: f64,
    /// The gradient of every tensor; zeros for the running statistics of batch norms.
    pub gradients: Named,
    /// What the batch norms saw, where they use the statistics of the batch.
    pub statistics: BatchStatistics,
}

/// How to go through a batch.
#[derive(Clone, Copy, Debug)]
pub struct BatchOptions {
    /// Pairs in memory at a time.
    pub micro_batch: usize,
    /// Rows with equal texts are positives of each other.
    pub multi_positive: bool,
    /// Batch norms use the statistics of the batch, not the running ones. A micro-batch would then
    /// be a batch of its own, so it must be whole.
    pub batch_statistics: bool,
    /// What the operands of products are rounded to: f32 or bf16.
    pub precision: Precision,
    /// Transformer blocks keep nothing but their inputs for the backward pass and compute the rest
    /// again.
    pub recompute: bool,
}

/// Both towers on one device.
struct Towers {
    params: Params,
    image: ImageTower,
    text: TextTower,
}

impl Towers {
    fn new(config: &ModelConfig, params: Params) -> Towers {
        let image = ImageTower::new(config, &params);
        let text = TextTower::new(config, &params);
        Towers { params, image, text }
    }

    /// Unit embeddings of the pairs in `range`; by the statistics of the batch where there is a
    /// place to note them.
    fn forward(
        &self,
        batch: &Batch,
        range: std::ops::Range<usize>,
        statistics: Option<&mut BatchStatistics>,
    ) -> [Tensor<2>; 2] {
        let image_len = batch.pixels.len() / batch.texts.len();
        let pixels = &batch.pixels[range.start * image_len..range.end * image_len];
        let images = match (&batch.keep, statistics) {
            (Some(keep), _) => self.image.forward_kept(pixels, &keep[range.clone()]),
            (None, Some(statistics)) => self.image.forward_batch(pixels, range.len(), statistics),
            (None, None) => self.image.forward(pixels, range.len()),
        };
        [unit_rows(images), unit_rows(self.text.forward(&batch.texts[range]))]
    }

    /// Adds the gradients that reach the parameters from these of the unit embeddings.
    fn backward(&self, units: [Tensor<2>; 2], d_units: [&[f32]; 2], sum: &mut Named) {
        let [images, texts] = units;
        let d = |unit: &Tensor<2>, d: &[f32]| {
            Tensor::<2>::from_data(TensorData::new(d.to_vec(), unit.dims()), self.params.device())
        };
        let [d_images, d_texts] = [d(&images, d_units[0]), d(&texts, d_units[1])];
        let surrogate = (images * d_images).sum() + (texts * d_texts).sum();
        // One after the other: those of a micro-batch and their sum are each as large as the model.
        self.params.gradients(&mut surrogate.backward(), |name, len, gradient| {
            match (sum.get_mut(name), gradient) {
                (Some(sum), Some(gradient)) => add(sum, &gradient),
                (Some(_), None) => {}
                (None, gradient) => {
                    sum.insert(name.to_owned(), gradient.unwrap_or_else(|| vec![0.0; len]));
                }
            }
        });
    }
}

/// Numbers that one task adds.
const CHUNK: usize = 1 << 16;

fn add(sum: &mut [f32], values: &[f32]) {
    sum.par_chunks_mut(CHUNK).zip(values.par_chunks(CHUNK)).for_each(|(sum, values)| {
        sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
    });
}

/// The loss and the gradients of a batch; the weights stay as they are. `None` where `stop` was raised between micro-batches.
///
/// # Panics
/// Where the batch is empty, the weights are not those of the config, or batch norms shall use the
/// statistics of a batch that is not one micro-batch.
pub fn batch_gradient(
    config: &ModelConfig,
    weights: &mut Weights,
    batch: &Batch,
    options: BatchOptions,
    stop: &AtomicBool,
) -> Option<BatchGradient> {
    batch_gradient_on(&Device::flex(), config, weights, batch, options, stop)
}

/// As [`batch_gradient`], with the towers on this device; the loss is computed on the CPU.
///
/// # Panics
/// As [`batch_gradient`]; also where the precision is not f32 on a device that is not the CPU, as
/// nothing is rounded there.
pub fn batch_gradient_on(
    device: &Device,
    config: &ModelConfig,
    weights: &mut Weights,
    batch: &Batch,
    options: BatchOptions,
    stop: &AtomicBool,
) -> Option<BatchGradient> {
    let rounds = *device == Device::flex() || options.precision == Precision::F32;
    assert!(rounds, "{:?} on {device:?}, where products are f32", options.precision);
    let logit_scale = weights.get("logit_scale").expect("every model has one").data[0];
    // The weights are lent to the towers, not copied.
    let params = Params::from_weights(std::mem::take(weights), &device.clone().autodiff());
    let tracked =
        Towers::new(config, params.rounded(options.precision).recomputed(options.recompute));
    let found = gradient_of(config, &tracked, logit_scale, batch, options, stop);
    let Towers { params, image, text } = tracked;
    drop((image, text));
    *weights = params.into_weights(config);
    found
}

fn gradient_of(
    config: &ModelConfig,
    tracked: &Towers,
    logit_scale: f32,
    batch: &Batch,
    options: BatchOptions,
    stop: &AtomicBool,
) -> Option<BatchGradient> {
    let n = batch.texts.len();
    let parts: Vec<_> = (0..n)
        .step_by(options.micro_batch.max(1))
        .map(|start| start..(start + options.micro_batch.max(1)).min(n))
        .collect();
    assert!(parts.len() == 1 || !options.batch_statistics, "batch statistics of a part of a batch");
    let (mut kept, mut statistics) = (None, BatchStatistics::new());
    let (mut images, mut texts) = (Vec::new(), Vec::new());
    if let [whole] = &parts[..] {
        let noted = options.batch_statistics.then_some(&mut statistics);
        let units = tracked.forward(batch, whole.clone(), noted);
        [images, texts] = units.clone().map(|unit| numbers(unit.inner()));
        kept = Some(units);
    } else {
        let plain = Towers::new(config, tracked.params.inner());
        for part in &parts {
            let [image, text] = plain.forward(batch, part.clone(), None).map(numbers);
            images.extend(image);
            texts.extend(text);
            if stop.load(Ordering::Relaxed) {
                return None;
            }
        }
    }

    let groups = positive_groups(&batch.texts, options.multi_positive);
    let loss = contrastive_loss(Isa::active(), &images, &texts, &groups, logit_scale);
    drop((images, texts));

    let mut gradients = Named::new();
    let dim = config.embed_dim;
    for part in parts {
        let rows = part.start * dim..part.end * dim;
        let units = kept.take().unwrap_or_else(|| tracked.forward(batch, part, None));
        tracked.backward(
            units,
            [&loss.d_images[rows.clone()], &loss.d_texts[rows]],
            &mut gradients,
        );
        if stop.load(Ordering::Relaxed) {
            return None;
        }
    }
    gradients.insert("logit_scale".to_owned(), vec![loss.d_logit_scale]);
    Some(BatchGradient { loss: loss.value, gradients, statistics })
}

fn numbers(x: Tensor<2>) -> Vec<f32> {
    x.into_data().try_into_vec().expect("the towers compute in f32")
}
