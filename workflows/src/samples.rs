//! Inputs made up from a schema, to try a workflow with before anybody has given it one.
//!
//! Where a schema leaves a choice (a boolean, one of some values, a field that may be missing, the length of a list)
//! the first inputs take one choice each that differs from the usual, the others take any.

use serde_json::{Map, Value, json};

use crate::limits;

/// Inputs that may fit the schema, the usual one first. Whether each does is for the schema to say.
pub(crate) fn samples(schema: &Value) -> Vec<Value> {
    let mut usual = Choices { script: Vec::new(), any: None, made: Vec::new() };
    let mut found = Vec::new();
    let mut add = |value: Value| {
        if !found.contains(&value) && found.len() < limits::TRIES {
            found.push(value);
        }
    };
    add(make(schema, &mut usual, 0));
    let ways = usual.made;
    for (n, options) in ways.iter().enumerate() {
        for other in 1..*options {
            let mut script = vec![0; n];
            script.push(other);
            add(make(schema, &mut Choices { script, any: None, made: Vec::new() }, 0));
        }
    }
    // The least of everything, then anything.
    add(make(schema, &mut Choices { script: vec![usize::MAX; 200], any: None, made: Vec::new() }, 0));
    for seed in 1..=limits::TRIES as u64 {
        add(make(schema, &mut Choices { script: Vec::new(), any: Some(seed), made: Vec::new() }, 0));
    }
    found
}

/// Which way is taken where there are some; 0 is the usual one, the last one the least.
struct Choices {
    script: Vec<usize>,
    any: Option<u64>,
    made: Vec<usize>,
}

