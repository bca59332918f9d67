//! Reading, for nodes after a claim and for everybody else.

use std::collections::HashMap;

use backstay_machine::event::kind;
use backstay_machine::{Driven, Json, Row, RunId, Seq, Status, Time};
use sqlx::PgConnection;

use super::entry::{UNKNOWN, events};
use super::{Store, StoreError};

/// A run as the index knows it.
#[derive(Clone, Debug, serde::Serialize)]
pub struct RunInfo {
    /// Its id.
    pub run: RunId,
    /// The workflow's name.
    pub workflow: String,
    /// Where it is.
    pub status: Status,
    /// The plan's hash.
    pub plan_hash: String,
    /// 0 to 2.
    pub priority: i16,
    /// What the client stuck on it.
    pub labels: serde_json::Value,
    /// The client's key.
    pub client_key: Option<String>,
    /// What no other live run holds.
    pub exclusive_key: Option<String>,
    /// The life that drives it.
    pub owner: Option<i64>,
    /// How often it was claimed.
    pub claim: i32,
    /// When it goes on.
    pub due_at: Option<Time>,
    /// Why it waits for people.
    pub note: Option<String>,
    /// When it was submitted.
    pub submitted_at: Time,
    /// When it ended.
    pub finished_at: Option<Time>,
    /// Messages to it that nobody has answered yet.
    pub unanswered: i32,
    /// The steps that failed or are held, or whose undo did: until they succeed, or somebody sees to them.
    pub failing: Vec<String>,
}

/// Which runs to list.
#[derive(Clone, Debug, Default)]
pub struct RunFilter {
    /// Only in this status.
    pub status: Option<Status>,
    /// Only of this workflow.
    pub workflow: Option<String>,
    /// Only of these workflows.
    pub workflows: Option<Vec<String>>,
    /// Only those that hold, or held, this exclusive key.
    pub exclusive: Option<String>,
    /// Only those submitted at this time or later.
    pub since: Option<Time>,
    /// Only those submitted before this time.
    pub until: Option<Time>,
    /// Only those that are not over.
    pub live: bool,
    /// Only with these labels: an object of texts.
    pub labels: serde_json::Value,
    /// Only those in which the last word of this step, or of its undo, is that it failed or is held.
    pub failing: Option<String>,
    /// Only older ones than this (ids are ordered by time): the last of the page before.
    pub before: Option<RunId>,
    /// At most so many; 0 means 100.
    pub limit: u32,
}

struct IndexRow {
    run_id: uuid::Uuid,
    workflow: String,
    status: String,
    plan_hash: String,
    priority: i16,
    labels: serde_json::Value,
    client_key: Option<String>,
    exclusive_key: Option<String>,
    owner: Option<i64>,
    claim: i32,
    due_at: Option<Time>,
    note: Option<String>,
    submitted_at: Time,
    finished_at: Option<Time>,
    unanswered: i32,
    failing: Vec<String>,
}

impl IndexRow {
    fn read(self) -> Result<RunInfo, StoreError> {
        Ok(RunInfo {
            run: RunId(self.run_id),
            workflow: self.workflow,
            status: self.status.parse().map_err(StoreError::Undecodable)?,
            plan_hash: self.plan_hash,
            priority: self.priority,
            labels: self.labels,
            client_key: self.client_key,
            exclusive_key: self.exclusive_key,
            owner: self.owner,
            claim: self.claim,
            due_at: self.due_at,
            note: self.note,
            submitted_at: self.submitted_at,
            finished_at: self.finished_at,
            unanswered: self.unanswered,
            failing: self.failing,
        })
    }
}

struct JournalRow {
    run_id: uuid::Uuid,
    seq: i64,
    claim: i32,
    epoch: i64,
    at: Time,
    kind: String,
    step: Option<String>,
    undo: bool,
    generation: i32,
    attempt: i32,
    key: Option<uuid::Uuid>,
    body: Option<String>,
    seal: Option<Vec<u8>>,
    more: Option<String>,
}

impl JournalRow {
    /// Its events, after those that are read already.
    fn read(self, into: &mut Vec<Row>) {
        // A kind of another release is kept as such: whoever folds the run refuses it by name.
        let kind = kind(&self.kind).unwrap_or(UNKNOWN);
        let first = Row {
            seq: self.seq,
            claim: self.claim,
            epoch: self.epoch,
            at: self.at,
            kind,
            step: self.step.map(Into::into),
            undo: self.undo,
            generation: self.generation,
            attempt: self.attempt,
            key: self.key,
            body: self.body.and_then(|text| Json::parse_text(&text).ok()),
            // One of another length fits nothing.
            seal: self.seal.map(|seal| seal.try_into().unwrap_or_default()),
        };
        events(first, self.more.as_deref(), into);
    }
}

