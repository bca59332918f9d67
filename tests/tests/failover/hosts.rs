//! What is not as it is told: a machine whose host is gone, a conversion that went well and is of no use.

use backstay_engine::Status;
use backstay_simulator::conversion::{self, Misfortune};
use backstay_simulator::faults::Fault;
use backstay_simulator::world::things::{SnapshotBy, VmState};
use backstay_simulator::world::{State, estate};

use crate::play::Play;

/// The copy of `web-01`: its state, and whether its disk hangs at it.
fn copy(state: &State) -> (VmState, bool) {
    let disk = &state.volumes[&estate::replica("web-01", 2000)];
    let vm = disk.attached.map(|at| at.vm).filter(|vm| *vm != state.oma);
    let copy = vm.and_then(|vm| state.vms.get(&vm)).expect("the disk is attached to the copy");
    (copy.state, disk.plugged.contains(&copy.id))
}

/// A forced stop marks a machine as stopped wherever its host is. Its disks would be taken home and the source switched on,
/// and the copy would go on.
#[tokio::test(flavor = "multi_thread")]
async fn a_machine_whose_host_is_gone_is_not_taken_for_stopped() -> anyhow::Result<()> {
    let mut play = Play::new("web-01", "live").await?;
    play.begin().await?;
    play.is_well(play.settled().await?, Status::Succeeded).await?;
    play.faults("cloudstack", "stopVirtualMachine", 1..=1, Fault::HostDown);
    let status = play.back().await?;
    assert_eq!(status, Status::Stuck, "{}", play.story().await?);
    play.failed_with("host_unreachable").await?;
    assert_eq!(play.look(copy), (VmState::Running, true), "{}", play.story().await?);
    assert_eq!(play.calls("cloudstack stopVirtualMachine"), 1, "it is not asked for what it cannot do");

    play.change(|state| state.hosts.iter_mut().for_each(|host| host.state = "Up".into()));
    play.is_well(play.retried().await?, Status::RolledBack).await
}

/// It exits with 0 and warns: such a Windows does not find the disk that it starts from.
#[tokio::test(flavor = "multi_thread")]
async fn a_conversion_without_drivers_is_none() -> anyhow::Result<()> {
    let mut play = Play::new("sql-01", "live").await?;
    conversion::befall(play.stage.centre.world(), None, Misfortune::NoDrivers, 1);
    play.begin().await?;
    play.is_well(play.settled().await?, Status::RolledBack).await?;
    play.failed_with("inject-drivers: no_drivers").await
}

/// Whatever is taken for a way back holds all of the disk.
#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_of_half_a_disk_is_no_way_back() -> anyhow::Result<()> {
    let mut play = Play::new("web-01", "live").await?;
    play.before("take-snapshots", |state, run| {
        let (volume, run) = (estate::replica("web-01", 2000), run.to_string());
        let name = format!("backstay-{}", run.replace('-', ""));
        let tags = [("backstay-run".to_owned(), run)].into();
        let id = state.new_snapshot(volume, &name, SnapshotBy::CloudStack, tags).unwrap();
        state.capture(id).unwrap();
        state.snapshots.get_mut(&id).unwrap().size /= 2;
    });
    play.begin().await?;
    let status = play.settled().await?;
    play.failed_with("snapshot: snapshot_size").await?;
    assert_eq!(status, Status::RolledBack, "{}", play.story().await?);
    Ok(())
}

/// CloudStack has lost sight of a disk that was being lent: its row says that it is nowhere, and it hangs at the appliance. What
/// the appliance has in its hands is not put back under it.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_the_appliance_still_has_is_not_put_back_to_its_snapshot() -> anyhow::Result<()> {
    let mut play = Play::new("sql-01", "test").await?;
    play.faults("cloudstack", "attachVolume", 1..=1, Fault::JobCancelledButDone { ms: 0 });
    play.begin().await?;
    let status = play.settled().await?;
    assert_eq!(status, Status::Stuck, "{}", play.story().await?);
    play.failed_with("still_plugged").await?;
    assert_eq!(play.calls("cloudstack revertSnapshot"), 0, "{}", play.story().await?);

    play.stage.unplug_what_cloudstack_lost();
    play.is_well(play.retried().await?, Status::RolledBack).await
}
