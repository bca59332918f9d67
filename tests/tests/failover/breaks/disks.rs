//! Disks on their way, and what the Volume Daemon says of them.

use std::sync::Arc;

use backstay_engine::Status;
use backstay_engine::machine::Direction;
use backstay_simulator::faults::Fault;
use backstay_simulator::world::estate;
use serde_json::json;

use crate::play::{Play, SOON};

const ATTACH: &str = "POST /volumes/{id}/attach";
const ATTACH_ROOT: &str = "daemon POST /volumes/{id}/attach-root";

/// Where the first disk of a machine is plugged: at nothing, at the appliance, or elsewhere.
fn at_oma(play: &Play, disk: usize) -> bool {
    play.look(|state| {
        let replica = state.sources[&estate::source(play.name)].disks[disk].replica;
        state.volumes[&replica].plugged.iter().eq([&state.oma])
    })
}

// Break 17: the disk that could not be attached went home, those before it stayed where they were.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_cannot_be_attached_never_leaves_the_others_behind() -> anyhow::Result<()> {
    let mut play = Play::new("db-01", "live").await?;
    // The second of the disks that it does not start from.
    play.faults("daemon", ATTACH, 2..=4, Fault::JobFails { code: 530 });
    play.begin().await?;
    play.is_well(play.settled().await?, Status::RolledBack).await?;
    play.output("attach-disk-1").await?;
    play.failed_with("attach-disk-2: not_done").await
}

// Break 18: a line in a log was all that told of a disk that was attached nowhere.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_is_attached_nowhere_is_never_the_end() -> anyhow::Result<()> {
    let mut play = Play::new("web-01", "test").await?;
    play.begin().await?;
    play.is_well(play.settled().await?, Status::Succeeded).await?;
    play.fault("daemon", ATTACH, Fault::JobFails { code: 530 });
    assert_eq!(play.back().await?, Status::Stuck, "people are told");
    assert!(!at_oma(&play, 0));
    play.stage.centre.faults().clear();
    play.is_well(play.retried().await?, Status::RolledBack).await
}

// Break 26: what was asked for again because its answer was lost failed, as it was done already.
#[tokio::test(flavor = "multi_thread")]
async fn an_attach_whose_answer_is_lost_is_never_asked_for_again() -> anyhow::Result<()> {
    let mut play = Play::new("web-01", "live").await?;
    play.faults("daemon", "POST /volumes/{id}/attach-root", 1..=1, Fault::DoneThenDropped);
    play.begin().await?;
    play.is_well(play.settled().await?, Status::Succeeded).await?;
    assert_eq!(play.calls(ATTACH_ROOT), 1);
    assert_eq!(play.failures().await?, Vec::<String>::new());
    Ok(())
}

// Break 27: the device did not show in ten seconds, so the operation failed, and the disk was attached all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_whose_device_comes_late_is_never_taken_for_lost() -> anyhow::Result<()> {
    let mut play = Play::new("sql-01", "test").await?;
    play.change(|state| state.settings.daemon.device_after_ms = 20_000);
    play.begin().await?;
    let failed = |status: &str, kind: &str| status == "failed" && kind == "attach";
    play.until("a device comes late", |state| {
        state.daemon.operations.iter().any(|one| failed(&one.status, &one.kind))
    })
    .await?;
    play.change(|state| state.settings.daemon.device_after_ms = 400);
    play.is_well(play.settled().await?, Status::Succeeded).await?;
    play.is_well(play.back().await?, Status::RolledBack).await
}

// Break 28, break 84: devices were taken for disks by their size and the time at which they showed, and stored by names that
// moved.
#[tokio::test(flavor = "multi_thread")]
async fn a_device_is_never_taken_for_a_disk_whose_id_it_does_not_bear() -> anyhow::Result<()> {
    let mut play = Play::new("sql-01", "test").await?;
    play.before("inject-drivers", |state, _| {
        let of = |name: &str| state.sources[&estate::source(name)].disks[0].replica;
        let (own, other) = (of("sql-01").to_string(), of("archive-01"));
        let path = backstay_simulator::devices::path(state, other);
        let row = state.daemon.mappings.iter_mut().find(|row| row.volume_uuid == own);
        row.expect("it is at the appliance").device_path = path;
    });
    play.begin().await?;
    play.is_well(play.settled().await?, Status::RolledBack).await?;
    play.failed_with("inject-drivers: wrong_device").await?;
    assert_eq!(play.look(|state| state.conversion.runs.len()), 0, "nothing was written");
    Ok(())
}

// Break 31: the daemon took the appliance for some other machine, and made neither devices nor exports.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_the_daemon_takes_for_away_is_never_said_to_be_home() -> anyhow::Result<()> {
    let mut play = Play::new("web-01", "test").await?;
    play.begin().await?;
    play.is_well(play.settled().await?, Status::Succeeded).await?;
    play.change(|state| state.settings.daemon.does_not_know_the_oma = true);
    assert_eq!(play.back().await?, Status::Stuck);
    play.failed_with("no_device").await?;
    play.change(|state| state.settings.daemon.does_not_know_the_oma = false);
    play.is_well(play.retried().await?, Status::RolledBack).await
}

