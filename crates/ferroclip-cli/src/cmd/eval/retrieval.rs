//! `eval retrieval`: captions are found by pictures, and pictures by captions.

use clap::Args;
use ferroclip_train::{Recall, Retrieval};
use serde_json::{Value, json};

use super::{DataArgs, document, finish};
use crate::common::Common;
use crate::error::{Done, Result};
use crate::model::Need;
use crate::output;

#[derive(Debug, Args)]
pub(crate) struct RetrievalArgs {
    #[command(flatten)]
    data: DataArgs,
    /// The columns of captions
    #[arg(long, value_name = "NAMES", value_delimiter = ',', default_value = "caption")]
    caption_columns: Vec<String>,
}

pub(super) fn run(args: &RetrievalArgs, common: &Common) -> Result<Done> {
    let dataset = args.data.open(common)?;
    let clip = args.data.model.open(Need::Often, common)?;
    let scores = args.data.score(common, &dataset, |options| {
        ferroclip_train::retrieval(&clip, &dataset, &args.caption_columns, options)
    })?;
    if scores.truncated > 0 {
        output::note(common, &format!("{} captions were too long and were cut", scores.truncated));
    }
    args.data.write_result(&dataset, "zeroshot_retrieval", metrics(&scores))?;
    if common.json {
        output::print_json(&document(&args.data, &scores, &scores.failures)?)?;
    } else {
        let directions =
            [("image to text", scores.image_to_text), ("text to image", scores.text_to_image)];
        let row = |(name, recall): (&str, Recall)| {
            let shares = [recall.r1, recall.r5, recall.r10];
            let shares = shares.map(|share| format!("{:.1} %", 100.0 * share));
            [&[name.to_owned()], &shares[..]].concat()
        };
        let table = output::table(&["", "R@1", "R@5", "R@10"], &directions.map(row), &[1, 2, 3]);
        output::print(&format!("{table}{} pictures, {} texts\n", scores.n, scores.n_texts))?;
    }
    finish(common, &scores.failures)
}

/// The scores as CLIP_benchmark names them: by what is retrieved.
fn metrics(scores: &Retrieval) -> Value {
    let (images, texts) = (&scores.text_to_image, &scores.image_to_text);
    json!({
        "image_retrieval_recall@1": images.r1, "text_retrieval_recall@1": texts.r1,
        "image_retrieval_recall@5": images.r5, "text_retrieval_recall@5": texts.r5,
        "image_retrieval_recall@10": images.r10, "text_retrieval_recall@10": texts.r10,
    })
}
