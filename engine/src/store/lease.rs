//! The lives of nodes. All times are the database's.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use backstay_machine::{Epoch, Time};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{Store, StoreError};

/// One life of a node: what it shows to write anything.
#[derive(Clone, Debug)]
pub struct Life {
    /// Its number.
    pub epoch: Epoch,
    /// Its secret, so that a rewound database cannot confuse two lives.
    pub token: Uuid,
    /// The node's name.
    pub name: String,
    /// Until then nobody elsewhere counts on being told of what is written under it.
    unwatched: Arc<Mutex<Option<Instant>>>,
}

impl Life {
    /// As the row of this life says.
    pub fn new(epoch: Epoch, token: Uuid, name: String) -> Self {
        Self { epoch, token, name, unwatched: Arc::default() }
    }

    pub(crate) fn unwatched_until(&self, until: Option<Instant>) {
        *self.unwatched.lock().unwrap_or_else(PoisonError::into_inner) = until;
    }

    /// Somebody elsewhere watches runs, or may.
    pub(super) fn is_watched(&self) -> bool {
        let until = *self.unwatched.lock().unwrap_or_else(PoisonError::into_inner);
        until.is_none_or(|until| Instant::now() >= until)
    }
}

/// A node as others see it.
#[derive(Clone, Debug, serde::Serialize)]
pub struct NodeInfo {
    /// The number of its life.
    pub epoch: i64,
    /// Its name.
    pub name: String,
    /// Since when.
    pub started_at: Time,
    /// How long it may write without renewing.
    pub lease_until: Time,
    /// When this life ended.
    pub ended_at: Option<Time>,
    /// How it ended.
    pub ended_why: Option<String>,
}

impl Store {
    /// Takes the name for this session. Only a hint: that it is free shows that the last process of this name
    /// is gone, so its runs need not wait for its lease to run out. The fence holds either way.
    pub(crate) async fn take_name(conn: &mut PgConnection, name: &str) -> Result<bool, StoreError> {
        sqlx::query_scalar!(
            r#"select pg_try_advisory_lock(hashtextextended('backstay node ' || $1, 0)) as "it!""#,
            name
        )
        .fetch_one(conn)
        .await
        .map_err(StoreError::database("take the node's name"))
    }

    /// Begins a life, and ends earlier ones of the same name. Lives that are long over and have no runs are forgotten.
    pub(crate) async fn begin_life(
        conn: &mut PgConnection,
        name: &str,
        activities: &[String],
        lease: Duration,
    ) -> Result<(Life, Time), StoreError> {
        let doing = "begin a lease";
        sqlx::query!(
            "with earlier as materialized (
                 select epoch from nodes where name = $1 and ended_at is null order by epoch for update
             )
             update nodes set ended_at = clock_timestamp(), ended_why = 'superseded'
             where epoch in (select epoch from earlier)",
            name
        )
        .execute(&mut *conn)
        .await
        .map_err(StoreError::database(doing))?;
        sqlx::query!(
            "delete from nodes
             where ended_at < clock_timestamp() - interval '7 days' and not exists (select from runs where owner = epoch)"
        )
        .execute(&mut *conn)
        .await
        .map_err(StoreError::database(doing))?;
        let token = Uuid::new_v4();
        let row = sqlx::query!(
            r#"insert into nodes (token, name, activities, lease_until, release)
               values ($1, $2, $3, clock_timestamp() + make_interval(secs => $4), $5)
               returning epoch, clock_timestamp() as "now!""#,
            token,
            name,
            activities,
            lease.as_secs_f64(),
            env!("CARGO_PKG_VERSION")
        )
        .fetch_one(conn)
        .await
        .map_err(StoreError::database(doing))?;
        Ok((Life::new(Epoch(row.epoch), token, name.to_owned()), row.now))
    }

    /// Renews a lease; the answer is the database's time. A life that has ended is not renewed.
    pub(crate) async fn renew(
        conn: &mut PgConnection,
        life: &Life,
        lease: Duration,
    ) -> Result<Time, StoreError> {
        sqlx::query_scalar!(
            r#"update nodes set lease_until = clock_timestamp() + make_interval(secs => $3)
               where epoch = $1 and token = $2 and ended_at is null
               returning clock_timestamp() as "now!""#,
            life.epoch.0,
            life.token,
            lease.as_secs_f64()
        )
        .fetch_optional(conn)
        .await
        .map_err(StoreError::database("renew the lease"))?
        .ok_or(StoreError::Fenced)
    }

    /// Ends the lives whose leases ran out. It waits for what is being written under them.
    pub(crate) async fn take_over(conn: &mut PgConnection) -> Result<Vec<String>, StoreError> {
        sqlx::query_scalar!(
            "with expired as materialized (
                 select epoch from nodes
                 where ended_at is null and lease_until < clock_timestamp()
                 order by epoch limit 16
                 for update
             )
             update nodes set ended_at = clock_timestamp(), ended_why = 'lost'
             where epoch in (select epoch from expired)
             returning name"
        )
        .fetch_all(conn)
        .await
        .map_err(StoreError::database("take over from a node whose lease ran out"))
    }

    /// Ends the own life: everything under it was written or given up.
    pub(crate) async fn end_life(conn: &mut PgConnection, life: &Life) -> Result<(), StoreError> {
        sqlx::query!(
            "with own as materialized (
                 select epoch from nodes where epoch = $1 and token = $2 and ended_at is null for update
             )
             update nodes set ended_at = clock_timestamp(), ended_why = 'stopped'
             where epoch in (select epoch from own)",
            life.epoch.0,
            life.token
        )
        .execute(conn)
        .await
        .map_err(StoreError::database("end the lease"))?;
        Ok(())
    }

    /// The nodes that are alive, and the last ones that ended.
    pub async fn nodes(&self) -> Result<Vec<NodeInfo>, StoreError> {
        sqlx::query_as!(
            NodeInfo,
            "select epoch, name, started_at, lease_until, ended_at, ended_why
             from nodes order by ended_at is not null, epoch desc limit 100"
        )
        .fetch_all(&self.pool)
        .await
        .map_err(StoreError::database("list the nodes"))
    }
}
