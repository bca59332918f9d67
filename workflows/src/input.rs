//! What a workflow takes: declared in short or as JSON Schema, filled up with defaults, and bounded.

use serde_json::{Map, Value, json};

use crate::document::{Kind, Node};
use crate::limits;
use crate::problem::{Mark, Problem, Problems, Rule, clipped, is_hostile};

/// The inputs of a workflow.
#[derive(Debug)]
pub(crate) struct Inputs {
    schema: Value,
    validator: jsonschema::Validator,
}

impl Inputs {
    /// Reads the short form: `name: string`, `hosts: string[]`, `note: string?`, or a JSON Schema for each, with
    /// `optional: true` where it may be missing.
    pub(crate) fn read_short(node: &Node, problems: &mut Problems) -> Option<Self> {
        let Kind::Map(_) = &node.kind else {
            let message = format!("\"input\" is a map from names to what they are, not {}", node.what());
            problems.add(Problem::new(Rule::Schema, "input", message).at(node.mark));
            return None;
        };
        let before = problems.any();
        let schema = object(node, "input", problems);
        if problems.any() && !before {
            return None;
        }
        Self::of(schema, node, "input", problems)
    }

    /// Reads a JSON Schema.
    pub(crate) fn read_schema(node: &Node, problems: &mut Problems) -> Option<Self> {
        let mut schema = node.value();
        if schema.get("type") != Some(&json!("object"))
            || schema.get("properties").and_then(Value::as_object).is_none()
        {
            let message = "\"input_schema\" has \"type: object\" and \"properties\"";
            problems.add(Problem::new(Rule::Schema, "input_schema", message).at(node.mark));
            return None;
        }
        close(&mut schema, 0);
        Self::of(schema, node, "input_schema", problems)
    }

    /// What a type of Rust takes.
    pub(crate) fn of_type<T: schemars::JsonSchema>() -> Option<Self> {
        let schema = schemars::schema_for!(T).to_value();
        let validator = validator(&schema).ok()?;
        Some(Self { schema, validator })
    }

    /// A workflow that takes nothing.
    pub(crate) fn none() -> Option<Self> {
        let schema = json!({ "type": "object", "properties": {}, "additionalProperties": false });
        let validator = validator(&schema).ok()?;
        Some(Self { schema, validator })
    }

    fn of(schema: Value, node: &Node, place: &str, problems: &mut Problems) -> Option<Self> {
        let mut names = Vec::new();
        for name in schema.get("properties").and_then(Value::as_object).into_iter().flat_map(Map::keys) {
            if !is_name(name) {
                names.push(name.clone());
            }
        }
        for name in names {
            let message = format!(
                "the input \"{}\" cannot be named in an expression; use letters, digits and '_'",
                clipped(&name)
            );
            problems.add(Problem::new(Rule::Name, place, message).at(node.mark));
        }
        let validator = match validator(&schema) {
            Ok(validator) => validator,
            Err(error) => {
                problems.add(
                    Problem::new(Rule::Schema, place, format!("is no JSON Schema: {error}")).at(node.mark),
                );
                return None;
            }
        };
        let inputs = Self { schema, validator };
        inputs.judge_defaults(node, place, problems);
        Some(inputs)
    }

    fn judge_defaults(&self, node: &Node, place: &str, problems: &mut Problems) {
        for (name, field) in self.fields() {
            let Some(default) = field.get("default") else { continue };
            let at = mark_of(node, name).or(node.mark);
            let wrong = match validator(field) {
                Ok(validator) => validator.iter_errors(default).next().map(|error| error.to_string()),
                Err(_) => None,
            };
            if let Some(wrong) = wrong {
                let message = format!("its default does not fit: {wrong}");
                problems.add(Problem::new(Rule::Schema, format!("{place}.{name}"), message).at(at));
            }
        }
    }

    /// The JSON Schema of the whole input.
    pub(crate) fn schema(&self) -> &Value {
        &self.schema
    }

    /// The declared inputs.
    pub(crate) fn fields(&self) -> impl Iterator<Item = (&String, &Value)> {
        self.schema.get("properties").and_then(Value::as_object).into_iter().flatten()
    }

