//! The architecture of weights that come without a config, as OpenAI's code finds it: from the shapes.
//!
//! What shapes do not tell is assumed, and said: heads are 64 channels wide but in the models whose width is known
//! to go with another one, the class token is pooled, and the activation is QuickGELU in an archive without modules `GELU`,
//! as OpenAI's are, and GELU, open_clip's default, otherwise.

use std::collections::{BTreeMap, BTreeSet};

use super::FileKind;
use super::reader::Checkpoint;
use crate::config::{Layers, ModelConfig, Sides, TextConfig, Towers, VisionConfig};

/// Channels of a head, unless the width of the image tower says otherwise.
const HEAD_WIDTH: usize = 64;
/// Width and width of a head of open_clip's H, g, bigG and e.
const HEAD_WIDTHS: [(usize, usize); 4] = [(1280, 80), (1408, 88), (1664, 104), (1792, 112)];

/// The config of these weights, and what was assumed.
///
/// # Errors
/// When they are not those of a CLIP model with a Vision Transformer or OpenAI's ResNet.
pub(crate) fn infer(checkpoint: &Checkpoint) -> Result<(ModelConfig, Vec<String>), String> {
    let (quick_gelu, because) = match checkpoint.kind() {
        FileKind::TorchScript { has_gelu: false } => {
            (true, "as in all archives of OpenAI's: no module in it is a `GELU`")
        }
        FileKind::TorchScript { has_gelu: true } => (false, "the archive holds modules `GELU`"),
        FileKind::Safetensors | FileKind::Torch => (
            false,
            "open_clip's default: the weights do not tell; give a config beside them if they are OpenAI's",
        ),
    };
    let (model, assumed) = infer_shapes(checkpoint.shapes(), quick_gelu)?;
    let activation = format!("`quick_gelu`: {quick_gelu}, {because}");
    Ok((model, [vec![activation], assumed].concat()))
}

/// The config of tensors of these shapes with this activation, and what was assumed besides.
pub(crate) fn infer_shapes<'a>(
    shapes: impl IntoIterator<Item = (&'a str, &'a [usize])>,
    quick_gelu: bool,
) -> Result<(ModelConfig, Vec<String>), String> {
    let shapes = Shapes(shapes.into_iter().map(|(name, shape)| (plain(name), shape)).collect());
    let mut assumed = Vec::new();
    let vision_cfg = match shapes.0.contains_key("visual.proj") {
        true => shapes.transformer(&mut assumed)?,
        false => shapes.resnet()?,
    };
    let text_cfg = shapes.text(&mut assumed)?;
    let [_, embed_dim] = shapes.sides("text_projection")?;
    let model = ModelConfig {
        embed_dim,
        quick_gelu,
        init_logit_scale: None,
        init_logit_bias: None,
        custom_text: false,
        vision_cfg,
        text_cfg,
        towers: Towers::Both,
    };
    Ok((model, assumed))
}

/// A name without what `custom_text` puts before it.
fn plain(name: &str) -> &str {
    name.strip_prefix("text.").unwrap_or(name)
}

struct Shapes<'a>(BTreeMap<&'a str, &'a [usize]>);

