//! Traces, as a collector gets them: a real receiver of OTLP over HTTP, and a server that attempts call.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::http::HeaderMap;
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use reqwest::Method;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::served::{Served, said};
use crate::support::Place;

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CALLER: &str = "b7ad6b7169203331";
const SECRET: &str = "canary-7d1f0c";

/// Keeps the spans that it is sent, as a collector would.
pub struct Collector {
    pub endpoint: String,
    spans: Arc<Mutex<Vec<Span>>>,
    pub raw: Arc<Mutex<Vec<u8>>>,
}

impl Collector {
    pub async fn start() -> Self {
        let spans: Arc<Mutex<Vec<Span>>> = Arc::default();
        let raw: Arc<Mutex<Vec<u8>>> = Arc::default();
        let (list, bytes) = (Arc::clone(&spans), Arc::clone(&raw));
        let take = move |body: Bytes| async move {
            bytes.lock().unwrap().extend_from_slice(&body);
            let request = ExportTraceServiceRequest::decode(body).unwrap();
            let of_all = request.resource_spans.into_iter().flat_map(|resource| resource.scope_spans);
            list.lock().unwrap().extend(of_all.flat_map(|scope| scope.spans));
        };
        let endpoint = listen(Router::new().route("/v1/traces", post(take))).await;
        Self { endpoint, spans, raw }
    }

