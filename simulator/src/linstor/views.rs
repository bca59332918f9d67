//! What it shows: nodes, resources with who uses them, snapshots, error reports.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use uuid::Uuid;

use super::codes::{self, ERROR, NO_RESOURCE_DEFINITION, entry};
use super::{disks_on, millis, resource, used_on, volume_of, with_storage};
use crate::answer::Answer;
use crate::world::table::Tie;
use crate::world::things::{Snapshot, SnapshotBy, Volume};
use crate::world::{State, World};

const POOL: &str = "DfltStorPool";

pub fn nodes(world: &World) -> Answer {
    let nodes: Vec<Value> = world.look(|state| {
        let offline = &state.settings.linstor.offline_nodes;
        let nodes = state.hosts.iter().map(|host| {
            let status = if offline.contains(&host.name) { "OFFLINE" } else { "ONLINE" };
            json!({"name": host.name, "type": "COMBINED", "connection_status": status, "uuid": host.id, "props": {}, "flags": [],
                "net_interfaces": [{"name": "default", "address": "10.0.0.1", "satellite_port": 3366,
                    "satellite_encryption_type": "PLAIN", "is_active": true, "uuid": host.id}],
                "resource_layers": ["DRBD", "STORAGE"], "storage_providers": ["DISKLESS", "LVM_THIN"]})
        });
        nodes.collect()
    });
    Answer::json(200, &Value::Array(nodes))
}

pub fn definitions(world: &World, only: Option<&str>) -> Answer {
    let found: Vec<Value> = world.look(|state| {
        let volumes = with_storage(state, only.as_slice());
        let shape = |volume: &Volume| {
            json!({"name": resource(volume), "uuid": volume.id, "props": {"Aux/cs-name": volume.name}, "flags": [],
                "layer_data": [{"type": "DRBD"}, {"type": "STORAGE"}], "resource_group_name": "cloudstack",
                "volume_definitions": [{"volume_number": 0, "size_kib": volume.size >> 10}]})
        };
        volumes.map(shape).collect()
    });
    match (only, found.into_iter().next()) {
        (Some(name), None) => codes::list(200, vec![no_definition(name)]),
        (Some(_), Some(one)) => Answer::json(200, &one),
        (None, _) => Answer::json(200, &Value::Array(all_definitions(world))),
    }
}

fn all_definitions(world: &World) -> Vec<Value> {
    world.look(|state| {
        with_storage(state, &[])
            .map(|volume| json!({"name": resource(volume), "uuid": volume.id, "props": {}, "flags": [], "resource_group_name": "cloudstack"}))
            .collect()
    })
}

/// Nothing of that name.
pub fn no_definition(name: &str) -> Value {
    let cause = format!("The specified resource definition '{name}' could not be found in the database");
    let correction = "Create a resource definition with the name first.";
    let missing = entry(ERROR, 0, NO_RESOURCE_DEFINITION, format!("Resource definition '{name}' not found."));
    codes::with(missing, json!({"cause": cause, "correction": correction, "obj_refs": {"RscDfn": name}}))
}

pub fn resources(world: &World, names: &[&str], nodes: &[&str], must_be: bool) -> Answer {
    let told = world.look(|state| {
        if let Some(missing) = names.iter().find(|name| must_be && volume_of(state, name).is_none()) {
            return Err(no_definition(missing));
        }
        let all = with_storage(state, names).flat_map(|volume| places(state, volume));
        let fits = |place: &Value| {
            nodes.is_empty() || place["node_name"].as_str().is_some_and(|node| nodes.contains(&node))
        };
        Ok(all.filter(fits).collect::<Vec<_>>())
    });
    told.map_or_else(
        |missing| codes::list(200, vec![missing]),
        |found| Answer::json(200, &Value::Array(found)),
    )
}

/// A resource on each of its nodes: with a disk, or without one where it is only used.
fn places(state: &State, volume: &Volume) -> Vec<Value> {
    let (disks, users) = (disks_on(state, volume.id), used_on(state, volume));
    let diskless = users.iter().filter(|node| !disks.contains(node));
    let number = 1000 + u32::from(volume.id.as_bytes().first().copied().unwrap_or_default());
    let shape = |node: &String, disk: bool| {
        let uuid = Uuid::new_v5(&volume.id, node.as_bytes());
        let flags = if disk { json!([]) } else { json!(["DISKLESS", "DRBD_DISKLESS"]) };
        let state = if disk { "UpToDate" } else { "Diskless" };
        let provider = if disk { "LVM_THIN" } else { "DISKLESS" };
        json!({"name": resource(volume), "node_name": node, "uuid": uuid, "props": {}, "flags": flags,
            "create_timestamp": millis(volume.created), "state": {"in_use": users.contains(node)},
            "layer_object": {"type": "DRBD", "children": [{"type": "STORAGE", "storage": {"storage_volumes": []}}],
                "drbd": {"drbd_volumes": []}},
            "volumes": [{"volume_number": 0, "storage_pool_name": POOL, "provider_kind": provider, "uuid": uuid,
                "device_path": format!("/dev/drbd{number}"), "allocated_size_kib": volume.size >> 10, "props": {}, "flags": [],
                "state": {"disk_state": state}, "layer_data_list": []}]})
    };
    disks.iter().map(|node| shape(node, true)).chain(diskless.map(|node| shape(node, false))).collect()
}

