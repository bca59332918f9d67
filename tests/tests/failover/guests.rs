//! Machines that do not come up in one go, that do not stay down, and whose cards are changed.

use std::sync::Arc;
use std::time::Duration;

use backstay_engine::machine::plan::Output;
use backstay_engine::{PlanBuilder, Status};
use backstay_simulator::cloudstack::Guest;
use backstay_simulator::faults::{Fault, Rule};
use backstay_simulator::world::estate;
use backstay_simulator::world::things::Power;
use serde_json::{Value, json};

use crate::again::{Again, All};
use crate::alone::{Alone, Arrange, machine, output};
use crate::judge::{Before, judge};
use crate::stage::{Stage, ms};

struct Over {
    status: Status,
    boot: Value,
    boots: u32,
}

/// A failover of a machine whose guest is like that.
async fn with_guest(name: &str, mode: &str, guest: Guest, up_ms: u64, down_ms: u64) -> anyhow::Result<Over> {
    let mut state = estate::small();
    state.settings.cloudstack.guests.insert(name.into(), guest);
    (state.settings.cloudstack.guest_up_ms, state.settings.cloudstack.guest_down_ms) = (up_ms, down_ms);
    let stage = Stage { look_twice: ms(100), ..Stage::with(state).await? };
    let before = Before::of(&stage, name);
    let (engine, _node) = stage.node(Stage::config("a")).await?;
    let mut input = stage.input(name, mode);
    (input["steady"], input["boot_within"]) = (json!("1s"), json!("5s"));
    let run = stage.submit(&engine, &input).await?;
    let status = stage.settled(&engine, run).await?;
    let wrong = judge(&stage, name, mode == "live", &before, run, status).await?;
    anyhow::ensure!(wrong.is_empty(), "{guest:?}: {wrong:#?}\n{}", stage.lab.story(run).await?);
    let boot = output(&engine, run, "check-boot").await?;
    let mark = format!("backstay-run-{run}");
    let of_run = |vm: &backstay_simulator::world::things::Vm| vm.group.as_deref() == Some(mark.as_str());
    let boots =
        stage.centre.world().look(|state| state.vms.values().find(|vm| of_run(vm)).map(|vm| vm.boots));
    Ok(Over { status, boot, boots: boots.unwrap_or_default() })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_may_restart_several_times_before_it_stays_up() -> anyhow::Result<()> {
    let over = with_guest("sql-01", "test", Guest::Restarts(3), 50_000, 50_000).await?;
    assert_eq!((over.status, over.boots), (Status::Succeeded, 4));
    let restarts = over.boot["restarts"].as_u64().unwrap_or_default();
    assert!((1..=3).contains(&restarts), "{}", over.boot);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_never_stays_up_sends_its_disks_home() -> anyhow::Result<()> {
    for (name, mode, guest) in [
        ("web-01", "test", Guest::Crashes),
        ("sql-01", "live", Guest::Crashes),
        ("web-01", "live", Guest::StaysDown),
    ] {
        let over = with_guest(name, mode, guest, 150_000, 25_000).await?;
        assert_eq!(over.status, Status::RolledBack, "{name} {guest:?}");
        assert!(over.boots >= 1, "{name} {guest:?}");
    }
    Ok(())
}

/// CloudStack sees that it runs, and nothing of what goes on inside: that it has no address is said, and no more.
#[tokio::test(flavor = "multi_thread")]
async fn a_guest_without_an_address_is_told_by_its_addresses() -> anyhow::Result<()> {
    let over = with_guest("web-01", "test", Guest::HasNoAddress, 0, 0).await?;
    assert_eq!((over.status, &over.boot["addresses"]), (Status::Succeeded, &json!([])));
    let over = with_guest("web-01", "test", Guest::Restarts(0), 0, 0).await?;
    assert_eq!(over.boot["addresses"].as_array().map(Vec::len), Some(1));
    Ok(())
}

/// A plan that makes a machine, and does this with it; at last it is unmade.
fn with_a_machine(then: impl FnOnce(&mut PlanBuilder, &Output)) -> PlanBuilder {
    let mut plan = PlanBuilder::new("machine");
    let unmade =
        json!({ "vm": backstay_engine::output("/vm"), "name": { "base": "copy-01" }, "protected": [] });
    let vm = plan.step("vm", "create-vm").input(machine()).undone_by("destroy-vm", unmade).done();
    then(&mut plan, &vm);
    plan
}

/// A cluster that keeps machines up has started it again, after the stop was over and seen.
#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_does_not_stay_down_is_stopped_again() -> anyhow::Result<()> {
    let replica = estate::replica("web-01", 2000);
    let stage = Stage { look_twice: ms(800), ..Stage::new().await? };
    stage.centre.faults().rule(Rule::nth(
        "cloudstack",
        "stopVirtualMachine",
        1,
        Fault::Reappears { ms: 400 },
    ));
    let started: Arrange = Arc::new(move |state, vm| {
        let blank: Vec<_> = state.attached_to(vm);
        for volume in blank {
            state.unplug(volume, vm);
            state.detach_row(volume).unwrap();
        }
        let oma = state.oma;
        state.unplug(replica, oma);
        state.detach_row(replica).unwrap();
        state.plug(replica, vm).unwrap();
        state.attach_row(replica, vm, 0).unwrap();
    });
    let alone = Alone::new(stage, started).await?;
    let plan = with_a_machine(|plan, vm| {
        let of_it = json!({ "vm": vm.output("/vm") });
        let ready =
            plan.step("arrange", "arrange").input(of_it.clone()).after([vm]).nothing_to_undo("a test");
        let source = json!({ "id": estate::source("web-01"), "vcenter": crate::alone::vcenter() });
        let start = json!({ "vm": vm.output("/vm"), "networks": [estate::id("network", "test-lan")],
            "volumes": [replica], "rehearsal": true, "source": source });
        let up = plan.step("start", "start-vm").input(start).after([&ready]).nothing_to_undo("a test");
        plan.step("stop", "stop-vm").input(of_it).after([&up]).nothing_to_undo("a test");
    });
    let (run, status) = alone.play(plan).await?;
    assert_eq!(status, Status::Succeeded, "{}", alone.stage.lab.story(run).await?);
    let world = alone.stage.centre.world();
    let again = world
        .until(|state| state.effects.get("power on").is_some_and(|of| of.values().any(|times| *times == 2)));
    tokio::time::timeout(Duration::from_secs(5), again).await?;
    let on = world.look(|state| {
        state.vms.values().any(|vm| vm.name == "copy-01" && vm.removed.is_none() && vm.power == Power::On)
    });
    assert!(!on, "it runs:\n{}", alone.stage.lab.story(run).await?);
    Ok(())
}

fn cards(alone: &Alone) -> Vec<(String, bool)> {
    alone.stage.centre.world().look(|state| {
        let vm =
            state.vms.values().find(|vm| vm.name == "copy-01" && vm.removed.is_none()).expect("a machine");
        vm.nics.iter().map(|nic| (state.networks[&nic.network].name.clone(), nic.default)).collect()
    })
}

const CALLS: [&str; 3] =
    ["addNicToVirtualMachine", "updateDefaultNicForVirtualMachine", "removeNicFromVirtualMachine"];

/// A machine gets these cards, and is asked to have them once more.
fn other_cards(plan: &mut PlanBuilder, vm: &Output) {
    let set = |names: &[&str]| json!({ "vm": vm.output("/vm"), "nics": nics(names) });
    let one = plan
        .step("one", "set-nics")
        .input(set(&["test-db", "test-dmz"]))
        .after([vm])
        .undone_by("set-nics", set(&["test-lan"]))
        .done();
    plan.step("again", "set-nics")
        .input(set(&["test-db", "test-dmz"]))
        .after([&one])
        .nothing_to_undo("it is a test");
}

fn nics(names: &[&str]) -> Value {
    names.iter().map(|name| json!({ "network": estate::id("network", name) })).collect()
}

fn has_other_cards(alone: &Alone, story: &str) {
    assert_eq!(cards(alone), [("test-db".into(), true), ("test-dmz".into(), false)], "{story}");
}

/// Once more, twice, twice at once; and the ones from before as its undo.
#[tokio::test(flavor = "multi_thread")]
async fn a_machine_gets_other_cards_once_and_its_own_back() -> anyhow::Result<()> {
    for how in [None, Some(Again::Behind), Some(Again::AtOnce)] {
        let (stage, nothing): (_, Arrange) = (Stage::new().await?, Arc::new(|_, _| {}));
        let alone = match how {
            None => Alone::new(stage, nothing).await?,
            Some(how) => Alone::of(stage, &All(how), nothing).await?,
        };
        let (run, status) = alone.play(with_a_machine(other_cards)).await?;
        let story = format!("{how:?}:\n{}", alone.stage.lab.story(run).await?);
        assert_eq!(status, Status::Succeeded, "{story}");
        has_other_cards(&alone, &story);
        let times = |call: &str| alone.stage.centre.truth().effects()[call].values().sum::<u64>();
        let (added, removed) = ("addNicToVirtualMachine", "removeNicFromVirtualMachine");
        assert_eq!((times(added), times(removed)), (2, 1), "{story}");
        alone.stage.roll_back(&alone.engine, run).await?;
        alone.stage.moves_on(&alone.engine, run, Status::Succeeded).await?;
        let status = alone.stage.settled(&alone.engine, run).await?;
        assert_eq!(status, Status::RolledBack, "{how:?}:\n{}", alone.stage.lab.story(run).await?);
        assert_eq!((times(added), times(removed)), (3, 3), "{story}");
        alone.stage.is_sound()?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_gets_other_cards_whatever_goes_wrong_with_a_call() -> anyhow::Result<()> {
    for fault in [
        Fault::Refused { status: 500 },
        Fault::DoneThenDropped,
        Fault::JobFails { code: 530 },
        Fault::JobCancelledButDone { ms: 0 },
        Fault::JobLost,
    ] {
        for call in CALLS {
            let alone = Alone::plain().await?;
            alone.stage.centre.faults().rule(Rule::nth("cloudstack", call, 1, fault.clone()));
            let (run, status) = alone.play(with_a_machine(other_cards)).await?;
            let story = format!("{fault:?} of {call}:\n{}", alone.stage.lab.story(run).await?);
            assert_eq!(status, Status::Succeeded, "{story}");
            has_other_cards(&alone, &story);
            assert!(alone.stage.centre.faults().fired().iter().all(|rule| rule.times == 1), "{story}");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_gets_other_cards_though_the_node_dies_in_a_call() -> anyhow::Result<()> {
    for call in CALLS {
        let alone = Alone::plain().await?;
        alone.stage.centre.faults().rule(Rule::nth("cloudstack", call, 1, Fault::DoneThenSilent));
        let run = alone.submit(with_a_machine(other_cards)).await?;
        while alone.stage.centre.faults().fired().iter().all(|rule| rule.times == 0) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let alone = alone.another_node().await?;
        let status = alone.stage.settled(&alone.engine, run).await?;
        let story = format!("{call}:\n{}", alone.stage.lab.story(run).await?);
        assert_eq!(status, Status::Succeeded, "{story}");
        has_other_cards(&alone, &story);
    }
    Ok(())
}
