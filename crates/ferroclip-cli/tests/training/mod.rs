//! Training runs on a few drawn pictures, and what they leave behind.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use serde_json::Value;

const COLORS: [(&str, [u8; 3]); 3] =
    [("red", [220, 30, 20]), ("green", [20, 200, 40]), ("blue", [30, 40, 230])];

/// A folder with data, a model config and training files.
pub(crate) struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    /// Draws the data; both towers of the model have this width and one layer.
    pub(crate) fn new(width: usize) -> Place {
        let folder = tempfile::tempdir().unwrap();
        draw(&folder.path().join("data"));
        let model = format!(
            r#"{{
            "embed_dim": 16,
            "vision_cfg": {{"image_size": 16, "layers": 1, "width": {width}, "head_width": 16, "patch_size": 4}},
            "text_cfg": {{"context_length": 8, "vocab_size": 600, "width": {width}, "heads": 2, "layers": 1}}
            }}"#
        );
        fs::write(folder.path().join("model.json"), model).unwrap();
        Place { folder }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a training file for a run in `out`, with everything on that has a state.
    pub(crate) fn config(&self, out: &Path, epochs: usize, checkpoint_every: usize) -> String {
        let at = |name: &str| self.path(name).display().to_string();
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
            lr = 1e-3
            warmup_steps = 10
            clip_norm = 1.0
            [run]
            epochs = {epochs}
            batch_size = 9
            micro_batch = 5
            seed = 7
            ema = 0.9
            checkpoint_every = {checkpoint_every}
            eval_every = 11
            threads = 2
            out = '{}'
            "#,
            at("model.json"),
            at("data"),
            at("data"),
            out.display()
        );
        let name = out.to_string_lossy().replace(['/', '\\'], "-");
        let path = self.path(&format!("train{name}.toml"));
        fs::write(&path, text).unwrap();
        path.display().to_string()
    }
}

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

/// Lines of `metrics.jsonl`, its first `bytes` bytes only, without the field that differs from run
/// to run.
pub(crate) fn metrics(out: &Path, bytes: Option<u64>) -> Vec<Value> {
    let mut text = fs::read(out.join("metrics.jsonl")).unwrap();
    if let Some(bytes) = bytes {
        assert!(text.len() as u64 >= bytes, "metrics.jsonl is shorter than the checkpoint knows");
        text.truncate(bytes as usize);
    }
    let without_time = |line: &str| {
        let mut value: Value = serde_json::from_str(line).unwrap();
        value.as_object_mut().unwrap().remove("time");
        value
    };
    String::from_utf8(text).unwrap().lines().map(without_time).collect()
}

/// The bytes of the finished model.
pub(crate) fn final_weights(out: &Path) -> Vec<u8> {
    fs::read(out.join("final/open_clip_model.safetensors")).unwrap()
}

/// Names in the run directory that begin so.
pub(crate) fn names(out: &Path, prefix: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir(out) else { return Vec::new() };
    let names = entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
    names.filter(|name| name.starts_with(prefix)).collect()
}

/// Asserts that every checkpoint has all its files, and returns the state of the last one.
pub(crate) fn check_checkpoints(out: &Path) -> Option<Value> {
    let mut last: Option<Value> = None;
    for name in names(out, "checkpoint-") {
        for file in ["weights", "moment1", "moment2", "ema"] {
            let path = out.join(&name).join(format!("{file}.safetensors"));
            assert!(fs::metadata(&path).is_ok_and(|m| m.len() > 0), "{}", path.display());
        }
        let state = fs::read(out.join(&name).join("state.json")).unwrap();
        let state: Value = serde_json::from_slice(&state).unwrap();
        assert_eq!(format!("checkpoint-{}", state["step"]), name);
        let step = |state: &Value| state["step"].as_u64();
        if last.as_ref().is_none_or(|last| step(last) < step(&state)) {
            last = Some(state);
        }
    }
    last
}
