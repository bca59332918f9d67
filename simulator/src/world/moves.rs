//! The moves: all that can happen to a thing, and what the real systems refuse.
//!
//! `may_…` asks the rules of CloudStack and changes nothing; the others do. A move on what is so (`plug`, `power_on`) knows
//! nothing of CloudStack's rows, and the rows are moved by themselves: between the two a management server can die.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use chrono::Utc;
use uuid::Uuid;

use super::State;
use super::table::Tie;
use super::things::{
    Attachment, Content, DiskRef, Pool, Power, Snapshot, SnapshotBy, Vm, VmSnapshot, VmState, Volume,
    VolumeState,
};

/// No, and why: CloudStack's two codes and a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The HTTP status, and the result code of a job.
    pub code: u16,
    /// CloudStack's inner code.
    pub cs: u16,
    /// Why.
    pub text: String,
}

impl Refusal {
    /// A parameter, or a precondition, does not fit.
    pub fn param(text: impl Into<String>) -> Refusal {
        Refusal { code: 431, cs: 4350, text: text.into() }
    }

    /// Anything that was not foreseen.
    pub fn internal(text: impl Into<String>) -> Refusal {
        Refusal { code: 530, cs: 4250, text: text.into() }
    }

    /// Any other code.
    pub fn code(code: u16, text: impl Into<String>) -> Refusal {
        Refusal { code, cs: 9999, text: text.into() }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}): {}", self.code, self.cs, self.text)
    }
}

impl std::error::Error for Refusal {}

type Result<T> = std::result::Result<T, Refusal>;

fn unknown(what: &str, id: Uuid) -> Refusal {
    Refusal {
        code: 431,
        cs: 9999,
        text: format!("Unable to find {what} with id={id}: the entity does not exist"),
    }
}

/// Finding things. What was removed is not found.
impl State {
    /// A VM.
    pub fn vm(&self, id: Uuid) -> Result<&Vm> {
        self.vms.get(&id).filter(|vm| vm.removed.is_none()).ok_or_else(|| unknown("virtual machine", id))
    }

    /// A VM, to change.
    pub fn vm_mut(&mut self, id: Uuid) -> Result<&mut Vm> {
        self.vms.get_mut(&id).filter(|vm| vm.removed.is_none()).ok_or_else(|| unknown("virtual machine", id))
    }

    /// A volume.
    pub fn volume(&self, id: Uuid) -> Result<&Volume> {
        self.volumes.get(&id).filter(|volume| volume.removed.is_none()).ok_or_else(|| unknown("volume", id))
    }

    /// A volume, to change.
    pub fn volume_mut(&mut self, id: Uuid) -> Result<&mut Volume> {
        self.volumes
            .get_mut(&id)
            .filter(|volume| volume.removed.is_none())
            .ok_or_else(|| unknown("volume", id))
    }

    /// A snapshot of a volume.
    pub fn snapshot(&self, id: Uuid) -> Result<&Snapshot> {
        self.snapshots
            .get(&id)
            .filter(|snapshot| snapshot.removed.is_none())
            .ok_or_else(|| unknown("snapshot", id))
    }

    /// A snapshot of a volume, to change.
    pub fn snapshot_mut(&mut self, id: Uuid) -> Result<&mut Snapshot> {
        self.snapshots
            .get_mut(&id)
            .filter(|snapshot| snapshot.removed.is_none())
            .ok_or_else(|| unknown("snapshot", id))
    }

    /// A snapshot of a VM.
    pub fn vm_snapshot(&self, id: Uuid) -> Result<&VmSnapshot> {
        self.vm_snapshots.get(&id).filter(|s| s.removed.is_none()).ok_or_else(|| unknown("VM snapshot", id))
    }

    /// A snapshot of a VM, to change.
    pub fn vm_snapshot_mut(&mut self, id: Uuid) -> Result<&mut VmSnapshot> {
        self.vm_snapshots
            .get_mut(&id)
            .filter(|s| s.removed.is_none())
            .ok_or_else(|| unknown("VM snapshot", id))
    }

