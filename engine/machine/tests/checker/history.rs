//! A legal history that can be spoiled.

use backstay_machine::checker::{Case, Index, Violation, WorldLog, check_run};
use backstay_machine::*;
use serde_json::{Value, json};

use crate::sim::Sim;

pub struct History {
    pub run: RunId,
    pub rows: Vec<Row>,
    pub index: Option<Index>,
    pub world: WorldLog,
}

impl History {
    /// Of a run that has come to rest; it must be legal.
    pub fn of(sim: Sim) -> Self {
        let sim = sim.work();
        let found = sim.violations();
        assert!(found.is_empty(), "it is no legal history: {found:#?}\n{}", sim.story());
        Self { run: sim.run, rows: sim.rows(), index: Some(sim.index()), world: sim.world() }
    }

    /// Where "started b", "succeeded undo a", "finished" stands; "started b #2" is the second such row.
    pub fn find(&self, which: &str) -> usize {
        let (which, nth) = which.split_once(" #").map_or((which, 1), |(w, n)| (w, n.parse().unwrap()));
        let named = |row: &Row| {
            let step = row.step.as_deref().map(|s| format!("{} {s}", if row.undo { " undo" } else { "" }));
            format!("{}{}", row.kind, step.unwrap_or_default())
        };
        let is_it = |(_, row): &(usize, &Row)| named(row) == which;
        let all = self.rows.iter().map(named).collect::<Vec<_>>();
        self.rows
            .iter()
            .enumerate()
            .filter(is_it)
            .nth(nth - 1)
            .unwrap_or_else(|| panic!("no {which} in {all:?}"))
            .0
    }

    pub fn row(&mut self, which: &str) -> &mut Row {
        let n = self.find(which);
        &mut self.rows[n]
    }

    pub fn at(&self, which: &str) -> Time {
        self.rows[self.find(which)].at
    }

    /// Takes a row out; the others close up.
    pub fn remove(&mut self, which: &str) -> Row {
        let row = self.rows.remove(self.find(which));
        self.renumber();
        row
    }

    /// Everything behind a row is not yet.
    pub fn cut_after(&mut self, which: &str) {
        let n = self.find(which);
        self.rows.truncate(n + 1);
        self.index = None;
    }

    /// Puts a row behind another, as if it had happened then.
    pub fn insert_after(&mut self, which: &str, mut row: Row) {
        let n = self.find(which);
        (row.at, row.claim, row.epoch) = (self.rows[n].at, self.rows[n].claim, self.rows[n].epoch);
        self.rows.insert(n + 1, row);
        self.renumber();
    }

    pub fn move_after(&mut self, which: &str, after: &str) {
        let row = self.remove(which);
        self.insert_after(after, row);
    }

    pub fn copy_after(&mut self, which: &str, after: &str) -> &mut Row {
        let row = self.rows[self.find(which)].clone();
        self.insert_after(after, row);
        let n = self.find(after) + 1;
        &mut self.rows[n]
    }

    /// A row of a kind, about nothing in particular.
    pub fn put_after(&mut self, after: &str, kind: &'static str, body: Value) {
        let mut row = self.rows[0].clone();
        (row.kind, row.body) = (kind, Some(Json::of(&body)));
        self.insert_after(after, row);
    }

    /// A row about the same attempt as another.
    pub fn tell_after(&mut self, after: &str, kind: &'static str, body: Value) {
        let mut row = self.rows[self.find(after)].clone();
        (row.kind, row.key, row.body) = (kind, None, Some(Json::of(&body)));
        self.insert_after(after, row);
    }

    /// Moves a row, and all behind it that would be older, to another time.
    pub fn set_time(&mut self, which: &str, at: Time) {
        self.row(which).at = at;
        self.renumber();
    }

    fn renumber(&mut self) {
        let mut last = None;
        for (n, row) in self.rows.iter_mut().enumerate() {
            row.seq = n as i64 + 1;
            row.at = last.map_or(row.at, |last| row.at.max(last));
            last = Some(row.at);
        }
    }

    pub fn check(&self) -> Vec<Violation> {
        check_run(&Case {
            run: self.run,
            rows: &self.rows,
            index: self.index.as_ref(),
            world: Some(&self.world),
        })
    }
}

/// Changes a part of a row's body.
pub fn edit(row: &mut Row, change: impl FnOnce(&mut Value)) {
    let mut body = row.body.as_ref().map(Json::value).unwrap_or_default();
    change(&mut body);
    row.body = Some(Json::of(&body));
}

pub fn failure(retryable: bool, applied: &str, retry_at: Option<Time>) -> Value {
    let error =
        json!({ "code": "broken", "message": "it broke", "retryable": retryable, "applied": applied });
    json!({ "error": error, "retry_at": retry_at })
}
