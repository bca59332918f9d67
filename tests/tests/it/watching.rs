//! Whoever watches runs that another process drives is told of each event, and asks nothing while there is none.

use std::time::{Duration, Instant};

use backstay_engine::machine::plan::PlanBuilder;
use backstay_engine::{Engine, NodeConfig, Registry, RunHandle, Status, Store, SubmitOptions};
use backstay_tests::Lab;
use serde_json::json;
use sqlx::PgConnection;
use sqlx::postgres::PgListener;

use crate::spoken::waiting;
use crate::until;

const WATCHERS: usize = 150;

/// One process that drives, and another one that only watches. What a statement may take is short: watchers rely on
/// being told only after that.
struct Two {
    lab: Lab,
    driver: Engine,
    watcher: Engine,
    sql: PgConnection,
    _node: backstay_engine::Node,
}

impl Two {
    async fn new() -> anyhow::Result<Self> {
        let lab = Lab::new().await?;
        let short = Duration::from_secs(1);
        let quiet = NodeConfig {
            poll: Duration::from_secs(60),
            lease: Duration::from_secs(3),
            ..Lab::config("driver")
        };
        let (driver, node) = lab.node_on(Store::connect_within(&lab.url, short).await?, quiet).await?;
        let store = Store::connect_within(&lab.url, short).await?;
        let watcher = Engine::open(store, Registry::clone(lab.engine.registry())).await?;
        let sql = lab.sql().await?;
        Ok(Self { lab, driver, watcher, sql, _node: node })
    }

    /// Runs that wait, each with a watcher who has seen everything so far.
    async fn watched(&mut self) -> anyhow::Result<Vec<RunHandle>> {
        let plan = waiting(&self.driver)?;
        let mut watchers = Vec::new();
        for _ in 0..WATCHERS {
            let run = self.driver.submit(&plan, SubmitOptions::default()).await?.run;
            until("it waits", async || Ok(self.driver.get(run).await?.status == Status::Waiting)).await?;
            let last = self.driver.store().last_seq(run).await?;
            watchers.push(self.watcher.watch_after(run, last));
        }
        Ok(watchers)
    }

    /// What the process that only watches has asked so far: its sessions' transactions.
    async fn asked(&mut self) -> anyhow::Result<i64> {
        let asked =
            "select xact_commit + xact_rollback from pg_stat_database where datname = current_database()";
        sqlx::query("select pg_stat_clear_snapshot()").execute(&mut self.sql).await?;
        Ok(sqlx::query_scalar(asked).fetch_one(&mut self.sql).await?)
    }

    /// Until hardly anything is asked.
    async fn is_quiet(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let before = self.asked().await?;
            tokio::time::sleep(Duration::from_secs(2)).await;
            let asked = self.asked().await? - before;
            // The lease is renewed once a second, in two statements; and there are our own two.
            if asked < 20 {
                return Ok(());
            }
            assert!(Instant::now() < deadline, "{WATCHERS} watchers ask {asked} times in two seconds");
        }
    }

    async fn go(&self, run: backstay_engine::RunId) -> anyhow::Result<()> {
        self.lab.engine.signal(run, uuid::Uuid::new_v4(), "somebody", "go", serde_json::Value::Null).await?;
        Ok(())
    }
}

