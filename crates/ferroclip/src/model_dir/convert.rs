//! A model in the files of another program: the same tensors, bit for bit.
//!
//! | for | files |
//! |---|---|
//! | open_clip | `open_clip_config.json`, `open_clip_model.safetensors`, the tokenizer's |
//! | transformers | `config.json`, `preprocessor_config.json`, `model.safetensors`, the tokenizer's |
//! | OpenAI | `model.pt`, a dictionary of tensors; beside it `open_clip_config.json`, for readers that do not guess |
//!
//! What the other program could not compute is refused: its config, read back, must say what ours says.

use std::path::Path;

use burn::prelude::*;
use ferroclip_ops::Precision;
use half::f16;

use super::found::{Found, open};
use super::{CONFIG_FILE, TOKENIZER_CONFIG_FILE, TOKENIZER_FILE, WEIGHTS_FILE};
use super::{hugging_face, new_folder, write_text};
use crate::checkpoint::{Dialect, infer_shapes, ratio};
use crate::config::{Config, ModelConfig, TextConfig, Towers, VisionConfig};
use crate::error::Error;
use crate::image::{Convention, ImagePipeline};
use crate::param::elements;
use crate::tokenizer::Tokenizer;
use crate::towers::{Elements, ImageTower, Source, TextTower};

/// OpenAI's file.
const OPENAI_FILE: &str = "model.pt";

/// Whose files a model is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// open_clip's directory.
    OpenClip,
    /// transformers' directory.
    Transformers,
    /// A file that OpenAI's `clip.load` reads.
    OpenAi,
}

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Converted {
    /// Tensors of the model.
    pub tensors: usize,
    /// The file of weights, in its directory.
    pub weights_file: &'static str,
    /// What the other program does differently, though its tensors are the same.
    pub notes: Vec<String>,
}

/// Writes the model at `model` into a new directory `out` in the files of another program. Each tensor keeps its
/// number format. The result is read back and embeds a fixed picture and text; it must give the same numbers.
///
/// # Errors
/// When the model cannot be opened, the program cannot compute it, `out` exists, or a file cannot be written.
pub fn convert(model: &Path, to: Program, out: &Path) -> Result<Converted, Error> {
    if out.exists() {
        let source = std::io::Error::from(std::io::ErrorKind::AlreadyExists);
        return Err(Error::io("create", out, source));
    }
    let mut found = open(model)?;
    found.needs(Towers::Both, model)?;
    let refused = |reason: String| Error::Conversion { path: model.to_owned(), reason };
    let config = written_config(&found.config, to).map_err(refused)?;
    let mut notes = Vec::new();
    if found.origin.conventions != to.conventions() {
        notes.push(format!(
            "texts and pictures were prepared as in {} and will be as in {}",
            found.origin.conventions,
            to.conventions()
        ));
    }
    match found.tensors.n_counters() {
        0 => {}
        n => notes.push(format!(
            "the step counts of {n} batch norms (`num_batches_tracked`) are not written: nothing reads them"
        )),
    }
    if to == Program::OpenAi {
        notes.extend(beyond_f16(&mut found)?);
    }
    let tokenizer = match to {
        // It has its own.
        Program::OpenAi => None,
        _ => fitting_tokenizer(&found, &mut notes),
    };
    let before = embeddings(&mut found)?;
    new_folder(out, |folder| {
        write(&mut found, &config, tokenizer.as_ref(), to, folder)?;
        let path = match to {
            Program::OpenAi => folder.join(OPENAI_FILE),
            _ => folder.to_owned(),
        };
        let after = embeddings(&mut open(&path)?)?;
        // By their bits: NaN is to stay NaN.
        let bits = |[image, text]: &[Vec<f32>; 2]| {
            image.iter().chain(text).map(|x| x.to_bits()).collect::<Vec<u32>>()
        };
        match bits(&after) == bits(&before) {
            true => Ok(()),
            false => Err(refused("the result gives other embeddings".to_owned())),
        }
    })?;
    let tensors = config.model.parameter_shapes().len();
    Ok(Converted { tensors, weights_file: to.weights_file(), notes })
}

impl Program {
    fn conventions(self) -> &'static str {
        match self {
            Program::OpenClip | Program::OpenAi => "open_clip",
            Program::Transformers => "transformers",
        }
    }

    fn weights_file(self) -> &'static str {
        match self {
            Program::OpenClip => WEIGHTS_FILE,
            Program::Transformers => hugging_face::WEIGHTS_FILE,
            Program::OpenAi => OPENAI_FILE,
        }
    }
}

