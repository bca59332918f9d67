//! Removing runs that are over: what a batch takes, and what that makes in a second.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::host::Host;
use crate::{Args, growth, round, work};

/// As many as a node removes in one commit.
const BATCH: u32 = 200;

pub(crate) async fn measure(host: &Host, args: &Args) -> anyhow::Result<Value> {
    let events = args.steps.unwrap_or(1_000_000);
    let url = host.fresh("removal").await?;
    let engine = work::engine(&url).await?;
    growth::fill(&url, events).await?;
    let begun = Instant::now();
    let (mut batches, mut runs) = (Vec::new(), 0);
    loop {
        let batch = Instant::now();
        let removed = engine.purge(Duration::ZERO, Duration::ZERO, BATCH).await?.runs;
        if removed == 0 {
            break;
        }
        runs += removed;
        batches.push(batch.elapsed().as_secs_f64() * 1000.0);
    }
    let took = begun.elapsed().as_secs_f64();
    batches.sort_by(f64::total_cmp);
    let of = |part: f64| batches.get((batches.len() as f64 * part) as usize).or(batches.last());
    Ok(json!({
        "runs": runs,
        "events": events,
        "batch": BATCH,
        "runs_per_s": round(runs as f64 / took, 0),
        "batch_p50_ms": of(0.5).map(|ms| round(*ms, 1)),
        "batch_p99_ms": of(0.99).map(|ms| round(*ms, 1)),
        "batch_most_ms": of(1.0).map(|ms| round(*ms, 1)),
    }))
}
