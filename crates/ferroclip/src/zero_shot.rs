//! Zero-shot classification: labels become texts, and the nearest text names the picture.
//!
//! A template such as `a photo of a {}.` turns a label into a text. With several templates a label
//! stands for the mean of its texts' unit embeddings, normalised again (OpenAI's prompt ensemble).
//! The similarity of a picture and a label is the cosine of their embeddings; the score is the
//! softmax over all labels of exp(`logit_scale`) times the similarity. A model with a `logit_bias` (SigLIP's) was
//! trained to say of each text alone whether it fits: there the score is the sigmoid of the scaled similarity plus the
//! bias.

use ferroclip_kernels::{Isa, dots, largest};

use crate::clip::Clip;
use crate::embed_options::EmbedOptions;
use crate::embeddings::{Embeddings, normalize};
use crate::error::Error;

/// Labels whose texts are embedded together.
const LABELS_AT_ONCE: usize = 64;

/// A label for a picture.
#[derive(Clone, Debug, PartialEq)]
pub struct Score {
    /// The label.
    pub label: String,
    /// Its place in the list of labels.
    pub label_idx: usize,
    /// Between 0 and 1.
    pub score: f32,
    /// The cosine.
    pub similarity: f32,
}

/// How similarities become scores.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scoring {
    /// Exactly one label applies: the scores of all labels add up to 1.
    #[default]
    Softmax,
    /// Any number of labels apply: each score stands alone, the sigmoid of the scaled similarity plus the model's
    /// bias, if it has one.
    Sigmoid,
}

/// Labels as embeddings, ready for any number of pictures.
#[derive(Clone, Debug)]
pub struct Classifier {
    labels: Vec<String>,
    embeddings: Embeddings,
    scale: f32,
    bias: f32,
    scoring: Scoring,
}

impl Classifier {
    /// Embeds the labels in the templates. A model with a `logit_bias` scores by the sigmoid, others by the softmax.
    ///
    /// # Errors
    /// When there is no label or no template, or a template lacks `{}`.
    pub fn new<L: AsRef<str>, T: AsRef<str>>(
        clip: &Clip,
        labels: &[L],
        templates: &[T],
    ) -> Result<Classifier, Error> {
        Classifier::new_with(clip, labels, templates, &EmbedOptions::default())
    }

    /// As [`Classifier::new`]; of the options, `batch_size`, `stop` and `progress` count, the last in labels done.
    ///
    /// # Errors
    /// As [`Classifier::new`]; and when the caller raised the stop flag.
    pub fn new_with<L: AsRef<str>, T: AsRef<str>>(
        clip: &Clip,
        labels: &[L],
        templates: &[T],
        options: &EmbedOptions<'_>,
    ) -> Result<Classifier, Error> {
        check_templates(templates)?;
        let embed = EmbedOptions {
            batch_size: options.batch_size,
            stop: options.stop,
            ..EmbedOptions::default()
        };
        let mut embeddings = Embeddings::empty(clip.config().model.embed_dim);
        for (chunk, labels) in labels.chunks(LABELS_AT_ONCE).enumerate() {
            let texts: Vec<String> =
                labels.iter().flat_map(|l| prompts(l.as_ref(), templates)).collect();
            let texts = clip.embed_texts_with(&texts, &embed)?;
            let mut cut: Vec<usize> = texts.truncated.iter().map(|t| t / templates.len()).collect();
            cut.dedup();
            embeddings.truncated.extend(cut.iter().map(|label| chunk * LABELS_AT_ONCE + label));
            for texts in texts.data.chunks_exact(templates.len() * texts.dim) {
                embeddings.append(&ensemble(texts, embeddings.dim));
            }
            options.report(chunk * LABELS_AT_ONCE + labels.len());
        }
        let labels = labels.iter().map(|label| label.as_ref().to_owned()).collect();
        Classifier::from_embeddings(clip, labels, embeddings)
    }

