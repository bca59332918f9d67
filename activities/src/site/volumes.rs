//! Volumes on their way: from the appliance to the machine, and home.
//!
//! ```text
//!   take-from-oma   OMA -> nowhere        undone by  return-to-oma    nowhere -> OMA
//!   attach-volume   nowhere -> machine    undone by  detach-volume    machine -> nowhere
//! ```
//!
//! None of them takes a volume from where it does not expect it.

use std::sync::Arc;

use async_trait::async_trait;
use backstay_engine::machine::plan::Effect;
use backstay_engine::{Activity, Context, Failure, Probe};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::change::{Found, NotBegun, Saved};
use super::guard::at_work;
use super::{DIRTY_TAG, Site};
use crate::cloudstack::Volume;

pub(super) struct TakeFromOma(pub Arc<Site>);
pub(super) struct ReturnToOma(pub Arc<Site>);
pub(super) struct AttachVolume(pub Arc<Site>);
pub(super) struct DetachVolume(pub Arc<Site>);

/// The code of a volume that is attached where nobody expects it.
const ELSEWHERE: &str = "volume_elsewhere";

/// One volume.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct One {
    /// Its id at CloudStack.
    volume: String,
    /// It has left the appliance before, and is there only for a while: that it is away is on record already.
    #[serde(default)]
    lent: bool,
}

/// A volume and a machine.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Pair {
    /// The volume's id at CloudStack.
    volume: String,
    /// The machine's. Nothing, in an undo: it was never made.
    vm: Option<String>,
    /// The machine starts from it.
    #[serde(default)]
    root: bool,
}

/// Where a volume is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(super) struct Place {
    volume: String,
    /// The machine; nothing: it is attached nowhere.
    vm: Option<String>,
    /// The slot there.
    device: Option<i64>,
}

impl Place {
    fn of(volume: &Volume) -> Self {
        Self { volume: volume.id.clone(), vm: volume.virtualmachineid.clone(), device: volume.deviceid }
    }
}

impl Site {
    /// What a look at a volume found, if something is at work on it.
    fn on_its_way<T>(&self, volume: &Volume) -> Option<Found<T>> {
        if let Some(job) = at_work(volume.jobid.as_ref(), volume.jobstatus) {
            return Some(Found::AtWork(job));
        }
        let state = volume.state.as_deref().unwrap_or("in no known state");
        (!matches!(state, "Ready" | "Allocated")).then(|| Found::Moving(state.to_owned()))
    }

    fn at_oma(&self, volume: &Volume) -> bool {
        volume.virtualmachineid.as_deref() == Some(self.settings.oma.as_str())
    }

    fn elsewhere(volume: &Volume) -> String {
        let at = volume.vmname.as_deref().or(volume.virtualmachineid.as_deref()).unwrap_or("?");
        format!("the volume {} is attached to {at}, where it is not expected; it stays there", volume.id)
    }

    /// There is no way on but back, and one list may be old.
    fn in_the_way(volume: &Volume) -> Failure {
        Failure::retryable(ELSEWHERE, Self::elsewhere(volume)).not_applied()
    }

    async fn look_taken(&self, id: &str) -> Result<Found<Place>, Failure> {
        let volume = self.volume(id).await?;
        if let Some(found) = self.on_its_way(&volume) {
            return Ok(found);
        }
        match volume.virtualmachineid {
            None => Ok(Found::Done(Place::of(&volume))),
            Some(_) if self.at_oma(&volume) => {
                self.not_of_oma_itself(&volume)?;
                Ok(Found::Todo)
            }
            Some(_) => Err(Failure::permanent(ELSEWHERE, Self::elsewhere(&volume)).not_applied()),
        }
    }

    /// Takes a volume from the appliance.
    pub(super) async fn take<S: Serialize + Sync>(
        &self,
        context: &Context,
        saved: &mut Saved<S>,
        id: &str,
    ) -> Result<Place, Failure> {
        let what = format!("detaching the volume {id} from the appliance");
        let call = |_| async {
            self.no_vm_snapshot(&self.settings.oma).await?;
            Ok::<_, NotBegun>(self.daemon.detach(id).await?)
        };
        self.at_rest(context, saved, id).await?;
        let place = self.bring_about(context, saved, &what, || self.look_taken(id), call).await?;
        // The device goes a moment later than the row, or never, if CloudStack has lost sight of it.
        let end = tokio::time::Instant::now() + self.settings.settle.0 / 10;
        while let Some(failure) = self.still_plugged(id) {
            if tokio::time::Instant::now() >= end {
                return Err(failure);
            }
            self.breathe(context, "waiting for a device to go").await?;
        }
        Ok(place)
    }

