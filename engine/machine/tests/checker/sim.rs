//! A run driven by the real decisions against a pretended world, with deaths, late effects and operators.
//! What each attempt comes to is scripted, or drawn from a seed.

mod outside;
mod people;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use backstay_machine::checker::{Case, Effect, Index, Violation, WorldLog, check_run};
use backstay_machine::plan::Span;
use backstay_machine::*;
use chrono::{DateTime, TimeDelta, Utc};
use serde_json::json;
use uuid::Uuid;

/// What an attempt comes to.
#[derive(Clone, Debug)]
pub enum Fate {
    Succeeds,
    /// With that error; if it may have been applied, whether it was.
    Fails(ActivityError, bool),
    /// It never comes back.
    Hangs,
    /// Its owner dies under it; whether the effect comes all the same.
    Orphaned(bool),
}

/// Splitmix: enough to tell runs apart.
pub struct Dice(pub u64);

impl Dice {
    pub fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }

    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

struct Call {
    id: CourseId,
    key: Uuid,
    begun: Time,
    ends: Option<Time>,
    fate: Fate,
    cancelled: bool,
}

struct Question {
    step: StepIx,
    asked: Time,
    answered: Time,
    answer: Answer,
    output: Option<Json>,
}

struct Landing {
    at: Time,
    begun: Time,
    id: CourseId,
    key: Uuid,
}

pub struct Sim {
    pub run: RunId,
    pub plan: Arc<Plan>,
    state: State,
    now: Time,
    epoch: i64,
    pub journal: Vec<Journaled>,
    calls: Vec<Call>,
    questions: Vec<Question>,
    landings: Vec<Landing>,
    effects: Vec<Effect>,
    present: BTreeSet<StepIx>,
    known_keys: BTreeSet<Uuid>,
    started: BTreeMap<CourseId, u32>,
    script: BTreeMap<(String, bool, u32), Fate>,
    answers: Vec<Answer>,
    /// Steps that the world has once been silent about; it is likely to stay so.
    dark: BTreeSet<StepIx>,
    dice: Dice,
    /// Percent of what can go wrong that does.
    trouble: u64,
    watched: bool,
}

pub fn error(retryable: bool, applied: Applied) -> ActivityError {
    let (code, message) = ("broken".into(), "it broke".into());
    ActivityError { code, message, retryable, retry_after: None, applied, details: None }
}

impl Sim {
    /// Submitted by a node, which has it from the start.
    pub fn new(plan: Arc<Plan>) -> Self {
        let mut sim = Self::unsubmitted(plan, 0, 0);
        sim.epoch = 1;
        sim.append(Event::Submitted { by: None });
        sim
    }

    /// Everything is drawn.
    pub fn drawn(plan: Arc<Plan>, seed: u64, trouble: u64) -> Self {
        let mut sim = Self::unsubmitted(plan, seed, trouble);
        if sim.dice.chance(50) {
            sim.epoch = 1;
            sim.append(Event::Submitted { by: None });
        } else {
            sim.append(Event::Submitted { by: None });
            sim.now += TimeDelta::milliseconds(300);
            sim.claim(ClaimReason::Free);
        }
        sim
    }

    fn unsubmitted(plan: Arc<Plan>, seed: u64, trouble: u64) -> Self {
        let run = RunId(Uuid::from_u128(u128::from(seed) + 7));
        let now = DateTime::<Utc>::UNIX_EPOCH + TimeDelta::days(20_000);
        Self {
            run,
            state: State::new(run, plan.clone()),
            plan,
            now,
            epoch: 0,
            journal: Vec::new(),
            calls: Vec::new(),
            questions: Vec::new(),
            landings: Vec::new(),
            effects: Vec::new(),
            present: BTreeSet::new(),
            known_keys: BTreeSet::new(),
            started: BTreeMap::new(),
            script: BTreeMap::new(),
            answers: Vec::new(),
            dark: BTreeSet::new(),
            dice: Dice(seed),
            trouble,
            watched: false,
        }
    }