    /// The input with its defaults, if it is what the workflow takes. What is optional and missing is null.
    pub(crate) fn accept(&self, input: &Value) -> Result<Value, Vec<Problem>> {
        let mut problems = Problems::default();
        let Value::Object(given) = input else {
            return Err(vec![Problem::new(Rule::Input, "", "an input is a JSON object")]);
        };
        bounded(input, &mut problems);
        if problems.any() {
            return Err(problems.into_list());
        }
        let declared: Vec<_> = self.fields().map(|(name, _)| name.as_str()).collect();
        for name in given.keys().filter(|name| !declared.contains(&name.as_str())) {
            let message = match declared.as_slice() {
                [] => "is no input of this workflow; it takes none".to_owned(),
                known => format!("is no input of this workflow; there are {}", known.join(", ")),
            };
            problems.add(Problem::new(Rule::Input, clipped(name), message));
        }
        let mut input = input.clone();
        fill(&self.schema, &mut input, 0);
        for error in self.validator.iter_errors(&input) {
            let keyword = error.schema_path().to_string();
            let place = place(&error.instance_path().to_string());
            if keyword == "/additionalProperties" {
                continue;
            }
            problems.add(Problem::new(Rule::Input, place, error.to_string()));
            if problems.full() {
                break;
            }
        }
        if problems.any() {
            return Err(problems.into_list());
        }
        if let Value::Object(map) = &mut input {
            for name in declared {
                map.entry(name).or_insert(Value::Null);
            }
        }
        Ok(input)
    }
}

/// Patterns are matched in linear time, and no schema is fetched from anywhere.
fn validator(schema: &Value) -> Result<jsonschema::Validator, String> {
    jsonschema::options()
        .with_pattern_options(jsonschema::PatternOptions::regex().size_limit(1 << 20))
        .build(schema)
        .map_err(|error| error.to_string())
}

fn is_name(name: &str) -> bool {
    let starts = name.starts_with(|c: char| c.is_ascii_alphabetic());
    starts && name.len() <= 100 && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

fn mark_of(node: &Node, name: &str) -> Option<Mark> {
    let fields = node.get("properties").unwrap_or(node);
    fields.entries().iter().find(|(key, _)| key.text == name).and_then(|(key, _)| key.mark)
}

/// The schema of an object whose fields are in the short form.
fn object(node: &Node, place: &str, problems: &mut Problems) -> Value {
    let mut properties = Map::new();
    let mut required = Vec::new();
    for (key, field) in node.entries() {
        let place = format!("{place}.{}", key.text);
        let (schema, optional) = field_of(field, &place, problems);
        if !optional && schema.get("default").is_none() {
            required.push(Value::from(key.text.as_str()));
        }
        properties.insert(key.text.clone(), schema);
    }
    json!({ "type": "object", "properties": properties, "required": required, "additionalProperties": false })
}

/// The schema of one field, and whether it may be missing.
fn field_of(node: &Node, place: &str, problems: &mut Problems) -> (Value, bool) {
    match &node.kind {
        Kind::Text(text) => {
            let (kind, optional) = text.strip_suffix('?').map_or((text.as_str(), false), |kind| (kind, true));
            match named(kind) {
                Some(schema) => (schema, optional),
                None => {
                    let message = format!(
                        "\"{}\" is no kind of input; there are string, integer, number, boolean, object and any, with [] behind for a list and ? behind for what may be missing",
                        clipped(text)
                    );
                    problems.add(Problem::new(Rule::Schema, place, message).at(node.mark));
                    (json!(true), optional)
                }
            }
        }
        Kind::Map(entries) => {
            let mut schema = Map::new();
            let mut optional = false;
            for (key, item) in entries {
                match key.text.as_str() {
                    "optional" => match &item.kind {
                        Kind::Plain(Value::Bool(truth)) => optional = *truth,
                        _ => problems.add(
                            Problem::new(Rule::Schema, place, "\"optional\" is true or false").at(key.mark),
                        ),
                    },
                    "items" if matches!(item.kind, Kind::Text(_) | Kind::Map(_)) => {
                        let (items, _) = field_of(item, &format!("{place}.items"), problems);
                        schema.insert("items".into(), items);
                    }
                    "properties" if matches!(item.kind, Kind::Map(_)) => {
                        let Value::Object(object) = object(item, &format!("{place}.properties"), problems)
                        else {
                            continue;
                        };
                        for (key, value) in object {
                            schema.entry(key).or_insert(value);
                        }
                    }
                    "required" | "additionalProperties" => {
                        schema.insert(key.text.clone(), item.value());
                    }
                    name => {
                        schema.insert(name.to_owned(), item.value());
                    }
                }
            }
            (Value::Object(schema), optional)
        }
        _ => {
            let message = format!("an input is a kind such as string, or a JSON Schema, not {}", node.what());
            problems.add(Problem::new(Rule::Schema, place, message).at(node.mark));
            (json!(true), false)
        }
    }
}

fn named(kind: &str) -> Option<Value> {
    if let Some(inner) = kind.strip_suffix("[]") {
        return Some(json!({ "type": "array", "items": named(inner)? }));
    }
    match kind {
        "string" | "integer" | "number" | "boolean" => Some(json!({ "type": kind })),
        "object" => Some(json!({ "type": "object", "additionalProperties": true })),
        "any" => Some(json!({})),
        _ => None,
    }
}

/// An object that lists its fields has no others, unless it says so.
fn close(schema: &mut Value, depth: usize) {
    if depth > limits::DEPTH {
        return;
    }
    match schema {
        Value::Object(map) => {
            let composed = ["allOf", "anyOf", "oneOf", "$ref", "patternProperties", "unevaluatedProperties"];
            if map.contains_key("properties") && !composed.iter().any(|key| map.contains_key(*key)) {
                map.entry("additionalProperties").or_insert(Value::Bool(false));
            }
            map.values_mut().for_each(|value| close(value, depth + 1));
        }
        Value::Array(items) => items.iter_mut().for_each(|item| close(item, depth + 1)),
        _ => {}
    }
}

/// Puts defaults where nothing stands.
fn fill(schema: &Value, value: &mut Value, depth: usize) {
    if depth > limits::INPUT_DEPTH {
        return;
    }
    match value {
        Value::Object(map) => {
            for (name, field) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
                if let Some(default) = field.get("default") {
                    map.entry(name).or_insert_with(|| default.clone());
                }
                if let Some(value) = map.get_mut(name) {
                    fill(field, value, depth + 1);
                }
            }
        }
        Value::Array(items) => {
            if let Some(schema) = schema.get("items") {
                items.iter_mut().for_each(|item| fill(schema, item, depth + 1));
            }
        }
        _ => {}
    }
}

