//! What must be so when a failover is over, however it ended.

use std::collections::BTreeMap;

use backstay_engine::{RunId, Status};
use backstay_simulator::world::State;
use backstay_simulator::world::estate;
use backstay_simulator::world::things::{Content, Power, SnapshotBy, VmState};
use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::stage::Stage;

/// How things were before.
pub struct Before {
    contents: BTreeMap<Uuid, Content>,
    power: Power,
}

impl Before {
    pub fn of(stage: &Stage, name: &str) -> Self {
        stage.centre.world().look(|state| {
            let source = &state.sources[&estate::source(name)];
            let contents = source
                .disks
                .iter()
                .map(|disk| (disk.replica, state.volumes[&disk.replica].content.clone()))
                .collect();
            Self { contents, power: source.power }
        })
    }
}

/// Says all that is wrong: with the world, with the context, with what is on record.
pub async fn judge(
    stage: &Stage,
    name: &str,
    live: bool,
    before: &Before,
    run: RunId,
    status: Status,
) -> anyhow::Result<Vec<String>> {
    let mut wrong = Vec::new();
    for violation in stage.centre.truth().violations() {
        wrong.push(format!("an invariant was broken: {violation:?}"));
    }
    stage.centre.world().look(|state| match status {
        Status::Succeeded => moved(state, name, live, run, &mut wrong),
        Status::Committed => {
            moved(state, name, live, run, &mut wrong);
            no_way_back(state, run, &mut wrong);
        }
        Status::RolledBack => home(state, name, before, run, &mut wrong),
        other => wrong.push(format!("it is {}", other.as_str())),
    });
    context(stage, name, live, run, status, &mut wrong).await?;
    records(stage, run, &mut wrong).await?;
    Ok(wrong)
}

/// The same of a data centre in which nobody has moved anything but these failovers.
pub async fn judge_all(
    stage: &Stage,
    name: &str,
    live: bool,
    before: &Before,
    run: RunId,
    status: Status,
) -> anyhow::Result<Vec<String>> {
    let mut wrong = judge(stage, name, live, before, run, status).await?;
    jobs(stage, &mut wrong).await?;
    Ok(wrong)
}

/// What the context is says the same as how the run ended. That the journals say the same of it is another question, and one
/// about all runs: see `Lab::assert_facts`.
async fn context(
    stage: &Stage,
    name: &str,
    live: bool,
    run: RunId,
    status: Status,
    wrong: &mut Vec<String>,
) -> anyhow::Result<()> {
    let fact = stage.lab.engine.fact(&format!("context/{name}")).await?;
    let is = fact.as_ref().map(|fact| fact.value.as_str());
    let fits = match status {
        Status::Succeeded | Status::Committed if live => is == Some("failed_over_live"),
        Status::Succeeded | Status::Committed => is == Some("failed_over_test"),
        // One that was refused before it claimed its context has said nothing.
        Status::RolledBack => matches!(is, None | Some("ready_for_failover")),
        _ => is != Some("ready_for_failover"),
    };
    if !fits {
        wrong.push(format!("the run {run} is {}, and its context is {fact:?}", status.as_str()));
    }
    Ok(())
}

/// I9: what the run has ever made is on its record, and was before it was made. I10: it made one machine.
async fn records(stage: &Stage, run: RunId, wrong: &mut Vec<String>) -> anyhow::Result<()> {
    let mut recorded = BTreeMap::new();
    for row in stage.lab.engine.journal(run).await?.iter().filter(|row| row.kind == "resource") {
        let body = row.body.as_ref().map(|body| body.value()).unwrap_or_default();
        let text = |key: &str| body[key].as_str().unwrap_or_default().to_owned();
        recorded.entry((text("kind"), text("name"))).or_insert(row.at);
    }
    let made = stage.centre.world().look(|state| made(state, run));
    for (kind, name, at) in &made {
        match recorded.get(&((*kind).to_owned(), name.clone())) {
            Some(since) if since <= at => {}
            Some(since) => {
                wrong.push(format!("the {kind} {name} was made at {at}, and on record at {since}"))
            }
            None => wrong.push(format!("the {kind} {name} was made, and is on no record")),
        }
    }
    let machines = made.iter().filter(|(kind, ..)| *kind == "vm").count();
    if machines > 1 {
        wrong.push(format!("{machines} machines were made"));
    }
    Ok(())
}

