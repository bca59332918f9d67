//! The private Postgres that the program brings up when it is given no database URL. Tests and benchmarks use it too.
//!
//! This crate handles processes and files only. It speaks no SQL.
//!
//! ```text
//!   this process ──pipe──▶ guard (/bin/sh) ──▶ postmaster ──▶ backends
//!        │                    └── watcher: interrupts the server when the pipe closes
//!        └── flock on <data_dir>/backstay.lock
//!
//!   <data_dir>/               0700, owned by the account that the server runs as
//!     backstay.lock           who holds the folder; its presence says that the folder is ours
//!     data/                   the cluster
//!     data.new-*/             a cluster that is being created; renamed to data/ when complete
//!     .s.PGSQL.5432           the socket, when the path is short enough for one
//!     postgres.log            what initdb and the server said
//! ```
//!
//! A start, in order: take the lock, find (or fetch) server binaries, end whatever an earlier life left running,
//! create the cluster if there is none, start the server under its guard, wait until it says that it is ready.
//! The server does not outlive us: however we end, the kernel closes the pipe and the guard interrupts the server.

mod account;
mod binaries;
mod error;
mod folder;
mod guard;
pub mod install;
mod leftovers;
mod server;
pub mod testing;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

pub use binaries::{Binaries, Missing, Search};
pub use error::{Error, FetchError};
pub use install::Archive;

use account::Account;
use folder::Folder;
use guard::{Ending, Guard, Job};

/// A running server. Dropping it shuts the server down in the background; [`Postgres::stop`] also waits for the end.
pub struct Postgres {
    folder: Folder,
    guard: Guard,
    socket_dir: PathBuf,
    pid: u32,
    how: Started,
}

impl Postgres {
    /// Returns when the server accepts connections.
    pub async fn start(settings: Settings) -> Result<Self, Error> {
        let account = Account::for_folder(&settings.data_dir)?;
        let folder = Folder::take(&settings.data_dir, account)?;
        let path = folder.path().to_path_buf();
        let started = Self::start_in(folder, &settings).await;
        if started.is_err() && settings.remove_when_stopped {
            // Where the guard got as far as running, it removes the folder as well, and one of us finds nothing.
            let _ = std::fs::remove_dir_all(path);
        }
        started
    }

    async fn start_in(folder: Folder, settings: &Settings) -> Result<Self, Error> {
        let binaries = binaries::choose(settings, folder.major()?).await?;
        if let Some(account) = folder.account() {
            account.check_reach(folder.path())?;
            account.check_reach(&binaries.folder)?;
        }

        let interrupted = leftovers::clear(&folder, settings).await?;
        let created = folder.major()?.is_none();
        if created {
            create_cluster(&folder, &binaries, settings).await?;
        }

        settings.report(Progress::Starting);
        let socket_dir = folder.make_socket_dir()?;
        let log_start = folder.log_length();
        let guard = Guard::spawn(Job {
            program: binaries.postgres(),
            arguments: server::arguments(&folder, &socket_dir, settings),
            account: folder.account(),
            working_dir: folder.cluster(),
            log: folder.log(),
            ending: match settings.durability {
                Durability::Durable => Ending::Fast,
                Durability::Throwaway => Ending::Immediate,
            },
            remove_data: settings.remove_when_stopped.then(|| folder.path().to_path_buf()),
            remove_socket_dir: (socket_dir != folder.path()).then(|| socket_dir.clone()),
        })?;
        let (guard, pid) = server::wait_until_ready(guard, &folder, log_start).await?;

        let how = match (created, interrupted) {
            (true, _) => Started::Created,
            (false, true) => Started::Recovered,
            (false, false) => Started::Restarted,
        };
        tracing::info!(pid, ?how, folder = %folder.path().display(), "private Postgres is ready");
        Ok(Self { folder, guard, socket_dir, pid, how })
    }

    /// The URL of one database, in the form that libpq and sqlx both understand. The port is stated so that a PGPORT
    /// in the environment of whoever connects cannot lead to another server.
    pub fn url(&self, database: &str) -> String {
        let encode = |text: &str| {
            percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
        };
        format!(
            "postgres://{SUPERUSER}@localhost:{PORT}/{}?host={}&sslmode=disable",
            encode(database),
            encode(&self.socket_dir.to_string_lossy()),
        )
    }

    /// Shuts the server down (open sessions are ended, committed work is kept) and returns when it is gone.
    pub async fn stop(self) -> Result<(), Error> {
        let Self { mut folder, guard, .. } = self;
        let ended = guard.end(STOP_PATIENCE).await;
        if !ended {
            leftovers::kill_all(&folder).await?;
        }
        folder.release();
        Ok(())
    }

    /// The postmaster's process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// What the start found.
    pub fn how(&self) -> Started {
        self.how
    }

    /// The folder that holds the server's socket, for `psql --host`.
    pub fn socket_dir(&self) -> &Path {
        &self.socket_dir
    }

    /// Where the server writes its log.
    pub fn log(&self) -> PathBuf {
        self.folder.log()
    }
}