    /// Where this is the appliance, it can be seen whether a disk is there, whatever CloudStack says.
    pub(super) fn still_plugged(&self, id: &str) -> Option<Failure> {
        let device = self.v2v.as_ref()?.device_here(id)?;
        let message = format!(
            "CloudStack says that the volume {id} is attached nowhere, and the appliance has its device ({}). Unplug it at the \
             host of the appliance (virsh detach-disk), and retry this step",
            device.display()
        );
        Some(Failure::retryable("still_plugged", message))
    }

    async fn look_home(&self, id: &str) -> Result<Found<Place>, Failure> {
        let volume = self.volume(id).await?;
        if let Some(found) = self.on_its_way(&volume) {
            return Ok(found);
        }
        match volume.virtualmachineid {
            None => Ok(Found::Todo),
            Some(_) if self.at_oma(&volume) => Ok(Found::Done(Place::of(&volume))),
            Some(_) => Err(Self::in_the_way(&volume)),
        }
    }

    /// Brings a volume to the appliance for a conversion. With it the daemon opens its export, and what is replicated while
    /// somebody else writes is lost.
    pub(super) async fn lend<S: Serialize + Sync>(
        &self,
        context: &Context,
        saved: &mut Saved<S>,
        id: &str,
    ) -> Result<Place, Failure> {
        let place = self.bring_home(context, saved, id).await?;
        self.close_export(id).await?;
        Ok(place)
    }

    /// Brings a volume to the appliance, at whatever slot is free.
    pub(super) async fn bring_home<S: Serialize + Sync>(
        &self,
        context: &Context,
        saved: &mut Saved<S>,
        id: &str,
    ) -> Result<Place, Failure> {
        let what = format!("attaching the volume {id} to the appliance");
        let oma = self.settings.oma.as_str();
        let call = |_| async {
            self.no_vm_snapshot(oma).await?;
            Ok::<_, NotBegun>(self.daemon.attach(id, oma).await?)
        };
        self.at_rest(context, saved, id).await?;
        let place = self.bring_about(context, saved, &what, || self.look_home(id), call).await?;
        // The daemon gives up on a device that comes late, and then knows nothing of a volume that is attached. Without its
        // row nothing can be replicated: once more, from the beginning.
        for _ in 0..2 {
            if self.knows_device(context, id).await? {
                return Ok(place);
            }
            tracing::warn!(
                volume = id,
                "the Volume Daemon does not know a volume of its appliance; attaching it anew"
            );
            saved.begun = None;
            let again = |_| self.daemon.detach(id);
            self.bring_about(context, saved, &what, || self.look_taken(id), again).await?;
            saved.begun = None;
            self.bring_about(context, saved, &what, || self.look_home(id), call).await?;
        }
        if self.knows_device(context, id).await? {
            return Ok(place);
        }
        let message = format!(
            "the volume {id} is attached to the appliance, but the Volume Daemon does not find its device"
        );
        Err(Failure::retryable("no_device", message))
    }

    async fn knows_device(&self, context: &Context, id: &str) -> Result<bool, Failure> {
        let end = tokio::time::Instant::now() + self.settings.settle.0 / 10;
        loop {
            if let Some(device) = self.daemon.device(id).await?
                && device.path().is_some()
                && device.vm_id.as_deref().is_none_or(|vm| vm == self.settings.oma)
            {
                return Ok(true);
            }
            if tokio::time::Instant::now() >= end {
                return Ok(false);
            }
            self.breathe(context, "waiting for a device").await?;
        }
    }
}

#[async_trait]
impl Activity for TakeFromOma {
    const NAME: &'static str = "take-from-oma";
    type Input = One;
    type Output = Place;

    fn effect(&self) -> Effect {
        self.0.effect()
    }

    fn pool(&self) -> Option<String> {
        Some(super::DAEMON_POOL.into())
    }

