//! CloudStack's management server at `/client/api`.
//!
//! ```text
//!   request.rs    parameters, signature, who asks
//!   commands.rs   every command: which ones there are, which are jobs, who does them
//!   jobs.rs       async jobs: one line for each VM, results, purge; what a restart does to them
//!   deploy.rs vms.rs volumes.rs snapshots.rs nics.rs tags.rs   the commands that change something
//!   guests.rs     what a guest does once its VM is started
//!   lists.rs show.rs                                   those that tell
//! ```
//!
//! A job does the hypervisor's part (`Job::effect`) and the rows' part (`Job::rows`) in two changes. When the management
//! server restarts between them, the job has failed and the hypervisor has done it all the same.

mod commands;
mod deploy;
mod guests;
mod jobs;
mod lists;
mod nics;
mod request;
mod show;
mod snapshots;
mod tags;
mod vms;
mod volumes;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::routing::get;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::Notify;
use tokio::sync::futures::OwnedNotified;
use uuid::Uuid;

pub use guests::Guest;
pub use jobs::JobRow;

use crate::world::moves::Refusal;
use crate::world::table::Table;
use crate::world::{Cause, State, World};

/// What is CloudStack's alone.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Rows {
    /// Its jobs, those that are purged apart.
    pub jobs: Table<Uuid, JobRow>,
    /// Ids of jobs that are over and purged: the database still knows that they were used.
    pub used_job_ids: BTreeSet<Uuid>,
    /// The jobs of each VM, first come first served; the first one runs.
    pub lines: BTreeMap<Uuid, VecDeque<Uuid>>,
    /// What a pending job is about, and the job: lists show it.
    pub busy: BTreeMap<Uuid, Uuid>,
    /// How often the management server began: jobs of an earlier life are nobody's.
    pub life: u64,
    /// VMs whose guest went down, and that are about to be started again.
    pub coming_back: BTreeSet<Uuid>,
    /// What a list shows instead of a thing's state, until then.
    pub masks: BTreeMap<Uuid, Mask>,
    /// Who waits for a job.
    #[serde(skip)]
    pub waiting: Waiting,
    /// What lists tell until then, instead of what is so.
    #[serde(skip)]
    pub frozen: Option<(Instant, Arc<State>)>,
    /// Calls of each account in this second.
    #[serde(skip)]
    pub throttle: BTreeMap<Uuid, (i64, u32)>,
}

/// Who waits for a job: told when it is over, and when it is the first in its line. A thousand in one line would otherwise look
/// after every change, and each of them for nothing.
#[derive(Clone, Debug, Default)]
pub struct Waiting(BTreeMap<Uuid, Arc<Notify>>);

impl Waiting {
    /// Waits until the job is told of next. Whoever asks with the world locked misses nothing.
    pub fn next(&mut self, job: Uuid) -> OwnedNotified {
        Arc::clone(self.0.entry(job).or_default()).notified_owned()
    }

    fn tell(&mut self, job: Uuid) {
        if let Some(waiting) = self.0.remove(&job) {
            waiting.notify_waiters();
        }
    }
}

/// A state that is shown although it is over.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Mask {
    /// What is shown.
    pub state: String,
    /// Until when.
    pub until: DateTime<Utc>,
}

/// How CloudStack behaves. How long things take is in real milliseconds: `pace` shortens it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Switches {
    /// Changes must be POSTs, signed with an expiry of at most 15 minutes.
    pub enforce_post_and_timestamps: bool,
    /// `customjobid` is known to it.
    pub custom_job_ids: bool,
    /// Numbers and booleans of its answers are strings, as old releases have it.
    pub numbers_as_strings: bool,
    /// It is going down: no new jobs.
    pub maintenance: bool,
    /// Commands that nobody's role has.
    pub denied: BTreeSet<String>,
    /// The most data disks of a VM.
    pub most_data_disks: usize,
    /// An attach of what the hypervisor has there already succeeds.
    pub adopt_what_is_plugged: bool,
    /// A restart leaves transitional states as they are, as releases before 4.19.1 do.
    pub restart_leaves_transitions: bool,
    /// A restart leaves snapshots that were on their way as they are, for ever.
    pub restart_leaves_snapshots: bool,
    /// An attach or detach at a VM that runs takes this long, and so does the like of it.
    pub attach_ms: u64,
    /// A volume is copied to another storage, for an attach.
    pub move_ms: u64,
    /// A snapshot is on its way to the secondary storage for this long.
    pub snapshot_ms: u64,
    /// A revert.
    pub revert_ms: u64,
    /// A VM starts.
    pub start_ms: u64,
    /// A guest shuts down.
    pub stop_ms: u64,
    /// Anything else that is a job.
    pub other_ms: u64,
    /// The hypervisors report what runs this often.
    pub ping_ms: u64,
    /// Guests that do not come up in one go, by the id or the name of the source whose disk they start from.
    pub guests: BTreeMap<String, Guest>,
    /// How long one of them is up, and how long it is down then.
    pub guest_up_ms: u64,
    /// See `guest_up_ms`.
    pub guest_down_ms: u64,
}

impl Default for Switches {
    fn default() -> Switches {
        Switches {
            enforce_post_and_timestamps: false,
            custom_job_ids: true,
            numbers_as_strings: false,
            maintenance: false,
            denied: BTreeSet::new(),
            most_data_disks: 64,
            adopt_what_is_plugged: false,
            restart_leaves_transitions: false,
            restart_leaves_snapshots: false,
            attach_ms: 3_000,
            move_ms: 120_000,
            snapshot_ms: 20_000,
            revert_ms: 8_000,
            start_ms: 8_000,
            stop_ms: 10_000,
            other_ms: 2_000,
            ping_ms: 60_000,
            guests: BTreeMap::new(),
            guest_up_ms: 30_000,
            guest_down_ms: 5_000,
        }
    }
}

/// Its calls.
pub fn router(world: World) -> Router {
    Router::new().route("/client/api", get(request::get).post(request::post)).with_state(world)
}

/// A start of the management server: the jobs of its earlier life are over. From now on power is synced.
pub fn begin(world: &World) {
    restart(world);
    let synced = world.clone();
    world.spawn(async move {
        loop {
            let (pace, ping) = synced.look(|state| (state.settings.pace, state.settings.cloudstack.ping_ms));
            // Even an instant data centre does not spin.
            tokio::time::sleep(Duration::from_millis(ping).mul_f64(pace).max(Duration::from_millis(20)))
                .await;
            if synced.look(vms::power_differs) {
                synced.change(Cause::new("cloudstack", "power sync", ""), vms::sync_power);
            }
        }
    });
}

/// A restart of the management server: jobs under way have failed, whatever the hypervisors do with them.
pub fn restart(world: &World) {
    world.change(Cause::new("cloudstack", "restart", ""), jobs::cancel_all);
}

/// Runs a command for another system of the data centre, as that system's own calls do it: signed by the first account, and
/// waited for until its job is over. What comes back is the job's result, or what a command without a job answers.
pub async fn perform(
    world: &World,
    by: &str,
    command: &str,
    params: &[(&str, &str)],
) -> Result<Value, Refusal> {
    commands::perform(world, by, command, params).await
}
