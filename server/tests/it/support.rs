//! A place of its own for each test, and the program in it.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader, Lines};
use tokio::process::{Child, Command};

/// A data folder, and perhaps a database on the server that the tests share.
pub struct Place {
    dir: tempfile::TempDir,
    url: Option<String>,
}

/// Of the roles that tests make. A server that trusts whoever comes does not ask for it.
pub const ROLE_PASSWORD: &str = "of-a-test";

/// What a process did.
#[derive(Clone, Debug)]
pub struct Ran {
    pub code: Option<i32>,
    pub signal: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Ran {
    #[track_caller]
    pub fn exits(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{self:#?}");
        self
    }

    #[track_caller]
    pub fn says(self, text: &str) -> Self {
        assert!(self.out.contains(text), "\"{text}\" is missing in {self:#?}");
        self
    }

    #[track_caller]
    pub fn complains(self, text: &str) -> Self {
        assert!(self.err.contains(text), "\"{text}\" is missing in {self:#?}");
        self
    }

    #[track_caller]
    pub fn was_killed(self) -> Self {
        assert_eq!(self.signal, Some(9), "{self:#?}");
        self
    }
}

impl Place {
    /// With the embedded database.
    pub fn embedded() -> Self {
        let dir = tempfile::Builder::new().prefix("backstay-it-").tempdir().unwrap();
        // As root the server runs under another account, which has to get through to its folder.
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
        std::fs::write(dir.path().join("empty.toml"), "").unwrap();
        Self { dir, url: None }
    }

    /// With a database of its own on a server that is there.
    pub async fn with_url() -> Self {
        let cluster = backstay_postgres::testing::cluster().await;
        let name = format!("it_{}", uuid::Uuid::new_v4().simple());
        let mut admin = PgConnection::connect(&cluster.url("postgres")).await.unwrap();
        sqlx::raw_sql(AssertSqlSafe(format!("create database {name}"))).execute(&mut admin).await.unwrap();
        Self { url: Some(cluster.url(&name)), ..Self::embedded() }
    }

    /// With the database there.
    pub fn at(url: String) -> Self {
        Self { url: Some(url), ..Self::embedded() }
    }

    /// Another data folder on the same database.
    pub fn another(&self) -> Self {
        Self { url: self.url.clone(), ..Self::embedded() }
    }

    /// Another data folder on the same database, as this role.
    pub fn as_role(&self, role: &str) -> Self {
        let mut url = url::Url::parse(self.url.as_deref().unwrap()).unwrap();
        url.set_username(role).unwrap();
        url.set_password(Some(ROLE_PASSWORD)).unwrap();
        Self { url: Some(url.into()), ..Self::embedded() }
    }

    /// Another data folder, and another database of the same server.
    pub fn on_database(&self, name: &str) -> Self {
        let mut url = url::Url::parse(self.url()).unwrap();
        url.set_path(name);
        Self { url: Some(url.into()), ..Self::embedded() }
    }

    /// A copy of its database as it is now, nobody being connected, and a data folder of its own.
    pub async fn copied(&self) -> Self {
        let name = format!("it_{}", uuid::Uuid::new_v4().simple());
        let from: String =
            sqlx::query_scalar("select current_database()").fetch_one(&mut self.sql().await).await.unwrap();
        let mut sql = self.on_database("postgres").sql().await;
        let end = "select pg_terminate_backend(pid) from pg_stat_activity where datname = $1";
        sqlx::query(end).bind(&from).execute(&mut sql).await.unwrap();
        let copy = format!("create database {name} template {from}");
        sqlx::raw_sql(AssertSqlSafe(copy)).execute(&mut sql).await.unwrap();
        self.on_database(&name)
    }

    /// Where its database is.
    pub fn url(&self) -> &str {
        self.url.as_deref().unwrap()
    }

    /// For looking into the database, and for breaking it.
    pub async fn sql(&self) -> PgConnection {
        PgConnection::connect(self.url.as_deref().unwrap()).await.unwrap()
    }

    pub fn path(&self, below: &str) -> PathBuf {
        self.dir.path().join("data").join(below)
    }

    /// What servers here have logged.
    pub fn log(&self) -> PathBuf {
        self.dir.path().join("serve.log")
    }

    pub fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_backstay"));
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if text == "DATABASE_URL" || (text.starts_with("BACKSTAY_") && !text.contains("POSTGRES")) {
                command.env_remove(name);
            }
        }
        if let Some(url) = &self.url {
            command.env("DATABASE_URL", url);
        }
        command
            .args(arguments)
            .env("BACKSTAY_DATA_DIR", self.path(""))
            .env("BACKSTAY_CONFIG", self.dir.path().join("empty.toml"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    pub async fn run(&self, arguments: &[&str]) -> Ran {
        ran(&mut self.command(arguments)).await
    }

    /// Processes that work in the data folder.
    fn processes(&self) -> Vec<String> {
        let here = self.dir.path().canonicalize().unwrap();
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let cwd = std::fs::read_link(entry.path().join("cwd")).unwrap_or_default();
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            let number = entry.file_name().to_string_lossy().parse::<u32>().is_ok();
            if number && (cwd.starts_with(&here) || line.contains(&*here.to_string_lossy())) {
                found.push(line);
            }
        }
        found
    }

    /// Waits, not for ever, until nothing runs here any more.
    pub async fn is_left_alone(&self) {
        let deadline = Instant::now() + Duration::from_secs(15);
        loop {
            let left = self.processes();
            if left.is_empty() {
                return;
            }
            assert!(Instant::now() < deadline, "these are left behind: {left:#?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Runs it to its end.
pub async fn ran(command: &mut Command) -> Ran {
    let output = tokio::time::timeout(Duration::from_secs(50), command.output()).await.unwrap().unwrap();
    Ran {
        code: output.status.code(),
        signal: output.status.signal(),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// A process that is under way.
pub struct Running {
    child: Child,
    out: Lines<BufReader<Box<dyn AsyncRead + Send + Unpin>>>,
    seen: String,
}

impl Running {
    /// Reads its stdout.
    pub fn start(command: &mut Command) -> Self {
        let mut child = command.stderr(Stdio::null()).spawn().unwrap();
        let out: Box<dyn AsyncRead + Send + Unpin> = Box::new(child.stdout.take().unwrap());
        Self { child, out: BufReader::new(out).lines(), seen: String::new() }
    }

    /// Reads its stdout, and writes its stderr to a file.
    pub fn start_logging(command: &mut Command, log: std::fs::File) -> Self {
        let mut child = command.stderr(log).spawn().unwrap();
        let out: Box<dyn AsyncRead + Send + Unpin> = Box::new(child.stdout.take().unwrap());
        Self { child, out: BufReader::new(out).lines(), seen: String::new() }
    }

    /// Reads its stderr.
    pub fn start_for_logs(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::null()).spawn().unwrap();
        let out: Box<dyn AsyncRead + Send + Unpin> = Box::new(child.stderr.take().unwrap());
        Self { child, out: BufReader::new(out).lines(), seen: String::new() }
    }

    /// Reads on to a line with this, and gives the line.
    pub async fn until_it_says(&mut self, text: &str) -> String {
        while !self.seen.lines().last().is_some_and(|line| line.contains(text)) {
            let line = tokio::time::timeout(Duration::from_secs(30), self.out.next_line()).await;
            let line = line.ok().and_then(Result::ok).flatten();
            let line = line.unwrap_or_else(|| panic!("it never said \"{text}\", but: {}", self.seen));
            self.seen += &format!("{line}\n");
        }
        self.seen.lines().last().unwrap_or_default().to_owned()
    }

    pub fn pid(&self) -> u32 {
        self.child.id().unwrap()
    }

    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id().unwrap().cast_signed()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    pub async fn end(mut self) -> Ran {
        let status = tokio::time::timeout(Duration::from_secs(30), self.child.wait()).await.unwrap().unwrap();
        let mut rest = String::new();
        self.out.into_inner().read_to_string(&mut rest).await.unwrap();
        Ran { code: status.code(), signal: status.signal(), out: self.seen + &rest, err: String::new() }
    }
}
