//! JSON as text that is known to be valid, its canonical form, and what of it the engine refuses.

use std::fmt;
use std::sync::Arc;

use serde::de::{Error as _, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;
use serde_json::{Map, Number, Value};

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
                write_text(key, out);
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
        Value::String(text) => write_text(text, out),
        scalar => out.push_str(&scalar.to_string()),
    }
}

fn write_text(text: &str, out: &mut String) {
    // Nearly every text stands as it is between its quotes.
    if text.bytes().all(|byte| byte >= b' ' && byte != b'"' && byte != b'\\') {
        out.push('"');
        out.push_str(text);
        out.push('"');
    } else {
        out.push_str(&Value::from(text).to_string());
    }
}

/// Reads a value and refuses an object that has a key twice. The parser would keep the last without a word,
/// and what was approved would not be what was written.
pub(crate) fn strict<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Value, D::Error> {
    Strict::deserialize(deserializer).map(|strict| strict.0)
}

/// Reads JSON from outside: no key twice, no deeper than this, nothing that could not be stored and read again as it is.
pub fn strict_json(bytes: &[u8], max_depth: usize) -> Result<Value, String> {
    let Strict(value) = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    match unfit(&value, max_depth) {
        None => Ok(value),
        Some((at, wrong)) => Err(format!("at \"{at}\" it {wrong}")),
    }
}

struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StrictVisitor).map(Self)
    }
}

struct StrictVisitor;

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }
    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("a number is out of range"))
    }
    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(Strict(item)) = access.next_element()? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = access.next_key::<String>()? {
            if map.contains_key(&key) {
                return Err(A::Error::custom(format!("the key \"{key}\" stands twice in one object")));
            }
            let Strict(item) = access.next_value()?;
            map.insert(key, item);
        }
        Ok(Value::Object(map))
    }
}

/// What is wrong with a value that a plan would carry: too deep, or something that could not be stored and
/// read again as it is. The answer names the place as a JSON pointer.
pub(crate) fn unfit(value: &Value, max_depth: usize) -> Option<(String, String)> {
    let mut found = None;
    let mut paths = 0;
    walk(value, |path, value| {
        paths += path.bytes;
        let wrong = match value {
            _ if path.depth() > max_depth => format!("is nested more than {max_depth} deep"),
            _ if paths > PATHS => format!(
                "is one value too many: the places of all values, written out, take more than {PATHS} bytes"
            ),
            Value::String(text) if text.contains('\0') => {
                "holds the character U+0000, which Postgres cannot store as text".into()
            }
            Value::Object(map) if map.keys().any(|key| key.contains('\0')) => {
                "has a key with the character U+0000, which Postgres cannot store".into()
            }
            // A whole number out of the range of 64 bits was rounded to a float by whoever read it.
            Value::Number(number) if number.is_f64() && number.as_f64().is_some_and(out_of_range) => {
                format!("is the number {number}, which cannot be kept exactly; write it as text")
            }
            _ => return Go::In,
        };
        found = Some((path.pointer(), wrong));
        Go::Stop
    });
    found
}

/// What the places of all values of an input may take together, each written as a JSON pointer: whoever looks for
/// mistakes writes many of them, and a long key above a long list makes each of them long.
const PATHS: usize = 8 << 20;

fn out_of_range(number: f64) -> bool {
    number <= i64::MIN as f64 || number >= u64::MAX as f64
}

/// Where a walk through a value goes on.
pub(crate) enum Go {
    /// Into what is here.
    In,
    /// Past it.
    Past,
    /// Nowhere.
    Stop,
}

/// The place that a walk is at.
#[derive(Default)]
pub(crate) struct Path<'a> {
    segments: Vec<Segment<'a>>,
    bytes: usize,
}

#[derive(Clone, Copy)]
enum Segment<'a> {
    Index(usize),
    Key(&'a str),
}

impl Segment<'_> {
    fn bytes(self) -> usize {
        1 + match self {
            Segment::Index(n) => n.checked_ilog10().unwrap_or(0) as usize + 1,
            Segment::Key(key) => key.len(),
        }
    }
}

