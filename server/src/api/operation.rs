//! One operation of the API: its path, the right that it needs, the types that it takes and gives. From the table of
//! these come the router, the document, the policy and its tests; there is no second place to forget.

use std::net::SocketAddr;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{ConnectInfo, RawPathParams, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodFilter, MethodRouter, on};
use axum::{RequestExt, RequestPartsExt};
use futures_util::FutureExt;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use tracing::Instrument;
use uuid::Uuid;

use super::gate::{Asked, Gate, Permit};
use super::problem::{BAD_REQUEST, INTERNAL, Kind, Problem, TOO_LARGE, TOO_SLOW, UNSUPPORTED};
use super::rights::Right;

/// Bytes of a body.
pub const LONGEST_BODY: usize = 1 << 20;
/// How long a body may take to come.
const SLOWEST_BODY: Duration = Duration::from_secs(30);
/// Nesting of a body.
const DEEPEST_BODY: usize = 64;
/// Characters of an idempotency key.
const LONGEST_KEY: usize = 150;

/// One operation.
pub struct Operation {
    /// The method.
    pub method: Method,
    /// The path, below `/api/v1`.
    pub path: &'static str,
    /// Its name in the document, and in the audit trail.
    pub id: &'static str,
    /// What it is about.
    pub tag: &'static str,
    /// What it does: the first sentence stands alone.
    pub about: &'static str,
    /// The right that it needs.
    pub right: Right,
    /// What can go wrong beside what always can.
    pub problems: Vec<&'static Kind>,
    /// Its types.
    pub describe: fn(&mut SchemaGenerator) -> Types,
    route: MethodRouter<Gate>,
}

/// The types of an operation, as schemas.
pub struct Types {
    /// Of the parameters in the path.
    pub path: Schema,
    /// Of the parameters in the query.
    pub query: Schema,
    /// Of the body.
    pub body: Option<Schema>,
    /// The status and content of the answer.
    pub answers: Vec<(u16, Option<(&'static str, Schema)>)>,
}

/// What an operation is asked.
pub struct Ask<P, Q, B> {
    /// From the path.
    pub path: P,
    /// From the query.
    pub query: Q,
    /// The body.
    pub body: B,
    /// The `Idempotency-Key`.
    pub key: Option<String>,
    /// The versions that `If-Match` names.
    pub if_match: Option<i64>,
    /// All headers.
    pub headers: HeaderMap,
    /// A digest of the whole request, for keys that are used twice; empty without a key.
    pub digest: Vec<u8>,
}

/// What can stand in a body.
pub trait Content: Sized + Send + 'static {
    /// Reads it.
    fn read(headers: &HeaderMap, bytes: &Bytes) -> Result<Self, Problem>;
    /// Describes it.
    fn schema(generator: &mut SchemaGenerator) -> Option<Schema>;
}

impl Content for () {
    fn read(_: &HeaderMap, bytes: &Bytes) -> Result<Self, Problem> {
        match bytes.is_empty() {
            true => Ok(()),
            false => Err(Problem::at(&BAD_REQUEST, "body", "this operation takes none")),
        }
    }

    fn schema(_: &mut SchemaGenerator) -> Option<Schema> {
        None
    }
}

/// A body in JSON.
pub struct InJson<T>(pub T);

impl<T: DeserializeOwned + JsonSchema + Send + 'static> Content for InJson<T> {
    fn read(headers: &HeaderMap, bytes: &Bytes) -> Result<Self, Problem> {
        let kind =
            headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let essence = kind.split(';').next().unwrap_or_default().trim();
        if !essence.eq_ignore_ascii_case("application/json") {
            return Err(Problem::new(&UNSUPPORTED, "the body has to be application/json"));
        }
        let value = backstay_engine::machine::strict_json(bytes, DEEPEST_BODY)
            .map_err(|error| Problem::at(&BAD_REQUEST, "body", error))?;
        let read = serde_path_to_error::deserialize(value).map_err(|error| {
            let place = pointer(error.path());
            Problem::at(&BAD_REQUEST, format!("body{place}"), error.into_inner())
        })?;
        Ok(Self(read))
    }

    fn schema(generator: &mut SchemaGenerator) -> Option<Schema> {
        Some(generator.subschema_for::<T>())
    }
}

fn pointer(path: &serde_path_to_error::Path) -> String {
    use serde_path_to_error::Segment;
    let mut text = String::new();
    for segment in path {
        match segment {
            Segment::Seq { index } => text += &format!("/{index}"),
            Segment::Map { key } => text += &format!("/{}", key.replace('~', "~0").replace('/', "~1")),
            Segment::Enum { .. } | Segment::Unknown => {}
        }
    }
    text
}

