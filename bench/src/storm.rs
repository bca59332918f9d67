//! Many runs submitted at once, for a target that bears a few calls at once: whether anybody is overtaken, whether undos
//! come first, and what those who wait cost the node.

use std::time::{Duration, Instant};

use anyhow::Context;
use backstay_engine::{Limits, NodeConfig, SubmitOptions};
use serde_json::{Value, json};
use sqlx::Connection;

use crate::host::{Host, peak_mb, resident_mb};
use crate::recovery::{expect, say, spawn};
use crate::{Args, round, work};

/// Calls at once that the target bears.
const AT_ONCE: u32 = 50;
/// How long each call takes, in milliseconds.
const CALL: u64 = 20;
/// Runs that fail while all others wait, and whose undos go to the same target.
const TURNING: usize = 100;

/// When a step of each run was begun, and how many were submitted later and begun earlier.
const WAITS: &str = "with begun as (
    select r.run_id, extract(epoch from min(j.at) - r.submitted_at)::float8 as waited,
           rank() over (order by r.submitted_at) as came, rank() over (order by min(j.at)) as went
    from runs r join events j on j.run_id = r.run_id and j.kind = 'started' and not j.undo
    where r.workflow = 'storm' group by r.run_id
)
select percentile_cont(array[0.5, 0.99, 1]) within group (order by waited),
       max(went - came)::bigint
from begun";

/// From the failure to the undo, in milliseconds.
const UNDOS: &str = "with turned as (
    select u.run_id, extract(epoch from u.at - t.at)::float8 * 1000 as waited
    from events u join journal t on t.run_id = u.run_id and t.kind = 'rolling_back'
    where u.kind = 'started' and u.undo and u.attempt = 1
)
select count(*), percentile_cont(array[0.5, 1]) within group (order by waited) from turned";

/// The most calls that the journal has under way at one moment. What ends at a moment makes room for what begins then.
const MOST: &str = "select max(under_way)::bigint from (
    select sum(change) over (order by at, change) as under_way from (
        select at, case kind when 'started' then 1 else -1 end as change
        from events join runs using (run_id)
        where kind in ('started', 'succeeded')
          and ((workflow = 'storm' and not undo) or (workflow = 'turning' and undo))
    ) as changes
) as moments";

pub(crate) async fn measure(host: &Host, args: &Args) -> anyhow::Result<Value> {
    let runs = args.concurrency.unwrap_or(10_000);
    let url = host.fresh("storm").await?;
    let engine = work::engine(&url).await?;
    engine.set_pool("target", Limits { at_once: Some(AT_ONCE), per_second: None }, None).await?;
    let begun = Instant::now();
    let (mut node, mut lines) = spawn(&url, args, runs, "storm")?;
    expect(&mut lines, "READY").await?;
    let submitted = begun.elapsed().as_secs_f64();
    let pid = node.id().context("the node is gone")?.to_string();
    let waiting_mb = resident_mb(&pid);
    let mut conn = sqlx::PgConnection::connect(&url).await?;
    let over = "select count(*) from runs where finished_at is not null";
    let all = (runs + TURNING) as i64;
    while sqlx::query_scalar::<_, i64>(over).fetch_one(&mut conn).await? < all {
        anyhow::ensure!(begun.elapsed() < Duration::from_secs(300), "not all runs came to their end");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let done = begun.elapsed().as_secs_f64();
    let peak = peak_mb(&pid);
    node.start_kill()?;
    node.wait().await?;
    let (waits, overtaken): (Vec<f64>, i64) = sqlx::query_as(WAITS).fetch_one(&mut conn).await?;
    let (undos, undo_waits): (i64, Vec<f64>) = sqlx::query_as(UNDOS).fetch_one(&mut conn).await?;
    let most: i64 = sqlx::query_scalar(MOST).fetch_one(&mut conn).await?;
    let of = |waits: &[f64], at: usize, digits| round(waits.get(at).copied().unwrap_or(f64::NAN), digits);
    Ok(json!({
        "runs": runs,
        "limit_at_once": AT_ONCE,
        "most_at_once": most,
        "all_submitted_s": round(submitted, 2),
        "all_done_s": round(done, 2),
        "at_best_s": round(runs as f64 * CALL as f64 / 1000.0 / f64::from(AT_ONCE), 2),
        "waited_p50_s": of(&waits, 0, 2),
        "waited_p99_s": of(&waits, 1, 2),
        "waited_most_s": of(&waits, 2, 2),
        "overtaken_by_at_most": overtaken,
        "undos": undos,
        "undo_waited_p50_ms": of(&undo_waits, 0, 1),
        "undo_waited_most_ms": of(&undo_waits, 1, 1),
        "waiting_memory_mb": waiting_mb,
        "peak_memory_mb": peak,
    }))
}

pub(crate) async fn worker(url: &str, args: &Args) -> anyhow::Result<()> {
    let engine = work::engine(url).await?;
    let _node = engine.start_node(NodeConfig { name: "bench".into(), ..NodeConfig::default() }).await?;
    let (storm, turning) = (work::pooled(&engine, CALL)?, work::turning(&engine, CALL)?);
    let runs = args.concurrency.unwrap_or(0);
    let mut submitting = tokio::task::JoinSet::new();
    for n in 0..runs + TURNING {
        let (engine, plan) = (engine.clone(), if n < runs { storm.clone() } else { turning.clone() });
        submitting
            .spawn(async move { engine.submit(&plan, SubmitOptions::default()).await.map(|run| run.run) });
    }
    while let Some(submitted) = submitting.join_next().await {
        submitted??;
    }
    say("READY")?;
    tokio::time::sleep(Duration::from_secs(300)).await;
    Ok(())
}
