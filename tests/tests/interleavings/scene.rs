//! Where the operations are played: the lives of four nodes and four runs, new for each order.

use std::time::Duration;

use backstay_engine::machine::{Epoch, FactChange, Json, Row};
use backstay_engine::store::{Admission, Batch, IndexChange, Life, Outgoing, Proviso};
use backstay_engine::{RunId, Status};
use chrono::{DateTime, TimeDelta, Utc};
use sqlx::{Connection, PgConnection};
use uuid::Uuid;

pub const LEASE: Duration = Duration::from_secs(60);

/// The lives: the lease of `one` has run out and nobody has noticed; `gone` has ended.
#[derive(Clone, Debug)]
pub struct Scene {
    pub one: Life,
    pub two: Life,
    pub three: Life,
    pub gone: Life,
    /// Owned by `one`.
    pub a: RunId,
    /// Owned by `two`.
    pub b: RunId,
    /// Nobody's, and due.
    pub free: RunId,
    /// Owned by `gone`.
    pub orphan: RunId,
    /// What `one` and `two` admit, under one key.
    pub new: [RunId; 2],
    /// What `one` admits under the key of `over`.
    pub rival: RunId,
    /// Owned by `one` as well.
    pub also: RunId,
    /// Nobody's: it waits for people.
    pub at_rest: RunId,
    /// Over, and can come back; it had an exclusive key.
    pub over: RunId,
    /// What is admitted under the client key of `over`, without a node and by `one`.
    pub heirs: [RunId; 2],
    /// The id of the message to `a` that is in the inbox already.
    pub letter: Uuid,
    /// The ids of those that are sent: to `a` (and by mistake to `b`), to `at_rest`, two to `over`, to many.
    pub x: Uuid,
    pub to_rest: Uuid,
    pub back: Uuid,
    pub late: Uuid,
    pub many: [Uuid; 4],
    pub before: DateTime<Utc>,
}

/// What becomes of a run after an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    GoOn,
    Rest,
    End,
}

/// A row of `nodes`.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct NodeRow {
    pub epoch: i64,
    pub ended_why: Option<String>,
}

/// A row of `runs`.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct RunRow {
    pub run_id: Uuid,
    pub status: String,
    pub owner: Option<i64>,
    pub claim: i32,
    pub due_at: Option<DateTime<Utc>>,
    pub client_key: Option<String>,
    pub finished_at: Option<DateTime<Utc>>,
    pub note: Option<String>,
    pub mail: i32,
    pub told: i32,
}

/// A row of `inbox`.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct LetterRow {
    pub id: Uuid,
    pub run_id: Uuid,
}

/// A row of `journal`.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct EventRow {
    pub run_id: Uuid,
    pub seq: i64,
    pub claim: i32,
    pub epoch: i64,
    pub kind: String,
    pub key: Option<Uuid>,
}

/// What the tables say in the end.
#[derive(Clone, Debug)]
pub struct Tables {
    pub nodes: Vec<NodeRow>,
    pub runs: Vec<RunRow>,
    pub journal: Vec<EventRow>,
    pub inbox: Vec<LetterRow>,
    /// The runs whose keys are kept after them.
    pub retired: Vec<Uuid>,
    /// Names, values, versions, and who has set them.
    pub facts: Vec<(String, String, i64, Uuid)>,
}

