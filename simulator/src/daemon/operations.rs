//! Operations: what the daemon does to volumes, each in a task that the answer does not wait for.
//!
//! Nothing makes two of them one: no key, no lock of a volume. What CloudStack refuses, and what the daemon's own tables refuse
//! after CloudStack did it, are both `failed`, with a text to tell them apart.

use std::future::Future;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::tables::{self, Mapping};
use super::{Answer, exports, list_of, pause, wrong};
use crate::cloudstack;
use crate::faults::Fault;
use crate::rest::Call;
use crate::world::moves::Refusal;
use crate::world::table::Tie;
use crate::world::{Cause, State, World};

/// An operation, as it is answered.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Operation {
    /// Its id.
    pub id: Uuid,
    /// `create`, `attach`, `detach`, `delete`, `cleanup`.
    #[serde(rename = "type")]
    pub kind: String,
    /// `pending`, `executing`, `completed`, `failed`.
    pub status: String,
    /// The volume; of a create it stays empty.
    pub volume_id: String,
    /// The VM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vm_id: Option<String>,
    /// What was asked.
    pub request: Value,
    /// What came of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response: Option<Value>,
    /// What went wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// When it was asked.
    pub created_at: DateTime<Utc>,
    /// When it was touched last.
    pub updated_at: DateTime<Utc>,
    /// When it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completed_at: Option<DateTime<Utc>>,
}

type Outcome = Result<Value, String>;

impl Operation {
    /// Whether it is over.
    #[must_use]
    pub fn ended(&self) -> bool {
        matches!(self.status.as_str(), "completed" | "failed" | "cancelled")
    }

    /// It is over.
    pub fn end(&mut self, outcome: Outcome) {
        let now = Utc::now();
        (self.updated_at, self.completed_at) = (now, Some(now));
        match outcome {
            Ok(response) => (self.status, self.response) = ("completed".to_owned(), Some(response)),
            Err(error) => (self.status, self.error) = ("failed".to_owned(), Some(error)),
        }
    }
}

pub fn get(world: &World, call: &Call, fault: Option<Fault>) -> Answer {
    let found = world.look(|state| {
        let known =
            call.arg(0).parse().ok().and_then(|id| state.daemon.operations.first(&Tie::Operation(id)));
        known.filter(|known| known.id.to_string() == call.arg(0)).cloned()
    });
    match found {
        Some(operation) if fault != Some(Fault::JobLost) => Answer::json(200, &json!(operation)),
        _ => wrong(404, "operation not found"),
    }
}

pub fn list(world: &World, call: &Call) -> Answer {
    let limit = call.asked("limit").and_then(|limit| limit.parse().ok()).unwrap_or(usize::MAX);
    let found: Vec<Value> = world.look(|state| {
        let fits = |operation: &&Operation| {
            call.asked("type").is_none_or(|kind| kind == operation.kind)
                && call.asked("status").is_none_or(|status| status == operation.status)
                && call.asked("volume_id").is_none_or(|volume| volume == operation.volume_id)
                && call.asked("vm_id").is_none_or(|vm| Some(vm) == operation.vm_id.as_deref())
        };
        let operations = &state.daemon.operations;
        let told = |operation: &Operation| json!(operation);
        match call.asked("volume_id") {
            Some(volume) => {
                let of_it = operations.tied(&Tie::VolumeName(volume.to_owned()));
                of_it.rev().filter(fits).take(limit).map(told).collect()
            }
            None => operations.iter().rev().filter(fits).take(limit).map(told).collect(),
        }
    });
    Answer::json(200, &list_of(world, found))
}