    async fn run(&self, context: &Context, One { volume, lent }: One) -> Result<Place, Failure> {
        let away = context.resource("volume away from the appliance", &volume);
        if !lent {
            away.planned().await?;
        }
        // It was lent to a conversion, whose process may have died at once and left it running.
        if lent && context.undone().is_some() {
            self.0.end_leftovers(std::slice::from_ref(&volume)).await?;
        }
        let mut saved: Saved = context.saved()?.unwrap_or_default();
        let place = self.0.take(context, &mut saved, &volume).await?;
        if !lent {
            away.present(serde_json::json!({ "volume": volume })).await?;
        }
        Ok(place)
    }

    async fn probe(&self, _: &Context, One { volume, .. }: One) -> Result<Probe<Place>, Failure> {
        // Whether its device is gone is for the next attempt to see.
        Ok(self.0.look_taken(&volume).await?.probe(|place| match self.0.still_plugged(&volume) {
            None => Probe::Present(place),
            Some(_) => Probe::Partial,
        }))
    }
}

#[async_trait]
impl Activity for ReturnToOma {
    const NAME: &'static str = "return-to-oma";
    type Input = One;
    type Output = Place;

    fn effect(&self) -> Effect {
        self.0.effect()
    }

    fn pool(&self) -> Option<String> {
        Some(super::DAEMON_POOL.into())
    }

    async fn run(&self, context: &Context, One { volume, lent }: One) -> Result<Place, Failure> {
        let mut saved: Saved = context.saved()?.unwrap_or_default();
        if lent {
            return self.0.lend(context, &mut saved, &volume).await;
        }
        // What is no copy of the source any more must not be replicated to, not even until the other disks are home.
        let is_dirty = self.0.volume(&volume).await?.tag(DIRTY_TAG).is_some();
        let place = match is_dirty {
            true => self.0.lend(context, &mut saved, &volume).await?,
            false => self.0.bring_home(context, &mut saved, &volume).await?,
        };
        context.resource("volume away from the appliance", &volume).gone().await?;
        Ok(place)
    }

    async fn probe(&self, _: &Context, One { volume, .. }: One) -> Result<Probe<Place>, Failure> {
        // Whether the daemon knows its device is for the next attempt to see.
        Ok(self.0.look_home(&volume).await?.probe(|_| Probe::Partial))
    }
}

impl AttachVolume {
    async fn look(&self, pair: &Pair, vm: &str) -> Result<Found<Place>, Failure> {
        let site = &self.0;
        let volume = site.volume(&pair.volume).await?;
        if let Some(found) = site.on_its_way(&volume) {
            return Ok(found);
        }
        match volume.virtualmachineid.as_deref() {
            None => Ok(Found::Todo),
            Some(at) if at == vm => {
                let is_root = volume.deviceid == Some(0);
                if is_root == pair.root && volume.is_root() == pair.root {
                    return Ok(Found::Done(Place::of(&volume)));
                }
                let message = format!(
                    "the volume {} is at slot {} of the machine, and should {}be what it starts from",
                    volume.id,
                    volume.deviceid.map_or_else(|| "?".into(), |device| device.to_string()),
                    if pair.root { "" } else { "not " }
                );
                Err(Failure::permanent("wrong_slot", message))
            }
            Some(_) => Err(Failure::permanent(ELSEWHERE, Site::elsewhere(&volume)).not_applied()),
        }
    }

    /// Right before the call.
    async fn guard(&self, pair: &Pair, vm: &str, mark: &str) -> Result<(), Failure> {
        let site = &self.0;
        let Some(machine) = site.cloudstack.vm(vm).await? else {
            return Err(Failure::permanent(
                "vm_missing",
                format!("CloudStack does not know the machine {vm}"),
            )
            .not_applied());
        };
        site.only_ours(&machine, mark)?;
        if !machine.is("Stopped") {
            let state = machine.state.as_deref().unwrap_or("in no known state");
            let message = format!("the machine {vm} is {state}; its disks are attached while it is stopped");
            return Err(Failure::retryable("vm_not_stopped", message).not_applied());
        }
        site.no_vm_snapshot(vm).await?;
        if pair.root {
            let volumes = site.cloudstack.volumes_of(vm).await?;
            if let Some(other) =
                volumes.iter().find(|volume| volume.deviceid == Some(0) && volume.id != pair.volume)
            {
                let message = format!("the machine {vm} starts from another volume already: {}", other.id);
                return Err(Failure::permanent("has_root", message).not_applied());
            }
        }
        Ok(())
    }
}

