//! Wherever a node dies over a message, and wherever its sender does, the message is answered once.

use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use backstay_engine::crash::{CrashPoint, TELL_POINTS};
use backstay_engine::machine::RollBack;
use backstay_engine::{Action, Answer, Status, SubmitOptions, Verb};
use backstay_tests::{Deaths, Lab, plans};
use serde_json::json;

use crate::processes::Process;
use crate::spoken::{all_answered, broken, held, mend};
use crate::until;

/// To whom something is said.
#[derive(Clone, Copy, Debug, PartialEq)]
enum To {
    /// Nobody has the run: it is claimed with its mail.
    Held,
    /// The node has it: it is told by a look into the inbox.
    UnderWay,
    /// It is over, and comes back.
    Over,
}

/// Says something to a run, over the death of its node. The end, and how often the asking is in the journal.
async fn play(to: To, deaths: &Deaths, heir: &str) -> anyhow::Result<(Status, usize, Vec<String>)> {
    let lab = Lab::new().await?;
    let mut config = Lab::config("a");
    config.lease = if heir == "a" { Duration::from_secs(30) } else { Duration::from_millis(400) };
    config.crash_hook = Some(deaths.hook());
    let node = lab.node(config.clone()).await;
    let (plan, verb) = match to {
        To::Held => {
            // The death may leave an attempt in doubt.
            let mut verb = mend("b");
            if let Verb::Retry { in_doubt, .. } = &mut verb {
                *in_doubt = true;
            }
            (held(&lab.engine, broken())?, verb)
        }
        To::UnderWay => (
            plans::diamond(&lab.engine, &[("b", json!({ "fails": "hang" }))])?,
            Verb::RollBack(RollBack::default()),
        ),
        To::Over => (plans::diamond(&lab.engine, &[])?, Verb::RollBack(RollBack::default())),
    };
    let run = lab.engine.submit(&plan, SubmitOptions::default()).await?.run;
    let action = Action::new("ann", "", verb);
    // Whoever watches brings the heir as soon as the node is gone.
    let (watched, hook) = (lab.clone(), deaths.clone());
    let heir = heir.to_owned();
    let watching = tokio::spawn(async move {
        let Ok((_engine, first)) = node else { anyhow::bail!("no node") };
        first.ended().await;
        assert!(hook.fired(), "it ended by itself");
        drop(first);
        config.name = heir;
        config.crash_hook = None;
        let (_engine, second) = watched.node(config).await?;
        second.ended().await;
        anyhow::Ok(())
    });
    match to {
        To::Held => {
            until("it is held", async || Ok(lab.engine.get(run).await?.status == Status::Held)).await?
        }
        To::UnderWay => {
            until("b is under way", async || Ok(lab.world.touched("hang", "b").await? >= 1)).await?;
        }
        To::Over => {
            until("it is over", async || Ok(lab.engine.get(run).await?.finished_at.is_some())).await?;
        }
    }
    let answer = lab.engine.act_within(run, &action, Duration::from_secs(20)).await?;
    anyhow::ensure!(matches!(answer, Answer::Accepted { .. }), "{answer:?}");
    until("it is over again", async || {
        let info = lab.engine.get(run).await?;
        Ok(info.finished_at.is_some() && info.unanswered == 0)
    })
    .await?;
    all_answered(&lab).await?;
    let story = lab.story(run).await?;
    let ending = (
        lab.engine.get(run).await?.status,
        story.lines().filter(|line| line.starts_with("acted")).count(),
        lab.world.things().await?,
    );
    watching.abort();
    Ok(ending)
}

