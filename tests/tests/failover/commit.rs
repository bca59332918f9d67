//! The end of a live failover: the way back is given up.

use backstay_engine::Status;
use backstay_engine::machine::Verb;
use backstay_simulator::world::estate;

use crate::play::Play;

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_gives_up_the_way_back_whoever_took_the_snapshots() -> anyhow::Result<()> {
    for snapshots in ["cloudstack", "linstor", "machine", "none"] {
        let mut play = Play::new("db-01", "live").await?;
        play.input["snapshots"] = snapshots.into();
        play.begin().await?;
        play.is_well(play.settled().await?, Status::Succeeded).await?;
        let left = |play: &Play| {
            play.look(|state| {
                let of_volumes = state.snapshots.values().filter(|one| one.removed.is_none()).count();
                of_volumes + state.vm_snapshots.values().filter(|one| one.removed.is_none()).count()
            })
        };
        let taken = match snapshots {
            "machine" => 1,
            "none" => 0,
            _ => 3,
        };
        assert_eq!(left(&play), taken, "{snapshots}");
        play.stage.centre.truth().commit(&estate::source("db-01"));
        play.stage.act(play.engine(), play.run(), Verb::Commit).await?;
        play.is_well(play.settled_after(Status::Succeeded).await?, Status::Committed).await?;
        assert_eq!(left(&play), 0, "{snapshots}");
        play.stage.roll_back(play.engine(), play.run()).await.expect_err("there is no way back any more");
    }
    Ok(())
}
