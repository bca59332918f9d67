//! What comes late: answers to writes, renewals of the lease, timers behind a full inbox. Nothing is done twice over
//! it, and nothing is forgotten.

use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

use backstay_engine::crash::Hook;
use backstay_engine::machine::{Action, CourseId, Verb};
use backstay_engine::store::probe;
use backstay_engine::store::{Batch, IndexChange};
use backstay_engine::{
    Answer, Engine, NodeConfig, Plan, PlanBuilder, Retry, RunId, Status, Store, SubmitOptions,
};
use backstay_tests::{Cut, Deaths, Lab, Wire, plans};
use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Value, json};
use sqlx::PgConnection;

use crate::until;

/// A lease that no outage of these tests outlives: whoever loses it has made a mistake.
fn config() -> NodeConfig {
    NodeConfig { lease: Duration::from_secs(10), rejoin: false, ..Lab::config("a") }
}

/// The write with this number commits, and its answer is held back.
async fn its_answer_is_late(wire: &Wire) -> anyhow::Result<()> {
    until("an answer is held back", async || Ok(wire.cuts() == [Cut::Late])).await?;
    wire.cut(0, &[]);
    Ok(())
}

async fn now(sql: &mut PgConnection) -> anyhow::Result<DateTime<Utc>> {
    Ok(sqlx::query_scalar("select clock_timestamp()").fetch_one(sql).await?)
}

/// When an event of a run was journaled; the story's words for it.
async fn journaled_at(
    engine: &Engine,
    run: RunId,
    kind: &str,
    attempt: u32,
) -> anyhow::Result<Option<DateTime<Utc>>> {
    let rows = engine.journal(run).await?;
    Ok(rows.iter().find(|row| row.kind == kind && row.attempt as u32 == attempt).map(|row| row.at))
}

/// Polls once.
async fn polled<T>(mut future: std::pin::Pin<&mut impl Future<Output = T>>) -> Option<T> {
    std::future::poll_fn(|context| match future.as_mut().poll(context) {
        std::task::Poll::Ready(done) => std::task::Poll::Ready(Some(done)),
        std::task::Poll::Pending => std::task::Poll::Ready(None),
    })
    .await
}

/// A node takes in one thing after the other. When one that is full has refused two, one after the other, it has taken
/// in all that came before, and seen to what had fallen due.
async fn refused_twice(lab: &Lab, engine: &Engine) -> anyhow::Result<Vec<RunId>> {
    let mut refused = Vec::new();
    for _ in 0..2 {
        let plan = plans::chain(engine, "refused", 1, json!({}))?;
        let run = engine.submit(&plan, SubmitOptions::default()).await?.run;
        assert_eq!(lab.engine.get(run).await?.owner, None, "the node is full");
        refused.push(run);
    }
    Ok(refused)
}

/// The scout finds the run again while the node still waits to hear that it was put down.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_claimed_again_before_its_release_is_answered_stays_with_its_node() -> anyhow::Result<()> {
    let lab = Lab::new().await?;
    let wire = Wire::to(&lab.url).await?;
    let passed = Deaths::none();
    let config = NodeConfig {
        park_after: Duration::from_millis(10),
        max_runs: 2,
        crash_hook: Some(passed.hook()),
        ..config()
    };
    let (engine, node) = lab.node_by(wire.url(), config).await?;
    let epoch = node.epoch();
    // The second write puts the run down until its next attempt.
    wire.cut(2, &[Cut::Late]);
    let mut plan = PlanBuilder::new("later");
    plan.retry(Retry::fixed(3, Duration::from_millis(100)));
    plan.step("only", "make").input(json!({ "fails": "1" })).nothing_to_undo("this test rolls nothing back");
    let plan = plan.check(engine.registry())?;
    let run = engine.submit(&plan, SubmitOptions::default()).await?.run;
    its_answer_is_late(&wire).await?;
    until("the node has claimed it again", async || {
        Ok(lab.engine.get(run).await?.claim == 1 && passed.passed().contains(&("claim.read", 1)))
    })
    .await?;
    let filler = plans::chain(&engine, "filler", 1, json!({}))?;
    let mut second = pin!(engine.submit(&filler, SubmitOptions::default()));
    assert!(polled(second.as_mut()).await.is_none(), "its answer waits for the write");
    refused_twice(&lab, &engine).await?;
    assert!(!lab.story(run).await?.contains("claimed"), "the write before it is not answered yet");
    wire.let_arrive();
    assert_eq!(lab.settled(run).await?, Status::Succeeded);
    lab.settled(second.await?.run).await?;
    assert!(lab.story(run).await?.contains("claimed free"));
    assert_eq!(node.epoch(), epoch);
    lab.assert_history(run).await
}

