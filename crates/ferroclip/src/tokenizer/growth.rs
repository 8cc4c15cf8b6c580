//! What the rules of a `tokenizer.json` can make of a text: a few of them in a row make gigabytes of a letter, and a
//! template can name a token that nobody defines.

use serde::Deserialize;
use serde_json::Value;

use super::rules::parsed;
use super::{TokenizerError, charsmap};

/// The most bytes that a byte of a text can become. In files in use a space becomes three, a ligature 33.
const MAX_GROWTH: usize = 4096;
/// The most ids that are put around a text. Files in use put one or two there.
const MAX_ADDED: usize = 1 << 16;

#[derive(Deserialize)]
struct Rules {
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    post_processor: Value,
    #[serde(default)]
    model: Model,
}

#[derive(Default, Deserialize)]
struct Model {
    /// The share of merges that are left out at random.
    #[serde(default)]
    dropout: Option<f64>,
}

/// The most bytes that a byte of a text becomes by these rules, which keep texts within bounds, and whose templates are
/// whole.
///
/// # Errors
/// When they do not, or the text holds no rules.
pub(super) fn check(json: &str) -> Result<usize, TokenizerError> {
    let rules: Rules = parsed(json)?;
    let refused = |reason: String| Err(TokenizerError::Rules(reason));
    if let Some(token) = undefined(&rules.post_processor) {
        return refused(format!(
            "its template names `{}`, which it does not define",
            token.escape_debug()
        ));
    }
    if let Some(dropout) = rules.model.dropout.filter(|dropout| *dropout != 0.0) {
        return refused(format!(
            "its `dropout` of {dropout} gives other ids each time; set it to null"
        ));
    }
    let grown = growth(&rules.normalizer).saturating_mul(growth(&rules.pre_tokenizer));
    let added = added(&rules.post_processor);
    match () {
        () if grown > MAX_GROWTH => {
            refused(format!("its rules make a text {grown} times as long, limit {MAX_GROWTH}"))
        }
        () if added > MAX_ADDED => {
            refused(format!("its rules add {added} ids to a text, limit {MAX_ADDED}"))
        }
        () => Ok(grown),
    }
}

/// Bytes that the rule makes of one at most. Which rule it is its fields tell: old files name no types.
fn growth(rule: &Value) -> usize {
    let length = |key: &str| rule[key].as_str().map_or(0, str::len);
    let table = rule["precompiled_charsmap"].as_str().map_or(Ok(0), charsmap::check);
    // A pattern that matches nothing puts its content before and behind every byte; whether an expression does, nobody
    // can tell.
    let matches_nothing = rule["pattern"]["String"] == "" || rule["pattern"]["Regex"].is_string();
    let replaced = match length("content") {
        content if content > 0 && matches_nothing => 2 * content + 1,
        content => content,
    };
    // Letters take the place of bytes, of two bytes each.
    let letters = if rule["type"] == "ByteLevel" { 2 } else { 1 };
    let own = [replaced, length("prepend") + 1, letters, table.unwrap_or(usize::MAX)];
    let own = own.into_iter().max().unwrap_or(1);
    let parts = list(&rule["normalizers"]).chain(list(&rule["pretokenizers"]));
    parts.map(growth).fold(own, usize::saturating_mul)
}

/// Ids that the rule puts around a text at most.
fn added(rule: &Value) -> usize {
    let tokens = rule["special_tokens"].as_object().into_iter().flatten();
    let longest = tokens.map(|(_, token)| list(&token["ids"]).count()).max().unwrap_or(1);
    let own = list(&rule["single"]).count().saturating_mul(longest);
    list(&rule["processors"]).map(added).fold(own, usize::saturating_add)
}

/// A token that a template names and does not define: the crate panics where it is to be put.
fn undefined(rule: &Value) -> Option<&str> {
    let items = list(&rule["single"]).chain(list(&rule["pair"]));
    let mut named = items.filter_map(|item| item["SpecialToken"]["id"].as_str());
    let own = named.find(|token| rule["special_tokens"].get(token).is_none());
    own.or_else(|| list(&rule["processors"]).find_map(undefined))
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn rules_multiply() {
        let replace = |n: usize| json!({"pattern": {"String": "a"}, "content": "a".repeat(n)});
        let check =
            |rules: Vec<Value>| check(&json!({"normalizer": {"normalizers": rules}}).to_string());
        assert!(check(vec![replace(64), replace(64), replace(0), json!({"type": "NFC"})]).is_ok());
        let shown = check(vec![replace(64), replace(65)]).expect_err("too long").to_string();
        assert!(shown.contains("4160 times"), "{shown}");
        assert!(check(vec![json!({"prepend": "x".repeat(4096)})]).is_err());
        for pattern in [json!({"String": ""}), json!({"Regex": "x*"})] {
            let doubles = json!({"pattern": pattern, "content": "a"});
            assert!(check(vec![doubles.clone(); 7]).is_ok());
            assert!(check(vec![doubles; 8]).is_err());
        }
        let letters = json!({"type": "ByteLevel"});
        assert!(check(vec![letters.clone(); 12]).is_ok());
        assert!(check(vec![letters.clone(); 13]).is_err());
        let before = json!({"pre_tokenizer": {"pretokenizers": vec![letters; 13]}});
        assert!(super::check(&before.to_string()).is_err());
        assert!(check(vec![json!({"precompiled_charsmap": "AAAAAAAA"})]).is_err());
    }

    #[test]
    fn ids_are_the_same_each_time() {
        let check =
            |dropout: Value| super::check(&json!({"model": {"dropout": dropout}}).to_string());
        assert!(check(Value::Null).is_ok() && check(json!(0.0)).is_ok());
        assert!(check(json!(0.5)).is_err());
    }

    #[test]
    fn ids_around_a_text_are_counted() {
        let check = |n: usize, n_ids: usize| {
            let single = vec![json!({"SpecialToken": {"id": "</s>", "type_id": 0}}); n];
            let token = json!({"id": "</s>", "ids": vec![1; n_ids], "tokens": ["</s>"]});
            let rule = json!({"single": single, "special_tokens": {"</s>": token}});
            super::check(&json!({"post_processor": {"processors": [rule]}}).to_string())
        };
        assert!(check(2, 1).is_ok());
        assert!(check(300, 300).is_err());
    }

    #[test]
    fn templates_name_tokens_that_they_define() {
        let check = |name: &str| {
            let single = [json!({"SpecialToken": {"id": name, "type_id": 0}})];
            let rule = json!({"single": single, "special_tokens": {"</s>": {"ids": [1]}}});
            super::check(&json!({"post_processor": {"processors": [rule]}}).to_string())
        };
        assert!(check("</s>").is_ok());
        let shown = check("<s>").expect_err("not defined").to_string();
        assert!(shown.contains("`<s>`"), "{shown}");
    }
}
