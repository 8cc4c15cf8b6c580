//! The training file: TOML, strict, with every default written out in the run's directory.
//!
//! | table | fields |
//! |---|---|
//! | `[model]` | `config`: a preset, a JSON file, or a model directory to start from; `templates` that the finished model is used with |
//! | `[[data.train]]` | `path`; `captions`: columns, one is drawn per visit; `keywords`: those of them that are comma lists; `label`: the column that `templates` wrap (all, where it is not given); `word_dropout`: share of words left out; `filter`; `weight`: visits of a row in an epoch |
//! | `[[data.valid]]` | `path`; `label` for zero-shot, `captions` for retrieval; `templates`; `filter` |
//! | `[image]` | the augmentation |
//! | `[optimizer]` | AdamW, its schedule and clipping |
//! | `[run]` | length, batches, seed, what is written how often |

use std::path::Path;

use ferroclip::ModelConfig;
use ferroclip::image::{Augment, DecodeLimits};
use serde::{Deserialize, Serialize};
use toml::Value;

use crate::error::TrainError;

mod changes;
mod data;
mod optimizer;
mod run;
#[cfg(test)]
mod tests;

use changes::{compare, set};

pub use data::{DataSection, TrainData, ValidData};
pub use optimizer::OptimizerSection;
pub use run::{BatchNormMode, RunSection, TrainPrecision};

/// The largest training file.
const MAX_BYTES: u64 = 1 << 20;

/// A training run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// What is trained.
    pub model: ModelSection,
    /// On what.
    pub data: DataSection,
    /// How pictures vary.
    #[serde(default)]
    pub image: Augment,
    /// How weights move.
    #[serde(default)]
    pub optimizer: OptimizerSection,
    /// How long, how large, how often.
    pub run: RunSection,
}

/// `[model]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSection {
    /// A preset, a JSON file, or a model directory to start from.
    pub config: String,
    /// The finished model's default templates; those of its config where there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub templates: Vec<String>,
}

impl TrainConfig {
    /// Reads a training file and applies `a.b=value` overrides; parts that are numbers index lists,
    /// and a value that is no TOML is taken as a string.
    ///
    /// # Errors
    /// When the file cannot be read, has an unknown field, or a value is out of range.
    pub fn load(path: &Path, overrides: &[String]) -> Result<TrainConfig, TrainError> {
        use std::io::Read;
        let mut text = String::new();
        let file = std::fs::File::open(path).map_err(TrainError::io("open", path))?;
        file.take(MAX_BYTES).read_to_string(&mut text).map_err(TrainError::io("read", path))?;
        TrainConfig::from_toml(&text, &path.display().to_string(), overrides)
    }

    /// As [`TrainConfig::load`], from the text of a file that errors call `origin`.
    ///
    /// # Errors
    /// As `load`.
    pub fn from_toml(
        text: &str,
        origin: &str,
        overrides: &[String],
    ) -> Result<TrainConfig, TrainError> {
        let bad = |error: toml::de::Error| TrainError::config(origin, error.to_string().trim_end());
        let config = if overrides.is_empty() {
            // Without a detour, so that errors show the line.
            toml::from_str(text).map_err(bad)?
        } else {
            let mut value: Value = toml::from_str(text).map_err(bad)?;
            for text in overrides {
                set(&mut value, text).map_err(|reason| TrainError::config(text, reason))?;
            }
            value.try_into().map_err(bad)?
        };
        TrainConfig::validate(&config).map_err(|reason| TrainError::config(origin, reason))?;
        Ok(config)
    }

