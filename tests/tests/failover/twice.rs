//! Every activity is run twice, one after the other and at once: in a failover for real, and on the way back. What comes of
//! it, effect by effect, is what comes of one that nobody repeats.

use std::collections::{BTreeMap, BTreeSet};

use backstay_activities::site::{Adds, Plainly};
use backstay_engine::{RunId, Status};

use crate::again::{Again, All};
use crate::judge::{Before, judge};
use crate::stage::Stage;
use crate::sweep::{Scene, Then};

/// What the pretend systems call the effects that a failover and its way back are made of. If one of them is never seen in a
/// calm one, it has another name by now, and nothing is counted.
const SEEN: [&str; 20] = [
    "attachVolume",
    "convert",
    "createSnapshot",
    "createVMSnapshot",
    "delete snapshot",
    "deleteVolume",
    "deployVirtualMachine",
    "destroyVirtualMachine",
    "detachVolume",
    "plug",
    "power off",
    "power on",
    "replicate",
    "revert",
    "snapshot",
    "source off",
    "source on",
    "startVirtualMachine",
    "stopVirtualMachine",
    "unplug",
];

/// What two at the same moment may do once more, and why that is no harm. One behind the other does nothing twice.
const AGAIN: [(&str, &str); 7] = [
    ("power-off call", "a guest that was asked to shut down is asked again"),
    ("replication job", "the VMA takes the id of a job twice"),
    ("replicate", "the source is off, so both copies are the same"),
    (
        "createSnapshot",
        "the name of a snapshot is free however often it is there; the way back removes all of that name",
    ),
    ("snapshot", "as above"),
    ("deleteSnapshot", "as above"),
    ("delete snapshot", "as above"),
];

/// With one, two and three disks, and with all who take snapshots; the one with two runs Windows.
fn scenes() -> Vec<Scene> {
    vec![
        Scene::of("web-01", true, Then::Back, "cloudstack"),
        Scene::of("sql-01", false, Then::Back, "cloudstack"),
        Scene::of("db-01", true, Then::Back, "cloudstack"),
        Scene::of("sql-01", true, Then::Back, "linstor"),
        Scene::of("db-01", false, Then::Back, "linstor"),
        Scene::of("db-01", true, Then::Back, "machine"),
        Scene::of("db-01", true, Then::Back, "cloudstack").ordinary(),
    ]
}

/// How often each effect came to its targets. Their ids differ from play to play, so only the numbers are kept, in order.
type Effects = BTreeMap<String, Vec<u64>>;

fn effects(stage: &Stage) -> Effects {
    let of_all = |targets: BTreeMap<String, u64>| {
        let mut times: Vec<_> = targets.into_values().collect();
        times.sort_unstable();
        times
    };
    stage.centre.truth().effects().into_iter().map(|(name, targets)| (name, of_all(targets))).collect()
}

/// What came of it once it had succeeded, and once it was rolled back.
async fn there_and_back(scene: Scene, how: &impl Adds) -> anyhow::Result<(Effects, Effects)> {
    let stage = scene.stage().await?;
    let before = Before::of(&stage, scene.name);
    let (engine, _node) = stage.node_of(Stage::config("a"), how).await?;
    let run = stage.submit(&engine, &scene.input(&stage)).await?;
    let is_well = async |wanted: Status, run: RunId| {
        let status = stage.settled(&engine, run).await?;
        let wrong = judge(&stage, scene.name, scene.live, &before, run, status).await?;
        let story = stage.lab.story(run).await?;
        anyhow::ensure!(wrong.is_empty() && status == wanted, "{scene:?}: {status:?}, {wrong:#?}\n{story}");
        anyhow::Ok(effects(&stage))
    };
    let there = is_well(Status::Succeeded, run).await?;
    stage.roll_back(&engine, run).await?;
    stage.moves_on(&engine, run, Status::Succeeded).await?;
    let back = is_well(Status::RolledBack, run).await?;
    stage.lab.assert_facts().await?;
    Ok((there, back))
}

/// All that came of the one and not of the other.
fn differences(how: Again, calm: &Effects, doubled: &Effects) -> Vec<String> {
    let names: BTreeSet<_> = calm.keys().chain(doubled.keys()).collect();
    let of = |all: &Effects, name: &str| all.get(name).cloned().unwrap_or_default();
    let sum = |all: &Effects, name: &str| of(all, name).into_iter().sum::<u64>();
    let is_known = |name: &str| {
        let (once, times) = (sum(calm, name), sum(doubled, name));
        let may_come_twice = how == Again::AtOnce && AGAIN.iter().any(|(known, _)| *known == name);
        may_come_twice && (once..=2 * once).contains(&times)
    };
    let differs = |name: &&String| of(calm, name) != of(doubled, name) && !is_known(name);
    let said =
        |name: &String| format!("{name}: {:?} times, calm {:?} times", of(doubled, name), of(calm, name));
    names.into_iter().filter(differs).map(said).collect()
}

async fn doubled(how: Again) -> anyhow::Result<()> {
    let (mut seen, mut wrong) = (BTreeSet::new(), Vec::new());
    for scene in scenes() {
        let calm = there_and_back(scene, &Plainly).await?;
        let doubled = there_and_back(scene, &All(how)).await?;
        seen.extend(calm.1.keys().cloned());
        for (way, calm, doubled) in [("there", calm.0, doubled.0), ("back", calm.1, doubled.1)] {
            let found = differences(how, &calm, &doubled);
            wrong.extend(found.into_iter().map(|what| format!("{scene:?} {how:?}, {way}: {what}")));
        }
    }
    anyhow::ensure!(wrong.is_empty(), "{wrong:#?}");
    let named = SEEN.into_iter().chain(AGAIN.map(|(name, _)| name));
    let unseen: Vec<_> = named.filter(|name| !seen.contains(*name)).collect();
    anyhow::ensure!(unseen.is_empty(), "{unseen:?} came of no calm failover; there are {seen:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn each_activity_may_run_twice() -> anyhow::Result<()> {
    doubled(Again::Behind).await
}

#[tokio::test(flavor = "multi_thread")]
async fn each_activity_may_run_twice_at_once() -> anyhow::Result<()> {
    doubled(Again::AtOnce).await
}
