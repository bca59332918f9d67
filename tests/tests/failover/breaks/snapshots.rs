//! Snapshots: the way back.

use backstay_engine::Status;
use backstay_simulator::faults::Fault;
use backstay_simulator::world::State;
use backstay_simulator::world::estate;
use backstay_simulator::world::things::{Snapshot, SnapshotBy};

use crate::play::Play;

// Breaks 13 and 81: the snapshot was deleted although its disk did not go back, and the machine was said to be ready for the next
// failover.
#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_is_never_deleted_whose_disk_did_not_go_back() -> anyhow::Result<()> {
    let mut play = Play::new("web-01", "test").await?;
    play.attempts = (3, 12);
    play.begin().await?;
    play.is_well(play.settled().await?, Status::Succeeded).await?;
    play.fault("cloudstack", "revertSnapshot", Fault::JobFails { code: 530 });
    assert_eq!(play.back().await?, Status::Stuck, "people have to decide");
    play.look(|state| {
        let volume = &state.volumes[&state.sources[&estate::source("web-01")].disks[0].replica];
        let kept = state.snapshots.values().filter(|one| one.volume == volume.id && one.removed.is_none());
        assert_eq!(kept.filter(|one| one.state == "BackedUp" && one.content.foreign.is_empty()).count(), 1);
        assert!(volume.tags.contains_key("backstay-dirty"), "{volume:?}");
        let id = volume.id.to_string();
        assert!(!state.daemon.exports.iter().any(|one| one.volume_id == id), "nothing may be copied onto it");
    });
    play.submit().await.expect_err("nothing begins with a machine that is not as it was");
    play.stage.is_sound()
}

// Break 14: one snapshot of three counted as protection.
#[tokio::test(flavor = "multi_thread")]
async fn some_of_the_snapshots_are_never_taken_for_all() -> anyhow::Result<()> {
    for provider in ["cloudstack", "linstor"] {
        let mut play = Play::new("db-01", "test").await?;
        play.input["snapshots"] = provider.into();
        match provider {
            "cloudstack" => play.faults("cloudstack", "createSnapshot", 2..=4, Fault::JobFails { code: 530 }),
            // After the others have taken theirs.
            _ => play.change(|state| {
                state.settings.linstor.failing_nodes.insert("kvm-02".into());
            }),
        }
        play.begin().await?;
        play.is_well(play.settled().await?, Status::RolledBack).await?;
        play.failed_with("snapshot: ").await?;
        assert_eq!(play.calls("daemon POST /volumes/{id}/attach-root"), 0, "{provider}");
    }
    Ok(())
}

/// A snapshot of the disk, older than what is on it now.
fn leave_one(state: &mut State, name: &str, by: SnapshotBy) {
    let volume = &state.volumes[&state.sources[&estate::source("web-01")].disks[0].replica];
    let mut content = volume.content.clone();
    content.replicated -= 5;
    let id = estate::id("snapshot", "of somebody else");
    let snapshot = Snapshot {
        id,
        name: name.into(),
        volume: volume.id,
        content,
        size: volume.size,
        by,
        state: "BackedUp".into(),
        tags: [].into(),
        created: volume.created,
        removed: None,
    };
    let on = ["kvm-01", "kvm-02", "kvm-03"].map(str::to_owned).into();
    state.linstor.nodes.insert(id, backstay_simulator::linstor::Placed { on, failed_on: [].into() });
    state.snapshots.insert(id, snapshot);
}

// Break 69: all snapshots had one name, so one job removed those of another; and what an earlier one had left was gone back to.
#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_of_somebody_else_is_never_gone_back_to_nor_deleted() -> anyhow::Result<()> {
    for (provider, by, name) in [
        ("cloudstack", SnapshotBy::CloudStack, "backstay-web-01-0"),
        ("linstor", SnapshotBy::Linstor, "backstay-web-01"),
    ] {
        let mut play = Play::new("web-01", "test").await?;
        play.input["snapshots"] = provider.into();
        play.change(|state| leave_one(state, name, by));
        play.begin().await?;
        play.settled().await?;
        let status = play.back().await?;
        let left = play.look(|state| state.snapshots[&estate::id("snapshot", "of somebody else")].clone());
        assert!(left.removed.is_none() && left.state == "BackedUp", "{provider}: {left:?}");
        // The judge takes each snapshot of LINSTOR of this disk for one of the run's.
        play.change(|state| state.snapshots.remove(&left.id));
        play.is_well(status, Status::RolledBack).await?;
    }
    Ok(())
}
