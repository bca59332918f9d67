//! Each condition of each invariant, alone: what breaks it and nothing else is recorded, and what stands right beside it and is
//! allowed is not.

use std::collections::BTreeMap;

use backstay_simulator::faults::Faults;
use backstay_simulator::world::things::{Content, DiskRef, Power, SnapshotBy, VmSnapshot, VmState};
use backstay_simulator::world::{Cause, State, World, estate};
use chrono::Utc;
use uuid::Uuid;

/// What is, and what is done then: the invariant that it breaks, with some words of the record; `None` if it breaks none.
type Row = (&'static str, fn(&mut State), fn(&mut State), Option<(&'static str, &'static str)>);

fn web() -> Uuid {
    estate::replica("web-01", 2000)
}

fn sql(key: u32) -> Uuid {
    estate::replica("sql-01", key)
}

fn disk(name: &str) -> DiskRef {
    DiskRef { source: estate::source(name), key: 2000 }
}

fn root(name: &str) -> Uuid {
    estate::id("volume", &format!("ROOT-{name}"))
}

fn as_it_is(_: &mut State) {}

/// A machine that is off, in an isolated network unless it is changed.
fn copy(state: &mut State, name: &str) -> Uuid {
    let mut vm = state.vms[&estate::id("vm", "jump-host")].clone();
    (vm.id, vm.name) = (vm_of(name), name.to_owned());
    (vm.power, vm.state, vm.host) = (Power::Off, VmState::Stopped, None);
    vm.nics.truncate(1);
    vm.nics[0].network = estate::id("network", "test-lan");
    state.vms.insert(vm.id, vm);
    vm_of(name)
}

fn vm_of(name: &str) -> Uuid {
    estate::id("vm", name)
}

fn expose(state: &mut State, name: &str) {
    state.vm_mut(vm_of(name)).unwrap().nics[0].network = estate::id("network", "prod-lan");
}

/// Takes a volume from wherever it is.
fn free(state: &mut State, volume: Uuid) {
    let plugged = state.volumes[&volume].plugged.clone();
    plugged.into_iter().for_each(|vm| state.unplug(volume, vm));
    state.detach_row(volume).unwrap();
}

fn hang(state: &mut State, volume: Uuid, name: &str, device: u32) {
    free(state, volume);
    state.plug(volume, vm_of(name)).unwrap();
    state.attach_row(volume, vm_of(name), device).unwrap();
}

/// A copy that has the disk of `web-01`, and may start.
fn copy_of_web(state: &mut State) {
    copy(state, "one");
    hang(state, web(), "one", 0);
}

fn source(state: &mut State, name: &str, power: Power) {
    state.source_power(&estate::source(name), power).unwrap();
}

fn seen_off(state: &mut State) {
    state.seen_off.insert(estate::source("web-01"));
}

fn snapshot(state: &mut State, volume: Uuid) -> Uuid {
    let id = state.new_snapshot(volume, "kept", SnapshotBy::CloudStack, BTreeMap::new()).unwrap();
    state.capture(id).unwrap();
    id
}

/// The only snapshot of `web-01`'s disk by now.
fn kept(state: &State) -> Uuid {
    let mut all: Vec<_> = state.snapshots.values().filter(|one| one.volume == web()).collect();
    all.sort_by_key(|one| one.created);
    all[0].id
}

/// What a snapshot of a machine has of `web-01`'s disk.
fn vm_snapshot(state: &mut State, contents: Content) -> Uuid {
    let id = estate::id("vm snapshot", "kept");
    let row = VmSnapshot {
        id,
        display_name: "kept".into(),
        vm: vm_of("one"),
        contents: [(web(), contents)].into(),
        state: "Ready".into(),
        tags: BTreeMap::new(),
        created: Utc::now(),
        removed: None,
    };
    state.vm_snapshots.insert(id, row);
    id
}

fn lost_vm_snapshot(state: &mut State) {
    state.before_vm_snapshot_is_lost(estate::id("vm snapshot", "kept"));
}

fn dirty() -> Content {
    Content { foreign: vec!["a guest".into()], ..Content::default() }
}

/// One snapshot, and then a write.
fn written_behind_a_snapshot(state: &mut State) {
    snapshot(state, web());
    state.write(web(), "virtio");
}

fn kept_is_lost(state: &mut State) {
    state.delete_snapshot(kept(state)).unwrap();
}

fn another(state: &mut State, change: fn(&mut backstay_simulator::world::things::Snapshot)) {
    snapshot(state, web());
    let id = snapshot(state, web());
    change(state.snapshots.get_mut(&id).unwrap());
    state.write(web(), "virtio");
}

fn beside_vm_snapshot(state: &mut State, change: fn(&mut VmSnapshot)) {
    written_behind_a_snapshot(state);
    let id = vm_snapshot(state, Content::default());
    change(state.vm_snapshots.get_mut(&id).unwrap());
}

fn commit(state: &mut State) {
    state.committed.insert(estate::source("web-01"));
}

fn content(state: &mut State, change: fn(&mut Content)) {
    change(&mut state.volume_mut(web()).unwrap().content);
}

fn replicate(state: &mut State) {
    state.replicate(&disk("web-01"), false).unwrap();
}

const I7: Option<(&str, &str)> = Some(("I7", "the last clean copy"));

fn places() -> Vec<Row> {
    vec![
        (
            "a replica hangs at two machines",
            |state| _ = copy(state, "one"),
            |state| state.plug(web(), vm_of("one")).unwrap(),
            Some(("I1", "hangs at 2 VMs")),
        ),
        (
            "a disk that is nobody's replica hangs at two",
            |state| _ = copy(state, "one"),
            |state| state.plug(root("jump-host"), vm_of("one")).unwrap(),
            None,
        ),
        ("a replica hangs nowhere for a moment", as_it_is, |state| free(state, web()), None),
        ("a replica is destroyed", as_it_is, |state| state.lose_volume(web()), Some(("I1", "was destroyed"))),
        ("another disk is destroyed", as_it_is, |state| state.lose_volume(root("jump-host")), None),
        (
            "a call to destroy a replica",
            as_it_is,
            |state| state.asked_to_destroy_volume(web()),
            Some(("I2", "asks to destroy the protected volume")),
        ),
        (
            "a call to destroy another disk",
            as_it_is,
            |state| state.asked_to_destroy_volume(root("jump-host")),
            None,
        ),
        (
            "a call to destroy a machine that has a replica by its row alone",
            |state| {
                copy_of_web(state);
                state.unplug(web(), vm_of("one"));
            },
            |state| state.asked_to_destroy_vm(vm_of("one")),
            Some(("I2", "which holds the protected volume")),
        ),
        (
            "a call to destroy a machine at which a replica hangs without a row",
            |state| {
                copy_of_web(state);
                state.detach_row(web()).unwrap();
            },
            |state| state.asked_to_destroy_vm(vm_of("one")),
            Some(("I2", "which holds the protected volume")),
        ),
        (
            "a call to destroy a machine without one",
            |state| _ = copy(state, "one"),
            |state| state.asked_to_destroy_vm(vm_of("one")),
            None,
        ),
        (
            "a call to destroy an appliance without replicas",
            |state| {
                let replicas: Vec<_> = state.attached_to(state.oma);
                replicas.into_iter().filter(|id| *id != root("oma")).for_each(|id| free(state, id));
            },
            |state| state.asked_to_destroy_vm(state.oma),
            Some(("I2", "asks to destroy the OMA")),
        ),
        (
            "the disks of one source hang at two machines",
            |state| {
                copy(state, "one");
                copy(state, "two");
                hang(state, sql(2000), "one", 0);
            },
            |state| hang(state, sql(2001), "two", 0),
            Some(("I8", "at 2 destinations at once")),
        ),
        (
            "the disks of one source hang at one machine and at the appliance",
            |state| _ = copy(state, "one"),
            |state| hang(state, sql(2000), "one", 0),
            None,
        ),
        (
            "all disks of one source hang at one machine",
            |state| {
                copy(state, "one");
                hang(state, sql(2000), "one", 0);
            },
            |state| hang(state, sql(2001), "one", 1),
            None,
        ),
    ]
}

fn power() -> Vec<Row> {
    let both = Some(("I3", "are both on"));
    vec![
        (
            "a source goes on beside its copy in a production network",
            |state| {
                copy_of_web(state);
                expose(state, "one");
                state.power_on(vm_of("one")).unwrap();
            },
            |state| source(state, "web-01", Power::On),
            both,
        ),
        (
            "a copy goes on in a production network beside its source",
            |state| {
                copy_of_web(state);
                expose(state, "one");
                source(state, "web-01", Power::On);
            },
            |state| state.power_on(vm_of("one")).unwrap(),
            both,
        ),
        (
            "a copy that runs beside its source comes into a production network",
            |state| {
                copy_of_web(state);
                source(state, "web-01", Power::On);
                state.power_on(vm_of("one")).unwrap();
            },
            |state| expose(state, "one"),
            both,
        ),
        (
            "a network in which a copy runs beside its source becomes one of production",
            |state| {
                copy_of_web(state);
                source(state, "web-01", Power::On);
                state.power_on(vm_of("one")).unwrap();
            },
            |state| state.networks.get_mut(&estate::id("network", "test-lan")).unwrap().production = true,
            both,
        ),
        (
            "a copy goes on in an isolated network beside its source",
            |state| {
                copy_of_web(state);
                source(state, "web-01", Power::On);
            },
            |state| state.power_on(vm_of("one")).unwrap(),
            None,
        ),
        (
            "a copy goes on while its source is suspended",
            |state| {
                copy_of_web(state);
                expose(state, "one");
                source(state, "web-01", Power::Suspended);
            },
            |state| state.power_on(vm_of("one")).unwrap(),
            None,
        ),
        (
            "a call to start a copy in a production network, whose source nobody has seen off",
            |state| {
                copy_of_web(state);
                expose(state, "one");
            },
            |state| state.asked_to_start(vm_of("one")),
            Some(("I4", "nobody has seen its source")),
        ),
        (
            "a call to start one whose source was on after it was seen off",
            |state| {
                copy_of_web(state);
                expose(state, "one");
                seen_off(state);
                source(state, "web-01", Power::On);
                source(state, "web-01", Power::Off);
            },
            |state| state.asked_to_start(vm_of("one")),
            Some(("I4", "nobody has seen its source")),
        ),
        (
            "a call to start one whose source was seen off",
            |state| {
                copy_of_web(state);
                expose(state, "one");
                seen_off(state);
            },
            |state| state.asked_to_start(vm_of("one")),
            None,
        ),
        (
            "a call to start one in an isolated network",
            copy_of_web,
            |state| state.asked_to_start(vm_of("one")),
            None,
        ),
        ("a call to start the appliance", as_it_is, |state| state.asked_to_start(state.oma), None),
        (
            "another source goes on",
            |state| {
                copy_of_web(state);
                expose(state, "one");
                state.power_on(vm_of("one")).unwrap();
            },
            |state| source(state, "sql-01", Power::On),
            None,
        ),
        (
            "a copy runs with some of the disks",
            |state| {
                copy(state, "one");
                hang(state, sql(2000), "one", 0);
            },
            |state| state.power_on(vm_of("one")).unwrap(),
            Some(("I15", "runs with 1 of the 2 disks")),
        ),
        (
            "a copy runs with all of the disks",
            |state| {
                copy(state, "one");
                hang(state, sql(2000), "one", 0);
                hang(state, sql(2001), "one", 1);
            },
            |state| state.power_on(vm_of("one")).unwrap(),
            None,
        ),
        (
            "the appliance runs with some of the disks",
            |state| free(state, sql(2000)),
            |state| state.power_on(state.oma).unwrap(),
            None,
        ),
    ]
}

fn replication() -> Vec<Row> {
    let others = Some(("I6", "which others wrote to"));
    vec![
        (
            "a final sync while the source is on",
            |state| source(state, "web-01", Power::On),
            |state| state.replicate(&disk("web-01"), true).unwrap(),
            Some(("I5", "while its source is on")),
        ),
        ("a sync while the source is on", |state| source(state, "web-01", Power::On), replicate, None),
        ("a final sync", as_it_is, |state| state.replicate(&disk("web-01"), true).unwrap(), None),
        (
            "a sync to a replica that is not at the appliance",
            |state| free(state, web()),
            replicate,
            Some(("I5", "which is not at the OMA")),
        ),
        ("a sync over what a guest wrote", |state| state.write(web(), "a guest"), replicate, others),
        ("a sync over what is mixed", |state| content(state, |it| it.mixed = true), replicate, others),
        (
            "a sync over half a conversion",
            |state| content(state, |it| it.half_converted = true),
            replicate,
            others,
        ),
    ]
}

fn snapshots() -> Vec<Row> {
    vec![
        ("the only snapshot goes, and others wrote", written_behind_a_snapshot, kept_is_lost, I7),
        (
            "it goes, and what is on the volume is mixed",
            |state| {
                snapshot(state, web());
                content(state, |it| it.mixed = true);
            },
            kept_is_lost,
            I7,
        ),
        (
            "it goes, and a conversion did not end",
            |state| {
                snapshot(state, web());
                content(state, |it| it.half_converted = true);
            },
            kept_is_lost,
            I7,
        ),
        ("it goes, and nobody wrote", |state| _ = snapshot(state, web()), kept_is_lost, None),
        (
            "it goes, and there was nothing clean on it",
            |state| {
                state.write(web(), "virtio");
                snapshot(state, web());
            },
            kept_is_lost,
            None,
        ),
        (
            "it goes after a commit",
            |state| {
                written_behind_a_snapshot(state);
                commit(state);
            },
            kept_is_lost,
            None,
        ),
        (
            "it goes, and its volume is gone",
            |state| {
                written_behind_a_snapshot(state);
                state.volumes.get_mut(&web()).unwrap().removed = Some(Utc::now());
            },
            kept_is_lost,
            None,
        ),
        ("it goes, and there is another", |state| another(state, |_| ()), kept_is_lost, None),
        (
            "it goes, and another is not through",
            |state| another(state, |one| one.state = "BackingUp".into()),
            kept_is_lost,
            I7,
        ),
        (
            "it goes, and another is gone",
            |state| another(state, |one| one.removed = Some(Utc::now())),
            kept_is_lost,
            I7,
        ),
        (
            "it goes, and another is not clean",
            |state| another(state, |one| one.content = dirty()),
            kept_is_lost,
            I7,
        ),
        (
            "it goes, and another is of another volume",
            |state| another(state, |one| one.volume = sql(2000)),
            kept_is_lost,
            I7,
        ),
        ("it goes, and its machine has one", |state| beside_vm_snapshot(state, |_| ()), kept_is_lost, None),
        (
            "it goes, and that of its machine is not through",
            |state| beside_vm_snapshot(state, |one| one.state = "Creating".into()),
            kept_is_lost,
            I7,
        ),
        (
            "it goes, and that of its machine is gone",
            |state| beside_vm_snapshot(state, |one| one.removed = Some(Utc::now())),
            kept_is_lost,
            I7,
        ),
        (
            "it goes, and that of its machine is not clean",
            |state| beside_vm_snapshot(state, |one| one.contents = [(web(), dirty())].into()),
            kept_is_lost,
            I7,
        ),
        (
            "it goes, and that of its machine is without this volume",
            |state| beside_vm_snapshot(state, |one| one.contents.clear()),
            kept_is_lost,
            I7,
        ),
        (
            "the only snapshot of a machine goes, and others wrote",
            |state| {
                vm_snapshot(state, Content::default());
                state.write(web(), "a guest");
            },
            lost_vm_snapshot,
            I7,
        ),
        (
            "it goes with its machine",
            |state| {
                copy(state, "one");
                vm_snapshot(state, Content::default());
                state.write(web(), "a guest");
            },
            |state| state.lose_vm(vm_of("one"), &[]),
            I7,
        ),
        (
            "it goes, and nobody wrote to its disks",
            |state| _ = vm_snapshot(state, Content::default()),
            lost_vm_snapshot,
            None,
        ),
        (
            "it goes, and is not clean itself",
            |state| {
                vm_snapshot(state, dirty());
                state.write(web(), "a guest");
            },
            lost_vm_snapshot,
            None,
        ),
        (
            "it goes, and the volume has one",
            |state| {
                written_behind_a_snapshot(state);
                vm_snapshot(state, Content::default());
            },
            lost_vm_snapshot,
            None,
        ),
        (
            "it goes after a commit of the machine",
            |state| {
                vm_snapshot(state, Content::default());
                state.write(web(), "a guest");
                commit(state);
            },
            lost_vm_snapshot,
            None,
        ),
        (
            "the first write, and one of two disks has a snapshot",
            |state| _ = snapshot(state, sql(2000)),
            |state| state.write(sql(2000), "virtio"),
            Some(("I15", "only 1 have a snapshot")),
        ),
        (
            "the first write, and both have one",
            |state| _ = (snapshot(state, sql(2000)), snapshot(state, sql(2001))),
            |state| state.write(sql(2001), "virtio"),
            None,
        ),
        ("the first write, and none has one", as_it_is, |state| state.write(sql(2000), "virtio"), None),
        (
            "a later write, and one has a snapshot",
            |state| {
                state.write(sql(2000), "virtio");
                snapshot(state, sql(2001));
            },
            |state| state.write(sql(2001), "a guest"),
            None,
        ),
    ]
}

fn calls() -> Vec<Row> {
    let slot = Some(("I13", "the root slot of the OMA"));
    let of_root = Some(("I13", "the root volume"));
    fn with_snapshot(state: &mut State) {
        copy_of_web(state);
        vm_snapshot(state, Content::default());
    }
    vec![
        (
            "a call to attach at a machine with a snapshot",
            with_snapshot,
            |state| state.asked_to_move(Some(sql(2000)), Some(vm_of("one")), Some(1)),
            Some(("I12", "which has a VM snapshot")),
        ),
        (
            "a call to detach from a machine with a snapshot",
            with_snapshot,
            |state| state.asked_to_move(Some(web()), Some(vm_of("one")), None),
            Some(("I12", "which has a VM snapshot")),
        ),
        (
            "a call to detach from a machine whose snapshot is gone",
            |state| {
                with_snapshot(state);
                state.vm_snapshots.values_mut().for_each(|one| one.removed = Some(Utc::now()));
            },
            |state| state.asked_to_move(Some(web()), Some(vm_of("one")), None),
            None,
        ),
        (
            "a call to detach from another machine",
            with_snapshot,
            |state| state.asked_to_move(Some(sql(2000)), Some(state.oma), None),
            None,
        ),
        (
            "a call for the root slot of the appliance",
            as_it_is,
            |state| state.asked_to_move(Some(web()), Some(state.oma), Some(0)),
            slot,
        ),
        (
            "a call for that slot, whatever is in it",
            as_it_is,
            |state| state.asked_to_move(None, Some(state.oma), Some(0)),
            slot,
        ),
        (
            "a call for another slot of the appliance",
            as_it_is,
            |state| state.asked_to_move(Some(web()), Some(state.oma), Some(1)),
            None,
        ),
        (
            "a call for the root slot of another machine",
            |state| _ = copy(state, "one"),
            |state| state.asked_to_move(Some(web()), Some(vm_of("one")), Some(0)),
            None,
        ),
        (
            "a call to detach the disk that the appliance starts from",
            as_it_is,
            |state| state.asked_to_move(Some(root("oma")), Some(state.oma), None),
            of_root,
        ),
        (
            "a call to snapshot or revert it",
            as_it_is,
            |state| state.asked_about_oma_root(root("oma")),
            of_root,
        ),
        ("a call to destroy it", as_it_is, |state| state.asked_to_destroy_volume(root("oma")), of_root),
        (
            "a call about the disk that another machine starts from",
            as_it_is,
            |state| state.asked_about_oma_root(root("jump-host")),
            None,
        ),
        (
            "a call about another disk of the appliance",
            as_it_is,
            |state| state.asked_about_oma_root(web()),
            None,
        ),
        (
            "a call to detach a replica from its machine after the commit",
            |state| {
                copy_of_web(state);
                commit(state);
            },
            |state| state.asked_to_detach(web()),
            Some(("I16", "is committed, and a call detaches")),
        ),
        ("the same before the commit", copy_of_web, |state| state.asked_to_detach(web()), None),
        (
            "the same after the commit of another",
            |state| {
                copy_of_web(state);
                state.committed.insert(estate::source("sql-01"));
            },
            |state| state.asked_to_detach(web()),
            None,
        ),
        ("a call to detach it from the appliance", commit, |state| state.asked_to_detach(web()), None),
        ("a call to detach another disk", commit, |state| state.asked_to_detach(root("jump-host")), None),
    ]
}

fn holds(rows: Vec<Row>) {
    let mut wrong = Vec::new();
    for (what, arrange, then, breaks) in rows {
        let mut state = estate::small();
        state.sources.values_mut().for_each(|source| source.power = Power::Off);
        let world = World::new(state, Faults::new(0), None).unwrap();
        world.change(Cause::new("test", "arrange", ""), arrange);
        let before = world.look(|state| state.violations.clone());
        if !before.is_empty() {
            wrong.push(format!("{what}: what was there before is broken already: {before:#?}"));
            continue;
        }
        world.change(Cause::new("test", "it", what), then);
        // It is recorded once, however often it is looked at while it lasts.
        world.change(Cause::new("test", "nothing", ""), as_it_is);
        let found = world.look(|state| state.violations.clone());
        let as_wanted = match (breaks, &found[..]) {
            (None, []) => true,
            (Some((invariant, words)), [one]) => {
                one.invariant == invariant
                    && one.what.contains(words)
                    && one.cause == Cause::new("test", "it", what)
            }
            _ => false,
        };
        if !as_wanted {
            wrong.push(format!("{what}: wanted {breaks:?}, found {found:#?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn i1_i2_i8_volumes_are_where_they_belong_and_nobody_asks_to_destroy_them() {
    holds(places());
}

#[tokio::test]
async fn i3_i15_what_runs_runs_alone_and_whole() {
    holds(power());
}

#[tokio::test]
async fn i5_i6_replication_writes_to_clean_replicas_at_the_appliance_only() {
    holds(replication());
}

#[tokio::test]
async fn i7_i15_there_is_a_way_back_for_all_disks_as_long_as_it_is_needed() {
    holds(snapshots());
}

#[tokio::test]
async fn i12_i13_i16_some_calls_are_not_to_be_made_at_all() {
    holds(calls());
}
