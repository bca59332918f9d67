//! What people state has to suit the activities: an edited input, and the output of a step that is skipped. The owner of
//! the run says so, whoever was asked, and names the field.

use std::time::Duration;

use backstay_engine::{
    Action, Answer, Engine, OnFailure, PlanBuilder, Registry, Retry, RunId, Status, Store, SubmitOptions,
    Verb, output,
};
use backstay_tests::{Lab, plans};
use serde_json::{Value, json};

use crate::spoken::{all_answered, broken};
use crate::until;

/// `a -> b -> c`: a and b are held when they fail, as both do at first, and so is the undo of a; c reads what b made.
async fn run(lab: &Lab, engine: &Engine) -> anyhow::Result<RunId> {
    let mut plan = PlanBuilder::new("stated");
    plan.retry(Retry::fixed(1, Duration::from_millis(5))).undo_retry(plans::quick());
    let a = plan.step("a", "make").input(broken()).on_failure(OnFailure::Hold);
    let a = a.undone_by("unmake", json!({ "fails": "permanent", "id": output("/id") })).done();
    let b = plan.step("b", "make").input(broken()).after([&a]).on_failure(OnFailure::Hold);
    let b = b.undone_by("unmake", json!({})).done();
    let c = plan.step("c", "make").input(json!({ "from": b.output("/id") })).after([&b]);
    c.undone_by("unmake", json!({}));
    let run = engine.submit(&plan.check(engine.registry())?, SubmitOptions::default()).await?.run;
    waits(lab, run, Status::Held).await?;
    Ok(run)
}

async fn waits(lab: &Lab, run: RunId, status: Status) -> anyhow::Result<()> {
    until(status.as_str(), async || {
        let info = lab.engine.get(run).await?;
        Ok(info.status == status && info.owner.is_none())
    })
    .await
}

fn retry(step: &str, undo: bool, input: Value) -> Verb {
    Verb::Retry { step: step.into(), undo, input: Some(input), in_doubt: false }
}

fn skip(step: &str, output: Value) -> Verb {
    Verb::Skip { step: step.into(), undo: false, output }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_stated_suits_the_activities_or_is_refused() -> anyhow::Result<()> {
    let lab = Lab::new().await?;
    let (engine, _node) = lab.node(Lab::config("a")).await?;
    // Who is asked knows no activity at all.
    let far = Engine::open(Store::connect(&lab.url).await?, Registry::new()).await?;
    let run = run(&lab, &engine).await?;
    let refused = async |verb: Verb, place: &str| {
        match far.act(run, &Action::new("ann", "so it is", verb)).await? {
            Answer::Refused { because } => assert!(because.contains(place), "{because}"),
            other => panic!("{place}: {other:?}"),
        }
        anyhow::Ok(())
    };
    let accepted = async |verb: Verb, status: Status| {
        let answer = far.act(run, &Action::new("ann", "so it is", verb)).await?;
        assert!(matches!(answer, Answer::Accepted { .. }), "{answer:?}");
        waits(&lab, run, status).await
    };
    refused(retry("a", false, json!({ "millies": 5 })), "make takes no such input: at \"/millies\"").await?;
    refused(retry("a", false, json!({ "millis": "5" })), "at \"/millis\"").await?;
    refused(retry("a", false, json!("nothing")), "make takes no such input: at \"\"").await?;
    refused(skip("a", json!({ "id": 7, "attempt": 1 })), "make gives no such output: at \"/id\"").await?;
    // Nobody but its own undo reads what a made.
    accepted(skip("a", Value::Null), Status::Held).await?;
    refused(skip("b", Value::Null), "make gives no such output").await?;
    refused(skip("b", json!({ "id": "by hand" })), "\"attempt\"").await?;
    assert_eq!(lab.story(run).await?.matches("\nrefused").count(), 6, "each is journaled");
    accepted(skip("b", json!({ "id": "by hand", "attempt": 0 })), Status::Succeeded).await?;
    let state = lab.engine.state(run).await?;
    let c = backstay_engine::machine::CourseId::forward(state.plan().find("c").unwrap());
    assert_eq!(state.course(c).input.as_ref().unwrap().value(), json!({ "from": "by hand" }));
    all_answered(&lab).await?;
    lab.assert_history(run).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_edited_input_of_an_undo_suits_the_activity_that_undoes() -> anyhow::Result<()> {
    let lab = Lab::new().await?;
    let (engine, _node) = lab.node(Lab::config("a")).await?;
    let run = run(&lab, &engine).await?;
    let act = async |verb: Verb| engine.act(run, &Action::new("ann", "so it is", verb)).await;
    assert!(matches!(act(retry("a", false, json!({}))).await?, Answer::Accepted { .. }));
    until("a is there, and b held", async || {
        Ok(lab.story(run).await?.ends_with("held b #1") && lab.world.things().await? == ["a"])
    })
    .await?;
    assert!(matches!(act(Verb::RollBack(Default::default())).await?, Answer::Accepted { .. }));
    waits(&lab, run, Status::Stuck).await?;
    match act(retry("a", true, json!({ "millis": 5 }))).await? {
        Answer::Refused { because } => {
            assert!(because.starts_with("unmake takes no such input: at \"/millis\""), "{because}")
        }
        other => panic!("{other:?}"),
    }
    assert!(matches!(act(retry("a", true, json!({}))).await?, Answer::Accepted { .. }));
    waits(&lab, run, Status::RolledBack).await?;
    lab.assert_history(run).await
}
