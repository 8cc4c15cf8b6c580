//! Scores of a model on data: zero-shot classification and retrieval.
//!
//! Pictures that cannot be read are left out, counted and named. Of equal similarities the earlier
//! label, picture or text wins, so that every score is reproducible.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::AtomicBool;

use ferroclip::image::DecodeLimits;
use ferroclip::{Classifier, Clip, EmbedOptions, Embeddings, Error, ImageSource, Score};
use ferroclip_data::{Dataset, Failure, Tally};
use ferroclip_kernels::{Isa, dots};
use rayon::prelude::*;
use serde::Serialize;

use crate::error::TrainError;

/// Answers that count as near.
const TOP: usize = 5;

/// How to go through the data.
#[derive(Clone, Copy, Default)]
pub struct EvalOptions<'a> {
    /// Pictures at a time; 0 for 64. Scores do not depend on it.
    pub batch_size: usize,
    /// Called with the number of pictures done and of all.
    pub progress: Option<&'a dyn Fn(usize, usize)>,
    /// Once it is true, the call ends with [`TrainError::Cancelled`].
    pub stop: Option<&'a AtomicBool>,
    /// What a picture may cost.
    pub limits: DecodeLimits,
}

impl std::fmt::Debug for EvalOptions<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EvalOptions").field("batch_size", &self.batch_size).finish_non_exhaustive()
    }
}

/// What to classify, and into what.
#[derive(Clone, Copy, Debug)]
pub struct ZeroShotTask<'a> {
    /// The labels to choose from.
    pub classifier: &'a Classifier,
    /// The place of each row's right label among them; `None` where the row has no label.
    pub right: &'a [Option<usize>],
}

/// The outcome of zero-shot classification. Scores are shares, 0 to 1.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ZeroShot {
    /// Pictures scored.
    pub n: usize,
    /// Labels to choose from.
    pub n_labels: usize,
    /// The right label is the first.
    pub top1: f64,
    /// The right label is among the first five.
    pub top5: f64,
    /// The mean over classes of the share that is right.
    pub mean_per_class_recall: f64,
    /// Each class that has pictures.
    pub classes: Vec<ClassScore>,
    /// Each picture.
    #[serde(skip)]
    pub predictions: Vec<Prediction>,
    /// Labels that were cut to the context length in a template.
    pub truncated: usize,
    /// Pictures that could not be scored: they cannot be read, or have no label.
    pub failures: Vec<Failure>,
}

/// The outcome for one class.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ClassScore {
    /// The label.
    pub label: String,
    /// Its pictures.
    pub n: usize,
    /// The share of them whose first label is right.
    pub top1: f64,
    /// The share of them with the right label among the first five.
    pub top5: f64,
}

/// The outcome for one picture.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Prediction {
    /// The picture's name in the data.
    pub file: String,
    /// The right label.
    pub label: String,
    /// The first label.
    pub predicted: String,
    /// Its score, 0 to 1.
    pub score: f32,
    /// Whether the right label is among the first five.
    pub in_top5: bool,
}

/// The share of queries with a right answer among the first 1, 5 and 10.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Recall {
    /// The first.
    pub r1: f64,
    /// The first five.
    pub r5: f64,
    /// The first ten.
    pub r10: f64,
}

/// The outcome of retrieval.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Retrieval {
    /// Pictures scored.
    pub n: usize,
    /// Their captions.
    pub n_texts: usize,
    /// One of the picture's own captions is found.
    pub image_to_text: Recall,
    /// The caption's own picture is found.
    pub text_to_image: Recall,
    /// Captions that were cut to the context length.
    pub truncated: usize,
    /// Pictures that could not be scored: they cannot be read, or have no caption.
    pub failures: Vec<Failure>,
}