    /// What the n-th attempt of a step comes to, counted over all generations.
    pub fn fate(mut self, step: &str, nth: u32, fate: Fate) -> Self {
        self.script.insert((step.into(), false, nth), fate);
        self
    }

    pub fn undo_fate(mut self, step: &str, nth: u32, fate: Fate) -> Self {
        self.script.insert((step.into(), true, nth), fate);
        self
    }

    /// What the next probe finds, whatever is true.
    pub fn answers(mut self, answer: Answer) -> Self {
        self.answers.push(answer);
        self
    }

    /// Checked at every turn, with the index that it would have.
    pub fn watched(mut self) -> Self {
        self.watched = true;
        self
    }

    pub fn rows(&self) -> Vec<Row> {
        self.journal.iter().map(|journaled| journaled.to_row(&self.plan)).collect()
    }

    /// Who wants to be woken by what.
    pub fn index(&self) -> Index {
        let (mut status, claim) = (self.state.status(), self.state.claim());
        let people = matches!(status, Status::Held | Status::Stuck | Status::Quarantined | Status::Paused);
        let decision = decide(&self.state, self.now, 1);
        let (mut owner, mut due_at) = (None, None);
        if !self.state.is_over() && !people {
            let rests = self.state.running() == 0 && decision.commands.is_empty();
            let waits = decision.wake_at.is_some() || self.state.waits_for().is_some();
            if self.dice.0.is_multiple_of(2) && rests && waits {
                due_at = decision.wake_at;
                if matches!(status, Status::Running | Status::Committing) {
                    status = Status::Waiting;
                }
            } else {
                owner = self.journal.last().map(|last| last.epoch.0);
            }
        }
        Index { status, owner, claim, due_at }
    }

    pub fn world(&self) -> WorldLog {
        let present =
            self.plan.steps().map(|(ix, s)| (s.name.to_string(), self.present.contains(&ix))).collect();
        WorldLog { effects: self.effects.clone(), present, skew: Span::millis(1) }
    }

    /// Everything that is known, checked.
    pub fn violations(&self) -> Vec<Violation> {
        let (rows, index, world) = (self.rows(), self.index(), self.world());
        check_run(&Case { run: self.run, rows: &rows, index: Some(&index), world: Some(&world) })
    }

    pub fn append(&mut self, event: Event) {
        let claims = ClaimNo::from(matches!(event, Event::Claimed { .. }));
        let journaled = Journaled {
            seq: self.state.seq() + 1,
            claim: self.state.claim() + claims,
            epoch: Epoch(self.epoch),
            at: self.now,
            event,
        };
        self.state.apply(&journaled).unwrap_or_else(|illegal| panic!("{illegal}\n{}", self.story()));
        self.journal.push(journaled);
    }

    fn claim(&mut self, reason: ClaimReason) {
        self.epoch += 1;
        self.append(Event::Claimed { node: format!("node-{}", self.epoch), reason });
    }

    /// Until nothing moves any more without people; with trouble, people come by too.
    pub fn work(mut self) -> Self {
        for _ in 0..3_000 {
            if self.watched {
                let found = self.violations();
                assert!(found.is_empty(), "{found:#?}\n{}", self.story());
            }
            if !self.turn() && !self.operate() {
                self.land(Time::MAX_UTC);
                return self;
            }
        }
        panic!("the run does not come to rest:\n{}", self.story());
    }

