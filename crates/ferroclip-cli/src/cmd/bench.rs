//! `bench`: rates of the towers and of training steps on random inputs.

use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use ferroclip::Clip;
use ferroclip_kernels::Isa;
use ferroclip_train::{Batch, StepBench};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use serde_json::{Value, json};

use crate::common::Common;
use crate::error::{Done, Error, Result};
use crate::interrupt;
use crate::model::ModelArgs;
use crate::output;

/// How long each measurement runs at least.
const PERIOD: Duration = Duration::from_secs(2);
/// Tokens of a random text, start and end included.
const TEXT_TOKENS: usize = 12;

#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    /// Inputs that go through a tower together
    #[arg(long, value_name = "N", default_value_t = 32)]
    batch: usize,
    /// What to measure
    #[arg(long, value_delimiter = ',', default_values = ["image", "text"])]
    what: Vec<What>,
    #[command(flatten)]
    model: ModelArgs,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum What {
    /// The image tower, pixels to embeddings
    Image,
    /// The text tower, ids to embeddings
    Text,
    /// Optimiser steps on pairs: forward, backward, AdamW; `train --dry-run` adds reading the data
    Train,
}

pub(crate) fn run(args: &BenchArgs, common: &Common) -> Result<Done> {
    if !(1..=65_536).contains(&args.batch) {
        return Err(Error::usage("`--batch` is out of range").hint("give 1 to 65536"));
    }
    let clip = args.model.open()?;
    let mut document = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "model": args.model.model,
        "isa": Isa::active().name(),
        "threads": args.model.compute.n_threads(),
        "precision": args.model.compute.precision.name(),
    });
    let mut rows = Vec::new();
    for what in &args.what {
        let (name, ms) = match what {
            What::Image => ("image", measure(image_batch(&clip, args.batch))?),
            What::Text => ("text", measure(text_batch(&clip, args.batch))?),
            What::Train => ("train", measure(train_batch(&clip, args)?)?),
        };
        let per_s = args.batch as f64 * 1000.0 / ms;
        document[name] = json!({"batch": args.batch, "per_s": per_s, "ms": ms});
        let numbers = [args.batch.to_string(), format!("{per_s:.1}"), format!("{ms:.1}")];
        rows.push([&[name.to_owned()], &numbers[..]].concat());
    }
    match common.json {
        true => output::print_json(&document)?,
        false => output::print(&format!(
            "{}{}",
            output::table(&["what", "batch", "per s", "ms"], &rows, &[1, 2, 3]),
            heading(&document)
        ))?,
    }
    Ok(Done::All)
}

fn heading(document: &Value) -> String {
    let field = |name: &str| document[name].to_string().replace('"', "");
    let [model, isa] = [field("model"), field("isa")];
    format!("model {model}, {isa}, {} threads, {}\n", field("threads"), field("precision"))
}

fn image_batch(clip: &Clip, batch: usize) -> impl FnMut() + '_ {
    let pixels = random_pixels(clip, batch);
    move || {
        // Reading the result waits for a device that computes on its own.
        let _ = clip.image_tower().forward(&pixels, batch).into_data();
    }
}

fn text_batch(clip: &Clip, batch: usize) -> impl FnMut() + '_ {
    let texts = random_texts(clip, batch);
    move || {
        let _ = clip.text_tower().forward(&texts).into_data();
    }
}

fn train_batch(clip: &Clip, args: &BenchArgs) -> Result<impl FnMut() + use<>> {
    let files = args.model.files()?;
    let mut bench = StepBench::new(files.config.model, files.weights);
    let (pixels, texts) = (random_pixels(clip, args.batch), random_texts(clip, args.batch));
    let batch = Batch { pixels, texts, keep: None };
    Ok(move || {
        // A step that was stopped is told by `measure`.
        let _ = bench.step(&batch, &interrupt::STOP);
    })
}

fn random_pixels(clip: &Clip, batch: usize) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let n = batch * clip.config().model.vision_cfg.image_len();
    let number = |_| rng.next_u32() as f32 / u32::MAX as f32 * 4.0 - 2.0;
    (0..n).map(number).collect()
}

fn random_texts(clip: &Clip, batch: usize) -> Vec<Vec<u32>> {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let tokenizer = clip.tokenizer();
    let (start, end) = (tokenizer.start_id(), tokenizer.end_id());
    let n_words = TEXT_TOKENS.min(clip.config().model.text_cfg.context_length).saturating_sub(2);
    let mut text = |_| {
        let words = (0..n_words).map(|_| rng.next_u32() % start);
        std::iter::once(start).chain(words).chain([end]).collect()
    };
    (0..batch).map(&mut text).collect()
}

/// The median milliseconds of a call.
fn measure(mut call: impl FnMut()) -> Result<f64> {
    call();
    let begin = Instant::now();
    let mut times = Vec::new();
    while times.len() < 3 || begin.elapsed() < PERIOD {
        interrupt::check()?;
        let start = Instant::now();
        call();
        times.push(start.elapsed().as_secs_f64() * 1000.0);
    }
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}
