//! One attempt of a step at a time on this machine. The lock is a file named after the idempotency key, and it is held by
//! the processes of the attempt themselves: they inherit it, so it frees itself when the last of them is gone, however
//! that came about, and whether or not the node that began them still is.

use std::fs::File;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use backstay_engine::{Context, Failure};
use rustix::fs::{FlockOperation, flock};
use rustix::io::{FdFlags, fcntl_setfd};
use tokio::time::Instant;

use super::LOOK_AGAIN;

/// Held as long as this, or a process that has inherited it, is there.
pub(super) struct Lock {
    file: File,
    path: PathBuf,
}

/// Waits for the lock, until then.
pub(super) async fn take(folder: &Path, context: &Context, end: Instant) -> Result<Lock, Failure> {
    let path = folder.join(context.key().to_string());
    let broken = |error: std::io::Error| {
        let message = format!("the lock of the attempt in {}: {error}", folder.display());
        Failure::retryable("command_lock", message).not_applied()
    };
    std::fs::create_dir_all(folder).map_err(broken)?;
    loop {
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(broken)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) if is_at(&file, &path) => return Ok(Lock { file, path }),
            // Whoever had it before has taken the file away.
            Ok(()) => continue,
            Err(rustix::io::Errno::WOULDBLOCK) => {}
            Err(error) => return Err(broken(error.into())),
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK_AGAIN) => {}
            () = context.cancelled() => {
                let message = "an earlier attempt of this step still runs, and this one was asked to stop";
                return Err(Failure::retryable("cancelled", message));
            }
        }
        if Instant::now() >= end {
            let message = format!(
                "an earlier attempt of this step still runs on this machine: its processes hold {}",
                path.display()
            );
            return Err(Failure::retryable("command_running", message));
        }
    }
}

fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), std::fs::metadata(path)) {
        (Ok(held), Ok(there)) => (held.dev(), held.ino()) == (there.dev(), there.ino()),
        _ => false,
    }
}

impl Lock {
    /// Starts a process that inherits the lock.
    pub(super) fn hand_to<T>(&self, start: impl FnOnce() -> std::io::Result<T>) -> std::io::Result<T> {
        // For this moment any process that is started inherits it; of those that we start there is one at a time.
        static STARTING: Mutex<()> = Mutex::new(());
        let _one = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
        fcntl_setfd(&self.file, FdFlags::empty())?;
        let started = start();
        fcntl_setfd(&self.file, FdFlags::CLOEXEC)?;
        started
    }

    /// The attempt is over and all its processes are gone: the file is of no more use.
    pub(super) fn free(self) {
        let _ = std::fs::remove_file(&self.path);
    }
}
