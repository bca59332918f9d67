//! `backstay serve`: the API and a node, in one process.

use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::get;
use backstay_engine::store::access::{Change, NewToken};
use backstay_engine::{Engine, Store};
use chrono::{TimeDelta, Utc};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use serde_json::json;
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

use crate::api::gate::{Gate, digest};
use crate::api::rights::Role;
use crate::api::{self, Settings};
use crate::catalog;
use crate::config::Config;
use crate::db::{print, with_database};
use crate::interrupt::Interrupt;
use crate::seal::Keyring;
use crate::trouble::Trouble;

/// The file in the data folder that holds the first admin's token.
pub(crate) const FIRST_TOKEN: &str = "admin-token";
/// How long the first admin's token is good: time enough to make others.
pub(crate) const FIRST_TOKEN_DAYS: i64 = 30;

/// Works until it is told to stop.
pub(crate) async fn run(config: &Config, interrupt: &Interrupt) -> Result<(), Trouble> {
    crate::log::begin(&config.log);
    let figures = PrometheusBuilder::new()
        .install_recorder()
        .map_err(|error| Trouble::failed(format!("The figures cannot be kept: {error}.")))?;
    with_database(config, interrupt, async |database| {
        let store = interrupt.or(database.store()).await?;
        interrupt.or(async { Ok(store.migrate().await?) }).await?;
        let served = serve(config, interrupt, &store, figures.clone()).await;
        store.close().await;
        served
    })
    .await?;
    tracing::info!("the server has ended");
    Ok(())
}

async fn serve(
    config: &Config,
    interrupt: &Interrupt,
    store: &Store,
    figures: PrometheusHandle,
) -> Result<(), Trouble> {
    let keys = keyring(config)?;
    let engine = Engine::open(store.clone(), catalog::activities()).await?;
    if let Some(path) = interrupt.or(first_token(store, &config.data_dir)).await? {
        tracing::info!(file = %path.display(), "the first admin is there; make principals with this token");
        print(&format!(
            "The token of the first admin is in {}. It is good for {FIRST_TOKEN_DAYS} days.\n",
            path.display()
        ));
    }
    let gate = Gate::new(engine.clone(), Settings { keys: Some(keys) });
    let watching = gate.clone();
    let _watch = AbortOnDropHandle::new(tokio::spawn(async move { watching.watch().await }));
    let node = interrupt.or(async { Ok(engine.start_node(config.node.for_engine()).await?) }).await?;
    let health = Health { draining: Arc::default(), gate: gate.clone(), figures };

    let address = config.listen.address;
    let listener = TcpListener::bind(address).await.map_err(|error| {
        Trouble::failed(format!(
            "Listening on {address} failed: {error}. Another program may use it; see listen.address."
        ))
    })?;
    let bound = listener
        .local_addr()
        .map_err(|error| Trouble::failed(format!("The address is not known: {error}.")))?;
    let router = api::router(gate).merge(health.router());
    let service = router.into_make_service_with_connect_info::<SocketAddr>();
    tracing::info!(address = %bound, node = node.name(), epoch = node.epoch(), "the server is ready");
    print(&format!("Listening on http://{bound}\n"));

    let asked = interrupt.clone();
    let draining = Arc::clone(&health.draining);
    let serving = axum::serve(listener, service).with_graceful_shutdown(async move {
        let _ = asked.asked().await;
        draining.store(true, Ordering::SeqCst);
    });
    let lost = tokio::select! {
        served = serving => {
            served.map_err(|error| Trouble::failed(format!("Serving failed: {error}.")))?;
            false
        }
        _ = ended(interrupt) => false,
        () = node.ended() => true,
    };
    if lost {
        return Err(Trouble::failed(
            "This node has lost its lease, so others go on with its runs. Its clock stood still for too long, or the \
             database did not answer in time. Start it again.",
        ));
    }
    tracing::info!(grace = %config.node.grace, "asked to end; a second signal ends it at once");
    node.drain(config.node.grace.0).await;
    Ok(())
}

/// A little after it was asked to end: answers under way are given the time to be sent.
async fn ended(interrupt: &Interrupt) {
    let _ = interrupt.asked().await;
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
}

fn keyring(config: &Config) -> Result<Keyring, Trouble> {
    let failed =
        |error: crate::seal::SealError| Trouble::failed(format!("Secrets cannot be sealed: {error}."));
    match &config.secrets.key_file {
        Some(path) => Keyring::read(path).map_err(failed),
        None => {
            std::fs::create_dir_all(&config.data_dir).map_err(Trouble::file("Making", &config.data_dir))?;
            Keyring::read_or_make(&config.data_dir.join("secret.key")).map_err(failed)
        }
    }
}

/// An installation that nobody may speak to gets an admin. The token is in the file before it is good, so that no crash
/// can leave an installation to which nobody has the key.
async fn first_token(store: &Store, data_dir: &Path) -> Result<Option<PathBuf>, Trouble> {
    if !store.principals("", 1).await?.is_empty() {
        return Ok(None);
    }
    let path = data_dir.join(FIRST_TOKEN);
    let text = api::fresh_token().map_err(|_| Trouble::failed("The machine gives no random bytes."))?;
    std::fs::create_dir_all(data_dir).map_err(Trouble::file("Making", data_dir))?;
    let _ = std::fs::remove_file(&path);
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)
        .map_err(Trouble::file("Writing", &path))?;
    let written =
        std::io::Write::write_all(&mut file, format!("{text}\n").as_bytes()).and_then(|()| file.sync_all());
    written.map_err(Trouble::file("Writing", &path))?;
    let token = NewToken {
        id: Uuid::now_v7(),
        principal: "admin".into(),
        hash: digest(&text),
        label: "of the first start".into(),
        rights: None,
        workflows: None,
        created_by: "the first start".into(),
        expires_at: Utc::now() + TimeDelta::days(FIRST_TOKEN_DAYS),
    };
    let roles: Vec<_> =
        [Role::Admin, Role::Approver, Role::Operator].map(|role| role.name().to_owned()).into();
    let entry =
        json!({ "did": "firstStart", "about": "admin", "details": { "token": token.id, "roles": roles } });
    let change = Change { entry: entry.to_string(), kept: None };
    if store.first_principal(&roles, &token, &change).await? {
        return Ok(Some(path));
    }
    // Another server on the same database was faster; its token is the one.
    std::fs::remove_file(&path).map_err(Trouble::file("Removing", &path))?;
    Ok(None)
}

/// Whether this process is well, for those who start and stop it.
#[derive(Clone)]
struct Health {
    draining: Arc<AtomicBool>,
    gate: Gate,
    figures: PrometheusHandle,
}

impl Health {
    fn router(&self) -> Router {
        let (ready, shown) = (self.clone(), self.clone());
        Router::new()
            .route("/livez", get(async || "alive\n"))
            .route("/readyz", get(move || ready.clone().ready()))
            .route("/metrics", get(move || shown.clone().shown()))
    }

    async fn ready(self) -> impl IntoResponse {
        if self.draining.load(Ordering::SeqCst) {
            return (StatusCode::SERVICE_UNAVAILABLE, "draining\n");
        }
        match self.gate.is_fresh() {
            true => (StatusCode::OK, "ready\n"),
            false => (StatusCode::SERVICE_UNAVAILABLE, "the database does not answer\n"),
        }
    }

    async fn shown(self) -> impl IntoResponse {
        ([("content-type", "text/plain; version=0.0.4")], self.figures.render())
    }
}
