//! Runs that are steps of other runs, on real Postgres: begun, paused, rolled back with their parents, and heard of at
//! their end, whichever node has which.

use std::sync::Arc;
use std::time::Duration;

use backstay_engine::machine::{Action, RollBack, Verb};
use backstay_engine::{Engine, Plan, PlanBuilder, RunFilter, RunId, Status, SubmitOptions};
use backstay_tests::{Deaths, Lab, plans};
use serde_json::{Value, json};

use crate::until;

/// A step, two runs side by side behind it, and a step behind both. What the inner steps are like is given by name.
fn family(engine: &Engine, like: &[(&str, Value)]) -> anyhow::Result<Arc<Plan>> {
    let of = |name: &str| like.iter().find(|(n, _)| *n == name).map_or(json!({}), |(_, input)| input.clone());
    let child = |name: &str| {
        let mut child = PlanBuilder::new("child");
        child.retry(plans::quick()).undo_retry(plans::quick());
        let first = child.step(format!("{name}-1"), "make").undone_by("unmake", json!({})).done();
        let second = format!("{name}-2");
        child.step(second.clone(), "make").input(of(&second)).after([&first]).undone_by("unmake", json!({}));
        child
    };
    let mut plan = PlanBuilder::new("family");
    plan.retry(plans::quick()).undo_retry(plans::quick());
    let a = plan.step("a", "make").undone_by("unmake", json!({})).done();
    let left = plan.run("left", child("left")).after([&a]).done();
    let right = plan.run("right", child("right")).after([&a]).done();
    plan.step("z", "make").input(of("z")).after([&left, &right]).undone_by("unmake", json!({}));
    Ok(plan.check(engine.registry())?)
}

async fn children(lab: &Lab) -> anyhow::Result<Vec<RunId>> {
    let filter = RunFilter { workflow: Some("child".into()), ..RunFilter::default() };
    Ok(lab.engine.list(&filter).await?.into_iter().map(|info| info.run).collect())
}

