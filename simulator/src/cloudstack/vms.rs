//! Commands that change a VM that is there.

use std::time::Duration;

use serde_json::{Value, json};
use uuid::Uuid;

use super::jobs::{Begun, End, Job};
use super::request::Asked;
use super::{guests, show};
use crate::faults::Fault;
use crate::world::State;
use crate::world::moves::Refusal;
use crate::world::table::Tie;
use crate::world::things::{Power, Vm, VmState, VolumeState};

type Result<T> = std::result::Result<T, Refusal>;

/// The VM that a job is about.
pub fn the_vm(job: &Job) -> Uuid {
    job.begun.instance.map(|(_, id)| id).unwrap_or_default()
}

/// How a job answers that is about a VM.
pub fn shown(job: &Job, id: Uuid) -> std::result::Result<Value, End> {
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

/// Starts a VM that is stopped.
pub async fn power_up(job: &Job, id: Uuid) -> std::result::Result<(), End> {
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
