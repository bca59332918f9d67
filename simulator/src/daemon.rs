//! The Volume Daemon: volumes, their places and their NBD exports, through CloudStack, with the defects of the real one.
//!
//! Every change is an operation: a row that is `pending` when the answer goes out, and that a task takes on from there. A restart
//! ends the tasks and leaves the rows, so such an operation never ends. What it knows of places is its own table of mappings, and
//! that table can be wrong in all the ways that the real one's is.

mod exports;
mod operations;
mod tables;

use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::State as Shared;
use axum::http::{Request, Response};
use chrono::Utc;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::answer::{Answer, answer};
use crate::faults::Fault;
use crate::rest::Call;
use crate::world::list::List;
use crate::world::table::Tie;
use crate::world::{Cause, World};
pub use exports::{Export, volume_of};
pub use operations::Operation;
pub use tables::Mapping;

/// What is its alone, and is kept with the world.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Rows {
    /// Every operation, oldest first.
    pub operations: List<Operation>,
    /// Where it thinks that volumes are.
    pub mappings: List<Mapping>,
    /// The NBD exports.
    pub exports: List<Export>,
    /// It has looked around once: the replicas that were there at first are in its tables.
    pub settled: bool,
    /// How often it was started. What an earlier life began is not carried on.
    pub life: u64,
}

impl Rows {
    /// A change is over: the indexes follow.
    pub fn settle(&mut self) {
        self.operations.settle();
        self.mappings.settle();
        self.exports.settle();
    }

    /// Whether every index is what its rows say.
    pub fn is_settled(&self) -> bool {
        self.operations.is_settled() && self.mappings.is_settled() && self.exports.is_settled()
    }

    /// Where it thinks that a volume is.
    fn mapping_of(&self, volume: &str) -> Option<&Mapping> {
        self.mappings.first(&Tie::VolumeName(volume.to_owned()))
    }

    /// The export of a volume.
    fn export_of(&self, volume: &str) -> Option<&Export> {
        self.exports.first(&Tie::VolumeName(volume.to_owned()))
    }
}

/// How it behaves. The defects of the real one are on until somebody turns them off.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Switches {
    /// How long it waits for a device of the OMA: after that the operation fails, and the volume is attached.
    pub device_wait_ms: u64,
    /// How long a device takes to show up. Longer than the wait: see there.
    pub device_after_ms: u64,
    /// Two data disks at one destination VM have the same placeholder for a path: the second operation fails, and the volume is
    /// attached.
    pub placeholders_collide: bool,
    /// Operations that a restart broke off stay `executing` for ever. Off: they fail.
    pub restart_leaves_operations: bool,
    /// An empty list of operations or snapshots is `null`.
    pub null_lists: bool,
    /// It cannot find out which VM is the OMA: every volume is recorded as being somewhere else, without device and export.
    pub does_not_know_the_oma: bool,
    /// Its database is away. Health says `healthy` all the same, with the truth in another field.
    pub database_down: bool,
    /// NBD exports cannot be made: an error in its log, and the attach succeeds.
    pub exports_fail: bool,
}

impl Default for Switches {
    fn default() -> Self {
        Self {
            device_wait_ms: 10_000,
            device_after_ms: 400,
            placeholders_collide: true,
            restart_leaves_operations: true,
            null_lists: true,
            does_not_know_the_oma: false,
            database_down: false,
            exports_fail: false,
        }
    }
}

const ROUTES: &[&str] = &[
    "POST /api/v1/volumes",
    "POST /api/v1/volumes/{id}/attach",
    "POST /api/v1/volumes/{id}/attach-root",
    "POST /api/v1/volumes/{id}/detach",
    "DELETE /api/v1/volumes/{id}",
    "POST /api/v1/cleanup/test-failover",
    "GET /api/v1/operations/{id}",
    "GET /api/v1/operations",
    "GET /api/v1/volumes/{id}",
    "GET /api/v1/volumes/{id}/device",
    "GET /api/v1/devices/{path}/volume",
    "GET /api/v1/vms/{id}/volumes",
    "POST /api/v1/snapshots/track",
    "GET /api/v1/snapshots/vm/{context}",
    "DELETE /api/v1/snapshots/vm/{context}",
    "PUT /api/v1/snapshots/{volume}",
    "POST /api/v1/exports",
    "GET /api/v1/exports",
    "GET /api/v1/exports/{id}",
    "DELETE /api/v1/exports/{id}",
    "POST /api/v1/exports/validate",
    "POST /api/v1/exports/cleanup",
    "POST /api/v1/exports/cleanup/age",
    "GET /api/v1/exports/orphaned/count",
    "POST /api/v1/admin/force-sync",
    "GET /api/v1/health",
    "GET /health",
    "GET /metrics",
];

/// A start: what an earlier life had under way is nobody's now. The first time it looks for the replicas at the OMA.
pub fn begin(world: &World) {
    world.change(Cause::new("daemon", "start", ""), |state| {
        state.daemon.life += 1;
        if !state.daemon.settled {
            state.daemon.settled = true;
            tables::settle(state);
        }
        if !state.settings.daemon.restart_leaves_operations {
            for operation in state.daemon.operations.iter_mut().filter(|operation| !operation.ended()) {
                operation.end(Err("interrupted by a restart of the daemon".to_owned()));
            }
        }
    });
}

