//! What a journal must not say, whoever wrote it. Nothing here looks at the machine's `State`: a rule that the
//! machine breaks in the same way that it forgets it would otherwise never be seen broken.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use backstay_machine::{
    Answer, Applied, CourseId, Direction, Event, Journaled, Outcome, Plan, StepEvent, StepIx, Time,
};
use uuid::Uuid;

/// A rule about a whole journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// Sequence numbers are gapless; claims do not go back; each claim is of one epoch.
    Ownership,
    /// One outcome for each generation of a course, and no start after it.
    Outcome,
    /// One key for all attempts of a generation, and for nothing else.
    Key,
    /// The undo of a step starts after those of the started steps behind it.
    Order,
    /// No forward start after the run turned round.
    Turn,
    /// What was started is undone before the run says that it is rolled back.
    Undone,
    /// An attempt starts once, and not before the time that was journaled for it.
    Timer,
    /// No more failures are followed by another attempt than the policy allows.
    Policy,
}

/// Something that must have happened somewhere for the rules to have been put to the test.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Sight {
    TakeoverInDoubt,
    OutcomeAfterTurn,
    BothBranchesUndone,
    FoundPresent,
    FoundAbsent,
    Retried,
    UndoAgain,
    FinalFailureUndone,
    Abandoned,
}

/// The book that is kept row by row.
#[derive(Clone)]
pub struct History {
    plan: Arc<Plan>,
    broken: BTreeSet<Rule>,
    seen: BTreeSet<Sight>,
    seq: i64,
    claim: i32,
    epochs: BTreeMap<i32, i64>,
    turned: bool,
    keys: BTreeMap<Uuid, (CourseId, u32)>,
    halves: BTreeMap<(CourseId, u32), Half>,
    /// For each step: forward attempts that began, and those of them that ended without effect.
    begun: Vec<(u32, u32)>,
    undone: BTreeSet<usize>,
}

#[derive(Clone, Default)]
struct Half {
    attempts: BTreeSet<u32>,
    in_flight: bool,
    over: bool,
    key: Option<Uuid>,
    not_before: Option<Time>,
    failures: u32,
    failures_of_this_claim: u32,
}

impl History {
    pub fn new(plan: &Arc<Plan>) -> Self {
        Self {
            plan: Arc::clone(plan),
            broken: BTreeSet::new(),
            seen: BTreeSet::new(),
            seq: 0,
            claim: 0,
            epochs: BTreeMap::new(),
            turned: false,
            keys: BTreeMap::new(),
            halves: BTreeMap::new(),
            begun: vec![(0, 0); plan.len()],
            undone: BTreeSet::new(),
        }
    }

    pub fn plan(&self) -> &Arc<Plan> {
        &self.plan
    }

    pub fn keeps(&self, rule: Rule) -> bool {
        !self.broken.contains(&rule)
    }

    pub fn saw(&self, sight: Sight) -> bool {
        self.seen.contains(&sight)
    }

    /// An attempt was journaled as started.
    pub fn intends(&self, course: CourseId, generation: u32, attempt: u32) -> bool {
        self.halves.get(&(course, generation)).is_some_and(|half| half.attempts.contains(&attempt))
    }

    /// Failures of a generation since the last claim: what a node that counts in its memory would know.
    pub fn failures_of_this_claim(&self, course: CourseId, generation: u32) -> u32 {
        self.halves.get(&(course, generation)).map_or(0, |half| half.failures_of_this_claim)
    }

    fn holds(&mut self, rule: Rule, condition: bool) {
        if !condition {
            self.broken.insert(rule);
        }
    }

    fn must_be_undone(&self, step: StepIx) -> bool {
        let (begun, without_effect) = self.begun[step.index()];
        self.plan.step(step).undo.is_some() && begun > without_effect && !self.undone.contains(&step.index())
    }

