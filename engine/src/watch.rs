//! Waiting for what is written of runs, whichever node writes it.
//!
//! The node of this process says so itself. Other nodes say so in the commit that writes it, if somebody elsewhere
//! watches at all: whoever watches holds a lock in the database, and a node looks for such locks when it renews its
//! lease. Until each node must have seen ours, watchers look for themselves; then they ask nothing until they are told.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use backstay_machine::{Row, RunId, Seq, Status};
use tokio::sync::{Notify, oneshot};
use tokio_util::sync::CancellationToken;

use crate::engine::{Engine, EngineError};
use crate::store::{Store, StoreError};

/// How often somebody looks again who cannot count on being told.
const LOOK_AGAIN: Duration = Duration::from_millis(250);
/// All watchers of a process together look no oftener than so many times a second.
const LOOKS_A_SECOND: usize = 200;
/// How long the process keeps listening after its last watcher: the next one need not look for itself.
const LINGER: Duration = Duration::from_secs(600);
/// How often it is tried whether the connection on which others speak is there still.
const PING: Duration = Duration::from_secs(15);

/// One run, for those who wait for it.
#[derive(Debug)]
pub struct RunHandle {
    engine: Engine,
    run: RunId,
    ended: Option<oneshot::Receiver<Status>>,
    seen: Seq,
    buffer: VecDeque<Row>,
    /// It has looked, there was nothing, and it is told of more.
    waiting: Option<Waiting>,
}

/// It outlives a `next` that is given up and asked for again, as those do who look at their watch meanwhile: it would have
/// to look into the journal each time otherwise.
#[derive(Debug)]
struct Waiting {
    watcher: Watcher,
    look_at: Option<Instant>,
}

impl RunHandle {
    pub(crate) fn new(
        engine: Engine,
        run: RunId,
        seen: Seq,
        ended: Option<oneshot::Receiver<Status>>,
    ) -> Self {
        Self { engine, run, ended, seen, buffer: VecDeque::new(), waiting: None }
    }

    /// The run.
    pub fn run(&self) -> RunId {
        self.run
    }

    /// Waits until the run is over, or waits for people.
    pub async fn ended(mut self) -> Result<Status, EngineError> {
        if let Some(ended) = self.ended.take()
            && let Ok(status) = ended.await
        {
            return Ok(status);
        }
        loop {
            let watcher = self.engine.watchers.listen(self.engine.store(), self.run);
            let info = self.engine.get(self.run).await?;
            if info.status.settles() {
                return Ok(info.status);
            }
            watcher.told(watcher.look_at()).await;
        }
    }

    /// The next event; `None` once the run is over and all were given.
    pub async fn next(&mut self) -> Result<Option<Row>, EngineError> {
        loop {
            if let Some(row) = self.buffer.pop_front() {
                self.seen = row.seq;
                return Ok(Some(row));
            }
            if let Some(waiting) = &self.waiting {
                waiting.watcher.told(waiting.look_at).await;
                self.waiting = None;
            }
            let watcher = self.engine.watchers.listen(self.engine.store(), self.run);
            // Before the journal: a run that is over now has all its events there.
            let over = self.engine.get(self.run).await?.status.is_end();
            self.buffer.extend(self.engine.store().journal(self.run, self.seen, 500).await?);
            if self.buffer.is_empty() {
                if over {
                    return Ok(None);
                }
                let look_at = watcher.look_at();
                self.waiting = Some(Waiting { watcher, look_at });
            }
        }
    }
}

/// Who in this process wants to know of which run.
#[derive(Debug, Default)]
pub(crate) struct Watchers {
    count: AtomicUsize,
    runs: Mutex<HashMap<RunId, Vec<Weak<Notify>>>>,
    /// There is a task that listens to other nodes.
    listening: AtomicBool,
    /// Every node tells us what it writes.
    trusted: AtomicBool,
    /// The database session that listens; 0 is none.
    session: AtomicI32,
    /// Ends with the engine, and the task that listens with it: it would keep a pool of connections open otherwise.
    gone: Gone,
}

#[derive(Debug, Default)]
struct Gone(CancellationToken);

impl Drop for Gone {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

impl Watchers {
    /// Hears of what the node of this process writes; and, while somebody listens, of what others write.
    pub(crate) fn watch(self: &Arc<Self>, run: RunId) -> Watcher {
        let notify = Arc::new(Notify::new());
        self.runs().entry(run).or_default().push(Arc::downgrade(&notify));
        self.count.fetch_add(1, Ordering::SeqCst);
        Watcher { notify, run, watchers: Arc::clone(self) }
    }

    /// Hears of what any node writes.
    fn listen(self: &Arc<Self>, store: &Store, run: RunId) -> Watcher {
        let watcher = self.watch(run);
        if !self.listening.swap(true, Ordering::SeqCst) {
            let (store, watchers, gone) = (store.clone(), Arc::downgrade(self), self.gone.0.clone());
            tokio::spawn(async move {
                tokio::select! {
                    () = gone.cancelled() => {}
                    () = listen(store, watchers) => {}
                }
            });
        }
        watcher
    }

    pub(crate) fn changed(&self, run: RunId) {
        if self.count.load(Ordering::Relaxed) == 0 {
            return;
        }
        for notify in self.runs().get(&run).into_iter().flatten().filter_map(Weak::upgrade) {
            notify.notify_one();
        }
    }

