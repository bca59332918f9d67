//! Runs that wait for a signal: what they cost while nothing happens, and how fast they go on once it comes.

use std::time::{Duration, Instant};

use anyhow::Context;
use backstay_engine::machine::{Action, Verb};
use backstay_engine::{NodeConfig, PlanBuilder, RunFilter, Status, SubmitOptions};
use serde_json::{Value, json};
use sqlx::Connection;

use crate::host::{Host, process_cpu, resident_mb};
use crate::recovery::{expect, say, spawn};
use crate::{Args, round, seconds, work};

/// Batches on their way at once.
const AT_ONCE: usize = 8;

pub(crate) async fn measure(host: &Host, args: &Args) -> anyhow::Result<Value> {
    let runs = args.concurrency.unwrap_or(10_000);
    let url = host.fresh("signals").await?;
    submit(&url, runs).await?;
    let mut conn = sqlx::PgConnection::connect(&url).await?;
    // A process that only finds them waiting shows what they cost.
    let (mut node, mut lines) = spawn(&url, args, 0, "signals")?;
    expect(&mut lines, "READY").await?;
    let pid = node.id().context("the node is gone")?.to_string();
    let before = process_cpu(&pid);
    tokio::time::sleep(seconds(args)).await;
    let idle = 100.0 * (process_cpu(&pid) - before) / seconds(args).as_secs_f64();
    let waiting_mb = resident_mb(&pid);
    let scan = wake_up_scan(&mut conn).await?;

    let engine = work::engine(&url).await?;
    let all = all_waiting(&engine).await?;
    let begun = Instant::now();
    let mut sending = tokio::task::JoinSet::new();
    let mut told = 0;
    for some in all.chunks(500) {
        // As many as there are connections, as in any program that has a hundred thousand things to say: what has to wait
        // for a connection for too long is refused.
        if sending.len() >= AT_ONCE
            && let Some(done) = sending.join_next().await
        {
            told += done??;
        }
        let verb = || Verb::Signal { name: "go".into(), payload: json!({}) };
        let messages: Vec<_> = some.iter().map(|run| (*run, Action::new("bench", "", verb()))).collect();
        let engine = engine.clone();
        sending.spawn(async move { engine.tell_all(&messages).await.map(|answers| answers.len()) });
    }
    while let Some(done) = sending.join_next().await {
        told += done??;
    }
    let delivered = begun.elapsed().as_secs_f64();
    let succeeded = "select count(*) from runs where status = 'succeeded' and finished_at is not null";
    while sqlx::query_scalar::<_, i64>(succeeded).fetch_one(&mut conn).await? < runs as i64 {
        anyhow::ensure!(begun.elapsed() < Duration::from_secs(120), "not all runs went on");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let acted = begun.elapsed().as_secs_f64();
    node.start_kill()?;
    node.wait().await?;
    Ok(json!({
        "runs": runs,
        "told": told,
        "waiting_cpu_percent": round(idle, 2),
        "waiting_memory_mb": waiting_mb,
        "wake_up_scan_ms": round(scan, 3),
        "all_delivered_s": round(delivered, 2),
        "all_acted_on_s": round(acted, 2),
    }))
}

/// Submits them, and waits until each is put down.
async fn submit(url: &str, runs: usize) -> anyhow::Result<()> {
    let engine = work::engine(url).await?;
    let node = engine.start_node(NodeConfig { name: "first".into(), ..NodeConfig::default() }).await?;
    let mut plan = PlanBuilder::new("signals");
    let wait = plan.wait("wait", json!({ "signal": "go" })).done();
    plan.step("after", "noop").after([&wait]).undone_by("noop", json!({}));
    let plan = plan.check(engine.registry())?;
    let mut submitting = tokio::task::JoinSet::new();
    for _ in 0..runs {
        let (engine, plan) = (engine.clone(), plan.clone());
        submitting
            .spawn(async move { engine.submit(&plan, SubmitOptions::default()).await.map(|run| run.run) });
        if submitting.len() >= 256
            && let Some(submitted) = submitting.join_next().await
        {
            submitted??;
        }
    }
    while let Some(submitted) = submitting.join_next().await {
        submitted??;
    }
    let mut conn = sqlx::PgConnection::connect(url).await?;
    let waiting = "select count(*) from runs where status = 'waiting' and owner is null";
    while sqlx::query_scalar::<_, i64>(waiting).fetch_one(&mut conn).await? < runs as i64 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    node.drain(Duration::from_secs(5)).await;
    sqlx::raw_sql("vacuum analyze").execute(&mut conn).await?;
    Ok(())
}

async fn all_waiting(engine: &backstay_engine::Engine) -> anyhow::Result<Vec<backstay_engine::RunId>> {
    let mut all = Vec::new();
    let mut filter = RunFilter { status: Some(Status::Waiting), limit: 1_000, ..RunFilter::default() };
    loop {
        let page = engine.list(&filter).await?;
        let Some(last) = page.last() else { return Ok(all) };
        filter.before = Some(last.run);
        all.extend(page.iter().map(|info| info.run));
    }
}

/// What a node asks every half second: the best of five, in milliseconds, as Postgres counts it.
pub(crate) async fn wake_up_scan(conn: &mut sqlx::PgConnection) -> anyhow::Result<f64> {
    let ask = "explain (analyze, format json) select run_id from runs
               where priority = 1 and due_at <= statement_timestamp() and activities <@ array['noop']
               order by due_at limit 500";
    let mut best = f64::INFINITY;
    for _ in 0..5 {
        let plan: Value = sqlx::query_scalar(ask).fetch_one(&mut *conn).await?;
        best = best.min(plan.pointer("/0/Execution Time").and_then(Value::as_f64).unwrap_or(f64::INFINITY));
    }
    Ok(best)
}

pub(crate) async fn worker(url: &str) -> anyhow::Result<()> {
    let engine = work::engine(url).await?;
    let _node = engine.start_node(NodeConfig { name: "bench".into(), ..NodeConfig::default() }).await?;
    // What it finds at its start it has found a moment later.
    tokio::time::sleep(Duration::from_secs(2)).await;
    say("READY")?;
    tokio::time::sleep(Duration::from_secs(300)).await;
    Ok(())
}
