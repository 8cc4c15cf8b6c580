//! The text that is split into words: repaired, unescaped, single spaces, lower case.
//!
//! Three kinds of white space are involved, as in the reference: Python's `str.strip` (which
//! includes the separators U+001C to U+001F), `\s` of the `regex` module (which does not; it is
//! Unicode's `White_Space`), and ftfy's line breaks.

use unicode_normalization::UnicodeNormalization;

use super::white_space::is_python_space;
use super::{ftfy, html};

/// The normaliser of transformers' fast tokenizer: NFC, `\s+` to a space, each character in lower case on its own.
pub(crate) fn compose(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut is_gap = false;
    for c in text.nfc() {
        let gap = c.is_whitespace();
        match (gap, is_gap) {
            (true, true) => {}
            (true, false) => out.push(' '),
            (false, _) => out.extend(c.to_lowercase()),
        }
        is_gap = gap;
    }
    out
}

/// OpenAI's `whitespace_clean(basic_clean(text)).lower()`.
pub(crate) fn clean(text: &str) -> String {
    whitespace(text).to_lowercase()
}

/// OpenAI's `whitespace_clean(basic_clean(text))`.
pub(crate) fn whitespace(text: &str) -> String {
    let twice = basic(text);
    let mut out = String::with_capacity(twice.len());
    let mut is_gap = false;
    for c in twice.trim_matches(is_python_space).chars() {
        if c.is_whitespace() {
            is_gap = true;
            continue;
        }
        if std::mem::take(&mut is_gap) {
            out.push(' ');
        }
        out.push(c);
    }
    // What `\s` left at the ends may still be space to `strip`.
    out.trim_matches(is_python_space).to_owned()
}

/// OpenAI's `basic_clean(text)`, before its `strip`.
fn basic(text: &str) -> String {
    html::unescape(&html::unescape(&ftfy::fix_text(text))).into_owned()
}

/// open_clip's `canonicalize_text(basic_clean(text))`.
pub(crate) fn canonical(text: &str) -> String {
    without_punctuation(&basic(text).replace('_', " "))
}

/// transformers' `canonicalize_text(text)` and lower case: punctuation of ASCII goes, white space becomes single spaces.
pub(crate) fn without_punctuation(text: &str) -> String {
    let kept = text.chars().filter(|c| !c.is_ascii_punctuation());
    let lower = kept.collect::<String>().to_lowercase();
    let words = lower.split(is_python_space).filter(|word| !word.is_empty());
    words.collect::<Vec<&str>>().join(" ")
}
