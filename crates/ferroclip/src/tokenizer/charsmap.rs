//! The table of characters that SentencePiece's normalisation is made of (`precompiled_charsmap`), checked as a whole:
//! its reader, the crate `spm_precompiled`, believes what it says and panics in the middle of a text.
//!
//! In base64 it holds the bytes of a trie in a double array (a `u32`), the trie's units (`u32` each), and the texts that
//! take the place of others, each with a zero behind it.

/// Longest text that takes the place of another. Unicode's own (NFKC) are up to 33 bytes long.
const MAX_TEXT: usize = 1000;

/// The length of the longest text that takes the place of another, in bytes.
///
/// # Errors
/// When a way through the trie leaves the table.
pub(super) fn check(base64: &str) -> Result<usize, String> {
    let bytes = decoded(base64);
    let table = bytes.as_deref().and_then(Table::of);
    let longest = table.and_then(|table| table.longest());
    longest.ok_or_else(|| "its `precompiled_charsmap` is damaged".to_owned())
}

fn decoded(base64: &str) -> Option<Vec<u8>> {
    let digit = |c: u8| match c {
        b'A'..=b'Z' => Some(c - b'A'),
        b'a'..=b'z' => Some(c - b'a' + 26),
        b'0'..=b'9' => Some(c - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    };
    let mut bytes = Vec::with_capacity(base64.len() / 4 * 3 + 3);
    let (mut bits, mut n_bits) = (0u32, 0);
    for c in base64.trim_end_matches('=').bytes() {
        bits = bits << 6 | u32::from(digit(c)?);
        n_bits += 6;
        if n_bits >= 8 {
            n_bits -= 8;
            bytes.push((bits >> n_bits) as u8);
        }
    }
    Some(bytes)
}

struct Table<'a> {
    units: Vec<Unit>,
    texts: &'a str,
}

/// A unit of the double array, as Darts-clone lays it out.
#[derive(Clone, Copy)]
struct Unit(u32);

impl Unit {
    fn has_leaf(self) -> bool {
        self.0 >> 8 & 1 == 1
    }

    /// Where the text of a leaf begins.
    fn value(self) -> usize {
        (self.0 & 0x7fff_ffff) as usize
    }

    fn has_label(self, byte: usize) -> bool {
        (self.0 & 0x8000_00ff) as usize == byte
    }

    /// Distance to its children.
    fn offset(self) -> usize {
        ((self.0 >> 10) << ((self.0 & 1 << 9) >> 6)) as usize
    }
}

impl Table<'_> {
    fn of(bytes: &[u8]) -> Option<Table<'_>> {
        let (length, rest) = bytes.split_first_chunk::<4>()?;
        let n_bytes = u32::from_le_bytes(*length) as usize / 4 * 4;
        let (trie, texts) = rest.split_at_checked(n_bytes)?;
        let units = trie.as_chunks::<4>().0.iter().map(|&unit| Unit(u32::from_le_bytes(unit)));
        Some(Table { units: units.collect(), texts: std::str::from_utf8(texts).ok()? })
    }

    /// Walks all ways that a text can take.
    fn longest(&self) -> Option<usize> {
        let mut seen = vec![false; self.units.len()];
        let mut waiting = vec![self.units.first()?.offset()];
        let mut longest = 0;
        while let Some(node) = waiting.pop() {
            // Any byte may come next, and is looked up.
            if node | 0xff >= self.units.len() {
                return None;
            }
            if std::mem::replace(&mut seen[node], true) {
                continue;
            }
            for byte in 1..=0xff {
                let unit = self.units[node ^ byte];
                if !unit.has_label(byte) {
                    continue;
                }
                let next = node ^ byte ^ unit.offset();
                if unit.has_leaf() {
                    longest = longest.max(self.text_length(self.units.get(next)?.value())?);
                }
                waiting.push(next);
            }
        }
        Some(longest)
    }

    /// The length of a text, where it is one and not too long.
    fn text_length(&self, start: usize) -> Option<usize> {
        let text = self.texts.get(start..)?.as_bytes();
        let end = text.iter().take(MAX_TEXT + 1).position(|&byte| byte == 0);
        end.or_else(|| (text.len() <= MAX_TEXT).then_some(text.len()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The base64 of a table of these units and texts.
    fn table(units: &[u32], texts: &[u8]) -> String {
        let length = 4 * units.len() as u32;
        let units = units.iter().flat_map(|unit| unit.to_le_bytes());
        let bytes: Vec<u8> =
            length.to_le_bytes().into_iter().chain(units).chain(texts.iter().copied()).collect();
        encoded(&bytes)
    }

    fn encoded(bytes: &[u8]) -> String {
        let digits: Vec<char> = ('A'..='Z').chain('a'..='z').chain('0'..='9').collect();
        let digit =
            |n: u32| digits.get(n as usize).copied().unwrap_or(if n == 62 { '+' } else { '/' });
        let group = |bytes: &[u8]| {
            let bits = bytes.iter().fold(0u32, |bits, &byte| bits << 8 | u32::from(byte))
                << (8 * (3 - bytes.len()));
            (0..=bytes.len()).map(|i| digit(bits >> (18 - 6 * i) & 63)).collect::<String>()
        };
        bytes.chunks(3).map(group).collect()
    }

    /// `a` becomes the text at this place of the texts.
    fn of_a(value: u32) -> Vec<u32> {
        let mut units = vec![0; 512];
        // The root's children begin at 256; that of `a` has a leaf, 1 away.
        units[0] = 256 << 10;
        units[256 ^ 97] = 1 << 10 | 1 << 8 | 97;
        units[256 ^ 97 ^ 1] = value;
        units
    }

    #[test]
    fn texts_in_the_place_of_others_are_measured() {
        assert_eq!(check(&table(&of_a(0), b"abc\0de\0")), Ok(3));
        assert_eq!(check(&table(&of_a(4), b"abc\0de\0")), Ok(2));
        assert_eq!(check(&table(&of_a(7), b"abc\0de\0")), Ok(0));
    }

    #[test]
    fn tables_that_lead_outside_are_damaged() {
        let is_damaged = |table: &str| check(table).is_err();
        for nothing in ["", "AAAA", "AAAAAAAA", "BAAAAAAAAAA=", "not it"] {
            assert!(is_damaged(nothing), "{nothing}");
        }
        // Lengths of 2^32 - 1 and 2^31.
        assert!(is_damaged("/////wAAAAA=") && is_damaged("AAAAgAAAAAA="));
        // A text that is not there, one that begins within a letter, one without an end.
        assert!(is_damaged(&table(&of_a(8), b"abc\0de\0")));
        assert!(is_damaged(&table(&of_a(1), "ä\0".as_bytes())));
        assert!(is_damaged(&table(&of_a(0), &[b'a'; MAX_TEXT + 1])));
        assert!(is_damaged(&table(&of_a(0), b"\xff\0")));
        // Children outside, of the root and of `a`.
        assert!(is_damaged(&table(&of_a(0)[..256], b"abc\0")));
        let mut far = of_a(0);
        far[256 ^ 97] = 1 << 20 | 1 << 8 | 97;
        assert!(is_damaged(&table(&far, b"abc\0")));
    }
}
