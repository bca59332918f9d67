//! Watching a run: its events as they happen, out of the database, from wherever the watcher was cut off.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, Method};
use bytes::Bytes;
use futures_util::stream;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::json;

use super::gate::Permit;
use super::operation::{Ask, Operation, Stream, operation};
use super::problem::{BAD_REQUEST, NOT_FOUND, Problem};
use super::rights::Right;
use super::runs::OfRun;
use super::views::EventView;
use backstay_engine::RunHandle;

/// How often a line is sent although nothing happens, so that whoever is between does not close the connection.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// How often it is looked whether the watcher's token is good still.
const CHECK: Duration = Duration::from_secs(3);

pub(super) fn operations() -> Vec<Operation> {
    vec![
        operation(Method::GET, "/runs/{run}/events", "watchRun", Right::View, watch)
            .about(
                "runs",
                "Watches a run: a stream of its events (SSE), the old ones first. An event's id is its position; \
                 `Last-Event-ID` resumes after it. The stream ends with the event `end` once the run is over.",
            )
            .fails(&[&NOT_FOUND]),
    ]
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct From {
    /// Only events after this one. `Last-Event-ID` wins.
    #[serde(default)]
    #[schemars(range(min = 0))]
    after: i64,
}

struct Watching {
    permit: Permit,
    handle: RunHandle,
    checked: tokio::time::Instant,
    over: bool,
}

async fn watch(permit: Permit, ask: Ask<OfRun, From, ()>) -> Result<Stream, Problem> {
    let run = permit.run(ask.path.run).await?.run;
    let after = last_seen(&ask.headers)?.unwrap_or(ask.query.after);
    let handle = permit.engine().watch_after(run, after);
    let watching = Watching { permit, handle, checked: tokio::time::Instant::now(), over: false };
    let events = stream::unfold(watching, |mut watching| async move {
        let text = watching.next().await?;
        Some((Ok::<_, Infallible>(Bytes::from(text)), watching))
    });
    Ok(Stream(Body::from_stream(events)))
}

/// The event after which a watcher goes on.
pub(crate) fn last_seen(headers: &HeaderMap) -> Result<Option<i64>, Problem> {
    let Some(value) = headers.get("last-event-id") else { return Ok(None) };
    let seq = value.to_str().ok().and_then(|text| text.trim().parse().ok()).filter(|seq: &i64| *seq >= 0);
    seq.map(Some).ok_or_else(|| {
        let what = "it is the id of an event of this stream: a number";
        Problem::at(&BAD_REQUEST, "header Last-Event-ID", what)
    })
}

impl Watching {
    async fn next(&mut self) -> Option<String> {
        if self.over {
            return None;
        }
        let quiet_until = tokio::time::Instant::now() + KEEP_ALIVE;
        loop {
            if self.checked.elapsed() >= CHECK {
                self.checked = tokio::time::Instant::now();
                if !self.permit.still().await {
                    return None;
                }
            }
            // What is dropped here had nothing yet, or has it in the handle's buffer.
            let stop = self.permit.settings().stop.clone();
            let next = tokio::select! {
                biased;
                // The watcher comes again, to another node perhaps, with the last id.
                () = stop.cancelled() => {
                    self.over = true;
                    return Some("retry: 2000\nevent: away\ndata: {}\n\n".to_owned());
                }
                next = tokio::time::timeout(CHECK, self.handle.next()) => next,
            };
            match next {
                Ok(Ok(Some(row))) => return event(row.seq, row.kind, &EventView::from(row)),
                Ok(Ok(None)) => {
                    self.over = true;
                    return Some("event: end\ndata: {}\n\n".to_owned());
                }
                // The watcher comes again, with the last id.
                Ok(Err(error)) => {
                    tracing::info!(error = &error as &dyn std::error::Error, "a watcher is sent away");
                    self.over = true;
                    return Some("retry: 2000\nevent: away\ndata: {}\n\n".to_owned());
                }
                Err(_) if tokio::time::Instant::now() >= quiet_until => {
                    return Some(": still here\n\n".to_owned());
                }
                Err(_) => {}
            }
        }
    }
}

fn event(seq: i64, kind: &str, view: &EventView) -> Option<String> {
    let data = serde_json::to_string(view).unwrap_or_else(|_| json!({ "seq": seq }).to_string());
    Some(format!("id: {seq}\nevent: {kind}\ndata: {data}\n\n"))
}
