//! Limits of targets, held over several nodes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use backstay_engine::store::{ShareRow, probe};
use backstay_engine::{Breaker, Engine, NodeConfig, Plan, PlanBuilder, RunId, Status, SubmitOptions};
use backstay_tests::{Lab, Meter};
use serde_json::{Value, json};

use crate::until;

/// One call into the pool.
fn one(engine: &Engine, what: &Value) -> anyhow::Result<Arc<Plan>> {
    let mut plan = PlanBuilder::new("one");
    plan.step("a", "call").pool("target").input(what.clone()).nothing_to_undo("it only counts");
    Ok(plan.check(engine.registry())?)
}

async fn submit(engine: &Engine, what: Value) -> anyhow::Result<RunId> {
    Ok(engine.submit(&one(engine, &what)?, SubmitOptions::default()).await?.run)
}

async fn submit_many(engine: &Engine, count: usize, millis: u64) -> anyhow::Result<Vec<RunId>> {
    let mut runs = Vec::new();
    for n in 0..count {
        runs.push(submit(engine, json!({ "name": format!("{n}"), "millis": millis })).await?);
    }
    Ok(runs)
}

async fn all_succeed(lab: &Lab, runs: &[RunId]) -> anyhow::Result<()> {
    for run in runs {
        assert_eq!(lab.settled_for_good(*run).await?, Status::Succeeded);
    }
    Ok(())
}

fn config(name: &str) -> NodeConfig {
    let breaker =
        Breaker { failures: 5, first: Duration::from_millis(300), ceiling: Duration::from_millis(600) };
    NodeConfig { max_crashes: 1_000, breaker, ..Lab::config(name) }
}

