//! The way back: snapshots of all disks of a machine, or of none.
//!
//! ```text
//!   take     take-snapshots    the disks are attached nowhere, and as replication left them
//!   revert   revert-snapshots  its undo: every disk goes back, and only then the snapshots go
//!            drop-snapshots    after the commit: the way back is given up
//! ```
//!
//! What is gone back to is never searched for: it is the snapshot that the journal has of the very step that took it. One
//! that only bears the right name may be another run's, and as old as that.

mod revert;
mod take;

use std::collections::BTreeMap;

use backstay_engine::{Context, Failure, Resource, RunId};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub(super) use revert::{Back, DropSnapshots, RevertSnapshots};
pub(super) use take::TakeSnapshots;

use super::Site;
use crate::cloudstack::Snapshot;
use crate::linstor::Linstor;

/// Who takes them. One run uses one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Provider {
    /// CloudStack, of each volume.
    CloudStack,
    /// LINSTOR, of all volumes at one moment.
    Linstor,
    /// CloudStack, of the machine with its volumes, once they are attached to it.
    Machine,
    /// Nobody: there is no way back.
    None,
}

/// The disks of one machine.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Set {
    provider: Provider,
    /// The volumes, all of them.
    volumes: Vec<String>,
    /// The machine that has them, for a snapshot of the machine. Nothing, in an undo: it was never made.
    #[serde(default)]
    vm: Option<String>,
}

/// What was taken.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(super) struct Taken {
    provider: Provider,
    /// Of each volume, or of the machine, the id of its snapshot; with LINSTOR, the resource that has it.
    snapshots: BTreeMap<String, String>,
}

impl Set {
    /// What has a snapshot of its own.
    fn parts(&self) -> Vec<&str> {
        match self.provider {
            Provider::CloudStack | Provider::Linstor => self.volumes.iter().map(String::as_str).collect(),
            Provider::Machine => self.vm.iter().map(String::as_str).collect(),
            Provider::None => Vec::new(),
        }
    }
}

/// What the snapshots of a run are called, and those of no other.
fn name_of(run: RunId) -> String {
    format!("backstay-{}", run.to_string().replace('-', ""))
}

/// The snapshot of a volume or a machine, on record.
fn record<'a>(context: &'a Context, provider: Provider, part: &str) -> Resource<'a> {
    let kind = match provider {
        Provider::Linstor => "linstor snapshot",
        Provider::Machine => "machine snapshot",
        Provider::CloudStack | Provider::None => "snapshot",
    };
    context.resource(kind, format!("{} of {part}", name_of(context.run())))
}

impl Site {
    /// The snapshots of a volume that this run has taken and that are not gone, the newest first.
    async fn snapshots_of(&self, run: RunId, volume: &str) -> Result<Vec<Snapshot>, Failure> {
        let name = name_of(run);
        let mut found = self.cloudstack.list_snapshots(Some(volume), None).await?;
        found.retain(|one| {
            one.name.as_deref() == Some(name.as_str())
                && !matches!(one.state.as_deref(), Some("Destroyed" | "Destroying"))
        });
        found.sort_by(|a, b| b.created.cmp(&a.created));
        Ok(found)
    }

    fn linstor(&self) -> Result<&Linstor, Failure> {
        self.linstor.as_ref().ok_or_else(|| {
            Failure::permanent(
                "no_linstor",
                "LINSTOR is not configured: set linstor.url, or choose another provider",
            )
            .not_applied()
        })
    }

    /// The resource of LINSTOR that a volume is.
    async fn resource_of(&self, linstor: &Linstor, id: &str) -> Result<String, Failure> {
        let volume = self.volume(id).await?;
        // Only administrators are told; mostly it is the volume's id.
        Ok(linstor.resource_of(volume.path.as_deref().unwrap_or(&volume.id)))
    }

    /// Whether there is a snapshot that this can be put back to.
    async fn has_snapshot(&self, context: &Context, taken: &Taken, part: &str) -> Result<bool, Failure> {
        let Some(id) = taken.snapshots.get(part) else { return Ok(false) };
        Ok(match taken.provider {
            Provider::CloudStack => {
                let found = self.cloudstack.list_snapshots(None, Some(id)).await?;
                found.iter().any(Snapshot::is_usable)
            }
            Provider::Linstor => {
                let name = name_of(context.run());
                let found = self.linstor()?.view_snapshots(&[id]).await?;
                found.iter().any(|one| one.name == name && one.is_whole())
            }
            Provider::Machine => {
                let found = self.cloudstack.list_vm_snapshots(part).await?;
                found.iter().any(|one| one.id == *id && one.state.as_deref() == Some("Ready"))
            }
            Provider::None => false,
        })
    }

    /// Whether each volume can be put back.
    pub(super) async fn way_back(
        &self,
        context: &Context,
        taken: &Taken,
        volumes: &[String],
    ) -> Result<(), Failure> {
        for volume in volumes {
            if !self.has_snapshot(context, taken, volume).await? {
                let message = format!(
                    "the snapshot of the volume {volume} does not show: nothing is written without a way back"
                );
                return Err(Failure::retryable("no_way_back", message).not_applied());
            }
        }
        Ok(())
    }
}
