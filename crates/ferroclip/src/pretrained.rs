//! Public weights by name: open_clip's pairs of model and tag, OpenAI's among them.
//!
//! `pretrained.tsv` holds them; `fixtures/checkpoints/pretrained.py` wrote it. What it knows and weights do not tell is the
//! activation: a file whose checksum is in the table is recognised, so that a config that contradicts it is refused.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::config::{Config, ModelConfig};
use crate::error::Error;
use crate::image::{ImagePipeline, Interpolation, ResizeMode};
use crate::model_dir;

/// A line for each pair.
pub(crate) const TABLE: &str = include_str!("pretrained.tsv");

/// Public weights of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Pretrained<'a> {
    /// The config's name, as [`Config::preset`] knows it, if it knows it.
    pub model: &'a str,
    /// What the weights were trained on.
    pub tag: &'a str,
    /// Their repository on the hub.
    pub hub: &'a str,
    /// The file that was first published, if it was one.
    pub file: &'a str,
    /// Its SHA-256, or the first eight digits of it; empty where none was published.
    pub sha256: &'a str,
    /// Whether the towers compute QuickGELU.
    pub quick_gelu: bool,
    /// How pictures are prepared, at the config's image size.
    pub pipeline: ImagePipeline,
}

impl Pretrained<'static> {
    /// All pairs of model and tag.
    pub fn all() -> impl Iterator<Item = Pretrained<'static>> {
        Pretrained::of_table(TABLE)
    }
}

impl<'a> Pretrained<'a> {
    /// The lines of a table that are whole.
    pub(crate) fn of_table(table: &'a str) -> impl Iterator<Item = Pretrained<'a>> {
        table.lines().filter(|line| !line.starts_with('#')).filter_map(Pretrained::of_line)
    }

    fn of_line(line: &'a str) -> Option<Pretrained<'a>> {
        let fields: Vec<&str> = line.split('\t').collect();
        let [model, tag, hub, file, sha256, quick_gelu, mean, std, interpolation, mode] =
            fields.as_slice()
        else {
            return None;
        };
        let pipeline = ImagePipeline {
            mean: numbers(mean)?,
            std: numbers(std)?,
            interpolation: match *interpolation {
                "bilinear" => Interpolation::Bilinear,
                _ => Interpolation::Bicubic,
            },
            resize_mode: match *mode {
                "squash" => ResizeMode::Squash,
                "longest" => ResizeMode::Longest,
                _ => ResizeMode::Shortest,
            },
            ..ImagePipeline::default()
        };
        let quick_gelu = *quick_gelu == "1";
        Some(Pretrained { model, tag, hub, file, sha256, quick_gelu, pipeline })
    }

    /// Whether the model in this directory, which was looked up by the name of these weights, computes their activation.
    ///
    /// # Errors
    /// When its config asks for the other one, or it cannot be opened.
    pub fn check(&self, folder: &Path) -> Result<(), Error> {
        let config = model_dir::open(folder)?.config;
        match self.contradiction(&config.model, "name") {
            None => Ok(()),
            Some(reason) => Err(Error::Config { origin: folder.display().to_string(), reason }),
        }
    }

    /// What a config says against these weights, which are known by `how`.
    pub(crate) fn contradiction(&self, config: &ModelConfig, how: &str) -> Option<String> {
        let kind = |quick: bool| if quick { "QuickGELU" } else { "GELU" };
        (config.quick_gelu != self.quick_gelu).then(|| {
            format!(
                "it asks for {}, but by their {how} the weights are `{}`, which have {}",
                kind(config.quick_gelu),
                self.name(),
                kind(self.quick_gelu)
            )
        })
    }

    /// `model:tag`.
    pub fn name(&self) -> String {
        format!("{}:{}", self.model, self.tag)
    }

    /// Whether a model of this config could be it, by its shape.
    fn has_the_shape_of(&self, config: &ModelConfig) -> bool {
        let shape = |model: &ModelConfig| {
            let vision = &model.vision_cfg;
            // Not the image's size: another one may give the same grid.
            (model.embed_dim, vision.width, vision.layers, vision.patch(), vision.grid())
        };
        match Config::preset(self.model) {
            Ok(preset) => shape(&preset.model) == shape(config),
            Err(_) => true,
        }
    }
}

fn numbers(text: &str) -> Option<[f32; 3]> {
    let numbers: Vec<f32> = text.split(',').filter_map(|number| number.parse().ok()).collect();
    numbers.try_into().ok()
}

/// The weights of the table that a file is, by its checksum. A file whose config has another shape than all
/// weights with a checksum is not read.
///
/// # Errors
/// When the file cannot be read.
pub(crate) fn recognise<'a>(
    path: &Path,
    config: &ModelConfig,
    table: &'a str,
) -> io::Result<Option<Pretrained<'a>>> {
    let candidates = Pretrained::of_table(table)
        .filter(|known| known.sha256.len() >= 8 && known.has_the_shape_of(config));
    let mut candidates = candidates.peekable();
    if candidates.peek().is_none() {
        return Ok(None);
    }
    let found = sha256(path)?;
    Ok(candidates.find(|known| found.starts_with(known.sha256)))
}

/// The checksum of a file, in hexadecimal digits.
pub(crate) fn sha256(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let (mut hash, mut buffer) = (Sha256::new(), vec![0; 1 << 18]);
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            n => hash.update(&buffer[..n]),
        }
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_read_whole() {
        assert_eq!(Pretrained::all().count(), TABLE.lines().count() - 1);
        let find = |name: &str| Pretrained::all().find(|known| known.name() == name).expect(name);
        let openai = find("ViT-B-32:openai");
        assert!(
            openai.quick_gelu
                && openai.sha256.starts_with("40d36571")
                && openai.file == "ViT-B-32.pt"
        );
        // Which tags are QuickGELU cannot be told by their names.
        assert!(find("ViT-L-14:dfn2b").quick_gelu && !find("ViT-L-14:dfn2b_s39b").quick_gelu);
        assert!(
            find("ViT-H-14:metaclip_fullcc").quick_gelu
                && !find("ViT-H-14:laion2b_s32b_b79k").quick_gelu
        );
        // Nor how pictures are prepared.
        let odd = find("ViT-L-14:laion2b_s32b_b82k").pipeline;
        assert_eq!((odd.mean, odd.resize_mode), ([0.5; 3], ResizeMode::Shortest));
        assert_eq!(find("ViT-H-14:dfn5b").pipeline.resize_mode, ResizeMode::Squash);
        assert_eq!(find("ViT-B-16-SigLIP:webli").pipeline.resize_mode, ResizeMode::Squash);
        // open_clip has the file of another epoch here.
        assert_eq!(find("ViT-B-16-plus-240:laion400m_e32").file, "");
    }

    #[test]
    fn checksums_are_those_of_the_standard() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("abc");
        std::fs::write(&path, b"abc").expect("written");
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(sha256(&path).expect("read"), expected);
    }
}
