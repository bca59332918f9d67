//! Commands that tell. An empty list has neither a count nor an array; names of VMs are found by any part of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use uuid::Uuid;

use super::request::{Asked, Params};
use super::{commands, show};
use crate::world::moves::Refusal;
use crate::world::table::{Row, Table, Tie};
use crate::world::things::Fixture;
use crate::world::{Cause, State, World};

type Result<T> = std::result::Result<T, Refusal>;

/// From now on, and for so long, lists tell what is so now.
pub fn freeze(world: &World, ms: u64) {
    world.change(Cause::new("cloudstack", "lists go stale", ""), |state| {
        let mut copy = state.clone();
        copy.cloudstack.frozen = None;
        state.cloudstack.frozen = Some((Instant::now() + Duration::from_millis(ms), Arc::new(copy)));
    });
}

/// Reads what is so, or what was so while lists are stale.
pub fn look<T>(world: &World, tell: impl FnOnce(&State) -> T) -> T {
    let frozen = world.look(|state| {
        let frozen = state.cloudstack.frozen.as_ref().filter(|(until, _)| Instant::now() < *until);
        frozen.map(|(_, old)| old.clone())
    });
    match frozen {
        Some(old) => tell(&old),
        None => world.look(tell),
    }
}

/// One page of what was found.
fn page(asked: &Asked, state: &State, name: &str, found: Vec<Value>) -> Result<Value> {
    if found.is_empty() {
        return Ok(json!({}));
    }
    let most =
        state.configurations.get("default.page.size").and_then(|n| n.parse().ok()).unwrap_or(500_usize);
    let size = asked.params.number("pagesize")?.map(|n| usize::try_from(n).unwrap_or(usize::MAX));
    if size.is_some_and(|size| size > most) {
        return Err(Refusal::code(
            431,
            format!("Page size can not exceed max allowed page size value: {most}"),
        ));
    }
    let number = match (asked.params.number("page")?, size) {
        (Some(number), Some(_)) => usize::try_from(number.max(1)).unwrap_or(usize::MAX),
        (Some(_), None) => {
            return Err(Refusal::code(431, "\"page\" parameter has to be used with \"pagesize\""));
        }
        (None, _) => 1,
    };
    let size = size.unwrap_or(most);
    let count = found.len();
    let page: Vec<Value> = found.into_iter().skip((number - 1).saturating_mul(size)).take(size).collect();
    Ok(json!({ "count": count, name: page }))
}

/// What every list can be narrowed by: ids, and tags.
struct Narrow {
    ids: Vec<Uuid>,
    tags: BTreeMap<String, Option<String>>,
    /// Only this account's.
    account: Option<String>,
}

impl Narrow {
    /// Accounts see what is theirs; a root admin can ask for all of it.
    fn new(asked: &Asked) -> Result<Narrow> {
        let params = &asked.params;
        let mut ids = params.ids("ids")?;
        ids.extend(params.id("id")?);
        let all = asked.account.root_admin && (params.flag("listall", false) || !ids.is_empty());
        let account =
            if all { params.get("account").map(str::to_owned) } else { Some(asked.account.name.clone()) };
        Ok(Narrow { ids, tags: params.pairs("tags"), account })
    }

    /// The rows that can be meant: those with the ids, or else what has the `tie`, or else a tag. There may be others among them.
    fn rows<'a, V: Row>(&self, all: &'a Table<Uuid, V>, tie: Option<Tie>) -> Vec<&'a V> {
        let tag = || self.tags.iter().find_map(|(key, value)| Some(Tie::Tag(key.clone(), value.clone()?)));
        match tie.or_else(tag) {
            _ if !self.ids.is_empty() => {
                let ids: BTreeSet<&Uuid> = self.ids.iter().collect();
                ids.into_iter().filter_map(|id| all.get(id)).collect()
            }
            Some(tie) => all.tied(&tie).collect(),
            None => all.values().collect(),
        }
    }

    fn takes(&self, id: Uuid, account: &str, tags: &BTreeMap<String, String>) -> bool {
        (self.ids.is_empty() || self.ids.contains(&id))
            && self.account.as_ref().is_none_or(|one| one == account)
            && self.tags.iter().all(|(key, wish)| {
                tags.get(key).is_some_and(|value| wish.as_ref().is_none_or(|wish| wish == value))
            })
    }
}