    /// The volumes that CloudStack says hang at a VM.
    pub fn attached_to(&self, vm: Uuid) -> Vec<Uuid> {
        let there = self.volumes.tied(&Tie::Attached(vm)).filter(|volume| volume.removed.is_none());
        there.map(|volume| volume.id).collect()
    }

    /// The volumes that hang at a VM.
    pub fn plugged_in(&self, vm: Uuid) -> Vec<Uuid> {
        self.volumes.tied(&Tie::Plugged(vm)).map(|volume| volume.id).collect()
    }

    /// The volumes of a source's disks, whatever became of them.
    pub fn replicas_of(&self, source: &str) -> Vec<Uuid> {
        self.volumes.tied(&Tie::Source(source.to_owned())).map(|volume| volume.id).collect()
    }

    /// Whether a VM has a snapshot of itself.
    pub fn has_vm_snapshot(&self, vm: Uuid) -> bool {
        self.vm_snapshots.tied(&Tie::Vm(vm)).any(|snapshot| snapshot.removed.is_none())
    }

    /// One of CloudStack's global settings that is on or off.
    pub fn configured(&self, name: &str) -> bool {
        self.configurations.get(name).is_some_and(|value| value == "true")
    }

    /// Counts an effect that was really applied.
    pub fn applied(&mut self, command: &str, key: impl fmt::Display) {
        *self.effects.entry(command.to_owned()).or_default().entry(key.to_string()).or_default() += 1;
    }
}

/// Volumes.
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

/// Machines.
impl State {
    /// The machine runs: it gets what CloudStack's rows say, and its guest writes to all of it.
    pub fn power_on(&mut self, vm: Uuid) -> Result<()> {
        let rows: BTreeSet<Uuid> = self.attached_to(vm).into_iter().collect();
        if !rows
            .iter()
            .any(|id| self.volumes.get(id).is_some_and(|v| v.attached.is_some_and(|at| at.device == 0)))
        {
            return Err(Refusal::internal(format!("Unable to start VM {vm}: it has no ROOT volume")));
        }
        self.unplug_all_but(vm, &rows);
        for id in &rows {
            if let Some(volume) = self.volumes.get_mut(id) {
                volume.plugged.insert(vm);
            }
        }
        let machine = self.vm_mut(vm)?;
        machine.power = Power::On;
        machine.boots += 1;
        let boot = format!("guest of {} boot {}", machine.name, machine.boots);
        self.applied("power on", vm);
        self.after_boot(vm);
        // The appliance's own guest leaves the replicas that it holds alone.
        if vm != self.oma {
            for volume in rows {
                self.write(volume, boot.clone());
            }
        }
        Ok(())
    }

    /// The machine no longer runs. What was plugged without a row comes off with it.
    pub fn power_off(&mut self, vm: Uuid) {
        let rows: BTreeSet<Uuid> = self.attached_to(vm).into_iter().collect();
        self.unplug_all_but(vm, &rows);
        if let Some(machine) = self.vms.get_mut(&vm) {
            machine.power = Power::Off;
        }
        self.applied("power off", vm);
    }

    fn unplug_all_but(&mut self, vm: Uuid, rows: &BTreeSet<Uuid>) {
        for id in self.plugged_in(vm).into_iter().filter(|id| !rows.contains(id)) {
            if let Some(volume) = self.volumes.get_mut(&id) {
                volume.plugged.remove(&vm);
            }
        }
    }

