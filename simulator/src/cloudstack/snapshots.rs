//! Snapshots of a volume, and of a VM with all its volumes.

use std::collections::BTreeMap;

use chrono::Utc;
use serde_json::{Value, json};
use uuid::Uuid;

use super::deploy::check_quota;
use super::jobs::{Begun, End, Job};
use super::request::Asked;
use super::show;
use crate::faults::Fault;
use crate::world::State;
use crate::world::moves::Refusal;
use crate::world::table::Tie;
use crate::world::things::{SnapshotBy, VmSnapshot, VmState, VolumeState};

type Result<T> = std::result::Result<T, Refusal>;
type Ended = std::result::Result<Value, End>;

fn instance(job: &Job) -> Uuid {
    job.begun.instance.map(|(_, id)| id).unwrap_or_default()
}

/// `createSnapshot`: all that can be refused is refused before there is a job.
pub fn begin_create(state: &mut State, asked: &Asked) -> Result<Begun> {
    let volume = asked.params.need_id("volumeid")?;
    state.asked_about_oma_root(volume);
    asked.may_use_volume(state, volume)?;
    if asked.params.flag("quiescevm", false) {
        return Err(Refusal::internal("can't handle quiescevm equal true for volume snapshot"));
    }
    check_quota(state, asked, "snapshot", "snapshot")?;
    state.may_snapshot(volume)?;
    let tags =
        asked.params.pairs("tags").into_iter().map(|(key, value)| (key, value.unwrap_or_default())).collect();
    let made_up = || {
        format!(
            "{}_{}",
            state.volumes.get(&volume).map_or("volume", |v| &v.name),
            Utc::now().format("%Y%m%d%H%M%S")
        )
    };
    let name = asked.params.get("name").map_or_else(made_up, str::to_owned);
    let id = state.new_snapshot(volume, &name, SnapshotBy::CloudStack, tags)?;
    let line = state.volume(volume)?.attached.map(|at| at.vm);
    state.applied("createSnapshot", format!("{volume} {name}"));
    Ok(Begun { instance: Some(("Snapshot", id)), line, id: Some(id) })
}

/// The job of a snapshot: taken at once, then brought to the secondary storage.
pub async fn create(job: Job) -> Ended {
    let id = instance(&job);
    job.rows(|state| {
        let volume = state.snapshot(id)?.volume;
        state.volume_mut(volume)?.state = VolumeState::Snapshotting;
        state.snapshot_mut(id)?.state = "Creating".to_owned();
        Ok(())
    })?;
    job.pause(job.world.look(|state| state.settings.cloudstack.other_ms)).await;
    job.effect(|state| state.take(id)).await?;
    job.rows(|state| {
        state.snapshot_mut(id)?.state = "BackingUp".to_owned();
        Ok(())
    })?;
    job.pause(job.world.look(|state| state.settings.cloudstack.snapshot_ms)).await;
    job.rows(|state| {
        let volume = state.snapshot(id)?.volume;
        state.volume_mut(volume)?.state = VolumeState::Ready;
        state.snapshot_mut(id)?.state = "BackedUp".to_owned();
        Ok(json!({ "snapshot": show::snapshot(state, state.snapshot(id)?) }))
    })
}

/// `revertSnapshot`
pub fn begin_revert(state: &mut State, asked: &Asked) -> Result<Begun> {
    let id = asked.params.need_id("id")?;
    let volume = state.snapshot(id)?.volume;
    state.asked_about_oma_root(volume);
    asked.may_use_volume(state, volume)?;
    let line = state.volumes.get(&volume).and_then(|row| row.attached).map(|at| at.vm);
    Ok(Begun { instance: Some(("Snapshot", id)), line, id: None })
}

/// The job of a revert: what was written since is lost.
pub async fn revert(job: Job) -> Ended {
    let id = instance(&job);
    job.rows(|state| {
        let volume = state.may_revert(id)?;
        state.volume_mut(volume)?.state = VolumeState::RevertSnapshotting;
        Ok(())
    })?;
    job.pause(job.world.look(|state| state.settings.cloudstack.revert_ms)).await;
    job.effect(|state| {
        state.revert(id)?;
        state.applied("revertSnapshot", id);
        Ok(())
    })
    .await?;
    job.rows(|state| {
        let volume = state.snapshot(id)?.volume;
        state.volume_mut(volume)?.state = VolumeState::Ready;
        Ok(json!({ "success": true, "snapshot": show::snapshot(state, state.snapshot(id)?) }))
    })
}

