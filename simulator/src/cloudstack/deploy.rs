//! A VM is made: what is refused, the rows, and the first start.

use std::collections::BTreeMap;

use chrono::Utc;
use serde_json::Value;
use uuid::Uuid;

use super::jobs::{Begun, End, Job};
use super::nics;
use super::request::Asked;
use super::vms::{power_up, shown, the_vm};
use crate::faults::Fault;
use crate::world::State;
use crate::world::moves::Refusal;
use crate::world::table::Tie;
use crate::world::things::{Fixture, Power, Vm, VmState, VolumeState};

type Result<T> = std::result::Result<T, Refusal>;

/// `deployVirtualMachine`: all that can be refused is refused before there is a job.
pub fn begin(state: &mut State, asked: &Asked) -> Result<Begun> {
    let params = &asked.params;
    let zone = fixture(&state.zones, params.need_id("zoneid")?, "zoneid")?;
    let enabled = zone.more.get("allocationstate").and_then(Value::as_str) != Some("Disabled");
    if !enabled && !asked.account.root_admin {
        return Err(Refusal::code(
            531,
            format!("Cannot perform this operation, Zone is currently disabled: {}", zone.name),
        ));
    }
    let zone = zone.id;
    let offering =
        fixture(&state.service_offerings, params.need_id("serviceofferingid")?, "serviceofferingid")?;
    let (cpus, memory_mb) = size_of(offering, &params.details("details"))?;
    let offering = offering.id;
    let template = fixture(&state.templates, params.need_id("templateid")?, "templateid")?;
    if template.more.get("isready").and_then(Value::as_bool) == Some(false) {
        return Err(Refusal::param(format!("Template {} is not ready to be used in zone", template.name)));
    }
    let least = template.more.get("size").and_then(Value::as_u64).unwrap_or(1 << 30);
    let root_size = match params.number("rootdisksize")? {
        Some(gb) if gb << 30 < least => {
            return Err(Refusal::param(format!(
                "Unsupported: rootdisksize override ({gb} GB) is smaller than template size {least} bytes"
            )));
        }
        Some(gb) => gb << 30,
        None => least,
    };
    let boot_type = params.get("boottype").unwrap_or("BIOS").to_uppercase();
    if !matches!(boot_type.as_str(), "BIOS" | "UEFI") {
        return Err(Refusal::param(format!("Invalid boot type {boot_type}; it is BIOS or UEFI")));
    }
    if boot_type == "UEFI" && !matches!(params.get("bootmode"), Some("LEGACY" | "SECURE")) {
        return Err(Refusal::param("boottype UEFI needs a bootmode: LEGACY or SECURE"));
    }
    let hypervisor = template.more.get("hypervisor").and_then(Value::as_str).unwrap_or("KVM").to_owned();
    let template = template.id;
    let id = match params.id("customid")? {
        None => Uuid::new_v4(),
        Some(_) if !asked.account.root_admin => {
            return Err(Refusal::code(531, "Only Root Admin is allowed to use the parameter customid"));
        }
        Some(id) if state.vms.contains_key(&id) => {
            return Err(Refusal::param(format!("UserVm with custom id {id} already exists")));
        }
        Some(id) => id,
    };
    let name = params.get("name").map_or_else(|| format!("VM-{id}"), str::to_owned);
    check_name(&name)?;
    let wanted = nics::wanted(state, params, zone)?;
    if asked.fault != Some(Fault::DuplicateName) {
        check_name_is_free(state, &name, &wanted)?;
    }
    check_quota(state, asked, "vm", "user_vm")?;
    check_quota(state, asked, "volume", "volume")?;
    let nics = wanted.into_iter().map(|wish| nics::new_nic(state, wish)).collect::<Result<Vec<_>>>()?;
    let vm = Vm {
        id,
        display_name: params.get("displayname").unwrap_or(&name).to_owned(),
        name,
        group: params.get("group").map(str::to_owned),
        state: VmState::Stopped,
        power: Power::Off,
        host: None,
        hypervisor,
        backup_offering: None,
        zone,
        account: asked.account.name.clone(),
        template: Some(template),
        offering,
        cpus,
        memory_mb,
        boot_type,
        nics,
        details: params.details("details"),
        tags: BTreeMap::new(),
        created: Utc::now(),
        removed: None,
        boots: 0,
    };
    let key = vm.name.clone();
    state.vms.insert(id, vm);
    if asked.fault == Some(Fault::Partial) {
        state.vm_mut(id)?.state = VmState::Error;
        state.applied("deployVirtualMachine", key);
        return Ok(Begun { instance: Some(("VirtualMachine", id)), line: Some(id), id: Some(id) });
    }
    let volume_name = format!("ROOT-{}", state.vms.len());
    blank(state, &volume_name, root_size, asked, zone, Some((id, 0)))?;
    if let Some(disk) = params.id("diskofferingid")? {
        let gb = fixture(&state.disk_offerings, disk, "diskofferingid")?
            .more
            .get("disksize")
            .and_then(Value::as_u64);
        let gb = params.number("size")?.or(gb).unwrap_or(1).max(1);
        blank(state, &format!("DATA-{}", state.vms.len()), gb << 30, asked, zone, Some((id, 1)))?;
    }
    state.applied("deployVirtualMachine", key);
    Ok(Begun { instance: Some(("VirtualMachine", id)), line: Some(id), id: Some(id) })
}

