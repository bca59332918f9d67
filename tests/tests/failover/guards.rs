//! What no activity does, whatever its plan says. Each case is one guard: without it the call would be made.

use std::collections::BTreeMap;
use std::sync::Arc;

use backstay_engine::{PlanBuilder, Status};
use backstay_simulator::world::things::{Attachment, Power, VmSnapshot, VmState, VolumeState};
use backstay_simulator::world::{State, estate};
use chrono::Utc;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::alone::{Alone, Arrange, machine, undone, vcenter};
use crate::stage::Stage;

/// A machine is made, the world is arranged around it, and then this is asked for.
struct Case {
    activity: &'static str,
    /// The code of the refusal.
    code: &'static str,
    /// Some of its words.
    says: &'static str,
    arrange: Arrange,
    /// Its input; `vm` stands for the machine.
    input: fn(Value) -> Value,
}

fn case(
    activity: &'static str,
    code: &'static str,
    says: &'static str,
    arrange: impl Fn(&mut State, Uuid) + Send + Sync + 'static,
    input: fn(Value) -> Value,
) -> Case {
    Case { activity, code, says, arrange: Arc::new(arrange), input }
}

fn as_it_is(_: &mut State, _: Uuid) {}

/// The only disk of `web-01`.
fn replica() -> Uuid {
    estate::replica("web-01", 2000)
}

/// A disk of another machine.
fn other() -> Uuid {
    estate::replica("db-01", 2001)
}

/// Somebody else's machine.
fn stranger() -> Uuid {
    estate::id("vm", "web-01-old")
}

fn free(state: &mut State, volume: Uuid) {
    let plugged = state.volumes[&volume].plugged.clone();
    plugged.into_iter().for_each(|vm| state.unplug(volume, vm));
    state.detach_row(volume).unwrap();
}

fn hang(state: &mut State, volume: Uuid, vm: Uuid, device: u32) {
    free(state, volume);
    if device == 0 {
        blank(state, vm).into_iter().for_each(|blank| free(state, blank));
    }
    state.plug(volume, vm).unwrap();
    state.attach_row(volume, vm, device).unwrap();
}

fn blank(state: &State, vm: Uuid) -> Option<Uuid> {
    let root = Some(Attachment { vm, device: 0 });
    state.volumes.values().find(|volume| volume.attached == root).map(|volume| volume.id)
}

fn snapshot(state: &mut State, vm: Uuid) {
    let snapshot = VmSnapshot {
        id: Uuid::new_v4(),
        display_name: "before the update".into(),
        vm,
        contents: BTreeMap::new(),
        state: "Ready".into(),
        tags: BTreeMap::new(),
        created: Utc::now(),
        removed: None,
    };
    state.vm_snapshots.insert(snapshot.id, snapshot);
}

fn run_it(state: &mut State, vm: Uuid) {
    state.power_on(vm).unwrap();
    let host = state.hosts[0].id;
    let row = state.vm_mut(vm).unwrap();
    (row.state, row.host) = (VmState::Running, Some(host));
}

fn stop_it(state: &mut State, vm: Uuid) {
    state.power_off(vm);
    let row = state.vm_mut(vm).unwrap();
    (row.state, row.host) = (VmState::Stopped, None);
}

fn source(state: &mut State, power: Power) {
    state.source_power(&estate::source("web-01"), power).unwrap();
}

fn oma() -> Uuid {
    estate::small().oma
}

fn the_source() -> Value {
    json!({ "id": estate::source("web-01"), "vcenter": vcenter() })
}

fn test_lan() -> Uuid {
    estate::id("network", "test-lan")
}

fn named(vm: Value, protected: &[Uuid]) -> Value {
    json!({ "vm": vm, "name": { "base": "copy-01" }, "protected": protected })
}

fn start(vm: Value, volumes: &[Uuid], rehearsal: bool) -> Value {
    json!({ "vm": vm, "networks": [test_lan()], "volumes": volumes, "rehearsal": rehearsal, "source": the_source() })
}

fn sync() -> Value {
    json!({ "id": estate::source("web-01"), "path": "/DatabanxDC/vm/web-01", "vcenter": vcenter(),
        "disks": [{ "key": 2000, "volume": replica() }], "within": "1s" })
}

