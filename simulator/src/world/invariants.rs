//! I1 to I16, as far as the world can see them. They are recorded, never prevented: the real systems prevent nothing either.
//!
//! Two kinds: conditions, looked at after each change and recorded once while they last; and calls, recorded where they are
//! made, even when they are refused.

use std::collections::{BTreeMap, BTreeSet};

use chrono::Utc;
use uuid::Uuid;

use super::things::{Content, DiskRef, Power, Vm, Volume};
use super::{State, Violation};

/// Looks at all of it after a change.
pub fn look(state: &mut State) {
    time_adrift(state);
    let mut found: BTreeMap<String, (&'static str, String)> = BTreeMap::new();
    let mut find = |invariant: &'static str, what: String| {
        found.insert(format!("{invariant} {what}"), (invariant, what));
    };
    for volume in state.volumes.values().filter(|volume| volume.replica_of.is_some()) {
        if volume.plugged.len() > 1 {
            find(
                "I1",
                format!("the protected volume {} hangs at {} VMs at once", volume.id, volume.plugged.len()),
            );
        }
    }
    // One pass over the volumes: this runs after every change, also in an estate of thousands.
    let mut destinations: BTreeMap<&str, BTreeSet<Uuid>> = BTreeMap::new();
    for volume in state.volumes.values() {
        if let Some(disk) = &volume.replica_of {
            let away = volume.plugged.iter().filter(|vm| **vm != state.oma);
            destinations.entry(&disk.source).or_default().extend(away);
        }
    }
    for (source, holders) in destinations {
        if holders.len() > 1 {
            find("I8", format!("the disks of {source} hang at {} destinations at once", holders.len()));
        }
        let source_on = state.sources.get(source).is_some_and(|source| source.power == Power::On);
        for vm in holders.iter().filter_map(|id| state.vms.get(id)) {
            if source_on && vm.power == Power::On && in_production(state, vm) {
                find(
                    "I3",
                    format!("{source} and {} are both on, and {} is in a production network", vm.id, vm.name),
                );
            }
        }
    }
    state.broken.retain(|what| found.contains_key(what));
    for (key, (invariant, what)) in found {
        if state.broken.insert(key) {
            state.broke(invariant, what);
        }
    }
}

fn in_production(state: &State, vm: &Vm) -> bool {
    vm.nics.iter().any(|nic| state.networks.get(&nic.network).is_some_and(|network| network.production))
}

/// How long each protected volume has hung nowhere: I1 allows it, but not for ever.
fn time_adrift(state: &mut State) {
    let now = Utc::now();
    for volume in state.volumes.values_mut().filter(|v| v.replica_of.is_some() && v.removed.is_none()) {
        match volume.adrift_since {
            None if volume.plugged.is_empty() => volume.adrift_since = Some(now),
            Some(since) => {
                let longest = state.adrift.entry(volume.id).or_default();
                *longest = (*longest).max((now - since).num_milliseconds());
                if !volume.plugged.is_empty() {
                    volume.adrift_since = None;
                }
            }
            None => {}
        }
    }
}

impl State {
    /// Records that an invariant does not hold.
    pub fn broke(&mut self, invariant: &str, what: String) {
        let violation =
            Violation { invariant: invariant.to_owned(), what, cause: self.cause.clone(), at: Utc::now() };
        tracing::warn!(invariant, cause = ?violation.cause, "{}", violation.what);
        self.violations.push(violation);
    }

    /// I2, I13: a call asks to destroy a volume, whatever the answer will be.
    pub fn asked_to_destroy_volume(&mut self, volume: Uuid) {
        if self.is_protected(volume) {
            self.broke("I2", format!("a call asks to destroy the protected volume {volume}"));
        }
        self.asked_about_oma_root(volume);
    }

    /// I2: a call asks to destroy a VM, whatever the answer will be.
    pub fn asked_to_destroy_vm(&mut self, vm: Uuid) {
        let held: Vec<Uuid> = [self.attached_to(vm), self.plugged_in(vm)].concat();
        if let Some(volume) = held.into_iter().find(|volume| self.is_protected(*volume)) {
            self.broke(
                "I2",
                format!("a call asks to destroy the VM {vm}, which holds the protected volume {volume}"),
            );
        }
        if vm == self.oma {
            self.broke("I2", format!("a call asks to destroy the OMA {vm}"));
        }
    }

    /// I12: a call asks to attach to or detach from a VM, whatever the answer will be. I13: at the OMA's root slot.
    pub fn asked_to_move(&mut self, volume: Option<Uuid>, vm: Option<Uuid>, device: Option<u32>) {
        if let Some(vm) = vm
            && self.has_vm_snapshot(vm)
        {
            self.broke("I12", format!("a call attaches or detaches at the VM {vm}, which has a VM snapshot"));
        }
        if vm == Some(self.oma) && device == Some(0) {
            self.broke("I13", format!("a call addresses the root slot of the OMA {}", self.oma));
        } else if let Some(volume) = volume {
            self.asked_about_oma_root(volume);
        }
    }

    /// I13: a call snapshots, reverts, detaches or deletes the OMA's own root, whatever the answer will be.
    pub fn asked_about_oma_root(&mut self, volume: Uuid) {
        let is_it = self
            .volumes
            .get(&volume)
            .and_then(|v| v.attached)
            .is_some_and(|at| at.vm == self.oma && at.device == 0);
        if is_it {
            self.broke("I13", format!("a call addresses the root volume {volume} of the OMA"));
        }
    }

