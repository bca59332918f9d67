//! The copy at CloudStack: made, started, stopped, unmade; and the failover as a whole.

use backstay_engine::Status;
use backstay_simulator::conversion::{self, Misfortune};
use backstay_simulator::faults::Fault;
use backstay_simulator::world::State;
use backstay_simulator::world::estate;
use backstay_simulator::world::things::{Attachment, Power, Vm, VmState, Volume};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::play::Play;

// Break 3: a conversion that hung could be neither ended nor survived by the process that had begun it.
#[tokio::test(flavor = "multi_thread")]
async fn a_conversion_that_hangs_never_keeps_a_failover_from_ending() -> anyhow::Result<()> {
    for process_dies in [true, false] {
        let mut play = Play::new("sql-01", "live").await?;
        conversion::befall(play.stage.centre.world(), None, Misfortune::HangsAfter, 1);
        play.begin().await?;
        play.until("it writes", |state| state.conversion.runs.iter().any(|run| run.stage == "writing"))
            .await?;
        if process_dies {
            play.kill().await;
            play.node().await?;
            play.is_well(play.settled().await?, Status::Succeeded).await?;
        } else {
            play.is_well(play.back().await?, Status::RolledBack).await?;
        }
    }
    Ok(())
}

// Breaks 11 and 75: whatever came of a rollback, it was written down as completed; and with force the first error was the last
// thing that was done.
#[tokio::test(flavor = "multi_thread")]
async fn an_undo_that_fails_is_never_written_down_as_done_and_keeps_no_other_from_being_done()
-> anyhow::Result<()> {
    let mut play = Play::new("web-01", "live").await?;
    play.begin().await?;
    play.is_well(play.settled().await?, Status::Succeeded).await?;
    play.fault("cloudstack", "destroyVirtualMachine", Fault::JobFails { code: 530 });
    assert_eq!(play.back().await?, Status::Stuck);
    play.look(|state| {
        let source = &state.sources[&estate::source("web-01")];
        let volume = &state.volumes[&source.disks[0].replica];
        assert!(volume.plugged.iter().eq([&state.oma]), "the disk is home: {volume:?}");
        assert!(volume.content.foreign.is_empty(), "as it was: {volume:?}");
        assert!(state.daemon.exports.iter().any(|one| one.volume_id == volume.id.to_string()));
        assert_eq!(source.power, Power::On);
    });
    play.stage.centre.faults().clear();
    play.is_well(play.retried().await?, Status::RolledBack).await
}

// Break 22: a deployment was answered, and its disk looked for before there was one.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_of_cloudstack_is_never_taken_for_the_end_of_its_job() -> anyhow::Result<()> {
    let mut play = Play::new("web-01", "live").await?;
    play.change(|state| state.settings.cloudstack.other_ms = 200_000);
    play.fault("cloudstack", "*", Fault::Lagging { ms: 60 });
    play.begin().await?;
    play.is_well(play.settled().await?, Status::Succeeded).await?;
    play.is_well(play.back().await?, Status::RolledBack).await
}

// Break 24: after a crash there was one more machine.
#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_whose_answer_is_lost_never_makes_a_second_machine() -> anyhow::Result<()> {
    for knows_chosen_ids in [true, false] {
        let mut play = Play::new("web-01", "live").await?;
        play.change(|state| state.settings.cloudstack.custom_job_ids = knows_chosen_ids);
        play.faults("cloudstack", "deployVirtualMachine", 1..=1, Fault::DoneThenDropped);
        play.begin().await?;
        play.is_well(play.settled().await?, Status::Succeeded).await?;
        assert_eq!(play.stage.centre.truth().effect("deployVirtualMachine"), 1, "{knows_chosen_ids}");
    }
    Ok(())
}

/// A machine of somebody else.
fn foreign(state: &State, name: &str) -> Vm {
    let mut vm = state.vms[&estate::id("vm", "web-01-old")].clone();
    (vm.id, vm.name, vm.group) = (estate::id("vm", name), name.to_owned(), None);
    vm
}

// Break 25: machines were found by a part of their name, and adopted, started and destroyed.
#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_only_has_the_name_is_never_touched() -> anyhow::Result<()> {
    let mut play = Play::new("web-01", "live").await?;
    // The name is free when that is checked, and taken a moment later.
    play.before("create-vm", |state, _| {
        let vm = foreign(state, "web-01");
        state.vms.insert(vm.id, vm);
    });
    play.begin().await?;
    play.is_well(play.settled().await?, Status::RolledBack).await?;
    play.look(|state| {
        for name in ["web-01", "web-01-old"] {
            let vm = &state.vms[&estate::id("vm", name)];
            let as_was = (vm.state, vm.power, vm.boots, vm.removed, vm.tags.len());
            assert_eq!(as_was, (VmState::Running, Power::On, 1, None, 0), "{name}");
        }
    });
    Ok(())
}

