//! Every undo is played twice, and has to undo what never was.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use backstay_activities::site::Adds;
use backstay_engine::machine::Direction;
use backstay_engine::machine::plan::Effect;
use backstay_engine::{Activity, Context, Failure, Probe, Registry, Status};
use backstay_workflows::Workflow;
use backstay_workflows::failover::FailoverWorkflow;

use crate::play::Play;

/// How an undo is played again.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Again {
    /// The second follows on the first, in one attempt.
    AtOnceBehind,
    /// Two at the same moment: that of a process that lost its lease, and that of its heir.
    Beside,
    /// What the first came to was never heard; the second is an attempt of its own.
    Unheard,
}

struct Undo<A>(A, Again);

#[async_trait]
impl<A: Activity> Activity for Undo<A>
where
    A::Input: Clone + Sync,
{
    const NAME: &'static str = A::NAME;
    type Input = A::Input;
    type Output = A::Output;

    fn effect(&self) -> Effect {
        self.0.effect()
    }

    fn pool(&self) -> Option<String> {
        self.0.pool()
    }

    async fn run(&self, context: &Context, input: A::Input) -> Result<A::Output, Failure> {
        if context.direction() == Direction::Forward {
            return self.0.run(context, input).await;
        }
        match self.1 {
            Again::AtOnceBehind => {
                self.0.run(context, input.clone()).await?;
                self.0.run(context, input).await
            }
            Again::Beside => {
                let (one, other) =
                    tokio::join!(self.0.run(context, input.clone()), self.0.run(context, input));
                one.or(other)
            }
            Again::Unheard if context.attempt() == 1 => {
                self.0.run(context, input).await?;
                Err(Failure::retryable("unheard", "it was done, and nobody heard of it"))
            }
            Again::Unheard => self.0.run(context, input).await,
        }
    }

    async fn probe(&self, context: &Context, input: A::Input) -> Result<Probe<A::Output>, Failure> {
        self.0.probe(context, input).await
    }
}

impl Adds for Again {
    fn add<A>(&self, registry: Registry, activity: A) -> Registry
    where
        A: Activity,
        A::Input: Clone + Sync,
    {
        registry.with(Undo(activity, *self))
    }
}

const SCENES: [(&str, &str, &str); 3] =
    [("web-01", "live", "machine"), ("sql-01", "test", "linstor"), ("db-01", "live", "cloudstack")];

async fn twice(again: Again) -> anyhow::Result<()> {
    for (name, mode, snapshots) in SCENES {
        let mut play = Play::new(name, mode).await?;
        play.input["snapshots"] = snapshots.into();
        play.node_of(&again).await?;
        play.again().await?;
        play.is_well(play.settled().await?, Status::Succeeded).await?;
        let back = play.back().await?;
        play.is_well(back, Status::RolledBack)
            .await
            .map_err(|wrong| anyhow::anyhow!("{again:?}, {name}: {wrong:#}"))?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn each_undo_may_be_played_twice() -> anyhow::Result<()> {
    twice(Again::AtOnceBehind).await
}

#[tokio::test(flavor = "multi_thread")]
async fn each_undo_may_be_played_twice_at_once() -> anyhow::Result<()> {
    twice(Again::Beside).await
}

#[tokio::test(flavor = "multi_thread")]
async fn each_undo_may_be_played_again_when_nobody_heard_that_it_was_done() -> anyhow::Result<()> {
    twice(Again::Unheard).await
}

/// Each attempt of a step fails before it calls anything, and does not know that: all before it is undone, and it as well. Says
/// whether its undo was played.
async fn never_done(name: &'static str, snapshots: &str, step: &str) -> anyhow::Result<bool> {
    let mut play = Play::new(name, "live").await?;
    play.input["snapshots"] = snapshots.into();
    let undone = Arc::new(AtomicBool::new(false));
    let (fails, seen) = (step.to_owned(), Arc::clone(&undone));
    play.before_each("*", move |_, context| {
        if context.step() != fails {
            return None;
        }
        let forward = context.direction() == Direction::Forward;
        seen.fetch_or(!forward, Ordering::SeqCst);
        forward.then(|| Failure::permanent("never", "it may have been done"))
    });
    play.begin().await?;
    let mut status = play.settled().await?;
    // One is left to people: the copy runs by then.
    if status == Status::Held && step == "record-failed-over" {
        status = play.back().await?;
    }
    play.is_well(status, Status::RolledBack).await?;
    play.failed_with(&format!("{step}: never")).await?;
    Ok(undone.load(Ordering::SeqCst))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_never_done_is_undone_all_the_same() -> anyhow::Result<()> {
    let play = Play::new("sql-01", "live").await?;
    let prepared = FailoverWorkflow.prepare(&play.input).map_err(|wrong| anyhow::anyhow!("{wrong:?}"))?;
    let plan = serde_json::to_value(prepared.plan)?;
    let mut scenes = vec![
        ("web-01", "machine", "snapshot".to_owned(), true),
        ("db-01", "linstor", "snapshot".to_owned(), true),
    ];
    for step in plan["steps"].as_array().into_iter().flatten().filter(|step| step["finalize"] != true) {
        let name = step["name"].as_str().unwrap_or_default().to_owned();
        scenes.push(("sql-01", "cloudstack", name, step["undo"].is_object()));
    }
    let (mut tasks, mut left) = (tokio::task::JoinSet::new(), scenes.into_iter());
    loop {
        while tasks.len() < 3
            && let Some((name, snapshots, step, has_undo)) = left.next()
        {
            tasks.spawn(async move {
                let undone = never_done(name, snapshots, &step).await;
                let undone =
                    undone.map_err(|wrong| anyhow::anyhow!("{name}, {snapshots}, {step}: {wrong:#}"))?;
                anyhow::ensure!(
                    undone == has_undo,
                    "{name}, {step}: undone {undone}, and it can be: {has_undo}"
                );
                Ok(())
            });
        }
        match tasks.join_next().await {
            Some(done) => done??,
            None => return Ok(()),
        }
    }
}
