//! What an earlier life may have left in the data folder: a server that still runs, or is just ending; backends whose
//! server was killed; a `postmaster.pid` whose number belongs to an innocent process by now; a half-made cluster.
//!
//! A server that still runs is ended, not adopted. Its guard is ending it anyway as soon as our predecessor is gone,
//! and a server with a known guard is worth more than the second that a restart costs.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::folder::Folder;
use crate::guard::POLL;
use crate::{Error, PORT, Progress, Settings};

/// For a fast shutdown, which writes a checkpoint.
const SHUTDOWN_PATIENCE: Duration = Duration::from_mins(1);
const KILL_PATIENCE: Duration = Duration::from_secs(15);

/// Brings the folder to rest. Says whether the last life was cut off. The caller holds the lock, so that whatever still
/// runs in here belongs to nobody.
pub(crate) async fn clear(folder: &Folder, settings: &Settings) -> Result<bool, Error> {
    let pid_file = PidFile::read(folder);
    let mut running = processes_in(&folder.cluster());
    let interrupted = pid_file.is_some() || !running.is_empty();

    if !running.is_empty() {
        tracing::info!(?running, folder = %folder.path().display(), "ending the Postgres of an earlier start");
        settings.report(Progress::EndingLeftover { processes: running.len() });
        // Backends without their server have nothing to save, and cannot be asked.
        let server = pid_file.as_ref().map(|file| file.pid).filter(|pid| running.contains(pid));
        if let Some(server) = server {
            running = shut_down(folder, server).await;
        }
        if !running.is_empty() {
            kill_all(folder).await?;
        }
    }

    // Postgres refuses to start when the number in these files belongs to any living process of its account, and numbers
    // are reused, after a reboot or in a container very soon. We have just seen that no server runs here. Postgres checks
    // that by itself once more: it finds the shared memory of a live predecessor by the folder's inode.
    for path in [
        folder.cluster().join("postmaster.pid"),
        folder.path().join(format!(".s.PGSQL.{PORT}.lock")),
        folder.path().join(format!(".s.PGSQL.{PORT}")),
    ] {
        remove(&path, |path| fs::remove_file(path)).await?;
    }
    if let Some(socket_dir) =
        pid_file.map(|file| file.socket_dir).filter(|path| Folder::is_made_socket_dir(path))
    {
        remove(&socket_dir, |path| fs::remove_dir_all(path)).await?;
    }
    for unfinished in folder.unfinished_leftovers()? {
        remove(&unfinished, |path| fs::remove_dir_all(path)).await?;
    }
    Ok(interrupted)
}

/// Kills every Postgres process of this folder and waits until they are gone. What was committed is in the log on disk.
pub(crate) async fn kill_all(folder: &Folder) -> Result<(), Error> {
    let left = signal_until_gone(folder, KILL_PATIENCE, |pids| {
        for pid in pids {
            signal(*pid, Signal::KILL);
        }
    })
    .await;
    if left.is_empty() {
        Ok(())
    } else {
        Err(Error::StillRunning { folder: folder.path().to_path_buf(), pids: left })
    }
}

/// Asks the server to end; returns what still runs after the patience is over.
async fn shut_down(folder: &Folder, server: u32) -> Vec<u32> {
    signal_until_gone(folder, SHUTDOWN_PATIENCE, |pids| {
        if pids.contains(&server) {
            signal(server, Signal::INT);
        }
    })
    .await
}

/// Signals once a second (a process that has just started may not be listening yet) and looks in between.
async fn signal_until_gone(folder: &Folder, patience: Duration, send: impl Fn(&[u32])) -> Vec<u32> {
    let began = Instant::now();
    let mut next_signal = began;
    loop {
        let running = processes_in(&folder.cluster());
        if running.is_empty() || began.elapsed() > patience {
            return running;
        }
        if Instant::now() >= next_signal {
            send(&running);
            next_signal = Instant::now() + Duration::from_secs(1);
        }
        tokio::time::sleep(POLL).await;
    }
}

fn signal(pid: u32, signal: Signal) {
    // It may have ended in between, which is all that we want.
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, signal);
    }
}

/// The Postgres processes that work in this cluster. Each has the cluster as its working folder, which says more than a
/// process id on file.
#[cfg(target_os = "linux")]
pub(crate) fn processes_in(cluster: &Path) -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let works_here = |process: &Path| {
        fs::read_link(process.join("cwd")).is_ok_and(|cwd| cwd == cluster)
            && fs::read_to_string(process.join("comm")).is_ok_and(|name| name.trim_end() == "postgres")
    };
    entries
        .flatten()
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path())))
        .filter(|(_, process)| works_here(process))
        .map(|(pid, _)| pid)
        .collect()
}

/// Elsewhere by the command line of the server; backends without their server are left to Postgres's own check.
#[cfg(not(target_os = "linux"))]
pub(crate) fn processes_in(cluster: &Path) -> Vec<u32> {
    let Ok(output) = std::process::Command::new("ps").args(["-axo", "pid=,command="]).output() else {
        return Vec::new();
    };
    let started_here = format!("postgres -D {} ", cluster.display());
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter(|line| line.contains(&started_here) && !line.contains("backstay-postgres"))
        .filter_map(|line| line.split_whitespace().next()?.parse().ok())
        .collect()
}

/// Repeats for a while: a process that is being ended may still write there.
async fn remove(path: &Path, remove: impl Fn(&Path) -> io::Result<()>) -> Result<(), Error> {
    let began = Instant::now();
    loop {
        match remove(path) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if began.elapsed() > KILL_PATIENCE => {
                return Err(Error::file("Removing", path)(error));
            }
            Err(_) => tokio::time::sleep(POLL).await,
        }
    }
}

/// What a server says about itself in `postmaster.pid`.
pub(crate) struct PidFile {
    pub pid: u32,
    pub socket_dir: PathBuf,
    pub is_ready: bool,
}

impl PidFile {
    pub fn read(folder: &Folder) -> Option<Self> {
        let text = fs::read_to_string(folder.cluster().join("postmaster.pid")).ok()?;
        let lines: Vec<&str> = text.lines().collect();
        Some(Self {
            pid: lines.first()?.trim().parse().ok()?,
            socket_dir: lines.get(4).copied().unwrap_or_default().into(),
            is_ready: lines.get(7).is_some_and(|status| status.trim() == "ready"),
        })
    }
}
