//! Places for calls: what this node may begin, and who waits for it.
//!
//! ```text
//!   a step is due -> hands.take -> a slot, that lives as long as the call
//!                             '--> the queue: undos before steps, then by priority, then by age
//!   about once a second, for each pool in use:  ask -> (share.rs, under the lock of the pool's row) -> grant
//! ```
//!
//! While an ask is under way no more is begun than was under way when it was sent, and no rate is drawn on: whatever its
//! answer is, and even if it is lost, this node then has no more than the database says. A run that waits is a row of
//! the queue, not a task.

mod asking;
mod share;
#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use backstay_machine::plan::Work;
use backstay_machine::{ActivityError, Direction, Hands, Json, RunId, TARGET_DOWN};
use tokio::sync::mpsc;

pub(crate) use asking::{Answers, Asks, keep_asking};
pub use share::Breaker;
use share::{Ask, Grant, Heard};

/// How often a pool in use is asked for.
const OFTEN: Duration = Duration::from_secs(1);
/// And when somebody is owed something.
const SOON: Duration = Duration::from_millis(200);
/// Of a rate, so many seconds' worth may come at once.
const BURST: f64 = 0.05;

/// All pools that steps on this node have named.
pub(super) struct Pools {
    pools: HashMap<String, Pool>,
    asks: mpsc::UnboundedSender<Asks>,
    asking: bool,
    /// The age of who comes next.
    age: u64,
    /// Whose turn it is: it was taken out of that queue, and stands before all others.
    serving: Option<(String, RunId)>,
}

struct Pool {
    counts: Arc<Counts>,
    queue: BTreeMap<Rank, RunId>,
    ranks: HashMap<RunId, Rank>,
    /// What the database has granted; nothing before the first answer, and after it was given back.
    grant: Option<Grant>,
    /// What was under way when the ask was sent that has no answer yet.
    frozen: Option<u32>,
    tokens: f64,
    refilled: Instant,
    heard: Heard,
    /// A call has found the target down, and what that means is not known yet.
    doubted: bool,
    trial: Trial,
    next_ask: Instant,
}

/// Undos first, then the urgent ones, then the oldest.
type Rank = (Turn, Reverse<i16>, u64);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Turn {
    Undo,
    Step,
}

/// The one call that may be begun although the target is down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trial {
    None,
    Granted,
    Out,
}

#[derive(Debug, Default)]
struct Counts {
    busy: AtomicU32,
    /// The try has ended.
    tried: AtomicBool,
}

/// A place in a pool, for one call. It is free again when this is dropped.
#[derive(Debug)]
pub(crate) struct Slot {
    pool: String,
    counts: Arc<Counts>,
    is_try: bool,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.counts.busy.fetch_sub(1, Ordering::Relaxed);
        if self.is_try {
            self.counts.tried.store(true, Ordering::Relaxed);
        }
    }
}

impl Slot {
    pub(super) fn is_of(&self, pool: &str) -> bool {
        self.pool == pool
    }
}

impl Pool {
    fn new() -> Self {
        Self {
            counts: Arc::default(),
            queue: BTreeMap::new(),
            ranks: HashMap::new(),
            grant: None,
            frozen: None,
            tokens: 1.0,
            refilled: Instant::now(),
            heard: Heard::default(),
            doubted: false,
            trial: Trial::None,
            next_ask: Instant::now(),
        }
    }

    fn busy(&self) -> u32 {
        self.counts.busy.load(Ordering::Relaxed)
    }

    /// Whether a call may be begun now, its rate apart.
    fn has_place(&self) -> bool {
        let Some(grant) = &self.grant else { return false };
        if grant.outage.is_some() {
            return self.trial == Trial::Granted;
        }
        let most = grant.slots.map_or(u32::MAX, |slots| slots.min(self.frozen.unwrap_or(u32::MAX)));
        !self.doubted && self.busy() < most
    }

    /// Draws on the rate, and says what it is. While an ask is under way it may be less already: that time is settled
    /// with the answer.
    fn refill(&mut self, now: Instant) -> Option<f64> {
        let rate = self.grant.as_ref()?.rate?;
        if self.frozen.is_none() {
            self.draw(rate, now);
        }
        Some(rate)
    }

    fn draw(&mut self, rate: f64, now: Instant) {
        let most = (rate * BURST).max(1.0);
        let fresh = rate * now.saturating_duration_since(self.refilled).as_secs_f64();
        self.tokens = (self.tokens + fresh).min(most);
        self.refilled = now;
    }

    fn may_begin(&mut self, now: Instant) -> bool {
        self.has_place() && self.refill(now).is_none_or(|rate| rate > 0.0 && self.tokens >= 1.0)
    }

    /// When its rate allows the next call, if that is all that is waited for.
    fn next_token(&mut self, now: Instant) -> Option<Duration> {
        if self.queue.is_empty() || !self.has_place() {
            return None;
        }
        let rate = self.refill(now)?;
        let missing = (1.0 - self.tokens).max(0.0);
        // The answer comes first.
        if self.frozen.is_some() && missing > 0.0 {
            return None;
        }
        Duration::try_from_secs_f64(missing / rate.max(1e-6)).ok()
    }