    pub fn with(mut self, row: &Journaled) -> Self {
        let claims = matches!(row.event, Event::Claimed { .. });
        let claim_follows = if claims { row.claim > self.claim } else { row.claim == self.claim };
        let epoch = *self.epochs.entry(row.claim).or_insert(row.epoch.0);
        let in_order = row.seq == self.seq + 1 && claim_follows && epoch == row.epoch.0;
        self.holds(Rule::Ownership, in_order);
        self.seq = row.seq;
        self.claim = row.claim;
        match &row.event {
            Event::Claimed { .. } => {
                for half in self.halves.values_mut() {
                    half.failures_of_this_claim = 0;
                    if half.in_flight {
                        self.seen.insert(Sight::TakeoverInDoubt);
                    }
                    half.in_flight = false;
                }
            }
            Event::Step { course, generation, attempt, what } => {
                self.step(*course, *generation, *attempt, what, row.at);
            }
            Event::RollingBack { .. } => self.turned = true,
            Event::Finished { outcome: Outcome::RolledBack } => {
                let plan = Arc::clone(&self.plan);
                let clean = !plan.steps().any(|(ix, _)| self.must_be_undone(ix));
                self.holds(Rule::Undone, clean);
            }
            _ => {}
        }
        self
    }

    fn step(&mut self, course: CourseId, generation: u32, attempt: u32, what: &StepEvent, at: Time) {
        let forward = course.direction == Direction::Forward;
        let plan = Arc::clone(&self.plan);
        let declared = plan.step(course.step);
        let mut half = self.halves.remove(&(course, generation)).unwrap_or_default();
        match what {
            StepEvent::Started { key, .. } => {
                self.holds(Rule::Outcome, !half.over);
                self.holds(Rule::Turn, !(forward && self.turned));
                self.holds(Rule::Timer, !half.attempts.contains(&attempt));
                self.holds(Rule::Timer, half.not_before.is_none_or(|time| time <= at));
                let of = *self.keys.entry(*key).or_insert((course, generation));
                self.holds(Rule::Key, of == (course, generation));
                self.holds(Rule::Key, half.key.is_none_or(|before| before == *key));
                if forward {
                    self.begun[course.step.index()].0 += 1;
                } else {
                    let behind = declared.before.iter().any(|dependent| self.must_be_undone(*dependent));
                    self.holds(Rule::Order, !behind);
                    if !half.attempts.is_empty() {
                        self.seen.insert(Sight::UndoAgain);
                    }
                }
                half.attempts.insert(attempt);
                half.key = Some(*key);
                half.in_flight = true;
            }
            StepEvent::Succeeded { .. } => {
                self.holds(Rule::Outcome, !half.over);
                half.over = true;
                half.in_flight = false;
                if forward && self.turned {
                    self.seen.insert(Sight::OutcomeAfterTurn);
                }
                if !forward {
                    self.undone.insert(course.step.index());
                    if ["b", "c"]
                        .iter()
                        .all(|name| plan.find(name).is_some_and(|ix| self.undone.contains(&ix.index())))
                    {
                        self.seen.insert(Sight::BothBranchesUndone);
                    }
                    let failed = self.halves.iter().any(|((of, _), half)| {
                        *of == CourseId::forward(course.step) && half.over && half.failures > 0
                    });
                    if failed {
                        self.seen.insert(Sight::FinalFailureUndone);
                    }
                }
            }
            StepEvent::Failed { error, retry_at } => {
                self.holds(Rule::Outcome, !half.over);
                half.failures += 1;
                half.failures_of_this_claim += 1;
                half.in_flight = false;
                half.over = retry_at.is_none();
                half.not_before = *retry_at;
                let work = if forward { Some(&declared.forward) } else { declared.undo.as_ref() };
                let most = work.and_then(|work| work.retry.attempts).unwrap_or(u32::MAX);
                self.holds(Rule::Policy, retry_at.is_none() || half.failures < most);
                if forward && error.applied == Applied::No {
                    self.begun[course.step.index()].1 += 1;
                }
                if error.code == "abandoned" {
                    self.seen.insert(Sight::Abandoned);
                }
            }
            StepEvent::Probed { answer: Answer::Present, .. } => {
                self.seen.insert(Sight::FoundPresent);
            }
            StepEvent::Probed { answer: Answer::Absent, ask_again_at: None } => {
                self.seen.insert(Sight::FoundAbsent);
            }
            StepEvent::Retried { .. } => {
                self.seen.insert(Sight::Retried);
            }
            _ => {}
        }
        self.halves.insert((course, generation), half);
    }
}
