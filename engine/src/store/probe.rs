//! The store's statements on a connection of the caller's. Tests put them into transactions, which opens the
//! window between the effect of a statement and its commit, and interleave them. Not meant for anything else.

use std::collections::HashMap;
use std::time::Duration;

use backstay_machine::{Row, RunId, Time};
use sqlx::PgConnection;

use super::{
    Admission, Appended, Batch, Claimed, Letter, Life, Outgoing, PoolRow, Purged, Refusal, ShareRow, Store,
    StoreError, Told,
};

/// A session as the parts of a node have it.
pub async fn session(store: &Store, purpose: &str) -> Result<PgConnection, StoreError> {
    store.dedicated(purpose).await
}

/// What the writer does.
pub async fn append(conn: &mut PgConnection, life: &Life, batch: &Batch) -> Result<Appended, StoreError> {
    Store::append(conn, life, batch).await
}

/// What the writer does where it takes more than one statement.
pub async fn append_all(conn: &mut PgConnection, life: &Life, batch: &Batch) -> Result<Appended, StoreError> {
    Store::append_all(conn, life, batch).await
}

/// What the writer does, over lost connections.
pub async fn append_surely(
    store: &Store,
    conn: &mut Option<PgConnection>,
    life: &Life,
    batch: &Batch,
) -> Result<Appended, StoreError> {
    super::append_surely(store, conn, life, batch).await
}

/// What the scout does about runs that nobody has.
pub async fn claim_due(
    conn: &mut PgConnection,
    life: &Life,
    activities: &[String],
    most: i64,
) -> Result<Vec<Claimed>, StoreError> {
    Store::claim_due(conn, life, activities, most).await
}

/// What the scout does about runs whose node is gone.
pub async fn claim_orphans(
    conn: &mut PgConnection,
    life: &Life,
    activities: &[String],
    suspects: bool,
    most: i64,
) -> Result<Vec<Claimed>, StoreError> {
    Store::claim_orphans(conn, life, activities, suspects, most).await
}

/// What the scout does after a claim.
pub async fn journals(
    conn: &mut PgConnection,
    runs: &[RunId],
) -> Result<HashMap<RunId, Vec<Row>>, StoreError> {
    Store::journals(conn, runs).await
}

/// What whoever speaks to runs does.
pub async fn tell(conn: &mut PgConnection, messages: &[Outgoing]) -> Result<Vec<Told>, StoreError> {
    Store::tell_on(conn, messages).await
}

/// What the scout does about messages.
pub async fn mail(
    conn: &mut PgConnection,
    life: &Life,
    after: i64,
    most: i64,
) -> Result<Vec<Letter>, StoreError> {
    Store::mail(conn, life, after, most).await
}

/// What it does about messages to runs that it has just claimed.
pub async fn mail_for(
    conn: &mut PgConnection,
    runs: &[RunId],
) -> Result<HashMap<RunId, Vec<Letter>>, StoreError> {
    Store::mail_for(conn, runs).await
}

/// How a life begins.
pub async fn begin_life(
    conn: &mut PgConnection,
    name: &str,
    activities: &[String],
    lease: Duration,
) -> Result<(Life, Time), StoreError> {
    Store::begin_life(conn, name, activities, lease).await
}

/// From here on nobody is told of what is written under it. Commits that tell somebody wait for each other, over all
/// databases of a server: beside other tests they would seem to wait for what is being tested.
pub fn unwatched(life: &Life) {
    let long = std::time::Instant::now() + Duration::from_secs(86_400);
    life.unwatched_until(Some(long));
}

/// How it goes on.
pub async fn renew(conn: &mut PgConnection, life: &Life, lease: Duration) -> Result<Time, StoreError> {
    Store::renew(conn, life, lease).await
}

/// How others end it.
pub async fn take_over(conn: &mut PgConnection) -> Result<Vec<String>, StoreError> {
    Store::take_over(conn).await
}

/// How it ends itself.
pub async fn end_life(conn: &mut PgConnection, life: &Life) -> Result<(), StoreError> {
    Store::end_life(conn, life).await
}

/// What a node does about a pool.
pub async fn settle_share<T>(
    conn: &mut PgConnection,
    life: &Life,
    pool: &str,
    settle: impl FnOnce(&mut PoolRow, &[ShareRow], Time) -> (ShareRow, T),
) -> Result<T, StoreError> {
    Store::settle_share(conn, life, pool, settle).await
}

/// What removes runs.
pub async fn purge(
    conn: &mut PgConnection,
    older_than: Duration,
    keep_keys: Duration,
    batch: i64,
) -> Result<Purged, StoreError> {
    Store::purge_on(conn, older_than, keep_keys, batch).await
}

/// What the scout does about runs that stand in line.
pub async fn call_next(conn: &mut PgConnection) -> Result<Vec<RunId>, StoreError> {
    Store::call_next(conn).await
}

/// What whoever submits does where no node is.
pub async fn admit(conn: &mut PgConnection, admission: &Admission, first: &Row) -> Result<bool, StoreError> {
    Store::admit_on(conn, admission, first).await
}

/// And what it asks if that was refused.
pub async fn refusal(store: &Store, admission: &Admission) -> Result<Option<Refusal>, StoreError> {
    store.refusal(admission).await
}