    fn take(&mut self, name: &str) -> Slot {
        self.counts.busy.fetch_add(1, Ordering::Relaxed);
        if self.grant.as_ref().is_some_and(|grant| grant.rate.is_some()) {
            self.tokens -= 1.0;
        }
        let is_try = self.trial == Trial::Granted;
        if is_try {
            self.trial = Trial::Out;
            self.counts.tried.store(false, Ordering::Relaxed);
        }
        Slot { pool: name.to_owned(), counts: Arc::clone(&self.counts), is_try }
    }

    fn leave_queue(&mut self, run: RunId) {
        if let Some(rank) = self.ranks.remove(&run) {
            self.queue.remove(&rank);
        }
    }

    fn is_used(&self) -> bool {
        self.busy() > 0 || !self.queue.is_empty() || self.grant.is_some() || self.heard != Heard::default()
    }

    fn ask(&mut self) -> Ask {
        let ended = self.trial == Trial::Out && self.counts.tried.load(Ordering::Relaxed);
        let unwanted = self.trial == Trial::Granted && self.queue.is_empty();
        let tried = ended || unwanted;
        if tried {
            self.trial = Trial::None;
        }
        let waiting = u32::try_from(self.queue.len()).unwrap_or(u32::MAX);
        let heard = std::mem::take(&mut self.heard);
        self.refill(Instant::now());
        self.frozen = Some(self.busy());
        Ask { busy: self.busy(), waiting, heard, tried }
    }
}

impl Pools {
    pub(super) fn new(asks: mpsc::UnboundedSender<Asks>) -> Self {
        Self { pools: HashMap::new(), asks, asking: false, age: 0, serving: None }
    }

    /// The hands that are free for a run.
    pub(super) fn hands(&mut self, run: RunId, priority: i16, room: usize) -> Free<'_> {
        Free { pools: self, run, priority, room, taken: Vec::new(), refused: false, wants: Vec::new() }
    }

    /// The next run that waits and need not any more. It has left that queue.
    pub(super) fn next(&mut self) -> Option<RunId> {
        let now = Instant::now();
        for (name, pool) in &mut self.pools {
            if !pool.queue.is_empty()
                && pool.may_begin(now)
                && let Some((_, run)) = pool.queue.pop_first()
            {
                pool.ranks.remove(&run);
                self.serving = Some((name.clone(), run));
                return Some(run);
            }
        }
        self.serving = None;
        None
    }

    /// The run is not here any more.
    pub(super) fn forget(&mut self, run: RunId) {
        for pool in self.pools.values_mut() {
            pool.leave_queue(run);
        }
    }

    /// What a call has told of its target. A run that is in the middle of it has the slot yet.
    pub(super) fn heard(&mut self, slot: &Slot, result: &Result<Json, ActivityError>) {
        let Some(pool) = self.pools.get_mut(&slot.pool) else { return };
        match result {
            Ok(_) => {
                pool.heard = Heard { up: true, downs: 0, why: None };
                pool.doubted = false;
                if pool.grant.as_ref().is_some_and(|grant| grant.outage.is_some()) {
                    pool.next_ask = Instant::now();
                }
            }
            Err(error) if error.code == TARGET_DOWN => {
                pool.heard.downs += 1;
                pool.heard.why = Some(error.message.clone());
                pool.doubted = true;
                pool.next_ask = Instant::now();
            }
            Err(_) if slot.is_try => pool.next_ask = Instant::now(),
            Err(_) => {}
        }
    }

    /// How long there is nothing to do here.
    pub(super) fn pause(&mut self) -> Option<Duration> {
        let now = Instant::now();
        let asking = self.asking;
        let of = |pool: &mut Pool| {
            let ask = (!asking && pool.is_used()).then(|| pool.next_ask.saturating_duration_since(now));
            ask.into_iter().chain(pool.next_token(now)).min()
        };
        self.pools.values_mut().filter_map(of).min()
    }

    /// Asks for what is due, all in one go.
    pub(super) fn ask(&mut self) {
        let now = Instant::now();
        if self.asking {
            return;
        }
        let due = |(name, pool): (&String, &mut Pool)| {
            (pool.is_used() && pool.next_ask <= now).then(|| (name.clone(), pool.ask()))
        };
        let asks: Vec<_> = self.pools.iter_mut().filter_map(due).collect();
        self.asking = !asks.is_empty() && self.asks.send(asks).is_ok();
    }

    /// What came of it.
    pub(super) fn granted(&mut self, answers: Answers) {
        let now = Instant::now();
        self.asking = false;
        for (name, ask, answer) in answers {
            let Some(pool) = self.pools.get_mut(&name) else { continue };
            let frozen = pool.frozen.take();
            match answer {
                Ok(grant) => {
                    // Since it was asked: the less of what it had and what it has.
                    let had = pool.grant.as_ref().map_or(Some(0.0), |grant| grant.rate);
                    pool.draw(had.unwrap_or(f64::MAX).min(grant.rate.unwrap_or(0.0)), now);
                    pool.doubted = pool.heard.downs > 0;
                    if grant.try_it && pool.trial == Trial::None {
                        pool.trial = Trial::Granted;
                    } else if !grant.try_it && pool.trial == Trial::Granted {
                        pool.trial = Trial::None;
                    }
                    // More have come than the answer knows of.
                    let more = pool.queue.len() > ask.waiting as usize;
                    pool.next_ask = now + if grant.soon || more { SOON } else { OFTEN };
                    note(&name, pool, &grant);
                    // What nobody wants is given back.
                    let unused = ask.busy == 0 && ask.waiting == 0;
                    pool.grant = (!unused).then_some(grant);
                    // Somebody came while the answer was on its way.
                    if unused && !pool.queue.is_empty() {
                        pool.next_ask = now;
                    }
                }
                // Whether the database has settled it is not known: nothing more than what it had at least.
                Err(()) => {
                    pool.refilled = now;
                    if let Some(grant) = &mut pool.grant {
                        let least = frozen.unwrap_or(0);
                        grant.slots = grant.slots.map(|slots| slots.min(least));
                        grant.rate = grant.rate.map(|_| 0.0);
                    }
                    let unsaid = std::mem::replace(&mut pool.heard, ask.heard);
                    if unsaid.up {
                        pool.heard = unsaid;
                    } else {
                        pool.heard.downs += unsaid.downs;
                        pool.heard.why = unsaid.why.or(pool.heard.why.take());
                    }
                    if ask.tried {
                        pool.trial = Trial::Out;
                        pool.counts.tried.store(true, Ordering::Relaxed);
                    }
                    pool.next_ask = now + SOON;
                }
            }
        }
    }
}

