//! What no activity does, whatever its plan says. Without its guard the call would be made.

mod cases;

use std::sync::Arc;
use std::time::Duration;

use backstay_engine::{PlanBuilder, Retry, Status};
use backstay_simulator::faults::{Fault, Rule};
use backstay_simulator::world::things::{Power, VolumeState};
use backstay_simulator::world::{Cause, estate};
use serde_json::json;
use uuid::Uuid;

use crate::alone::{Alone, Arrange, machine, undone};
use crate::stage::Stage;
use cases::{Case, as_it_is, blank, free, hang, other, replica, run_it, source, the_source};
use cases::{machines, starts, syncs, validations, volumes};

async fn refuses(case: &Case) -> anyhow::Result<()> {
    let alone = Alone::new(Stage::new().await?, Arc::clone(&case.arrange)).await?;
    let mut plan = PlanBuilder::new("guard");
    let vm = plan.step("vm", "create-vm").input(machine()).nothing_to_undo("it is a test");
    let ready = plan
        .step("arrange", "arrange")
        .input(json!({ "vm": vm.output("/vm") }))
        .after([&vm])
        .nothing_to_undo("it is a test");
    plan.step("guarded", case.activity)
        .input((case.input)(vm.output("/vm")))
        .after([&ready])
        .nothing_to_undo("it is a test");
    let (run, status) = alone.play(plan).await?;
    let (code, message) = alone.failure(run, "guarded").await?;
    let (said, story) = (format!("{code}: {message}"), alone.stage.lab.story(run).await?);
    // The machine that was made for it is left.
    anyhow::ensure!(status == Status::Stuck, "it is {}: {said}\n{story}", status.as_str());
    anyhow::ensure!(code == case.code && message.contains(case.says), "it says {said}\n{story}");
    let called = alone.changed();
    anyhow::ensure!(called.is_empty(), "it has called {called:?}");
    alone.stage.is_sound()
}