fn moving(rehearsal: bool) -> Value {
    let of = |kind: &str, name: &str| estate::id(kind, name);
    json!({ "source": estate::source("web-01"), "vcenter": vcenter(), "rehearsal": rehearsal, "windows": false,
        "disks": [{ "volume": replica(), "size": 1 }], "name": { "base": "another" }, "zone": of("zone", "zone-1"),
        "offering": of("service-offering", "custom"), "template": of("template", "tiny"), "networks": [test_lan()] })
}

/// Volumes: where they may be taken from, and brought to.
fn volumes() -> Vec<Case> {
    vec![
        case(
            "take-from-oma",
            "root_of_oma",
            "itself starts from",
            as_it_is,
            |_| json!({ "volume": estate::id("volume", "ROOT-oma") }),
        ),
        case(
            "take-from-oma",
            "vm_snapshot",
            "has the snapshot",
            |state, _| snapshot(state, oma()),
            |_| json!({ "volume": replica() }),
        ),
        case(
            "take-from-oma",
            "volume_elsewhere",
            "where it is not expected",
            as_it_is,
            |_| json!({ "volume": estate::id("volume", "ROOT-web-01-old") }),
        ),
        case(
            "return-to-oma",
            "vm_snapshot",
            "has the snapshot",
            |state, _| {
                free(state, replica());
                snapshot(state, oma());
            },
            |_| json!({ "volume": replica() }),
        ),
        case(
            "attach-volume",
            "not_ours",
            "mark",
            |state, _| free(state, replica()),
            |_| json!({ "volume": replica(), "vm": stranger() }),
        ),
        case(
            "attach-volume",
            "is_oma",
            "appliance itself",
            |state, _| free(state, replica()),
            |_| json!({ "volume": replica(), "vm": oma() }),
        ),
        case(
            "attach-volume",
            "vm_not_stopped",
            "Running",
            |state, vm| {
                free(state, replica());
                run_it(state, vm);
            },
            |vm| json!({ "volume": replica(), "vm": vm }),
        ),
        case(
            "attach-volume",
            "vm_snapshot",
            "has the snapshot",
            |state, vm| {
                free(state, replica());
                snapshot(state, vm);
            },
            |vm| json!({ "volume": replica(), "vm": vm }),
        ),
        case(
            "attach-volume",
            "has_root",
            "another volume already",
            |state, _| free(state, replica()),
            |vm| json!({ "volume": replica(), "vm": vm, "root": true }),
        ),
        case(
            "detach-volume",
            "vm_not_stopped",
            "Running",
            |state, vm| {
                hang(state, replica(), vm, 0);
                run_it(state, vm);
            },
            |vm| json!({ "volume": replica(), "vm": vm }),
        ),
        case(
            "detach-volume",
            "vm_snapshot",
            "has the snapshot",
            |state, vm| {
                hang(state, replica(), vm, 0);
                snapshot(state, vm);
            },
            |vm| json!({ "volume": replica(), "vm": vm }),
        ),
        case(
            "detach-volume",
            "not_ours",
            "mark",
            |state, _| {
                stop_it(state, stranger());
                hang(state, replica(), stranger(), 1);
            },
            |_| json!({ "volume": replica(), "vm": stranger() }),
        ),
        case(
            "open-exports",
            "not_home",
            "not attached to the appliance",
            |state, _| free(state, replica()),
            |_| {
                json!({ "source": estate::source("web-01"), "name": "web-01",
                "disks": [{ "volume": replica(), "number": 0 }] })
            },
        ),
    ]
}

