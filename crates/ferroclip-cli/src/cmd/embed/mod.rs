//! `embed`: embeddings of pictures and texts as files of NumPy, in clip-retrieval's layout.

mod args;
mod rows;

use std::path::Path;
use std::time::Instant;

use ferroclip_data::{Dataset, Filter};
use serde_json::{Value, json};

pub(crate) use self::args::EmbedArgs;
use self::args::{Features, Shard};
use self::rows::Rows;
use crate::common::Common;
use crate::error::{Done, Error, Kind, Result};
use crate::inputs::{Failure, Pictures, print_failures};
use crate::layout::{Layout, ROWS_PER_FILE};
use crate::model::{BUILTIN, Encoders, Need, PrecisionArg};
use crate::output;
use crate::progress::Progress;

/// Totals of a run.
#[derive(Default)]
struct Totals {
    images: usize,
    texts: usize,
    files: usize,
    finished_before: usize,
    truncated: usize,
    failures: Vec<Failure>,
}

pub(crate) fn run(args: &EmbedArgs, common: &Common) -> Result<Done> {
    if args.features == Features::Patches && args.texts.is_given() {
        return Err(Error::usage("texts have no patches")
            .hint("leave `--text` and `--texts` out, or choose `--features pooled`"));
    }
    if args.features != Features::Embedding && args.no_normalize {
        let features = args.features.name();
        let text = format!("`--no-normalize` changes nothing: {features} features never are");
        output::note(common, &text);
    }
    if args.rows_per_file == Some(0) || args.batch == 0 {
        return Err(Error::usage("`--rows-per-file` and `--batch` must be above 0")
            .hint("leave them out for the defaults"));
    }
    let parts = parts(args, common)?;
    let images = Need::of_batches(n_batches(args, parts.iter().filter(|rows| rows.has_images())));
    let texts = match args.features {
        Features::Patches => Need::Nothing,
        _ => Need::of_batches(n_batches(args, parts.iter().filter(|rows| rows.has_texts()))),
    };
    for ignored in ignored(args, &parts) {
        output::note(common, &ignored);
    }
    let encoders = args.model.open_encoders(images, texts, common)?;
    let settings = settings(args, &encoders, &parts);
    let start = Instant::now();
    let mut totals = Totals::default();
    for rows in &parts {
        embed(args, &settings, &encoders, rows, common, &mut totals).map_err(
            |error| match error.kind {
                Kind::Interrupted => error.hint("finished files are kept; go on with `--resume`"),
                _ => error,
            },
        )?;
    }
    if totals.truncated > 0 {
        let text = format!("{} texts were too long and were cut", totals.truncated);
        output::note(common, &text);
    }
    report(args, common, &totals, start.elapsed().as_secs_f64())?;
    print_failures(&totals.failures, common);
    Ok(Done::with_failures(totals.failures.len()))
}

/// Batches that pass a tower at most.
fn n_batches<'a>(args: &EmbedArgs, parts: impl Iterator<Item = &'a Rows>) -> usize {
    let rows = args.rows_per_file.unwrap_or(usize::MAX).min(args.batch);
    parts.map(|part| part.len().div_ceil(rows).max(1)).sum()
}

/// What is to be embedded: data, or pictures and texts that have nothing to do with each other.
fn parts(args: &EmbedArgs, common: &Common) -> Result<Vec<Rows>> {
    let mut parts = Vec::new();
    if let Some(path) = &args.data {
        let filters: std::result::Result<Vec<Filter>, _> =
            args.filter.iter().map(|filter| filter.parse()).collect();
        let dataset = Dataset::open(path, &filters?)?;
        for notice in dataset.notices() {
            output::note(common, notice);
        }
        parts.push(Rows::data(dataset, &args.caption_columns)?);
    }
    if !args.images.is_empty() {
        parts.push(Rows::Pictures(Pictures::list(&args.images)));
    }
    if args.texts.is_given() {
        if args.data.is_some() {
            return Err(Error::usage("DATA brings its own texts")
                .hint("leave `--text` and `--texts` out, or choose `--caption-columns`"));
        }
        parts.push(Rows::Texts(args.texts.read()?));
    }
    match parts.is_empty() {
        true => Err(Error::usage("nothing to embed")
            .hint("give DATA, `--images PATH...`, `--text TEXT` or `--texts FILE`")),
        false => Ok(parts),
    }
}

