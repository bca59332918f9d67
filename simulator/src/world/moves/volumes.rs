//! Volumes: made, attached, plugged in, written to, lost.

use std::collections::{BTreeMap, BTreeSet};

use chrono::Utc;
use uuid::Uuid;

use super::{Refusal, Result};
use crate::world::State;
use crate::world::table::Tie;
use crate::world::things::{Attachment, Content, Pool, SnapshotBy, VmState, Volume, VolumeState};

impl State {
    /// A new volume: storage without a place.
    pub fn new_volume(&mut self, name: &str, size: u64, account: &str, zone: Uuid) -> Uuid {
        let id = Uuid::new_v4();
        let volume = Volume {
            id,
            name: name.to_owned(),
            path: id.to_string(),
            state: VolumeState::Ready,
            root: false,
            pool: self.pools.first().map(|pool| pool.id),
            attached: None,
            plugged: BTreeSet::new(),
            size,
            zone,
            account: account.to_owned(),
            content: Content::default(),
            replica_of: None,
            tags: BTreeMap::new(),
            created: Utc::now(),
            removed: None,
            adrift_since: None,
        };
        self.volumes.insert(id, volume);
        id
    }

    /// Whether CloudStack attaches a volume to a VM, and at which slot.
    pub fn may_attach(&self, volume: Uuid, vm: Uuid, device: Option<u32>) -> Result<u32> {
        let row = self.volume(volume)?;
        let machine = self.vm(vm)?;
        self.is_settled_down(&[volume, vm])?;
        if row.attached.is_some() {
            return Err(Refusal::param("Please specify a volume that is not attached to any VM."));
        }
        if !matches!(row.state, VolumeState::Allocated | VolumeState::Ready) {
            return Err(Refusal::param(format!(
                "Volume state must be in Allocated, Ready or in Uploaded state, it is {:?}",
                row.state
            )));
        }
        if !matches!(machine.state, VmState::Running | VmState::Stopped) {
            return Err(Refusal::param("Please specify a VM that is either running or stopped."));
        }
        if row.zone != machine.zone {
            return Err(Refusal::param("Please specify a VM that is in the same zone as the volume."));
        }
        if self.has_vm_snapshot(vm) {
            return Err(Refusal::param(
                "Unable to attach volume, please specify a VM that does not have VM snapshots",
            ));
        }
        if machine.backup_offering.is_some() {
            return Err(Refusal::param(
                "Unable to attach volume, please specify a VM that does not have any backups",
            ));
        }
        let pool = self.pool_of(row);
        if let Some(pool) = pool.filter(|pool| !pool.managed && pool.hypervisor != machine.hypervisor) {
            return Err(Refusal::param(format!(
                "Can't attach a volume created by: {} to a {} vm",
                pool.hypervisor, machine.hypervisor
            )));
        }
        if pool.is_some_and(|pool| pool.local) {
            return Err(Refusal::param(
                "Volume is on local storage: it cannot be attached to a VM that may run elsewhere",
            ));
        }
        let taken: BTreeSet<u32> = self.slots(vm);
        match device {
            Some(0) => {
                if !matches!(machine.hypervisor.as_str(), "KVM" | "XenServer" | "VMware" | "Simulator") {
                    return Err(Refusal::param(format!(
                        "Attaching a root volume is not supported for the hypervisor {}",
                        machine.hypervisor
                    )));
                }
                if pool.is_some_and(|pool| pool.managed) {
                    return Err(Refusal::param(
                        "Root volume cannot be attached: it is on a managed storage pool",
                    ));
                }
                if machine.state != VmState::Stopped {
                    return Err(Refusal::param("Root volume can be attached only to a VM that is stopped"));
                }
                if taken.contains(&0) {
                    return Err(Refusal::param("Vm already has root volume attached to it"));
                }
                Ok(0)
            }
            wish => {
                let most = self.settings.cloudstack.most_data_disks;
                if taken.iter().filter(|slot| **slot != 0).count() >= most {
                    return Err(Refusal::param(format!(
                        "The specified VM already has the maximum number of data disks ({most}) attached. Please specify another VM."
                    )));
                }
                match wish {
                    Some(device) if taken.contains(&device) => {
                        Err(Refusal::internal(format!("deviceId {device} is used by vm {vm}")))
                    }
                    Some(device) => Ok(device),
                    // 3 is kept for the CD-ROM.
                    None => (1..)
                        .find(|slot| *slot != 3 && !taken.contains(slot))
                        .ok_or_else(|| Refusal::internal("there is no free device id")),
                }
            }
        }
    }

    /// The state that a list shows for a while after a job is the state that the next job finds.
    pub fn is_settled_down(&self, things: &[Uuid]) -> Result<()> {
        let masked = |id: &&Uuid| self.cloudstack.masks.get(id).is_some_and(|mask| mask.until > Utc::now());
        match things.iter().find(masked) {
            None => Ok(()),
            Some(id) => Err(Refusal::param(format!("{id} is in a transitional state; try again later"))),
        }
    }

    fn pool_of(&self, volume: &Volume) -> Option<&Pool> {
        self.pools.iter().find(|pool| Some(pool.id) == volume.pool)
    }

    /// Where CloudStack copies a volume to before it attaches it: what hangs there already lies where other hosts are.
    pub fn moves_to(&self, volume: Uuid, vm: Uuid) -> Option<Uuid> {
        let here = self.pool_of(self.volumes.get(&volume)?)?.cluster?;
        let there = self.attached_to(vm).into_iter().find_map(|id| self.pool_of(self.volumes.get(&id)?))?;
        (there.cluster? != here).then_some(there.id)
    }