/// The config in the terms of the other program, once it is known to compute the same.
fn written_config(config: &Config, to: Program) -> Result<Config, String> {
    let mut written = config.clone();
    match to {
        Program::OpenClip => {
            written.model = config.model.clone().with_timm_name()?;
            written.model.name_vocabulary();
        }
        Program::Transformers => {
            let (model, preprocessor) = hugging_face::written(config);
            let (again, _) = hugging_face::translate(&model, Some(&preprocessor), true)?;
            same(&without_names(&config.model), &without_names(&again.model), "transformers")?;
            let ours =
                ImagePipeline { convention: Convention::HuggingFace, ..config.preprocess.clone() };
            if again.preprocess != ours {
                return Err(
                    "transformers has no image pipeline with this `preprocess_cfg`".to_owned()
                );
            }
        }
        Program::OpenAi => {
            let ours = without_names(&config.model);
            let same = |theirs: ModelConfig| same(&ours, &without_names(&theirs), "OpenAI's code");
            same(as_openai_builds(config.model.clone()))?;
            // What the shapes do not tell, or tell otherwise.
            let shapes = config.model.parameter_shapes();
            let shapes = shapes.iter().map(|(name, shape)| (name.as_str(), shape.as_slice()));
            same(infer_shapes(shapes, true)?.0)?;
            written.model.custom_text = false;
        }
    }
    Ok(written)
}

/// What `build_model` of OpenAI's code makes of a model: sizes are its own, and there is no other choice.
fn as_openai_builds(model: ModelConfig) -> ModelConfig {
    const HEAD_WIDTH: usize = 64;
    let (vision, text) = (model.vision_cfg, model.text_cfg);
    ModelConfig {
        embed_dim: model.embed_dim,
        quick_gelu: true,
        init_logit_scale: None,
        init_logit_bias: None,
        custom_text: false,
        towers: Towers::Both,
        vision_cfg: VisionConfig {
            image_size: vision.image_size,
            layers: vision.layers,
            width: vision.width,
            head_width: HEAD_WIDTH,
            patch_size: vision.patch_size,
            ..VisionConfig::default()
        },
        text_cfg: TextConfig {
            context_length: text.context_length,
            vocab_size: text.vocab_size,
            width: text.width,
            heads: text.width / HEAD_WIDTH,
            layers: text.layers,
            ..TextConfig::default()
        },
    }
}

/// The config without what changes no numbers of inference, or is the tokenizer's. A ratio that was rounded is the one
/// of the hidden channels that it gives.
fn without_names(model: &ModelConfig) -> ModelConfig {
    let mut model = model.clone();
    let (vision, text) = (&mut model.vision_cfg, &mut model.text_cfg);
    vision.mlp_ratio = ratio(vision.mlp_width(), vision.width);
    text.mlp_ratio = ratio(text.mlp_width(), text.width);
    model.custom_text = false;
    model.init_logit_scale = None;
    model.vision_cfg.timm_model_name = None;
    model.vision_cfg.patch_dropout = 0.0;
    model.text_cfg.hf_tokenizer_name = None;
    model.text_cfg.tokenizer_kwargs = None;
    model
}

fn same(ours: &ModelConfig, theirs: &ModelConfig, program: &str) -> Result<(), String> {
    let json = |model: &ModelConfig| serde_json::to_value(model).unwrap_or_default();
    let (ours, theirs) = (json(ours), json(theirs));
    let sections = ["", "/vision_cfg", "/text_cfg"];
    for section in sections {
        let (Some(ours), Some(theirs)) = (ours.pointer(section), theirs.pointer(section)) else {
            continue;
        };
        let keys = [ours, theirs]
            .into_iter()
            .filter_map(|value| value.as_object())
            .flat_map(|map| map.keys());
        let differs = |key: &&String| ours.get(key.as_str()) != theirs.get(key.as_str());
        if let Some(key) = keys.filter(|key| !key.ends_with("_cfg")).find(differs) {
            let name = format!("{section}/{key}").trim_start_matches('/').replace('/', ".");
            return Err(format!("{program} does not compute models with this `{name}`"));
        }
    }
    Ok(())
}

/// The tokenizer of the model, if it has one. A model without is converted all the same, and the note says so.
fn fitting_tokenizer(found: &Found, notes: &mut Vec<String>) -> Option<Tokenizer> {
    let vocab_size = found.config.model.text_cfg.vocab_size;
    let reason = match found.tokenizer() {
        Ok(tokenizer) if tokenizer.fits(vocab_size) => return Some(tokenizer),
        Ok(tokenizer) => {
            format!(
                "the one at hand has {} entries, the model {vocab_size}",
                tokenizer.vocab_size()
            )
        }
        Err(error) => error.to_string(),
    };
    notes.push(format!("no tokenizer was written: {reason}"));
    None
}

