//! Folders, waiting, looking at processes, and a child process that can be killed in our place.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use backstay_postgres::{Postgres, Settings, testing};
use rustix::process::{Pid, Signal};
use sqlx::{Connection, PgConnection};
use tokio::sync::OnceCell;

/// A folder that the server's account can enter, removed at the end.
pub struct Scratch(tempfile::TempDir);

impl Scratch {
    pub fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("backstay-it-").tempdir().unwrap();
        fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
        Self(folder)
    }

    /// With a cluster in `data()` that was created and shut down properly: a copy, which is cheaper than an initdb.
    pub async fn with_cluster() -> Self {
        static TEMPLATE: OnceCell<PathBuf> = OnceCell::const_new();
        let template = TEMPLATE.get_or_init(make_template).await;
        let scratch = Self::new();
        copy(template, &scratch.data());
        scratch
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    pub fn data(&self) -> PathBuf {
        self.0.path().join("pg")
    }
}

/// Kept in the target folder until the next run, since nothing of ours runs when a test process ends.
async fn make_template() -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    for old in fs::read_dir(folder).unwrap().flatten().map(|entry| entry.path()) {
        let name = old.file_name().unwrap().to_str().unwrap();
        if name.strip_prefix("template-").is_some_and(|pid| !is_running(pid.parse().unwrap())) {
            fs::remove_dir_all(old).unwrap();
        }
    }
    let scratch = Scratch::new();
    Postgres::start(Settings::new(scratch.data())).await.unwrap().stop().await.unwrap();
    let template = folder.join(format!("template-{}", std::process::id()));
    copy(&scratch.data(), &template);
    template
}

fn copy(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg("-a").args([from, to]).status().unwrap().success());
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

pub async fn connect(url: &str) -> PgConnection {
    PgConnection::connect(url).await.unwrap_or_else(|error| panic!("{url}: {error}"))
}

pub async fn ask(url: &str, question: &'static str) -> String {
    let mut connection = connect(url).await;
    let answer = sqlx::query_scalar(question).fetch_one(&mut connection).await.unwrap();
    connection.close().await.unwrap();
    answer
}

/// Commits one row that a later life is asked for.
pub async fn leave_a_mark(url: &str) {
    let mut connection = connect(url).await;
    sqlx::raw_sql("create table mark as select 'still here'::text as word")
        .execute(&mut connection)
        .await
        .unwrap();
    connection.close().await.unwrap();
}

pub const READ_THE_MARK: &str = "select word from mark";

/// Polls; a test that waits for something names it here.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < Duration::from_secs(30), "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

pub fn kill(pid: u32, signal: Signal) {
    rustix::process::kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), signal).unwrap();
}

pub fn is_running(pid: u32) -> bool {
    match fs::read_to_string(format!("/proc/{pid}/stat")) {
        // The state follows the name in parentheses; Z is a process that has ended and was not yet waited for.
        Ok(stat) => !stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('Z')),
        Err(_) if Path::new("/proc/self").exists() => false,
        Err(_) => rustix::process::test_kill_process(Pid::from_raw(pid.cast_signed()).unwrap()).is_ok(),
    }
}

/// Processes whose command line names this folder: the guard, its watcher, and the server.
pub fn processes_of(folder: &Path) -> Vec<u32> {
    let needle = folder.to_str().unwrap();
    processes("pid=,args=")
        .into_iter()
        .filter(|(_, arguments)| arguments.contains(needle))
        .map(|(pid, _)| pid)
        .collect()
}

pub fn children_of(pid: u32) -> Vec<u32> {
    let parent = pid.to_string();
    processes("pid=,ppid=")
        .into_iter()
        .filter(|(_, ppid)| ppid.trim() == parent)
        .map(|(child, _)| child)
        .collect()
}

/// Process ids, each with the rest of what `ps` says. The guard's script has several lines, hence the grouping.
fn processes(columns: &str) -> Vec<(u32, String)> {
    let output = Command::new("ps").args(["-axww", "-o", columns]).output().unwrap();
    let mut found: Vec<(u32, String)> = Vec::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let (first, rest) = line.trim_start().split_once(' ').unwrap_or_default();
        match (first.parse(), found.last_mut()) {
            (Ok(pid), _) => found.push((pid, rest.into())),
            (Err(_), Some((_, text))) => text.push_str(line),
            (Err(_), None) => {}
        }
    }
    found
}

/// Another process of ours that holds a server, to be killed in our place: this test binary, running [`holder`].
pub struct Holder {
    child: Child,
    pub report: Report,
}

#[derive(Default)]
pub struct Report {
    pub server: u32,
    pub url: String,
}

impl Holder {
    /// Returns when the holder's server is ready.
    pub async fn start(scratch: &Scratch, role: &str) -> Self {
        let mut holder = Self::spawn(scratch, role, &[]);
        holder.report = holder.read_report(scratch).await;
        holder
    }

    pub fn spawn(scratch: &Scratch, role: &str, environment: &[(&str, &str)]) -> Self {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "support::holder", "--ignored", "--nocapture"])
            .env("BACKSTAY_TEST_ROLE", role)
            .env("BACKSTAY_TEST_FOLDER", scratch.path())
            .envs(environment.iter().copied())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .unwrap();
        Self { child, report: Report::default() }
    }

    pub async fn read_report(&mut self, scratch: &Scratch) -> Report {
        let path = scratch.path().join("report");
        until("the holder reports", || {
            assert!(
                self.child.try_wait().unwrap().is_none() || path.exists(),
                "the holder ended before it reported"
            );
            path.exists()
        })
        .await;
        let text = fs::read_to_string(path).unwrap();
        let mut lines = text.lines();
        let mut next = || lines.next().unwrap().to_string();
        Report { server: next().parse().unwrap(), url: next() }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// What a terminal does on Ctrl-C: the signal goes to the whole process group.
    pub fn press_ctrl_c(&mut self) {
        rustix::process::kill_process_group(
            Pid::from_raw(self.child.id().cast_signed()).unwrap(),
            Signal::INT,
        )
        .unwrap();
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        while self.child.try_wait().unwrap().is_none() {
            assert!(std::time::Instant::now() < deadline, "Ctrl-C did not end the holder");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub fn wait(&mut self) {
        self.child.wait().unwrap();
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Not a test: what a [`Holder`] runs.
#[tokio::test]
#[ignore = "runs only as the child of other tests"]
async fn holder() {
    let Ok(role) = std::env::var("BACKSTAY_TEST_ROLE") else { return };
    let scratch = PathBuf::from(std::env::var_os("BACKSTAY_TEST_FOLDER").unwrap());
    let report = |server: u32, url: String| {
        let path = scratch.join("report.new");
        fs::write(&path, format!("{server}\n{url}\n")).unwrap();
        fs::rename(path, scratch.join("report")).unwrap();
    };
    let _kept = match role.as_str() {
        "cluster" => {
            let url = testing::cluster().await.url("postgres");
            report(0, url);
            None
        }
        "settings" => {
            let settings = Settings::new(&scratch);
            let named = settings.search.named_in_environment.unwrap();
            report(0, format!("{} {}", named.display(), settings.mirror.unwrap()));
            None
        }
        _ => {
            let postgres = Postgres::start(Settings::new(scratch.join("pg"))).await.unwrap();
            report(postgres.pid(), postgres.url("postgres"));
            assert!(role != "panics", "as ordered");
            Some(postgres)
        }
    };
    // Where the tests were started in the background SIGINT is ignored, and would be here as well.
    tokio::signal::ctrl_c().await.unwrap();
    std::process::exit(130);
}
