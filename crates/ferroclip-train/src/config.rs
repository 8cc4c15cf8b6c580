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

use std::path::{Path, PathBuf};

use ferroclip::image::{Augment, DecodeLimits};
use ferroclip::{FloatFormat, ModelConfig, Precision};
use ferroclip_data::{Filter, Source};
use serde::{Deserialize, Serialize};
use toml::Value;

use crate::error::TrainError;
use crate::optimizer::{Constants, Decay};
use crate::schedule::Schedule;

/// Fields that may change between the parts of a run.
const MAY_CHANGE: [&str; 5] =
    ["run.epochs", "run.out", "run.threads", "optimizer.lr", "optimizer.clip_norm"];
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

/// `[optimizer]`: AdamW.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OptimizerSection {
    /// The base learning rate.
    pub lr: f64,
    /// Shares of the old in the running means.
    pub betas: [f64; 2],
    /// Added to the denominator.
    pub eps: f64,
    /// Decoupled decay.
    pub weight_decay: f64,
    /// Steps of linear warm-up.
    pub warmup_steps: u64,
    /// What follows.
    pub schedule: Schedule,
    /// Which tensors decay.
    pub decay: Decay,
    /// The largest global gradient norm; 0 for no limit.
    pub clip_norm: f64,
}

impl Default for OptimizerSection {
    fn default() -> Self {
        OptimizerSection {
            lr: 5e-4,
            betas: [0.9, 0.98],
            eps: 1e-6,
            weight_decay: 0.2,
            warmup_steps: 0,
            schedule: Schedule::Cosine,
            decay: Decay::Standard,
            clip_norm: 0.0,
        }
    }
}

impl OptimizerSection {
    pub(crate) fn constants(&self) -> Constants {
        Constants { betas: self.betas, eps: self.eps, weight_decay: self.weight_decay }
    }
}

/// `[run]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunSection {
    /// Visits of all data; need not be whole.
    pub epochs: f64,
    /// Pairs that are contrasted with each other.
    pub batch_size: usize,
    /// Pairs in memory at a time, without influence on the gradients; 0 for the whole batch.
    #[serde(default)]
    pub micro_batch: usize,
    /// What the operands of the products of transformer blocks are rounded to, forward and backward.
    #[serde(default)]
    pub precision: TrainPrecision,
    /// Transformer blocks keep nothing but their inputs for the backward pass and compute the rest
    /// again: less memory, more time.
    #[serde(default)]
    pub recompute: bool,
    /// Of the initial weights, the order, captions and augmentation.
    #[serde(default)]
    pub seed: u64,
    /// Checkpoints kept, besides the best model.
    #[serde(default = "default_keep_last")]
    pub keep_last: usize,
    /// The run directory.
    pub out: PathBuf,
    /// Share of the old in the running average of the weights; 0 for none. The average is what is
    /// validated and saved as the final model.
    #[serde(default)]
    pub ema: f64,
    /// Steps between checkpoints; 0 for one an epoch.
    #[serde(default)]
    pub checkpoint_every: u64,
    /// Steps between validations; 0 for one an epoch.
    #[serde(default)]
    pub eval_every: u64,
    /// Steps between lines of `metrics.jsonl`.
    #[serde(default = "default_log_every")]
    pub log_every: u64,
    /// The share of bad samples at which the run stops.
    #[serde(default = "default_max_bad_share")]
    pub max_bad_share: f64,
    /// Most pixels of a picture, width times height; larger ones count as bad samples. Where it is missing, the default
    /// of [`DecodeLimits`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_pixels: Option<u64>,
    /// Rows with equal texts are positives of each other.
    #[serde(default = "default_true")]
    pub multi_positive: bool,
    /// Share of an image's patches that are left out in training.
    #[serde(default)]
    pub patch_dropout: f64,
    /// What the batch norms of a ResNet use: `batch`, the statistics of the batch, or `frozen`,
    /// those that the model came with. Models without batch norms ignore it.
    #[serde(default)]
    pub batch_norm: BatchNormMode,
    /// How the model directories `best` and `final` store their weights: `f32` or `f16`.
    /// Checkpoints are f32 always.
    #[serde(default)]
    pub model_dtype: FloatFormat,
    /// Threads that compute, and threads that read; 0 for the cores that the process may use.
    #[serde(default)]
    pub threads: usize,
}

/// `run.batch_norm`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BatchNormMode {
    /// Normalise by the batch, and move the running statistics.
    #[default]
    Batch,
    /// Normalise by the running statistics, as constants.
    Frozen,
}

/// `run.precision`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TrainPrecision {
    /// Nothing is rounded.
    #[default]
    F32,
    /// To bf16; sums, norms, the loss and the weights themselves stay f32.
    Bf16,
}

impl TrainPrecision {
    /// The precision of products.
    pub fn precision(self) -> Precision {
        match self {
            TrainPrecision::F32 => Precision::F32,
            TrainPrecision::Bf16 => Precision::Bf16,
        }
    }
}

fn default_keep_last() -> usize {
    2
}

fn default_log_every() -> u64 {
    1
}

fn default_max_bad_share() -> f64 {
    0.01
}

