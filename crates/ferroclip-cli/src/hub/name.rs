//! What may be typed for a model on the hub.
//!
//! | form | is |
//! |---|---|
//! | `hf:owner/name`, `hf:owner/name@revision` | a repository; the revision is `main` unless it is given |
//! | `ViT-B-32:laion2b_s34b_b79k` | public weights: a model and a tag of open_clip |

use std::collections::BTreeSet;

use ferroclip::Pretrained;

use crate::error::{Error, Result};
use crate::model::BUILTIN;

/// What stands before a repository.
const PREFIX: &str = "hf:";
/// Longest name of a repository or a revision.
const MAX_LEN: usize = 200;
/// Letters that two names of models must begin with to be near each other.
const MIN_ALIKE: usize = 3;

/// A model on the hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Name {
    /// As it was typed.
    pub(crate) text: String,
    /// `owner/name`.
    pub(crate) repo: String,
    /// A branch, a tag or a commit.
    pub(crate) revision: String,
}

impl Name {
    /// The model that a text names; `None` where it has not the form of a name.
    pub(crate) fn parse(text: &str) -> Option<Result<Name>> {
        if let Some(repo) = text.strip_prefix(PREFIX) {
            return Some(Name::of_repository(text, repo));
        }
        let (model, tag) = text.split_once(':')?;
        let is_word = |part: &str| !part.is_empty() && !part.contains(['/', '\\']);
        (is_word(model) && is_word(tag)).then(|| Name::of_pair(text))
    }

    fn of_repository(text: &str, repo: &str) -> Result<Name> {
        let (repo, revision) = repo.split_once('@').unwrap_or((repo, "main"));
        let wrong = |what: &str| Error::usage(format!("`{text}` has no good {what}"));
        if !is_repository(repo) {
            let hint = "write `hf:owner/name`, as the address of the model's page has it";
            return Err(wrong("name of a repository").hint(hint));
        }
        if !is_revision(revision) {
            return Err(wrong("revision").hint("give a branch, a tag or a commit behind the `@`"));
        }
        let [text, repo, revision] = [text, repo, revision].map(str::to_owned);
        Ok(Name { text, repo, revision })
    }

    fn of_pair(text: &str) -> Result<Name> {
        let known = Pretrained::all().find(|known| known.name() == text);
        let known = known.ok_or_else(|| unknown(text))?;
        // Some lines of the table name a file behind the repository.
        let end = known.hub.match_indices('/').nth(1).map_or(known.hub.len(), |(end, _)| end);
        Name::of_repository(text, &known.hub[..end])
    }
}

/// `owner/name` in the letters that the hub allows.
fn is_repository(text: &str) -> bool {
    let parts: Vec<&str> = text.split('/').collect();
    let is_word = |part: &&str| {
        part.starts_with(|c: char| c.is_ascii_alphanumeric())
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
            // What folders of the cache separate names by.
            && !part.contains("--")
            && !part.contains("..")
    };
    text.len() <= MAX_LEN && parts.len() == 2 && parts.iter().all(is_word)
}

/// It becomes part of a path and of an address.
fn is_revision(text: &str) -> bool {
    let is_word = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_alphanumeric())
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
    };
    text.len() <= MAX_LEN && text.split('/').all(is_word)
}

/// The error for a text that names no model, with names that are near it.
pub(crate) fn unknown(text: &str) -> Error {
    let general = || {
        format!(
            "give a model directory or file, `{BUILTIN}`, the built-in model, `hf:owner/name`, or \
             a pair that `ferroclip fetch --list` prints"
        )
    };
    if is_path(text) {
        return Error::input(format!("no such model: there is no file or directory `{text}`"))
            .hint("check the path; it is relative to the current directory");
    }
    Error::input(format!("no such model: `{text}`")).hint(near(text).unwrap_or_else(general))
}

/// Whether a text can only be meant for a path.
fn is_path(text: &str) -> bool {
    const EXTENSIONS: [&str; 5] = [".bin", ".json", ".pt", ".pth", ".safetensors"];
    text.contains(['/', '\\']) || EXTENSIONS.iter().any(|extension| text.ends_with(extension))
}

/// The tags of the model, or the models whose names begin alike.
fn near(text: &str) -> Option<String> {
    let model = text.split(':').next().unwrap_or_default();
    let same = Pretrained::all().filter(|known| known.model.eq_ignore_ascii_case(model));
    let pairs: Vec<String> = same.map(|known| format!("`{}`", known.name())).collect();
    if !pairs.is_empty() {
        return Some(format!("known pairs: {}", pairs.join(", ")));
    }
    let alike = |name: &str| {
        let pairs = name.bytes().zip(model.bytes());
        pairs.take_while(|(a, b)| a.eq_ignore_ascii_case(b)).count()
    };
    let models: BTreeSet<&str> = Pretrained::all().map(|known| known.model).collect();
    let most = models.iter().map(|name| alike(name)).max().filter(|&n| n >= MIN_ALIKE)?;
    let nearest = models.iter().filter(|name| alike(name) == most);
    let nearest: Vec<String> = nearest.map(|name| format!("`{name}`")).collect();
    Some(format!("models that begin alike: {}; give one with its tag", nearest.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Name {
        Name::parse(text).expect("a name").expect(text)
    }

    #[test]
    fn repositories_and_revisions() {
        let name = parse("hf:openai/clip-vit-base-patch32");
        assert_eq!((name.repo.as_str(), &*name.revision), ("openai/clip-vit-base-patch32", "main"));
        assert_eq!(parse("hf:a/b@refs/pr/1").revision, "refs/pr/1");
        for bad in ["hf:", "hf:a", "hf:a/b/c", "hf:../b", "hf:a/..", "hf:a/b--c", "hf:/a/b"] {
            assert!(Name::parse(bad).expect("a name").is_err(), "{bad}");
        }
        for bad in
            ["hf:a/b@", "hf:a/b@../c", "hf:a/b@c//d", "hf:a/b@/c", "hf:a/b@c?d", "hf:a/b@c\\d"]
        {
            assert!(Name::parse(bad).expect("a name").is_err(), "{bad}");
        }
    }

    #[test]
    fn every_pair_of_the_table_is_a_name() {
        for known in Pretrained::all() {
            assert!(known.hub.starts_with(&parse(&known.name()).repo));
        }
    }

    #[test]
    fn paths_are_no_names() {
        for path in ["draw-mini", "models/a:b", "C:\\models", "ViT-B-32.pt", ":a", "a:"] {
            assert!(Name::parse(path).is_none(), "{path}");
        }
    }

    #[test]
    fn near_names_are_told() {
        let hint = |text: &str| unknown(text).hint.expect("a hint");
        assert!(hint("vit-b-32:laion").contains("`ViT-B-32:laion2b_s34b_b79k`"));
        assert!(hint("ViT-B-32").contains("`ViT-B-32:openai`"));
        let alike = hint("ViT-L-15:openai");
        assert!(alike.contains("`ViT-L-14`") && !alike.contains("`RN50`"), "{alike}");
        assert!(hint("nowhere").contains("fetch --list"));
        for path in ["ViT-B-32.pt", "models/ViT-B-32", "./ViT-B-32:openai"] {
            assert!(hint(path).contains("check the path"), "{path}");
        }
    }
}
