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
mod chores;
#[cfg(debug_assertions)]
pub mod crash;
mod driver;
mod failing;
mod lease;
mod pools;
mod scout;

use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use backstay_machine::{
    ActivityError, Answer, Chain, CourseId, FactChange, Json, RunId, State, StepEvent, StepIx, Time,
};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

pub use pools::Breaker;

use self::failing::Failing;
use crate::activity::Registry;
use crate::engine::Submission;
use crate::store::{Claimed, Letter, Life, Store, StoreError};
use crate::watch::Watchers;

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
    /// When a target is taken for down. The same on all nodes.
    pub breaker: Breaker,
    /// How long runs that are over are kept. Left out: for ever.
    pub keep_finished: Option<Duration>,
    /// How long the keys of runs go on to mean them once they are removed.
    pub keep_keys: Duration,
    /// Whether it begins a new life when it has lost its lease.
    pub rejoin: bool,
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
            breaker: Breaker::default(),
            keep_finished: None,
            keep_keys: Duration::from_secs(30 * 86_400),
            rejoin: true,
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
    /// A call ended. Its success changes this fact.
    Outcome {
        run: RunId,
        course: CourseId,
        attempt: (u32, u32),
        result: Result<Json, ActivityError>,
        fact: Option<Box<FactChange>>,
    },
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
    /// An activity says what became of something outside.
    Resource { run: RunId, course: CourseId, attempt: (u32, u32), what: StepEvent, done: oneshot::Sender<()> },
    /// An activity says how far it is.
    Progress { run: RunId, course: CourseId, attempt: (u32, u32), percent: f64, note: String },
    /// Which of these runs, owned by this life, the driver does not have: the answer to a claim was lost.
    Unknown { owned: Vec<RunId>, reply: oneshot::Sender<Vec<RunId>> },
    /// What has been said to runs of this node. `done` once the answers are journaled.
    Mail { letters: Vec<Letter>, done: oneshot::Sender<()> },
    /// What the database says about pools.
    Granted(pools::Answers),
    /// A run that was under suspicion has outlived its trial.
    Acquit(RunId),
    /// Hand everything over and end.
    Drain { grace: Duration },
}

impl Message {
    /// The run whose journal it may bring forward.
    pub(crate) fn of_run(&self) -> Option<RunId> {
        match self {
            Message::Outcome { run, .. }
            | Message::Probed { run, .. }
            | Message::Checkpoint { run, .. }
            | Message::Resource { run, .. }
            | Message::Progress { run, .. } => Some(*run),
            _ => None,
        }
    }
}

/// A run that was claimed, as its journal tells it.
pub(crate) struct Found {
    pub claimed: Claimed,
    /// What was said to it before it was claimed.
    pub letters: Vec<Letter>,
    /// Over all its rows.
    pub chain: Chain,
    /// By all its rows.
    pub failing: Failing,
    /// The state; or how far the journal goes and why it cannot be read.
    pub state: Result<Box<State>, (i64, String)>,
}

/// Where a process hands submissions to its node, while one lives.
pub(crate) type Door = Arc<Mutex<Option<mpsc::UnboundedSender<Message>>>>;

/// A node that runs in this process. If it loses its lease (the database was away for longer than that), it drops
/// all it has and begins a new life, which finds its runs again as any other node would.
#[derive(Debug)]
pub struct Node {
    name: String,
    door: Door,
    epoch: watch::Receiver<i64>,
    stop: CancellationToken,
    draining: CancellationToken,
    task: Option<JoinHandle<()>>,
}

impl Node {
    pub(crate) async fn start(
        store: Store,
        registry: Registry,
        watchers: Arc<Watchers>,
        door: Door,
        config: NodeConfig,
    ) -> Result<Self, NodeError> {
        let registry = Arc::new(registry);
        let mut births = Births { store, registry, watchers, door: Arc::clone(&door), config };
        let first = births.begin().await?;
        let name = births.config.name.clone();
        let (stop, draining) = (CancellationToken::new(), CancellationToken::new());
        let (tell_epoch, epoch) = watch::channel(first.life.epoch.0);
        let (stop_here, draining_here) = (stop.clone(), draining.clone());
        let task = tokio::spawn(async move {
            let _stop = stop_here.drop_guard();
            let mut born = Some(first);
            while let Some(alive) = born.take() {
                // It may have been told to drain while there was nobody to tell.
                if draining_here.is_cancelled() {
                    break;
                }
                tell_epoch.send_replace(alive.life.epoch.0);
                let lost = births.live(alive).await;
                *lock(&births.door) = None;
                if !lost || !births.config.rejoin {
                    break;
                }
                born = draining_here.run_until_cancelled(births.begin_again()).await;
            }
        });
        Ok(Self { name, door, epoch, stop, draining, task: Some(task) })
    }

    /// The number of its present life.
    pub fn epoch(&self) -> i64 {
        *self.epoch.borrow()
    }

    /// The node's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it is there: it was neither drained nor killed, and is not between two lives.
    pub fn is_live(&self) -> bool {
        self.pulse().is_live()
    }

    /// For those who do not hold it, and want to know whether it is there.
    pub fn pulse(&self) -> Pulse {
        Pulse { door: Arc::clone(&self.door), stop: self.stop.clone() }
    }

    /// Ends when the node has.
    pub async fn ended(&self) {
        self.stop.cancelled().await;
    }

    /// Starts nothing new, waits for calls in flight as long as `grace`, hands all runs over and ends. What is
    /// still in flight then is in doubt for whoever goes on.
    pub async fn drain(mut self, grace: Duration) {
        self.draining.cancel();
        if let Some(door) = lock(&self.door).as_ref() {
            let _ = door.send(Message::Drain { grace });
        }
        if let Some(task) = self.task.take() {
            let _ = task.await;
        }
    }

