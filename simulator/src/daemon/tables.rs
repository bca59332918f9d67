//! Where the daemon thinks that volumes are: its table of device mappings, and the snapshots that hang on its rows.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::exports::Export;
use super::{list_of, wrong};
use crate::answer::Answer;
use crate::rest::Call;
use crate::world::table::Tie;
use crate::world::{Cause, State, World};

/// A row: this volume is there.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Mapping {
    /// The volume: unique.
    pub volume_uuid: String,
    /// The VM.
    pub vm_id: String,
    /// `oma` or `failover`.
    pub operation_mode: String,
    /// The slot, when it is known.
    pub cloudstack_device_id: Option<i64>,
    /// The device, or a placeholder: unique.
    pub device_path: String,
    /// `detected` or `n/a`.
    pub linux_state: String,
    /// In bytes; 0 for a VM that is not the OMA.
    pub size: u64,
    /// The snapshot that somebody told it of.
    pub snapshot: Option<Tracked>,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it was touched last.
    pub updated_at: DateTime<Utc>,
}

/// A snapshot that somebody told it of. It goes with the row.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Tracked {
    /// Whose.
    pub vm_context_id: String,
    /// Its id.
    pub snapshot_id: String,
    /// Its name.
    pub snapshot_name: Option<String>,
    /// `none`, `creating`, `ready`, `failed`, `rollback_complete`.
    pub status: String,
    /// When it was told.
    pub created_at: DateTime<Utc>,
}

impl Mapping {
    /// A row for a volume that is at a VM now.
    pub fn new(volume: &str, vm: &str, mode: &str, path: String, size: u64) -> Self {
        let (at_oma, now) = (mode == "oma", Utc::now());
        Self {
            volume_uuid: volume.to_owned(),
            vm_id: vm.to_owned(),
            operation_mode: mode.to_owned(),
            cloudstack_device_id: None,
            device_path: path,
            linux_state: if at_oma { "detected" } else { "n/a" }.to_owned(),
            size,
            snapshot: None,
            created_at: now,
            updated_at: now,
        }
    }

    /// As it is answered: id and vm_context_id are never selected.
    fn shape(&self) -> Value {
        let mut shape = json!({
            "id": "", "vm_context_id": null, "volume_uuid": self.volume_uuid, "volume_id_numeric": null, "vm_id": self.vm_id,
            "operation_mode": self.operation_mode, "cloudstack_device_id": self.cloudstack_device_id,
            "requires_device_correlation": self.operation_mode == "oma", "device_path": self.device_path,
            "cloudstack_state": "attached", "linux_state": self.linux_state, "size": self.size, "last_sync": self.updated_at,
            "snapshot_status": self.snapshot.as_ref().map_or("none", |snapshot| &snapshot.status),
            "created_at": self.created_at, "updated_at": self.updated_at,
        });
        if let (Some(snapshot), Some(shape)) = (&self.snapshot, shape.as_object_mut()) {
            shape.insert("ossea_snapshot_id".to_owned(), json!(snapshot.snapshot_id));
            shape.insert("snapshot_created_at".to_owned(), json!(snapshot.created_at));
        }
        if let (true, Some(shape)) = (self.operation_mode == "oma", shape.as_object_mut()) {
            let name = format!("migration-vol-{}", self.volume_uuid);
            shape.insert("symlink_path".to_owned(), json!(format!("/dev/mapper/{name}")));
            shape.insert("persistent_device_name".to_owned(), json!(name));
        }
        shape
    }

    fn snapshot_shape(&self, snapshot: &Tracked) -> Value {
        json!({
            "volume_uuid": self.volume_uuid, "vm_context_id": snapshot.vm_context_id, "device_path": self.device_path,
            "operation_mode": self.operation_mode, "snapshot_id": snapshot.snapshot_id,
            "snapshot_created_at": snapshot.created_at, "snapshot_status": snapshot.status,
        })
    }
}

/// Two rows for one volume, or for one path: the schema refuses the second.
pub fn insert(state: &mut State, mapping: Mapping) -> Result<(), String> {
    let duplicate = |value: &str, key: &str| {
        Err(format!(
            "failed to create device mapping: Error 1062 (23000): Duplicate entry '{value}' for key '{key}'"
        ))
    };
    if state.daemon.mapping_of(&mapping.volume_uuid).is_some() {
        return duplicate(&mapping.volume_uuid, "unique_volume_uuid");
    }
    let collides = state.settings.daemon.placeholders_collide || mapping.operation_mode == "oma";
    let there = Tie::Device(mapping.device_path.clone());
    if collides && state.daemon.mappings.first(&there).is_some() {
        return duplicate(&mapping.device_path, "unique_device_path");
    }
    state.daemon.mappings.push(mapping);
    Ok(())
}

/// Without the row there is no export either: a foreign key takes it along.
pub fn remove(state: &mut State, volume: &str) {
    let its = Tie::VolumeName(volume.to_owned());
    state.daemon.mappings.remove(&its);
    state.daemon.exports.remove(&its);
}

/// What replication put there before this story begins.
pub fn settle(state: &mut State) {
    let oma = state.oma;
    let at_oma =
        state.volumes.values().filter(|volume| volume.replica_of.is_some() && volume.plugged.contains(&oma));
    let found: Vec<(Uuid, u64, Option<u32>)> =
        at_oma.map(|volume| (volume.id, volume.size, volume.attached.map(|at| at.device))).collect();
    for (volume, size, device) in found {
        let path = crate::devices::path(state, volume);
        let mut mapping = Mapping::new(&volume.to_string(), &oma.to_string(), "oma", path.clone(), size);
        mapping.cloudstack_device_id = device.map(i64::from);
        state.daemon.mappings.push(mapping);
        state.daemon.exports.push(Export::new(&volume.to_string(), path));
    }
}

