//! What comes late: after it was given up, after the run has turned round, after it was looked at.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use backstay_activities::vma::Copying;
use backstay_engine::{Failure, Span, Status};
use backstay_simulator::faults::{Fault, Rule};
use backstay_simulator::truth::System;
use backstay_simulator::world::things::Power;
use backstay_simulator::world::{Cause, State, World, estate};
use uuid::Uuid;

use crate::play::Play;

fn web() -> Uuid {
    estate::replica("web-01", 2000)
}

fn calls(world: &World, name: &str) -> u64 {
    world.faults().calls().get(name).copied().unwrap_or(0)
}

/// Has the failover turn round as soon as this call was made: its machine cannot be created.
fn turn_round_after(play: &mut Play, call: &'static str) {
    play.before_each("create-vm", move |world, _| {
        for _ in 0..1_000 {
            if calls(world, call) > 0 {
                break;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Some(Failure::permanent("enough", "no machine is made").not_applied())
    });
}

/// It was asked to shut down, and does so minutes after the run has turned round. It would be off, and nobody would know.
#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_goes_down_after_all_is_started_again() -> anyhow::Result<()> {
    let mut play = Play::new("web-01", "live").await?;
    play.input["force_after"] = "3s".into();
    play.change(|state| state.settings.vma.shutdown_ms = 500_000);
    turn_round_after(&mut play, "vma POST /vm/{id}/power-off");
    play.begin().await?;
    let status = play.settled().await?;
    tokio::time::sleep(Duration::from_millis(1_200)).await;
    let (power, going_down) = play.look(|state| {
        let source = &state.sources[&estate::source("web-01")];
        (source.power, source.going_down)
    });
    assert_eq!((power, going_down), (Power::On, None), "{}", play.story().await?);
    assert_eq!(play.calls("vma POST /vm/{id}/power-on"), 1, "it had gone down, and was started");
    play.is_well(status, Status::RolledBack).await
}

/// The daemon has been asked to detach a disk, and does it when the disk counts as home again.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_is_not_home_while_the_daemon_may_still_detach_it() -> anyhow::Result<()> {
    let mut play = Play::new("web-01", "test").await?;
    play.faults("daemon", "POST /volumes/{id}/detach", 1..=1, Fault::Lagging { ms: 700 });
    turn_round_after(&mut play, "daemon POST /volumes/{id}/detach");
    play.begin().await?;
    let status = play.settled().await?;
    tokio::time::sleep(Duration::from_millis(900)).await;
    play.is_well(status, Status::RolledBack).await
}

/// A snapshot can be stuck for ever, and then nobody can delete it. Its disk is as good without it, and goes home.
#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_nobody_can_delete_keeps_no_disk_away() -> anyhow::Result<()> {
    for (name, disks) in [("web-01", 1), ("db-01", 3)] {
        let mut play = Play::new(name, "live").await?;
        play.stage.job_deadline = Span::secs(2);
        // Fewer than there are disks to be left.
        play.attempts = (8, 2);
        play.change(|state| state.settings.cloudstack.restart_leaves_snapshots = true);
        for n in 0..disks {
            // The next one is for the same disk.
            let nth = 2 * n + 1;
            play.faults("cloudstack", "createSnapshot", nth..=nth, Fault::JobCancelledButDone { ms: 0 });
        }
        play.begin().await?;
        let status = play.settled().await?;
        assert_eq!(status, Status::Succeeded, "they have others: {}", play.story().await?);
        let status = play.back().await?;
        assert_eq!(status, Status::Stuck, "what is left is told: {}", play.story().await?);
        play.look(|state: &State| {
            let source = &state.sources[&estate::source(name)];
            for disk in &source.disks {
                let volume = &state.volumes[&disk.replica];
                assert_eq!(volume.plugged.iter().collect::<Vec<_>>(), [&state.oma]);
                assert_eq!((&volume.content.foreign[..], volume.tags.get("backstay-dirty")), (&[][..], None));
            }
            assert_eq!(source.power, Power::On);
            let left = state.snapshots.values().filter(|one| one.removed.is_none());
            assert_eq!(left.filter(|one| one.state == "BackedUp").count(), 0, "what can be removed is");
            assert_eq!(state.vms.values().filter(|vm| vm.removed.is_none() && vm.group.is_some()).count(), 0);
        });
        play.stage.account_for_what_is_left(play.engine(), play.run()).await?;
        play.is_well(play.settled_after(Status::Stuck).await?, Status::RolledBack).await?;
    }
    Ok(())
}