impl Store {
    /// The whole journals of these runs, on the connection of whoever claimed them.
    pub(crate) async fn journals(
        conn: &mut PgConnection,
        runs: &[RunId],
    ) -> Result<HashMap<RunId, Vec<Row>>, StoreError> {
        let ids: Vec<_> = runs.iter().map(|run| run.0).collect();
        let rows = sqlx::query_as!(
            JournalRow,
            r#"select run_id, seq, claim, epoch, at, kind, step, undo, generation, attempt, key, body::text as body, seal,
                    more::text as more
               from journal where run_id = any($1) order by run_id, seq"#,
            &ids
        )
        .fetch_all(conn)
        .await
        .map_err(StoreError::database("read journals"))?;
        let mut journals: HashMap<RunId, Vec<Row>> = HashMap::with_capacity(runs.len());
        for row in rows {
            let journal = journals.entry(RunId(row.run_id)).or_default();
            row.read(journal);
        }
        Ok(journals)
    }

    /// A page of one run's journal, after a position: so many events if there are as many, and those that share their last row.
    pub async fn journal(&self, run: RunId, after: Seq, most: i64) -> Result<Vec<Row>, StoreError> {
        let rows = sqlx::query_as!(
            JournalRow,
            r#"select run_id, seq, claim, epoch, at, kind, step, undo, generation, attempt, key, body::text as body, seal,
                    more::text as more
               from journal
               -- The row that the position is in may have events behind it.
               where run_id = $1
                 and seq >= coalesce((select max(seq) from journal where run_id = $1 and seq <= $2), 0)
               order by seq limit $3::bigint + 1"#,
            run.0,
            after,
            most
        )
        .fetch_all(&self.pool)
        .await
        .map_err(StoreError::database("read a journal"))?;
        let mut journal = Vec::new();
        rows.into_iter().for_each(|row| row.read(&mut journal));
        journal.retain(|row| row.seq > after);
        Ok(journal)
    }

    /// One run.
    pub async fn get(&self, run: RunId) -> Result<Option<RunInfo>, StoreError> {
        let row = sqlx::query_as!(
            IndexRow,
            r#"select run_id, workflow, status, plan_hash, priority, labels, client_key, exclusive_key, owner, claim,
                    due_at, note, submitted_at, finished_at, mail - told as "unanswered!", coalesce(failing, '{}') as "failing!"
             from runs where run_id = $1"#,
            run.0
        )
        .fetch_optional(&self.pool)
        .await
        .map_err(StoreError::database("read a run"))?;
        row.map(IndexRow::read).transpose()
    }

    /// Who submitted a run; none: nobody said so, or there is no such run. A run that is a step was submitted by whoever
    /// submitted the whole.
    pub async fn submitter(&self, run: RunId) -> Result<Option<String>, StoreError> {
        let who = sqlx::query_scalar!(
            "select body -> 'by' ->> 'who' from journal where run_id = $1 and seq = 1",
            run.0
        )
        .fetch_optional(&self.pool)
        .await
        .map_err(StoreError::database("look who submitted a run"))?;
        Ok(who.flatten())
    }

    /// The position of a run's last event; 0 if there is none.
    pub async fn last_seq(&self, run: RunId) -> Result<Seq, StoreError> {
        let last = sqlx::query_scalar!(
            r#"select seq + case json_typeof(more) when 'array' then json_array_length(more) else 0 end as "seq!"
               from journal where run_id = $1 order by seq desc limit 1"#,
            run.0
        )
        .fetch_optional(&self.pool)
        .await
        .map_err(StoreError::database("look for the last event of a run"))?;
        Ok(last.unwrap_or(0))
    }

    /// Runs, the newest first.
    pub async fn list(&self, filter: &RunFilter) -> Result<Vec<RunInfo>, StoreError> {
        let limit = if filter.limit == 0 { 100 } else { i64::from(filter.limit.min(1_000)) };
        let rows = sqlx::query_as!(
            IndexRow,
            r#"select run_id, workflow, status, plan_hash, priority, labels, client_key, exclusive_key, owner, claim,
                    due_at, note, submitted_at, finished_at, mail - told as "unanswered!", coalesce(failing, '{}') as "failing!"
             from runs
             where ($1::text is null or status = $1) and ($2::text is null or workflow = $2)
               and ($3::uuid is null or run_id < $3) and ($5::bool is not true or finished_at is null)
               -- The second half is what the index of those that have labels goes by.
               and ($6::jsonb is null or (labels @> $6 and labels <> '{}'))
               and ($8::text[] is null or workflow = any($8))
               and ($9::text is null or exclusive_key = $9)
               and ($10::timestamptz is null or submitted_at >= $10)
               and ($11::timestamptz is null or submitted_at < $11)
               and ($7::text is null or failing @> array[$7])
             order by run_id desc limit $4"#,
            filter.status.map(Status::as_str),
            filter.workflow.as_deref(),
            filter.before.map(|run| run.0),
            limit,
            filter.live,
            filter.labels.as_object().filter(|labels| !labels.is_empty()).map(|_| &filter.labels),
            filter.failing.as_deref(),
            filter.workflows.as_deref(),
            filter.exclusive.as_deref(),
            filter.since,
            filter.until
        )
        .fetch_all(&self.pool)
        .await
        .map_err(StoreError::database("list runs"))?;
        rows.into_iter().map(IndexRow::read).collect()
    }

