//! Operators and clients speak to runs: each message is answered once, wherever the run is and whatever dies.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use backstay_engine::machine::{Fate, Outcome, RollBack};
use backstay_engine::{
    Action, Answer, Bulk, Engine, EngineError, NodeConfig, OnFailure, Plan, PlanBuilder, Registry, Retry,
    RunFilter, RunId, Status, Store, SubmitOptions, Verb,
};
use backstay_tests::{Cut, Lab, Wire, plans};
use serde_json::{Value, json};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::until;

/// `a -> b -> c`; b is held when it fails for good.
pub fn held(engine: &Engine, b: Value) -> anyhow::Result<Arc<Plan>> {
    let mut plan = PlanBuilder::new("held");
    plan.retry(Retry::fixed(2, Duration::from_millis(5))).undo_retry(plans::quick());
    let a = plan.step("a", "make").undone_by("unmake", json!({})).done();
    let b = plan.step("b", "make").input(b).after([&a]).on_failure(OnFailure::Hold);
    let b = b.undone_by("unmake", json!({})).done();
    plan.step("c", "make").after([&b]).undone_by("unmake", json!({}));
    Ok(plan.check(engine.registry())?)
}

/// Waits for the signal `go` from its first moment on, then makes something.
pub fn waiting(engine: &Engine) -> anyhow::Result<Arc<Plan>> {
    let mut plan = PlanBuilder::new("waiting");
    plan.retry(plans::quick()).undo_retry(plans::quick());
    let go = plan.wait("go", json!({ "signal": "go" })).done();
    plan.step("only", "make").after([&go]).undone_by("unmake", json!({}));
    Ok(plan.check(engine.registry())?)
}

pub fn broken() -> Value {
    json!({ "fails": "not-applied" })
}

pub fn mend(step: &str) -> Verb {
    Verb::Retry { step: step.into(), undo: false, input: Some(json!({})), in_doubt: false }
}

fn roll_back() -> Verb {
    Verb::RollBack(RollBack::default())
}

async fn submit(engine: &Engine, plan: &Arc<Plan>) -> anyhow::Result<RunId> {
    Ok(engine.submit(plan, SubmitOptions::default()).await?.run)
}

async fn is(lab: &Lab, run: RunId, status: Status) -> anyhow::Result<()> {
    until(status.as_str(), async || {
        let info = lab.engine.get(run).await?;
        Ok(info.status == status && info.owner.is_none())
    })
    .await
}

/// Nothing is left in the inbox, and the counts say so.
pub async fn all_answered(lab: &Lab) -> anyhow::Result<()> {
    let mut sql = lab.sql().await?;
    let left: (i64, i64) =
        sqlx::query_as("select (select count(*) from inbox), (select count(*) from runs where mail <> told)")
            .fetch_one(&mut sql)
            .await?;
    anyhow::ensure!(left == (0, 0), "{left:?} messages and runs are left");
    Ok(())
}

fn accepted(answer: &Answer) -> bool {
    matches!(answer, Answer::Accepted { .. })
}

