//! The server as its callers meet it: submits over HTTP beside submits in process, pages over few and over a million
//! runs, and watchers while nothing happens.

use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use backstay_engine::{Engine, NodeConfig, PlanBuilder, Registry, SubmitOptions};
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::host::{Host, process_cpu, resident_mb};
use crate::{Args, round, seconds};

/// Callers at once.
const CALLERS: [usize; 4] = [1, 16, 64, 256];

pub(crate) async fn measure(host: &Host, args: &Args) -> anyhow::Result<Value> {
    let mut report = serde_json::Map::new();
    let in_process = in_process(host, args).await?;
    let server = Server::start(&host.fresh("api").await?).await?;
    for (callers, of) in CALLERS.into_iter().zip(in_process) {
        let submits = server.load(args, callers, Ask::Submit).await?;
        let rate = submits.get("per_s").and_then(Value::as_f64).unwrap_or(f64::NAN);
        report.insert(format!("submit_{callers}"), submits);
        report.insert(
            format!("submit_{callers}_in_process"),
            json!({ "per_s": round(of, 0), "over_http": round(rate / of, 3) }),
        );
    }
    for callers in CALLERS {
        report.insert(format!("get_{callers}"), server.load(args, callers, Ask::Get).await?);
    }
    report.insert("watch".into(), server.watchers(args, args.concurrency.unwrap_or(1_000)).await?);
    server.stop().await?;
    report.insert("list".into(), pages(host, args).await?);
    Ok(Value::Object(report))
}

/// One step that waits, so that a run is submitted, parked, and no more.
fn body() -> Value {
    let step = json!({ "name": "go", "activity": "wait", "input": { "signal": "go" }, "nothing_to_undo": "it waits" });
    json!({ "plan": { "workflow": "bench", "steps": [step] } })
}

/// Submits a second in process, for each number of callers.
async fn in_process(host: &Host, args: &Args) -> anyhow::Result<Vec<f64>> {
    let engine = Engine::connect(&host.fresh("inprocess").await?, Registry::new()).await?;
    let node = engine.start_node(NodeConfig { name: "bench".into(), ..NodeConfig::default() }).await?;
    let mut plan = PlanBuilder::new("bench");
    plan.wait("go", json!({ "signal": "go" })).done();
    let plan = plan.check(engine.registry())?;
    let mut rates = Vec::new();
    for callers in CALLERS {
        let engine = engine.clone();
        let plan = Arc::clone(&plan);
        let done = closed_loop(args, callers, move || {
            let (engine, plan) = (engine.clone(), Arc::clone(&plan));
            async move {
                engine.submit(&plan, SubmitOptions::default()).await?;
                anyhow::Ok(true)
            }
        });
        rates.push(done.await?.per_second);
    }
    node.drain(Duration::from_secs(5)).await;
    Ok(rates)
}

struct Loop {
    per_second: f64,
    p50: f64,
    p99: f64,
    errors: usize,
}

impl Loop {
    fn report(&self) -> Value {
        json!({ "per_s": round(self.per_second, 0), "p50_ms": round(self.p50, 2), "p99_ms": round(self.p99, 2),
                "errors": self.errors })
    }
}

