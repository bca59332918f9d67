//! The moves: all that can happen to a thing, and what the real systems refuse.
//!
//! `may_…` asks the rules of CloudStack and changes nothing; the others do. A move on what is so (`plug`, `power_on`) knows
//! nothing of CloudStack's rows, and the rows are moved by themselves: between the two a management server can die.

mod snapshots;
mod volumes;

use std::collections::BTreeSet;
use std::fmt;

use chrono::Utc;
pub use snapshots::is_under_way;
use uuid::Uuid;

use super::State;
use super::table::Tie;
use super::things::{DiskRef, Power, Snapshot, Vm, VmSnapshot, VmState, Volume};

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