impl Scene {
    pub async fn set(sql: &mut PgConnection, two_is_late: bool) -> anyhow::Result<Self> {
        let mut set = sql.begin().await?;
        sqlx::raw_sql("delete from journal; delete from inbox; delete from runs; delete from nodes; delete from retired_keys;
                      delete from facts")
            .execute(&mut *set)
            .await?;
        let mut lives = Vec::new();
        for name in ["one", "two", "three", "gone"] {
            let late = name == "one" || (name == "two" && two_is_late);
            let token = Uuid::new_v4();
            let epoch: i64 = sqlx::query_scalar(
                "insert into nodes (token, name, activities, lease_until, ended_at, ended_why, release)
                 values ($1, $2, '{}', clock_timestamp() + make_interval(secs => $3),
                         case when $4 then clock_timestamp() end, case when $4 then 'lost' end, '0')
                 returning epoch",
            )
            .bind(token)
            .bind(name)
            .bind(if late { -1.0 } else { 60.0 })
            .bind(name == "gone")
            .fetch_one(&mut *set)
            .await?;
            let life = Life::new(Epoch(epoch), token, name.into());
            backstay_engine::store::probe::unwatched(&life);
            lives.push(life);
        }
        let [one, two, three, gone] = lives.try_into().unwrap();
        let before = Utc::now() - TimeDelta::minutes(1);
        let fresh = RunId::fresh;
        let new = [fresh(), fresh()];
        let scene = Self {
            one,
            two,
            three,
            gone,
            a: fresh(),
            b: fresh(),
            free: fresh(),
            orphan: fresh(),
            new,
            rival: fresh(),
            also: fresh(),
            at_rest: fresh(),
            over: fresh(),
            heirs: [fresh(), fresh()],
            letter: Uuid::now_v7(),
            x: Uuid::now_v7(),
            to_rest: Uuid::now_v7(),
            back: Uuid::now_v7(),
            late: Uuid::now_v7(),
            many: std::array::from_fn(|_| Uuid::now_v7()),
            before,
        };
        for (run, owner) in [
            (scene.a, Some(&scene.one)),
            (scene.also, Some(&scene.one)),
            (scene.b, Some(&scene.two)),
            (scene.orphan, Some(&scene.gone)),
            (scene.free, None),
        ] {
            let owner = owner.map(|life| life.epoch.0);
            sqlx::query(
                "with run as (
                     insert into runs (run_id, workflow, status, plan_hash, activities, request_hash, owner, claim,
                                       due_at, submitted_at)
                     values ($1, 'w', case when $2::bigint is null then 'pending' else 'running' end, '', '{}', '', $2,
                             num_nonnulls($2::bigint), case when $2::bigint is null then $3::timestamptz end, $3)
                     returning run_id
                 )
                 insert into journal (run_id, seq, claim, epoch, at, kind, undo, generation, attempt)
                 select run_id, seq, seq - 1, case seq when 1 then 0 else $2 end, $3, 'x', false, 0, 0
                 from run, generate_series(1, 1 + num_nonnulls($2::bigint)) as s (seq)",
            )
            .bind(run.0)
            .bind(owner)
            .bind(before)
            .execute(&mut *set)
            .await?;
        }
        sqlx::query(
            "with runs as (
                 insert into runs (run_id, workflow, status, plan_hash, activities, request_hash, claim, note,
                                   exclusive_key, client_key, submitted_at, finished_at)
                 values ($1, 'w', 'held', '', '{}', '', 0, 'somebody must decide', null, null, $3, null),
                        ($2, 'w', 'succeeded', '', '{}', '', 0, null, 'the one place', 'its key', $3, $3::timestamptz - interval '1 hour')
                 returning run_id
             )
             insert into journal (run_id, seq, claim, epoch, at, kind, undo, generation, attempt)
             select run_id, 1, 0, 0, $3, 'x', false, 0, 0 from runs",
        )
        .bind(scene.at_rest.0)
        .bind(scene.over.0)
        .bind(before)
        .execute(&mut *set)
        .await?;
        sqlx::query("with a as (update runs set mail = 1 where run_id = $2) insert into inbox (id, run_id, body) values ($1, $2, $3::json)")
            .bind(scene.letter)
            .bind(scene.a.0)
            .bind(scene.said(scene.letter))
            .execute(&mut *set)
            .await?;
        sqlx::query("insert into facts (name, value, version, changed_by) values ('old', 'it', 1, $1)")
            .bind(scene.over.0)
            .execute(&mut *set)
            .await?;
        set.commit().await?;
        Ok(scene)
    }

    /// What a message says; nobody reads it here.
    pub fn said(&self, id: Uuid) -> String {
        format!("{{\"id\": \"{id}\"}}")
    }

    pub fn message(&self, run: RunId, id: Uuid) -> Outgoing {
        Outgoing { run, id, body: self.said(id), reopens: id == self.back }
    }

    /// The answer to a message to `a`, and whether the run is put aside or over with it. `told` is how many messages its
    /// owner has seen and answered.
    pub fn answer_of(&self, id: Option<Uuid>, told: i32, then: After) -> Batch {
        let life = &self.one;
        let mut event = self.event(3, 1, life);
        if let Some(id) = id {
            (event.kind, event.key) = ("acted", Some(id));
            event.body = Json::parse_text(&self.said(id)).ok();
        }
        let mut change = self.change(self.a, 1, false);
        change.told = told;
        match then {
            After::GoOn => {}
            After::Rest => {
                (change.status, change.release) = (Status::Held, true);
                change.note = Some("somebody must decide".into());
            }
            After::End => {
                (change.status, change.release) = (Status::Succeeded, true);
                change.finished_at = Some(self.before);
            }
        }
        Batch { events: vec![(self.a, event)], changes: vec![change], ..Batch::default() }
    }

    /// Two runs of one life change, the later one first.
    pub fn changes_of_two(&self) -> Batch {
        let changes = vec![self.change(self.also, 1, false), self.change(self.a, 1, false)];
        Batch { changes, ..Batch::default() }
    }

    /// The later of two runs changes and speaks to the earlier one.
    pub fn speaks(&self) -> Batch {
        let changes = vec![self.change(self.also, 1, false)];
        let tells = vec![(self.also, self.message(self.a, Uuid::now_v7()))];
        Batch { changes, tells, ..Batch::default() }
    }

    /// A new run that wants the exclusive key of the one that is over.
    pub fn rival(&self) -> Batch {
        let mut batch = self.batch_of(&self.one, self.a, self.rival);
        for admission in &mut batch.admissions {
            admission.client_key = None;
            admission.exclusive_key = Some("the one place".into());
        }
        batch.events.retain(|(run, _)| *run == self.rival);
        batch.changes.clear();
        batch
    }

    /// A new run under the client key of the one that is over.
    pub fn heir(&self, which: usize) -> (Admission, Row) {
        let batch = self.batch_of(&self.one, self.a, self.heirs[which]);
        let (mut admission, (_, first)) = (batch.admissions[0].clone(), batch.events[2].clone());
        admission.client_key = Some("its key".into());
        (admission, first)
    }

    fn event(&self, seq: i64, claim: i32, life: &Life) -> Row {
        Row {
            seq,
            claim,
            epoch: life.epoch.0,
            at: self.before,
            kind: "progressed",
            step: Some("s".into()),
            undo: false,
            generation: 1,
            attempt: 1,
            key: None,
            body: Some(Json::null()),
            seal: None,
        }
    }

    fn change(&self, run: RunId, claim: i32, given_up: bool) -> IndexChange {
        let (status, due_at) =
            if given_up { (Status::Waiting, Some(self.before)) } else { (Status::RollingBack, None) };
        IndexChange {
            run,
            claim,
            status,
            release: given_up,
            due_at,
            note: None,
            finished_at: None,
            told: 0,
            clears: true,
            failing: None,
        }
    }

    /// What a node has ready for the run that it owns, and a new run under a key that both use.
    pub fn batch_of(&self, life: &Life, run: RunId, new: RunId) -> Batch {
        let admission = Admission {
            run: new,
            workflow: "w".into(),
            plan_hash: String::new(),
            activities: String::new(),
            priority: 1,
            labels: "{}".into(),
            client_key: Some("the one key".into()),
            request_hash: String::new(),
            exclusive_key: None,
            queue: false,
            at: self.before,
        };
        let mut first = self.event(1, 0, life);
        first.kind = "submitted";
        Batch {
            tells: Vec::new(),
            facts: Vec::new(),
            admissions: vec![admission],
            events: vec![(run, self.event(3, 1, life)), (run, self.event(4, 1, life)), (new, first)],
            changes: vec![self.change(run, 1, false)],
        }
    }

    /// Events alone: no row of `runs` is touched.
    pub fn events_of(&self, life: &Life, run: RunId) -> Batch {
        Batch {
            events: vec![(run, self.event(3, 1, life)), (run, self.event(4, 1, life))],
            ..Batch::default()
        }
    }

    /// One event in any case, and one if a fact still is as it was: one that is there, or one that nobody has set.
    pub fn fact_of(&self, life: &Life, run: RunId, new: bool) -> Batch {
        let mut batch = self.events_of(life, run);
        let (name, from, version) = if new { ("new", None, 1) } else { ("old", Some("it".to_owned()), 2) };
        let change = FactChange { name: name.into(), from, to: life.name.clone(), version };
        batch.facts.push(Proviso { run, from: 4, change });
        batch
    }

    /// One event, and the run is given up.
    pub fn farewell_of(&self, life: &Life, run: RunId, seq: i64, claim: i32) -> Batch {
        Batch {
            events: vec![(run, self.event(seq, claim, life))],
            changes: vec![self.change(run, claim, true)],
            ..Batch::default()
        }
    }
}

impl Tables {
    pub async fn read(sql: &mut PgConnection) -> anyhow::Result<Self> {
        Ok(Self {
            nodes: sqlx::query_as("select epoch, ended_why from nodes").fetch_all(&mut *sql).await?,
            runs: sqlx::query_as(
                "select run_id, status, owner, claim, due_at, client_key, finished_at, note, mail, told
                 from runs",
            )
            .fetch_all(&mut *sql)
            .await?,
            journal: sqlx::query_as(
                "select run_id, seq, claim, epoch, kind, key from events order by run_id, seq",
            )
            .fetch_all(&mut *sql)
            .await?,
            inbox: sqlx::query_as("select id, run_id from inbox").fetch_all(&mut *sql).await?,
            retired: sqlx::query_scalar("select run_id from retired_keys").fetch_all(&mut *sql).await?,
            facts: sqlx::query_as("select name, value, version, changed_by from facts")
                .fetch_all(&mut *sql)
                .await?,
        })
    }
}