/// What a start found in the data folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Started {
    /// Nothing: a new cluster was created.
    Created,
    /// A cluster that had been shut down properly.
    Restarted,
    /// A cluster whose last life was cut off, or was still ending. Postgres replayed its log where that was needed.
    Recovered,
}

/// The server binaries that a start with these settings would use; fetched, if this machine has none. No server is started
/// and no folder is taken, so that it can be done while one runs.
pub async fn binaries(settings: &Settings) -> Result<Binaries, Error> {
    binaries::choose(settings, folder::major_in(&settings.data_dir)?).await
}

/// Whether committed work has to survive the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// A commit that was acknowledged survives `kill -9` and a power cut.
    Durable,
    /// For tests and benchmarks: fast, and good for nothing after a crash.
    Throwaway,
}

/// What to start, and how. Make one with [`Settings::new`] and change the fields that should differ.
#[derive(Clone)]
pub struct Settings {
    /// An empty folder, or one that an earlier start made. It is created when it does not exist.
    pub data_dir: PathBuf,
    /// What a commit is worth.
    pub durability: Durability,
    /// Remove `data_dir` after the server has ended, also when this process is killed.
    pub remove_when_stopped: bool,
    /// How many sessions there may be at once.
    pub max_connections: u16,
    /// Further server settings; they win over the ones that this crate chooses.
    pub server_settings: Vec<(String, String)>,
    /// Where server binaries are looked for.
    pub search: Search,
    /// Where fetched server binaries are kept.
    pub cache_dir: PathBuf,
    /// What to fetch where the machine has no server binaries; `None` to fetch nothing.
    pub archive: Option<Archive>,
    /// The base URL to fetch from instead of [`install::DEFAULT_SOURCE`], with the same paths below it.
    pub mirror: Option<String>,
    /// Told about everything that can take longer than a second.
    pub on_progress: Option<Arc<dyn Fn(Progress) + Send + Sync>>,
}

impl Settings {
    /// A durable server in this folder. The search path and `BACKSTAY_POSTGRES_BIN`, `BACKSTAY_POSTGRES_MIRROR` are
    /// read from the environment here, and nowhere later.
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self {
            data_dir: data_dir.into(),
            durability: Durability::Durable,
            remove_when_stopped: false,
            max_connections: 200,
            server_settings: Vec::new(),
            search: Search::from_environment(),
            cache_dir: folder::default_cache_dir(),
            archive: Archive::for_this_machine(),
            mirror: std::env::var("BACKSTAY_POSTGRES_MIRROR").ok().filter(|mirror| !mirror.is_empty()),
            on_progress: None,
        }
    }

    /// A server without durability in a new folder of the system's temporary folder, removed after the server ended.
    pub fn throwaway() -> Result<Self, Error> {
        let mut settings = Self::new(folder::make_throwaway()?);
        settings.durability = Durability::Throwaway;
        settings.remove_when_stopped = true;
        Ok(settings)
    }

    /// `/var/lib/backstay/postgres` for root (whose home the server's account may not enter), else the user's data folder.
    pub fn default_data_dir() -> PathBuf {
        folder::default_data_dir()
    }

    fn report(&self, progress: Progress) {
        if let Some(on_progress) = &self.on_progress {
            on_progress(progress);
        }
    }
}

/// What a start is busy with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// Server binaries are coming from `url`; `total` is unknown when the server does not say.
    Fetching {
        /// What is being fetched.
        url: String,
        /// Bytes so far.
        received: u64,
        /// Bytes in all.
        total: Option<u64>,
    },
    /// The fetched archive is complete and genuine.
    Unpacking,
    /// A server of an earlier life is still running; it is being ended.
    EndingLeftover {
        /// How many processes it has.
        processes: usize,
    },
    /// initdb is running.
    CreatingCluster,
    /// The server was started and is not ready yet; after a crash it replays its log now.
    Starting,
}

const SUPERUSER: &str = "postgres";
/// Names the socket file; nothing listens on a TCP port.
const PORT: u16 = 5432;
/// A fast shutdown writes a checkpoint, which takes as long as the disk takes.
const STOP_PATIENCE: Duration = Duration::from_mins(1);

/// Creates the cluster beside its final place and renames it, so that a killed initdb leaves nothing half made.
async fn create_cluster(folder: &Folder, binaries: &Binaries, settings: &Settings) -> Result<(), Error> {
    settings.report(Progress::CreatingCluster);
    tracing::info!(folder = %folder.path().display(), major = binaries.major, "creating a Postgres cluster");
    let unfinished = folder.unfinished_cluster();
    let log_start = folder.log_length();
    let guard = Guard::spawn(Job {
        program: binaries.initdb(),
        arguments: server::initdb_arguments(&unfinished, settings.durability),
        account: folder.account(),
        working_dir: folder.path().to_path_buf(),
        log: folder.log(),
        ending: Ending::Terminate,
        remove_data: None,
        remove_socket_dir: None,
    })?;
    if guard.wait().await? {
        folder.adopt_cluster(&unfinished)
    } else {
        Err(Error::ClusterNotCreated { log: folder.log(), tail: folder.log_tail(log_start) })
    }
}
