//! The world: one state behind one lock, changed through one door.
//!
//! ```text
//!     a call ──> fault? ──> world.change(cause, |state| …) ──> answer
//!                              │ the moves refuse what the real systems refuse
//!                              │ then: the tables say what was touched (table.rs), and the invariants look at all that this
//!                              │       can have moved, and record what is broken, by which call
//!                              └ then: the file, if there is one; only after that anybody hears of the change
//! ```
//!
//! What takes time is a task that sleeps without the lock and takes it for the moment of a change.

pub mod estate;
pub mod invariants;
pub mod list;
pub mod moves;
pub mod table;
pub mod things;
mod ties;

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::cloudstack;
use crate::devices::Devices;
use crate::faults::Faults;
use crate::settings::Settings;
use crate::{conversion, daemon, linstor, vma};
use table::{Moved, Table};
use things::{Account, Fixture, Host, Network, Pool, Snapshot, Source, Vm, VmSnapshot, Volume};

/// The handle: cheap to clone, the same world.
#[derive(Clone)]
pub struct World(Arc<Inner>);

struct Inner {
    state: Mutex<State>,
    faults: Faults,
    file: Option<PathBuf>,
    devices: Devices,
    changes: watch::Sender<u64>,
    stopped: CancellationToken,
}

/// Why something changes: it stands beside every violation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cause {
    /// `cloudstack`, `daemon`, `vma`, `linstor`, `virt-v2v`, `control`.
    pub system: String,
    /// The command, or the method and path.
    pub call: String,
    /// What it was about: an id, a name.
    pub key: String,
}

impl Cause {
    /// Why something changes.
    pub fn new(system: &str, call: impl Into<String>, key: impl Into<String>) -> Cause {
        Cause { system: system.to_owned(), call: call.into(), key: key.into() }
    }
}

/// All that is so. Its moves are in `moves.rs`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct State {
    /// Every VM of CloudStack that ever was.
    pub vms: Table<Uuid, Vm>,
    /// Every volume that ever was.
    pub volumes: Table<Uuid, Volume>,
    /// Every snapshot of a volume that ever was, by whomever.
    pub snapshots: Table<Uuid, Snapshot>,
    /// Every snapshot of a VM that ever was.
    pub vm_snapshots: Table<Uuid, VmSnapshot>,
    /// The networks.
    pub networks: Table<Uuid, Network>,
    /// The VMs of VMware, by instance id.
    pub sources: Table<String, Source>,
    /// The hypervisors.
    pub hosts: Vec<Host>,
    /// The primary storages: what is made new lies on the first.
    pub pools: Vec<Pool>,
    /// The accounts.
    pub accounts: Vec<Account>,
    /// The zones.
    pub zones: Vec<Fixture>,
    /// The domains.
    pub domains: Vec<Fixture>,
    /// The templates: `more.size` is how many bytes a root needs at least.
    pub templates: Vec<Fixture>,
    /// The service offerings: `more.cpunumber`, `more.memory`, `more.iscustomized`.
    pub service_offerings: Vec<Fixture>,
    /// The disk offerings: `more.disksize` in GB, `more.iscustomized`.
    pub disk_offerings: Vec<Fixture>,
    /// CloudStack's global settings, like `kvm.snapshot.enabled`.
    pub configurations: BTreeMap<String, String>,
    /// The VM that holds the replicas.
    pub oma: Uuid,
    /// The sources whose failover was committed: nothing brings them back by itself.
    pub committed: BTreeSet<String>,
    /// The sources of which the VMA has said that they are off, since they went off.
    #[serde(default)]
    pub seen_off: BTreeSet<String>,

    /// How the systems behave.
    pub settings: Settings,
    /// What is CloudStack's alone: jobs.
    pub cloudstack: cloudstack::Rows,
    /// What is the Volume Daemon's alone.
    pub daemon: daemon::Rows,
    /// What is the VMA's alone.
    pub vma: vma::Rows,
    /// What is LINSTOR's alone.
    pub linstor: linstor::Rows,
    /// What the stand-in for virt-v2v-in-place did, and shall do.
    pub conversion: conversion::Rows,

    /// How often each effect was applied: command, then target.
    pub effects: BTreeMap<String, BTreeMap<String, u64>>,
    /// What was broken, and by which call.
    pub violations: Vec<Violation>,
    /// The longest that each protected volume hung nowhere, in milliseconds, until it hung somewhere again.
    pub adrift: BTreeMap<Uuid, i64>,
    /// Those that hang nowhere for longer than they may.
    pub late: BTreeSet<Uuid>,
    /// The conditions that are broken now, by source, so that each is recorded once.
    pub broken: BTreeMap<String, BTreeSet<String>>,
    /// When it was changed last.
    pub changed: DateTime<Utc>,

    /// Who changes it now.
    #[serde(skip)]
    pub cause: Cause,
    /// Which VM was the OMA when the invariants looked last.
    #[serde(skip)]
    judged_with: Option<Uuid>,
}

/// What a change has touched, of that which anything is judged by.
pub struct Moves {
    /// Nobody knows: anything can be otherwise.
    pub all: bool,
    /// Of CloudStack's VMs.
    pub vms: Moved<Uuid>,
    /// Of the volumes.
    pub volumes: Moved<Uuid>,
    /// Of VMware's VMs.
    pub sources: Moved<String>,
}

