//! Who works, and how well.

use axum::http::Method;
use backstay_engine::RunId;
use backstay_engine::machine::Time;
use schemars::JsonSchema;
use serde::Serialize;

use super::gate::Permit;
use super::operation::{Ask, Operation, Reply, operation};
use super::problem::Problem;
use super::rights::Right;

pub(super) fn operations() -> Vec<Operation> {
    vec![
        operation(Method::GET, "/nodes", "listNodes", Right::View, nodes)
            .about("cluster", "The nodes that work on this database, and those that did lately."),
        operation(Method::GET, "/figures", "getFigures", Right::View, figures).about(
            "cluster",
            "How many live runs are where, and which of them nothing moves: there must be none.",
        ),
    ]
}

#[derive(Serialize, JsonSchema)]
struct NodeView {
    /// The number of its life.
    epoch: i64,
    /// Its name.
    name: String,
    /// Since when.
    started_at: Time,
    /// How long it may write without renewing.
    lease_until: Time,
    /// When this life ended.
    ended_at: Option<Time>,
    /// How: `stopped`, `lost` or `superseded`.
    ended_why: Option<String>,
}

async fn nodes(permit: Permit, _: Ask<(), (), ()>) -> Result<Reply<Vec<NodeView>>, Problem> {
    let all = permit.store().nodes().await?;
    let view = |one: backstay_engine::store::NodeInfo| NodeView {
        epoch: one.epoch,
        name: one.name,
        started_at: one.started_at,
        lease_until: one.lease_until,
        ended_at: one.ended_at,
        ended_why: one.ended_why,
    };
    Ok(Reply::new(all.into_iter().map(view).collect()))
}

#[derive(Serialize, JsonSchema)]
struct Figures {
    /// Live runs, by status.
    live: Vec<Count>,
    /// Live runs that nothing will move, and why. There must be none.
    silent: Vec<Silent>,
}

#[derive(Serialize, JsonSchema)]
struct Count {
    /// The status.
    status: String,
    /// How many.
    runs: i64,
}

#[derive(Serialize, JsonSchema)]
struct Silent {
    /// The run.
    run: RunId,
    /// Why.
    why: String,
}

async fn figures(permit: Permit, _: Ask<(), (), ()>) -> Result<Reply<Figures>, Problem> {
    let live = permit.store().count_live().await?;
    let silent = permit.engine().silent().await?.into_iter();
    let silent = silent.filter(|_| permit.workflows().is_none());
    Ok(Reply::new(Figures {
        live: live.into_iter().map(|(status, runs)| Count { status, runs }).collect(),
        silent: silent.map(|(run, why)| Silent { run, why }).collect(),
    }))
}
