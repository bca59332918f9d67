//! One attempt of a step at a time on this machine. The lock is a file named after the idempotency key, and it is held by
//! the processes of the attempt themselves: they inherit it, so it frees itself when the last of them is gone, however
//! that came about, and whether or not the node that began them still is.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use backstay_engine::{Context, Failure};
use rustix::fs::{FlockOperation, flock};
use rustix::io::{FdFlags, fcntl_setfd};
use tokio::time::Instant;

use super::LOOK_AGAIN;

/// Held as long as this, or a process that has inherited it, is there.
pub(crate) struct Lock {
    file: File,
    path: PathBuf,
}

/// Why there is no lock.
pub(crate) enum NotTaken {
    /// The folder cannot be used.
    Broken(std::io::Error),
    /// Whoever waited was asked to stop.
    Stopped,
    /// Somebody has it.
    Held(PathBuf),
}

/// Waits for the lock of an attempt, until then.
pub(super) async fn take(folder: &Path, context: &Context, end: Instant) -> Result<Lock, Failure> {
    take_named(folder, &context.key().to_string(), end, context.cancelled()).await.map_err(|why| match why {
        NotTaken::Broken(error) => {
            let message = format!("the lock of the attempt in {}: {error}", folder.display());
            Failure::retryable("command_lock", message).not_applied()
        }
        NotTaken::Stopped => {
            let message = "an earlier attempt of this step still runs, and this one was asked to stop";
            Failure::retryable("cancelled", message)
        }
        NotTaken::Held(path) => {
            let message = format!(
                "an earlier attempt of this step still runs on this machine: its processes hold {}",
                path.display()
            );
            Failure::retryable("command_running", message)
        }
    })
}

/// Waits for a lock, until then.
pub(crate) async fn take_named(
    folder: &Path,
    name: &str,
    end: Instant,
    stop: impl Future<Output = ()>,
) -> Result<Lock, NotTaken> {
    let path = folder.join(name);
    std::fs::create_dir_all(folder).map_err(NotTaken::Broken)?;
    tokio::pin!(stop);
    loop {
        let file = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(NotTaken::Broken)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) if is_at(&file, &path) => return Ok(Lock { file, path }),
            // Whoever had it before has taken the file away.
            Ok(()) => continue,
            Err(rustix::io::Errno::WOULDBLOCK) => {}
            Err(error) => return Err(NotTaken::Broken(error.into())),
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK_AGAIN) => {}
            () = &mut stop => return Err(NotTaken::Stopped),
        }
        if Instant::now() >= end {
            return Err(NotTaken::Held(path));
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
    /// Starts a process that inherits the locks.
    pub(crate) fn hand_to<T>(
        locks: &[Self],
        start: impl FnOnce() -> std::io::Result<T>,
    ) -> std::io::Result<T> {
        // For this moment any process that is started inherits them. So of those that we start, also of those without a
        // lock, there is one at a time.
        static STARTING: Mutex<()> = Mutex::new(());
        let _one = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
        for lock in locks {
            fcntl_setfd(&lock.file, FdFlags::empty())?;
        }
        let started = start();
        for lock in locks {
            fcntl_setfd(&lock.file, FdFlags::CLOEXEC)?;
        }
        started
    }

    /// Leaves a note in the file, for whoever finds the lock held.
    pub(crate) fn note(&self, text: &str) -> std::io::Result<()> {
        self.file.set_len(0)?;
        self.file.write_all_at(text.as_bytes(), 0)
    }

    /// The attempt is over and all its processes are gone: the file is of no more use.
    pub(crate) fn free(self) {
        let _ = std::fs::remove_file(&self.path);
    }
}
