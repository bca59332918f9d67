//! The fields of an input as people read them, out of its JSON Schema: what each is, what it is for, and what is within it.

use serde_json::{Map, Value};

/// Definitions may lead round in a circle, or stand for far more than anybody reads.
const DEEPEST: usize = 8;
const MOST_LINES: usize = 500;

/// A line for each field; those of an object stand below it, further in.
pub(super) fn told(schema: &Value) -> String {
    let mut page = Page { root: schema, lines: Vec::new() };
    page.object(schema, 1, 0);
    if page.lines.is_empty() {
        return "\nIt takes no input.\n".into();
    }
    let more = page.lines.len() > MOST_LINES;
    page.lines.truncate(MOST_LINES);
    if more {
        page.lines.push("  …".into());
    }
    format!("\nInput:\n{}\n", page.lines.join("\n"))
}

struct Page<'a> {
    root: &'a Value,
    lines: Vec<String>,
}

impl<'a> Page<'a> {
    fn object(&mut self, object: &'a Value, indent: usize, depth: usize) {
        let Some(fields) = properties(object) else { return };
        let required = object.get("required").and_then(Value::as_array);
        let is_required = |name: &str| {
            required.is_some_and(|required| required.iter().any(|one| one.as_str() == Some(name)))
        };
        let width = fields.keys().map(String::len).max().unwrap_or(0);
        for (name, field) in fields {
            let kind = self.kind(field, 0);
            let kind = match (field.get("default"), is_required(name)) {
                (Some(default), _) => format!("{kind}, {default} if it is not given"),
                (None, true) => format!("{kind}{}", self.example(field)),
                (None, false) => format!("{kind}{}, may be missing", self.example(field)),
            };
            self.line(indent, name, width, &kind, self.text(field, "description"));
            self.within(field, indent + 1, depth + 1);
        }
    }

    /// What a field is made of: the fields of an object or of each item, or what its words mean.
    fn within(&mut self, field: &'a Value, indent: usize, depth: usize) {
        if depth > DEEPEST || self.lines.len() > MOST_LINES {
            return;
        }
        let field = self.follow(field);
        if let Some(items) = field.get("items") {
            return self.within(items, indent, depth + 1);
        }
        self.object(field, indent, depth);
        let words: Vec<_> = variants(field).iter().filter_map(|one| Some((one.get("const")?, one))).collect();
        let width = words.iter().map(|(word, _)| word.to_string().len()).max().unwrap_or(0);
        for (word, one) in words {
            if let Some(means) = one.get("description").and_then(Value::as_str) {
                self.line(indent, &word.to_string(), width, means, None);
            }
        }
        for one in variants(field) {
            self.within(one, indent, depth + 1);
        }
    }

    fn line(&mut self, indent: usize, name: &str, width: usize, what: &str, about: Option<&str>) {
        let one_line = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        let about = about.map(|about| format!(": {}", one_line(about))).unwrap_or_default();
        self.lines.push(format!("{:indent$}{name:width$}  {what}{about}", "", indent = 2 * indent));
    }

    fn kind(&self, field: &'a Value, depth: usize) -> String {
        if depth > DEEPEST {
            return "…".into();
        }
        let field = self.follow(field);
        if let Some(value) = field.get("const") {
            return value.to_string();
        }
        if let Some(values) = field.get("enum").and_then(Value::as_array) {
            return either(values.iter().map(Value::to_string));
        }
        if !variants(field).is_empty() {
            return either(variants(field).iter().map(|one| self.kind(one, depth + 1)));
        }
        match (field.get("type"), field.get("items")) {
            (Some(Value::String(kind)), Some(items)) if kind == "array" => {
                format!("list of {}", self.kind(items, depth + 1))
            }
            (Some(Value::String(kind)), _) => kind.clone(),
            (Some(Value::Array(kinds)), _) => {
                either(kinds.iter().filter_map(Value::as_str).map(str::to_owned))
            }
            _ if properties(field).is_some() => "object".into(),
            _ => "anything".into(),
        }
    }

    /// What is said at the field counts more than what is said of all that are like it.
    fn text(&self, field: &'a Value, key: &str) -> Option<&'a str> {
        field.get(key).or_else(|| self.follow(field).get(key)).and_then(Value::as_str)
    }

    fn example(&self, field: &'a Value) -> String {
        let of =
            |field: &'a Value| field.get("examples").and_then(Value::as_array).and_then(|all| all.first());
        let found = of(field).or_else(|| of(self.follow(field)));
        found.map(|example| format!(", such as {example}")).unwrap_or_default()
    }

    /// What a field refers to, or the field itself.
    fn follow(&self, field: &'a Value) -> &'a Value {
        let mut at = field;
        for _ in 0..DEEPEST {
            let to = at.get("$ref").and_then(Value::as_str).and_then(|name| name.strip_prefix('#'));
            match to.and_then(|place| self.root.pointer(place)) {
                Some(found) => at = found,
                None => break,
            }
        }
        at
    }
}

fn properties(object: &Value) -> Option<&Map<String, Value>> {
    object.get("properties").and_then(Value::as_object)
}

/// Of which it is one, or all.
fn variants(field: &Value) -> &[Value] {
    let listed = ["oneOf", "anyOf", "allOf"].iter().find_map(|key| field.get(key)?.as_array());
    listed.map(Vec::as_slice).unwrap_or_default()
}

fn either(kinds: impl Iterator<Item = String>) -> String {
    let mut all: Vec<String> = Vec::new();
    for kind in kinds {
        if !all.contains(&kind) {
            all.push(kind);
        }
    }
    all.join(" or ")
}
