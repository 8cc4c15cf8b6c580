//! A run that is killed again and again ends as one that is left alone, byte for byte.
#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test panics, and prints figures")]

mod training;

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use training::{Place, check_checkpoints, final_weights, metrics, names};

const SEED: u64 = 20_260_101;
/// Kills after a random time.
const AT_RANDOM: usize = 16;
/// Kills as soon as the directory appears that a checkpoint is written into.
const IN_A_WRITE: usize = 4;
const SIGKILL: i32 = 9;
/// A file of ours in what an earlier kill left.
const MARK: &str = "left-by-a-kill";

/// A linear congruential generator (Knuth's constants).
struct Random(u64);

impl Random {
    /// 0 or more and below `limit`.
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.0 >> 33) % limit
    }
}

fn start(config: &str, threads: u64, resume: bool) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ferroclip"));
    command.args(["train", config, "--quiet", "--threads", &threads.to_string()]);
    command.args(resume.then_some("--resume"));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

fn run_to_the_end(config: &str, resume: bool) {
    let output = start(config, 2, resume).wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Whether there is a half-written checkpoint that no earlier kill left.
fn unfinished(out: &Path) -> bool {
    let hidden = names(out, ".unfinished-checkpoint-");
    hidden.iter().any(|name| !out.join(name).join(MARK).exists())
}

/// Marks what this kill left, so that it does not count for the next one.
fn mark(out: &Path) {
    for name in names(out, ".unfinished-checkpoint-") {
        std::fs::write(out.join(name).join(MARK), b"").unwrap();
    }
}

/// Waits until a checkpoint that was not there before is being written.
fn wait_for_a_write(out: &Path, child: &mut Child) {
    let begin = Instant::now();
    while !unfinished(out) {
        check_alive(child, begin);
    }
}

fn check_alive(child: &mut Child, begin: Instant) {
    assert!(child.try_wait().unwrap().is_none(), "the run has ended");
    assert!(begin.elapsed() < Duration::from_secs(30), "no checkpoint is written");
    std::thread::sleep(Duration::from_micros(100));
}

/// Kills the run, which must be alive; whether it was writing a checkpoint.
fn kill(mut child: Child, out: &Path) -> bool {
    child.kill().unwrap();
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.signal(), Some(SIGKILL), "ended by itself: {stderr}");
    let inside = unfinished(out);
    mark(out);
    inside
}

#[test]
fn twenty_kills_change_nothing() {
    let place = Place::new(128);
    let [whole, killed]: [PathBuf; 2] = ["whole", "killed"].map(|name| place.path(name));
    let begin = Instant::now();
    run_to_the_end(&place.config(&whole, 60, 2), false);
    let undisturbed = begin.elapsed();
    let expected = metrics(&whole, None);

    // All delays together are less than the run takes, so each kill hits a live process.
    let longest = undisturbed / 24;
    let config = place.config(&killed, 60, 2);
    let mut random = Random(SEED);
    let (mut at_random, mut in_a_write) = (AT_RANDOM, IN_A_WRITE);
    let (mut inside, mut steps) = (0, Vec::new());
    while at_random + in_a_write > 0 {
        let resume = killed.join("config.toml").exists();
        let mut child = start(&config, 1 + random.below(2), resume);
        if random.below((at_random + in_a_write) as u64) < at_random as u64 {
            at_random -= 1;
            let micros = random.below(longest.as_micros() as u64);
            std::thread::sleep(Duration::from_micros(micros));
        } else {
            in_a_write -= 1;
            wait_for_a_write(&killed, &mut child);
        }
        inside += usize::from(kill(child, &killed));
        let last = check_checkpoints(&killed);
        if let Some(last) = &last {
            let found = metrics(&killed, last["metrics_bytes"].as_u64());
            assert_eq!(found, expected[..found.len()]);
        }
        steps.push(last.map_or(0, |last| last["step"].as_u64().unwrap()));
    }
    run_to_the_end(&config, true);

    eprintln!(
        "seed {SEED}: {} kills, {inside} inside a checkpoint write; checkpoint after each kill: \
         {steps:?}; {} lines of metrics; undisturbed {undisturbed:.1?}, all {:.1?}",
        steps.len(),
        expected.len(),
        begin.elapsed()
    );
    assert_eq!(steps.len(), AT_RANDOM + IN_A_WRITE);
    assert!(inside >= 3, "{inside} kills inside a checkpoint write");
    assert!(steps.last() > Some(&0), "the kills left no time for a checkpoint");
    assert_eq!(metrics(&killed, None), expected);
    assert!(final_weights(&killed) == final_weights(&whole), "the final weights differ");
    assert_eq!(names(&killed, "."), Vec::<String>::new());
}
