//! One long run: how long it takes to open its history, to fold it, and to explain it.

use std::time::Instant;

use backstay_engine::{NodeConfig, Status, SubmitOptions};
use serde_json::{Value, json};

use crate::host::Host;
use crate::{Args, round, work};

pub(crate) async fn measure(host: &Host, args: &Args) -> anyhow::Result<Value> {
    // Two events a step, and three of the run.
    let steps = args.steps.unwrap_or(5_000);
    let url = host.fresh("history").await?;
    let engine = work::engine(&url).await?;
    let node = engine.start_node(NodeConfig { name: "bench".into(), ..NodeConfig::default() }).await?;
    let plan = work::fan(&engine, steps)?;
    let submitted = engine.submit(&plan, SubmitOptions::default()).await?;
    let run = submitted.run;
    anyhow::ensure!(submitted.ended().await? == Status::Succeeded, "the run did not succeed");
    node.drain(std::time::Duration::from_secs(5)).await;
    let events = engine.journal(run).await?.len();
    let (mut journal, mut explain) = (f64::INFINITY, f64::INFINITY);
    for _ in 0..5 {
        let begun = Instant::now();
        engine.journal(run).await?;
        journal = journal.min(millis(begun));
        let begun = Instant::now();
        engine.explain(run).await?;
        explain = explain.min(millis(begun));
    }
    Ok(json!({ "events": events, "journal_ms": round(journal, 1), "explain_ms": round(explain, 1) }))
}

fn millis(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1_000.0
}
