//! Character references of HTML: Python's `html.unescape`, and ftfy's stricter kind.

use std::borrow::Cow;

use super::tables::charmaps::C1_AS_WINDOWS_1252;
use super::tables::entities::{HTML5, UPPERCASED};

/// Most characters that Python reads as a name.
const MAX_NAME_CHARS: usize = 32;
/// Most letters and digits that ftfy reads as a name.
const MAX_CLOSED_NAME_BYTES: usize = 24;

/// Python's `html.unescape`: HTML5's rules, so `;` may be missing after old names and numbers,
/// and the longest known name at the start of a word counts.
pub(crate) fn unescape(text: &str) -> Cow<'_, str> {
    replace_references(text, |body, out| match body.strip_prefix('#') {
        Some(number) => Some(1 + push_numeric(number, out)?),
        None => push_named(body, out),
    })
}

/// ftfy's `unescape_html`: only references closed by `;`, some names also in capitals.
pub(crate) fn unescape_closed(text: &str) -> Cow<'_, str> {
    replace_references(text, |body, out| {
        let hash = usize::from(body.starts_with('#'));
        let n_name = body[hash..]
            .bytes()
            .take(MAX_CLOSED_NAME_BYTES + 1)
            .take_while(u8::is_ascii_alphanumeric)
            .count();
        let end = hash + n_name;
        if !(1..=MAX_CLOSED_NAME_BYTES).contains(&n_name) || body.as_bytes().get(end) != Some(&b';')
        {
            return None;
        }
        let name = &body[..=end];
        if hash == 1 {
            let start = out.len();
            let is_whole =
                push_numeric(&name[1..], out) == Some(end) && !out[start..].contains(';');
            if !is_whole {
                out.truncate(start);
                return None;
            }
        } else {
            out.push_str(find(&HTML5, name).or_else(|| find(&UPPERCASED, name))?);
        }
        Some(end + 1)
    })
}

/// Copies the text, asking `replace` at each `&` for the number of bytes it used of what follows.
fn replace_references(
    text: &str,
    replace: impl Fn(&str, &mut String) -> Option<usize>,
) -> Cow<'_, str> {
    if !text.contains('&') {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, body)) = rest.split_once('&') {
        out.push_str(before);
        match replace(body, &mut out) {
            Some(n_used) => rest = &body[n_used..],
            None => {
                out.push('&');
                rest = body;
            }
        }
    }
    out.push_str(rest);
    Cow::Owned(out)
}

/// Reads `123;`, `123`, `x7b;` or `X7b` (what follows `&#`) and returns its length in bytes.
fn push_numeric(text: &str, out: &mut String) -> Option<usize> {
    let (radix, prefix) = match text.as_bytes().first()? {
        b'x' | b'X' => (16, 1),
        _ => (10, 0),
    };
    let digits = text[prefix..].bytes().map_while(|b| char::from(b).to_digit(radix));
    let (mut code, mut end) = (0_u32, prefix);
    for digit in digits {
        code = code.saturating_mul(radix).saturating_add(digit);
        end += 1;
    }
    if end == prefix {
        return None;
    }
    out.extend(char_for(code));
    Some(end + usize::from(text.as_bytes().get(end) == Some(&b';')))
}

/// The character of a numeric reference; none for those that vanish.
fn char_for(code: u32) -> Option<char> {
    match code {
        0 => Some('\u{fffd}'),
        0x80..=0x9f => char::from_u32(u32::from(C1_AS_WINDOWS_1252[code as usize - 0x80])),
        0x1..=0x8 | 0xb | 0xe..=0x1f | 0x7f | 0xfdd0..=0xfdef => None,
        // The last two code points of each plane are no characters.
        0..=0x10_ffff if code & 0xfffe == 0xfffe => None,
        _ => Some(char::from_u32(code).unwrap_or('\u{fffd}')),
    }
}

/// Reads a name (what follows `&`) and returns the number of bytes that were used.
fn push_named(body: &str, out: &mut String) -> Option<usize> {
    let is_end = |c| matches!(c, '\t' | '\n' | '\u{c}' | ' ' | '<' | '&' | '#' | ';');
    let n_name = body
        .char_indices()
        .take(MAX_NAME_CHARS)
        .take_while(|&(_, c)| !is_end(c))
        .last()
        .map(|(at, c)| at + c.len_utf8())?;
    let n_whole = n_name + usize::from(body[n_name..].starts_with(';'));
    let lengths = std::iter::once(n_whole).chain((2..n_whole).rev());
    let found = lengths
        .filter(|&n| body.is_char_boundary(n))
        .find_map(|n| Some((n, find(&HTML5, &body[..n])?)));
    let (n_used, value) = found?;
    out.push_str(value);
    Some(n_used)
}

fn find(table: &[(&str, &'static str)], name: &str) -> Option<&'static str> {
    let at = table.binary_search_by(|&(key, _)| key.cmp(name)).ok()?;
    Some(table[at].1)
}