/// `deleteSnapshot`
pub fn begin_delete(state: &mut State, asked: &Asked) -> Result<Begun> {
    let id = asked.params.need_id("id")?;
    let volume = state.snapshot(id)?.volume;
    state.asked_about_oma_root(volume);
    asked.may_use_volume(state, volume)?;
    Ok(Begun { instance: Some(("Snapshot", id)), line: None, id: None })
}

/// The job of a deletion.
pub async fn delete(job: Job) -> Ended {
    let id = instance(&job);
    job.rows(|state| match state.snapshot(id)?.state.as_str() {
        "BackedUp" | "Error" | "Allocated" => Ok(()),
        other => {
            Err(Refusal::param(format!("Can't delete snapshotshot {id} due to it is in {other} Status")))
        }
    })?;
    job.pause(job.world.look(|state| state.settings.cloudstack.other_ms)).await;
    let before = job.world.look(|state| state.snapshots.get(&id).cloned());
    job.effect(|state| {
        state.delete_snapshot(id)?;
        state.applied("deleteSnapshot", id);
        Ok(())
    })
    .await?;
    if let (Some(Fault::Reappears { ms }), Some(row)) = (&job.asked.fault, before) {
        job.asked.reappear(&job.world, *ms, move |state| {
            state.snapshots.insert(id, row);
        });
    }
    Ok(json!({ "success": true }))
}

/// `createVMSnapshot`: its display name is unique for the VM.
pub fn begin_create_of_vm(state: &mut State, asked: &Asked) -> Result<Begun> {
    let vm = asked.params.need_id("virtualmachineid")?;
    asked.may_use_vm(state, vm)?;
    let row = state.vm(vm)?;
    if !matches!(row.state, VmState::Running | VmState::Stopped) {
        return Err(Refusal::param(format!(
            "Creating Instance Snapshot failed due to VM: {vm} is not in the running or Stopped state"
        )));
    }
    let runs = row.state == VmState::Running;
    let memory = asked.params.flag("snapshotmemory", false);
    if memory && !runs {
        return Err(Refusal::param("Can not snapshot memory when VM is not in Running state"));
    }
    if memory {
        return Err(Refusal::param(
            "KVM VM snapshots with memory are only supported for volumes of QCOW2 on file storage",
        ));
    }
    if runs && !state.configured("kvm.vmstoragesnapshot.enabled") {
        return Err(Refusal::param(
            "Creating a snapshot of a running KVM Instance without memory is not supported",
        ));
    }
    let volumes = state.attached_to(vm);
    let ready = |id: &Uuid| state.volumes.get(id).is_some_and(|volume| volume.state == VolumeState::Ready);
    if volumes.is_empty() || !volumes.iter().all(ready) {
        return Err(Refusal::param(
            "The volume of the VM is not in Ready state: the VM cannot be snapshotted",
        ));
    }
    if volumes.iter().any(|volume| state.is_being_snapshotted(*volume)) {
        return Err(Refusal::param(
            "There is other active volume snapshot tasks on the instance, please try again later",
        ));
    }
    let made_up = || format!("snapshot-{}", Utc::now().format("%Y%m%d%H%M%S%3f"));
    let display_name = asked.params.get("name").map_or_else(made_up, str::to_owned);
    let there: Vec<_> = state.vm_snapshots.tied(&Tie::Vm(vm)).filter(|s| s.removed.is_none()).collect();
    if asked.fault != Some(Fault::DuplicateName) && there.iter().any(|s| s.display_name == display_name) {
        return Err(Refusal::param(format!(
            "Creating Instance Snapshot failed due to Instance Snapshot with name {display_name} already exists"
        )));
    }
    let most = state.configurations.get("vmsnapshot.max").and_then(|n| n.parse().ok()).unwrap_or(10);
    if there.len() >= most {
        return Err(Refusal::internal(format!(
            "Creating Instance Snapshot failed due to a VM can just have : {most} VM snapshots"
        )));
    }
    let id = Uuid::new_v4();
    state.applied("createVMSnapshot", format!("{vm} {display_name}"));
    let row = VmSnapshot {
        id,
        display_name,
        vm,
        contents: BTreeMap::new(),
        state: "Allocated".to_owned(),
        tags: BTreeMap::new(),
        created: Utc::now(),
        removed: None,
    };
    state.vm_snapshots.insert(id, row);
    Ok(Begun { instance: Some(("VMSnapshot", id)), line: Some(vm), id: Some(id) })
}