/// That CloudStack cannot be asked for a while says nothing of a machine that runs.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_runs_is_not_stopped_because_nobody_can_be_asked() -> anyhow::Result<()> {
    let mut play = Play::new("web-01", "live").await?;
    play.input["steady"] = "1s".into();
    let begun = std::sync::atomic::AtomicBool::new(false);
    play.before_each("check-boot", move |world, _| {
        if !begun.swap(true, std::sync::atomic::Ordering::SeqCst) {
            let fails = Rule::every("cloudstack", "listVirtualMachines", Fault::Refused { status: 500 });
            // Each look is tried four times.
            world.faults().rule(Rule { at_most: Some(16), ..fails });
        }
        None
    });
    play.begin().await?;
    let status = play.settled().await?;
    let fired = play.stage.centre.faults().fired();
    assert_eq!(fired.iter().map(|rule| rule.times).collect::<Vec<_>>(), [16], "{}", play.story().await?);
    play.is_well(status, Status::Succeeded).await
}

/// Each attempt is one for all disks: as many as one disk takes bring all of them home.
#[tokio::test(flavor = "multi_thread")]
async fn disks_that_cannot_be_put_back_come_home_together_and_closed() -> anyhow::Result<()> {
    let mut play = Play::new("db-01", "test").await?;
    play.stage.reverts = 3;
    play.attempts = (3, 4);
    play.begin().await?;
    play.is_well(play.settled().await?, Status::Succeeded).await?;
    play.kill().await;
    // On its way home, too, nothing can be replicated to it.
    let open = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let seen = std::sync::Arc::clone(&open);
    play.before_each("open-exports", move |world, _| {
        let exports = world
            .look(|state| state.daemon.exports.iter().map(|one| one.volume_id.clone()).collect::<Vec<_>>());
        let ours = (2000..2003).map(|key| estate::replica("db-01", key).to_string());
        seen.lock().unwrap().extend(ours.filter(|id| exports.contains(id)));
        None
    });
    play.node().await?;
    play.fault("cloudstack", "revertSnapshot", Fault::JobFails { code: 530 });
    let status = play.back().await?;
    assert_eq!(status, Status::Stuck, "{}", play.story().await?);
    assert_eq!(
        play.calls("cloudstack revertSnapshot"),
        9,
        "three for each of three: {}",
        play.story().await?
    );
    play.look(|state: &State| {
        for key in 2000..2003 {
            let volume = &state.volumes[&estate::replica("db-01", key)];
            assert_eq!(volume.plugged.iter().collect::<Vec<_>>(), [&state.oma], "{key}");
            assert_eq!(volume.tags.get("backstay-dirty"), Some(&play.run().to_string()), "{key}");
        }
    });
    assert_eq!(*open.lock().unwrap(), Vec::<String>::new(), "open before anybody closed them");
    play.stage.is_sound()
}

/// A copy that is cut off leaves half a disk. A rehearsal waits for its end, as the last copy of a live failover does, and
/// whatever word the VMA has for it.
#[tokio::test(flavor = "multi_thread")]
async fn the_exports_are_not_closed_under_a_copy() -> anyhow::Result<()> {
    for word in ["Streaming", "in_progress"] {
        let mut play = Play::new("web-01", "test").await?;
        play.change(|state| {
            (state.settings.vma.disk_ms, state.settings.vma.disk_by_disk) = (500_000, word == "in_progress");
        });
        play.stage.copy_of_somebody_else().await?;
        play.until("the copy writes", |state| state.volumes[&web()].content.torn).await?;
        play.begin().await?;
        play.is_well(play.settled().await?, Status::Succeeded).await?;
        play.look(|state: &State| assert!(!state.volumes[&web()].content.torn, "{word}"));
        play.stage.is_sound()?;
    }
    Ok(())
}

/// A copy of several disks may be called completed after each of them.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_is_over_when_its_last_disk_is() -> anyhow::Result<()> {
    let mut play = Play::new("db-01", "live").await?;
    play.change(|state| {
        (state.settings.vma.disk_ms, state.settings.vma.disk_by_disk) = (100_000, true);
    });
    play.begin().await?;
    play.is_well(play.settled().await?, Status::Succeeded).await
}

