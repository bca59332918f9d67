//! The way back by whomever: a failover of two disks is played to its end, and undone to its end, with the snapshots of
//! LINSTOR and with one of the machine. Those of CloudStack are what all the other tests take.

use backstay_engine::Status;
use backstay_simulator::world::things::SnapshotBy;
use backstay_simulator::world::{State, estate};
use serde_json::json;

use crate::judge::{Before, judge};
use crate::stage::Stage;

/// Snapshots of volumes that LINSTOR took and holds, and of machines.
fn held(state: &State) -> (usize, usize) {
    let of_volumes =
        state.snapshots.values().filter(|one| one.removed.is_none() && one.by == SnapshotBy::Linstor);
    let of_machines = state.vm_snapshots.values().filter(|one| one.removed.is_none());
    (of_volumes.count(), of_machines.count())
}

/// There and back. While it stands there are so many snapshots of volumes and of machines.
async fn there_and_back(
    name: &str,
    live: bool,
    provider: &str,
    stands_on: (usize, usize),
) -> anyhow::Result<()> {
    let stage = Stage::with(estate::of(1, 2)).await?;
    let (engine, _node) = stage.node(Stage::config("a")).await?;
    let before = Before::of(&stage, name);
    let mut input = stage.input(name, if live { "live" } else { "test" });
    input["snapshots"] = json!(provider);
    let run = stage.submit(&engine, &input).await?;
    let status = stage.settled(&engine, run).await?;
    let story = async |what: &str| {
        anyhow::Ok(format!("{name} by {provider}, {what}:\n{}", stage.lab.story(run).await?))
    };
    assert_eq!(status, Status::Succeeded, "{}", story("there").await?);
    let wrong = judge(&stage, name, live, &before, run, status).await?;
    assert!(wrong.is_empty(), "{wrong:#?} {}", story("there").await?);
    assert_eq!(stage.centre.world().look(held), stands_on, "{}", story("there").await?);
    let written = stage.centre.world().look(|state| {
        let mut disks = state.sources[&estate::source(name)].disks.iter();
        disks.any(|disk| !state.volumes[&disk.replica].content.foreign.is_empty())
    });
    assert!(written, "the copy wrote nothing, so nothing had to be taken back");

    stage.roll_back(&engine, run).await?;
    stage.moves_on(&engine, run, Status::Succeeded).await?;
    let status = stage.settled(&engine, run).await?;
    assert_eq!(status, Status::RolledBack, "{}", story("back").await?);
    let wrong = judge(&stage, name, live, &before, run, status).await?;
    assert!(wrong.is_empty(), "{wrong:#?} {}", story("back").await?);
    assert_eq!(stage.centre.world().look(held), (0, 0), "{}", story("back").await?);
    stage.is_sound()
}

#[tokio::test(flavor = "multi_thread")]
async fn linstor_takes_a_rehearsal_back_with_and_without_drivers() -> anyhow::Result<()> {
    there_and_back("linux-001", false, "linstor", (2, 0)).await?;
    there_and_back("windows-001", false, "linstor", (2, 0)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn linstor_takes_a_live_failover_back() -> anyhow::Result<()> {
    there_and_back("linux-001", true, "linstor", (2, 0)).await?;
    there_and_back("windows-001", true, "linstor", (2, 0)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_of_the_machine_takes_a_failover_back() -> anyhow::Result<()> {
    there_and_back("linux-001", false, "machine", (0, 1)).await?;
    there_and_back("linux-001", true, "machine", (0, 1)).await
}