fn copy_of(state: &State, run: &str) -> Uuid {
    let mark = format!("backstay-run-{run}");
    state.vms.values().find(|vm| vm.group.as_deref() == Some(&mark)).expect("it has a copy").id
}

// Break 34: the daemon knew of no disk at the machine, so the machine was destroyed, with what it had.
#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_holds_a_disk_is_never_destroyed() -> anyhow::Result<()> {
    let mut play = Play::new("web-01", "test").await?;
    let left = estate::id("volume", "left behind");
    play.before("destroy-vm", move |state, run| {
        let vm = copy_of(state, &run.to_string());
        let like = state.volumes[&estate::id("volume", "ROOT-web-01-old")].clone();
        let attached = Some(Attachment { vm, device: 5 });
        let volume = Volume { id: left, root: false, attached, plugged: [vm].into(), ..like };
        state.volumes.insert(left, volume);
    });
    play.begin().await?;
    play.is_well(play.settled().await?, Status::Succeeded).await?;
    assert_eq!(play.back().await?, Status::Stuck);
    play.failed_with("holds_a_volume").await?;
    assert_eq!(play.calls("cloudstack destroyVirtualMachine"), 0);
    play.change(|state| {
        let volume = state.volumes.get_mut(&left).expect("it was not destroyed");
        (volume.attached, volume.plugged) = (None, [].into());
    });
    play.is_well(play.retried().await?, Status::RolledBack).await
}

// Break 85: that the copy did not come up was a warning.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_does_not_stay_up_is_never_called_done() -> anyhow::Result<()> {
    let mut play = Play::new("web-01", "live").await?;
    play.input["boot_within"] = json!("200ms");
    play.before_each("check-boot", |world, context| {
        let run = context.run().to_string();
        world.change(backstay_simulator::world::Cause::new("people", "crash", ""), |state| {
            let copy = copy_of(state, &run);
            let vm = state.vms.get_mut(&copy).expect("it is there");
            (vm.state, vm.power) = (VmState::Stopped, Power::Off);
        });
        None
    });
    play.begin().await?;
    play.is_well(play.settled().await?, Status::RolledBack).await?;
    play.failed_with("check-boot: did_not_boot").await
}

// Break 74: how long a rehearsal may last was asked for, and never heeded.
#[tokio::test(flavor = "multi_thread")]
async fn a_rehearsal_never_outlives_its_time() -> anyhow::Result<()> {
    let mut play = Play::new("web-01", "test").await?;
    play.input["test_for"] = json!("300ms");
    play.begin().await?;
    play.is_well(play.settled().await?, Status::Succeeded).await?;
    play.is_well(play.settled_after(Status::Succeeded).await?, Status::RolledBack).await
}

// Breaks 36, 58 and 67: two failovers of one machine, a later one that hid the machine of an earlier, and a machine that stayed
// locked after its failover was over.
#[tokio::test(flavor = "multi_thread")]
async fn two_failovers_of_one_machine_are_never_under_way_at_once() -> anyhow::Result<()> {
    let mut play = Play::new("web-01", "test").await?;
    play.begin().await?;
    let refused = play.submit().await.expect_err("it is under way");
    assert!(format!("{refused:#}").contains("vm web-01"), "{refused:#}");
    play.is_well(play.settled().await?, Status::Succeeded).await?;
    play.submit().await.expect_err("its machine runs");
    play.is_well(play.back().await?, Status::RolledBack).await?;
    let next = play.submit().await?;
    assert_eq!(play.stage.settled(play.engine(), next).await?, Status::Succeeded);
    Ok(())
}

// Breaks 38 and 39: the ids of snapshots, and of the machine that was made, were lost.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_was_made_is_ever_off_the_record() -> anyhow::Result<()> {
    let mut play = Play::new("sql-01", "live").await?;
    play.begin().await?;
    play.is_well(play.settled().await?, Status::Succeeded).await?;
    let rows = play.engine().journal(play.run()).await?;
    let told: Vec<Value> = rows
        .iter()
        .filter(|row| row.kind == "resource")
        .map(|row| row.body.as_ref().map(|body| body.value()).unwrap_or_default())
        .collect();
    let made = play.stage.centre.truth().tagged("backstay-run", Some(&play.run().to_string()));
    assert_eq!(made.len(), 3, "a machine and two snapshots: {made:?}");
    for thing in made {
        let id = thing.rsplit(' ').next().unwrap_or_default();
        let at =
            told.iter().position(|record| record.pointer("/details/id").and_then(Value::as_str) == Some(id));
        let at = at.ok_or_else(|| anyhow::anyhow!("{thing} is not in {told:#?}"))?;
        let announced =
            told[..at].iter().any(|one| one["name"] == told[at]["name"] && one["fate"] == "planned");
        assert!(announced, "{thing} was made before it was on record");
    }
    Ok(())
}
