//! Finds runs for the node: through the same door after a crash, after a wait and for the first time.

use std::collections::{HashMap, VecDeque};
use std::panic::AssertUnwindSafe;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use backstay_machine::{Chain, Plan, Row, RunId, STATUSES, State, Status};
use futures_util::FutureExt;
use sha2::{Digest, Sha256};
use sqlx::PgConnection;
use sqlx::postgres::PgListener;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::failing::Failing;
use super::{Found, Message, Shared, lock};
use crate::store::{Claimed, Letter, Store, StoreError};

/// Runs claimed at once: enough to share a round trip, few enough that others get some.
const BATCH: i64 = 500;

/// Journals read and folded at once: not all of a batch need fit into memory side by side.
const READ: usize = 32;

/// Messages handed to the driver at once: they may be large.
const PAGE: i64 = 200;

/// Plans in memory by the digest of their text, so that runs of the same plan share it.
type Plans = HashMap<[u8; 32], Weak<Plan>>;

pub(super) struct Scout {
    shared: Shared,
    stop: CancellationToken,
    conn: Option<PgConnection>,
    listener: Option<PgListener>,
    /// Plans that runs in memory have in common.
    plans: Plans,
    /// Runs that were there when a node died, and when they are cleared of it. One that was there twice is watched
    /// alone.
    on_watch: VecDeque<(Instant, RunId)>,
    /// The answer to a claim may have been lost: when to look for it. At once, and again when the statement that was
    /// lost cannot be under way any more.
    unsure: Vec<Instant>,
    gauged: Option<Instant>,
}

impl Scout {
    pub(super) fn new(shared: Shared, stop: CancellationToken) -> Self {
        Self {
            shared,
            stop,
            conn: None,
            listener: None,
            plans: HashMap::new(),
            on_watch: VecDeque::new(),
            unsure: Vec::new(),
            gauged: None,
        }
    }

    pub(super) async fn work(mut self) {
        let stop = self.stop.clone();
        let working = async {
            loop {
                match self.round().await {
                    Ok(()) => {}
                    Err(error) => {
                        tracing::warn!(
                            error = &error as &dyn std::error::Error,
                            "looking for runs is tried again"
                        );
                        self.conn = None;
                        self.listener = None;
                        let now = Instant::now();
                        self.unsure = vec![now, now + self.shared.store.patience()];
                    }
                }
                self.gauge().await;
                self.wait().await;
            }
        };
        stop.run_until_cancelled(working).await;
    }

    /// What only the database knows, for those who watch the metrics; now and then, and never in the way.
    async fn gauge(&mut self) {
        const EVERY: Duration = Duration::from_secs(15);
        metrics::gauge!("backstay_lease_age_seconds").set(self.shared.lease.borrow().age().as_secs_f64());
        if self.gauged.is_some_and(|at| at.elapsed() < EVERY) {
            return;
        }
        self.gauged = Some(Instant::now());
        let store = &self.shared.store;
        if let Ok(silent) = store.patiently("look for silent runs", store.silent(100)).await {
            metrics::gauge!("backstay_silent_runs").set(silent.len() as f64);
            for (run, why) in silent {
                tracing::error!(%run, "nothing moves this run: {why}");
            }
        }
        if let Ok(counts) = store.patiently("count the runs", store.count_live()).await {
            for status in STATUSES.map(Status::as_str) {
                let count = counts.iter().find(|(name, _)| name == status).map_or(0, |(_, count)| *count);
                metrics::gauge!("backstay_runs", "status" => status).set(count as f64);
            }
        }
    }

