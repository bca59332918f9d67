//! The last changes of a machine that is off, copied by the VMA.
//!
//! ```text
//!   the copy that an earlier attempt began ──> follow it ──> it ended well ──> the source is off still ──> done
//!                                                  │ it failed, nobody knows it, it does not move
//!                                                  v
//!            failed: the next attempt begins another one, so many in all
//!
//!   no copy ──> those of others end ──> guard ──> its id is saved, then the call ──> follow it
//! ```
//!
//! If it is undone, nothing is taken back: the replicas are newer now, and as good. But the VMA ends no copy because somebody
//! asks it to, and what comes after this undo is that the source goes on. So it waits for the end of what was begun.
//!
//! The VMA keeps what it knows of a copy in memory, so one that it does not know may be at any point, also at its end. Only
//! one that says that it ended well counts. Another one brings the same, as the source is off.

use std::sync::Arc;

use async_trait::async_trait;
use backstay_engine::machine::Applied;
use backstay_engine::machine::plan::Effect;
use backstay_engine::{Activity, Context, Failure, Span};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::change::left;
use super::copies::{Ended, Watches, ours};
use super::pairing::numbered_otherwise;
use super::{DIRTY_TAG, Site};
use crate::vma::{NbdTarget, Power, Replicate, VCenter};

pub(super) struct FinalSync(pub Arc<Site>);
pub(super) struct AwaitCopy(pub Arc<Site>);

/// The last changes of a machine.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Sync {
    /// The id of its instance.
    id: String,
    /// Its path in vCenter.
    path: String,
    vcenter: VCenter,
    /// All of its disks.
    disks: Vec<SyncDisk>,
    /// How long it may take.
    within: Span,
}

/// One of them.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct SyncDisk {
    /// Its key in VMware, from 2000.
    key: u32,
    /// The volume that it is copied to.
    volume: String,
}

/// They are copied.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(super) struct Synced {
    /// The job of the VMA.
    job: String,
    /// What it copied, as far as it says.
    bytes: Option<i64>,
}

/// How long a copy is waited for at a time.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Patience {
    within: Span,
}

/// No copy is at work any more.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(super) struct AtRest {
    /// The job of the VMA that was waited for.
    job: Option<String>,
}

/// What outlives an attempt.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Copy {
    /// The copy that goes on, as far as is known; empty: none does.
    job: String,
    /// So many were begun.
    tries: u32,
    /// Of so many disks.
    #[serde(default)]
    disks: usize,
}

#[async_trait]
impl Activity for FinalSync {
    const NAME: &'static str = "final-sync";
    type Input = Sync;
    type Output = Synced;

    fn effect(&self) -> Effect {
        Effect { probed: false, ..self.0.effect() }
    }

    fn pool(&self) -> Option<String> {
        Some(super::VMA_POOL.into())
    }

    async fn run(&self, context: &Context, input: Sync) -> Result<Synced, Failure> {
        let mut copy: Copy = context.saved()?.unwrap_or_default();
        let end = Instant::now() + input.within.0;
        if copy.job.is_empty() {
            self.begin(context, &input, &mut copy, end).await?;
        }
        match self.0.follow(context, &copy.job, copy.disks, end).await? {
            None => {
                let message = format!(
                    "the copy {} did not end in the time that it may take, and may still go on",
                    copy.job
                );
                Err(Failure::permanent("sync_late", message))
            }
            Some(Ended::Well(bytes, disks)) => {
                self.guard(&input).await?;
                let left_out = |disk: &&SyncDisk| !disks.iter().any(|id| is_disk(id, disk.key));
                if let Some(disk) = input.disks.iter().find(left_out).filter(|_| !disks.is_empty()) {
                    let message = format!("the copy {} says nothing of the disk {}", copy.job, disk.key);
                    return Err(Failure::permanent("disk_left_out", message));
                }
                Ok(Synced { job: copy.job, bytes })
            }
            Some(Ended::Badly(why)) => {
                copy.job.clear();
                context.save(&copy).await?;
                if copy.tries < self.0.settings.copies {
                    return Err(Failure::retryable("sync_failed", why));
                }
                let message =
                    format!("{} copies were begun, and none is known to have ended well: {why}", copy.tries);
                Err(Failure::permanent("sync_failed", message))
            }
        }
    }
}