async fn sweep(to: To) -> anyhow::Result<()> {
    let calm = Deaths::none();
    let ending = play(to, &calm, "a").await?;
    assert_eq!(ending.1, 1);
    let (mut died, mut over_mail) = (0, 0);
    for (n, (point, nth)) in calm.passed().into_iter().enumerate() {
        let deaths = Deaths::at(point, nth);
        let heir = if n % 5 == 3 { "b" } else { "a" };
        let after = play(to, &deaths, heir)
            .await
            .map_err(|error| error.context(format!("{to:?}: death at {point} #{nth}")))?;
        assert_eq!(after, ending, "{to:?}: death at {point} #{nth}");
        died += usize::from(deaths.fired());
        over_mail += usize::from(deaths.fired() && point == "mail.read");
    }
    println!("{to:?}: {died} deaths, {over_mail} of them between reading a message and its answer");
    assert!(died >= 10 && over_mail >= 1, "{to:?}: {died} deaths, {over_mail} over mail");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_held_run_is_told_once_wherever_its_node_dies() -> anyhow::Result<()> {
    sweep(To::Held).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_under_way_is_told_once_wherever_its_node_dies() -> anyhow::Result<()> {
    sweep(To::UnderWay).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_is_over_is_told_once_wherever_its_node_dies() -> anyhow::Result<()> {
    sweep(To::Over).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_is_sent_once_wherever_its_sender_is_killed() -> anyhow::Result<()> {
    let points: Vec<CrashPoint> = TELL_POINTS.into_iter().collect();
    for point in points {
        let lab = Lab::new().await?;
        let (engine, _node) = lab.node(Lab::config("a")).await?;
        let run = engine.submit(&held(&engine, broken())?, SubmitOptions::default()).await?.run;
        until("it is held", async || Ok(lab.engine.get(run).await?.status == Status::Held)).await?;
        let action = Action::new("ann", "", mend("b"));
        let (id, text) = (run.to_string(), serde_json::to_string(&action)?);
        let args = [lab.url.as_str(), "say", &id, &text];
        let mut sender = Process::start(&args, Some(("BACKSTAY_CRASH_AT", point)))?;
        let ended = tokio::time::timeout(Duration::from_secs(20), sender.child.wait()).await??;
        assert_eq!(ended.signal(), Some(9), "{point}");
        if point == "tell.before" {
            assert_eq!(lab.engine.get(run).await?.status, Status::Held);
        }
        // The sender does not know what became of it, and says it again.
        let answer = lab.engine.act(run, &action).await?;
        assert!(matches!(answer, Answer::Accepted { .. }), "{point}: {answer:?}");
        assert_eq!(lab.settled(run).await?, Status::Succeeded);
        assert_eq!(lab.story(run).await?.matches("acted").count(), 1, "{point}");
        all_answered(&lab).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_is_answered_once_wherever_its_reader_is_killed() -> anyhow::Result<()> {
    for at in
        ["mail.read#1", "append.before#1", "append.committed#1", "append.before#2", "append.committed#2"]
    {
        let lab = Lab::new().await?;
        let (engine, node) = lab.node(Lab::config("first")).await?;
        let run = engine.submit(&held(&engine, broken())?, SubmitOptions::default()).await?.run;
        until("it is held", async || Ok(lab.engine.get(run).await?.status == Status::Held)).await?;
        node.drain(Duration::from_secs(1)).await;
        let action = Action::new("ann", "", mend("b"));
        assert_eq!(lab.engine.tell(run, &action).await?, Answer::Waiting);
        let mut reader = Process::node(&lab, "a", Duration::from_secs(30), Some(at)).await?;
        let ended = tokio::time::timeout(Duration::from_secs(20), reader.child.wait()).await??;
        assert_eq!(ended.signal(), Some(9), "{at}");
        let _heir = Process::node(&lab, "a", Duration::from_secs(30), None).await?;
        assert!(matches!(lab.engine.act(run, &action).await?, Answer::Accepted { .. }), "{at}");
        assert_eq!(lab.settled(run).await?, Status::Succeeded, "{at}");
        assert_eq!(lab.story(run).await?.matches("acted").count(), 1, "{at}");
        all_answered(&lab).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_kills_its_nodes_is_not_acquitted_by_what_is_said_to_it() -> anyhow::Result<()> {
    let lab = Lab::new().await?;
    let run = lab.engine.submit(&plans::single(&lab.engine, json!({}))?, SubmitOptions::default()).await?.run;
    for _ in 0..3 {
        let signal = Verb::Signal { name: "nobody waits for it".into(), payload: json!(null) };
        assert_eq!(lab.engine.tell(run, &Action::new("ann", "", signal)).await?, Answer::Waiting);
        let mut node = Process::node(&lab, "a", Duration::from_secs(30), Some("call.before")).await?;
        tokio::time::timeout(Duration::from_secs(20), node.child.wait()).await??;
    }
    let _healthy = Process::node(&lab, "a", Duration::from_secs(30), None).await?;
    assert_eq!(lab.settled(run).await?, Status::Quarantined, "{}", lab.story(run).await?);
    assert_eq!(lab.story(run).await?.matches("refused").count(), 3);
    all_answered(&lab).await
}
