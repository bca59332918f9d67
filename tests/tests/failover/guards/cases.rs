//! The cases: each is one guard, and the world in which it is all that stands between a plan and the call.

use std::collections::BTreeMap;
use std::sync::Arc;

use backstay_simulator::world::things::{Attachment, Power, VmSnapshot, VmState, VolumeState};
use backstay_simulator::world::{State, estate};
use chrono::Utc;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::alone::{Arrange, vcenter};

/// A machine is made, the world is arranged around it, and then this is asked for.
pub struct Case {
    pub activity: &'static str,
    /// The code of the refusal.
    pub code: &'static str,
    /// Some of its words.
    pub says: &'static str,
    pub arrange: Arrange,
    /// Its input; `vm` stands for the machine.
    pub input: fn(Value) -> Value,
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

pub fn as_it_is(_: &mut State, _: Uuid) {}

/// The only disk of `web-01`.
pub fn replica() -> Uuid {
    estate::replica("web-01", 2000)
}

fn size() -> u64 {
    estate::small().sources[&estate::source("web-01")].disks[0].size
}

/// A disk of another machine.
pub fn other() -> Uuid {
    estate::replica("db-01", 2001)
}

/// Somebody else's machine.
fn stranger() -> Uuid {
    estate::id("vm", "web-01-old")
}

pub fn free(state: &mut State, volume: Uuid) {
    let plugged = state.volumes[&volume].plugged.clone();
    plugged.into_iter().for_each(|vm| state.unplug(volume, vm));
    state.detach_row(volume).unwrap();
}

pub fn hang(state: &mut State, volume: Uuid, vm: Uuid, device: u32) {
    free(state, volume);
    if device == 0 {
        blank(state, vm).into_iter().for_each(|blank| free(state, blank));
    }
    state.plug(volume, vm).unwrap();
    state.attach_row(volume, vm, device).unwrap();
}

pub fn blank(state: &State, vm: Uuid) -> Option<Uuid> {
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

pub fn run_it(state: &mut State, vm: Uuid) {
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

pub fn source(state: &mut State, power: Power) {
    state.source_power(&estate::source("web-01"), power).unwrap();
}

fn oma() -> Uuid {
    estate::small().oma
}

pub fn the_source() -> Value {
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
    json!({ "source": estate::source("web-01"), "path": "/DatabanxDC/vm/web-01", "vcenter": vcenter(),
        "rehearsal": rehearsal, "windows": false, "disks": [{ "key": 2000, "volume": replica(), "size": size() }], "name": { "base": "another" }, "zone": of("zone", "zone-1"),
        "offering": of("service-offering", "custom"), "template": of("template", "tiny"), "networks": [test_lan()] })
}

/// Volumes: where they may be taken from, and brought to.
pub fn volumes() -> Vec<Case> {
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
pub fn machines() -> Vec<Case> {
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
pub fn starts() -> Vec<Case> {
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
pub fn syncs() -> Vec<Case> {
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
pub fn validations() -> Vec<Case> {
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
