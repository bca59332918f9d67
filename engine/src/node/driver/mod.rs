//! Owns the runs of a node and moves them.
//!
//! ```text
//!   messages -> apply, decide, apply, ... -> batch -> (one commit) -> calls, answers, farewells
//! ```
//!
//! A run's state in memory is ahead of the journal by what is in the batch and in the write under way; nothing
//! leaves the node (no call, no answer) before its events are durable. If a write is refused by the fence, all
//! of that is thrown away with the node: the journal is the only truth.

mod facts;
mod family;
mod mail;
mod slots;
mod write;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use backstay_machine::{
    Chain, ClaimReason, Command, CourseAt, CourseId, Event, Journaled, Json, Phase, Row, RunId, State,
    Status, StepEvent, StepIx, Time, decide, is_sealed, judge, judge_probe, step_event,
};
use sqlx::PgConnection;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use self::facts::{Later, Undecided};
use self::slots::Start;
use super::call::{self, Call};
use super::failing::Failing;
use super::pools::{Pools, Slot, keep_asking};
use super::{AbortOnDrop, Found, Message, Shared};
use crate::engine::Submission;
use crate::store::{Appended, Batch, IndexChange, Store, StoreError};

/// How many messages are taken in before the next look at the write.
const GULP: usize = 1_024;

pub(super) struct Driver {
    shared: Shared,
    inbox: mpsc::UnboundedReceiver<Message>,
    runs: HashMap<RunId, Run>,
    /// Those that stand still until it is known whether a fact was as they had seen it.
    undecided: HashMap<RunId, Undecided>,
    pending: Pending,
    writing: Option<Writing>,
    conn: Option<PgConnection>,
    timers: BinaryHeap<Reverse<(Time, RunId)>>,
    /// Calls in flight, and those whose start is being written.
    calls: usize,
    /// Runs that found no room for a call.
    starved: VecDeque<RunId>,
    /// Calls whose start is durable, while the lease is too short to begin them.
    deferred: Vec<Start>,
    pools: Pools,
    /// Places in pools that the decision at hand has taken.
    taken: Vec<Slot>,
    _asking: AbortOnDrop,
    scout: CancellationToken,
    drain_until: Option<Instant>,
}

/// A run in memory.
struct Run {
    state: State,
    /// Over the rows of its journal, with those that are on their way.
    chain: Chain,
    /// By the same rows.
    failing: Failing,
    priority: i16,
    /// Another run has its exclusive key: it answers, and is put back where it stood.
    in_line: bool,
    calls: HashMap<CourseId, Call>,
    probes: HashMap<StepIx, call::Question>,
    /// What the index says.
    indexed: Status,
    /// Messages to it that are answered.
    told: i32,
    /// Its admission is on the way to the journal: until it is there, the index has no row to change.
    admitting: bool,
    /// Its last owners died: the first outcome clears it.
    suspected: bool,
    /// Its last event is on the way to the journal.
    leaving: bool,
    starved: bool,
    timer: Option<Time>,
    ended: Option<oneshot::Sender<Status>>,
}

impl Run {
    fn new(state: State, indexed: Status, ended: Option<oneshot::Sender<Status>>) -> Self {
        Self {
            chain: Chain::new(state.run()),
            failing: Failing::default(),
            state,
            priority: 1,
            in_line: indexed == Status::Queued,
            calls: HashMap::new(),
            probes: HashMap::new(),
            indexed,
            told: 0,
            admitting: false,
            suspected: false,
            leaving: false,
            starved: false,
            timer: None,
            ended,
        }
    }

    /// Its row of the index, as it is while this node has it.
    fn kept(&self, run: RunId) -> IndexChange {
        IndexChange {
            run,
            claim: self.state.claim(),
            status: self.indexed,
            release: false,
            due_at: None,
            note: None,
            finished_at: None,
            told: self.told,
            clears: !self.suspected,
            failing: self.failing.names(),
        }
    }

    /// Its row of the index when this node gives it up.
    fn given_up(&self, run: RunId, status: Status) -> IndexChange {
        IndexChange { status, release: true, clears: true, ..self.kept(run) }
    }
}

/// What is to be written next, and what is done once it is.
#[derive(Default)]
struct Pending {
    batch: Batch,
    changes: HashMap<RunId, usize>,
    then: Vec<Then>,
}

fn unread(why: &str) -> String {
    format!("its journal cannot be read: {why}")
}

