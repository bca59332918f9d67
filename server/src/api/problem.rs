//! What goes wrong, by a catalogue: RFC 9457 answers with stable types, and a page for each that says what to do.

use std::fmt;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use backstay_engine::machine::CheckError;
use backstay_engine::{EngineError, StoreError};
use serde_json::{Map, Value, json};

/// One kind of problem. Its slug never changes.
#[derive(Debug, PartialEq, Eq)]
pub struct Kind {
    /// The end of its type, `/problems/{slug}`.
    pub slug: &'static str,
    /// The answer's status.
    pub status: u16,
    /// What happened, in a few words.
    pub title: &'static str,
    /// What it means and what to do.
    pub about: &'static str,
}

macro_rules! catalogue {
    ($($name:ident $slug:literal $status:literal $title:literal $about:literal)*) => {
        $(#[doc = $title] pub const $name: Kind = Kind { slug: $slug, status: $status, title: $title, about: $about };)*
        /// All kinds there are.
        pub const CATALOGUE: &[Kind] = &[$($name),*];
    };
}

catalogue! {
    UNAUTHENTICATED "unauthenticated" 401 "Nobody knows who asks"
        "Send a token that is valid: `Authorization: Bearer bst_…`. It may be missing, mistyped, expired or revoked, or \
         its owner disabled; which of these stands in the audit trail and not in the answer. An admin makes a new one \
         with `backstay token create`."
    FORBIDDEN "forbidden" 403 "The caller may not do this"
        "The answer names the right that is missing. Roles give rights (`backstay principal roles`), and a token can \
         have fewer than its owner. The attempt stands in the audit trail."
    BAD_REQUEST "bad-request" 400 "The request is not understood"
        "`errors` names each place that is wrong: a parameter, or a JSON pointer into the body. Nothing was done."
    BAD_PLAN "bad-plan" 422 "The plan, or the input of the workflow, was not taken"
        "`errors` names each step and the rule that it breaks, all of them at once. Nothing was submitted. Try it without \
         submitting: `POST /api/v1/plans/check`."
    TOO_LARGE "too-large" 413 "The request is too large"
        "Bodies have at most 1 MiB. Large things belong where activities fetch them from."
    TOO_SLOW "too-slow" 408 "The request took too long to come"
        "Send it again, over a better line."
    UNSUPPORTED "unsupported-media-type" 415 "The body is not of a type that is understood"
        "Send `Content-Type: application/json`."
    NO_SUCH_PATH "no-such-path" 404 "There is nothing at this path"
        "The paths are in `/openapi.json`, and on a page at `/docs`."
    METHOD_NOT_ALLOWED "method-not-allowed" 405 "This path does not take this method"
        "`Allow` lists the methods that it takes."
    NOT_FOUND "not-found" 404 "What is named is not there"
        "The answer says what. A run that ended long ago may have been removed; see the retention settings. What a \
         token's scope hides is not there either."
    REMOVED "run-removed" 410 "The run is over and was removed"
        "What was asked was done: this `Idempotency-Key` means a run that came to its end and was removed since, as the \
         retention settings say (`node.keep_finished`). `run` names it. Nothing was submitted now. To have it done once more, \
         submit it under a new key."
    REFUSED "refused" 409 "The run refused"
        "The answer says why, and so does the run's journal. Look at the run again (`explain`) before trying another way."
    EXCLUSIVE "exclusive-key-taken" 409 "Another live run holds the exclusive key"
        "`holder` names it. Wait for its end, roll it back, or submit with `queue` to stand in line."
    CONFLICT "conflict" 409 "It is in another state than this needs"
        "The answer says in which. Look again; nothing was done."
    MOVED "moved" 412 "It has changed since it was read"
        "`If-Match` named an earlier version. Read it again, and decide again."
    PRECONDITION_REQUIRED "precondition-required" 428 "It has to be said which version is meant"
        "Read it, and send its `ETag` as `If-Match`, so that nobody's change is lost."
    KEY_REUSED "idempotency-key-reused" 422 "Something else was asked under this key before"
        "An `Idempotency-Key` belongs to one request with one body. Use a new key for a new request."
    TOO_MANY "too-many-requests" 429 "Too much at once"
        "Wait as long as `Retry-After` says."
    AWAY "database-away" 503 "The database does not answer"
        "Everything that was acknowledged is kept, and runs go on by themselves once it is back. Ask again after \
         `Retry-After`, with the same `Idempotency-Key`."
    DRAINING "draining" 503 "This node is being stopped"
        "Ask another node, or this one again once it is back."
    NOT_HERE "not-here" 501 "This installation is not set up for it"
        "The answer says which setting is missing."
    INTERNAL "internal" 500 "Something went wrong here"
        "It is our fault. The log has more under the `request_id` of the answer. Whether a change was made is not known: \
         ask again with the same `Idempotency-Key`."
}

/// What went wrong with one request.
#[derive(Debug)]
pub struct Problem {
    kind: &'static Kind,
    detail: String,
    more: Map<String, Value>,
    retry_after: Option<u32>,
}

impl Problem {
    /// Of this kind; `detail` is a sentence about this very case.
    pub fn new(kind: &'static Kind, detail: impl fmt::Display) -> Self {
        Self { kind, detail: clipped(&detail.to_string()), more: Map::new(), retry_after: None }
    }

    /// Whether it is of this kind.
    pub fn is(&self, kind: &Kind) -> bool {
        self.kind == kind
    }

    /// What programs want to know of it.
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.more.insert(name.to_owned(), value.into());
        self
    }

    /// One place that is wrong.
    pub fn at(kind: &'static Kind, place: impl fmt::Display, message: impl fmt::Display) -> Self {
        let (place, message) = (clipped(&place.to_string()), clipped(&message.to_string()));
        let detail = format!("{place}: {message}");
        Self::new(kind, detail).with("errors", json!([{ "at": place, "message": message }]))
    }

    /// When to try again.
    pub fn retry_after(mut self, seconds: u32) -> Self {
        self.retry_after = Some(seconds);
        self
    }

    /// As it is answered, but for what only the answer to one request has.
    pub fn body(&self) -> Value {
        let mut body = json!({
            "type": format!("/problems/{}", self.kind.slug),
            "title": self.kind.title,
            "status": self.kind.status,
            "detail": self.detail,
        });
        if let Value::Object(fields) = &mut body {
            fields.extend(self.more.clone());
        }
        body
    }
}