async fn all(cases: Vec<Case>) -> anyhow::Result<()> {
    let mut failed = Vec::new();
    for case in &cases {
        if let Err(error) = refuses(case).await {
            failed.push(format!(
                "{} is not refused with {} ({}): {error:#}",
                case.activity, case.code, case.says
            ));
        }
    }
    anyhow::ensure!(failed.is_empty(), "{} of {}:\n{}", failed.len(), cases.len(), failed.join("\n\n"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_is_moved_only_from_and_to_where_it_belongs() -> anyhow::Result<()> {
    all(volumes()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_is_touched_only_if_it_is_this_runs_and_destroyed_only_without_data() -> anyhow::Result<()>
{
    all(machines()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_is_started_only_alone_hidden_and_whole() -> anyhow::Result<()> {
    all(starts()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_is_written_to_only_from_a_source_that_is_off() -> anyhow::Result<()> {
    all(syncs()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_be_known_before_is_refused_before() -> anyhow::Result<()> {
    all(validations()).await
}

/// The guards of undos: what they are told by the journal is looked at before they believe it.
#[tokio::test(flavor = "multi_thread")]
async fn an_undo_removes_only_what_is_blank_and_starts_no_source_beside_its_copy() -> anyhow::Result<()> {
    let blank = |id: Uuid| json!({ "planned": ["blank disk", id] });
    let theirs = estate::id("volume", "ROOT-web-01-old");
    let removed = |id: Uuid, protected: Vec<Uuid>| {
        undone(move |_| blank(id), "remove-blank-disk", move |vm| json!({ "vm": vm, "protected": protected }))
    };
    let mut again = the_source();
    again["copy"] = json!({ "base": "copy-01" });
    let on = undone(|_| json!({ "saved": { "original": "poweredOn" } }), "power-on-source", |_| again);
    let at_no_machine: Arrange = Arc::new(|state, _| free(state, replica()));
    let its_copy_runs: Arrange = Arc::new(|state, vm| {
        source(state, Power::Off);
        hang(state, replica(), vm, 0);
        run_it(state, vm);
    });
    let mut failed = Vec::new();
    for (what, code, arrange, plan) in [
        ("a replica", "not_blank", at_no_machine, removed(replica(), vec![replica()])),
        ("somebody else's disk", "not_blank", Arc::new(as_it_is) as Arrange, removed(theirs, Vec::new())),
        ("a source beside its copy", "copy_may_run", its_copy_runs, on),
    ] {
        let alone = Alone::new(Stage::new().await?, arrange).await?;
        let (run, status) = alone.play(plan).await?;
        let found = (status, alone.failure(run, "left").await?.0, alone.changed());
        if found != (Status::Stuck, code.to_owned(), Vec::new()) {
            failed.push(format!("{what}: {found:?}\n{}", alone.stage.lab.story(run).await?));
        }
        failed.extend(alone.stage.is_sound().err().map(|broken| format!("{what}: {broken}")));
    }
    anyhow::ensure!(failed.is_empty(), "{}", failed.join("\n"));
    Ok(())
}

/// Its disk was to be thrown away, and could not be; meanwhile it starts from another one.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_a_machine_does_not_start_from_any_more_is_left_alone() -> anyhow::Result<()> {
    let stage = Stage::new().await?;
    let faults = stage.centre.faults();
    faults.rule(Rule::every("cloudstack", "detachVolume", Fault::Refused { status: 500 }));
    let alone = Alone::new(stage, Arc::new(as_it_is)).await?;
    let mut plan = PlanBuilder::new("blank");
    let vm = plan.step("vm", "create-vm").input(machine()).nothing_to_undo("it is a test");
    plan.step("drop", "drop-blank-root")
        .input(json!({ "vm": vm.output("/vm"), "protected": [replica()] }))
        .after([&vm])
        .retry(Retry::fixed(20, Duration::from_millis(50)))
        .nothing_to_undo("it is a test");
    let run = alone.submit(plan).await?;
    let faults = alone.stage.centre.faults();
    while faults.fired().iter().all(|rule| rule.times == 0) {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let world = alone.stage.centre.world();
    world.change(Cause::new("people", "attach", ""), |state| {
        let vm = state.vms.values().find(|vm| vm.name == "copy-01").unwrap().id;
        let old = blank(state, vm).unwrap();
        hang(state, other(), vm, 0);
        state.volume_mut(other()).unwrap().state = VolumeState::Allocated;
        state.plug(old, vm).unwrap();
        state.attach_row(old, vm, 1).unwrap();
        state.volume_mut(old).unwrap().state = VolumeState::Allocated;
    });
    let status = alone.stage.settled(&alone.engine, run).await?;
    let (code, message) = alone.failure(run, "drop").await?;
    assert_eq!((status, code.as_str()), (Status::Stuck, "another_root"), "{message}");
    Ok(())
}

/// Replication would write over what others have written.
#[tokio::test(flavor = "multi_thread")]
async fn a_volume_that_is_no_copy_any_more_is_not_opened_to_replication() -> anyhow::Result<()> {
    let dirty: Arrange = Arc::new(|state, _| {
        let tags = &mut state.volume_mut(replica()).unwrap().tags;
        tags.insert("backstay-dirty".into(), "a run".into());
    });
    let alone = Alone::new(Stage::new().await?, dirty).await?;
    let exports = json!({ "source": estate::source("web-01"), "name": "web-01",
        "disks": [{ "volume": replica(), "number": 0 }] });
    let left = json!({ "output": { "open": [], "closed": [replica()] } });
    let (run, _) = alone.play(undone(|_| left, "open-exports", |_| exports)).await?;
    let open =
        alone.stage.centre.world().look(|state| {
            state.daemon.exports.iter().any(|export| export.volume_id == replica().to_string())
        });
    assert!(!open, "{}", alone.stage.lab.story(run).await?);
    Ok(())
}
