//! What is so, whatever the systems say, and the controls: in the process, and over HTTP at the control address.
//!
//! | | |
//! |---|---|
//! | `GET /truth` | everything below in one answer |
//! | `GET /state` | the whole world |
//! | `GET /faults`, `POST /faults`, `DELETE /faults` | the rules and how often each fired; add one; take all away |
//! | `GET /settings`, `PATCH /settings` | how the systems behave |
//! | `POST /restart/{system}?away_ms=` | `cloudstack`, `daemon`, `vma`, `linstor` |
//! | `POST /sources/{id}/write?disk=` | the source's guest writes |
//! | `POST /sources/{id}/commit` | its failover is final |
//! | `POST /credentials/expire` | no signature is good any more |

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, Query, State as Shared};
use axum::response::Response;
use axum::routing::{get, post};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::Servers;
use crate::answer::Answer;
use crate::faults::{Fired, Rule};
use crate::settings::Settings;
use crate::world::things::{DiskRef, Power};
use crate::world::{Cause, State, Violation, World};
use crate::{cloudstack, daemon, linstor, vma};

/// What is so, and the controls.
#[derive(Clone)]
pub struct Truth {
    world: World,
    servers: Arc<Servers>,
    /// What there was when the program began.
    was_there: Arc<BTreeSet<Uuid>>,
}

/// Something that was made since the program began, and is still there: what a leak scan looks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Made {
    /// `vm`, `volume`, `snapshot`, `vm snapshot`.
    pub kind: &'static str,
    /// Its id.
    pub id: Uuid,
    /// Its name.
    pub name: String,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
}

/// A VM that runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Running {
    /// Its id.
    pub vm: Uuid,
    /// Its name.
    pub name: String,
    /// The names of its networks.
    pub networks: Vec<String>,
    /// At least one of them is seen by the world.
    pub production: bool,
}

/// One of the systems.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum System {
    /// CloudStack's management server.
    CloudStack,
    /// The Volume Daemon.
    Daemon,
    /// The VMware appliance.
    Vma,
    /// LINSTOR's controller.
    Linstor,
}

impl Truth {
    pub(crate) fn new(world: World, servers: Arc<Servers>) -> Truth {
        let was_there = world.look(|state| made(state).into_iter().map(|thing| thing.id).collect());
        Truth { world, servers, was_there: Arc::new(was_there) }
    }

    /// The world itself.
    pub fn world(&self) -> &World {
        &self.world
    }

    pub(crate) fn servers(&self) -> &Servers {
        &self.servers
    }

    /// The VMs at which a volume hangs.
    pub fn holders(&self, volume: Uuid) -> BTreeSet<Uuid> {
        self.world.look(|state| state.volumes.get(&volume).map(|v| v.plugged.clone()).unwrap_or_default())
    }

    /// The VMs of CloudStack that run.
    pub fn running(&self) -> Vec<Running> {
        self.world.look(|state| {
            let on = state.vms.values().filter(|vm| vm.power == Power::On);
            on.map(|vm| {
                let networks: Vec<_> =
                    vm.nics.iter().filter_map(|nic| state.networks.get(&nic.network)).collect();
                Running {
                    vm: vm.id,
                    name: vm.name.clone(),
                    networks: networks.iter().map(|network| network.name.clone()).collect(),
                    production: networks.iter().any(|network| network.production),
                }
            })
            .collect()
        })
    }

    /// What there is with a tag: `vm …`, `volume …`, `snapshot …`, `vm snapshot …`. Without a value: any.
    pub fn tagged(&self, key: &str, value: Option<&str>) -> Vec<String> {
        let mut things = self.world.look(made);
        things.retain(|thing| thing.tags.get(key).is_some_and(|is| value.is_none_or(|wish| wish == is)));
        things.into_iter().map(|thing| format!("{} {}", thing.kind, thing.id)).collect()
    }

    /// What was made since the program began, and is still there.
    pub fn made(&self) -> Vec<Made> {
        let mut things = self.world.look(made);
        things.retain(|thing| !self.was_there.contains(&thing.id));
        things
    }