fn because(answer: Answer) -> String {
    match answer {
        Answer::Refused { because } => because,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_held_run_does_what_an_operator_says_to_any_process() -> anyhow::Result<()> {
    let lab = Lab::new().await?;
    let (engine, _node) = lab.node(Lab::config("a")).await?;
    let run = submit(&engine, &held(&engine, broken())?).await?;
    is(&lab, run, Status::Held).await?;
    // This process has no node at all.
    let nonsense = lab.engine.act(run, &Action::new("eve", "", mend("z"))).await?;
    assert_eq!(because(nonsense), "the plan has no step \"z\"");
    is(&lab, run, Status::Held).await?;
    assert!(accepted(&lab.engine.act(run, &Action::new("ann", "the disk is back", mend("b"))).await?));
    assert_eq!(lab.settled(run).await?, Status::Succeeded);
    assert_eq!(lab.world.things().await?, ["a", "b", "c"]);
    let story = lab.story(run).await?;
    assert!(
        story.contains("held b #1\nclaimed free\nrefused\nclaimed free\nacted b #0\nretried b #0"),
        "{story}"
    );
    all_answered(&lab).await?;
    lab.assert_history(run).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_under_way_at_another_node_does_what_an_operator_says() -> anyhow::Result<()> {
    let lab = Lab::new().await?;
    let (owner, _node_one) = lab.node(Lab::config("one")).await?;
    let (other, _node_two) = lab.node(Lab::config("two")).await?;
    let run = submit(&owner, &plans::diamond(&owner, &[("b", json!({ "fails": "hang" }))])?).await?;
    until("b is under way", async || Ok(lab.world.touched("hang", "b").await? == 1)).await?;
    let answer = other.act(run, &Action::new("ann", "enough", roll_back())).await?;
    assert!(accepted(&answer), "{answer:?}");
    assert_eq!(lab.settled(run).await?, Status::RolledBack);
    assert_eq!(lab.world.touched("stop", "b").await?, 1);
    assert!(lab.world.things().await?.is_empty());
    let story = lab.story(run).await?;
    assert!(story.contains("acted\nrolling_back") && !story.contains("claimed"), "{story}");
    all_answered(&lab).await?;
    lab.assert_history(run).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_was_put_down_for_an_hour_is_woken() -> anyhow::Result<()> {
    let lab = Lab::new().await?;
    let (engine, _node) = lab.node(Lab::config("a")).await?;
    let mut plan = PlanBuilder::new("later");
    plan.retry(Retry::fixed(3, Duration::from_secs(3_600)));
    plan.step("only", "make").input(json!({ "fails": "1" })).undone_by("unmake", json!({}));
    let run = submit(&engine, &plan.check(engine.registry())?).await?;
    is(&lab, run, Status::Waiting).await?;
    let now = Verb::Retry { step: "only".into(), undo: false, input: None, in_doubt: false };
    assert!(accepted(&lab.engine.act(run, &Action::new("ann", "", now)).await?));
    assert_eq!(lab.settled(run).await?, Status::Succeeded);
    all_answered(&lab).await?;
    lab.assert_history(run).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_waits_from_the_first_is_put_down_and_a_signal_takes_it_up() -> anyhow::Result<()> {
    let lab = Lab::new().await?;
    let (engine, _node) = lab.node(Lab::config("a")).await?;
    let plan = waiting(&engine)?;
    let run = submit(&engine, &plan).await?;
    is(&lab, run, Status::Waiting).await?;
    let note = lab.engine.get(run).await?.note.unwrap_or_default();
    assert_eq!(note, "go waits for the signal \"go\"");
    let go = |id| lab.engine.signal(run, id, "ann", "go", json!({ "n": 1 }));
    let id = Uuid::now_v7();
    assert_eq!(go(id).await?, Answer::Waiting, "it is durable, and nobody has waited for the answer");
    assert_eq!(lab.settled(run).await?, Status::Succeeded);
    assert!(accepted(&go(id).await?), "asked again, the answer is there");
    assert_eq!(because(go(Uuid::now_v7()).await?), "the run is over: it is succeeded");
    all_answered(&lab).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_id_is_acted_upon_once_however_often_it_is_sent() -> anyhow::Result<()> {
    let lab = Lab::new().await?;
    let (engine, _node) = lab.node(Lab::config("a")).await?;
    let (two, _node_two) = lab.node(Lab::config("two")).await?;
    let plan = held(&engine, broken())?;
    let (run, other) = (submit(&engine, &plan).await?, submit(&engine, &plan).await?);
    is(&lab, run, Status::Held).await?;
    is(&lab, other, Status::Held).await?;
    let action = Action::new("ann", "", mend("b"));
    let mut all = tokio::task::JoinSet::new();
    for n in 0..20 {
        let (engine, action) = ([&engine, &two, &lab.engine][n % 3].clone(), action.clone());
        all.spawn(async move { engine.act(run, &action).await });
    }
    let mut answers = Vec::new();
    while let Some(answer) = all.join_next().await {
        answers.push(answer??);
    }
    assert!(accepted(&answers[0]) && answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
    assert_eq!(lab.settled(run).await?, Status::Succeeded);
    assert_eq!(lab.story(run).await?.matches("acted").count(), 1);
    assert_eq!(lab.engine.act(run, &action).await?, answers[0], "also when the run is over");
    // Another wish, and another run, want another id.
    let changed = Action { why: "because".into(), ..action.clone() };
    for (run, action) in [(run, &changed), (other, &action)] {
        let refused = lab.engine.act(run, action).await.unwrap_err();
        assert!(matches!(refused, EngineError::ActionReused { run: of, .. } if of != other), "{refused}");
    }
    all_answered(&lab).await
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_who_act_on_what_they_saw_one_is_told_by_whom() -> anyhow::Result<()> {
    let lab = Lab::new().await?;
    let (engine, _node) = lab.node(Lab::config("a")).await?;
    let run = submit(&engine, &held(&engine, broken())?).await?;
    is(&lab, run, Status::Held).await?;
    let seen = lab.engine.journal(run).await?.last().map(|row| row.seq);
    let by = |who: &str, verb| Action { seen, ..Action::new(who, "done by hand", verb) };
    let skip = Verb::Skip { step: "b".into(), undo: false, output: json!({ "id": "x", "attempt": 0 }) };
    let (ann, eve) = (by("ann", skip), by("eve", mend("b")));
    let (one, two) = tokio::join!(engine.act(run, &ann), lab.engine.act(run, &eve));
    let (winner, loser) = match (one?, two?) {
        (one, two) if accepted(&one) => ("ann", two),
        (one, two) if accepted(&two) => ("eve", one),
        both => panic!("{both:?}"),
    };
    let why = because(loser);
    assert!(why.starts_with(winner) || why.contains("has moved on since"), "{why}");
    assert_eq!(lab.settled(run).await?, Status::Succeeded);
    all_answered(&lab).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_notification_makes_it_quick() -> anyhow::Result<()> {
    let lab = Lab::new().await?;
    let config = NodeConfig { poll: Duration::from_secs(60), ..Lab::config("a") };
    let (engine, _node) = lab.node(config).await?;
    let run = submit(&engine, &waiting(&engine)?).await?;
    is(&lab, run, Status::Waiting).await?;
    let go = Verb::Signal { name: "go".into(), payload: Value::Null };
    assert!(accepted(&lab.engine.act(run, &Action::new("ann", "", go)).await?));
    all_answered(&lab).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_is_said_at_the_moment_of_the_end_is_answered() -> anyhow::Result<()> {
    for (verb, status) in [(Verb::Pause, Status::Succeeded), (roll_back(), Status::RolledBack)] {
        let lab = Lab::new().await?;
        // The second write has the outcome and the end of the run: it waits for us, ready as it is.
        let (writes, told) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let (ready, go) = (Arc::clone(&writes), Arc::clone(&told));
        // No poll brings it back: the write that finds that the run was spoken to says so.
        let mut config = NodeConfig { poll: Duration::from_secs(60), ..Lab::config("a") };
        config.crash_hook = Some(Arc::new(move |point| {
            if point == "append.before" && ready.fetch_add(1, Ordering::SeqCst) == 1 {
                while go.load(Ordering::SeqCst) == 0 {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
            false
        }));
        let (engine, _node) = lab.node(config).await?;
        let run = submit(&engine, &plans::single(&engine, json!({}))?).await?;
        until("the end is about to be written", async || Ok(writes.load(Ordering::SeqCst) == 2)).await?;
        let action = Action::new("ann", "", verb);
        assert_eq!(lab.engine.tell(run, &action).await?, Answer::Waiting);
        // Long enough for the node to look into the inbox, and to leave the message there: the run has gone already.
        tokio::time::sleep(Duration::from_millis(100)).await;
        told.store(1, Ordering::SeqCst);
        answered(&lab, action.id).await?;
        let answer = lab.engine.act(run, &action).await?;
        is(&lab, run, status).await?;
        let story = lab.story(run).await?;
        match status {
            Status::Succeeded => {
                assert_eq!(because(answer), "all its steps are done");
                assert!(story.ends_with("finished succeeded\nclaimed free\nrefused"), "{story}");
            }
            _ => assert!(
                accepted(&answer) && story.contains("finished succeeded\nclaimed free\nacted\nrolling_back")
            ),
        }
        let info = lab.engine.get(run).await?;
        assert!(info.finished_at.is_some() && info.unanswered == 0, "{info:?}");
        all_answered(&lab).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_is_over_comes_back_to_be_rolled_back_and_for_nothing_else() -> anyhow::Result<()> {
    let lab = Lab::new().await?;
    let (engine, _node) = lab.node(Lab::config("a")).await?;
    let options = SubmitOptions { exclusive: Some("vm-7".into()), ..SubmitOptions::default() };
    let plan = plans::single(&engine, json!({}))?;
    let first = engine.submit(&plan, options.clone()).await?;
    let run = first.run;
    assert_eq!(first.ended().await?, Status::Succeeded);
    let over = lab.engine.act(run, &Action::new("ann", "", Verb::Pause)).await?;
    assert_eq!(because(over), "the run is over: it is succeeded");
    let missing = lab.engine.act(RunId::fresh(), &Action::new("ann", "", Verb::Pause)).await.unwrap_err();
    assert!(matches!(missing, EngineError::NoSuchRun(_)), "{missing}");
    // Another one has its place now.
    let slow = plans::single(&engine, json!({ "fails": "hang" }))?;
    let rival = engine.submit(&slow, options.clone()).await?.run;
    let back = Action::new("ann", "the test is over", roll_back());
    let refused = because(lab.engine.act(run, &back).await?);
    assert!(refused.starts_with(&format!("run {rival} has its exclusive key")), "{refused}");
    assert!(accepted(&lab.engine.act(rival, &Action::new("ann", "", roll_back())).await?));
    assert_eq!(lab.settled(rival).await?, Status::RolledBack);
    assert!(accepted(&lab.engine.act(run, &back).await?));
    until("it is rolled back", async || Ok(lab.engine.get(run).await?.status == Status::RolledBack)).await?;
    let again = lab.engine.act(run, &Action::new("ann", "", roll_back())).await?;
    assert_eq!(because(again), "the run is over: it is rolled back");
    all_answered(&lab).await
}

/// A message as a hand, or another release, would send it.
async fn send_raw(lab: &Lab, run: RunId, body: &str) -> anyhow::Result<Uuid> {
    let id = Uuid::now_v7();
    let mut sql = lab.sql().await?;
    sqlx::query("select tell(array[$1], array[$2], array[$3], array[false])")
        .bind(run.0)
        .bind(id)
        .bind(body)
        .execute(&mut sql)
        .await?;
    Ok(id)
}

async fn answered(lab: &Lab, id: Uuid) -> anyhow::Result<(String, String)> {
    let mut sql = lab.sql().await?;
    let mut found = None;
    until("it is answered", async || {
        found = sqlx::query_as("select kind, coalesce(body ->> 'because', '') from journal where key = $1")
            .bind(id)
            .fetch_optional(&mut sql)
            .await?;
        Ok(found.is_some())
    })
    .await?;
    Ok(found.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_understands_is_refused_and_the_run_goes_on() -> anyhow::Result<()> {
    let lab = Lab::new().await?;
    let (engine, node) = lab.node(Lab::config("a")).await?;
    let run = submit(&engine, &held(&engine, broken())?).await?;
    is(&lab, run, Status::Held).await?;
    let deep = format!("{}1{}", "[".repeat(200), "]".repeat(200));
    for body in ["7", "{\"id\": \"x\"}", "{\"who\": \"eve\\u0007\", \"verb\": \"dance\"}", &deep] {
        let (kind, why) = answered(&lab, send_raw(&lab, run, body).await?).await?;
        assert!(
            kind == "refused" && why.starts_with("this release does not understand it: "),
            "{kind} {why}"
        );
    }
    // An end that a run did not come to is not for people to say.
    let ended = Verb::Ended { step: "b".into(), run, outcome: Outcome::Succeeded };
    assert!(matches!(lab.engine.act(run, &Action::new("eve", "", ended)).await, Err(EngineError::Action(_))));
    let account =
        Verb::Account { step: "a".into(), kind: "disk".into(), name: "d".into(), became: Fate::Gone };
    assert!(because(lab.engine.act(run, &Action::new("ann", "looked", account)).await?).contains("no disk"));
    // Another node can read it all.
    node.drain(Duration::from_millis(100)).await;
    let (_engine, _heir) = lab.node(Lab::config("b")).await?;
    assert!(accepted(&lab.engine.act(run, &Action::new("ann", "", mend("b"))).await?));
    assert_eq!(lab.settled(run).await?, Status::Succeeded);
    all_answered(&lab).await?;
    lab.assert_history(run).await
}

/// How often the run is claimed while nothing happens.
async fn stays(lab: &Lab, run: RunId) -> anyhow::Result<()> {
    let before = lab.engine.get(run).await?;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let after = lab.engine.get(run).await?;
    anyhow::ensure!((before.claim, before.owner) == (after.claim, None), "{before:?}, then {after:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_said_to_a_run_that_cannot_be_read_is_refused_once() -> anyhow::Result<()> {
    let lab = Lab::new().await?;
    let plan = plans::single(&lab.engine, json!({}))?;
    let run = submit(&lab.engine, &plan).await?;
    let mut sql = lab.sql().await?;
    sqlx::query("update journal set body = '{\"hash\":\"x\",\"plan\":7}' where run_id = $1")
        .bind(run.0)
        .execute(&mut sql)
        .await?;
    // One message before anybody has looked at the run, and some after.
    let first = send_raw(&lab, run, "{}").await?;
    let (_engine, _node) = lab.node(Lab::config("a")).await?;
    let (kind, why) = answered(&lab, first).await?;
    assert!(kind == "refused" && why.starts_with("this release does not understand it"), "{why}");
    is(&lab, run, Status::Quarantined).await?;
    for verb in [Verb::Resume, Verb::Pause] {
        let why = because(lab.engine.act(run, &Action::new("ann", "", verb)).await?);
        assert!(why.starts_with("its journal cannot be read: "), "{why}");
    }
    is(&lab, run, Status::Quarantined).await?;
    stays(&lab, run).await?;
    all_answered(&lab).await
}

/// A held run that was spoken to once; then, while nobody looks, a hand is at work.
async fn after_a_hand(
    work: impl AsyncFnOnce(&Lab, RunId, &mut PgConnection) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let lab = Lab::new().await?;
    let (engine, node) = lab.node(Lab::config("a")).await?;
    let run = submit(&engine, &held(&engine, broken())?).await?;
    is(&lab, run, Status::Held).await?;
    assert!(!accepted(&lab.engine.act(run, &Action::new("eve", "", Verb::Resume)).await?));
    is(&lab, run, Status::Held).await?;
    node.drain(Duration::from_millis(100)).await;
    let mut sql = lab.sql().await?;
    work(&lab, run, &mut sql).await?;
    let (_engine, _heir) = lab.node(Lab::config("b")).await?;
    until("nobody waits for it", async || Ok(lab.engine.get(run).await?.unanswered == 0)).await?;
    is(&lab, run, Status::Held).await?;
    stays(&lab, run).await?;
    sqlx::raw_sql("delete from inbox").execute(&mut sql).await?;
    assert!(accepted(&lab.engine.act(run, &Action::new("ann", "", mend("b"))).await?));
    assert_eq!(lab.settled(run).await?, Status::Succeeded);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_a_hand_took_away_keeps_nobody_busy() -> anyhow::Result<()> {
    after_a_hand(async |lab, run, sql| {
        send_raw(lab, run, "{}").await?;
        sqlx::raw_sql("delete from inbox").execute(sql).await?;
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_a_hand_brought_back_keeps_nobody_busy() -> anyhow::Result<()> {
    after_a_hand(async |_, _, sql| {
        let again = "with back as (insert into inbox (id, run_id, body)
                         select key, run_id, body -> 'action' from journal where kind = 'refused' returning run_id)
                     update runs set mail = mail + 1, due_at = now() from back where back.run_id = runs.run_id";
        sqlx::raw_sql(again).execute(sql).await?;
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_whose_commit_got_no_answer_is_given_once() -> anyhow::Result<()> {
    let lab = Lab::new().await?;
    let wire = Wire::to(&lab.url).await?;
    let config = NodeConfig { lease: Duration::from_secs(10), rejoin: false, ..Lab::config("a") };
    let (engine, node) = lab.node_by(wire.url(), config).await?;
    let epoch = node.epoch();
    let mut runs = Vec::new();
    for _ in 0..6 {
        runs.push(submit(&engine, &held(&engine, broken())?).await?);
    }
    for run in &runs {
        is(&lab, *run, Status::Held).await?;
    }
    wire.cut(2, &[Cut::Before, Cut::Underway, Cut::Answered]);
    for (n, run) in runs.iter().enumerate() {
        let engine = if n % 2 == 0 { &engine } else { &lab.engine };
        let answer = engine.act(*run, &Action::new("ann", "", mend("b"))).await?;
        assert!(accepted(&answer), "{answer:?}");
        assert_eq!(lab.settled(*run).await?, Status::Succeeded);
        let story = lab.story(*run).await?;
        assert_eq!(story.matches("acted").count(), 1, "{story}");
    }
    let cuts = wire.cuts();
    for cut in [Cut::Before, Cut::Underway, Cut::Answered] {
        assert!(cuts.contains(&cut), "{cut:?} in a write: {cuts:?}");
    }
    assert_eq!(node.epoch(), epoch);
    all_answered(&lab).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_whose_commit_got_no_answer_is_sent_once() -> anyhow::Result<()> {
    let lab = Lab::new().await?;
    let (engine, _node) = lab.node(Lab::config("a")).await?;
    let wire = Wire::to(&lab.url).await?;
    wire.mark("from tell(");
    let far = Engine::open(Store::connect(wire.url()).await?, Registry::new()).await?;
    wire.cut(2, &[Cut::Before, Cut::Underway, Cut::Answered]);
    for _ in 0..6 {
        let run = submit(&engine, &held(&engine, broken())?).await?;
        is(&lab, run, Status::Held).await?;
        assert!(accepted(&far.act(run, &Action::new("ann", "", mend("b"))).await?));
        is(&lab, run, Status::Succeeded).await?;
        assert_eq!(lab.story(run).await?.matches("acted").count(), 1);
    }
    let cuts = wire.cuts();
    for cut in [Cut::Before, Cut::Underway, Cut::Answered] {
        assert!(cuts.contains(&cut), "{cut:?}: {cuts:?}");
    }
    all_answered(&lab).await
}

#[tokio::test(flavor = "multi_thread")]
async fn one_wish_for_many_runs_is_counted_first_and_then_done_once_by_each() -> anyhow::Result<()> {
    let lab = Lab::new().await?;
    let (engine, _node) = lab.node(Lab::config("a")).await?;
    let plan = held(&engine, broken())?;
    let red = SubmitOptions { labels: json!({ "site": "red" }), ..SubmitOptions::default() };
    let mut runs = Vec::new();
    for n in 0..8 {
        let options = if n < 5 { red.clone() } else { SubmitOptions::default() };
        runs.push(engine.submit(&plan, options).await?.run);
    }
    let other = submit(&engine, &waiting(&engine)?).await?;
    for run in &runs {
        is(&lab, *run, Status::Held).await?;
    }
    let filter = RunFilter { status: Some(Status::Held), failing: Some("b".into()), ..RunFilter::default() };
    let dry = |filter: RunFilter| {
        let engine = lab.engine.clone();
        async move {
            let wish = Bulk::new("ann", "", mend("b"));
            anyhow::Ok(engine.act_on_all(&filter, &wish, true, Duration::ZERO).await?)
        }
    };
    assert_eq!(dry(filter.clone()).await?.found.len(), 8);
    let site = RunFilter { labels: json!({ "site": "red" }), ..filter.clone() };
    assert_eq!(dry(site.clone()).await?.found.len(), 5);
    for nobody in [
        RunFilter { failing: Some("a".into()), ..RunFilter::default() },
        RunFilter { labels: json!({ "site": "blue" }), ..RunFilter::default() },
        RunFilter { failing: Some("go".into()), ..RunFilter::default() },
    ] {
        assert_eq!(dry(nobody).await?.found.len(), 0);
    }
    assert_eq!(dry(RunFilter { live: true, ..RunFilter::default() }).await?.found.len(), 9);
    assert!(lab.story(runs[0]).await?.ends_with("held b #1"), "a dry run does nothing");

    let wish = Bulk::new("ann", "the disks are back", mend("b"));
    let patience = Duration::from_secs(20);
    let report = lab.engine.act_on_all(&site, &wish, false, patience).await?;
    assert_eq!((report.accepted.len(), report.refused.len(), report.waiting.len()), (5, 0, 0), "{report:?}");
    for run in &runs[..5] {
        assert_eq!(lab.settled(*run).await?, Status::Succeeded);
    }
    // Again, for all there are: those that did it give the same answer, one has no such step.
    let all = RunFilter::default();
    let report = lab.engine.act_on_all(&all, &wish, false, patience).await?;
    assert_eq!((report.found.len(), report.accepted.len(), report.waiting.len()), (9, 8, 0), "{report:?}");
    assert_eq!(report.refused, [(other, "the plan has no step \"b\"".to_owned())]);
    for run in &runs {
        assert_eq!(lab.settled(*run).await?, Status::Succeeded);
        assert_eq!(lab.story(*run).await?.matches("acted").count(), 1);
    }
    all_answered(&lab).await
}

#[tokio::test(flavor = "multi_thread")]
async fn many_signals_to_many_waiting_runs_are_all_acted_upon() -> anyhow::Result<()> {
    let count: usize = std::env::var("BACKSTAY_SIGNALS").map_or(500, |n| n.parse().unwrap());
    let lab = Lab::new().await?;
    let (engine, _node) = lab.node(Lab::config("a")).await?;
    let mut plan = PlanBuilder::new("waiting");
    plan.wait("go", json!({ "signal": "go" }));
    let plan = plan.check(engine.registry())?;
    let mut submitting = tokio::task::JoinSet::new();
    for _ in 0..count {
        let (engine, plan) = (engine.clone(), plan.clone());
        submitting.spawn(async move { engine.submit(&plan, SubmitOptions::default()).await.map(|s| s.run) });
    }
    let mut signals = Vec::new();
    while let Some(run) = submitting.join_next().await {
        let verb = Verb::Signal { name: "go".into(), payload: json!({ "n": signals.len() }) };
        signals.push((run??, Action::new("ann", "", verb)));
    }
    let mut sql = lab.sql().await?;
    let mut counted = async |what: &str, status: &str| {
        until(what, async || {
            let all = "select count(*) from runs where status = $1 and owner is null";
            Ok(sqlx::query_scalar::<_, i64>(all).bind(status).fetch_one(&mut sql).await? == count as i64)
        })
        .await
    };
    counted("all wait", "waiting").await?;
    let begun = std::time::Instant::now();
    let answers = lab.engine.tell_all(&signals).await?;
    let told = begun.elapsed();
    assert!(answers.iter().all(|answer| matches!(answer, Ok(Answer::Waiting))));
    counted("all are done", "succeeded").await?;
    println!("{count} signals: told in {told:?}, acted upon after {:?}", begun.elapsed());
    all_answered(&lab).await
}
