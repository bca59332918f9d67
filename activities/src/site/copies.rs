//! What the VMA says of copies, and what of it can be believed.
//!
//! It has one row for each job, in its memory. The process that copies goes from disk to disk and may call the job completed
//! after each of them, as it knows of no other; so where not all disks are listed as done, that word counts once it has stood
//! for a while. A word that nobody knows is no end. And a copy that the VMA does not know any more may have ended anyhow.

use std::collections::{BTreeMap, BTreeSet};
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

/// A copy that is at work, as far as is known.
pub(super) struct AtWork {
    pub export: String,
    job: String,
    /// It is called completed, and has not been for long.
    pub completed: bool,
}

/// What was seen of copies, by their exports.
#[derive(Default)]
pub(super) struct Watches(BTreeMap<String, Watch>);

impl Site {
    /// A copy that is at work on one of these exports, which are those of one machine; `ours` are left out.
    pub(super) async fn at_work(
        &self,
        exports: &[String],
        ours: Option<&str>,
        watches: &mut Watches,
    ) -> Result<Option<AtWork>, Failure> {
        for export in exports {
            let Some(progress) = self.vma.progress(export).await? else { continue };
            let still = watches.0.entry(export.clone()).or_default().sees(&progress);
            let job = job_of(&progress, export);
            let over = ended(&progress, exports.len(), still, self.vma.settings()).is_some();
            if !over && !is_of(&job, ours) {
                let completed = progress.status == Copying::Succeeded;
                return Ok(Some(AtWork { export: export.clone(), job, completed }));
            }
        }
        Ok(None)
    }

    /// Waits a while for its end. One that began before the source was off brings what is older, and may bring it last.
    pub(super) async fn wait_for(
        &self,
        context: &Context,
        other: &AtWork,
        end: Instant,
    ) -> Result<(), Failure> {
        // What is called completed goes on soon, or is over.
        if Instant::now() >= end && !other.completed {
            let message = format!(
                "the copy {} is at work on the same volumes and does not end: end it at the VMA",
                other.job
            );
            return Err(Failure::permanent("another_copy", message).not_applied());
        }
        context.progress(0.0, format!("waiting for the end of the copy {}", other.job));
        self.breathe_for(context, "waiting for another copy", self.vma.settings().progress_poll.0).await
    }

    /// Why the volumes behind these exports, which are closed, are no whole copies, if so: the last copy into one of them did
    /// not come to a good end. Where one was seen at work, somebody has to know how it ended.
    ///
    /// Once `ours` have brought everything from a source that is off, those of others bring the same, however they end.
    pub(super) async fn no_whole_copy(
        &self,
        exports: &[String],
        others: &BTreeSet<String>,
        ours: Option<&str>,
    ) -> Result<Option<String>, Failure> {
        for export in exports {
            let Some(last) = self.vma.progress(export).await? else {
                if ours.is_none() && others.contains(export) {
                    return Ok(Some(format!("nobody knows how the copy to {export} ended that was at work")));
                }
                continue;
            };
            let job = job_of(&last, export);
            let listed_as_undone = !last.disk_progresses.iter().all(is_done);
            let why = match last.status {
                _ if is_of(&job, ours) => None,
                Copying::Running | Copying::Unknown(_) => Some(format!("the copy {job} was cut off")),
                Copying::Failed | Copying::Succeeded if ours.is_some() => None,
                Copying::Succeeded if listed_as_undone => Some(format!("the copy {job} was cut off")),
                Copying::Failed | Copying::Succeeded => {
                    match ended(&last, exports.len(), Duration::MAX, self.vma.settings()) {
                        Some(Ended::Badly(why)) => Some(format!("the last copy was {job}: {why}")),
                        Some(Ended::Well(..)) | None => None,
                    }
                }
            };
            if why.is_some() {
                return Ok(why);
            }
        }
        Ok(None)
    }

    /// Until a copy of so many disks ends. Nothing: it goes on when its time is over.
    pub(super) async fn follow(
        &self,
        context: &Context,
        job: &str,
        disks: usize,
        end: Instant,
    ) -> Result<Option<Ended>, Failure> {
        let vma = &self.vma;
        let (grace, stall) = (vma.settings().progress_grace, vma.settings().progress_stall);
        let (mut watch, mut unknown_since) = (Watch::default(), None);
        loop {
            let mut completed = false;
            match vma.progress(job).await {
                Ok(Some(progress)) => {
                    unknown_since = None;
                    let still = watch.sees(&progress);
                    if let Some(ended) = ended(&progress, disks, still, vma.settings()) {
                        return Ok(Some(ended));
                    }
                    if still >= stall.0 {
                        return Ok(Some(Ended::Badly(format!("the copy {job} has not moved for {stall}"))));
                    }
                    completed = progress.status == Copying::Succeeded;
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
            // What is called completed goes on soon, or is over.
            if Instant::now() >= end && !completed {
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

/// How far a copy is, in all and disk by disk. What is said for people, such as its speed, moves also while nothing does.
type Place = (Copying, f64, Option<i64>, Option<String>, Vec<DiskProgress>);

impl Watch {
    /// How long it has stood still.
    fn sees(&mut self, progress: &Progress) -> Duration {
        let Progress { status, percentage, bytes_transferred, phase, disk_progresses, .. } = progress.clone();
        let place = (status, percentage, bytes_transferred, phase, disk_progresses);
        match &self.seen {
            Some((last, since)) if *last == place => since.elapsed(),
            _ => {
                self.seen = Some((place, Instant::now()));
                Duration::ZERO
            }
        }
    }
}

fn is_of(job: &str, ours: Option<&str>) -> bool {
    ours.is_some_and(|ours| job.starts_with(ours))
}

fn job_of(progress: &Progress, export: &str) -> String {
    progress.job_id.clone().unwrap_or_else(|| export.to_owned())
}

fn says(disk: &DiskProgress, words: &[&str]) -> bool {
    disk.status.as_deref().is_some_and(|said| words.iter().any(|word| said.eq_ignore_ascii_case(word)))
}

fn is_done(disk: &DiskProgress) -> bool {
    disk.percent >= 100.0 || says(disk, &["completed", "succeeded"])
}

/// How a copy of so many disks ended that has stood still for so long, if it did. One disk that failed is a machine
/// that failed.
fn ended(progress: &Progress, disks: usize, still: Duration, settings: &VmaSettings) -> Option<Ended> {
    let listed = &progress.disk_progresses;
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
            if let Some(disk) = listed.iter().find(|disk| says(disk, &["failed"])) {
                return Some(Ended::Badly(format!("the copy of the disk {} failed", disk.disk_id)));
            }
            let all_done = match listed.is_empty() {
                true => disks <= 1,
                false => listed.len() >= disks && listed.iter().all(is_done),
            };
            (all_done || still >= settings.progress_grace.0).then(|| {
                let disks = listed.iter().map(|disk| disk.disk_id.clone()).collect();
                Ended::Well(progress.bytes_transferred, disks)
            })
        }
    }
}
