//! Postgres is stopped at once, killed and started again, every second or two, while people submit runs, send signals
//! and decide about held steps. Whatever was acknowledged to them is there, once, and every run comes to its right end.
//!
//! `BACKSTAY_SWEEP=full` plays sixty restarts.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use backstay_engine::machine::RollBack;
use backstay_engine::{
    Action, Answer, Engine, EngineError, NodeConfig, OnFailure, Plan, PlanBuilder, RunId, Status,
    SubmitOptions, Verb,
};
use backstay_postgres::{Postgres, Settings};
use backstay_tests::{Lab, plans};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use sqlx::Connection;
use uuid::Uuid;

use crate::spoken::{all_answered, broken, mend};
use crate::until;

/// What people were told has been done, as they would remember it.
#[derive(Default)]
struct Log {
    /// Each run that was acknowledged, with its end.
    runs: BTreeMap<RunId, Status>,
    signals: Vec<(RunId, Uuid)>,
    actions: Vec<(RunId, Uuid)>,
}

/// What the clients have in common.
#[derive(Clone, Default)]
struct Crowd {
    log: Arc<Mutex<Log>>,
    enough: Arc<AtomicBool>,
    /// Requests that ended with an error, and were asked again.
    errors: Arc<AtomicU64>,
}

impl Crowd {
    fn note(&self, change: impl FnOnce(&mut Log)) {
        change(&mut self.log.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Runs, signals and actions that were acknowledged so far.
    fn counts(&self) -> [usize; 3] {
        let log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        [log.runs.len(), log.signals.len(), log.actions.len()]
    }

    /// Asks until there is an answer, under the same key or id, as any client would.
    async fn surely<T, F>(&self, mut ask: impl FnMut() -> F) -> anyhow::Result<T>
    where
        F: Future<Output = Result<T, EngineError>>,
    {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            match ask().await {
                Ok(answer) => return Ok(answer),
                // Of a run that was acknowledged.
                Err(error @ EngineError::NoSuchRun(_)) => return Err(error.into()),
                Err(error) if Instant::now() > deadline => return Err(error.into()),
                Err(_) => {
                    self.errors.fetch_add(1, Ordering::SeqCst);
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        }
    }

    async fn submit(
        &self,
        engine: &Engine,
        name: &str,
        plan: &Arc<Plan>,
        end: Status,
    ) -> anyhow::Result<RunId> {
        let options = SubmitOptions { key: Some(name.to_owned()), ..SubmitOptions::default() };
        let run = self.surely(|| engine.submit(plan, options.clone())).await?.run;
        self.note(|log| assert!(log.runs.insert(run, end).is_none(), "two runs have one id"));
        Ok(run)
    }

    /// Until the run looks so.
    async fn is(&self, engine: &Engine, run: RunId, status: Status) -> anyhow::Result<()> {
        while self.surely(|| engine.get(run)).await?.status != status {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    /// Until it is over: nobody has more than one run in hand.
    async fn is_over(&self, engine: &Engine, run: RunId) -> anyhow::Result<()> {
        while self.surely(|| engine.get(run)).await?.finished_at.is_none() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }
}

/// A wait for the signal `go`, and a step.
fn waiting(engine: &Engine, name: &str) -> anyhow::Result<Arc<Plan>> {
    let mut plan = PlanBuilder::new("waiting");
    plan.retry(plans::quick()).undo_retry(plans::quick());
    let go = plan.wait(format!("{name}-go"), json!({ "signal": "go" })).done();
    plan.step(format!("{name}-1"), "make").after([&go]).undone_by("unmake", json!({}));
    Ok(plan.check(engine.registry())?)
}

/// Two steps; the second is held.
fn held(engine: &Engine, name: &str) -> anyhow::Result<Arc<Plan>> {
    let mut plan = PlanBuilder::new("held");
    plan.retry(plans::quick()).undo_retry(plans::quick());
    let first = plan.step(format!("{name}-1"), "make").undone_by("unmake", json!({})).done();
    let second = plan.step(format!("{name}-2"), "make").input(broken()).after([&first]);
    second.on_failure(OnFailure::Hold).undone_by("unmake", json!({}));
    Ok(plan.check(engine.registry())?)
}

async fn one_run(crowd: &Crowd, engine: &Engine, name: &str, nth: usize) -> anyhow::Result<()> {
    let (last, end) = match nth % 3 {
        0 => (json!({ "fails": "permanent" }), Status::RolledBack),
        _ => (json!({ "millis": 20 }), Status::Succeeded),
    };
    let plan = plans::chain(engine, name, 3, last)?;
    let run = crowd.submit(engine, name, &plan, end).await?;
    crowd.is_over(engine, run).await
}

async fn one_signal(crowd: &Crowd, engine: &Engine, name: &str, nth: usize) -> anyhow::Result<()> {
    let run = crowd.submit(engine, name, &waiting(engine, name)?, Status::Succeeded).await?;
    // Early ones are kept; later ones wake it.
    if nth.is_multiple_of(2) {
        crowd.is(engine, run, Status::Waiting).await?;
    }
    let id = Uuid::now_v7();
    crowd.surely(|| engine.signal(run, id, "ann", "go", json!({ "n": nth }))).await?;
    crowd.note(|log| log.signals.push((run, id)));
    crowd.is_over(engine, run).await
}

async fn one_decision(crowd: &Crowd, engine: &Engine, name: &str, nth: usize) -> anyhow::Result<()> {
    let step = format!("{name}-2");
    let (verb, end) = match nth % 3 {
        0 => (mend(&step), Status::Succeeded),
        1 => (Verb::RollBack(RollBack::default()), Status::RolledBack),
        _ => {
            let output = json!({ "id": "by hand", "attempt": 0 });
            (Verb::Skip { step, undo: false, output }, Status::Succeeded)
        }
    };
    let run = crowd.submit(engine, name, &held(engine, name)?, end).await?;
    crowd.is(engine, run, Status::Held).await?;
    let action = Action::new("ann", "so be it", verb);
    // Durable is acknowledged; what it came to is looked at in the end.
    let answer = crowd.surely(|| engine.tell(run, &action)).await?;
    anyhow::ensure!(!matches!(answer, Answer::Refused { .. }), "{answer:?}");
    crowd.note(|log| log.actions.push((run, action.id)));
    crowd.is_over(engine, run).await
}

/// Two clients of each kind: one by a node, one by a process without.
fn clients(crowd: &Crowd, engines: &[Engine]) -> tokio::task::JoinSet<anyhow::Result<()>> {
    let mut clients = tokio::task::JoinSet::new();
    for (at, engine) in engines.iter().enumerate() {
        for kind in ["run", "signal", "decision"] {
            let (crowd, engine) = (crowd.clone(), engine.clone());
            clients.spawn(async move {
                let mut nth = 0;
                while !crowd.enough.load(Ordering::SeqCst) {
                    nth += 1;
                    let name = format!("{kind}{at}-{nth}");
                    match kind {
                        "run" => one_run(&crowd, &engine, &name, nth).await?,
                        "signal" => one_signal(&crowd, &engine, &name, nth).await?,
                        _ => one_decision(&crowd, &engine, &name, nth).await?,
                    }
                }
                Ok(())
            });
        }
    }
    clients
}

/// Every message is in its run's journal, once.
async fn are_answered(lab: &Lab, messages: &[(RunId, Uuid)]) -> anyhow::Result<()> {
    for (run, id) in messages {
        let rows = lab.engine.journal(*run).await?;
        let kinds: Vec<_> = rows.iter().filter(|row| row.key == Some(*id)).map(|row| row.kind).collect();
        assert_eq!(kinds, ["acted"], "message {id} to {run}\n{}", lab.story(*run).await?);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_acknowledged_is_lost_by_a_database_that_dies_again_and_again() -> anyhow::Result<()> {
    let full = std::env::var("BACKSTAY_SWEEP").is_ok_and(|value| value == "full");
    let restarts: usize = if full { 60 } else { 6 };
    let folder = tempfile::Builder::new().prefix("backstay-f4-").tempdir()?;
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755))?;
    let settings = || Settings::new(folder.path().join("pg"));
    let mut server = Postgres::start(settings()).await?;
    let lab = Lab::on(&server).await?;
    // A lease that no outage of this test outlives.
    let config = NodeConfig { lease: Duration::from_secs(20), rejoin: false, ..Lab::config("a") };
    let (engine, node) = lab.node(config).await?;
    let epoch = node.epoch();
    let crowd = Crowd::default();
    let mut clients = clients(&crowd, &[engine, lab.engine.clone()]);
    let mut under_way = Vec::new();
    for restart in 0..restarts {
        let before = crowd.counts();
        until("all kinds of requests are served", async || {
            if let Some(ended) = clients.try_join_next() {
                ended??;
            }
            Ok(crowd.counts().iter().zip(before).all(|(now, before)| *now >= before + 5))
        })
        .await?;
        let at_work = "select count(*) from runs where finished_at is null";
        let mut sql = lab.sql().await?;
        under_way.push(sqlx::query_scalar::<_, i64>(at_work).fetch_one(&mut sql).await?);
        // Only this connection's end is nobody's fault.
        sql.close().await?;
        // As `pg_ctl stop -m immediate`; every third time it has no time even for that.
        let signal = if restart % 3 == 2 { Signal::KILL } else { Signal::QUIT };
        kill_process(Pid::from_raw(server.pid().cast_signed()).unwrap(), signal)?;
        drop(server);
        server = Postgres::start(settings()).await?;
    }
    let before = crowd.counts();
    until("work goes on", async || {
        if let Some(ended) = clients.try_join_next() {
            ended??;
        }
        Ok(crowd.counts().iter().zip(before).all(|(now, before)| *now >= before + 5))
    })
    .await?;
    crowd.enough.store(true, Ordering::SeqCst);
    while let Some(ended) = clients.join_next().await {
        ended??;
    }

    let log = std::fs::read_to_string(server.log())?;
    assert_eq!(log.matches("received immediate shutdown request").count(), restarts - restarts / 3);
    assert_eq!(log.matches("was not properly shut down").count(), restarts, "each was in the middle of it");
    let [runs, signals, actions] = crowd.counts();
    let errors = crowd.errors.load(Ordering::SeqCst);
    println!(
        "{restarts} restarts with {under_way:?} runs under way, {errors} errors; acknowledged: {runs} runs, {signals} signals, {actions} actions"
    );
    assert!(under_way.iter().all(|runs| *runs > 0), "{under_way:?}");
    assert!(errors >= restarts as u64, "the clients felt it: {errors}");
    assert_eq!(node.epoch(), epoch, "no outage was longer than the lease");

    let log = std::mem::take(&mut *crowd.log.lock().unwrap_or_else(PoisonError::into_inner));
    for (run, end) in &log.runs {
        let info = lab.engine.get(*run).await?;
        assert_eq!(info.status, *end, "{}", lab.story(*run).await?);
        lab.assert_history(*run).await?;
    }
    are_answered(&lab, &log.signals).await?;
    are_answered(&lab, &log.actions).await?;
    all_answered(&lab).await?;
    let all: i64 = sqlx::query_scalar("select count(*) from runs").fetch_one(&mut lab.sql().await?).await?;
    assert_eq!(all as usize, log.runs.len(), "a request that was asked again made no second run");
    node.drain(Duration::ZERO).await;
    server.stop().await?;
    Ok(())
}