pub fn create(world: &World, call: &Call, fault: Option<Fault>) -> Answer {
    let Ok(request) = call.json::<Map<String, Value>>() else { return wrong(400, "invalid request format") };
    let text = |name: &str| request.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let Some(size) = request.get("size").and_then(Value::as_u64) else {
        return wrong(400, "size must be a number of bytes");
    };
    let (name, offering, zone) = (text("name"), text("disk_offering_id"), text("zone_id"));
    let request = Value::Object(request);
    begin(world, "create", "", None, request, fault, move |work| async move {
        let zone = if zone.is_empty() { work.world.look(first_zone) } else { zone };
        let gib = (size >> 30).max(1).to_string();
        let params = [
            ("name", name.as_str()),
            ("size", gib.as_str()),
            ("diskofferingid", offering.as_str()),
            ("zoneid", zone.as_str()),
        ];
        let made = work.cloudstack("create volume", "createVolume", &params).await?;
        let id =
            made.pointer("/volume/id").or_else(|| made.get("id")).and_then(Value::as_str).unwrap_or_default();
        Ok(json!({"volume_id": id, "message": "Volume created successfully in CloudStack"}))
    })
}

pub fn attach(world: &World, call: &Call, as_root: bool, fault: Option<Fault>) -> Answer {
    let Ok(request) = call.json::<Map<String, Value>>() else { return wrong(400, "invalid request format") };
    // A VM that is not named is not refused: it goes to CloudStack as it is.
    let vm = request.get("vm_id").and_then(Value::as_str).unwrap_or_default().to_owned();
    let volume = call.arg(0).to_owned();
    let mut asked = json!({"volume_id": volume, "vm_id": vm});
    if let (true, Some(asked)) = (as_root, asked.as_object_mut()) {
        asked.insert("device_id".to_owned(), json!(0));
        asked.insert("attach_as".to_owned(), json!("root"));
    }
    let (about, at) = (volume.clone(), vm.clone());
    begin(world, "attach", &about, Some(&at), asked, fault, move |work| async move {
        let mut params = vec![("id", volume.as_str()), ("virtualmachineid", vm.as_str())];
        if as_root {
            params.push(("deviceid", "0"));
        }
        work.cloudstack("attach volume", "attachVolume", &params).await?;
        let path = work.settle_in(&volume, &vm, as_root).await?;
        let mut response = json!({"volume_id": volume, "vm_id": vm, "device_path": path, "message": "Volume attached successfully"});
        if let (true, Some(response)) = (as_root, response.as_object_mut()) {
            response.insert("device_id".to_owned(), json!(0));
        }
        Ok(response)
    })
}

pub fn detach(world: &World, call: &Call, fault: Option<Fault>) -> Answer {
    let volume = call.arg(0).to_owned();
    let about = volume.clone();
    begin(world, "detach", &about, None, json!({"volume_id": volume}), fault, move |work| async move {
        let path = work.take_away(&volume).await?;
        Ok(json!({"volume_id": volume, "device_path": path, "message": "Volume detached successfully"}))
    })
}

pub fn delete(world: &World, call: &Call, fault: Option<Fault>) -> Answer {
    let volume = call.arg(0).to_owned();
    let about = volume.clone();
    begin(world, "delete", &about, None, json!({"volume_id": volume}), fault, move |work| async move {
        let mapped = work.world.look(|state| state.daemon.mapping_of(&volume).is_some());
        if mapped {
            work.take_away(&volume).await?;
        }
        work.cloudstack("delete volume", "deleteVolume", &[("id", &volume)]).await?;
        Ok(json!({"volume_id": volume, "message": "Volume deleted successfully"}))
    })
}

