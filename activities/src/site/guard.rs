//! What is asked right before a call, whatever the plan says: time has passed since it was made.

use backstay_engine::{Failure, RunId};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::cloudstack::{ListVms, Vm, Volume};

use super::{RUN_TAG, Site};

impl Site {
    /// A volume, which has to be there: it is somebody's data.
    pub(super) async fn volume(&self, id: &str) -> Result<Volume, Failure> {
        self.cloudstack.volume(id).await?.ok_or_else(|| {
            let message = format!(
                "CloudStack does not know the volume {id}. It holds the replica of a disk: look for it before anything else"
            );
            Failure::permanent("volume_missing", message)
        })
    }

    /// A machine, which has to be there.
    pub(super) async fn machine(&self, id: &str) -> Result<Vm, Failure> {
        self.cloudstack.vm(id).await?.ok_or_else(|| no_machine(id))
    }

    /// Nothing that this activity may touch is the appliance's own disk.
    pub(super) fn not_of_oma_itself(&self, volume: &Volume) -> Result<(), Failure> {
        let at_oma = volume.virtualmachineid.as_deref() == Some(self.settings.oma.as_str());
        if at_oma && (volume.deviceid == Some(0) || volume.is_root()) {
            let message =
                format!("the volume {} is the one that the appliance itself starts from", volume.id);
            return Err(Failure::permanent("root_of_oma", message).not_applied());
        }
        Ok(())
    }

    /// While a machine has a snapshot of itself, none of its volumes can be attached or detached.
    pub(super) async fn no_vm_snapshot(&self, vm: &str) -> Result<(), Failure> {
        let found = self.cloudstack.list_vm_snapshots(vm).await?;
        let there: Vec<_> = found.iter().filter(|one| one.state.as_deref() != Some("Removed")).collect();
        let Some(one) = there.first() else { return Ok(()) };
        let name = one.displayname.as_deref().unwrap_or(&one.id);
        let message = format!(
            "the machine {vm} has the snapshot \"{name}\"; while it is there, no volume can be attached to it or detached. \
             Remove it, if it is yours"
        );
        Err(Failure::permanent("vm_snapshot", message).not_applied())
    }

    /// A machine that this run has made, by its exact name and our mark on it.
    pub(super) async fn made_by(&self, mark: &str, name: &str) -> Result<Option<Vm>, Failure> {
        let which = ListVms { name: Some(name.to_owned()), ..ListVms::default() };
        let found = self.cloudstack.list_vms(&which).await?;
        Ok(found.into_iter().find(|vm| is_marked(vm, mark)))
    }

    /// Refuses to touch the appliance, or a machine that is not this run's.
    pub(super) fn only_ours(&self, vm: &Vm, mark: &str) -> Result<(), Failure> {
        if vm.id == self.settings.oma {
            let message = "this is the appliance itself";
            return Err(Failure::permanent("is_oma", message).not_applied());
        }
        if !is_marked(vm, mark) {
            let name = vm.name.as_deref().unwrap_or("?");
            let message = format!(
                "the machine {name} ({}) does not bear the mark of this run: it is somebody else's",
                vm.id
            );
            return Err(Failure::permanent("not_ours", message).not_applied());
        }
        Ok(())
    }
}

pub(super) fn no_machine(id: &str) -> Failure {
    Failure::permanent("vm_missing", format!("CloudStack does not know the machine {id}"))
}

/// The name of a host.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct HostName {
    /// What it is called.
    base: String,
    /// With a piece of its run's id behind that, so that no two rehearsals get in each other's way.
    #[serde(default)]
    with_run: bool,
}

impl HostName {
    pub(super) fn of(&self, run: RunId) -> String {
        if !self.with_run {
            return self.base.clone();
        }
        // The end of it: the beginning is the time, and the same for all of one minute.
        let id = run.to_string();
        let end: String = id.chars().rev().take(8).collect::<Vec<_>>().into_iter().rev().collect();
        format!("{}-test-{end}", self.base)
    }
}

/// The mark of a run, on whatever takes a free word.
pub(super) fn mark(run: RunId) -> String {
    format!("{RUN_TAG}-{run}")
}

fn is_marked(vm: &Vm, mark: &str) -> bool {
    let tagged = vm.tag(RUN_TAG).is_some_and(|run| mark.strip_prefix(RUN_TAG) == Some(&format!("-{run}")));
    tagged || vm.group.as_deref() == Some(mark)
}

/// The job that is at work on something, as its row says.
pub(super) fn at_work(jobid: Option<&String>, jobstatus: Option<i64>) -> Option<String> {
    jobid.filter(|_| jobstatus.unwrap_or(0) == 0).cloned()
}
