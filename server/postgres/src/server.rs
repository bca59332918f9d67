//! How the server is set up, and when it is ready.

use std::ffi::OsString;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::folder::Folder;
use crate::guard::{Guard, POLL};
use crate::leftovers::PidFile;
use crate::{Durability, Error, PORT, SUPERUSER, Settings};

/// Replaying the log after a crash can take minutes on a slow disk.
const READY_PATIENCE: Duration = Duration::from_mins(10);

/// On the command line, so that each setting is stated, wins over the configuration file, and follows a new release.
/// Sized for an appliance with two cores.
const SETTINGS: &[(&str, &str)] = &[
    ("cluster_name", "backstay"),
    // Nobody but the holder of the private socket folder can connect, hence there are no passwords.
    ("listen_addresses", ""),
    ("unix_socket_permissions", "0700"),
    ("shared_buffers", "256MB"),
    // A burst of runs may fill this much log before a checkpoint; in quiet times the disk is given back.
    ("max_wal_size", "4GB"),
    ("min_wal_size", "256MB"),
    ("wal_compression", "on"),
    ("checkpoint_timeout", "15min"),
    ("random_page_cost", "1.1"),
    // Our statements are short; compiling them costs more than it saves.
    ("jit", "off"),
    ("timezone", "UTC"),
    ("log_timezone", "UTC"),
    ("log_destination", "stderr"),
    ("logging_collector", "off"),
    ("log_line_prefix", "%m [%p] %d "),
    ("log_checkpoints", "off"),
];

/// Stated although they are Postgres's defaults: this is the promise that the journal stands on.
const DURABLE: &[(&str, &str)] = &[("fsync", "on"), ("synchronous_commit", "on"), ("full_page_writes", "on")];

/// Nothing is synced, so that commits cost nothing; they stay in order, and a client that looks finds no setting that
/// forgets what it acknowledged.
const THROWAWAY: &[(&str, &str)] = &[
    ("fsync", "off"),
    ("synchronous_commit", "on"),
    ("full_page_writes", "off"),
    ("wal_level", "minimal"),
    ("max_wal_senders", "0"),
    // A new database is not written to the log as well, and nothing in the log is packed.
    ("wal_skip_threshold", "0"),
    ("wal_compression", "off"),
];

pub(crate) fn arguments(folder: &Folder, socket_dir: &Path, settings: &Settings) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = vec!["-D".into(), folder.cluster().into()];
    let mut set = |name: &str, value: OsString| {
        let mut setting = OsString::from(format!("{name}="));
        setting.push(value);
        arguments.extend(["-c".into(), setting]);
    };
    let durability = match settings.durability {
        Durability::Durable => DURABLE,
        Durability::Throwaway => THROWAWAY,
    };
    for (name, value) in SETTINGS.iter().chain(durability) {
        set(name, value.into());
    }
    set("port", PORT.to_string().into());
    set("max_connections", settings.max_connections.to_string().into());
    set("unix_socket_directories", quoted(socket_dir));
    for (name, value) in &settings.server_settings {
        set(name, value.into());
    }
    arguments
}

/// The value is a list; quotes keep a comma or a blank in the path from being read as part of the list.
fn quoted(path: &Path) -> OsString {
    format!("\"{}\"", path.to_string_lossy().replace('"', "\"\"")).into()
}

/// `--no-locale` because no other locale exists everywhere under one name.
pub(crate) fn initdb_arguments(cluster: &Path, durability: Durability) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = vec!["-D".into(), cluster.into(), "-U".into(), SUPERUSER.into()];
    arguments.extend(
        ["-E", "UTF8", "--no-locale", "--auth-local=trust", "--auth-host=reject", "--no-instructions"]
            .map(Into::into),
    );
    arguments.push(match durability {
        Durability::Durable => "--data-checksums".into(),
        Durability::Throwaway => "--no-sync".into(),
    });
    arguments
}

/// Waits for the word `ready` that the server writes into its `postmaster.pid`; no earlier server's file is there any
/// more. Returns the server's process id.
pub(crate) async fn wait_until_ready(
    mut guard: Guard,
    folder: &Folder,
    log_start: u64,
) -> Result<(Guard, u32), Error> {
    let began = Instant::now();
    let mut next_word = Duration::from_secs(5);
    loop {
        if let Some(file) = PidFile::read(folder).filter(|file| file.is_ready) {
            return Ok((guard, file.pid));
        }
        if guard.has_ended() {
            return Err(Error::ServerEnded { log: folder.log(), tail: folder.log_tail(log_start) });
        }
        if began.elapsed() > READY_PATIENCE {
            guard.end(Duration::from_secs(10)).await;
            let tail = folder.log_tail(log_start);
            return Err(Error::ServerNotReady { seconds: READY_PATIENCE.as_secs(), log: folder.log(), tail });
        }
        if began.elapsed() > next_word {
            next_word += Duration::from_secs(5);
            let tail = folder.log_tail(log_start);
            let last = tail.lines().last().unwrap_or_default();
            tracing::info!(seconds = began.elapsed().as_secs(), last, "Postgres is still starting");
        }
        tokio::time::sleep(POLL).await;
    }
}