/// The jobs of CloudStack's that the runs of this data centre began are all in their checkpoints: whoever comes next can ask for
/// them. The daemon's jobs are its own.
async fn jobs(stage: &Stage, wrong: &mut Vec<String>) -> anyhow::Result<()> {
    let begun = stage.centre.world().look(|state| {
        // Where ids cannot be chosen, nobody knows that of a job whose answer was lost: it is found at what it works on.
        if !state.settings.cloudstack.custom_job_ids {
            return Vec::new();
        }
        let jobs = state.cloudstack.jobs.values();
        let ours = jobs.filter(|job| !job.command.ends_with("achVolume"));
        ours.map(|job| (job.id.to_string(), job.command.clone())).collect::<Vec<_>>()
    });
    let mut database = stage.lab.sql().await?;
    let saved: Vec<String> =
        sqlx::query_scalar("select body::text from events where kind = 'checkpointed' and body is not null")
            .fetch_all(&mut database)
            .await?;
    for (id, command) in begun.iter().filter(|(id, _)| !saved.iter().any(|body| body.contains(id))) {
        wrong.push(format!("the job {id} ({command}) is in no checkpoint"));
    }
    Ok(())
}

/// What a run has made, whether it is there or not: the kind, the name on record, and when.
fn made(state: &State, run: RunId) -> Vec<(&'static str, String, DateTime<Utc>)> {
    let mark = format!("backstay-run-{run}");
    let snapshot_name = snapshot_name(run);
    let mut made = Vec::new();
    for vm in state.vms.values().filter(|vm| vm.group.as_deref() == Some(&mark)) {
        made.push(("vm", vm.name.clone(), vm.created));
    }
    for one in state.snapshots.values().filter(|one| one.name == snapshot_name) {
        let kind = match one.by {
            SnapshotBy::CloudStack => "snapshot",
            SnapshotBy::Linstor => "linstor snapshot",
        };
        made.push((kind, format!("{snapshot_name} of {}", one.volume), one.created));
    }
    for one in state.vm_snapshots.values().filter(|one| one.display_name == snapshot_name) {
        made.push(("machine snapshot", format!("{snapshot_name} of {}", one.vm), one.created));
    }
    made
}

/// What held the way back is gone: nobody would ever look for it again.
fn no_way_back(state: &State, run: RunId, wrong: &mut Vec<String>) {
    let name = snapshot_name(run);
    for one in state.snapshots.values().filter(|one| one.removed.is_none() && one.name == name) {
        wrong.push(format!("the snapshot {name} of {} is left, {}", one.volume, one.state));
    }
    for one in state.vm_snapshots.values().filter(|one| one.removed.is_none() && one.display_name == name) {
        wrong.push(format!("the snapshot {name} of the machine {} is left, {}", one.vm, one.state));
    }
}

fn snapshot_name(run: RunId) -> String {
    format!("backstay-{}", run.to_string().replace('-', ""))
}

fn copies(state: &State, run: RunId) -> Vec<(Uuid, VmState)> {
    let mark = format!("backstay-run-{run}");
    let ours = state.vms.values().filter(|vm| vm.removed.is_none() && vm.group.as_deref() == Some(&mark));
    ours.map(|vm| (vm.id, vm.state)).collect()
}