impl State {
    /// A change is over: the indexes follow, and what it touched is known.
    fn settle(&mut self) -> Moves {
        let (vms, volumes, sources) = (self.vms.settle(), self.volumes.settle(), self.sources.settle());
        let networks = self.networks.settle();
        self.snapshots.settle();
        self.vm_snapshots.settle();
        self.cloudstack.jobs.settle();
        self.daemon.settle();
        // Which networks the world sees, and which VM is the OMA, is a matter of all machines.
        let another_oma = self.judged_with.replace(self.oma) != Some(self.oma);
        let any_network = networks.all || !networks.keys.is_empty();
        let all = vms.all || volumes.all || sources.all || any_network || another_oma;
        Moves { all, vms, volumes, sources }
    }

    /// Whether every index is what its rows say: for checks.
    pub fn is_settled(&self) -> bool {
        let of_cloudstack = [
            self.vms.is_settled(),
            self.volumes.is_settled(),
            self.snapshots.is_settled(),
            self.vm_snapshots.is_settled(),
            self.cloudstack.jobs.is_settled(),
        ];
        let others = [self.sources.is_settled(), self.networks.is_settled(), self.daemon.is_settled()];
        !of_cloudstack.iter().chain(&others).any(|settled| !settled)
    }
}

/// An invariant that did not hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Violation {
    /// `I1` to `I16`.
    pub invariant: String,
    /// What was so.
    pub what: String,
    /// The call that made it so.
    pub cause: Cause,
    /// When.
    pub at: DateTime<Utc>,
}

impl World {
    /// A world that begins with `state`. With a file it is that of the file, if the file is there.
    pub fn new(state: State, faults: Faults, file: Option<PathBuf>) -> anyhow::Result<World> {
        let mut state = match &file {
            Some(path) if path.exists() => {
                let text = std::fs::read(path)?;
                serde_json::from_slice(&text)
                    .map_err(|e| anyhow::anyhow!("{} does not hold a world: {e}", path.display()))?
            }
            _ => state,
        };
        state.cause = Cause::new("control", "start", "");
        let world = World(Arc::new(Inner {
            state: Mutex::new(state),
            faults,
            file,
            devices: Devices::default(),
            changes: watch::Sender::new(0),
            stopped: CancellationToken::new(),
        }));
        world.change(Cause::new("control", "start", ""), |_| ());
        Ok(world)
    }

    /// Reads.
    pub fn look<T>(&self, ask: impl FnOnce(&State) -> T) -> T {
        ask(&self.lock())
    }

    /// Changes: the only door. When it returns, the change is judged and on disk.
    pub fn change<T>(&self, cause: Cause, change: impl FnOnce(&mut State) -> T) -> T {
        let answer = {
            let mut state = self.lock();
            state.cause = cause;
            let answer = change(&mut state);
            invariants::time_adrift(&mut state);
            let moves = state.settle();
            invariants::look(&mut state, &moves);
            self.0.devices.follow(&state, &moves);
            self.keep(&state);
            answer
        };
        self.0.changes.send_modify(|n| *n += 1);
        answer
    }

    /// Changes after a while. After no time at all it is done when this returns: nobody has seen how it was before.
    pub fn change_after(&self, ms: u64, cause: Cause, change: impl FnOnce(&mut State) + Send + 'static) {
        if ms == 0 {
            return self.change(cause, change);
        }
        let later = self.clone();
        self.spawn(async move {
            tokio::time::sleep(Duration::from_millis(ms)).await;
            later.change(cause, change);
        });
    }

    /// What goes wrong.
    pub fn faults(&self) -> &Faults {
        &self.0.faults
    }

    /// Waits until `what` holds. It looks after each change, and now and then.
    pub async fn until(&self, mut what: impl FnMut(&State) -> bool) {
        let mut changes = self.0.changes.subscribe();
        loop {
            if self.look(&mut what) {
                return;
            }
            let _ = tokio::time::timeout(Duration::from_millis(50), changes.changed()).await;
        }
    }

    /// Waits until `what` holds of a job. It looks when the job is over, and when it is the first in its line.
    pub async fn until_job(&self, job: Uuid, what: impl Fn(&State) -> bool) {
        loop {
            let told = {
                let mut state = self.lock();
                if what(&state) {
                    return;
                }
                state.cloudstack.waiting.next(job)
            };
            told.await;
        }
    }

    /// What the world does by itself: it ends when the data centre is stopped.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let stopped = self.0.stopped.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = stopped.cancelled() => (),
                () = task => (),
            }
        });
    }

    /// Something that takes `real` takes this long here.
    pub async fn pause(&self, real: Duration) {
        let pace = self.look(|state| state.settings.pace);
        if pace > 0.0 && !real.is_zero() {
            tokio::time::sleep(real.mul_f64(pace)).await;
        } else {
            tokio::task::yield_now().await;
        }
    }

    /// Where the control endpoint answers, `host:port`: from now on the OMA has devices.
    pub fn answers_at(&self, control: std::net::SocketAddr) {
        self.0.devices.answers_at(control.to_string());
        self.change(Cause::new("control", "start", ""), |_| ());
    }

    /// Ends what runs by itself.
    pub fn stop(&self) {
        self.0.stopped.cancel();
        self.0.devices.remove();
    }

    /// Ended when the data centre is stopped.
    pub fn stopped(&self) -> CancellationToken {
        self.0.stopped.clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whole or not at all: a kill leaves the old file or the new one.
    fn keep(&self, state: &State) {
        let Some(path) = &self.0.file else { return };
        let written = serde_json::to_vec(state).map_err(std::io::Error::other).and_then(|text| {
            let beside = path.with_extension("new");
            std::fs::write(&beside, text)?;
            std::fs::rename(&beside, path)
        });
        if let Err(error) = written {
            tracing::error!(
                "{} could not be written, a restart will forget this change: {error}",
                path.display()
            );
        }
    }
}
