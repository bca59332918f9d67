//! What there is at the vCenter: discovery, change tracking, and what changed since somebody looked.

use chrono::Utc;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{Credentials, Refused, find, power_word, wrong};
use crate::answer::Answer;
use crate::rest::Call;
use crate::world::table::Tie;
use crate::world::things::{Source, SourceDisk, SourceNic};
use crate::world::{State, World};

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Discover {
    #[serde(flatten)]
    credentials: Credentials,
    datacenter: String,
    filter: String,
}

pub fn discover(world: &World, call: &Call) -> Answer {
    let Ok(request) = call.json::<Discover>() else { return wrong(400, "Invalid JSON") };
    let found = world.look(|state| -> Result<Value, Refused> {
        request.credentials.check(state)?;
        let vcenter = &state.vma.vcenter;
        if request.datacenter != vcenter.datacenter {
            return Err((
                500,
                format!("failed to find datacenter {}: datacenter not found", request.datacenter),
            ));
        }
        let mut sources: Vec<&Source> =
            state.sources.values().filter(|source| source.name.contains(&request.filter)).collect();
        sources.sort_by(|some, other| some.name.cmp(&other.name));
        let vms: Vec<Value> = sources.into_iter().map(|source| shape(state, source)).collect();
        Ok(json!({"vcenter": {"host": vcenter.host, "datacenter": vcenter.datacenter}, "vms": vms}))
    });
    match found {
        Ok(found) => Answer::json(200, &found),
        // Here a wrong password is a failed discovery, like everything else.
        Err((_, why)) => wrong(500, &format!("Discovery failed: {why}")),
    }
}

/// A source as discovery tells it.
fn shape(state: &State, source: &Source) -> Value {
    let datacenter = &state.vma.vcenter.datacenter;
    let folder = source.path.rsplit_once('/').map_or("", |(folder, _)| folder);
    let disks: Vec<Value> = source.disks.iter().map(|disk| disk_shape(state, source, disk)).collect();
    let nics: Vec<Value> = source.nics.iter().map(nic_shape).collect();
    json!({
        "id": source.id, "name": source.name, "path": source.path, "datacenter": datacenter, "power_state": power_word(source),
        "guest_os": source.guest_os, "os_type": source.guest_os, "memory_mb": source.memory_mb, "num_cpu": source.cpus,
        "cpus": source.cpus, "vmx_version": "vmx-19", "display_name": source.name, "annotation": "", "folder_path": folder,
        "vmware_tools_status": source.tools, "vmware_tools_version": "12352", "firmware": source.firmware,
        "disks": disks, "networks": nics,
    })
}

fn disk_shape(state: &State, source: &Source, disk: &SourceDisk) -> Value {
    let unit = disk.key.saturating_sub(2000);
    let suffix = if unit == 0 { String::new() } else { format!("_{unit}") };
    let vmdk = format!("[datastore1] {0}/{0}{suffix}.vmdk", source.name);
    json!({"id": state.settings.vma.disk_id(disk.key), "label": disk.label, "path": vmdk, "vmdk_path": vmdk, "size_gb": disk.size >> 30,
        "capacity_bytes": disk.size, "datastore": "datastore1", "provisioning_type": "thin", "unit_number": unit})
}

fn nic_shape(nic: &SourceNic) -> Value {
    json!({"label": nic.label, "network_name": nic.network, "adapter_type": "vmxnet3", "mac_address": nic.mac, "connected": true,
        "type": "standard"})
}

pub fn cbt_status(world: &World, call: &Call) -> Answer {
    let path = call.arg(0);
    let told = world.look(|state| -> Result<Value, Refused> {
        Credentials::asked(call).check(state)?;
        let source = by_path(state, path).ok_or_else(|| (500, format!("VM not found: {path}")))?;
        Ok(json!({"enabled": true, "vm_name": source.name, "power_state": power_word(source), "vm_path": source.path}))
    });
    told.map_or_else(|(status, text)| wrong(status, &text), |body| Answer::json(200, &body))
}

/// A source by its path in the inventory.
pub fn by_path<'a>(state: &'a State, path: &str) -> Option<&'a Source> {
    state.sources.tied(&Tie::Path(path.to_owned())).next()
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct SpecChanges {
    #[serde(flatten)]
    credentials: Credentials,
    vm_path: String,
    stored_vm_info: Map<String, Value>,
}

/// Errors are said with a 200 here.
pub fn spec_changes(world: &World, call: &Call) -> Answer {
    let Ok(request) = call.json::<SpecChanges>() else { return wrong(400, "Invalid JSON") };
    let now = world.look(|state| -> Result<Value, String> {
        request.credentials.check(state).map_err(|(_, why)| why)?;
        let source = by_path(state, &request.vm_path).ok_or(format!("VM not found: {}", request.vm_path))?;
        find(state, &source.id).map(|source| shape(state, source)).map_err(|(_, why)| why)
    });
    let now = match now {
        Ok(now) => now,
        Err(why) => {
            return Answer::json(
                200,
                &json!({"has_changes": false, "changes_summary": "", "changes_json": "{}", "check_time": Utc::now(),
                    "status": "error", "error_message": why}),
            );
        }
    };
    let mut changes = Map::new();
    for (name, old) in &request.stored_vm_info {
        let new = now.get(name).unwrap_or(&Value::Null);
        if new != old && name != "power_state" {
            changes.insert(name.clone(), json!({"old": old, "new": new}));
        }
    }
    let names: Vec<&str> = changes.keys().map(String::as_str).collect();
    let summary =
        if names.is_empty() { "no changes".to_owned() } else { format!("changed: {}", names.join(", ")) };
    Answer::json(
        200,
        &json!({"has_changes": !changes.is_empty(), "changes_summary": summary, "changes_json": Value::Object(changes).to_string(),
            "check_time": Utc::now(), "status": "success"}),
    )
}