/// Whether a parameter is not there, or is what `is` says.
fn fits(params: &Params, name: &str, is: &str) -> bool {
    params.get(name).is_none_or(|wish| wish.eq_ignore_ascii_case(is))
}

fn part(params: &Params, name: &str, of: &[&str]) -> bool {
    params
        .get(name)
        .is_none_or(|wish| of.iter().any(|text| text.to_lowercase().contains(&wish.to_lowercase())))
}

/// `listVirtualMachines`
pub fn vms(state: &State, asked: &Asked) -> Result<Value> {
    let (narrow, params) = (Narrow::new(asked)?, &asked.params);
    let network = params.id("networkid")?;
    let rows = narrow.rows(&state.vms, network.map(Tie::Network)).into_iter();
    let found = rows.filter(|vm| {
        vm.removed.is_none()
            && narrow.takes(vm.id, &vm.account, &vm.tags)
            && part(params, "name", &[&vm.name])
            && part(params, "keyword", &[&vm.name, &vm.display_name])
            && fits(params, "state", &format!("{:?}", vm.state))
            && fits(params, "zoneid", &vm.zone.to_string())
            && network.is_none_or(|network| vm.nics.iter().any(|nic| nic.network == network))
    });
    page(asked, state, "virtualmachine", found.map(|vm| show::vm(state, vm)).collect())
}

/// `listVolumes`
pub fn volumes(state: &State, asked: &Asked) -> Result<Value> {
    let (narrow, params) = (Narrow::new(asked)?, &asked.params);
    let vm = params.id("virtualmachineid")?;
    let rows = narrow.rows(&state.volumes, vm.map(Tie::Attached)).into_iter();
    let found = rows.filter(|volume| {
        volume.removed.is_none()
            && narrow.takes(volume.id, &volume.account, &volume.tags)
            && vm.is_none_or(|vm| volume.attached.is_some_and(|at| at.vm == vm))
            && fits(params, "type", if volume.root { "ROOT" } else { "DATADISK" })
            && fits(params, "state", &format!("{:?}", volume.state))
            && params.get("name").is_none_or(|name| name == volume.name)
            && part(params, "keyword", &[&volume.name])
    });
    let told = found.map(|volume| {
        let mut told = show::volume(state, volume);
        // Where it lies is an admin's to know.
        if !asked.account.root_admin
            && let Some(map) = told.as_object_mut()
        {
            map.remove("path");
            map.remove("storage");
        }
        told
    });
    page(asked, state, "volume", told.collect())
}

/// `listSnapshots`
pub fn snapshots(state: &State, asked: &Asked) -> Result<Value> {
    let (narrow, params) = (Narrow::new(asked)?, &asked.params);
    let volume = params.id("volumeid")?;
    let rows = narrow.rows(&state.snapshots, volume.map(Tie::Volume)).into_iter();
    let found = rows.filter(|snapshot| {
        let account =
            state.volumes.get(&snapshot.volume).map(|volume| volume.account.as_str()).unwrap_or_default();
        // What LINSTOR took, CloudStack knows nothing of.
        snapshot.removed.is_none()
            && snapshot.by == crate::world::things::SnapshotBy::CloudStack
            && narrow.takes(snapshot.id, account, &snapshot.tags)
            && volume.is_none_or(|volume| snapshot.volume == volume)
            && part(params, "name", &[&snapshot.name])
            && part(params, "keyword", &[&snapshot.name])
    });
    page(asked, state, "snapshot", found.map(|one| show::snapshot(state, one)).collect())
}

