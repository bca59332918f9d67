//! The tiny shell between us and the server.
//!
//! The shell holds the read end of a pipe whose write end only we hold. When the pipe closes, because we want the
//! server to end or because we ended in whatever way, a watcher signals the server. That needs no code of ours to run
//! at the time, so it also works after `kill -9`.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use crate::Error;
use crate::account::Account;

/// Fixed text; everything variable comes as an argument, so nothing has to be quoted.
///
/// - The log is opened here, as the server's account: root must not follow a link that this account may have planted.
/// - A shell starts background commands with SIGINT ignored, and a server that has just been started has not yet
///   installed its handlers: so the signal is repeated until the server is gone, and becomes SIGKILL after 90 s.
/// - The shell itself survives the SIGTERM that a service manager sends to all at once; the pipe alone decides.
const SCRIPT: &str = r#"
signal=$1 log=$2 data=$3 sockets=$4; shift 4
exec >>"$log" 2>&1 3<&0 </dev/null || exit 1
trap : TERM INT HUP
"$@" 3<&- &
server=$!
(
  trap '' TERM INT HUP
  read -r _ <&3
  tries=0
  while kill -"$signal" "$server" 2>/dev/null; do
    sleep 1
    tries=$((tries + 1))
    [ "$tries" -lt 90 ] || signal=KILL
  done
) &
watcher=$!
exec 3<&-
while :; do
  wait "$server"
  status=$?
  kill -0 "$server" 2>/dev/null || break
done
kill -KILL "$watcher" 2>/dev/null
cd /
[ -z "$sockets" ] || rm -rf "$sockets"
[ -z "$data" ] || rm -rf "$data"
exit "$status"
"#;

/// How often a process that is waited for is looked at.
pub(crate) const POLL: Duration = Duration::from_millis(10);

/// How the guard ends its program.
pub(crate) enum Ending {
    /// SIGINT: Postgres's fast shutdown. Sessions are ended, a checkpoint is written.
    Fast,
    /// SIGQUIT: Postgres ends at once and would have to recover. For data that nobody wants.
    Immediate,
    /// SIGTERM: for initdb. (For a server it would mean: wait for the clients to leave.)
    Terminate,
}

/// What a guard runs.
pub(crate) struct Job<'a> {
    pub program: PathBuf,
    pub arguments: Vec<OsString>,
    pub account: Option<&'a Account>,
    pub working_dir: PathBuf,
    pub log: PathBuf,
    pub ending: Ending,
    /// Removed by the guard after the program ended.
    pub remove_data: Option<PathBuf>,
    pub remove_socket_dir: Option<PathBuf>,
}

/// A program under guard. Dropping it closes the pipe.
pub(crate) struct Guard {
    shell: Child,
    pipe: Option<ChildStdin>,
}

impl Guard {
    pub fn spawn(job: Job<'_>) -> Result<Self, Error> {
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", SCRIPT, "backstay-postgres"])
            .arg(match job.ending {
                Ending::Fast => "INT",
                Ending::Immediate => "QUIT",
                Ending::Terminate => "TERM",
            })
            .arg(&job.log)
            .arg(job.remove_data.unwrap_or_default())
            .arg(job.remove_socket_dir.unwrap_or_default())
            .arg(&job.program)
            .args(&job.arguments)
            .current_dir(&job.working_dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            // A terminal's Ctrl-C goes to the foreground process group. It shall reach us first, and only us.
            .process_group(0);
        keep_few_variables(&mut command);
        if let Some(account) = job.account {
            account.apply(&mut command);
        }
        let mut shell = command.spawn().map_err(Error::file("Starting", &job.program))?;
        let pipe = shell.stdin.take();
        Ok(Self { shell, pipe })
    }

    /// Whether the program (and its guard) has ended.
    pub fn has_ended(&mut self) -> bool {
        !matches!(self.shell.try_wait(), Ok(None))
    }

    /// Waits for the program to end by itself; says whether it succeeded. A caller that stops waiting ends it.
    pub async fn wait(mut self) -> Result<bool, Error> {
        loop {
            match self.shell.try_wait() {
                Ok(Some(status)) => return Ok(status.success()),
                Ok(None) => tokio::time::sleep(POLL).await,
                Err(source) => return Err(Error::file("Waiting for", "/bin/sh".as_ref())(source)),
            }
        }
    }

    /// Ends the program; says whether it ended within this time.
    pub async fn end(mut self, patience: Duration) -> bool {
        drop(self.pipe.take());
        let began = Instant::now();
        while !self.has_ended() {
            if began.elapsed() > patience {
                return false;
            }
            tokio::time::sleep(POLL).await;
        }
        true
    }
}

/// The server runs as another account, which can read its environment: our secrets have no business there. Neither have
/// PGDATA, PGPORT and the like. The locale is fixed so that messages and start-up are the same everywhere.
fn keep_few_variables(command: &mut Command) {
    command.env_clear().env("LC_ALL", "C");
    for name in ["PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "TZDIR", "NIX_LD", "NIX_LD_LIBRARY_PATH"] {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
}
