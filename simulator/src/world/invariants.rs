//! I1 to I16, as far as the world can see them: I9, I10, I11 and I14 are about what somebody has on record, and are for those who
//! can read that. They are recorded, never prevented: the real systems prevent nothing either.
//!
//! Two kinds: conditions, looked at after each change and recorded once while they last; and calls, recorded where they are
//! made, even when they are refused.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{TimeDelta, Utc};
use uuid::Uuid;

use super::table::Tie;
use super::things::{Content, DiskRef, Power, Vm, Volume};
use super::{Moves, State, Violation};

/// Conditions that are broken: how each is remembered, which invariant it is, and what is so.
type Broken = BTreeMap<String, (&'static str, String)>;

/// Looks, after a change, at all that it can have moved: every condition is about the disks of one source, so it is those
/// sources whose own rows, disks or destinations were touched. A debug build makes sure each time that a look at everything finds
/// the same.
pub fn look(state: &mut State, moves: &Moves) {
    let touched = if moves.all { everywhere(state) } else { touched(state, moves) };
    let (mut before, mut now) = (BTreeSet::new(), Broken::new());
    for source in touched {
        before.extend(state.broken.remove(&source).unwrap_or_default());
        let here = broken_at(state, &source, &of_source(state, &source));
        if !here.is_empty() {
            state.broken.insert(source, here.keys().cloned().collect());
        }
        now.extend(here);
    }
    for (_, (invariant, what)) in now.into_iter().filter(|(key, _)| !before.contains(key)) {
        state.broke(invariant, what);
    }
    #[cfg(debug_assertions)]
    assert_eq!(
        state.broken,
        at_length(state),
        "what is broken, by what was touched and by all that there is"
    );
}

/// All sources there can be anything to say of.
fn everywhere(state: &State) -> BTreeSet<String> {
    let disks = state.volumes.values().filter_map(|volume| volume.replica_of.as_ref());
    disks.map(|disk| &disk.source).chain(state.broken.keys()).cloned().collect()
}

/// The sources that a change can have moved.
fn touched(state: &State, moves: &Moves) -> BTreeSet<String> {
    let mut sources = moves.sources.keys.clone();
    sources.extend(moves.volumes.ties.iter().filter_map(|tie| match tie {
        Tie::Source(source) => Some(source.clone()),
        _ => None,
    }));
    // The OMA is nobody's destination, and holds them all.
    for vm in moves.vms.keys.iter().filter(|vm| **vm != state.oma) {
        let held = state.volumes.tied(&Tie::Plugged(*vm)).filter_map(|volume| volume.replica_of.as_ref());
        sources.extend(held.map(|disk| disk.source.clone()));
    }
    sources
}

fn of_source<'a>(state: &'a State, source: &str) -> Vec<&'a Volume> {
    state.volumes.tied(&Tie::Source(source.to_owned())).collect()
}

/// What does not hold of the disks of a source.
fn broken_at(state: &State, source: &str, disks: &[&Volume]) -> Broken {
    let mut found = Broken::new();
    let mut find = |invariant: &'static str, what: String| {
        found.insert(format!("{invariant} {what}"), (invariant, what));
    };
    for volume in disks.iter().filter(|volume| volume.plugged.len() > 1) {
        find(
            "I1",
            format!("the protected volume {} hangs at {} VMs at once", volume.id, volume.plugged.len()),
        );
    }
    let holders = disks.iter().flat_map(|volume| &volume.plugged).filter(|vm| **vm != state.oma);
    let holders: BTreeSet<Uuid> = holders.copied().collect();
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
    found
}