    /// Notifications make it faster; losing all of them costs one poll.
    async fn wait(&mut self) {
        let poll = self.shared.config.poll;
        if self.listener.is_none() {
            let store = &self.shared.store;
            self.listener = store.patiently("listen for work", store.listener()).await.ok();
            if self.listener.is_some() {
                // What was told after the last look and before this was told to nobody.
                return;
            }
        }
        let Some(listener) = &mut self.listener else { return tokio::time::sleep(poll).await };
        let told = async {
            tokio::select! {
                told = listener.try_recv() => told.is_ok_and(|told| told.is_some()),
                () = self.shared.look.notified() => true,
            }
        };
        match tokio::time::timeout(poll, told).await {
            // One look is enough for all that were told meanwhile.
            Err(_) | Ok(true) => while let Some(Ok(Some(_))) = listener.try_recv().now_or_never() {},
            Ok(false) => {
                self.listener = None;
                tokio::time::sleep(poll).await;
            }
        }
    }

    /// Takes what there is, batch after batch; the next is claimed once the one before is journaled.
    async fn round(&mut self) -> Result<(), StoreError> {
        let shared = self.shared.clone();
        let names = shared.registry.all_names();
        let store = &shared.store;
        let conn = match &mut self.conn {
            Some(conn) => conn,
            None => {
                self.conn.insert(store.patiently("connect to the database", store.dedicated("scout")).await?)
            }
        };
        // After an outage everybody's lease has run out, by the database's clock: who has not renewed its own ends
        // nobody else's, and not its own either.
        if !shared.lease.borrow().is_safe() {
            return Ok(());
        }
        for name in store.patiently("take over", Store::take_over(conn)).await? {
            tracing::warn!(node = name, "a node's lease ran out; its runs are taken over");
        }
        if !store.patiently("look who stands in line", Store::call_next(conn)).await?.is_empty() {
            store.patiently("wake up other nodes", store.notify()).await?;
        }
        self.end_trials();
        self.hand_out_mail().await?;
        loop {
            let resident = shared.resident.load(Ordering::Relaxed);
            let room = shared.config.max_runs.saturating_sub(resident).min(BATCH as usize) as i64;
            if room == 0 || !shared.lease.borrow().is_safe() {
                return Ok(());
            }
            let Some(conn) = &mut self.conn else { return Ok(()) };
            let mut claimed = Vec::new();
            if self.unsure.first().is_some_and(|at| *at <= Instant::now()) {
                let owned = store.patiently("list own runs", Store::owned(conn, &shared.life)).await?;
                let (reply, unknown) = oneshot::channel();
                if shared.inbox.send(Message::Unknown { owned, reply }).is_err() {
                    return Ok(());
                }
                let mut unknown = unknown.await.unwrap_or_default();
                if unknown.len() > room as usize {
                    unknown.truncate(room as usize);
                    self.unsure.push(Instant::now());
                }
                claimed =
                    store.patiently("claim", Store::claim_forgotten(conn, &shared.life, &unknown)).await?;
                self.unsure.remove(0);
            }
            if claimed.is_empty() {
                claimed = store
                    .patiently("claim", Store::claim_orphans(conn, &shared.life, &names, false, room))
                    .await?;
            }
            let on_trial = lock(&shared.suspect).is_some();
            if claimed.is_empty() && !on_trial {
                claimed = store
                    .patiently("claim", Store::claim_orphans(conn, &shared.life, &names, true, 1))
                    .await?;
                if let Some(suspect) = claimed.first() {
                    let run = suspect.run;
                    tracing::warn!(%run, crashes = suspect.crashes, "this run was there when nodes died; it is watched alone");
                    *lock(&shared.suspect) = Some(run);
                }
            }
            if claimed.is_empty() {
                claimed =
                    store.patiently("claim", Store::claim_due(conn, &shared.life, &names, room)).await?;
            }
            if claimed.is_empty() {
                return Ok(());
            }
            shared.crash_point("claim.committed").await;
            let clear_at = Instant::now() + shared.config.trial;
            let suspects = claimed.iter().filter(|claimed| claimed.crashes > 0);
            self.on_watch.extend(suspects.map(|claimed| (clear_at, claimed.run)));
            let mut found = Vec::with_capacity(claimed.len());
            for some in claimed.chunks(READ) {
                let runs: Vec<_> = some.iter().map(|claimed| claimed.run).collect();
                let Some(conn) = &mut self.conn else { return Ok(()) };
                let mut journals = store.patiently("read journals", Store::journals(conn, &runs)).await?;
                // With the run, or it would be put down again before anybody has read what it was told.
                let told: Vec<_> = some.iter().filter(|run| run.mail > run.told).map(|run| run.run).collect();
                let mut mail = HashMap::new();
                if !told.is_empty() {
                    mail = store.patiently("look into the inbox", Store::mail_for(conn, &told)).await?;
                    shared.crash_point("mail.read").await;
                }
                for claimed in some {
                    let rows = journals.remove(&claimed.run).unwrap_or_default();
                    let letters = mail.remove(&claimed.run).unwrap_or_default();
                    found.push(self.found(claimed.clone(), letters, &rows));
                }
            }
            shared.crash_point("claim.read").await;
            let (done, journaled) = oneshot::channel();
            if shared.inbox.send(Message::Claimed { runs: found, done }).is_err() {
                return Ok(());
            }
            let _ = journaled.await;
        }
    }

