//! Writing that fails in the middle of a file: files that may not grow further, and a small disk in
//! memory. What was written stays whole, and with more room the program goes on as if nothing had
//! happened.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::common::{Run, files_below, model, run, write};
use crate::training::{Place, check_checkpoints, final_weights, metrics, names};
use tempfile::{TempDir, tempdir};

/// Without the signal, which ends the program, a write beyond the limit fails.
const LIMITED: &str = r#"trap "" XFSZ; ulimit -f "$0" && exec "$@""#;

/// Runs the program where no file may grow beyond `kib` KiB.
fn run_limited(kib: u64, args: &[&str]) -> Run {
    let mut command = Command::new("bash");
    command.args(["-c", LIMITED, &kib.to_string(), env!("CARGO_BIN_EXE_ferroclip")]);
    Run::new(&command.args(args).stdin(Stdio::null()).output().unwrap())
}

fn succeed(args: &[&str]) {
    let run = run(args);
    assert_eq!(run.code, 0, "{}", run.stderr);
}

/// Asserts that the error names the file and the reason, and that the hint has `hint`.
fn finds_no_room(run: &Run, file: &str, reason: &str, hint: &str) {
    run.fails(1, file);
    let lines: Vec<&str> = run.stderr.lines().collect();
    assert!(lines[0].ends_with(&format!("`: {reason}")), "{}", run.stderr);
    assert!(lines[1].contains(hint), "{}", run.stderr);
}

/// A file system in memory; unmounted when dropped, also by a panic.
struct Disk {
    folder: TempDir,
}

impl Disk {
    /// `None`, and a reason on standard error, where this process may not mount.
    fn mount(options: &str) -> Option<Disk> {
        let folder = tempdir().unwrap();
        let mut command = Command::new("mount");
        command.args(["-t", "tmpfs", "-o", options, "ferroclip-test"]).arg(folder.path());
        let output = command.output();
        let reason = match &output {
            Ok(output) if output.status.success() => return Some(Disk { folder }),
            Ok(output) => String::from_utf8_lossy(&output.stderr).into_owned(),
            Err(error) => error.to_string(),
        };
        eprintln!("skipped: this process may not mount a small disk: {}", reason.trim());
        None
    }

    fn change(&self, options: &str) {
        let options = format!("remount,{options}");
        let status = Command::new("mount").args(["-o", &options]).arg(self.path()).status();
        assert!(status.unwrap().success(), "{options}");
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("--lazy").arg(self.path()).status();
        if !unmounted.is_ok_and(|status| status.success()) {
            eprintln!("cannot unmount {}", self.path().display());
        }
    }
}

/// Arguments for embeddings of the texts, at most 300 rows (19,328 bytes) a file.
fn embed<'a>(texts: &'a str, out: &'a str) -> Vec<&'a str> {
    let model = model().to_str().unwrap();
    let args = ["embed", "--texts", texts, "--out", out, "--model", model, "--threads", "1"];
    [&args[..], &["--dtype", "f32", "--rows-per-file", "300", "--quiet"]].concat()
}

fn texts(folder: &Path, n: usize) -> String {
    let lines: String = (0..n).map(|i| format!("text {i}\n")).collect();
    write(&folder.join(format!("{n}.txt")), lines.as_bytes())
}

/// Asserts that every file is that of the undisturbed run, and returns how many there are.
fn check_files(out: &Path, whole: &Path) -> usize {
    let names = files_below(out);
    for name in &names {
        let [found, expected] = [out, whole].map(|folder| std::fs::read(folder.join(name)));
        assert!(found.unwrap() == expected.unwrap(), "{name} differs");
    }
    names.len()
}

#[test]
fn embeddings_that_grow_too_large() {
    let folder = tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    // The first fails while it writes, the second when it empties its buffer.
    for (n, kib) in [(300, 8), (100, 4)] {
        let texts = texts(folder.path(), n);
        let (whole, out) = (at(&format!("whole{n}")), at(&format!("out{n}")));
        succeed(&embed(&texts, &whole));
        let args = embed(&texts, &out);
        finds_no_room(&run_limited(0, &args), "embed.json`", "file too large", "`ulimit -f`");
        assert_eq!(check_files(Path::new(&out), Path::new(&whole)), 0);
        let failed = run_limited(kib, &args);
        finds_no_room(&failed, "text_emb/text_emb_0.npy`", "file too large", "`ulimit -f`");
        assert!(failed.stderr.contains("--resume"), "{}", failed.stderr);
        assert_eq!(check_files(Path::new(&out), Path::new(&whole)), 2);
        succeed(&args);
        assert_eq!(check_files(Path::new(&out), Path::new(&whole)), 3);
    }
}

