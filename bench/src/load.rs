//! A closed loop: so many workflows in flight, each followed from its submission until its caller knows the end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use backstay_engine::{Engine, NodeConfig, Plan, Status, SubmitOptions};
use serde_json::{Value, json};

use crate::host::{Host, Meter};
use crate::{Args, round, seconds, work};

pub(crate) async fn sequential(host: &Host, args: &Args, concurrency: usize) -> anyhow::Result<Value> {
    let url = host.fresh("sequential").await?;
    let engine = work::engine(&url).await?;
    let plan = work::chain(&engine, args.steps.unwrap_or(10))?;
    closed_loop(&url, &engine, plan, args, concurrency).await
}

pub(crate) async fn fanout(host: &Host, args: &Args, concurrency: usize) -> anyhow::Result<Value> {
    let url = host.fresh("fanout").await?;
    let engine = work::engine(&url).await?;
    let plan = work::fan(&engine, args.steps.unwrap_or(50))?;
    closed_loop(&url, &engine, plan, args, concurrency).await
}

pub(crate) async fn closed_loop(
    url: &str,
    engine: &Engine,
    plan: Arc<Plan>,
    args: &Args,
    concurrency: usize,
) -> anyhow::Result<Value> {
    let node = engine.start_node(NodeConfig { name: "bench".into(), ..NodeConfig::default() }).await?;
    let (measuring, stop) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let mut callers = Vec::new();
    for _ in 0..concurrency {
        let (engine, plan) = (engine.clone(), Arc::clone(&plan));
        let (measuring, stop) = (Arc::clone(&measuring), Arc::clone(&stop));
        callers.push(tokio::spawn(async move {
            let mut latencies: Vec<f64> = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                let begun = Instant::now();
                let run = engine.submit(&plan, SubmitOptions::default()).await?;
                let status = run.ended().await?;
                anyhow::ensure!(status == Status::Succeeded, "a workflow ended as {status:?}");
                if measuring.load(Ordering::Relaxed) && !stop.load(Ordering::Relaxed) {
                    latencies.push(begun.elapsed().as_secs_f64() * 1_000.0);
                }
            }
            anyhow::Ok(latencies)
        }));
    }
    let measured = seconds(args);
    tokio::time::sleep(measured / 3).await;
    let before = Meter::read(url).await?;
    let begun = Instant::now();
    measuring.store(true, Ordering::Relaxed);
    tokio::time::sleep(measured).await;
    stop.store(true, Ordering::Relaxed);
    let took = begun.elapsed().as_secs_f64();
    let after = Meter::read(url).await?;
    let mut latencies = Vec::new();
    for caller in callers {
        latencies.extend(caller.await??);
    }
    node.drain(std::time::Duration::from_secs(5)).await;
    latencies.sort_by(f64::total_cmp);
    let at = |q: f64| {
        latencies.get(((latencies.len().max(1) - 1) as f64 * q) as usize).copied().unwrap_or(f64::NAN)
    };
    let per_second = latencies.len() as f64 / took;
    let meter = after.since(&before, took);
    Ok(json!({
        "workflows_per_s": round(per_second, 1),
        "steps_per_s": round(per_second * plan.len() as f64, 0),
        "p50_ms": round(at(0.5), 3),
        "p99_ms": round(at(0.99), 3),
        "commits_per_s": meter.get("commits_per_s"),
        "client_cpu_s": meter.get("client_cpu_s"),
        "database_cpu_s": meter.get("database_cpu_s"),
        "concurrency": concurrency,
        "seconds": round(took, 2),
    }))
}
