//! Asks the database, on a connection of its own: for what pools the driver says, one short transaction each.

use backstay_machine::Time;
use sqlx::PgConnection;
use tokio::sync::mpsc;

use super::super::{Message, Shared};
use super::share::{Ask, Grant, settle};
use crate::store::{Store, StoreError};

/// What is asked for which pool.
pub(crate) type Asks = Vec<(String, Ask)>;

/// And what came of it; nothing is known of one that failed.
pub(crate) type Answers = Vec<(String, Ask, Result<Grant, ()>)>;

pub(crate) async fn keep_asking(shared: Shared, mut asks: mpsc::UnboundedReceiver<Asks>) {
    let mut conn = None;
    while let Some(asks) = asks.recv().await {
        let mut answers = Vec::with_capacity(asks.len());
        for (pool, ask) in asks {
            let asked = asked(&shared, &mut conn, &pool, &ask);
            let answer = shared.store.patiently("settle the share of a pool", asked).await;
            let answer = answer.map_err(|error| {
                conn = None;
                // Without its lease the node ends anyway.
                if !matches!(error, StoreError::Fenced) {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(
                        pool,
                        error,
                        "the share of a pool could not be settled; it is tried again"
                    );
                }
            });
            answers.push((pool, ask, answer));
        }
        if shared.inbox.send(Message::Granted(answers)).is_err() {
            return;
        }
    }
}

async fn asked(
    shared: &Shared,
    conn: &mut Option<PgConnection>,
    pool: &str,
    ask: &Ask,
) -> Result<Grant, StoreError> {
    let open = match conn {
        Some(open) => open,
        None => conn.insert(shared.store.dedicated("pools").await?),
    };
    let own = (shared.life.epoch.0, shared.life.name.as_str());
    let breaker = &shared.config.breaker;
    Store::settle_share(open, &shared.life, pool, |row, others, now: Time| {
        settle(row, own, others, ask, breaker, now)
    })
    .await
}
