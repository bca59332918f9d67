//! Who makes it happen: one node of the engine.
//!
//! ```text
//!   lease    a thread of its own renews this life's lease; everything stops when it is lost
//!   scout    claims runs: those that are due, those whose node is gone; reads their journals and folds them
//!   driver   owns the runs: takes in what happened, decides, collects what is to be journaled, and once it is
//!            durable has it done; one write is under way at a time, and takes all that is ready
//!   call     a task for each attempt or probe
//! ```

mod call;
#[cfg(debug_assertions)]
pub mod crash;
mod driver;
mod lease;
mod scout;

use std::sync::Arc;
use std::time::{Duration, Instant};

use backstay_machine::{ActivityError, Answer, CourseId, Json, RunId, State, StepIx, Time};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::activity::Registry;
use crate::engine::{Submission, Watchers};
use crate::store::{Claimed, Life, Store, StoreError};

/// How a node behaves.
#[derive(Clone)]
pub struct NodeConfig {
    /// Its name. A process of the same name that was killed is succeeded at once; of another, after its lease.
    pub name: String,
    /// How long it may write without renewing.
    pub lease: Duration,
    /// How often it looks for runs that nobody told it about.
    pub poll: Duration,
    /// Calls of activities at once.
    pub max_calls: usize,
    /// Runs in memory at once.
    pub max_runs: usize,
    /// A run that has to wait for longer than this is put down: it costs a row of an index until its time comes.
    pub park_after: Duration,
    /// How often the progress of one attempt is journaled at most.
    pub progress_every: Duration,
    /// Leases that may be lost in a row over one run, without an outcome in between, before it is quarantined.
    pub max_crashes: i16,
    /// How long a run that was there when two nodes died is watched alone.
    pub trial: Duration,
    /// Where tests make it die.
    #[cfg(debug_assertions)]
    pub crash_hook: Option<crash::Hook>,
}

impl Default for NodeConfig {
    fn default() -> Self {
        Self {
            name: default_name(),
            lease: Duration::from_secs(15),
            poll: Duration::from_millis(500),
            max_calls: 4_096,
            max_runs: 50_000,
            park_after: Duration::from_secs(2),
            progress_every: Duration::from_secs(1),
            max_crashes: 3,
            trial: Duration::from_secs(5),
            #[cfg(debug_assertions)]
            crash_hook: None,
        }
    }
}

fn default_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

impl std::fmt::Debug for NodeConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeConfig")
            .field("name", &self.name)
            .field("lease", &self.lease)
            .finish_non_exhaustive()
    }
}

/// Why a node did not start.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The name is in use.
    #[error(
        "a node named \"{0}\" is running on this database already. Two nodes need two names; if it has just been \
         killed, its connection is closed within a minute."
    )]
    NameInUse(String),
    /// No thread for the lease.
    #[error("could not start the thread that keeps the lease")]
    Thread(#[source] std::io::Error),
}

/// What the driver is told.
pub(crate) enum Message {
    /// A new run. The admission and its plan are checked.
    Submit(Box<Submission>),
    /// Runs that the scout has claimed and folded. `done` once that is journaled.
    Claimed { runs: Vec<Found>, done: oneshot::Sender<()> },
    /// A call ended.
    Outcome { run: RunId, course: CourseId, attempt: (u32, u32), result: Result<Json, ActivityError> },
    /// A probe ended.
    Probed {
        run: RunId,
        step: StepIx,
        attempt: (u32, u32),
        answer: Answer,
        output: Option<Json>,
        asked_at: Time,
    },
    /// An activity saves something.
    Checkpoint { run: RunId, course: CourseId, attempt: (u32, u32), value: Json, done: oneshot::Sender<()> },
    /// An activity says how far it is.
    Progress { run: RunId, course: CourseId, attempt: (u32, u32), percent: f64, note: String },
    /// A run that was under suspicion has outlived its trial.
    Acquit(RunId),
    /// Hand everything over and end.
    Drain { grace: Duration },
}

/// A run that was claimed, as its journal tells it.
pub(crate) struct Found {
    pub claimed: Claimed,
    /// The state; or how far the journal goes and why it cannot be read.
    pub state: Result<Box<State>, (i64, String)>,
}

/// A node that runs in this process.
#[derive(Debug)]
pub struct Node {
    life: Life,
    inbox: mpsc::UnboundedSender<Message>,
    lost: CancellationToken,
    stop: CancellationToken,
    driver: Option<JoinHandle<()>>,
    lease: watch::Receiver<lease::Lease>,
}