/// Options that change nothing here.
fn ignored(args: &EmbedArgs, parts: &[Rows]) -> Vec<String> {
    let mut ignored = Vec::new();
    if args.pictures.exif && !parts.iter().any(Rows::has_images) {
        ignored.push("`--exif` changes nothing: there are no pictures".to_owned());
    }
    if args.features == Features::Patches && !args.caption_columns.is_empty() {
        ignored.push("`--caption-columns` changes no embedding: texts have no patches".to_owned());
    }
    ignored
}

fn embed(
    args: &EmbedArgs,
    settings: &Value,
    encoders: &Encoders,
    rows: &Rows,
    common: &Common,
    totals: &mut Totals,
) -> Result<()> {
    let Shard(shard, n_shards) = args.shard;
    // A row of patch features is as large as that many others.
    let patches = match args.features {
        Features::Patches => encoders.image().tower().patch_shape()[0],
        _ => 1,
    };
    let share = rows.len().div_ceil(n_shards).clamp(1, (ROWS_PER_FILE / patches).max(1));
    let layout = Layout {
        out: args.out.clone(),
        dtype: args.dtype,
        rows_per_file: args.rows_per_file.unwrap_or(share),
        shard: (shard, n_shards),
        resume: args.resume,
    };
    layout.begin(settings)?;
    let (pieces, finished_before) = layout.pieces(rows.len(), rows.folder())?;
    totals.finished_before += finished_before;
    if rows.has_images() && finished_before > 0 {
        totals.failures.extend(layout.earlier_failures(&pieces)?);
    }
    let options = ferroclip::EmbedOptions {
        batch_size: args.batch,
        normalize: !args.no_normalize,
        features: args.features.of_library(),
        ..args.pictures.options()
    };
    let n_rows = pieces.iter().map(|piece| piece.rows.len()).sum();
    let progress = Progress::new(common, rows.what(), n_rows);
    let mut n_done = 0;
    totals.failures.extend(rows.failures());
    for piece in pieces {
        let n_rows = piece.rows.len();
        let report = |done| progress.set(n_done + done);
        let (mut written, failures) = rows.embed(encoders, piece.rows, &options, &report)?;
        if args.features == Features::Patches {
            written.image_shape = encoders.image().tower().patch_shape().to_vec();
        }
        layout
            .write(piece.number, &written)
            .map_err(|error| error.and_hint("with `--resume`, finished files are kept"))?;
        n_done += n_rows;
        totals.files += 1;
        totals.images += written.images.map_or(0, |x| x.rows);
        totals.truncated += written.texts.as_ref().map_or(0, |x| x.truncated.len());
        totals.texts += written.texts.map_or(0, |x| x.rows);
        totals.failures.extend(failures);
    }
    Ok(())
}

/// What must stay the same when a run goes on.
fn settings(args: &EmbedArgs, encoders: &Encoders, parts: &[Rows]) -> Value {
    let model = &args.model;
    // A name on the hub may mean other files tomorrow; what is usual is left out, as in settings of earlier versions.
    let place = (model.model != BUILTIN && !Path::new(&model.model).exists())
        .then(|| encoders.origin()?.files.first().cloned());
    let precision = model.compute.precision;
    let precision = (!matches!(precision, PrecisionArg::F32)).then(|| precision.name());
    let inputs: Vec<String> = parts.iter().map(Rows::digest).collect();
    json!({
        "model": model.model,
        "model_files": place.flatten(),
        "precision": precision,
        "image_size": model.image_size,
        "context_length": model.context_length,
        "dtype": args.dtype.name(),
        "features": args.features.name(),
        "normalize": args.features == Features::Embedding && !args.no_normalize,
        "shards": args.shard.1,
        "rows_per_file": args.rows_per_file,
        "data": args.data,
        "filter": args.filter,
        "caption_columns": args.caption_columns,
        "exif": args.pictures.exif,
        "inputs": inputs,
    })
}

fn report(args: &EmbedArgs, common: &Common, totals: &Totals, seconds: f64) -> Result<()> {
    let per_s = (totals.images + totals.texts) as f64 / seconds.max(1e-9);
    if common.json {
        let failures: Vec<Value> = totals.failures.iter().map(Failure::to_json).collect();
        return output::print_json(&json!({
            "model": args.model.model, "out": args.out, "images": totals.images,
            "texts": totals.texts, "files": totals.files,
            "finished_before": totals.finished_before, "truncated": totals.truncated,
            "failures": failures,
            "seconds": seconds, "per_s": per_s,
        }));
    }
    output::print(&format!(
        "{}: {} pictures, {} texts, {} failed; {} files written, {} there before; {per_s:.1} per s\n",
        args.out.display(),
        totals.images,
        totals.texts,
        totals.failures.len(),
        totals.files,
        totals.finished_before,
    ))
}