fn moved(state: &State, name: &str, live: bool, run: RunId, wrong: &mut Vec<String>) {
    let source = &state.sources[&estate::source(name)];
    let copies = copies(state, run);
    let [(copy, _)] = copies.as_slice() else {
        return wrong.push(format!("there are {} machines of this run", copies.len()));
    };
    let firmware = if source.firmware == "efi" { "UEFI" } else { "BIOS" };
    if state.vms[copy].boot_type != firmware {
        wrong.push(format!("its copy starts by {}, and needs {firmware}", state.vms[copy].boot_type));
    }
    if state.vms[copy].power != Power::On {
        wrong.push("its copy does not run".into());
    }
    for (n, disk) in source.disks.iter().enumerate() {
        let volume = &state.volumes[&disk.replica];
        if volume.plugged.iter().collect::<Vec<_>>() != [copy] {
            wrong.push(format!("disk {n} is at {:?}", volume.plugged));
        }
        if volume.attached.is_none_or(|at| (at.device == 0) != (n == 0)) {
            wrong.push(format!("disk {n} is at the wrong slot: {:?}", volume.attached));
        }
        if live && volume.content.replicated != disk.version {
            let has = volume.content.replicated;
            wrong.push(format!("disk {n}: a write was lost; it has {has} of {}", disk.version));
        }
        if volume.content.mixed || volume.content.half_converted {
            wrong.push(format!("disk {n} is spoiled: {:?}", volume.content));
        }
        let conversions = volume.content.foreign.iter().filter(|write| write.starts_with("virtio")).count();
        if n == 0 && conversions != usize::from(source.windows) {
            wrong.push(format!("disk {n} was converted {conversions} times"));
        }
    }
    if live != (source.power == Power::Off) {
        wrong.push(format!("the source is {:?}", source.power));
    }
}

fn home(state: &State, name: &str, before: &Before, run: RunId, wrong: &mut Vec<String>) {
    let source = &state.sources[&estate::source(name)];
    for (n, disk) in source.disks.iter().enumerate() {
        let volume = &state.volumes[&disk.replica];
        if volume.plugged.iter().collect::<Vec<_>>() != [&state.oma] {
            wrong.push(format!("disk {n} is at {:?}", volume.plugged));
        }
        if volume.attached.is_none_or(|at| at.vm != state.oma) {
            wrong.push(format!("CloudStack has disk {n} at {:?}", volume.attached));
        }
        let was = &before.contents[&disk.replica];
        let is = &volume.content;
        // The last changes may have come meanwhile; nothing else may.
        if !is.foreign.is_empty() || is.mixed || is.half_converted || is.replicated < was.replicated {
            wrong.push(format!("disk {n} is not as it was: {is:?}, and was {was:?}"));
        }
        if !state.daemon.exports.iter().any(|export| export.volume_id == disk.replica.to_string()) {
            wrong.push(format!("disk {n} has no export: nothing can be replicated to it"));
        }
    }
    for (copy, vm) in copies(state, run) {
        wrong.push(format!("the machine {copy} is left, {vm:?}"));
    }
    let of_run = |tags: &BTreeMap<String, String>| tags.get("backstay-run") == Some(&run.to_string());
    for snapshot in state.snapshots.values().filter(|one| one.removed.is_none()) {
        let ours = match snapshot.by {
            SnapshotBy::CloudStack => of_run(&snapshot.tags),
            SnapshotBy::Linstor => before.contents.contains_key(&snapshot.volume),
        };
        if ours && snapshot.state != "Destroyed" {
            wrong.push(format!("the snapshot {} is left, {}", snapshot.name, snapshot.state));
        }
    }
    for volume in state.volumes.values().filter(|one| one.removed.is_none() && one.replica_of.is_none()) {
        if volume.root && volume.attached.is_none() {
            wrong.push(format!("the blank disk {} is left", volume.name));
        }
    }
    if source.power != before.power {
        wrong.push(format!("the source is {:?}, and was {:?}", source.power, before.power));
    }
}