impl<'a> Path<'a> {
    fn push(&mut self, segment: Segment<'a>) {
        self.bytes += segment.bytes();
        self.segments.push(segment);
    }

    fn pop(&mut self) {
        self.bytes -= self.segments.pop().map_or(0, Segment::bytes);
    }

    /// A value that stands alone is 1 deep.
    pub(crate) fn depth(&self) -> usize {
        self.segments.len() + 1
    }

    /// The place as a JSON pointer.
    pub(crate) fn pointer(&self) -> String {
        let mut out = String::new();
        for segment in &self.segments {
            out.push('/');
            match segment {
                Segment::Index(n) => out.push_str(&n.to_string()),
                Segment::Key(key) => out.push_str(&escape(key)),
            }
        }
        out
    }
}

/// Visits a value and all that is in it, from the top. It has a stack of its own, as the value may be deeper than
/// the thread's; and it writes no path that nobody asks for, as a long key above a long list would make them
/// larger than any memory.
pub(crate) fn walk<'a>(root: &'a Value, mut visit: impl FnMut(&Path<'a>, &'a Value) -> Go) {
    type Items<'a> = Box<dyn Iterator<Item = (Segment<'a>, &'a Value)> + 'a>;
    fn items(value: &Value) -> Items<'_> {
        match value {
            Value::Array(items) => Box::new(items.iter().enumerate().map(|(n, v)| (Segment::Index(n), v))),
            Value::Object(map) => Box::new(map.iter().map(|(key, v)| (Segment::Key(key), v))),
            _ => Box::new(std::iter::empty()),
        }
    }
    let mut path = Path::default();
    let mut levels: Vec<Items<'a>> = match visit(&path, root) {
        Go::In => vec![items(root)],
        Go::Past | Go::Stop => return,
    };
    while let Some(level) = levels.last_mut() {
        let Some((segment, value)) = level.next() else {
            levels.pop();
            path.pop();
            continue;
        };
        path.push(segment);
        match visit(&path, value) {
            Go::In if value.is_array() || value.is_object() => levels.push(items(value)),
            Go::In | Go::Past => {
                path.pop();
            }
            Go::Stop => return,
        }
    }
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
    fn canonical_text_is_what_the_parser_would_write() {
        // Keys of one object alone, so that there is no order to keep.
        for c in '\0'..='\u{2ffff}' {
            let value = Value::from(format!("a{c}b"));
            assert_eq!(canonical(&value), value.to_string(), "{c:?}");
        }
        let value = json!({ "k\n\"\\\u{7f}é": [true, null, 1.5, -1, "\u{1}"] });
        assert_eq!(canonical(&value), value.to_string());
    }

    #[test]
    fn the_unfit_place_is_named() {
        assert_eq!(unfit(&json!({"a": {"b/c": "x\0"}}), 9).unwrap().0, "/a/b~1c");
        assert_eq!(unfit(&json!([[[1]]]), 3).unwrap().0, "/0/0/0");
        assert!(unfit(&json!([[[1]]]), 4).is_none());
        assert_eq!(unfit(&json!({"a": [1, {"k\0": 2}]}), 9).unwrap().0, "/a/1");
    }

    #[test]
    fn a_number_that_was_rounded_is_unfit_and_the_largest_exact_ones_are_not() {
        let fits = |text: &str| unfit(&serde_json::from_str(text).unwrap(), 9).is_none();
        for exact in ["18446744073709551615", "-9223372036854775808", "0.1", "-1e15", "9.2e18", "-0.0"] {
            assert!(fits(exact), "{exact}");
        }
        for rounded in ["18446744073709551616", "-9223372036854775809", "1e300", "-1e300"] {
            assert!(!fits(rounded), "{rounded}");
        }
    }

    #[test]
    fn every_place_is_visited_once_in_the_order_of_the_text() {
        let value = json!({"a": [1, [], {"b": 2}], "c": {}});
        let mut seen = Vec::new();
        walk(&value, |path, _| {
            seen.push(path.pointer());
            Go::In
        });
        assert_eq!(seen, ["", "/a", "/a/0", "/a/1", "/a/2", "/a/2/b", "/c"]);
    }
}
