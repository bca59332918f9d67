//! Async jobs: what takes time, and is asked about by its id.
//!
//! ```text
//!   submit ── begin (rows, and the id of what is made) ── id back to the caller
//!     └ task: wait in the VM's line ── rows: on its way ── effect: the hypervisor ── rows: done ── finished
//!                                                            ↑ a restart here: failed, and done all the same
//! ```

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;

use super::request::Asked;
use super::{Mask, show};
use crate::faults::Fault;
use crate::world::moves::Refusal;
use crate::world::table::Tie;
use crate::world::things::{VmState, VolumeState};
use crate::world::{Cause, State, World};

/// A job as the database has it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct JobRow {
    /// Its id: the caller's own, if there was one.
    pub id: Uuid,
    /// Whose it is.
    pub account: Uuid,
    /// Who asked.
    pub user: Uuid,
    /// The command.
    pub command: String,
    /// 0 pending, 1 success, 2 failed.
    pub status: u8,
    /// 0, or why it failed.
    pub code: u16,
    /// What came of it: an object, or a text after a restart.
    pub result: Option<Value>,
    /// What it is about.
    pub instance: Option<(String, Uuid)>,
    /// The VM in whose line it stands.
    pub line: Option<Uuid>,
    /// When it was asked for.
    pub created: DateTime<Utc>,
    /// When it was over.
    pub completed: Option<DateTime<Utc>>,
    /// Nobody who asks is told of it.
    pub lost: bool,
}

/// What a job is about, as far as it is known when it is asked for.
#[derive(Clone, Debug, Default)]
pub struct Begun {
    /// `Volume`, `VirtualMachine`, …, and which.
    pub instance: Option<(&'static str, Uuid)>,
    /// The VM whose jobs come one after the other.
    pub line: Option<Uuid>,
    /// What was made already, though not yet ready.
    pub id: Option<Uuid>,
}

/// How a job ends early.
pub enum End {
    /// It fails, and says why.
    Refused(Refusal),
    /// The management server that ran it is no more: it failed long ago.
    Gone,
}

impl From<Refusal> for End {
    fn from(refusal: Refusal) -> End {
        End::Refused(refusal)
    }
}

/// What a job does.
pub type Run = Pin<Box<dyn Future<Output = Result<Value, End>> + Send>>;

/// A job that runs.
#[derive(Clone)]
pub struct Job {
    /// Where.
    pub world: World,
    /// Its id.
    pub id: Uuid,
    /// What was asked.
    pub asked: Asked,
    /// What it is about.
    pub begun: Begun,
}

/// Takes a job in: what comes back is its id, and that of what it makes.
pub fn submit(
    world: &World,
    asked: Asked,
    makes: bool,
    shows: &'static str,
    begin: impl FnOnce(&mut State, &Asked) -> Result<Begun, Refusal>,
    run: impl FnOnce(Job) -> Run,
) -> Result<Value, Refusal> {
    let (id, begun) = world.change(asked.cause(), |state| {
        let switches = &state.settings.cloudstack;
        if switches.maintenance {
            return Err(Refusal::code(
                503,
                "Maintenance or shutdown has been initiated: no new jobs are accepted",
            ));
        }
        let wish = asked.params.get("customjobid").filter(|_| switches.custom_job_ids).map(str::to_owned);
        // What makes something makes it before the job's id is looked at: a repeated id leaves one more row.
        if makes {
            let begun = begin(state, &asked)?;
            let id = new_id(state, wish)?;
            take_in(state, id, &asked, &begun);
            Ok((id, begun))
        } else {
            let id = new_id(state, wish)?;
            let begun = begin(state, &asked)?;
            take_in(state, id, &asked, &begun);
            Ok((id, begun))
        }
    })?;
    let job = Job { world: world.clone(), id, asked, begun: begun.clone() };
    let running = run(job.clone());
    world.spawn(work(job, running, shows));
    Ok(match begun.id {
        Some(made) => json!({ "id": made, "jobid": id }),
        None => json!({ "jobid": id }),
    })
}

fn new_id(state: &State, wish: Option<String>) -> Result<Uuid, Refusal> {
    let Some(wish) = wish else { return Ok(Uuid::new_v4()) };
    let id: Uuid = wish
        .parse()
        .ok()
        .filter(|id: &Uuid| id.to_string() == wish)
        .ok_or_else(|| Refusal::param(format!("Invalid UUID for customjobid: {wish}")))?;
    match state.cloudstack.jobs.get(&id) {
        Some(row) if row.status == 0 => {
            Err(Refusal::param(format!("AsyncJob with custom id {id} already exists")))
        }
        // The row of a job that is over does not count for the check, but it does for the unique index.
        Some(_) => Err(duplicate(id)),
        None if state.cloudstack.used_job_ids.contains(&id) => Err(duplicate(id)),
        None => Ok(id),
    }
}

fn duplicate(id: Uuid) -> Refusal {
    Refusal::internal(format!("DB Exception: Duplicate entry '{id}' for key 'async_job.uc_async__uuid'"))
}

fn take_in(state: &mut State, id: Uuid, asked: &Asked, begun: &Begun) {
    purge(state);
    let row = JobRow {
        id,
        account: asked.account.id,
        user: asked.account.user,
        command: asked.command.clone(),
        status: 0,
        code: 0,
        result: None,
        instance: begun.instance.map(|(kind, id)| (kind.to_owned(), id)),
        line: begun.line,
        created: Utc::now(),
        completed: None,
        lost: asked.fault == Some(Fault::JobLost),
    };
    let rows = &mut state.cloudstack;
    rows.jobs.insert(id, row);
    if let Some(vm) = begun.line {
        rows.lines.entry(vm).or_default().push_back(id);
    }
    if let Some((_, instance)) = begun.instance {
        rows.busy.insert(instance, id);
    }
}

async fn work(job: Job, running: Run, shows: &'static str) {
    if let Some(vm) = job.begun.line {
        let id = job.id;
        job.world
            .until_job(id, |state| {
                let first = state.cloudstack.lines.get(&vm).and_then(|line| line.front()) == Some(&id);
                first || !state.cloudstack.is_pending(id)
            })
            .await;
    }
    if !job.world.look(|state| state.cloudstack.is_pending(job.id)) {
        return;
    }
    let before = job.world.look(|state| phase(state, &job.begun));
    let end = running.await;
    let made = job.begun.instance.map(|(_, id)| id);
    job.world.change(job.asked.cause(), |state| match end {
        Ok(result) => {
            if let (Some(Fault::Lagging { ms }), Some(id)) = (&job.asked.fault, made)
                && state.cloudstack.is_pending(job.id)
            {
                let until = Utc::now() + TimeDelta::milliseconds(i64::try_from(*ms).unwrap_or(i64::MAX / 2));
                state.cloudstack.masks.insert(id, Mask { state: shows.to_owned(), until });
            }
            finish(state, job.id, 1, 0, Some(result));
        }
        Err(End::Refused(refusal)) => {
            // What another job has left half way is not mended by one that was refused for it.
            if state.cloudstack.is_pending(job.id) && phase(state, &job.begun) != before {
                settle(state, job.begun.instance.map(|(_, id)| id), true);
            }
            let refusal = job.asked.tellable(refusal);
            let result = json!({ "errorcode": refusal.code, "errortext": refusal.text });
            finish(state, job.id, 2, refusal.code, Some(result));
        }
        Err(End::Gone) => {}
    });
}

/// How what a job is about is, as its row says.
fn phase(state: &State, begun: &Begun) -> Option<String> {
    let (_, id) = begun.instance?;
    let volume = state.volumes.get(&id).map(|row| format!("{:?}", row.state));
    let vm = || state.vms.get(&id).map(|row| format!("{:?}", row.state));
    let snapshot = || {
        let row = state.snapshots.get(&id)?;
        Some(format!("{} {:?}", row.state, state.volumes.get(&row.volume).map(|volume| volume.state)))
    };
    volume.or_else(vm).or_else(snapshot).or_else(|| state.vm_snapshots.get(&id).map(|row| row.state.clone()))
}

impl Job {
    /// Changes CloudStack's rows: only the management server that took the job in can.
    pub fn rows<T>(&self, change: impl FnOnce(&mut State) -> Result<T, Refusal>) -> Result<T, End> {
        self.world.change(self.asked.cause(), |state| {
            if state.cloudstack.is_pending(self.id) { Ok(change(state)?) } else { Err(End::Gone) }
        })
    }