/// What an operation answers.
pub trait Answer {
    /// The answer.
    fn answer(self) -> Response;
    /// Its statuses and contents.
    fn describe(generator: &mut SchemaGenerator) -> Vec<(u16, Option<(&'static str, Schema)>)>;
}

/// Something in JSON: 200, or what is said with it.
pub struct Reply<T, const STATUS: u16 = 200> {
    content: T,
    headers: Vec<(HeaderName, String)>,
}

/// It is there now.
pub type Made<T> = Reply<T, 201>;
/// It will be done.
pub type Taken<T> = Reply<T, 202>;

impl<T, const STATUS: u16> Reply<T, STATUS> {
    /// Answers this.
    pub fn new(content: T) -> Self {
        Self { content, headers: Vec::new() }
    }

    /// With a header; what is no header value is left out.
    pub fn with(mut self, name: HeaderName, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// With its version.
    pub fn version(self, version: impl std::fmt::Display) -> Self {
        self.with(header::ETAG, format!("\"{version}\""))
    }
}

impl<T: Serialize + JsonSchema, const STATUS: u16> Answer for Reply<T, STATUS> {
    fn answer(self) -> Response {
        let status = StatusCode::from_u16(STATUS).unwrap_or(StatusCode::OK);
        let mut response = match serde_json::to_string(&self.content) {
            Ok(text) => (status, text).into_response(),
            Err(error) => {
                tracing::error!(error = &error as &dyn std::error::Error, "an answer could not be written");
                return Problem::new(&INTERNAL, "the answer could not be written").into_response();
            }
        };
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        for (name, value) in self.headers {
            if let Ok(value) = HeaderValue::from_str(&value) {
                headers.insert(name, value);
            }
        }
        response
    }

    fn describe(generator: &mut SchemaGenerator) -> Vec<(u16, Option<(&'static str, Schema)>)> {
        vec![(STATUS, Some(("application/json", generator.subschema_for::<T>())))]
    }
}

/// It is done, and there is nothing to say.
pub struct Done;

impl Answer for Done {
    fn answer(self) -> Response {
        StatusCode::NO_CONTENT.into_response()
    }

    fn describe(_: &mut SchemaGenerator) -> Vec<(u16, Option<(&'static str, Schema)>)> {
        vec![(204, None)]
    }
}

/// Text of some type.
pub struct Text(pub &'static str, pub String);

impl Answer for Text {
    fn answer(self) -> Response {
        let mut response = self.1.into_response();
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(self.0));
        response
    }

    fn describe(_: &mut SchemaGenerator) -> Vec<(u16, Option<(&'static str, Schema)>)> {
        vec![(200, Some(("text/plain", schemars::json_schema!({ "type": "string" }))))]
    }
}

/// Events, one after the other, for as long as somebody listens.
pub struct Stream(pub Body);

impl Answer for Stream {
    fn answer(self) -> Response {
        let mut response = Response::new(self.0);
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        // A proxy that collects an answer before it passes it on would pass on nothing.
        headers.insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
        response
    }

    fn describe(_: &mut SchemaGenerator) -> Vec<(u16, Option<(&'static str, Schema)>)> {
        vec![(200, Some(("text/event-stream", schemars::json_schema!({ "type": "string" }))))]
    }
}

/// Declares an operation.
pub fn operation<P, Q, B, A, F, Fut>(
    method: Method,
    path: &'static str,
    id: &'static str,
    right: Right,
    handler: F,
) -> Operation
where
    P: DeserializeOwned + JsonSchema + Send + 'static,
    Q: DeserializeOwned + JsonSchema + Send + 'static,
    B: Content,
    A: Answer + Send + 'static,
    F: Fn(Permit, Ask<P, Q, B>) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Result<A, Problem>> + Send + 'static,
{
    let filter = MethodFilter::try_from(method.clone()).unwrap_or(MethodFilter::GET);
    let route = on(filter, move |State(gate): State<Gate>, request: Request| {
        let handler = handler.clone();
        async move {
            match serve(gate, request, id, right, handler).await {
                Ok(response) => response,
                Err(problem) => problem.into_response(),
            }
        }
    });
    Operation {
        method,
        path,
        id,
        tag: "",
        about: "",
        right,
        problems: Vec::new(),
        describe: |generator| Types {
            path: P::json_schema(generator),
            query: Q::json_schema(generator),
            body: B::schema(generator),
            answers: A::describe(generator),
        },
        route,
    }
}

impl Operation {
    /// What it does.
    pub fn about(mut self, tag: &'static str, about: &'static str) -> Self {
        (self.tag, self.about) = (tag, about);
        self
    }

    /// What can go wrong.
    pub fn fails(mut self, problems: &[&'static Kind]) -> Self {
        self.problems.extend(problems);
        self
    }

    /// Its route.
    pub fn route(self) -> (&'static str, MethodRouter<Gate>) {
        (self.path, self.route)
    }
}

async fn serve<P, Q, B, A, F, Fut>(
    gate: Gate,
    mut request: Request,
    operation: &'static str,
    right: Right,
    handler: F,
) -> Result<Response, Problem>
where
    P: DeserializeOwned,
    Q: DeserializeOwned + Send + 'static,
    B: Content,
    A: Answer + Send + 'static,
    F: Fn(Permit, Ask<P, Q, B>) -> Fut,
    Fut: Future<Output = Result<A, Problem>> + Send + 'static,
{
    let params = request.extract_parts::<RawPathParams>().await;
    let (mut parts, body) = request.into_parts();
    let text = |name: &str| Some(parts.headers.get(name)?.to_str().ok()?.to_owned());
    let asked = Asked {
        id: text("x-request-id").unwrap_or_else(|| Uuid::now_v7().to_string()),
        operation,
        from: parts.extensions.get::<ConnectInfo<SocketAddr>>().map(|from| from.0.ip()),
        trace: text("traceparent"),
    };
    let permit = gate.admit(&parts.headers, right, asked).await?;
    let params = params.map_err(|error| Problem::at(&BAD_REQUEST, "path", error))?;
    let params: Map<String, Value> =
        params.iter().map(|(name, value)| (name.to_owned(), Value::from(value))).collect();
    for name in ["run", "step"] {
        if let Some(Value::String(text)) = params.get(name) {
            tracing::Span::current().record(name, text);
        }
    }
    let path = if params.is_empty() { Value::Null } else { Value::Object(params) };
    let path = serde_path_to_error::deserialize(path).map_err(|error| {
        Problem::at(&BAD_REQUEST, format!("path{}", pointer(error.path())), error.into_inner())
    })?;
    let query = match parts.extract::<axum::extract::Query<Q>>().await {
        Ok(query) => query.0,
        Err(error) => return Err(query_problem(&error.body_text())),
    };
    let whole = tokio::time::timeout(SLOWEST_BODY, axum::body::to_bytes(body, LONGEST_BODY)).await;
    let slow =
        |_| Problem::new(&TOO_SLOW, format!("the body has not come within {} s", SLOWEST_BODY.as_secs()));
    let long =
        |_| Problem::new(&TOO_LARGE, format!("a body has at most {LONGEST_BODY} bytes, and comes whole"));
    let bytes = whole.map_err(slow)?.map_err(long)?;
    let body = B::read(&parts.headers, &bytes)?;
    let key = idempotency_key(&parts.headers)?;
    let if_match = if_match(&parts.headers)?;
    // What is asked stands in the query as well, where there is one.
    let asked_of = parts.uri.path_and_query().map_or(parts.uri.path(), |whole| whole.as_str());
    let digest = key.as_ref().map(|_| digest(operation, asked_of, &bytes)).unwrap_or_default();
    let ask = Ask { path, query, body, key, if_match, headers: parts.headers, digest };
    // A caller who hangs up ends this future wherever it is; what was begun goes on to its end in a task of its own.
    let work = std::panic::AssertUnwindSafe(handler(permit, ask)).catch_unwind();
    match tokio::spawn(work.in_current_span()).await {
        Ok(Ok(done)) => done.map(Answer::answer),
        _ => Err(Problem::new(&INTERNAL, "the operation ended in a panic")),
    }
}

/// Which parameter of the query is wrong, where the text says so.
fn query_problem(text: &str) -> Problem {
    let text = text.strip_prefix("Failed to deserialize query string: ").unwrap_or(text);
    match text.split_once(": ") {
        Some((name, what)) if name.chars().all(|c| c.is_ascii_lowercase() || c == '_') => {
            Problem::at(&BAD_REQUEST, format!("query/{name}"), what)
        }
        _ => Problem::at(&BAD_REQUEST, "query", text),
    }
}

fn digest(operation: &str, path: &str, body: &Bytes) -> Vec<u8> {
    use sha2::{Digest, Sha256};
    // The same JSON in another order of keys is the same request.
    let value: Value = serde_json::from_slice(body).unwrap_or_default();
    Sha256::digest(format!("{operation}\n{path}\n{}", backstay_engine::machine::canonical(&value))).to_vec()
}

pub(crate) fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let Some(value) = headers.get("idempotency-key") else { return Ok(None) };
    let wrong = || {
        let what = format!("1 to {LONGEST_KEY} printable ASCII characters");
        Problem::at(&BAD_REQUEST, "header Idempotency-Key", format!("it has to be {what}"))
    };
    let text = value.to_str().map_err(|_| wrong())?.trim();
    // The draft standard quotes it; most clients do not.
    let text = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text);
    if text.is_empty() || text.len() > LONGEST_KEY {
        return Err(wrong());
    }
    Ok(Some(text.to_owned()))
}

pub(crate) fn if_match(headers: &HeaderMap) -> Result<Option<i64>, Problem> {
    let Some(value) = headers.get(header::IF_MATCH) else { return Ok(None) };
    let text = value.to_str().unwrap_or_default().trim();
    if text == "*" {
        return Ok(None);
    }
    let digits = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or_default();
    // A sign would be read as well, and is in no ETag of ours.
    let version = digits.parse().ok().filter(|_| digits.bytes().all(|byte| byte.is_ascii_digit()));
    version.map(Some).ok_or_else(|| {
        Problem::at(&BAD_REQUEST, "header If-Match", "it has to be one ETag of ours, as in \"17\"")
    })
}
