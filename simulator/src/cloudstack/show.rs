//! How things are told.

use chrono::{DateTime, Utc};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::{Guest, JobRow, guests};
use crate::world::State;
use crate::world::table::Tie;
use crate::world::things::{Fixture, Network, Nic, Snapshot, Vm, VmSnapshot, Volume};

/// As CloudStack writes a time: the zone without a colon.
pub fn time(at: DateTime<Utc>) -> String {
    at.format("%Y-%m-%dT%H:%M:%S%z").to_string()
}

/// What lists show as the state of a thing: what it is, or what it was while they lag behind.
fn state_of(state: &State, id: Uuid, is: String) -> String {
    let mask = state.cloudstack.masks.get(&id).filter(|mask| mask.until > Utc::now());
    mask.map_or(is, |mask| mask.state.clone())
}

fn object(value: Value) -> Map<String, Value> {
    if let Value::Object(map) = value { map } else { Map::new() }
}

/// What is not there is left out, as CloudStack does it.
fn put(map: &mut Map<String, Value>, name: &str, value: Option<impl Into<Value>>) {
    if let Some(value) = value {
        map.insert(name.to_owned(), value.into());
    }
}

fn name_of(all: &[Fixture], id: Uuid) -> Option<String> {
    all.iter().find(|one| one.id == id).map(|one| one.name.clone())
}

fn put_owner(map: &mut Map<String, Value>, state: &State, account: &str) {
    let domain = state.accounts.iter().find(|one| one.name == account).map(|one| one.domain);
    map.insert("account".to_owned(), account.into());
    put(map, "domainid", domain.map(|id| id.to_string()));
    put(map, "domain", domain.and_then(|id| name_of(&state.domains, id)));
}

fn put_job(map: &mut Map<String, Value>, state: &State, id: Uuid) {
    if let Some(job) = state.cloudstack.busy.get(&id).filter(|job| state.cloudstack.is_pending(**job)) {
        map.insert("jobid".to_owned(), job.to_string().into());
        map.insert("jobstatus".to_owned(), 0.into());
    }
}

fn tags(of: &std::collections::BTreeMap<String, String>, account: &str, kind: &str, id: Uuid) -> Value {
    let tag = |(key, value)| json!({ "key": key, "value": value, "resourcetype": kind, "resourceid": id, "account": account });
    of.iter().map(tag).collect()
}

/// A VM.
pub fn vm(state: &State, vm: &Vm) -> Value {
    let addressed = guests::of(state, vm.id) != Some(Guest::HasNoAddress);
    let mut map = object(json!({
        "id": vm.id,
        "name": vm.name,
        "displayname": vm.display_name,
        "state": state_of(state, vm.id, format!("{:?}", vm.state)),
        "created": time(vm.created),
        "haenable": false,
        "zoneid": vm.zone,
        "serviceofferingid": vm.offering,
        "cpunumber": vm.cpus,
        "cpuspeed": 2000,
        "memory": vm.memory_mb,
        "hypervisor": vm.hypervisor,
        "instancename": format!("i-2-{}-VM", vm.id.simple()),
        "boottype": vm.boot_type,
        "rootdevicetype": "ROOT",
        "guestosid": Uuid::from_u128(1),
        // A string, which some clients do not expect.
        "ostypeid": "e5b3c8c6-4b0a-4cf5-8c57-6f4c2f7b1f2e",
        "nic": vm.nics.iter().map(|one| nic(state, one, addressed)).collect::<Vec<_>>(),
        "securitygroup": [],
        "affinitygroup": [],
        "tags": tags(&vm.tags, &vm.account, "UserVm", vm.id),
        "details": vm.details,
        "isdynamicallyscalable": false,
    }));
    put_owner(&mut map, state, &vm.account);
    put(&mut map, "zonename", name_of(&state.zones, vm.zone));
    put(&mut map, "serviceofferingname", name_of(&state.service_offerings, vm.offering));
    put(&mut map, "templateid", vm.template.map(|id| id.to_string()));
    put(&mut map, "templatename", vm.template.and_then(|id| name_of(&state.templates, id)));
    put(&mut map, "group", vm.group.clone());
    put(&mut map, "backupofferingid", vm.backup_offering.map(|id| id.to_string()));
    if let Some(host) = vm.host.and_then(|id| state.hosts.iter().find(|host| host.id == id)) {
        put(&mut map, "hostid", Some(host.id.to_string()));
        put(&mut map, "hostname", Some(host.name.clone()));
        put(&mut map, "hostcontrolstate", Some(if host.state == "Up" { "Enabled" } else { "Offline" }));
    }
    let mut attached = state.volumes.tied(&Tie::Attached(vm.id)).filter_map(|volume| volume.attached);
    let root = attached.find(|at| at.device == 0);
    put(&mut map, "rootdeviceid", root.map(|_| 0));
    put_job(&mut map, state, vm.id);
    Value::Object(map)
}