    /// The VM is gone: its root goes with it, its data disks stay unless they are named.
    pub fn lose_vm(&mut self, vm: Uuid, with: &[Uuid]) {
        self.power_off(vm);
        for volume in self.attached_to(vm) {
            let root = self.volumes.get(&volume).is_some_and(|row| row.root);
            if root || with.contains(&volume) {
                self.lose_volume(volume);
            } else {
                self.unplug(volume, vm);
                let _ = self.detach_row(volume);
            }
        }
        let there = self.vm_snapshots.tied(&Tie::Vm(vm)).filter(|snapshot| snapshot.removed.is_none());
        let lost: Vec<Uuid> = there.map(|snapshot| snapshot.id).collect();
        for id in lost {
            self.before_vm_snapshot_is_lost(id);
            if let Some(snapshot) = self.vm_snapshots.get_mut(&id) {
                snapshot.state = "Removed".to_owned();
                snapshot.removed = Some(Utc::now());
            }
        }
        if let Some(machine) = self.vms.get_mut(&vm) {
            machine.state = VmState::Expunging;
            machine.removed = Some(Utc::now());
        }
        self.applied("lose vm", vm);
    }
}

/// Snapshots of a volume.
impl State {
    /// Whether CloudStack takes a snapshot of a volume.
    pub fn may_snapshot(&self, volume: Uuid) -> Result<()> {
        let row = self.volume(volume)?;
        self.is_settled_down(&[volume])?;
        if row.state != VolumeState::Ready {
            return Err(Refusal::param(format!(
                "VolumeId: {volume} is not in Ready state but {:?}. Cannot take snapshot.",
                row.state
            )));
        }
        let Some(at) = row.attached else { return Ok(()) };
        let machine = self.vm(at.vm)?;
        if matches!(machine.state, VmState::Destroyed | VmState::Expunging) {
            return Err(Refusal::internal(format!(
                "Creating snapshot failed due to volume:{volume} is associated with vm:{} is in {:?} state",
                machine.name, machine.state
            )));
        }
        if machine.state != VmState::Stopped && !self.configured("kvm.snapshot.enabled") {
            return Err(Refusal::internal(
                "KVM Snapshot is not supported for Running VMs. It is disabled by default due to a possible volume corruption in certain cases. To enable it set global settings kvm.snapshot.enabled to True.",
            ));
        }
        if self.attached_to(at.vm).into_iter().any(|neighbour| self.is_being_snapshotted(neighbour)) {
            return Err(Refusal::param(
                "There is other active snapshot tasks on the instance to which the volume is attached, please try again later.",
            ));
        }
        Ok(())
    }

    /// Whether a snapshot of a volume is on its way.
    pub fn is_being_snapshotted(&self, volume: Uuid) -> bool {
        self.snapshots.tied(&Tie::Volume(volume)).any(|s| s.removed.is_none() && is_under_way(s))
    }

    /// A row for a snapshot that is to be taken.
    pub fn new_snapshot(
        &mut self,
        volume: Uuid,
        name: &str,
        by: SnapshotBy,
        tags: BTreeMap<String, String>,
    ) -> Result<Uuid> {
        let id = Uuid::new_v4();
        let row = self.volume(volume)?;
        let snapshot = Snapshot {
            id,
            name: name.to_owned(),
            volume,
            content: row.content.clone(),
            size: row.size,
            by,
            state: "Allocated".to_owned(),
            tags,
            created: Utc::now(),
            removed: None,
        };
        self.snapshots.insert(id, snapshot);
        Ok(id)
    }

    /// It is taken now: what is on the volume at this moment. The row does not say so yet.
    pub fn take(&mut self, snapshot: Uuid) -> Result<()> {
        let volume = self.snapshot(snapshot)?.volume;
        let content = self.volume(volume)?.content.clone();
        self.snapshot_mut(snapshot)?.content = content;
        self.applied("snapshot", volume);
        Ok(())
    }

    /// It is taken now, and its row says so.
    pub fn capture(&mut self, snapshot: Uuid) -> Result<()> {
        self.take(snapshot)?;
        self.snapshot_mut(snapshot)?.state = "BackedUp".to_owned();
        Ok(())
    }