/// `listVMSnapshot`
pub fn vm_snapshots(state: &State, asked: &Asked) -> Result<Value> {
    let (mut narrow, params) = (Narrow::new(asked)?, &asked.params);
    narrow.ids.extend(params.id("vmsnapshotid")?);
    let vm = params.id("virtualmachineid")?;
    let rows = narrow.rows(&state.vm_snapshots, vm.map(Tie::Vm)).into_iter();
    let found = rows.filter(|snapshot| {
        let account = state.vms.get(&snapshot.vm).map(|vm| vm.account.as_str()).unwrap_or_default();
        snapshot.removed.is_none()
            && narrow.takes(snapshot.id, account, &snapshot.tags)
            && vm.is_none_or(|vm| snapshot.vm == vm)
            && part(params, "name", &[&snapshot.display_name])
            && fits(params, "state", &snapshot.state)
    });
    page(asked, state, "vmSnapshot", found.map(|one| show::vm_snapshot(state, one)).collect())
}

/// `listNetworks`
pub fn networks(state: &State, asked: &Asked) -> Result<Value> {
    let params = &asked.params;
    let (id, tags) = (params.id("id")?, params.pairs("tags"));
    let found = state.networks.values().filter(|network| {
        id.is_none_or(|id| network.id == id)
            && fits(params, "type", &network.kind)
            && fits(params, "zoneid", &network.zone.to_string())
            && part(params, "keyword", &[&network.name])
            && tags.iter().all(|(key, wish)| {
                network.tags.get(key).is_some_and(|value| wish.as_ref().is_none_or(|wish| wish == value))
            })
    });
    page(asked, state, "network", found.map(|one| show::network(state, one)).collect())
}

/// The row of an id, or all.
fn named<V>(all: &Table<Uuid, V>, one: Option<Uuid>) -> impl Iterator<Item = &V> {
    let rows = one.is_none().then(|| all.values()).into_iter().flatten();
    one.and_then(|id| all.get(&id)).into_iter().chain(rows)
}

/// `listTags`
pub fn tags(state: &State, asked: &Asked) -> Result<Value> {
    let params = &asked.params;
    let mut found = Vec::new();
    let mut add = |kind: &str, id: Uuid, account: &str, tags: &BTreeMap<String, String>| {
        for (key, value) in tags {
            if fits(params, "resourcetype", kind)
                && fits(params, "resourceid", &id.to_string())
                && params.get("key").is_none_or(|wish| wish == key)
                && params.get("value").is_none_or(|wish| wish == value)
            {
                found.push(json!({ "key": key, "value": value, "resourcetype": kind, "resourceid": id, "account": account }));
            }
        }
    };
    // What is not an id is the id of nothing.
    let one = params.get("resourceid").map(|id| id.parse().unwrap_or_default());
    let State { vms, volumes, snapshots, vm_snapshots, networks, .. } = state;
    named(vms, one).filter(|x| x.removed.is_none()).for_each(|x| add("UserVm", x.id, &x.account, &x.tags));
    named(volumes, one)
        .filter(|x| x.removed.is_none())
        .for_each(|x| add("Volume", x.id, &x.account, &x.tags));
    named(snapshots, one).filter(|x| x.removed.is_none()).for_each(|x| add("Snapshot", x.id, "", &x.tags));
    named(vm_snapshots, one)
        .filter(|x| x.removed.is_none())
        .for_each(|x| add("VMSnapshot", x.id, "", &x.tags));
    named(networks, one).for_each(|x| add("Network", x.id, "", &x.tags));
    page(asked, state, "tag", found)
}

fn fixtures(state: &State, asked: &Asked, name: &str, all: &[Fixture]) -> Result<Value> {
    let params = &asked.params;
    let id = params.id("id")?;
    let found = all.iter().filter(|one| {
        id.is_none_or(|id| one.id == id)
            && params.get("name").is_none_or(|name| name == one.name)
            && part(params, "keyword", &[&one.name])
    });
    page(asked, state, name, found.map(show::fixture).collect())
}

/// `listZones`
pub fn zones(state: &State, asked: &Asked) -> Result<Value> {
    fixtures(state, asked, "zone", &state.zones)
}

/// `listDomains`
pub fn domains(state: &State, asked: &Asked) -> Result<Value> {
    fixtures(state, asked, "domain", &state.domains)
}