    /// How often an effect was applied, to all of its targets together.
    pub fn effect(&self, command: &str) -> u64 {
        self.world.look(|state| state.effects.get(command).map_or(0, |targets| targets.values().sum()))
    }

    /// How often each effect was applied: command, then target.
    pub fn effects(&self) -> BTreeMap<String, BTreeMap<String, u64>> {
        self.world.look(|state| state.effects.clone())
    }

    /// The invariants that did not hold.
    pub fn violations(&self) -> Vec<Violation> {
        self.world.look(|state| state.violations.clone())
    }

    /// See [`State::longest_adrift`].
    pub fn adrift(&self) -> BTreeMap<Uuid, i64> {
        self.world.look(State::longest_adrift)
    }

    /// How often each fault fired.
    pub fn fired(&self) -> Vec<Fired> {
        self.world.faults().fired()
    }

    /// Changes how the systems behave.
    pub fn set(&self, change: impl FnOnce(&mut Settings)) {
        self.world.change(Cause::new("control", "settings", ""), |state| change(&mut state.settings));
    }

    /// Restarts a system: its connections break, and it is not there for a while.
    pub fn restart(&self, system: System, away: Duration) {
        match system {
            System::CloudStack => {
                cloudstack::restart(&self.world);
                self.servers.cloudstack.hang_up(away);
            }
            System::Daemon => {
                daemon::restart(&self.world);
                self.servers.daemon.hang_up(away);
            }
            System::Vma => {
                vma::restart(&self.world);
                self.servers.vma.hang_up(away);
            }
            System::Linstor => {
                linstor::restart(&self.world);
                self.servers.linstor.hang_up(away);
            }
        }
    }

    /// A source's guest writes to one of its disks. Says the new version; nothing when it is off or not there.
    pub fn write(&self, source: &str, disk: u32) -> Option<u64> {
        let disk = DiskRef { source: source.to_owned(), key: disk };
        self.world.change(Cause::new("control", "write", source), |state| state.source_writes(&disk))
    }

    /// The failover of a source is final: from now on nothing may bring its disks back.
    pub fn commit(&self, source: &str) {
        self.world.change(Cause::new("control", "commit", source), |state| {
            state.committed.insert(source.to_owned())
        });
    }

    /// No signature of any account is good any more.
    pub fn expire_credentials(&self) {
        self.world.change(Cause::new("control", "credentials", ""), |state| {
            state.accounts.iter_mut().for_each(|account| account.expired = true);
        });
    }

    /// All of it, as it goes over HTTP.
    pub fn told(&self) -> Value {
        let volumes = self.world.look(|state| {
            let volumes = state.volumes.values().filter(|volume| volume.removed.is_none());
            let told = |v: &crate::world::things::Volume| {
                json!({
                    "id": v.id, "name": v.name, "holders": v.plugged, "attached": v.attached, "content": v.content,
                    "replica_of": v.replica_of,
                })
            };
            volumes.map(told).collect::<Vec<_>>()
        });
        json!({
            "volumes": volumes,
            "running": self.running(),
            "sources": self.world.look(|state| {
                state.sources.values().map(|s| json!({ "id": s.id, "name": s.name, "power": s.power })).collect::<Vec<_>>()
            }),
            "made": self.made(),
            "effects": self.effects(),
            "violations": self.violations(),
            "adrift_ms": self.adrift(),
            "faults": self.fired(),
            "calls": self.world.faults().calls(),
        })
    }
}

/// All that is there and could have been made by somebody.
fn made(state: &State) -> Vec<Made> {
    let mut things = Vec::new();
    let mut add = |kind, id, name: &String, tags: &BTreeMap<String, String>, gone: bool| {
        if !gone {
            things.push(Made { kind, id, name: name.clone(), tags: tags.clone() });
        }
    };
    state.vms.values().for_each(|x| add("vm", x.id, &x.name, &x.tags, x.removed.is_some()));
    state.volumes.values().for_each(|x| add("volume", x.id, &x.name, &x.tags, x.removed.is_some()));
    state.snapshots.values().for_each(|x| add("snapshot", x.id, &x.name, &x.tags, x.removed.is_some()));
    let vm_snapshots = state.vm_snapshots.values();
    vm_snapshots.for_each(|x| add("vm snapshot", x.id, &x.display_name, &x.tags, x.removed.is_some()));
    things
}