/// One volume of a test failover comes home. The mapping is written after it says that it is through, and mostly is refused.
pub fn cleanup(world: &World, call: &Call, fault: Option<Fault>) -> Answer {
    let Ok(request) = call.json::<Map<String, Value>>() else { return wrong(400, "invalid request format") };
    let text = |name: &str| request.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let flag = |name: &str| request.get(name).and_then(Value::as_bool).unwrap_or(false);
    let (vm, volume, oma) = (text("test_vm_id"), text("volume_id"), text("oma_vm_id"));
    let (delete_vm, force) = (flag("delete_vm"), flag("force_clean"));
    let (about, at, request) = (volume.clone(), vm.clone(), Value::Object(request));
    begin(world, "cleanup", &about, Some(&at), request, fault, move |work| async move {
        let state = work.cloudstack("check VM", "listVirtualMachines", &[("id", &vm)]).await?;
        let stopped = state.pointer("/virtualmachine/0/state").and_then(Value::as_str) == Some("Stopped");
        if !stopped && !force {
            work.cloudstack("stop VM", "stopVirtualMachine", &[("id", &vm), ("forced", "true")]).await?;
            pause(&work.world, 3_000).await;
        }
        work.cloudstack("detach volume", "detachVolume", &[("id", &volume)]).await?;
        pause(&work.world, 5_000).await;
        work.cloudstack("attach volume", "attachVolume", &[("id", &volume), ("virtualmachineid", &oma)])
            .await?;
        let path = work.device(&volume).await.unwrap_or_default();
        if delete_vm {
            let gone = work
                .cloudstack("delete VM", "destroyVirtualMachine", &[("id", &vm), ("expunge", "true")])
                .await;
            if let Err(why) = gone {
                tracing::warn!("the cleanup goes on without deleting the VM: {why}");
            }
        }
        let (at_oma, there) = (oma.clone(), path.clone());
        work.change(|state| {
            // The old row was not taken away: this one is refused, and that is only a warning.
            let size = size_of(state, &volume);
            tables::insert(state, Mapping::new(&volume, &at_oma, "oma", there, size))
                .unwrap_or_else(|why| tracing::warn!("{why}"));
        });
        Ok(
            json!({"test_vm_id": vm, "volume_id": volume, "oma_vm_id": oma, "device_path": path, "vm_deleted": delete_vm,
            "message": "Test failover cleanup completed successfully"}),
        )
    })
}

/// Writes the row, answers, and leaves the rest to a task.
fn begin<W, F>(
    world: &World,
    kind: &str,
    volume: &str,
    vm: Option<&str>,
    request: Value,
    fault: Option<Fault>,
    what: W,
) -> Answer
where
    W: FnOnce(Work) -> F + Send + 'static,
    F: Future<Output = Outcome> + Send + 'static,
{
    let now = Utc::now();
    let operation = Operation {
        id: Uuid::new_v4(),
        kind: kind.to_owned(),
        status: "pending".to_owned(),
        volume_id: volume.to_owned(),
        vm_id: vm.map(str::to_owned),
        request,
        response: None,
        error: None,
        created_at: now,
        updated_at: now,
        completed_at: None,
    };
    let cause = Cause::new("daemon", format!("{kind} operation"), volume);
    let row = operation.clone();
    let life = world.change(cause.clone(), |state| {
        state.daemon.operations.push(row);
        state.daemon.life
    });
    let work = Work { world: world.clone(), id: operation.id, life, cause };
    world.spawn(work.run(fault, what));
    Answer::json(201, &json!(operation))
}

/// An operation under way. It belongs to the life of the daemon that began it.
#[derive(Clone)]
struct Work {
    world: World,
    id: Uuid,
    life: u64,
    cause: Cause,
}

impl Work {
    async fn run<W, F>(self, fault: Option<Fault>, what: W)
    where
        W: FnOnce(Work) -> F,
        F: Future<Output = Outcome>,
    {
        self.touch(|operation| operation.status = "executing".to_owned());
        let outcome = match fault {
            Some(Fault::Stuck) => return,
            // It is answered, and done this much later.
            Some(Fault::Lagging { ms }) => {
                tokio::time::sleep(Duration::from_millis(ms)).await;
                what(self.clone()).await
            }
            Some(Fault::JobFails { code }) => {
                Err(format!("CloudStack API error {code}: something went wrong"))
            }
            Some(Fault::JobCancelledButDone { .. }) => {
                what(self.clone()).await.and(Err("context deadline exceeded".to_owned()))
            }
            _ => what(self.clone()).await,
        };
        self.touch(|operation| operation.end(outcome));
    }

