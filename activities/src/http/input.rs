//! What a plan writes of a call, and what it gets.

use std::borrow::Cow;
use std::collections::BTreeMap;

use backstay_engine::Span;
use reqwest::StatusCode;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::meaning::Meaning;
use crate::reference::Text;

/// A call, and how its answer is to be taken.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("required" = ["url"], "x-probe" = "probe"))]
pub struct HttpInput {
    /// Where to: http or https, at an origin that the configuration allows.
    pub url: Option<String>,
    /// Segments that follow the path of the URL, each escaped by itself: an id that an output gives stands here.
    #[serde(default)]
    pub path: Vec<Text>,
    /// Parameters that follow those of the URL; null leaves one out.
    #[serde(default)]
    pub query: BTreeMap<String, Text>,
    /// How. Left out: GET.
    #[serde(default)]
    pub method: Verb,
    /// Headers; null leaves one out. The idempotency key is sent without being asked for.
    #[serde(default)]
    pub headers: BTreeMap<String, Text>,
    /// A body that is sent as JSON, with what it names filled in.
    #[serde(default)]
    pub body: Option<Value>,
    /// A body that is sent as it is.
    #[serde(default)]
    pub text: Text,
    /// The answers that mean that it was done. Left out: 2xx, and in an undo that deletes also 404 and 410.
    #[serde(default)]
    pub expect: Vec<Statuses>,
    /// What other answers mean, where the usual meaning is not right, such as {"423": "retry_not_applied"}.
    #[serde(default)]
    pub on_status: BTreeMap<String, Meaning>,
    /// How long it may take in all, such as "30s"; never longer than the configuration says.
    #[serde(default)]
    #[schemars(with = "Option<String>")]
    pub timeout: Option<Span>,
    /// What is kept of the answer.
    #[serde(default)]
    pub response: Keep,
    /// A call that looks, and changes nothing: whether the effect of this one is there.
    #[serde(default)]
    pub probe: Option<Look>,
}

/// How a call is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
#[allow(missing_docs, reason = "they are HTTP's")]
pub enum Verb {
    #[default]
    Get,
    Head,
    Post,
    Put,
    Patch,
    Delete,
}

impl Verb {
    /// It changes nothing, by its meaning.
    pub fn only_looks(self) -> bool {
        matches!(self, Self::Get | Self::Head)
    }
}

impl From<Verb> for reqwest::Method {
    fn from(verb: Verb) -> Self {
        match verb {
            Verb::Get => Self::GET,
            Verb::Head => Self::HEAD,
            Verb::Post => Self::POST,
            Verb::Put => Self::PUT,
            Verb::Patch => Self::PATCH,
            Verb::Delete => Self::DELETE,
        }
    }
}

/// One status, or several: `204`, `"2xx"`, `"200-204"`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statuses {
    first: u16,
    last: u16,
}

impl Statuses {
    /// From the first to the last.
    pub const fn new(first: u16, last: u16) -> Self {
        Self { first, last }
    }

    pub(super) fn hold(&self, status: StatusCode) -> bool {
        (self.first..=self.last).contains(&status.as_u16())
    }

    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("\"{text}\" is no status such as 204, \"2xx\" or \"200-204\"");
        let number = |text: &str| {
            let number = text.parse().ok().filter(|n| (100..=599).contains(n));
            number.filter(|_| text.len() == 3).ok_or_else(wrong)
        };
        if let Some(class) = text.strip_suffix("xx") {
            let first = number(&format!("{class}00"))?;
            return Ok(Self { first, last: first + 99 });
        }
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let (first, last) = (number(first)?, number(last)?);
        if first > last { Err(wrong()) } else { Ok(Self { first, last }) }
    }
}

impl Serialize for Statuses {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{}-{}", self.first, self.last))
    }
}

impl<'de> Deserialize<'de> for Statuses {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = match Value::deserialize(deserializer)? {
            Value::String(text) => text,
            other => other.to_string(),
        };
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

impl JsonSchema for Statuses {
    fn schema_name() -> Cow<'static, str> {
        "Statuses".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A status, or several: 204, \"2xx\", \"200-204\".",
            "type": ["integer", "string"],
            "minimum": 100,
            "maximum": 599,
            "pattern": "^([1-5]xx|[1-5][0-9][0-9](-[1-5][0-9][0-9])?)$",
        })
    }
}

/// What is kept of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Keep {
    /// As what.
    #[serde(rename = "as")]
    pub form: Form,
    /// How many bytes, up to 128 KiB. A text is cut there; JSON that is longer is a failure.
    #[schemars(range(min = 0, max = 131_072))]
    pub most: usize,
}

impl Default for Keep {
    fn default() -> Self {
        Self { form: Form::Auto, most: 64 << 10 }
    }
}

/// As what an answer is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Form {
    /// As JSON if it says that it is JSON, else as a text.
    #[default]
    Auto,
    /// As JSON; anything else is a failure.
    Json,
    /// As a text.
    Text,
    /// Not at all: nothing of it is read.
    Nothing,
}

/// A call that looks whether an effect is there.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Look {
    /// Where to. Left out: where the call goes to, without its `path`.
    #[serde(default)]
    pub url: Option<String>,
    /// Segments that follow the path of the URL.
    #[serde(default)]
    pub path: Vec<Text>,
    /// Parameters that follow those of the URL.
    #[serde(default)]
    pub query: BTreeMap<String, Text>,
    /// Headers, beside those of the call; null takes one of those away.
    #[serde(default)]
    pub headers: BTreeMap<String, Text>,
    /// The answers that mean that it was found. Left out: 2xx.
    #[serde(default)]
    pub expect: Vec<Statuses>,
    /// The answers that mean that it is not there. Left out: 404 and 410.
    #[serde(default)]
    pub absent: Vec<Statuses>,
    /// Where in the answer it stands, as a JSON pointer, such as "/items/0". What stands there takes the place of the
    /// body; if nothing does, it is not there.
    #[serde(default)]
    pub at: Option<String>,
    /// What it has to look like, by JSON pointers into it, such as {"/state": "ready"}. What does not is there in part.
    #[serde(default)]
    pub has: BTreeMap<String, Value>,
}

/// What a call gives.
#[derive(Clone, Debug, Default, PartialEq, Serialize, JsonSchema)]
pub struct HttpOutput {
    /// The status of the answer.
    pub status: u16,
    /// Some of its headers, by their names in small letters: content-type, etag, last-modified, location, retry-after and
    /// x-request-id.
    pub headers: BTreeMap<String, String>,
    /// Its body: JSON, or a text; null if it had none.
    pub body: Value,
    /// There was more of it.
    pub truncated: bool,
    /// In an undo: why no call was made.
    pub nothing_to_do: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_one_or_several() {
        let ok = |text: &str| Statuses::parse(text).unwrap();
        assert_eq!(ok("204"), Statuses::new(204, 204));
        assert_eq!(ok("2xx"), Statuses::new(200, 299));
        assert_eq!(ok("200-204"), Statuses::new(200, 204));
        for wrong in ["", "xx", "20", "2xxx", "204-200", "99", "600", "+20", "6xx", "200-", "2 xx"] {
            assert!(Statuses::parse(wrong).is_err(), "{wrong}");
        }
    }
}
