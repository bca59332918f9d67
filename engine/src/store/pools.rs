//! The limits of targets, and what each life holds of them.

use std::collections::HashMap;

use backstay_machine::Time;
use sqlx::PgConnection;

use super::access::{Change, Changed, changed};
use super::{Life, Store, StoreError};

/// A pool as the database has it.
#[derive(Clone, Debug, PartialEq)]
pub struct PoolRow {
    /// Calls at once, on all nodes together.
    pub at_once: Option<i32>,
    /// Calls that begin in a second.
    pub per_second: Option<f64>,
    /// Calls in a row that found the target down.
    pub failures: i32,
    /// It is taken for down.
    pub outage: Option<Outage>,
    /// When the last outage ended, while its limit still grows.
    pub back_since: Option<Time>,
}

/// A target that is taken for down: nothing is begun there but a try now and then, and not even that if a person said
/// so. All steps that need the target wait for the end of this one outage; its pool and its beginning name it.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Outage {
    /// Since when.
    pub since: Time,
    /// What the last call said, or who declared it.
    pub why: String,
    /// Who declared it, and has to end it. Nobody: the nodes have found it down.
    pub declarer: Option<String>,
    /// Tries since then, all in vain.
    pub tries: i32,
    /// When it is tried next.
    pub next_try: Option<Time>,
    /// The life that tries it now.
    pub trier: Option<i64>,
}

/// What a life holds of a pool.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct ShareRow {
    /// Which life.
    pub epoch: i64,
    /// Its node.
    pub node: String,
    /// Calls that it may have under way; left out: as many as it likes.
    pub slots: Option<i32>,
    /// Calls a second that it may begin.
    pub rate: Option<f64>,
    /// Calls under way, when it said so last.
    pub busy: i32,
    /// Runs that waited there for a place.
    pub waiting: i32,
}

/// A pool, for people.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct PoolInfo {
    /// Its name.
    pub name: String,
    /// Calls at once, on all nodes together; left out: not limited.
    pub at_once: Option<i32>,
    /// Calls that begin in a second; left out: not limited.
    pub per_second: Option<f64>,
    /// Calls under way, on all nodes: as they said last, a second or so ago.
    pub busy: i64,
    /// Runs that wait for a place, on all nodes.
    pub waiting: i64,
    /// It is taken for down.
    pub outage: Option<Outage>,
    /// It was down until then, and its limit still grows.
    pub back_since: Option<Time>,
    /// Counts the changes of its limits.
    pub version: i32,
    /// Who holds what of it.
    pub shares: Vec<ShareRow>,
}

/// How many calls a target bears. What is left out is not limited.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Limits {
    /// Calls at once, on all nodes together.
    pub at_once: Option<u32>,
    /// Calls that begin in a second, on all nodes together.
    pub per_second: Option<f64>,
}

struct PoolEntry {
    name: String,
    at_once: Option<i32>,
    per_second: Option<f64>,
    down_since: Option<Time>,
    why: Option<String>,
    declarer: Option<String>,
    tries: i32,
    next_try: Option<Time>,
    trier: Option<i64>,
    back_since: Option<Time>,
    version: i32,
}

struct Found {
    at_once: Option<i32>,
    per_second: Option<f64>,
    failures: i32,
    down_since: Option<Time>,
    why: Option<String>,
    declarer: Option<String>,
    tries: i32,
    next_try: Option<Time>,
    trier: Option<i64>,
    back_since: Option<Time>,
    now: Time,
}

impl Found {
    fn read(self) -> (PoolRow, Time) {
        let Self { at_once, per_second, failures, back_since, declarer, tries, next_try, trier, now, .. } =
            self;
        let outage = self.down_since.zip(self.why);
        let outage = outage.map(|(since, why)| Outage { since, why, declarer, tries, next_try, trier });
        (PoolRow { at_once, per_second, failures, outage, back_since }, now)
    }
}

