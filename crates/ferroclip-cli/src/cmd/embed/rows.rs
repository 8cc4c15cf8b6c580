//! The rows that `embed` walks through: data, pictures, or texts.

use std::ops::Range;

use ferroclip::{EmbedOptions, Embeddings, Features, ImageSource};
use ferroclip_data::Dataset;
use rayon::prelude::*;

use crate::error::{Result, one_line};
use crate::inputs::{Failure, Pictures};
use crate::layout::Written;
use crate::model::Encoders;

/// Pictures of data that are in memory at once.
const PICTURES_AT_ONCE: usize = 256;
/// Columns taken for the caption when none is named.
const CAPTION_COLUMNS: [&str; 4] = ["caption", "text", "label", "title"];

/// What is to be embedded.
pub(crate) enum Rows {
    /// Pictures with captions, row by row.
    Data {
        dataset: Box<Dataset>,
        /// The columns of the caption; the first cell that is not empty counts.
        captions: Vec<usize>,
    },
    Pictures(Pictures),
    Texts(Vec<String>),
}

impl Rows {
    pub(crate) fn data(dataset: Dataset, caption_columns: &[String]) -> Result<Rows> {
        let captions = match caption_columns {
            [] => {
                let known = CAPTION_COLUMNS.iter();
                let mut found = known.filter_map(|column| dataset.column_index(column).ok());
                found.next().into_iter().collect()
            }
            names => names
                .iter()
                .map(|name| dataset.column_index(name))
                .collect::<std::result::Result<_, _>>()?,
        };
        Ok(Rows::Data { dataset: Box::new(dataset), captions })
    }

    pub(crate) fn len(&self) -> usize {
        match self {
            Rows::Data { dataset, .. } => dataset.len(),
            Rows::Pictures(pictures) => pictures.names.len(),
            Rows::Texts(texts) => texts.len(),
        }
    }

    pub(crate) fn what(&self) -> &'static str {
        if matches!(self, Rows::Texts(_)) { "texts" } else { "pictures" }
    }

    /// Whether the image tower is needed.
    pub(crate) fn has_images(&self) -> bool {
        !matches!(self, Rows::Texts(_))
    }

    /// Whether the text tower is needed.
    pub(crate) fn has_texts(&self) -> bool {
        match self {
            Rows::Data { captions, .. } => !captions.is_empty(),
            Rows::Pictures(_) => false,
            Rows::Texts(_) => true,
        }
    }

    /// The folder whose files tell what is finished.
    pub(crate) fn folder(&self) -> &'static str {
        if matches!(self, Rows::Texts(_)) { "text_emb" } else { "img_emb" }
    }

    /// A digest of all inputs in order, to notice that others are given when a run goes on.
    pub(crate) fn digest(&self) -> String {
        match self {
            Rows::Data { dataset, .. } => dataset.fingerprint(),
            Rows::Pictures(pictures) => ferroclip_data::digest(&pictures.names),
            Rows::Texts(texts) => ferroclip_data::digest(texts),
        }
    }

    /// Failures that belong to no row.
    pub(crate) fn failures(&self) -> Vec<Failure> {
        match self {
            Rows::Pictures(pictures) => pictures.failures.clone(),
            _ => Vec::new(),
        }
    }

    /// Embeds a range of rows.
    pub(crate) fn embed(
        &self,
        encoders: &Encoders,
        rows: Range<usize>,
        options: &EmbedOptions<'_>,
        report: &(dyn Fn(usize) + Sync),
    ) -> Result<(Written, Vec<Failure>)> {
        let options = EmbedOptions { progress: Some(report), ..*options };
        match self {
            Rows::Data { dataset, captions } => {
                embed_data(encoders, dataset, captions, rows, &options)
            }
            Rows::Pictures(pictures) => {
                let sources = &pictures.sources()[rows.clone()];
                let result = encoders.image().embed_images_with(sources, &options)?;
                let name = |place: usize| &pictures.names[rows.start + place];
                let failures: Vec<Failure> = result
                    .failures
                    .into_iter()
                    .map(|(place, error)| Failure::of_picture(name(place), error))
                    .collect();
                let written = Written {
                    cells: result.inputs.iter().map(|&place| vec![name(place).clone()]).collect(),
                    images: Some(result.embeddings),
                    columns: vec!["image_path".to_owned()],
                    failures: failures.iter().map(Failure::to_json).collect(),
                    ..Written::default()
                };
                Ok((written, failures))
            }
            Rows::Texts(texts) => {
                let texts = &texts[rows];
                let written = Written {
                    texts: Some(encoders.text().embed_texts_with(texts, &options)?),
                    columns: vec!["caption".to_owned()],
                    cells: texts.iter().map(|text| vec![text.clone()]).collect(),
                    ..Written::default()
                };
                Ok((written, Vec::new()))
            }
        }
    }
}