/// A rehearsal shows what the last copy brought. If that failed, or nobody knows any more how it ended, there is nothing to
/// show; a live failover makes one of its own.
#[tokio::test(flavor = "multi_thread")]
async fn a_rehearsal_wants_a_whole_copy() -> anyhow::Result<()> {
    for (mode, forgotten, wanted) in [
        ("test", false, Status::RolledBack),
        ("test", true, Status::RolledBack),
        ("live", false, Status::Succeeded),
        ("live", true, Status::Succeeded),
    ] {
        let mut play = Play::new("web-01", mode).await?;
        play.attempts = (30, 3);
        play.change(|state| state.settings.vma.disk_ms = 100_000);
        let fault = if forgotten { Fault::Stuck } else { Fault::JobFails { code: 530 } };
        play.faults("vma", "POST /replicate", 1..=1, fault);
        play.stage.copy_of_somebody_else().await?;
        play.until("the copy writes", |state| state.volumes[&web()].content.torn).await?;
        play.begin().await?;
        if forgotten {
            // It has seen it.
            let known = play.calls("vma GET /progress/{job}");
            while play.calls("vma GET /progress/{job}") < known + 2 {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            // For longer than a look is tried: the attempt fails, and another one has to know.
            play.stage.centre.truth().restart(System::Vma, Duration::from_millis(1_500));
        }
        let status = play.settled().await?;
        assert_eq!(status, wanted, "{mode}, forgotten: {forgotten}: {}", play.story().await?);
        if wanted == Status::RolledBack {
            play.failed_with("no_whole_copy").await?;
        }
        play.is_well(status, wanted).await?;
    }
    Ok(())
}

/// One that begins once the source is off brings what is there already.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_of_our_own_is_not_spoilt_by_a_later_one_that_fails() -> anyhow::Result<()> {
    let mut play = Play::new("web-01", "live").await?;
    play.faults("vma", "POST /replicate", 2..=2, Fault::JobFails { code: 530 });
    let (at, go) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (is_at, goes) = (Arc::clone(&at), Arc::clone(&go));
    play.before_each("close-exports", move |_, _| {
        is_at.store(true, SeqCst);
        while !goes.load(SeqCst) {
            std::thread::sleep(Duration::from_millis(2));
        }
        None
    });
    play.begin().await?;
    while !at.load(SeqCst) {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    play.stage.copy_of_somebody_else().await?;
    let vma = play.stage.vma()?;
    while !matches!(vma.progress("nightly").await, Ok(Some(copy)) if copy.status == Copying::Failed) {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    go.store(true, SeqCst);
    play.is_well(play.settled().await?, Status::Succeeded).await
}

/// One that began after the last look, and before they were closed. That the node dies over it makes the disk no better.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_was_cut_off_is_never_overlooked() -> anyhow::Result<()> {
    for dies in [false, true] {
        let mut play = Play::new("web-01", "test").await?;
        play.change(|state| state.settings.vma.disk_ms = 900_000);
        let close = "daemon DELETE /exports/{id}";
        play.faults("daemon", "DELETE /exports/{id}", 1..=1, Fault::Slow { ms: 300 });
        play.begin().await?;
        while play.calls(close) == 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        play.stage.copy_of_somebody_else().await?;
        if dies {
            play.fault("daemon", "GET /*", Fault::Slow { ms: 1_000 });
        }
        let id = web().to_string();
        play.until("it is closed", |state| !state.daemon.exports.iter().any(|one| one.volume_id == id))
            .await?;
        if dies {
            play.kill().await;
            play.stage.centre.faults().clear();
            let vma = play.stage.vma()?;
            while !matches!(vma.progress("nightly").await, Ok(Some(copy)) if copy.status == Copying::Failed) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            play.node().await?;
        }
        let status = play.settled().await?;
        assert_eq!(status, Status::RolledBack, "dies: {dies}: {}", play.story().await?);
        play.failed_with("no_whole_copy").await?;
        play.look(|state: &State| assert!(state.volumes[&web()].content.torn));
        assert_eq!(play.calls("cloudstack createSnapshot"), 0);
    }
    Ok(())
}

/// Whoever has a conversion done once more has forgotten that there was one. The disk has not.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_was_converted_is_put_back_before_it_is_converted_again() -> anyhow::Result<()> {
    let mut play = Play::new("sql-01", "test").await?;
    play.before("inject-drivers", |state, run| {
        let root = state.volumes.get_mut(&estate::replica("sql-01", 2000)).unwrap();
        root.tags.insert("backstay-virtio".into(), format!("{run}:started"));
        root.content.half_converted = true;
    });
    play.begin().await?;
    play.is_well(play.settled().await?, Status::Succeeded).await
}