    /// Ends without handing anything over, as a crash would: the lease runs out, or a node of the same name
    /// takes its place.
    pub async fn kill(mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
            let _ = task.await;
        }
    }
}

/// Tells whether a node is there.
#[derive(Clone, Debug)]
pub struct Pulse {
    door: Door,
    stop: CancellationToken,
}

impl Pulse {
    /// It was neither drained nor killed, and is not between two lives.
    pub fn is_live(&self) -> bool {
        !self.stop.is_cancelled() && lock(&self.door).is_some()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
        }
    }
}

/// What every life of a node starts from.
struct Births {
    store: Store,
    registry: Arc<Registry>,
    watchers: Arc<Watchers>,
    door: Door,
    config: NodeConfig,
}

/// A life that has begun, with its lease being kept.
struct Alive {
    life: Life,
    lease: watch::Receiver<lease::Lease>,
    lost: CancellationToken,
    inbox: mpsc::UnboundedSender<Message>,
    messages: mpsc::UnboundedReceiver<Message>,
    /// Ends the thread that keeps the lease.
    _keeper: DropGuard,
}

impl Births {
    async fn begin(&mut self) -> Result<Alive, NodeError> {
        let Self { store, config, .. } = self;
        let connecting = store.dedicated("lease");
        let mut conn = store.patiently("connect to the database", connecting).await?;
        let deadline = Instant::now() + Duration::from_secs(2);
        // The session of a process that was killed is gone as soon as Postgres notices.
        while !store.patiently("take the node's name", Store::take_name(&mut conn, &config.name)).await? {
            if Instant::now() > deadline {
                return Err(NodeError::NameInUse(config.name.clone()));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let names = self.registry.all_names();
        let sent = Instant::now();
        let beginning = Store::begin_life(&mut conn, &config.name, &names, config.lease);
        let (life, time) = store.patiently("begin a lease", beginning).await?;
        let first = lease::Lease::renewed(sent, time, config.lease);
        lease::tell_watchers_if_any(store, &mut conn, &life, &self.watchers, &first).await;
        let (tell, lease) = watch::channel(first);
        let (lost, keeper) = (CancellationToken::new(), CancellationToken::new());
        let keeping = lease::Keeper {
            store: store.clone(),
            conn,
            life: life.clone(),
            ttl: config.lease,
            begun: sent,
            watchers: Arc::clone(&self.watchers),
            lease: tell,
            lost: lost.clone(),
        };
        keeping.start(keeper.clone()).map_err(NodeError::Thread)?;
        tracing::info!(node = life.name, epoch = life.epoch.0, "the node has begun");
        // From here on submissions come in, before anybody is told that the node is there.
        let (inbox, messages) = mpsc::unbounded_channel();
        *lock(&self.door) = Some(inbox.clone());
        Ok(Alive { life, lease, lost, inbox, messages, _keeper: keeper.drop_guard() })
    }

    /// The database may be away for a while.
    async fn begin_again(&mut self) -> Alive {
        loop {
            match self.begin().await {
                Ok(alive) => return alive,
                Err(error) => {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "the node cannot begin a new life yet"
                    );
                    tokio::time::sleep(Duration::from_secs(1).min(self.config.lease / 4)).await;
                }
            }
        }
    }

    /// Lives until it is drained (false) or the lease is lost (true).
    async fn live(&mut self, alive: Alive) -> bool {
        let Alive { life, lease, lost, inbox, messages, _keeper } = alive;
        let shared = Arc::new(Parts {
            store: self.store.clone(),
            life,
            registry: Arc::clone(&self.registry),
            config: self.config.clone(),
            lease,
            lost: lost.clone(),
            inbox,
            watchers: Arc::clone(&self.watchers),
            suspect: Mutex::default(),
            resident: AtomicUsize::default(),
            look: Notify::new(),
            #[cfg(debug_assertions)]
            crash: crash::Crash { hook: self.config.crash_hook.clone(), dead: CancellationToken::new() },
        });
        let scouting = CancellationToken::new();
        let scout = scout::Scout::new(Arc::clone(&shared), scouting.clone());
        let driver = driver::Driver::new(Arc::clone(&shared), messages, scouting);
        // A task of its own, and ours: it ends when this future does.
        let mut scout = tokio::spawn(scout.work());
        let _scout = AbortOnDrop(scout.abort_handle());
        let chores = tokio::spawn(chores::keep_house(Arc::clone(&shared)));
        let _chores = AbortOnDrop(chores.abort_handle());
        let scout_died = async {
            match (&mut scout).await {
                Err(error) if error.is_panic() => {}
                _ => std::future::pending().await,
            }
        };
        #[cfg(debug_assertions)]
        let dead = shared.crash.dead.clone();
        #[cfg(not(debug_assertions))]
        let dead = CancellationToken::new();
        tokio::select! {
            // A refused write ends it as well, and may be the first to tell that the lease is lost.
            () = driver.work() => lost.is_cancelled(),
            () = dead.cancelled() => false,
            () = scout_died => {
                tracing::error!("the part of the node that finds runs has panicked: the node begins anew");
                true
            }
            () = lost.cancelled() => {
                tracing::error!(node = shared.life.name, epoch = shared.life.epoch.0,
                    "this node has lost its lease: it drops what it has, and others go on with its runs");
                metrics::counter!("backstay_leases_lost_total").increment(1);
                true
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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
    pub suspect: Mutex<Option<RunId>>,
    /// Runs in memory.
    pub resident: AtomicUsize,
    /// There is something for the scout to find.
    pub look: Notify,
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
        let mut suspect = lock(&self.suspect);
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
