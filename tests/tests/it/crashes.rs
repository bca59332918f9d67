//! Wherever a node dies, the run comes to the end that it would have reached.
//!
//! The calm run of a plan tells which crash points it passes and how often. Then, for each passage, a node dies
//! there and another one goes on: the ending and the world must be the same. `BACKSTAY_SWEEP=full` plays every
//! failing step and every failing undo; the default plays some.

use std::time::Duration;

use backstay_engine::{Engine, Plan, Registry, Status, SubmitOptions};
use backstay_tests::{Deaths, Lab, Make, Twice, Unmake, With, plans};
use serde_json::{Value, json};

/// What a play came to.
#[derive(Debug, PartialEq)]
struct Ending {
    status: Status,
    things: Vec<String>,
}

type PlanOf = dyn Fn(&Engine) -> anyhow::Result<std::sync::Arc<Plan>> + Send + Sync;

/// Submits under a key and sees the run to its end, over the death of one node.
async fn play(plan_of: &PlanOf, deaths: &Deaths, heir: &str) -> anyhow::Result<Ending> {
    let lab = Lab::new().await?;
    let mut config = Lab::config("a");
    config.lease = if heir == "a" { Duration::from_secs(30) } else { Duration::from_millis(400) };
    config.crash_hook = Some(deaths.hook());
    let (engine, first) = lab.node(config.clone()).await?;
    let plan = plan_of(&engine)?;
    let options = SubmitOptions { key: Some("the one".into()), ..SubmitOptions::default() };
    // The node may die over the submission: the caller repeats it, and there is still one run.
    let run = match tokio::time::timeout(Duration::from_secs(20), engine.submit(&plan, options.clone())).await
    {
        Ok(Ok(submitted)) => submitted.run,
        _ => lab.engine.submit(&plan, options.clone()).await?.run,
    };
    tokio::select! {
        () = first.ended() => {}
        status = lab.settled(run) => {
            status?;
        }
    }
    let mut second = None;
    if deaths.fired() {
        drop(first);
        config.name = heir.into();
        config.crash_hook = None;
        second = Some(lab.node(config).await?);
    }
    let again = lab.engine.submit(&plan, options).await?;
    assert_eq!((again.run, again.created), (run, false), "the same key gives the same run");
    let status = lab.settled(run).await?;
    drop(second);
    check(&lab, run).await?;
    Ok(Ending { status, things: lab.world.things().await? })
}

/// What must be true of every history.
async fn check(lab: &Lab, run: backstay_engine::RunId) -> anyhow::Result<()> {
    lab.assert_history(run).await
}

async fn sweep(name: &str, plan_of: &PlanOf) -> anyhow::Result<usize> {
    let calm = Deaths::none();
    let ending = play(plan_of, &calm, "a").await?;
    let mut died = 0;
    for (n, (point, nth)) in calm.passed().into_iter().enumerate() {
        let deaths = Deaths::at(point, nth);
        // Mostly the same node comes back; now and then another one waits for its lease to run out.
        let heir = if n % 7 == 3 { "b" } else { "a" };
        let after = play(plan_of, &deaths, heir)
            .await
            .map_err(|error| error.context(format!("{name}: death at {point} #{nth}")))?;
        assert_eq!(after, ending, "{name}: death at {point} #{nth}");
        // Batches depend on timing: a passage of the calm run may not come in another one.
        died += usize::from(deaths.fired());
    }
    Ok(died)
}

fn full() -> bool {
    std::env::var("BACKSTAY_SWEEP").is_ok_and(|form| form == "full")
}

async fn sweep_all(cases: Vec<(String, Vec<(&'static str, Value)>)>) -> anyhow::Result<()> {
    let mut tasks = tokio::task::JoinSet::new();
    for (name, like) in cases {
        tasks.spawn(async move {
            let plan_of = move |engine: &Engine| plans::diamond(engine, &like);
            let died = sweep(&name, &plan_of).await?;
            anyhow::Ok((name, died))
        });
    }
    let mut total = 0;
    while let Some(done) = tasks.join_next().await {
        let (name, died) = done??;
        assert!(died >= 20, "{name}: only {died} deaths");
        total += died;
    }
    println!("{total} deaths");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_ends_the_same_wherever_its_node_dies() -> anyhow::Result<()> {
    let saves = json!({ "saves": true });
    let late = json!({ "fails": "late:1" });
    sweep_all(vec![
        ("calm".into(), vec![("b", saves)]),
        ("late answers".into(), vec![("b", late.clone()), ("d", json!({ "fails": "1" }))]),
    ])
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_ends_the_same_wherever_its_node_dies() -> anyhow::Result<()> {
    let steps: &[&'static str] = if full() { &["a", "b", "c", "d", "e"] } else { &["c", "e"] };
    let mut cases = Vec::new();
    for &step in steps {
        cases.push((format!("{step} breaks"), vec![(step, json!({ "fails": "permanent" }))]));
    }
    sweep_all(cases.into_iter().filter(|(name, _)| name != "a breaks").collect()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_gets_stuck_the_same_wherever_its_node_dies() -> anyhow::Result<()> {
    let undos: &[&'static str] =
        if full() { &["undo a", "undo b", "undo c", "undo d", "undo e"] } else { &["undo b"] };
    let broken = json!({ "fails": "permanent" });
    let cases = undos
        .iter()
        .map(|undo| (format!("e breaks, {undo} too"), vec![("e", broken.clone()), (*undo, broken.clone())]));
    sweep_all(cases.collect()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn each_attempt_may_run_twice() -> anyhow::Result<()> {
    let lab = Lab::new().await?;
    let registry = Registry::new()
        .with(With(Twice, Make(lab.world.clone())))
        .with(With(Twice, Unmake(lab.world.clone())));
    let engine = Engine::open(lab.engine.store().clone(), registry).await?;
    let _node = engine.start_node(Lab::config("a")).await?;
    for (like, status, things) in [
        (vec![("b", json!({ "saves": true }))], Status::Succeeded, 5),
        (vec![("e", json!({ "fails": "half" }))], Status::RolledBack, 5),
    ] {
        let submitted = engine.submit(&plans::diamond(&engine, &like)?, SubmitOptions::default()).await?;
        assert_eq!(submitted.ended().await?, status);
        assert_eq!(lab.world.things().await?.len(), things, "as if each had run once");
    }
    assert_eq!(lab.world.touched("make", "a").await?, 4, "two runs, each attempt twice");
    Ok(())
}
