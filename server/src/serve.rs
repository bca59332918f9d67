//! `backstay serve`: the API and a node, in one process.

use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use backstay_engine::store::access::{Change, NewToken};
use backstay_engine::{Engine, Node, Store};
use chrono::{TimeDelta, Utc};
use metrics_exporter_prometheus::PrometheusHandle;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

use crate::api::gate::{Gate, digest};
use crate::api::rights::Role;
use crate::api::{self, Settings};
use crate::catalog;
use crate::config::Config;
use crate::db::{print, up_to_date, with_database};
use crate::health::{Health, bind};
use crate::http::{self, Limits, Tls, systemd};
use crate::interrupt::Interrupt;
use crate::trouble::Trouble;
use crate::vault;

/// The file in the data folder that holds the first admin's token.
pub(crate) const FIRST_TOKEN: &str = "admin-token";
/// How long the first admin's token is good: time enough to make others.
pub(crate) const FIRST_TOKEN_DAYS: i64 = 30;

/// Works until it is told to stop.
pub(crate) async fn run(config: &Config, interrupt: &Interrupt) -> Result<(), Trouble> {
    crate::log::begin(&config.log);
    let traces = crate::traces::begin(config)?;
    let figures = crate::figures::keep()?;
    let done = with_database(config, interrupt, async |database| {
        let store = interrupt.or(database.store()).await?;
        interrupt.or(up_to_date(&store, config)).await?;
        let served = serve(config, interrupt, &store, figures.clone()).await;
        store.close().await;
        served
    })
    .await;
    traces.end().await;
    done?;
    tracing::info!("the server has ended");
    Ok(())
}

async fn serve(
    config: &Config,
    interrupt: &Interrupt,
    store: &Store,
    figures: PrometheusHandle,
) -> Result<(), Trouble> {
    let server = Server::start(config, interrupt, store, figures).await?;
    if let Some(path) = &server.first_token {
        tracing::info!(file = %path.display(), "the first admin is there; make principals with this token");
        print(&format!(
            "The token of the first admin is in {}. It is good for {FIRST_TOKEN_DAYS} days.\n",
            path.display()
        ));
    }
    let (url, health, node) = (&server.url, server.health_at, &server.node);
    tracing::info!(address = url, %health, node = node.name(), epoch = node.epoch(), "the server is ready");
    print(&format!("Listening on {url}\nHealth and figures on http://{health}\n"));
    systemd::tell("READY=1");

    let lost = tokio::select! {
        _ = interrupt.asked() => false,
        () = server.node.ended() => true,
    };
    systemd::tell("STOPPING=1");
    if !lost {
        tracing::info!(grace = %config.node.grace, "asked to end; a second signal ends it at once");
    }
    server.end(config.node.grace.0).await;
    if lost {
        return Err(Trouble::failed(
            "This node has lost its lease, so others go on with its runs. Its clock stood still for too long, or the \
             database did not answer in time. Start it again.",
        ));
    }
    Ok(())
}

/// A node and the API beside it, at work.
pub(crate) struct Server {
    pub engine: Engine,
    pub node: Node,
    /// Where the API is.
    pub url: String,
    /// Where health and figures are.
    pub health_at: SocketAddr,
    /// Where the token of the first admin is, if this start has made one.
    pub first_token: Option<PathBuf>,
    stop: CancellationToken,
    health: Health,
    serving: JoinHandle<()>,
    _watch: AbortOnDropHandle<()>,
    _beside: JoinSet<()>,
}

impl Server {
    /// Starts both, on a database whose schema is that of this release.
    pub(crate) async fn start(
        config: &Config,
        interrupt: &Interrupt,
        store: &Store,
        figures: PrometheusHandle,
    ) -> Result<Self, Trouble> {
        let keys = vault::keys(config, store).await?;
        vault::complain(store, Some(&keys)).await?;
        let registry = catalog::registry(config, store, Some(keys.clone())).await?;
        let engine = Engine::open(store.clone(), registry).await?;
        let workflows = Arc::new(catalog::workflows(config, engine.registry())?);
        let first_token = interrupt.or(first_token(store, &config.data_dir)).await?;
        let stop = CancellationToken::new();
        let settings = Settings { keys: Some(keys), workflows, stop: stop.clone() };
        let gate = Gate::new(engine.clone(), settings);
        let watching = gate.clone();
        let watch = AbortOnDropHandle::new(tokio::spawn(async move { watching.watch().await }));
        let node = interrupt.or(async { Ok(engine.start_node(config.node()).await?) }).await?;
        let health = Health::of(store, node.pulse(), figures).await;

        let tls = tls(config)?;
        let limits = Limits {
            connections: config.listen.connections,
            per_address: config.listen.connections_per_address,
            ..Limits::default()
        };
        let listener = bind(config.listen.address, "listen.address").await?;
        let beside = bind(config.listen.health, "listen.health").await?;
        let (at, health_at) = (local(&listener)?, local(&beside)?);
        let scheme = if tls.is_some() { "https" } else { "http" };
        let mut tasks = JoinSet::new();
        if let Some(tls) = tls.clone() {
            tasks.spawn(async move { tls.watch().await });
        } else {
            // It may always ask to read files again.
            tasks.spawn(systemd::nothing_to_reload());
        }
        let old = store.clone();
        tasks.spawn(async move { forget(&old).await });
        tasks.spawn(systemd::keep_alive());
        tasks.spawn(health.clone().watch());
        let router = http::layered(api::router(gate), tls.is_some());
        let serving = tokio::spawn(http::serve(listener, tls, router, limits, stop.clone()));
        let of_health = http::layered(health.router(), false);
        tasks.spawn(http::serve(beside, None, of_health, limits, CancellationToken::new()));
        Ok(Self {
            engine,
            node,
            url: format!("{scheme}://{at}"),
            health_at,
            first_token,
            stop,
            health,
            serving,
            _watch: watch,
            _beside: tasks,
        })
    }

    /// Hands the runs over. Calls in flight have this long to end; callers are answered meanwhile.
    pub(crate) async fn end(self, grace: Duration) {
        self.health.drain();
        self.stop.cancel();
        let ((), _) = tokio::join!(self.node.drain(grace), self.serving);
    }
}

/// Answers are kept for those who ask again, for a day.
async fn forget(store: &Store) {
    loop {
        if let Err(error) = store.forget_answers(Duration::from_secs(24 * 3600)).await {
            tracing::debug!(error = &error as &dyn std::error::Error, "old answers are kept a little longer");
        }
        tokio::time::sleep(Duration::from_secs(3600)).await;
    }
}

fn local(listener: &TcpListener) -> Result<SocketAddr, Trouble> {
    listener.local_addr().map_err(|error| Trouble::failed(format!("The address is not known: {error}.")))
}

/// What the listener shows, if it speaks TLS.
pub(crate) fn tls(config: &Config) -> Result<Option<Arc<Tls>>, Trouble> {
    let listen = &config.listen;
    let (Some(certificate), Some(key)) = (&listen.certificate, &listen.key) else { return Ok(None) };
    Tls::read(certificate, key, listen.client_authority.as_deref())
        .map(Some)
        .map_err(|why| Trouble::usage(format!("TLS is not possible: {why}.")))
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
        [Role::Admin, Role::Approver, Role::Author, Role::Operator].map(|role| role.name().to_owned()).into();
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
