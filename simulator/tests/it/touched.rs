//! What is judged after a change is only what the change can have moved. It finds what a look at everything finds: the same
//! violations, in the same order, by the same calls; whatever is done to the world, through its moves or behind their back.

use std::collections::{BTreeMap, BTreeSet};

use backstay_simulator::faults::Faults;
use backstay_simulator::world::things::{DiskRef, Power};
use backstay_simulator::world::{Cause, State, World, estate};
use chrono::Utc;
use uuid::Uuid;

/// The conditions among the invariants, looked for in every row there is: what the simulator did before it had an index.
fn broken(state: &State) -> BTreeMap<String, &'static str> {
    let mut found = BTreeMap::new();
    let mut find =
        |invariant: &'static str, what: String| found.insert(format!("{invariant} {what}"), invariant);
    let mut destinations: BTreeMap<&str, BTreeSet<Uuid>> = BTreeMap::new();
    for volume in state.volumes.values() {
        let Some(disk) = &volume.replica_of else { continue };
        let at = volume.plugged.len();
        if at > 1 {
            find("I1", format!("the protected volume {} hangs at {at} VMs at once", volume.id));
        }
        let away = volume.plugged.iter().filter(|vm| **vm != state.oma);
        destinations.entry(&disk.source).or_default().extend(away);
    }
    for (source, holders) in destinations {
        if holders.len() > 1 {
            find("I8", format!("the disks of {source} hang at {} destinations at once", holders.len()));
        }
        let is_on = state.sources.get(source).is_some_and(|source| source.power == Power::On);
        for vm in holders.iter().filter_map(|id| state.vms.get(id)) {
            let mut networks = vm.nics.iter().filter_map(|nic| state.networks.get(&nic.network));
            if is_on && vm.power == Power::On && networks.any(|network| network.production) {
                let so =
                    format!("{source} and {} are both on, and {} is in a production network", vm.id, vm.name);
                find("I3", so);
            }
        }
    }
    found
}

/// Every row, by what it is tied to, looked for one after the other.
fn by_looking(state: &State, vm: Uuid, source: &str) -> [Vec<Uuid>; 3] {
    let volumes = |is: &dyn Fn(&backstay_simulator::world::things::Volume) -> bool| {
        state.volumes.values().filter(|volume| is(volume)).map(|volume| volume.id).collect()
    };
    [
        volumes(&|volume| volume.plugged.contains(&vm)),
        volumes(&|volume| volume.removed.is_none() && volume.attached.is_some_and(|at| at.vm == vm)),
        volumes(&|volume| volume.replica_of.as_ref().is_some_and(|disk| disk.source == source)),
    ]
}

/// A die that falls the same for a seed (splitmix64).
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((mixed ^ (mixed >> 31)) % u64::try_from(end.max(1)).unwrap()).unwrap()
    }

    fn one<T: Clone>(&mut self, of: impl IntoIterator<Item = T>) -> T {
        let all: Vec<T> = of.into_iter().collect();
        all[self.below(all.len())].clone()
    }

    fn power(&mut self) -> Power {
        self.one([Power::On, Power::On, Power::Off])
    }
}

/// Something happens, to few rows or to all of them. Most of it no system would do: the index must not depend on who is polite.
fn something(state: &mut State, dice: &mut Dice, before: &State) -> &'static str {
    if state.volumes.len() < 4 {
        state.volumes = estate::small().volumes;
    }
    let (vm, volume) = (dice.one(state.vms.keys().copied()), dice.one(state.volumes.keys().copied()));
    let (source, network) =
        (dice.one(state.sources.keys().cloned()), dice.one(state.networks.keys().copied()));
    match dice.below(26) {
        0..4 => {
            let _ = state.plug(volume, vm);
            "plug"
        }
        4..7 => {
            let plugged = state.volumes[&volume].plugged.clone();
            plugged.into_iter().for_each(|vm| state.unplug(volume, vm));
            "unplug everywhere"
        }
        7 => {
            let _ = state.attach_row(volume, vm, u32::try_from(dice.below(3)).unwrap());
            "attach its row"
        }
        8 => {
            let _ = state.detach_row(volume);
            "detach its row"
        }
        9 => {
            let _ = state.power_on(vm);
            "power on"
        }
        10 => {
            state.power_off(vm);
            "power off"
        }
        11..13 => {
            state.vms.get_mut(&vm).unwrap().power = dice.power();
            "a VM's power, behind the back of the moves"
        }
        13..15 => {
            state.sources.get_mut(&source).unwrap().power = dice.power();
            "a source's power"
        }
        15..17 => {
            state.vms.get_mut(&vm).unwrap().nics[0].network = network;
            "another network"
        }
        17 => {
            let network = state.networks.get_mut(&network).unwrap();
            network.production = !network.production;
            "a network is seen, or not any more"
        }
        18 => {
            state.oma = vm;
            "another OMA"
        }
        19 => {
            let disk = DiskRef { source, key: 2000 };
            state.volumes.get_mut(&volume).unwrap().replica_of = dice.one([None, Some(disk)]);
            "a disk of another source"
        }
        20 => {
            state.volumes.remove(&volume);
            "a volume that never was"
        }
        21 => {
            let row = before.volumes.get(&volume).or_else(|| before.volumes.values().next()).unwrap().clone();
            state.volumes.insert(row.id, row);
            "a volume as it was"
        }
        22 => {
            state.vms.insert(vm, before.vms[&vm].clone());
            "a VM as it was"
        }
        23 => {
            let all = dice.power();
            state.sources.values_mut().for_each(|source| source.power = all);
            "all sources at once"
        }
        24 => {
            state.volumes = before.volumes.clone();
            "all volumes as they were"
        }
        _ => {
            state.volumes.retain(|id, _| *id != volume);
            "a volume less"
        }
    }
}

