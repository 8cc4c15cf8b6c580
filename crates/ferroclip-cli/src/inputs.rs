//! Texts, labels, templates and pictures from the command line, from files and from standard input.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use clap::Args;
use ferroclip::image::DecodeLimits;
use ferroclip::{EmbedOptions, ImageEncoder, ImageSource};
use ferroclip_data::PICTURE_EXTENSIONS;
use serde_json::{Value, json};

use crate::common::Common;
use crate::error::{Error, Result, one_line};
use crate::output::note;
use crate::{imagenet, interrupt};

/// The largest file of texts.
const MAX_TEXT_BYTES: u64 = 1 << 30;
/// How deep directories of pictures may be nested.
const MAX_DEPTH: usize = 16;

#[derive(Debug, Clone, Default, Args)]
pub(crate) struct TextArgs {
    /// A text; may be given several times
    #[arg(long, value_name = "TEXT")]
    pub(crate) text: Vec<String>,
    /// A file of texts: one per line, `.jsonl` or `.csv`; `-` is standard input
    #[arg(long, value_name = "FILE")]
    pub(crate) texts: Option<String>,
    /// The column or key of the texts in a `.csv` or `.jsonl`
    #[arg(long, value_name = "NAME")]
    pub(crate) column: Option<String>,
}

impl TextArgs {
    pub(crate) fn is_given(&self) -> bool {
        !self.text.is_empty() || self.texts.is_some()
    }

    /// All texts; those of the file come last.
    pub(crate) fn read(&self) -> Result<Vec<String>> {
        let mut texts = self.text.clone();
        if let Some(source) = &self.texts {
            texts.extend(read_texts(source, self.column.as_deref())?);
        }
        match (texts.is_empty(), &self.texts) {
            (true, Some(source)) => {
                Err(Error::input(format!("`{}` holds no texts", called(source)))
                    .hint("write one text per line"))
            }
            (true, None) => {
                Err(Error::usage("no texts").hint("give `--text TEXT` or `--texts FILE`"))
            }
            (false, _) => Ok(texts),
        }
    }
}

#[derive(Debug, Clone, Args)]
pub(crate) struct LabelArgs {
    /// A label; may be given several times
    #[arg(long, value_name = "LABEL")]
    pub(crate) label: Vec<String>,
    /// `imagenet` (its 1,000 classes, as OpenAI calls them), or a file: one per line, `.jsonl` or `.csv`; `-` is standard input
    #[arg(long, value_name = "NAME|FILE")]
    pub(crate) labels: Option<String>,
    /// The column or key of the labels in a `.csv` or `.jsonl`
    #[arg(long, value_name = "NAME", requires = "labels")]
    pub(crate) column: Option<String>,
}

impl LabelArgs {
    /// Whether any are given.
    pub(crate) fn is_given(&self) -> bool {
        !self.label.is_empty() || self.labels.is_some()
    }

    /// Whether the labels are ImageNet's classes.
    pub(crate) fn is_imagenet(&self) -> bool {
        self.label.is_empty() && self.labels.as_deref() == Some(imagenet::NAME)
    }

    /// The labels without blank lines and repetitions; ImageNet's classes as they are.
    pub(crate) fn read(&self, common: &Common) -> Result<Vec<String>> {
        if self.is_imagenet() {
            return Ok(imagenet::names());
        }
        let mut given = self.label.clone();
        if let Some(source) = &self.labels {
            given.extend(read_texts(source, self.column.as_deref())?);
        } else if given.is_empty() {
            let error = Error::usage("no labels");
            return Err(error.hint("give `--label LABEL` several times, or `--labels FILE`"));
        }
        let mut labels: Vec<String> = Vec::new();
        let mut seen = std::collections::HashSet::new();
        for label in given.iter().map(|label| label.trim()).filter(|label| !label.is_empty()) {
            match seen.insert(label) {
                true => labels.push(label.to_owned()),
                false => note(common, &format!("the label `{label}` is given twice; kept once")),
            }
        }
        if labels.is_empty() {
            let source = self.labels.as_deref().map_or("--label", called);
            let error = Error::input(format!("`{source}` holds no labels"));
            return Err(error.hint("write one label per line"));
        }
        Ok(labels)
    }
}

