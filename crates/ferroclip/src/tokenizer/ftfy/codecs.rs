//! Bytes behind mojibake: the single-byte codecs, and the repairs that work on bytes.

use crate::tokenizer::tables::charmaps::C1_AS_WINDOWS_1252;

/// A single-byte encoding: ASCII, and 129 other characters (byte 0x1a is one of them, since the
/// sloppy codecs write U+FFFD as that byte).
#[derive(Debug)]
pub(crate) struct Charmap {
    /// Whether the codec is one of ftfy's sloppy ones, which lose characters to byte 0x1a.
    pub(crate) is_sloppy: bool,
    /// Whether a space may stand for a lost byte 0xa0. Not in MacRoman, where an en dash followed
    /// by a space would match.
    pub(crate) restores_a0: bool,
    /// The characters outside ASCII (and byte 0x1a's), sorted.
    pub(crate) chars: [u16; 129],
    /// The bytes of `chars`.
    pub(crate) bytes: [u8; 129],
}

impl Charmap {
    /// The bytes of `text`, or none if a character is not in this encoding.
    pub(crate) fn encode(&self, text: &[char]) -> Option<Vec<u8>> {
        text.iter().map(|&c| self.encode_char(c)).collect()
    }

    fn encode_char(&self, c: char) -> Option<u8> {
        let code = u16::try_from(u32::from(c)).ok()?;
        match u8::try_from(code) {
            Ok(byte) if byte < 0x80 && byte != 0x1a => Some(byte),
            _ => self.chars.binary_search(&code).ok().map(|i| self.bytes[i]),
        }
    }
}

/// A C1 control character as Windows-1252 shows its byte; unassigned bytes stay as they are.
pub(crate) fn c1_to_windows_1252(c: char) -> Option<char> {
    let index = u32::from(c).checked_sub(0x80)? as usize;
    let code = *C1_AS_WINDOWS_1252.get(index)?;
    char::from_u32(u32::from(code))
}

/// Puts back bytes 0xa0 that were turned into spaces inside of UTF-8 sequences.
pub(crate) fn restore_byte_a0(bytes: &[u8]) -> Vec<u8> {
    let mut with_a_grave = Vec::with_capacity(bytes.len() + 8);
    for (i, &byte) in bytes.iter().enumerate() {
        with_a_grave.push(byte);
        if byte == 0xc3 && is_a_grave_word(&bytes[i..]) {
            with_a_grave.push(0xa0);
        }
    }
    let mut out = Vec::with_capacity(with_a_grave.len());
    let mut rest = with_a_grave.as_slice();
    while let Some(&first) = rest.first() {
        let n = altered_utf8_len(rest);
        if n == 0 {
            out.push(first);
            rest = &rest[1..];
        } else {
            out.extend(rest[..n].iter().map(|&b| if b == b' ' { 0xa0 } else { b }));
            rest = &rest[n..];
        }
    }
    out
}

/// Whether these bytes are a lost "à" that is a word of its own, and so keeps its space; not the
/// Portuguese words that begin with it.
fn is_a_grave_word(bytes: &[u8]) -> bool {
    let exceptions: [&[u8]; 5] = [b" ", b"quele", b"quela", b"quilo", b"s "];
    bytes.strip_prefix(b"\xc3 ").is_some_and(|rest| !exceptions.iter().any(|e| rest.starts_with(e)))
}

/// Length of the UTF-8 sequence at the start in which one byte 0xa0 has become a space; 0 if none.
fn altered_utf8_len(bytes: &[u8]) -> usize {
    match *bytes {
        [0xc2 | 0xc3 | 0xc5 | 0xce | 0xd0 | 0xd9, b' ', ..] => 2,
        [0xe2 | 0xe3, b' ', 0x80..=0x84 | 0x86..=0x9f | 0xa1..=0xbf, ..]
        | [0xe0..=0xe3, 0x80..=0x84 | 0x86..=0x9f | 0xa1..=0xbf, b' ', ..] => 3,
        [0xf0, b' ', 0x80..=0xbf, 0x80..=0xbf, ..]
        | [0xf0, 0x80..=0xbf, b' ', 0x80..=0xbf, ..]
        | [0xf0, 0x80..=0xbf, 0x80..=0xbf, b' ', ..] => 4,
        _ => 0,
    }
}