    /// Where what is made for a VM is put: beside what it has.
    pub fn storage_for(&self, vm: Uuid) -> Option<Uuid> {
        let beside = self.attached_to(vm).into_iter().find_map(|id| self.volumes.get(&id)?.pool);
        beside.or_else(|| self.pools.first().map(|pool| pool.id))
    }

    /// It lies on another storage now, which calls it by another name. What LINSTOR kept of it stays behind, and is gone.
    pub fn move_to(&mut self, volume: Uuid, pool: Uuid) -> Result<()> {
        let kept = self.snapshots.tied(&Tie::Volume(volume));
        let kept = kept.filter(|snapshot| snapshot.by == SnapshotBy::Linstor && snapshot.removed.is_none());
        for snapshot in kept.map(|snapshot| snapshot.id).collect::<Vec<_>>() {
            self.delete_snapshot(snapshot)?;
        }
        let row = self.volume_mut(volume)?;
        (row.pool, row.path) = (Some(pool), Uuid::new_v4().to_string());
        self.applied("move volume", volume);
        Ok(())
    }

    fn slots(&self, vm: Uuid) -> BTreeSet<u32> {
        let there = self.volumes.tied(&Tie::Attached(vm)).filter(|volume| volume.removed.is_none());
        there.filter_map(|volume| volume.attached).map(|at| at.device).collect()
    }

    /// Whether CloudStack detaches a volume, and from which VM.
    pub fn may_detach(&self, volume: Uuid) -> Result<Uuid> {
        let row = self.volume(volume)?;
        let Some(at) = row.attached else {
            return Err(Refusal::param("The specified volume is not attached to any VM."));
        };
        let machine = self.vm(at.vm)?;
        self.is_settled_down(&[volume, at.vm])?;
        if !matches!(machine.state, VmState::Running | VmState::Stopped | VmState::Destroyed) {
            return Err(Refusal::param("Please specify a VM that is either running or stopped."));
        }
        if row.root && machine.state != VmState::Stopped {
            return Err(Refusal::param(
                "Please specify a VM that is stopped: a root volume cannot be detached from a running VM.",
            ));
        }
        if self.has_vm_snapshot(at.vm) {
            return Err(Refusal::param(
                "Unable to detach volume, please specify a VM that does not have VM snapshots",
            ));
        }
        if machine.backup_offering.is_some() {
            return Err(Refusal::param(
                "Unable to detach volume, cannot detach volume from a VM that has backups",
            ));
        }
        if row.root && self.pool_of(row).is_some_and(|pool| pool.managed) {
            return Err(Refusal::param("Root volume cannot be detached: it is on a managed storage pool"));
        }
        Ok(at.vm)
    }

    /// The row says that it is attached.
    pub fn attach_row(&mut self, volume: Uuid, vm: Uuid, device: u32) -> Result<()> {
        let row = self.volume_mut(volume)?;
        row.attached = Some(Attachment { vm, device });
        row.root = device == 0;
        row.state = VolumeState::Ready;
        Ok(())
    }

    /// The row says that it is attached nowhere. A root becomes a data disk.
    pub fn detach_row(&mut self, volume: Uuid) -> Result<()> {
        let row = self.volume_mut(volume)?;
        row.attached = None;
        row.root = false;
        Ok(())
    }

    /// It hangs there now. A hypervisor that has it there already says so.
    pub fn plug(&mut self, volume: Uuid, vm: Uuid) -> Result<()> {
        let adopt = self.settings.cloudstack.adopt_what_is_plugged;
        let disk = self.volume_mut(volume)?;
        if !disk.plugged.insert(vm) && !adopt {
            return Err(Refusal::internal(format!(
                "Failed to attach volume {} to VM {vm}; org.libvirt.LibvirtException: operation failed: target already exists",
                disk.name
            )));
        }
        self.applied("plug", format!("{volume} {vm}"));
        Ok(())
    }

    /// It hangs there no longer.
    pub fn unplug(&mut self, volume: Uuid, vm: Uuid) {
        if let Some(disk) = self.volumes.get_mut(&volume)
            && disk.plugged.remove(&vm)
        {
            self.applied("unplug", format!("{volume} {vm}"));
        }
    }

    /// Whether CloudStack deletes a volume.
    pub fn may_delete(&self, volume: Uuid) -> Result<()> {
        let row = self.volume(volume)?;
        if row.attached.is_some() {
            return Err(Refusal::param("Please specify a volume that is not attached to any VM."));
        }
        if self.is_being_snapshotted(volume) {
            return Err(Refusal::param(
                "There are pending snapshots for this volume, please try again later.",
            ));
        }
        Ok(())
    }

    /// The volume is gone with all that was on it.
    pub fn lose_volume(&mut self, volume: Uuid) {
        if let Some(row) = self.volumes.get_mut(&volume) {
            row.state = VolumeState::Expunged;
            row.attached = None;
            row.plugged.clear();
            row.removed = Some(Utc::now());
            if row.replica_of.is_some() {
                self.broke("I1", format!("the protected volume {volume} was destroyed"));
            }
        }
        self.applied("lose volume", volume);
    }

    /// Anybody but replication writes to a volume.
    pub fn write(&mut self, volume: Uuid, what: impl Into<String>) {
        self.before_foreign_write(volume);
        if let Some(disk) = self.volumes.get_mut(&volume) {
            disk.content.foreign.push(what.into());
        }
    }
}
