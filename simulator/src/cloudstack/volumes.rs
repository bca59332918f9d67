//! Commands that change a volume.

use serde_json::{Value, json};
use uuid::Uuid;

use super::deploy::{blank, check_quota};
use super::jobs::{Begun, End, Job};
use super::request::Asked;
use super::show;
use crate::faults::Fault;
use crate::world::moves::Refusal;
use crate::world::things::{Power, VmState, VolumeState};
use crate::world::{State, World};

type Result<T> = std::result::Result<T, Refusal>;
type Ended = std::result::Result<Value, End>;

fn the_volume(job: &Job) -> Uuid {
    job.begun.instance.map(|(_, id)| id).unwrap_or_default()
}

fn shown(job: &Job, id: Uuid) -> Ended {
    job.rows(|state| Ok(json!({ "volume": show::volume(state, state.volume(id)?) })))
}

/// `attachVolume`: both must be there; whether they fit is found out in the job.
pub fn begin_attach(state: &mut State, asked: &Asked) -> Result<Begun> {
    let (volume, vm) = (asked.params.need_id("id")?, asked.params.need_id("virtualmachineid")?);
    state.asked_to_move(Some(volume), Some(vm), device(asked)?);
    asked.may_use_volume(state, volume)?;
    asked.may_use_vm(state, vm)?;
    Ok(Begun { instance: Some(("Volume", volume)), line: Some(vm), id: None })
}

fn device(asked: &Asked) -> Result<Option<u32>> {
    let number = asked.params.number("deviceid")?;
    number.map(|n| u32::try_from(n).map_err(|_| Refusal::param("deviceid is out of range"))).transpose()
}

/// The hypervisor is only asked where the row says that the VM runs.
fn runs_by_its_row(state: &State, vm: Uuid) -> Result<bool> {
    Ok(state.vm(vm)?.state == VmState::Running)
}

/// The job of an attachment.
pub async fn attach(job: Job) -> Ended {
    let volume = the_volume(&job);
    let vm = job.asked.params.need_id("virtualmachineid")?;
    let wish = device(&job.asked)?;
    let (slot, runs, moves) = job.rows(|state| {
        let slot = state.may_attach(volume, vm, wish)?;
        let (runs, moves) = (runs_by_its_row(state, vm)?, state.moves_to(volume, vm));
        let storage = state.storage_for(vm);
        let row = state.volume_mut(volume)?;
        row.state = match (row.state, moves) {
            // What is only a row gets its storage now.
            (VolumeState::Allocated, _) => {
                row.pool = storage;
                VolumeState::Creating
            }
            (_, Some(_)) => VolumeState::Migrating,
            _ => VolumeState::Attaching,
        };
        Ok((slot, runs, moves))
    })?;
    if let Some(pool) = moves {
        job.pause(job.world.look(|state| state.settings.cloudstack.move_ms)).await;
        job.rows(|state| {
            state.move_to(volume, pool)?;
            state.volume_mut(volume)?.state = VolumeState::Attaching;
            Ok(())
        })?;
    }
    job.pause(job.world.look(|state| state.settings.cloudstack.attach_ms)).await;
    let attach_row = |state: &mut State| {
        state.attach_row(volume, vm, slot)?;
        state.applied("attachVolume", format!("{volume} {vm}"));
        Ok(())
    };
    if runs {
        job.effect(|state| state.plug(volume, vm)).await?;
        job.rows(attach_row)?;
    } else {
        // A VM that is off is only a row, and so is what hangs at it: once that is written, it is done, whatever becomes of the
        // job. One that runs on behind its row hears nothing of it.
        job.effect(|state| {
            if state.volume(volume)?.attached.is_some() {
                return Err(Refusal::internal("the volume was attached meanwhile"));
            }
            if state.vm(vm)?.power == Power::Off {
                state.plug(volume, vm)?;
            }
            attach_row(state)
        })
        .await?;
    }
    shown(&job, volume)
}

/// `detachVolume`, by the volume, or by the VM and the slot.
pub fn begin_detach(state: &mut State, asked: &Asked) -> Result<Begun> {
    let volume = match (asked.params.id("id")?, asked.params.id("virtualmachineid")?, device(asked)?) {
        (Some(volume), None, None) => volume,
        (None, Some(vm), Some(device)) => {
            state.asked_to_move(None, Some(vm), Some(device));
            let at = |id: &Uuid| {
                state.volumes.get(id).and_then(|v| v.attached).is_some_and(|at| at.device == device)
            };
            state.attached_to(vm).into_iter().find(at).ok_or_else(|| {
                Refusal::param(format!("No volume is attached to VM {vm} at device {device}"))
            })?
        }
        _ => {
            return Err(Refusal::param(
                "Please provide either a volume id, or a tuple(device id, instance id)",
            ));
        }
    };
    let vm = state.volumes.get(&volume).and_then(|row| row.attached).map(|at| at.vm);
    state.asked_to_move(Some(volume), vm, None);
    state.asked_to_detach(volume);
    asked.may_use_volume(state, volume)?;
    Ok(Begun { instance: Some(("Volume", volume)), line: vm, id: None })
}

/// The job of a detachment.
pub async fn detach(job: Job) -> Ended {
    let volume = the_volume(&job);
    let (vm, runs) = job.rows(|state| {
        let vm = state.may_detach(volume)?;
        Ok((vm, runs_by_its_row(state, vm)?))
    })?;
    job.pause(job.world.look(|state| state.settings.cloudstack.attach_ms)).await;
    let detach_row = |state: &mut State| {
        state.detach_row(volume)?;
        state.applied("detachVolume", format!("{volume} {vm}"));
        Ok(())
    };
    if runs {
        job.effect(|state| {
            if state.guest_uses(volume, vm) {
                return Err(Refusal::internal(format!(
                    "Failed to detach volume {volume} from VM {vm}: the device is still in use by the guest, and was not released in time"
                )));
            }
            state.unplug(volume, vm);
            Ok(())
        })
        .await?;
        job.rows(detach_row)?;
    } else {
        job.effect(|state| {
            // Something else was done with it meanwhile.
            if state.volume(volume)?.attached.map(|at| at.vm) != Some(vm) {
                return Ok(());
            }
            if state.vm(vm)?.power == Power::Off {
                state.unplug(volume, vm);
            }
            detach_row(state)
        })
        .await?;
    }
    shown(&job, volume)
}

