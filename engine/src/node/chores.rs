//! What a node does beside its runs: it removes what is over for long.

use std::time::{Duration, Instant};

use sqlx::PgConnection;

use super::Shared;
use crate::store::{Purged, Store, StoreError};

/// Runs removed in one commit: few enough that nobody waits for it, enough to share what a commit costs.
const BATCH: i64 = 200;
/// How often it looks while there is nothing to remove.
const LOOK: Duration = Duration::from_secs(60);

/// Any number of nodes may do this side by side: each leaves out what another has in hand.
pub(super) async fn keep_house(shared: Shared) {
    let Some(keep) = shared.config.keep_finished else { return };
    let mut conn = None;
    loop {
        let begun = Instant::now();
        let purging =
            shared.store.patiently("remove runs that are over", purge(&shared, &mut conn, keep)).await;
        let pause = match purging {
            Ok(purged) => {
                metrics::counter!("backstay_purged_runs_total").increment(purged.runs.unsigned_abs());
                // Four parts of five are for the runs.
                if purged.runs > 0 || purged.keys > 0 { begun.elapsed() * 4 } else { LOOK }
            }
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "removing what is over is tried again");
                conn = None;
                LOOK / 10
            }
        };
        tokio::time::sleep(pause).await;
    }
}

async fn purge(
    shared: &Shared,
    conn: &mut Option<PgConnection>,
    keep: Duration,
) -> Result<Purged, StoreError> {
    let open = match conn {
        Some(open) => open,
        None => conn.insert(shared.store.dedicated("purge").await?),
    };
    Store::within(open, async |conn| {
        let purged = Store::purge_on(conn, keep, shared.config.keep_keys, BATCH).await?;
        shared.crash_point("purge.mid").await;
        Ok(purged)
    })
    .await
}