/// Whether an input keeps within the limits and says nothing that only a plan may say.
fn bounded(input: &Value, problems: &mut Problems) {
    let mut total = 0;
    let mut todo = vec![(input, String::new(), 1)];
    while let Some((value, at, depth)) = todo.pop() {
        let wrong = match value {
            _ if depth > limits::INPUT_DEPTH => {
                Some(format!("is nested more than {} deep", limits::INPUT_DEPTH))
            }
            Value::String(text) if text.len() > limits::TEXT => {
                Some(format!("has {} bytes; at most {} are taken", text.len(), limits::TEXT))
            }
            Value::String(text) if text.contains('\0') => {
                Some("holds the character U+0000, which cannot be stored".into())
            }
            Value::Array(items) if items.len() > limits::LIST => {
                Some(format!("has {} values; at most {} are taken", items.len(), limits::LIST))
            }
            Value::Object(map) if map.len() > limits::LIST => {
                Some(format!("has {} fields; at most {} are taken", map.len(), limits::LIST))
            }
            Value::Object(map) => map.keys().find_map(|key| {
                let bad = key.starts_with('$') || key.len() > 100 || key.chars().any(is_hostile);
                bad.then(|| format!("has the key \"{}\", which no input may have", clipped(key)))
            }),
            _ => None,
        };
        if let Some(wrong) = wrong {
            problems.add(Problem::new(Rule::Limit, place(&at), wrong));
            if problems.full() {
                return;
            }
            continue;
        }
        total += 8 + at.len() / 8;
        match value {
            Value::String(text) => total += text.len(),
            Value::Array(items) => {
                let items = items.iter().enumerate();
                todo.extend(items.map(|(n, item)| (item, format!("{at}/{n}"), depth + 1)));
            }
            Value::Object(map) => {
                total += map.keys().map(String::len).sum::<usize>();
                todo.extend(map.iter().map(|(key, item)| (item, format!("{at}/{}", escape(key)), depth + 1)));
            }
            _ => {}
        }
        if total > limits::INPUT_BYTES {
            let message = format!("the input has more than {} bytes", limits::INPUT_BYTES);
            problems.add(Problem::new(Rule::Limit, "", message));
            return;
        }
    }
}

fn escape(segment: &str) -> String {
    segment.replace('~', "~0").replace('/', "~1")
}

/// `/disks/0/size` as people write it: `disks[0].size`.
fn place(pointer: &str) -> String {
    let mut out = String::new();
    for segment in pointer.split('/').skip(1) {
        let segment = segment.replace("~1", "/").replace("~0", "~");
        if segment.parse::<usize>().is_ok() {
            out += &format!("[{segment}]");
        } else {
            if !out.is_empty() {
                out.push('.');
            }
            out += &clipped(&segment);
        }
    }
    out
}
