//! Replication: a copy of a source's disks into the exports that it is told of.
//!
//! What is copied is what the disks held when the copy took its snapshot; it is on the replica when the disk is through. Nothing
//! checks that an export is the right one: a disk that is copied into another's volume destroys it, and that is recorded.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{Credentials, Refused, inventory, wrong};
use crate::answer::Answer;
use crate::daemon;
use crate::faults::Fault;
use crate::rest::Call;
use crate::world::things::{Content, DiskRef, Source};
use crate::world::{Cause, State, World};

/// A copy. It is in memory only.
#[derive(Clone, Debug)]
pub struct Job {
    id: String,
    /// The source, when it was not made up by an update.
    source: String,
    name: String,
    disks: Vec<Disk>,
    status: Status,
    stage: &'static str,
    incremental: bool,
    finally: bool,
    started: DateTime<Utc>,
    updated: DateTime<Utc>,
    error: Option<String>,
    /// Which of several copies of one name this is, and in which life of the appliance it was begun.
    copy: Uuid,
    life: u64,
}

/// Whether a copy is at work on a volume.
pub fn writes_to(state: &State, volume: Uuid) -> bool {
    let is_it = |disk: &Disk| {
        let of = daemon::volume_of(state, &disk.export).and_then(|volume| Uuid::parse_str(volume).ok());
        of == Some(volume)
    };
    let at_work = state.vma.jobs.values().filter(|job| job.status == Status::Under("Streaming"));
    at_work.flat_map(|job| &job.disks).any(is_it)
}

