//! `backstay node`.

use std::net::SocketAddr;

use backstay_engine::{Engine, Node, Store};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::config::Config;
use crate::db::{print, up_to_date, with_database};
use crate::health::{Health, bind};
use crate::http::{self, Limits, systemd};
use crate::interrupt::Interrupt;
use crate::trouble::Trouble;
use crate::{catalog, keys, vault};

/// Shows health and figures, for as long as what is returned is kept.
async fn show(
    store: &Store,
    node: &Node,
    address: SocketAddr,
    figures: PrometheusHandle,
) -> Result<(Health, JoinSet<()>), Trouble> {
    let health = Health::of(store, node.pulse(), figures).await;
    let listener = bind(address, "node.health").await?;
    let at = listener.local_addr().unwrap_or(address);
    let mut tasks = JoinSet::new();
    tasks.spawn(health.clone().watch());
    let router = http::layered(health.router(), false);
    tasks.spawn(http::serve(listener, None, router, Limits::default(), CancellationToken::new()));
    print(&format!("Health and figures on http://{at}\n"));
    Ok((health, tasks))
}

/// Works until it is told to stop.
pub(crate) async fn run(config: &Config, interrupt: &Interrupt) -> Result<(), Trouble> {
    crate::log::begin(&config.log);
    let traces = crate::traces::begin(config)?;
    let settings = config.node();
    // Before the node begins: what it has counted by then would be missing.
    let shown = match config.node.health {
        Some(address) => Some((address, crate::figures::keep()?)),
        None => None,
    };
    let grace = config.node.grace.0;
    let done = with_database(config, interrupt, async |database| {
        let store = interrupt.or(database.store()).await?;
        interrupt.or(up_to_date(&store, config)).await?;
        let keys = keys::Place::of(config)?.read().map_err(keys::unusable)?;
        vault::complain(&store, keys.as_ref()).await?;
        let engine = Engine::open(store.clone(), catalog::registry(config, &store, keys).await?).await?;
        let node = interrupt.or(async { Ok(engine.start_node(settings).await?) }).await?;
        tracing::info!(node = node.name(), epoch = node.epoch(), database = %database, "the node is ready");
        let _alive = AbortOnDropHandle::new(tokio::spawn(systemd::keep_alive()));
        let health = match shown.clone() {
            Some((address, figures)) => Some(show(&store, &node, address, figures).await?),
            None => None,
        };
        systemd::tell("READY=1");
        let lost = tokio::select! {
            _ = interrupt.asked() => false,
            () = node.ended() => true,
        };
        systemd::tell("STOPPING=1");
        if let Some((health, _)) = &health {
            health.drain();
        }
        if !lost {
            tracing::info!(grace = %config.node.grace, "asked to end; a second signal ends it at once");
            node.drain(grace).await;
        }
        store.close().await;
        if lost {
            return Err(Trouble::failed(
                "This node has lost its lease, so others go on with its runs. Its clock stood still for too long, or \
                 the database did not answer in time. Start it again.",
            ));
        }
        Ok(())
    });
    let done = done.await;
    traces.end().await;
    done?;
    tracing::info!("the node has ended");
    Ok(())
}
