//! Whole runs on a few drawn pictures: resuming, stopping, refusing.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use ferroclip::{Classifier, Clip};
use ferroclip_data::Dataset;
use ferroclip_train::{
    EvalOptions, Event, Outcome, Start, TrainConfig, TrainError, ZeroShotTask, dry_run,
    label_union, right_labels, run, zero_shot,
};

const MODEL: &str = r#"{
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 16, "head_width": 8, "patch_size": 4},
    "text_cfg": {"context_length": 8, "vocab_size": 600, "width": 16, "heads": 2, "layers": 1}
}"#;
const RESNET: &str = r#"{
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 2, "head_width": 32, "patch_size": null},
    "text_cfg": {"context_length": 8, "vocab_size": 600, "width": 16, "heads": 2, "layers": 1}
}"#;
const COLORS: [(&str, [u8; 3]); 3] =
    [("red", [220, 30, 20]), ("green", [20, 200, 40]), ("blue", [30, 40, 230])];

/// Class folders of 8 pictures each: a square of the colour at another place in each.
fn draw(root: &Path) {
    for (name, color) in COLORS {
        fs::create_dir_all(root.join(name)).unwrap();
        for i in 0..8_usize {
            let mut pixels = vec![200_u8; 20 * 20 * 3];
            for (place, pixel) in pixels.chunks_exact_mut(3).enumerate() {
                let (x, y) = (place % 20, place / 20);
                if (i..i + 12).contains(&x) && (7 - i..19 - i).contains(&y) {
                    pixel.copy_from_slice(&color);
                }
            }
            let file = File::create(root.join(name).join(format!("{i}.png"))).unwrap();
            let mut encoder = png::Encoder::new(file, 20, 20);
            encoder.set_color(png::ColorType::Rgb);
            encoder.write_header().unwrap().write_image_data(&pixels).unwrap();
        }
    }
}

struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        let folder = tempfile::tempdir().unwrap();
        draw(&folder.path().join("data"));
        fs::write(folder.path().join("model.json"), MODEL).unwrap();
        fs::write(folder.path().join("resnet.json"), RESNET).unwrap();
        Place { folder }
    }

    fn out(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn config(&self, out: &str, overrides: &[&str]) -> TrainConfig {
        let at = |name: &str| self.folder.path().join(name).display().to_string();
        let text = format!(
            r#"
            [model]
            config = '{}'
            templates = ["a {{}} square"]
            [[data.train]]
            path = '{}'
            captions = ["label"]
            templates = ["a {{}} square", "{{}}"]
            [[data.valid]]
            path = '{}'
            label = "label"
            [image]
            flip_prob = 0.5
            [optimizer]
            lr = 2e-3
            warmup_steps = 2
            clip_norm = 1.0
            [run]
            epochs = 4
            batch_size = 9
            micro_batch = 5
            keep_last = 3
            ema = 0.9
            checkpoint_every = 2
            eval_every = 3
            threads = 2
            out = '{}'
            "#,
            at("model.json"),
            at("data"),
            at("data"),
            at(out)
        );
        let overrides: Vec<String> = overrides.iter().map(|&text| text.to_owned()).collect();
        TrainConfig::from_toml(&text, "test.toml", &overrides).unwrap()
    }
}

fn train(config: &TrainConfig, start: Start) -> Result<Outcome, TrainError> {
    run(config, start, &mut |_| {}, &AtomicBool::new(false))
}

/// Trains until the event that `until` waits for.
fn train_until(
    config: &TrainConfig,
    start: Start,
    until: impl Fn(&Event) -> bool + Send + Sync,
) -> Outcome {
    let stop = AtomicBool::new(false);
    let mut events = |event: Event| {
        if until(&event) {
            stop.store(true, Ordering::Relaxed);
        }
    };
    run(config, start, &mut events, &stop).unwrap()
}

/// The lines of `metrics.jsonl` without their times.
fn metrics(out: &Path) -> Vec<serde_json::Value> {
    let text = fs::read_to_string(out.join("metrics.jsonl")).unwrap();
    let line = |line: &str| {
        let mut value: serde_json::Value = serde_json::from_str(line).unwrap();
        value.as_object_mut().unwrap().remove("time");
        value
    };
    text.lines().map(line).collect()
}

fn weights(out: &Path) -> Vec<u8> {
    fs::read(out.join("final/open_clip_model.safetensors")).unwrap()
}

