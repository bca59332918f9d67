//! The way back: what is gone back to, when a disk counts as put back, and what becomes of one that is not.

use std::collections::BTreeSet;
use std::time::Duration;

use backstay_engine::{Engine, RunId, Status};
use backstay_simulator::conversion::{self, Misfortune, Order};
use backstay_simulator::devices;
use backstay_simulator::faults::{Fault, Rule};
use backstay_simulator::world::things::SnapshotBy;
use backstay_simulator::world::{Cause, State, estate};
use chrono::{DateTime, Utc};
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::json;
use uuid::Uuid;

use crate::judge::{Before, judge};
use crate::stage::Stage;

const PROVIDERS: [&str; 3] = ["cloudstack", "linstor", "machine"];

fn by_people() -> Cause {
    Cause::new("people", "by hand", "")
}

/// The snapshots that there are, of volumes and of machines: whatever they are called.
fn snapshots(stage: &Stage) -> BTreeSet<Uuid> {
    stage.centre.world().look(|state| {
        let of_volumes = state.snapshots.values().filter(|one| one.removed.is_none()).map(|one| one.id);
        of_volumes.chain(state.vm_snapshots.keys().copied()).collect()
    })
}

/// Says of each of them whether it is gone.
fn show_snapshots(stage: &Stage, which: &BTreeSet<Uuid>, removed: Option<DateTime<Utc>>) {
    stage.centre.world().change(by_people(), |state: &mut State| {
        for one in state.snapshots.values_mut().filter(|one| which.contains(&one.id)) {
            one.removed = removed;
            one.state = if removed.is_some() { "Destroyed".into() } else { "BackedUp".into() };
        }
        for one in state.vm_snapshots.values_mut().filter(|one| which.contains(&one.id)) {
            one.state = if removed.is_some() { "Removed".into() } else { "Ready".into() };
        }
    });
}

async fn rehearsed(stage: &Stage, engine: &Engine, name: &str, provider: &str) -> anyhow::Result<RunId> {
    let mut input = stage.input(name, "test");
    input["snapshots"] = json!(provider);
    let run = stage.submit(engine, &input).await?;
    let status = stage.settled(engine, run).await?;
    anyhow::ensure!(status == Status::Succeeded, "{provider}:\n{}", stage.lab.story(run).await?);
    Ok(run)
}