/// The control address.
pub fn router(truth: Truth) -> Router {
    let world = truth.world.clone();
    Router::new()
        .route("/truth", get(|Shared(truth): Shared<Truth>| async move { ok(&truth.told()) }))
        .route(
            "/state",
            get(|Shared(truth): Shared<Truth>| async move { ok(&truth.world.look(|state| json!(state))) }),
        )
        .route("/faults", get(get_faults).post(post_fault).delete(delete_faults))
        .route("/settings", get(get_settings).patch(patch_settings))
        .route("/restart/{system}", post(post_restart))
        .route("/sources/{id}/write", post(post_write))
        .route("/sources/{id}/commit", post(post_commit))
        .route("/credentials/expire", post(post_expire))
        .with_state(truth)
        .merge(crate::conversion::router(world))
}

fn ok(body: &Value) -> Response {
    Answer::json(200, body).response()
}

fn bad(text: impl std::fmt::Display) -> Response {
    Answer::json(400, &json!({ "error": text.to_string() })).response()
}

async fn get_faults(Shared(truth): Shared<Truth>) -> Response {
    ok(&json!(truth.fired()))
}

async fn post_fault(Shared(truth): Shared<Truth>, body: Bytes) -> Response {
    match serde_json::from_slice::<Rule>(&body) {
        Ok(rule) => {
            truth.world.faults().rule(rule);
            ok(&json!(truth.fired()))
        }
        Err(error) => bad(format!("this is no rule: {error}")),
    }
}

async fn delete_faults(Shared(truth): Shared<Truth>) -> Response {
    truth.world.faults().clear();
    ok(&json!([]))
}

async fn get_settings(Shared(truth): Shared<Truth>) -> Response {
    ok(&truth.world.look(|state| json!(state.settings)))
}

async fn patch_settings(Shared(truth): Shared<Truth>, body: Bytes) -> Response {
    let patch: Value = match serde_json::from_slice(&body) {
        Ok(patch) => patch,
        Err(error) => return bad(format!("this is no JSON: {error}")),
    };
    let mut settings = truth.world.look(|state| json!(state.settings));
    merge(&mut settings, patch);
    match serde_json::from_value::<Settings>(settings) {
        Ok(settings) => {
            truth.set(|now| *now = settings.clone());
            ok(&json!(settings))
        }
        Err(error) => bad(format!("these are no settings: {error}")),
    }
}

fn merge(into: &mut Value, patch: Value) {
    match (into, patch) {
        (Value::Object(into), Value::Object(patch)) => {
            for (key, value) in patch {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, patch) => *into = patch,
    }
}

#[derive(Deserialize)]
struct Away {
    #[serde(default)]
    away_ms: u64,
}

async fn post_restart(
    Shared(truth): Shared<Truth>,
    Path(system): Path<System>,
    Query(away): Query<Away>,
) -> Response {
    truth.restart(system, Duration::from_millis(away.away_ms));
    ok(&json!({ "restarted": true }))
}

#[derive(Deserialize)]
struct Disk {
    disk: u32,
}

async fn post_write(
    Shared(truth): Shared<Truth>,
    Path(id): Path<String>,
    Query(disk): Query<Disk>,
) -> Response {
    match truth.write(&id, disk.disk) {
        Some(version) => ok(&json!({ "version": version })),
        None => bad("there is no such disk, or its machine is off"),
    }
}

async fn post_commit(Shared(truth): Shared<Truth>, Path(id): Path<String>) -> Response {
    truth.commit(&id);
    ok(&json!({ "committed": id }))
}

async fn post_expire(Shared(truth): Shared<Truth>) -> Response {
    truth.expire_credentials();
    ok(&json!({ "expired": true }))
}
