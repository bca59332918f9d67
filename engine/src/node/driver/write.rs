//! The driver's other half: what is to be journaled goes out, and once it is durable, what it announces is done.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Instant;

use backstay_machine::{CourseAt, Direction, Phase, Row, RunId, Status, judge, step_event};

use super::super::call;
use super::slots::Start;
use super::{Driver, Left, Pending, Then, Written};
use crate::activity::Failure;
use crate::store::{Batch, IndexChange, StoreError, append_surely};

impl Driver {
    pub(super) fn write(&mut self) {
        let pending = std::mem::take(&mut self.pending);
        let shared = self.shared.clone();
        let mut conn = self.conn.take();
        self.writing = Some(Box::pin(async move {
            shared.crash_point("append.before").await;
            let begun = Instant::now();
            let result = append_surely(&shared.store, &mut conn, &shared.life, &pending.batch).await;
            shared.crash_point("append.committed").await;
            (conn, pending, result, begun)
        }));
    }

    /// Gets a write on its way: it does nothing until it is polled.
    async fn send_off(&mut self) {
        if let Some(writing) = &mut self.writing
            && let Poll::Ready(written) = futures_util::poll!(writing)
        {
            self.writing = Some(Box::pin(std::future::ready(written)));
        }
    }

    /// The events are durable: now what they announce may be done.
    pub(super) async fn written(&mut self, (conn, mut pending, result, begun): Written) -> Result<(), ()> {
        self.conn = conn;
        metrics::histogram!("backstay_commit_seconds").record(begun.elapsed().as_secs_f64());
        metrics::histogram!("backstay_batch_rows").record(pending.batch.events.len() as f64);
        metrics::counter!("backstay_events_total").increment(pending.batch.events.len() as u64);
        match result {
            Ok(mut appended) => {
                // What came together meanwhile goes out before this is carried out, so that Postgres does not wait for
                // us; unless it holds events of a run that was refused.
                if appended.spoken_to {
                    self.shared.look.notify_one();
                }
                if appended.refused.is_empty() && !self.pending.batch.is_empty() {
                    self.write();
                    self.send_off().await;
                }
                let tells = std::mem::take(&mut pending.batch.tells);
                let facts = std::mem::take(&mut pending.batch.facts);
                self.carry_out(pending, &appended.refused);
                self.sent(tells, std::mem::take(&mut appended.told));
                self.decided(facts, appended.moved);
            }
            Err(StoreError::Fenced) => return Err(()),
            Err(error) => {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "a write was refused; each run is written alone"
                );
                self.write_one_by_one(pending).await?;
            }
        }
        Ok(())
    }

    fn carry_out(&mut self, pending: Pending, refused: &[RunId]) {
        for id in refused {
            self.runs.remove(id);
            // What it came to meanwhile goes with it.
            self.forget_pending(*id);
        }
        for (id, _) in &pending.batch.events {
            self.shared.watchers.changed(*id);
        }
        for then in pending.then {
            match then {
                Then::Admitted(submission) => {
                    let id = submission.admission.run;
                    if refused.contains(&id) {
                        submission.refuse();
                    } else {
                        submission.admit(self.shared.life.epoch);
                        self.admitted(id);
                    }
                }
                Then::Call(start) => self.call(start),
                Then::Tell(done) => {
                    let _ = done.send(());
                }
                Then::Leave(id, claim, status) => {
                    // Unless this node has claimed it again since: its answer was a long time coming.
                    if self.runs.get(&id).is_some_and(|run| run.state.claim() == claim)
                        && let Some(run) = self.runs.remove(&id)
                    {
                        self.calls -= run.calls.len();
                        self.pools.forget(id);
                        self.shared.acquit(id);
                        if let Some(ended) = run.ended
                            && status.settles()
                        {
                            let _ = ended.send(status);
                        }
                    }
                }
            }
        }
        self.shared.resident.store(self.runs.len(), Ordering::Relaxed);
        metrics::gauge!("backstay_runs_resident").set(self.runs.len() as f64);
        metrics::gauge!("backstay_calls_in_flight").set(self.calls as f64);
    }

    /// There is a row of the index now: what had to wait for it goes on.
    fn admitted(&mut self, id: RunId) {
        let Some(run) = self.runs.get_mut(&id) else { return };
        run.admitting = false;
        // Most have a call in flight, and nothing to decide before its outcome.
        if run.state.running() == 0 || run.indexed != run.state.status() || run.failing.is_news() {
            self.advance(id);
        }
    }

    pub(super) fn call(&mut self, start: Start) {
        let Start { run: id, course, attempt, slot } = start;
        // Between the start and its commit the run may have left, or the attempt may have been given up.
        let wanted = self.runs.get_mut(&id).filter(|run| {
            let at = run.state.course(course);
            !run.leaving && at.at == CourseAt::Running && (at.generation, at.attempts) == attempt
        });
        let Some(run) = wanted else {
            self.calls = self.calls.saturating_sub(1);
            return;
        };
        if course.direction == Direction::Forward && run.state.phase() == Phase::RollingBack {
            // Nothing is journaled of a run that stands still; it is looked at again in a moment.
            if self.undecided.contains_key(&id) {
                self.deferred.push(Start { run: id, course, attempt, slot });
                return;
            }
            self.calls = self.calls.saturating_sub(1);
            let why = "the run turned round before the call was made";
            let error = Failure::permanent("not_called", why).not_applied().into_error();
            let what = judge(&run.state, course, error, self.shared.now());
            let event = step_event(&run.state, course, what);
            self.append(id, event);
            self.advance(id);
            return;
        }
        if !self.shared.lease.borrow().is_safe() {
            self.deferred.push(Start { run: id, course, attempt, slot });
            return;
        }
        let mut call = call::start(&self.shared, &run.state, course, self.shared.now());
        call.slot = slot;
        run.calls.insert(course, call);
    }

    /// Some run of a batch cannot be written: find it, leave it alone, and let the others go on.
    async fn write_one_by_one(&mut self, pending: Pending) -> Result<(), ()> {
        let Pending { batch, mut then, .. } = pending;
        let mut order: Vec<RunId> = Vec::new();
        let mut parts: HashMap<RunId, Batch> = HashMap::new();
        let mut seen: HashSet<RunId> = HashSet::new();
        let mut part = |id: RunId| -> RunId {
            if seen.insert(id) {
                order.push(id);
            }
            id
        };
        for admission in batch.admissions {
            parts.entry(part(admission.run)).or_default().admissions.push(admission);
        }
        for (id, row) in batch.events {
            parts.entry(part(id)).or_default().events.push((id, row));
        }
        for change in batch.changes {
            parts.entry(part(change.run)).or_default().changes.push(change);
        }
        for (from, message) in batch.tells {
            parts.entry(part(from)).or_default().tells.push((from, message));
        }
        let facts = batch.facts;
        for proviso in &facts {
            parts.entry(part(proviso.run)).or_default().facts.push(proviso.clone());
        }
        let (mut refused, mut moved) = (Vec::new(), Vec::new());
        for id in order {
            let Some(batch) = parts.remove(&id) else { continue };
            let error =
                match append_surely(&self.shared.store, &mut self.conn, &self.shared.life, &batch).await {
                    Ok(appended) => {
                        if appended.spoken_to {
                            self.shared.look.notify_one();
                        }
                        refused.extend(appended.refused);
                        moved.extend(appended.moved);
                        continue;
                    }
                    Err(StoreError::Fenced) => return Err(()),
                    Err(error) => error,
                };
            let why = format!("Postgres does not take its events: {error:?}");
            tracing::error!(run = %id, "{why}");
            then.retain(|then| !matches!(then, Then::Leave(run, ..) if *run == id));
            // What it came to meanwhile stands on events that will never be.
            let meanwhile = self.forget_pending(id);
            let run = self.runs.remove(&id);
            if let Some(run) = &run {
                self.calls -= run.calls.len();
            }
            let first = batch.events.first().or(meanwhile.first()).map(|(_, row)| row);
            let before = first.map(|row| (row.seq - 1, row.claim));
            let before = before.or(run.as_ref().map(|run| (run.state.seq(), run.state.claim())));
            let unwritten: Vec<_> = batch.events.iter().chain(&meanwhile).cloned().collect();
            match before {
                _ if !batch.admissions.is_empty() => refused.push(id),
                Some((seq, claim)) if let Some(run) = &run => {
                    let refusals = Self::refused_instead(&unwritten, &why);
                    let left = Left { seq, claim, told: run.told, in_line: run.in_line };
                    self.quarantine_unread(id, left, why, refusals);
                }
                // Not even its quarantine can be journaled. The index says it, or it stays as it is.
                Some((_, claim)) => {
                    // Messages that this was to answer stay where they are: to count on an answer would be to try for
                    // ever.
                    let told = batch.changes.first().map_or(0, |change| change.told);
                    self.change(IndexChange {
                        run: id,
                        claim,
                        status: Status::Quarantined,
                        release: true,
                        due_at: None,
                        note: Some(why),
                        finished_at: None,
                        told,
                        clears: true,
                        failing: None,
                    });
                }
                None => {}
            }
        }
        self.carry_out(Pending { then, ..Pending::default() }, &refused);
        self.decided(facts, moved);
        Ok(())
    }

    /// Takes what a run has ready out of the next write.
    fn forget_pending(&mut self, id: RunId) -> Vec<(RunId, Row)> {
        let Pending { batch, changes, then } = &mut self.pending;
        let forgotten = batch.events.extract_if(.., |(run, _)| *run == id).collect();
        batch.changes.retain(|change| change.run != id);
        batch.tells.retain(|(from, _)| *from != id);
        // What was to be decided about it will not be.
        if batch.facts.extract_if(.., |one| one.run == id).next().is_some() {
            self.undecided.remove(&id);
        }
        *changes = batch.changes.iter().enumerate().map(|(at, change)| (change.run, at)).collect();
        then.retain(|then| !matches!(then, Then::Leave(run, ..) if *run == id));
        forgotten
    }

    pub(super) fn done_without_writing(&mut self) {
        let then = std::mem::take(&mut self.pending.then);
        self.carry_out(Pending { then, ..Pending::default() }, &[]);
    }
}
