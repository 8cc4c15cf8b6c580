//! What a run will cost.

use std::fs;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use super::in_pool;
use super::report::DryRun;
use super::step::{fresh_state, step, total_steps};
use crate::config::TrainConfig;
use crate::error::TrainError;
use crate::model;
use crate::samples::TrainSet;

/// Takes two steps without writing anything and tells what the run will cost.
///
/// # Errors
/// As [`run()`](super::run).
pub fn dry_run(config: &TrainConfig, stop: &AtomicBool) -> Result<DryRun, TrainError> {
    in_pool(config, || {
        let data = TrainSet::open(config)?;
        let files = model::start(config)?;
        let mut state = fresh_state(config, &files, &data);
        let steps = total_steps(config, data.plan.epoch_len());
        let mut stream = data.stream(config, &files.config, &files.tokenizer, data.plan.start())?;
        let mut seconds = 0.0;
        for _ in 0..2 {
            let began = Instant::now();
            let (n, share) = (config.run.batch_size, config.run.max_bad_share);
            let next = stream.next_batch(n, &mut state.progress.tally, share)?;
            if step(config, &files, &mut state, &next.batch, steps, stop)?.is_none() {
                return Err(TrainError::Cancelled);
            }
            state.progress.step += 1;
            seconds = began.elapsed().as_secs_f64();
        }
        let parameters = state.weights.n_parameters();
        let copies = 4 + u64::from(config.run.ema > 0.0);
        Ok(DryRun {
            parameters,
            steps,
            epoch_len: data.plan.epoch_len(),
            state_bytes: 4 * copies * parameters as u64,
            peak_bytes: peak_bytes(),
            seconds_per_step: seconds,
            notices: data.notices().collect(),
        })
    })
}

/// The most memory that this process has used.
fn peak_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}
