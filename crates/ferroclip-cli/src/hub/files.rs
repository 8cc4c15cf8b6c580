//! Which files of a repository make a model that ferroclip opens.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde_json::Value;

/// Configs; a model needs one of them.
const OPEN_CLIP_CONFIG: &str = "open_clip_config.json";
const HF_CONFIG: &str = "config.json";
/// What is taken where the repository has it: the image pipeline, the vocabulary, the licence.
const OPTIONAL: [&str; 8] = [
    "processor_config.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
    "README.md",
];
/// Weights, the preferred ones first: safetensors, then open_clip's.
const WEIGHTS: [&str; 4] = [
    "open_clip_model.safetensors",
    "model.safetensors",
    "open_clip_pytorch_model.bin",
    "pytorch_model.bin",
];
/// The order in which a model directory is searched for weights.
const OPENED: [&str; 4] = [
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
    "model.safetensors",
    "pytorch_model.bin",
];
/// What the names of open_clip's files begin with.
const OPEN_CLIP: &str = "open_clip_";
/// What stands behind the name of the list of files that weights were cut into.
const INDEX: &str = ".index.json";
/// Longest list of files, and most files.
const MAX_INDEX_BYTES: u64 = 4 << 20;
const MAX_SHARDS: usize = 1024;

/// What is to be fetched.
#[cfg(feature = "hub")]
#[derive(Debug, PartialEq)]
pub(super) struct Chosen {
    /// Configs, vocabulary, model card.
    pub(super) small: Vec<&'static str>,
    /// The weights, or the list of the files that they were cut into.
    pub(super) weights: String,
}

/// Files that a model may do without.
pub(super) fn optional() -> impl Iterator<Item = &'static str> {
    [OPEN_CLIP_CONFIG, HF_CONFIG].into_iter().chain(OPTIONAL)
}

/// The files to fetch; `has` tells which ones there are.
///
/// # Errors
/// What is missing.
#[cfg(feature = "hub")]
pub(super) fn choose(has: impl Fn(&str) -> bool) -> Result<Chosen, String> {
    if !has(OPEN_CLIP_CONFIG) && !has(HF_CONFIG) {
        return Err(no_config());
    }
    let weights = first(&WEIGHTS, &has).ok_or_else(|| no_weights(has(OPEN_CLIP_CONFIG)))?;
    Ok(Chosen { small: optional().filter(|name| has(name)).collect(), weights })
}

/// Whether this file lists the files that weights were cut into.
pub(super) fn is_index(name: &str) -> bool {
    name.ends_with(INDEX)
}

/// The first of these files of weights that there is, in one piece or in several.
fn first(names: &[&str], has: &impl Fn(&str) -> bool) -> Option<String> {
    // A directory of transformers is not searched for open_clip's files.
    let is_open_clip = has(OPEN_CLIP_CONFIG);
    let names = names.iter().filter(|name| is_open_clip || !name.starts_with(OPEN_CLIP));
    let mut forms = names.flat_map(|name| [(*name).to_owned(), format!("{name}{INDEX}")]);
    forms.find(|name| has(name))
}

fn no_config() -> String {
    format!("`{OPEN_CLIP_CONFIG}` or `{HF_CONFIG}`")
}

fn no_weights(is_open_clip: bool) -> String {
    let all = WEIGHTS.iter().filter(|name| is_open_clip || !name.starts_with(OPEN_CLIP));
    let names: Vec<String> = all.map(|name| format!("`{name}`")).collect();
    names.join(" or ")
}

/// What the model in a folder lacks to be opened, if it lacks something.
pub(super) fn missing(folder: &Path) -> Option<String> {
    let has = |name: &str| folder.join(name).is_file();
    if !has(OPEN_CLIP_CONFIG) && !has(HF_CONFIG) {
        return Some(no_config());
    }
    let Some(weights) = first(&OPENED, &has) else {
        return Some(no_weights(has(OPEN_CLIP_CONFIG)));
    };
    if !is_index(&weights) {
        return None;
    }
    match shards(&folder.join(&weights)) {
        Ok(names) => {
            let absent = names.iter().filter(|name| !has(name));
            let absent: Vec<String> = absent.map(|name| format!("`{name}`")).collect();
            (!absent.is_empty()).then(|| absent.join(", "))
        }
        Err(reason) => Some(format!("a good `{weights}` ({reason})")),
    }
}

