//! Every activity is run twice, one after the other and at once: in a failover for real, and on the way back.

use async_trait::async_trait;
use backstay_activities::site::Adds;
use backstay_engine::machine::plan::Effect;
use backstay_engine::{Activity, Context, Failure, Probe, Registry, Status};

use crate::judge::{Before, judge};
use crate::stage::Stage;

/// How an attempt is doubled.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Doubled {
    OneAfterTheOther,
    AtOnce,
}

struct Double<A>(A, Doubled);

#[async_trait]
impl<A: Activity> Activity for Double<A>
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
        match self.1 {
            Doubled::OneAfterTheOther => {
                self.0.run(context, input.clone()).await?;
                self.0.run(context, input).await
            }
            // The attempt of a process that lost its lease, and that of its heir.
            Doubled::AtOnce => {
                let (one, other) =
                    tokio::join!(self.0.run(context, input.clone()), self.0.run(context, input));
                one.or(other)
            }
        }
    }

    async fn probe(&self, context: &Context, input: A::Input) -> Result<Probe<A::Output>, Failure> {
        self.0.probe(context, input).await
    }
}

impl Adds for Doubled {
    fn add<A>(&self, registry: Registry, activity: A) -> Registry
    where
        A: Activity,
        A::Input: Clone + Sync,
    {
        // The second attempt of a conversion is told by its checkpoint that there was a first. Two that begin at the same moment
        // are not what happens to it: the deaths in sweep.rs are.
        match (self, A::NAME) {
            (Self::AtOnce, "inject-drivers") => registry.with(activity),
            _ => registry.with(Double(activity, *self)),
        }
    }
}

/// What is made is made once, whoever asked for it twice.
const ONCE: [&str; 2] = ["deployVirtualMachine", "virt-v2v"];

async fn doubled(how: Doubled) -> anyhow::Result<()> {
    for (name, live) in [("web-01", true), ("sql-01", false), ("db-01", true)] {
        let stage = Stage::new().await?;
        let before = Before::of(&stage, name);
        let (engine, _node) = stage.node_of(Stage::config("a"), &how).await?;
        let run = stage.submit(&engine, &stage.input(name, if live { "live" } else { "test" })).await?;
        let mut status = stage.settled(&engine, run).await?;
        let wrong = judge(&stage, name, live, &before, run, status);
        anyhow::ensure!(wrong.is_empty(), "{name} {how:?}: {wrong:#?}\n{}", stage.lab.story(run).await?);
        let effects = stage.centre.truth().effects();
        for command in ONCE {
            for (target, times) in effects.get(command).into_iter().flatten() {
                anyhow::ensure!(*times == 1, "{name} {how:?}: {command} of {target} {times} times");
            }
        }
        stage.roll_back(&engine, run).await?;
        stage.moves_on(&engine, run, Status::Succeeded).await?;
        status = stage.settled(&engine, run).await?;
        let wrong = judge(&stage, name, live, &before, run, status);
        anyhow::ensure!(
            wrong.is_empty(),
            "{name} {how:?}, back: {wrong:#?}\n{}",
            stage.lab.story(run).await?
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn each_activity_may_run_twice() -> anyhow::Result<()> {
    doubled(Doubled::OneAfterTheOther).await
}

#[tokio::test(flavor = "multi_thread")]
async fn each_activity_may_run_twice_at_once() -> anyhow::Result<()> {
    doubled(Doubled::AtOnce).await
}