    /// The database session in which this process listens to others; 0 is none.
    pub(crate) fn session(&self) -> i32 {
        self.session.load(Ordering::SeqCst)
    }

    /// Watchers look for themselves.
    fn is_deaf(&self) {
        self.trusted.store(false, Ordering::SeqCst);
        self.session.store(0, Ordering::SeqCst);
        self.everything_changed();
    }

    fn everything_changed(&self) {
        for notify in self.runs().values().flatten().filter_map(Weak::upgrade) {
            notify.notify_one();
        }
    }

    fn runs(&self) -> MutexGuard<'_, HashMap<RunId, Vec<Weak<Notify>>>> {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Passes on what other nodes say, as long as somebody wants to know.
async fn listen(store: Store, watchers: Weak<Watchers>) {
    // Should this task ever panic, watchers look for themselves again.
    struct Deaf(Weak<Watchers>);
    impl Drop for Deaf {
        fn drop(&mut self) {
            let Some(watchers) = self.0.upgrade() else { return };
            watchers.is_deaf();
            watchers.listening.store(false, Ordering::SeqCst);
        }
    }
    let deaf = Deaf(watchers);
    loop {
        let heard = listen_once(&store, &deaf.0).await;
        let Some(watchers) = deaf.0.upgrade() else { return };
        watchers.is_deaf();
        drop(watchers);
        match heard {
            Ok(()) => return,
            Err(error) if error.is_passing() => {
                tracing::info!(
                    error = &error as &dyn std::error::Error,
                    "other nodes are not heard at this moment"
                );
            }
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "other nodes are not heard");
            }
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

async fn listen_once(store: &Store, watchers: &Weak<Watchers>) -> Result<(), StoreError> {
    let (mut ear, session) = store.patiently("listen to other nodes", store.ear()).await?;
    let Some(listening) = watchers.upgrade() else { return Ok(()) };
    listening.session.store(session, Ordering::SeqCst);
    drop(listening);
    let leases = store.patiently("look how long leases last", store.longest_lease()).await?;
    // Whoever has renewed its lease since then knows of us; whoever has not takes it that somebody watches. What was on
    // its way at that moment is written soon after, or never.
    let trusted_at = Instant::now() + leases + store.patience();
    let mut needed = Instant::now();
    let mut heard = Instant::now();
    loop {
        let now = Instant::now();
        let Some(listening) = watchers.upgrade() else { return Ok(()) };
        if now >= trusted_at {
            listening.trusted.store(true, Ordering::SeqCst);
        }
        if listening.count.load(Ordering::SeqCst) > 0 {
            needed = now;
        } else if now - needed > LINGER {
            return Ok(());
        }
        drop(listening);
        let mut until = now + PING;
        if now < trusted_at {
            until = until.min(trusted_at);
        }
        match tokio::time::timeout_at(until.into(), ear.try_recv()).await {
            Ok(Ok(Some(told))) => {
                let Some(listening) = watchers.upgrade() else { return Ok(()) };
                told.payload()
                    .split(',')
                    .filter_map(|run| run.parse().ok())
                    .for_each(|run| listening.changed(run));
            }
            // The connection was lost, and with it whatever was said meanwhile.
            Ok(Ok(None)) => return Err(StoreError::silent("listen to other nodes")),
            Ok(Err(error)) => return Err(StoreError::database("listen to other nodes")(error)),
            // A connection can fall silent without an error.
            Err(_) if heard.elapsed() >= PING => {
                store.patiently("listen to other nodes", Store::is_heard(&mut ear)).await?;
                heard = Instant::now();
            }
            Err(_) => {}
        }
    }
}

#[derive(Debug)]
pub(crate) struct Watcher {
    notify: Arc<Notify>,
    run: RunId,
    watchers: Arc<Watchers>,
}

impl Watcher {
    /// Ends when the node of this process has written of the run; of others it may not hear.
    pub(crate) async fn notified(&self) {
        self.notify.notified().await;
    }

    /// When to look although nobody has said anything: never, if everybody who writes says so.
    fn look_at(&self) -> Option<Instant> {
        if self.watchers.trusted.load(Ordering::SeqCst) {
            return None;
        }
        let all = self.watchers.count.load(Ordering::Relaxed);
        let pause =
            LOOK_AGAIN.max(Duration::from_secs(1) * u32::try_from(all / LOOKS_A_SECOND).unwrap_or(u32::MAX));
        Instant::now().checked_add(pause)
    }

    /// Ends when something may have been written of the run, or when it is time to look.
    async fn told(&self, look_at: Option<Instant>) {
        match look_at {
            None => self.notified().await,
            Some(at) => {
                let _ = tokio::time::timeout_at(at.into(), self.notified()).await;
            }
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        let mut runs = self.watchers.runs();
        if let Some(list) = runs.get_mut(&self.run) {
            list.retain(|other| other.upgrade().is_some_and(|other| !Arc::ptr_eq(&other, &self.notify)));
            if list.is_empty() {
                runs.remove(&self.run);
            }
        }
        self.watchers.count.fetch_sub(1, Ordering::SeqCst);
    }
}
