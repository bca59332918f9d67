//! Snapshots of a volume, and the way back to them.

use std::collections::BTreeMap;

use chrono::Utc;
use uuid::Uuid;

use super::{Refusal, Result};
use crate::world::State;
use crate::world::table::Tie;
use crate::world::things::{Snapshot, SnapshotBy, VmState, VolumeState};

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
