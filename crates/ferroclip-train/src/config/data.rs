//! `[data]`.

use std::path::PathBuf;

use ferroclip_data::{Filter, Source};
use serde::{Deserialize, Serialize};

use crate::error::TrainError;

/// `[data]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataSection {
    /// Joined to one epoch.
    pub train: Vec<TrainData>,
    /// Scored one by one.
    #[serde(default)]
    pub valid: Vec<ValidData>,
}

/// One of `[[data.train]]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainData {
    /// What [`ferroclip_data::Dataset::open`] takes.
    pub path: PathBuf,
    /// Columns of text; one that is not empty is drawn per visit.
    pub captions: Vec<String>,
    /// Those of them that are comma lists, of which one to three words are drawn.
    #[serde(default = "default_keywords")]
    pub keywords: Vec<String>,
    /// The column that templates wrap; all columns where it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// One is drawn per visit; none leaves texts as they are.
    #[serde(default)]
    pub templates: Vec<String>,
    /// The share of a caption's words that is left out at random; at least one stays. Comma lists
    /// lose none.
    #[serde(default)]
    pub word_dropout: f64,
    /// Conditions that rows must pass.
    #[serde(default)]
    pub filter: Vec<String>,
    /// How often a row comes in an epoch; need not be whole.
    #[serde(default = "default_weight")]
    pub weight: f64,
}

/// One of `[[data.valid]]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ValidData {
    /// What [`ferroclip_data::Dataset::open`] takes.
    pub path: PathBuf,
    /// The column of labels, for zero-shot classification.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// Columns of captions, for retrieval.
    #[serde(default)]
    pub captions: Vec<String>,
    /// Wrap the labels; the model's own where none are given.
    #[serde(default)]
    pub templates: Vec<String>,
    /// Conditions that rows must pass.
    #[serde(default)]
    pub filter: Vec<String>,
}

fn default_keywords() -> Vec<String> {
    vec!["keywords".to_owned()]
}

fn default_weight() -> f64 {
    1.0
}

fn filters(filter: &[String]) -> Result<Vec<Filter>, TrainError> {
    filter.iter().map(|text| Ok(text.parse()?)).collect()
}

impl TrainData {
    pub(crate) fn source(&self) -> Result<Source, TrainError> {
        let filters = filters(&self.filter)?;
        Ok(Source { path: self.path.clone(), filters, repeat: self.weight })
    }
}

impl ValidData {
    pub(crate) fn source(&self) -> Result<Source, TrainError> {
        Ok(Source { path: self.path.clone(), filters: filters(&self.filter)?, repeat: 1.0 })
    }
}
