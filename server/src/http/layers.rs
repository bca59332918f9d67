//! What every request goes through.

use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{MatchedPath, Request};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use backstay_engine::trace;
use futures_util::FutureExt;
use http_body::{Frame, SizeHint};
use opentelemetry::trace::{Span, SpanKind, Status, Tracer};
use opentelemetry::{KeyValue, global};
use serde_json::{Map, Value};
use tower_http::compression::CompressionLayer;
use tracing::Instrument;
use tracing::field::Empty;
use uuid::Uuid;

use crate::api::BASE;
use crate::api::problem::{INTERNAL, Problem};

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Of a body that nobody wanted so much is read, for so long.
const UNWANTED: (usize, Duration) = (8 << 20, Duration::from_secs(2));
/// A problem that is longer is left as it is.
const LONGEST_PROBLEM: u64 = 1 << 20;

/// Puts them around a router. `encrypted`: clients are told to come back by TLS alone.
pub fn layered(router: Router, encrypted: bool) -> Router {
    router
        .layer(from_fn(move |request, next| around(request, next, encrypted)))
        // The last is the outermost: a problem gets its request's id before it is compressed.
        .layer(CompressionLayer::new().gzip(true))
}

async fn around(mut request: Request, next: Next, encrypted: bool) -> Response {
    let id = inbound_id(request.headers()).unwrap_or_else(|| Uuid::now_v7().to_string());
    if let Ok(value) = HeaderValue::from_str(&id) {
        request.headers_mut().insert(REQUEST_ID, value);
    }
    let method = known(request.method());
    // The pattern, not the path: paths name things, and there would be a figure for each of them.
    let path = request
        .extensions()
        .get::<MatchedPath>()
        .map_or_else(|| "(none)".to_owned(), |path| path.as_str().to_owned());
    // Not of level info: a log that is to show warnings alone would show them without their request.
    let span = tracing::error_span!("request", request = id, method, path, run = Empty, step = Empty);
    let traced = Traced::begin(&mut request, method, &path, &id);
    let begun = Instant::now();
    // Who asks before sending a body has not sent it.
    let waits = request.headers().contains_key(header::EXPECT);
    let lent = Lent::new(request.body_mut());
    let answered = AssertUnwindSafe(next.run(request)).catch_unwind().instrument(span.clone()).await;
    let mut response =
        answered.unwrap_or_else(|_| Problem::new(&INTERNAL, "the request ended in a panic").into_response());
    if !response.status().is_success() && !waits {
        let _ = tokio::time::timeout(UNWANTED.1, lent.read_to_end(UNWANTED.0)).await;
    }
    response = named(response, &id).await;
    let status = response.status().as_u16();
    traced.answered(status);
    let took = begun.elapsed();
    span.in_scope(|| tracing::info!(status, ms = took.as_millis(), "answered"));
    let labels = [("method", method.to_owned()), ("path", path), ("status", status.to_string())];
    metrics::counter!("backstay_http_requests_total", &labels).increment(1);
    metrics::histogram!("backstay_http_request_seconds").record(took.as_secs_f64());
    let headers = response.headers_mut();
    if let Ok(value) = HeaderValue::from_str(&id) {
        headers.insert(REQUEST_ID, value);
    }
    let mut set = |name, value| {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    };
    set(header::CACHE_CONTROL, "no-store");
    set(header::X_CONTENT_TYPE_OPTIONS, "nosniff");
    set(header::X_FRAME_OPTIONS, "DENY");
    set(header::REFERRER_POLICY, "no-referrer");
    set(header::CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'");
    if encrypted {
        set(header::STRICT_TRANSPORT_SECURITY, "max-age=31536000");
    }
    response
}

/// A request as a span: below the caller's, and above the attempts of the runs that it submits.
struct Traced(Option<global::BoxedSpan>);

impl Traced {
    /// The request names its place in the trace from here on, and not its caller's.
    fn begin(request: &mut Request, method: &'static str, path: &str, id: &str) -> Self {
        // Those who look every few seconds whether we are well would fill every store of traces.
        if !path.starts_with(BASE) {
            return Self(None);
        }
        let mut given = request.headers().get_all(TRACEPARENT).iter();
        let parent = match (given.next().and_then(|text| text.to_str().ok()), given.next()) {
            (Some(text), None) => trace::parse(text),
            _ => None,
        };
        let tracer = global::tracer("backstay-api");
        let builder = tracer.span_builder(format!("{method} {path}")).with_kind(SpanKind::Server);
        let mut span = tracer.build_with_context(builder, &trace::below(parent));
        if span.is_recording() {
            span.set_attributes([
                KeyValue::new("http.request.method", method),
                KeyValue::new("http.route", path.to_owned()),
                KeyValue::new("backstay.request", id.to_owned()),
            ]);
        }
        let headers = request.headers_mut();
        headers.remove(TRACEPARENT);
        let own = trace::traceparent(span.span_context()).and_then(|own| HeaderValue::try_from(own).ok());
        if let Some(own) = own {
            headers.insert(TRACEPARENT, own);
        }
        Self(Some(span))
    }

    fn answered(self, status: u16) {
        let Some(mut span) = self.0 else { return };
        span.set_attribute(KeyValue::new("http.response.status_code", i64::from(status)));
        if status >= 500 {
            span.set_status(Status::error(""));
        }
        span.end();
    }
}

/// The caller's own id for the request, if it is one.
pub(crate) fn inbound_id(headers: &HeaderMap) -> Option<String> {
    let text = headers.get(REQUEST_ID)?.to_str().ok()?;
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    (!text.is_empty() && text.len() <= 100 && text.chars().all(good)).then(|| text.to_owned())
}

/// Anybody can invent a method, and there would be a figure for each of them.
fn known(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "POST" => "POST",
        "PUT" => "PUT",
        "PATCH" => "PATCH",
        "DELETE" => "DELETE",
        "OPTIONS" => "OPTIONS",
        _ => "(other)",
    }
}

