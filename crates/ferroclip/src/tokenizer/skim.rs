//! A look at a `tokenizer.json` before anything of it is kept.
//!
//! What a program holds of JSON is up to a hundred times as long as the text, and a pattern of ten characters can take
//! megabytes once it is compiled. So values and patterns are counted first. Depth is bounded by `serde_json`.

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};

use super::TokenizerError;

/// The most values. Gemma's vocabulary, SigLIP2's and the largest in use, has 2.0 million: an id for each of 256,000
/// tokens, and 580,000 merges that are two strings in a list.
pub(super) const MAX_VALUES: usize = 2_500_000;
/// The most values where a file is held as a tree. CLIP's has 200,000.
pub(super) const MAX_TREE: usize = 500_000;
/// The most values outside `model`, which all are held as a tree.
const MAX_RULES: usize = 200_000;
/// The most regular expressions; each may take tens of megabytes. Files in use have up to five.
const MAX_REGEXES: usize = 8;
/// The most patterns that are plain strings.
const MAX_STRINGS: usize = 64;
/// A table of characters in base64, see [`check_charsmap`].
const CHARSMAP: &str = "precompiled_charsmap";

/// Whether a text is JSON of at most `max_values` values.
///
/// # Errors
/// When it is no JSON, or would take too much memory.
pub(super) fn check(json: &str, max_values: usize) -> Result<(), TokenizerError> {
    let mut counts = Counts { max_values, ..Counts::default() };
    let mut input = serde_json::Deserializer::from_str(json);
    let skimmed = Skim { counts: &mut counts, place: Place::Top }.deserialize(&mut input);
    match skimmed.and_then(|()| input.end()) {
        Ok(()) => Ok(()),
        Err(error) => {
            Err(counts.refusal.map_or(TokenizerError::Json(error), TokenizerError::Rules))
        }
    }
}

#[derive(Default)]
struct Counts {
    max_values: usize,
    values: usize,
    rules: usize,
    regexes: usize,
    strings: usize,
    /// Why the text is refused, where it is JSON.
    refusal: Option<String>,
}

impl Counts {
    /// Stops at this text.
    fn refuse<E: Error>(&mut self, reason: String) -> E {
        self.refusal.get_or_insert(reason);
        E::custom("refused")
    }

    fn value<E: Error>(&mut self, place: &Place) -> Result<(), E> {
        self.values += 1;
        self.rules += usize::from(!matches!(place, Place::Model));
        if self.values > self.max_values {
            return Err(self.refuse(format!("it holds more than {} values", self.max_values)));
        }
        if self.rules > MAX_RULES {
            return Err(
                self.refuse(format!("it holds more than {MAX_RULES} values beside its model"))
            );
        }
        Ok(())
    }

    fn key<E: Error>(&mut self, key: &str) -> Result<(), E> {
        self.regexes += usize::from(key == "Regex");
        self.strings += usize::from(key == "String");
        if self.regexes > MAX_REGEXES || self.strings > MAX_STRINGS {
            return Err(self.refuse(format!(
                "it holds more than {MAX_REGEXES} regular expressions or {MAX_STRINGS} other patterns"
            )));
        }
        Ok(())
    }
}

/// Where a value stands.
#[derive(Clone, Copy)]
enum Place {
    Top,
    /// Inside `model`, whose vocabulary is long and whose tokens may be called anything.
    Model,
    Rules,
    Charsmap,
}

impl Place {
    fn below(self, key: &str) -> Place {
        match self {
            Place::Top if key == "model" => Place::Model,
            Place::Model => Place::Model,
            _ if key == CHARSMAP => Place::Charsmap,
            _ => Place::Rules,
        }
    }
}

/// Passes over one value.
struct Skim<'a> {
    counts: &'a mut Counts,
    place: Place,
}

