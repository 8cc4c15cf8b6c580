//! What a run tells.

use std::path::PathBuf;

use ferroclip_data::Tally;

use crate::checkpoint::Best;
use crate::eval::SetScore;
use crate::metrics::StepMetrics;

/// Whether `out` must be new, or holds a run to go on with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// A new run.
    New,
    /// From the last checkpoint; from the beginning, where the run was killed before the first.
    Resume,
}

/// What a run tells while it runs.
#[derive(Clone, Debug)]
pub enum Event {
    /// Something to be told, once.
    Notice(String),
    /// The loop begins.
    Started {
        /// Steps done before.
        step: u64,
        /// Steps in all.
        steps: u64,
        /// Samples of an epoch.
        epoch_len: usize,
        /// Numbers that are trained.
        parameters: usize,
    },
    /// A step is done.
    Step {
        /// Its metrics.
        metrics: StepMetrics,
        /// Steps in all.
        steps: u64,
        /// Time left at the mean pace since the start of this part, without validations to come.
        seconds_left: f64,
    },
    /// Pictures of a validation set are done.
    Validating {
        /// How many.
        done: usize,
        /// Of how many.
        of: usize,
    },
    /// A validation is done.
    Validated {
        /// After which step.
        step: u64,
        /// A score for each set.
        scores: Vec<SetScore>,
        /// Whether it is the best so far.
        is_best: bool,
    },
    /// A checkpoint is written.
    Checkpoint {
        /// After which step.
        step: u64,
        /// Its directory.
        path: PathBuf,
    },
}

/// How a run ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The final model's directory; `None` where the run was interrupted.
    pub model: Option<PathBuf>,
    /// The last checkpoint.
    pub checkpoint: Option<PathBuf>,
    /// Steps done.
    pub step: u64,
    /// Steps in all.
    pub steps: u64,
    /// The last step's metrics, where this part took one.
    pub last: Option<StepMetrics>,
    /// The last validation of this part.
    pub scores: Vec<SetScore>,
    /// The best validation.
    pub best: Option<Best>,
    /// Good and bad samples.
    pub tally: Tally,
    /// Texts that were cut to the context length.
    pub truncated: u64,
}

/// What [`dry_run()`](super::dry_run()) found.
#[derive(Clone, Debug)]
pub struct DryRun {
    /// Numbers that are trained.
    pub parameters: usize,
    /// Steps of the run.
    pub steps: u64,
    /// Samples of an epoch.
    pub epoch_len: usize,
    /// Weights, gradients, optimiser state and average.
    pub state_bytes: u64,
    /// The most memory that this process has used, where the system tells.
    pub peak_bytes: Option<u64>,
    /// A step, after a first one that warms up; reading the pictures included.
    pub seconds_per_step: f64,
    /// What reading the data passed over.
    pub notices: Vec<String>,
}

/// Receives events.
pub type Events<'a> = &'a mut (dyn FnMut(Event) + Send);
