//! JSON as text that is known to be valid, its canonical form, and what of it the engine refuses.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;
use serde_json::value::RawValue;

/// Valid JSON, kept as the text it arrived in: journals are verbatim and most outputs are never read.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Json(Arc<str>);

impl Json {
    /// The text of a value.
    pub fn of(value: &Value) -> Self {
        Self(value.to_string().into())
    }

    /// The text of anything that serializes.
    pub fn from_serialize<T: Serialize + ?Sized>(value: &T) -> Result<Self, serde_json::Error> {
        serde_json::to_string(value).map(|text| Self(text.into()))
    }

    /// Takes text that must be JSON.
    pub fn parse_text(text: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str::<&RawValue>(text).map(|raw| Self(raw.get().into()))
    }

    /// `null`.
    pub fn null() -> Self {
        Self("null".into())
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The value. Text that was valid when it was made can still be too deep for a parser: then `null`.
    pub fn value(&self) -> Value {
        serde_json::from_str(&self.0).unwrap_or(Value::Null)
    }

    /// Reads it as a type.
    pub fn read<'a, T: Deserialize<'a>>(&'a self) -> Result<T, serde_json::Error> {
        serde_json::from_str(&self.0)
    }

    pub(crate) fn trusted(text: Arc<str>) -> Self {
        Self(text)
    }
}

impl fmt::Debug for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for Json {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serde_json::from_str::<&RawValue>(&self.0).map_err(serde::ser::Error::custom)?.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = Box::<RawValue>::deserialize(deserializer)?;
        Ok(Self(raw.get().into()))
    }
}

/// The canonical text of a value: keys sorted by their bytes, no blanks, numbers as they were read.
/// Equal plans have equal text, whatever order their keys were written in; a plan's hash is over this.
pub fn canonical(value: &Value) -> String {
    let mut out = String::new();
    write_canonical(value, &mut out);
    out
}

fn write_canonical(value: &Value, out: &mut String) {
    match value {
        Value::Object(map) => {
            let mut entries: Vec<_> = map.iter().collect();
            entries.sort_by(|a, b| a.0.cmp(b.0));
            out.push('{');
            for (n, (key, item)) in entries.into_iter().enumerate() {
                if n > 0 {
                    out.push(',');
                }
                out.push_str(&Value::from(key.as_str()).to_string());
                out.push(':');
                write_canonical(item, out);
            }
            out.push('}');
        }
        Value::Array(items) => {
            out.push('[');
            for (n, item) in items.iter().enumerate() {
                if n > 0 {
                    out.push(',');
                }
                write_canonical(item, out);
            }
            out.push(']');
        }
        scalar => out.push_str(&scalar.to_string()),
    }
}

/// What is wrong with a value that a plan would carry: too deep, or text that Postgres cannot store.
/// The answer names the place as a JSON pointer.
pub(crate) fn unfit(value: &Value, max_depth: usize) -> Option<(String, String)> {
    // A stack of its own: the value may be as deep as its parser let it be.
    let mut todo = vec![(value, String::new(), 1usize)];
    while let Some((value, at, depth)) = todo.pop() {
        if depth > max_depth {
            return Some((at, format!("is nested more than {max_depth} deep")));
        }
        match value {
            Value::String(text) if text.contains('\0') => {
                return Some((at, "holds the character U+0000, which Postgres cannot store as text".into()));
            }
            Value::Array(items) => {
                todo.extend(items.iter().enumerate().map(|(n, item)| (item, format!("{at}/{n}"), depth + 1)));
            }
            Value::Object(map) => {
                for (key, item) in map {
                    if key.contains('\0') {
                        return Some((
                            at,
                            "has a key with the character U+0000, which Postgres cannot store".into(),
                        ));
                    }
                    todo.push((item, format!("{at}/{}", escape(key)), depth + 1));
                }
            }
            _ => {}
        }
    }
    None
}

/// One segment of a JSON pointer.
pub(crate) fn escape(segment: &str) -> String {
    segment.replace('~', "~0").replace('/', "~1")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn canonical_text_does_not_depend_on_the_order_of_keys() {
        let a: Value = serde_json::from_str(r#"{"b":[1,{"z":1,"y":2.0}],"a":"x"}"#).unwrap();
        let b: Value = serde_json::from_str(r#"{"a":"x","b":[1,{"y":2.0,"z":1}]}"#).unwrap();
        assert_eq!(canonical(&a), canonical(&b));
        assert_eq!(canonical(&a), r#"{"a":"x","b":[1,{"y":2.0,"z":1}]}"#);
    }

    #[test]
    fn the_unfit_place_is_named() {
        assert_eq!(unfit(&json!({"a": {"b/c": "x\0"}}), 9).unwrap().0, "/a/b~1c");
        assert_eq!(unfit(&json!([[[1]]]), 3).unwrap().0, "/0/0/0");
        assert!(unfit(&json!([[[1]]]), 4).is_none());
    }
}
