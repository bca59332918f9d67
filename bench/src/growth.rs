//! What a step costs with a long journal, compared with a short one.

use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};

use crate::host::Host;
use crate::{Args, load, round, work};

const SHORT: usize = 10_000;

pub(crate) async fn measure(host: &Host, args: &Args) -> anyhow::Result<Value> {
    let long = args.steps.unwrap_or(1_000_000);
    let concurrency = args.concurrency.unwrap_or(16);
    // Short, long, short, long: a machine that gets slower or faster on the way does not pass for growth.
    let mut figures = Vec::new();
    for (round, events) in [SHORT, long, SHORT, long].into_iter().enumerate() {
        let url = host.fresh(&format!("growth_{events}")).await?;
        let engine = work::engine(&url).await?;
        fill(&url, events).await?;
        let plan = work::chain(&engine, 10)?;
        let result = load::closed_loop(&url, &engine, plan, args, concurrency).await?;
        let steps = result.get("steps_per_s").and_then(Value::as_f64).unwrap_or(f64::NAN);
        figures.push((round, events, steps));
    }
    let mean = |events: usize| {
        let of: Vec<_> = figures.iter().filter(|f| f.1 == events).map(|f| 1.0 / f.2).collect();
        of.iter().sum::<f64>() / of.len() as f64
    };
    Ok(json!({
        "events_short": SHORT,
        "events_long": long,
        "steps_per_s": figures.iter().map(|f| f.2).collect::<Vec<_>>(),
        "cost_ratio": round(mean(long) / mean(SHORT), 3),
    }))
}

/// Finished runs of twenty-two events each, as ten steps leave them.
pub(crate) async fn fill(url: &str, events: usize) -> anyhow::Result<()> {
    let runs = (events / 22) as i64;
    let mut conn = PgConnection::connect(url).await?;
    sqlx::query(
        "insert into runs (run_id, workflow, status, plan_hash, activities, request_hash, submitted_at, finished_at)
         select ('00000000-0000-7000-8000-' || lpad(to_hex(g), 12, '0'))::uuid, 'old', 'succeeded', 'x', '{noop}', '', now(), now()
         from generate_series(1, $1) g",
    )
    .bind(runs)
    .execute(&mut conn)
    .await?;
    sqlx::query(
        "insert into journal (run_id, seq, claim, epoch, at, kind, step, undo, generation, attempt, key, body)
         select ('00000000-0000-7000-8000-' || lpad(to_hex(g), 12, '0'))::uuid, s, 0, 1, now(), 'succeeded', 'step-1', false, 0, 1, null, '{\"ok\":true}'
         from generate_series(1, $1) g, generate_series(1, 22) s",
    )
    .bind(runs)
    .execute(&mut conn)
    .await?;
    sqlx::raw_sql("vacuum analyze").execute(&mut conn).await?;
    sqlx::raw_sql("checkpoint").execute(&mut conn).await?;
    Ok(())
}
