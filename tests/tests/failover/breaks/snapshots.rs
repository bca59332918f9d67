//! Snapshots: the way back.

use backstay_engine::Status;
use backstay_simulator::faults::Fault;
use backstay_simulator::world::estate;

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
