//! What a predecessor has left running: a node that dies at once ends nobody, and its program goes on with the disk. Its
//! processes hold the lock of the disk, and its number stands in the lock's file.

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, Signal, kill_process_group, test_kill_process_group};
use tokio::time::{Instant, sleep};

use super::SYSTEM;
use crate::remote::{Kind, Trouble};

/// Between looks whether they are gone.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// How long the system may take to remove what was killed.
const BURIAL: Duration = Duration::from_secs(5);

/// Ends those who hold this lock. Gives whether there was anybody.
pub(super) async fn end(lock: &Path, grace: Duration) -> Result<bool, Trouble> {
    let held = |text: String| Trouble::new(SYSTEM, Kind::Busy, text).because("running").not_applied();
    let Ok(file) = File::open(lock) else { return Ok(false) };
    if flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
        return Ok(false);
    }
    let note = std::fs::read_to_string(lock).unwrap_or_default();
    let number = note.trim().parse().ok().and_then(Pid::from_raw);
    let Some(group) = number.filter(|group| group.as_raw_nonzero().get() > 1) else {
        return Err(held(format!("somebody holds {}, and it does not say who", lock.display())));
    };
    if is_ours(group) {
        return Err(held(format!("this process itself runs it, and holds {}", lock.display())));
    }
    // Numbers are given again: only a group that holds the lock is the one that was meant.
    if !holds(group, lock) {
        let text = format!(
            "somebody holds {}, and it is not the group {group:?} that the file names",
            lock.display()
        );
        return Err(held(text));
    }
    tracing::warn!(?group, lock = %lock.display(), "ending what a predecessor has left running");
    for (signal, patience) in [(Signal::TERM, grace), (Signal::KILL, BURIAL)] {
        let _ = kill_process_group(group, signal);
        let end = Instant::now() + patience;
        while Instant::now() < end {
            let free = flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok();
            if free || test_kill_process_group(group).is_err() {
                return Ok(true);
            }
            sleep(LOOK_AGAIN).await;
        }
    }
    Err(held(format!("the group {group:?} does not end, though it was killed")))
}

/// Whether its leader is a child of this process: a run under way, and no leftover.
fn is_ours(group: Pid) -> bool {
    let me = i32::try_from(std::process::id()).unwrap_or(0);
    stat(group.as_raw_nonzero().get()).is_some_and(|(parent, _)| parent == me)
}

/// Whether a process of the group has the file open.
fn holds(group: Pid, lock: &Path) -> bool {
    let Ok(lock) = std::fs::canonicalize(lock) else { return false };
    let Ok(processes) = std::fs::read_dir("/proc") else { return false };
    processes.flatten().any(|process| {
        let number: Option<i32> = process.file_name().to_str().and_then(|name| name.parse().ok());
        let of_group = number.and_then(stat).is_some_and(|(_, of)| of == group.as_raw_nonzero().get());
        of_group
            && std::fs::read_dir(process.path().join("fd")).is_ok_and(|files| {
                files.flatten().any(|file| std::fs::read_link(file.path()).is_ok_and(|at| at == lock))
            })
    })
}

/// The parent and the group of a process.
fn stat(process: i32) -> Option<(i32, i32)> {
    let text = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // Its name stands between brackets, and can have any characters.
    let (_, rest) = text.rsplit_once(')')?;
    let mut words = rest.split_whitespace().skip(1);
    Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?))
}
