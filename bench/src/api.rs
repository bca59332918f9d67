//! The server as its callers meet it: submits over HTTP beside submits in process, pages over few and over a million
//! runs, and watchers while nothing happens.

use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::caller::{Asked, OverHttp, Sides, closed_loop};
use crate::host::{Host, process_cpu, resident_mb};
use crate::{Args, round, seconds, submits};

/// Callers at once.
pub(crate) const CALLERS: [usize; 4] = [1, 16, 64, 256];

pub(crate) async fn measure(host: &Host, args: &Args) -> anyhow::Result<Value> {
    let mut report = submits::measure(host, args).await?;
    let server = Server::start(&host.fresh("api").await?).await?;
    for callers in CALLERS {
        let get = server.request("GET", &format!("/runs/{}", server.submitted().await?), "");
        report.insert(format!("get_{callers}"), server.load(host, args, callers, get).await?.report());
    }
    report.insert("watch".into(), server.watchers(args, args.concurrency.unwrap_or(1_000)).await?);
    server.stop().await?;
    report.insert("list".into(), pages(host, args).await?);
    Ok(Value::Object(report))
}

/// One step that waits, so that a run is submitted, parked, and no more.
pub(crate) fn plan() -> Value {
    let step = json!({ "name": "go", "activity": "wait", "input": { "signal": "go" }, "nothing_to_undo": "it waits" });
    json!({ "workflow": "bench", "steps": [step] })
}

/// The program itself, as it is built beside this one.
pub(crate) struct Server {
    process: Child,
    base: String,
    token: String,
    url: String,
    http: reqwest::Client,
    _dir: tempfile::TempDir,
}

impl Server {
    pub(crate) async fn start(url: &str) -> anyhow::Result<Self> {
        let program = std::env::current_exe()?.with_file_name("backstay");
        anyhow::ensure!(program.exists(), "the server is not built: cargo build --release -p backstay");
        let dir = tempfile::tempdir()?;
        let data = dir.path().join("data");
        let mut process = Command::new(program)
            .args(["serve", "--name", "bench"])
            .env("DATABASE_URL", url)
            .env("BACKSTAY_DATA_DIR", &data)
            .env("BACKSTAY_CONFIG", config(dir.path())?)
            .env("BACKSTAY_LISTEN__ADDRESS", "127.0.0.1:0")
            .env("BACKSTAY_LISTEN__HEALTH", "127.0.0.1:0")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            // As a service would: whoever reads each line of it here would be measured with the server.
            .stderr(std::fs::File::create(dir.path().join("log"))?)
            .kill_on_drop(true)
            .spawn()?;
        let mut said = BufReader::new(process.stdout.take().context("no output")?).lines();
        let base = loop {
            let line = tokio::time::timeout(Duration::from_secs(30), said.next_line()).await??;
            if let Some((_, base)) = line.context("it ended")?.split_once("Listening on ") {
                break base.trim().to_owned();
            }
        };
        tokio::spawn(async move { while let Ok(Some(_)) = said.next_line().await {} });
        let token = std::fs::read_to_string(data.join("admin-token"))?.trim().to_owned();
        // A second one in the same process is refused, and means the same.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder().no_proxy().pool_max_idle_per_host(2_000).build()?;
        Ok(Self { process, base, token, url: url.to_owned(), http, _dir: dir })
    }

    fn get(&self, path: &str) -> reqwest::RequestBuilder {
        self.http.get(format!("{}/api/v1{path}", self.base)).bearer_auth(&self.token)
    }

    /// The bytes of a request.
    fn request(&self, method: &str, path: &str, body: &str) -> Arc<[u8]> {
        let (token, length) = (&self.token, body.len());
        let text = format!(
            "{method} /api/v1{path} HTTP/1.1\r\nhost: bench\r\nauthorization: Bearer {token}\r\n\
             content-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
        );
        text.into_bytes().into()
    }

    pub(crate) fn submit(&self) -> Arc<[u8]> {
        self.request("POST", "/runs", &json!({ "plan": plan() }).to_string())
    }

    async fn submitted(&self) -> anyhow::Result<String> {
        let request = self.http.post(format!("{}/api/v1/runs", self.base)).bearer_auth(&self.token);
        let request =
            request.header("content-type", "application/json").body(json!({ "plan": plan() }).to_string());
        let text = request.send().await?.error_for_status()?.text().await?;
        let run: Value = serde_json::from_str(&text)?;
        Ok(run.get("run").and_then(Value::as_str).context("no run")?.to_owned())
    }

    /// So many callers who ask this.
    pub(crate) async fn load(
        &self,
        host: &Host,
        args: &Args,
        callers: usize,
        request: Arc<[u8]>,
    ) -> anyhow::Result<Asked> {
        let mut all = Vec::with_capacity(callers);
        for _ in 0..callers {
            all.push(OverHttp::open(&self.base, &request).await?);
        }
        let pid = self.process.id().context("the server is gone")?.to_string();
        closed_loop(args, &Sides::of(host, Some(pid)).await, all).await
    }

