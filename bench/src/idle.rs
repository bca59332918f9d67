//! Runs that wait for their next attempt: what they cost while nothing happens.

use std::time::Duration;

use anyhow::Context;
use backstay_engine::{NodeConfig, SubmitOptions};
use serde_json::{Value, json};

use crate::host::{Host, postgres_cpu, process_cpu, resident_mb};
use crate::{Args, recovery, round, seconds, signals, work};

pub(crate) async fn measure(host: &Host, args: &Args) -> anyhow::Result<Value> {
    let runs = args.concurrency.unwrap_or(10_000);
    let url = host.fresh("idle").await?;
    let (mut first, mut lines) = recovery::spawn(&url, args, runs, "idle")?;
    recovery::expect(&mut lines, "READY").await?;
    let pid = first.id().context("the worker is gone")?.to_string();
    let before = process_cpu(&pid);
    tokio::time::sleep(seconds(args)).await;
    let (cpu, memory) = (process_cpu(&pid) - before, resident_mb(&pid));
    first.start_kill()?;
    first.wait().await?;
    // The process that submitted them has been large once; one that only finds them waiting shows what they cost.
    let (mut second, mut lines) = recovery::spawn(&url, args, 0, "idle")?;
    recovery::expect(&mut lines, "READY").await?;
    let pid = second.id().context("the worker is gone")?.to_string();
    let (before, database_before) = (process_cpu(&pid), postgres_cpu());
    tokio::time::sleep(seconds(args)).await;
    let (cpu_fresh, memory_fresh) = (process_cpu(&pid) - before, resident_mb(&pid));
    let database = postgres_cpu() - database_before;
    let mut conn = <sqlx::PgConnection as sqlx::Connection>::connect(&url).await?;
    let scan = signals::wake_up_scan(&mut conn).await?;
    second.start_kill()?;
    second.wait().await?;
    let percent = |cpu: f64| round(100.0 * cpu / seconds(args).as_secs_f64(), 2);
    Ok(json!({
        "runs": runs,
        "cpu_percent_of_a_core": percent(cpu),
        "memory_mb": memory,
        "after_restart_cpu_percent": percent(cpu_fresh),
        "after_restart_memory_mb": memory_fresh,
        "database_cpu_percent_of_a_core": percent(database),
        "wake_up_scan_ms": round(scan, 3),
    }))
}

pub(crate) async fn worker(url: &str, args: &Args) -> anyhow::Result<()> {
    let engine = work::engine(url).await?;
    let _node = engine.start_node(NodeConfig { name: "bench".into(), ..NodeConfig::default() }).await?;
    let runs = args.concurrency.unwrap_or(0);
    let plan = work::waiting(&engine)?;
    let mut submitting = tokio::task::JoinSet::new();
    for _ in 0..runs {
        let (engine, plan) = (engine.clone(), plan.clone());
        submitting
            .spawn(async move { engine.submit(&plan, SubmitOptions::default()).await.map(|run| run.run) });
        if submitting.len() >= 256 {
            submitting.join_next().await;
        }
    }
    while let Some(submitted) = submitting.join_next().await {
        submitted??;
    }
    let mut conn = <sqlx::PgConnection as sqlx::Connection>::connect(url).await?;
    while sqlx::query_scalar::<_, i64>("select count(*) from runs where due_at is null")
        .fetch_one(&mut conn)
        .await?
        > 0
    {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    recovery::say("READY")?;
    tokio::time::sleep(Duration::from_secs(300)).await;
    Ok(())
}
