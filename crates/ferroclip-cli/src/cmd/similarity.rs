//! `similarity`: cosines between pictures and texts, as a matrix or as the best pairs.

use std::path::PathBuf;

use clap::Args;
use ferroclip::{EmbedOptions, Embeddings};
use ferroclip_kernels::largest;
use serde_json::{Value, json};

use crate::common::Common;
use crate::error::{Done, Error, Result, one_line};
use crate::inputs::{self, Failure, PictureArgs, Pictures, TextArgs};
use crate::model::{Encoders, ModelArgs, Need};
use crate::npy::{self, Dtype};
use crate::output;

#[derive(Debug, Args)]
pub(crate) struct SimilarityArgs {
    /// Pictures of the rows
    #[arg(long, value_name = "PATH", num_args = 1..)]
    images: Vec<PathBuf>,
    #[command(flatten)]
    texts: TextArgs,
    /// Pictures of the columns
    #[arg(long, value_name = "PATH", num_args = 1..)]
    against_images: Vec<PathBuf>,
    /// A text of the columns; may be given several times
    #[arg(long, value_name = "TEXT")]
    against_text: Vec<String>,
    /// A file of texts of the columns
    #[arg(long, value_name = "FILE")]
    against_texts: Option<String>,
    /// Only the K best columns of each row
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,
    /// Write the matrix to a `.npy` file
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    #[command(flatten)]
    pictures: PictureArgs,
    #[command(flatten)]
    model: ModelArgs,
}

/// One side of the matrix: what the rows or columns are called, and their embeddings.
struct Side {
    names: Vec<String>,
    embeddings: Embeddings,
}

pub(crate) fn run(args: &SimilarityArgs, common: &Common) -> Result<Done> {
    let against = TextArgs {
        text: args.against_text.clone(),
        texts: args.against_texts.clone(),
        column: args.texts.column.clone(),
    };
    if args.texts.column.is_some() && args.texts.texts.is_none() && against.texts.is_none() {
        return Err(Error::usage("`--column` is given, and no file of texts")
            .hint("give `--texts FILE` or `--against-texts FILE`"));
    }
    if args.images.is_empty() != args.texts.is_given() {
        return Err(Error::usage("the rows must be either pictures or texts")
            .hint("give `--images PATH...`, or `--text TEXT` or `--texts FILE`"));
    }
    if args.against_images.is_empty() != against.is_given() {
        return Err(Error::usage("the columns must be either pictures or texts").hint(
            "give `--against-images PATH...`, `--against-text TEXT` or `--against-texts FILE`",
        ));
    }
    let rows = Inputs::read(&args.images, &args.texts)?;
    let columns = Inputs::read(&args.against_images, &against)?;
    let options = args.pictures.options();
    let batches = |of: fn(&Inputs) -> usize| {
        let batches = [&rows, &columns].map(|inputs| of(inputs).div_ceil(options.batch_size));
        Need::of_batches(batches.iter().sum())
    };
    let (images, texts) = (batches(Inputs::n_pictures), batches(Inputs::n_texts));
    let encoders = args.model.open_encoders(images, texts, common)?;
    let mut failures = Vec::new();
    let rows = rows.embed(&encoders, &options, common, &mut failures)?;
    let columns = columns.embed(&encoders, &options, common, &mut failures)?;
    let matrix = rows.embeddings.similarity(&columns.embeddings);
    if let Some(path) = &args.out {
        npy::write(path, Dtype::F32, &[rows.names.len(), columns.names.len()], &matrix)?;
    }
    print(args, common, &rows, &columns, &matrix, &failures)?;
    inputs::print_failures(&failures, common);
    Ok(Done::with_failures(failures.len()))
}

/// What one side of the matrix is made of.
enum Inputs {
    Pictures(Pictures),
    Texts(Vec<String>),
}

impl Inputs {
    fn read(images: &[PathBuf], texts: &TextArgs) -> Result<Inputs> {
        Ok(match images {
            [] => Inputs::Texts(texts.read()?),
            _ => Inputs::Pictures(Pictures::list(images)),
        })
    }

    fn n_pictures(&self) -> usize {
        match self {
            Inputs::Pictures(pictures) => pictures.names.len().max(1),
            Inputs::Texts(_) => 0,
        }
    }

    fn n_texts(&self) -> usize {
        match self {
            Inputs::Pictures(_) => 0,
            Inputs::Texts(texts) => texts.len(),
        }
    }

    fn embed(
        self,
        encoders: &Encoders,
        options: &EmbedOptions<'_>,
        common: &Common,
        failures: &mut Vec<Failure>,
    ) -> Result<Side> {
        let pictures = match self {
            Inputs::Pictures(pictures) => pictures,
            Inputs::Texts(names) => {
                let embeddings = encoders.text().embed_texts_with(&names, options)?;
                for &row in &embeddings.truncated {
                    output::note(common, &format!("text {} is too long and was cut", row + 1));
                }
                return Ok(Side { names, embeddings });
            }
        };
        let (result, failed) =
            inputs::embed_pictures(encoders.image(), &pictures, options, common)?;
        failures.extend(failed);
        let names = result.inputs.iter().map(|&place| pictures.names[place].clone()).collect();
        Ok(Side { names, embeddings: result.embeddings })
    }
}

fn print(
    args: &SimilarityArgs,
    common: &Common,
    rows: &Side,
    columns: &Side,
    matrix: &[f32],
    failures: &[Failure],
) -> Result<()> {
    let n_columns = columns.names.len();
    let top_k = args.top_k.unwrap_or(n_columns);
    let best = |row: &[f32]| largest(row, top_k);
    let failures: Vec<Value> = failures.iter().map(Failure::to_json).collect();
    let matrix_rows: Vec<&[f32]> = matrix.chunks(n_columns.max(1)).collect();
    if common.json {
        let mut document = json!({
            "model": args.model.model, "rows": rows.names, "columns": columns.names,
        });
        let pair = |i: usize, j: usize| json!({"row": rows.names[i], "column": columns.names[j], "similarity": matrix_rows[i][j]});
        match (args.top_k, &args.out) {
            (Some(_), _) => {
                let all = matrix_rows.iter().enumerate();
                let pairs = all.flat_map(|(i, row)| best(row).into_iter().map(move |j| (i, j)));
                document["pairs"] = pairs.map(|(i, j)| pair(i, j)).collect();
            }
            (None, Some(path)) => document["out"] = json!(path),
            (None, None) => document["similarity"] = json!(matrix_rows),
        }
        document["failures"] = Value::Array(failures);
        return output::print_json(&document);
    }
    let mut lines = Vec::new();
    for (name, row) in rows.names.iter().zip(matrix_rows) {
        let mut name = one_line(name);
        for column in best(row) {
            let cosine = format!("{:.4}", row[column]);
            lines.push(vec![std::mem::take(&mut name), one_line(&columns.names[column]), cosine]);
        }
    }
    output::print(&output::table(&["", "against", "cosine"], &lines, &[2]))
}
