//! How nodes tell each other's watchers what they write.

use std::time::Duration;

use sqlx::PgConnection;
use sqlx::postgres::{PgListener, PgPoolOptions};

use super::{Batch, Store, StoreError};

/// Where nodes say of which runs they have written. It stands in the statements too.
const MOVED: &str = "backstay_moved";
/// So many runs fit into what Postgres takes as one message.
const IN_A_MESSAGE: usize = 200;

impl Store {
    /// A connection that hears what other nodes write, and shows them that somebody does; with its session's number.
    pub(crate) async fn ear(&self) -> Result<(PgListener, i32), StoreError> {
        let failed = StoreError::database("listen to other nodes");
        // One of its own: it is held for long.
        let options = self.options.clone().application_name("backstay ear");
        let pool = PgPoolOptions::new().max_connections(1).connect_with(options).await.map_err(&failed)?;
        let mut ear = PgListener::connect_with(&pool).await.map_err(&failed)?;
        ear.ignore_pool_close_event(true);
        ear.listen(MOVED).await.map_err(&failed)?;
        let session = sqlx::query_scalar!(
            r#"select pg_backend_pid() as "pid!" from pg_advisory_lock_shared(hashtext('backstay'), hashtext('ear'))"#
        )
        .fetch_one(&mut ear)
        .await
        .map_err(&failed)?;
        Ok((ear, session))
    }

    /// Whether the connection is there still.
    pub(crate) async fn is_heard(ear: &mut PgListener) -> Result<(), StoreError> {
        sqlx::query!("select").execute(ear).await.map_err(StoreError::database("listen to other nodes"))?;
        Ok(())
    }

    /// Whether anybody listens but this session.
    pub(crate) async fn is_watched(conn: &mut PgConnection, but: i32) -> Result<bool, StoreError> {
        sqlx::query_scalar!(
            r#"select exists (
                   select from pg_locks
                   where locktype = 'advisory' and pid <> $1 and objsubid = 2
                     and database = (select oid from pg_database where datname = current_database())
                     and classid::bigint = hashtext('backstay')::bigint & 4294967295
                     and objid::bigint = hashtext('ear')::bigint & 4294967295) as "it!""#,
            but
        )
        .fetch_one(conn)
        .await
        .map_err(StoreError::database("look whether anybody listens"))
    }

    /// How long the longest lease lasts from now.
    pub(crate) async fn longest_lease(&self) -> Result<Duration, StoreError> {
        let seconds = sqlx::query_scalar!(
            "select extract(epoch from max(lease_until) - clock_timestamp())::float8 from nodes where ended_at is null"
        )
        .fetch_one(&self.pool)
        .await
        .map_err(StoreError::database("look how long leases last"))?;
        Ok(Duration::try_from_secs_f64(seconds.unwrap_or(0.0)).unwrap_or_default())
    }
}

impl Batch {
    /// The runs of which it writes, as watchers are told.
    pub(super) fn moved(&self) -> Vec<String> {
        let of_index = self.changes.iter().map(|change| change.run);
        let mut runs: Vec<_> = self.events.iter().map(|(run, _)| *run).chain(of_index).collect();
        runs.sort_unstable();
        runs.dedup();
        let message = |runs: &[_]| runs.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        runs.chunks(IN_A_MESSAGE).map(message).collect()
    }
}
