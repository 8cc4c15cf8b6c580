//! Tells mojibake from intended text: ftfy's `badness` and its detector of stray UTF-8.
//!
//! About 420 characters occur when UTF-8 is read in another encoding. They fall into categories
//! (`tables::mojibake`), and a text is bad if characters follow each other that hardly do so in
//! any language. The rules are the alternatives of ftfy's two regular expressions, one by one.

use std::ops::Range;

use crate::tokenizer::split::is_word;
use crate::tokenizer::tables::mojibake::{
    BAD, BOX, C1, CHARS, COMMON, CURRENCY, END_PUNCTUATION as END, KAOMOJI, LAW, LOWER_ACCENTED,
    LOWER_COMMON, MASKS, NUMERIC, START_PUNCTUATION as START, UPPER_ACCENTED, UPPER_COMMON,
    UTF8_CONTINUATION, UTF8_CONTINUATION_STRICT, UTF8_FIRST_OF_2, UTF8_FIRST_OF_3, UTF8_FIRST_OF_4,
};
use crate::tokenizer::white_space::is_python_space;

// Categories of plain characters that some rules need, beside those of the table.
const LOWER_ASCII: u32 = 1 << 28;
const UPPER_ASCII: u32 = 1 << 29;
const SPACE: u32 = 1 << 30;
const STOP: u32 = 1 << 31;

const ACCENTED: u32 = LOWER_ACCENTED | UPPER_ACCENTED;
const ODD: u32 = ACCENTED | BOX | START | END | CURRENCY | NUMERIC | LAW;

/// Two categories that do not follow each other in sound text.
const PAIRS: [(u32, u32); 10] = [
    (ODD | BAD, BAD),
    (BAD, ODD),
    (LOWER_ACCENTED | LOWER_COMMON | BOX | END | CURRENCY | NUMERIC, UPPER_ACCENTED),
    (BOX | END | CURRENCY | NUMERIC, LOWER_ACCENTED),
    (LOWER_ACCENTED | BOX | END, CURRENCY),
    (UPPER_ACCENTED | BOX, NUMERIC | LAW),
    (CURRENCY | NUMERIC | BOX, START),
    (BOX, KAOMOJI),
    (ACCENTED | CURRENCY | NUMERIC | START | END | LAW, BOX),
    (BOX, END),
];

/// Three categories that do not follow each other in sound text.
const TRIPLES: [(u32, u32, u32); 5] = [
    (LOWER_ASCII | UPPER_ASCII, LOWER_COMMON | UPPER_COMMON, BAD),
    (SPACE, UPPER_ACCENTED, CURRENCY),
    (ACCENTED | BOX | CURRENCY | END, START, NUMERIC),
    (ACCENTED | CURRENCY | NUMERIC | BOX | LAW, END, START),
    (LOWER_ASCII, UPPER_ACCENTED, START | CURRENCY),
];

/// Whether the text looks like mojibake.
pub(crate) fn is_bad(text: &[char]) -> bool {
    let mut masks = [0, category_at(text, 0), category_at(text, 1)];
    for i in 0..text.len() {
        masks = [masks[1], masks[2], category_at(text, i + 2)];
        if masks[0] != 0 && (is_bad_sequence(masks) || is_bad_spelling(text, i, masks)) {
            return true;
        }
    }
    false
}

/// The rules on categories. C1 controls are bad whatever follows.
fn is_bad_sequence([a, b, c]: [u32; 3]) -> bool {
    a & C1 != 0
        || PAIRS.iter().any(|&(x, y)| a & x != 0 && b & y != 0)
        || TRIPLES.iter().any(|&(x, y, z)| a & x != 0 && b & y != 0 && c & z != 0)
}

/// The rules that name single characters.
fn is_bad_spelling(text: &[char], i: usize, [a, b, c]: [u32; 3]) -> bool {
    let rest = &text[i..];
    match *rest {
        [_, _, w, ..] if a & ACCENTED != 0 && b & (START | END) != 0 && is_word(w) => true,
        [_, '°', ..] if a & UPPER_ACCENTED != 0 => true,
        ['Œ' | 'œ', next, ..] if !next.is_ascii_alphabetic() => true,
        ['Â' | 'Ã' | 'Î' | 'Ð', next, ..] if b & (START | END) != 0 || follows_lead(next) => {
            true
        }
        ['Ã' | 'Â', ' ', ..] if i == 0 => true,
        ['Ã', '\u{a0}' | '¡', ..] => true,
        [_, 'Ã' | 'Â', ' ', ..] if a & LOWER_ASCII != 0 => true,
        [_, _, 'Ã' | 'Â', ' ', ..] if a & LOWER_ASCII != 0 && b & SPACE != 0 => true,
        [_, 'Â', next, ..] if a & (LOWER_ASCII | STOP | END) != 0 => {
            next == ' ' || c & (START | END) != 0
        }
        ['à', '²' | 'µ' | '¹' | '¼' | '½' | '¾', ..] | ['×', '²' | '³', ..] => true,
        ['Ø' | 'Ù', x, 'Ø' | 'Ù', y, ..] => follows_arabic(x) && follows_arabic(y),
        _ => is_bad_mac_roman(rest) || is_bad_cyrillic_or_greek(rest, b),
    }
}

