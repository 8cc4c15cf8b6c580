//! A look at a `tokenizer.json` before anything of it is kept.
//!
//! What a program holds of JSON is up to a hundred times as long as the text, and a pattern of ten characters can take
//! megabytes once it is compiled. So values and patterns are counted first. Depth is bounded by `serde_json`.

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};

use super::{TokenizerError, charsmap};

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
/// Longest token, in bytes. A vocabulary may be kept as a tree of its letters, which is walked by recursion.
const MAX_TOKEN: usize = 1000;
/// The most entries of a vocabulary that is an object, and what else is one in a model.
const MAX_ENTRIES: usize = 1_000_000;
/// The most bytes of names and texts beside the model. A token that is added has about a hundred, and takes kilobytes once
/// it is read; Gemma's vocabulary has some hundreds of them.
const MAX_TEXTS: usize = 1 << 20;
/// A table of characters in base64, see [`charsmap`].
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
    entries: usize,
    texts: usize,
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

    fn text<E: Error>(&mut self, place: &Place, text: &str) -> Result<(), E> {
        match place {
            Place::Model if text.len() > MAX_TOKEN => {
                let length = text.len();
                Err(self.refuse(format!("a token takes {length} bytes, limit {MAX_TOKEN}")))
            }
            Place::Model | Place::Charsmap => Ok(()),
            Place::Top | Place::Rules => {
                self.texts += text.len();
                match self.texts > MAX_TEXTS {
                    true => Err(self.refuse(format!(
                        "its texts beside its model take more than {MAX_TEXTS} bytes"
                    ))),
                    false => Ok(()),
                }
            }
        }
    }

    /// One more entry of an object in the model.
    fn entry<E: Error>(&mut self) -> Result<(), E> {
        self.entries += 1;
        match self.entries > MAX_ENTRIES {
            true => Err(self.refuse(format!("its model holds more than {MAX_ENTRIES} entries"))),
            false => Ok(()),
        }
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
            && let Err(reason) = charsmap::check(text)
        {
            return Err(self.counts.refuse(reason));
        }
        self.counts.text(&self.place, text)?;
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
            counts.text(&place, &key)?;
            match below {
                Place::Model => counts.entry()?,
                _ => counts.key(&key)?,
            }
            entries.next_value_seed(Skim { counts: &mut *counts, place: below })?;
        }
        Ok(())
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
    fn long_texts_are_refused() {
        let long = "a".repeat(MAX_TOKEN + 1);
        for model in [format!(r#"["{long}"]"#), format!(r#"{{"{long}": 0}}"#)] {
            let json = format!(r#"{{"model": {model}}}"#);
            assert!(refused(&json).contains("a token takes 1001 bytes"), "{json}");
        }
        assert!(check(&format!(r#"{{"model": ["{}"]}}"#, &long[1..]), 10).is_ok());
        assert!(check(&format!(r#"{{"added_tokens": ["{long}"]}}"#), 10).is_ok());
        let text = "a".repeat(MAX_TEXTS + 1);
        assert!(
            refused(&format!(r#"{{"added_tokens": ["{text}"]}}"#)).contains("beside its model")
        );
    }
}