#[derive(Debug, Clone, Args)]
pub(crate) struct TemplateArgs {
    /// A template such as "a photo of a {}."; may be given several times [default: the model's]
    #[arg(long, value_name = "TEMPLATE")]
    pub(crate) template: Vec<String>,
    /// `imagenet` (OpenAI's 80), or a file with one template per line
    #[arg(long, value_name = "NAME|FILE")]
    pub(crate) templates: Option<String>,
}

impl TemplateArgs {
    pub(crate) fn is_given(&self) -> bool {
        !self.template.is_empty() || self.templates.is_some()
    }

    /// The templates asked for, or `default`.
    pub(crate) fn read(&self, default: &[String]) -> Result<Vec<String>> {
        let mut templates = self.template.clone();
        match self.templates.as_deref() {
            Some(imagenet::NAME) => templates.extend(imagenet::templates()),
            Some(file) => {
                let lines = read_texts(file, None)?;
                templates.extend(lines.into_iter().filter(|line| !line.trim().is_empty()));
                if templates.is_empty() {
                    return Err(Error::input(format!("`{file}` holds no templates"))
                        .hint("write one template per line, for instance `a photo of a {}.`"));
                }
            }
            None if templates.is_empty() => templates = default.to_vec(),
            None => {}
        }
        ferroclip::check_templates(&templates)?;
        Ok(templates)
    }
}

/// A file of texts as messages name it.
fn called(source: &str) -> &str {
    if source == "-" { "standard input" } else { source }
}

/// Reads texts by the extension of the file's name; blank lines of plain text count as texts, so
/// that row i is line i.
pub(crate) fn read_texts(source: &str, column: Option<&str>) -> Result<Vec<String>> {
    let content = read_utf8(source)?;
    let extension = Path::new(source).extension().unwrap_or_default().to_ascii_lowercase();
    match extension.to_str() {
        Some("jsonl") => read_jsonl(source, &content, column),
        Some("csv") => read_csv(source, &content, column),
        _ => Ok(content.lines().map(str::to_owned).collect()),
    }
}

fn read_utf8(source: &str) -> Result<String> {
    let bytes = read_bytes(source, MAX_TEXT_BYTES)?;
    let text = String::from_utf8(bytes).map_err(|error| {
        let good = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = good.iter().filter(|&&byte| byte == b'\n').count() + 1;
        let message = format!("`{}` is not UTF-8: line {line}", called(source));
        Error::input(message).hint("save it as UTF-8")
    })?;
    Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text))
}

/// Reads a file or, for `-`, standard input.
fn read_bytes(source: &str, limit: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = match source {
        "-" => interrupt::while_blocked(|| io::stdin().take(limit + 1).read_to_end(&mut bytes)),
        _ => File::open(source).and_then(|file| file.take(limit + 1).read_to_end(&mut bytes)),
    };
    let name = called(source);
    read.map_err(|error| Error::file("read", Path::new(name), &error))?;
    if bytes.len() as u64 > limit {
        return Err(Error::input(format!("`{name}` is too large: more than {limit} bytes"))
            .hint("split it into several files"));
    }
    Ok(bytes)
}

fn read_jsonl(source: &str, content: &str, column: Option<&str>) -> Result<Vec<String>> {
    let key = column.unwrap_or("text");
    let lines = (1..).zip(content.lines()).filter(|(_, line)| !line.trim().is_empty());
    let text = |(number, line): (usize, &str)| {
        let value = serde_json::from_str::<Value>(line);
        let error = || Error::input(format!("`{source}` has no text in line {number}"));
        match value {
            Ok(Value::String(text)) => Ok(text),
            Ok(Value::Object(mut object)) => match object.remove(key) {
                Some(Value::String(text)) => Ok(text),
                _ => Err(error().hint(format!("expected a string under `{key}`; see `--column`"))),
            },
            _ => Err(error().hint("each line is a JSON string, or an object with a string in it")),
        }
    };
    lines.map(text).collect()
}