/// A problem says under which id the log has more.
async fn named(response: Response, id: &str) -> Response {
    let is_problem =
        response.headers().get(header::CONTENT_TYPE).is_some_and(|kind| kind == "application/problem+json");
    let size = response.body().size_hint().exact();
    if !is_problem || size.is_none_or(|size| size > LONGEST_PROBLEM) {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    let Ok(bytes) = axum::body::to_bytes(body, usize::MAX).await else {
        return Problem::new(&INTERNAL, "the answer could not be written").into_response();
    };
    let Ok(mut problem) = serde_json::from_slice::<Map<String, Value>>(&bytes) else {
        return Response::from_parts(parts, Body::from(bytes));
    };
    problem.insert("request_id".to_owned(), id.into());
    parts.headers.remove(header::CONTENT_LENGTH);
    Response::from_parts(parts, Body::from(Value::Object(problem).to_string()))
}

/// A body that is taken back from whoever did not want it whole. A connection that is closed while its client is still
/// sending takes back the answer too: the client would see that it broke, and not why.
#[derive(Clone)]
struct Lent(Arc<Mutex<Body>>);

impl Lent {
    /// What stands in the request from now on is lent.
    fn new(body: &mut Body) -> Self {
        let lent = Self(Arc::new(Mutex::new(std::mem::take(body))));
        *body = Body::new(lent.clone());
        lent
    }

    fn body(&self) -> MutexGuard<'_, Body> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn read_to_end(mut self, most: usize) {
        let mut left = most;
        while !self.is_end_stream() {
            let frame = std::future::poll_fn(|cx| Pin::new(&mut self).poll_frame(cx)).await;
            let Some(Ok(frame)) = frame else { return };
            let Some(less) = left.checked_sub(frame.data_ref().map_or(0, Bytes::len)) else { return };
            left = less;
        }
    }
}

impl HttpBody for Lent {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut *self.body()).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body().is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body().size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_invented_method_makes_no_figure_of_its_own() {
        for (method, label) in
            [("GET", "GET"), ("get", "(other)"), ("AAAA1", "(other)"), ("DELETE", "DELETE")]
        {
            assert_eq!(known(&Method::from_bytes(method.as_bytes()).unwrap()), label);
        }
    }

    #[test]
    fn an_id_that_could_not_stand_in_a_log_is_replaced() {
        let id = |value: &'static str| {
            inbound_id(&HeaderMap::from_iter([(REQUEST_ID, HeaderValue::from_static(value))]))
        };
        assert_eq!(id("a-1_2.3").as_deref(), Some("a-1_2.3"));
        for wrong in ["", "a b", "a\"b", "{x}", "a\tb"] {
            assert_eq!(id(wrong), None, "{wrong}");
        }
    }

    #[tokio::test]
    async fn a_warning_says_its_request_also_in_a_log_of_warnings_alone() {
        use tower_service::Service;
        let file = tempfile::NamedTempFile::new().unwrap();
        let log = Arc::new(file.reopen().unwrap());
        let subscriber = tracing_subscriber::fmt().with_env_filter("warn").json().with_writer(log).finish();
        let _until_the_end = tracing::subscriber::set_default(subscriber);
        let handler = async || tracing::warn!("something is wrong");
        let mut router = layered(Router::new().route("/", axum::routing::get(handler)), false);
        let request = Request::get("/").header(REQUEST_ID, "req-1").body(Body::empty()).unwrap();
        assert!(router.call(request).await.unwrap().status().is_success());
        let line = std::fs::read_to_string(file.path()).unwrap();
        let line: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert_eq!((&line["span"]["request"], &line["span"]["method"]), (&"req-1".into(), &"GET".into()));
    }
}
