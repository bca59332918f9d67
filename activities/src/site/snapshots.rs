//! The way back: snapshots of all disks of a machine, or of none.
//!
//! ```text
//!   take-snapshots    the disks are attached nowhere, and as replication left them
//!   revert-snapshots  its undo: each disk goes back, and only what went back loses its snapshot
//!   drop-snapshots    after the commit: the way back is given up
//! ```
//!
//! A revert does not show in any state that could be read, so only the end of the very call counts: a disk whose revert is
//! not known to have succeeded keeps its snapshot. One that cannot be reverted is marked as dirty and comes home all the
//! same, and the run does not end as rolled back.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use async_trait::async_trait;
use backstay_engine::machine::plan::Effect;
use backstay_engine::{Activity, Context, Failure};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use uuid::Uuid;

use super::change::{Found, Saved};
use super::guard::at_work;
use super::{DIRTY_TAG, RUN_TAG, Site};
use crate::cloudstack::Volume;
use crate::linstor::{self, Linstor};

pub(super) struct TakeSnapshots(pub Arc<Site>);
pub(super) struct RevertSnapshots(pub Arc<Site>);
pub(super) struct DropSnapshots(pub Arc<Site>);

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
    /// What the snapshots are called.
    name: String,
    /// The volumes, all of them.
    pub(super) volumes: Vec<String>,
    /// The machine that has them, for a snapshot of the machine.
    #[serde(default)]
    vm: Option<String>,
}

/// What was taken.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(super) struct Taken {
    provider: Provider,
    name: String,
    /// The snapshot of each volume, or of the machine, by its id.
    snapshots: BTreeMap<String, String>,
}

/// What became of the disks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(super) struct Reverted {
    /// As they were at the snapshot.
    reverted: Vec<String>,
    /// Not as they were: their snapshots are kept.
    dirty: Vec<String>,
}

/// How far the reverts are.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Reverting {
    done: BTreeSet<String>,
    failed: BTreeMap<String, u32>,
    given_up: BTreeSet<String>,
}