    /// So many who watch a run each: what the database is asked meanwhile, beside what it is asked without them.
    async fn watchers(&self, args: &Args, watchers: usize) -> anyhow::Result<Value> {
        let mut conn = PgConnection::connect(&self.url).await?;
        let without = asked(&mut conn, seconds(args)).await?;
        let pid = self.process.id().context("the server is gone")?.to_string();
        let memory = resident_mb(&pid);
        let mut streams = Vec::new();
        for _ in 0..watchers {
            let run = self.submitted().await?;
            let mut stream = self.get(&format!("/runs/{run}/events")).send().await?.error_for_status()?;
            anyhow::ensure!(stream.chunk().await?.is_some(), "a stream ended at once");
            streams.push((run, stream));
        }
        // They look for themselves until each node must know of them: one lease, and what a statement may take.
        let begun = Instant::now();
        let mut with = asked(&mut conn, seconds(args)).await?;
        while with > without + 5.0 && begun.elapsed() < Duration::from_secs(120) {
            with = asked(&mut conn, seconds(args)).await?;
        }
        let quiet_after = begun.elapsed().as_secs_f64();
        let cpu = process_cpu(&pid);
        tokio::time::sleep(seconds(args)).await;
        let cpu = 100.0 * (process_cpu(&pid) - cpu) / seconds(args).as_secs_f64();
        let (run, mut stream) = streams.pop().context("no watchers")?;
        let told = Instant::now();
        let go = self.http.post(format!("{}/api/v1/runs/{run}/signals", self.base)).bearer_auth(&self.token);
        let go = go.header("content-type", "application/json").body(json!({ "name": "go" }).to_string());
        let (_, heard) =
            tokio::try_join!(async { anyhow::Ok(go.send().await?.error_for_status()?) }, async {
                loop {
                    let chunk = stream.chunk().await?.context("the stream ended")?;
                    if String::from_utf8_lossy(&chunk).contains("event: ") {
                        return anyhow::Ok(told.elapsed());
                    }
                }
            })?;
        Ok(json!({
            "watchers": watchers,
            "transactions_per_s_without": round(without, 1),
            "transactions_per_s_with": round(with, 1),
            "quiet_after_s": round(quiet_after, 0),
            "server_cpu_percent": round(cpu, 2),
            "memory_for_each_kb": round((resident_mb(&pid) - memory) * 1024.0 / watchers as f64, 1),
            "event_reaches_a_watcher_ms": round(heard.as_secs_f64() * 1_000.0, 1),
        }))
    }

    pub(crate) async fn stop(mut self) -> anyhow::Result<()> {
        if let Some(pid) = self.process.id().and_then(|id| rustix::process::Pid::from_raw(id as i32)) {
            rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        }
        tokio::time::timeout(Duration::from_secs(30), self.process.wait()).await??;
        Ok(())
    }
}

/// As many connections as are measured, and nothing about what is asked in the log.
fn config(dir: &Path) -> anyhow::Result<std::path::PathBuf> {
    let path = dir.join("bench.toml");
    std::fs::write(&path, "")?;
    Ok(path)
}

/// Transactions a second.
async fn asked(conn: &mut PgConnection, during: Duration) -> anyhow::Result<f64> {
    let count = "select (xact_commit + xact_rollback)::float8 from pg_stat_database where datname = current_database()";
    // What a session has done reaches the statistics a second later.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let before: f64 = sqlx::query_scalar(count).fetch_one(&mut *conn).await?;
    tokio::time::sleep(during).await;
    let after: f64 = sqlx::query_scalar(count).fetch_one(&mut *conn).await?;
    Ok((after - before) / during.as_secs_f64())
}

/// The median of a page of 100 over a thousand finished runs, and over a million, by each filter.
async fn pages(host: &Host, args: &Args) -> anyhow::Result<Value> {
    let filters = [
        ("all", ""),
        ("status", "&status=rolled_back"),
        ("workflow", "&workflow=w7"),
        ("label", "&labels=site:s7"),
        ("rare_label", "&labels=ticket:t77"),
        ("failing", "&failing=copy"),
        // One in seven of those: with a thousand runs this is no full page.
        ("seventh_failing", "&failing=s1"),
        ("rare_failing", "&failing=rare3"),
    ];
    let mut report = serde_json::Map::new();
    for runs in [1_000, args.steps.unwrap_or(1_000_000)] {
        let url = host.fresh("pages").await?;
        let server = Server::start(&url).await?;
        let mut conn = PgConnection::connect(&url).await?;
        sqlx::query(
            "insert into runs (run_id, workflow, status, plan_hash, request_hash, activities, labels, submitted_at, finished_at,
                               failing)
             select ('019b0000-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid, 'w' || n % 10,
                    case n % 10 when 3 then 'rolled_back' else 'succeeded' end, 'hash', '', array['log'],
                    jsonb_build_object('site', 's' || n % 10, 'ticket', 't' || n % ($1 / 10)),
                    now() - interval '1 day', now() - interval '1 hour',
                    case n % 10 when 3 then array['copy', 's' || n % 7, 'rare' || n % ($1 / 10)] end
             from generate_series(1, $1) as n",
        )
        .bind(i32::try_from(runs)?)
        .execute(&mut conn)
        .await?;
        sqlx::query("vacuum analyze runs").execute(&mut conn).await?;
        for (name, filter) in filters {
            let path = format!("/runs?limit=100{filter}");
            let mut took = Vec::new();
            for _ in 0..41 {
                let begun = Instant::now();
                let text = server.get(&path).send().await?.error_for_status()?.text().await?;
                took.push(begun.elapsed().as_secs_f64() * 1_000.0);
                anyhow::ensure!(text.contains("019b0000"), "nothing was found by {name}: {text}");
            }
            took.sort_by(f64::total_cmp);
            let median = took.get(20).copied().unwrap_or(f64::NAN);
            report.insert(format!("{name}_of_{runs}_ms"), json!(round(median, 2)));
        }
        server.stop().await?;
    }
    Ok(Value::Object(report))
}
