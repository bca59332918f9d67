//! LINSTOR's controller: snapshots of resources, behind CloudStack's back.
//!
//! A volume with storage is the resource `cs-` and its path, on two of the hosts, and on a third without a disk where it is used
//! elsewhere. An answer is a list of entries, each with a code: success, info, warning and error stand side by side in it, and a
//! client that looks at the first one only has not looked.

mod codes;
mod snapshots;
mod views;

use std::collections::{BTreeMap, BTreeSet};

use axum::Router;
use axum::body::Body;
use axum::extract::State as Shared;
use axum::http::{Request, Response};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::json;
use uuid::Uuid;

use crate::answer::{Answer, answer};
use crate::faults::Fault;
use crate::rest::{Call, to_the_end};
use crate::world::table::Tie;
use crate::world::things::{Power, Volume};
use crate::world::{State, World};

/// What is its alone.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Rows {
    /// Of each snapshot, where it is.
    pub nodes: BTreeMap<Uuid, Placed>,
    /// What went wrong on the nodes.
    pub reports: Vec<Report>,
    /// Resources that go back to a snapshot now.
    #[serde(skip)]
    pub rolling: BTreeSet<Uuid>,
}

/// Where a snapshot is, and where it should be and is not.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Placed {
    /// It is there.
    pub on: BTreeSet<String>,
    /// It failed there: the whole of it is worth nothing.
    pub failed_on: BTreeSet<String>,
}

/// An error report.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// `673F0A1B-7C2E5-000001`.
    pub id: String,
    /// Where.
    pub node: String,
    /// What.
    pub text: String,
    /// When.
    pub at: DateTime<Utc>,
}

/// How it behaves. Times are real milliseconds: `pace` shortens them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Switches {
    /// A snapshot takes this long.
    pub snapshot_ms: u64,
    /// A rollback takes this long.
    pub rollback_ms: u64,
    /// Nodes whose satellite is not connected: snapshots leave them out with a warning, a rollback is refused.
    pub offline_nodes: BTreeSet<String>,
    /// Nodes on which a snapshot fails, after it was taken on the others.
    pub failing_nodes: BTreeSet<String>,
    /// The pools are ZFS: a rollback loses every snapshot that is newer.
    pub zfs: bool,
}

impl Default for Switches {
    fn default() -> Self {
        Self {
            snapshot_ms: 1_500,
            rollback_ms: 3_000,
            offline_nodes: BTreeSet::new(),
            failing_nodes: BTreeSet::new(),
            zfs: false,
        }
    }
}

const ROUTES: &[&str] = &[
    "GET /v1/controller/version",
    "GET /v1/nodes",
    "GET /v1/resource-definitions",
    "GET /v1/resource-definitions/{resource}",
    "GET /v1/resource-definitions/{resource}/resources",
    "GET /v1/view/resources",
    "GET /v1/resource-definitions/{resource}/snapshots",
    "GET /v1/resource-definitions/{resource}/snapshots/{snapshot}",
    "POST /v1/resource-definitions/{resource}/snapshots",
    "DELETE /v1/resource-definitions/{resource}/snapshots/{snapshot}",
    "GET /v1/view/snapshots",
    "POST /v1/resource-definitions/{resource}/snapshot-rollback/{snapshot}",
    "POST /v1/actions/snapshot/multi",
    "GET /v1/error-reports",
    "GET /v1/error-reports/{report}",
];

/// A start. What was under way when it was killed is over.
pub fn begin(_world: &World) {}

/// What a restart does to it: what is under way on the nodes goes on.
pub fn restart(_world: &World) {}

/// Its calls.
pub fn router(world: World) -> Router {
    Router::new().fallback(serve).with_state(world)
}

async fn serve(Shared(world): Shared<World>, request: Request<Body>) -> Response<Body> {
    let Some(call) = Call::read(ROUTES, request).await else {
        return Answer::text(404, "HTTP 404 Not Found").response();
    };
    let fault = world.faults().draw("linstor", &call.command("/v1"));
    answer(fault, codes::wrong, |fault| {
        let its = world.clone();
        async move { to_the_end(&world, async move { handle(&its, &call, fault).await }).await }
    })
    .await
}