fn embed_data(
    encoders: &Encoders,
    dataset: &Dataset,
    captions: &[usize],
    rows: Range<usize>,
    options: &EmbedOptions<'_>,
) -> Result<(Written, Vec<Failure>)> {
    let mut images = Embeddings::empty(encoders.image().dim(options.features));
    let (mut kept, mut failures) = (Vec::new(), Vec::new());
    for start in rows.clone().step_by(PICTURES_AT_ONCE) {
        let chunk = start..(start + PICTURES_AT_ONCE).min(rows.end);
        let read: Vec<_> = chunk.clone().into_par_iter().map(|row| dataset.read(row)).collect();
        let (mut places, mut bytes) = (Vec::new(), Vec::new());
        for (row, read) in chunk.zip(read) {
            match read {
                Ok(read) => {
                    places.push(row);
                    bytes.push(read);
                }
                Err(error) => failures.push(Failure::new(one_line(dataset.key(row)), error)),
            }
        }
        let sources: Vec<ImageSource<'_>> = bytes.iter().map(|b| ImageSource::Bytes(b)).collect();
        let inner = EmbedOptions { progress: None, ..*options };
        let result = encoders.image().embed_images_with(&sources, &inner)?;
        for (place, error) in result.failures {
            failures.push(Failure::in_data(dataset.key(places[place]), &error));
        }
        kept.extend(result.inputs.iter().map(|&place| places[place]));
        images.data.extend_from_slice(&result.embeddings.data);
        images.rows += result.embeddings.rows;
        if let Some(progress) = options.progress {
            progress(start + PICTURES_AT_ONCE.min(rows.end - start) - rows.start);
        }
    }
    let caption = |&row: &usize| {
        let cells = captions.iter().map(|&column| dataset.cell(row, column));
        cells.into_iter().find(|cell| !cell.is_empty()).unwrap_or_default().to_owned()
    };
    let texts: Vec<String> = kept.iter().map(caption).collect();
    let inner = EmbedOptions { progress: None, ..*options };
    let embedded = match captions {
        [] => None,
        _ if options.features == Features::Patches => None,
        _ => Some(encoders.text().embed_texts_with(&texts, &inner)?),
    };
    let names = dataset.columns().iter().map(|name| match name.as_str() {
        "image_path" | "caption" => format!("{name}_column"),
        _ => name.clone(),
    });
    let columns = ["image_path", "caption"].map(str::to_owned).into_iter().chain(names).collect();
    let n_columns = dataset.columns().len();
    let cells = kept.iter().zip(texts).map(|(&row, text)| {
        let own = (0..n_columns).map(|column| dataset.cell(row, column).to_owned());
        [dataset.key(row).to_owned(), text].into_iter().chain(own).collect()
    });
    let written = Written {
        images: Some(images),
        texts: embedded,
        columns,
        cells: cells.collect(),
        failures: failures.iter().map(Failure::to_json).collect(),
        ..Written::default()
    };
    Ok((written, failures))
}
