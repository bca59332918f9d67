//! Disks go back to their snapshots, and snapshots that nobody needs any more go.
//!
//! A revert does not show in any state that could be read, so only the end of the very call counts: a disk whose revert is
//! not known to have succeeded keeps its snapshot. One that cannot be reverted is marked as dirty and comes home all the
//! same, and the run does not end as rolled back.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use backstay_engine::machine::plan::Effect;
use backstay_engine::machine::{Fate, NEEDS_OPERATOR, TARGET_DOWN};
use backstay_engine::{Activity, Context, Failure, Span};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::time::Instant;
use uuid::Uuid;

use super::{Provider, Set, Taken, name_of, record};
use crate::cloudstack::Started;
use crate::remote::{Kind, Trouble};
use crate::site::change::{Begun, Change, Found, STILL_MOVING, Saved};
use crate::site::{CLOUDSTACK_POOL, DIRTY_TAG, Site, VIRTIO_TAG};

pub(in crate::site) struct RevertSnapshots(pub Arc<Site>);
pub(in crate::site) struct DropSnapshots(pub Arc<Site>);

/// In the record of the first snapshot, once all disks are as they were at theirs.
const PUT_BACK: &str = "put_back";

/// In the record of a snapshot that is left.
const LEFT: &str = "the disk is as it was, and its snapshot could not be removed";

fn is_back(snapshot: &backstay_engine::machine::Resource) -> bool {
    let says = |key: &str| snapshot.details.as_ref().and_then(|details| details.get(key));
    let is_left = || says("why").and_then(serde_json::Value::as_str).is_some_and(|why| why.starts_with(LEFT));
    says(PUT_BACK) == Some(&true.into()) || snapshot.fate == Fate::Gone || is_left()
}

/// What became of the disks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(in crate::site) struct Reverted {
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
    undeleted: BTreeMap<String, u32>,
    left: BTreeSet<String>,
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
        Some(CLOUDSTACK_POOL.into())
    }

    async fn run(&self, context: &Context, set: Set) -> Result<Reverted, Failure> {
        let Some(undone) = context.undone() else {
            let message = "what to go back to is in the journal of the step that took the snapshots: this is its undo only";
            return Err(Failure::permanent("not_an_undo", message).not_applied());
        };
        let mut saved: Saved<Reverting> = context.saved()?.unwrap_or_default();
        // A step that never came to its end let nobody write to the disks: there is nothing to go back from.
        if let Some(output) = undone.output.as_ref().filter(|_| !undone.resources.iter().any(is_back)) {
            let taken: Taken = serde_json::from_str(output.as_str()).map_err(|error| {
                let message = format!("what the step says of its snapshots cannot be read: {error}");
                Failure::permanent("unreadable", message).not_applied()
            })?;
            self.put_all_back(context, &mut saved, &set, &taken).await?;
            // Before any snapshot goes, and for whoever begins this anew without what was saved: they are back.
            if let Some(part) = set.parts().first().filter(|_| saved.more.given_up.is_empty()) {
                let of_it = undone.resources.iter().find(|one| one.name.ends_with(part));
                let known = of_it.and_then(|one| one.details.clone());
                let mut details = known.unwrap_or_else(|| json!({}));
                if let Some(details) = details.as_object_mut() {
                    details.insert(PUT_BACK.into(), true.into());
                }
                record(context, set.provider, part).present(details).await?;
            }
        }
        let (site, mut first) = (&self.0, None);
        for part in set.parts() {
            if saved.more.given_up.is_empty() {
                // Each attempt is one for all of them.
                let dropped = self.drop_or_leave(context, &mut saved, set.provider, part).await;
                first = first.or(dropped.err());
                continue;
            }
            // One machine: if one of its disks is not as it was, the others are of no use without the snapshots.
            let why = if saved.more.given_up.contains(part) {
                "its volume could not be put back: this is the only good copy of it"
            } else {
                "another disk of the same machine could not be put back"
            };
            record(context, set.provider, part).unproven(why).await?;
        }
        if let Some(failure) = first {
            return Err(failure);
        }
        if saved.more.given_up.is_empty() && undone.output.is_some() {
            // Only the first is ever marked.
            for volume in set.volumes.iter().take(1) {
                site.untag(context, &mut saved, ("Volume", volume), VIRTIO_TAG).await?;
            }
        }
        Ok(Reverted {
            reverted: saved.more.done.into_iter().collect(),
            dirty: saved.more.given_up.into_iter().collect(),
        })
    }
}