/// Scores of one validation set during training.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SetScore {
    /// The data.
    pub path: String,
    /// The number that decides which weights are the best: top-1, or the mean of both R@1.
    pub score: f64,
    /// Zero-shot top-1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top1: Option<f64>,
    /// Zero-shot top-5.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top5: Option<f64>,
    /// Retrieval of texts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_to_text: Option<Recall>,
    /// Retrieval of pictures.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text_to_image: Option<Recall>,
    /// Pictures that could not be scored.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub failures: Vec<Failure>,
}

/// Pictures as unit embeddings.
#[derive(Debug)]
pub struct Pictures {
    /// A row for each picture that could be read.
    pub embeddings: Embeddings,
    /// The row of the data that each belongs to.
    pub rows: Vec<usize>,
    /// Those that could not be read.
    pub failures: Vec<Failure>,
}

/// Embeds the pictures of the given rows.
///
/// # Errors
/// Where the stop flag was raised, or no picture can be read.
pub fn embed_pictures(
    clip: &Clip,
    dataset: &Dataset,
    rows: &[usize],
    options: &EvalOptions<'_>,
) -> Result<Pictures, TrainError> {
    let batch_size = if options.batch_size == 0 { 64 } else { options.batch_size };
    let (stop, limits) = (options.stop, options.limits);
    let rgb_first = dataset.benchmark().is_some();
    let embed = EmbedOptions { batch_size, stop, limits, rgb_first, ..EmbedOptions::default() };
    let (mut data, mut good, mut tally) = (Vec::new(), Vec::new(), Tally::default());
    for (place, rows) in rows.chunks(batch_size).enumerate() {
        let files: Vec<_> = rows.par_iter().map(|&row| dataset.read(row)).collect();
        let mut sources = Vec::with_capacity(rows.len());
        for (file, &row) in files.iter().zip(rows) {
            match file {
                Ok(bytes) => sources.push((ImageSource::Bytes(bytes), row)),
                Err(error) => tally.fail(dataset.key(row), error),
            }
        }
        let (images, read): (Vec<_>, Vec<usize>) = sources.into_iter().unzip();
        let found = clip.embed_images_with(&images, &embed).map_err(cancelled)?;
        data.extend(found.embeddings.data);
        good.extend(found.inputs.iter().map(|&input| read[input]));
        for (input, error) in &found.failures {
            let reason = match error {
                Error::Image { source, .. } => source.to_string(),
                other => other.to_string(),
            };
            tally.fail(dataset.key(read[*input]), reason);
        }
        if let Some(progress) = options.progress {
            progress(place * batch_size + rows.len(), dataset.len());
        }
    }
    if good.is_empty() {
        let first = tally.failures().first().map(|f| format!("; first `{}`: {}", f.key, f.reason));
        let reason = format!("none of its pictures can be used{}", first.unwrap_or_default());
        return Err(TrainError::Evaluation { path: dataset.path().to_owned(), reason });
    }
    let dim = clip.config().model.embed_dim;
    let embeddings = Embeddings { rows: good.len(), dim, data, truncated: Vec::new() };
    Ok(Pictures { embeddings, rows: good, failures: tally.failures().to_vec() })
}

pub(crate) fn cancelled(error: Error) -> TrainError {
    match error {
        Error::Cancelled => TrainError::Cancelled,
        other => other.into(),
    }
}

/// The labels of a column, each once, in alphabetical order, without empty ones.
///
/// # Errors
/// Where there is no such column.
pub fn label_union(dataset: &Dataset, column: &str) -> Result<Vec<String>, TrainError> {
    let column = dataset.column_index(column)?;
    let labels: BTreeSet<&str> = (0..dataset.len()).map(|row| dataset.cell(row, column)).collect();
    Ok(labels.into_iter().filter(|label| !label.is_empty()).map(str::to_owned).collect())
}