impl<'de> DeserializeSeed<'de> for Skim<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Skim<'_> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        self.counts.value(&self.place)
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<(), E> {
        self.counts.value(&self.place)
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<(), E> {
        self.counts.value(&self.place)
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<(), E> {
        self.counts.value(&self.place)
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<(), E> {
        self.counts.value(&self.place)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<(), E> {
        if matches!(self.place, Place::Charsmap)
            && let Err(reason) = check_charsmap(text)
        {
            return Err(self.counts.refuse(reason));
        }
        self.counts.value(&self.place)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let Skim { counts, place } = self;
        counts.value(&place)?;
        let place = place.below("");
        while items.next_element_seed(Skim { counts: &mut *counts, place })?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        let Skim { counts, place } = self;
        counts.value(&place)?;
        while let Some(key) = entries.next_key::<String>()? {
            let below = place.below(&key);
            if !matches!(below, Place::Model) {
                counts.key(&key)?;
            }
            entries.next_value_seed(Skim { counts: &mut *counts, place: below })?;
        }
        Ok(())
    }
}

/// A table of characters begins with its length in bytes, which its reader believes and takes eight bytes for four.
fn check_charsmap(base64: &str) -> Result<(), String> {
    let digit = |c: u8| match c {
        b'A'..=b'Z' => Some(c - b'A'),
        b'a'..=b'z' => Some(c - b'a' + 26),
        b'0'..=b'9' => Some(c - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    };
    // Six digits hold 36 bits, of which the first 32 are the length, the lowest byte first.
    let head = base64.bytes().take(6).map(digit);
    let bits = head.collect::<Option<Vec<u8>>>().filter(|digits| digits.len() == 6);
    let bits = bits.map(|digits| digits.iter().fold(0u64, |bits, &d| bits << 6 | u64::from(d)));
    let length = bits.map(|bits| u64::from(((bits >> 4) as u32).swap_bytes()));
    match length {
        Some(length) if length <= base64.len() as u64 => Ok(()),
        _ => Err(format!("its `{CHARSMAP}` is damaged")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(json: &str) -> String {
        check(json, 10).expect_err("too much").to_string()
    }

    #[test]
    fn values_and_patterns_are_counted() {
        assert!(
            check(r#"{"model": {"vocab": {"a": 0, "Regex": 1}}, "x": [null, -1, 0.5]}"#, 10)
                .is_ok()
        );
        assert!(refused("[0, 0, 0, 0, 0, 0, 0, 0, 0, 0]").contains("more than 10 values"));
        assert!(refused("[[[[[[[[[[[]]]]]]]]]]]").contains("more than 10 values"));
        assert!(matches!(check("[0", 10), Err(TokenizerError::Json(_))));
        assert!(matches!(check("[0] 1", 10), Err(TokenizerError::Json(_))));
        let many = |key: &str, n: usize| {
            let items = vec![format!(r#"{{"{key}": "a"}}"#); n].join(",");
            check(&format!(r#"{{"normalizer": [{items}]}}"#), MAX_TREE).is_ok()
        };
        assert!(many("Regex", MAX_REGEXES) && !many("Regex", MAX_REGEXES + 1));
        assert!(many("String", MAX_STRINGS) && !many("String", MAX_STRINGS + 1));
        let rules = format!("[{}0]", "0,".repeat(MAX_RULES));
        assert!(check(&rules, MAX_VALUES).is_err());
        let model = format!(r#"{{"model": {rules}}}"#);
        assert!(check(&model, MAX_VALUES).is_ok());
    }

    #[test]
    fn tables_that_announce_more_than_they_hold_are_refused() {
        let table = |base64: &str| {
            let json = format!(r#"{{"normalizer": {{"{CHARSMAP}": "{base64}"}}}}"#);
            check(&json, 10).is_ok()
        };
        // Lengths of 4 and of 2^32 - 1 and 2^31.
        assert!(table("BAAAAAAAAAA="));
        assert!(!table("/////wAAAAA="));
        assert!(!table("AAAAgAAAAAA="));
        assert!(!table("") && !table("BAA=") && !table("not it"));
    }
}