#[test]
fn a_resumed_run_is_byte_equal() {
    let place = Place::new();
    let whole = train(&place.config("whole", &[]), Start::New).unwrap();
    assert_eq!((whole.step, whole.steps), (10, 10));
    assert!(whole.model.is_some());

    let config = place.config("parts", &["run.threads=1"]);
    let at_step = |wanted: u64| move |event: &Event| matches!(event, Event::Step { metrics, .. } if metrics.step == wanted);
    let first = train_until(&config, Start::New, at_step(3));
    assert_eq!((first.step, first.model), (3, None));
    let second = train_until(&config, Start::Resume, at_step(8));
    assert_eq!(second.step, 8);
    // As if killed: back to an older checkpoint, with later lines and half-written files about.
    let out = place.out("parts");
    fs::remove_dir_all(out.join("checkpoint-8")).unwrap();
    fs::create_dir(out.join(".unfinished-checkpoint-8")).unwrap();
    fs::write(out.join(".unfinished-checkpoint-8/weights.safetensors"), b"half").unwrap();
    let last = train(&config, Start::Resume).unwrap();
    assert_eq!(last.step, 10);

    assert_eq!(metrics(&out), metrics(&place.out("whole")));
    assert_eq!(weights(&out), weights(&place.out("whole")));
    assert_eq!(last.best, whole.best);
    assert!(!out.join(".unfinished-checkpoint-8").exists());
    assert!(out.join("curves.svg").exists() && out.join("best").exists());
    let checkpoints = fs::read_dir(&out).unwrap().filter(|entry| {
        entry.as_ref().unwrap().file_name().to_string_lossy().starts_with("checkpoint-")
    });
    assert_eq!(checkpoints.count(), 3);
}

/// Running statistics of batch norms are part of a checkpoint, and do not depend on threads.
#[test]
fn a_resumed_resnet_run_is_byte_equal() {
    let place = Place::new();
    let model = format!("model.config={}", place.out("resnet.json").display());
    let changes = [&model, "run.micro_batch=0", "image.flip_prob=0.0"];
    let whole = train(&place.config("whole", &changes), Start::New).unwrap();
    assert!(whole.model.is_some());
    let config = place.config("parts", &[changes.as_slice(), &["run.threads=1"]].concat());
    let at_step = |event: &Event| matches!(event, Event::Step { metrics, .. } if metrics.step == 5);
    assert_eq!(train_until(&config, Start::New, at_step).step, 5);
    train(&config, Start::Resume).unwrap();
    assert_eq!(metrics(&place.out("parts")), metrics(&place.out("whole")));
    assert_eq!(weights(&place.out("parts")), weights(&place.out("whole")));
    Clip::open(place.out("parts").join("final")).unwrap();

    let frozen = "run.batch_norm=frozen";
    let frozen = place.config("frozen", &[changes.as_slice(), &[frozen]].concat());
    train(&frozen, Start::New).unwrap();
    let path = place.out("frozen/final/open_clip_model.safetensors");
    let kept = ferroclip::Weights::load(&path).unwrap();
    assert!(kept.get("visual.bn1.running_var").unwrap().data.iter().all(|&v| v == 1.0));
}

#[test]
fn what_a_resnet_cannot_do_is_refused() {
    let place = Place::new();
    let model = format!("model.config={}", place.out("resnet.json").display());
    let error = train(&place.config("a", &[&model]), Start::New).unwrap_err().to_string();
    assert!(error.contains("`run.micro_batch`: 5") && error.contains("frozen"), "{error}");
    let dropout = ["run.micro_batch=0", "run.patch_dropout=0.5"];
    let config = place.config("a", &[&[model.as_str()][..], &dropout].concat());
    let error = dry_run(&config, &AtomicBool::new(false)).unwrap_err().to_string();
    assert!(error.contains("`run.patch_dropout`"), "{error}");
    assert!(!place.out("a").exists());
}

#[test]
fn a_run_killed_before_its_first_checkpoint_begins_again() {
    let place = Place::new();
    let config = place.config("a", &["run.epochs=1"]);
    train(&config, Start::New).unwrap();
    let (lines, bytes) = (metrics(&place.out("a")), weights(&place.out("a")));
    for entry in fs::read_dir(place.out("a")).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            fs::remove_dir_all(path).unwrap();
        }
    }
    train(&config, Start::Resume).unwrap();
    assert_eq!((metrics(&place.out("a")), weights(&place.out("a"))), (lines, bytes));
}