/// `createVolume`: a row; storage comes with the first attachment, unless it is made from a snapshot.
pub fn begin_create(state: &mut State, asked: &Asked) -> Result<Begun> {
    let params = &asked.params;
    let name = params.get("name").unwrap_or("volume").to_owned();
    check_quota(state, asked, "volume", "volume")?;
    let custom = match params.id("customid")? {
        Some(_) if !asked.account.root_admin => {
            return Err(Refusal::code(531, "Only Root Admin is allowed to use the parameter customid"));
        }
        Some(id) if state.volumes.contains_key(&id) => {
            return Err(Refusal::param(format!("Volume with custom id {id} already exists")));
        }
        wish => wish,
    };
    let id = if let Some(snapshot) = params.id("snapshotid")? {
        let from = state.snapshot(snapshot)?.clone();
        let zone = state.volumes.get(&from.volume).map(|volume| volume.zone).unwrap_or_default();
        let id = blank(state, &name, from.size, asked, zone, None)?;
        let beside = state.volumes.get(&from.volume).and_then(|volume| volume.pool);
        let made = state.volume_mut(id)?;
        (made.content, made.pool) = (from.content, beside);
        id
    } else {
        let zone = params.need_id("zoneid")?;
        if !state.zones.iter().any(|one| one.id == zone) {
            return Err(Refusal::code(
                431,
                format!("Invalid parameter zoneid value={zone}: entity does not exist"),
            ));
        }
        let offering = params.need_id("diskofferingid")?;
        let offering = state.disk_offerings.iter().find(|one| one.id == offering);
        let offering = offering.ok_or_else(|| Refusal::code(431, "Please specify a valid disk offering."))?;
        let fixed = offering.more.get("disksize").and_then(Value::as_u64).filter(|gb| *gb > 0);
        let gb = match (fixed, params.number("size")?) {
            (Some(_), Some(_)) => {
                return Err(Refusal::param("This disk offering does not allow custom size"));
            }
            (Some(gb), None) => gb,
            (None, Some(gb)) if gb > 0 => gb,
            (None, _) => {
                return Err(Refusal::param("Disk size must be larger than 0: the disk offering has none"));
            }
        };
        blank(state, &name, gb << 30, asked, zone, None)?
    };
    let id = match custom {
        None => id,
        Some(custom) => {
            if let Some(mut row) = state.volumes.remove(&id) {
                row.id = custom;
                row.path = custom.to_string();
                state.volumes.insert(custom, row);
            }
            custom
        }
    };
    state.applied("createVolume", name);
    Ok(Begun { instance: Some(("Volume", id)), line: None, id: Some(id) })
}

/// The job of a creation.
pub async fn create(job: Job) -> Ended {
    let id = the_volume(&job);
    job.pause(job.world.look(|state| state.settings.cloudstack.other_ms)).await;
    job.effect(|_| Ok(())).await?;
    job.rows(|state| {
        if job.asked.params.get("snapshotid").is_some() {
            state.volume_mut(id)?.state = VolumeState::Ready;
        }
        Ok(())
    })?;
    shown(&job, id)
}

/// `deleteVolume`: at once, and for good.
pub fn delete(world: &World, asked: &Asked) -> Result<Value> {
    let id = asked.params.need_id("id")?;
    let before = world.look(|state| state.volumes.get(&id).cloned());
    world.change(asked.cause(), |state| {
        state.asked_to_destroy_volume(id);
        asked.may_use_volume(state, id)?;
        state.may_delete(id)?;
        state.lose_volume(id);
        state.applied("deleteVolume", id);
        Ok(())
    })?;
    if let (Some(Fault::Reappears { ms }), Some(row)) = (&asked.fault, before) {
        asked.reappear(world, *ms, move |state| {
            state.volumes.insert(id, row);
        });
    }
    Ok(json!({ "success": true }))
}

/// `destroyVolume`
pub fn begin_destroy(state: &mut State, asked: &Asked) -> Result<Begun> {
    let id = asked.params.need_id("id")?;
    state.asked_to_destroy_volume(id);
    asked.may_use_volume(state, id)?;
    Ok(Begun { instance: Some(("Volume", id)), line: None, id: None })
}

/// The job of a destruction. Without `expunge` it can be brought back.
pub async fn destroy(job: Job) -> Ended {
    let id = the_volume(&job);
    job.rows(|state| state.may_delete(id))?;
    job.pause(job.world.look(|state| state.settings.cloudstack.other_ms)).await;
    let before = job.world.look(|state| state.volumes.get(&id).cloned());
    let told = job
        .effect(|state| {
            let row = state.volume_mut(id)?;
            row.state = VolumeState::Destroy;
            let told = json!({ "volume": show::volume(state, state.volume(id)?) });
            if job.asked.params.flag("expunge", false) {
                state.lose_volume(id);
            }
            state.applied("destroyVolume", id);
            Ok(told)
        })
        .await?;
    if let (Some(Fault::Reappears { ms }), Some(row)) = (&job.asked.fault, before) {
        job.asked.reappear(&job.world, *ms, move |state| {
            state.volumes.insert(id, row);
        });
    }
    Ok(told)
}
