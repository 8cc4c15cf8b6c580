//! Changes of fields: by `a.b=value` on the command line, and between the parts of a run.

use toml::Value;

/// Fields that may change between the parts of a run.
const MAY_CHANGE: [&str; 5] =
    ["run.epochs", "run.out", "run.threads", "optimizer.lr", "optimizer.clip_norm"];

pub(super) fn compare(
    path: &str,
    before: Option<&Value>,
    now: Option<&Value>,
    out: &mut Vec<String>,
) {
    if before == now || MAY_CHANGE.contains(&path) {
        return;
    }
    let below = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
    match (before, now) {
        (Some(Value::Table(before)), Some(Value::Table(now))) => {
            let added = now.keys().filter(|key| !before.contains_key(*key));
            for key in before.keys().chain(added) {
                compare(&below(key), before.get(key), now.get(key), out);
            }
        }
        (Some(Value::Array(before)), Some(Value::Array(now)))
            if before.iter().chain(now).any(Value::is_table) =>
        {
            for i in 0..before.len().max(now.len()) {
                compare(&below(&i.to_string()), before.get(i), now.get(i), out);
            }
        }
        _ => {
            let show = |value: Option<&Value>| value.map_or("nothing".to_owned(), Value::to_string);
            out.push(format!("`{path}` was {}, is {}", show(before), show(now)));
        }
    }
}

/// Applies `a.b=value`.
pub(super) fn set(root: &mut Value, text: &str) -> Result<(), String> {
    let (path, right) = text.split_once('=').ok_or("expected `a.b=value`")?;
    let parsed: Result<toml::Table, _> = toml::from_str(&format!("value = {right}"));
    let value = parsed.ok().filter(|table| table.len() == 1).and_then(|mut t| t.remove("value"));
    let value = value.unwrap_or_else(|| Value::String(right.to_owned()));
    let mut place = root;
    for part in path.trim().split('.') {
        place = match place {
            Value::Table(table) => {
                table.entry(part).or_insert_with(|| Value::Table(toml::Table::new()))
            }
            Value::Array(list) => {
                let n = list.len();
                let item = part.parse().ok().and_then(|i: usize| list.get_mut(i));
                item.ok_or(format!("`{part}` is no place in a list of {n}"))?
            }
            other => return Err(format!("`{part}` lies in a {}", other.type_str())),
        };
    }
    *place = value;
    Ok(())
}
