//! Two operations in one order.

use std::sync::Arc;
use std::time::{Duration, Instant};

use backstay_engine::Store;
use backstay_engine::store::probe;
use backstay_tests::{Lab, Wire};
use sqlx::{AssertSqlSafe, PgConnection};
use tokio::sync::Mutex;
use tokio::task::JoinHandle;

use crate::scene::{Scene, Tables};
use crate::steps::{Answer, Op, Session, Step};

/// All orders of so many steps of the left with so many of the right.
pub fn all_orders(left: usize, right: usize) -> Vec<Vec<usize>> {
    fn go(left: usize, right: usize, begun: &mut Vec<usize>, all: &mut Vec<Vec<usize>>) {
        if left + right == 0 {
            all.push(begun.clone());
        }
        for (side, l, r) in [(0, left.checked_sub(1), Some(right)), (1, Some(left), right.checked_sub(1))] {
            if let (Some(l), Some(r)) = (l, r) {
                begun.push(side);
                go(l, r, begun, all);
                begun.pop();
            }
        }
    }
    let mut all = Vec::new();
    go(left, right, &mut Vec::new(), &mut all);
    all
}

/// What one step did, and when it was done: moments are counted, not measured.
#[derive(Clone, Debug)]
pub struct Done {
    pub side: usize,
    pub step: Step,
    pub ended: usize,
    pub waited: bool,
    pub answer: Answer,
}

/// What came of one order.
pub struct Play {
    pub ops: [Op; 2],
    pub scene: Scene,
    /// In the order in which they ended.
    pub done: Vec<Done>,
    pub tables: Tables,
}

impl Play {
    pub fn waited(&self) -> bool {
        self.done.iter().any(|done| done.waited)
    }

    /// The order as it came to be.
    pub fn story(&self) -> String {
        let mut words = format!("{:?} | {:?}:", self.ops[0], self.ops[1]);
        for done in &self.done {
            let side = if done.side == 0 { " left" } else { " right" };
            words += &format!("{side}.{:?}{}", done.step, if done.waited { "(waited)" } else { "" });
        }
        words
    }

    /// The steps of one side.
    pub fn of(&self, side: usize) -> impl Iterator<Item = &Done> {
        self.done.iter().filter(move |done| done.side == side)
    }
}

/// An exchange in the function that sends messages, in the one that removes runs, and a change of the tables before
/// anything is played.
pub const TELL: &str = "create function tell";
pub const PURGE: &str = "create function purge";
pub const SCHEMA: &str = "alter table";

async fn exchange_in(function: &str, sql: &mut PgConnection, what: &str, by: &str) -> anyhow::Result<()> {
    let text: String = sqlx::query_scalar("select pg_get_functiondef($1::text::regproc)")
        .bind(function)
        .fetch_one(&mut *sql)
        .await?;
    anyhow::ensure!(text.contains(what), "{function} does not say \"{what}\"");
    sqlx::raw_sql(AssertSqlSafe(text.replace(what, by))).execute(sql).await?;
    Ok(())
}

/// Two sessions, a third for bystanders, and one that looks.
pub struct Bench {
    sides: [Side; 2],
    looks: PgConnection,
    pub wire: Option<Wire>,
    _lab: Lab,
}

enum Side {
    Idle(Box<Session>, i32),
    Busy { task: JoinHandle<(Box<Session>, Answer)>, pid: i32, step: Step, waited: bool },
    Moving,
}

impl Bench {
    /// On the way that exchanges parts of statements, if any are given.
    pub async fn new(exchanges: Option<&[(&str, &str, &str)]>) -> anyhow::Result<Self> {
        let lab = Lab::new().await?;
        let wire = match exchanges {
            None => None,
            Some(exchanges) => {
                let wire = Wire::to(&lab.url).await?;
                let mut sql = lab.sql().await?;
                for (within, what, by) in exchanges {
                    match *within {
                        TELL => exchange_in("tell", &mut sql, what, by).await?,
                        PURGE => exchange_in("purge", &mut sql, what, by).await?,
                        SCHEMA => {
                            sqlx::raw_sql(AssertSqlSafe(*what)).execute(&mut sql).await?;
                        }
                        _ => wire.exchange(within, what, by),
                    }
                }
                Some(wire)
            }
        };
        let store = Store::connect(wire.as_ref().map_or(&lab.url, |wire| wire.url())).await?;
        let third = Arc::new(Mutex::new(probe::session(&store, "third").await?));
        let mut looks = lab.sql().await?;
        let mut claim_text = None;
        if let Some(wire) = &wire {
            let scene = Scene::set(&mut looks, false).await?;
            probe::claim_due(&mut *third.lock().await, &scene.three, &[], 1).await?;
            claim_text = wire.heard("due as materialized");
        }
        let mut sides = [Side::Moving, Side::Moving];
        for side in &mut sides {
            let mut conn = probe::session(&store, "side").await?;
            let pid = sqlx::query_scalar("select pg_backend_pid()").fetch_one(&mut conn).await?;
            let (third, claim_text) = (Arc::clone(&third), claim_text.clone());
            let session = Session { conn, claimed: Vec::new(), told: false, open: false, third, claim_text };
            *side = Side::Idle(Box::new(session), pid);
        }
        Ok(Self { sides, looks, wire, _lab: lab })
    }

