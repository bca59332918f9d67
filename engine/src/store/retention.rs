//! Runs that are over for long are removed, and runs that stand in line for a key come to it.

use std::time::Duration;

use backstay_machine::RunId;
use sqlx::PgConnection;

use super::{Store, StoreError};

/// Events that are removed in one commit, about: a batch of runs with long journals is smaller.
const EVENTS: i64 = 20_000;

/// What was removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Purged {
    /// Runs, with all there was of them.
    pub runs: i64,
    /// Keys of runs removed before, which mean nothing from now on.
    pub keys: i64,
}

/// Who has an exclusive key, and who stands in line for it.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Line {
    /// The live run that has it.
    pub holder: Option<RunId>,
    /// Those that stand in line, in their order: the first thousand.
    pub waiting: Vec<RunId>,
}

impl Store {
    /// Removes runs that ended so long ago, the oldest first, and forgets keys whose time is over: one commit. What
    /// somebody else has locked is left for the next time: he may be about to bring the run back.
    ///
    /// A run that is a step of another stays as long as that one does, which may yet want to roll it back.
    pub(crate) async fn purge_on(
        conn: &mut PgConnection,
        older_than: Duration,
        keep_keys: Duration,
        batch: i64,
    ) -> Result<Purged, StoreError> {
        let failed = StoreError::database("remove runs that are over");
        let row = sqlx::query!(
            r#"select removed as "runs!", forgotten as "keys!" from purge($1, $2, $3, $4)"#,
            older_than.as_secs_f64(),
            batch,
            EVENTS,
            keep_keys.as_secs_f64()
        )
        .fetch_one(&mut *conn)
        .await
        .map_err(failed)?;
        Ok(Purged { runs: row.runs, keys: row.keys })
    }

    /// The same, for whoever has no connection.
    pub(crate) async fn purge(
        &self,
        older_than: Duration,
        keep_keys: Duration,
        batch: i64,
    ) -> Result<Purged, StoreError> {
        let mut conn = self.dedicated("purge").await?;
        Self::purge_on(&mut conn, older_than, keep_keys, batch).await
    }

    /// How many runs ended so long ago.
    pub(crate) async fn count_over(&self, older_than: Duration) -> Result<i64, StoreError> {
        sqlx::query_scalar!(
            r#"select count(*) as "count!" from runs where finished_at < clock_timestamp() - make_interval(secs => $1)"#,
            older_than.as_secs_f64()
        )
        .fetch_one(&self.pool)
        .await
        .map_err(StoreError::database("count runs that are over"))
    }

    /// Who has an exclusive key, and who stands in line for it.
    pub(crate) async fn line(&self, key: &str) -> Result<Line, StoreError> {
        let rows = sqlx::query!(
            r#"select run_id, status = 'queued' as "in_line!" from runs
               where exclusive_key = $1 and finished_at is null and status not in ('committed', 'rolled_back', 'closed')
               order by status = 'queued', submitted_at, run_id limit 1001"#,
            key
        )
        .fetch_all(&self.pool)
        .await
        .map_err(StoreError::database("look who stands in line"))?;
        let mut line = Line::default();
        for row in rows {
            if row.in_line {
                line.waiting.push(RunId(row.run_id));
            } else {
                line.holder = Some(RunId(row.run_id));
            }
        }
        Ok(line)
    }

    /// Whose turn it is: of each exclusive key that is free, the run that has stood in line for longest may be claimed
    /// from now on. If somebody took one of the keys at the same moment, nobody moves, until the next look.
    pub(crate) async fn call_next(conn: &mut PgConnection) -> Result<Vec<RunId>, StoreError> {
        let called = sqlx::query_file_scalar!("src/store/call_next.sql")
            .fetch_all(conn)
            .await
            .map_err(StoreError::database("look who stands in line"));
        match called {
            Ok(runs) => Ok(runs.into_iter().map(RunId).collect()),
            Err(error) if error.is_duplicate() => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }
}
