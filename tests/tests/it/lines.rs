//! Runs that stand in line for an exclusive key.

use std::sync::Arc;
use std::time::Duration;

use backstay_engine::{
    Action, Engine, EngineError, Line, NodeConfig, Plan, PlanBuilder, RunId, Status, SubmitOptions, Verb,
};
use backstay_tests::{Lab, Meter};
use serde_json::{Value, json};

use crate::until;

fn plan(engine: &Engine, what: &Value) -> anyhow::Result<Arc<Plan>> {
    let mut plan = PlanBuilder::new("one");
    plan.step("a", "call").input(what.clone()).nothing_to_undo("it only counts");
    Ok(plan.check(engine.registry())?)
}

fn options(queue: bool) -> SubmitOptions {
    SubmitOptions { exclusive: Some("vm-7".into()), queue, ..SubmitOptions::default() }
}

async fn in_line(engine: &Engine, name: &str) -> anyhow::Result<RunId> {
    let plan = plan(engine, &json!({ "name": name, "millis": 20 }))?;
    Ok(engine.submit(&plan, options(true)).await?.run)
}

/// The holder waits until the gate opens.
async fn holder(engine: &Engine) -> anyhow::Result<RunId> {
    let plan = plan(engine, &json!({ "name": "holder", "waits": true }))?;
    Ok(engine.submit(&plan, options(false)).await?.run)
}

fn config(name: &str) -> NodeConfig {
    NodeConfig { max_crashes: 1_000, ..Lab::config(name) }
}

async fn put_by(lab: &Lab, run: RunId) -> anyhow::Result<bool> {
    let info = lab.engine.get(run).await?;
    Ok(info.status == Status::Queued && info.owner.is_none() && info.due_at.is_none())
}

#[tokio::test(flavor = "multi_thread")]
async fn runs_come_to_a_key_in_their_order_one_at_a_time_whoever_dies() -> anyhow::Result<()> {
    let lab = Lab::new().await?;
    let meter = Arc::new(Meter::default());
    let (a, b) = (meter.engine(&lab).await?, meter.engine(&lab).await?);
    let mut node = a.start_node(config("a")).await?;
    let _b = b.start_node(config("b")).await?;
    let holder = holder(&a).await?;
    let mut runs = Vec::new();
    for n in 0..12 {
        let engine = if n % 2 == 0 { &a } else { &b };
        runs.push(in_line(engine, &n.to_string()).await?);
    }
    let refused = a.submit(&plan(&a, &json!({}))?, options(false)).await;
    let Err(EngineError::Exclusive { holder: named, .. }) = refused else { panic!("{refused:?}") };
    assert_eq!(named, holder, "who is told, is told who holds it");
    let said = a.explain(runs[2]).await?.why;
    assert_eq!(said, format!("run {holder} has \"vm-7\", and 2 runs are before it"));
    for run in &runs {
        assert!(put_by(&lab, *run).await?);
    }
    assert_eq!(a.line("vm-7").await?, Line { holder: Some(holder), waiting: runs.clone() });
    assert_eq!(a.line("vm-8").await?, Line::default());
    meter.gate.add_permits(1);
    for (n, run) in runs.iter().enumerate() {
        if n == 3 || n == 7 {
            // In the middle of whatever it does; another process of its name comes at once.
            node.kill().await;
            node = a.start_node(config("a")).await?;
        }
        assert_eq!(lab.settled_for_good(*run).await?, Status::Succeeded);
    }
    let mut order: Vec<_> = meter.begun().into_iter().map(|call| call.name).collect();
    // A call in doubt after a death is made again.
    order.dedup();
    let expected: Vec<_> =
        std::iter::once("holder".to_owned()).chain((0..12).map(|n| n.to_string())).collect();
    assert_eq!(order, expected);
    assert_eq!(meter.most(), 1, "never two at once");
    for run in runs {
        lab.assert_journal(run).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_in_line_can_be_cancelled_and_spoken_to_and_keeps_its_place() -> anyhow::Result<()> {
    let lab = Lab::new().await?;
    let meter = Arc::new(Meter::default());
    let engine = meter.engine(&lab).await?;
    let node = engine.start_node(config("a")).await?;
    let holder = holder(&engine).await?;
    let mut runs = Vec::new();
    for n in 0..3 {
        runs.push(in_line(&engine, &n.to_string()).await?);
    }
    let cancel = Verb::RollBack(backstay_engine::machine::RollBack::default());
    engine.tell(runs[0], &Action::new("somebody", "not needed", cancel)).await?;
    assert_eq!(lab.settled_for_good(runs[0]).await?, Status::RolledBack);
    engine.tell(runs[1], &Action::new("somebody", "not now", Verb::Pause)).await?;
    until("it stands where it stood", async || put_by(&lab, runs[1]).await).await?;
    assert!(meter.begun().iter().all(|call| call.name == "holder"));
    // Nobody that comes later passes, not even with a message or a new node.
    node.drain(Duration::from_secs(1)).await;
    let _node = engine.start_node(config("b")).await?;
    meter.gate.add_permits(2);
    until("its turn has come, and it is paused", async || {
        Ok(lab.engine.get(runs[1]).await?.status == Status::Paused)
    })
    .await?;
    assert!(put_by(&lab, runs[2]).await?, "who is paused has the key");
    engine.tell(runs[1], &Action::new("somebody", "now", Verb::Resume)).await?;
    for run in [holder, runs[1], runs[2]] {
        assert_eq!(lab.settled_for_good(run).await?, Status::Succeeded);
    }
    for run in runs {
        lab.assert_journal(run).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_in_line_is_not_lost_without_any_node_and_its_key_means_it() -> anyhow::Result<()> {
    let lab = Lab::new().await?;
    let meter = Arc::new(Meter::default());
    let engine = meter.engine(&lab).await?;
    let with_key = || SubmitOptions { key: Some("k".into()), ..options(true) };
    let plan = plan(&engine, &json!({ "name": "a" }))?;
    let first = engine.submit(&plan, with_key()).await?;
    let again = engine.submit(&plan, with_key()).await?;
    assert_eq!((first.created, again.created, first.run), (true, false, again.run));
    let other = engine.submit(&plan, SubmitOptions { queue: false, ..with_key() }).await;
    assert!(matches!(other, Err(EngineError::KeyReused { .. })), "{other:?}");
    assert_eq!(lab.engine.get(first.run).await?.status, Status::Queued);
    let _node = engine.start_node(config("a")).await?;
    assert_eq!(lab.settled_for_good(first.run).await?, Status::Succeeded);
    let none = engine.submit(&plan, SubmitOptions { queue: true, ..SubmitOptions::default() }).await;
    assert!(matches!(none, Err(EngineError::Options(_))), "{none:?}");
    Ok(())
}
