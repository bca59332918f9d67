//! Postgres is stopped and started again while callers submit: they are told to come again, and everything goes on by
//! itself.

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use backstay_postgres::{Postgres, Settings};
use rustix::process::{Pid, Signal, kill_process};
use tokio::task::JoinSet;

use crate::rolling::Callers;
use crate::served::{Served, client};
use crate::support::Place;

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_started_again_costs_callers_a_wait_and_nothing_else() {
    const CALLERS: usize = 6;
    const RESTARTS: usize = 3;
    let folder = tempfile::Builder::new().prefix("backstay-it-").tempdir().unwrap();
    std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let settings = || Settings::new(folder.path().join("pg"));
    let mut postgres = Postgres::start(settings()).await.unwrap();
    let server = Served::on(Place::at(postgres.url("postgres")), "n1").await;
    let callers = Arc::new(Callers::default());
    *callers.bases.lock().unwrap() = vec![server.base.clone()];
    let mut tasks = JoinSet::new();
    for caller in 0..CALLERS {
        let (callers, admin) = (callers.clone(), server.admin.clone());
        tasks.spawn(async move {
            let client = client();
            for n in 0.. {
                if callers.enough.load(Ordering::SeqCst) {
                    break;
                }
                let (key, fails) = (format!("{caller}-{n}"), n % 5 == 0);
                let run = callers.submit(&client, &admin, &key, fails).await;
                callers.acknowledged.lock().unwrap().insert(key, (run, fails));
            }
        });
    }
    callers.go_on(30).await;
    for restart in 0..RESTARTS {
        // As `pg_ctl stop -m immediate`; once it has no time even for that.
        let signal = if restart == 1 { Signal::KILL } else { Signal::QUIT };
        kill_process(Pid::from_raw(postgres.pid().cast_signed()).unwrap(), signal).unwrap();
        let (refused, deadline) =
            (callers.refused.load(Ordering::SeqCst), Instant::now() + Duration::from_secs(30));
        // The callers refuse every other answer than 202, 200, and 503 with Retry-After.
        while callers.refused.load(Ordering::SeqCst) < refused + CALLERS {
            assert!(Instant::now() < deadline, "callers are not told that the database is away");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        drop(postgres);
        postgres = Postgres::start(settings()).await.unwrap();
        callers.go_on(30).await;
    }
    callers.enough.store(true, Ordering::SeqCst);
    while let Some(ended) = tasks.join_next().await {
        ended.unwrap();
    }
    let acknowledged = callers.acknowledged.lock().unwrap().clone();
    for (run, fails) in acknowledged.values() {
        server.until(run, if *fails { "rolled_back" } else { "succeeded" }).await;
    }
    let stored: i64 = sqlx::query_scalar("select count(*) from runs")
        .fetch_one(&mut server.place.sql().await)
        .await
        .unwrap();
    assert_eq!(usize::try_from(stored).unwrap(), acknowledged.len(), "each key is one run");
    server.place.run(&["check"]).await.exits(0).says("checked ");
    server.end().await;
    postgres.stop().await.unwrap();
}