impl Site {
    /// The snapshot of a volume by this name that this run has taken: the newest that is good or may become so.
    async fn snapshot_of(
        &self,
        run: &str,
        volume: &str,
        name: &str,
    ) -> Result<Vec<crate::cloudstack::Snapshot>, Failure> {
        let mut found = self.cloudstack.list_snapshots(Some(volume), None).await?;
        found.retain(|one| {
            one.name.as_deref() == Some(name)
                && one.tag(RUN_TAG).is_none_or(|tag| tag == run)
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

    /// Whether each volume has a snapshot that it can be put back to.
    pub(super) async fn way_back(&self, context: &Context, set: &Set) -> Result<(), Failure> {
        for (n, volume) in set.volumes.iter().enumerate() {
            let there = match set.provider {
                Provider::CloudStack => {
                    let name = format!("{}-{n}", set.name);
                    let found = self.snapshot_of(&context.run().to_string(), volume, &name).await?;
                    found.iter().any(crate::cloudstack::Snapshot::is_usable)
                }
                Provider::Linstor => {
                    let linstor = self.linstor()?;
                    let resource = self.resource_of(linstor, volume).await?;
                    let found = linstor.view_snapshots(&[&resource]).await?;
                    found.iter().any(|one| one.name == set.name && one.is_whole())
                }
                Provider::Machine | Provider::None => false,
            };
            if !there {
                let message = format!(
                    "the volume {volume} has no snapshot of this run: nothing is written without a way back"
                );
                return Err(Failure::permanent("no_way_back", message).not_applied());
            }
        }
        Ok(())
    }

    /// Puts one volume back; false: it has no snapshot. Only the end of this very call counts.
    pub(super) async fn put_back(
        &self,
        context: &Context,
        set: &Set,
        n: usize,
        volume: &str,
    ) -> Result<bool, Failure> {
        match set.provider {
            Provider::CloudStack => {
                let name = format!("{}-{n}", set.name);
                let found = self.snapshot_of(&context.run().to_string(), volume, &name).await?;
                // None was taken, so nothing was written that it would be needed for.
                let Some(one) = found.iter().find(|one| one.is_usable()) else { return Ok(false) };
                self.is_free(volume).await?;
                let planned =
                    Uuid::new_v5(&context.key(), format!("{} revert {n}", context.attempt()).as_bytes());
                let job = match self.cloudstack.revert_snapshot(&one.id, Some(planned)).await {
                    Ok(started) => started.jobid,
                    Err(trouble) => match self.cloudstack.job(&planned.to_string()).await {
                        Ok(Some(_)) => planned.to_string(),
                        _ => return Err(trouble.into()),
                    },
                };
                self.cloudstack.finish(&job, None, context.cancelled()).await?;
                Ok(true)
            }
            Provider::Linstor => {
                let linstor = self.linstor()?;
                let resource = self.resource_of(linstor, volume).await?;
                let found = linstor.view_snapshots(&[&resource]).await?;
                if !found.iter().any(|one| one.name == set.name) {
                    return Ok(false);
                }
                self.is_free(volume).await?;
                linstor.rollback(&resource, &set.name).await?;
                Ok(true)
            }
            Provider::Machine | Provider::None => Ok(false),
        }
    }

    /// It can be put back only while nobody has it.
    async fn is_free(&self, id: &str) -> Result<Volume, Failure> {
        let volume = self.volume(id).await?;
        if let Some(vm) = &volume.virtualmachineid {
            let message = format!(
                "the volume {id} is attached to the machine {vm}; it is put back while it is attached nowhere"
            );
            return Err(Failure::retryable("volume_attached", message).not_applied());
        }
        if !volume.is("Ready") {
            let state = volume.state.as_deref().unwrap_or("in no known state");
            return Err(
                Failure::retryable("volume_busy", format!("the volume {id} is {state}")).not_applied()
            );
        }
        Ok(volume)
    }
}

/// A snapshot that no job is at work on counts as given up after so many looks.
const GIVEN_UP: u32 = 20;

impl TakeSnapshots {
    async fn by_cloudstack(&self, context: &Context, set: &Set) -> Result<BTreeMap<String, String>, Failure> {
        let (site, run) = (&self.0, context.run().to_string());
        let mut saved: Saved = context.saved()?.unwrap_or_default();
        let mut taken = BTreeMap::new();
        for (n, volume) in set.volumes.iter().enumerate() {
            let name = format!("{}-{n}", set.name);
            let resource = context.resource("snapshot", &name);
            resource.planned().await?;
            let idle = AtomicU32::new(0);
            let look = || self.look_one(&run, volume, &name, &idle);
            let tags = BTreeMap::from([(RUN_TAG.to_owned(), run.clone())]);
            let call = |job| site.cloudstack.create_snapshot(volume, &name, &tags, Some(job));
            let what = format!("taking a snapshot of the volume {volume}");
            let id = site.bring_about(context, &mut saved, &what, look, call).await?;
            saved.begun = None;
            resource.present(json!({ "id": id, "volume": volume })).await?;
            context.progress((n + 1) as f64 * 100.0 / set.volumes.len() as f64, what);
            taken.insert(volume.clone(), id);
        }
        Ok(taken)
    }

    async fn look_one(
        &self,
        run: &str,
        volume: &str,
        name: &str,
        idle: &AtomicU32,
    ) -> Result<Found<String>, Failure> {
        let site = &self.0;
        let found = site.snapshot_of(run, volume, name).await?;
        if let Some(one) = found.iter().find(|one| one.is_usable()) {
            return Ok(Found::Done(one.id.clone()));
        }
        let held = site.volume(volume).await?;
        if let Some(job) = at_work(held.jobid.as_ref(), held.jobstatus) {
            return Ok(Found::AtWork(job));
        }
        if let Some(one) = found.iter().find(|one| one.state.as_deref() != Some("Error")) {
            // One whose job was lost stays what it was for ever. It is removed with the others in the end.
            let at_rest = held.is("Ready") && idle.fetch_add(1, Ordering::Relaxed) >= GIVEN_UP;
            if !at_rest {
                return Ok(Found::Moving(one.state.clone().unwrap_or_else(|| "in no known state".into())));
            }
        }
        Ok(Found::Todo)
    }

    async fn by_linstor(&self, context: &Context, set: &Set) -> Result<BTreeMap<String, String>, Failure> {
        let (site, linstor) = (&self.0, self.0.linstor()?);
        let mut resources = BTreeMap::new();
        for volume in &set.volumes {
            resources.insert(volume.clone(), site.resource_of(linstor, volume).await?);
            context.resource("linstor snapshot", format!("{} of {volume}", set.name)).planned().await?;
        }
        let names: Vec<&str> = resources.values().map(String::as_str).collect();
        let whole = || async {
            let found = linstor.view_snapshots(&names).await?;
            let of = |resource: &str| {
                found
                    .iter()
                    .find(|one| one.name == set.name && one.resource_name.eq_ignore_ascii_case(resource))
                    .cloned()
            };
            let all: Vec<_> = names.iter().map(|resource| of(resource)).collect();
            Whole::of(&all)
        };
        let mut trouble = None;
        if whole().await? == Whole::Missing {
            let made = match names.as_slice() {
                [one] => linstor.create_snapshot(one, &set.name).await,
                all => linstor.create_snapshots(all, &set.name).await,
            };
            trouble = made.err().filter(|trouble| !linstor::is_taken(trouble));
        }
        match whole().await? {
            Whole::All => {}
            // A set with a hole protects nobody.
            Whole::Some => {
                for resource in &names {
                    linstor.delete_snapshot(resource, &set.name).await?;
                }
                let message = "only some nodes or disks have the snapshot; it was removed";
                return Err(
                    trouble.map_or_else(|| Failure::retryable("snapshot_incomplete", message), Failure::from)
                );
            }
            Whole::Missing => {
                let message = "LINSTOR says that it made the snapshots, and does not show them";
                return Err(trouble.map_or_else(|| Failure::retryable("not_seen", message), Failure::from));
            }
        }
        for (volume, resource) in &resources {
            let told = context.resource("linstor snapshot", format!("{} of {volume}", set.name));
            told.present(json!({ "resource": resource, "name": set.name })).await?;
        }
        Ok(resources)
    }

    async fn by_machine(&self, context: &Context, set: &Set) -> Result<BTreeMap<String, String>, Failure> {
        let site = &self.0;
        let vm = set.vm.as_deref().ok_or_else(|| {
            Failure::permanent("no_vm", "a snapshot of a machine needs the machine").not_applied()
        })?;
        let resource = context.resource("machine snapshot", &set.name);
        resource.planned().await?;
        let mut saved: Saved = context.saved()?.unwrap_or_default();
        let look = || async {
            let found = site.cloudstack.list_vm_snapshots(vm).await?;
            Ok(match found.into_iter().find(|one| one.displayname.as_deref() == Some(&set.name)) {
                None => Found::Todo,
                Some(one) => match one.state.as_deref() {
                    Some("Ready") => Found::Done(one.id),
                    Some("Error") => {
                        let message = format!("the snapshot {} of the machine failed", set.name);
                        return Err(Failure::permanent("snapshot_failed", message));
                    }
                    state => Found::Moving(state.unwrap_or("in no known state").to_owned()),
                },
            })
        };
        let order = crate::cloudstack::CreateVmSnapshot {
            virtualmachineid: vm.to_owned(),
            name: set.name.clone(),
            ..crate::cloudstack::CreateVmSnapshot::default()
        };
        let call = |job| site.cloudstack.create_vm_snapshot(&order, Some(job));
        let what = format!("taking a snapshot of the machine {vm}");
        let id = site.bring_about(context, &mut saved, &what, look, call).await?;
        resource.present(json!({ "id": id, "vm": vm })).await?;
        Ok(BTreeMap::from([(vm.to_owned(), id)]))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whole {
    Missing,
    Some,
    All,
}

impl Whole {
    fn of(all: &[Option<linstor::Snapshot>]) -> Result<Self, Failure> {
        Ok(if all.iter().all(|one| one.as_ref().is_some_and(linstor::Snapshot::is_whole)) {
            Self::All
        } else if all.iter().all(Option::is_none) {
            Self::Missing
        } else {
            Self::Some
        })
    }
}

#[async_trait]
impl Activity for TakeSnapshots {
    const NAME: &'static str = "take-snapshots";
    type Input = Set;
    type Output = Taken;

    fn effect(&self) -> Effect {
        Effect { probed: false, ..self.0.effect() }
    }

    fn pool(&self) -> Option<String> {
        Some(super::CLOUDSTACK_POOL.into())
    }

    async fn run(&self, context: &Context, set: Set) -> Result<Taken, Failure> {
        let snapshots = match set.provider {
            Provider::CloudStack => self.by_cloudstack(context, &set).await?,
            Provider::Linstor => self.by_linstor(context, &set).await?,
            Provider::Machine => self.by_machine(context, &set).await?,
            Provider::None => BTreeMap::new(),
        };
        Ok(Taken { provider: set.provider, name: set.name, snapshots })
    }
}

impl RevertSnapshots {
    /// Back to how the machine's volumes were, all at once; and its snapshot has to go before any of them can be detached.
    async fn revert_machine(&self, context: &Context, set: &Set) -> Result<Reverted, Failure> {
        let site = &self.0;
        let Some(vm) = &set.vm else { return Ok(Reverted { reverted: Vec::new(), dirty: Vec::new() }) };
        let mut saved: Saved<bool> = context.saved()?.unwrap_or_default();
        let mine = || async {
            let found = site.cloudstack.list_vm_snapshots(vm).await?;
            Ok::<_, Failure>(found.into_iter().find(|one| one.displayname.as_deref() == Some(&set.name)))
        };
        let Some(one) = mine().await? else {
            context.resource("machine snapshot", &set.name).gone().await?;
            return Ok(Reverted { reverted: set.volumes.clone(), dirty: Vec::new() });
        };
        if !saved.more {
            let planned = Uuid::new_v5(&context.key(), format!("{} revert", context.attempt()).as_bytes());
            let started = site.cloudstack.revert_vm_snapshot(&one.id, Some(planned)).await?;
            site.cloudstack.finish(&started.jobid, None, context.cancelled()).await?;
            saved.more = true;
            context.save(&saved).await?;
        }
        let look = || async {
            Ok(match mine().await? {
                None => Found::Done(()),
                Some(one) => match one.state.as_deref() {
                    Some("Ready" | "Error") => Found::Todo,
                    Some("Removed") => Found::Done(()),
                    state => Found::Moving(state.unwrap_or("in no known state").to_owned()),
                },
            })
        };
        let call = |job| site.cloudstack.delete_vm_snapshot(&one.id, Some(job));
        let what = format!("removing the snapshot {} of the machine", set.name);
        site.bring_about(context, &mut saved, &what, look, call).await?;
        context.resource("machine snapshot", &set.name).gone().await?;
        Ok(Reverted { reverted: set.volumes.clone(), dirty: Vec::new() })
    }
}

impl Site {
    /// Removes what a volume does not need any more.
    async fn drop_snapshot(
        &self,
        context: &Context,
        saved: &mut Saved<Reverting>,
        (set, n, volume): (&Set, usize, &str),
    ) -> Result<(), Failure> {
        match set.provider {
            Provider::CloudStack => {
                let (run, name) = (context.run().to_string(), format!("{}-{n}", set.name));
                // A call whose answer was lost may have made two.
                for one in self.snapshot_of(&run, volume, &name).await? {
                    let look = || async {
                        let there = self.cloudstack.list_snapshots(None, Some(&one.id)).await?;
                        Ok(match there.first().and_then(|one| one.state.as_deref()) {
                            None | Some("Destroyed") => Found::Done(()),
                            Some("Destroying") => Found::Moving("Destroying".into()),
                            Some(_) => Found::Todo,
                        })
                    };
                    let call = |job| self.cloudstack.delete_snapshot(&one.id, Some(job));
                    let what = format!("removing the snapshot {name}");
                    self.bring_about(context, saved, &what, look, call).await?;
                    saved.begun = None;
                }
                context.resource("snapshot", &name).gone().await
            }
            Provider::Linstor => {
                let linstor = self.linstor()?;
                let resource = self.resource_of(linstor, volume).await?;
                linstor.delete_snapshot(&resource, &set.name).await?;
                context.resource("linstor snapshot", format!("{} of {volume}", set.name)).gone().await
            }
            Provider::Machine | Provider::None => Ok(()),
        }
    }

    fn snapshot_resource(set: &Set, n: usize, volume: &str) -> (&'static str, String) {
        match set.provider {
            Provider::Linstor => ("linstor snapshot", format!("{} of {volume}", set.name)),
            _ => ("snapshot", format!("{}-{n}", set.name)),
        }
    }
}

#[async_trait]
impl Activity for RevertSnapshots {
    const NAME: &'static str = "revert-snapshots";
    type Input = Set;
    type Output = Reverted;

    fn effect(&self) -> Effect {
        Effect { probed: false, ..self.0.effect() }
    }

    fn pool(&self) -> Option<String> {
        Some(super::CLOUDSTACK_POOL.into())
    }

    async fn run(&self, context: &Context, set: Set) -> Result<Reverted, Failure> {
        let site = &self.0;
        match set.provider {
            Provider::None => return Ok(Reverted { reverted: Vec::new(), dirty: set.volumes }),
            Provider::Machine => return self.revert_machine(context, &set).await,
            Provider::CloudStack | Provider::Linstor => {}
        }
        let mut saved: Saved<Reverting> = context.saved()?.unwrap_or_default();
        // All of them go back before any of them loses its snapshot: they are one machine.
        for (n, volume) in set.volumes.iter().enumerate() {
            if saved.more.done.contains(volume) || saved.more.given_up.contains(volume) {
                continue;
            }
            context.progress(
                n as f64 * 80.0 / set.volumes.len() as f64,
                format!("putting the volume {volume} back"),
            );
            match site.put_back(context, &set, n, volume).await {
                Ok(_) => {
                    saved.more.done.insert(volume.clone());
                    context.save(&saved).await?;
                }
                Err(failure) if context.is_cancelled() => return Err(failure),
                Err(failure) => {
                    let times = saved.more.failed.entry(volume.clone()).or_default();
                    *times += 1;
                    if *times < site.settings.reverts {
                        context.save(&saved).await?;
                        return Err(failure);
                    }
                    tracing::error!(volume, "a volume cannot be put back; its snapshot is kept");
                    site.tag(context, "Volume", volume, (DIRTY_TAG, &context.run().to_string())).await?;
                    saved.more.given_up.insert(volume.clone());
                    context.save(&saved).await?;
                }
            }
        }
        for (n, volume) in set.volumes.iter().enumerate() {
            if saved.more.given_up.is_empty() {
                site.drop_snapshot(context, &mut saved, (&set, n, volume)).await?;
                continue;
            }
            // One machine: if one of its disks is not as it was, the others are of no use without the snapshots.
            let (kind, name) = Site::snapshot_resource(&set, n, volume);
            let why = if saved.more.given_up.contains(volume) {
                "its volume could not be put back: this is the only good copy of it"
            } else {
                "another disk of the same machine could not be put back"
            };
            context.resource(kind, name).unproven(why).await?;
        }
        Ok(Reverted {
            reverted: saved.more.done.into_iter().collect(),
            dirty: saved.more.given_up.into_iter().collect(),
        })
    }
}

#[async_trait]
impl Activity for DropSnapshots {
    const NAME: &'static str = "drop-snapshots";
    type Input = Set;
    type Output = Reverted;

    fn effect(&self) -> Effect {
        Effect { probed: false, ..self.0.effect() }
    }

    fn pool(&self) -> Option<String> {
        Some(super::CLOUDSTACK_POOL.into())
    }

    async fn run(&self, context: &Context, set: Set) -> Result<Reverted, Failure> {
        match (set.provider, &set.vm) {
            (Provider::Machine, Some(vm)) => {
                let found = self.0.cloudstack.list_vm_snapshots(vm).await?;
                for one in found.iter().filter(|one| one.displayname.as_deref() == Some(&set.name)) {
                    let planned =
                        Uuid::new_v5(&context.key(), format!("{} drop", context.attempt()).as_bytes());
                    let started = self.0.cloudstack.delete_vm_snapshot(&one.id, Some(planned)).await?;
                    self.0.cloudstack.finish(&started.jobid, None, context.cancelled()).await?;
                }
                context.resource("machine snapshot", &set.name).gone().await?;
            }
            _ => {
                let mut saved: Saved<Reverting> = context.saved()?.unwrap_or_default();
                for (n, volume) in set.volumes.iter().enumerate() {
                    self.0.drop_snapshot(context, &mut saved, (&set, n, volume)).await?;
                }
            }
        }
        Ok(Reverted { reverted: Vec::new(), dirty: set.volumes })
    }
}