fn nic(state: &State, nic: &Nic, addressed: bool) -> Value {
    let network = state.networks.get(&nic.network);
    let mut map = object(json!({
        "id": nic.id,
        "networkid": nic.network,
        "macaddress": nic.mac,
        "isdefault": nic.default,
        "secondaryip": [],
    }));
    put(&mut map, "networkname", network.map(|network| network.name.clone()));
    put(&mut map, "type", network.map(|network| network.kind.clone()));
    put(&mut map, "traffictype", Some("Guest"));
    put(&mut map, "ipaddress", nic.ip.clone().filter(|_| addressed));
    Value::Object(map)
}

/// A volume.
pub fn volume(state: &State, volume: &Volume) -> Value {
    let pool = state.pools.iter().find(|pool| Some(pool.id) == volume.pool);
    let mut map = object(json!({
        "id": volume.id,
        "name": volume.name,
        "state": state_of(state, volume.id, format!("{:?}", volume.state)),
        "type": if volume.root { "ROOT" } else { "DATADISK" },
        "size": volume.size,
        "zoneid": volume.zone,
        "created": time(volume.created),
        "path": volume.path,
        "hypervisor": pool.map_or("None", |pool| &pool.hypervisor),
        "storagetype": if pool.is_some_and(|pool| pool.local) { "local" } else { "shared" },
        "provisioningtype": "thin",
        "isextractable": true,
        "quiescevm": false,
        "destroyed": volume.removed.is_some(),
        "tags": tags(&volume.tags, &volume.account, "Volume", volume.id),
    }));
    put_owner(&mut map, state, &volume.account);
    put(&mut map, "zonename", name_of(&state.zones, volume.zone));
    put(&mut map, "storage", pool.map(|pool| pool.name.clone()));
    put(&mut map, "storageid", pool.map(|pool| pool.id.to_string()));
    if let Some(at) = volume.attached {
        let vm = state.vms.get(&at.vm);
        put(&mut map, "virtualmachineid", Some(at.vm.to_string()));
        put(&mut map, "deviceid", Some(at.device));
        put(&mut map, "attached", Some(time(volume.created)));
        put(&mut map, "vmname", vm.map(|vm| vm.name.clone()));
        put(&mut map, "vmdisplayname", vm.map(|vm| vm.display_name.clone()));
        put(&mut map, "vmstate", vm.map(|vm| format!("{:?}", vm.state)));
    }
    put_job(&mut map, state, volume.id);
    Value::Object(map)
}

/// A snapshot of a volume.
pub fn snapshot(state: &State, snapshot: &Snapshot) -> Value {
    let volume = state.volumes.get(&snapshot.volume);
    let account = volume.map(|volume| volume.account.as_str()).unwrap_or_default();
    let mut map = object(json!({
        "id": snapshot.id,
        "name": snapshot.name,
        "volumeid": snapshot.volume,
        "state": state_of(state, snapshot.id, snapshot.state.clone()),
        "created": time(snapshot.created),
        "snapshottype": "MANUAL",
        "intervaltype": "MANUAL",
        "virtualsize": snapshot.size,
        "physicalsize": snapshot.size / 4,
        "revertable": true,
        "tags": tags(&snapshot.tags, account, "Snapshot", snapshot.id),
    }));
    put_owner(&mut map, state, account);
    put(&mut map, "volumename", volume.map(|volume| volume.name.clone()));
    put(&mut map, "volumestate", volume.map(|volume| format!("{:?}", volume.state)));
    put(&mut map, "volumetype", volume.map(|volume| if volume.root { "ROOT" } else { "DATADISK" }));
    put(&mut map, "zoneid", volume.map(|volume| volume.zone.to_string()));
    put_job(&mut map, state, snapshot.id);
    Value::Object(map)
}