/// The answer to a release is lost, and before it is repeated the same life has claimed the run once more.
#[tokio::test(flavor = "multi_thread")]
async fn a_release_that_is_repeated_does_not_touch_what_was_claimed_since() -> anyhow::Result<()> {
    let lab = Lab::new().await?;
    let wire = Wire::to(&lab.url).await?;
    let plan = plans::single(&lab.engine, json!({}))?;
    let run = lab.engine.submit(&plan, SubmitOptions::default()).await?.run;
    let store = Store::connect(wire.url()).await?;
    let mut scout = probe::session(&store, "scout").await?;
    let names = ["make".to_owned(), "unmake".to_owned()];
    let (life, at) = probe::begin_life(&mut scout, "a", &names, Duration::from_secs(60)).await?;
    assert_eq!(probe::claim_due(&mut scout, &life, &names, 1).await?[0].claim, 1);
    // Without an event, so that no row of the journal tells that it was written.
    let release = Batch {
        changes: vec![IndexChange {
            run,
            claim: 1,
            status: Status::Waiting,
            release: true,
            due_at: Some(at),
            note: None,
            finished_at: None,
            told: 0,
            clears: true,
            failing: None,
        }],
        ..Batch::default()
    };
    wire.cut(1, &[Cut::Late]);
    let (store, writer) = (store.clone(), life.clone());
    let releasing =
        tokio::spawn(async move { probe::append_surely(&store, &mut None, &writer, &release).await });
    its_answer_is_late(&wire).await?;
    assert_eq!(probe::claim_due(&mut scout, &life, &names, 1).await?[0].claim, 2);
    wire.hang_up();
    tokio::time::timeout(Duration::from_secs(20), releasing).await???;
    let info = lab.engine.get(run).await?;
    assert_eq!((info.owner, info.claim, info.due_at), (Some(life.epoch.0), 2, None));
    assert_eq!(info.status, Status::Running);
    Ok(())
}

/// Three steps side by side. `b` waits for its gate and then fails for good; `c` is refused once, and begins again late
/// enough for that to be a write of its own also on a busy machine; `d` goes on until it is told to stop.
fn turning(engine: &Engine, settle_within: Duration) -> anyhow::Result<Arc<Plan>> {
    let mut plan = PlanBuilder::new("turning");
    plan.retry(Retry::fixed(3, Duration::from_millis(300)))
        .undo_retry(plans::quick())
        .settle_within(settle_within);
    let waits = json!({ "waits": "b", "fails": "permanent" });
    for (name, input) in [("b", waits), ("c", json!({ "fails": "1" })), ("d", json!({ "fails": "hang" }))] {
        plan.step(name, "make").input(input).undone_by("unmake", json!({}));
    }
    Ok(plan.check(engine.registry())?)
}

/// A run turns round while the answer to the start of c's second attempt is on its way.
async fn turned_round(
    settle_within: Duration,
) -> anyhow::Result<(Lab, Wire, Engine, backstay_engine::Node, RunId)> {
    let lab = Lab::new().await?;
    let wire = Wire::to(&lab.url).await?;
    let (engine, node) =
        lab.node_by(wire.url(), NodeConfig { max_calls: 3, max_runs: 1, ..config() }).await?;
    // The first write begins all steps, the second has c's failure, the third its second start.
    wire.cut(3, &[Cut::Late]);
    let run = engine.submit(&turning(&engine, settle_within)?, SubmitOptions::default()).await?.run;
    its_answer_is_late(&wire).await?;
    assert!(lab.story(run).await?.ends_with("started c #2"), "{}", lab.story(run).await?);
    lab.world.open_gate("b").await?;
    until("d is told to stop", async || Ok(lab.world.touched("stop", "d").await? == 1)).await?;
    Ok((lab, wire, engine, node, run))
}