    /// Waits, not for ever, for a span of that name.
    async fn span(&self, name: &str) -> Span {
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            let found = self.spans.lock().unwrap().iter().find(|span| span.name == name).cloned();
            if let Some(span) = found {
                return span;
            }
            assert!(Instant::now() < end, "there is no span \"{name}\"");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

async fn listen(router: Router) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
    format!("http://{address}")
}

fn text(span: &Span, key: &str) -> String {
    let found = span.attributes.iter().find(|attribute| attribute.key == key);
    match found.and_then(|found| found.value.clone()).and_then(|value| value.value) {
        Some(Any::StringValue(text)) => text,
        Some(Any::IntValue(number)) => number.to_string(),
        other => panic!("{key} is {other:?} in {span:#?}"),
    }
}

fn call(name: &str, url: &str, after: &[&str]) -> Value {
    let headers = json!({ "authorization": { "secret": "canary" } });
    let input = json!({ "url": url, "path": [name], "method": "POST", "headers": headers, "body": { "words": name } });
    json!({ "name": name, "activity": "http", "input": input, "after": after, "nothing_to_undo": "it is a test" })
}

#[tokio::test(flavor = "multi_thread")]
async fn the_attempts_of_a_run_are_in_its_callers_trace_before_and_after_a_crash() {
    let collector = Collector::start().await;
    let heard: Arc<Mutex<Vec<HeaderMap>>> = Arc::default();
    let list = Arc::clone(&heard);
    let hear = move |headers: HeaderMap| async move { list.lock().unwrap().push(headers) };
    let target = listen(Router::new().route("/{name}", post(hear))).await;

    let place = Place::with_url().await;
    let folder = place.path("secrets");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("canary"), SECRET).unwrap();
    let private: std::fs::Permissions = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(folder.join("canary"), private).unwrap();
    let settings = format!(
        "[http]\norigins = [{{ origin = \"{target}\", networks = [\"127.0.0.0/8\"] }}]\n[secrets]\ndir = {folder:?}\n\
         [secrets.uses.canary]\norigins = [\"{target}\"]\n"
    );
    let settings = place.file("traced.toml", &settings);
    let settings = [
        ("BACKSTAY_CONFIG", settings.to_str().unwrap()),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint.as_str()),
        ("OTEL_BSP_SCHEDULE_DELAY", "100"),
    ];
    let api = Served::with(place, "n1", &settings).await;

    let wait = json!({ "name": "w", "activity": "wait", "input": { "signal": "go" }, "after": ["a"], "nothing_to_undo": "it waits" });
    let plan =
        json!({ "workflow": "traced", "steps": [call("a", &target, &[]), wait, call("b", &target, &["w"])] });
    let submit = api.request(Method::POST, "/api/v1/runs", &api.admin);
    let submit = submit
        .header("traceparent", format!("00-{TRACE}-{CALLER}-01"))
        .header("x-request-id", "the-request")
        .header("content-type", "application/json")
        .body(json!({ "plan": plan }).to_string());
    let run = said(submit).await.is(202).json()["run"].as_str().unwrap().to_owned();

    let request = collector.span("POST /api/v1/runs").await;
    assert_eq!(
        (hex::encode(&request.trace_id), hex::encode(&request.parent_span_id)),
        (TRACE.into(), CALLER.into())
    );
    assert_eq!(text(&request, "backstay.request"), "the-request");
    assert_eq!(text(&request, "http.response.status_code"), "202");
    let before = collector.span("http").await;
    collector.spans.lock().unwrap().clear();

    // The node dies; what comes after belongs to the same trace, as the journal has its place.
    api.until(&run, "waiting").await;
    api.signal(Signal::KILL);
    let place = api.killed().await;
    let api = Served::with(place, "n1", &settings).await;
    api.post(&format!("/api/v1/runs/{run}/signals"), json!({ "name": "go" })).await.is(200);
    api.until(&run, "succeeded").await;
    let after = collector.span("http").await;

    let heard = heard.lock().unwrap().clone();
    assert_eq!(heard.len(), 2);
    for (span, step, headers) in [(before, "a", &heard[0]), (after, "b", &heard[1])] {
        assert_eq!(hex::encode(&span.trace_id), TRACE);
        assert_eq!(
            span.parent_span_id, request.span_id,
            "an attempt is below the request that submitted its run"
        );
        let own = format!("00-{TRACE}-{}-01", hex::encode(&span.span_id));
        assert_eq!(headers["traceparent"], own, "what is called is below the attempt that calls it");
        assert_eq!(headers["authorization"], SECRET);
        let said = ["run", "step", "attempt", "direction", "activity", "node", "outcome"]
            .map(|name| text(&span, &format!("backstay.{name}")));
        assert_eq!(
            said.each_ref().map(String::as_str),
            [&run, step, "1", "forward", "http", "n1", "succeeded"]
        );
    }
    let place = api.end().await;
    let raw = String::from_utf8_lossy(&collector.raw.lock().unwrap()).into_owned();
    assert!(raw.contains(&run) && !raw.contains(SECRET) && !raw.contains("words"), "{raw}");
    drop(place);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_hangs_or_is_away_delays_nothing() {
    // One takes connections and never answers; at the other nobody listens any more.
    let hanging = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let gone = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    for at in [hanging.local_addr().unwrap(), gone] {
        let endpoint = format!("http://{at}");
        let settings = [
            ("BACKSTAY_TRACES__ENDPOINT", endpoint.as_str()),
            ("OTEL_BSP_SCHEDULE_DELAY", "10"),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "8"),
        ];
        let api = Served::with(Place::with_url().await, "n1", &settings).await;
        let say = |n: usize| json!({ "name": format!("s{n}"), "activity": "log", "input": { "text": "x" }, "nothing_to_undo": "it talks" });
        let plan = json!({ "workflow": "many", "steps": (0..100).map(say).collect::<Vec<_>>() });
        let begun = Instant::now();
        let run = api.post("/api/v1/runs", json!({ "plan": plan })).await.is(202).json();
        api.until(run["run"].as_str().unwrap(), "succeeded").await;
        // A single span that waited for its collector would have waited for five seconds.
        assert!(begun.elapsed() < Duration::from_secs(4), "{endpoint}: it took {:?}", begun.elapsed());
        let begun = Instant::now();
        api.end().await;
        assert!(begun.elapsed() < Duration::from_secs(10), "{endpoint}: ending took {:?}", begun.elapsed());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn where_traces_go_is_checked_and_shown() {
    let place = Place::embedded();
    let with = |endpoint: &str| {
        let mut command = place.command(&["config", "show"]);
        command.env("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint);
        command
    };
    let shown = crate::support::ran(&mut with("http://127.0.0.1:4318")).await.exits(0);
    shown.says("endpoint = \"http://127.0.0.1:4318\"").says("# environment: OTEL_EXPORTER_OTLP_ENDPOINT");
    for wrong in ["127.0.0.1:4318", "http://me:hunter2@collector:4318", "https://collector/?key=hunter2"] {
        let refused = crate::support::ran(&mut with(wrong)).await.exits(2).complains("traces.endpoint");
        assert!(!refused.err.contains("hunter2"), "{refused:#?}");
    }
}