/// Replaces UTF-8 sequences of which a byte was lost (0x1a, at most one `?`) by U+FFFD.
pub(crate) fn replace_lossy_sequences(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some(&first) = rest.first() {
        let n = lossy_utf8_len(rest);
        if n == 0 {
            out.push(first);
        } else {
            out.extend_from_slice("\u{fffd}".as_bytes());
        }
        rest = &rest[n.max(1)..];
    }
    out
}

/// Length of the lossy sequence at the start; 0 if none. The order of the arms is ftfy's.
fn lossy_utf8_len(bytes: &[u8]) -> usize {
    match *bytes {
        [0xc2..=0xdf, 0x1a, ..] | [0xc2 | 0xc3, b'?', ..] => 2,
        [0xed, 0xa0..=0xaf, 0x1a | b'?', 0xed, 0xb0..=0xbf, 0x1a | b'?' | 0x80..=0xbf, ..]
        | [0xed, 0xa0..=0xaf, 0x80..=0xbf, 0xed, 0xb0..=0xbf, 0x1a | b'?', ..] => 6,
        [0xe0..=0xef, 0x1a | b'?', 0x1a | 0x80..=0xbf, ..]
        | [0xe0..=0xef, 0x1a | 0x80..=0xbf, 0x1a | b'?', ..] => 3,
        [0xf0..=0xf4, 0x1a | b'?', 0x1a | 0x80..=0xbf, 0x1a | 0x80..=0xbf, ..]
        | [0xf0..=0xf4, 0x1a | 0x80..=0xbf, 0x1a | b'?', 0x1a | 0x80..=0xbf, ..]
        | [0xf0..=0xf4, 0x1a | 0x80..=0xbf, 0x1a | 0x80..=0xbf, 0x1a | b'?', ..] => 4,
        [0x1a, ..] => 1,
        _ => 0,
    }
}

/// Decodes UTF-8; with CESU-8 pairs and Java's two-byte zero if byte 0xed or 0xc0 occurs.
pub(crate) fn decode(bytes: Vec<u8>) -> Option<String> {
    if !bytes.iter().any(|&b| b == 0xed || b == 0xc0) {
        return String::from_utf8(bytes).ok();
    }
    let mut out = String::with_capacity(bytes.len());
    let mut plain_start = 0;
    let mut at = 0;
    while at < bytes.len() {
        let Some((c, n)) = variant_at(&bytes[at..]) else {
            at += 1;
            continue;
        };
        out.push_str(str::from_utf8(&bytes[plain_start..at]).ok()?);
        out.push(c);
        at += n;
        plain_start = at;
    }
    out.push_str(str::from_utf8(&bytes[plain_start..]).ok()?);
    Some(out)
}

/// The character and length of a sequence that is in the variants of UTF-8 only.
///
/// A final line feed counts as the last byte of a sequence, because `$` in the reference's
/// patterns also matches before it.
fn variant_at(bytes: &[u8]) -> Option<(char, usize)> {
    match *bytes {
        [0xc0, 0x80, ..] | [0xc0, b'\n'] => Some(('\0', 2)),
        [0xed, a @ 0xa0..=0xaf, b @ 0x80..=0xbf, 0xed, c @ 0xb0..=0xbf, d @ 0x80..=0xbf, ..]
        | [0xed, a @ 0xa0..=0xaf, b @ 0x80..=0xbf, 0xed, c @ 0xb0..=0xbf, d @ b'\n'] => {
            let high = (u32::from(a & 0x0f) << 16) | (u32::from(b & 0x3f) << 10);
            let low = (u32::from(c & 0x0f) << 6) | u32::from(d & 0x3f);
            char::from_u32(0x1_0000 + (high | low)).map(|c| (c, 6))
        }
        _ => None,
    }
}