/// Enough to be understood. What was sent stands in it, and a megabyte of it would come back three times over.
fn clipped(text: &str) -> String {
    const MOST: usize = 2_000;
    let mut out: String = text.chars().take(MOST).collect();
    if text.chars().nth(MOST).is_some() {
        out.push('…');
    }
    out
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.kind.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, self.body().to_string()).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.kind.status == 401 {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"backstay\""));
        }
        response
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        // The text of a database's error can quote data, and is nobody's business outside.
        let text = crate::trouble::sentence(&error);
        if error.is_passing() {
            tracing::warn!(error = text, "the database does not answer");
            return Problem::new(&AWAY, "the database does not answer at this moment").retry_after(2);
        }
        tracing::error!(error = text, "the database refused");
        Problem::new(&INTERNAL, "the database refused; the log says why")
    }
}

impl From<EngineError> for Problem {
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::Store(error) => error.into(),
            EngineError::Plan(error) => error.into(),
            EngineError::Options(text) => Problem::at(&BAD_REQUEST, "body", text),
            EngineError::KeyReused { run, .. } => {
                Problem::new(&KEY_REUSED, format!("the key belongs to run {run}"))
                    .with("run", run.to_string())
            }
            EngineError::Exclusive { key, holder } => {
                Problem::new(&EXCLUSIVE, format!("run {holder} holds the key \"{key}\""))
                    .with("holder", holder.to_string())
            }
            EngineError::NoSuchPool(name) => {
                Problem::new(&NOT_FOUND, format!("there is no pool \"{}\"", name.escape_debug()))
            }
            EngineError::NoSuchRun(run) => Problem::new(&NOT_FOUND, format!("there is no run {run}")),
            other => {
                tracing::error!(error = crate::trouble::sentence(&other), "a request failed");
                Problem::new(&INTERNAL, "the log says why")
            }
        }
    }
}

impl From<CheckError> for Problem {
    fn from(error: CheckError) -> Self {
        let all = error.problems.len() + error.more;
        let first = error.problems.first().map(ToString::to_string).unwrap_or_default();
        let more = if all > 1 { format!(" (and {} more)", all - 1) } else { String::new() };
        Problem::new(&BAD_PLAN, format!("{first}{more}"))
            .with("errors", json!(error.problems))
            .with("more_errors", error.more)
    }
}