impl Shapes<'_> {
    fn sides<const N: usize>(&self, name: &str) -> Result<[usize; N], String> {
        let shape = self.0.get(name).ok_or_else(|| format!("it has no `{name}`"))?;
        let sides = <[usize; N]>::try_from(*shape).ok().filter(|sides| !sides.contains(&0));
        sides.ok_or_else(|| format!("`{name}` has the shape {shape:?}, expected {N} sides"))
    }

    /// Different numbers behind a name: of blocks in a tower, or in a stage.
    fn count(&self, prefix: &str) -> usize {
        let names = self.0.keys().filter_map(|name| name.strip_prefix(prefix));
        names.filter_map(|rest| rest.split('.').next()).collect::<BTreeSet<_>>().len()
    }

    /// The hidden channels of the first block's MLP over `width`.
    fn mlp_ratio(&self, blocks: &str, width: usize) -> Result<f64, String> {
        let [hidden, _] = self.sides(&format!("{blocks}0.mlp.c_fc.weight"))?;
        Ok(ratio(hidden, width))
    }

    fn transformer(&self, assumed: &mut Vec<String>) -> Result<VisionConfig, String> {
        let [width, _, height, across] = self.sides("visual.conv1.weight")?;
        let [positions, _] = self.sides("visual.positional_embedding")?;
        let side = exact_root(positions - 1).ok_or_else(|| {
            format!("{positions} positions in `visual.positional_embedding` are no square grid and a class token")
        })?;
        let known = HEAD_WIDTHS.iter().find(|(of, _)| *of == width);
        let head_width = known.map_or(HEAD_WIDTH.min(width), |&(_, head)| head);
        assumed.push(format!("`vision_cfg.head_width`: {head_width}, usual for the width {width}"));
        assumed.push("`vision_cfg.pool_type`: tok, open_clip's default".to_owned());
        let blocks = "visual.transformer.resblocks.";
        Ok(VisionConfig {
            image_size: match height == across {
                true => Sides::Square(side * height),
                false => Sides::Rectangle([side * height, side * across]),
            },
            layers: Layers::Blocks(self.count(blocks)),
            width,
            head_width,
            patch_size: Some(match height == across {
                true => Sides::Square(height),
                false => Sides::Rectangle([height, across]),
            }),
            mlp_ratio: self.mlp_ratio(blocks, width)?,
            no_ln_pre: !self.0.contains_key("visual.ln_pre.weight"),
            ..VisionConfig::default()
        })
    }

    fn resnet(&self) -> Result<VisionConfig, String> {
        let [width, ..] = self.sides::<4>("visual.layer1.0.conv1.weight")?;
        let [positions, _] = self.sides("visual.attnpool.positional_embedding")?;
        let side = exact_root(positions - 1).ok_or_else(|| {
            format!("{positions} positions in `visual.attnpool.positional_embedding` are no square grid and a mean")
        })?;
        let stages = [1, 2, 3, 4].map(|stage| self.count(&format!("visual.layer{stage}.")));
        Ok(VisionConfig {
            image_size: Sides::Square(side * 32),
            layers: Layers::Stages(stages),
            width,
            patch_size: None,
            ..VisionConfig::default()
        })
    }

    fn text(&self, assumed: &mut Vec<String>) -> Result<TextConfig, String> {
        let [vocab_size, width] = self.sides("token_embedding.weight")?;
        let [context_length, _] = self.sides("positional_embedding")?;
        let heads = (width / HEAD_WIDTH).max(1);
        assumed.push(format!("`text_cfg.heads`: {heads}, usual for the width {width}"));
        let blocks = "transformer.resblocks.";
        Ok(TextConfig {
            context_length,
            vocab_size,
            width,
            heads,
            layers: self.count(blocks),
            mlp_ratio: self.mlp_ratio(blocks, width)?,
            ..TextConfig::default()
        })
    }
}

/// `hidden / width` as a ratio that gives `hidden` back when it is multiplied with `width` and rounded down.
pub(crate) fn ratio(hidden: usize, width: usize) -> f64 {
    let ratio = hidden as f64 / width as f64;
    match (width as f64 * ratio) as usize == hidden {
        true => ratio,
        false => ratio.next_up(),
    }
}

fn exact_root(n: usize) -> Option<usize> {
    let root = n.isqrt();
    (root > 0 && root * root == n).then_some(root)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_gives_the_hidden_channels_back() {
        for width in 1..200 {
            for hidden in 1..1000 {
                assert_eq!(
                    (width as f64 * ratio(hidden, width)) as usize,
                    hidden,
                    "{hidden} of {width}"
                );
            }
        }
        assert_eq!(ratio(3072, 768), 4.0);
        assert_eq!((1152.0 * ratio(4304, 1152)) as usize, 4304);
    }
}