    /// How many runs are in each status, over all there are: for people who ask once.
    pub async fn count_by_status(&self) -> Result<Vec<(String, i64)>, StoreError> {
        let rows =
            sqlx::query!(r#"select status, count(*) as "count!" from runs group by status order by status"#)
                .fetch_all(&self.pool)
                .await
                .map_err(StoreError::database("count runs"))?;
        Ok(rows.into_iter().map(|row| (row.status, row.count)).collect())
    }

    /// How many live runs are in each status. Counted over the small indexes of live runs, however many are over.
    pub async fn count_live(&self) -> Result<Vec<(String, i64)>, StoreError> {
        let rows = sqlx::query!(
            r#"select status as "status!", count(*) as "count!"
               from (select status from runs where due_at is not null
                     union all
                     select status from runs where owner is not null
                     union all
                     select status from runs where owner is null and due_at is null and finished_at is null) live
               group by status order by status"#
        )
        .fetch_all(&self.pool)
        .await
        .map_err(StoreError::database("count runs"))?;
        Ok(rows.into_iter().map(|row| (row.status, row.count)).collect())
    }

    /// Who moves a run, and the database's time.
    pub(crate) async fn driven(&self, run: RunId) -> Result<Option<(Driven, Time)>, StoreError> {
        let row = sqlx::query!(
            r#"select n.name as "name?", n.ended_at is not null as "ended!", r.owner, r.due_at,
                      clock_timestamp() as "now!", case when r.status = 'queued' then r.exclusive_key end as in_line_for,
                      (select h.run_id from runs h
                       where r.status = 'queued' and h.exclusive_key = r.exclusive_key and h.finished_at is null
                         and h.status not in ('queued', 'committed', 'rolled_back', 'closed') limit 1) as holder,
                      (select count(*) from runs q
                       where r.status = 'queued' and q.status = 'queued' and q.exclusive_key = r.exclusive_key
                         and (q.submitted_at, q.run_id) < (r.submitted_at, r.run_id)) as "ahead!"
               from runs r left join nodes n on n.epoch = r.owner where r.run_id = $1"#,
            run.0
        )
        .fetch_optional(&self.pool)
        .await
        .map_err(StoreError::database("look who drives a run"))?;
        Ok(row.map(|row| {
            let driven = match (row.owner, row.name, row.due_at) {
                (Some(_), Some(name), _) if row.ended => Driven::Orphaned(name),
                (Some(_), Some(name), _) => Driven::By(name),
                // A life that ended long ago is forgotten.
                (Some(epoch), None, _) => Driven::Orphaned(format!("of life {epoch}")),
                (None, _, Some(at)) => Driven::From(at),
                (None, _, None) => match row.in_line_for {
                    Some(key) => Driven::Queued { key, holder: row.holder.map(RunId), ahead: row.ahead },
                    None => Driven::ByNobody,
                },
            };
            (driven, row.now)
        }))
    }

    /// How long each step, and each undo, of a workflow took in its last runs: the median, in seconds.
    pub(crate) async fn durations(&self, workflow: &str) -> Result<Vec<(String, bool, f64)>, StoreError> {
        let rows = sqlx::query!(
            r#"select step as "step!", undo as "undo!",
                      percentile_disc(0.5) within group (order by extract(epoch from ended - began))::float8 as "took!"
               from (select step, undo, min(at) filter (where kind = 'started') as began,
                            min(at) filter (where kind = 'succeeded') as ended
                     from (select run_id from runs where workflow = $1 and finished_at is not null
                           order by run_id desc limit 20) as lately
                     join events using (run_id)
                     where kind in ('started', 'succeeded')
                     group by run_id, step, undo, generation, attempt) as attempts
               where ended is not null
               group by step, undo"#,
            workflow
        )
        .fetch_all(&self.pool)
        .await
        .map_err(StoreError::database("look how long steps took before"))?;
        Ok(rows.into_iter().map(|row| (row.step, row.undo, row.took)).collect())
    }

    /// Live runs that nothing will move, and why: there must be none.
    pub async fn silent(&self, most: i64) -> Result<Vec<(RunId, String)>, StoreError> {
        let rows = sqlx::query!(
            r#"select run_id as "run_id!", why as "why!" from silent_runs order by since limit $1"#,
            most
        )
        .fetch_all(&self.pool)
        .await
        .map_err(StoreError::database("look for runs that nothing moves"))?;
        Ok(rows.into_iter().map(|row| (RunId(row.run_id), row.why)).collect())
    }
}