    /// Changes the row, unless a restart came in between: then nobody does.
    fn touch(&self, change: impl FnOnce(&mut Operation)) {
        self.change(|state| {
            if let Some(operation) = state.daemon.operations.first_mut(&Tie::Operation(self.id)) {
                operation.updated_at = Utc::now();
                change(operation);
            }
        });
    }

    fn change<T: Default>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        self.world.change(self.cause.clone(), |state| {
            if state.daemon.life == self.life { change(state) } else { T::default() }
        })
    }

    fn is_over(&self) -> bool {
        self.world.look(|state| state.daemon.life != self.life)
    }

    /// A command of CloudStack, waited for. A daemon that is gone asks for nothing more.
    async fn cloudstack(&self, doing: &str, command: &str, params: &[(&str, &str)]) -> Outcome {
        if self.is_over() {
            return std::future::pending().await;
        }
        cloudstack::perform(&self.world, "daemon", command, params).await.map_err(|refusal| {
            let Refusal { code, cs, text } = refusal;
            format!("failed to {doing} via CloudStack: CloudStack API error {code} (CSExceptionErrorCode: {cs}): {text}")
        })
    }

    /// CloudStack has attached it. What follows is the daemon's own, and can fail without anything being taken back.
    async fn settle_in(&self, volume: &str, vm: &str, as_root: bool) -> Result<String, String> {
        let at_oma = self
            .world
            .look(|state| vm == state.oma.to_string() && !state.settings.daemon.does_not_know_the_oma);
        let path = match (at_oma, as_root) {
            (true, _) => self.device(volume).await?,
            (false, true) => format!("remote-vm-root-{vm}"),
            (false, false) => format!("remote-vm-{vm}"),
        };
        let mode = if at_oma { "oma" } else { "failover" };
        let mut written = Ok(());
        self.change(|state| {
            let size = if at_oma { size_of(state, volume) } else { 0 };
            written = tables::insert(state, Mapping::new(volume, vm, mode, path.clone(), size));
            if written.is_ok() && at_oma {
                exports::make(state, volume, &path);
            }
        });
        written.map(|()| path)
    }

    /// Waits for the device of a volume at the OMA.
    async fn device(&self, volume: &str) -> Result<String, String> {
        let (wait, after) = self
            .world
            .look(|state| (state.settings.daemon.device_wait_ms, state.settings.daemon.device_after_ms));
        pause(&self.world, wait.min(after)).await;
        let id = Uuid::parse_str(volume).unwrap_or_default();
        let path = self.world.look(|state| crate::devices::path(state, id));
        let plugged = self
            .world
            .look(|state| state.volumes.get(&id).is_some_and(|row| row.plugged.contains(&state.oma)));
        if after > wait || !plugged {
            return Err(format!(
                "failed to resolve device path: timeout waiting for device {path} after {wait}ms"
            ));
        }
        Ok(path)
    }

    /// Says where it was; a volume that the daemon knows nothing of is taken away all the same.
    async fn take_away(&self, volume: &str) -> Result<String, String> {
        let mapping = self.world.look(|state| state.daemon.mapping_of(volume).cloned());
        self.cloudstack("detach volume", "detachVolume", &[("id", volume)]).await?;
        self.change(|state| tables::remove(state, volume));
        Ok(mapping.map(|row| row.device_path).unwrap_or_default())
    }
}

fn first_zone(state: &State) -> String {
    state.zones.first().map(|zone| zone.id.to_string()).unwrap_or_default()
}

fn size_of(state: &State, volume: &str) -> u64 {
    let id = Uuid::parse_str(volume).unwrap_or_default();
    state.volumes.get(&id).map_or(0, |row| row.size)
}
