//! `bench`: rates of the towers and of training steps, and of the cores themselves.

mod inputs;
mod paced;

use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use ferroclip::{ImageEncoder, ModelFiles, TextEncoder};
use ferroclip_kernels::{Isa, fma_rate};
use ferroclip_train::{Batch, BatchOptions, StepBench};
use serde_json::{Value, json};

use self::inputs::{random_pixels, text_batches};
use crate::common::Common;
use crate::error::{Done, Error, Result};
use crate::interrupt;
use crate::model::{Encoders, ModelArgs, Need, PrecisionArg};
use crate::output;

/// How long each measurement runs at least.
const PERIOD: Duration = Duration::from_secs(2);
/// Steps of the loop of multiply-adds in a round: about a tenth of a second.
const FMA_STEPS: usize = 50_000_000;

#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    /// Inputs that go through a tower together
    #[arg(long, value_name = "N", default_value_t = 32)]
    batch: usize,
    /// What to measure
    #[arg(long, value_delimiter = ',', default_values = ["image", "text"])]
    what: Vec<What>,
    /// Texts to measure with, one per line, instead of random ones; a round of `text` is all of
    /// them, one of `train` the next batch
    #[arg(long, value_name = "FILE")]
    texts: Option<String>,
    /// Pairs of `train` in memory at a time, with the gradients of the whole batch [default: all]
    #[arg(long, value_name = "N")]
    micro_batch: Option<usize>,
    /// Keep only the inputs of blocks for the backward pass of `train`, and compute the rest again
    #[arg(long)]
    recompute: bool,
    /// Run a round for each line of standard input, and print its figures as a line of JSON
    #[arg(long)]
    paced: bool,
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
    /// Multiply-adds in registers, in GFLOP/s: what the threads can do at all
    Fma,
}

/// What a round took, and its inputs per second (for `fma`, GFLOP/s).
struct Round {
    ms: f64,
    per_s: f64,
}

pub(crate) fn run(args: &BenchArgs, common: &Common) -> Result<Done> {
    check(args)?;
    // A training step has weights of its own, and multiply-adds need none.
    let image = args.what.iter().any(|what| matches!(what, What::Image));
    let text = args.what.iter().any(|what| matches!(what, What::Text));
    let encoders = match image || text {
        true => {
            let need = |is_wanted: bool| if is_wanted { Need::Often } else { Need::Nothing };
            Some(args.model.open_encoders(need(image), need(text), common)?)
        }
        false => {
            args.model.compute.set_up()?;
            None
        }
    };
    if args.paced {
        paced::run(&mut rounds(args.what[0], encoders.as_ref(), args, common)?)?;
        return Ok(Done::All);
    }
    let mut document = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "model": args.model.model,
        "isa": Isa::active().name(),
        "threads": args.model.compute.n_threads(),
        "precision": args.model.compute.precision.name(),
    });
    let mut rows = Vec::new();
    for &what in &args.what {
        let Round { ms, per_s } = measure(&mut rounds(what, encoders.as_ref(), args, common)?)?;
        let name = name(what);
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

fn check(args: &BenchArgs) -> Result<()> {
    if !(1..=65_536).contains(&args.batch) {
        return Err(Error::usage("`--batch` is out of range").hint("give 1 to 65536"));
    }
    if args.micro_batch == Some(0) {
        return Err(Error::usage("`--micro-batch` is out of range").hint("give 1 or more"));
    }
    let int8 = matches!(args.model.compute.precision, PrecisionArg::Int8);
    if int8 && args.what.iter().any(|what| matches!(what, What::Train)) {
        return Err(Error::usage("int8 has no gradients").hint("train with `--precision bf16`"));
    }
    if args.what.iter().any(|what| matches!(what, What::Train)) {
        args.model.refuse_sizes("training")?;
    }
    if args.what.iter().all(|what| matches!(what, What::Fma)) {
        args.model.refuse_sizes("multiply-adds")?;
    }
    let reads_texts = args.what.iter().any(|what| matches!(what, What::Text | What::Train));
    if args.texts.is_some() && !reads_texts {
        return Err(Error::usage("`--texts` has no meaning for what is measured")
            .hint("add `text` or `train` to `--what`"));
    }
    if args.paced && args.what.len() != 1 {
        return Err(Error::usage("`--paced` measures one thing").hint("give one name to `--what`"));
    }
    if args.paced && args.texts.as_deref() == Some("-") {
        return Err(Error::usage("`--paced` and `--texts -` both read standard input")
            .hint("give a file to `--texts`"));
    }
    Ok(())
}

fn name(what: What) -> &'static str {
    match what {
        What::Image => "image",
        What::Text => "text",
        What::Train => "train",
        What::Fma => "fma",
    }
}