#[async_trait]
impl Activity for AttachVolume {
    const NAME: &'static str = "attach-volume";
    type Input = Pair;
    type Output = Place;

    fn effect(&self) -> Effect {
        self.0.effect()
    }

    fn pool(&self) -> Option<String> {
        Some(super::DAEMON_POOL.into())
    }

    async fn run(&self, context: &Context, pair: Pair) -> Result<Place, Failure> {
        let Some(vm) = pair.vm.clone() else {
            return Err(Failure::permanent("no_vm", "there is no machine to attach it to").not_applied());
        };
        let mut saved: Saved = context.saved()?.unwrap_or_default();
        let what = format!("attaching the volume {} to the machine {vm}", pair.volume);
        let mark = super::guard::mark(context.run());
        let call = |_| async {
            self.guard(&pair, &vm, &mark).await?;
            Ok::<_, NotBegun>(if pair.root {
                self.0.daemon.attach_root(&pair.volume, &vm).await?
            } else {
                self.0.daemon.attach(&pair.volume, &vm).await?
            })
        };
        self.0.at_rest(context, &saved, &pair.volume).await?;
        self.0.bring_about(context, &mut saved, &what, || self.look(&pair, &vm), call).await
    }

    async fn probe(&self, _: &Context, pair: Pair) -> Result<Probe<Place>, Failure> {
        match &pair.vm {
            Some(vm) => Ok(self.look(&pair, vm).await?.probe(Probe::Present)),
            None => Ok(Probe::Absent),
        }
    }
}

impl DetachVolume {
    /// Right before the call.
    async fn guard(&self, pair: &Pair, mark: &str) -> Result<(), Failure> {
        let (site, Some(vm)) = (&self.0, &pair.vm) else { return Ok(()) };
        let Some(machine) = site.cloudstack.vm(vm).await? else { return Ok(()) };
        site.only_ours(&machine, mark)?;
        if !machine.is("Stopped") {
            let state = machine.state.as_deref().unwrap_or("in no known state");
            let message = format!("the machine {vm} is {state}; its disks are detached once it is stopped");
            return Err(Failure::retryable("vm_not_stopped", message).not_applied());
        }
        site.no_vm_snapshot(vm).await
    }

    async fn look(&self, pair: &Pair) -> Result<Found<Place>, Failure> {
        let site = &self.0;
        let volume = site.volume(&pair.volume).await?;
        if let Some(found) = site.on_its_way(&volume) {
            return Ok(found);
        }
        match volume.virtualmachineid.as_deref() {
            None => Ok(Found::Done(Place::of(&volume))),
            // It is home, or never left.
            Some(_) if site.at_oma(&volume) => Ok(Found::Done(Place::of(&volume))),
            Some(at) if pair.vm.as_deref() == Some(at) => Ok(Found::Todo),
            Some(_) => Err(Site::in_the_way(&volume)),
        }
    }
}

#[async_trait]
impl Activity for DetachVolume {
    const NAME: &'static str = "detach-volume";
    type Input = Pair;
    type Output = Place;

    fn effect(&self) -> Effect {
        self.0.effect()
    }

    fn pool(&self) -> Option<String> {
        Some(super::DAEMON_POOL.into())
    }

    async fn run(&self, context: &Context, pair: Pair) -> Result<Place, Failure> {
        let site = &self.0;
        let mut saved: Saved = context.saved()?.unwrap_or_default();
        let what = format!("detaching the volume {} from the machine", pair.volume);
        let mark = super::guard::mark(context.run());
        let call = |_| async {
            self.guard(&pair, &mark).await?;
            Ok::<_, NotBegun>(site.daemon.detach(&pair.volume).await?)
        };
        site.at_rest(context, &saved, &pair.volume).await?;
        site.bring_about(context, &mut saved, &what, || self.look(&pair), call).await
    }

    async fn probe(&self, _: &Context, pair: Pair) -> Result<Probe<Place>, Failure> {
        Ok(self.look(&pair).await?.probe(Probe::Present))
    }
}
