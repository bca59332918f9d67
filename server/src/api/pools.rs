//! Targets: how many calls they bear, whether they are down, and who stands in line.

use axum::http::Method;
use backstay_engine::machine::Time;
use backstay_engine::store::access::{Change, Changed};
use backstay_engine::store::{Limits, Outage, PoolInfo};
use backstay_engine::{OutageInfo, RunId};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::gate::Permit;
use super::operation::{Ask, InJson, Operation, Reply, operation};
use super::people::no_nul;
use super::problem::{BAD_REQUEST, KEY_REUSED, MOVED, NOT_FOUND, Problem};
use super::rights::Right;

pub(super) fn operations() -> Vec<Operation> {
    vec![
        operation(Method::GET, "/pools", "listPools", Right::View, list)
            .about("pools", "Lists pools: how many calls each target bears, how many are under way and wait, and whether it is down."),
        operation(Method::GET, "/pools/{name}", "getPool", Right::View, one)
            .about("pools", "One pool, with what each node holds of it. Its ETag counts the changes of its limits.")
            .fails(&[&NOT_FOUND]),
        operation(Method::PUT, "/pools/{name}", "setPool", Right::Pools, set)
            .about("pools", "Limits the calls to a target, over all nodes. They go by it within a second or two; calls under way go on.")
            .fails(&[&MOVED]),
        operation(Method::GET, "/outages", "listOutages", Right::View, outages)
            .about("pools", "Targets that are down, the longest first."),
        operation(Method::POST, "/pools/{name}/outage", "declareOutage", Right::Pools, declare)
            .about("pools", "Takes a target for down until somebody ends that: no call to it is begun.")
            .fails(&[&KEY_REUSED]),
        operation(Method::DELETE, "/pools/{name}/outage", "endOutage", Right::Pools, end)
            .about("pools", "Takes a target for back: its steps go on, a few at first."),
        operation(Method::GET, "/lines", "getLine", Right::View, line)
            .about("pools", "Who has an exclusive key, and who stands in line for it."),
    ]
}

#[derive(Deserialize, JsonSchema)]
struct Named {
    /// The pool's name.
    name: String,
}

#[derive(Serialize, JsonSchema)]
struct PoolView {
    /// Its name.
    name: String,
    /// Calls at once, on all nodes together; none: not limited.
    at_once: Option<i32>,
    /// Calls that begin in a second; none: not limited.
    per_second: Option<f64>,
    /// Calls under way: as the nodes said last, a second or so ago.
    busy: i64,
    /// Runs that wait for a place.
    waiting: i64,
    /// It is taken for down.
    outage: Option<OutageView>,
    /// It was down until then, and its limit still grows.
    back_since: Option<Time>,
    /// Who holds what of it.
    shares: Vec<ShareView>,
}

#[derive(Serialize, JsonSchema)]
struct ShareView {
    /// The node.
    node: String,
    /// Calls that it may have under way; none: as many as it likes.
    slots: Option<i32>,
    /// Calls a second that it may begin.
    rate: Option<f64>,
    /// Calls under way.
    busy: i32,
    /// Runs that wait there for a place.
    waiting: i32,
}

#[derive(Serialize, JsonSchema)]
struct OutageView {
    /// Since when.
    since: Time,
    /// What the last call said, or why it was declared.
    why: String,
    /// Who declared it, and has to end it. Nobody: the nodes have found it down.
    declarer: Option<String>,
    /// Tries since then, all in vain.
    tries: i32,
    /// When it is tried next.
    next_try: Option<Time>,
}

impl From<Outage> for OutageView {
    fn from(one: Outage) -> Self {
        let Outage { since, why, declarer, tries, next_try, .. } = one;
        Self { since, why, declarer, tries, next_try }
    }
}

impl From<PoolInfo> for PoolView {
    fn from(pool: PoolInfo) -> Self {
        let share = |one: backstay_engine::store::ShareRow| ShareView {
            node: one.node,
            slots: one.slots,
            rate: one.rate,
            busy: one.busy,
            waiting: one.waiting,
        };
        Self {
            name: pool.name,
            at_once: pool.at_once,
            per_second: pool.per_second,
            busy: pool.busy,
            waiting: pool.waiting,
            outage: pool.outage.map(OutageView::from),
            back_since: pool.back_since,
            shares: pool.shares.into_iter().map(share).collect(),
        }
    }
}

async fn list(permit: Permit, _: Ask<(), (), ()>) -> Result<Reply<Vec<PoolView>>, Problem> {
    Ok(Reply::new(permit.engine().pools().await?.into_iter().map(PoolView::from).collect()))
}

async fn one(permit: Permit, ask: Ask<Named, (), ()>) -> Result<Reply<PoolView>, Problem> {
    no_nul("path/name", &ask.path.name)?;
    shown(&permit, &ask.path.name).await
}

