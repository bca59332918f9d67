//! `/livez`, `/readyz` and `/metrics`: whether this process is well, for those who start, stop and watch it. Nobody shows a
//! token there, so what is asked often is looked up seldom.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::get;
use backstay_engine::{Pulse, Store};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;

use crate::trouble::Trouble;

/// How often the database is looked at.
const LOOK: Duration = Duration::from_secs(2);
/// What was seen longer ago than this is not believed any more.
const STALE: Duration = Duration::from_secs(5);

/// Whether this process is well. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Health {
    store: Store,
    node: Pulse,
    figures: PrometheusHandle,
    draining: Arc<AtomicBool>,
    seen: Arc<Mutex<Option<Seen>>>,
}

/// What the last look at the database has shown.
#[derive(Clone)]
struct Seen {
    at: Instant,
    wrong: Option<String>,
}

impl Health {
    /// Of a process with this node.
    pub(crate) async fn of(store: &Store, node: Pulse, figures: PrometheusHandle) -> Self {
        let (store, draining, seen) = (store.clone(), Arc::default(), Arc::default());
        let health = Self { store, node, figures, draining, seen };
        health.look().await;
        health
    }

    /// It is being stopped: nobody should send anything here any more.
    pub(crate) fn drain(&self) {
        self.draining.store(true, Ordering::SeqCst);
    }

    /// Keeps looking at the database, for as long as it is awaited.
    pub(crate) async fn watch(self) {
        loop {
            tokio::time::sleep(LOOK).await;
            // What was measured is kept one by one until it is counted together, and perhaps nobody asks for figures.
            self.figures.run_upkeep();
            self.look().await;
        }
    }

    async fn look(&self) {
        let wrong = match tokio::time::timeout(LOOK, self.store.schema()).await {
            Ok(Ok(schema)) if schema.changed.is_empty() && schema.pending.is_empty() => None,
            Ok(Ok(_)) => {
                Some("the database's schema is not that of this release: see \"backstay db status\"".into())
            }
            Ok(Err(error)) => {
                tracing::debug!(error = &error as &dyn std::error::Error, "the database does not answer");
                return;
            }
            Err(_) => return,
        };
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = Some(Seen { at: Instant::now(), wrong });
    }

    /// Why nothing should be sent here.
    fn trouble(&self) -> Option<String> {
        if self.draining.load(Ordering::SeqCst) {
            return Some("draining".into());
        }
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match seen {
            Some(Seen { at, wrong }) if at.elapsed() < STALE => {
                let lost = || "this node has lost its lease, and takes a new one".to_owned();
                wrong.or_else(|| (!self.node.is_live()).then(lost))
            }
            _ => Some("the database does not answer".into()),
        }
    }

    /// What there is to ask.
    pub(crate) fn router(&self) -> Router {
        let (ready, shown) = (self.clone(), self.clone());
        Router::new()
            .route("/livez", get(async || "alive\n"))
            .route("/readyz", get(move || std::future::ready(ready.answer())))
            .route("/metrics", get(move || std::future::ready(shown.shown())))
    }

    fn shown(&self) -> impl IntoResponse + use<> {
        ([("content-type", "text/plain; version=0.0.4")], self.figures.render())
    }

    fn answer(&self) -> impl IntoResponse + use<> {
        match self.trouble() {
            None => (StatusCode::OK, "ready\n".to_owned()),
            Some(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
        }
    }
}

/// Listens there.
pub(crate) async fn bind(address: SocketAddr, setting: &str) -> Result<TcpListener, Trouble> {
    TcpListener::bind(address).await.map_err(|error| {
        Trouble::failed(format!(
            "Listening on {address} failed: {error}. Another program may use it; see {setting}."
        ))
    })
}
