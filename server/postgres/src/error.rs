//! Everything that can go wrong, each with what happened, what it means and what to do.

#![allow(missing_docs, reason = "each variant's message is its documentation")]

use std::io;
use std::path::{Path, PathBuf};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "{} is in use by {}. Only one server can use it at a time: stop that one, or choose another data folder.",
        .folder.display(), holder(*.pid)
    )]
    InUse { folder: PathBuf, pid: Option<u32> },

    #[error(
        "{} holds files that Backstay did not put there (for one: {found}), so it was left untouched. \
         Choose an empty folder for the database, or set DATABASE_URL to use a Postgres that you run yourself.",
        .folder.display()
    )]
    NotOurs { folder: PathBuf, found: String },

    #[error(
        "The database in {} was created by Postgres {data_major}, but the server binaries in {} are of Postgres \
         {binaries_major}, which cannot read it. It was left untouched. Install Postgres {data_major} again (or name its \
         bin folder in BACKSTAY_POSTGRES_BIN) and start. To move to Postgres {binaries_major}: while the old version \
         runs, save everything with pg_dumpall --host={} --username=postgres > backstay.sql; stop it; move the folder \
         away; start with Postgres {binaries_major}, which creates a new one; load it with \
         psql --host={} --username=postgres --file=backstay.sql postgres.",
        .folder.display(), .binaries.display(), .folder.display(), .folder.display()
    )]
    WrongVersion { folder: PathBuf, data_major: u32, binaries: PathBuf, binaries_major: u32 },

    #[error(
        "The Postgres server binaries named by {named_by}, in {}, cannot be used: {reason}. \
         Name the bin folder of a Postgres 15 or later, one that holds both postgres and initdb.",
        .folder.display()
    )]
    UnusableBinaries { named_by: &'static str, folder: PathBuf, reason: String },

    #[error("{}", no_server(.tried, .fetch))]
    NoServer { tried: Vec<String>, fetch: Box<FetchError> },

    #[error(
        "Postgres refuses to run as root, so it runs as {account} here, but {account} may not enter {}, which lies on \
         the way to {}. Allow it with chmod o+x {}, or choose a folder elsewhere, for example /var/lib/backstay.",
        .blocked.display(), .wanted.display(), .blocked.display()
    )]
    NotReachable { account: String, blocked: PathBuf, wanted: PathBuf },

    #[error(
        "Postgres refuses to run as root, and this machine has none of the accounts that it could run as ({tried}). \
         Create one, for example with: useradd --system backstay."
    )]
    NoAccount { tried: String },

    #[error(
        "No path for the database's socket is short enough: a socket path may have {limit} bytes, and neither {} \
         nor the temporary folder leaves room. Choose a data folder with a shorter path.", .folder.display()
    )]
    SocketPathTooLong { folder: PathBuf, limit: usize },

    #[error("The Postgres cluster could not be created. initdb said, at the end of {}:\n{tail}", .log.display())]
    ClusterNotCreated { log: PathBuf, tail: String },

    #[error("The Postgres server ended before it was ready. It said, at the end of {}:\n{tail}", .log.display())]
    ServerEnded { log: PathBuf, tail: String },

    #[error(
        "The Postgres server was still not ready after {seconds} s and was stopped. A long recovery after a crash on a \
         slow disk can take that long: starting again continues it. At the end of {}:\n{tail}", .log.display()
    )]
    ServerNotReady { seconds: u64, log: PathBuf, tail: String },

    #[error(
        "A Postgres server of an earlier start still runs in {} (processes {pids:?}) and does not end, even after it was \
         killed. A disk that does not answer can cause this. Look at those processes, then start again.", .folder.display()
    )]
    StillRunning { folder: PathBuf, pids: Vec<u32> },

    #[error("{attempt} {} failed: {source}", .path.display())]
    File { attempt: &'static str, path: PathBuf, source: io::Error },
}

/// Why server binaries could not be fetched. Nothing of a failed fetch is left behind.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    #[error("nothing was fetched, because fetching is off, or there is no archive for this kind of machine")]
    NotOffered,
    #[error(
        "nothing was fetched, because the database was created by Postgres {wanted} and what can be fetched is \
         Postgres {offered}"
    )]
    OtherVersion { offered: u32, wanted: u32 },
    #[error("fetching {url} failed: {reason}")]
    Transfer { url: String, reason: String },
    #[error(
        "what {url} delivered is not the archive that this release was built for, so it was deleted: its SHA-256 is \
         {found}, and {expected} was expected"
    )]
    WrongHash { url: String, expected: String, found: String },
    #[error("the archive from {url} could not be unpacked: {reason}")]
    Unpack { url: String, reason: String },
    #[error("the binaries from {url} do not run on this machine: {reason}")]
    DoNotRun { url: String, reason: String },
    #[error("{attempt} {} failed: {source}", .path.display())]
    File { attempt: &'static str, path: PathBuf, source: io::Error },
}

impl Error {
    /// For `map_err`: what was attempted, on which path.
    pub(crate) fn file(attempt: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::File { attempt, path, source }
    }
}

impl FetchError {
    pub(crate) fn file(attempt: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::File { attempt, path, source }
    }
}

fn holder(pid: Option<u32>) -> String {
    match pid {
        Some(pid) => format!("process {pid}"),
        None => "another process".into(),
    }
}

fn no_server(tried: &[String], fetch: &FetchError) -> String {
    format!(
        "No Postgres 15 or later was found on this machine, and {fetch}.\n\
         \n\
         Do one of these, then start again:\n\
         \x20 Debian, Ubuntu   apt-get install postgresql\n\
         \x20 Fedora, RHEL     dnf install postgresql-server\n\
         \x20 macOS            brew install postgresql@17\n\
         \x20 your own server  set DATABASE_URL=postgres://user:password@host/database\n\
         \x20 no internet      set BACKSTAY_POSTGRES_MIRROR to a web server that has the archive\n\
         \n\
         Looked in:\n  {}",
        tried.join("\n  ")
    )
}
