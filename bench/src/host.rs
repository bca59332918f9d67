//! The database that a benchmark runs on, and the CPU that it and we use.

use std::collections::HashMap;

use anyhow::Context;
use sqlx::{AssertSqlSafe, Connection, PgConnection};

/// A durable cluster; ours unless an address was given.
pub(crate) struct Host {
    own: Option<(backstay_postgres::Postgres, tempfile::TempDir)>,
    given: Option<String>,
}

impl Host {
    pub(crate) async fn open(given: Option<String>) -> anyhow::Result<Self> {
        if given.is_some() {
            return Ok(Self { own: None, given });
        }
        let dir = tempfile::Builder::new().prefix("backstay-bench").tempdir()?;
        // The server runs as another user when we are root: it has to get through to its own folder.
        std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        let settings = backstay_postgres::Settings::new(dir.path().join("data"));
        let postgres = backstay_postgres::Postgres::start(settings).await?;
        Ok(Self { own: Some((postgres, dir)), given })
    }

    fn url(&self, database: &str) -> anyhow::Result<String> {
        match (&self.own, &self.given) {
            (Some((postgres, _)), _) => Ok(postgres.url(database)),
            (None, Some(given)) => {
                let (base, query) =
                    given.split_once('?').map_or((given.as_str(), None), |(b, q)| (b, Some(q)));
                let (server, _) = base.rsplit_once('/').context("the database URL names no database")?;
                Ok(query.map_or_else(
                    || format!("{server}/{database}"),
                    |query| format!("{server}/{database}?{query}"),
                ))
            }
            (None, None) => anyhow::bail!("no database"),
        }
    }

    /// A fresh database and a checkpoint, so that every measurement starts from the same state.
    pub(crate) async fn fresh(&self, name: &str) -> anyhow::Result<String> {
        let name = format!("backstay_bench_{name}");
        let mut admin = PgConnection::connect(&self.url("postgres")?).await?;
        sqlx::raw_sql(AssertSqlSafe(format!("drop database if exists {name} with (force)")))
            .execute(&mut admin)
            .await?;
        sqlx::raw_sql(AssertSqlSafe(format!("create database {name}"))).execute(&mut admin).await?;
        sqlx::raw_sql("checkpoint").execute(&mut admin).await?;
        self.url(&name)
    }

    /// The first process of this Postgres, if it is on this machine.
    pub(crate) async fn postmaster(&self) -> anyhow::Result<String> {
        let mut conn = PgConnection::connect(&self.url("postgres")?).await?;
        let ours: i32 = sqlx::query_scalar("select pg_backend_pid()").fetch_one(&mut conn).await?;
        let (name, fields) = stat(&ours.to_string()).context("Postgres is on another machine")?;
        anyhow::ensure!(name == "postgres", "Postgres is on another machine");
        Ok((*fields.get(1).context("a process without a parent")? as i64).to_string())
    }

    pub(crate) async fn close(self) -> anyhow::Result<()> {
        if let Some((postgres, _dir)) = self.own {
            postgres.stop().await?;
        }
        Ok(())
    }
}

/// Commits of the whole cluster and CPU seconds so far.
#[derive(Clone, Debug, Default)]
pub(crate) struct Meter {
    commits: f64,
    client: f64,
    database: f64,
}

impl Meter {
    pub(crate) async fn read(url: &str) -> anyhow::Result<Self> {
        let mut conn = PgConnection::connect(url).await?;
        // The counters of a session reach the statistics a little later; a second is near enough for ten.
        let commits: f64 = sqlx::query_scalar("select sum(xact_commit)::float8 from pg_stat_database")
            .fetch_one(&mut conn)
            .await?;
        Ok(Self { commits, client: process_cpu("self"), database: postgres_cpu() })
    }

    pub(crate) fn since(&self, earlier: &Meter, seconds: f64) -> HashMap<&'static str, f64> {
        HashMap::from([
            ("commits_per_s", crate::round((self.commits - earlier.commits) / seconds, 0)),
            ("client_cpu_s", crate::round(self.client - earlier.client, 2)),
            ("database_cpu_s", crate::round(self.database - earlier.database, 2)),
        ])
    }
}

fn stat(pid: &str) -> Option<(String, Vec<f64>)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (head, tail) = text.rsplit_once(')')?;
    let name = head.split_once('(')?.1.to_owned();
    Some((name, tail.split_whitespace().map(|field| field.parse().unwrap_or(0.0)).collect()))
}

/// CPU seconds of a process.
pub(crate) fn process_cpu(pid: &str) -> f64 {
    let Some((_, fields)) = stat(pid) else { return 0.0 };
    (fields.get(11).unwrap_or(&0.0) + fields.get(12).unwrap_or(&0.0)) / 100.0
}

/// CPU seconds of a process and its children, with those that have ended.
pub(crate) fn family_cpu(pid: &str) -> f64 {
    let Ok(entries) = std::fs::read_dir("/proc") else { return 0.0 };
    let all = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let parent: f64 = pid.parse().unwrap_or(f64::NAN);
    let mut total = 0.0;
    for (one, (_, fields)) in all.filter_map(|one| stat(&one).map(|stat| (one, stat))) {
        if one == pid || fields.get(1) == Some(&parent) {
            total += fields.get(11..15).unwrap_or_default().iter().sum::<f64>() / 100.0;
        }
    }
    total
}

/// CPU seconds of all server processes on this machine, with those that have ended.
pub(crate) fn postgres_cpu() -> f64 {
    let Ok(entries) = std::fs::read_dir("/proc") else { return 0.0 };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let mut total = 0.0;
    for (name, fields) in pids.filter_map(|pid| stat(&pid)) {
        if name == "postgres" {
            total += fields.get(11..15).unwrap_or_default().iter().sum::<f64>() / 100.0;
        }
    }
    total
}

/// Resident memory of a process in MB.
pub(crate) fn resident_mb(pid: &str) -> f64 {
    status_mb(pid, "VmRSS:")
}

/// The most that it ever was.
pub(crate) fn peak_mb(pid: &str) -> f64 {
    status_mb(pid, "VmHWM:")
}

fn status_mb(pid: &str, field: &str) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    let kb = line.and_then(|line| line.split_whitespace().next()).and_then(|kb| kb.parse::<f64>().ok());
    crate::round(kb.unwrap_or(0.0) / 1024.0, 1)
}