/// The machine is there, and a list does not show yet what it starts from. With both disks it would start from neither.
#[tokio::test(flavor = "multi_thread")]
async fn a_blank_disk_that_does_not_show_yet_is_waited_for() -> anyhow::Result<()> {
    let mut play = Play::new("web-01", "test").await?;
    let first = std::sync::atomic::AtomicBool::new(true);
    play.before_each("drop-blank-root", move |world, context| {
        if first.swap(false, std::sync::atomic::Ordering::SeqCst) {
            let mark = format!("backstay-run-{}", context.run());
            let people = || Cause::new("people", "test", "");
            let root = world.change(people(), |state| {
                let vm = state.vms.values().find(|vm| vm.group.as_deref() == Some(&mark)).unwrap().id;
                let root = state.volumes[&state.attached_to(vm)[0]].clone();
                state.detach_row(root.id).unwrap();
                root
            });
            let world = world.clone();
            std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(30));
                world.change(people(), |state| state.volumes.insert(root.id, root));
            });
        }
        None
    });
    play.begin().await?;
    play.is_well(play.settled().await?, Status::Succeeded).await?;
    assert_eq!(play.calls("cloudstack deleteVolume"), 1, "{}", play.story().await?);
    play.is_well(play.back().await?, Status::RolledBack).await
}

/// The management server goes while it removes a machine's snapshot, and nobody goes on with that. It can be asked for again.
#[tokio::test(flavor = "multi_thread")]
async fn a_machines_snapshot_that_stays_half_removed_is_removed_once_more() -> anyhow::Result<()> {
    let mut play = Play::new("db-01", "live").await?;
    play.input["snapshots"] = "machine".into();
    play.change(|state| state.settings.cloudstack.restart_leaves_snapshots = true);
    play.faults("cloudstack", "deleteVMSnapshot", 1..=1, Fault::Stuck);
    play.begin().await?;
    play.is_well(play.settled().await?, Status::Succeeded).await?;
    play.stage.roll_back(play.engine(), play.run()).await?;
    play.until("it is being removed", |state| {
        state.vm_snapshots.values().any(|one| one.state == "Expunging")
    })
    .await?;
    play.stage.centre.truth().restart(System::CloudStack, Duration::ZERO);
    play.is_well(play.settled_after(Status::Succeeded).await?, Status::RolledBack).await?;
    assert_eq!(play.calls("cloudstack deleteVMSnapshot"), 2, "{}", play.story().await?);
    Ok(())
}

/// One old list is no reason to leave a disk where it is: there is no way on but home.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_seems_to_be_elsewhere_is_looked_at_again_on_its_way_home() -> anyhow::Result<()> {
    let mut play = Play::new("web-01", "test").await?;
    let attempts = std::sync::atomic::AtomicU32::new(0);
    play.before_each("return-to-oma", move |world, context| {
        let mark = format!("backstay-run-{}", context.run());
        let attempt = attempts.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        world.change(Cause::new("people", "test", ""), |state| match attempt {
            0 => {
                let copy = state.vms.values().find(|vm| vm.group.as_deref() == Some(&mark)).unwrap().id;
                state.attach_row(web(), copy, 7).unwrap();
            }
            1 => state.detach_row(web()).unwrap(),
            _ => {}
        });
        None
    });
    play.begin().await?;
    play.is_well(play.settled().await?, Status::Succeeded).await?;
    let status = play.back().await?;
    play.failed_with("volume_elsewhere").await?;
    play.is_well(status, Status::RolledBack).await
}

/// A tag's job may fail and be done, or be done next time: that is for a look to say, and costs no attempt.
#[tokio::test(flavor = "multi_thread")]
async fn a_tag_whose_job_fails_is_looked_at_and_put_on_again() -> anyhow::Result<()> {
    for fault in [Fault::JobFails { code: 530 }, Fault::JobCancelledButDone { ms: 0 }, Fault::JobLost] {
        let mut play = Play::new("web-01", "test").await?;
        play.attempts = (1, 3);
        play.faults("cloudstack", "createTags", 1..=1, fault.clone());
        play.begin().await?;
        let status = play.settled().await?;
        assert!(play.stage.centre.faults().fired().iter().all(|rule| rule.times == 1), "{fault:?}");
        play.is_well(status, Status::Succeeded).await?;
    }
    Ok(())
}