/// What a restart does to it.
pub fn restart(world: &World) {
    begin(world);
}

/// Its calls.
pub fn router(world: World) -> Router {
    Router::new().fallback(serve).with_state(world)
}

async fn serve(Shared(world): Shared<World>, request: Request<Body>) -> Response<Body> {
    let Some(call) = Call::read(ROUTES, request).await else {
        return Answer::text(404, "404 page not found").response();
    };
    let fault = world.faults().draw("daemon", &call.command("/api/v1"));
    answer(fault, wrong, |fault| async move { handle(&world, &call, fault) }).await
}

/// Every answer is given at once: what takes time is a task of the world.
fn handle(world: &World, call: &Call, fault: Option<Fault>) -> Answer {
    let database_down = world.look(|state| state.settings.daemon.database_down);
    let needs_no_database = [
        "GET /health",
        "GET /api/v1/health",
        "GET /metrics",
        "GET /api/v1/volumes/{id}",
        "POST /api/v1/admin/force-sync",
    ];
    if database_down && !needs_no_database.contains(&call.route) {
        return wrong(500, "driver: bad connection: dial tcp 127.0.0.1:3306: connect: connection refused");
    }
    let cause = Cause::new("daemon", call.command("/api/v1"), call.arg(0));
    match call.route {
        "POST /api/v1/volumes" => operations::create(world, call, fault),
        "POST /api/v1/volumes/{id}/attach" => operations::attach(world, call, false, fault),
        "POST /api/v1/volumes/{id}/attach-root" => operations::attach(world, call, true, fault),
        "POST /api/v1/volumes/{id}/detach" => operations::detach(world, call, fault),
        "DELETE /api/v1/volumes/{id}" => operations::delete(world, call, fault),
        "POST /api/v1/cleanup/test-failover" => operations::cleanup(world, call, fault),
        "GET /api/v1/operations/{id}" => operations::get(world, call, fault),
        "GET /api/v1/operations" => operations::list(world, call),
        // It never says anything of use.
        "GET /api/v1/volumes/{id}" => Answer::json(
            200,
            &json!({"volume_id": call.arg(0), "state": "unknown", "size": 0, "cloudstack_data": null}),
        ),
        "GET /api/v1/volumes/{id}/device" => tables::device_of(world, call.arg(0)),
        // A path has more than one segment: no device can ever be named so.
        "GET /api/v1/devices/{path}/volume" => tables::volume_at(world, &format!("/{}", call.arg(0))),
        "GET /api/v1/vms/{id}/volumes" => tables::volumes_of(world, call.arg(0)),
        "POST /api/v1/snapshots/track" => tables::track(world, cause, call),
        "GET /api/v1/snapshots/vm/{context}" => tables::tracked(world, call.arg(0)),
        "DELETE /api/v1/snapshots/vm/{context}" => tables::untrack(world, cause, call.arg(0)),
        "PUT /api/v1/snapshots/{volume}" => tables::update_snapshot(world, cause, call),
        "POST /api/v1/exports" => exports::create(world, cause, call),
        "GET /api/v1/exports" => exports::list(world, call),
        "GET /api/v1/exports/{id}" => exports::get(world, call.arg(0)),
        "DELETE /api/v1/exports/{id}" => exports::delete(world, cause, call.arg(0)),
        "POST /api/v1/exports/validate"
        | "POST /api/v1/exports/cleanup"
        | "POST /api/v1/exports/cleanup/age" => exports::cleanup(world, cause, call),
        "GET /api/v1/exports/orphaned/count" => exports::orphans(world),
        "POST /api/v1/admin/force-sync" => wrong(500, "force sync not implemented"),
        "GET /health" => Answer::json(
            200,
            &json!({"status": "healthy", "timestamp": Utc::now(), "service": "volume-daemon", "version": "1.2.1"}),
        ),
        "GET /api/v1/health" => Answer::json(200, &health(database_down)),
        "GET /metrics" => Answer::json(
            200,
            &json!({"timestamp": Utc::now(), "total_operations": 0, "pending_operations": 0, "active_mappings": 0,
                "operations_by_type": {}, "operations_by_status": {}, "average_response_time_ms": 0, "error_rate_percent": 0}),
        ),
        _ => Answer::text(404, "404 page not found"),
    }
}

/// Healthy, whatever is: only one field is asked of anything.
fn health(database_down: bool) -> Value {
    let database =
        if database_down { "unhealthy: database ping failed: connection refused" } else { "healthy" };
    json!({"status": "healthy", "timestamp": Utc::now(), "cloudstack_health": "not_implemented", "database_health": database,
        "device_monitor": "not_implemented", "details": {"implementation_status": "Phase 2: Core Operations Implemented"}})
}

/// How it says that something is wrong: text only, no code.
fn wrong(status: u16, text: &str) -> Answer {
    Answer::json(status, &json!({"error": text}))
}

/// A list, or the `null` that a nil slice of Go becomes.
fn list_of(world: &World, items: Vec<Value>) -> Value {
    let null = items.is_empty() && world.look(|state| state.settings.daemon.null_lists);
    if null { Value::Null } else { Value::Array(items) }
}

/// What takes so many real milliseconds takes so long here.
async fn pause(world: &World, ms: u64) {
    world.pause(Duration::from_millis(ms)).await;
}
