//! Clients that fall silent inside a transaction, and hold rows that others need: a run's, a node's, a message's. Nobody
//! sees an error; what they hold is hidden, or waited for, until the time-out of their session throws them out. Then
//! everything goes on, and nothing is lost or done twice.

use std::future::Future;
use std::time::{Duration, Instant};

use backstay_engine::store::probe;
use backstay_engine::{
    Action, Answer, Engine, Node, NodeConfig, PlanBuilder, RunId, Status, Store, SubmitOptions, Verb,
};
use backstay_tests::{Lab, plans};
use rustix::process::Signal;
use serde_json::json;
use sqlx::PgConnection;

use crate::faults::waiting;
use crate::processes::Process;
use crate::spoken::{all_answered, waiting as waits_for_a_signal};
use crate::until;

/// A third of it is the longest silence. By default that is ten seconds; here it is two.
const LONGEST_STATEMENT: Duration = Duration::from_secs(6);
const SILENCE: Duration = Duration::from_secs(2);
/// For what goes on after the silence, on a busy machine.
const SLACK: Duration = Duration::from_secs(6);

async fn store(lab: &Lab) -> anyhow::Result<Store> {
    Ok(Store::connect_within(&lab.url, LONGEST_STATEMENT).await?)
}

/// A node whose lease outlives the silence.
async fn node(lab: &Lab) -> anyhow::Result<(Engine, Node)> {
    let config = NodeConfig { lease: Duration::from_secs(12), rejoin: false, ..Lab::config("a") };
    lab.node_on(store(lab).await?, config).await
}

/// A session with our settings that takes these locks and then says nothing more.
async fn freezes(lab: &Lab, holding: &str) -> anyhow::Result<PgConnection> {
    let mut frozen = probe::session(&store(lab).await?, "frozen").await?;
    let statement = format!("begin; {holding}");
    sqlx::raw_sql(sqlx::AssertSqlSafe(statement)).execute(&mut frozen).await?;
    Ok(frozen)
}