impl Store {
    /// Settles what this life holds of a pool: `settle` is given the pool, what the other lives hold that go on, and
    /// the time, and says what it is from now on. The pool's row is locked meanwhile, and the shares are read after
    /// that, so no two lives are given the same place.
    pub(crate) async fn settle_share<T>(
        conn: &mut PgConnection,
        life: &Life,
        pool: &str,
        settle: impl FnOnce(&mut PoolRow, &[ShareRow], Time) -> (ShareRow, T),
    ) -> Result<T, StoreError> {
        Self::within(conn, async |conn| {
            let failed = StoreError::database("settle the share of a pool");
            let (before, now) = match Self::lock_pool(conn, life, pool).await? {
                Some(found) => found,
                None => {
                    sqlx::query!("insert into pools (name) values ($1) on conflict do nothing", pool)
                        .execute(&mut *conn)
                        .await
                        .map_err(&failed)?;
                    Self::lock_pool(conn, life, pool).await?.ok_or(StoreError::Fenced)?
                }
            };
            let others = sqlx::query_as!(
                ShareRow,
                "select s.epoch, n.name as node, s.slots, s.rate, s.busy, s.waiting
                 from pool_shares s join nodes n on n.epoch = s.epoch and n.ended_at is null
                 where s.pool = $1 and s.epoch <> $2",
                pool,
                life.epoch.0
            )
            .fetch_all(&mut *conn)
            .await
            .map_err(&failed)?;
            let mut after = before.clone();
            let (own, answer) = settle(&mut after, &others, now);
            Self::write_share(conn, pool, &own).await?;
            if after != before {
                Self::write_pool(conn, pool, &after).await?;
            }
            Ok(answer)
        })
        .await
    }