#[test]
fn embeddings_on_a_disk_that_gets_room_bit_by_bit() {
    let folder = tempdir().unwrap();
    let texts = texts(folder.path(), 700);
    let whole = folder.path().join("whole");
    succeed(&embed(&texts, whole.to_str().unwrap()));
    // Pages of 4 KiB, then names: the folder that is there already is the first.
    let pages = (1..40).map(|n| format!("size={}k", 4 * n));
    let names = (2..20).map(|n| format!("nr_inodes={n}"));
    let rooms: [Vec<String>; 2] = [pages.collect(), names.collect()];
    for rooms in rooms {
        let Some(disk) = Disk::mount(&rooms[0]) else { return };
        let out = disk.path().join("out");
        let args = [&embed(&texts, out.to_str().unwrap())[..], &["--resume"]].concat();
        let mut failures = 0;
        for room in &rooms {
            disk.change(room);
            let run = run(&args);
            if run.code == 0 {
                break;
            }
            finds_no_room(&run, out.to_str().unwrap(), "no space left on device", "free some");
            if out.exists() {
                check_files(&out, &whole);
            }
            failures += 1;
        }
        assert!((4..rooms.len()).contains(&failures), "{failures} failures: {rooms:?}");
        assert_eq!(check_files(&out, &whole), 7);
    }
}

fn train<'a>(config: &'a str, out: &Path) -> Vec<&'a str> {
    let args = ["train", config, "--quiet", "--set", "run.eval_every=30"];
    let resume = out.join("config.toml").exists().then_some("--resume");
    args.into_iter().chain(resume).collect()
}

/// Asserts that what a failed run left is whole, and belongs to the undisturbed run. Returns the
/// last checkpoint's step, 0 for none.
fn check_run(out: &Path, whole: &Path) -> u64 {
    let hidden = |name: &String| name.split('/').any(|part| part.starts_with('.'));
    assert!(!files_below(out).iter().any(hidden), "{:?}", files_below(out));
    assert_eq!(names(out, "."), Vec::<String>::new());
    let last = check_checkpoints(out);
    if let Ok(text) = std::fs::read_to_string(out.join("metrics.jsonl")) {
        assert!(text.is_empty() || text.ends_with('\n'), "half a line in metrics.jsonl");
        let found = metrics(out, None);
        assert_eq!(found, metrics(whole, None)[..found.len()]);
    }
    last.map_or(0, |last| last["step"].as_u64().unwrap())
}

fn check_end(out: &Path, whole: &Path) {
    assert_eq!(check_run(out, whole), 53);
    assert_eq!(metrics(out, None), metrics(whole, None));
    assert!(final_weights(out) == final_weights(whole), "the final weights differ");
}

#[test]
fn a_run_whose_files_grow_too_large() {
    let place = Place::new(16);
    let (whole, out) = (place.path("whole"), place.path("out"));
    succeed(&train(&place.config(&whole, 20, 25), &whole));
    let config = place.config(&out, 20, 25);
    let fails = |kib: u64, file: &str| {
        let run = run_limited(kib, &train(&config, &out));
        finds_no_room(&run, file, "file too large", "`ulimit -f`");
        assert!(run.stderr.contains("--resume"), "{}", run.stderr);
        assert_eq!(check_run(&out, &whole), 0);
    };
    fails(0, "out/config.toml`");
    assert_eq!(files_below(&out), Vec::<String>::new());
    fails(4, "out/metrics.jsonl`");
    assert!(metrics(&out, None).len() > 10);
    fails(16, "out/checkpoint-25/weights.safetensors`");
    succeed(&train(&config, &out));
    check_end(&out, &whole);
}

#[test]
fn a_run_on_a_disk_that_gets_room_bit_by_bit() {
    let Some(disk) = Disk::mount("size=4k") else { return };
    let place = Place::new(16);
    let (whole, out) = (place.path("whole"), disk.path().join("out"));
    succeed(&train(&place.config(&whole, 20, 25), &whole));
    let config = place.config(&out, 20, 25);
    let mut stops = Vec::new();
    for kib in [4, 8].into_iter().chain((60..3000).step_by(72)) {
        disk.change(&format!("size={kib}k"));
        let run = run(&train(&config, &out));
        if run.code == 0 {
            break;
        }
        finds_no_room(&run, out.to_str().unwrap(), "no space left on device", "--resume");
        let file = run.stderr.split('`').nth(1).unwrap();
        let file = Path::new(file).strip_prefix(&out).unwrap().display().to_string();
        stops.push((kib, check_run(&out, &whole), file));
    }
    eprintln!("KiB of the disk, step of the last checkpoint, file without room: {stops:?}");
    check_end(&out, &whole);
    let stopped =
        |after: u64, file: &str| stops.iter().any(|s| s.1 == after && s.2.starts_with(file));
    assert!(stopped(0, "metrics.jsonl") && stopped(0, "checkpoint-25/"), "{stops:?}");
    assert!(stopped(25, "checkpoint-50/") || stopped(25, "best/"), "{stops:?}");
}