#[test]
fn what_was_touched_breaks_what_a_look_at_everything_finds_broken() {
    let mut recorded = BTreeMap::<String, usize>::new();
    for seed in 0..150 {
        let mut dice = Dice(seed);
        let mut first = estate::small();
        first.sources.values_mut().for_each(|source| source.power = Power::On);
        let world = World::new(first, Faults::default(), None).unwrap();
        let mut known = world.look(broken);
        assert_eq!(known, BTreeMap::new());
        for step in 0..60 {
            let cause = Cause::new("test", format!("step {step}"), "");
            let (before, told) = world.look(|state| (state.clone(), state.violations.len()));
            let did = world.change(cause.clone(), |state| {
                let did: Vec<_> = (0..=dice.below(3)).map(|_| something(state, &mut dice, &before)).collect();
                // In the middle of a change, too, a row is found by what it is tied to by now.
                let (vm, source) =
                    (dice.one(state.vms.keys().copied()), dice.one(state.sources.keys().cloned()));
                let found = [state.plugged_in(vm), state.attached_to(vm), state.replicas_of(&source)];
                assert_eq!(found, by_looking(state, vm, &source), "seed {seed}, step {step}: {did:?}");
                did
            });
            world.look(|state| {
                let now = broken(state);
                // The moves record what they see themselves; these are conditions.
                let conditions = state.violations[told..]
                    .iter()
                    .filter(|one| one.what.contains(" at once") || one.invariant == "I3");
                let new: Vec<_> = conditions
                    .map(|one| (one.invariant.clone() + " " + &one.what, one.cause.clone()))
                    .collect();
                let expected: Vec<_> = now
                    .keys()
                    .filter(|key| !known.contains_key(*key))
                    .map(|key| (key.clone(), cause.clone()))
                    .collect();
                assert_eq!(new, expected, "seed {seed}, step {step}: {did:?}");
                assert!(
                    state.is_settled(),
                    "seed {seed}, step {step}: an index is not what its rows say: {did:?}"
                );
                for invariant in
                    now.iter().filter(|(key, _)| !known.contains_key(*key)).map(|(_, invariant)| *invariant)
                {
                    *recorded.entry(invariant.to_owned()).or_default() += 1;
                }
                known = now;
            });
        }
    }
    for invariant in ["I1", "I3", "I8"] {
        assert!(recorded.get(invariant).is_some_and(|times| *times > 100), "{recorded:?}");
    }
}

#[test]
fn what_hangs_nowhere_is_counted_up_to_the_last_change_and_not_only_when_it_is_touched() {
    let volume = estate::replica("web-01", 2000);
    let world = World::new(estate::small(), Faults::default(), None).unwrap();
    let change = |what: fn(&mut State, Uuid)| world.change(Cause::default(), |state| what(state, volume));
    let longest = || world.look(State::longest_adrift).get(&volume).copied();
    assert_eq!(longest(), None);
    change(|state, volume| state.unplug(volume, state.oma));
    let since = world.look(|state| state.volumes[&volume].adrift_since).unwrap();
    while Utc::now() < since + chrono::TimeDelta::milliseconds(5) {}
    assert_eq!(longest(), Some(0));
    change(|state, _| state.applied("something else", ""));
    let meanwhile = longest().unwrap();
    assert!(meanwhile >= 5, "{meanwhile}");
    change(|state, volume| state.plug(volume, state.oma).unwrap());
    assert!(longest().unwrap() >= meanwhile);
    assert_eq!(world.look(|state| state.volumes[&volume].adrift_since), None);
}