/// How far the journal of a run goes that this node can do nothing with, and how many messages are answered once it
/// is left alone.
struct Left {
    seq: i64,
    claim: i32,
    told: i32,
    in_line: bool,
}

enum Then {
    /// The submission is durable.
    Admitted(Box<Submission>),
    /// The start is durable: call.
    Call(Start),
    /// Somebody waits for it.
    Tell(oneshot::Sender<()>),
    /// The run is over, or somebody else's.
    Leave(RunId, i32, Status),
}

type Written = (Option<PgConnection>, Pending, Result<Appended, StoreError>, Instant);
type Writing = Pin<Box<dyn Future<Output = Written> + Send>>;

impl Driver {
    pub(super) fn new(
        shared: Shared,
        inbox: mpsc::UnboundedReceiver<Message>,
        scout: CancellationToken,
    ) -> Self {
        let (asks, asked) = mpsc::unbounded_channel();
        let asking = tokio::spawn(keep_asking(shared.clone(), asked));
        Self {
            shared,
            inbox,
            runs: HashMap::new(),
            undecided: HashMap::new(),
            pending: Pending::default(),
            writing: None,
            conn: None,
            timers: BinaryHeap::new(),
            calls: 0,
            starved: VecDeque::new(),
            deferred: Vec::new(),
            pools: Pools::new(asks),
            taken: Vec::new(),
            _asking: AbortOnDrop(asking.abort_handle()),
            scout,
            drain_until: None,
        }
    }

    pub(super) async fn work(mut self) {
        self.shared.crash_point("lease.begun").await;
        let mut messages = Vec::with_capacity(GULP);
        loop {
            if self.writing.is_none() && !self.pending.batch.is_empty() {
                self.write();
            }
            if self.is_drained() {
                break;
            }
            let pause = self.next_timer();
            tokio::select! {
                biased;
                written = async { match &mut self.writing { Some(writing) => writing.await, None => std::future::pending().await } } => {
                    self.writing = None;
                    if self.written(written).await.is_err() {
                        self.shared.lost.cancel();
                        return;
                    }
                }
                _ = self.inbox.recv_many(&mut messages, GULP) => {
                    for message in messages.drain(..) {
                        self.take_in(message);
                    }
                }
                () = tokio::time::sleep(pause) => {}
            }
            // After every turn: an inbox that is never empty must not hold up what has fallen due.
            self.timers_due();
            self.feed_starved();
            self.feed_pools();
        }
        self.end().await;
    }

    // ---- what happened ----

