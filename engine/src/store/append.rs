//! The writer's one statement.

use std::collections::HashSet;

use backstay_machine::{Row, RunId, Seq};
use sqlx::PgConnection;

use super::batch::{Admission, Appended, Batch, NewEntry, NewRun, Refusal, RunChange};
use super::entry::Entry;
use super::{Life, Moved, Proviso, Store, StoreError};

struct Written {
    fenced: i64,
    changed: i64,
    spoken_to: i64,
    admitted: Vec<uuid::Uuid>,
    #[allow(dead_code, reason = "the messages leave with the commit")]
    told: i64,
}

/// The message that a row answers.
fn answer(row: &Row) -> Option<uuid::Uuid> {
    row.key.filter(|_| matches!(row.kind, "acted" | "refused"))
}

impl Store {
    /// Writes a batch under a life: one statement, or some in one transaction if runs have something to say to others or
    /// change facts.
    pub(crate) async fn append(
        conn: &mut PgConnection,
        life: &Life,
        batch: &Batch,
    ) -> Result<Appended, StoreError> {
        if batch.tells.is_empty() && batch.facts.is_empty() {
            return Self::append_rows(conn, life, batch).await;
        }
        // The connection is the writer's own: whoever drops this drops it too, and the transaction with it.
        let database = StoreError::database("write to the journal");
        sqlx::query("begin").execute(&mut *conn).await.map_err(database)?;
        let all = async {
            let appended = Self::append_all(conn, life, batch).await?;
            let database = StoreError::database("write to the journal");
            sqlx::query("commit").execute(&mut *conn).await.map_err(database)?;
            Ok(appended)
        };
        let done = all.await;
        if done.is_err() {
            let _ = sqlx::query("rollback").execute(&mut *conn).await;
        }
        done
    }

    /// The same in a transaction that is open.
    pub(super) async fn append_all(
        conn: &mut PgConnection,
        life: &Life,
        batch: &Batch,
    ) -> Result<Appended, StoreError> {
        Self::lock_all(conn, batch).await?;
        let moved = Self::change_facts(conn, life, &batch.facts).await?;
        let appended = match moved.is_empty() {
            true => Self::append_rows(conn, life, batch).await?,
            false => Self::append_rows(conn, life, &batch.without(&moved)).await?,
        };
        let mut told = Vec::new();
        if !batch.tells.is_empty() {
            let messages: Vec<_> = batch.tells.iter().map(|(_, message)| message.clone()).collect();
            told = Self::tell_on(conn, &messages).await?;
        }
        Ok(Appended { told, moved, ..appended })
    }

    /// The rows of the runs that change and of those that are spoken to, in one order: two nodes whose runs speak to
    /// each other, and whoever sends to both, would wait for each other otherwise.
    async fn lock_all(conn: &mut PgConnection, batch: &Batch) -> Result<(), StoreError> {
        let changed = batch.changes.iter().map(|change| change.run.0);
        let runs: Vec<_> = changed.chain(batch.tells.iter().map(|(_, message)| message.run.0)).collect();
        if runs.is_empty() {
            return Ok(());
        }
        sqlx::query!("select from runs where run_id = any ($1) order by run_id for update", &runs)
            .execute(conn)
            .await
            .map_err(StoreError::database("write to the journal"))?;
        Ok(())
    }