/// It comes to pass in time, and the silent session was thrown out, not just slow.
async fn after_the_silence<T>(
    frozen: &mut PgConnection,
    work: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<T> {
    let begun = Instant::now();
    let done = tokio::time::timeout(SILENCE + SLACK, work).await??;
    assert!(begun.elapsed() > SILENCE / 2, "nothing waited for the silent session: {:?}", begun.elapsed());
    let thrown_out = sqlx::raw_sql("select 1").execute(&mut *frozen).await;
    assert!(thrown_out.is_err(), "it still has its session");
    Ok(done)
}

async fn submitted(engine: &Engine, name: &str) -> anyhow::Result<RunId> {
    let plan = plans::chain(engine, name, 2, json!({}))?;
    Ok(engine.submit(&plan, SubmitOptions::default()).await?.run)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_whose_row_is_held_is_hidden_and_others_are_not_delayed() -> anyhow::Result<()> {
    let lab = Lab::new().await?;
    let held = submitted(&lab.engine, "held").await?;
    let mut frozen = freezes(&lab, "select from runs for update").await?;
    let work = async {
        let begun = Instant::now();
        let (_engine, node) = node(&lab).await?;
        let other = submitted(&lab.engine, "other").await?;
        assert_eq!(lab.settled(other).await?, Status::Succeeded);
        if begun.elapsed() < SILENCE / 2 {
            assert_eq!(
                lab.engine.get(held).await?.status,
                Status::Pending,
                "nobody sees it, without an error"
            );
        }
        assert_eq!(lab.settled(held).await?, Status::Succeeded);
        drop(node);
        Ok(())
    };
    after_the_silence(&mut frozen, work).await?;
    lab.assert_history(held).await
}

/// The node has it, and has to write its end into that row: its writer waits, and all of its runs with it.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_waits_for_a_held_row_goes_on_with_all_its_runs() -> anyhow::Result<()> {
    let lab = Lab::new().await?;
    let (engine, node) = node(&lab).await?;
    let epoch = node.epoch();
    let run = engine
        .submit(&plans::single(&engine, json!({ "waits": "it" }))?, SubmitOptions::default())
        .await?
        .run;
    until("it is under way", async || Ok(lab.world.touched("wait", "only").await? == 1)).await?;
    let mut frozen = freezes(&lab, "select from runs for update").await?;
    lab.world.open_gate("it").await?;
    let mut sql = lab.sql().await?;
    until("the writer waits", async || Ok(waiting(&mut sql, "backstay writer").await? == 1)).await?;
    let work = async {
        let other = submitted(&engine, "other").await?;
        assert_eq!(lab.settled(run).await?, Status::Succeeded);
        assert_eq!(lab.settled(other).await?, Status::Succeeded);
        Ok(other)
    };
    let other = after_the_silence(&mut frozen, work).await?;
    assert_eq!(node.epoch(), epoch, "its lease was kept meanwhile");
    lab.assert_history(run).await?;
    lab.assert_history(other).await
}

/// Neither its writes nor its renewals get through.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_own_row_is_held_goes_on_in_the_same_life() -> anyhow::Result<()> {
    let lab = Lab::new().await?;
    let (engine, node) = node(&lab).await?;
    let epoch = node.epoch();
    let mut frozen = freezes(&lab, "select from nodes for update").await?;
    let work = async {
        let run = submitted(&engine, "run").await?;
        assert_eq!(lab.settled(run).await?, Status::Succeeded);
        Ok(run)
    };
    let run = after_the_silence(&mut frozen, work).await?;
    assert_eq!(node.epoch(), epoch);
    lab.assert_history(run).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_is_held_is_answered_once() -> anyhow::Result<()> {
    let lab = Lab::new().await?;
    let plan = waits_for_a_signal(&lab.engine)?;
    let run = lab.engine.submit(&plan, SubmitOptions::default()).await?.run;
    let go = Action::new("ann", "", Verb::Signal { name: "go".into(), payload: json!(1) });
    assert_eq!(lab.engine.tell(run, &go).await?, Answer::Waiting);
    let mut frozen = freezes(&lab, "select from inbox for update").await?;
    let (_engine, _node) = node(&lab).await?;
    let mut sql = lab.sql().await?;
    until("its answer waits", async || Ok(waiting(&mut sql, "backstay writer").await? == 1)).await?;
    after_the_silence(&mut frozen, async {
        assert_eq!(lab.settled(run).await?, Status::Succeeded);
        Ok(())
    })
    .await?;
    assert_eq!(lab.story(run).await?.matches("acted").count(), 1);
    all_answered(&lab).await?;
    lab.assert_history(run).await
}

/// It was never told that its message was durable, and it is not. Who sends after it waits, and is heard.
#[tokio::test(flavor = "multi_thread")]
async fn a_sender_that_freezes_before_its_commit_has_said_nothing() -> anyhow::Result<()> {
    let lab = Lab::new().await?;
    let (_engine, _node) = node(&lab).await?;
    let far = Engine::open(store(&lab).await?, Default::default()).await?;
    let plan = waits_for_a_signal(&lab.engine)?;
    let run = lab.engine.submit(&plan, SubmitOptions::default()).await?.run;
    until("it waits", async || {
        let info = lab.engine.get(run).await?;
        Ok(info.status == Status::Waiting && info.owner.is_none())
    })
    .await?;
    let said = Action::new("eve", "", Verb::Signal { name: "go".into(), payload: json!("eve's") });
    let mut frozen = probe::session(&store(&lab).await?, "frozen").await?;
    sqlx::raw_sql("begin").execute(&mut frozen).await?;
    sqlx::query("select tell(array[$1], array[$2], array[$3], array[false])")
        .bind(run.0)
        .bind(said.id)
        .bind(serde_json::to_string(&said)?)
        .execute(&mut frozen)
        .await?;
    let go = Action::new("ann", "", Verb::Signal { name: "go".into(), payload: json!("ann's") });
    let work = async {
        assert_eq!(far.tell(run, &go).await?, Answer::Waiting);
        assert_eq!(lab.settled(run).await?, Status::Succeeded);
        Ok(())
    };
    after_the_silence(&mut frozen, work).await?;
    let acted: Vec<_> =
        lab.engine.journal(run).await?.into_iter().filter(|row| row.kind == "acted").collect();
    assert_eq!(acted.len(), 1);
    assert_eq!(acted[0].key, Some(go.id), "of two messages one was acknowledged");
    all_answered(&lab).await?;
    lab.assert_history(run).await
}

/// Where runs speak to each other a node writes in a transaction. Its process is stopped in the middle of it, and holds
/// the rows of parent and child, and its own.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_stopped_in_the_middle_of_a_transaction_is_succeeded() -> anyhow::Result<()> {
    let lab = Lab::new().await?;
    let mut child = PlanBuilder::new("child");
    child.retry(plans::quick());
    child.step("inner", "make").input(json!({ "waits": "it" })).undone_by("unmake", json!({}));
    let mut plan = PlanBuilder::new("parent");
    let run = plan.run("run", child).done();
    plan.step("z", "make").after([&run]).undone_by("unmake", json!({}));
    let plan = plan.check(lab.engine.registry())?;
    let parent = lab.engine.submit(&plan, SubmitOptions::default()).await?.run;
    let millis = LONGEST_STATEMENT.as_millis().to_string();
    let setting = Some(("BACKSTAY_LONGEST_STATEMENT", millis.as_str()));
    let mut late = Process::node_with(&lab, "late", Duration::from_millis(800), setting).await?;
    assert!(late.says("UP").await);
    until("the child is under way", async || Ok(lab.world.touched("wait", "inner").await? == 1)).await?;
    until("the parent is put down", async || Ok(lab.engine.get(parent).await?.owner.is_none())).await?;

    // The first statement locks the rows of both; the second waits for us.
    let (mut holder, mut sql) = (lab.sql().await?, lab.sql().await?);
    sqlx::raw_sql("begin; lock table journal in share mode").execute(&mut holder).await?;
    lab.world.open_gate("it").await?;
    let session = |state: &'static str| {
        let count = "select count(*) from pg_stat_activity where datname = current_database()
                     and application_name = 'backstay writer' and (state = $1 or wait_event_type = $1)";
        sqlx::query_scalar::<_, i64>(count).bind(state)
    };
    until("the second statement waits", async || Ok(session("Lock").fetch_one(&mut sql).await? == 1)).await?;
    late.signal(Signal::STOP);
    sqlx::raw_sql("rollback").execute(&mut holder).await?;
    until("it is silent in its transaction", async || {
        Ok(session("idle in transaction").fetch_one(&mut sql).await? == 1)
    })
    .await?;

    let begun = Instant::now();
    let config = NodeConfig { lease: Duration::from_secs(12), rejoin: false, ..Lab::config("heir") };
    let (_engine, _heir) = lab.node_on(store(&lab).await?, config).await?;
    let other = submitted(&lab.engine, "other").await?;
    assert_eq!(lab.settled(other).await?, Status::Succeeded, "others wait no longer than that");
    assert_eq!(lab.settled_for_good(parent).await?, Status::Succeeded);
    assert!(begun.elapsed() < SILENCE + SLACK, "{:?}", begun.elapsed());
    late.signal(Signal::CONT);
    assert!(late.says("LOST").await, "the late node stops by itself");
    assert_eq!(lab.world.things().await?.iter().filter(|step| **step == "inner").count(), 1);
    all_answered(&lab).await?;
    lab.assert_history(parent).await
}

#[tokio::test]
async fn by_default_nobody_is_silent_for_longer_than_ten_seconds() -> anyhow::Result<()> {
    let lab = Lab::new().await?;
    let mut session = probe::session(&Store::connect(&lab.url).await?, "any").await?;
    for setting in ["idle_in_transaction_session_timeout", "lock_timeout"] {
        let set: String =
            sqlx::query_scalar("select current_setting($1)").bind(setting).fetch_one(&mut session).await?;
        assert_eq!(set, "10s", "{setting}");
    }
    Ok(())
}