    pub async fn play(&mut self, ops: [Op; 2], order: &[usize]) -> anyhow::Result<Play> {
        let two_is_late = ops.contains(&Op::TakeOverThatDies);
        let scene = Scene::set(&mut self.looks, two_is_late).await?;
        let mut left_to_do = ops.map(|op| op.steps().iter().copied());
        // Turns that came while the session waited: it takes them as soon as it can.
        let mut owed = [0, 0];
        let (mut clock, mut done) = (0, Vec::new());
        for side in order {
            owed[*side] += 1;
            self.take_turns(&mut owed, &mut left_to_do, &scene, &mut clock, &mut done).await?;
        }
        let deadline = Instant::now() + Duration::from_secs(20);
        while owed != [0, 0] || self.sides.iter().any(|side| matches!(side, Side::Busy { .. })) {
            anyhow::ensure!(Instant::now() < deadline, "both wait for ever: {ops:?} {order:?}");
            self.take_turns(&mut owed, &mut left_to_do, &scene, &mut clock, &mut done).await?;
        }
        for side in &mut self.sides {
            let Side::Idle(session, _) = side else { continue };
            session.claimed.clear();
            if std::mem::take(&mut session.open) {
                sqlx::raw_sql("rollback").execute(&mut session.conn).await?;
            }
        }
        let tables = Tables::read(&mut self.looks).await?;
        Ok(Play { ops, scene, done, tables })
    }

    async fn take_turns(
        &mut self,
        owed: &mut [i32; 2],
        left_to_do: &mut [impl Iterator<Item = Step>; 2],
        scene: &Scene,
        clock: &mut usize,
        done: &mut Vec<Done>,
    ) -> anyhow::Result<()> {
        loop {
            // Whoever waits was let through by what the other one has just done.
            let waits = |side: &Side| matches!(side, Side::Busy { waited: true, .. });
            let first = usize::from(waits(&self.sides[0]));
            for side in [first, 1 - first] {
                self.look(side, clock, done).await?;
            }
            let ready = |side: &usize| owed[*side] > 0 && matches!(self.sides[*side], Side::Idle(..));
            let Some(side) = (0..2).find(ready) else { return Ok(()) };
            owed[side] -= 1;
            let Some(step) = left_to_do[side].next() else { continue };
            let Side::Idle(mut session, pid) = std::mem::replace(&mut self.sides[side], Side::Moving) else {
                continue;
            };
            let scene = scene.clone();
            let task = tokio::spawn(async move {
                let answer = session.perform(step, &scene).await;
                (session, answer)
            });
            self.sides[side] = Side::Busy { task, pid, step, waited: false };
        }
    }

    /// Returns when the step of this side is done, or the database says that it waits for a lock.
    async fn look(&mut self, side: usize, clock: &mut usize, done: &mut Vec<Done>) -> anyhow::Result<()> {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let Side::Busy { task, pid, waited, .. } = &mut self.sides[side] else { return Ok(()) };
            let pid = *pid;
            if let Ok(ended) = tokio::time::timeout(Duration::from_millis(1), &mut *task).await {
                let (session, answer) = ended?;
                *clock += 1;
                let busy = std::mem::replace(&mut self.sides[side], Side::Idle(session, pid));
                if let Side::Busy { step, waited, .. } = busy {
                    done.push(Done { side, step, ended: *clock, waited, answer });
                }
                return Ok(());
            }
            let blocked: bool = sqlx::query_scalar("select cardinality(pg_blocking_pids($1)) > 0")
                .bind(pid)
                .fetch_one(&mut self.looks)
                .await?;
            if blocked {
                *waited = true;
                return Ok(());
            }
            anyhow::ensure!(Instant::now() < deadline, "a statement neither ends nor waits");
        }
    }
}
