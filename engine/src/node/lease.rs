//! Keeps a node's lease, on a thread and a connection of its own: no load of the node can starve it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use backstay_machine::Time;
use chrono::{SubsecRound, TimeDelta};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::store::{Life, Store, StoreError};
use crate::watch::Watchers;

/// What is known of the lease and of the database's time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lease {
    /// No call is started after this instant: counted from before the renewal was sent, less a margin.
    pub safe_until: Instant,
    /// A time that the database had already reached ...
    time: Time,
    /// ... at this instant. So `now` is never ahead of the database.
    seen: Instant,
    /// What was told already: the database's clock may step back, and two clocks run at two speeds; a node's time
    /// never goes back.
    floor: Time,
}

impl Lease {
    pub(crate) fn renewed(sent: Instant, time: Time, ttl: Duration) -> Self {
        Self { safe_until: sent + ttl.mul_f64(0.75), time, seen: Instant::now(), floor: time }
    }

    /// A time that the database has reached by now.
    /// In whole microseconds, as the journal keeps it: what is folded live and after a crash is the same.
    pub(crate) fn now(&self) -> Time {
        (self.time + TimeDelta::from_std(self.seen.elapsed()).unwrap_or_default())
            .max(self.floor)
            .trunc_subsecs(6)
    }

    /// How long ago it was renewed.
    pub(crate) fn age(&self) -> Duration {
        self.seen.elapsed()
    }

    pub(crate) fn is_safe(&self) -> bool {
        Instant::now() < self.safe_until
    }
}

/// Keeps one lease.
pub(crate) struct Keeper {
    pub store: Store,
    pub conn: sqlx::PgConnection,
    pub life: Life,
    /// How long it lasts.
    pub ttl: Duration,
    /// When it was first asked for.
    pub begun: Instant,
    pub watchers: Arc<Watchers>,
    pub lease: watch::Sender<Lease>,
    pub lost: CancellationToken,
}

impl Keeper {
    /// Starts the thread. It ends when `stop` is cancelled, or cancels `lost` when the lease is.
    pub(crate) fn start(self, stop: CancellationToken) -> std::io::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        std::thread::Builder::new().name("backstay-lease".into()).spawn(move || {
            runtime.block_on(async move {
                // Should this thread ever panic, the lease is as good as lost.
                let _lost = self.lost.clone().drop_guard();
                stop.run_until_cancelled(renew_for_ever(self)).await;
            });
        })?;
        Ok(())
    }
}

/// After a lease was begun or renewed, not with it: whoever began to watch before this look is seen, and whoever begins
/// after it sees how long this lease lasts.
pub(crate) async fn tell_watchers_if_any(
    store: &Store,
    conn: &mut sqlx::PgConnection,
    life: &Life,
    watchers: &Watchers,
    lease: &Lease,
) {
    let looking = Store::is_watched(conn, watchers.session());
    let watched = store.patiently("look whether anybody listens", looking).await.unwrap_or(true);
    life.unwatched_until((!watched).then_some(lease.safe_until));
}

async fn renew_for_ever(keeper: Keeper) {
    let Keeper { store, conn, life, ttl, begun, watchers, lease, lost } = keeper;
    let mut conn = Some(conn);
    let calm = ttl / 3;
    let mut pause = calm;
    // Counted from before the first lease was asked for.
    let mut ends = begun + ttl;
    loop {
        tokio::time::sleep_until((Instant::now() + pause).min(ends).into()).await;
        let sent = Instant::now();
        let renewal = async {
            let open = match &mut conn {
                Some(open) => open,
                None => {
                    let mut fresh = store.dedicated("lease").await?;
                    // Only a hint for a successor of the same name; without it that one waits for the lease.
                    Store::take_name(&mut fresh, &life.name).await?;
                    conn.insert(fresh)
                }
            };
            let time = Store::renew(open, &life, ttl).await?;
            let renewed = Lease::renewed(sent, time, ttl);
            tell_watchers_if_any(&store, open, &life, &watchers, &renewed).await;
            Ok(renewed)
        };
        // At the end of the lease at the latest every call is hung up on: from then on somebody else may take the
        // runs over, and goes by the time at which nothing of ours is under way any more.
        let Ok(renewed) = tokio::time::timeout_at(ends.into(), renewal).await else {
            tracing::warn!("the lease ran out before the database answered");
            lost.cancel();
            return;
        };
        match renewed {
            Ok(renewed) => {
                ends = sent + ttl;
                metrics::gauge!("backstay_lease_renewal_seconds").set(sent.elapsed().as_secs_f64());
                lease.send_modify(|lease| *lease = Lease { floor: lease.now(), ..renewed });
                pause = calm;
            }
            Err(StoreError::Fenced) => {
                lost.cancel();
                return;
            }
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "the lease could not be renewed");
                conn = None;
                pause = (calm / 4).min(Duration::from_secs(1));
            }
        }
    }
}
