//! What a context is follows what happened, and only who has claimed it moves it.

use std::time::Duration;

use backstay_engine::machine::{RollBack, Verb};
use backstay_engine::{Engine, Fact, PlanBuilder, RunId, Status, SubmitOptions};
use backstay_simulator::world::State;
use backstay_simulator::world::things::Power;
use serde_json::json;

use crate::stage::Stage;

async fn context(stage: &Stage) -> anyhow::Result<Option<(String, RunId)>> {
    let fact = stage.lab.engine.fact("context/web-01").await?;
    Ok(fact.map(|Fact { value, by, .. }| (value, by)))
}

/// The values that a run gave its context, in order.
async fn course(stage: &Stage, run: RunId) -> anyhow::Result<Vec<String>> {
    let rows = stage.lab.engine.journal(run).await?;
    let bodies = rows.iter().filter(|row| row.kind == "resource").filter_map(|row| row.body.as_ref());
    let facts = bodies.map(|body| body.value()).filter(|body| body["kind"] == "fact");
    Ok(facts.map(|body| body["details"]["to"].as_str().unwrap_or_default().to_owned()).collect())
}

/// How the only step that failed did, and which it was.
async fn refusal(stage: &Stage, run: RunId) -> anyhow::Result<(String, String, String)> {
    let rows = stage.lab.engine.journal(run).await?;
    let failed = rows.iter().rfind(|row| row.kind == "failed");
    let failed = failed.ok_or_else(|| anyhow::anyhow!("nothing failed"))?;
    let body = failed.body.as_ref().map(|body| body.value()).unwrap_or_default();
    let text =
        |place: &str| body.pointer(place).and_then(|text| text.as_str()).unwrap_or_default().to_owned();
    Ok((failed.step.as_deref().unwrap_or_default().to_owned(), text("/error/code"), text("/error/message")))
}

/// What a person submits who has seen to the machine.
async fn settle(engine: &Engine, was: &str, set_by: RunId, status: &str) -> anyhow::Result<RunId> {
    let mut plan = PlanBuilder::new("settle");
    plan.step("say", "settle-context")
        .input(json!({ "context": "web-01", "was": was, "set_by": set_by, "status": status }))
        .nothing_to_undo("it says what a person has found");
    let plan = plan.check(engine.registry())?;
    Ok(engine.submit(&plan, SubmitOptions::default()).await?.run)
}