async fn shown(permit: &Permit, name: &str) -> Result<Reply<PoolView>, Problem> {
    let pool = permit.engine().pool(name).await?;
    let version = pool.version;
    Ok(Reply::new(PoolView::from(pool)).version(version))
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Wanted {
    /// Calls at once, on all nodes together. Left out: not limited.
    #[serde(default)]
    #[schemars(range(min = 1))]
    at_once: Option<u32>,
    /// Calls that begin in a second, on all nodes together. Left out: not limited.
    #[serde(default)]
    #[schemars(extend("exclusiveMinimum" = 0))]
    per_second: Option<f64>,
}

async fn set(permit: Permit, ask: Ask<Named, (), InJson<Wanted>>) -> Result<Reply<PoolView>, Problem> {
    let Wanted { at_once, per_second } = ask.body.0;
    let name = ask.path.name;
    let entry = permit.change(&name, json!({ "at_once": at_once, "per_second": per_second })).entry;
    let seen = ask.if_match.map(|seen| i32::try_from(seen).unwrap_or(-1));
    if !permit.engine().set_pool_if(&name, Limits { at_once, per_second }, seen, Some(&entry)).await? {
        let detail =
            format!("the limits of \"{}\" have been changed since they were read", name.escape_debug());
        return Err(Problem::new(&MOVED, detail));
    }
    shown(&permit, &name).await
}

#[derive(Serialize, JsonSchema)]
struct Down {
    /// The pool of the target.
    pool: String,
    /// What is known of it.
    outage: OutageView,
    /// Runs that wait for its end.
    waiting: i64,
}

async fn outages(permit: Permit, _: Ask<(), (), ()>) -> Result<Reply<Vec<Down>>, Problem> {
    let view =
        |OutageInfo { pool, outage, waiting }| Down { pool, outage: OutageView::from(outage), waiting };
    Ok(Reply::new(permit.engine().outages().await?.into_iter().map(view).collect()))
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Declared {
    /// Why.
    #[schemars(length(min = 1, max = 1000))]
    why: String,
}

/// Whether something changed.
#[derive(Serialize, Deserialize, JsonSchema)]
struct Outcome {
    /// False if it was so before.
    changed: bool,
}

async fn declare(permit: Permit, ask: Ask<Named, (), InJson<Declared>>) -> Result<Reply<Outcome>, Problem> {
    let (name, why, key) = (ask.path.name, ask.body.0.why, ask.key.as_deref());
    let known = async || {
        let before = permit.answered(key, &ask.digest).await?;
        // Asked again since the answer was lost. Somebody may have ended it meanwhile, and it stays so.
        Ok::<_, Problem>(before.and_then(|before| serde_json::from_value::<Outcome>(before).ok()))
    };
    if let Some(before) = known().await? {
        return Ok(Reply::new(before));
    }
    let kept = |changed| permit.kept(key, &ask.digest, 200, &json!(Outcome { changed }));
    let change = Change { kept: kept(true)?, ..permit.change(&name, json!({ "why": why })) };
    match permit.engine().declare_outage(&name, permit.who(), &why, Some(&change)).await? {
        Changed::Done(_) => Ok(Reply::new(Outcome { changed: true })),
        Changed::Known if let Some(before) = known().await? => Ok(Reply::new(before)),
        _ => {
            if let Some(kept) = kept(false)? {
                permit.store().keep_answer(&kept).await?;
            }
            Ok(Reply::new(Outcome { changed: false }))
        }
    }
}

async fn end(permit: Permit, ask: Ask<Named, (), ()>) -> Result<Reply<Outcome>, Problem> {
    no_nul("path/name", &ask.path.name)?;
    let entry = permit.change(&ask.path.name, json!(null)).entry;
    let changed = permit.engine().end_outage(&ask.path.name, Some(&entry)).await?;
    Ok(Reply::new(Outcome { changed }))
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct OfKey {
    /// The exclusive key.
    key: String,
}

#[derive(Serialize, JsonSchema)]
struct LineView {
    /// The live run that has the key.
    holder: Option<RunId>,
    /// Those that stand in line, in their order: the first thousand.
    waiting: Vec<RunId>,
}

async fn line(permit: Permit, ask: Ask<(), OfKey, ()>) -> Result<Reply<LineView>, Problem> {
    no_nul("query/key", &ask.query.key)?;
    if permit.workflows().is_some() {
        return Err(Problem::at(
            &BAD_REQUEST,
            "token",
            "a token that is about some workflows only sees no lines",
        ));
    }
    let line = permit.engine().line(&ask.query.key).await?;
    Ok(Reply::new(LineView { holder: line.holder, waiting: line.waiting }))
}
