//! `backstay config show`: TOML with the origin of each line, or JSON.

use serde_json::{Value, json};

use super::Loaded;

/// Every setting with its origin.
pub(crate) fn show(loaded: &Loaded, as_json: bool) -> String {
    let config = serde_json::to_value(&loaded.config).unwrap_or_default();
    let mut settings = Vec::new();
    leaves(&config, String::new(), &mut settings);
    if as_json {
        let list: Vec<_> = settings
            .into_iter()
            .map(|(key, value)| json!({ "origin": loaded.origin(&key), "key": key, "value": value }))
            .collect();
        return format!("{:#}\n", Value::from(list));
    }
    // TOML has no word for what is not set.
    settings.retain(|(_, value)| !value.is_null());
    // Settings without a table come first, or they would belong to the table before them.
    settings.sort_by_key(|(key, _)| key.contains('.'));
    let lines: Vec<_> = settings
        .iter()
        .map(|(key, value)| {
            let (table, name) = key.split_once('.').unwrap_or(("", key));
            (table, format!("{name} = {}", toml(value)), loaded.origin(key))
        })
        .collect();
    let width = lines.iter().map(|(_, line, _)| line.chars().count()).max().unwrap_or(0).min(50);
    let (mut out, mut current) = (String::new(), "");
    for (table, line, origin) in &lines {
        if *table != current {
            out += &format!("\n[{table}]\n");
            current = table;
        }
        out += &format!("{line:width$}  # {origin}\n");
    }
    out
}

/// A value as TOML writes it in one line.
fn toml(value: &Value) -> String {
    match value {
        Value::Array(items) => format!("[{}]", items.iter().map(toml).collect::<Vec<_>>().join(", ")),
        Value::Object(map) => {
            let pairs: Vec<_> =
                map.iter().map(|(key, value)| format!("{} = {}", json!(key), toml(value))).collect();
            format!("{{ {} }}", pairs.join(", "))
        }
        other => other.to_string(),
    }
}

fn leaves(value: &Value, key: String, out: &mut Vec<(String, Value)>) {
    match value {
        Value::Object(map) => {
            for (name, value) in map {
                let key = if key.is_empty() { name.clone() } else { format!("{key}.{name}") };
                leaves(value, key, out);
            }
        }
        // What is left out has no line, as in a file.
        Value::Null => {}
        value => out.push((key, value.clone())),
    }
}