/// The same without any index: what the look after a change is measured against.
#[cfg(debug_assertions)]
fn at_length(state: &State) -> BTreeMap<String, BTreeSet<String>> {
    let mut disks: BTreeMap<&str, Vec<&Volume>> = BTreeMap::new();
    for volume in state.volumes.values() {
        if let Some(disk) = &volume.replica_of {
            disks.entry(&disk.source).or_default().push(volume);
        }
    }
    let broken = disks.into_iter().map(|(source, disks)| {
        (source.to_owned(), broken_at(state, source, &disks).into_keys().collect::<BTreeSet<_>>())
    });
    broken.filter(|(_, broken)| !broken.is_empty()).collect()
}

fn in_production(state: &State, vm: &Vm) -> bool {
    vm.nics.iter().any(|nic| state.networks.get(&nic.network).is_some_and(|network| network.production))
}

/// Since when each protected volume hangs nowhere: I1 allows it, but not for ever. Those that were not touched are as they were.
pub fn time_adrift(state: &mut State) {
    state.changed = Utc::now();
    let most = TimeDelta::milliseconds(state.settings.most_adrift_ms);
    let is_late = |volume: &&Volume| volume.adrift_since.is_some_and(|since| state.changed - since > most);
    let late = state.volumes.tied(&Tie::Adrift).filter(is_late).map(|volume| volume.id);
    for id in late.filter(|id| !state.late.contains(id)).collect::<Vec<_>>() {
        state.late.insert(id);
        state.broke("I1", format!("the protected volume {id} has hung nowhere for too long"));
    }
    for id in state.volumes.touched() {
        let Some(volume) = state.volumes.get_mut(&id) else { continue };
        if volume.replica_of.is_none() || volume.removed.is_some() {
            continue;
        }
        match volume.adrift_since {
            None if volume.plugged.is_empty() => volume.adrift_since = Some(state.changed),
            Some(since) if !volume.plugged.is_empty() => {
                volume.adrift_since = None;
                state.late.remove(&id);
                let longest = state.adrift.entry(id).or_default();
                *longest = (*longest).max((state.changed - since).num_milliseconds());
            }
            _ => {}
        }
    }
}

impl State {
    /// The longest that each protected volume hung nowhere, in milliseconds; one that still does, up to the last change.
    pub fn longest_adrift(&self) -> BTreeMap<Uuid, i64> {
        let mut longest = self.adrift.clone();
        for volume in self.volumes.values().filter(|volume| volume.replica_of.is_some()) {
            let Some(since) = volume.adrift_since else { continue };
            let lasted = (volume.removed.unwrap_or(self.changed) - since).num_milliseconds();
            let longest = longest.entry(volume.id).or_default();
            *longest = lasted.max(*longest);
        }
        longest
    }

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

    /// I4: a call asks to start a copy where the world sees it, whatever the answer will be. Nobody can know that its source is
    /// off who has not asked since it went off.
    pub fn asked_to_start(&mut self, vm: Uuid) {
        let seen = self.vms.get(&vm).is_some_and(|vm| in_production(self, vm));
        if !seen || vm == self.oma {
            return;
        }
        let held = [self.attached_to(vm), self.plugged_in(vm)].concat();
        let sources = held.iter().filter_map(|id| self.volumes.get(id)?.replica_of.as_ref());
        let unseen = sources.map(|disk| &disk.source).filter(|source| !self.seen_off.contains(*source));
        for source in unseen.cloned().collect::<BTreeSet<String>>() {
            self.broke(
                "I4",
                format!(
                    "a call starts {vm} in a production network, and nobody has seen its source {source} off"
                ),
            );
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
        for id in &held {
            if self.volumes.get(id).is_some_and(|volume| volume.content.torn) {
                self.broke("torn", format!("the VM {vm} runs with {id}, of which a copy was broken off"));
            }
        }
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
        let of_volume = self.snapshots.tied(&Tie::Volume(volume)).any(|s| {
            s.removed.is_none() && s.state == "BackedUp" && Some(s.id) != but && is_clean_content(&s.content)
        });
        of_volume
            || self.vm_snapshots.tied(&Tie::Volume(volume)).any(|s| {
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