    /// Has the hypervisor do something: it was told, and does it, whether or not the management server is still there.
    pub async fn effect<T>(&self, change: impl FnOnce(&mut State) -> Result<T, Refusal>) -> Result<T, End> {
        match self.asked.fault {
            Some(Fault::JobFails { code }) => {
                return Err(Refusal::code(code, "The job was failed on purpose, and nothing was done").into());
            }
            Some(Fault::JobCancelledButDone { ms }) => {
                self.world.change(self.asked.cause(), |state| cancel(state, self.id));
                if ms > 0 {
                    tokio::time::sleep(Duration::from_millis(ms)).await;
                }
            }
            Some(Fault::Stuck) => std::future::pending().await,
            _ => {}
        }
        Ok(self.world.change(self.asked.cause(), change)?)
    }

    /// Something takes this long.
    pub async fn pause(&self, real_ms: u64) {
        self.world.pause(Duration::from_millis(real_ms)).await;
    }
}

impl super::Rows {
    /// Whether a job is still under way.
    pub fn is_pending(&self, job: Uuid) -> bool {
        self.jobs.get(&job).is_some_and(|row| row.status == 0)
    }
}

/// A job is over. One that was over before stays as it was.
fn finish(state: &mut State, job: Uuid, status: u8, code: u16, result: Option<Value>) {
    let rows = &mut state.cloudstack;
    let Some(row) = rows.jobs.get_mut(&job).filter(|row| row.status == 0) else { return };
    row.status = status;
    row.code = code;
    row.result = result;
    row.completed = Some(Utc::now());
    if let Some(vm) = row.line
        && let Some(line) = rows.lines.get_mut(&vm)
    {
        // Mostly it is the first, and those behind it need not be looked at.
        if line.front() == Some(&job) {
            line.pop_front();
        } else {
            line.retain(|waiting| *waiting != job);
        }
        match line.front() {
            Some(next) => rows.waiting.tell(*next),
            None => drop(rows.lines.remove(&vm)),
        }
    }
    rows.waiting.tell(job);
    // A later job may be at the same thing.
    if let Some((_, instance)) = row.instance
        && rows.busy.get(&instance) == Some(&job)
    {
        rows.busy.remove(&instance);
    }
}

/// One job ends as if the management server that ran it had gone.
fn cancel(state: &mut State, job: Uuid) {
    let instance = state.cloudstack.jobs.get(&job).and_then(|row| row.instance.clone());
    let text = "job cancelled because of management server restart or shutdown";
    if state.cloudstack.is_pending(job) {
        let switches = &state.settings.cloudstack;
        let (tidy, snapshots) = (!switches.restart_leaves_transitions, !switches.restart_leaves_snapshots);
        if tidy {
            settle(state, instance.map(|(_, id)| id), snapshots);
        }
        finish(state, job, 2, 530, Some(Value::String(text.to_owned())));
    }
}

/// The management server begins anew: it knows nothing of what was under way.
pub fn cancel_all(state: &mut State) {
    state.cloudstack.life += 1;
    let pending: Vec<Uuid> = state.cloudstack.jobs.tied(&Tie::Pending).map(|row| row.id).collect();
    for job in pending {
        cancel(state, job);
    }
    state.cloudstack.lines.clear();
    state.cloudstack.busy.clear();
}

/// What was on its way is not any more: each thing falls back to the state that it can be in without a job. Snapshots may be
/// left as they are: nobody can delete them then.
fn settle(state: &mut State, instance: Option<Uuid>, snapshots: bool) {
    let Some(id) = instance else { return };
    if let Some(volume) = state.volumes.get_mut(&id) {
        volume.state = match volume.state {
            VolumeState::Attaching
            | VolumeState::Migrating
            | VolumeState::Snapshotting
            | VolumeState::RevertSnapshotting => VolumeState::Ready,
            VolumeState::Creating => VolumeState::Allocated,
            other => other,
        };
        if volume.state == VolumeState::Allocated {
            volume.pool = None;
        }
    }
    if let Some(vm) = state.vms.get_mut(&id) {
        vm.state = match vm.state {
            VmState::Starting => VmState::Stopped,
            VmState::Stopping => VmState::Running,
            VmState::Expunging => VmState::Destroyed,
            other => other,
        };
    }
    let volume = state.snapshots.get_mut(&id).map(|snapshot| {
        if snapshots && crate::world::moves::is_under_way(snapshot) {
            snapshot.state = "Error".to_owned();
        }
        snapshot.volume
    });
    if let Some(volume) = volume.and_then(|id| state.volumes.get_mut(&id))
        && matches!(volume.state, VolumeState::Snapshotting | VolumeState::RevertSnapshotting)
    {
        volume.state = VolumeState::Ready;
    }
    if let Some(snapshot) = state.vm_snapshots.get_mut(&id).filter(|_| snapshots) {
        snapshot.state = match snapshot.state.as_str() {
            "Allocated" | "Creating" => "Error",
            "Reverting" => "Ready",
            other => other,
        }
        .to_owned();
    }
}

/// Jobs that have been over for long are no rows any more.
fn purge(state: &mut State) {
    let minutes: f64 =
        state.configurations.get("job.expire.minutes").and_then(|n| n.parse().ok()).unwrap_or(1440.0);
    let pace = if state.settings.pace > 0.0 { state.settings.pace } else { 1.0 };
    let kept = TimeDelta::milliseconds((minutes * 60_000.0 * pace) as i64);
    let Some(then) = Utc::now().checked_sub_signed(kept) else { return };
    let rows = &mut state.cloudstack;
    let old: Vec<Uuid> = rows.jobs.over_since(then).copied().collect();
    for id in old {
        rows.jobs.remove(&id);
        rows.used_job_ids.insert(id);
    }
}

/// `queryAsyncJobResult`
pub fn query(world: &World, asked: &Asked) -> Result<Value, Refusal> {
    let id = asked.params.need_id("jobid")?;
    let old = |state: &State| {
        let minutes = state.configurations.get("job.expire.minutes").map(String::as_str);
        minutes.is_some_and(|minutes| minutes == "0") && !state.cloudstack.is_pending(id)
    };
    if world.look(old) {
        world.change(Cause::new("cloudstack", "purge", ""), purge);
    }
    world.look(|state| {
        let row = state.cloudstack.jobs.get(&id).filter(|row| !row.lost);
        row.filter(|row| asked.account.root_admin || row.account == asked.account.id)
            .map(show::job)
            .ok_or_else(|| Refusal::code(431, format!("Invalid parameter jobid value={id} due to incorrect long value format, or entity does not exist")))
    })
}
