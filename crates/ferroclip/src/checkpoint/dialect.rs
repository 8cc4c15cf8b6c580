//! The names and layouts that other programs keep the same tensors under.
//!
//! Inside this library a tensor has the name and shape that open_clip's plain models give it. A dialect says where a
//! file keeps it: under another name, transposed, or cut into several tensors.
//!
//! | | open_clip, OpenAI | open_clip, `custom_text` | Hugging Face |
//! |---|---|---|---|
//! | text tower | `transformer.resblocks.0...` | `text.transformer.resblocks.0...` | `text_model.encoder.layers.0...` |
//! | queries, keys, values | one matrix | one matrix | three |
//! | projections | `[width, embed_dim]` | `[width, embed_dim]`; transposed where they have a bias | transposed |
//! | image tower pooled by attention | | timm's names, below `visual.trunk.` | `vision_model.head.` |

use std::collections::BTreeMap;

use crate::config::ModelConfig;

/// How a file calls its tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// open_clip's plain models, and OpenAI's.
    OpenClip,
    /// open_clip's models with `custom_text`: the text tower stands below `text.`.
    CustomText,
    /// `CLIPModel` and `SiglipModel` of transformers.
    HuggingFace,
}

/// What decides names beside the dialect.
#[derive(Clone, Copy)]
struct Form {
    /// The image tower is pooled by attention.
    attention_pool: bool,
    /// The projection of the text tower has a bias.
    projection_bias: bool,
}

/// Where a file keeps a tensor.
#[derive(Debug, PartialEq)]
pub(crate) struct Place {
    /// Name and shape of the tensors in the file; their rows follow each other.
    pub(super) parts: Vec<(String, Vec<usize>)>,
    /// Whether the file's matrix is the transpose.
    pub(super) transposed: bool,
}

impl Place {
    pub(super) fn whole(name: String, shape: &[usize]) -> Place {
        Place { parts: vec![(name, shape.to_vec())], transposed: false }
    }

    /// A matrix that the file keeps transposed.
    fn transposed(name: &str, shape: &[usize]) -> Place {
        let shape = shape.iter().rev().copied().collect();
        Place { parts: vec![(name.to_owned(), shape)], transposed: true }
    }

    /// A tensor that the file keeps in as many parts as there are names.
    fn parts<const N: usize>(names: [String; N], shape: &[usize]) -> Place {
        let mut part = shape.to_vec();
        part[0] /= N;
        Place { parts: names.map(|name| (name, part.clone())).into(), transposed: false }
    }
}

/// The columns of a matrix as rows.
pub(super) fn transposed(data: &[f32], columns: usize) -> Vec<f32> {
    let rows = data.len() / columns.max(1);
    let column = |j: usize| (0..rows).map(move |i| i * columns + j);
    (0..columns).flat_map(column).map(|place| data[place]).collect()
}

/// What stands before the numbers of blocks.
const TEXT_BLOCKS: &str = "transformer.resblocks.";
const IMAGE_BLOCKS: &str = "visual.transformer.resblocks.";

impl Dialect {
    /// The dialect of a file, by the names in it.
    pub(super) fn of<'a>(mut names: impl Iterator<Item = &'a str> + Clone) -> Dialect {
        let begins =
            |name: &str, starts: &[&str]| starts.iter().any(|start| name.starts_with(start));
        if names.clone().any(|name| begins(name, &["text_model.", "vision_model."])) {
            Dialect::HuggingFace
        } else if names.any(|name| begins(name, &["text.token_embedding.", "text.transformer."])) {
            Dialect::CustomText
        } else {
            Dialect::OpenClip
        }
    }

    /// The dialect of the files that open_clip reads with this config.
    pub(crate) fn of_open_clip(config: &ModelConfig) -> Dialect {
        if config.custom_text { Dialect::CustomText } else { Dialect::OpenClip }
    }

    /// What `inspect` calls it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Dialect::OpenClip => "open_clip",
            Dialect::CustomText => "open_clip with `custom_text`",
            Dialect::HuggingFace => "Hugging Face",
        }
    }

    /// Where files of this dialect keep the tensors of these names and shapes.
    pub(crate) fn places(self, shapes: &BTreeMap<String, Vec<usize>>) -> BTreeMap<String, Place> {
        let form = Form {
            attention_pool: shapes.contains_key("visual.attn_pool.probe"),
            projection_bias: shapes.contains_key("text_projection_bias"),
        };
        let place =
            |(name, shape): (&String, &Vec<usize>)| (name.clone(), self.place(name, shape, form));
        shapes.iter().map(place).collect()
    }

    fn place(self, name: &str, shape: &[usize], form: Form) -> Place {
        let is_text = !name.starts_with("visual.") && !name.starts_with("logit_");
        match self {
            Dialect::HuggingFace => hugging_face(name, shape, form),
            Dialect::OpenClip | Dialect::CustomText if !is_text && form.attention_pool => {
                timm(name, shape)
            }
            Dialect::OpenClip | Dialect::CustomText => {
                let prefix = if self == Dialect::CustomText && is_text { "text." } else { "" };
                match name {
                    "text_projection" if form.projection_bias => {
                        Place::transposed(&format!("{prefix}text_projection.weight"), shape)
                    }
                    "text_projection_bias" => {
                        Place::whole(format!("{prefix}text_projection.bias"), shape)
                    }
                    _ => Place::whole(format!("{prefix}{name}"), shape),
                }
            }
        }
    }
}