impl Choices {
    fn of(&mut self, options: usize) -> usize {
        let n = self.made.len();
        self.made.push(options);
        if let Some(seed) = self.any {
            // Any mixing will do, as long as it is the same every time.
            let mixed =
                (seed ^ (n as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            return (mixed >> 33) as usize % options.max(1);
        }
        self.script.get(n).copied().unwrap_or(0).min(options.saturating_sub(1))
    }
}

fn make(schema: &Value, choices: &mut Choices, depth: usize) -> Value {
    let get = |key: &str| schema.get(key);
    if depth > limits::INPUT_DEPTH {
        return Value::Null;
    }
    if let Some(value) = get("const") {
        return value.clone();
    }
    if let Some(values) = get("enum").and_then(Value::as_array).filter(|values| !values.is_empty()) {
        let n = choices.of(values.len());
        return values.get(n).cloned().unwrap_or_default();
    }
    let examples: Vec<_> =
        get("examples").and_then(Value::as_array).into_iter().flatten().chain(get("default")).collect();
    if !examples.is_empty() && get("type") != Some(&json!("boolean")) {
        let n = choices.of(examples.len());
        return examples.get(n).map(|value| (*value).clone()).unwrap_or_default();
    }
    for key in ["oneOf", "anyOf"] {
        if let Some(ways) = get(key).and_then(Value::as_array).filter(|ways| !ways.is_empty()) {
            let n = choices.of(ways.len());
            return ways.get(n).map(|way| make(way, choices, depth + 1)).unwrap_or_default();
        }
    }
    let kind = match get("type") {
        Some(Value::Array(kinds)) if !kinds.is_empty() => {
            let n = choices.of(kinds.len());
            kinds.get(n).and_then(Value::as_str)
        }
        kind => kind.and_then(Value::as_str),
    };
    match kind {
        Some("boolean") => Value::Bool(choices.of(2) == 0),
        Some("integer") => json!(number(schema).ceil() as i64),
        Some("number") => json!(number(schema)),
        Some("null") => Value::Null,
        Some("array") => {
            let size = |key: &str| get(key).and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok());
            let least = size("minItems").unwrap_or(0);
            let most = size("maxItems").unwrap_or(usize::MAX);
            let mut lengths = vec![2.clamp(least.min(most), most), 1.clamp(least.min(most), most), least];
            lengths.dedup();
            let length = lengths.get(choices.of(lengths.len())).copied().unwrap_or(least).min(limits::LIST);
            let items = get("items").unwrap_or(&Value::Null);
            (0..length).map(|n| distinct(make(items, choices, depth + 1), n)).collect()
        }
        Some("object") | None if get("properties").is_some() || kind.is_some() => {
            let required = get("required").and_then(Value::as_array).cloned().unwrap_or_default();
            let mut map = Map::new();
            for (name, field) in get("properties").and_then(Value::as_object).into_iter().flatten() {
                let is_required = required.iter().any(|one| one.as_str() == Some(name));
                if is_required || choices.of(2) == 0 {
                    map.insert(name.clone(), make(field, choices, depth + 1));
                }
            }
            Value::Object(map)
        }
        _ => Value::from(string(schema)),
    }
}

/// Items of a list are rarely all the same, and steps named after them must not be.
fn distinct(value: Value, n: usize) -> Value {
    match value {
        Value::String(text) if n > 0 => Value::from(format!("{text}-{n}")),
        Value::Number(number) if n > 0 => {
            number.as_i64().map_or(Value::Number(number), |i| json!(i.saturating_add(n as i64)))
        }
        Value::Object(map) => Value::Object(
            map.into_iter()
                .map(|(key, value)| (key, if value.is_string() { distinct(value, n) } else { value }))
                .collect(),
        ),
        value => value,
    }
}

fn number(schema: &Value) -> f64 {
    let bound = |key: &str| schema.get(key).and_then(Value::as_f64);
    let least = bound("minimum").or_else(|| bound("exclusiveMinimum").map(|least| least + 1.0));
    let most = bound("maximum").or_else(|| bound("exclusiveMaximum").map(|most| most - 1.0));
    let value = match (least, most) {
        (Some(least), _) => least.max(1.0).min(most.unwrap_or(f64::MAX)),
        (None, Some(most)) => most.min(1.0),
        (None, None) => 1.0,
    };
    match bound("multipleOf") {
        Some(of) if of > 0.0 => (value / of).ceil() * of,
        _ => value,
    }
}

fn string(schema: &Value) -> String {
    let size = |key: &str| schema.get(key).and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok());
    let text = match schema.get("format").and_then(Value::as_str) {
        Some("date-time") => "2030-01-01T00:00:00Z",
        Some("date") => "2030-01-01",
        Some("time") => "00:00:00Z",
        Some("uri" | "url") => "https://example.org/",
        Some("email") => "someone@example.org",
        Some("hostname") => "example.org",
        Some("ipv4") => "192.0.2.1",
        Some("ipv6") => "2001:db8::1",
        Some("uuid") => "00000000-0000-4000-8000-000000000000",
        Some("duration") => "PT1M",
        _ => "text",
    };
    let mut text = text.to_owned();
    while text.len() < size("minLength").unwrap_or(0).min(limits::TEXT) {
        text.push('x');
    }
    text.truncate(size("maxLength").unwrap_or(usize::MAX));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_choice_of_a_schema_is_taken_in_some_sample() {
        let schema = json!({ "type": "object", "required": ["live", "size", "disks"], "properties": {
            "live": { "type": "boolean" }, "note": { "type": "string" },
            "size": { "enum": ["small", "large", "huge"] },
            "disks": { "type": "array", "items": { "type": "object", "required": ["name"], "properties": { "name": { "type": "string" }, "fast": { "type": "boolean" } } } },
        } });
        let made = samples(&schema);
        assert!(made.len() > 8 && made.len() <= limits::TRIES);
        let some = |test: &dyn Fn(&Value) -> bool| assert!(made.iter().any(test), "{made:#?}");
        for live in [true, false] {
            for note in [true, false] {
                some(&|v| v["live"] == live && v.get("note").is_some() == note);
            }
        }
        for size in ["small", "large", "huge"] {
            some(&|v| v["size"] == size);
        }
        for length in 0..3 {
            some(&|v| v["disks"].as_array().unwrap().len() == length);
        }
        some(&|v| {
            v["disks"].as_array().unwrap().len() == 2 && v["disks"][0]["name"] != v["disks"][1]["name"]
        });
        assert_eq!(made, samples(&schema), "the same every time");
    }
}