    /// One decision, or one thing that falls due. False: nothing is left to do.
    fn turn(&mut self) -> bool {
        let room = 1 + self.dice.below(3) as usize;
        let decision = decide(&self.state, self.now, room);
        let mut moved = false;
        for command in decision.commands {
            match command {
                Command::Append(event) => {
                    self.append(event.clone());
                    moved = true;
                    if let Event::Step { course, what, .. } = event {
                        match what {
                            StepEvent::Started { key, .. } if self.calls(course) => self.call(course, key),
                            StepEvent::Failed { .. } => self.abandon(course),
                            _ => {}
                        }
                    }
                }
                Command::Probe(step) => self.ask(step),
                Command::Cancel(id) => {
                    let cancelled = self.dice.chance(50);
                    let soon = self.now + TimeDelta::milliseconds(100);
                    for call in self.calls.iter_mut().filter(|call| call.id == id && !call.cancelled) {
                        call.cancelled = true;
                        if cancelled {
                            call.ends = Some(soon);
                            call.fate = Fate::Fails(error(true, Applied::Maybe), true);
                        }
                    }
                }
            }
        }
        if moved {
            self.now += TimeDelta::microseconds(self.dice.below(900) as i64);
            return true;
        }
        if self.trouble > 0 && self.dice.below(600) < self.trouble {
            self.meddle();
            return true;
        }
        let due = [
            self.calls.iter().filter_map(|call| call.ends).min(),
            self.questions.iter().map(|question| question.answered).min(),
            decision.wake_at,
        ];
        let Some(next) = due.into_iter().flatten().min() else { return false };
        self.now = self.now.max(next);
        self.land(self.now);
        self.hear();
        true
    }

    /// Takes in one outcome or answer that is due.
    fn hear(&mut self) {
        let now = self.now;
        if let Some(n) = self.questions.iter().position(|question| question.answered <= now) {
            let q = self.questions.remove(n);
            if self.state.is_over() {
                return;
            }
            for what in judge_probe(&self.state, q.step, q.answer, q.output, q.asked, now) {
                self.append(step_event(&self.state, CourseId::forward(q.step), what));
            }
            return;
        }
        let Some(n) = self.calls.iter().position(|call| call.ends.is_some_and(|at| at <= now)) else {
            return;
        };
        let call = self.calls.remove(n);
        self.tell_of_resources(&call);
        if self.dice.chance(self.trouble) {
            let what = StepEvent::Checkpointed { value: Json::of(&json!({ "job": 7 })) };
            self.append(step_event(&self.state, call.id, what));
            let what = StepEvent::Progressed { percent: 50.0, note: "half".into() };
            self.append(step_event(&self.state, call.id, what));
        }
        let what = match call.fate {
            Fate::Succeeds => {
                self.landings.push(Landing { at: now, begun: call.begun, id: call.id, key: call.key });
                self.land(now);
                StepEvent::Succeeded {
                    output: Json::of(&json!({ "made": self.plan.step(call.id.step).name })),
                }
            }
            Fate::Fails(error, lands) => {
                if error.applied == Applied::Maybe && lands {
                    self.land_late(&call.id, call.key, call.begun);
                }
                judge(&self.state, call.id, error, now)
            }
            Fate::Orphaned(lands) => {
                self.die(Some((call.id, call.key, call.begun, lands)));
                return;
            }
            Fate::Hangs => unreachable!("what hangs never ends"),
        };
        self.append(step_event(&self.state, call.id, what));
    }

    /// The owner dies; calls in flight are orphaned, and another node takes over when the lease is lost.
    pub fn die(&mut self, with: Option<(CourseId, Uuid, Time, bool)>) {
        let mut orphans: Vec<_> = with.into_iter().collect();
        for call in std::mem::take(&mut self.calls) {
            let lands = matches!(call.fate, Fate::Succeeds) && self.dice.chance(50);
            orphans.push((call.id, call.key, call.begun, lands));
        }
        self.questions.clear();
        self.now += TimeDelta::milliseconds(1_000 + self.dice.below(5_000) as i64);
        self.land(self.now);
        for (id, key, begun, lands) in orphans {
            if lands {
                self.land_late(&id, key, begun);
            }
        }
        self.claim(ClaimReason::LostLease);
    }

    /// The journal as text, one line an event.
    pub fn story(&self) -> String {
        self.rows().iter().map(line).collect::<Vec<_>>().join("\n")
    }
}

fn line(row: &Row) -> String {
    let mut out = format!("{} c{} {} {}", row.seq, row.claim, row.at.format("%T%.6f"), row.kind);
    if let Some(step) = &row.step {
        out += &format!("{} {step} {}#{}", if row.undo { " undo" } else { "" }, row.generation, row.attempt);
    }
    if row.kind != "submitted" {
        out += &row.body.as_ref().map(|body| format!(" {body}")).unwrap_or_default();
    }
    out
}
