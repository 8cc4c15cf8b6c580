//! A small model, drawn pictures, and ways to run the program.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use ferroclip::{Config, FloatFormat, ModelFiles, Weights};
use serde_json::Value;

const CONFIG: &str = r#"{
    "model_cfg": {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
        "text_cfg": {"context_length": 12, "vocab_size": 1000, "hf_tokenizer_name": "./", "width": 32, "heads": 2, "layers": 1}
    },
    "preprocess_cfg": {"size": 32}
}"#;

/// What a run of the program left.
pub(crate) struct Run {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Run {
    pub(crate) fn new(output: &Output) -> Run {
        Run {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8(output.stdout.clone()).unwrap(),
            stderr: String::from_utf8(output.stderr.clone()).unwrap(),
        }
    }

    /// The JSON document.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|error| panic!("{error}: {} {}", self.stdout, self.stderr))
    }

    /// Asserts a failure: the status, one line of error with `part`, one line of hint.
    pub(crate) fn fails(&self, code: i32, part: &str) {
        let Run { stderr, .. } = self;
        assert_eq!(self.code, code, "{stderr}");
        assert_eq!(self.stdout, "", "{stderr}");
        let lines: Vec<&str> = stderr.lines().collect();
        assert_eq!(lines.len(), 2, "{stderr}");
        assert!(lines[0].starts_with("error: ") && lines[0].contains(part), "{part}: {stderr}");
        assert!(lines[1].starts_with("hint: "), "{stderr}");
    }
}

pub(crate) fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ferroclip"));
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs the program as typed.
pub(crate) fn run(args: &[&str]) -> Run {
    Run::new(&command(args).output().unwrap())
}

/// Runs it on the small model.
pub(crate) fn on_model(args: &[&str]) -> Run {
    let model = model().display().to_string();
    run(&[args, &["--model", &model, "--threads", "1"]].concat())
}

/// The same with something on standard input.
pub(crate) fn on_model_with_stdin(args: &[&str], input: &[u8]) -> Run {
    let model = model().display().to_string();
    let args = [args, &["--model", &model]].concat();
    let mut child = command(&args).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    Run::new(&child.wait_with_output().unwrap())
}

/// Files of the small model.
pub(crate) fn model_files() -> ModelFiles {
    let config = Config::from_json(CONFIG, "test").unwrap();
    let weights = ferroclip::init(&config.model, 0);
    let tokenizer = config.new_tokenizer().unwrap();
    ModelFiles { config, weights, tokenizer }
}

/// The directory of the small model, made once.
pub(crate) fn model() -> &'static Path {
    static MODEL: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    let (_, path) = MODEL.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model");
        model_files().save(&path, FloatFormat::F32).unwrap();
        (folder, path)
    });
    path
}

/// A copy of the model whose weights are changed.
pub(crate) fn changed_model(folder: &Path, change: impl FnOnce(&mut Weights)) -> String {
    let mut files = model_files();
    files.save(folder, FloatFormat::F32).unwrap();
    change(&mut files.weights);
    files.weights.save(&folder.join("open_clip_model.safetensors"), FloatFormat::F32).unwrap();
    folder.display().to_string()
}

/// Writes a small PNG of one colour.
pub(crate) fn draw(path: &Path, colour: [u8; 3]) -> String {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, 40, 24);
    encoder.set_color(png::ColorType::Rgb);
    let mut writer = encoder.write_header().unwrap();
    writer.write_image_data(&colour.repeat(40 * 24)).unwrap();
    writer.finish().unwrap();
    write(path, &bytes)
}

/// Writes a file; the path as text.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> String {
    std::fs::write(path, bytes).unwrap();
    path.display().to_string()
}

/// Names in a directory and below, directories left out.
pub(crate) fn files_below(folder: &Path) -> Vec<String> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        match path.is_dir() {
            true => names.extend(files_below(&path).iter().map(|below| format!("{name}/{below}"))),
            false => names.push(name),
        }
    }
    names.sort();
    names
}