async fn rolled_back(stage: &Stage, engine: &Engine, run: RunId) -> anyhow::Result<Status> {
    stage.roll_back(engine, run).await?;
    stage.moves_on(engine, run, Status::Succeeded).await?;
    stage.settled(engine, run).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_whose_snapshot_does_not_show_is_not_taken_for_put_back() -> anyhow::Result<()> {
    for provider in PROVIDERS {
        let stage = Stage::new().await?;
        let before = Before::of(&stage, "db-01");
        let (engine, _node) = stage.node(Stage::config("a")).await?;
        let run = rehearsed(&stage, &engine, "db-01", provider).await?;
        let taken = snapshots(&stage);
        show_snapshots(&stage, &taken, Some(Utc::now()));
        stage.roll_back(&engine, run).await?;
        let refused = async {
            loop {
                let rows = engine.journal(run).await?;
                let refused = |row: &&backstay_engine::machine::Row| {
                    row.undo && row.kind == "failed" && row.step.as_deref() == Some("snapshot")
                };
                if let Some(row) = rows.iter().find(refused) {
                    return Ok::<_, anyhow::Error>(format!("{:?}", row.body));
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let Ok(why) = tokio::time::timeout(Duration::from_secs(60), refused).await else {
            anyhow::bail!("{provider}: it was not refused:\n{}", stage.lab.story(run).await?);
        };
        assert!(why?.contains("no_snapshot"), "{provider}");
        show_snapshots(&stage, &taken, None);
        let status = stage.settled(&engine, run).await?;
        let wrong = judge(&stage, "db-01", false, &before, run, status).await?;
        anyhow::ensure!(wrong.is_empty(), "{provider}: {wrong:#?}\n{}", stage.lab.story(run).await?);
    }
    Ok(())
}

/// Those of its machine as well: they are one state of it, and of no use without each other.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_cannot_be_put_back_comes_home_marked_and_keeps_its_snapshot() -> anyhow::Result<()> {
    for (name, fails, marked) in [("web-01", [1, 2], 0), ("db-01", [2, 4], 1)] {
        let mut stage = Stage::new().await?;
        stage.reverts = 2;
        let (engine, _node) = stage.node(Stage::config("a")).await?;
        let run = rehearsed(&stage, &engine, name, "cloudstack").await?;
        for n in fails {
            let fails = Rule::nth("cloudstack", "revertSnapshot", n, Fault::JobFails { code: 530 });
            stage.centre.faults().rule(fails);
        }
        let status = rolled_back(&stage, &engine, run).await?;
        assert_eq!(status, Status::Stuck, "{}", stage.lab.story(run).await?);
        stage.is_sound()?;
        stage.centre.world().look(|state| {
            for (n, disk) in state.sources[&estate::source(name)].disks.iter().enumerate() {
                let volume = &state.volumes[&disk.replica];
                assert_eq!(volume.plugged.iter().collect::<Vec<_>>(), [&state.oma], "{name}, {n}");
                let mark = (n == marked).then(|| run.to_string());
                assert_eq!(volume.tags.get("backstay-dirty"), mark.as_ref(), "{name}, {n}");
                let kept = state.snapshots.values().filter(|one| {
                    one.volume == volume.id && one.by == SnapshotBy::CloudStack && one.removed.is_none()
                });
                assert_eq!(kept.filter(|one| one.state == "BackedUp").count(), 1, "{name}, {n}");
            }
        });
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_is_away_or_busy_says_nothing_against_a_snapshot() -> anyhow::Result<()> {
    let mut stage = Stage::new().await?;
    stage.reverts = 1;
    let before = Before::of(&stage, "web-01");
    let (engine, _node) = stage.node(Stage::config("a")).await?;
    let run = rehearsed(&stage, &engine, "web-01", "cloudstack").await?;
    let faults = [Fault::Refused { status: 503 }, Fault::TooMany { ms: 50 }, Fault::Dropped];
    for (n, fault) in (1..).zip(faults) {
        stage.centre.faults().rule(Rule::nth("cloudstack", "revertSnapshot", n, fault).once());
    }
    let status = rolled_back(&stage, &engine, run).await?;
    assert!(stage.centre.faults().fired().iter().all(|rule| rule.times == 1));
    let wrong = judge(&stage, "web-01", false, &before, run, status).await?;
    anyhow::ensure!(wrong.is_empty(), "{wrong:#?}\n{}", stage.lab.story(run).await?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_earlier_run_left_is_never_gone_back_to() -> anyhow::Result<()> {
    for provider in ["cloudstack", "linstor"] {
        let stage = Stage::new().await?;
        let (engine, _node) = stage.node(Stage::config("a")).await?;
        let first = rehearsed(&stage, &engine, "db-01", provider).await?;
        let left = snapshots(&stage);
        assert_eq!(left.len(), 3, "{provider}");
        assert_eq!(rolled_back(&stage, &engine, first).await?, Status::RolledBack);
        // They were never really gone, and replication has gone on since.
        show_snapshots(&stage, &left, None);
        stage.centre.world().change(Cause::new("vma", "replicate", ""), |state| {
            let source = estate::source("db-01");
            let disks = state.sources[&source].disks.clone();
            for disk in state.sources.get_mut(&source).unwrap().disks.iter_mut() {
                disk.version += 1;
            }
            for disk in disks {
                state.volumes.get_mut(&disk.replica).unwrap().content.replicated = disk.version + 1;
            }
        });
        let before = Before::of(&stage, "db-01");
        let second = rehearsed(&stage, &engine, "db-01", provider).await?;
        let status = rolled_back(&stage, &engine, second).await?;
        show_snapshots(&stage, &left, Some(Utc::now()));
        let wrong = judge(&stage, "db-01", false, &before, second, status).await?;
        anyhow::ensure!(wrong.is_empty(), "{provider}: {wrong:#?}\n{}", stage.lab.story(second).await?);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_windows_machine_is_rehearsed_again_and_again() -> anyhow::Result<()> {
    let stage = Stage::new().await?;
    let before = Before::of(&stage, "sql-01");
    let (engine, _node) = stage.node(Stage::config("a")).await?;
    let notes = |stage: &Stage| {
        stage.centre.world().look(|state| {
            let first = &state.sources[&estate::source("sql-01")].disks[0];
            state.volumes[&first.replica].tags.get("backstay-virtio").cloned()
        })
    };
    for _ in 0..2 {
        let run = rehearsed(&stage, &engine, "sql-01", "cloudstack").await?;
        assert_eq!(notes(&stage), Some(format!("{run}:done")));
        let status = rolled_back(&stage, &engine, run).await?;
        let wrong = judge(&stage, "sql-01", false, &before, run, status).await?;
        anyhow::ensure!(wrong.is_empty(), "{wrong:#?}\n{}", stage.lab.story(run).await?);
        assert_eq!(notes(&stage), None);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conversion_that_is_cut_off_on_its_way_back_to_the_snapshots_is_taken_up() -> anyhow::Result<()> {
    let stage = Stage::new().await?;
    let before = Before::of(&stage, "sql-01");
    stage.centre.world().change(by_people(), |state| {
        state.conversion.orders.push(Order { volume: None, misfortune: Misfortune::HangsAfter, times: 1 });
    });
    let (engine, node) = stage.node(Stage::config("a")).await?;
    let run = stage.submit(&engine, &stage.input("sql-01", "test")).await?;
    until(|| {
        stage.centre.world().look(|state| state.conversion.runs.iter().any(|run| run.stage == "writing"))
    })
    .await?;
    node.kill().await;

    stage.centre.faults().rule(Rule::nth("cloudstack", "revertSnapshot", 1, Fault::DoneThenSilent).once());
    let (_, node) = stage.node(Stage::config("a")).await?;
    until(|| stage.centre.faults().fired().iter().any(|rule| rule.times > 0)).await?;
    node.kill().await;

    let (engine, _node) = stage.node(Stage::config("a")).await?;
    let status = stage.settled(&engine, run).await?;
    assert_eq!(status, Status::Succeeded, "{}", stage.lab.story(run).await?);
    let wrong = judge(&stage, "sql-01", false, &before, run, status).await?;
    anyhow::ensure!(wrong.is_empty(), "{wrong:#?}\n{}", stage.lab.story(run).await?);
    Ok(())
}

/// A process that is killed at once leaves its program running, with the lock of the disks. If nobody begins another conversion,
/// since people want to go back, nobody would look for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_conversion_that_outlived_its_process_ends_before_its_disks_are_taken_away() -> anyhow::Result<()> {
    let stage = Stage::new().await?;
    let before = Before::of(&stage, "sql-01");
    conversion::befall(stage.centre.world(), None, Misfortune::HangsAfter, 1);
    let (engine, node) = stage.node(Stage::config("a")).await?;
    let run = stage.submit(&engine, &stage.input("sql-01", "test")).await?;
    let stages = |of: fn(&conversion::Run) -> bool| {
        stage.centre.world().look(|state| state.conversion.runs.iter().any(of))
    };
    until(|| stages(|run| run.stage == "writing")).await?;
    node.kill().await;
    until(|| !stages(conversion::Run::at_work)).await?;
    let left = Leftover::on(&stage, "sql-01")?;
    until(|| left.lives()).await?;

    let beside = stage.beside().await?;
    let asked = async {
        stage.roll_back(&beside, run).await?;
        stage.settled(&beside, run).await
    };
    let goes_on = async {
        // It is said before there is anybody to go on with the conversion.
        let mut database = stage.lab.sql().await?;
        while sqlx::query("select 1 from inbox").fetch_optional(&mut database).await?.is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        stage.node(Stage::config("a")).await
    };
    let (status, _node) = tokio::join!(asked, goes_on);
    let wrong = judge(&stage, "sql-01", false, &before, run, status?).await?;
    anyhow::ensure!(wrong.is_empty(), "{wrong:#?}\n{}", stage.lab.story(run).await?);
    assert!(!left.lives(), "it is at work still:\n{}", stage.lab.story(run).await?);
    Ok(())
}

/// A program that holds the lock of a machine's first disk, and is no child of this process.
struct Leftover(std::path::PathBuf);

impl Leftover {
    fn on(stage: &Stage, name: &str) -> anyhow::Result<Self> {
        let device = stage
            .centre
            .world()
            .look(|state| devices::path(state, state.sources[&estate::source(name)].disks[0].replica));
        let device = std::fs::canonicalize(device)?;
        let lock = Uuid::new_v5(&Uuid::NAMESPACE_URL, device.as_os_str().as_encoded_bytes()).to_string();
        let (lock, number) = (stage.dir.path().join("v2v/locks").join(lock), stage.dir.path().join("left"));
        let (lock, noted) = (lock.display(), number.display());
        let script = format!("exec 9>{lock}; flock 9; echo $$ > {lock}; echo $$ > {noted}; exec sleep 100");
        let command = format!("setsid sh -c '{script}' >/dev/null 2>&1 &");
        anyhow::ensure!(std::process::Command::new("sh").args(["-c", &command]).status()?.success());
        Ok(Self(number))
    }

    fn number(&self) -> Option<Pid> {
        std::fs::read_to_string(&self.0).ok()?.trim().parse().ok().and_then(Pid::from_raw)
    }

    fn lives(&self) -> bool {
        // One that is dead and not yet buried has no command line any more.
        let line = |pid: Pid| std::fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero()));
        self.number().is_some_and(|pid| line(pid).is_ok_and(|line| !line.is_empty()))
    }
}

impl Drop for Leftover {
    fn drop(&mut self) {
        if let Some(group) = self.number() {
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

async fn until(what: impl Fn() -> bool) -> anyhow::Result<()> {
    let waiting = async {
        while !what() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), waiting)
        .await
        .map_err(|_| anyhow::anyhow!("it does not happen"))
}