/// Machines: none is destroyed with somebody's data, and none that is not this run's is touched.
fn machines() -> Vec<Case> {
    vec![
        case(
            "destroy-vm",
            "not_ours",
            "mark",
            |state, _| stop_it(state, stranger()),
            |_| named(json!(stranger()), &[]),
        ),
        case("destroy-vm", "is_oma", "appliance itself", as_it_is, |_| named(json!(oma()), &[])),
        case("destroy-vm", "vm_not_stopped", "Running", run_it, |vm| named(vm, &[])),
        case(
            "destroy-vm",
            "holds_a_volume",
            "not the blank disk",
            |state, vm| hang(state, replica(), vm, 0),
            |vm| named(vm, &[]),
        ),
        // It looks like a blank disk, and is none.
        case(
            "destroy-vm",
            "holds_a_volume",
            "not the blank disk",
            |state, vm| {
                hang(state, replica(), vm, 0);
                state.volume_mut(replica()).unwrap().state = VolumeState::Allocated;
            },
            |vm| named(vm, &[replica()]),
        ),
        case(
            "destroy-vm",
            "holds_a_volume",
            "not the blank disk",
            |state, vm| hang(state, other(), vm, 1),
            |vm| named(vm, &[]),
        ),
        case(
            "drop-blank-root",
            "not_ours",
            "mark",
            as_it_is,
            |_| json!({ "vm": stranger(), "protected": [] }),
        ),
        case(
            "drop-blank-root",
            "root_is_protected",
            "holds a replica",
            |state, vm| {
                hang(state, replica(), vm, 0);
                state.volume_mut(replica()).unwrap().state = VolumeState::Allocated;
            },
            |vm| json!({ "vm": vm, "protected": [replica()] }),
        ),
        case(
            "drop-blank-root",
            "root_not_blank",
            "has been used",
            |state, vm| {
                let blank = blank(state, vm).unwrap();
                state.volume_mut(blank).unwrap().state = VolumeState::Ready;
            },
            |vm| json!({ "vm": vm, "protected": [] }),
        ),
        case(
            "set-nics",
            "not_ours",
            "mark",
            |state, _| stop_it(state, stranger()),
            |_| json!({ "vm": stranger(), "nics": [{ "network": test_lan() }] }),
        ),
        case(
            "set-nics",
            "vm_not_stopped",
            "Running",
            run_it,
            |vm| json!({ "vm": vm, "nics": [{ "network": estate::id("network", "prod-lan") }] }),
        ),
        case("stop-vm", "not_ours", "mark", as_it_is, |_| json!({ "vm": stranger() })),
    ]
}

/// What is started: nothing twice, nothing where the world sees it, and nothing with half of its disks.
fn starts() -> Vec<Case> {
    let whole = |state: &mut State, vm: Uuid| hang(state, replica(), vm, 0);
    vec![
        case(
            "start-vm",
            "not_ours",
            "mark",
            |state, _| stop_it(state, stranger()),
            |_| start(json!(stranger()), &[estate::id("volume", "ROOT-web-01-old")], true),
        ),
        case("start-vm", "wrong_network", "the plan does not have", whole, |vm| {
            let mut input = start(vm, &[replica()], true);
            input["networks"] = json!([]);
            input
        }),
        case(
            "start-vm",
            "not_a_test_network",
            "not marked",
            move |state, vm| {
                whole(state, vm);
                state.networks.get_mut(&test_lan()).unwrap().tags.clear();
            },
            |vm| start(vm, &[replica()], true),
        ),
        case("start-vm", "source_not_off", "poweredOn", whole, |vm| start(vm, &[replica()], false)),
        case(
            "start-vm",
            "source_not_off",
            "suspended",
            move |state, vm| {
                whole(state, vm);
                source(state, Power::Suspended);
            },
            |vm| start(vm, &[replica()], false),
        ),
        case(
            "start-vm",
            "source_not_off",
            "unknown",
            move |state, vm| {
                whole(state, vm);
                source(state, Power::Off);
                state.settings.vma.power_unknown.insert("web-01".into());
            },
            |vm| start(vm, &[replica()], false),
        ),
        case("start-vm", "disks_incomplete", "not where it belongs", whole, |vm| {
            start(vm, &[replica(), other()], true)
        }),
        case(
            "start-vm",
            "disks_incomplete",
            "not where it belongs",
            |state, vm| hang(state, replica(), vm, 1),
            |vm| start(vm, &[replica()], true),
        ),
        case(
            "start-vm",
            "foreign_disk",
            "not one of its disks",
            move |state, vm| {
                whole(state, vm);
                hang(state, other(), vm, 1);
            },
            |vm| start(vm, &[replica()], true),
        ),
    ]
}

