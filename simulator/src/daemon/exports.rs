//! The NBD exports: what replication writes through. One shared port; a volume's export has its name.

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{Answer, wrong};
use crate::rest::Call;
use crate::world::table::Tie;
use crate::world::{Cause, State, World};

/// The port of the NBD server.
pub const PORT: u16 = 10_809;

/// An export.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Export {
    /// `nbd-export-<nanoseconds>`.
    pub id: String,
    /// The volume.
    pub volume_id: String,
    /// `migration-vol-<volume>`.
    pub export_name: String,
    /// What is exported.
    pub device_path: String,
    /// `pending`, `active`, `failed`.
    pub status: String,
    /// Whose disk it is, as far as anybody said.
    pub metadata: Map<String, Value>,
    /// When it was made.
    pub created_at: DateTime<Utc>,
}

impl Export {
    /// An export of a device.
    pub fn new(volume: &str, device_path: String) -> Self {
        let now = Utc::now();
        Self {
            id: format!("nbd-export-{}", now.timestamp_nanos_opt().unwrap_or_default()),
            volume_id: volume.to_owned(),
            export_name: format!("migration-vol-{volume}"),
            device_path,
            status: "active".to_owned(),
            metadata: Map::new(),
            created_at: now,
        }
    }

    fn shape(&self) -> Value {
        json!({"id": self.id, "volume_id": self.volume_id, "export_name": self.export_name, "device_path": self.device_path,
            "port": PORT, "status": self.status, "created_at": self.created_at, "updated_at": self.created_at,
            "metadata": self.metadata})
    }
}

/// The volume that an export stands for, if the NBD server has it.
pub fn volume_of<'a>(state: &'a State, export: &str) -> Option<&'a str> {
    let found = state.daemon.exports.first(&Tie::Export(export.to_owned()));
    found.map(|known| known.volume_id.as_str())
}

/// An attach at the OMA makes an export; an error is only logged.
pub fn make(state: &mut State, volume: &str, path: &str) {
    if state.settings.daemon.exports_fail {
        tracing::warn!(volume, "the NBD export could not be made");
        return;
    }
    state.daemon.exports.remove(&Tie::VolumeName(volume.to_owned()));
    state.daemon.exports.push(Export::new(volume, path.to_owned()));
}

pub fn create(world: &World, cause: Cause, call: &Call) -> Answer {
    let Ok(body) = call.json::<Map<String, Value>>() else { return wrong(400, "invalid request format") };
    let text = |name: &str| body.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let volume = text("volume_id");
    if volume.is_empty() {
        return wrong(400, "volume_id is required");
    }
    let made = world.change(cause, |state| {
        if state.settings.daemon.exports_fail {
            return Err(
                "failed to create NBD export: nbd-server could not be told to read its configuration"
                    .to_owned(),
            );
        }
        if let Some(known) = state.daemon.export_of(&volume) {
            return Ok(known.shape());
        }
        let Some(mapping) = state.daemon.mapping_of(&volume) else {
            return Err(format!("failed to create NBD export: no device mapping found for volume {volume}"));
        };
        let mut export = Export::new(&volume, mapping.device_path.clone());
        for (key, value) in [("vm_name", json!(text("vm_name"))), ("vm_id", json!(text("vm_id")))] {
            export.metadata.insert(key.to_owned(), value);
        }
        export
            .metadata
            .insert("disk_number".to_owned(), body.get("disk_number").cloned().unwrap_or(json!(0)));
        let shape = export.shape();
        state.daemon.exports.push(export);
        Ok(shape)
    });
    made.map_or_else(|why| wrong(500, &why), |shape| Answer::json(201, &shape))
}

pub fn get(world: &World, volume: &str) -> Answer {
    let found = world.look(|state| state.daemon.export_of(volume).map(Export::shape));
    found.map_or_else(
        || wrong(404, &format!("export not found for volume {volume}")),
        |shape| Answer::json(200, &shape),
    )
}

pub fn delete(world: &World, cause: Cause, volume: &str) -> Answer {
    let gone = world.change(cause, |state| {
        let before = state.daemon.exports.len();
        state.daemon.exports.remove(&Tie::VolumeName(volume.to_owned()));
        before != state.daemon.exports.len()
    });
    if gone {
        return Answer::json(200, &json!({"message": "NBD export deleted successfully"}));
    }
    wrong(500, &format!("failed to delete NBD export: export not found for volume {volume}"))
}

/// Not a bare list: the client of the real system expects one, and always fails.
pub fn list(world: &World, call: &Call) -> Answer {
    let limit = call.asked("limit").and_then(|limit| limit.parse().ok()).unwrap_or(usize::MAX);
    let found = world.look(|state| {
        let exports = state.daemon.exports.iter().filter(|export| {
            call.asked("volume_id").is_none_or(|volume| volume == export.volume_id)
                && call.asked("status").is_none_or(|status| status == export.status)
                && call
                    .asked("vm_name")
                    .is_none_or(|name| export.metadata.get("vm_name") == Some(&json!(name)))
        });
        exports.take(limit).map(Export::shape).collect::<Vec<_>>()
    });
    let count = found.len();
    Answer::json(200, &json!({"exports": super::list_of(world, found), "count": count}))
}

fn is_orphan(state: &State, export: &Export) -> bool {
    let mut rows = state.daemon.mappings.tied(&Tie::VolumeName(export.volume_id.clone()));
    !rows.any(|row| row.operation_mode == "oma")
}

pub fn orphans(world: &World) -> Answer {
    let count =
        world.look(|state| state.daemon.exports.iter().filter(|export| is_orphan(state, export)).count());
    Answer::json(200, &json!({"orphaned_count": count}))
}

/// Exports without a mapping, or older than so many hours; `dry_run` unless told otherwise.
pub fn cleanup(world: &World, cause: Cause, call: &Call) -> Answer {
    let Ok(body) = call.json::<Map<String, Value>>() else { return wrong(400, "invalid request format") };
    let age = body.get("max_age_hours").and_then(Value::as_i64);
    if call.route.ends_with("/age") && age.is_none_or(|hours| hours <= 0) {
        return wrong(400, "max_age_hours is required");
    }
    let only_looks =
        call.route.ends_with("/validate") || body.get("dry_run").and_then(Value::as_bool).unwrap_or(true);
    let result = world.change(cause, |state| {
        let too_old = |export: &Export| {
            age.and_then(TimeDelta::try_hours).is_some_and(|most| Utc::now() - export.created_at > most)
        };
        let exports = state.daemon.exports.iter().filter(|export| is_orphan(state, export) || too_old(export));
        let found: Vec<(String, Value)> = exports.map(|export| (export.volume_id.clone(), export.shape())).collect();
        let total = state.daemon.exports.len();
        let cleaned = if only_looks { 0 } else { found.len() };
        if !only_looks {
            state.daemon.exports.retain(|export| !found.iter().any(|(volume, _)| *volume == export.volume_id));
        }
        let details: Vec<&Value> = found.iter().map(|(_, shape)| shape).collect();
        json!({"total_exports": total, "orphaned_exports": found.len(), "cleaned_exports": cleaned, "failed_cleanups": 0,
            "orphaned_export_details": details, "cleanup_errors": null, "config_files_validated": total,
            "database_inconsistencies": null, "operation_time": 1_250_000})
    });
    Answer::json(200, &result)
}
