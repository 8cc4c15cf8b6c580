//! The rules of a `tokenizer.json` as the `tokenizers` crate runs them.
//!
//! That crate was written for files that it wrote itself. Read by its own parser, the values of a model lie in memory in
//! three forms at once; here each part is read into its own type. And some rules make it panic, such as a prefix longer than
//! a merge. What is known of is refused before (`skim`, `growth`, `charsmap`); any other panic is caught: it is the
//! file's fault, whatever we would have to check to foresee it.

use std::panic::{AssertUnwindSafe, catch_unwind};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use tokenizers::models::bpe::BPE;
use tokenizers::models::unigram::Unigram;
use tokenizers::models::wordlevel::WordLevel;
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::{
    AddedToken, DecoderWrapper, ModelWrapper, NormalizerWrapper, PostProcessorWrapper,
    PreTokenizerWrapper, Tokenizer, TokenizerBuilder,
};

use super::skim::{self, MAX_VALUES};
use super::{TokenizerError, growth};

/// The most nodes of a Unigram model's tree, each of which takes about 370 bytes. OpenAI's 49,408 tokens would have 111,067;
/// the largest vocabularies in use have 250,000.
const MAX_NODES: usize = 1_300_000;

/// The parts of the file. Padding and truncation follow from the model that the vocabulary belongs to.
#[derive(Deserialize)]
struct File<'a> {
    version: Option<String>,
    #[serde(default)]
    added_tokens: Vec<AddedToken>,
    normalizer: Option<NormalizerWrapper>,
    pre_tokenizer: Option<PreTokenizerWrapper>,
    post_processor: Option<PostProcessorWrapper>,
    decoder: Option<DecoderWrapper>,
    #[serde(borrow)]
    model: &'a RawValue,
}

/// The kind of a model, which old files leave out.
#[derive(Deserialize)]
struct Kind {
    #[serde(rename = "type")]
    name: Option<String>,
}

/// Reads a file, and how many bytes its rules make of one at most.
///
/// # Errors
/// When it is no JSON, too large, or no rules.
pub(super) fn read(json: &str) -> Result<(Tokenizer, usize), TokenizerError> {
    skim::check(json, MAX_VALUES)?;
    let growth = growth::check(json)?;
    Ok((caught(|| build(json))??, growth))
}

/// What `work` gives, where it does not panic.
pub(super) fn caught<T>(work: impl FnOnce() -> T) -> Result<T, TokenizerError> {
    // Nothing that a panic leaves half done is seen: vocabularies are not changed once they are read.
    let panicked =
        |_| TokenizerError::Rules("its rules make the `tokenizers` crate panic".to_owned());
    catch_unwind(AssertUnwindSafe(work)).map_err(panicked)
}

fn build(json: &str) -> Result<Tokenizer, TokenizerError> {
    let file: File<'_> = parsed(json)?;
    if let Some(version) = file.version.filter(|version| version != "1.0") {
        return Err(TokenizerError::Rules(format!("its version is `{version}`, expected `1.0`")));
    }
    let builder = TokenizerBuilder::new()
        .with_model(model(file.model.get())?)
        .with_normalizer(file.normalizer)
        .with_pre_tokenizer(file.pre_tokenizer)
        .with_post_processor(file.post_processor)
        .with_decoder(file.decoder);
    let built = builder.build().map_err(|e| TokenizerError::Rules(e.to_string()))?;
    let mut tokenizer = Tokenizer::from(built);
    tokenizer.add_tokens(&file.added_tokens);
    Ok(tokenizer)
}

/// A part of the file.
pub(super) fn parsed<'a, T: Deserialize<'a>>(json: &'a str) -> Result<T, TokenizerError> {
    // An error can quote a text of the file, however long.
    let start = |e: serde_json::Error| e.to_string().chars().take(300).collect();
    serde_json::from_str(json).map_err(|e| TokenizerError::Rules(start(e)))
}