impl RevertSnapshots {
    /// All of them go back before any of them loses its snapshot: they are one machine.
    async fn put_all_back(
        &self,
        context: &Context,
        saved: &mut Saved<Reverting>,
        set: &Set,
        taken: &Taken,
    ) -> Result<(), Failure> {
        let (site, parts) = (&self.0, set.parts());
        let mut first = None;
        for (n, part) in parts.iter().enumerate() {
            if saved.more.done.contains(*part) || saved.more.given_up.contains(*part) {
                continue;
            }
            context.progress(n as f64 * 80.0 / parts.len() as f64, format!("putting {part} back"));
            let failure = match site.put_back(context, saved, taken, part).await? {
                Back::Done => {
                    self.is_clean_again(context, saved, set.provider, part).await?;
                    saved.more.done.insert((*part).to_owned());
                    context.save(&saved).await?;
                    continue;
                }
                Back::Failed(failure) => failure,
            };
            let times = saved.more.failed.entry((*part).to_owned()).or_default();
            *times += 1;
            // While a machine has a snapshot, its disks cannot leave it: there is nothing to do but to try again.
            if *times < site.settings.reverts || set.provider == Provider::Machine {
                context.save(&saved).await?;
                // The others are tried all the same: each attempt is one for all of them.
                first = first.or(Some(failure));
                continue;
            }
            tracing::error!(volume = part, "a volume cannot be put back; its snapshot is kept");
            site.tag(context, saved, ("Volume", part), (DIRTY_TAG, &context.run().to_string())).await?;
            saved.more.given_up.insert((*part).to_owned());
            context.save(&saved).await?;
        }
        first.map_or(Ok(()), Err)
    }

    /// It was given up once, and somebody has had this done again.
    async fn is_clean_again(
        &self,
        context: &Context,
        saved: &mut Saved<Reverting>,
        provider: Provider,
        part: &str,
    ) -> Result<(), Failure> {
        if provider == Provider::Machine {
            return Ok(());
        }
        let volume = self.0.volume(part).await?;
        if volume.tag(DIRTY_TAG) != Some(context.run().to_string().as_str()) {
            return Ok(());
        }
        self.0.untag(context, saved, ("Volume", part), DIRTY_TAG).await
    }

    /// Without its snapshot a disk is as good as with it: what cannot be removed now keeps nobody's disks where they are.
    async fn drop_or_leave(
        &self,
        context: &Context,
        saved: &mut Saved<Reverting>,
        provider: Provider,
        part: &str,
    ) -> Result<(), Failure> {
        let site = &self.0;
        if saved.more.left.contains(part) {
            return Ok(());
        }
        let Err(failure) = site.drop_snapshots(context, saved, provider, (part, None)).await else {
            return Ok(());
        };
        saved.begun = None;
        let error = failure.error();
        // While a machine has a snapshot, its disks cannot leave it.
        let waits = [NEEDS_OPERATOR, TARGET_DOWN, "cancelled"].contains(&error.code.as_str());
        if waits || provider == Provider::Machine {
            return Err(failure);
        }
        let times = saved.more.undeleted.entry(part.to_owned()).or_default();
        *times += 1;
        let often = *times >= site.settings.reverts;
        context.save(&saved).await?;
        // One that is being taken still keeps its volume: that goes nowhere before it is through.
        let stands_still = error.code == STILL_MOVING && site.volume(part).await?.is("Ready");
        if error.retryable && !stands_still && (!often || error.code == STILL_MOVING) {
            return Err(failure);
        }
        tracing::error!(volume = part, error = error.message, "a snapshot cannot be removed, and is left");
        let why = format!("{LEFT}; remove it yourself ({})", error.message);
        record(context, provider, part).unproven(&why).await?;
        saved.more.left.insert(part.to_owned());
        context.save(&saved).await
    }
}

/// How a revert ended.
pub(in crate::site) enum Back {
    Done,
    /// It was tried, or there is nothing to try it with. That nobody could be asked is another matter.
    Failed(Failure),
}

