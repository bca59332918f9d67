//! The VMware appliance: the sources, their power, and their replication, with the answers of the real one.
//!
//! What the guests and the hypervisor do (going down, coming back on) goes on whatever becomes of the appliance. What it knows of
//! its jobs is in its memory only: after a restart each of them is unknown, whether its disks are through or not.

mod inventory;
mod power;
mod replication;

use std::collections::{BTreeMap, BTreeSet};

use axum::Router;
use axum::body::Body;
use axum::extract::State as Shared;
use axum::http::{Request, Response};
use chrono::Utc;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::answer::{Answer, answer};
use crate::faults::Fault;
use crate::rest::{Call, to_the_end};
use crate::world::things::Source;
use crate::world::{Cause, State, World};
pub use replication::{Job, writes_to};

/// What is its alone.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Rows {
    /// Where the sources run.
    pub vcenter: Vcenter,
    /// Its replication jobs: forgotten with the process.
    #[serde(skip)]
    pub jobs: BTreeMap<String, Job>,
    /// How often it was started. A copy of an earlier life is dead.
    pub life: u64,
}

/// The vCenter, and who may ask it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Vcenter {
    /// Its name.
    pub host: String,
    /// Its only data centre.
    pub datacenter: String,
    /// Who may ask.
    pub username: String,
    /// And proves it so.
    pub password: String,
}

impl Default for Vcenter {
    fn default() -> Self {
        Self {
            host: "vcenter.example".to_owned(),
            datacenter: "DatabanxDC".to_owned(),
            username: "administrator@vsphere.local".to_owned(),
            password: "pretend-vcenter-password".to_owned(),
        }
    }
}

/// How it behaves, and how the guests do. Times are real milliseconds: `pace` shortens them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Switches {
    /// A guest that is asked to goes down in this time.
    pub shutdown_ms: u64,
    /// A power-off by the guest answers success after this time, whatever the guest does.
    pub early_ms: u64,
    /// A hard power-off takes this long, and so does a power-on.
    pub power_ms: u64,
    /// A guest's tools are there this long after it went on.
    pub tools_ms: u64,
    /// Sources, by instance id or name, that stop at a prompt when they are asked to go down.
    pub hangs_at_prompt: BTreeSet<String>,
    /// Sources, by instance id or name, that are brought back on so long after they went off. Once each.
    pub comes_back_after_ms: BTreeMap<String, u64>,
    /// Sources, by instance id or name, whose power state it does not know.
    pub power_unknown: BTreeSet<String>,
    /// Replication of a disk takes this long.
    pub disk_ms: u64,
    /// Progress says `completed` and `failed`, as the copy process pushes them; off: `Succeeded` and `Failed`.
    pub lower_case_words: bool,
    /// An unknown job is said with a 200, as older builds do.
    pub not_found_is_200: bool,
    /// It serves `/sync/final`, which the real one does not.
    pub has_final_sync: bool,
    /// It names disks by their keys alone: `2000`, not `disk-2000`.
    pub bare_disk_ids: bool,
    /// The disks with these keys are left out by every copy, which ends well all the same.
    pub leaves_out: BTreeSet<u32>,
    /// Copies say `in_progress` while they copy, `completed` after each disk, and list no disks.
    pub disk_by_disk: bool,
}

impl Switches {
    /// What it calls the disk with this key.
    fn disk_id(&self, key: u32) -> String {
        if self.bare_disk_ids { key.to_string() } else { format!("disk-{key}") }
    }
}

impl Default for Switches {
    fn default() -> Self {
        Self {
            shutdown_ms: 20_000,
            early_ms: 5_000,
            power_ms: 2_000,
            tools_ms: 30_000,
            hangs_at_prompt: BTreeSet::new(),
            comes_back_after_ms: BTreeMap::new(),
            power_unknown: BTreeSet::new(),
            disk_ms: 15_000,
            lower_case_words: true,
            not_found_is_200: false,
            has_final_sync: false,
            bare_disk_ids: false,
            leaves_out: BTreeSet::new(),
            disk_by_disk: false,
        }
    }
}

const ROUTES: &[&str] = &[
    "GET /api/v1/health",
    "POST /api/v1/discover",
    "POST /api/v1/replicate",
    "POST /api/v1/sync/final",
    "GET /api/v1/progress/{job}",
    "POST /api/v1/progress/{job}/update",
    "GET /api/v1/status/{job}",
    "GET /api/v1/vms/{path}/cbt-status",
    "POST /api/v1/vm/{id}/power-off",
    "POST /api/v1/vm/{id}/power-on",
    "GET /api/v1/vm/{id}/power-state",
    "POST /api/v1/vm-spec-changes",
    "POST /api/v1/cleanup",
];