    /// I16: a call detaches a replica from its destination although the failover was committed.
    pub fn asked_to_detach(&mut self, volume: Uuid) {
        let Some(row) = self.volumes.get(&volume) else { return };
        let Some(source) = row.replica_of.as_ref().map(|disk| disk.source.clone()) else { return };
        let away = row.attached.is_some_and(|at| at.vm != self.oma);
        if away && self.committed.contains(&source) {
            self.broke(
                "I16",
                format!("the failover of {source} is committed, and a call detaches its volume {volume}"),
            );
        }
    }

    fn is_protected(&self, volume: Uuid) -> bool {
        self.volumes.get(&volume).is_some_and(|volume| volume.replica_of.is_some())
    }

    /// I5, I6: replication is about to write to a replica.
    pub(super) fn before_replication(&mut self, disk: &DiskRef, replica: Uuid, finally: bool) {
        let on = self.sources.get(&disk.source).is_some_and(|source| source.power == Power::On);
        if finally && on {
            self.broke(
                "I5",
                format!("the final sync of {} {} while its source is on", disk.source, disk.key),
            );
        }
        let Some(volume) = self.volumes.get(&replica) else { return };
        let (at_oma, clean) = (volume.plugged.contains(&self.oma), is_clean(volume));
        if !at_oma {
            self.broke(
                "I5",
                format!("{} {} is replicated to {replica}, which is not at the OMA", disk.source, disk.key),
            );
        }
        if !clean {
            self.broke(
                "I6",
                format!("{} {} is replicated to {replica}, which others wrote to", disk.source, disk.key),
            );
        }
    }

    /// I15: the first write of anybody but replication to a set of disks, of which only some can be brought back.
    pub(crate) fn before_foreign_write(&mut self, volume: Uuid) {
        let Some(disk) = self.volumes.get(&volume).and_then(|volume| volume.replica_of.clone()) else {
            return;
        };
        let set: Vec<&Volume> =
            self.replicas_of(&disk.source).iter().filter_map(|id| self.volumes.get(id)).collect();
        if !set.iter().all(|volume| is_clean(volume)) {
            return;
        }
        let safe = set.iter().filter(|volume| self.has_clean_copy(volume.id, None)).count();
        if safe > 0 && safe < set.len() {
            self.broke(
                "I15",
                format!(
                    "of the {} disks of {} only {safe} have a snapshot at the first write",
                    set.len(),
                    disk.source
                ),
            );
        }
    }

    /// I15: a VM has begun to run with some of a source's disks.
    pub(super) fn after_boot(&mut self, vm: Uuid) {
        if vm == self.oma {
            return;
        }
        let held: BTreeSet<Uuid> = self.plugged_in(vm).into_iter().collect();
        let sources: BTreeSet<String> = held
            .iter()
            .filter_map(|id| self.volumes.get(id)?.replica_of.as_ref().map(|disk| disk.source.clone()))
            .collect();
        for source in sources {
            let all = self.replicas_of(&source);
            let here = all.iter().filter(|id| held.contains(id)).count();
            if here < all.len() {
                self.broke(
                    "I15",
                    format!("the VM {vm} runs with {here} of the {} disks of {source}", all.len()),
                );
            }
        }
    }

    /// I7: a snapshot is about to be lost; it must not be the last way back.
    pub(super) fn before_snapshot_is_lost(&mut self, snapshot: Uuid) {
        let Some(row) = self.snapshots.get(&snapshot).filter(|row| row.removed.is_none()) else { return };
        let Some(volume) = self.volumes.get(&row.volume).filter(|v| v.removed.is_none()) else { return };
        let Some(disk) = &volume.replica_of else { return };
        let needed = !is_clean(volume) && is_clean_content(&row.content);
        if needed && !self.has_clean_copy(volume.id, Some(snapshot)) && !self.committed.contains(&disk.source)
        {
            let id = volume.id;
            self.broke(
                "I7",
                format!(
                    "the last clean copy {snapshot} of {id} is deleted, and the volume is not what it was"
                ),
            );
        }
    }

    /// I7: the same for a VM's snapshot.
    pub fn before_vm_snapshot_is_lost(&mut self, snapshot: Uuid) {
        let Some(row) = self.vm_snapshots.get(&snapshot) else { return };
        let lost: Vec<Uuid> = row
            .contents
            .iter()
            .filter(|(_, content)| is_clean_content(content))
            .filter_map(|(id, _)| self.volumes.get(id))
            .filter(|volume| volume.removed.is_none() && !is_clean(volume))
            .filter(|volume| {
                volume.replica_of.as_ref().is_some_and(|disk| !self.committed.contains(&disk.source))
            })
            .filter(|volume| !self.has_clean_copy(volume.id, Some(snapshot)))
            .map(|volume| volume.id)
            .collect();
        for id in lost {
            self.broke(
                "I7",
                format!(
                    "the last clean copy {snapshot} of {id} is deleted, and the volume is not what it was"
                ),
            );
        }
    }

    fn has_clean_copy(&self, volume: Uuid, but: Option<Uuid>) -> bool {
        let of_volume = self.snapshots.values().any(|s| {
            s.volume == volume
                && s.removed.is_none()
                && s.state == "BackedUp"
                && Some(s.id) != but
                && is_clean_content(&s.content)
        });
        of_volume
            || self.vm_snapshots.values().any(|s| {
                s.removed.is_none()
                    && Some(s.id) != but
                    && s.state == "Ready"
                    && s.contents.get(&volume).is_some_and(is_clean_content)
            })
    }
}

/// Nobody but replication wrote to it since it was last clean.
pub fn is_clean(volume: &Volume) -> bool {
    is_clean_content(&volume.content)
}

fn is_clean_content(content: &Content) -> bool {
    content.foreign.is_empty() && !content.mixed && !content.half_converted
}