impl Node {
    pub(crate) async fn start(
        store: Store,
        registry: Registry,
        watchers: Arc<Watchers>,
        config: NodeConfig,
    ) -> Result<Self, NodeError> {
        let registry = Arc::new(registry);
        let mut lease_conn = store.dedicated("lease").await?;
        let deadline = Instant::now() + Duration::from_secs(2);
        // The session of a process that was killed is gone as soon as Postgres notices.
        while !Store::take_name(&mut lease_conn, &config.name).await? {
            if Instant::now() > deadline {
                return Err(NodeError::NameInUse(config.name));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let names = registry.all_names();
        let sent = Instant::now();
        let (life, time) = Store::begin_life(&mut lease_conn, &config.name, &names, config.lease).await?;
        let (lease_tx, lease) = watch::channel(lease::Lease::renewed(sent, time, config.lease));
        let (lost, stop) = (CancellationToken::new(), CancellationToken::new());
        lease::keep(
            store.clone(),
            lease_conn,
            life.clone(),
            config.lease,
            lease_tx,
            lost.clone(),
            stop.clone(),
        )
        .map_err(NodeError::Thread)?;
        tracing::info!(node = life.name, epoch = life.epoch.0, "the node has begun");

        let (inbox, messages) = mpsc::unbounded_channel();
        #[cfg(debug_assertions)]
        let crash = crash::Crash { hook: config.crash_hook.clone(), dead: CancellationToken::new() };
        let shared = Arc::new(Parts {
            store,
            life: life.clone(),
            registry,
            config,
            lease: lease.clone(),
            lost: lost.clone(),
            inbox: inbox.clone(),
            watchers,
            suspect: std::sync::Mutex::default(),
            resident: std::sync::atomic::AtomicUsize::default(),
            #[cfg(debug_assertions)]
            crash,
        });
        let scout_stop = stop.child_token();
        let scout = scout::Scout::new(shared.clone(), scout_stop.clone());
        let driver = driver::Driver::new(shared.clone(), messages, scout_stop.clone());
        let (lost_here, stop_here) = (lost.clone(), stop.clone());
        let driver = tokio::spawn(async move {
            let work = async {
                // The scout ends when it is told to; the node goes on until its driver has ended.
                let scout = tokio::spawn(scout.work());
                let _abort = AbortOnDrop(scout.abort_handle());
                driver.work().await;
            };
            #[cfg(debug_assertions)]
            let dead = shared.crash.dead.clone();
            #[cfg(not(debug_assertions))]
            let dead = CancellationToken::new();
            tokio::select! {
                () = work => {}
                () = lost_here.cancelled() => {
                    tracing::error!(node = shared.life.name, epoch = shared.life.epoch.0,
                        "this node has lost its lease: it stops, and others go on with its runs");
                }
                () = dead.cancelled() => {}
            }
            stop_here.cancel();
        });
        Ok(Self { life, inbox, lost, stop, driver: Some(driver), lease })
    }

    pub(crate) fn inbox(&self) -> mpsc::UnboundedSender<Message> {
        self.inbox.clone()
    }

    /// The number of this life.
    pub fn epoch(&self) -> i64 {
        self.life.epoch.0
    }

    /// The node's name.
    pub fn name(&self) -> &str {
        &self.life.name
    }

    /// Whether it may start calls now.
    pub fn is_live(&self) -> bool {
        !self.stop.is_cancelled() && !self.lost.is_cancelled() && self.lease.borrow().is_safe()
    }

    /// Ends when the node has: it was drained, or it lost its lease.
    pub async fn ended(&self) {
        self.stop.cancelled().await;
    }

    /// Starts nothing new, waits for calls in flight as long as `grace`, hands all runs over and ends. What is
    /// still in flight then is in doubt for whoever goes on.
    pub async fn drain(mut self, grace: Duration) {
        let _ = self.inbox.send(Message::Drain { grace });
        if let Some(driver) = self.driver.take() {
            let _ = driver.await;
        }
    }

    /// Ends without handing anything over, as a crash would: the lease runs out, or a node of the same name
    /// takes its place.
    pub async fn kill(mut self) {
        self.stop.cancel();
        if let Some(driver) = self.driver.take() {
            driver.abort();
            let _ = driver.await;
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(driver) = self.driver.take() {
            driver.abort();
        }
    }
}

/// What the parts of a node have in common; each call holds it, so it is one pointer.
pub(crate) type Shared = Arc<Parts>;

pub(crate) struct Parts {
    pub store: Store,
    pub life: Life,
    pub registry: Arc<Registry>,
    pub config: NodeConfig,
    pub lease: watch::Receiver<lease::Lease>,
    pub lost: CancellationToken,
    pub inbox: mpsc::UnboundedSender<Message>,
    pub watchers: Arc<Watchers>,
    /// The one run under suspicion of killing its nodes that is on trial here.
    pub suspect: std::sync::Mutex<Option<RunId>>,
    /// Runs in memory.
    pub resident: std::sync::atomic::AtomicUsize,
    #[cfg(debug_assertions)]
    pub crash: crash::Crash,
}

impl Parts {
    pub(crate) fn now(&self) -> Time {
        self.lease.borrow().now()
    }

    /// A named place where tests make this node die. Nothing in release builds.
    #[allow(clippy::unused_async, reason = "it waits for ever in builds that can die")]
    pub(crate) async fn crash_point(&self, name: &'static str) {
        #[cfg(debug_assertions)]
        self.crash.point(name).await;
        #[cfg(not(debug_assertions))]
        let _ = name;
    }

    pub(crate) fn acquit(&self, run: RunId) {
        let mut suspect = self.suspect.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if *suspect == Some(run) {
            *suspect = None;
        }
    }
}

/// Ends a task with its owner.
#[derive(Debug)]
pub(crate) struct AbortOnDrop(pub tokio::task::AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