fn read_csv(source: &str, content: &str, column: Option<&str>) -> Result<Vec<String>> {
    let malformed = |error: csv::Error| Error::input(format!("cannot read `{source}`: {error}"));
    let mut reader = csv::Reader::from_reader(content.as_bytes());
    let header = reader.headers().map_err(malformed)?.clone();
    let index = match column {
        Some(name) => header.iter().position(|cell| cell == name),
        None if header.len() == 1 => Some(0),
        None => header.iter().position(|cell| cell == "text"),
    };
    let Some(index) = index else {
        let names: Vec<&str> = header.iter().collect();
        let name = column.unwrap_or("text");
        return Err(Error::input(format!("`{source}` has no column `{name}`"))
            .hint(format!("choose one by `--column`: {}", names.join(", "))));
    };
    let cell = |row: csv::StringRecord| row.get(index).unwrap_or_default().to_owned();
    reader.records().map(|row| row.map(cell).map_err(malformed)).collect()
}

/// An input that could not be used.
#[derive(Debug, Clone)]
pub(crate) struct Failure {
    pub(crate) path: String,
    pub(crate) error: Error,
}

impl Failure {
    pub(crate) fn new(path: impl Into<String>, error: impl Into<Error>) -> Failure {
        Failure { path: path.into(), error: error.into() }
    }

    /// A picture named on the command line. The library knows standard input by its number only.
    pub(crate) fn of_picture(name: &str, error: ferroclip::Error) -> Failure {
        match name {
            "-" => Failure::in_data("standard input", &error),
            _ => Failure::new(name, error),
        }
    }

    /// A picture of a data set: the library knows it by its number only.
    pub(crate) fn in_data(name: &str, error: &ferroclip::Error) -> Failure {
        let reason = match error {
            ferroclip::Error::Image { source, .. } => source.to_string(),
            other => other.to_string(),
        };
        let error =
            Error::input(format!("cannot read `{name}`: {reason}")).maybe_hint(error.hint());
        Failure { path: one_line(name), error }
    }

    pub(crate) fn to_json(&self) -> Value {
        json!({"path": self.path, "error": self.error.message})
    }
}

/// Lists failures on standard error, unless they go out as JSON.
pub(crate) fn print_failures(failures: &[Failure], common: &Common) {
    use std::io::Write;
    for failure in failures.iter().filter(|_| !common.json) {
        // Nobody to tell if standard error is closed.
        let _ = writeln!(io::stderr(), "failed: {}", failure.error.message);
    }
}

/// Pictures named on the command line.
#[derive(Debug, Default)]
pub(crate) struct Pictures {
    pub(crate) names: Vec<String>,
    sources: Vec<Source>,
    /// Names for which no picture could be listed.
    pub(crate) failures: Vec<Failure>,
}

#[derive(Debug)]
enum Source {
    Path(PathBuf),
    Bytes(Vec<u8>),
}

impl Pictures {
    /// Lists files, the pictures below directories in the order of their names, and `-`.
    pub(crate) fn list(paths: &[PathBuf]) -> Pictures {
        let mut pictures = Pictures::default();
        for path in paths {
            if let Err(error) = pictures.add(path) {
                pictures.failures.push(Failure::new(path.display().to_string(), error));
            }
        }
        pictures
    }

    fn add(&mut self, path: &Path) -> Result<()> {
        if path.as_os_str() == "-" {
            let bytes = read_bytes("-", ferroclip_data::MAX_PICTURE_BYTES)?;
            self.push(path, Source::Bytes(bytes));
            return Ok(());
        }
        if !path.is_dir() {
            self.push(path, Source::Path(path.to_owned()));
            return Ok(());
        }
        let before = self.names.len();
        self.add_directory(path, 0)?;
        if self.names.len() == before {
            let error = Error::input(format!("no pictures in `{}`", path.display()));
            return Err(
                error.hint("pictures are told by their extension: png, jpg, webp, gif, bmp, tif")
            );
        }
        Ok(())
    }

