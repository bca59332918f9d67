//! Three nodes; the one that has all the runs is killed, and the others take them over.

use std::time::{Duration, Instant};

use anyhow::Context;
use backstay_engine::{NodeConfig, SubmitOptions};
use serde_json::{Value, json};
use sqlx::Connection;

use crate::host::{Host, resident_mb};
use crate::recovery::{AGAIN, expect, say, spawn_named};
use crate::{Args, round, work};

/// How long a node may be silent.
const LEASE: Duration = Duration::from_secs(5);
/// Long enough that all runs are inside their nap when the process is killed.
const NAP: u64 = 120_000;

pub(crate) async fn measure(host: &Host, args: &Args) -> anyhow::Result<Value> {
    let runs = args.concurrency.unwrap_or(10_000);
    let url = host.fresh("takeover").await?;
    let mut healthy = Vec::new();
    let (mut victim, mut lines) = spawn_named(&url, args, runs, "takeover", "victim")?;
    expect(&mut lines, "READY").await?;
    for name in ["one", "two"] {
        let (child, mut lines) = spawn_named(&url, args, 0, "takeover", name)?;
        expect(&mut lines, "READY").await?;
        healthy.push((child, lines));
    }
    victim.start_kill()?;
    let killed = Instant::now();
    victim.wait().await?;
    let mut conn = sqlx::PgConnection::connect(&url).await?;
    let (mut first, mut moved) = (None, 0i64);
    while moved < runs as i64 && killed.elapsed() < Duration::from_secs(120) {
        moved = sqlx::query_scalar(AGAIN).fetch_one(&mut conn).await?;
        if moved > 0 && first.is_none() {
            first = Some(killed.elapsed().as_secs_f64());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let last = killed.elapsed().as_secs_f64();
    let lost: i64 =
        sqlx::query_scalar("select count(*) from nodes where name <> 'victim' and ended_at is not null")
            .fetch_one(&mut conn)
            .await?;
    let mut memory: f64 = 0.0;
    for (child, _) in &mut healthy {
        memory = memory.max(resident_mb(&child.id().context("a node is gone")?.to_string()));
        child.start_kill()?;
        child.wait().await?;
    }
    anyhow::ensure!(moved == runs as i64, "only {moved} of {runs} runs moved on");
    Ok(json!({
        "runs": runs,
        "lease_s": LEASE.as_secs(),
        "first_after_kill_s": round(first.unwrap_or(f64::NAN), 2),
        "last_after_kill_s": round(last, 2),
        "healthy_leases_lost": lost,
        "memory_mb": memory,
    }))
}

pub(crate) async fn worker(url: &str, args: &Args) -> anyhow::Result<()> {
    let engine = work::engine(url).await?;
    let name = args.name.clone().unwrap_or_else(|| "bench".into());
    let config = NodeConfig { name, lease: LEASE, max_calls: 20_000, ..NodeConfig::default() };
    let _node = engine.start_node(config).await?;
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
    let mut conn = sqlx::PgConnection::connect(url).await?;
    let napping = "select count(*) from events where kind = 'started' and step = 'nap'";
    while sqlx::query_scalar::<_, i64>(napping).fetch_one(&mut conn).await? < runs as i64 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    say("READY")?;
    tokio::time::sleep(Duration::from_secs(300)).await;
    Ok(())
}
