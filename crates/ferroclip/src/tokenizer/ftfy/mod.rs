//! Repair of broken text: a port of ftfy 6.3.1's `fix_text` with its default settings.
//!
//! ftfy is by Robyn Speer (<https://github.com/rspeer/python-ftfy>, Apache-2.0); the order of the
//! steps, their quirks and their tables are kept, since CLIP's ids depend on them.
//!
//! Each line is repaired by itself, until nothing changes any more:
//!
//! 1. HTML entities with `;` (off from the first line that holds a `<`), [`super::html`]
//! 2. mojibake ([`encoding`], with the heuristic of [`badness`] and the byte repairs of [`codecs`])
//! 3. C1 controls, Latin ligatures, full and half width, curly quotes, line breaks
//! 4. terminal escapes, control characters
//! 5. normalisation form C
//!
//! Limits: lone surrogates do not exist in a Rust string, so ftfy's step for them is left out.
//! Normalisation follows the Unicode version of the crate, Python's its own; they agree on all
//! characters that both know. Text made to be unescaped a level per pass is not followed for ever
//! ([`Budget`]).

use std::borrow::Cow;

use unicode_normalization::{IsNormalized, UnicodeNormalization, is_nfc_quick};

use super::html;
use super::tables::contains;
use super::tables::unicode::DIGITS;

mod badness;
pub(crate) mod codecs;
mod encoding;

/// Lines longer than this are repaired in pieces of this many characters.
const MAX_SEGMENT_CHARS: usize = 1_000_000;

/// Repairs the text.
pub(crate) fn fix_text(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut budget = Budget::for_text(text);
    let mut unescapes_html = true;
    for segment in segments(text) {
        unescapes_html = unescapes_html && !segment.contains('<');
        out.push_str(&fix_segment(segment, unescapes_html, &mut budget));
    }
    out
}

/// Whether the heuristic takes the text for mojibake.
#[cfg(test)]
pub(super) fn looks_like_mojibake(text: &str) -> bool {
    badness::is_bad(&text.chars().collect::<Vec<_>>())
}

/// Bytes that the passes over one text may still read.
///
/// Each pass takes off one layer, and a hostile text of `&amp;amp;amp;...` has as many layers as
/// letters. Real text needs a handful of passes; the budget is 32 passes and 32 MiB.
#[derive(Debug)]
pub(crate) struct Budget(usize);

impl Budget {
    fn for_text(text: &str) -> Self {
        Self((32 << 20) + text.len().saturating_mul(32))
    }

    /// Takes `n_bytes` off; false if they are no longer there.
    pub(crate) fn spend(&mut self, n_bytes: usize) -> bool {
        let left = self.0.checked_sub(n_bytes);
        self.0 = left.unwrap_or(0);
        left.is_some()
    }
}

/// Lines with their line feed, cut where they are too long.
fn segments(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let line_end = rest.find('\n').map_or(rest.len(), |at| at + 1);
        let end = match rest[..line_end].char_indices().nth(MAX_SEGMENT_CHARS) {
            Some((at, _)) => at,
            None => line_end,
        };
        let (segment, tail) = rest.split_at(end);
        rest = tail;
        Some(segment)
    })
}

fn fix_segment<'a>(segment: &'a str, unescapes_html: bool, budget: &mut Budget) -> Cow<'a, str> {
    if is_plain(segment) {
        return Cow::Borrowed(segment);
    }
    let mut text = segment.to_owned();
    while budget.spend(text.len()) {
        let fixed = fix_once(&text, unescapes_html, budget);
        if fixed == text {
            break;
        }
        text = fixed;
    }
    Cow::Owned(text)
}

/// Whether no step can find anything to do: most captions.
fn is_plain(text: &str) -> bool {
    text.bytes().all(|b| matches!(b, b' '..=b'~' | b'\n' | b'\t') && b != b'&')
}