/// A snapshot of a VM.
pub fn vm_snapshot(state: &State, snapshot: &VmSnapshot) -> Value {
    let vm = state.vms.get(&snapshot.vm);
    let account = vm.map(|vm| vm.account.as_str()).unwrap_or_default();
    let mut map = object(json!({
        "id": snapshot.id,
        // The name that was asked for is the displayed one.
        "name": format!("i-2-{}-VM_VS_{}", snapshot.vm.simple(), snapshot.created.format("%Y%m%d%H%M%S")),
        "displayname": snapshot.display_name,
        "virtualmachineid": snapshot.vm,
        "state": state_of(state, snapshot.id, snapshot.state.clone()),
        "created": time(snapshot.created),
        "type": "Disk",
        "current": true,
        "hypervisor": "KVM",
        "tags": tags(&snapshot.tags, account, "VMSnapshot", snapshot.id),
    }));
    put_owner(&mut map, state, account);
    put(&mut map, "virtualmachinename", vm.map(|vm| vm.name.clone()));
    put(&mut map, "zoneid", vm.map(|vm| vm.zone.to_string()));
    put_job(&mut map, state, snapshot.id);
    Value::Object(map)
}

/// A network.
pub fn network(state: &State, network: &Network) -> Value {
    let mut map = object(json!({
        "id": network.id,
        "name": network.name,
        "displaytext": network.name,
        "type": network.kind,
        "state": network.state,
        "zoneid": network.zone,
        "traffictype": "Guest",
        "canusefordeploy": matches!(network.state.as_str(), "Implemented" | "Allocated" | "Setup"),
        "issystem": false,
        "acltype": "Account",
        "restartrequired": false,
        "service": [],
        "tags": tags(&network.tags, "", "Network", network.id),
    }));
    put(&mut map, "zonename", name_of(&state.zones, network.zone));
    put(&mut map, "networkdomain", Some(network.domain.clone()).filter(|domain| !domain.is_empty()));
    put(&mut map, "cidr", network.prefix.as_ref().map(|prefix| format!("{prefix}0/24")));
    put(&mut map, "gateway", network.prefix.as_ref().map(|prefix| format!("{prefix}1")));
    Value::Object(map)
}

/// A zone, template or offering.
pub fn fixture(one: &Fixture) -> Value {
    let mut map = one.more.clone();
    map.insert("id".to_owned(), one.id.to_string().into());
    map.insert("name".to_owned(), one.name.clone().into());
    Value::Object(map)
}

/// A job.
pub fn job(row: &JobRow) -> Value {
    let mut map = object(json!({
        "jobid": row.id,
        "accountid": row.account,
        "userid": row.user,
        "cmd": format!("org.apache.cloudstack.api.command.user.{}Cmd", class(&row.command)),
        "jobstatus": row.status,
        "jobprocstatus": 0,
        "jobresultcode": row.code,
        "created": time(row.created),
    }));
    let kind = row.result.as_ref().map(|result| if result.is_string() { "text" } else { "object" });
    put(&mut map, "jobresulttype", kind);
    put(&mut map, "jobresult", row.result.clone());
    put(&mut map, "jobinstancetype", row.instance.as_ref().map(|(kind, _)| kind.clone()));
    put(&mut map, "jobinstanceid", row.instance.as_ref().map(|(_, id)| id.to_string()));
    put(&mut map, "completed", row.completed.map(time));
    Value::Object(map)
}

fn class(command: &str) -> String {
    let mut letters = command.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}

/// A host.
pub fn host(state: &State, host: &crate::world::things::Host) -> Value {
    let used: u64 = state.vms.tied(&Tie::RunsOn(host.id)).map(|vm| u64::from(vm.memory_mb)).sum();
    json!({
        "id": host.id, "name": host.name, "state": host.state, "type": "Routing", "hypervisor": "KVM",
        "resourcestate": "Enabled", "memorytotal": host.memory_mb << 20, "memoryallocated": used << 20,
    })
}