    /// Hands over what has been said to the runs that this node has. What it has not (it has just given them up, or
    /// their claim's answer was lost) stays in the inbox for whoever has them next.
    async fn hand_out_mail(&mut self) -> Result<(), StoreError> {
        let mut after = 0;
        loop {
            let Some(conn) = &mut self.conn else { return Ok(()) };
            let looking = Store::mail(conn, &self.shared.life, after, PAGE);
            let letters = self.shared.store.patiently("look into the inbox", looking).await?;
            let Some(last) = letters.last() else { return Ok(()) };
            after = last.nr;
            let more = letters.len() as i64 == PAGE;
            self.shared.crash_point("mail.read").await;
            let (done, journaled) = oneshot::channel();
            if self.shared.inbox.send(Message::Mail { letters, done }).is_err() {
                return Ok(());
            }
            let _ = journaled.await;
            if !more {
                return Ok(());
            }
        }
    }

    fn end_trials(&mut self) {
        while let Some((_, run)) = self.on_watch.pop_front_if(|(clear_at, _)| Instant::now() > *clear_at) {
            let _ = self.shared.inbox.send(Message::Acquit(run));
            self.shared.acquit(run);
        }
    }

    /// Folds one journal. What goes wrong there is that run's affair alone.
    fn found(&mut self, claimed: Claimed, letters: Vec<Letter>, rows: &[Row]) -> Found {
        let run = claimed.run;
        let last = rows.last().map_or(0, |row| row.seq);
        let folded = std::panic::catch_unwind(AssertUnwindSafe(|| fold(run, rows, &mut self.plans)));
        let state = match folded {
            Ok(Ok(state)) => Ok(Box::new(state)),
            Ok(Err(why)) => Err((last, why)),
            Err(_) => Err((last, "folding its journal panicked".into())),
        };
        let mut chain = Chain::new(run);
        rows.iter().for_each(|row| chain.link(row));
        Found { claimed, letters, chain, failing: Failing::of(rows), state }
    }
}

fn fold(run: RunId, rows: &[Row], plans: &mut Plans) -> Result<State, String> {
    let first = rows.first().ok_or("its journal is empty")?;
    let body = first.body.as_ref().ok_or("its first event has no plan")?;
    let digest: [u8; 32] = Sha256::digest(body.as_str()).into();
    let plan = match plans.get(&digest).and_then(Weak::upgrade) {
        Some(plan) => plan,
        None => {
            let plan = Plan::from_submitted(body).map_err(|error| error.to_string())?;
            if plans.len() > 10_000 {
                plans.retain(|_, plan| plan.strong_count() > 0);
            }
            plans.insert(digest, Arc::downgrade(&plan));
            plan
        }
    };
    State::from_rows_under(run, plan, rows)
}