    /// Nothing, if there is no such pool, or if this life is over.
    async fn lock_pool(
        conn: &mut PgConnection,
        life: &Life,
        pool: &str,
    ) -> Result<Option<(PoolRow, Time)>, StoreError> {
        let found = sqlx::query_as!(
            Found,
            r#"with fence as materialized (
                   select 1 from nodes where epoch = $1 and token = $2 and ended_at is null for key share
               )
               select at_once, per_second, failures, down_since, why, declarer, tries, next_try, trier, back_since,
                      clock_timestamp() as "now!"
               from pools, fence where name = $3 for update of pools"#,
            life.epoch.0,
            life.token,
            pool
        )
        .fetch_optional(conn)
        .await
        .map_err(StoreError::database("settle the share of a pool"))?;
        Ok(found.map(Found::read))
    }

    async fn write_share(conn: &mut PgConnection, pool: &str, own: &ShareRow) -> Result<(), StoreError> {
        sqlx::query!(
            "with gone as (
                 delete from pool_shares s
                 where s.pool = $1 and s.epoch <> $2
                   and not exists (select from nodes n where n.epoch = s.epoch and n.ended_at is null)
             )
             insert into pool_shares (pool, epoch, slots, rate, busy, waiting) values ($1, $2, $3, $4, $5, $6)
             on conflict (pool, epoch) do update
             set slots = excluded.slots, rate = excluded.rate, busy = excluded.busy, waiting = excluded.waiting,
                 at = clock_timestamp()",
            pool,
            own.epoch,
            own.slots,
            own.rate,
            own.busy,
            own.waiting
        )
        .execute(conn)
        .await
        .map_err(StoreError::database("settle the share of a pool"))?;
        Ok(())
    }

    async fn write_pool(conn: &mut PgConnection, name: &str, row: &PoolRow) -> Result<(), StoreError> {
        let outage = row.outage.as_ref();
        sqlx::query!(
            "update pools
             set failures = $2, down_since = $3, why = $4, declarer = $5, tries = $6, next_try = $7, trier = $8,
                 back_since = $9
             where name = $1",
            name,
            row.failures,
            outage.map(|outage| outage.since),
            outage.map(|outage| outage.why.as_str()),
            outage.and_then(|outage| outage.declarer.as_deref()),
            outage.map_or(0, |outage| outage.tries),
            outage.and_then(|outage| outage.next_try),
            outage.and_then(|outage| outage.trier),
            row.back_since
        )
        .execute(conn)
        .await
        .map_err(StoreError::database("settle the share of a pool"))?;
        Ok(())
    }

    /// Sets the limits of a pool. Nodes go by them within a second or two. `seen` is the version that whoever asks saw, if
    /// it matters: false if it is another by now.
    pub(crate) async fn set_pool(
        &self,
        name: &str,
        limits: &Limits,
        seen: Option<i32>,
        entry: Option<&str>,
    ) -> Result<bool, StoreError> {
        let at_once = limits.at_once.map(|at_once| i32::try_from(at_once).unwrap_or(i32::MAX));
        let done = sqlx::query!(
            "with done as (
                 insert into pools as p (name, at_once, per_second)
                 select $1, $2, $3 where $5::int is null or exists (select from pools where name = $1)
                 on conflict (name) do update
                 set at_once = excluded.at_once, per_second = excluded.per_second, version = p.version + 1
                 where $5::int is null or p.version = $5
                 returning 1
             )
             select from done where $4::text is null or audit_write(array[$4]) is not null",
            name,
            at_once,
            limits.per_second,
            entry,
            seen
        )
        .execute(&self.pool)
        .await
        .map_err(StoreError::database("set the limits of a pool"))?;
        Ok(done.rows_affected() > 0)
    }

    /// A person says that a target is down, or why it is: nobody tries it any more. Not if it was declared before.
    pub(crate) async fn declare_outage(
        &self,
        name: &str,
        who: &str,
        why: &str,
        change: Option<&Change>,
    ) -> Result<Changed, StoreError> {
        let kept = change.map(Change::kept).unwrap_or_default();
        let done = sqlx::query_scalar!(
            r#"with done as (
                 insert into pools as p (name, down_since, why, declarer) values ($1, clock_timestamp(), $3, $2)
                 on conflict (name) do update
                 set down_since = coalesce(p.down_since, excluded.down_since), why = excluded.why,
                     declarer = excluded.declarer, next_try = null, trier = null, back_since = null
                 where p.declarer is null
                 returning 1 as version
             ),
             kept as (insert into answers (principal, key, asked, status, answer)
                      select $5, $6, $7, $8, $9 from done where $6::text is not null)
             select version as "version!" from done where $4::text is null or audit_write(array[$4]) is not null"#,
            name,
            who,
            why,
            change.map(|change| change.entry.as_str()),
            kept.principal,
            kept.key,
            kept.asked,
            kept.status,
            kept.answer
        )
        .fetch_optional(&self.pool)
        .await;
        changed(done, "declare an outage")
    }

    /// A person says that a target is back: its limit grows from one call at once. False if it was not down.
    pub(crate) async fn end_outage(&self, name: &str, entry: Option<&str>) -> Result<bool, StoreError> {
        let done = sqlx::query!(
            "with done as (
                 update pools
                 set failures = 0, down_since = null, why = null, declarer = null, tries = 0, next_try = null,
                     trier = null, back_since = clock_timestamp()
                 where name = $1 and down_since is not null
                 returning 1
             )
             select from done where $2::text is null or audit_write(array[$2]) is not null",
            name,
            entry
        )
        .execute(&self.pool)
        .await
        .map_err(StoreError::database("end an outage"))?;
        Ok(done.rows_affected() > 0)
    }

    /// Every pool, or the one of that name, with who holds what of it.
    pub(crate) async fn pools(&self, name: Option<&str>) -> Result<Vec<PoolInfo>, StoreError> {
        let failed = StoreError::database("list the pools");
        let rows = sqlx::query_as!(
            PoolEntry,
            "select name, at_once, per_second, down_since, why, declarer, tries, next_try, trier, back_since, version
                 from pools where $1::text is null or name = $1 order by name",
            name
        )
        .fetch_all(&self.pool)
        .await
        .map_err(&failed)?;
        let shares = sqlx::query!(
            "select s.pool, s.epoch, n.name as node, s.slots, s.rate, s.busy, s.waiting
             from pool_shares s join nodes n on n.epoch = s.epoch and n.ended_at is null
             where $1::text is null or s.pool = $1
             order by n.name, s.epoch",
            name
        )
        .fetch_all(&self.pool)
        .await
        .map_err(&failed)?;
        let mut held: HashMap<String, Vec<ShareRow>> = HashMap::new();
        for share in shares {
            held.entry(share.pool).or_default().push(ShareRow {
                epoch: share.epoch,
                node: share.node,
                slots: share.slots,
                rate: share.rate,
                busy: share.busy,
                waiting: share.waiting,
            });
        }
        let mut read = |row: PoolEntry| {
            let shares = held.remove(&row.name).unwrap_or_default();
            let outage = row.down_since.zip(row.why);
            PoolInfo {
                at_once: row.at_once,
                per_second: row.per_second,
                busy: shares.iter().map(|share| i64::from(share.busy)).sum(),
                waiting: shares.iter().map(|share| i64::from(share.waiting)).sum(),
                outage: outage.map(|(since, why)| Outage {
                    since,
                    why,
                    declarer: row.declarer,
                    tries: row.tries,
                    next_try: row.next_try,
                    trier: row.trier,
                }),
                back_since: row.back_since,
                version: row.version,
                name: row.name,
                shares,
            }
        };
        Ok(rows.into_iter().map(&mut read).collect())
    }
}
