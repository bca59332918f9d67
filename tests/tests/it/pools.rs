//! Limits of targets, held over several nodes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use backstay_engine::store::access::{Change, Changed};
use backstay_engine::store::{ShareRow, probe};
use backstay_engine::{
    Breaker, Engine, EngineError, Limits, NodeConfig, Plan, PlanBuilder, RunId, Status, SubmitOptions,
};
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

fn at_once(at_once: u32) -> Limits {
    Limits { at_once: Some(at_once), ..Limits::default() }
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
    lab.engine.set_pool("target", at_once(5), None).await?;
    let mut nodes = Vec::new();
    for name in ["a", "b", "c"] {
        let engine = meter.engine(&lab).await?;
        let node = engine.start_node(config(name)).await?;
        nodes.push((engine, node));
    }
    let mut runs = Vec::new();
    for (engine, _) in &nodes {
        for n in 0..60 {
            runs.push(submit(engine, json!({ "name": format!("{n}"), "waits": true, "millis": 20 })).await?);
        }
    }
    // A place goes over to another node when a call ends; they end one by one, so that there are some left.
    until("every node has places", async || {
        let shares = lab.engine.pool("target").await?.shares;
        let all = shares.len() == 3 && shares.iter().all(|share| share.slots > Some(0));
        if !all {
            meter.gate.add_permits(1);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(all)
    })
    .await?;
    meter.gate.add_permits(1_000);
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
    lab.engine.set_pool("target", at_once(2), None).await?;
    let (a, b) = (meter.engine(&lab).await?, meter.engine(&lab).await?);
    let node = a.start_node(config("a")).await?;
    for n in 0..2 {
        submit(&a, json!({ "name": format!("{n}"), "waits": true })).await?;
    }
    until("it holds the whole pool", async || Ok(meter.now() == 2)).await?;
    let _b = b.start_node(config("b")).await?;
    let run = submit(&b, json!({ "name": "b" })).await?;
    until("the other node has asked, and got nothing", async || {
        let shares = lab.engine.pool("target").await?.shares;
        Ok(shares.iter().any(|share| share.node == "b" && share.waiting == 1 && share.slots == Some(0)))
    })
    .await?;
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
    lab.engine.set_pool("target", Limits { per_second: Some(20.0), ..Limits::default() }, None).await?;
    let (a, b) = (meter.engine(&lab).await?, meter.engine(&lab).await?);
    let _nodes = (a.start_node(config("a")).await?, b.start_node(config("b")).await?);
    let mut runs = submit_many(&a, 25, 0).await?;
    runs.extend(submit_many(&b, 25, 0).await?);
    all_succeed(&lab, &runs).await?;
    let times: Vec<_> = meter.begun().into_iter().map(|call| call.at).collect();
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
    lab.engine.set_pool("target", at_once(1), None).await?;
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
        meter.begun().into_iter().map(|call| call.name).filter(|name| name != "a" && name != "b").collect();
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
    lab.engine.set_pool("target", at_once(8), None).await?;
    let (a, b) = (meter.engine(&lab).await?, meter.engine(&lab).await?);
    let _nodes = (a.start_node(config("a")).await?, b.start_node(config("b")).await?);
    meter.set_down(true);
    let mut runs = submit_many(&a, 20, 100).await?;
    runs.extend(submit_many(&b, 20, 100).await?);
    until("there is an outage", async || Ok(lab.engine.pools().await?[0].outage.is_some())).await?;
    until("it was tried in vain", async || {
        let outages = lab.engine.outages().await?;
        Ok(outages.len() == 1 && outages[0].outage.tries >= 2)
    })
    .await?;
    let down = lab.engine.outages().await?.remove(0);
    assert_eq!((down.pool.as_str(), down.outage.why.as_str()), ("target", "it does not answer"));
    assert!(down.waiting > 30, "one outage for all of them: {down:?}");
    let waits = b.explain(runs[39]).await?;
    assert!(waits.why.contains("that target is down since"), "{waits:?}");
    assert!(waits.unblocked_by.contains("is tried again at"), "{waits:?}");
    let in_vain = meter.begun();
    let found = in_vain.len() - down.outage.tries as usize;
    assert!(found <= 5 + 2 * 8, "{found} calls found it down");
    // 0.3 s after the last of those, and then 0.6 s after each try.
    let tries = in_vain[in_vain.len() - 2..].windows(2).map(|pair| pair[1].at - pair[0].at);
    for pause in tries {
        assert!(pause > Duration::from_millis(550), "it was tried again after {pause:?}");
    }
    meter.set_down(false);
    let before = meter.begun().len();
    all_succeed(&lab, &runs).await?;
    assert!(lab.engine.outages().await?.is_empty());
    // The first that succeeds ends the outage; from then on there is room for 1, 2, 4, ... calls, second by second.
    let after = &meter.begun()[before..];
    for call in after {
        let room = 1 << (call.at - after[0].at).as_secs();
        assert!(
            call.under_way <= room.min(8),
            "{} under way where there was room for {room}",
            call.under_way
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_that_a_person_declares_lasts_until_a_person_ends_it() -> anyhow::Result<()> {
    let lab = Lab::new().await?;
    let meter = Arc::new(Meter::default());
    let engine = meter.engine(&lab).await?;
    let _node = engine.start_node(config("a")).await?;
    let first = submit(&engine, json!({ "name": "first", "waits": true })).await?;
    until("it is under way", async || Ok(meter.now() == 1)).await?;
    let by = |who: &str| Change { entry: format!("{{\"who\": \"{who}\"}}"), kept: None };
    let declared = engine.declare_outage("target", "anna", "a new switch", Some(&by("anna"))).await?;
    assert!(matches!(declared, Changed::Done(_)));
    assert_eq!(engine.declare_outage("target", "bert", "me too", Some(&by("bert"))).await?, Changed::Missing);
    until("the node knows", async || {
        Ok(engine.pool("target").await?.shares.iter().any(|s| s.slots.is_some()))
    })
    .await?;
    let second = submit(&engine, json!({ "name": "second" })).await?;
    // What was under way goes on, and that it succeeds is no proof to the contrary.
    meter.gate.add_permits(1);
    all_succeed(&lab, &[first]).await?;
    until("the node has said so", async || {
        let pool = engine.pool("target").await?;
        Ok((pool.busy, pool.waiting) == (0, 1))
    })
    .await?;
    let down = engine.outages().await?.remove(0);
    assert_eq!(down.outage.declarer.as_deref(), Some("anna"));
    assert_eq!((down.outage.why.as_str(), down.outage.next_try, down.waiting), ("a new switch", None, 1));
    let waits = engine.explain(second).await?;
    assert!(waits.unblocked_by.contains("anna declared the outage"), "{waits:?}");
    assert_eq!(meter.begun().len(), 1);
    assert!(engine.end_outage("target", Some("{\"who\": \"bert\"}")).await?);
    assert!(!engine.end_outage("target", None).await?);
    all_succeed(&lab, &[second]).await?;
    let trail: Vec<String> = sqlx::query_scalar("select entry ->> 'who' from audit order by nr")
        .fetch_all(&mut lab.sql().await?)
        .await?;
    assert_eq!(trail, ["anna", "bert"], "what changed nothing leaves no entry");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_that_mean_nothing_are_refused_and_others_hold_from_then_on() -> anyhow::Result<()> {
    let lab = Lab::new().await?;
    let engine = &lab.engine;
    let nothing = Limits { per_second: Some(0.0), ..Limits::default() };
    for (name, limits) in [("p", at_once(0)), ("p", nothing), ("", at_once(1)), ("a pool", at_once(1))] {
        assert!(matches!(engine.set_pool(name, limits, None).await, Err(EngineError::Options(_))));
    }
    assert!(matches!(engine.pool("p").await, Err(EngineError::NoSuchPool(_))));
    assert!(engine.pools().await?.is_empty());
    engine.set_pool("p", Limits { at_once: Some(3), per_second: Some(1.5) }, None).await?;
    engine.set_pool("p", at_once(4), None).await?;
    let pool = engine.pool("p").await?;
    assert_eq!((pool.at_once, pool.per_second, pool.busy), (Some(4), None, 0));
    assert!(!engine.end_outage("p", None).await?, "it is not down");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn who_settles_a_share_sees_what_all_others_hold() -> anyhow::Result<()> {
    const LIMIT: i32 = 7;
    let lab = Lab::new().await?;
    let store = lab.engine.store().clone();
    lab.engine.set_pool("p", at_once(LIMIT as u32), None).await?;
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