/// The files that an index of weights names. They are to lie beside it.
pub(super) fn shards(index: &Path) -> Result<Vec<String>, String> {
    let size = fs::metadata(index).map_err(|error| error.to_string())?.len();
    if size > MAX_INDEX_BYTES {
        return Err(format!("it has {size} bytes, limit {MAX_INDEX_BYTES}"));
    }
    let text = fs::read_to_string(index).map_err(|error| error.to_string())?;
    shards_of(&text)
}

fn shards_of(text: &str) -> Result<Vec<String>, String> {
    let value: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let map = value["weight_map"].as_object().ok_or("it has no `weight_map`")?;
    let names: BTreeSet<&str> = map.values().filter_map(Value::as_str).collect();
    if names.is_empty() || names.len() > MAX_SHARDS {
        return Err(format!("it names {} files, expected 1 to {MAX_SHARDS}", names.len()));
    }
    let is_plain = |name: &&&str| {
        (1..=200).contains(&name.len())
            && !name.starts_with('.')
            && name.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
    };
    match names.iter().find(|name| !is_plain(name)) {
        Some(name) => Err(format!("it names `{}`, which is no plain name", name.escape_debug())),
        None => Ok(names.into_iter().map(str::to_owned).collect()),
    }
}

/// Whether a path of a listing stays below the folder of its repository.
#[cfg(feature = "hub")]
pub(super) fn is_below(path: &str) -> bool {
    let is_name = |part: &str| !matches!(part, "" | "." | "..");
    !path.contains(['\\', '\0']) && path.split('/').all(is_name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(feature = "hub")]
    fn weights(listed: &[&str]) -> Result<String, String> {
        choose(|name| listed.contains(&name)).map(|chosen| chosen.weights)
    }

    #[cfg(feature = "hub")]
    #[test]
    fn one_form_of_weights_is_chosen() {
        let open_clip = ["open_clip_config.json", "config.json", "pytorch_model.bin"];
        let with = |more: &[&str]| weights(&[&open_clip[..], more].concat()).expect("weights");
        assert_eq!(with(&[]), "pytorch_model.bin");
        assert_eq!(with(&["open_clip_pytorch_model.bin"]), "open_clip_pytorch_model.bin");
        let both = with(&["model.safetensors", "open_clip_pytorch_model.bin"]);
        assert_eq!(both, "model.safetensors");
        assert_eq!(with(&["model.safetensors.index.json"]), "model.safetensors.index.json");
        assert_eq!(with(&["open_clip_model.safetensors"]), "open_clip_model.safetensors");
        // Not found beside a config of transformers.
        assert!(weights(&["config.json", "open_clip_model.safetensors"]).is_err());
        assert!(weights(&["model.safetensors"]).expect_err("no config").contains("config.json"));
    }

    #[test]
    fn hostile_indices_are_refused() {
        let index =
            |name: &str| shards_of(&serde_json::json!({"weight_map": {"a": name}}).to_string());
        assert_eq!(index("model-1.safetensors"), Ok(vec!["model-1.safetensors".to_owned()]));
        for bad in ["../a", "/a", "a/b", "a\\b", "", ".a", "C:a"] {
            assert!(index(bad).is_err(), "{bad}");
        }
        assert!(shards_of("{}").is_err() && shards_of("[").is_err());
    }

    #[cfg(feature = "hub")]
    #[test]
    fn hostile_paths_are_told_from_others() {
        assert!(is_below("a.json") && is_below("onnx/model..x.onnx"));
        for bad in ["", "/etc/passwd", "../a", "a/../../b", "a\\b", "a//b", "./a"] {
            assert!(!is_below(bad), "{bad}");
        }
    }
}