#[tokio::test(flavor = "multi_thread")]
async fn three_nodes_never_have_more_calls_than_the_pool_also_when_one_is_killed() -> anyhow::Result<()> {
    let lab = Lab::new().await?;
    let meter = Arc::new(Meter::default());
    lab.engine.set_pool("target", Some(5), None).await?;
    let mut nodes = Vec::new();
    for name in ["a", "b", "c"] {
        let engine = meter.engine(&lab).await?;
        let node = engine.start_node(config(name)).await?;
        nodes.push((engine, node));
    }
    let mut runs = Vec::new();
    for (engine, _) in &nodes {
        runs.extend(submit_many(engine, 80, 40).await?);
    }
    until("every node has places", async || {
        let pools = lab.engine.pools().await?;
        Ok(pools[0].shares.len() == 3 && pools[0].shares.iter().all(|share| share.slots > Some(0)))
    })
    .await?;
    let (_, node) = nodes.remove(0);
    node.kill().await;
    all_succeed(&lab, &runs).await?;
    assert_eq!(meter.most(), 5, "the limit is kept, and used");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_places_of_a_node_that_is_gone_are_free_once_its_lease_is_over() -> anyhow::Result<()> {
    let lab = Lab::new().await?;
    let meter = Arc::new(Meter::default());
    lab.engine.set_pool("target", Some(2), None).await?;
    let (a, b) = (meter.engine(&lab).await?, meter.engine(&lab).await?);
    let node = a.start_node(config("a")).await?;
    for n in 0..2 {
        submit(&a, json!({ "name": format!("{n}"), "waits": true })).await?;
    }
    until("it holds the whole pool", async || Ok(meter.now() == 2)).await?;
    let _b = b.start_node(config("b")).await?;
    let run = submit(&b, json!({ "name": "b" })).await?;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(lab.engine.get(run).await?.status, Status::Running);
    assert_eq!(meter.begun().len(), 2, "there is no place");
    let why = b.explain(run).await?.why;
    assert!(why.contains("a waits for a place in the pool \"target\""), "{why}");
    node.kill().await;
    let killed = Instant::now();
    meter.gate.add_permits(10);
    all_succeed(&lab, &[run]).await?;
    assert!(killed.elapsed() > Duration::from_millis(900), "only once its lease was over");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_begin_no_faster_than_their_rate() -> anyhow::Result<()> {
    let lab = Lab::new().await?;
    let meter = Arc::new(Meter::default());
    lab.engine.set_pool("target", None, Some(20.0)).await?;
    let (a, b) = (meter.engine(&lab).await?, meter.engine(&lab).await?);
    let _nodes = (a.start_node(config("a")).await?, b.start_node(config("b")).await?);
    let mut runs = submit_many(&a, 25, 0).await?;
    runs.extend(submit_many(&b, 25, 0).await?);
    all_succeed(&lab, &runs).await?;
    let times: Vec<_> = meter.begun().into_iter().map(|(at, _)| at).collect();
    let busiest = times
        .iter()
        .map(|from| times.iter().filter(|at| **at >= *from && **at < *from + Duration::from_secs(1)).count())
        .max();
    // Each node may begin one at once, and a node under load begins late what it was allowed earlier.
    assert!(busiest <= Some(24), "{busiest:?} in one second");
    assert!(*times.last().unwrap() - times[0] > Duration::from_millis(1_900));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn undos_go_before_steps_and_the_urgent_before_the_others() -> anyhow::Result<()> {
    let lab = Lab::new().await?;
    let meter = Arc::new(Meter::default());
    lab.engine.set_pool("target", Some(1), None).await?;
    let engine = meter.engine(&lab).await?;
    let _node = engine.start_node(config("a")).await?;
    submit(&engine, json!({ "name": "first", "waits": true })).await?;
    until("it has the only place", async || Ok(meter.now() == 1)).await?;
    submit_many(&engine, 20, 0).await?;
    let urgent = one(&engine, &json!({ "name": "urgent" }))?;
    engine.submit(&urgent, SubmitOptions { priority: Some(2), ..SubmitOptions::default() }).await?;
    let mut plan = PlanBuilder::new("turns-round");
    let a = plan
        .step("a", "call")
        .input(json!({ "name": "a" }))
        .undone_by("call", json!({ "name": "a" }))
        .undo_pool("target")
        .done();
    let b = plan.step("b", "call").input(json!({ "name": "b", "fails": true })).after([&a]);
    b.nothing_to_undo("it only fails");
    let run = engine.submit(&plan.check(engine.registry())?, SubmitOptions::default()).await?.run;
    until("it rolls back", async || Ok(lab.engine.get(run).await?.status == Status::RollingBack)).await?;
    meter.gate.add_permits(1);
    assert_eq!(lab.settled_for_good(run).await?, Status::RolledBack);
    until("all had their turn", async || Ok(meter.different() == 25)).await?;
    let pooled: Vec<_> =
        meter.begun().into_iter().map(|(_, name)| name).filter(|name| name != "a" && name != "b").collect();
    let expected: Vec<_> = ["first", "undo a", "urgent"]
        .into_iter()
        .map(str::to_owned)
        .chain((0..20).map(|n| n.to_string()))
        .collect();
    assert_eq!(pooled, expected);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_is_down_is_left_alone_tried_and_comes_back_slowly() -> anyhow::Result<()> {
    let lab = Lab::new().await?;
    let meter = Arc::new(Meter::default());
    lab.engine.set_pool("target", Some(8), None).await?;
    let (a, b) = (meter.engine(&lab).await?, meter.engine(&lab).await?);
    let _nodes = (a.start_node(config("a")).await?, b.start_node(config("b")).await?);
    meter.set_down(true);
    let mut runs = submit_many(&a, 20, 100).await?;
    runs.extend(submit_many(&b, 20, 100).await?);
    until("there is an outage", async || Ok(lab.engine.pools().await?[0].outage.is_some())).await?;
    until("all that was under way has ended", async || Ok(meter.now() == 0)).await?;
    let before = meter.begun().len();
    assert!(before <= 5 + 2 * 8, "{before} calls found it down");
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    let tries = meter.begun().len() - before;
    // 0.3 s, then 0.6 s each.
    assert!((2..=6).contains(&tries), "{tries} tries in 2.5 s");
    let outage = lab.engine.pools().await?[0].outage.clone().expect("it is down yet");
    assert_eq!(outage.why, "it does not answer");
    assert!(outage.tries >= 2, "{outage:?}");
    meter.most();
    meter.set_down(false);
    until("it is back", async || Ok(lab.engine.pools().await?[0].outage.is_none())).await?;
    tokio::time::sleep(Duration::from_millis(600)).await;
    let at_first = meter.most();
    assert!(at_first <= 2, "{at_first} at once in the first second");
    all_succeed(&lab, &runs).await?;
    assert!(meter.most() <= 8);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn who_settles_a_share_sees_what_all_others_hold() -> anyhow::Result<()> {
    const LIMIT: i32 = 7;
    let lab = Lab::new().await?;
    let store = lab.engine.store().clone();
    lab.engine.set_pool("p", Some(LIMIT as u32), None).await?;
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..6 {
        let store = store.clone();
        tasks.spawn(async move {
            let mut conn = probe::session(&store, "test").await?;
            let lease = Duration::from_secs(60);
            let (life, _) = probe::begin_life(&mut conn, &format!("n{n}"), &[], lease).await?;
            for round in 0..60 {
                let most = probe::settle_share(&mut conn, &life, "p", |pool, others, _| {
                    let taken: i32 = others.iter().filter_map(|share| share.slots).sum();
                    let free = pool.at_once.unwrap_or(0) - taken;
                    let slots = Some((round % 4).min(free));
                    let (epoch, node) = (life.epoch.0, life.name.clone());
                    let own = ShareRow { epoch, node, slots, rate: None, busy: 0, waiting: 0 };
                    (own, taken)
                })
                .await?;
                anyhow::ensure!(most <= LIMIT, "{most} of {LIMIT} were held");
            }
            anyhow::Ok(life)
        });
    }
    let mut sql = lab.sql().await?;
    let held = "select coalesce(sum(slots), 0) from pool_shares";
    let mut lives = Vec::new();
    while !tasks.is_empty() {
        let held: i64 = sqlx::query_scalar(held).fetch_one(&mut sql).await?;
        assert!(held <= i64::from(LIMIT), "{held} of {LIMIT} are held");
        if let Some(done) = tasks.try_join_next() {
            lives.push(done??);
        }
    }
    // What a life held is free once it has ended, and a life that has ended is given nothing.
    let mut conn = probe::session(&store, "test").await?;
    let own = |life: &backstay_engine::store::Life| ShareRow {
        epoch: life.epoch.0,
        node: life.name.clone(),
        slots: Some(1),
        rate: None,
        busy: 0,
        waiting: 0,
    };
    let seen =
        probe::settle_share(&mut conn, &lives[0], "p", |_, others, _| (own(&lives[0]), others.len())).await?;
    assert_eq!(seen, 5);
    probe::end_life(&mut conn, &lives[1]).await?;
    let seen =
        probe::settle_share(&mut conn, &lives[0], "p", |_, others, _| (own(&lives[0]), others.len())).await?;
    assert_eq!(seen, 4);
    let fenced = probe::settle_share(&mut conn, &lives[1], "p", |_, _, _| (own(&lives[1]), ())).await;
    assert!(matches!(fenced, Err(backstay_engine::StoreError::Fenced)), "{fenced:?}");
    Ok(())
}
