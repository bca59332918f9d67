//! Runs in flight, their process killed with SIGKILL and started again.

use std::io::Write;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::Context;
use backstay_engine::{NodeConfig, SubmitOptions};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStdout, Command};

use crate::host::{Host, resident_mb};
use crate::{Args, round, work};

/// Long enough that all runs are inside their nap when the process is killed.
const NAP: u64 = 60_000;

/// How many runs have begun their nap a second time. Of the table and not of the view: to take ten thousand rows apart takes as
/// long as what is measured.
pub(crate) const AGAIN: &str = r#"select count(*) from journal
    where epoch > (select min(epoch) from nodes)
      and ((kind = 'started' and attempt = 2) or more::text like '%["started","nap",false,_,2,%')"#;

pub(crate) async fn measure(host: &Host, args: &Args) -> anyhow::Result<Value> {
    let runs = args.concurrency.unwrap_or(1_000);
    let url = host.fresh("recovery").await?;
    let (mut worker, mut lines) = spawn(&url, args, runs, "recovery")?;
    expect(&mut lines, "READY").await?;
    worker.start_kill()?;
    worker.wait().await?;

    let begun = Instant::now();
    let (mut worker, mut lines) = spawn(&url, args, 0, "recovery")?;
    expect(&mut lines, "UP").await?;
    let up = begun.elapsed().as_secs_f64();
    // A run has moved on when its new owner has journaled the second attempt of the nap.
    let mut conn = <sqlx::PgConnection as sqlx::Connection>::connect(&url).await?;
    let (mut first, mut moved) = (None, 0i64);
    while moved < runs as i64 && begun.elapsed() < Duration::from_secs(120) {
        moved = sqlx::query_scalar(AGAIN).fetch_one(&mut conn).await?;
        if moved > 0 && first.is_none() {
            first = Some(begun.elapsed().as_secs_f64());
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let last = begun.elapsed().as_secs_f64();
    let memory = resident_mb(&worker.id().context("the worker is gone")?.to_string());
    worker.start_kill()?;
    worker.wait().await?;
    anyhow::ensure!(moved == runs as i64, "only {moved} of {runs} runs moved on");
    Ok(json!({
        "runs": runs,
        "up_s": round(up, 3),
        "first_after_up_s": round(first.unwrap_or(f64::NAN) - up, 3),
        "last_after_up_s": round(last - up, 3),
        "memory_mb": memory,
    }))
}

/// The process that is killed. It submits if it is told to, and then only drives.
pub(crate) async fn worker(url: &str, args: &Args) -> anyhow::Result<()> {
    let engine = work::engine(url).await?;
    let _node = engine
        .start_node(NodeConfig { name: "bench".into(), max_calls: 20_000, ..NodeConfig::default() })
        .await?;
    say("UP")?;
    let runs = args.concurrency.unwrap_or(0);
    let plan = work::with_nap(&engine, NAP)?;
    let mut submitting = tokio::task::JoinSet::new();
    for _ in 0..runs {
        let (engine, plan) = (engine.clone(), plan.clone());
        submitting
            .spawn(async move { engine.submit(&plan, SubmitOptions::default()).await.map(|run| run.run) });
    }
    while let Some(submitted) = submitting.join_next().await {
        submitted??;
    }
    let mut conn = <sqlx::PgConnection as sqlx::Connection>::connect(url).await?;
    let napping = "select count(*) from events where kind = 'started' and step = 'nap'";
    while sqlx::query_scalar::<_, i64>(napping).fetch_one(&mut conn).await? < runs as i64 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    say("READY")?;
    // Until it is killed; never for ever if it is forgotten.
    tokio::time::sleep(Duration::from_secs(300)).await;
    Ok(())
}

pub(crate) fn say(word: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{word}")?;
    Ok(out.flush()?)
}

pub(crate) type Lines = tokio::io::Lines<BufReader<ChildStdout>>;

pub(crate) fn spawn(url: &str, args: &Args, runs: usize, scenario: &str) -> anyhow::Result<(Child, Lines)> {
    spawn_named(url, args, runs, scenario, "bench")
}

pub(crate) fn spawn_named(
    url: &str,
    args: &Args,
    runs: usize,
    scenario: &str,
    name: &str,
) -> anyhow::Result<(Child, Lines)> {
    let mut child = Command::new(std::env::current_exe()?)
        .args([
            scenario,
            "--worker",
            url,
            "--concurrency",
            &runs.to_string(),
            "--seconds",
            &args.seconds.to_string(),
            "--name",
            name,
        ])
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let lines = BufReader::new(child.stdout.take().context("no output")?).lines();
    Ok((child, lines))
}

pub(crate) async fn expect(lines: &mut Lines, word: &str) -> anyhow::Result<()> {
    let waiting = async {
        while let Some(line) = lines.next_line().await? {
            if line.trim() == word {
                return Ok(());
            }
        }
        anyhow::bail!("the worker ended before it said {word}")
    };
    tokio::time::timeout(Duration::from_secs(120), waiting).await?
}