/// So many callers, each asking again once it was answered.
async fn closed_loop<F>(
    args: &Args,
    callers: usize,
    ask: impl Fn() -> F + Clone + Send + 'static,
) -> anyhow::Result<Loop>
where
    F: Future<Output = anyhow::Result<bool>> + Send,
{
    let (measuring, stop) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let errors = Arc::new(AtomicUsize::new(0));
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..callers {
        let (measuring, stop, errors, ask) =
            (Arc::clone(&measuring), Arc::clone(&stop), Arc::clone(&errors), ask.clone());
        tasks.spawn(async move {
            let mut took = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                let begun = Instant::now();
                let good = ask().await?;
                if measuring.load(Ordering::Relaxed) && !stop.load(Ordering::Relaxed) {
                    took.push(begun.elapsed().as_secs_f64() * 1_000.0);
                    errors.fetch_add(usize::from(!good), Ordering::Relaxed);
                }
            }
            anyhow::Ok(took)
        });
    }
    let measured = seconds(args) / 3;
    tokio::time::sleep(measured / 3).await;
    let begun = Instant::now();
    measuring.store(true, Ordering::Relaxed);
    tokio::time::sleep(measured).await;
    stop.store(true, Ordering::Relaxed);
    let lasted = begun.elapsed().as_secs_f64();
    let mut took = Vec::new();
    while let Some(done) = tasks.join_next().await {
        took.extend(done??);
    }
    took.sort_by(f64::total_cmp);
    let at = |q: f64| took.get(((took.len().max(1) - 1) as f64 * q) as usize).copied().unwrap_or(f64::NAN);
    Ok(Loop {
        per_second: took.len() as f64 / lasted,
        p50: at(0.5),
        p99: at(0.99),
        errors: errors.load(Ordering::Relaxed),
    })
}

#[derive(Clone, Copy)]
enum Ask {
    Submit,
    Get,
}

/// The program itself, as it is built beside this one.
struct Server {
    process: Child,
    base: String,
    token: String,
    url: String,
    http: reqwest::Client,
    _dir: tempfile::TempDir,
}

impl Server {
    async fn start(url: &str) -> anyhow::Result<Self> {
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
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let stdout = process.stdout.take().context("no output")?;
        let stderr = process.stderr.take().context("no output")?;
        let (say, mut said) = tokio::sync::mpsc::unbounded_channel();
        for pipe in [Box::new(stdout) as Box<dyn tokio::io::AsyncRead + Send + Unpin>, Box::new(stderr)] {
            let say = say.clone();
            tokio::spawn(async move {
                let mut lines = BufReader::new(pipe).lines();
                while let Ok(Some(line)) = lines.next_line().await {
                    let _ = say.send(line);
                }
            });
        }
        let base = loop {
            let line =
                tokio::time::timeout(Duration::from_secs(30), said.recv()).await?.context("it ended")?;
            if let Some((_, base)) = line.split_once("Listening on ") {
                break base.trim().to_owned();
            }
        };
        let token = std::fs::read_to_string(data.join("admin-token"))?.trim().to_owned();
        // A second one in the same process is refused, and means the same.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder().no_proxy().pool_max_idle_per_host(2_000).build()?;
        Ok(Self { process, base, token, url: url.to_owned(), http, _dir: dir })
    }

    fn get(&self, path: &str) -> reqwest::RequestBuilder {
        self.http.get(format!("{}/api/v1{path}", self.base)).bearer_auth(&self.token)
    }

    fn submit(&self) -> reqwest::RequestBuilder {
        let request = self.http.post(format!("{}/api/v1/runs", self.base)).bearer_auth(&self.token);
        request.header("content-type", "application/json").body(body().to_string())
    }

    async fn submitted(&self) -> anyhow::Result<String> {
        let text = self.submit().send().await?.error_for_status()?.text().await?;
        let run: Value = serde_json::from_str(&text)?;
        Ok(run.get("run").and_then(Value::as_str).context("no run")?.to_owned())
    }

    async fn load(&self, args: &Args, callers: usize, ask: Ask) -> anyhow::Result<Value> {
        let request = match ask {
            Ask::Submit => self.submit(),
            Ask::Get => self.get(&format!("/runs/{}", self.submitted().await?)),
        };
        let request = Arc::new(request.build()?);
        let http = self.http.clone();
        let done = closed_loop(args, callers, move || {
            let (http, request) = (http.clone(), request.try_clone());
            async move {
                let answer = http.execute(request.context("a body that streams")?).await?;
                let good = answer.status().is_success();
                answer.bytes().await?;
                Ok(good)
            }
        });
        Ok(done.await?.report())
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

    async fn stop(mut self) -> anyhow::Result<()> {
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
        ("failing", "&failing=s1"),
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
                    case n % 10 when 3 then array['s' || n % 7, 'rare' || n % ($1 / 10)] end
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