async fn next(handle: &mut RunHandle) -> anyhow::Result<Option<&'static str>> {
    let next = tokio::time::timeout(Duration::from_secs(5), handle.next()).await;
    Ok(next.map_err(|_| anyhow::anyhow!("nothing was heard of run {}", handle.run()))??.map(|row| row.kind))
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_watches_from_elsewhere_is_told_and_asks_nothing_meanwhile() -> anyhow::Result<()> {
    let mut two = Two::new().await?;
    let watchers = two.watched().await?;
    let mut watching = tokio::task::JoinSet::new();
    let runs: Vec<_> = watchers.iter().map(RunHandle::run).collect();
    for mut handle in watchers {
        watching.spawn(async move {
            // As the server does, which looks at the watcher's token meanwhile.
            let first = loop {
                if let Ok(first) = tokio::time::timeout(Duration::from_secs(1), handle.next()).await {
                    break first?;
                }
            };
            let heard = Instant::now();
            while handle.next().await?.is_some() {}
            anyhow::Ok((handle.run(), first.map(|row| row.kind), heard))
        });
    }
    two.is_quiet().await?;
    for run in &runs[..20] {
        let begun = Instant::now();
        two.go(*run).await?;
        let (told, _, heard) =
            tokio::time::timeout(Duration::from_secs(5), watching.join_next()).await?.unwrap()??;
        assert_eq!(told, *run);
        assert!(heard.duration_since(begun) < Duration::from_secs(2), "{:?}", heard.duration_since(begun));
    }
    // And still nobody asks.
    two.is_quiet().await?;
    watching.shutdown().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn watchers_look_for_themselves_when_they_cannot_hear() -> anyhow::Result<()> {
    let mut two = Two::new().await?;
    let mut watchers = two.watched().await?;
    let mut one = watchers.pop().unwrap();
    let run = one.run();
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let watching = tokio::spawn(async move {
        while let Some(kind) = next(&mut one).await? {
            let _ = tell.send(kind);
        }
        anyhow::Ok(())
    });
    // Its ear is torn off, again and again, while the run goes on.
    let ear = "select count(pg_terminate_backend(pid)) from pg_stat_activity
               where datname = current_database() and application_name = 'backstay ear'";
    until("it listens", async || {
        let torn: i64 = sqlx::query_scalar(ear).fetch_one(&mut two.sql).await?;
        Ok(torn > 0)
    })
    .await?;
    two.go(run).await?;
    assert!(told.recv().await.is_some());
    watching.await??;
    // It listens anew for whoever comes later.
    until("it listens again", async || {
        let ear = "select count(*) from pg_stat_activity
                   where datname = current_database() and application_name = 'backstay ear'";
        Ok(sqlx::query_scalar::<_, i64>(ear).fetch_one(&mut two.sql).await? > 0)
    })
    .await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_is_gone_keeps_no_connection_for_its_watchers() -> anyhow::Result<()> {
    let mut two = Two::new().await?;
    let run = two.driver.submit(&waiting(&two.driver)?, SubmitOptions::default()).await?.run;
    let mut handle = two.watcher.watch(run);
    assert!(handle.next().await?.is_some());
    let sql = &mut two.sql;
    let mut ears = async || -> anyhow::Result<i64> {
        let ears = "select count(*) from pg_stat_activity
                    where application_name = 'backstay ear' and datname = current_database()";
        Ok(sqlx::query_scalar(ears).fetch_one(&mut *sql).await?)
    };
    let deadline = Instant::now() + Duration::from_secs(10);
    while ears().await? == 0 {
        assert!(Instant::now() < deadline, "nobody listens");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    drop((handle, two.watcher));
    while ears().await? > 0 {
        assert!(Instant::now() < deadline, "a connection listens for nobody");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// Commits that tell somebody wait for each other, and cost twice as much: a young node tells everybody who is there, and
/// nobody who is not.
#[tokio::test(flavor = "multi_thread")]
async fn a_young_node_tells_those_who_are_there_and_nobody_else() -> anyhow::Result<()> {
    const ALL: &str = "that was all";
    let lab = Lab::new().await?;
    let mut sql = lab.sql().await?;
    let mut said = PgListener::connect(&lab.url).await?;
    said.listen("backstay_moved").await?;
    for (name, is_somebody_there) in [("alone", false), ("heard", true)] {
        if is_somebody_there {
            let ear = "select pg_advisory_lock_shared(hashtext('backstay'), hashtext('ear'))";
            sqlx::query(ear).execute(&mut sql).await?;
        }
        let (engine, _node) = lab.node(Lab::config(name)).await?;
        let mut plan = PlanBuilder::new("short");
        plan.step("only", "make").undone_by("unmake", json!({}));
        let plan = plan.check(engine.registry())?;
        let run = engine.submit(&plan, SubmitOptions::default()).await?;
        assert_eq!(run.ended().await?, Status::Succeeded);
        sqlx::query("select pg_notify('backstay_moved', $1)").bind(ALL).execute(&mut sql).await?;
        let mut before = 0;
        while said.recv().await?.payload() != ALL {
            before += 1;
        }
        assert_eq!(before > 0, is_somebody_there, "{name}: told {before} times");
    }
    Ok(())
}