    fn take_in(&mut self, message: Message) {
        if let Some(id) = message.of_run()
            && let Some(later) = self.put_by(id)
        {
            return later.push(Later::Message(message));
        }
        match message {
            Message::Submit(submission) => self.submitted(submission),
            Message::Claimed { runs, done } => {
                for found in runs {
                    self.claimed(found);
                }
                self.pending.then.push(Then::Tell(done));
                if self.pending.batch.is_empty() {
                    self.done_without_writing();
                }
            }
            Message::Outcome { run: id, course, attempt, result, fact } => {
                let Some(run) = self.runs.get_mut(&id) else { return };
                if run.calls.get(&course).is_none_or(|call| call.attempt != attempt) {
                    return;
                }
                if let Some(slot) = run.calls.remove(&course).and_then(|mut call| call.slot.take()) {
                    self.pools.heard(&slot, &result);
                }
                self.calls -= 1;
                let now = self.shared.now();
                let what = match (result, fact) {
                    (Ok(output), Some(change)) => {
                        self.succeed_provided(id, course, output, *change);
                        return self.clear_suspicion(id);
                    }
                    (Ok(output), None) => StepEvent::Succeeded { output },
                    (Err(error), _) => judge(&run.state, course, error, now),
                };
                let event = step_event(&run.state, course, what);
                self.append(id, event);
                self.clear_suspicion(id);
                self.advance(id);
            }
            Message::Probed { run: id, step, attempt, answer, output, asked_at } => {
                let Some(run) = self.runs.get_mut(&id) else { return };
                if run.probes.get(&step).is_none_or(|question| question.attempt != attempt) {
                    return;
                }
                run.probes.remove(&step);
                let course = CourseId::forward(step);
                let at = run.state.course(course);
                // An operator may have had it begin anew meanwhile. Then the run goes on all the same: it may have waited
                // for this answer to be put down.
                let events = if (at.generation, at.attempts) == attempt {
                    judge_probe(&run.state, step, answer, output, asked_at, self.shared.now())
                } else {
                    Vec::new()
                };
                for what in events {
                    if let Some(run) = self.runs.get(&id) {
                        let event = step_event(&run.state, course, what);
                        self.append(id, event);
                    }
                }
                self.advance(id);
            }
            Message::Checkpoint { run: id, course, attempt, value, done } => {
                let Some(run) = self.runs.get(&id) else { return };
                if run.calls.get(&course).is_some_and(|call| call.attempt == attempt) {
                    let event = step_event(&run.state, course, StepEvent::Checkpointed { value });
                    self.append(id, event);
                    self.pending.then.push(Then::Tell(done));
                }
            }
            Message::Resource { run: id, course, attempt, what, done } => {
                let Some(run) = self.runs.get(&id) else { return };
                if run.calls.get(&course).is_some_and(|call| call.attempt == attempt) {
                    let generation = run.state.course(course).generation;
                    self.append(id, Event::Step { course, generation, attempt: 0, what });
                    self.pending.then.push(Then::Tell(done));
                }
            }
            Message::Progress { run: id, course, attempt, percent, note } => {
                let every = self.shared.config.progress_every;
                let Some(run) = self.runs.get_mut(&id) else { return };
                let Some(call) = run.calls.get_mut(&course).filter(|call| call.attempt == attempt) else {
                    return;
                };
                if call.noted.is_none_or(|at| at.elapsed() >= every) {
                    call.noted = Some(Instant::now());
                    let event = step_event(&run.state, course, StepEvent::Progressed { percent, note });
                    self.append(id, event);
                }
            }
            Message::Unknown { owned, reply } => {
                let unknown = owned.into_iter().filter(|id| !self.runs.contains_key(id)).collect();
                let _ = reply.send(unknown);
            }
            Message::Mail { letters, done } => {
                self.deliver(letters);
                self.pending.then.push(Then::Tell(done));
                if self.pending.batch.is_empty() {
                    self.done_without_writing();
                }
            }
            Message::Granted(answers) => self.pools.granted(answers),
            Message::Acquit(id) => self.clear_suspicion(id),
            Message::Drain { grace } => {
                self.drain_until = Some(Instant::now() + grace);
                self.scout.cancel();
                tracing::info!(runs = self.runs.len(), calls = self.calls, "the node hands over its runs");
                self.advance_all();
            }
        }
    }

    fn submitted(&mut self, submission: Box<Submission>) {
        if self.drain_until.is_some() || self.runs.len() >= self.shared.config.max_runs {
            submission.refuse();
            return;
        }
        self.take_on(submission);
    }

    fn take_on(&mut self, mut submission: Box<Submission>) {
        let id = submission.admission.run;
        submission.admission.at = self.shared.now();
        let state = State::new(id, std::sync::Arc::clone(&submission.plan));
        let mut run = Run::new(state, Status::Running, submission.ended.take());
        run.admitting = true;
        run.priority = submission.admission.priority;
        self.insert(id, run);
        self.pending.batch.admissions.push(submission.admission.clone());
        let by = submission.by.clone();
        self.pending.then.push(Then::Admitted(submission));
        self.append(id, Event::Submitted { by });
        self.advance(id);
    }

    fn claimed(&mut self, found: Found) {
        let id = found.claimed.run;
        let name = self.shared.life.name.clone();
        // Messages that are counted and are not there were lost to a hand: nobody waits for them for ever.
        let none = found.letters.is_empty();
        let told = if none { found.claimed.told.max(found.claimed.mail) } else { found.claimed.told };
        let state = match found.state {
            Ok(state) => *state,
            Err((seq, why)) => {
                let letters = found.letters.iter();
                let refusals: Vec<_> =
                    letters.map(|one| (one.id, mail::refusal(one, &unread(&why)))).collect();
                let told = told + refusals.len() as i32;
                let in_line = found.claimed.status == Status::Queued;
                let left = Left { seq, claim: found.claimed.claim, told, in_line };
                return self.quarantine_unread(id, left, why, refusals);
            }
        };
        let mut run = Run::new(state, found.claimed.status, None);
        run.suspected = found.claimed.crashes > 0;
        run.priority = found.claimed.priority;
        run.told = told;
        run.chain = found.chain;
        run.failing = found.failing;
        self.insert(id, run);
        // The number of the claim comes from the index: an owner that died right after claiming left no event.
        let event = Event::Claimed { node: name, reason: found.claimed.reason };
        self.append_under(id, event, Some(found.claimed.claim));
        if found.claimed.reason == ClaimReason::LostLease
            && found.claimed.crashes >= self.shared.config.max_crashes
        {
            let why = format!(
                "{} nodes in a row died while they had this run, without one outcome in between; it is left alone until an operator looks at it",
                found.claimed.crashes
            );
            tracing::error!(run = %id, "quarantined: {why}");
            self.append(id, Event::Quarantined { why });
        }
        self.remind(id);
        for letter in &found.letters {
            // It is in the journal that was read just now, and in the inbox all the same: some hand put it there.
            if !self.answer(letter)
                && let Some(run) = self.runs.get_mut(&id)
            {
                run.told += 1;
            }
        }
        self.advance(id);
    }

