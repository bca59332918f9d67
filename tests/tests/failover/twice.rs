//! Every activity is run twice, one after the other and at once: in a failover for real, and on the way back.

use backstay_engine::Status;

use crate::again::{Again, All};
use crate::judge::{Before, judge};
use crate::stage::Stage;

/// What is made is made once, whoever asked for it twice.
const ONCE: [&str; 2] = ["deployVirtualMachine", "virt-v2v"];

async fn doubled(how: Again) -> anyhow::Result<()> {
    for (name, live) in [("web-01", true), ("sql-01", false), ("db-01", true)] {
        let stage = Stage::new().await?;
        let before = Before::of(&stage, name);
        let (engine, _node) = stage.node_of(Stage::config("a"), &All(how)).await?;
        let run = stage.submit(&engine, &stage.input(name, if live { "live" } else { "test" })).await?;
        let mut status = stage.settled(&engine, run).await?;
        let wrong = judge(&stage, name, live, &before, run, status).await?;
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
        let wrong = judge(&stage, name, live, &before, run, status).await?;
        anyhow::ensure!(
            wrong.is_empty(),
            "{name} {how:?}, back: {wrong:#?}\n{}",
            stage.lab.story(run).await?
        );
        stage.lab.assert_facts().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn each_activity_may_run_twice() -> anyhow::Result<()> {
    doubled(Again::Behind).await
}

#[tokio::test(flavor = "multi_thread")]
async fn each_activity_may_run_twice_at_once() -> anyhow::Result<()> {
    doubled(Again::AtOnce).await
}