fn heading(document: &Value) -> String {
    let field = |name: &str| document[name].to_string().replace('"', "");
    let [model, isa] = [field("model"), field("isa")];
    format!("model {model}, {isa}, {} threads, {}\n", field("threads"), field("precision"))
}

/// What is to be repeated; `encoders` has the towers that are measured.
fn rounds<'a>(
    what: What,
    encoders: Option<&'a Encoders>,
    args: &BenchArgs,
    common: &Common,
) -> Result<Box<dyn FnMut() -> Round + 'a>> {
    let BenchArgs { batch, texts, .. } = args;
    Ok(match (what, encoders) {
        (What::Image, Some(encoders)) => Box::new(image_rounds(encoders.image(), *batch)),
        (What::Text, Some(encoders)) => {
            let encoder = encoders.text();
            let (model, tokenizer) = (&encoder.config().model, encoder.tokenizer());
            let batches = text_batches(model, tokenizer, *batch, texts.as_deref())?;
            Box::new(text_rounds(encoder, batches))
        }
        (What::Image | What::Text, None) => unreachable!("opened for the towers"),
        (What::Train, _) => Box::new(train_rounds(args, common)?),
        (What::Fma, _) => Box::new(fma_round),
    })
}

fn image_rounds(encoder: &ImageEncoder, batch: usize) -> impl FnMut() -> Round + '_ {
    let pixels = random_pixels(&encoder.config().model, batch);
    timed(batch, move || {
        // Reading the result waits for a device that computes on its own.
        let _ = encoder.tower().forward(&pixels, batch).into_data();
    })
}

fn text_rounds(encoder: &TextEncoder, batches: Vec<Vec<Vec<u32>>>) -> impl FnMut() -> Round + '_ {
    timed(batches.iter().map(Vec::len).sum(), move || {
        for texts in &batches {
            let _ = encoder.tower().forward(texts).into_data();
        }
    })
}

fn train_rounds(args: &BenchArgs, common: &Common) -> Result<impl FnMut() -> Round + use<>> {
    let BenchArgs { batch, texts, model, micro_batch, recompute, .. } = args;
    let (batch, ModelFiles { config, weights, tokenizer }) = (*batch, model.files(common)?);
    let batches = text_batches(&config.model, &tokenizer, batch, texts.as_deref())?;
    let pixels = random_pixels(&config.model, batch);
    let micro_batch = micro_batch.unwrap_or(batch);
    let options = BatchOptions {
        micro_batch,
        multi_positive: true,
        batch_statistics: micro_batch >= batch,
        precision: model.compute.precision.precision(),
        recompute: *recompute,
    };
    let mut bench = StepBench::new(config.model, weights, options);
    // A short last batch would be another amount of work.
    let mut texts: Vec<_> = batches.into_iter().filter(|texts| texts.len() == batch).collect();
    let mut batch = Batch { pixels, texts: Vec::new(), keep: None };
    let n = texts[0].len();
    let mut next = 0;
    Ok(timed(n, move || {
        std::mem::swap(&mut batch.texts, &mut texts[next]);
        // A step that was stopped is told by `measure`.
        let _ = bench.step(&batch, &interrupt::STOP);
        std::mem::swap(&mut batch.texts, &mut texts[next]);
        next = (next + 1) % texts.len();
    }))
}

/// All threads at once: cores that share a clock or a unit show it.
fn fma_round() -> Round {
    let begin = Instant::now();
    let rates = rayon::broadcast(|_| fma_rate(Isa::active(), FMA_STEPS));
    Round { ms: begin.elapsed().as_secs_f64() * 1000.0, per_s: rates.iter().sum() }
}

/// Rounds of `n` inputs.
fn timed(n: usize, mut call: impl FnMut()) -> impl FnMut() -> Round {
    move || {
        let begin = Instant::now();
        call();
        let ms = begin.elapsed().as_secs_f64() * 1000.0;
        Round { ms, per_s: n as f64 * 1000.0 / ms }
    }
}

/// The median round.
fn measure(round: &mut dyn FnMut() -> Round) -> Result<Round> {
    round();
    let begin = Instant::now();
    let mut rounds = Vec::new();
    while rounds.len() < 3 || begin.elapsed() < PERIOD {
        interrupt::check()?;
        rounds.push(round());
    }
    rounds.sort_by(|a, b| a.ms.total_cmp(&b.ms));
    Ok(rounds.swap_remove(rounds.len() / 2))
}