#[test]
fn learns_colours_and_the_model_can_be_opened() {
    let place = Place::new();
    let config = place.config("a", &["run.epochs=40", "run.eval_every=50", "run.ema=0.0"]);
    train(&config, Start::New).unwrap();
    let clip = Clip::open(place.out("a").join("final")).unwrap();
    let data = Dataset::open(&place.out("data"), &[]).unwrap();
    let labels = label_union(&data, "label").unwrap();
    let classifier = Classifier::new(&clip, &labels, &clip.config().templates).unwrap();
    let right = right_labels(&data, "label", &labels).unwrap();
    let task = ZeroShotTask { classifier: &classifier, right: &right };
    let found = zero_shot(&clip, &data, &task, &EvalOptions::default()).unwrap();
    assert_eq!((found.n, found.n_labels, found.top5), (24, 3, 1.0));
    assert!(found.top1 > 0.9, "{found:?}");
    assert_eq!(found.predictions.len(), 24);
}

#[test]
fn divergence_names_the_step_and_the_checkpoint() {
    let place = Place::new();
    let overrides = ["optimizer.lr=1e30", "optimizer.clip_norm=0.0", "optimizer.warmup_steps=0"];
    let more = ["run.checkpoint_every=1", "data.valid=[]"];
    let config = place.config("a", &[overrides.as_slice(), &more].concat());
    let error = train(&config, Start::New).unwrap_err();
    let TrainError::Diverged { step, checkpoint: Some(checkpoint), .. } = &error else {
        panic!("{error}");
    };
    assert!(*step >= 2 && checkpoint.is_dir(), "{error}");
    assert!(error.hint().unwrap().contains("checkpoint-"));
}

#[test]
fn an_existing_run_and_a_changed_config_are_refused() {
    let place = Place::new();
    let config = place.config("a", &["run.epochs=1"]);
    assert!(matches!(train(&config, Start::Resume), Err(TrainError::NoRun { .. })));
    // A run killed while it wrote its first file is no run yet.
    fs::create_dir(place.out("a")).unwrap();
    fs::write(place.out("a").join(".config.toml.123.tmp"), b"[mo").unwrap();
    assert!(matches!(train(&config, Start::Resume), Err(TrainError::NoRun { .. })));
    train(&config, Start::New).unwrap();
    assert!(!place.out("a").join(".config.toml.123.tmp").exists());
    assert!(matches!(train(&config, Start::New), Err(TrainError::RunExists { .. })));
    let changed = place.config("a", &["run.seed=1"]);
    let error = train(&changed, Start::Resume).unwrap_err();
    assert!(error.to_string().ends_with("`run.seed` was 0, is 1"), "{error}");
    // More epochs, another number of threads, a lower rate: allowed.
    let changes = ["run.epochs=2", "run.threads=1", "optimizer.lr=1e-4"];
    let longer = place.config("a", &changes);
    assert_eq!(train(&longer, Start::Resume).unwrap().step, 5);
    // One picture more: the order would be another one.
    fs::copy(place.out("data").join("red/0.png"), place.out("data").join("red/9.png")).unwrap();
    assert!(matches!(train(&longer, Start::Resume), Err(TrainError::DataChanged { .. })));
}

#[test]
fn bad_pictures_are_counted_and_named() {
    let place = Place::new();
    fs::write(place.out("data").join("red/bad.png"), b"no picture").unwrap();
    let outcome = train(&place.config("a", &[]), Start::New).unwrap();
    assert!(outcome.tally.failed() > 0);
    assert_eq!(outcome.tally.failures()[0].key, "red/bad.png");
    let strict = place.config("b", &["run.epochs=40"]);
    let error = train(&strict, Start::New).unwrap_err();
    assert!(error.to_string().contains("red/bad.png"), "{error}");
}

#[test]
fn a_dry_run_writes_nothing() {
    let place = Place::new();
    let config = place.config("a", &[]);
    let report = dry_run(&config, &AtomicBool::new(false)).unwrap();
    assert_eq!((report.steps, report.epoch_len), (10, 24));
    assert!(report.parameters > 10_000 && report.seconds_per_step > 0.0);
    assert!(!place.out("a").exists());
}