async fn handle(world: &World, call: &Call, fault: Option<Fault>) -> Answer {
    match call.route {
        "GET /v1/controller/version" => Answer::json(
            200,
            &json!({"version": "1.29.2", "git_hash": "0000000000000000000000000000000000000000",
                "build_time": "2024-11-05T10:21:45+00:00", "rest_api_version": "1.24.0"}),
        ),
        "GET /v1/nodes" => views::nodes(world),
        "GET /v1/resource-definitions" => views::definitions(world, None),
        "GET /v1/resource-definitions/{resource}" => views::definitions(world, Some(call.arg(0))),
        "GET /v1/resource-definitions/{resource}/resources" => {
            views::resources(world, &[call.arg(0)], &[], true)
        }
        "GET /v1/view/resources" => {
            let (resources, nodes): (Vec<_>, Vec<_>) =
                (call.all("resources").collect(), call.all("nodes").collect());
            views::resources(world, &resources, &nodes, false)
        }
        "GET /v1/resource-definitions/{resource}/snapshots" => {
            views::snapshots(world, &[call.arg(0)], &[], None)
        }
        "GET /v1/resource-definitions/{resource}/snapshots/{snapshot}" => {
            views::snapshots(world, &[call.arg(0)], &[], Some(call.arg(1)))
        }
        "GET /v1/view/snapshots" => {
            let (resources, nodes): (Vec<_>, Vec<_>) =
                (call.all("resources").collect(), call.all("nodes").collect());
            views::snapshots(world, &resources, &nodes, None)
        }
        "POST /v1/resource-definitions/{resource}/snapshots" => snapshots::create_one(world, call).await,
        "POST /v1/actions/snapshot/multi" => snapshots::create_several(world, call).await,
        "DELETE /v1/resource-definitions/{resource}/snapshots/{snapshot}" => {
            snapshots::delete(world, call, fault)
        }
        "POST /v1/resource-definitions/{resource}/snapshot-rollback/{snapshot}" => {
            snapshots::roll_back(world, call).await
        }
        "GET /v1/error-reports" => views::reports(world, None),
        "GET /v1/error-reports/{report}" => views::reports(world, Some(call.arg(0))),
        _ => Answer::text(404, "HTTP 404 Not Found"),
    }
}

/// The resource of a volume.
pub fn resource(volume: &Volume) -> String {
    format!("cs-{}", volume.path)
}

/// Volumes that have storage, and so a resource: of these names, or all without any.
fn with_storage<'a>(state: &'a State, names: &[&str]) -> impl Iterator<Item = &'a Volume> + use<'a> {
    use crate::world::things::VolumeState::{Allocated, Creating};
    let has_storage =
        |volume: &&Volume| volume.removed.is_none() && !matches!(volume.state, Allocated | Creating);
    let mut found: Vec<&Volume> = if names.is_empty() {
        state.volumes.values().filter(has_storage).collect()
    } else {
        let named = names.iter().flat_map(|name| state.volumes.tied(&Tie::Resource((*name).to_owned())));
        named.filter(has_storage).collect()
    };
    found.sort_by_key(|volume| volume.id);
    found.dedup_by_key(|volume| volume.id);
    found.into_iter()
}

fn volume_of(state: &State, name: &str) -> Option<Uuid> {
    with_storage(state, &[name]).next().map(|volume| volume.id)
}

/// The hosts with a disk of it: two, chosen by its id.
fn disks_on(state: &State, volume: Uuid) -> Vec<String> {
    let count = state.hosts.len().max(1);
    let first = usize::from(volume.as_bytes().last().copied().unwrap_or_default()) % count;
    let hosts = state.hosts.iter().map(|host| host.name.clone());
    hosts.cycle().skip(first).take(count.min(2)).collect()
}

/// The hosts on which a machine uses it.
fn used_on(state: &State, volume: &Volume) -> BTreeSet<String> {
    let vms = volume.plugged.iter().filter_map(|vm| state.vms.get(vm)).filter(|vm| vm.power == Power::On);
    let name = |id: Option<Uuid>| {
        let host = state.hosts.iter().find(|host| Some(host.id) == id).or_else(|| state.hosts.first());
        host.map_or_else(|| "kvm-01".to_owned(), |host| host.name.clone())
    };
    vms.map(|vm| name(vm.host)).collect()
}

/// Now, as it counts time.
fn millis(at: DateTime<Utc>) -> i64 {
    at.timestamp_millis()
}

/// Writes an error report, and says its id.
fn report(state: &mut State, node: &str, text: &str) -> String {
    let id = format!("673F0A1B-7C2E5-{:06}", state.linstor.reports.len());
    let report = Report { id: id.clone(), node: node.to_owned(), text: text.to_owned(), at: Utc::now() };
    state.linstor.reports.push(report);
    id
}
