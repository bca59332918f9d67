//! What every request goes through.

use std::panic::AssertUnwindSafe;
use std::time::Instant;

use axum::Router;
use axum::extract::{MatchedPath, Request};
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use tower_http::compression::CompressionLayer;
use tracing::Instrument;
use uuid::Uuid;

use crate::api::problem::{INTERNAL, Problem};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Puts them around a router. `encrypted`: clients are told to come back by TLS alone.
pub fn layered(router: Router, encrypted: bool) -> Router {
    router
        .layer(CompressionLayer::new().gzip(true))
        .layer(from_fn(move |request, next| around(request, next, encrypted)))
}

async fn around(mut request: Request, next: Next, encrypted: bool) -> Response {
    let id = inbound_id(request.headers()).unwrap_or_else(|| Uuid::now_v7().to_string());
    if let Ok(value) = HeaderValue::from_str(&id) {
        request.headers_mut().insert(REQUEST_ID, value);
    }
    let method = request.method().clone();
    // The pattern, not the path: paths name things, and there would be a figure for each of them.
    let path = request
        .extensions()
        .get::<MatchedPath>()
        .map_or_else(|| "(none)".to_owned(), |path| path.as_str().to_owned());
    let span = tracing::info_span!("request", request = id, %method, path);
    let begun = Instant::now();
    let answered = AssertUnwindSafe(next.run(request)).catch_unwind().instrument(span.clone()).await;
    let mut response =
        answered.unwrap_or_else(|_| Problem::new(&INTERNAL, "the request ended in a panic").into_response());
    let status = response.status().as_u16();
    let took = begun.elapsed();
    span.in_scope(|| tracing::info!(status, ms = took.as_millis(), "answered"));
    let labels = [("method", method.to_string()), ("path", path), ("status", status.to_string())];
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

/// The caller's own id for the request, if it is one.
fn inbound_id(headers: &HeaderMap) -> Option<String> {
    let text = headers.get(REQUEST_ID)?.to_str().ok()?;
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    (!text.is_empty() && text.len() <= 100 && text.chars().all(good)).then(|| text.to_owned())
}