impl Site {
    /// Puts one volume, or the machine, back to its snapshot.
    pub(in crate::site) async fn put_back<S: Serialize + Sync>(
        &self,
        context: &Context,
        saved: &mut Saved<S>,
        taken: &Taken,
        part: &str,
    ) -> Result<Back, Failure> {
        let there = self.has_snapshot(context, taken, part).await?;
        let Some(id) = taken.snapshots.get(part).filter(|_| there) else {
            return Ok(Back::Failed(no_snapshot(part)));
        };
        match taken.provider {
            Provider::CloudStack => {
                self.is_free(part).await?;
                let call = |job| self.cloudstack.revert_snapshot(id, Some(job));
                self.revert_by_job(context, saved, part, call).await
            }
            Provider::Linstor => {
                self.is_free(part).await?;
                ended(part, self.linstor()?.rollback(id, &name_of(context.run())).await)
            }
            Provider::Machine => {
                let call = |job| self.cloudstack.revert_vm_snapshot(id, Some(job));
                self.revert_by_job(context, saved, part, call).await
            }
            Provider::None => Ok(Back::Failed(no_snapshot(part))),
        }
    }

    async fn revert_by_job<S, Calling>(
        &self,
        context: &Context,
        saved: &mut Saved<S>,
        part: &str,
        call: impl FnOnce(Uuid) -> Calling,
    ) -> Result<Back, Failure>
    where
        S: Serialize + Sync,
        Calling: Future<Output = Result<Started, Trouble>>,
    {
        // What an earlier attempt began is over before another one is. How it ended says nothing of this one.
        if let Some(Begun::Job(earlier)) = saved.begun.take()
            && let Err(trouble) =
                self.cloudstack.finish(&earlier, Some(self.of_a_disk()), context.cancelled()).await
            && matches!(trouble.kind(), Kind::Late | Kind::Cancelled | Kind::Down)
        {
            return Err(trouble.into());
        }
        let planned = Uuid::new_v5(&context.key(), format!("{} revert {part}", context.attempt()).as_bytes());
        saved.begun = Some(Begun::Job(planned.to_string()));
        context.save(saved).await?;
        let job = match call(planned).await {
            Ok(started) => started.jobid,
            // The answer is lost. If the job is known by the id that we chose, it was begun.
            Err(trouble) => match self.cloudstack.job(&planned.to_string()).await {
                Ok(Some(_)) => planned.to_string(),
                _ => return ended(part, Err::<(), _>(trouble)),
            },
        };
        let begun = Some(Begun::Job(job.clone()));
        if saved.begun != begun {
            saved.begun = begun;
            context.save(saved).await?;
        }
        let end = self.cloudstack.finish(&job, Some(self.of_a_disk()), context.cancelled()).await;
        if end.is_ok() {
            saved.begun = None;
        }
        ended(part, end)
    }

    /// How long a job on all of a disk may take within one attempt.
    fn of_a_disk(&self) -> Span {
        self.cloudstack.settings().snapshot_deadline.min(Span::secs(25 * 60))
    }

    /// It can be put back only while nobody has it.
    async fn is_free(&self, id: &str) -> Result<(), Failure> {
        let volume = self.volume(id).await?;
        if let Some(vm) = &volume.virtualmachineid {
            let message = format!(
                "the volume {id} is attached to the machine {vm}; it is put back while it is attached nowhere"
            );
            return Err(Failure::retryable("volume_attached", message).not_applied());
        }
        if let Some(failure) = self.still_plugged(id) {
            return Err(failure.not_applied());
        }
        if !volume.is("Ready") {
            let state = volume.state.as_deref().unwrap_or("in no known state");
            return Err(
                Failure::retryable("volume_busy", format!("the volume {id} is {state}")).not_applied()
            );
        }
        Ok(())
    }