pub fn snapshots(world: &World, names: &[&str], nodes: &[&str], only: Option<&str>) -> Answer {
    let found: Vec<Value> = world.look(|state| {
        let all =
            if names.is_empty() { state.snapshots.values().collect() } else { of_volumes(state, names) };
        let ours = all
            .into_iter()
            .filter(|snapshot| snapshot.by == SnapshotBy::Linstor && snapshot.removed.is_none());
        let ours = ours.filter_map(|snapshot| Some((snapshot, state.volumes.get(&snapshot.volume)?)));
        let ours = ours.filter(|(snapshot, volume)| {
            (names.is_empty() || names.contains(&resource(volume).as_str()))
                && only.is_none_or(|name| name == snapshot.name)
        });
        let shapes = ours.map(|(snapshot, volume)| snapshot_shape(state, snapshot, volume));
        let fits = |shape: &Value| {
            let on = shape["nodes"].as_array();
            nodes.is_empty()
                || on.is_some_and(|on| {
                    on.iter().any(|node| node.as_str().is_some_and(|node| nodes.contains(&node)))
                })
        };
        shapes.filter(fits).collect()
    });
    match only {
        None => Answer::json(200, &Value::Array(found)),
        Some(name) => match found.into_iter().next() {
            Some(one) => Answer::json(200, &one),
            None => {
                let text = format!("Snapshot definition '{name}' not found.");
                codes::list(200, vec![entry(ERROR, 0, codes::NO_SNAPSHOT_DEFINITION, text)])
            }
        },
    }
}

/// The snapshots of volumes with these resources, whatever has become of the volumes.
fn of_volumes<'a>(state: &'a State, names: &[&str]) -> Vec<&'a Snapshot> {
    let volumes = names.iter().flat_map(|name| state.volumes.tied(&Tie::Resource((*name).to_owned())));
    let ids: BTreeSet<Uuid> = volumes.map(|volume| volume.id).collect();
    let mut found: Vec<&Snapshot> =
        ids.iter().flat_map(|id| state.snapshots.tied(&Tie::Volume(*id))).collect();
    found.sort_by_key(|snapshot| snapshot.id);
    found
}

fn snapshot_shape(state: &State, snapshot: &Snapshot, volume: &Volume) -> Value {
    let placed = state.linstor.nodes.get(&snapshot.id).cloned().unwrap_or_default();
    let flags = match (snapshot.state.as_str(), placed.failed_on.is_empty()) {
        ("BackedUp", true) => json!(["SUCCESSFUL"]),
        (_, false) => json!(["FAILED_DEPLOYMENT"]),
        _ => json!([]),
    };
    let on: Vec<&String> = placed.on.union(&placed.failed_on).collect();
    let each = on.iter().map(|node| {
        let flags = if placed.failed_on.contains(*node) { json!(["FAILED_DEPLOYMENT"]) } else { json!([]) };
        json!({"snapshot_name": snapshot.name, "node_name": node, "create_timestamp": millis(snapshot.created), "flags": flags,
            "uuid": Uuid::new_v5(&snapshot.id, node.as_bytes())})
    });
    json!({"name": snapshot.name, "resource_name": resource(volume), "nodes": on, "props": {}, "flags": flags, "uuid": snapshot.id,
        "volume_definitions": [{"volume_number": 0, "size_kib": snapshot.size >> 10}], "snapshots": each.collect::<Vec<_>>()})
}

pub fn reports(world: &World, only: Option<&str>) -> Answer {
    let found: Vec<Value> = world.look(|state| {
        let reports = state.linstor.reports.iter().filter(|report| only.is_none_or(|id| report.id.starts_with(id)));
        let shape = |report: &super::Report| {
            json!({"node_name": report.node, "error_time": millis(report.at), "filename": format!("ErrorReport-{}.log", report.id),
                "text": report.text, "module": "Satellite", "version": "1.29.2", "exception": "StorageException",
                "exception_message": report.text})
        };
        reports.map(shape).collect()
    });
    Answer::json(200, &Value::Array(found))
}