/// How far a copy is.
#[derive(Clone, Debug, PartialEq)]
enum Status {
    Under(&'static str),
    Succeeded,
    Failed,
    /// As the copy process pushed it.
    Pushed(String),
}

#[derive(Clone, Debug)]
struct Disk {
    key: u32,
    label: String,
    export: String,
    /// The disk when the copy took its snapshot.
    version: u64,
    size: u64,
    total: u64,
    done: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Request {
    #[serde(flatten)]
    credentials: Credentials,
    job_id: String,
    vm_paths: Vec<String>,
    nbd_targets: Vec<Target>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Target {
    device_path: String,
    vmware_disk_key: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Final {
    job_id: String,
    vm_id: String,
}

pub fn start(world: &World, call: &Call, fault: Option<Fault>) -> Answer {
    let Ok(request) = call.json::<Request>() else { return wrong(400, "Invalid JSON") };
    if request.job_id.is_empty() || request.vm_paths.is_empty() {
        return wrong(400, "job_id and vm_paths are required");
    }
    let planned = world.look(|state| -> Result<Job, Refused> {
        request.credentials.check(state)?;
        let path = request.vm_paths.first().map_or("", String::as_str);
        let source = inventory::by_path(state, path).ok_or_else(|| (500, format!("VM not found: {path}")))?;
        let disks = source.disks.iter().filter_map(|disk| {
            let target =
                request.nbd_targets.iter().find(|target| target.vmware_disk_key == disk.key.to_string())?;
            let export = target.device_path.rsplit_once('/').map_or("", |(_, export)| export);
            Some((disk.key, export.to_owned()))
        });
        // There is no word for it in the request: that a sync is the last one shows in its name only.
        let finally = request.job_id.contains("final");
        Ok(plan(state, &request.job_id, source, disks.collect(), finally))
    });
    let job = match planned {
        Ok(job) => job,
        Err((400, text)) => return wrong(400, &text),
        Err((_, text)) => return wrong(500, &format!("Replication failed: {text}")),
    };
    let body = json!({"job_id": job.id, "status": "started", "vm_count": request.vm_paths.len(), "started_at": job.started});
    begin(world, job, fault);
    Answer::json(200, &body)
}

/// What the real one was to have, and has not: the last sync, which says that it is.
pub fn start_final(world: &World, call: &Call, fault: Option<Fault>) -> Answer {
    let Ok(request) = call.json::<Final>() else { return wrong(400, "Invalid JSON") };
    let planned = world.look(|state| -> Result<Job, Refused> {
        let source = super::find(state, &request.vm_id)?;
        let disks =
            source.disks.iter().map(|disk| (disk.key, format!("migration-vol-{}", disk.replica))).collect();
        Ok(plan(state, &request.job_id, source, disks, true))
    });
    match planned {
        Err((status, text)) => wrong(status, &text),
        Ok(job) => {
            let body = json!({"job_id": job.id, "status": "started", "estimate_seconds": 60});
            begin(world, job, fault);
            Answer::json(200, &body)
        }
    }
}

fn plan(state: &State, id: &str, source: &Source, targets: Vec<(u32, String)>, finally: bool) -> Job {
    let mut incremental = true;
    let disks = targets.into_iter().filter_map(|(key, export)| {
        let disk = source.disks.iter().find(|disk| disk.key == key)?;
        if state.settings.vma.leaves_out.contains(&key) {
            return None;
        }
        let had = state.volumes.get(&disk.replica).map_or(0, |volume| volume.content.replicated);
        incremental &= had > 0;
        let changed = disk.version.saturating_sub(had) * (64 << 20);
        let total = if had > 0 { changed.min(disk.size) } else { disk.size };
        let label = disk.label.clone();
        Some(Disk { key, label, export, version: disk.version, size: disk.size, total, done: 0 })
    });
    let disks = disks.collect();
    let now = Utc::now();
    Job {
        id: id.to_owned(),
        source: source.id.clone(),
        name: source.name.clone(),
        disks,
        status: Status::Under("Queued"),
        stage: "Discover",
        incremental,
        finally,
        started: now,
        updated: now,
        error: None,
        copy: Uuid::new_v4(),
        life: state.vma.life,
    }
}

/// A second job of one name takes the row of the first; both copy.
fn begin(world: &World, job: Job, fault: Option<Fault>) {
    let copy =
        Copying { world: world.clone(), job: job.clone(), cause: Cause::new("vma", "replication", &job.id) };
    world.change(Cause::new("vma", "POST /replicate", &job.id), |state| {
        state.applied("replication job", &job.id);
        state.vma.jobs.insert(job.id.clone(), job);
    });
    world.spawn(async move {
        let ended = copy.run(fault).await;
        copy.ends(ended);
    });
}

struct Copying {
    world: World,
    job: Job,
    cause: Cause,
}

impl Copying {
    async fn run(&self, fault: Option<Fault>) -> Result<(), String> {
        self.is_at("Preparing", "EnableCBT");
        self.is_at("Snapshotting", "Snapshot");
        // One name for all of them: two copies of one source delete each other's.
        self.change(|state| {
            if let Some(source) = state.sources.get_mut(&self.job.source) {
                source.snapshots.push("migratekit".to_owned());
            }
        });
        let (disk_by_disk, ms) =
            self.world.look(|state| (state.settings.vma.disk_by_disk, state.settings.vma.disk_ms));
        for disk in &self.job.disks {
            self.is_at(if disk_by_disk { "in_progress" } else { "Streaming" }, "Transfer");
            let volume = self.opens(disk)?;
            self.change(|state| {
                // What it has already it can be told again.
                if let Some(row) = state.volumes.get_mut(&volume)
                    && row.content.replicated != disk.version
                {
                    row.content.torn = true;
                }
            });
            for step in 1..=10_u64 {
                self.world.pause(Duration::from_millis(ms / 10)).await;
                if fault == Some(Fault::Stuck) && step == 5 {
                    return std::future::pending().await;
                }
                if matches!(fault, Some(Fault::JobFails { .. })) && step == 5 {
                    return Err("nbdcopy: write failed: connection reset by peer".to_owned());
                }
                if fault == Some(Fault::JobLost) && step == 5 {
                    super::restart(&self.world);
                    return Ok(());
                }
                self.moves(disk.key, disk.total * step / 10);
            }
            self.writes(disk, volume)?;
            if disk_by_disk {
                self.touch(|job| job.status = Status::Succeeded);
                self.world.pause(Duration::from_millis(ms / 2)).await;
            }
        }
        self.is_at("Finalizing", "Finalize");
        self.change(|state| {
            if let Some(source) = state.sources.get_mut(&self.job.source) {
                source.snapshots.retain(|name| name != "migratekit");
            }
        });
        Ok(())
    }

    fn opens(&self, disk: &Disk) -> Result<Uuid, String> {
        let volume = self.world.look(|state| {
            let volume =
                daemon::volume_of(state, &disk.export).and_then(|volume| Uuid::parse_str(volume).ok());
            volume.filter(|volume| {
                state.volumes.get(volume).is_some_and(|row| row.plugged.contains(&state.oma))
            })
        });
        volume.ok_or_else(|| format!("nbd: the server has no export named '{}'", disk.export))
    }

    /// The disk is through: what it held at the snapshot is on the volume now.
    fn writes(&self, disk: &Disk, volume: Uuid) -> Result<(), String> {
        self.opens(disk)?;
        self.change(|state| {
            let of = DiskRef { source: self.job.source.clone(), key: disk.key };
            let right = state.volumes.get(&volume).is_some_and(|row| row.replica_of.as_ref() == Some(&of));
            if !right {
                state.broke(
                    "wrong disk",
                    format!("disk {} of {} is written into the volume {volume}", disk.key, self.job.name),
                );
                if let Some(row) = state.volumes.get_mut(&volume) {
                    row.content = Content { mixed: true, ..row.content.clone() };
                }
                return;
            }
            let _ = state.replicate(&of, self.job.finally);
            if let Some(row) = state.volumes.get_mut(&volume) {
                (row.content.replicated, row.content.torn) = (disk.version, false);
            }
        });
        Ok(())
    }

    fn is_at(&self, status: &'static str, stage: &'static str) {
        self.touch(|job| (job.status, job.stage) = (Status::Under(status), stage));
    }

    fn moves(&self, key: u32, done: u64) {
        self.touch(|job| {
            if let Some(disk) = job.disks.iter_mut().find(|disk| disk.key == key) {
                disk.done = done;
            }
        });
    }

    fn ends(&self, ended: Result<(), String>) {
        self.touch(|job| match ended {
            Ok(()) => (job.status, job.stage) = (Status::Succeeded, "PersistChangeIDs"),
            Err(why) => (job.status, job.error) = (Status::Failed, Some(why)),
        });
    }

    /// Its row, as long as it is its own.
    fn touch(&self, change: impl FnOnce(&mut Job)) {
        self.change(|state| {
            if let Some(job) = state.vma.jobs.get_mut(&self.job.id).filter(|job| job.copy == self.job.copy) {
                job.updated = Utc::now();
                change(job);
            }
        });
    }

    /// A copy of an earlier life does nothing any more.
    fn change(&self, change: impl FnOnce(&mut State)) {
        self.world.change(self.cause.clone(), |state| {
            if state.vma.life == self.job.life {
                change(state);
            }
        });
    }
}

impl Job {
    fn word(&self, state: &State) -> String {
        let lower = state.settings.vma.lower_case_words;
        match &self.status {
            Status::Under(word) => (*word).to_owned(),
            Status::Succeeded if lower => "completed".to_owned(),
            Status::Succeeded => "Succeeded".to_owned(),
            Status::Failed if lower => "failed".to_owned(),
            Status::Failed => "Failed".to_owned(),
            Status::Pushed(word) => word.clone(),
        }
    }

    fn percent(&self) -> f64 {
        let (done, total) = self.bytes();
        match self.status {
            Status::Succeeded => 100.0,
            _ if total == 0 => 0.0,
            _ => (100.0 * done as f64 / total as f64).min(100.0),
        }
    }

    fn bytes(&self) -> (u64, u64) {
        (self.disks.iter().map(|disk| disk.done).sum(), self.disks.iter().map(|disk| disk.total).sum())
    }

    fn shape(&self, state: &State) -> Value {
        let (done, total) = self.bytes();
        let size: u64 = self.disks.iter().map(|disk| disk.size).sum();
        let elapsed = (self.updated - self.started).num_milliseconds();
        let status = self.word(state);
        let speed = json!({"current_mbps": 95.2, "average_mbps": 92.8, "peak_mbps": 118.0, "last_update": self.updated});
        let listed = self.disks.iter().filter(|_| !state.settings.vma.disk_by_disk);
        let disks: Vec<Value> = listed.map(|disk| disk.shape(state, &status)).collect();
        let errors: Vec<&String> = self.error.iter().collect();
        // It says something new each time, also while nothing moves.
        let doing = format!("{} at {} MB/s", self.stage, 80 + Utc::now().timestamp_millis() % 20);
        let sync = if self.incremental { "incremental" } else { "full" };
        json!({
            "job_id": self.id, "status": status, "sync_type": sync, "phase": self.stage, "stage": self.stage,
            "percentage": self.percent(), "current_operation": doing, "bytes_transferred": done, "total_bytes": total,
            "throughput": speed,
            "timing": {"start_time": self.started, "last_update": self.updated, "elapsed_ms": elapsed,
                "phase_start": self.updated, "phase_elapsed_ms": 0, "eta_seconds": 0},
            "vm_info": {"name": self.name, "path": "unknown", "disk_size_gb": size >> 30, "disk_size_bytes": size,
                "cbt_enabled": true},
            "phases": [{"name": self.stage, "status": status, "start_time": self.started}],
            "errors": errors, "last_error": self.error.clone().unwrap_or_default(), "disk_progresses": disks,
        })
    }
}

impl Disk {
    fn shape(&self, state: &State, status: &str) -> Value {
        let percent = if self.total == 0 { 100.0 } else { 100.0 * self.done as f64 / self.total as f64 };
        json!({"disk_id": state.settings.vma.disk_id(self.key), "label": self.label, "bytes_transferred": self.done,
            "total_bytes": self.total, "percent": percent, "throughput_mbps": 92.8, "status": status})
    }
}

/// By the name of the job, or of one of its exports: then it is the newest.
fn find<'a>(jobs: &'a BTreeMap<String, Job>, id: &str) -> Option<&'a Job> {
    let into = |job: &&Job| job.disks.iter().any(|disk| disk.export == id);
    jobs.get(id).or_else(|| jobs.values().filter(into).max_by_key(|job| job.started))
}

fn unknown(world: &World) -> Answer {
    let old = world.look(|state| state.settings.vma.not_found_is_200);
    wrong(if old { 200 } else { 404 }, "job not found")
}

pub fn progress(world: &World, id: &str, fault: Option<Fault>) -> Answer {
    let told = world.look(|state| find(&state.vma.jobs, id).map(|job| job.shape(state)));
    match told {
        Some(body) if fault != Some(Fault::JobLost) => Answer::json(200, &body),
        _ => unknown(world),
    }
}

/// Set to running at the start; only a cleanup changes it afterwards.
pub fn status(world: &World, id: &str, fault: Option<Fault>) -> Answer {
    let told = world.look(|state| {
        let job = state.vma.jobs.get(id)?;
        let status = if job.status == Status::Pushed("cleaned".to_owned()) { "completed" } else { "running" };
        Some(json!({"job_id": job.id, "status": status, "progress_percent": job.percent(), "current_operation": job.stage,
            "start_time": job.started, "last_update": job.updated, "vm_path": format!("/{}", job.name)}))
    });
    match told {
        Some(body) if fault != Some(Fault::JobLost) => Answer::json(200, &body),
        _ => unknown(world),
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Update {
    stage: String,
    status: String,
    bytes_transferred: u64,
    total_bytes: u64,
}

/// The copy process pushes its own words; a job that is not known is made up.
pub fn update(world: &World, call: &Call) -> Answer {
    let Ok(update) = call.json::<Update>() else { return wrong(400, "Invalid JSON") };
    let id = call.arg(0).to_owned();
    world.change(Cause::new("vma", "POST /progress/{job}/update", &id), |state| {
        let life = state.vma.life;
        let now = Utc::now();
        let job = state.vma.jobs.entry(id.clone()).or_insert_with(|| Job {
            id: id.clone(),
            source: String::new(),
            name: "unknown".to_owned(),
            disks: vec![Disk {
                key: 2000,
                label: "Hard disk 1".to_owned(),
                export: String::new(),
                version: 0,
                size: 0,
                total: 0,
                done: 0,
            }],
            status: Status::Under("Queued"),
            stage: "Transfer",
            incremental: false,
            finally: false,
            started: now,
            updated: now,
            error: None,
            copy: Uuid::new_v4(),
            life,
        });
        job.updated = now;
        if !update.status.is_empty() {
            job.status = Status::Pushed(update.status.clone());
        }
        if let Some(disk) = job.disks.first_mut() {
            disk.done = update.bytes_transferred;
            disk.total = update.total_bytes.max(disk.total);
        }
    });
    Answer::json(
        200,
        &json!({"status": "success", "job_id": id, "stage": update.stage, "timestamp": Utc::now()}),
    )
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Cleanup {
    job_id: String,
    action: String,
}

/// Takes the source's snapshots away, whoever made them.
pub fn cleanup(world: &World, call: &Call) -> Answer {
    let Ok(request) = call.json::<Cleanup>() else { return wrong(400, "Invalid JSON") };
    if !matches!(request.action.as_str(), "delete_snapshot" | "cleanup_all") {
        return wrong(400, &format!("Unknown cleanup action: {}", request.action));
    }
    world.change(Cause::new("vma", "POST /cleanup", &request.job_id), |state| {
        let Some(job) = state.vma.jobs.get_mut(&request.job_id) else { return };
        job.status = Status::Pushed("cleaned".to_owned());
        let source = job.source.clone();
        if let Some(source) = state.sources.get_mut(&source) {
            source.snapshots.clear();
        }
    });
    Answer::json(200, &json!({"status": "success", "job_id": request.job_id, "action": request.action}))
}