/// The tensors of a block of timm, and of its pooling by attention, by our names.
const TIMM_BLOCK: [(&str, &str); 8] = [
    ("attn.in_proj_weight", "attn.qkv.weight"),
    ("attn.in_proj_bias", "attn.qkv.bias"),
    ("attn.out_proj.", "attn.proj."),
    ("ln_1.", "norm1."),
    ("ln_2.", "norm2."),
    ("ln.", "norm."),
    ("mlp.c_fc.", "mlp.fc1."),
    ("mlp.c_proj.", "mlp.fc2."),
];

/// `rest` with its beginning replaced.
fn timm_name(rest: &str) -> String {
    let found = TIMM_BLOCK
        .iter()
        .find_map(|(ours, theirs)| rest.strip_prefix(ours).map(|rest| format!("{theirs}{rest}")));
    found.unwrap_or_else(|| rest.to_owned())
}

/// A tensor of one of timm's image towers.
fn timm(name: &str, shape: &[usize]) -> Place {
    let trunk = |rest: &str| format!("visual.trunk.{rest}");
    if let Some(rest) = name.strip_prefix(IMAGE_BLOCKS) {
        let (number, rest) = rest.split_once('.').expect("a tensor of a block");
        return Place::whole(trunk(&format!("blocks.{number}.{}", timm_name(rest))), shape);
    }
    if let Some(rest) = name.strip_prefix("visual.attn_pool.") {
        let named = |rest: &str| trunk(&format!("attn_pool.{rest}"));
        return match rest {
            "probe" => {
                Place { parts: vec![(named("latent"), vec![1, 1, shape[0]])], transposed: false }
            }
            "attn.in_proj_weight" | "attn.in_proj_bias" => {
                let kind = if rest.ends_with("bias") { "bias" } else { "weight" };
                let part = |of: &str, parts: usize| {
                    let mut part = shape.to_vec();
                    part[0] = shape[0] / 3 * parts;
                    (named(&format!("{of}.{kind}")), part)
                };
                Place { parts: vec![part("q", 1), part("kv", 2)], transposed: false }
            }
            _ => match rest.strip_prefix("attn.out_proj.") {
                Some(rest) => Place::whole(named(&format!("proj.{rest}")), shape),
                None => Place::whole(named(&timm_name(rest)), shape),
            },
        };
    }
    match name {
        "visual.positional_embedding" => {
            let shape = [&[1], shape].concat();
            Place { parts: vec![(trunk("pos_embed"), shape)], transposed: false }
        }
        "visual.conv1.weight" => Place::whole(trunk("patch_embed.proj.weight"), shape),
        "visual.conv1.bias" => Place::whole(trunk("patch_embed.proj.bias"), shape),
        "visual.ln_post.weight" => Place::whole(trunk("norm.weight"), shape),
        "visual.ln_post.bias" => Place::whole(trunk("norm.bias"), shape),
        other => Place::whole(other.to_owned(), shape),
    }
}

fn hugging_face(name: &str, shape: &[usize], form: Form) -> Place {
    let in_block = |tower: &str, rest: &str| {
        let (number, rest) = rest.split_once('.').expect("a tensor of a block");
        of_block(&format!("{tower}.encoder.layers.{number}"), rest, shape)
    };
    if let Some(rest) = name.strip_prefix(IMAGE_BLOCKS) {
        return in_block("vision_model", rest);
    }
    if let Some(rest) = name.strip_prefix(TEXT_BLOCKS) {
        return in_block("text_model", rest);
    }
    if let Some(rest) = name.strip_prefix("visual.attn_pool.") {
        return of_head(rest, shape);
    }
    let renamed = match name {
        "logit_scale" | "logit_bias" if form.attention_pool => {
            return Place::whole(name.to_owned(), &[1]);
        }
        "text_projection" if form.projection_bias => {
            return Place::transposed("text_model.head.weight", shape);
        }
        "text_projection_bias" => "text_model.head.bias",
        "visual.conv1.bias" => "vision_model.embeddings.patch_embedding.bias",
        "visual.proj" => return Place::transposed("visual_projection.weight", shape),
        "text_projection" => return Place::transposed("text_projection.weight", shape),
        "visual.conv1.weight" => "vision_model.embeddings.patch_embedding.weight",
        "visual.class_embedding" => "vision_model.embeddings.class_embedding",
        "visual.positional_embedding" => "vision_model.embeddings.position_embedding.weight",
        // So written by them.
        "visual.ln_pre.weight" => "vision_model.pre_layrnorm.weight",
        "visual.ln_pre.bias" => "vision_model.pre_layrnorm.bias",
        "visual.ln_post.weight" => "vision_model.post_layernorm.weight",
        "visual.ln_post.bias" => "vision_model.post_layernorm.bias",
        "token_embedding.weight" => "text_model.embeddings.token_embedding.weight",
        "positional_embedding" => "text_model.embeddings.position_embedding.weight",
        "ln_final.weight" => "text_model.final_layer_norm.weight",
        "ln_final.bias" => "text_model.final_layer_norm.bias",
        other => other,
    };
    Place::whole(renamed.to_owned(), shape)
}

