//! OpenAI's split pattern, written out.
//!
//! ```text
//! <\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+
//! ```
//!
//! The pattern ignores case. In text that is already in lower case this leaves two effects:
//! U+017F (long s) counts as an `s` of the strings above, and U+0345 (a combining iota, which
//! turns into white space, a letter or neither under the folding) belongs to no alternative.

use super::tables::contains;
use super::tables::unicode::{LETTERS, NUMBERS};

/// The text that a user types for the start of a text.
pub(crate) const START_TEXT: &str = "<|startoftext|>";
/// The text that a user types for the end of a text.
pub(crate) const END_TEXT: &str = "<|endoftext|>";

const CONTRACTIONS: [&str; 7] = ["'s", "'t", "'re", "'ve", "'m", "'ll", "'d"];
const LONG_S: char = '\u{17f}';

/// A character as the pattern sees it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Letter,
    Number,
    Gap,
    Other,
}

/// Cuts cleaned text into the pieces that are encoded one by one.
pub(crate) fn split(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        rest = rest.trim_start_matches(|c| class(c) == Class::Gap);
        let first = rest.chars().next()?;
        let (piece, tail) = rest.split_at(piece_len(rest, first));
        rest = tail;
        Some(piece)
    })
}

/// Length in bytes of the piece at the start of `text`, which begins with `first`.
fn piece_len(text: &str, first: char) -> usize {
    let fixed = match first {
        '<' => [START_TEXT, END_TEXT].iter().find_map(|s| prefix_len(text, s)),
        '\'' => CONTRACTIONS.iter().find_map(|s| prefix_len(text, s)),
        _ => None,
    };
    fixed.unwrap_or_else(|| match class(first) {
        Class::Number => first.len_utf8(),
        kind => text.find(|c| class(c) != kind).unwrap_or(text.len()),
    })
}

/// Length of `prefix` at the start of `text`, where a long s counts as an `s`.
fn prefix_len(text: &str, prefix: &str) -> Option<usize> {
    let mut chars = text.chars();
    for expected in prefix.chars() {
        let c = chars.next()?;
        if c != expected && !(c == LONG_S && expected == 's') {
            return None;
        }
    }
    Some(text.len() - chars.as_str().len())
}

fn class(c: char) -> Class {
    match c {
        'a'..='z' | 'A'..='Z' => Class::Letter,
        '0'..='9' => Class::Number,
        '\u{345}' => Class::Gap,
        _ if c.is_whitespace() => Class::Gap,
        _ if c.is_ascii() => Class::Other,
        _ if contains(&LETTERS, c) => Class::Letter,
        _ if contains(&NUMBERS, c) => Class::Number,
        _ => Class::Other,
    }
}

/// Python's `\w`: letters, numbers and the underscore.
pub(crate) fn is_word(c: char) -> bool {
    c == '_' || matches!(class(c), Class::Letter | Class::Number)
}
