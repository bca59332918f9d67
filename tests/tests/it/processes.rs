//! Real processes: killed with SIGKILL, frozen with SIGSTOP.

use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::until;
use backstay_engine::{Status, SubmitOptions};
use backstay_tests::{Lab, plans};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

/// A node, or somebody who speaks to a run, in a process of its own.
pub(crate) struct Process {
    pub(crate) child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Process {
    pub(crate) async fn node(
        lab: &Lab,
        name: &str,
        lease: Duration,
        crash_at: Option<&str>,
    ) -> anyhow::Result<Self> {
        Self::node_with(lab, name, lease, crash_at.map(|at| ("BACKSTAY_CRASH_AT", at))).await
    }

    pub(crate) async fn node_with(
        lab: &Lab,
        name: &str,
        lease: Duration,
        setting: Option<(&str, &str)>,
    ) -> anyhow::Result<Self> {
        Self::start(&[lab.url.as_str(), name, &lease.as_millis().to_string()], setting)
    }

    pub(crate) fn start(args: &[&str], setting: Option<(&str, &str)>) -> anyhow::Result<Self> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lab-node"));
        command.args(args).envs(setting);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true).spawn()?;
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Ok(Self { child, lines })
    }

    pub(crate) async fn says(&mut self, word: &str) -> bool {
        let line = tokio::time::timeout(Duration::from_secs(20), self.lines.next_line()).await;
        matches!(line, Ok(Ok(Some(line))) if line == word)
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id().unwrap() as i32).unwrap();
        kill_process(pid, signal).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_survives_sigkill_at_every_crash_point() -> anyhow::Result<()> {
    use backstay_engine::crash::POINTS;
    let mut killed = std::collections::BTreeSet::new();
    // One point is passed by a node that drains, which these processes never do, and one by a node that is spoken to,
    // for which see `spoken_crashes.rs`; one while runs are removed, for which see `retention.rs`.
    let elsewhere = ["drain.released", "mail.read", "purge.mid"];
    let points = POINTS.into_iter().filter(|point| !elsewhere.contains(point));
    for (point, nth) in points.flat_map(|p| [(p, 1), (p, 3)]) {
        let lab = Lab::new().await?;
        let like = [("e", json!({ "fails": "permanent" })), ("b", json!({ "saves": true }))];
        let plan = plans::diamond(&lab.engine, &like)?;
        let run = lab.engine.submit(&plan, SubmitOptions::default()).await?.run;
        let at = format!("{point}#{nth}");
        let mut first = Process::node(&lab, "a", Duration::from_secs(30), Some(&at)).await?;
        tokio::select! {
            ended = first.child.wait() => {
                use std::os::unix::process::ExitStatusExt;
                assert_eq!(ended?.signal(), Some(9), "{at}");
                killed.insert(point);
            }
            status = lab.settled(run) => {
                status?;
            }
        }
        // The same name: its successor need not wait for the lease of thirty seconds.
        drop(first);
        let _second = Process::node(&lab, "a", Duration::from_secs(30), None).await?;
        assert_eq!(lab.settled(run).await?, Status::RolledBack, "{at}");
        assert!(lab.world.things().await?.is_empty(), "{at}");
        lab.assert_history(run).await?;
    }
    assert_eq!(killed.len(), POINTS.len() - 3, "every point was seen to kill: {killed:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_node_is_refused_and_its_activity_told_to_stop() -> anyhow::Result<()> {
    let lab = Lab::new().await?;
    let plan = plans::single(&lab.engine, json!({ "millis": 2_500, "saves": true }))?;
    let run = lab.engine.submit(&plan, SubmitOptions::default()).await?.run;
    let mut late = Process::node(&lab, "late", Duration::from_millis(600), None).await?;
    assert!(late.says("UP").await);
    until("the late node has begun the step", async || Ok(lab.world.touched("begin", "only").await? == 1))
        .await?;
    late.signal(Signal::STOP);
    let _heir = Process::node(&lab, "heir", Duration::from_secs(5), None).await?;
    until("the heir has taken the step up again", async || {
        Ok(lab.world.touched("resume", "only").await? == 1)
    })
    .await?;
    late.signal(Signal::CONT);
    assert!(late.says("LOST").await, "the late node stops by itself");
    assert_eq!(lab.settled(run).await?, Status::Succeeded);
    let story = lab.story(run).await?;
    assert_eq!(story.matches("succeeded only").count(), 1, "{story}");
    assert_eq!(lab.world.touched("make", "only").await?, 1, "the late node's call never came to its effect");
    assert!(story.contains("claimed lost_lease"), "{story}");
    lab.assert_history(run).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_of_a_name_in_use_is_refused() -> anyhow::Result<()> {
    let lab = Lab::new().await?;
    let (_engine, _node) = lab.node(Lab::config("twin")).await?;
    let refused = lab.node(Lab::config("twin")).await.unwrap_err().to_string();
    assert!(refused.contains("a node named \"twin\" is running"), "{refused}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drained_node_hands_its_runs_over_at_once() -> anyhow::Result<()> {
    let lab = Lab::new().await?;
    let (engine, old) = lab.node(Lab::config("old")).await?;
    let plan = plans::diamond(
        &engine,
        &[("b", json!({ "millis": 150 })), ("c", json!({ "millis": 60_000, "saves": true }))],
    )?;
    let run = engine.submit(&plan, SubmitOptions::default()).await?.run;
    until("c is under way", async || Ok(lab.world.touched("begin", "c").await? == 1)).await?;
    let begun = Instant::now();
    old.drain(Duration::from_millis(400)).await;
    assert!(begun.elapsed() < Duration::from_secs(5));
    assert_eq!(lab.world.touched("make", "b").await?, 1, "what ends within the grace is journaled");
    let info = lab.engine.get(run).await?;
    assert!(info.owner.is_none() && info.due_at.is_some(), "{info:?}");
    let story = lab.story(run).await?;
    assert!(story.contains("succeeded b #1") && !story.contains("started d"), "{story}");
    let (_engine, _new) = lab.node(Lab::config("new")).await?;
    until("c is taken up again", async || Ok(lab.world.touched("resume", "c").await? == 1)).await?;
    lab.assert_history(run).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_has_lost_its_lease_begins_a_new_life_and_finds_its_runs() -> anyhow::Result<()> {
    let lab = Lab::new().await?;
    let (engine, node) = lab.node(Lab::config("a")).await?;
    let plan = plans::single(&engine, json!({ "millis": 1_000, "saves": true }))?;
    let run = engine.submit(&plan, SubmitOptions::default()).await?.run;
    until("the step is under way", async || Ok(lab.world.touched("begin", "only").await? == 1)).await?;
    let first = node.epoch();
    let mut sql = lab.sql().await?;
    sqlx::query("update nodes set ended_at = now(), ended_why = 'lost'").execute(&mut sql).await?;
    assert_eq!(lab.settled(run).await?, Status::Succeeded);
    assert!(node.epoch() > first && node.is_live());
    let story = lab.story(run).await?;
    assert!(story.contains("claimed lost_lease"), "{story}");
    assert_eq!(lab.world.touched("make", "only").await?, 1, "the call of the first life was hung up on");
    lab.assert_history(run).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_learns_of_its_end_by_a_refused_write_begins_a_new_life() -> anyhow::Result<()> {
    let lab = Lab::new().await?;
    // The next renewal is ten seconds away: the write is the first to be told.
    let config = backstay_engine::NodeConfig { lease: Duration::from_secs(30), ..Lab::config("a") };
    let (engine, node) = lab.node(config).await?;
    let plan = plans::single(&engine, json!({ "millis": 400, "saves": true }))?;
    let run = engine.submit(&plan, SubmitOptions::default()).await?.run;
    until("the step is under way", async || Ok(lab.world.touched("begin", "only").await? == 1)).await?;
    let first = node.epoch();
    let mut sql = lab.sql().await?;
    sqlx::query("update nodes set ended_at = now(), ended_why = 'lost'").execute(&mut sql).await?;
    assert_eq!(lab.settled(run).await?, Status::Succeeded);
    assert!(node.epoch() > first && node.is_live());
    lab.assert_history(run).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_whose_claim_got_no_answer_is_found_again() -> anyhow::Result<()> {
    let lab = Lab::new().await?;
    let plan = plans::single(&lab.engine, json!({}))?;
    let run = lab.engine.submit(&plan, SubmitOptions::default()).await?.run;
    let mut sql = lab.sql().await?;
    sqlx::query("update runs set due_at = now() + interval '1 hour'").execute(&mut sql).await?;
    let (_engine, node) = lab.node(Lab::config("a")).await?;
    // As if the node had claimed it and the answer had been lost with its connection.
    let forget = "update runs set owner = $1, due_at = null, status = 'running', claim = claim + 1";
    sqlx::query(forget).bind(node.epoch()).execute(&mut sql).await?;
    let cut = "select count(pg_terminate_backend(pid)) from pg_stat_activity
               where application_name = 'backstay scout' and datname = current_database()";
    until("the scout's connection is cut", async || {
        Ok(sqlx::query_scalar::<_, i64>(cut).fetch_one(&mut sql).await? == 1)
    })
    .await?;
    assert_eq!(lab.settled(run).await?, Status::Succeeded);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_kills_its_nodes_is_left_alone_and_delays_nobody() -> anyhow::Result<()> {
    let lab = Lab::new().await?;
    let poison = plans::single(&lab.engine, json!({}))?;
    let poison = lab.engine.submit(&poison, SubmitOptions::default()).await?.run;
    // Whoever calls the activity dies.
    for _ in 0..3 {
        let mut node = Process::node(&lab, "a", Duration::from_secs(30), Some("call.before")).await?;
        tokio::time::timeout(Duration::from_secs(20), node.child.wait()).await??;
    }
    let _healthy = Process::node(&lab, "a", Duration::from_secs(30), None).await?;
    let other = plans::single(&lab.engine, json!({}))?;
    let other = lab.engine.submit(&other, SubmitOptions::default()).await?.run;
    assert_eq!(lab.settled(other).await?, Status::Succeeded);
    assert_eq!(lab.settled(poison).await?, Status::Quarantined);
    assert!(lab.story(poison).await?.ends_with("claimed lost_lease\nquarantined"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_cannot_be_read_is_left_alone_and_delays_nobody() -> anyhow::Result<()> {
    let lab = Lab::new().await?;
    let plan = plans::single(&lab.engine, json!({}))?;
    let broken = lab.engine.submit(&plan, SubmitOptions::default()).await?.run;
    let newer = lab.engine.submit(&plan, SubmitOptions::default()).await?.run;
    let good = lab.engine.submit(&plan, SubmitOptions::default()).await?.run;
    let mut sql = lab.sql().await?;
    sqlx::query("update journal set body = '{\"hash\":\"x\",\"plan\":7}' where run_id = $1")
        .bind(broken.0)
        .execute(&mut sql)
        .await?;
    let row = "insert into journal select run_id, 2, 0, 0, at, 'from_the_future', null, false, 0, 0, null, null from journal where run_id = $1";
    sqlx::query(row).bind(newer.0).execute(&mut sql).await?;
    let (_engine, _node) = lab.node(Lab::config("a")).await?;
    assert_eq!(lab.settled(good).await?, Status::Succeeded);
    for run in [broken, newer] {
        assert_eq!(lab.settled(run).await?, Status::Quarantined);
        let note = lab.engine.get(run).await?.note.unwrap();
        assert!(note.starts_with("its journal cannot be read: "), "{note}");
    }
    Ok(())
}
