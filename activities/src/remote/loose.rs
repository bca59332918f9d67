//! JSON as such systems write it: numbers and truths as texts, texts as numbers, null where a list is empty, and fields
//! that are left out. Each is read as what it means; what means nothing is an error.

use serde::{Deserialize, Deserializer, de};
use serde_json::Value;

/// A text, whatever way it is written. Ids were numbers once.
pub(crate) fn text<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    some_text(from)?.ok_or_else(|| de::Error::custom("there is no text"))
}

/// The same where it may be missing. An empty text is no text.
pub(crate) fn some_text<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    match Value::deserialize(from)? {
        Value::Null => Ok(None),
        Value::String(text) => Ok(Some(text).filter(|text| !text.is_empty())),
        Value::Number(number) => Ok(Some(number.to_string())),
        Value::Bool(flag) => Ok(Some(flag.to_string())),
        Value::Array(_) | Value::Object(_) => Err(de::Error::custom("there is more than a text")),
    }
}

/// A whole number.
pub(crate) fn number<'de, D: Deserializer<'de>>(from: D) -> Result<i64, D::Error> {
    some_number(from)?.ok_or_else(|| de::Error::custom("there is no number"))
}

/// The same where it may be missing.
pub(crate) fn some_number<'de, D: Deserializer<'de>>(from: D) -> Result<Option<i64>, D::Error> {
    let value = Value::deserialize(from)?;
    if value.is_null() {
        return Ok(None);
    }
    whole(&value).map(Some).ok_or_else(|| de::Error::custom("there is no whole number"))
}

/// The whole number that a value is.
pub(crate) fn whole(value: &Value) -> Option<i64> {
    match value {
        Value::Number(number) => number.as_i64().or_else(|| {
            // 3.0 is one; what a float cannot tell from its neighbours is none.
            number.as_f64().filter(|n| n.fract() == 0.0 && n.abs() < EXACT).map(|n| n as i64)
        }),
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    }
}

/// The whole numbers below it are all told apart by a float.
const EXACT: f64 = 9_007_199_254_740_992.0;

/// True or false, where it may be missing.
pub(crate) fn some_flag<'de, D: Deserializer<'de>>(from: D) -> Result<Option<bool>, D::Error> {
    let value = Value::deserialize(from)?;
    if value.is_null() {
        return Ok(None);
    }
    truth(&value).map(Some).ok_or_else(|| de::Error::custom("there is neither true nor false"))
}

/// The same, where missing means false.
pub(crate) fn flag<'de, D: Deserializer<'de>>(from: D) -> Result<bool, D::Error> {
    Ok(some_flag(from)?.unwrap_or(false))
}

/// What a value says, if it says true or false.
pub(crate) fn truth(value: &Value) -> Option<bool> {
    match value {
        Value::Bool(flag) => Some(*flag),
        Value::String(text) if text.eq_ignore_ascii_case("true") => Some(true),
        Value::String(text) if text.eq_ignore_ascii_case("false") => Some(false),
        _ => None,
    }
}

/// A number with a fraction, where missing means zero.
pub(crate) fn fraction<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
    let found = match Value::deserialize(from)? {
        Value::Null => Some(0.0),
        Value::Number(number) => number.as_f64(),
        Value::String(text) => text.trim().trim_end_matches('%').parse().ok(),
        _ => None,
    };
    found.filter(|n: &f64| n.is_finite()).ok_or_else(|| de::Error::custom("there is no number"))
}

/// A list, where null is an empty one.
pub(crate) fn list<'de, D: Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<Vec<T>, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}