async fn all_is_well(lab: &Lab, parent: RunId) -> anyhow::Result<()> {
    lab.assert_history(parent).await?;
    for child in children(lab).await? {
        lab.assert_history(child).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parent_goes_on_when_its_runs_have_ended() -> anyhow::Result<()> {
    let lab = Lab::new().await?;
    let (engine, _node) = lab.node(Lab::config("a")).await?;
    let plan = family(&engine, &[])?;
    let parent = engine.submit(&plan, SubmitOptions::default()).await?.run;
    assert_eq!(lab.settled_for_good(parent).await?, Status::Succeeded);
    assert_eq!(lab.world.things().await?, ["a", "left-1", "left-2", "right-1", "right-2", "z"]);
    let children = children(&lab).await?;
    assert_eq!(children.len(), 2);
    for child in children {
        let info = lab.engine.get(child).await?;
        assert_eq!(info.labels["parent"], json!(parent));
    }
    all_is_well(&lab, parent).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_failure_of_a_run_is_the_failure_of_its_step() -> anyhow::Result<()> {
    let lab = Lab::new().await?;
    let (engine, _node) = lab.node(Lab::config("a")).await?;
    let plan = family(&engine, &[("left-2", json!({ "fails": "permanent" }))])?;
    let parent = engine.submit(&plan, SubmitOptions::default()).await?.run;
    assert_eq!(lab.settled_for_good(parent).await?, Status::RolledBack);
    assert!(lab.world.things().await?.is_empty());
    for child in children(&lab).await? {
        assert_eq!(lab.engine.get(child).await?.status, Status::RolledBack);
    }
    all_is_well(&lab, parent).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parent_that_is_rolled_back_later_takes_its_runs_with_it() -> anyhow::Result<()> {
    let lab = Lab::new().await?;
    let (engine, _node) = lab.node(Lab::config("a")).await?;
    let plan = family(&engine, &[])?;
    let parent = engine.submit(&plan, SubmitOptions::default()).await?.run;
    assert_eq!(lab.settled_for_good(parent).await?, Status::Succeeded);
    let back = Action::new("anna", "it was a rehearsal", Verb::RollBack(RollBack::default()));
    lab.engine.act(parent, &back).await?;
    until("it is rolled back", async || Ok(lab.engine.get(parent).await?.status == Status::RolledBack))
        .await?;
    assert!(lab.world.things().await?.is_empty(), "{:?}", lab.world.things().await?);
    all_is_well(&lab, parent).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_is_passed_down_and_so_is_its_end() -> anyhow::Result<()> {
    let lab = Lab::new().await?;
    let (engine, _node) = lab.node(Lab::config("a")).await?;
    let slow = json!({ "millis": 150, "saves": true });
    let plan = family(&engine, &[("left-2", slow.clone()), ("right-2", slow)])?;
    let parent = engine.submit(&plan, SubmitOptions::default()).await?.run;
    until("both are under way", async || Ok(children(&lab).await?.len() == 2)).await?;
    lab.engine.act(parent, &Action::new("anna", "", Verb::Pause)).await?;
    until("all three stand still", async || {
        let filter = RunFilter { status: Some(Status::Paused), ..RunFilter::default() };
        Ok(lab.engine.list(&filter).await?.len() == 3)
    })
    .await?;
    assert_eq!(lab.world.touched("make", "z").await?, 0);
    lab.engine.act(parent, &Action::new("anna", "", Verb::Resume)).await?;
    assert_eq!(lab.settled_for_good(parent).await?, Status::Succeeded);
    all_is_well(&lab, parent).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_family_survives_a_death_at_every_crash_point() -> anyhow::Result<()> {
    for (like, end) in
        [(vec![], Status::Succeeded), (vec![("z", json!({ "fails": "permanent" }))], Status::RolledBack)]
    {
        let passed = {
            let lab = Lab::new().await?;
            let deaths = Deaths::none();
            live(&lab, &like, deaths.clone()).await?;
            deaths.passed()
        };
        let full = std::env::var("BACKSTAY_SWEEP").is_ok_and(|value| value == "full");
        // Every point, and of its passages the first, some in between and the last.
        let some = passed.iter().filter(|(point, nth)| {
            let last = passed.iter().filter(|(p, _)| p == point).map(|(_, n)| *n).max().unwrap_or(1);
            full || *nth == 1 || *nth == last || nth % 4 == 0
        });
        for (point, nth) in some {
            if *point == "drain.released" {
                continue;
            }
            let lab = Lab::new().await?;
            let deaths = Deaths::at(point, *nth);
            let parent = live(&lab, &like, deaths.clone()).await?;
            let label = format!("{point}#{nth} {like:?}");
            let status = lab.settled_for_good(parent).await.map_err(|error| error.context(label.clone()))?;
            assert_eq!(status, end, "{label}\n{}", lab.story(parent).await?);
            if end == Status::RolledBack {
                assert!(lab.world.things().await?.is_empty(), "{label}: {:?}", lab.world.things().await?);
            }
            all_is_well(&lab, parent).await.map_err(|error| error.context(label.clone()))?;
        }
    }
    Ok(())
}

/// Submits a family, has its node die as it is told to, and its successor go on.
async fn live(lab: &Lab, like: &[(&str, Value)], deaths: Deaths) -> anyhow::Result<RunId> {
    let plan = family(&lab.engine, like)?;
    let parent = lab.engine.submit(&plan, SubmitOptions::default()).await?.run;
    let mut config = Lab::config("a");
    config.crash_hook = Some(deaths.hook());
    let (_engine, node) = lab.node(config).await?;
    tokio::select! {
        () = node.ended() => {}
        status = lab.settled_for_good(parent) => { status?; }
    }
    node.kill().await;
    if deaths.fired() {
        let (_engine, node) = lab.node(Lab::config("a")).await?;
        lab.settled_for_good(parent).await?;
        node.drain(Duration::from_secs(1)).await;
    }
    Ok(parent)
}