    /// Labels that were embedded before, by the same model: a unit embedding for each.
    ///
    /// # Errors
    /// When there is no label.
    ///
    /// # Panics
    /// When there are not as many embeddings as labels, or they are of another dimension than the model's.
    pub fn from_embeddings(
        clip: &Clip,
        labels: Vec<String>,
        embeddings: Embeddings,
    ) -> Result<Classifier, Error> {
        let shape = (labels.len(), clip.config().model.embed_dim);
        assert_eq!((embeddings.rows, embeddings.dim), shape, "an embedding for each label");
        if labels.is_empty() {
            return Err(Error::NoLabels);
        }
        let (scale, bias) = (clip.logit_scale().exp(), clip.logit_bias());
        let scoring = if bias.is_some() { Scoring::Sigmoid } else { Scoring::Softmax };
        Ok(Classifier { labels, embeddings, scale, bias: bias.unwrap_or(0.0), scoring })
    }

    /// The same labels with another way of scoring.
    #[must_use]
    pub fn with_scoring(self, scoring: Scoring) -> Self {
        Classifier { scoring, ..self }
    }

    /// The labels in the order given.
    pub fn labels(&self) -> &[String] {
        &self.labels
    }

    /// The unit embedding of each label; `truncated` lists the labels of which a text was cut.
    pub fn embeddings(&self) -> &Embeddings {
        &self.embeddings
    }

    /// The cosine of a unit embedding and each label.
    ///
    /// # Panics
    /// When the embedding is of another dimension.
    pub fn similarities(&self, image: &[f32]) -> Vec<f32> {
        assert_eq!(image.len(), self.embeddings.dim, "dimension of the image embedding");
        dots(Isa::active(), image, &self.embeddings.data, image.len())
    }

    /// The `top_k` best labels for a unit embedding, best first; of equal ones the earlier first.
    ///
    /// # Panics
    /// When the embedding is of another dimension.
    pub fn classify(&self, image: &[f32], top_k: usize) -> Vec<Score> {
        let similarities = self.similarities(image);
        let scores = self.scores(&similarities);
        let best = largest(&similarities, top_k);
        let score = |label_idx: usize| Score {
            label: self.labels[label_idx].clone(),
            label_idx,
            score: scores[label_idx],
            similarity: similarities[label_idx],
        };
        best.into_iter().map(score).collect()
    }

    /// Scores of similarities to all labels.
    fn scores(&self, similarities: &[f32]) -> Vec<f32> {
        let logit = |&similarity: &f32| f64::from(self.scale * similarity + self.bias);
        let logits = similarities.iter().map(logit);
        match self.scoring {
            Scoring::Sigmoid => logits.map(|x| (1.0 / (1.0 + (-x).exp())) as f32).collect(),
            Scoring::Softmax => {
                let largest = logits.clone().fold(f64::NEG_INFINITY, f64::max);
                let powers: Vec<f64> = logits.map(|x| (x - largest).exp()).collect();
                let sum: f64 = powers.iter().sum();
                powers.iter().map(|power| (power / sum) as f32).collect()
            }
        }
    }
}

/// Checks that templates can be filled in.
///
/// # Errors
/// When there is none, or one lacks `{}`.
pub fn check_templates<T: AsRef<str>>(templates: &[T]) -> Result<(), Error> {
    if templates.is_empty() {
        return Err(Error::NoTemplates);
    }
    match templates.iter().map(AsRef::as_ref).find(|template| !template.contains("{}")) {
        Some(template) => Err(Error::Template { template: template.to_owned() }),
        None => Ok(()),
    }
}

/// The label in each template.
pub(crate) fn prompts<T: AsRef<str>>(label: &str, templates: &[T]) -> Vec<String> {
    templates.iter().map(|template| template.as_ref().replace("{}", label)).collect()
}

/// The normalised mean of unit embeddings.
fn ensemble(texts: &[f32], dim: usize) -> Vec<f32> {
    let mut mean = vec![0.0; dim];
    let n = (texts.len() / dim) as f32;
    for text in texts.chunks_exact(dim) {
        mean.iter_mut().zip(text).for_each(|(mean, v)| *mean += v);
    }
    mean.iter_mut().for_each(|v| *v /= n);
    normalize(&mut mean);
    mean
}