    /// Removes the snapshots of one volume, or of the machine: all that this run has made, as a call whose answer was lost
    /// may have made another, and the one that is known.
    async fn drop_snapshots<S: Serialize + Sync>(
        &self,
        context: &Context,
        saved: &mut Saved<S>,
        provider: Provider,
        (part, known): (&str, Option<&str>),
    ) -> Result<(), Failure> {
        let name = name_of(context.run());
        let what = format!("removing the snapshot of {part}");
        match provider {
            Provider::CloudStack => {
                let found = self.snapshots_of(context.run(), part).await?;
                let mut ids: BTreeSet<String> = found.into_iter().map(|one| one.id).collect();
                ids.extend(known.map(str::to_owned));
                let mut first = None;
                for id in &ids {
                    let look = || async {
                        let there = self.cloudstack.list_snapshots(None, Some(id)).await?;
                        Ok(going(there.first().map(|one| one.state.as_deref())))
                    };
                    let call = |job| self.cloudstack.delete_snapshot(id, Some(job));
                    let change = Change { what: &what, within: Some(self.of_a_disk()) };
                    let dropped = self.bring_about(context, saved, change, look, call).await;
                    // One that cannot be removed keeps none of the others.
                    first = first.or(dropped.err());
                    saved.begun = None;
                }
                if let Some(failure) = first {
                    return Err(failure);
                }
            }
            Provider::Linstor => {
                let linstor = self.linstor()?;
                let resource = match known {
                    Some(resource) => resource.to_owned(),
                    None => self.resource_of(linstor, part).await?,
                };
                linstor.delete_snapshot(&resource, &name).await?;
                let left = linstor.view_snapshots(&[&resource]).await?;
                if left
                    .iter()
                    .any(|one| one.name == name && one.resource_name.eq_ignore_ascii_case(&resource))
                {
                    let message = format!(
                        "LINSTOR says that it removed the snapshot {name} of {resource}, and shows it"
                    );
                    return Err(Failure::retryable("not_seen", message));
                }
            }
            Provider::Machine => {
                let found = self.cloudstack.list_vm_snapshots(part).await?;
                let ours = found.into_iter().filter(|one| one.displayname.as_deref() == Some(name.as_str()));
                for id in ours.map(|one| one.id) {
                    let idle = OnceLock::new();
                    let look = || async {
                        let there = self.cloudstack.list_vm_snapshots(part).await?;
                        let one = there.iter().find(|one| one.id == id);
                        let found = going(one.map(|one| one.state.as_deref()));
                        // Its job may have died; it can be asked for once more then.
                        let stands = |state: &str| {
                            let since = idle.get_or_init(Instant::now);
                            state == "Expunging" && since.elapsed() >= self.settings.settle.0
                        };
                        Ok(match found {
                            Found::Moving(state) if stands(&state) => Found::Todo,
                            found => found,
                        })
                    };
                    let call = |job| self.cloudstack.delete_vm_snapshot(&id, Some(job));
                    self.bring_about(context, saved, &what, look, call).await?;
                    saved.begun = None;
                }
            }
            Provider::None => return Ok(()),
        }
        record(context, provider, part).gone().await
    }
}

fn no_snapshot(part: &str) -> Failure {
    let message = format!("the snapshot of {part} that the journal tells of does not show");
    Failure::retryable("no_snapshot", message).not_applied()
}

/// Whether a snapshot in this state, if there is one, is on its way out.
fn going(there: Option<Option<&str>>) -> Found<()> {
    match there {
        None | Some(Some("Destroyed" | "Removed")) => Found::Done(()),
        Some(Some(
            state @ ("Destroying" | "Expunging" | "Reverting" | "Creating" | "CreatedOnPrimary" | "BackingUp"
            | "Copying"),
        )) => Found::Moving(state.to_owned()),
        Some(_) => Found::Todo,
    }
}

/// Only what was answered says something of a revert. It is tried again whatever the answer was: there is no other way.
fn ended<T>(part: &str, end: Result<T, Trouble>) -> Result<Back, Failure> {
    let trouble = match end {
        Ok(_) => return Ok(Back::Done),
        Err(trouble) => trouble,
    };
    match trouble.kind() {
        Kind::Look | Kind::Missing | Kind::Refused | Kind::Internal | Kind::Unknown => {
            Ok(Back::Failed(Failure::retryable("not_reverted", format!("putting {part} back: {trouble}"))))
        }
        Kind::Down | Kind::Unanswered | Kind::Busy | Kind::Operator | Kind::Late | Kind::Cancelled => {
            Err(trouble.into())
        }
    }
}

/// The snapshots that are of no use any more.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::site) struct Unneeded {
    taken: Taken,
}

#[async_trait]
impl Activity for DropSnapshots {
    const NAME: &'static str = "drop-snapshots";
    type Input = Unneeded;
    type Output = ();

    fn effect(&self) -> Effect {
        Effect { probed: false, ..self.0.effect() }
    }

    fn pool(&self) -> Option<String> {
        Some(CLOUDSTACK_POOL.into())
    }

    async fn run(&self, context: &Context, Unneeded { taken }: Unneeded) -> Result<(), Failure> {
        let mut saved: Saved = context.saved()?.unwrap_or_default();
        for (part, id) in &taken.snapshots {
            self.0.drop_snapshots(context, &mut saved, taken.provider, (part, Some(id))).await?;
        }
        Ok(())
    }
}
