//! The blank disk that a machine is born with: thrown away, so that a replica can take its place.

use std::sync::Arc;

use async_trait::async_trait;
use backstay_engine::machine::plan::Effect;
use backstay_engine::{Activity, Context, Failure, Probe};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::Site;
use super::change::{Found, NotBegun, Saved};
use super::guard::{at_work, mark};
use super::machine::Gone;
use crate::cloudstack::Volume;

pub(super) struct DropBlankRoot(pub Arc<Site>);
pub(super) struct RemoveBlankDisk(pub Arc<Site>);

/// A machine and what it must not have.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Newborn {
    /// Its id.
    vm: String,
    /// The volumes that hold replicas.
    protected: Vec<String>,
}

/// What is left of a blank disk.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Leftover {
    /// The machine that it came with.
    vm: Option<String>,
    /// The volumes that hold replicas.
    protected: Vec<String>,
}

/// In the records of a run.
const BLANK_DISK: &str = "blank disk";

/// The disk that a machine is born with, before its first start: a row without storage.
pub(super) fn is_blank(volume: &Volume) -> bool {
    volume.is_root() && volume.is("Allocated")
}

fn is_going(volume: &Volume) -> bool {
    matches!(volume.state.as_deref(), Some("Destroy" | "Expunging" | "Expunged"))
}

impl Site {
    /// A disk that hangs nowhere and is nobody's. It is seen to be gone, whatever was answered.
    async fn delete_blank(&self, id: &str) -> Result<(), Failure> {
        let answered = self.cloudstack.delete_volume(id).await;
        if self.cloudstack.volume(id).await?.is_none_or(|volume| is_going(&volume)) {
            return Ok(());
        }
        Err(answered.err().map_or_else(
            || Failure::retryable("not_seen", format!("the volume {id} was deleted, and is there")),
            Failure::from,
        ))
    }
}

impl DropBlankRoot {
    /// A machine is made with one: that there is none is believed once it has not shown for a while.
    async fn blank_for_sure(&self, context: &Context, input: &Newborn) -> Result<Option<Volume>, Failure> {
        let end = Instant::now() + self.0.settings.settle.0 / 10;
        loop {
            let found = self.blank(input).await?;
            if found.is_some() || Instant::now() >= end {
                return Ok(found);
            }
            self.0.breathe(context, "looking for the blank disk").await?;
        }
    }

    async fn blank(&self, input: &Newborn) -> Result<Option<Volume>, Failure> {
        let volumes = self.0.cloudstack.volumes_of(&input.vm).await?;
        let Some(root) = volumes.into_iter().find(|volume| volume.is_root() || volume.deviceid == Some(0))
        else {
            return Ok(None);
        };
        if input.protected.contains(&root.id) {
            let message = format!(
                "the machine {} starts from the volume {}, which holds a replica: it is not removed",
                input.vm, root.id
            );
            return Err(Failure::permanent("root_is_protected", message).not_applied());
        }
        if !is_blank(&root) {
            let message = format!(
                "the disk {} that the machine {} starts from has been used ({}): it is not the blank one, and is not removed",
                root.id,
                input.vm,
                root.state.as_deref().unwrap_or("in no known state")
            );
            return Err(Failure::permanent("root_not_blank", message).not_applied());
        }
        Ok(Some(root))
    }
}

#[async_trait]
impl Activity for DropBlankRoot {
    const NAME: &'static str = "drop-blank-root";
    type Input = Newborn;
    type Output = Gone;

    fn effect(&self) -> Effect {
        self.0.effect()
    }

    fn pool(&self) -> Option<String> {
        Some(super::CLOUDSTACK_POOL.into())
    }