/// A volume that is a row without storage.
pub fn blank(
    state: &mut State,
    name: &str,
    size: u64,
    asked: &Asked,
    zone: Uuid,
    at: Option<(Uuid, u32)>,
) -> Result<Uuid> {
    let id = state.new_volume(name, size, &asked.account.name, zone);
    if let Some((vm, device)) = at {
        state.plug(id, vm)?;
        state.attach_row(id, vm, device)?;
    }
    let row = state.volume_mut(id)?;
    (row.state, row.pool) = (VolumeState::Allocated, None);
    Ok(id)
}

fn fixture<'a>(all: &'a [Fixture], id: Uuid, name: &str) -> Result<&'a Fixture> {
    all.iter().find(|one| one.id == id).ok_or_else(|| {
        Refusal::code(431, format!("Unable to execute API command due to invalid value. Invalid parameter {name} value={id} due to incorrect long value format, or entity does not exist"))
    })
}

fn size_of(offering: &Fixture, details: &BTreeMap<String, String>) -> Result<(u32, u32)> {
    let sent = |name: &str| details.get(name).and_then(|value| value.parse::<u32>().ok());
    let fixed =
        |name: &str| offering.more.get(name).and_then(Value::as_u64).and_then(|n| u32::try_from(n).ok());
    if offering.more.get("iscustomized").and_then(Value::as_bool) == Some(true) {
        let need = |name: &str| {
            sent(name).filter(|n| *n > 0).ok_or_else(|| {
                Refusal::param(format!(
                    "Invalid {name} value, specify a value between 1 and 2147483647: the offering is dynamic"
                ))
            })
        };
        return Ok((need("cpunumber")?, need("memory")?));
    }
    if sent("cpunumber").is_some() || sent("memory").is_some() {
        return Err(Refusal::param(
            "cpuNumber, cpuSpeed and memory can only be given for a dynamic compute offering",
        ));
    }
    Ok((fixed("cpunumber").unwrap_or(1), fixed("memory").unwrap_or(512)))
}

fn check_name(name: &str) -> Result<()> {
    let fits = (1..=63).contains(&name.len())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
        && !name.starts_with(|c: char| c == '-' || c.is_ascii_digit())
        && !name.ends_with('-');
    if fits {
        return Ok(());
    }
    Err(Refusal::param(
        "Invalid name. Vm name can contain ASCII letters 'a' through 'z', the digits '0' through '9', and the hyphen ('-'), must be between 1 and 63 characters long, and can't start or end with \"-\" and can't start with digit",
    ))
}

/// Unique in a network's domain, and nowhere else: two L2 networks have none.
fn check_name_is_free(state: &State, name: &str, wanted: &[nics::Wanted]) -> Result<()> {
    let domain_of = |network: Uuid| {
        state.networks.get(&network).map(|n| n.domain.as_str()).filter(|domain| !domain.is_empty())
    };
    for wish in wanted {
        let Some(domain) = domain_of(wish.network) else { continue };
        let taken = state.vms.tied(&Tie::Name(name.to_ascii_lowercase())).any(|vm| {
            vm.removed.is_none() && vm.nics.iter().any(|nic| domain_of(nic.network) == Some(domain))
        });
        if taken {
            return Err(Refusal::param(format!(
                "A vm with hostName {name} already exists in the network domain: {domain}; network={}",
                wish.network
            )));
        }
    }
    Ok(())
}

/// As many as the account may have.
pub fn check_quota(state: &State, asked: &Asked, limit: &str, word: &str) -> Result<()> {
    let account = &asked.account;
    let Some(most) = account.limits.get(limit) else { return Ok(()) };
    let name = &account.name;
    let has = match limit {
        "vm" => state.vms.values().filter(|vm| vm.removed.is_none() && &vm.account == name).count(),
        "volume" => state.volumes.values().filter(|v| v.removed.is_none() && &v.account == name).count(),
        _ => {
            let of = |id: &Uuid| state.volumes.get(id).is_some_and(|volume| &volume.account == name);
            state.snapshots.values().filter(|s| s.removed.is_none() && of(&s.volume)).count()
        }
    };
    if has as u64 >= *most {
        return Err(Refusal::code(
            535,
            format!(
                "Maximum amount of resources of Type = '{word}' for Account Name = {name} in Domain Id = {} is exceeded: Account Resource Limit = {most}",
                account.domain
            ),
        ));
    }
    Ok(())
}

/// The job of a deployment.
pub async fn run(job: Job) -> std::result::Result<Value, End> {
    let id = the_vm(&job);
    job.pause(job.world.look(|state| state.settings.cloudstack.other_ms)).await;
    if job.asked.fault == Some(Fault::Partial) {
        return Err(Refusal::internal("Unable to create a deployment: no storage for the root disk").into());
    }
    if job.asked.params.flag("startvm", true) {
        match power_up(&job, id).await {
            Ok(()) => {}
            Err(End::Refused(refusal)) => {
                job.rows(|state| {
                    state.vm_mut(id)?.state = VmState::Error;
                    Ok(())
                })?;
                return Err(refusal.into());
            }
            Err(gone) => return Err(gone),
        }
    } else {
        job.effect(|_| Ok(())).await?;
    }
    shown(&job, id)
}