fn write(
    found: &mut Found,
    config: &Config,
    tokenizer: Option<&Tokenizer>,
    to: Program,
    folder: &Path,
) -> Result<(), Error> {
    let context_length = config.model.text_cfg.context_length;
    let path = folder.join(to.weights_file());
    match to {
        Program::OpenClip => {
            write_text(folder, CONFIG_FILE, &config.to_json())?;
            if let Some(tokenizer) = tokenizer {
                write_text(folder, TOKENIZER_FILE, &tokenizer.to_hf_json())?;
                write_text(
                    folder,
                    TOKENIZER_CONFIG_FILE,
                    &tokenizer.to_hf_config_json(context_length),
                )?;
            }
            let dialect = Dialect::of_open_clip(&config.model);
            found.tensors.outgoing(dialect).save_safetensors(&path)
        }
        Program::Transformers => {
            let (model, preprocessor) = hugging_face::written(config);
            write_text(folder, hugging_face::CONFIG_FILE, &model)?;
            write_text(folder, hugging_face::PREPROCESSOR_FILE, &preprocessor)?;
            if let Some(tokenizer) = tokenizer {
                write_text(folder, TOKENIZER_FILE, &tokenizer.to_transformers_json())?;
                write_text(
                    folder,
                    TOKENIZER_CONFIG_FILE,
                    &tokenizer.to_transformers_config_json(context_length),
                )?;
            }
            found.tensors.outgoing(Dialect::HuggingFace).save_safetensors(&path)
        }
        Program::OpenAi => {
            write_text(folder, CONFIG_FILE, &config.to_json())?;
            found.tensors.outgoing(Dialect::OpenClip).save_torch(&path)
        }
    }
}

/// What is lost when OpenAI's `load` rounds weights to f16.
fn beyond_f16(found: &mut Found) -> Result<Option<String>, Error> {
    const SMALLEST_NORMAL: f32 = 6.103_515_6e-5;
    let mut lost = Vec::new();
    for name in found.config.model.parameter_shapes().into_keys() {
        let mut largest = 0.0f32;
        found.tensors.pieces(&name, &mut |piece| {
            largest = piece.iter().fold(largest, |largest, x| largest.max(x.abs()));
        })?;
        if largest > f16::MAX.to_f32() || (largest > 0.0 && largest < SMALLEST_NORMAL) {
            lost.push(name);
        }
    }
    Ok(lost.first().map(|first| {
        format!(
            "OpenAI's `load` rounds weights to f16, whose range {} tensors do not fit, `{first}` first: it will \
             compute something else",
            lost.len()
        )
    }))
}

/// Embeddings of a fixed picture and a fixed text.
fn embeddings(found: &mut Found) -> Result<[Vec<f32>; 2], Error> {
    let config = &found.config.model;
    let image = |source: &dyn Source| ImageTower::build(config, source);
    let image = found.tensors.build(config, Precision::F32, image)?;
    let pixels: Vec<f32> =
        (0..config.vision_cfg.image_len()).map(|i| (i as f32 * 0.37).sin()).collect();
    let image = image.forward(&pixels, 1);
    let text = |source: &dyn Source| TextTower::build(config, source);
    let text = found.tensors.build(config, Precision::F32, text)?;
    let (length, last) = (config.text_cfg.context_length, config.text_cfg.vocab_size - 1);
    let mut ids: Vec<u32> = (0..length).map(|i| (i * 7919 % last) as u32).collect();
    ids[length - 1] = last as u32;
    let text: Tensor<2> = text.forward(&[ids]);
    Ok([elements(image), elements(text)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{ImagePool, TextPool};

    fn config(change: impl FnOnce(&mut ModelConfig)) -> Config {
        let mut config = Config::preset("ViT-B-32-quickgelu").expect("a preset");
        change(&mut config.model);
        config
    }

    /// Shapes that OpenAI's `build_model` does not ask: it would fail, or give other numbers.
    #[test]
    fn what_openai_does_not_build_is_refused_by_its_field() {
        let refused = |change: fn(&mut ModelConfig), field: &str| {
            let reason = written_config(&config(change), Program::OpenAi).expect_err(field);
            assert!(reason.contains(&format!("`{field}`")), "{reason}");
        };
        assert!(written_config(&config(|_| {}), Program::OpenAi).is_ok());
        refused(|model| model.vision_cfg.mlp_ratio = 2.0, "vision_cfg.mlp_ratio");
        refused(|model| model.text_cfg.mlp_ratio = 2.0, "text_cfg.mlp_ratio");
        refused(|model| model.vision_cfg.no_ln_pre = true, "vision_cfg.no_ln_pre");
        refused(|model| model.text_cfg.heads = 4, "text_cfg.heads");
        // The width of H, for which heads of 80 channels are usual.
        let wide = |model: &mut ModelConfig| {
            (model.vision_cfg.width, model.vision_cfg.head_width) = (1280, 80);
        };
        refused(wide, "vision_cfg.head_width");
        refused(|model| model.quick_gelu = false, "quick_gelu");
        refused(|model| model.text_cfg.pool_type = TextPool::Last, "text_cfg.pool_type");
        refused(|model| model.vision_cfg.pool_type = ImagePool::Map, "vision_cfg.pool_type");
    }

    #[test]
    fn a_ratio_that_was_rounded_is_written() {
        let rounded = config(|model| {
            model.vision_cfg.mlp_ratio = 1.3333;
            model.text_cfg.mlp_ratio = 2.7;
        });
        written_config(&rounded, Program::Transformers).expect("it has hidden channels");
    }
}
