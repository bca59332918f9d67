//! What the VMA says of copies, and what of it can be believed.
//!
//! It has one row for each job, in its memory. The process that copies goes from disk to disk and may call the job completed
//! after each of them, as it knows of no other; so where the disks are not listed, that word counts once it has stood for a
//! while. A word that nobody knows is no end. And one that nobody knows any more may have ended anyhow.

use std::collections::BTreeMap;
use std::time::Duration;

use backstay_engine::{Context, Failure};
use tokio::time::Instant;

use super::Site;
use crate::vma::{Copying, DiskProgress, Progress, VmaSettings};

/// How a copy ended.
pub(super) enum Ended {
    /// So many bytes, of these disks; none are named where the VMA does not list them.
    Well(Option<i64>, Vec<String>),
    Badly(String),
}

/// How the names of all copies of a run begin.
pub(super) fn ours(context: &Context) -> String {
    format!("backstay-final-{}", context.run())
}

impl Site {
    /// Waits for copies of others into the same volumes, by their exports. One that began before the source was off brings what
    /// is older, and may bring it last. Says whether there was one at work.
    pub(super) async fn others_end(
        &self,
        context: &Context,
        exports: &[String],
        end: Instant,
    ) -> Result<bool, Failure> {
        let ours = ours(context);
        let (mut watches, mut there) = (BTreeMap::<String, Watch>::new(), false);
        loop {
            let mut at_work = None;
            for export in exports {
                let Some(progress) = self.vma.progress(export).await? else { continue };
                let job = job_of(&progress, export);
                let still = watches.entry(job.clone()).or_default().sees(&progress);
                let over = ended(&progress, exports.len() > 1, still, self.vma.settings()).is_some();
                if !over && !job.starts_with(&ours) {
                    there |= progress.status != Copying::Succeeded;
                    at_work = Some(job);
                }
            }
            let Some(job) = at_work else { return Ok(there) };
            if Instant::now() >= end {
                let message = format!(
                    "the copy {job}, which is not of this run, is at work on the same volumes and does not end: end it at the VMA"
                );
                return Err(Failure::permanent("another_copy", message).not_applied());
            }
            context.progress(0.0, format!("waiting for the end of the copy {job}"));
            self.breathe_for(context, "waiting for another copy", self.vma.settings().progress_poll.0)
                .await?;
        }
    }

    /// Why the volumes behind these exports, which are closed, are no whole copies, if so: the last copy into one of them did
    /// not come to a good end. Where others were at work, somebody has to know how that ended.
    pub(super) async fn no_whole_copy(
        &self,
        exports: &[String],
        others: bool,
    ) -> Result<Option<String>, Failure> {
        for export in exports {
            let Some(progress) = self.vma.progress(export).await? else {
                if others {
                    return Ok(Some(format!(
                        "the VMA does not know (any more) how the copy to {export} ended that was at work"
                    )));
                }
                continue;
            };
            let job = job_of(&progress, export);
            match ended(&progress, false, Duration::MAX, self.vma.settings()) {
                Some(Ended::Well(..)) => {}
                Some(Ended::Badly(why)) => return Ok(Some(format!("the last one was {job}: {why}"))),
                None => return Ok(Some(format!("the copy {job} was cut off"))),
            }
        }
        Ok(None)
    }

    /// Until a copy, of several disks or of one, ends. Nothing: it goes on when its time is over.
    pub(super) async fn follow(
        &self,
        context: &Context,
        job: &str,
        several: bool,
        end: Instant,
    ) -> Result<Option<Ended>, Failure> {
        let vma = &self.vma;
        let (grace, stall) = (vma.settings().progress_grace, vma.settings().progress_stall);
        let (mut watch, mut unknown_since) = (Watch::default(), None);
        loop {
            match vma.progress(job).await {
                Ok(Some(progress)) => {
                    unknown_since = None;
                    let still = watch.sees(&progress);
                    if let Some(ended) = ended(&progress, several, still, vma.settings()) {
                        return Ok(Some(ended));
                    }
                    if still >= stall.0 {
                        return Ok(Some(Ended::Badly(format!("the copy {job} has not moved for {stall}"))));
                    }
                    let note = progress.current_operation.unwrap_or_else(|| "copying".into());
                    context.progress(progress.percentage, note);
                }
                // It has forgotten everything if it was restarted; a moment after the start it may not know it yet.
                Ok(None) => {
                    let since: Instant = *unknown_since.get_or_insert_with(Instant::now);
                    if since.elapsed() >= grace.0 {
                        return Ok(Some(Ended::Badly(format!(
                            "the VMA does not know the copy {job} (any more): it was started anew, perhaps"
                        ))));
                    }
                }
                // While it cannot be asked nothing is known, and nothing is concluded.
                Err(trouble) if trouble.kind().is_retryable() => {
                    watch = Watch::default();
                    tracing::debug!(%trouble, job, "the VMA does not tell how far the copy is");
                }
                Err(trouble) => return Err(trouble.into()),
            }
            if Instant::now() >= end {
                return Ok(None);
            }
            self.breathe_for(context, "copying the last changes", vma.settings().progress_poll.0).await?;
        }
    }
}

/// Where a copy was when it was looked at, and since when it is there.
#[derive(Default)]
struct Watch {
    seen: Option<(Place, Instant)>,
}

type Place = (Copying, f64, Option<i64>, Option<String>);

impl Watch {
    /// How long it has stood still.
    fn sees(&mut self, progress: &Progress) -> Duration {
        let place: Place = (
            progress.status.clone(),
            progress.percentage,
            progress.bytes_transferred,
            progress.phase.clone(),
        );
        match &self.seen {
            Some((last, since)) if *last == place => since.elapsed(),
            _ => {
                self.seen = Some((place, Instant::now()));
                Duration::ZERO
            }
        }
    }
}

fn job_of(progress: &Progress, export: &str) -> String {
    progress.job_id.clone().unwrap_or_else(|| export.to_owned())
}

/// How a copy ended that has stood still for so long, if it did. One disk that failed is a machine that failed.
fn ended(progress: &Progress, several: bool, still: Duration, settings: &VmaSettings) -> Option<Ended> {
    let says = |disk: &Option<String>, words: &[&str]| {
        disk.as_deref().is_some_and(|said| words.iter().any(|word| said.eq_ignore_ascii_case(word)))
    };
    let disks = &progress.disk_progresses;
    match &progress.status {
        Copying::Running => None,
        Copying::Unknown(word) if still >= settings.progress_stall.0 => {
            Some(Ended::Badly(format!("it has been said to be {word} for {}", settings.progress_stall)))
        }
        Copying::Unknown(_) => None,
        Copying::Failed => {
            let why = progress.last_error.as_deref().unwrap_or("the VMA does not say why");
            Some(Ended::Badly(format!("the copy failed: {why}")))
        }
        Copying::Succeeded => {
            if let Some(disk) = disks.iter().find(|disk| says(&disk.status, &["failed"])) {
                return Some(Ended::Badly(format!("the copy of the disk {} failed", disk.disk_id)));
            }
            let done = |disk: &DiskProgress| {
                disk.percent >= 100.0 || says(&disk.status, &["completed", "succeeded"])
            };
            let all_done = if disks.is_empty() { !several } else { disks.iter().all(done) };
            (all_done || still >= settings.progress_grace.0).then(|| {
                let disks = disks.iter().map(|disk| disk.disk_id.clone()).collect();
                Ended::Well(progress.bytes_transferred, disks)
            })
        }
    }
}