fn default_true() -> bool {
    true
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
            ("run.threads", run.threads <= 4096, "at most 4096"),
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

fn compare(path: &str, before: Option<&Value>, now: Option<&Value>, out: &mut Vec<String>) {
    if before == now || MAY_CHANGE.contains(&path) {
        return;
    }
    let below = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
    match (before, now) {
        (Some(Value::Table(before)), Some(Value::Table(now))) => {
            let added = now.keys().filter(|key| !before.contains_key(*key));
            for key in before.keys().chain(added) {
                compare(&below(key), before.get(key), now.get(key), out);
            }
        }
        (Some(Value::Array(before)), Some(Value::Array(now)))
            if before.iter().chain(now).any(Value::is_table) =>
        {
            for i in 0..before.len().max(now.len()) {
                compare(&below(&i.to_string()), before.get(i), now.get(i), out);
            }
        }
        _ => {
            let show = |value: Option<&Value>| value.map_or("nothing".to_owned(), Value::to_string);
            out.push(format!("`{path}` was {}, is {}", show(before), show(now)));
        }
    }
}

/// Applies `a.b=value`.
fn set(root: &mut Value, text: &str) -> Result<(), String> {
    let (path, right) = text.split_once('=').ok_or("expected `a.b=value`")?;
    let parsed: Result<toml::Table, _> = toml::from_str(&format!("value = {right}"));
    let value = parsed.ok().filter(|table| table.len() == 1).and_then(|mut t| t.remove("value"));
    let value = value.unwrap_or_else(|| Value::String(right.to_owned()));
    let mut place = root;
    for part in path.trim().split('.') {
        place = match place {
            Value::Table(table) => {
                table.entry(part).or_insert_with(|| Value::Table(toml::Table::new()))
            }
            Value::Array(list) => {
                let n = list.len();
                let item = part.parse().ok().and_then(|i: usize| list.get_mut(i));
                item.ok_or(format!("`{part}` is no place in a list of {n}"))?
            }
            other => return Err(format!("`{part}` lies in a {}", other.type_str())),
        };
    }
    *place = value;
    Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;

    const MINIMAL: &str = r#"
        [model]
        config = "draw-mini"
        [[data.train]]
        path = "a.zip"
        captions = ["label"]
        [run]
        epochs = 2
        batch_size = 8
        out = "runs/a"
    "#;

    fn parse(overrides: &[&str]) -> Result<TrainConfig, TrainError> {
        let overrides: Vec<String> = overrides.iter().map(|&text| text.to_owned()).collect();
        TrainConfig::from_toml(MINIMAL, "a.toml", &overrides)
    }

    #[test]
    fn defaults_are_written_out_and_read_back() {
        let config = parse(&[]).unwrap();
        assert_eq!(config.micro_batch(), 8);
        assert_eq!(TrainConfig::from_toml(&config.to_toml(), "b", &[]).unwrap(), config);
        assert!(config.to_toml().contains("weight_decay = 0.2"));
    }

    #[test]
    fn overrides_reach_tables_and_lists() {
        let config = parse(&[
            "run.batch_size=16",
            "optimizer.lr=1e-3",
            "data.train.0.path=b c.zip",
            r#"run.out="x=y""#,
            r#"data.train.0.filter=["a!=b"]"#,
        ]);
        let config = config.unwrap();
        assert_eq!((config.run.batch_size, config.optimizer.lr), (16, 1e-3));
        assert_eq!(config.data.train[0].path, PathBuf::from("b c.zip"));
        assert_eq!(config.run.out, PathBuf::from("x=y"));
        assert_eq!(config.data.train[0].filter, ["a!=b"]);
    }

    #[test]
    fn mistakes_are_named() {
        for (text, named) in [
            ("run.batchsize=1", "batchsize"),
            ("run.precision=int8", "int8"),
            ("data.train.1.path=x", "no place"),
            ("run.out.x=1", "lies in"),
            ("run.epochs", "a.b=value"),
            ("optimizer.lr=nan", "optimizer.lr"),
            ("run.batch_size=1", "batch_size"),
            ("data.train.0.templates=[\"x\"]", "`x`"),
            ("image.flip_prob=2", "flip_prob"),
            ("data.train.0.captions=[]", "captions"),
            ("data.train.0.word_dropout=1.0", "word_dropout"),
            ("data.train.0.word_dropout=-0.1", "word_dropout"),
        ] {
            let error = parse(&[text]).unwrap_err().to_string();
            assert!(error.contains(named), "{text}: {error}");
        }
    }

    #[test]
    fn only_some_fields_may_change() {
        let before = parse(&[]).unwrap();
        let now = parse(&["run.epochs=9", "run.out=elsewhere", "run.threads=3"]).unwrap();
        assert!(now.differences(&before).is_empty());
        let now = parse(&["run.seed=1", "data.train.0.weight=2.0"]).unwrap();
        assert_eq!(
            now.differences(&before),
            ["`data.train.0.weight` was 1.0, is 2.0", "`run.seed` was 0, is 1"]
        );
    }

    /// A file of the repository.
    fn read(path: &str) -> String {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        std::fs::read_to_string(root.join(path)).unwrap()
    }

    #[test]
    fn the_files_of_the_repository_are_valid() {
        for path in [
            "recipes/draw-mini.toml",
            "benchmarks/reference/held-out-style.toml",
            "benchmarks/trials/base.toml",
        ] {
            TrainConfig::from_toml(&read(path), path, &[]).unwrap();
        }
    }

    #[test]
    fn the_documentation_names_every_field() {
        let valid = ValidData {
            path: PathBuf::new(),
            label: Some(String::new()),
            captions: Vec::new(),
            templates: Vec::new(),
            filter: Vec::new(),
        };
        let mut config = parse(&["data.train.0.label=label", r#"model.templates=["{}"]"#]).unwrap();
        config.data.valid.push(valid);
        let text = read("docs/training.md");
        for line in config.to_toml().lines() {
            let Some((field, _)) = line.split_once(" = ") else { continue };
            assert!(text.contains(&format!("`{field}`")), "docs/training.md lacks `{field}`");
        }
    }
}