pub fn device_of(world: &World, volume: &str) -> Answer {
    let row = world.look(|state| state.daemon.mapping_of(volume).map(Mapping::shape));
    row.map_or_else(
        || wrong(404, &format!("mapping not found for volume {volume}")),
        |row| Answer::json(200, &row),
    )
}

pub fn volume_at(world: &World, path: &str) -> Answer {
    let row =
        world.look(|state| state.daemon.mappings.first(&Tie::Device(path.to_owned())).map(Mapping::shape));
    row.map_or_else(
        || wrong(404, &format!("mapping not found for device {path}")),
        |row| Answer::json(200, &row),
    )
}

/// What its own table says; CloudStack is not asked.
pub fn volumes_of(world: &World, vm: &str) -> Answer {
    let volumes = world.look(|state| {
        let rows = state.daemon.mappings.tied(&Tie::VmName(vm.to_owned()));
        let shape = |row: &Mapping| {
            json!({"volume_id": row.volume_uuid, "vm_id": row.vm_id, "device_path": row.device_path, "state": "attached",
                "size": row.size, "cloudstack_data": null})
        };
        rows.map(shape).collect::<Vec<_>>()
    });
    Answer::json(200, &Value::Array(volumes))
}

pub fn track(world: &World, cause: Cause, call: &Call) -> Answer {
    let Ok(body) = call.json::<Map<String, Value>>() else { return wrong(400, "invalid request format") };
    let field = |name: &str| {
        body.get(name).and_then(Value::as_str).filter(|text| !text.is_empty()).map(str::to_owned)
    };
    let (Some(volume), Some(context), Some(snapshot)) =
        (field("volume_uuid"), field("vm_context_id"), field("snapshot_id"))
    else {
        return wrong(400, "volume_uuid, vm_context_id and snapshot_id are required");
    };
    let tracked = Tracked {
        vm_context_id: context.clone(),
        snapshot_id: snapshot.clone(),
        snapshot_name: field("snapshot_name"),
        status: field("snapshot_status").unwrap_or_else(|| "ready".to_owned()),
        created_at: Utc::now(),
    };
    let known = on_row(world, cause, &volume, |row| row.snapshot = Some(tracked));
    if !known {
        return wrong(500, &format!("failed to track snapshot: no device mapping found for volume {volume}"));
    }
    let message = "Snapshot tracked successfully";
    Answer::json(
        200,
        &json!({"message": message, "volume_uuid": volume, "snapshot_id": snapshot, "vm_context_id": context}),
    )
}

pub fn tracked(world: &World, context: &str) -> Answer {
    let found = world.look(|state| {
        let rows = state.daemon.mappings.iter().filter_map(|row| Some((row, row.snapshot.as_ref()?)));
        let rows = rows.filter(|(_, snapshot)| snapshot.vm_context_id == context);
        rows.map(|(row, snapshot)| row.snapshot_shape(snapshot)).collect::<Vec<_>>()
    });
    let count = found.len();
    Answer::json(200, &json!({"vm_context_id": context, "snapshots": list_of(world, found), "count": count}))
}

pub fn untrack(world: &World, cause: Cause, context: &str) -> Answer {
    let cleared = world.change(cause, |state| {
        let rows = state.daemon.mappings.iter_mut();
        let rows = rows
            .filter(|row| row.snapshot.as_ref().is_some_and(|snapshot| snapshot.vm_context_id == context));
        rows.map(|row| row.snapshot = None).count()
    });
    let message = "Snapshot tracking cleared successfully";
    Answer::json(200, &json!({"message": message, "vm_context_id": context, "snapshots_cleared": cleared}))
}

pub fn update_snapshot(world: &World, cause: Cause, call: &Call) -> Answer {
    let Ok(body) = call.json::<Map<String, Value>>() else { return wrong(400, "invalid request format") };
    let field = |name: &str| {
        body.get(name).and_then(Value::as_str).filter(|text| !text.is_empty()).map(str::to_owned)
    };
    let volume = call.arg(0);
    let known = on_row(world, cause, volume, |row| {
        let snapshot = row.snapshot.get_or_insert_with(|| Tracked {
            vm_context_id: String::new(),
            snapshot_id: String::new(),
            snapshot_name: None,
            status: "none".to_owned(),
            created_at: Utc::now(),
        });
        if let Some(id) = field("snapshot_id") {
            snapshot.snapshot_id = id;
        }
        if let Some(name) = field("snapshot_name") {
            snapshot.snapshot_name = Some(name);
        }
        if let Some(status) = field("snapshot_status") {
            snapshot.status = status;
        }
    });
    if !known {
        return wrong(
            500,
            &format!("failed to update snapshot: no device mapping found for volume {volume}"),
        );
    }
    Answer::json(200, &json!({"message": "Snapshot updated successfully", "volume_uuid": volume}))
}

fn on_row(world: &World, cause: Cause, volume: &str, change: impl FnOnce(&mut Mapping)) -> bool {
    world.change(cause, |state| {
        let row = state.daemon.mappings.first_mut(&Tie::VolumeName(volume.to_owned()));
        let Some(row) = row else { return false };
        change(row);
        row.updated_at = Utc::now();
        true
    })
}
