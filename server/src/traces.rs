//! Traces on their way out: OTLP over HTTP, to where the configuration says; nothing otherwise.
//!
//! What is measured waits in a queue that has an end, and a thread of its own sends it. When the collector is away or hangs,
//! what does not fit is dropped: a trace may have holes, a run never waits for one.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use backstay_engine::async_trait;
use bytes::Bytes;
use opentelemetry::{KeyValue, global};
use opentelemetry_http::{HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tokio::runtime::Handle;

use crate::config::Config;
use crate::trouble::Trouble;

/// How long a collector may take for what it is sent.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long what is left may take to leave when the program ends.
const FAREWELL: Duration = Duration::from_secs(2);
/// As much of a collector's answer is read.
const ANSWER: usize = 64 << 10;

/// The traces of this process, if there are any.
pub(crate) struct Traces(Option<SdkTracerProvider>);

/// From here on requests and attempts are measured, if there is somebody to tell.
pub(crate) fn begin(config: &Config) -> Result<Traces, Trouble> {
    let endpoint = config.traces.endpoint.trim_end_matches('/');
    if endpoint.is_empty() {
        return Ok(Traces(None));
    }
    let failed = |error: &dyn std::error::Error| Trouble::failed(format!("Traces cannot be sent: {error}."));
    let client = reqwest::Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .timeout(PATIENCE)
        .user_agent(concat!("backstay/", env!("CARGO_PKG_VERSION")))
        .build()
        .map_err(|error| failed(&error))?;
    let exporter = SpanExporter::builder()
        .with_http()
        .with_http_client(Courier { client, runtime: Handle::current(), away: AtomicBool::new(false) })
        .with_endpoint(format!("{endpoint}/v1/traces"))
        .with_timeout(PATIENCE)
        .build()
        .map_err(|error| failed(&error))?;
    let resource = Resource::builder()
        .with_service_name("backstay")
        .with_attributes([
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
            KeyValue::new("service.instance.id", config.node.name.clone()),
        ])
        .build();
    let provider = SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build();
    global::set_tracer_provider(provider.clone());
    Ok(Traces(Some(provider)))
}

impl Traces {
    /// Sends what is left, for a while.
    pub(crate) async fn end(self) {
        let Some(provider) = self.0 else { return };
        let sent = tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(FAREWELL)).await;
        if !matches!(sent, Ok(Ok(()))) {
            tracing::info!("the last spans did not reach the collector in time");
        }
    }
}

/// Takes spans to the collector with the HTTP client that the program has anyway.
#[derive(Debug)]
struct Courier {
    client: reqwest::Client,
    /// The thread that sends belongs to no runtime.
    runtime: Handle,
    /// The collector did not take what it was sent last.
    away: AtomicBool,
}

#[async_trait]
impl HttpClient for Courier {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let client = self.client.clone();
        let answer = self.runtime.spawn(async move { deliver(&client, request).await }).await?;
        let refused = match &answer {
            Ok(answer) if answer.status().is_success() => None,
            Ok(answer) => Some(format!("it answers {}", answer.status())),
            // Not the error as a whole: it would name the address, which may hold a secret.
            Err(error) => {
                Some(error.source().map_or_else(|| "it does not answer".into(), ToString::to_string))
            }
        };
        // Said once, and not for everything that is lost.
        match (refused, self.away.load(Ordering::Relaxed)) {
            (Some(why), false) => {
                self.away.store(true, Ordering::Relaxed);
                tracing::warn!(why, "the collector of traces takes none: they are dropped, and runs go on");
            }
            (None, true) => {
                self.away.store(false, Ordering::Relaxed);
                tracing::info!("the collector of traces takes them again");
            }
            _ => {}
        }
        answer
    }
}

async fn deliver(client: &reqwest::Client, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
    let mut answer = client.execute(request.try_into()?).await?;
    let status = answer.status();
    let headers = std::mem::take(answer.headers_mut());
    let mut body = Vec::new();
    while let Some(piece) = answer.chunk().await? {
        if body.len() + piece.len() > ANSWER {
            break;
        }
        body.extend_from_slice(&piece);
    }
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    Ok(response)
}