/// The place of each row's label among `labels`; `None` where the row's cell is empty.
///
/// # Errors
/// Where the column is unknown, or a label is not among those to choose from.
pub fn right_labels(
    dataset: &Dataset,
    column: &str,
    labels: &[String],
) -> Result<Vec<Option<usize>>, TrainError> {
    let column = dataset.column_index(column)?;
    // Of equal labels the first.
    let places: HashMap<&str, usize> =
        labels.iter().enumerate().rev().map(|(i, label)| (label.as_str(), i)).collect();
    let place = |row| match dataset.cell(row, column) {
        "" => Ok(None),
        label => places.get(label).copied().map(Some).ok_or_else(|| {
            let reason = format!("its label `{label}` is not among the labels to choose from");
            TrainError::Evaluation { path: dataset.path().to_owned(), reason }
        }),
    };
    (0..dataset.len()).map(place).collect()
}

/// The place of each row's class where rows hold it as a number, as those of CLIP_benchmark do.
///
/// # Errors
/// Where a number is none of `n_labels` labels.
pub fn right_classes(dataset: &Dataset, n_labels: usize) -> Result<Vec<Option<usize>>, TrainError> {
    let classes: Vec<Option<usize>> = (0..dataset.len()).map(|row| dataset.class(row)).collect();
    match classes.iter().flatten().find(|&&class| class >= n_labels) {
        None => Ok(classes),
        Some(class) => {
            let reason = format!("a sample is of class {class}, and there are {n_labels} classes");
            Err(TrainError::Evaluation { path: dataset.path().to_owned(), reason })
        }
    }
}

/// Classifies every picture of the data that has a label.
///
/// # Errors
/// Where no picture can be read, or the stop flag was raised.
///
/// # Panics
/// Where `right` is not as long as the data.
pub fn zero_shot(
    clip: &Clip,
    dataset: &Dataset,
    task: &ZeroShotTask<'_>,
    options: &EvalOptions<'_>,
) -> Result<ZeroShot, TrainError> {
    assert_eq!(task.right.len(), dataset.len(), "a label for each row");
    let (rows, unlabelled): (Vec<usize>, Vec<usize>) =
        (0..dataset.len()).partition(|&row| task.right[row].is_some());
    let mut pictures = embed_pictures(clip, dataset, &rows, options)?;
    pictures.failures.extend(without(dataset, &unlabelled, "it has no label"));
    let answer = |i: usize| Answer {
        row: pictures.rows[i],
        right: task.right[pictures.rows[i]].unwrap_or_default(),
        best: task.classifier.classify(pictures.embeddings.row(i), TOP),
    };
    let answers: Vec<Answer> = (0..pictures.rows.len()).into_par_iter().map(answer).collect();
    let labels = task.classifier.labels();
    let prediction = |answer: &Answer| Prediction {
        file: dataset.key(answer.row).to_owned(),
        label: labels[answer.right].clone(),
        predicted: answer.best[0].label.clone(),
        score: answer.best[0].score,
        in_top5: answer.is_near(),
    };
    let predictions = answers.iter().map(prediction).collect();
    let truncated = task.classifier.embeddings().truncated.len();
    let failures = pictures.failures;
    Ok(ZeroShot { truncated, failures, predictions, ..summary(labels, &answers) })
}

/// The labels found for a picture, best first. Labels count by their place: two of the same name are two.
struct Answer {
    row: usize,
    right: usize,
    best: Vec<Score>,
}

impl Answer {
    fn is_right(&self) -> bool {
        self.best[0].label_idx == self.right
    }

    fn is_near(&self) -> bool {
        self.best.iter().any(|score| score.label_idx == self.right)
    }
}

/// Rows that cannot be scored for want of something.
fn without<'a>(
    dataset: &'a Dataset,
    rows: &'a [usize],
    reason: &'a str,
) -> impl Iterator<Item = Failure> + 'a {
    let failure =
        move |&row| Failure { key: dataset.key(row).to_owned(), reason: reason.to_owned() };
    rows.iter().map(failure)
}

