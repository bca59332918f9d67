//! What only looks: how much of it there is, and what becomes of it when calls fail.

use backstay_engine::Status;
use backstay_simulator::world::estate;

use crate::stage::Stage;

/// Everything that can be known is known from few calls: a busy site is not asked for each disk, right and network.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_checked_at_the_beginning_is_asked_for_once() -> anyhow::Result<()> {
    let stage = Stage::with(estate::of(1, 8)).await?;
    let mut input = stage.input("linux-001", "test");
    // One of the checks fails, so nothing comes after them.
    input["destination"]["template"] = estate::id("template", "still-downloading").to_string().into();
    input["snapshots"] = "cloudstack".into();
    let (engine, _node) = stage.node(Stage::config("a")).await?;
    let run = stage.submit(&engine, &input).await?;
    assert_eq!(stage.settled(&engine, run).await?, Status::RolledBack);
    let calls = stage.centre.faults().calls();
    let all: u64 = calls.values().sum();
    println!("{all} calls: {calls:#?}");
    assert_eq!(calls["cloudstack listApis"], 1, "{calls:#?}");
    assert!(all <= 15, "{all} calls: {calls:#?}");
    stage.is_sound()
}