/// What is written to the replicas: only from a source that is off, and only to what is a copy of it.
fn syncs() -> Vec<Case> {
    vec![
        case("final-sync", "source_not_off", "poweredOn", as_it_is, |_| sync()),
        case(
            "final-sync",
            "source_not_off",
            "suspended",
            |state, _| source(state, Power::Suspended),
            |_| sync(),
        ),
        case(
            "final-sync",
            "not_home",
            "not attached to the appliance",
            |state, _| {
                source(state, Power::Off);
                free(state, replica());
            },
            |_| sync(),
        ),
        case(
            "final-sync",
            "dirty",
            "full copy",
            |state, _| {
                source(state, Power::Off);
                let tags = &mut state.volume_mut(replica()).unwrap().tags;
                tags.insert("backstay-dirty".into(), "a run".into());
            },
            |_| sync(),
        ),
        case(
            "final-sync",
            "no_export",
            "has no export",
            |state, _| {
                source(state, Power::Off);
                state.daemon.exports.clear();
            },
            |_| sync(),
        ),
        case(
            "power-off-source",
            "source_suspended",
            "in memory",
            |state, _| source(state, Power::Suspended),
            |_| json!({ "id": estate::source("web-01"), "vcenter": vcenter(), "force_after": "1s" }),
        ),
        case(
            "power-off-source",
            "source_unknown",
            "not known",
            |state, _| _ = state.settings.vma.power_unknown.insert("web-01".into()),
            |_| the_source(),
        ),
    ]
}

/// What is refused before anything is touched.
fn validations() -> Vec<Case> {
    let refused = |says, arrange: Arrange, input| Case {
        activity: "validate-move",
        code: "not_ready",
        says,
        arrange,
        input,
    };
    vec![
        refused(
            "not marked as one for rehearsals",
            Arc::new(|state, _| state.networks.get_mut(&test_lan()).unwrap().tags.clear()),
            |_| moving(true),
        ),
        refused("is suspended", Arc::new(|state, _| source(state, Power::Suspended)), |_| moving(false)),
        refused("has the snapshot", Arc::new(|state, _| snapshot(state, oma())), |_| moving(true)),
        refused("is attached to nothing", Arc::new(|state, _| free(state, replica())), |_| moving(true)),
        refused(
            "needs a full copy first",
            Arc::new(|state, _| {
                let tags = &mut state.volume_mut(replica()).unwrap().tags;
                tags.insert("backstay-dirty".into(), "a run".into());
            }),
            |_| moving(true),
        ),
        refused("already (", Arc::new(as_it_is), |_| {
            let mut input = moving(true);
            input["name"] = json!({ "base": "web-01-old" });
            input
        }),
    ]
}

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
    let blank = |id: Uuid| json!({ "saved": { "begun": null, "calls": 0, "more": id } });
    // It is at no machine, and is a replica.
    let alone = Alone::new(Stage::new().await?, Arc::new(|state, _| free(state, replica()))).await?;
    let plan =
        undone(blank(replica()), "remove-blank-disk", |vm| json!({ "vm": vm, "protected": [replica()] }));
    let (run, status) = alone.play(plan).await?;
    assert_eq!((status, alone.failure(run, "left").await?.0), (Status::Stuck, "not_blank".into()));
    // It is at somebody else's machine.
    let theirs = estate::id("volume", "ROOT-web-01-old");
    let alone = Alone::plain().await?;
    let plan = undone(blank(theirs), "remove-blank-disk", |vm| json!({ "vm": vm, "protected": [] }));
    let (run, status) = alone.play(plan).await?;
    assert_eq!((status, alone.failure(run, "left").await?.0), (Status::Stuck, "not_blank".into()));
    assert_eq!(alone.changed(), []);

    let running: Arrange = Arc::new(|state, vm| {
        source(state, Power::Off);
        hang(state, replica(), vm, 0);
        run_it(state, vm);
    });
    let alone = Alone::new(Stage::new().await?, running).await?;
    let before = json!({ "saved": { "original": "poweredOn" } });
    let mut input = the_source();
    input["copy"] = json!({ "base": "copy-01" });
    let (run, status) = alone.play(undone(before, "power-on-source", |_| input)).await?;
    assert_eq!((status, alone.failure(run, "left").await?.0), (Status::Stuck, "copy_may_run".into()));
    assert_eq!(alone.changed(), []);
    alone.stage.is_sound()
}