    /// A journal that cannot be folded: its run is left alone, with an alarm, and delays nobody. Who has spoken to it
    /// is told so.
    fn quarantine_unread(&mut self, id: RunId, left: Left, why: String, refusals: Vec<(uuid::Uuid, Json)>) {
        let why = unread(&why);
        tracing::error!(run = %id, "quarantined: {why}");
        metrics::counter!("backstay_quarantined_total").increment(1);
        let body = Json::of(&serde_json::json!({ "why": why }));
        let Left { mut seq, claim, told, in_line } = left;
        seq += 1;
        self.pending.batch.events.push((id, self.bare_row("quarantined", seq, claim, body)));
        for (message, body) in refusals {
            seq += 1;
            let row = Row { key: Some(message), ..self.bare_row("refused", seq, claim, body) };
            self.pending.batch.events.push((id, row));
        }
        self.change(IndexChange {
            run: id,
            claim,
            // Only one live run can be there for its key, and that is another one yet.
            status: if in_line { Status::Queued } else { Status::Quarantined },
            release: true,
            due_at: None,
            note: Some(why),
            finished_at: None,
            told,
            clears: true,
            failing: None,
        });
    }

    fn bare_row(&self, kind: &'static str, seq: i64, claim: i32, body: Json) -> Row {
        Row {
            seq,
            claim,
            epoch: self.shared.life.epoch.0,
            at: self.shared.now(),
            kind,
            step: None,
            undo: false,
            generation: 0,
            attempt: 0,
            key: None,
            body: Some(body),
            seal: None,
        }
    }

    fn insert(&mut self, id: RunId, run: Run) {
        self.runs.insert(id, run);
        self.shared.resident.store(self.runs.len(), Ordering::Relaxed);
    }

    fn clear_suspicion(&mut self, id: RunId) {
        let Some(run) = self.runs.get_mut(&id) else { return };
        // What it leaves with clears it as well, and must not be overwritten.
        if std::mem::take(&mut run.suspected) && !run.leaving {
            let change = run.kept(id);
            self.shared.acquit(id);
            self.change(change);
        }
    }

    // ---- what happens next ----

    /// Decides until there is nothing left to decide, and sees to how the run goes on from there.
    fn advance(&mut self, id: RunId) {
        let now = self.shared.now();
        let draining = self.drain_until.is_some();
        if self.undecided.contains_key(&id) {
            return;
        }
        let mut ask_soon = None;
        let mut refused;
        let wake_at = loop {
            let Some(run) = self.runs.get_mut(&id) else { return };
            if run.leaving {
                return;
            }
            let room = if draining { 0 } else { self.shared.config.max_calls.saturating_sub(self.calls) };
            refused = false;
            if run.in_line && run.state.phase() == Phase::Forward {
                break None;
            }
            let mut hands = self.pools.hands(id, run.priority, room);
            let decision = decide(&run.state, now, &mut hands);
            (self.taken, refused) = hands.end();
            let mut appended = false;
            for command in decision.commands {
                match command {
                    Command::Append(event) => {
                        appended = true;
                        self.append(id, event);
                    }
                    Command::Probe(step) if !draining => {
                        let Some(run) = self.runs.get_mut(&id) else { return };
                        let at = run.state.course(CourseId::forward(step));
                        let attempt = (at.generation, at.attempts);
                        // A question about an earlier attempt is not waited for.
                        if run.probes.get(&step).is_some_and(|question| question.attempt == attempt) {
                        } else if self.shared.lease.borrow().is_safe() {
                            let probe = call::probe(&self.shared, &run.state, step, now);
                            run.probes.insert(step, probe);
                        } else {
                            ask_soon = Some(now + chrono::TimeDelta::milliseconds(100));
                        }
                    }
                    Command::Probe(_) => {}
                    Command::Cancel(course) => {
                        if let Some(call) = self.runs.get(&id).and_then(|run| run.calls.get(&course)) {
                            call.cancel.cancel();
                        }
                    }
                }
            }
            self.taken.clear();
            if !appended {
                break decision.wake_at;
            }
        };
        self.arrange(id, now, ask_soon.into_iter().chain(wake_at).min(), refused);
    }

