//! Commands that change a VM.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::Utc;
use serde_json::{Value, json};
use uuid::Uuid;

use super::jobs::{Begun, End, Job};
use super::request::Asked;
use super::{guests, nics, show};
use crate::faults::Fault;
use crate::world::State;
use crate::world::moves::Refusal;
use crate::world::table::Tie;
use crate::world::things::{Fixture, Power, Vm, VmState, VolumeState};

type Result<T> = std::result::Result<T, Refusal>;

/// `deployVirtualMachine`: all that can be refused is refused before there is a job.
pub fn begin_deploy(state: &mut State, asked: &Asked) -> Result<Begun> {
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
pub async fn deploy(job: Job) -> std::result::Result<Value, End> {
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

fn the_vm(job: &Job) -> Uuid {
    job.begun.instance.map(|(_, id)| id).unwrap_or_default()
}

fn shown(job: &Job, id: Uuid) -> std::result::Result<Value, End> {
    job.rows(|state| Ok(json!({ "virtualmachine": show::vm(state, state.vm(id)?) })))
}

/// `startVirtualMachine`
pub fn begin_start(state: &mut State, asked: &Asked) -> Result<Begun> {
    state.asked_to_start(asked.params.need_id("id")?);
    begin(state, asked)
}

/// `stopVirtualMachine`
pub fn begin(state: &mut State, asked: &Asked) -> Result<Begun> {
    let id = asked.params.need_id("id")?;
    asked.may_use_vm(state, id)?;
    Ok(Begun { instance: Some(("VirtualMachine", id)), line: Some(id), id: None })
}

/// The job of a start.
pub async fn start(job: Job) -> std::result::Result<Value, End> {
    let id = the_vm(&job);
    job.rows(|state| {
        let vm = state.vm(id)?;
        state.is_settled_down(&[id])?;
        match vm.state {
            VmState::Stopped => Ok(()),
            VmState::Running => {
                Err(Refusal::param(format!("The virtual machine {} is already running", vm.name)))
            }
            other => Err(Refusal::param(format!(
                "The virtual machine {} cannot be started in state {other:?}",
                vm.name
            ))),
        }
    })?;
    power_up(&job, id).await?;
    shown(&job, id)
}

async fn power_up(job: &Job, id: Uuid) -> std::result::Result<(), End> {
    let host = job.rows(|state| {
        let host = room_for(state, id)?;
        state.vm_mut(id)?.state = VmState::Starting;
        Ok(host)
    })?;
    job.pause(job.world.look(|state| state.settings.cloudstack.start_ms)).await;
    job.effect(|state| {
        state.power_on(id)?;
        // Where it runs is so, and known to the host itself.
        state.vm_mut(id)?.host = Some(host);
        Ok(())
    })
    .await?;
    job.rows(|state| {
        state.applied("startVirtualMachine", id);
        is_up(state, id)
    })?;
    guests::begins(&job.world, id);
    Ok(())
}

/// The rows say that it runs.
pub fn is_up(state: &mut State, id: Uuid) -> Result<()> {
    state.vm_mut(id)?.state = VmState::Running;
    // The first start gives storage to what was only a row.
    let storage = state.storage_for(id);
    for volume in state.attached_to(id) {
        let volume = state.volume_mut(volume)?;
        if volume.state == VolumeState::Allocated {
            (volume.state, volume.pool) = (VolumeState::Ready, storage);
        }
    }
    Ok(())
}

/// A host that is up, and has the memory.
pub fn room_for(state: &State, vm: Uuid) -> Result<Uuid> {
    let wanted = u64::from(state.vm(vm)?.memory_mb);
    let used =
        |host: Uuid| -> u64 { state.vms.tied(&Tie::RunsOn(host)).map(|vm| u64::from(vm.memory_mb)).sum() };
    let fits = state.hosts.iter().find(|host| host.state == "Up" && used(host.id) + wanted <= host.memory_mb);
    fits.map(|host| host.id).ok_or_else(|| {
        Refusal::code(
            533,
            format!(
                "Unable to create a deployment for VM instance {vm}: InsufficientServerCapacityException"
            ),
        )
    })
}

/// The job of a stop.
pub async fn stop(job: Job) -> std::result::Result<Value, End> {
    let id = the_vm(&job);
    let forced = job.asked.params.flag("forced", false);
    let now = job.rows(|state| {
        state.is_settled_down(&[id])?;
        Ok(state.vm(id)?.state)
    })?;
    match now {
        VmState::Stopped => {
            job.rows(|state| Ok(state.cloudstack.coming_back.remove(&id)))?;
            return shown(&job, id);
        }
        VmState::Running => {}
        other => {
            return Err(
                Refusal::param(format!("The virtual machine cannot be stopped in state {other:?}")).into()
            );
        }
    }
    power_down(&job, id, forced).await?;
    if let Some(Fault::Reappears { ms }) = &job.asked.fault {
        job.asked.reappear(&job.world, *ms, move |state| _ = guests::comes_back(state, id));
    }
    shown(&job, id)
}

async fn power_down(job: &Job, id: Uuid, forced: bool) -> std::result::Result<(), End> {
    let reachable = job.rows(|state| {
        let host = state.vm(id)?.host;
        let reachable = state.hosts.iter().all(|one| Some(one.id) != host || one.state == "Up");
        state.vm_mut(id)?.state = VmState::Stopping;
        Ok(reachable)
    })?;
    if !forced {
        job.pause(job.world.look(|state| state.settings.cloudstack.stop_ms)).await;
    }
    if reachable && job.asked.fault != Some(Fault::StopsOnlyInName) {
        job.effect(|state| {
            state.power_off(id);
            Ok(())
        })
        .await?;
    } else if !reachable && !forced {
        return Err(Refusal::code(
            534,
            "Unable to stop the VM: its host is not reachable (AgentUnavailableException)",
        )
        .into());
    }
    // Otherwise the rows say Stopped, and the guest runs on: two of it are one start away.
    job.rows(|state| {
        let vm = state.vm_mut(id)?;
        vm.state = VmState::Stopped;
        vm.host = None;
        let runs_on = vm.power == Power::On;
        state.applied("stopVirtualMachine", id);
        if runs_on {
            for volume in state.plugged_in(id) {
                state.write(volume, "a guest that should be off");
            }
        }
        Ok(())
    })
}

/// `destroyVirtualMachine`
pub fn begin_destroy(state: &mut State, asked: &Asked) -> Result<Begun> {
    let id = asked.params.need_id("id")?;
    state.asked_to_destroy_vm(id);
    for volume in asked.params.ids("volumeids")? {
        state.asked_to_destroy_volume(volume);
    }
    asked.may_use_vm(state, id)?;
    if asked.params.flag("expunge", false)
        && !asked.account.root_admin
        && !state.configured("allow.user.expunge.recover.vm")
    {
        return Err(Refusal::code(531, "Parameter expunge can be passed by Admin only"));
    }
    Ok(Begun { instance: Some(("VirtualMachine", id)), line: Some(id), id: None })
}

/// The job of a destruction: it stops the VM first.
pub async fn destroy(job: Job) -> std::result::Result<Value, End> {
    let id = the_vm(&job);
    let expunge = job.asked.params.flag("expunge", false);
    let with = job.asked.params.ids("volumeids")?;
    let now = job.rows(|state| Ok(state.vm(id)?.state))?;
    if now == VmState::Running {
        power_down(&job, id, true).await?;
    }
    job.pause(job.world.look(|state| state.settings.cloudstack.other_ms)).await;
    let told = job.rows(|state| {
        state.vm_mut(id)?.state = VmState::Destroyed;
        state.applied("destroyVirtualMachine", id);
        Ok(json!({ "virtualmachine": show::vm(state, state.vm(id)?) }))
    })?;
    if expunge {
        lose(&job, id, with).await?;
    } else {
        let world = job.world.clone();
        let seconds =
            world.look(|state| state.configurations.get("expunge.delay").and_then(|n| n.parse().ok()));
        let cause = job.asked.cause();
        job.world.spawn(async move {
            world.pause(Duration::from_secs(seconds.unwrap_or(86_400)).max(Duration::from_secs(1))).await;
            let due = |state: &State| state.vm(id).is_ok_and(|vm| vm.state == VmState::Destroyed);
            // An instant data centre has no delay to wait for: it never expunges by itself.
            if world.look(|state| state.settings.pace > 0.0 && due(state)) {
                world.change(cause, |state| state.lose_vm(id, &with));
            }
        });
    }
    Ok(told)
}

/// `expungeVirtualMachine`
pub fn begin_expunge(state: &mut State, asked: &Asked) -> Result<Begun> {
    let id = asked.params.need_id("id")?;
    state.asked_to_destroy_vm(id);
    asked.may_use_vm(state, id)?;
    Ok(Begun { instance: Some(("VirtualMachine", id)), line: Some(id), id: None })
}

/// The job of an expunging.
pub async fn expunge(job: Job) -> std::result::Result<Value, End> {
    let id = the_vm(&job);
    job.rows(|state| match state.vm(id)?.state {
        VmState::Destroyed | VmState::Expunging | VmState::Error => Ok(()),
        other => Err(Refusal::param(format!(
            "Please destroy vm with specified id before expunging it: it is {other:?}"
        ))),
    })?;
    job.pause(job.world.look(|state| state.settings.cloudstack.other_ms)).await;
    lose(&job, id, Vec::new()).await?;
    Ok(json!({ "success": true }))
}

async fn lose(job: &Job, id: Uuid, with: Vec<Uuid>) -> std::result::Result<(), End> {
    let before = job.world.look(|state| state.vms.get(&id).cloned());
    job.effect(|state| {
        state.lose_vm(id, &with);
        state.applied("expungeVirtualMachine", id);
        Ok(())
    })
    .await?;
    if let (Some(Fault::Reappears { ms }), Some(vm)) = (&job.asked.fault, before) {
        job.asked.reappear(&job.world, *ms, move |state| {
            state.vms.insert(id, vm);
        });
    }
    Ok(())
}

/// Whether the rows and the hypervisors differ on what runs.
pub fn power_differs(state: &State) -> bool {
    state.vms.tied(&Tie::Unlike).any(|vm| unlike(state, vm))
}

fn unlike(state: &State, vm: &Vm) -> bool {
    let unlike = match vm.state {
        // A VM that the rows have at no host is reported by none: a stop in name only stays unseen.
        VmState::Stopped => vm.power == Power::On && vm.host.is_some(),
        VmState::Running => vm.power == Power::Off,
        _ => false,
    };
    let host_is_up = state.hosts.iter().all(|host| Some(host.id) != vm.host || host.state == "Up");
    vm.removed.is_none() && unlike && host_is_up && !state.cloudstack.busy.contains_key(&vm.id)
}

/// The hypervisors report what runs, and the rows follow.
pub fn sync_power(state: &mut State) {
    let wrong: Vec<Uuid> =
        state.vms.tied(&Tie::Unlike).filter(|vm| unlike(state, vm)).map(|vm| vm.id).collect();
    for id in wrong {
        let Ok(vm) = state.vm_mut(id) else { continue };
        if vm.power == Power::On {
            let _ = is_up(state, id);
        } else {
            vm.state = VmState::Stopped;
            vm.host = None;
        }
    }
}

/// The host of the VM that a call is about is shown as down; what runs there runs on.
pub fn host_goes_down(state: &mut State, asked: &Asked) {
    let vm = ["virtualmachineid", "id"].iter().find_map(|name| asked.params.id(name).ok().flatten());
    let host = vm.and_then(|id| state.vms.get(&id)).and_then(|vm| vm.host);
    for one in &mut state.hosts {
        if host.is_none_or(|host| host == one.id) {
            one.state = "Down".to_owned();
        }
    }
}