fn note(name: &str, pool: &Pool, grant: &Grant) {
    let label = || name.to_owned();
    metrics::gauge!("backstay_pool_calls", "pool" => label()).set(f64::from(pool.busy()));
    metrics::gauge!("backstay_pool_waiting", "pool" => label()).set(pool.queue.len() as f64);
    metrics::gauge!("backstay_pool_outage", "pool" => label())
        .set(f64::from(u8::from(grant.outage.is_some())));
    if grant.turned {
        match &grant.outage {
            Some(outage) => tracing::warn!(
                pool = name,
                "the target is down: its steps wait for the end of this outage: {}",
                outage.why
            ),
            None => tracing::warn!(pool = name, "the target is back: its steps go on, a few at first"),
        }
        metrics::counter!("backstay_pool_outages_total", "pool" => label())
            .increment(u64::from(grant.outage.is_some()));
    }
}

/// The hands that are free for one run, for one decision.
pub(super) struct Free<'a> {
    pools: &'a mut Pools,
    run: RunId,
    priority: i16,
    room: usize,
    taken: Vec<Slot>,
    refused: bool,
    wants: Vec<(String, Turn)>,
}

impl Free<'_> {
    /// The places that were taken, and whether something was refused. What was refused over a pool waits there from now
    /// on.
    pub(super) fn end(self) -> (Vec<Slot>, bool) {
        let Self { pools, run, priority, taken, refused, wants, .. } = self;
        for (name, turn) in wants {
            let Some(pool) = pools.pools.get_mut(&name) else { continue };
            let age = match pool.ranks.get(&run) {
                // It keeps its place; one that turned round gets a better one.
                Some((before, ..)) if *before <= turn => continue,
                Some((.., age)) => *age,
                None => {
                    pools.age += 1;
                    pools.age
                }
            };
            pool.leave_queue(run);
            let rank = (turn, Reverse(priority), age);
            pool.queue.insert(rank, run);
            pool.ranks.insert(run, rank);
            if pool.grant.is_none() {
                pool.next_ask = Instant::now();
            }
        }
        (taken, refused)
    }
}

impl Hands for &mut Free<'_> {
    fn take(&mut self, work: &Work, direction: Direction) -> bool {
        if self.room == 0 {
            self.refused = true;
            return false;
        }
        if let Some(name) = &work.pool {
            let turn = if direction == Direction::Undo { Turn::Undo } else { Turn::Step };
            let Some(slot) = self.pools.take_for(self.run, self.priority, name, turn) else {
                self.refused = true;
                if !self.wants.iter().any(|(other, before)| other == name && *before <= turn) {
                    self.wants.push((name.clone(), turn));
                }
                return false;
            };
            self.taken.push(slot);
        }
        self.room -= 1;
        true
    }
}

impl Pools {
    fn take_for(&mut self, run: RunId, priority: i16, name: &str, turn: Turn) -> Option<Slot> {
        if !self.pools.contains_key(name) {
            self.pools.insert(name.to_owned(), Pool::new());
        }
        let pool = self.pools.get_mut(name)?;
        let served = self.serving.as_ref().is_some_and(|(of, who)| of == name && *who == run);
        // Nobody overtakes those who wait; who was called takes one place, and then stands behind them.
        let own = (turn, Reverse(priority), u64::MAX);
        let first =
            served || pool.queue.first_key_value().is_none_or(|(rank, who)| own < *rank || *who == run);
        if !first || !pool.may_begin(Instant::now()) {
            return None;
        }
        if served {
            self.serving = None;
        }
        Some(pool.take(name))
    }
}
