//! What CloudStack answers: one object with one key, whose name says nothing that could be relied on.
//!
//! ```text
//!   {"listzonesresponse": {"count": 1, "zone": [..]}}        a list
//!   {"listzonesresponse": {}}                                an empty one
//!   {"attachvolumeresponse": {"jobid": ".."}}                a job was begun
//!   {"attachvolumeresponse": {"errorcode": 431, ..}}         an error; so is {"errorresponse": ..}
//!   <html>..                                                 somebody else answered
//! ```

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::remote::Shape;
use crate::remote::loose;

/// What an answer says.
#[derive(Clone, Debug, PartialEq)]
pub enum Said {
    /// What stands under its only key.
    Content(Map<String, Value>),
    /// An error.
    Error(ApiError),
}

/// An error as CloudStack tells it, in an answer or as the result of a job.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ApiError {
    /// Such as 431.
    pub code: i64,
    /// The finer one, such as 4350.
    pub cs_code: Option<i64>,
    /// For people.
    pub text: String,
}

/// Reads an answer.
pub fn read(bytes: &[u8]) -> Result<Said, Shape> {
    let value: Value = serde_json::from_slice(bytes).map_err(|error| {
        if bytes.trim_ascii_start().starts_with(b"<") {
            return Shape::new("is a page of HTML; wrong credentials and a wrong url look like that");
        }
        // Only where: such texts quote what they do not understand.
        Shape::new(format!("is no JSON: line {}, column {}", error.line(), error.column()))
    })?;
    let Value::Object(map) = value else { return Err(Shape::new("is no object")) };
    let mut entries = map.into_iter();
    let (Some((_, content)), None) = (entries.next(), entries.next()) else {
        return Err(Shape::new("has not one key"));
    };
    let Value::Object(content) = content else { return Err(Shape::new("has no object under its key")) };
    if content.contains_key("errorcode") || content.contains_key("errortext") {
        return Ok(Said::Error(ApiError::of(&content)?));
    }
    Ok(Said::Content(content))
}

impl ApiError {
    /// Of an object that has one.
    pub(super) fn of(content: &Map<String, Value>) -> Result<Self, Shape> {
        let code = content.get("errorcode").and_then(loose::whole);
        let code = code.ok_or_else(|| Shape::new("is an error without a code"))?;
        let text = content.get("errortext").and_then(Value::as_str).unwrap_or_default().to_owned();
        Ok(Self { code, cs_code: content.get("cserrorcode").and_then(loose::whole), text })
    }
}

/// What was begun.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Started {
    /// The job that does it.
    #[serde(deserialize_with = "loose::text")]
    pub jobid: String,
    /// What is made: it is there before the job runs.
    #[serde(default, deserialize_with = "loose::some_text")]
    pub id: Option<String>,
}

/// Reads what an asynchronous command answers.
pub fn started(content: Map<String, Value>) -> Result<Started, Shape> {
    let Ok(started) = serde_json::from_value(Value::Object(content)) else {
        return Err(Shape::new("names no job"));
    };
    Ok(started)
}

/// One page of a list.
#[derive(Clone, Debug, PartialEq)]
pub struct Page<T> {
    /// How many there are in all.
    pub total: Option<i64>,
    /// Those of this page.
    pub items: Vec<T>,
}

/// Reads a page: the only list in it, under whatever name. Nothing at all is an empty one.
pub fn page<T: DeserializeOwned>(mut content: Map<String, Value>) -> Result<Page<T>, Shape> {
    let total = content.remove("count").as_ref().and_then(loose::whole);
    let mut rest = content.into_iter();
    match (rest.next(), rest.next()) {
        (None, _) if total.unwrap_or(0) == 0 => Ok(Page { total, items: Vec::new() }),
        (None, _) => Err(Shape::new("counts what it does not list")),
        (Some((_, list @ Value::Array(_))), None) => Ok(Page { total, items: serde_json::from_value(list)? }),
        (Some(_), _) => Err(Shape::new("has not one list")),
    }
}

/// Reads the one thing that is under the only key, as in `{"capability": {..}}`.
pub fn only<T: DeserializeOwned>(content: Map<String, Value>) -> Result<T, Shape> {
    let mut entries = content.into_iter();
    match (entries.next(), entries.next()) {
        (Some((_, thing @ Value::Object(_))), None) => Ok(serde_json::from_value(thing)?),
        _ => Err(Shape::new("has not one object")),
    }
}

/// Reads whether it was done, as commands say that are done when they answer.
pub fn success(content: &Map<String, Value>) -> Result<(), Shape> {
    match content.get("success").and_then(loose::truth) {
        Some(true) => Ok(()),
        Some(false) => Err(Shape::new("says that it was not done, and not why")),
        None => Err(Shape::new("does not say whether it was done")),
    }
}

/// How a job is.
#[derive(Clone, Debug, PartialEq)]
pub enum Job {
    /// It is not over.
    Pending,
    /// It did what it was to do. What it gives is often there, and not always.
    Succeeded(Value),
    /// It failed, or somebody says so: after a restart of the server that is no proof that nothing happened.
    Failed(ApiError),
}

/// Reads how a job is.
pub fn job(content: &Map<String, Value>) -> Result<Job, Shape> {
    let result = content.get("jobresult");
    let code = content.get("jobresultcode").and_then(loose::whole);
    match content.get("jobstatus").and_then(loose::whole) {
        Some(0) => Ok(Job::Pending),
        Some(1) => match result {
            // A job that says both is believed in neither.
            Some(Value::Object(map)) if map.contains_key("errorcode") => {
                Err(Shape::new("is of a job that succeeded with an error"))
            }
            _ if code.is_some_and(|code| code != 0) => {
                Err(Shape::new("is of a job that succeeded with an error's code"))
            }
            _ => Ok(Job::Succeeded(result.cloned().unwrap_or_default())),
        },
        Some(2) => Ok(Job::Failed(match result {
            Some(Value::Object(map)) if map.contains_key("errorcode") => ApiError::of(map)?,
            Some(Value::Object(map)) => ApiError {
                code: code.unwrap_or(INTERNAL),
                cs_code: None,
                text: map.get("errortext").and_then(Value::as_str).unwrap_or_default().to_owned(),
            },
            // Thus after a restart of the server.
            Some(Value::String(text)) => {
                ApiError { code: code.unwrap_or(INTERNAL), cs_code: None, text: text.clone() }
            }
            _ => ApiError { code: code.unwrap_or(INTERNAL), ..ApiError::default() },
        })),
        Some(other) => Err(Shape::new(format!("is of a job with the status {other}"))),
        None => Err(Shape::new("is of a job without a status")),
    }
}

/// What CloudStack says when something broke inside, and what a job that says nothing is taken for.
pub(super) const INTERNAL: i64 = 530;