    /// Whether CloudStack brings a volume back to a snapshot.
    pub fn may_revert(&self, snapshot: Uuid) -> Result<Uuid> {
        let row = self.snapshot(snapshot)?;
        self.is_settled_down(&[snapshot, row.volume])?;
        if row.state != "BackedUp" {
            return Err(Refusal::param(format!(
                "Snapshot id: {snapshot} is not in a state to revert to: {}",
                row.state
            )));
        }
        let volume = self.volume(row.volume)?;
        if volume.state != VolumeState::Ready {
            return Err(Refusal::param(format!("The volume is not in Ready state but {:?}", volume.state)));
        }
        if let Some(at) = volume.attached {
            if self.vm(at.vm)?.state != VmState::Stopped {
                return Err(Refusal::param(
                    "The VM the specified disk is attached to is not in the shutdown state.",
                ));
            }
            if self.has_vm_snapshot(at.vm) {
                return Err(Refusal::param(
                    "The VM of the volume has VM snapshots: the volume cannot be reverted.",
                ));
            }
        }
        Ok(row.volume)
    }

    /// The volume holds again what the snapshot holds. What was written since is lost.
    pub fn revert(&mut self, snapshot: Uuid) -> Result<()> {
        let Snapshot { volume, content, size, .. } = self.snapshot(snapshot)?.clone();
        let disk = self.volume_mut(volume)?;
        disk.content = content;
        disk.size = size;
        self.applied("revert", format!("{volume} {snapshot}"));
        Ok(())
    }

    /// The snapshot is gone.
    pub fn delete_snapshot(&mut self, snapshot: Uuid) -> Result<()> {
        self.before_snapshot_is_lost(snapshot);
        let row = self.snapshot_mut(snapshot)?;
        row.state = "Destroyed".to_owned();
        row.removed = Some(Utc::now());
        self.applied("delete snapshot", snapshot);
        Ok(())
    }
}

/// Whether a snapshot is on its way, and is in the way of others.
pub fn is_under_way(snapshot: &Snapshot) -> bool {
    matches!(snapshot.state.as_str(), "Allocated" | "Creating" | "CreatedOnPrimary" | "BackingUp")
}

/// The VMware side.
impl State {
    /// Replication brings a disk's version to its replica. `finally`: it is the sync after which the source is given up.
    pub fn replicate(&mut self, disk: &DiskRef, finally: bool) -> Result<()> {
        let none = || Refusal::param(format!("there is no disk {} of the source {}", disk.key, disk.source));
        let source = self.sources.get(&disk.source).ok_or_else(none)?;
        let found = source.disks.iter().find(|d| d.key == disk.key).ok_or_else(none)?;
        let (replica, version) = (found.replica, found.version);
        self.before_replication(disk, replica, finally);
        let volume = self.volume_mut(replica)?;
        volume.content.replicated = version;
        if !volume.content.foreign.is_empty() || volume.content.half_converted {
            volume.content.mixed = true;
        }
        self.applied("replicate", format!("{} {}", disk.source, disk.key));
        Ok(())
    }

    /// The source's guest writes to a disk. Says the new version; a machine that is off writes nothing.
    pub fn source_writes(&mut self, disk: &DiskRef) -> Option<u64> {
        let source = self.sources.get_mut(&disk.source).filter(|source| source.power == Power::On)?;
        let disk = source.disks.iter_mut().find(|d| d.key == disk.key)?;
        disk.version += 1;
        Some(disk.version)
    }

    /// The source goes on or off.
    pub fn source_power(&mut self, source: &str, power: Power) -> Result<()> {
        let machine = self
            .sources
            .get_mut(source)
            .ok_or_else(|| Refusal::param(format!("there is no source {source}")))?;
        machine.going_down = None;
        if machine.power != power {
            machine.power = power;
            self.seen_off.remove(source);
            let word = if power == Power::On { "source on" } else { "source off" };
            self.applied(word, source);
        }
        Ok(())
    }
}