    /// What a run does while nothing is to be decided: leave, be put down, wait for a time, wait for calls.
    /// Where something was `refused`, it goes on as soon as there are hands: then it stays here, or is handed over.
    fn arrange(&mut self, id: RunId, now: Time, wake_at: Option<Time>, refused: bool) {
        let draining = self.drain_until.is_some();
        let full = self.calls >= self.shared.config.max_calls;
        let park_after = chrono::TimeDelta::from_std(self.shared.config.park_after).unwrap_or_default();
        let Some(run) = self.runs.get_mut(&id) else { return };
        let (status, claim) = (run.state.status(), run.state.claim());
        let quiet = run.state.running() == 0 && run.calls.is_empty() && (run.probes.is_empty() || draining);
        let mut change = run.given_up(id, status);
        // Until its admission is durable there is no row of the index to change; it is looked at again then.
        let quiet = quiet && !run.admitting;
        if run.state.is_over() && !run.admitting {
            change.finished_at = Some(run.state.at().unwrap_or(now));
        } else if quiet && run.in_line {
            change.status = Status::Queued;
            change.note = Some("another run has its exclusive key".into());
        } else if quiet
            && wake_at.is_none()
            && !refused
            && let Some(what) = run.state.waits_for()
        {
            // "Going forward" and "being made final" say that something is done.
            if matches!(status, Status::Running | Status::Committing) {
                change.status = Status::Waiting;
            }
            change.note = Some(what);
        } else if quiet && draining {
            change.due_at = Some(now);
        } else if let (true, Some(at)) =
            (quiet && !full && !refused, wake_at.filter(|at| *at - now > park_after))
        {
            change.due_at = Some(at);
            if status == Status::Running {
                change.status = Status::Waiting;
            }
        } else {
            if let Some(at) = wake_at.filter(|at| run.timer != Some(*at)) {
                run.timer = Some(at);
                self.timers.push(Reverse((at, id)));
            }
            if full && !run.starved {
                run.starved = true;
                self.starved.push_back(id);
            }
            // Of a live run the index knows only which way it goes, and at which steps it fails.
            let goes = matches!(
                status,
                Status::Running | Status::RollingBack | Status::Committing | Status::Succeeded
            );
            if !run.admitting {
                let turned = goes && run.indexed != status;
                if turned {
                    run.indexed = status;
                }
                if turned || run.failing.is_news() {
                    run.failing.said();
                    let change = run.kept(id);
                    self.change(change);
                }
            }
            return;
        }
        run.leaving = true;
        run.probes.clear();
        let status = change.status;
        self.change(change);
        self.pending.then.push(Then::Leave(id, claim, status));
    }

    fn append(&mut self, id: RunId, event: Event) {
        self.append_under(id, event, None);
    }

    /// Takes an event into the state and into the next write.
    fn append_under(&mut self, id: RunId, event: Event, claim: Option<i32>) {
        let now = self.shared.now();
        let epoch = self.shared.life.epoch;
        // After its last event a run is somebody else's.
        let Some(run) = self.runs.get_mut(&id).filter(|run| !run.leaving) else { return };
        let at = run.state.at().map_or(now, |last| last.max(now));
        let claim = claim.unwrap_or(run.state.claim());
        let journaled = Journaled { seq: run.state.seq() + 1, claim, epoch, at, event };
        if let Err(illegal) = run.state.apply(&journaled) {
            // A mistake of ours. The journal is right so far: whoever reads it next starts from there.
            tracing::error!(run = %id, "a decision was illegal, and the run is left alone: {illegal}");
            let (seq, claim, told, in_line) = (run.state.seq(), run.state.claim(), run.told, run.in_line);
            let left = Left { seq, claim, told, in_line };
            let claim = left.claim;
            run.leaving = true;
            self.calls -= run.calls.len();
            run.calls.clear();
            self.quarantine_unread(id, left, format!("a decision was illegal: {illegal}"), Vec::new());
            self.pending.then.push(Then::Leave(id, claim, Status::Quarantined));
            return;
        }
        let mut row = journaled.to_row(run.state.plan());
        run.chain.link(&row);
        run.failing.hear(&row);
        row.seal = is_sealed(&row).then(|| run.chain.seal());
        if let Event::Step { course, what, generation, attempt } = &journaled.event {
            match what {
                // The engine waits by itself.
                StepEvent::Started { .. } if run.state.course(*course).at != CourseAt::Running => {}
                StepEvent::Started { .. } => {
                    self.calls += 1;
                    let slot = slots::taken_for(&mut self.taken, run.state.plan(), *course);
                    let (course, attempt) = (*course, (*generation, *attempt));
                    self.pending.then.push(Then::Call(Start { run: id, course, attempt, slot }));
                }
                // Given up: whatever the call still does is no longer waited for.
                StepEvent::Failed { .. } if run.calls.remove(course).is_some() => self.calls -= 1,
                _ => {}
            }
        }
        self.pending.batch.events.push((id, row));
        self.pass_on(id, &journaled.event);
    }