/// The scores, without predictions and failures.
fn summary(labels: &[String], answers: &[Answer]) -> ZeroShot {
    let mut counts = vec![[0_usize; 3]; labels.len()];
    for answer in answers {
        let count = &mut counts[answer.right];
        count[0] += 1;
        count[1] += usize::from(answer.is_right());
        count[2] += usize::from(answer.is_near());
    }
    let share = |part: usize, all: usize| part as f64 / all.max(1) as f64;
    let score = |(label, &[n, top1, top5]): (&String, &[usize; 3])| ClassScore {
        label: label.clone(),
        n,
        top1: share(top1, n),
        top5: share(top5, n),
    };
    let classes: Vec<ClassScore> =
        labels.iter().zip(&counts).filter(|(_, count)| count[0] > 0).map(score).collect();
    let total = |part: usize| counts.iter().map(|count| count[part]).sum::<usize>();
    let recall: f64 = classes.iter().map(|class| class.top1).sum();
    ZeroShot {
        n: total(0),
        n_labels: labels.len(),
        top1: share(total(1), total(0)),
        top5: share(total(2), total(0)),
        mean_per_class_recall: recall / classes.len().max(1) as f64,
        classes,
        predictions: Vec::new(),
        truncated: 0,
        failures: Vec::new(),
    }
}

/// Finds captions by pictures and pictures by captions. Rows with the same picture are one picture
/// with several captions; empty captions are passed over, pictures without any are failures.
///
/// # Errors
/// Where a column is unknown, there are no captions, no picture can be read, or the stop flag was
/// raised.
pub fn retrieval(
    clip: &Clip,
    dataset: &Dataset,
    caption_columns: &[String],
    options: &EvalOptions<'_>,
) -> Result<Retrieval, TrainError> {
    let columns = caption_columns.iter().map(|name| dataset.column_index(name));
    let columns: Vec<usize> = columns.collect::<Result<_, _>>()?;
    let mut captions: HashMap<(Option<usize>, &str), Vec<&str>> = HashMap::new();
    let (mut rows, mut bare) = (Vec::new(), Vec::new());
    let one_a_line = dataset.benchmark().is_some_and(|benchmark| benchmark.is_retrieval);
    for row in 0..dataset.len() {
        let cells = columns.iter().map(|&column| dataset.cell(row, column));
        let texts = cells.flat_map(|cell| captions_of(cell, one_a_line));
        let texts: Vec<&str> = texts.filter(|text| !text.trim().is_empty()).collect();
        if !texts.is_empty() {
            let list = captions.entry(dataset.picture(row)).or_default();
            if list.is_empty() {
                rows.push(row);
            }
            list.extend(texts);
        } else {
            bare.push(row);
        }
    }
    bare.retain(|&row| !captions.contains_key(&dataset.picture(row)));
    let mut pictures = embed_pictures(clip, dataset, &rows, options)?;
    pictures.failures.extend(without(dataset, &bare, "it has no caption"));
    let (mut texts, mut owners) = (Vec::<&str>::new(), Vec::new());
    for (picture, &row) in pictures.rows.iter().enumerate() {
        let own = &captions[&dataset.picture(row)];
        texts.extend(own);
        owners.extend(own.iter().map(|_| picture));
    }
    let embed = EmbedOptions { stop: options.stop, ..EmbedOptions::default() };
    let embedded = clip.embed_texts_with(&texts, &embed).map_err(cancelled)?;
    let (image_to_text, text_to_image) = recalls(&pictures.embeddings, &embedded, &owners);
    Ok(Retrieval {
        n: pictures.rows.len(),
        n_texts: texts.len(),
        image_to_text,
        text_to_image,
        truncated: embedded.truncated.len(),
        failures: pictures.failures,
    })
}

/// The captions in a cell: all of it, or each of its lines.
fn captions_of(cell: &str, one_a_line: bool) -> impl Iterator<Item = &str> {
    let whole = (!one_a_line).then_some(cell);
    whole.into_iter().chain(one_a_line.then(|| cell.lines()).into_iter().flatten())
}