/// A failover that no exclusive key holds back.
async fn failover(stage: &Stage, engine: &Engine, mode: &str) -> anyhow::Result<RunId> {
    use backstay_workflows::Workflow;
    let input = stage.input("web-01", mode);
    let plan = backstay_workflows::failover::FailoverWorkflow
        .checked(&input, engine.registry())
        .map_err(|problems| anyhow::anyhow!("{problems:?}"))?;
    Ok(engine.submit(&plan, SubmitOptions::default()).await?.run)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_context_is_failing_over_then_failed_over_and_ready_again_when_it_is_undone() -> anyhow::Result<()>
{
    let stage = Stage::new().await?;
    let (engine, _node) = stage.node(Stage::config("a")).await?;
    assert_eq!(context(&stage).await?, None);
    let run = failover(&stage, &engine, "test").await?;
    assert_eq!(stage.settled(&engine, run).await?, Status::Succeeded);
    assert_eq!(context(&stage).await?, Some(("failed_over_test".into(), run)));
    stage.roll_back(&engine, run).await?;
    stage.moves_on(&engine, run, Status::Succeeded).await?;
    assert_eq!(stage.settled(&engine, run).await?, Status::RolledBack);
    assert_eq!(context(&stage).await?, Some(("ready_for_failover".into(), run)));
    assert_eq!(
        course(&stage, run).await?,
        ["failing_over", "failed_over_test", "failing_over", "ready_for_failover"]
    );

    let run = failover(&stage, &engine, "live").await?;
    assert_eq!(stage.settled(&engine, run).await?, Status::Succeeded);
    assert_eq!(context(&stage).await?, Some(("failed_over_live".into(), run)));
    stage.act(&engine, run, Verb::Commit).await?;
    stage.moves_on(&engine, run, Status::Succeeded).await?;
    assert_eq!(stage.settled(&engine, run).await?, Status::Committed);
    assert_eq!(context(&stage).await?, Some(("failed_over_live".into(), run)), "that stays");

    // And whoever comes now is told.
    let second = failover(&stage, &engine, "live").await?;
    assert_eq!(stage.settled(&engine, second).await?, Status::RolledBack);
    let (step, code, _) = refusal(&stage, second).await?;
    // Its disks are elsewhere: that is seen before the context is looked at.
    assert_eq!((step.as_str(), code.as_str()), ("validate", "not_ready"));
    stage.lab.assert_facts().await
}

/// Break 81: nothing begins on a machine whose last failover came to no good end.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_begins_on_a_context_that_was_not_given_back_until_people_say_so() -> anyhow::Result<()> {
    let stage = Stage::new().await?;
    let (engine, _node) = stage.node(Stage::config("a")).await?;
    let run = failover(&stage, &engine, "test").await?;
    assert_eq!(stage.settled(&engine, run).await?, Status::Succeeded);
    // Everything is undone but the claim.
    let how = RollBack { leave: vec!["claim-context".into()], ..RollBack::default() };
    stage.act(&engine, run, Verb::RollBack(how)).await?;
    stage.moves_on(&engine, run, Status::Succeeded).await?;
    assert_eq!(stage.settled(&engine, run).await?, Status::RolledBack);
    assert_eq!(context(&stage).await?, Some(("failing_over".into(), run)));

    let before = stage.centre.truth().effects();
    let second = failover(&stage, &engine, "live").await?;
    assert_eq!(stage.settled(&engine, second).await?, Status::RolledBack);
    let (step, code, message) = refusal(&stage, second).await?;
    assert_eq!((step.as_str(), code.as_str()), ("claim-context", "context_not_ready"));
    let says = format!("the context web-01 is failing_over, set by run {run} at ");
    assert!(message.starts_with(&says), "{message}");
    assert_eq!(stage.centre.truth().effects(), before, "nothing was touched");
    assert_eq!(context(&stage).await?, Some(("failing_over".into(), run)));

    // Who has seen it otherwise is refused as well.
    let wrong = settle(&engine, "failing_over", second, "ready_for_failover").await?;
    assert_eq!(stage.settled(&engine, wrong).await?, Status::RolledBack);
    assert_eq!(refusal(&stage, wrong).await?.1, "context_moved");
    let right = settle(&engine, "failing_over", run, "ready_for_failover").await?;
    assert_eq!(stage.settled(&engine, right).await?, Status::Succeeded);
    assert_eq!(context(&stage).await?, Some(("ready_for_failover".into(), right)));
    let third = failover(&stage, &engine, "test").await?;
    assert_eq!(stage.settled(&engine, third).await?, Status::Succeeded);
    stage.lab.assert_facts().await
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_that_begin_at_once_one_touches_the_machine() -> anyhow::Result<()> {
    let stage = Stage::new().await?;
    let (engine, _node) = stage.node(Stage::config("a")).await?;
    let (other, _other) = stage.node(Stage::config("b")).await?;
    let (one, two) = tokio::join!(failover(&stage, &engine, "test"), failover(&stage, &other, "test"));
    let mut ends = Vec::new();
    for run in [one?, two?] {
        ends.push((stage.settled(&engine, run).await?, run));
    }
    ends.sort_by_key(|(status, _)| *status != Status::Succeeded);
    let [(Status::Succeeded, winner), (Status::RolledBack, loser)] = ends[..] else {
        anyhow::bail!("{ends:?}")
    };
    let (step, code, message) = refusal(&stage, loser).await?;
    // Whoever comes when the first has the disks already does not even get there.
    if step != "validate" {
        assert_eq!((step.as_str(), code.as_str()), ("claim-context", "context_not_ready"));
        assert!(message.contains(&winner.to_string()), "{message}");
    }
    assert_eq!(course(&stage, loser).await?, Vec::<String>::new());
    assert_eq!(context(&stage).await?, Some(("failed_over_test".into(), winner)));
    stage.is_sound()?;
    stage.lab.assert_facts().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_whose_context_was_moved_says_so_and_waits_for_people() -> anyhow::Result<()> {
    let stage = Stage::new().await?;
    let (engine, _node) = stage.node(Stage::config("a")).await?;
    let run = failover(&stage, &engine, "test").await?;
    assert_eq!(stage.settled(&engine, run).await?, Status::Succeeded);
    let moved = settle(&engine, "failed_over_test", run, "failed_over_live").await?;
    assert_eq!(stage.settled(&engine, moved).await?, Status::Succeeded);
    stage.roll_back(&engine, run).await?;
    stage.moves_on(&engine, run, Status::Succeeded).await?;
    assert_eq!(stage.settled(&engine, run).await?, Status::Stuck);
    assert_eq!(stage.stuck(&engine, run).await?, ["record-failed-over"]);
    let (_, code, message) = refusal(&stage, run).await?;
    assert_eq!(code, "context_moved");
    assert!(message.contains(&format!("failed_over_live, set by run {moved}")), "{message}");
    assert!(
        stage.centre.truth().running().iter().any(|vm| vm.name.starts_with("web-01-test-")),
        "it runs on"
    );
    assert_eq!(context(&stage).await?, Some(("failed_over_live".into(), moved)));
    ready_and_back(&stage, &engine, run, (moved, "failed_over_live"), "record-failed-over").await
}

/// People say that the context is ready, and have the undo that was refused tried again, as it says.
async fn ready_and_back(
    stage: &Stage,
    engine: &Engine,
    run: RunId,
    (moved, was): (RunId, &str),
    step: &str,
) -> anyhow::Result<()> {
    let ready = settle(engine, was, moved, "ready_for_failover").await?;
    assert_eq!(stage.settled(engine, ready).await?, Status::Succeeded);
    let verb = Verb::Retry { step: step.into(), undo: true, input: None, in_doubt: false };
    stage.act(engine, run, verb).await?;
    stage.moves_on(engine, run, Status::Stuck).await?;
    let status = stage.settled(engine, run).await?;
    assert_eq!(
        status,
        Status::RolledBack,
        "{:?}\n{}",
        refusal(stage, run).await?,
        stage.lab.story(run).await?
    );
    assert_eq!(context(stage).await?, Some(("ready_for_failover".into(), ready)));
    stage.is_sound()?;
    stage.lab.assert_facts().await
}

/// Its copy runs by then: whose it is, is for people to say, and nothing is undone before.
#[tokio::test(flavor = "multi_thread")]
async fn a_failover_whose_context_was_moved_on_its_way_is_held_and_runs_on() -> anyhow::Result<()> {
    let stage = Stage::new().await?;
    let (engine, _node) = stage.node(Stage::config("a")).await?;
    let mut input = stage.input("web-01", "live");
    input["steady"] = json!("1500ms");
    let run = stage.submit(&engine, &input).await?;
    let mark = format!("backstay-run-{run}");
    let world = stage.centre.world();
    let runs = |state: &State| {
        state.vms.values().any(|vm| vm.group.as_deref() == Some(mark.as_str()) && vm.power == Power::On)
    };
    tokio::time::timeout(Duration::from_secs(60), world.until(runs)).await?;
    let moved = settle(&engine, "failing_over", run, "failed_over_test").await?;
    assert_eq!(stage.settled(&engine, moved).await?, Status::Succeeded);
    assert_eq!(stage.settled(&engine, run).await?, Status::Held, "{}", stage.lab.story(run).await?);
    let (step, code, _) = refusal(&stage, run).await?;
    assert_eq!((step.as_str(), code.as_str()), ("record-failed-over", "context_moved"));
    assert!(world.look(runs), "it runs on");
    // They keep it, and want to be rid of it later.
    let verb = Verb::Skip { step: "record-failed-over".into(), undo: false, output: json!({}) };
    stage.act(&engine, run, verb).await?;
    stage.moves_on(&engine, run, Status::Held).await?;
    assert_eq!(stage.settled(&engine, run).await?, Status::Succeeded);
    stage.roll_back(&engine, run).await?;
    stage.moves_on(&engine, run, Status::Succeeded).await?;
    // What was passed over is not undone, and whose the context is was not theirs to say by that.
    assert_eq!(stage.settled(&engine, run).await?, Status::Stuck);
    assert_eq!(stage.stuck(&engine, run).await?, ["claim-context"]);
    ready_and_back(&stage, &engine, run, (moved, "failed_over_test"), "claim-context").await
}