    fn add_directory(&mut self, directory: &Path, depth: usize) -> Result<()> {
        let unreadable = |error: io::Error| Error::file("read", directory, &error);
        let entries = std::fs::read_dir(directory).map_err(unreadable)?;
        let mut entries = entries.collect::<io::Result<Vec<_>>>().map_err(unreadable)?;
        entries.sort_by_key(|entry| entry.file_name());
        for entry in entries {
            let path = entry.path();
            // A link to a directory is not followed: it may lead round in a circle.
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                if depth < MAX_DEPTH {
                    self.add_directory(&path, depth + 1)?;
                }
            } else if is_picture(&path) {
                self.push(&path.clone(), Source::Path(path));
            }
        }
        Ok(())
    }

    fn push(&mut self, name: &Path, source: Source) {
        self.names.push(one_line(&name.display().to_string()));
        self.sources.push(source);
    }

    /// The pictures for the library.
    pub(crate) fn sources<'a>(&'a self) -> Vec<ImageSource<'a>> {
        let source = |source: &'a Source| match source {
            Source::Path(path) => ImageSource::Path(path),
            Source::Bytes(bytes) => ImageSource::Bytes(bytes),
        };
        self.sources.iter().map(source).collect()
    }

    /// What to say when none of the pictures could be used.
    fn none_usable(failures: &[Failure], first: &Failure) -> Error {
        let n = failures.len();
        let message = match n {
            1 => first.error.message.clone(),
            _ => format!("none of {n} pictures could be read; the first: {}", first.error.message),
        };
        Error { message, ..first.error.clone() }
    }
}

fn is_picture(path: &Path) -> bool {
    let extension = path.extension().unwrap_or_default().to_ascii_lowercase();
    PICTURE_EXTENSIONS.iter().any(|&known| extension == known)
}

/// How pictures are read.
#[derive(Debug, Clone, Args)]
pub(crate) struct PictureArgs {
    /// Turn pictures upright by their EXIF data
    #[arg(long)]
    pub(crate) exif: bool,
    /// Refuse pictures of more pixels, width times height, before they are decoded [default: 178956970, and what takes
    /// 480 MB of memory]
    #[arg(long, value_name = "N")]
    pub(crate) max_pixels: Option<u64>,
}

impl PictureArgs {
    /// Options of the library with our stop flag.
    pub(crate) fn options(&self) -> EmbedOptions<'static> {
        EmbedOptions {
            exif: self.exif,
            limits: DecodeLimits::of_pixels(self.max_pixels),
            stop: Some(&interrupt::STOP),
            ..EmbedOptions::default()
        }
    }
}

/// Embeds pictures with a progress bar. Failures, also of `pictures.failures`, come back in order.
pub(crate) fn embed_pictures(
    encoder: &ImageEncoder,
    pictures: &Pictures,
    options: &EmbedOptions<'_>,
    common: &Common,
) -> Result<(ferroclip::ImageEmbeddings, Vec<Failure>)> {
    let progress = crate::progress::Progress::new(common, "pictures", pictures.names.len());
    let report = |done| progress.set(done);
    let options = EmbedOptions { progress: Some(&report), ..*options };
    let mut result = encoder.embed_images_with(&pictures.sources(), &options)?;
    drop(progress);
    let mut failures = pictures.failures.clone();
    for (place, error) in std::mem::take(&mut result.failures) {
        let name = &pictures.names[place];
        failures.push(Failure::of_picture(name, error));
    }
    match failures.first() {
        Some(first) if result.inputs.is_empty() => {
            if failures.len() > 1 {
                print_failures(&failures, common);
            }
            Err(Pictures::none_usable(&failures, first))
        }
        _ => Ok((result, failures)),
    }
}