fn fix_once(text: &str, unescapes_html: bool, budget: &mut Budget) -> String {
    let text =
        if unescapes_html { html::unescape_closed(text).into_owned() } else { text.to_owned() };
    let text = encoding::fix_encoding(text, budget);
    let text = replace_chars(text, fix_c1);
    let text = replace_chars(text, split_ligature);
    let text = replace_chars(text, fix_width);
    let text = replace_chars(text, uncurl_quote);
    let text = fix_line_breaks(text);
    let text = remove_terminal_escapes(text);
    let text = remove_control_chars(text);
    match is_nfc_quick(text.chars()) {
        IsNormalized::Yes => text,
        _ => text.nfc().collect(),
    }
}

/// Replaces the characters for which `fix` has something else.
fn replace_chars(text: String, fix: fn(char) -> Option<Fixed>) -> String {
    if text.is_ascii() || !text.chars().any(|c| fix(c).is_some()) {
        return text;
    }
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match fix(c) {
            None => out.push(c),
            Some(Fixed::Char(new)) => out.push(new),
            Some(Fixed::Text(new)) => out.push_str(new),
            Some(Fixed::Compatible) => out.extend(std::iter::once(c).nfkc()),
        }
    }
    out
}

/// What comes instead of a character.
enum Fixed {
    Char(char),
    Text(&'static str),
    /// Its compatibility form (NFKC).
    Compatible,
}

fn fix_c1(c: char) -> Option<Fixed> {
    codecs::c1_to_windows_1252(c).map(Fixed::Char)
}

/// Ligatures and digraphs of Latin letters that come from typesetting or from old encodings.
fn split_ligature(c: char) -> Option<Fixed> {
    let letters = match c {
        'Ĳ' => "IJ",
        'ĳ' => "ij",
        'ŉ' => "ʼn",
        'Ǳ' => "DZ",
        'ǲ' => "Dz",
        'ǳ' => "dz",
        'Ǆ' => "DŽ",
        'ǅ' => "Dž",
        'ǆ' => "dž",
        'Ǉ' => "LJ",
        'ǈ' => "Lj",
        'ǉ' => "lj",
        'Ǌ' => "NJ",
        'ǋ' => "Nj",
        'ǌ' => "nj",
        'ﬀ' => "ff",
        'ﬁ' => "fi",
        'ﬂ' => "fl",
        'ﬃ' => "ffi",
        'ﬄ' => "ffl",
        'ﬅ' => "ſt",
        'ﬆ' => "st",
        _ => return None,
    };
    Some(Fixed::Text(letters))
}

/// Full-width Latin, half-width Katakana and Hangul, and the ideographic space.
fn fix_width(c: char) -> Option<Fixed> {
    match c {
        '\u{3000}' => Some(Fixed::Char(' ')),
        '\u{ff01}'..='\u{ffef}' => Some(Fixed::Compatible),
        _ => None,
    }
}

fn uncurl_quote(c: char) -> Option<Fixed> {
    match c {
        '\u{201c}'..='\u{201f}' => Some(Fixed::Char('"')),
        '\u{2bc}' | '\u{2018}'..='\u{201b}' => Some(Fixed::Char('\'')),
        _ => None,
    }
}

fn fix_line_breaks(text: String) -> String {
    let is_break = |c| matches!(c, '\r' | '\u{2028}' | '\u{2029}' | '\u{85}');
    if text.contains(is_break) { text.replace("\r\n", "\n").replace(is_break, "\n") } else { text }
}

/// Drops escapes such as those that colour text in a terminal: `ESC [ digits and ; letter`.
fn remove_terminal_escapes(text: String) -> String {
    if !text.contains("\u{1b}[") {
        return text;
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text.as_str();
    while let Some(at) = rest.find("\u{1b}[") {
        let (before, escape) = rest.split_at(at);
        out.push_str(before);
        let body = escape[2..].trim_start_matches(|c| c == ';' || contains(&DIGITS, c));
        if body.starts_with(|c: char| c.is_ascii_alphabetic()) {
            rest = &body[1..];
        } else {
            out.push_str(&escape[..2]);
            rest = &escape[2..];
        }
    }
    out.push_str(rest);
    out
}

/// Drops control characters that have no visible effect; joiners and directions stay.
fn remove_control_chars(mut text: String) -> String {
    text.retain(|c| {
        !matches!(c,
            '\0'..='\u{8}' | '\u{b}' | '\u{e}'..='\u{1f}' | '\u{7f}'
            | '\u{206a}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffc}')
    });
    text
}