    /// One change for each run and write; a later one takes the place of an earlier one.
    fn change(&mut self, change: IndexChange) {
        match self.pending.changes.get(&change.run).and_then(|at| self.pending.batch.changes.get_mut(*at)) {
            Some(earlier) => *earlier = change,
            None => {
                self.pending.changes.insert(change.run, self.pending.batch.changes.len());
                self.pending.batch.changes.push(change);
            }
        }
    }

    fn timers_due(&mut self) {
        if self.shared.lease.borrow().is_safe() {
            for start in std::mem::take(&mut self.deferred) {
                self.call(start);
            }
        }
        if self.drain_until.is_some_and(|until| Instant::now() >= until) {
            // What is still in flight is in doubt for whoever goes on.
            for run in self.runs.values_mut() {
                run.calls.clear();
                run.probes.clear();
            }
            let ids: Vec<_> = self.runs.iter().filter(|(_, run)| !run.leaving).map(|(id, _)| *id).collect();
            let now = self.shared.now();
            for id in ids {
                let Some(run) = self.runs.get_mut(&id) else { continue };
                run.leaving = true;
                let status = if run.state.phase() == Phase::RollingBack {
                    Status::RollingBack
                } else {
                    Status::Running
                };
                let claim = run.state.claim();
                let change = IndexChange { due_at: Some(now), ..run.given_up(id, status) };
                self.change(change);
                self.pending.then.push(Then::Leave(id, claim, status));
            }
        }
        let now = self.shared.now();
        while let Some(Reverse((at, id))) = self.timers.peek().copied() {
            if at > now {
                break;
            }
            self.timers.pop();
            if let Some(run) = self.runs.get_mut(&id)
                && run.timer == Some(at)
            {
                run.timer = None;
                self.advance(id);
            }
        }
    }

    fn next_timer(&mut self) -> Duration {
        const IDLE: Duration = Duration::from_secs(3600);
        let mut pause = self.pools.pause().unwrap_or(IDLE);
        if let Some(Reverse((at, _))) = self.timers.peek() {
            // A little more than needed: the time that is compared is never ahead of the database's.
            let wait = (*at - self.shared.now()).to_std().unwrap_or_default();
            pause = pause.min(wait + Duration::from_micros(200));
        }
        if let Some(until) = self.drain_until
            && self.runs.values().any(|run| !run.leaving)
        {
            pause = pause.min(until.saturating_duration_since(Instant::now()));
        }
        if !self.deferred.is_empty() {
            pause = pause.min(Duration::from_millis(50));
        }
        pause
    }

    fn feed_starved(&mut self) {
        while self.calls < self.shared.config.max_calls {
            let Some(id) = self.starved.pop_front() else { return };
            if let Some(run) = self.runs.get_mut(&id) {
                run.starved = false;
                self.advance(id);
            }
        }
    }

    fn advance_all(&mut self) {
        let ids: Vec<_> = self.runs.keys().copied().collect();
        for id in ids {
            self.advance(id);
        }
    }

    // ---- the end ----

    fn is_drained(&self) -> bool {
        self.drain_until.is_some()
            && self.runs.is_empty()
            && self.writing.is_none()
            && self.pending.batch.is_empty()
    }

    async fn end(mut self) {
        self.shared.crash_point("drain.released").await;
        let store = self.shared.store.clone();
        let ending = async {
            let conn = match &mut self.conn {
                Some(conn) => conn,
                None => self.conn.insert(store.dedicated("writer").await?),
            };
            Store::end_life(conn, &self.shared.life).await?;
            store.notify().await
        };
        if let Err(error) = store.patiently("end the lease", ending).await {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "the lease could not be given back; it runs out by itself"
            );
        }
    }
}