#[async_trait]
impl Activity for AwaitCopy {
    const NAME: &'static str = "await-final-sync";
    type Input = Patience;
    type Output = AtRest;

    fn effect(&self) -> Effect {
        Effect { probed: false, ..self.0.effect() }
    }

    fn pool(&self) -> Option<String> {
        Some(super::VMA_POOL.into())
    }

    async fn run(&self, context: &Context, input: Patience) -> Result<AtRest, Failure> {
        // A step that came to its end has seen the end of its copy.
        let unended = context.undone().filter(|undone| undone.output.is_none());
        let saved = unended.and_then(|undone| undone.checkpoint.as_ref());
        let copy: Option<Copy> = left("which copy of the last changes was begun", saved)?;
        let Some(Copy { job, disks, .. }) = copy.filter(|copy| !copy.job.is_empty()) else {
            return Ok(AtRest { job: None });
        };
        match self.0.follow(context, &job, disks, Instant::now() + input.within.0).await? {
            Some(_) => Ok(AtRest { job: Some(job) }),
            None => {
                let message = format!(
                    "the copy {job} goes on, and the source is not switched on beside it. If it has to be on before the copy \
                     ends, skip this undo"
                );
                Err(Failure::retryable("copy_goes_on", message).not_applied())
            }
        }
    }
}

impl Site {
    /// Why these are not all disks of the source, if so: each by its key and its size, where that is known. A disk that a copy
    /// leaves out, or takes from elsewhere, fails nowhere.
    pub(super) async fn other_disks(
        &self,
        vcenter: &VCenter,
        path: &str,
        wanted: &[(u32, Option<u64>)],
    ) -> Result<Option<String>, Failure> {
        let name = path.rsplit('/').next().filter(|name| !name.is_empty());
        let found = self.vma.discover(vcenter, name).await?;
        let Some(source) = found.iter().find(|vm| vm.path == path) else {
            return Ok(Some(format!("vCenter has no machine at {path}")));
        };
        let mut wrong = Vec::new();
        for (key, size) in wanted {
            match source.disks.iter().find(|disk| is_disk(&disk.id, *key)) {
                None => wrong.push(format!("the source has no disk {key}")),
                Some(disk) => {
                    let has = disk
                        .capacity_bytes
                        .and_then(|bytes| u64::try_from(bytes).ok())
                        .filter(|bytes| *bytes > 0);
                    if let (Some(has), Some(size)) = (has, size)
                        && has != *size
                    {
                        wrong.push(format!("the source's disk {key} has {has} bytes, not {size}"));
                    }
                }
            }
        }
        let left_out =
            source.disks.iter().filter(|disk| !wanted.iter().any(|(key, _)| is_disk(&disk.id, *key)));
        wrong.extend(
            left_out.map(|disk| format!("the source's {} is not among those that are moved", disk.id)),
        );
        Ok((!wrong.is_empty()).then(|| wrong.join(", ")))
    }
}

