//! `metrics.jsonl`, one JSON object a line, and `curves.svg`, drawn from it.
//!
//! Lines of steps have `step`, `epoch`, `loss`, `lr`, `logit_scale`, `grad_norm`, which are the
//! same in every repetition of a run, and `time` (`seconds`, `pairs_per_s`), which is not. Lines of
//! validations have `step` and `valid`. A run that is resumed first cuts the file back to the
//! length it had at the checkpoint.

use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use ferroclip::write_atomically;
use serde::Serialize;
use serde_json::Value;

use crate::error::TrainError;
use crate::eval::SetScore;

const FILE: &str = "metrics.jsonl";
const CURVES: &str = "curves.svg";

/// A line of a step.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StepMetrics {
    /// Steps done.
    pub step: u64,
    /// Epochs done, with the part of the present one.
    pub epoch: f64,
    /// The loss before the step.
    pub loss: f64,
    /// The learning rate of the step.
    pub lr: f64,
    /// `logit_scale` after the step, as stored.
    pub logit_scale: f32,
    /// Norm of all gradients together, before clipping.
    pub grad_norm: f64,
    /// What differs from run to run.
    pub time: StepTime,
}

/// The part of a line that is not reproducible.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StepTime {
    /// Since the run began, without the time between its parts.
    pub seconds: f64,
    /// Image-text pairs a second in this step.
    pub pairs_per_s: f64,
}

/// A line of a validation.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct ValidMetrics<'a> {
    pub(crate) step: u64,
    pub(crate) valid: &'a [SetScore],
}

/// `metrics.jsonl`, open for appending.
#[derive(Debug)]
pub(crate) struct MetricsLog {
    file: File,
    path: PathBuf,
    /// Its length.
    pub(crate) bytes: u64,
}

impl MetricsLog {
    /// Opens the file at a length that it has at least.
    pub(crate) fn open(out: &Path, bytes: u64) -> Result<MetricsLog, TrainError> {
        let path = out.join(FILE);
        let file = OpenOptions::new().append(true).create(true).open(&path);
        let file = file.map_err(TrainError::io("open", &path))?;
        let found = file.metadata().map_err(TrainError::io("read", &path))?.len();
        if found < bytes {
            let reason = format!("it has {found} bytes, the checkpoint knows of {bytes}");
            return Err(TrainError::Checkpoint { path, reason });
        }
        file.set_len(bytes).map_err(TrainError::io("cut", &path))?;
        Ok(MetricsLog { file, path, bytes })
    }

    pub(crate) fn append(&mut self, line: &impl Serialize) -> Result<(), TrainError> {
        let io = || TrainError::io("write", &self.path);
        let mut json = serde_json::to_vec(line).map_err(std::io::Error::other).map_err(io())?;
        json.push(b'\n');
        // One call, so that a kill leaves whole lines.
        let written = self.file.write_all(&json);
        if written.is_err() {
            // A full disk takes a part of a line. The first error is the one to report.
            let _ = self.file.set_len(self.bytes);
        }
        written.map_err(io())?;
        self.bytes += json.len() as u64;
        Ok(())
    }

    /// Forces the lines to disk.
    pub(crate) fn sync(&self) -> Result<(), TrainError> {
        self.file.sync_data().map_err(TrainError::io("write", &self.path))
    }
}

/// Draws `curves.svg` from `metrics.jsonl`.
pub(crate) fn draw_curves(out: &Path) -> Result<(), TrainError> {
    let path = out.join(FILE);
    let file = File::open(&path).map_err(TrainError::io("read", &path))?;
    let (mut loss, mut score) = (Vec::new(), Vec::new());
    for line in BufReader::new(file).lines() {
        let line = line.map_err(TrainError::io("read", &path))?;
        let Ok(value) = serde_json::from_str::<Value>(&line) else { continue };
        let Some(step) = value["step"].as_f64() else { continue };
        loss.extend(value["loss"].as_f64().map(|loss| (step, loss)));
        score.extend(value["valid"][0]["score"].as_f64().map(|score| (step, 100.0 * score)));
    }
    let svg = svg(&[("loss", &loss), ("validation, %", &score)]);
    write_atomically(&out.join(CURVES), |file| file.write_all(svg.as_bytes()))?;
    Ok(())
}

/// Panels one above the other, each with its own vertical scale.
fn svg(panels: &[(&str, &[(f64, f64)])]) -> String {
    const WIDTH: f64 = 640.0;
    const HEIGHT: f64 = 220.0;
    const MARGIN: f64 = 48.0;
    let total = HEIGHT * panels.len() as f64;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {total}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{WIDTH}\" height=\"{total}\" fill=\"white\"/>\n"
    );
    for (place, (title, points)) in panels.iter().enumerate() {
        let top = HEIGHT * place as f64;
        let (left, bottom) = (MARGIN, top + HEIGHT - MARGIN / 2.0);
        let (plot_width, plot_height) = (WIDTH - 1.5 * MARGIN, HEIGHT - MARGIN);
        let range = |value: fn(&(f64, f64)) -> f64| {
            let low = points.iter().map(value).fold(f64::INFINITY, f64::min);
            let high = points.iter().map(value).fold(f64::NEG_INFINITY, f64::max);
            if low < high { (low, high) } else { (low - 0.5, low + 0.5) }
        };
        // `write!` into a string does not fail.
        let _ = writeln!(svg, "<text x=\"{left}\" y=\"{}\">{title}</text>", top + 16.0);
        if points.is_empty() {
            continue;
        }
        let ((x0, x1), (y0, y1)) = (range(|p| p.0), range(|p| p.1));
        let _ = writeln!(
            svg,
            "<text x=\"4\" y=\"{}\">{y1:.3}</text><text x=\"4\" y=\"{bottom}\">{y0:.3}</text>\
             <text x=\"{}\" y=\"{}\" text-anchor=\"end\">step {x1}</text>",
            top + MARGIN / 2.0 + 10.0,
            left + plot_width,
            bottom + 14.0
        );
        svg.push_str("<polyline fill=\"none\" stroke=\"#1f6fb4\" stroke-width=\"1.5\" points=\"");
        // A few points for each pixel are enough.
        for (x, y) in points.iter().step_by(points.len() / 2000 + 1) {
            let x = left + plot_width * (x - x0) / (x1 - x0);
            let y = bottom - plot_height * (y - y0) / (y1 - y0);
            let _ = write!(svg, "{x:.1},{y:.1} ");
        }
        svg.push_str("\"/>\n");
    }
    svg.push_str("</svg>\n");
    svg
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_cut_back_and_drawn() {
        let out = tempfile::tempdir().unwrap();
        let mut log = MetricsLog::open(out.path(), 0).unwrap();
        log.append(&serde_json::json!({"step": 1, "loss": 2.5})).unwrap();
        let bytes = log.bytes;
        log.append(&serde_json::json!({"step": 2, "loss": 9.5})).unwrap();
        drop(log);
        let mut log = MetricsLog::open(out.path(), bytes).unwrap();
        log.append(&serde_json::json!({"step": 2, "loss": 1.5})).unwrap();
        let text = std::fs::read_to_string(out.path().join(FILE)).unwrap();
        assert_eq!(text, "{\"step\":1,\"loss\":2.5}\n{\"step\":2,\"loss\":1.5}\n");
        draw_curves(out.path()).unwrap();
        let svg = std::fs::read_to_string(out.path().join(CURVES)).unwrap();
        assert!(svg.contains("polyline") && svg.ends_with("</svg>\n"), "{svg}");
        assert!(MetricsLog::open(out.path(), 1000).is_err());
    }
}