/// A start: guests that were going down go on doing so.
pub fn begin(world: &World) {
    restart(world);
    let going = world.look(|state| {
        let going = state.sources.values().filter_map(|source| Some((source.id.clone(), source.going_down?)));
        going.collect::<Vec<_>>()
    });
    for (source, due) in going {
        power::goes_down(world, source, due);
    }
}

/// What a restart does to it: it knows no job any more, and nothing copies.
pub fn restart(world: &World) {
    world.change(Cause::new("vma", "start", ""), |state| {
        state.vma.life += 1;
        state.vma.jobs.clear();
    });
}

/// Its calls.
pub fn router(world: World) -> Router {
    Router::new().fallback(serve).with_state(world)
}

async fn serve(Shared(world): Shared<World>, request: Request<Body>) -> Response<Body> {
    let Some(call) = Call::read(ROUTES, request).await else {
        return Answer::text(404, "404 page not found\n").response();
    };
    let fault = world.faults().draw("vma", &call.command("/api/v1"));
    answer(fault, wrong, |fault| {
        let its = world.clone();
        async move { to_the_end(&world, async move { handle(&its, &call, fault).await }).await }
    })
    .await
}

async fn handle(world: &World, call: &Call, fault: Option<Fault>) -> Answer {
    match call.route {
        "GET /api/v1/health" => {
            Answer::json(200, &json!({"status": "healthy", "timestamp": Utc::now(), "uptime": "24h0m0s"}))
        }
        "POST /api/v1/discover" => inventory::discover(world, call),
        "POST /api/v1/replicate" => replication::start(world, call, fault),
        "POST /api/v1/sync/final" if world.look(|state| state.settings.vma.has_final_sync) => {
            replication::start_final(world, call, fault)
        }
        "GET /api/v1/progress/{job}" => replication::progress(world, call.arg(0), fault),
        "POST /api/v1/progress/{job}/update" => replication::update(world, call),
        "GET /api/v1/status/{job}" => replication::status(world, call.arg(0), fault),
        "GET /api/v1/vms/{path}/cbt-status" => inventory::cbt_status(world, call),
        "POST /api/v1/vm/{id}/power-off" => power::off(world, call, fault).await,
        "POST /api/v1/vm/{id}/power-on" => power::on(world, call).await,
        "GET /api/v1/vm/{id}/power-state" => power::state(world, call),
        "POST /api/v1/vm-spec-changes" => inventory::spec_changes(world, call),
        "POST /api/v1/cleanup" => replication::cleanup(world, call),
        _ => Answer::text(404, "404 page not found\n"),
    }
}

/// How it says that something is wrong: text, never JSON.
fn wrong(status: u16, text: &str) -> Answer {
    Answer::text(status, format!("{text}\n"))
}

/// No, and why: the status and the text.
type Refused = (u16, String);

/// vCenter's name, a user and a password: they travel in every call.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Credentials {
    vcenter: String,
    username: String,
    password: String,
}

impl Credentials {
    fn asked(call: &Call) -> Self {
        let part = |name| call.asked(name).unwrap_or_default().to_owned();
        Self { vcenter: part("vcenter"), username: part("username"), password: part("password") }
    }

    /// 400 when something is missing, and what vCenter says when something is wrong.
    fn check(&self, state: &State) -> Result<(), Refused> {
        if self.vcenter.is_empty() || self.username.is_empty() || self.password.is_empty() {
            return Err((400, "Missing required fields: vcenter, username, password".to_owned()));
        }
        let vcenter = &state.vma.vcenter;
        if self.vcenter != vcenter.host {
            let why =
                format!("failed to connect to vCenter: dial tcp: lookup {}: no such host", self.vcenter);
            return Err((500, why));
        }
        if self.username != vcenter.username || self.password != vcenter.password {
            let why = "failed to connect to vCenter: ServerFaultCode: Cannot complete login due to an incorrect user name or password.";
            return Err((500, why.to_owned()));
        }
        Ok(())
    }
}

/// A source by its instance id.
fn find<'a>(state: &'a State, id: &str) -> Result<&'a Source, Refused> {
    state.sources.get(id).ok_or_else(|| (404, format!("VM not found: {id}")))
}

fn power_word(source: &Source) -> &'static str {
    match source.power {
        crate::world::things::Power::On => "poweredOn",
        crate::world::things::Power::Off => "poweredOff",
        crate::world::things::Power::Suspended => "suspended",
    }
}