impl FinalSync {
    async fn begin(
        &self,
        context: &Context,
        input: &Sync,
        copy: &mut Copy,
        end: Instant,
    ) -> Result<(), Failure> {
        let (vma, key) = (&self.0.vma, context.key().simple().to_string());
        let ours = ours(context);
        let targets = self.targets(input).await?;
        let exports: Vec<_> = targets
            .iter()
            .map(|target| target.device_path.rsplit('/').next().unwrap_or_default().to_owned())
            .collect();
        let mut watches = Watches::default();
        while let Some(other) = self.0.at_work(&exports, Some(&ours), &mut watches).await? {
            self.0.wait_for(context, &other, end).await?;
        }
        self.guard(input).await?;
        copy.tries += 1;
        copy.disks = input.disks.len();
        copy.job = format!("{ours}-{}-{}", key.get(..8).unwrap_or(&key), copy.tries);
        context.save(copy).await?;
        context.progress(1.0, "beginning the copy of the last changes");
        let order = Replicate {
            job: copy.job.clone(),
            vm_paths: vec![input.path.clone()],
            oma_url: self.0.settings.oma_url.clone(),
            targets,
        };
        let begun = match vma.final_sync(&copy.job, &input.id, &input.vcenter).await {
            Ok(None) => vma.replicate(&order, &input.vcenter).await.map(drop),
            begun => begun.map(drop),
        };
        match begun {
            Ok(()) => Ok(()),
            // Nothing came of it, and it does not count.
            Err(refused) if refused.applied() == Applied::No => {
                copy.tries -= 1;
                copy.job.clear();
                context.save(copy).await?;
                Err(refused.into())
            }
            // Its answer is lost. It goes on, if the VMA knows it; otherwise the next attempt looks for it.
            Err(lost) => match vma.progress(&copy.job).await? {
                Some(_) => Ok(()),
                None => Err(lost.into()),
            },
        }
    }

    async fn targets(&self, input: &Sync) -> Result<Vec<NbdTarget>, Failure> {
        let site = &self.0;
        let (mut targets, mut exports) = (Vec::new(), Vec::new());
        for disk in &input.disks {
            let export = site.daemon.export(&disk.volume).await?.ok_or_else(|| {
                let message =
                    format!("the volume {} has no export, so nothing can be copied to it", disk.volume);
                Failure::permanent("no_export", message).not_applied()
            })?;
            targets.push(NbdTarget {
                device_path: format!("nbd://{}/{}", site.settings.nbd_host, export.export_name),
                vm_disk_id: i64::from(disk.key),
                vmware_disk_key: disk.key.to_string(),
            });
            exports.push(export);
        }
        let disks: Vec<_> = input.disks.iter().map(|disk| (disk.key, disk.volume.as_str())).collect();
        if let Some(why) = numbered_otherwise(&disks, &exports) {
            return Err(Failure::permanent("other_disks", why).not_applied());
        }
        Ok(targets)
    }

    /// The source is off, and every volume is where replication may write to it and as it left it.
    async fn guard(&self, input: &Sync) -> Result<(), Failure> {
        let site = &self.0;
        let state = site.vma.power_state(&input.id, &input.vcenter).await?.power_state;
        if state != Power::Off {
            let message = format!("the source machine is {}; what it writes now would be lost", state.word());
            return Err(Failure::retryable("source_not_off", message).not_applied());
        }
        let wanted: Vec<_> = input.disks.iter().map(|disk| (disk.key, None)).collect();
        if let Some(why) = site.other_disks(&input.vcenter, &input.path, &wanted).await? {
            return Err(Failure::permanent("other_disks", why).not_applied());
        }
        for disk in &input.disks {
            let volume = site.volume(&disk.volume).await?;
            if volume.virtualmachineid.as_deref() != Some(site.settings.oma.as_str()) {
                let message = format!("the volume {} is not attached to the appliance", volume.id);
                return Err(Failure::permanent("not_home", message).not_applied());
            }
            if volume.tag(DIRTY_TAG).is_some() {
                let message = format!(
                    "the volume {} is no copy of its source any more: it needs a full copy first",
                    volume.id
                );
                return Err(Failure::permanent("dirty", message).not_applied());
            }
        }
        Ok(())
    }
}

/// Whether the VMA means the disk with this key in VMware: it says `disk-2000`, or the key alone.
fn is_disk(id: &str, key: u32) -> bool {
    id.strip_prefix("disk-").unwrap_or(id) == key.to_string()
}