fn show_vm_snapshot(job: &Job, id: Uuid) -> Ended {
    job.rows(|state| Ok(json!({ "vmsnapshot": show::vm_snapshot(state, state.vm_snapshot(id)?) })))
}

fn vm_snapshot_is(job: &Job, id: Uuid, now: &str) -> std::result::Result<(), End> {
    job.rows(|state| {
        state.vm_snapshot_mut(id)?.state = now.to_owned();
        Ok(())
    })
}

/// The job of a VM's snapshot: all of its volumes at one moment.
pub async fn create_of_vm(job: Job) -> Ended {
    let id = instance(&job);
    vm_snapshot_is(&job, id, "Creating")?;
    job.pause(job.world.look(|state| state.settings.cloudstack.snapshot_ms)).await;
    job.effect(|state| {
        let volumes = state.attached_to(state.vm_snapshot(id)?.vm);
        let contents =
            volumes.iter().filter_map(|id| Some((*id, state.volumes.get(id)?.content.clone()))).collect();
        state.vm_snapshot_mut(id)?.contents = contents;
        Ok(())
    })
    .await?;
    vm_snapshot_is(&job, id, "Ready")?;
    show_vm_snapshot(&job, id)
}

/// `revertToVMSnapshot`
pub fn begin_revert_vm(state: &mut State, asked: &Asked) -> Result<Begun> {
    begin_with(state, asked, "vmsnapshotid")
}

fn begin_with(state: &mut State, asked: &Asked, name: &str) -> Result<Begun> {
    let id = asked.params.need_id(name)?;
    let vm = state.vm_snapshot(id)?.vm;
    asked.may_use_vm(state, vm)?;
    Ok(Begun { instance: Some(("VMSnapshot", id)), line: Some(vm), id: None })
}

/// The job of a VM's revert: disk-only ones want it off.
pub async fn revert_vm(job: Job) -> Ended {
    let id = instance(&job);
    let vm = job.rows(|state| {
        let row = state.vm_snapshot(id)?;
        if row.state != "Ready" {
            return Err(Refusal::param(format!("Instance Snapshot is not ready: {}", row.state)));
        }
        let vm = row.vm;
        if state.vm(vm)?.state != VmState::Stopped {
            return Err(Refusal::param("Instance Snapshot reverting failed because the Instance is not Stopped: the snapshot is without memory"));
        }
        state.vm_snapshot_mut(id)?.state = "Reverting".to_owned();
        Ok(vm)
    })?;
    job.pause(job.world.look(|state| state.settings.cloudstack.revert_ms)).await;
    job.effect(|state| {
        for (volume, content) in state.vm_snapshot(id)?.contents.clone() {
            state.volume_mut(volume)?.content = content;
            state.applied("revert", format!("{volume} {id}"));
        }
        state.applied("revertToVMSnapshot", id);
        Ok(())
    })
    .await?;
    vm_snapshot_is(&job, id, "Ready")?;
    job.rows(|state| Ok(json!({ "virtualmachine": show::vm(state, state.vm(vm)?) })))
}

/// `deleteVMSnapshot`
pub fn begin_delete_of_vm(state: &mut State, asked: &Asked) -> Result<Begun> {
    begin_with(state, asked, "vmsnapshotid")
}

/// The job of a deletion.
pub async fn delete_of_vm(job: Job) -> Ended {
    let id = instance(&job);
    job.rows(|state| match state.vm_snapshot(id)?.state.as_str() {
        "Ready" | "Expunging" | "Error" => Ok(()),
        other => Err(Refusal::param(format!("Can't delete the VM snapshot {id} in state {other}"))),
    })?;
    let before = job.world.look(|state| state.vm_snapshots.get(&id).cloned());
    vm_snapshot_is(&job, id, "Expunging")?;
    job.pause(job.world.look(|state| state.settings.cloudstack.other_ms)).await;
    job.effect(|state| {
        state.before_vm_snapshot_is_lost(id);
        let row = state.vm_snapshot_mut(id)?;
        row.state = "Removed".to_owned();
        row.removed = Some(Utc::now());
        state.applied("deleteVMSnapshot", id);
        Ok(())
    })
    .await?;
    if let (Some(Fault::Reappears { ms }), Some(row)) = (&job.asked.fault, before) {
        job.asked.reappear(&job.world, *ms, move |state| {
            state.vm_snapshots.insert(id, row);
        });
    }
    Ok(json!({ "success": true }))
}