    /// Detached first: an attached volume cannot be deleted.
    async fn run(&self, context: &Context, input: Newborn) -> Result<Gone, Failure> {
        let site = &self.0;
        let mut saved: Saved<Option<String>> = context.saved()?.unwrap_or_default();
        site.only_ours(&site.machine(&input.vm).await?, &mark(context.run()))?;
        if saved.more.is_none() {
            let Some(root) = self.blank_for_sure(context, &input).await? else {
                return Ok(Gone { id: None });
            };
            context.resource(BLANK_DISK, &root.id).planned().await?;
            saved.more = Some(root.id);
            context.save(&saved).await?;
        }
        let Some(id) = saved.more.clone() else { return Ok(Gone { id: None }) };
        if input.protected.contains(&id) {
            return Err(Failure::permanent("root_is_protected", "this volume holds a replica").not_applied());
        }
        let look = || async {
            Ok(match site.cloudstack.volume(&id).await? {
                None => Found::Done(()),
                Some(volume) if is_going(&volume) => Found::Done(()),
                Some(volume) => {
                    match (at_work(volume.jobid.as_ref(), volume.jobstatus), &volume.virtualmachineid) {
                        (Some(job), _) => Found::AtWork(job),
                        (None, None) => Found::Done(()),
                        (None, Some(at)) if *at == input.vm => Found::Todo,
                        (None, Some(_)) => {
                            let message = format!("the blank disk {id} is attached to another machine");
                            return Err(Failure::permanent("volume_elsewhere", message));
                        }
                    }
                }
            })
        };
        let what = format!("detaching the blank disk of the machine {}", input.vm);
        let call = |job| {
            let (id, input) = (&id, &input);
            async move {
                if let Some(root) = self.blank(input).await?
                    && root.id != *id
                {
                    let message =
                        format!("the machine {} starts from {} now, and not from {id}", input.vm, root.id);
                    return Err(Failure::permanent("another_root", message).not_applied().into());
                }
                Ok::<_, NotBegun>(site.cloudstack.detach_volume(id, Some(job)).await?)
            }
        };
        site.bring_about(context, &mut saved, &what, look, call).await?;
        if let Some(volume) = site.cloudstack.volume(&id).await? {
            if volume.virtualmachineid.is_some() {
                let message = format!("the blank disk {id} was attached again");
                return Err(Failure::retryable("attached_again", message));
            }
            site.delete_blank(&id).await?;
        }
        context.resource(BLANK_DISK, &id).gone().await?;
        Ok(Gone { id: Some(id) })
    }

    async fn probe(&self, _: &Context, input: Newborn) -> Result<Probe<Gone>, Failure> {
        Ok(match self.blank(&input).await? {
            Some(_) => Probe::Absent,
            // Detached perhaps, and not deleted.
            None => Probe::Partial,
        })
    }
}

#[async_trait]
impl Activity for RemoveBlankDisk {
    const NAME: &'static str = "remove-blank-disk";
    type Input = Leftover;
    type Output = Gone;

    fn effect(&self) -> Effect {
        Effect { probed: false, ..self.0.effect() }
    }

    fn pool(&self) -> Option<String> {
        Some(super::CLOUDSTACK_POOL.into())
    }

    /// The undo of throwing it away: where that stopped half way, the disk is at no machine, and would be left.
    async fn run(&self, context: &Context, input: Leftover) -> Result<Gone, Failure> {
        let cloudstack = &self.0.cloudstack;
        // What is on record, however little of it was done: nothing was touched that is not.
        let recorded = context.undone().and_then(|undone| undone.resources.first());
        let Some(id) = recorded.map(|disk| disk.name.clone()) else { return Ok(Gone { id: None }) };
        let told = context.resource(BLANK_DISK, &id);
        let Some(volume) = cloudstack.volume(&id).await? else {
            told.gone().await?;
            return Ok(Gone { id: Some(id) });
        };
        if input.protected.contains(&id)
            || volume.virtualmachineid != input.vm && volume.virtualmachineid.is_some()
        {
            let message = format!("the volume {id} is not the blank disk that it was: it is not removed");
            return Err(Failure::permanent("not_blank", message).not_applied());
        }
        if volume.virtualmachineid.is_some() {
            told.kept("it goes with the machine that it is attached to").await?;
            return Ok(Gone { id: None });
        }
        self.0.delete_blank(&id).await?;
        told.gone().await?;
        Ok(Gone { id: Some(id) })
    }
}