fn model(json: &str) -> Result<ModelWrapper, TokenizerError> {
    fn of<T: DeserializeOwned + Into<ModelWrapper>>(
        json: &str,
    ) -> Result<ModelWrapper, TokenizerError> {
        parsed::<T>(json).map(Into::into)
    }
    match parsed::<Kind>(json)?.name.as_deref() {
        Some("BPE") => of::<BPE>(json),
        Some("Unigram") => unigram(json),
        Some("WordPiece") => of::<WordPiece>(json),
        Some("WordLevel") => of::<WordLevel>(json),
        Some(other) => {
            let other: String = other.chars().take(40).collect();
            Err(TokenizerError::Rules(format!("`{other}` is no kind of model that is known")))
        }
        // In this order, as the crate does: what is a WordPiece can be read as a WordLevel, too.
        None => of::<BPE>(json)
            .or_else(|_| of::<WordPiece>(json))
            .or_else(|_| of::<WordLevel>(json))
            .or_else(|_| unigram(json)),
    }
}

/// A model that the crate keeps as a tree of the letters of its pieces.
fn unigram(json: &str) -> Result<ModelWrapper, TokenizerError> {
    #[derive(Deserialize)]
    struct Pieces {
        vocab: Vec<(String, f64)>,
    }
    let mut pieces: Vec<String> =
        parsed::<Pieces>(json)?.vocab.into_iter().map(|(piece, _)| piece).collect();
    pieces.sort_unstable();
    let shared = |a: &str, b: &str| a.bytes().zip(b.bytes()).take_while(|(a, b)| a == b).count();
    let own = pieces.windows(2).map(|pair| pair[1].len() - shared(&pair[0], &pair[1]));
    let nodes = pieces.first().map_or(0, String::len) + own.sum::<usize>();
    if nodes > MAX_NODES {
        let reason = format!("its pieces make a tree of {nodes} nodes, limit {MAX_NODES}");
        return Err(TokenizerError::Rules(reason));
    }
    drop(pieces);
    parsed::<Unigram>(json).map(Into::into)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(json: &str) -> String {
        read(json).expect_err("no rules").to_string()
    }

    #[test]
    fn rules_that_panic_are_an_error() {
        let model = r#"{"type": "BPE", "continuing_subword_prefix": "long", "vocab": {"a": 0, "b": 1}, "merges": ["a b"]}"#;
        let shown = refused(&format!(r#"{{"model": {model}}}"#));
        assert!(shown.contains("make the `tokenizers` crate panic"), "{shown}");
    }

    /// The crate keeps pieces as a tree, which took 370 bytes a letter.
    #[test]
    fn trees_of_too_many_letters_are_refused() {
        let check = |n: usize| {
            let pieces = (0..n).map(|i| format!(r#"["{i:06}{}",0.0]"#, "x".repeat(900)));
            let pieces = pieces.collect::<Vec<_>>().join(",");
            read(&format!(
                r#"{{"model": {{"type": "Unigram", "unk_id": 0, "vocab": [{pieces}]}}}}"#
            ))
        };
        assert!(check(10).is_ok());
        let shown = check(1500).expect_err("a large tree").to_string();
        assert!(shown.contains("make a tree of"), "{shown}");
    }

    #[test]
    fn models_are_told_by_their_kind() {
        let vocab = r#""vocab": {"a": 0}, "unk_token": "a""#;
        for kind in ["", r#""type": "WordLevel","#] {
            let found = read(&format!(r#"{{"model": {{{kind} {vocab}}}}}"#)).expect("rules");
            assert_eq!(found.0.token_to_id("a"), Some(0));
        }
        assert!(
            refused(&format!(r#"{{"model": {{"type": "Magic", {vocab}}}}}"#)).contains("`Magic`")
        );
        let old = format!(r#"{{"version": "0.9", "model": {{{vocab}}}}}"#);
        assert!(refused(&old).contains("`0.9`"));
    }
}