/// A tensor of the pooling by attention, `rest` being its name inside.
fn of_head(rest: &str, shape: &[usize]) -> Place {
    let head = |rest: &str| format!("vision_model.head.{rest}");
    match rest {
        "probe" => Place { parts: vec![(head("probe"), vec![1, 1, shape[0]])], transposed: false },
        "ln.weight" => Place::whole(head("layernorm.weight"), shape),
        "ln.bias" => Place::whole(head("layernorm.bias"), shape),
        _ => match rest.strip_prefix("attn.") {
            Some(rest) => Place::whole(head(&format!("attention.{rest}")), shape),
            None => of_block("vision_model.head", rest, shape),
        },
    }
}

/// A tensor of a transformer block, `rest` being its name inside.
fn of_block(block: &str, rest: &str, shape: &[usize]) -> Place {
    let renamed = match rest {
        "attn.in_proj_weight" | "attn.in_proj_bias" => {
            let kind = if rest.ends_with("bias") { "bias" } else { "weight" };
            let names = ["q", "k", "v"].map(|of| format!("{block}.self_attn.{of}_proj.{kind}"));
            return Place::parts(names, shape);
        }
        "attn.out_proj.weight" => "self_attn.out_proj.weight",
        "attn.out_proj.bias" => "self_attn.out_proj.bias",
        "ln_1.weight" => "layer_norm1.weight",
        "ln_1.bias" => "layer_norm1.bias",
        "ln_2.weight" => "layer_norm2.weight",
        "ln_2.bias" => "layer_norm2.bias",
        "mlp.c_fc.weight" => "mlp.fc1.weight",
        "mlp.c_fc.bias" => "mlp.fc1.bias",
        "mlp.c_proj.weight" => "mlp.fc2.weight",
        "mlp.c_proj.bias" => "mlp.fc2.bias",
        other => other,
    };
    Place::whole(format!("{block}.{renamed}"), shape)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names that each dialect gives the tensors of a model, shapes included: none is lost or used twice.
    #[test]
    fn every_tensor_has_its_own_place() {
        for preset in ["ViT-B-32", "RN50", "ViT-B-16-SigLIP"] {
            let shapes = crate::Config::preset(preset).expect("a preset").model.parameter_shapes();
            for dialect in [Dialect::OpenClip, Dialect::CustomText, Dialect::HuggingFace] {
                let places = dialect.places(&shapes);
                let mut names = std::collections::BTreeSet::new();
                for (name, place) in &places {
                    let elements = |shape: &[usize]| shape.iter().product::<usize>();
                    let held: usize = place.parts.iter().map(|(_, shape)| elements(shape)).sum();
                    assert_eq!(held, elements(&shapes[name]), "{name}");
                    for (part, _) in &place.parts {
                        assert!(names.insert(part.clone()), "{part}");
                    }
                }
                let found = Dialect::of(names.iter().map(String::as_str));
                assert_eq!(found, dialect, "{preset}");
            }
        }
    }

    #[test]
    fn hugging_face_cuts_and_transposes() {
        let form = Form { attention_pool: false, projection_bias: false };
        let place = |name: &str, shape: &[usize]| Dialect::HuggingFace.place(name, shape, form);
        let found = place("visual.transformer.resblocks.3.attn.in_proj_weight", &[24, 8]);
        let part = |of: &str| {
            (format!("vision_model.encoder.layers.3.self_attn.{of}_proj.weight"), vec![8, 8])
        };
        assert_eq!(found.parts, [part("q"), part("k"), part("v")]);
        let found = place("text_projection", &[8, 4]);
        assert_eq!(found.parts, [("text_projection.weight".to_owned(), vec![4, 8])]);
        assert!(found.transposed);
    }
}
