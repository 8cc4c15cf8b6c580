//! Undoes mojibake: text that was decoded in another encoding than it was written in.

use super::Budget;
use super::badness::{find_utf8_like, is_bad};
use super::codecs::{self, c1_to_windows_1252};
use crate::tokenizer::tables::charmaps::CHARMAPS;

/// ftfy's `fix_encoding`: repairs as long as a step changes the text.
pub(crate) fn fix_encoding(text: String, budget: &mut Budget) -> String {
    let mut text = text;
    while !text.is_ascii() && budget.spend(text.len()) {
        match fix_one_step(&text, budget) {
            Some(fixed) if fixed != text => text = fixed,
            _ => break,
        }
    }
    text
}

/// One repair, or none where the text is sound or beyond repair.
///
/// The steps, first success wins: the whole text is UTF-8 in one of ten encodings; parts of it
/// are; C1 controls were meant as Windows-1252.
fn fix_one_step(text: &str, budget: &mut Budget) -> Option<String> {
    let chars: Vec<char> = text.chars().collect();
    if !is_bad(&chars) {
        return None;
    }
    if let Some(fixed) = decode_as_utf8(&chars) {
        return Some(fixed);
    }
    let fixed = decode_inconsistent_utf8(&chars, budget);
    if fixed != text {
        return Some(fixed);
    }
    // ftfy first tries Latin-1 as Windows-1252 on the whole text; the outcome is the same.
    Some(fix_c1_controls(text))
}

fn decode_as_utf8(chars: &[char]) -> Option<String> {
    CHARMAPS.iter().find_map(|charmap| {
        let mut bytes = charmap.encode(chars)?;
        if charmap.restores_a0 {
            bytes = codecs::restore_byte_a0(&bytes);
        }
        if charmap.is_sloppy {
            bytes = codecs::replace_lossy_sequences(&bytes);
        }
        codecs::decode(bytes)
    })
}

/// Repairs the parts that look like mojibake, each by itself.
///
/// A part is shorter than the whole, and inside of it only a change of all its characters leads
/// to parts again; so the recursion is as deep as mojibake is nested, each level at least halving
/// the length.
fn decode_inconsistent_utf8(chars: &[char], budget: &mut Budget) -> String {
    let mut out = String::with_capacity(chars.len());
    let mut at = 0;
    while let Some(found) = find_utf8_like(chars, at) {
        out.extend(&chars[at..found.start]);
        at = found.end;
        let part = &chars[found];
        if part.len() < chars.len() && is_bad(part) {
            out.push_str(&fix_encoding(part.iter().collect(), budget));
        } else {
            out.extend(part);
        }
    }
    out.extend(&chars[at..]);
    out
}

/// C1 controls as the Windows-1252 characters of the same byte.
pub(crate) fn fix_c1_controls(text: &str) -> String {
    text.chars().map(|c| c1_to_windows_1252(c).unwrap_or(c)).collect()
}