/// `listTemplates`, which wants a filter.
pub fn templates(state: &State, asked: &Asked) -> Result<Value> {
    asked.params.need("templatefilter")?;
    fixtures(state, asked, "template", &state.templates)
}

/// `listServiceOfferings`
pub fn service_offerings(state: &State, asked: &Asked) -> Result<Value> {
    fixtures(state, asked, "serviceoffering", &state.service_offerings)
}

/// `listDiskOfferings`
pub fn disk_offerings(state: &State, asked: &Asked) -> Result<Value> {
    fixtures(state, asked, "diskoffering", &state.disk_offerings)
}

/// `listHosts`, for root admins.
pub fn hosts(state: &State, asked: &Asked) -> Result<Value> {
    if !asked.account.root_admin {
        return Err(Refusal::code(
            401,
            "The given command:listHosts does not exist or it is not available for user",
        ));
    }
    page(asked, state, "host", state.hosts.iter().map(|host| show::host(state, host)).collect())
}

/// `listAccounts`
pub fn accounts(state: &State, asked: &Asked) -> Result<Value> {
    let all = asked.account.root_admin && asked.params.flag("listall", false);
    let found = state.accounts.iter().filter(|account| all || account.id == asked.account.id);
    let told = found.map(|account| {
        json!({
            "id": account.id, "name": account.name, "domainid": account.domain, "state": "enabled",
            "accounttype": if account.root_admin { 1 } else { 0 }, "rolename": if account.root_admin { "Root Admin" } else { "User" },
            "vmlimit": limit(account.limits.get("vm")), "volumelimit": limit(account.limits.get("volume")),
            "snapshotlimit": limit(account.limits.get("snapshot")),
            "user": [{ "id": account.user, "username": account.name, "account": account.name, "state": "enabled" }],
        })
    });
    page(asked, state, "account", told.collect())
}

fn limit(most: Option<&u64>) -> String {
    most.map_or_else(|| "Unlimited".to_owned(), u64::to_string)
}

/// `listConfigurations`
pub fn configurations(state: &State, asked: &Asked) -> Result<Value> {
    let params = &asked.params;
    let found = state.configurations.iter().filter(|(name, _)| {
        params.get("name").is_none_or(|wish| wish == name.as_str()) && part(params, "keyword", &[name])
    });
    let told = found.map(
        |(name, value)| json!({ "name": name, "value": value, "category": "Advanced", "isdynamic": true }),
    );
    page(asked, state, "configuration", told.collect())
}

/// `listCapabilities`
pub fn capabilities(state: &State, _: &Asked) -> Result<Value> {
    Ok(json!({ "capability": {
        "cloudstackversion": "4.20.1.0", "securitygroupsenabled": false, "userpublictemplateenabled": true,
        "kvmsnapshotenabled": state.configured("kvm.snapshot.enabled"), "allowuserviewdestroyedvm": false,
        "allowuserexpungerecovervm": state.configured("allow.user.expunge.recover.vm"),
        "apilimitinterval": 1, "apilimitmax": 25,
    } }))
}

/// `listApis`
pub fn apis(state: &State, asked: &Asked) -> Result<Value> {
    let wish = asked.params.get("name");
    let denied = &state.settings.cloudstack.denied;
    let found = commands::all()
        .filter(|command| !denied.contains(command.name) && wish.is_none_or(|name| name == command.name));
    let told: Vec<_> = found
        .map(|command| {
            json!({ "name": command.name, "isasync": command.is_job(), "description": command.name, "params": [], "response": [] })
        })
        .collect();
    if told.is_empty() {
        return Err(Refusal::internal(
            "Api Discovery plugin was unable to find an api by that name or process any apis",
        ));
    }
    page(asked, state, "api", told)
}

/// `listAsyncJobs`: those that are pending.
pub fn jobs(state: &State, asked: &Asked) -> Result<Value> {
    let all = asked.account.root_admin && asked.params.flag("listall", false);
    let rows = state.cloudstack.jobs.tied(&Tie::Pending);
    let found = rows.filter(|row| !row.lost && (all || row.account == asked.account.id));
    page(asked, state, "asyncjobs", found.map(show::job).collect())
}
