//! What the same database does with the same kind of rows, without an engine.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use serde_json::{Map, Value, json};
use sqlx::{Connection, PgConnection};

use crate::host::Host;
use crate::{Args, round, seconds};

/// One row for each step, under a run of its own, with a result of some two hundred bytes.
const TABLE: &str = "create table floor (run_id uuid not null, step int not null, name text not null, result jsonb not null, primary key (run_id, step))";
const RESULT: &str = concat!(
    r#"{"ok":true,"amount":1299,"currency":"EUR","note":""#,
    "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
    "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
    r#"","ref":"0123456789abcdef"}"#
);

pub(crate) async fn measure(host: &Host, args: &Args) -> anyhow::Result<Value> {
    let mut report = Map::new();
    for (rows, clients) in [(1, 1), (1, 16), (1, 64), (100, 1), (100, 4)] {
        let url = host.fresh("floor").await?;
        let mut conn = PgConnection::connect(&url).await?;
        sqlx::raw_sql(TABLE).execute(&mut conn).await?;
        report.insert(
            format!("insert{rows}_c{clients}"),
            json!(round(inserts(&url, args, rows, clients).await?, 0)),
        );
    }
    Ok(Value::Object(report))
}

async fn inserts(url: &str, args: &Args, rows: usize, clients: usize) -> anyhow::Result<f64> {
    let (count, measuring, stop) =
        (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let mut tasks = Vec::new();
    for _ in 0..clients {
        let (count, measuring, stop) = (Arc::clone(&count), Arc::clone(&measuring), Arc::clone(&stop));
        let mut conn = PgConnection::connect(url).await?;
        tasks.push(tokio::spawn(async move {
            let (names, results) = (vec!["charge-card"; rows], vec![RESULT; rows]);
            let steps: Vec<i32> = (0..rows as i32).collect();
            while !stop.load(Ordering::Relaxed) {
                if rows == 1 {
                    sqlx::query("insert into floor values (gen_random_uuid(), 1, $1, $2::text::jsonb)")
                        .bind("charge-card").bind(RESULT).execute(&mut conn).await?;
                } else {
                    sqlx::query("insert into floor select gen_random_uuid(), s, n, r::jsonb from unnest($1::int[], $2::text[], $3::text[]) as u (s, n, r)")
                        .bind(&steps).bind(&names).bind(&results).execute(&mut conn).await?;
                }
                if measuring.load(Ordering::Relaxed) {
                    count.fetch_add(rows as u64, Ordering::Relaxed);
                }
            }
            anyhow::Ok(())
        }));
    }
    tokio::time::sleep(seconds(args) / 3).await;
    measuring.store(true, Ordering::Relaxed);
    let begun = Instant::now();
    tokio::time::sleep(seconds(args)).await;
    stop.store(true, Ordering::Relaxed);
    let per_second = count.load(Ordering::Relaxed) as f64 / begun.elapsed().as_secs_f64();
    for task in tasks {
        task.await??;
    }
    Ok(per_second)
}