    /// The fence is a lock on that life's row, taken in the same statement.
    async fn append_rows(
        conn: &mut PgConnection,
        life: &Life,
        batch: &Batch,
    ) -> Result<Appended, StoreError> {
        let Batch { admissions, events, changes, .. } = batch;
        let new: HashSet<RunId> = admissions.iter().map(|admission| admission.run).collect();
        let written: Vec<_> = Entry::of(events)
            .into_iter()
            .map(|entry| {
                let fresh = new.contains(&entry.run);
                NewEntry(entry, fresh)
            })
            .collect();
        let moved = if life.is_watched() { batch.moved() } else { Vec::new() };
        let answers: Vec<_> = events.iter().filter_map(|(_, row)| answer(row)).collect();
        let is_short = admissions.is_empty() && changes.is_empty() && answers.is_empty() && moved.is_empty();
        // What stood under a proviso may have been all there was.
        if is_short && !events.is_empty() {
            let done = sqlx::query_file!(
                "src/store/append_events.sql",
                life.epoch.0,
                life.token,
                &written[..] as &[NewEntry<'_>],
            )
            .execute(conn)
            .await
            .map_err(StoreError::database("write to the journal"))?;
            // It has a row at least: none was written because the fence was empty.
            return if done.rows_affected() == 0 { Err(StoreError::Fenced) } else { Ok(Appended::default()) };
        }
        let admitted: Vec<_> = admissions.iter().map(NewRun).collect();
        // In the order of whoever sends messages to many runs, so that the two do not wait for each other.
        let mut changed: Vec<_> = changes.iter().map(RunChange).collect();
        changed.sort_by_key(|RunChange(change)| change.run);
        let written_rows = &written[..] as &[NewEntry<'_>];
        let (admitted, changed) = (&admitted[..] as &[NewRun<'_>], &changed[..] as &[RunChange<'_>]);
        let (epoch, token) = (life.epoch.0, life.token);
        // Most writes answer nobody, and need not touch the inbox at all.
        let row = if answers.is_empty() {
            sqlx::query_file_as!(
                Written,
                "src/store/append.sql",
                epoch,
                token,
                admitted as _,
                changed as _,
                written_rows as _,
                &moved
            )
            .fetch_one(conn)
            .await
        } else {
            sqlx::query_file_as!(
                Written,
                "src/store/append_answers.sql",
                epoch,
                token,
                admitted as _,
                changed as _,
                written_rows as _,
                &moved,
                &answers
            )
            .fetch_one(conn)
            .await
        };
        let row = row.map_err(StoreError::database("write to the journal"))?;
        if row.fenced == 0 {
            return Err(StoreError::Fenced);
        }
        if row.changed != changes.len() as i64 {
            tracing::error!(
                wanted = changes.len(),
                changed = row.changed,
                "the index of runs has lost a run of this node"
            );
        }
        let spoken_to = row.spoken_to > 0;
        if row.admitted.len() == admissions.len() {
            return Ok(Appended { spoken_to, ..Appended::default() });
        }
        let refused = admissions.iter().map(|a| a.run).filter(|run| !row.admitted.contains(&run.0)).collect();
        Ok(Appended { refused, spoken_to, ..Appended::default() })
    }

    /// After a lost answer: whether a batch was committed. It is one statement, so one of its rows speaks for
    /// all of them; while the lost statement still runs, its row locks make the repeat wait for it.
    pub(crate) async fn was_appended(conn: &mut PgConnection, batch: &Batch) -> Result<bool, StoreError> {
        let is_sure = |run: RunId, row: &Row| {
            batch.admissions.iter().all(|a| a.run != run) && !batch.is_provided(run, row.seq)
        };
        if let Some((run, row)) = batch.events.iter().find(|(run, row)| is_sure(*run, row)) {
            return Self::has_event(conn, *run, row.seq, row.epoch).await;
        }
        // Only new runs, and rows under a proviso: any of them, unless all were refused. Then nobody was told of that yet,
        // and the repeat may find it otherwise.
        let admitted = batch.admissions.iter().map(|admission| (admission.run, 1));
        let provided = batch.facts.iter().map(|one| (one.run, one.from));
        for (run, seq) in admitted.chain(provided) {
            if let Some((_, row)) = batch.events.iter().find(|(of, row)| (*of, row.seq) == (run, seq))
                && Self::has_event(conn, run, seq, row.epoch).await?
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Which of these admissions were refused is asked of the journal again, and so is which of these runs have found a fact
    /// moved.
    async fn without_those_written(
        conn: &mut PgConnection,
        life: &Life,
        batch: &Batch,
        admissions: Vec<RunId>,
        provided: Vec<RunId>,
    ) -> Result<Appended, StoreError> {
        let mut refused = Vec::new();
        for run in admissions {
            if !Self::has_event(conn, run, 1, life.epoch.0).await? {
                refused.push(run);
            }
        }
        let mut moved = Vec::new();
        for Proviso { run, from, change } in batch.facts.iter().filter(|one| provided.contains(&one.run)) {
            if !Self::has_event(conn, *run, *from, life.epoch.0).await? {
                moved.push(Moved { run: *run, found: Self::fact_on(conn, &change.name).await? });
            }
        }
        // What the lost answer said about it is not known; a look into the index costs little.
        Ok(Appended { refused, moved, spoken_to: true, ..Appended::default() })
    }

    async fn has_event(
        conn: &mut PgConnection,
        run: RunId,
        seq: Seq,
        epoch: i64,
    ) -> Result<bool, StoreError> {
        sqlx::query_scalar!(
            // It may be behind another in its row.
            r#"select exists (
                   select from journal
                   where run_id = $1 and epoch = $3
                     and seq = (select max(seq) from journal where run_id = $1 and seq <= $2)
                     and seq + case json_typeof(more) when 'array' then json_array_length(more) else 0 end >= $2
               ) as "it!""#,
            run.0,
            seq,
            epoch
        )
        .fetch_one(conn)
        .await
        .map_err(StoreError::database("look whether the journal was written"))
    }

    /// Stores a run that no node has yet; any node with its activities may claim it.
    pub(crate) async fn admit_free(&self, a: &Admission, first: &Row) -> Result<bool, StoreError> {
        let mut conn = self.pool.acquire().await.map_err(StoreError::database("store the run"))?;
        Self::admit_on(&mut conn, a, first).await
    }

    pub(crate) async fn admit_on(
        conn: &mut PgConnection,
        a: &Admission,
        first: &Row,
    ) -> Result<bool, StoreError> {
        let done = sqlx::query_file!(
            "src/store/admit.sql",
            a.run.0,
            a.workflow,
            a.plan_hash,
            a.activities,
            a.priority,
            a.labels,
            a.client_key,
            a.request_hash,
            a.exclusive_key,
            first.body.as_ref().map(|body| body.as_str()),
            CHANNEL,
            a.queue,
        )
        .fetch_one(conn)
        .await
        .map_err(StoreError::database("store the run"));
        match done {
            Ok(done) => Ok(done.admitted),
            // The run that had its key was being removed.
            Err(error) if error.is_duplicate() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Which run stands in the way of an admission that was refused.
    pub(crate) async fn refusal(&self, admission: &Admission) -> Result<Option<Refusal>, StoreError> {
        let found = sqlx::query!(
            r#"select run_id as "run_id!", request_hash as "request_hash!", client_key is not distinct from $1 as "same_key!"
               from (select run_id, request_hash, client_key, status = 'queued' as in_line
                     from runs
                     where client_key = $1
                        or (exclusive_key = $2 and finished_at is null
                            and status not in ('committed', 'rolled_back', 'closed'))
                     union all
                     select run_id, request_hash, client_key, false
                     from retired_keys where client_key = $1 and until > clock_timestamp()) as found
               order by 3 desc, in_line limit 1"#,
            admission.client_key,
            admission.exclusive_key
        )
        .fetch_optional(&self.pool)
        .await
        .map_err(StoreError::database("look up the run that holds the key"))?;
        Ok(found.map(|row| {
            let run = RunId(row.run_id);
            match (row.same_key && admission.client_key.is_some(), row.request_hash == admission.request_hash)
            {
                (true, true) => Refusal::Known(run),
                (true, false) => Refusal::KeyReused(run),
                (false, _) => Refusal::Exclusive(run),
            }
        }))
    }
}

/// Where nodes listen for work that came from elsewhere.
pub(crate) const CHANNEL: &str = "backstay";

/// Writes a batch and finds out what became of it, whatever happens to the connection on the way.
pub(crate) async fn append_surely(
    store: &Store,
    conn: &mut Option<PgConnection>,
    life: &Life,
    batch: &Batch,
) -> Result<Appended, StoreError> {
    use backon::{BackoffBuilder, ExponentialBuilder};
    let mut delays = ExponentialBuilder::default()
        .with_min_delay(std::time::Duration::from_millis(20))
        .with_max_delay(std::time::Duration::from_secs(2))
        .with_jitter()
        .without_max_times()
        .build();
    let mut unsure = false;
    let (mut too_much, mut duplicates) = (0, 0);
    loop {
        let attempt = async {
            let open = match conn {
                Some(open) => open,
                None => conn.insert(store.dedicated("writer").await?),
            };
            if unsure && Store::was_appended(open, batch).await? {
                let refused = batch.admissions.iter().map(|admission| admission.run).collect();
                let provided = batch.facts.iter().map(|one| one.run).collect();
                return Store::without_those_written(open, life, batch, refused, provided).await;
            }
            let appended = Store::append(open, life, batch).await?;
            if unsure {
                // The lost statement may have been committed beside this one, and then it is what stands in the way.
                let moved = appended.moved.into_iter().map(|moved| moved.run).collect();
                return Store::without_those_written(open, life, batch, appended.refused, moved).await;
            }
            Ok(appended)
        };
        let done = store.patiently("write to the journal", attempt).await;
        if let Err(error) = &done {
            too_much += u32::from(error.is_too_much());
            duplicates += u32::from(error.is_duplicate());
        }
        match done {
            // What is too much three times is too much; and a row that was there before the lost statement, and is
            // not of this batch, stays there.
            Err(error) if too_much >= 3 || duplicates >= 3 => return Err(error),
            Err(error) if error.is_passing() || (unsure && error.is_duplicate()) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "writing to the journal is tried again"
                );
                metrics::counter!("backstay_append_retries_total").increment(1);
                unsure = true;
                *conn = None;
                tokio::time::sleep(delays.next().unwrap_or(std::time::Duration::from_secs(2))).await;
            }
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_two_forms_of_the_long_write_say_the_same() {
        let statement = |text: &'static str| text.split_once("with fence").map(|(_, rest)| rest.to_owned());
        let plain = statement(include_str!("append.sql")).unwrap_or_default();
        let answers = statement(include_str!("append_answers.sql")).unwrap_or_default();
        let (before, rest) = answers.split_once(",\n-- What is answered").unwrap_or_default();
        let after =
            rest.split_once("\n)\nselect").map_or(String::new(), |(_, after)| format!("\nselect{after}"));
        assert_eq!(format!("{before}{after}"), plain);
    }
}