// Break 35: who began a rollback again after the disks were detached found none that could be brought home.
#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_that_was_cut_off_never_forgets_a_disk() -> anyhow::Result<()> {
    let mut play = Play::new("db-01", "test").await?;
    let detached = Arc::new(tokio::sync::Notify::new());
    let tell = Arc::clone(&detached);
    play.before_each("return-to-oma", move |_, context| {
        if context.direction() == Direction::Undo {
            tell.notify_one();
        }
        None
    });
    play.begin().await?;
    play.is_well(play.settled().await?, Status::Succeeded).await?;
    play.stage.roll_back(play.engine(), play.run()).await?;
    tokio::time::timeout(std::time::Duration::from_secs(20), detached.notified()).await?;
    play.kill().await;
    play.node().await?;
    play.is_well(play.settled_after(Status::RollingBack).await?, Status::RolledBack).await
}

// Break 64: the machine was said to be ready for the next replication, which was refused.
#[tokio::test(flavor = "multi_thread")]
async fn a_machine_without_its_exports_is_never_said_to_be_home() -> anyhow::Result<()> {
    let mut play = Play::new("web-01", "test").await?;
    play.begin().await?;
    play.is_well(play.settled().await?, Status::Succeeded).await?;
    play.change(|state| state.settings.daemon.exports_fail = true);
    assert_eq!(play.back().await?, Status::Stuck);
    play.change(|state| state.settings.daemon.exports_fail = false);
    play.is_well(play.retried().await?, Status::RolledBack).await
}

// Break 76: what was under way when the daemon was started anew stayed so for ever.
#[tokio::test(flavor = "multi_thread")]
async fn an_operation_that_died_with_its_daemon_is_never_waited_for_for_ever() -> anyhow::Result<()> {
    let mut play = Play::new("web-01", "test").await?;
    play.stage.daemon_deadline = SOON;
    play.faults("daemon", "POST /volumes/{id}/attach-root", 1..=1, Fault::Stuck);
    play.begin().await?;
    play.is_well(play.settled().await?, Status::Succeeded).await?;
    assert_eq!(play.calls(ATTACH_ROOT), 2);
    let executing = |status: &str| status == "executing";
    assert_eq!(
        play.look(|state| state.daemon.operations.iter().filter(|one| executing(&one.status)).count()),
        1,
        "nobody ended it"
    );
    Ok(())
}

// Break 83: several disks of a machine were written into one volume. Here two volumes are given for each other's disks, and both
// are of one size.
#[tokio::test(flavor = "multi_thread")]
async fn disks_whose_exports_tell_another_order_are_never_taken_for_each_other() -> anyhow::Result<()> {
    const NUMBERED: [&str; 2] = ["/source/disks/0/volume", "/source/disks/1/volume"];
    for found_out in [true, false] {
        let mut play = Play::new("sql-01", "live").await?;
        let volumes = NUMBERED.map(|place| play.input.pointer(place).expect("it has two").clone());
        // Of one size, so that nothing else can tell them apart.
        let size = play.change(|state| {
            let source = state.sources.get_mut(&estate::source("sql-01")).expect("it is there");
            let largest = source.disks.iter().map(|disk| disk.size).max().expect("it has some");
            source.disks.iter_mut().for_each(|disk| disk.size = largest);
            let replicas: Vec<_> = source.disks.iter().map(|disk| disk.replica).collect();
            for replica in replicas {
                state.volumes.get_mut(&replica).expect("it is there").size = largest;
            }
            largest
        });
        play.change(|state| {
            for (number, volume) in volumes.iter().enumerate().filter(|_| found_out) {
                let of =
                    |export: &&mut backstay_simulator::daemon::Export| *volume == export.volume_id.as_str();
                let export = state.daemon.exports.iter_mut().find(of).expect("it has one");
                export.metadata.insert("disk_number".into(), json!(number));
            }
        });
        for (place, volume) in NUMBERED.iter().zip(volumes.iter().rev()) {
            *play.input.pointer_mut(place).expect("it has two") = volume.clone();
            let of = place.replace("volume", "size");
            *play.input.pointer_mut(&of).expect("it has one") = json!(size);
        }
        play.begin().await?;
        let status = play.settled().await?;
        let broken = play.stage.centre.truth().violations();
        if found_out {
            play.is_well(status, Status::RolledBack).await?;
            play.failed_with("in another order than they are given here").await?;
            assert_eq!(play.changing_calls(), Vec::<String>::new());
        } else {
            // Without that trace nothing in the world tells; docs/breaks.md says so.
            assert!(broken.iter().any(|one| one.invariant == "wrong disk"), "{broken:#?}");
        }
    }
    Ok(())
}