/// Windows-1252 characters that follow the lead byte of a two-byte sequence.
fn follows_lead(c: char) -> bool {
    "€œŠš¢£Ÿž\u{a0}\u{ad}®©°·»–—´".contains(c)
}

/// Windows-1252 characters that follow the lead byte of an Arabic letter.
fn follows_arabic(c: char) -> bool {
    category(c) & (COMMON | CURRENCY | BAD | NUMERIC | START) != 0 || "ŸŠ®°µ»".contains(c)
}

fn is_bad_mac_roman(rest: &[char]) -> bool {
    match *rest {
        ['√', c, ..] => "±∂†≠®™´≤≥¥µø".contains(c),
        ['≈', c, ..] => c == '°' || c == '¢',
        ['‚', 'Ä', c, ..] => "ìîïòôúùû†°¢π".contains(c),
        ['‚', 'â' | 'ó', c, ..] => "àä°ê".contains(c),
        _ => false,
    }
}

/// Windows-1251, 1253 and 1257; `b` is the category of the second character.
fn is_bad_cyrillic_or_greek(rest: &[char], b: u32) -> bool {
    const BETWEEN: u32 = C1 | BAD | START | END | CURRENCY;
    match *rest {
        ['в', 'Ђ', ..] | ['ā', '€', ..] => true,
        ['β', '€', c, ..] => "™\u{a0}Ά\u{ad}®°".contains(c),
        ['Г', 'ў', 'В', 'Ђ', 'В', any, c, ..]
            if any != '\n' && (c.is_ascii_alphabetic() || c == ' ') =>
        {
            true
        }
        ['В' | 'Г' | 'Р' | 'С', x, 'В' | 'Г' | 'Р' | 'С', ..] => {
            b & BETWEEN != 0 || x == '°' || x == 'µ'
        }
        ['Β' | 'Γ' | 'Ξ' | 'Ο', x, 'Β' | 'Γ' | 'Ξ' | 'Ο', ..] => {
            b & BETWEEN != 0 || x == '°'
        }
        _ => false,
    }
}

/// The next run at or after `from` that looks like UTF-8 read in a single-byte encoding.
///
/// A run does not begin after a continuation character, so that a few characters out of a huge
/// garble are not mended.
pub(crate) fn find_utf8_like(text: &[char], from: usize) -> Option<Range<usize>> {
    (from..text.len()).find_map(|start| {
        let is_inside = start > 0 && category(text[start - 1]) & UTF8_CONTINUATION_STRICT != 0;
        if is_inside {
            return None;
        }
        let mut end = start;
        while let n @ 1.. = utf8_like_len(text, end) {
            end += n;
        }
        (end > start).then_some(start..end)
    })
}

fn utf8_like_len(text: &[char], at: usize) -> usize {
    let lead = category_at(text, at);
    for (kind, n) in [(UTF8_FIRST_OF_2, 2), (UTF8_FIRST_OF_3, 3), (UTF8_FIRST_OF_4, 4)] {
        if lead & kind != 0 && (1..n).all(|k| category_at(text, at + k) & UTF8_CONTINUATION != 0) {
            return n;
        }
    }
    0
}

/// Categories of the character at `at`, none beyond the end.
fn category_at(text: &[char], at: usize) -> u32 {
    text.get(at).map_or(0, |&c| category(c))
}

fn category(c: char) -> u32 {
    let plain = match c {
        'a'..='z' => return LOWER_ASCII,
        'A'..='Z' => return UPPER_ASCII,
        '.' | ',' | '?' | '!' => return STOP,
        _ if is_python_space(c) => SPACE,
        _ => 0,
    };
    let code = u16::try_from(u32::from(c)).unwrap_or(u16::MAX);
    plain | CHARS.binary_search(&code).map_or(0, |i| MASKS[i])
}