    /// The file with every default written out.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("a config is plain data with string keys")
    }

    /// Pairs in memory at a time.
    pub fn micro_batch(&self) -> usize {
        match self.run.micro_batch {
            0 => self.run.batch_size,
            n => n.min(self.run.batch_size),
        }
    }

    /// Whether a model of this config is normalised by the statistics of each batch.
    pub fn batch_statistics(&self, model: &ModelConfig) -> bool {
        let has_batch_norms = model.vision_cfg.layers.stages().is_some();
        has_batch_norms && self.run.batch_norm == BatchNormMode::Batch
    }

    /// Checks what only the model's config can tell.
    pub(crate) fn validate_for(&self, model: &ModelConfig) -> Result<(), String> {
        if model.init_logit_bias.is_some() || model.text_cfg.reads_padding() {
            return Err(
                "`model.config`: models with a `logit_bias` or a text tower that reads padding \
                        (SigLIP, CLIPA) can be used, but not trained yet"
                    .to_owned(),
            );
        }
        let is_resnet = model.vision_cfg.layers.stages().is_some();
        if is_resnet && self.run.patch_dropout > 0.0 {
            return Err("`run.patch_dropout`: a ResNet has no patches".to_owned());
        }
        if self.batch_statistics(model) && self.micro_batch() < self.run.batch_size {
            return Err(format!(
                "`run.micro_batch`: {}, but the batch norms of a ResNet see the whole batch of {}: \
                 leave it out, or set `run.batch_norm = \"frozen\"`",
                self.run.micro_batch, self.run.batch_size
            ));
        }
        Ok(())
    }

    /// What a picture may cost.
    pub(crate) fn limits(&self) -> DecodeLimits {
        DecodeLimits::of_pixels(self.run.max_pixels)
    }

    /// Threads that compute.
    pub fn threads(&self) -> usize {
        match self.run.threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            n => n,
        }
    }

    fn validate(&self) -> Result<(), String> {
        let (run, optimizer) = (&self.run, &self.optimizer);
        let positive = |x: f64| x.is_finite() && x > 0.0;
        let from_zero = |x: f64| x.is_finite() && x >= 0.0;
        let below_one = |x: f64| (0.0..1.0).contains(&x);
        let checks = [
            ("run.epochs", from_zero(run.epochs) && run.epochs <= 1e6, "0 to 1000000"),
            ("run.batch_size", (2..=1 << 16).contains(&run.batch_size), "2 to 65536"),
            ("run.log_every", run.log_every > 0, "1 or more"),
            ("run.keep_last", run.keep_last > 0, "1 or more"),
            ("run.ema", below_one(run.ema), "0 or more and below 1"),
            ("run.max_bad_share", (0.0..=1.0).contains(&run.max_bad_share), "0 to 1"),
            ("run.patch_dropout", (0.0..=0.95).contains(&run.patch_dropout), "0 to 0.95"),
            ("run.threads", run.threads <= 1024, "at most 1024"),
            ("optimizer.lr", positive(optimizer.lr), "a number above 0"),
            (
                "optimizer.betas",
                optimizer.betas.iter().all(|&b| below_one(b)),
                "0 or more and below 1",
            ),
            ("optimizer.eps", positive(optimizer.eps), "a number above 0"),
            ("optimizer.weight_decay", from_zero(optimizer.weight_decay), "0 or more"),
            ("optimizer.clip_norm", from_zero(optimizer.clip_norm), "0 or more"),
            ("data.train", !self.data.train.is_empty(), "at least one"),
        ];
        if let Some((field, _, expected)) = checks.into_iter().find(|(_, holds, _)| !holds) {
            return Err(format!("`{field}` is out of range: expected {expected}"));
        }
        self.image.validate().map_err(|error| format!("`image`: {error}"))?;
        self.validate_data()
    }

    fn validate_data(&self) -> Result<(), String> {
        let train = self.data.train.iter().map(|data| &data.templates);
        let valid = self.data.valid.iter().map(|data| &data.templates);
        for template in train.chain(valid).chain([&self.model.templates]).flatten() {
            if !template.contains("{}") {
                return Err(format!("the template `{template}` has no `{{}}`"));
            }
        }
        if self.data.train.iter().any(|data| data.captions.is_empty()) {
            return Err("`data.train.captions` is empty: name the columns of text".to_owned());
        }
        if !self.data.train.iter().all(|data| (0.0..1.0).contains(&data.word_dropout)) {
            return Err(
                "`data.train.word_dropout` is out of range: expected 0 or more and below 1"
                    .to_owned(),
            );
        }
        if self.data.valid.iter().any(|data| data.label.is_none() && data.captions.is_empty()) {
            return Err(
                "`data.valid` needs `label` (zero-shot) or `captions` (retrieval)".to_owned()
            );
        }
        Ok(())
    }

    /// Each field that differs from `before` and must not, with its values then and now.
    pub(crate) fn differences(&self, before: &TrainConfig) -> Vec<String> {
        let value = |config| Value::try_from(config).expect("a config is plain data");
        let mut differences = Vec::new();
        compare("", Some(&value(before)), Some(&value(self)), &mut differences);
        differences
    }
}