/// Of four steps that could begin at once, a node with three hands that are all free begins three.
async fn three_hands_are_free(lab: &Lab, engine: &Engine) -> anyhow::Result<()> {
    let mut plan = PlanBuilder::new("wide");
    for name in ["w", "x", "y", "z"] {
        plan.step(name, "make").input(json!({ "waits": "wide" })).undone_by("unmake", json!({}));
    }
    let plan = plan.check(engine.registry())?;
    let run = engine.submit(&plan, SubmitOptions::default()).await?.run;
    until("it is begun", async || Ok(lab.story(run).await?.contains("started"))).await?;
    let story = lab.story(run).await?;
    assert_eq!(story.matches("started").count(), 3, "{story}");
    lab.world.open_gate("wide").await?;
    assert_eq!(lab.settled(run).await?, Status::Succeeded);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_is_not_made_if_the_run_turned_round_before_its_start_was_durable() -> anyhow::Result<()> {
    let (lab, wire, engine, _node, run) = turned_round(Duration::from_secs(60)).await?;
    wire.let_arrive();
    assert_eq!(lab.settled(run).await?, Status::RolledBack);
    let story = lab.story(run).await?;
    assert!(story.contains("failed c #2 not_called"), "{story}");
    assert_eq!(lab.world.touched("make", "c").await?, 0, "{story}");
    assert!(!story.contains("started undo c"), "no attempt of c had an effect: {story}");
    lab.assert_history(run).await?;
    three_hands_are_free(&lab, &engine).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_is_not_made_if_it_was_given_up_before_its_start_was_durable() -> anyhow::Result<()> {
    let (lab, wire, engine, _node, run) = turned_round(Duration::from_millis(50)).await?;
    let mut sql = lab.sql().await?;
    // The node's clock is a little behind the database's.
    let given_up = now(&mut sql).await? + TimeDelta::milliseconds(50 + 1_000);
    until("c is given up", async || Ok(now(&mut sql).await? > given_up)).await?;
    let refused = refused_twice(&lab, &engine).await?;
    wire.let_arrive();
    assert_eq!(lab.settled(run).await?, Status::RolledBack);
    let story = lab.story(run).await?;
    assert!(story.contains("failed c #2 abandoned"), "{story}");
    assert_eq!(lab.world.touched("make", "c").await?, 0, "{story}");
    lab.assert_history(run).await?;
    for run in refused {
        assert_eq!(lab.settled(run).await?, Status::Succeeded);
    }
    three_hands_are_free(&lab, &engine).await
}

/// The first attempt is in doubt, and while the world is asked about it, an operator has the step begin anew. That
/// attempt is in doubt as well, and is asked about after this delay.
async fn begun_anew_while_asked(delay: Duration) -> anyhow::Result<(Lab, backstay_engine::Node, RunId)> {
    let lab = Lab::new().await?;
    let (engine, node) = lab.node(config()).await?;
    let mut plan = PlanBuilder::new("doubtful");
    plan.retry(Retry::fixed(4, delay));
    plan.step("only", "make")
        .input(json!({ "fails": "late:1", "probe_waits": "answer" }))
        .nothing_to_undo("this test rolls nothing back");
    let plan = plan.check(engine.registry())?;
    let run = engine.submit(&plan, SubmitOptions::default()).await?.run;
    until("the world is asked", async || Ok(lab.world.touched("ask", "only").await? == 1)).await?;
    let anew = Verb::Retry { step: "only".into(), undo: false, input: None, in_doubt: true };
    let answer = lab.engine.act(run, &Action::new("ann", "it is taking too long", anew)).await?;
    assert!(matches!(answer, Answer::Accepted { .. }), "{answer:?}");
    until("the new attempt is in doubt", async || {
        Ok(lab.story(run).await?.matches("failed only #1 late").count() == 2)
    })
    .await?;
    Ok((lab, node, run))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_about_an_earlier_attempt_says_nothing_of_this_one() -> anyhow::Result<()> {
    let (lab, _node, run) = begun_anew_while_asked(Duration::from_millis(1_800)).await?;
    lab.world.open_gate("answer").await?;
    until("the first question is answered", async || Ok(lab.world.touched("probe", "only").await? == 1))
        .await?;
    assert_eq!(lab.settled(run).await?, Status::Succeeded);
    assert_eq!(lab.world.touched("probe", "only").await?, 2, "the world was asked about both");
    let started = lab.engine.journal(run).await?.into_iter().rfind(|row| row.kind == "started").unwrap();
    let output = lab.engine.state(run).await?;
    let step = CourseId::forward(output.plan().find("only").unwrap());
    let made = output.course(step).output().unwrap().value()["id"].clone();
    assert_eq!(made, json!(started.key), "it is what the second attempt made");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_question_about_an_earlier_attempt_does_not_stand_in_the_way_of_the_next() -> anyhow::Result<()> {
    let (lab, _node, run) = begun_anew_while_asked(Duration::from_millis(5)).await?;
    until("the second question is put", async || Ok(lab.world.touched("ask", "only").await? == 2)).await?;
    lab.world.open_gate("answer").await?;
    assert_eq!(lab.settled(run).await?, Status::Succeeded);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_probe_waits_for_a_lease_that_is_safe() -> anyhow::Result<()> {
    let lab = Lab::new().await?;
    let config = config();
    let (engine, node) = lab.node(config.clone()).await?;
    let epoch = node.epoch();
    let doubtful = plans::single(&engine, json!({ "waits": "it", "fails": "late:1" }))?;
    let run = engine.submit(&doubtful, SubmitOptions::default()).await?.run;
    until("its call is made", async || Ok(lab.world.touched("wait", "only").await? == 1)).await?;
    let (mut holder, mut sql) = (lab.sql().await?, lab.sql().await?);
    // Renewals wait for this lock, writes under the lease do not.
    sqlx::raw_sql("begin; select from nodes for no key update").execute(&mut holder).await?;
    let lease = "select lease_until from nodes where ended_at is null";
    let ends: DateTime<Utc> = sqlx::query_scalar(lease).fetch_one(&mut sql).await?;
    // The node counts from before it asked, so for the node it is at least as late.
    let unsafe_from = ends - TimeDelta::from_std(config.lease / 4)?;
    until("the lease is too short", async || Ok(now(&mut sql).await? > unsafe_from)).await?;
    lab.world.open_gate("it").await?;
    until("the attempt is in doubt", async || Ok(lab.story(run).await?.contains("failed only #1 late")))
        .await?;
    // Each of these is a turn of the node, which sees to what has fallen due.
    let mut others = Vec::new();
    for at in 0..20 {
        let other = plans::chain(&engine, &format!("other{at}"), 1, json!({}))?;
        others.push(engine.submit(&other, SubmitOptions::default()).await?.run);
    }
    let held_back = now(&mut sql).await?;
    assert!(held_back < ends, "the lease was not lost meanwhile");
    sqlx::raw_sql("rollback").execute(&mut holder).await?;
    assert_eq!(lab.settled(run).await?, Status::Succeeded);
    for other in others {
        lab.settled(other).await?;
    }
    let asked = "select at from touches where what = 'probe'";
    let asked: Vec<DateTime<Utc>> = sqlx::query_scalar(asked).fetch_all(&mut sql).await?;
    assert!(asked.len() == 1 && asked[0] > held_back, "{asked:?}, held back until {held_back}");
    let called = "select min(at) from touches where step like 'other%'";
    let called: DateTime<Utc> = sqlx::query_scalar(called).fetch_one(&mut sql).await?;
    assert!(called > held_back, "nor was any call made");
    assert_eq!(node.epoch(), epoch);
    lab.assert_history(run).await
}

/// Between the first look and the first word that is heard, something is told.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_looks_again_once_it_listens() -> anyhow::Result<()> {
    let lab = Lab::new().await?;
    let wire = Wire::to(&lab.url).await?;
    // Counting the runs comes after the look and before the listening.
    wire.mark("group by status");
    wire.cut(1, &[Cut::Late]);
    let (_engine, _node) =
        lab.node_by(wire.url(), NodeConfig { poll: Duration::from_secs(600), ..config() }).await?;
    its_answer_is_late(&wire).await?;
    let plan = plans::single(&lab.engine, json!({}))?;
    let run = lab.engine.submit(&plan, SubmitOptions::default()).await?.run;
    wire.let_arrive();
    assert_eq!(lab.settled(run).await?, Status::Succeeded);
    Ok(())
}

/// Makes the part of a node that moves its runs stand still, at a write.
struct Standstill {
    armed: Arc<AtomicBool>,
    stands: Arc<AtomicBool>,
    go_on: mpsc::Sender<()>,
}

impl Standstill {
    fn new() -> (Self, Hook) {
        let (armed, stands) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let (go_on, waits) = mpsc::channel();
        let waits = Mutex::new(waits);
        let this = Self { armed: Arc::clone(&armed), stands: Arc::clone(&stands), go_on };
        let hook = move |point| {
            if point == "append.before" && armed.swap(false, Ordering::SeqCst) {
                stands.store(true, Ordering::SeqCst);
                tokio::task::block_in_place(|| {
                    let _ = waits.lock().unwrap_or_else(PoisonError::into_inner).recv();
                });
            }
            false
        };
        (this, Arc::new(hook))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_inbox_does_not_hold_up_what_has_fallen_due() -> anyhow::Result<()> {
    let lab = Lab::new().await?;
    let (still, hook) = Standstill::new();
    let (engine, _node) = lab.node(NodeConfig { crash_hook: Some(hook), ..config() }).await?;
    let mut sql = lab.sql().await?;
    let loud = plans::chain(&engine, "loud", 1, json!({ "waits": "loud", "reports": 20_000 }))?;
    let loud = engine.submit(&loud, SubmitOptions::default()).await?.run;
    until("its call is made", async || Ok(lab.world.touched("wait", "loud-1").await? == 1)).await?;
    let mut plan = PlanBuilder::new("again");
    plan.retry(Retry::fixed(3, Duration::from_millis(1_500)));
    plan.step("only", "make").input(json!({ "fails": "1" })).nothing_to_undo("this test rolls nothing back");
    let plan = plan.check(engine.registry())?;
    let again = engine.submit(&plan, SubmitOptions::default()).await?.run;
    until("it waits for its next attempt", async || Ok(lab.story(again).await?.contains("failed only #1")))
        .await?;
    let failed = engine.journal(again).await?.pop().unwrap();
    let due: DateTime<Utc> = serde_json::from_value(body(&failed.body)["retry_at"].clone())?;
    // The first report is journaled, and with it the node stands still: the others pile up, and the outcome is last.
    still.armed.store(true, Ordering::SeqCst);
    lab.world.open_gate("loud").await?;
    until("the node stands still", async || Ok(still.stands.load(Ordering::SeqCst))).await?;
    assert!(now(&mut sql).await? < due, "it stands still before the time of the retry");
    until("all has been said, and it is time for the retry", async || {
        let made = lab.world.touched("make", "loud-1").await? == 1;
        Ok(made && now(&mut sql).await? > due + TimeDelta::milliseconds(500))
    })
    .await?;
    still.go_on.send(())?;
    for run in [again, loud] {
        assert_eq!(lab.settled(run).await?, Status::Succeeded);
        lab.assert_history(run).await?;
    }
    let retried = journaled_at(&engine, again, "started", 2).await?.unwrap();
    let said = journaled_at(&engine, loud, "succeeded", 1).await?.unwrap();
    assert!(retried < said, "the retry came after everything in the inbox: {retried}, {said}");
    Ok(())
}

fn body(body: &Option<backstay_engine::machine::Json>) -> Value {
    body.as_ref().map(|body| body.value().clone()).unwrap_or_default()
}
