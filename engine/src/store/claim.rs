//! Who drives which run.

use backstay_machine::{ClaimNo, ClaimReason, RunId, Status};
use sqlx::PgConnection;

use super::{Life, Store, StoreError};

/// A run that was just claimed. Its journal is read next, in a later statement: this one's snapshot may be older
/// than what the last owner wrote.
#[derive(Clone, Debug)]
pub struct Claimed {
    /// The run.
    pub run: RunId,
    /// The number of this claim.
    pub claim: ClaimNo,
    /// Leases lost in a row while they held it.
    pub crashes: i16,
    /// Why it was free.
    pub reason: ClaimReason,
    /// What the index says about it.
    pub status: Status,
    /// 0 to 2.
    pub priority: i16,
    /// Messages ever sent to it.
    pub mail: i32,
    /// How many of them are answered.
    pub told: i32,
}

struct ClaimedRow {
    run_id: uuid::Uuid,
    claim: i32,
    crashes: i16,
    status: String,
    priority: i16,
    mail: i32,
    told: i32,
}

impl ClaimedRow {
    fn read(self, reason: ClaimReason) -> Claimed {
        Claimed {
            run: RunId(self.run_id),
            claim: self.claim,
            crashes: self.crashes,
            reason,
            // One that this release does not know is its journal's affair, which is read next.
            status: self.status.parse().unwrap_or(Status::Running),
            priority: self.priority,
            mail: self.mail,
            told: self.told,
        }
    }
}

impl Store {
    /// Claims runs that nobody has and whose time has come, the urgent ones first.
    pub(crate) async fn claim_due(
        conn: &mut PgConnection,
        life: &Life,
        activities: &[String],
        most: i64,
    ) -> Result<Vec<Claimed>, StoreError> {
        let rows = sqlx::query_as!(
            ClaimedRow,
            r#"with fence as materialized (
                   select 1 from nodes where epoch = $1 and token = $2 and ended_at is null for key share
               ),
               due as materialized (
                   select one.run_id
                   from fence,
                        unnest(array[2, 1, 0]::smallint[]) as p (priority),
                        lateral (
                            select run_id from runs
                            where runs.priority = p.priority and due_at <= statement_timestamp() and activities <@ $3
                            order by due_at limit $4
                            for update skip locked
                        ) as one
                   limit $4
               )
               update runs
               set owner = $1, due_at = null, claim = claim + 1,
                   status = case when status in ('pending', 'waiting') then 'running' else status end
               where run_id in (select run_id from due)
               returning run_id, claim, crashes, status, priority, mail, told"#,
            life.epoch.0,
            life.token,
            activities,
            most
        )
        .fetch_all(conn)
        .await
        .map_err(StoreError::database("claim runs that are due"))?;
        Ok(rows.into_iter().map(|row| row.read(ClaimReason::Free)).collect())
    }

    /// Claims runs whose owner's life has ended. `suspects` are those that lost two leases in a row without an
    /// outcome: they are claimed one at a time, so that one that kills its nodes does so alone.
    pub(crate) async fn claim_orphans(
        conn: &mut PgConnection,
        life: &Life,
        activities: &[String],
        suspects: bool,
        most: i64,
    ) -> Result<Vec<Claimed>, StoreError> {
        let rows = sqlx::query_as!(
            ClaimedRow,
            r#"with fence as materialized (
                   select 1 from nodes where epoch = $1 and token = $2 and ended_at is null for key share
               ),
               ended as materialized (
                   select n.epoch, n.ended_why from nodes n, fence where n.ended_at is not null
               ),
               orphaned as materialized (
                   select one.run_id, ended.ended_why
                   from ended,
                        lateral (
                            select run_id from runs
                            where owner = ended.epoch and activities <@ $3 and (crashes >= 1) = $4
                            limit $5
                            for update skip locked
                        ) as one
                   limit $5
               )
               update runs
               set owner = $1, claim = claim + 1,
                   crashes = case when orphaned.ended_why = 'stopped' then crashes else crashes + 1 end
               from orphaned
               where runs.run_id = orphaned.run_id
               returning runs.run_id, claim, crashes, status, priority, mail, told"#,
            life.epoch.0,
            life.token,
            activities,
            suspects,
            most
        )
        .fetch_all(conn)
        .await
        .map_err(StoreError::database("claim runs of a node that is gone"))?;
        Ok(rows.into_iter().map(|row| row.read(ClaimReason::LostLease)).collect())
    }

    /// The runs that are this life's.
    pub(crate) async fn owned(conn: &mut PgConnection, life: &Life) -> Result<Vec<RunId>, StoreError> {
        let rows = sqlx::query_scalar!("select run_id from runs where owner = $1", life.epoch.0)
            .fetch_all(conn)
            .await
            .map_err(StoreError::database("list the runs of this node"))?;
        Ok(rows.into_iter().map(RunId).collect())
    }

    /// Claims runs that are this life's although it does not know of them: the answer to their claim was lost.
    pub(crate) async fn claim_forgotten(
        conn: &mut PgConnection,
        life: &Life,
        runs: &[RunId],
    ) -> Result<Vec<Claimed>, StoreError> {
        let ids: Vec<_> = runs.iter().map(|run| run.0).collect();
        let rows = sqlx::query_as!(
            ClaimedRow,
            r#"with fence as materialized (
                   select 1 from nodes where epoch = $1 and token = $2 and ended_at is null for key share
               )
               update runs set claim = claim + 1 from fence
               where run_id = any ($3) and owner = $1
               returning run_id, claim, crashes, status, priority, mail, told"#,
            life.epoch.0,
            life.token,
            &ids
        )
        .fetch_all(conn)
        .await
        .map_err(StoreError::database("claim runs that this node has forgotten"))?;
        Ok(rows.into_iter().map(|row| row.read(ClaimReason::Free)).collect())
    }
}