/// Recall both ways; text `i` belongs to picture `owners[i]`.
fn recalls(pictures: &Embeddings, texts: &Embeddings, owners: &[usize]) -> (Recall, Recall) {
    let of_pictures: Vec<usize> = (0..pictures.rows)
        .into_par_iter()
        .map(|i| rank(pictures.row(i), texts, |text| owners[text] == i))
        .collect();
    let of_texts: Vec<usize> = (0..texts.rows)
        .into_par_iter()
        .map(|i| rank(texts.row(i), pictures, |picture| picture == owners[i]))
        .collect();
    (recall(&of_pictures), recall(&of_texts))
}

/// How many wrong answers come before the best right one.
fn rank(query: &[f32], answers: &Embeddings, is_right: impl Fn(usize) -> bool) -> usize {
    let similarities = dots(Isa::active(), query, &answers.data, query.len());
    let right = (0..similarities.len()).filter(|&i| is_right(i));
    let best = right.reduce(|a, b| if similarities[b] > similarities[a] { b } else { a });
    let Some(best) = best else { return usize::MAX };
    let before = |(i, &s): (usize, &f32)| {
        !is_right(i) && (s > similarities[best] || (s == similarities[best] && i < best))
    };
    similarities.iter().enumerate().filter(|&item| before(item)).count()
}

fn recall(ranks: &[usize]) -> Recall {
    let within = |k: usize| {
        ranks.iter().filter(|&&rank| rank < k).count() as f64 / ranks.len().max(1) as f64
    };
    Recall { r1: within(1), r5: within(5), r10: within(10) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(dim: usize, data: &[f32]) -> Embeddings {
        let (rows, data) = (data.len() / dim, data.to_vec());
        Embeddings { rows, dim, data, truncated: Vec::new() }
    }

    #[test]
    fn recall_with_several_captions_a_picture() {
        let pictures = rows(2, &[1.0, 0.0, 0.0, 1.0]);
        // The first picture's captions: one far, one near; the second's: one nearer to the first.
        let texts = rows(2, &[0.0, 1.0, 0.9, 0.1, 0.8, 0.2]);
        let (to_text, to_image) = recalls(&pictures, &texts, &[0, 0, 1]);
        assert_eq!(to_text, Recall { r1: 0.5, r5: 1.0, r10: 1.0 });
        assert_eq!(to_image, Recall { r1: 1.0 / 3.0, r5: 1.0, r10: 1.0 });
    }

    #[test]
    fn ranks_count_wrong_answers_only_and_ties_by_place() {
        let answers = rows(1, &[1.0, 2.0, 2.0, 3.0]);
        assert_eq!(rank(&[1.0], &answers, |i| i == 2), 2);
        assert_eq!(rank(&[1.0], &answers, |i| i == 1), 1);
        assert_eq!(rank(&[1.0], &answers, |i| i >= 2), 0);
        assert_eq!(rank(&[1.0], &answers, |_| false), usize::MAX);
    }

    #[test]
    fn classes_weigh_the_same_and_count_by_place() {
        let answer = |right: usize, found: &[usize]| {
            let score =
                |&label_idx| Score { label: "x".into(), label_idx, score: 0.5, similarity: 0.5 };
            Answer { row: 0, right, best: found.iter().map(score).collect() }
        };
        let answers = [answer(0, &[0, 1]), answer(0, &[0]), answer(0, &[1, 0]), answer(1, &[0, 2])];
        // All of one name, as some of ImageNet's are: a label is a place.
        let labels = ["x", "x", "x"].map(String::from);
        let score = summary(&labels, &answers);
        assert_eq!((score.n, score.n_labels, score.top1, score.top5), (4, 3, 0.5, 0.75));
        assert!((score.mean_per_class_recall - 1.0 / 3.0).abs() < 1e-12);
        assert_eq!(score.classes.len(), 2);
    }

    #[test]
    fn captions_are_lines_where_the_data_says_so() {
        let found = |one_a_line| captions_of("a cat\r\na dog\n", one_a_line).collect::<Vec<_>>();
        assert_eq!(found(true), ["a cat", "a dog"]);
        assert_eq!(found(false), ["a cat\r\na dog\n"]);
    }
}
