//! Where a run is: a fold over its events.
//!
//! [`State::apply`] is the only way a state changes, live and after a crash alike, and its one match lists the
//! legal moves. A course (a step, or its undo) moves like this:
//!
//! ```text
//!   untouched -> running -> succeeded
//!       ^           |-----> failed (for good) ----> held
//!       |           |-----> backing off ----------> running
//!       |           '-----> in doubt -> (probed) -> running | succeeded | held
//!       '-- retried (a new generation): from failed, held, backing off
//! ```

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::Time;
use crate::event::{
    ActivityError, Answer, Applied, CourseId, Direction, Event, Journaled, Outcome, StepEvent,
    idempotency_key,
};
use crate::json::Json;
use crate::names::{ClaimNo, RunId, Seq, StepIx};
use crate::plan::{Effect, OnFailure, Plan};

/// Everything that follows from a run's journal.
#[derive(Clone, Debug)]
pub struct State {
    run: RunId,
    plan: Arc<Plan>,
    seq: Seq,
    claim: ClaimNo,
    at: Option<Time>,
    phase: Phase,
    quarantined: bool,
    stuck: bool,
    rolled_back_since: Option<Time>,
    steps: Vec<StepState>,
    /// The steps that need nothing but a free hand: a first attempt of them, or of their undo, may start. This and
    /// `open` are derived from `steps`, and kept so that a decision in a run of ten thousand steps looks at three.
    fresh: BTreeSet<StepIx>,
    /// The other steps that a decision may be due for.
    open: BTreeSet<StepIx>,
    /// Steps that are not settled, in the direction the run goes.
    unsettled: usize,
    running: usize,
}

/// Which way a run goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// To its end.
    Forward,
    /// Back to its start.
    RollingBack,
    /// Nowhere any more.
    Over(Outcome),
}

/// What people are told about a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// No node has begun.
    Pending,
    /// Going forward.
    Running,
    /// Nothing to do before a time.
    Waiting,
    /// An operator must decide before anything can move.
    Held,
    /// Being undone.
    RollingBack,
    /// An undo failed for good.
    Stuck,
    /// Left alone, with an alarm.
    Quarantined,
    /// Done.
    Succeeded,
    /// Undone.
    RolledBack,
}

#[derive(Clone, Debug)]
struct StepState {
    forward: Course,
    /// Most steps are never undone.
    undo: Option<Box<Course>>,
    /// Forward: how many of the steps it comes after are not settled yet. Rolling back: how many of the steps
    /// that come after it are not undone yet.
    blockers: u32,
    settled: bool,
}

impl StepState {
    fn undo(&self) -> &Course {
        static UNTOUCHED: Course = Course::new();
        self.undo.as_deref().unwrap_or(&UNTOUCHED)
    }
}

/// One half of a step.
#[derive(Clone, Debug, PartialEq)]
pub struct Course {
    /// Which beginning this is.
    pub generation: u32,
    /// Attempts of this generation.
    pub attempts: u32,
    /// Attempts of this generation that failed: what the retry policy counts. A crash is not a failure.
    pub failures: u32,
    /// When the first attempt of this generation started.
    pub first_started: Option<Time>,
    /// Some attempt of some generation succeeded, is in flight, or ended without saying that nothing happened.
    pub may_be_applied: bool,
    /// The end of the last attempt whose effect may still appear.
    pub doubtful_since: Option<Time>,
    /// The resolved input of this generation.
    pub input: Option<Json>,
    /// What the activity saved last.
    pub checkpoint: Option<Json>,
    /// Where it is.
    pub at: CourseAt,
}

/// Where a course is.
#[derive(Clone, Debug, PartialEq)]
pub enum CourseAt {
    /// Not begun, or begun anew.
    Untouched,
    /// An attempt is in flight, as far as its owner knows.
    Running,
    /// An attempt began, and whether it had its effect is not known.
    InDoubt {
        /// When its call was over at the latest.
        since: Time,
        /// Nothing is done about it before.
        not_before: Option<Time>,
        /// Probes that brought nothing.
        unknowns: u32,
        /// The answer that settled it.
        settled: Option<Answer>,
    },
    /// An attempt failed without effect; the next one starts then.
    BackingOff {
        /// When.
        until: Time,
    },
    /// The result is there.
    Succeeded {
        /// The output.
        output: Json,
    },
    /// It failed for good.
    Failed {
        /// How.
        error: ActivityError,
    },
    /// An operator must decide.
    Held {
        /// Why.
        why: String,
    },
}

impl Course {
    const fn new() -> Self {
        Self {
            generation: 0,
            attempts: 0,
            failures: 0,
            first_started: None,
            may_be_applied: false,
            doubtful_since: None,
            input: None,
            checkpoint: None,
            at: CourseAt::Untouched,
        }
    }

    /// The output, if it succeeded.
    pub fn output(&self) -> Option<&Json> {
        match &self.at {
            CourseAt::Succeeded { output } => Some(output),
            _ => None,
        }
    }
}

/// An event that cannot follow on what came before: the journal was written by hand, by a broken release, or by
/// two owners. The run is quarantined.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("event {seq} cannot follow on what came before it: {why}")]
pub struct Illegal {
    /// The event's position.
    pub seq: Seq,
    /// What forbids it.
    pub why: String,
}

impl State {
    /// A run of which nothing has been read.
    pub fn new(run: RunId, plan: Arc<Plan>) -> Self {
        let steps: Vec<_> = plan
            .steps()
            .map(|(_, step)| StepState {
                forward: Course::new(),
                undo: None,
                blockers: step.after.len() as u32,
                settled: false,
            })
            .collect();
        let unsettled = steps.len();
        Self {
            run,
            plan,
            seq: 0,
            claim: 0,
            at: None,
            phase: Phase::Forward,
            quarantined: false,
            stuck: false,
            rolled_back_since: None,
            steps,
            fresh: BTreeSet::new(),
            open: BTreeSet::new(),
            unsettled,
            running: 0,
        }
    }

    /// Folds a whole journal.
    pub fn replay<'a>(
        run: RunId,
        plan: Arc<Plan>,
        events: impl IntoIterator<Item = &'a Journaled>,
    ) -> Result<Self, Illegal> {
        let mut state = Self::new(run, plan);
        for event in events {
            state.apply(event)?;
        }
        Ok(state)
    }

    /// Takes in the next event, if it may follow. After an error the state is of no use.
    pub fn apply(&mut self, journaled: &Journaled) -> Result<(), Illegal> {
        let illegal = |why: String| Illegal { seq: journaled.seq, why };
        if journaled.seq != self.seq + 1 {
            return Err(illegal(format!("event {} is expected here", self.seq + 1)));
        }
        let claims = matches!(journaled.event, Event::Claimed { .. });
        // An owner that died between its claim and its first event leaves a number that no event carries.
        let follows = if claims { journaled.claim > self.claim } else { journaled.claim == self.claim };
        if !follows {
            return Err(illegal(format!(
                "it is of claim {}, the run is at claim {}",
                journaled.claim, self.claim
            )));
        }
        if let Phase::Over(outcome) = self.phase {
            return Err(illegal(format!("the run is over: {outcome:?}")));
        }
        if self.at.is_some_and(|at| journaled.at < at) {
            return Err(illegal("it is older than the event before it".into()));
        }
        if self.quarantined && !is_fact(&journaled.event) {
            return Err(illegal("the run is left alone".into()));
        }
        let at = journaled.at;
        match &journaled.event {
            Event::Submitted => {
                if self.seq != 0 {
                    return Err(illegal("a run is submitted once".into()));
                }
                for (ix, step) in Arc::clone(&self.plan).steps() {
                    if step.after.is_empty() {
                        self.fresh.insert(ix);
                    }
                }
            }
            _ if self.seq == 0 => return Err(illegal("the first event of a run is its submission".into())),
            Event::Claimed { .. } => {
                self.claim = journaled.claim;
                if self.running > 0 {
                    self.doubt_all(at);
                }
            }
            Event::Step { course, generation, attempt, what } => {
                self.apply_step(*course, *generation, *attempt, what, at).map_err(illegal)?;
            }
            Event::RollingBack { .. } => {
                if self.phase != Phase::Forward {
                    return Err(illegal("the run is rolling back already".into()));
                }
                self.turn_round(at);
            }
            Event::Stuck { .. } => {
                if self.phase != Phase::RollingBack || self.stuck {
                    return Err(illegal("only a run that is rolling back gets stuck, once".into()));
                }
                if !self.nothing_moves() {
                    return Err(illegal("something can move yet".into()));
                }
                self.stuck = true;
            }
            Event::Quarantined { .. } => self.quarantined = true,
            Event::Finished { outcome } => {
                let fits = match outcome {
                    Outcome::Succeeded => self.phase == Phase::Forward,
                    Outcome::RolledBack => self.phase == Phase::RollingBack,
                };
                if !fits || self.unsettled > 0 {
                    return Err(illegal(format!(
                        "{outcome:?}, but {} steps are not settled",
                        self.unsettled
                    )));
                }
                self.phase = Phase::Over(*outcome);
                self.fresh.clear();
                self.open.clear();
            }
        }
        self.seq = journaled.seq;
        self.at = Some(at);
        Ok(())
    }

    /// The legal moves of one half of a step.
    fn apply_step(
        &mut self,
        id: CourseId,
        generation: u32,
        attempt: u32,
        what: &StepEvent,
        at: Time,
    ) -> Result<(), String> {
        let phase = self.phase;
        let plan = Arc::clone(&self.plan);
        let declared = plan.step(id.step);
        if id.direction == Direction::Undo && declared.undo.is_none() {
            return Err("the step has no undo".into());
        }
        let step = self.step(id.step);
        // Others have gone on from it: it cannot become unsettled again.
        if id.direction == Direction::Forward && phase == Phase::Forward && step.settled {
            return Err("the step is settled".into());
        }
        let blockers = step.blockers;
        let forward_runs = step.forward.at == CourseAt::Running;
        let may_be_applied = step.forward.may_be_applied;
        let run = self.run;
        let course = self.course_mut(id);
        let begins_anew = matches!(what, StepEvent::Retried);
        if generation != course.generation + u32::from(begins_anew) {
            return Err(format!("it is of generation {generation}, the step is at {}", course.generation));
        }
        let about_next = matches!(what, StepEvent::Started { .. });
        if !begins_anew && attempt != course.attempts + u32::from(about_next) {
            return Err(format!("it is about attempt {attempt}, the step is at {}", course.attempts));
        }
        use CourseAt::{BackingOff, Failed, Held, InDoubt, Running, Succeeded, Untouched};
        match (&mut course.at, what) {
            (from @ (Untouched | BackingOff { .. } | InDoubt { .. }), StepEvent::Started { key, input }) => {
                let may_start = match id.direction {
                    Direction::Forward => phase == Phase::Forward && blockers == 0,
                    Direction::Undo => {
                        phase == Phase::RollingBack && blockers == 0 && may_be_applied && !forward_runs
                    }
                };
                if !may_start {
                    return Err("it may not start now".into());
                }
                if let InDoubt { settled, .. } = from
                    && id.direction == Direction::Forward
                    && !may_repeat(declared.effect, settled.as_ref())
                {
                    return Err("an attempt is in doubt, and nothing says that another may start".into());
                }
                if *key != idempotency_key(run, &declared.name, id.direction, generation) {
                    return Err("its idempotency key is not that of its generation".into());
                }
                if input.is_some() != (course.attempts == 0) {
                    return Err("the first attempt of a generation carries the input, and only that".into());
                }
                course.attempts += 1;
                if course.attempts == 1 {
                    course.input.clone_from(input);
                    course.first_started = Some(at);
                }
                course.at = Running;
                self.running += 1;
            }
            (Running, StepEvent::Checkpointed { value }) => course.checkpoint = Some(value.clone()),
            (Running, StepEvent::Progressed { .. }) => {}
            (from @ (Running | InDoubt { .. }), StepEvent::Succeeded { output }) => {
                let ran = *from == Running;
                course.at = Succeeded { output: output.clone() };
                course.may_be_applied = true;
                self.running -= usize::from(ran);
            }
            (from @ (Running | InDoubt { .. }), StepEvent::Failed { error, retry_at }) => {
                let ran = *from == Running;
                course.failures += 1;
                if error.applied == Applied::Maybe {
                    course.may_be_applied = true;
                    course.doubtful_since = Some(at);
                }
                course.at = match (retry_at, error.applied, id.direction) {
                    (None, _, _) => Failed { error: error.clone() },
                    // An undo in doubt is simply done again: that is what makes it an undo.
                    (Some(until), Applied::No, _) | (Some(until), _, Direction::Undo) => {
                        BackingOff { until: *until }
                    }
                    (Some(until), Applied::Maybe, Direction::Forward) => {
                        InDoubt { since: at, not_before: Some(*until), unknowns: 0, settled: None }
                    }
                };
                self.running -= usize::from(ran);
            }
            // An undo in doubt is done again, whatever there is.
            (InDoubt { not_before, unknowns, settled, .. }, StepEvent::Probed { answer, ask_again_at })
                if id.direction == Direction::Forward =>
            {
                *not_before = *ask_again_at;
                *unknowns = if matches!(answer, Answer::Unknown { .. }) { *unknowns + 1 } else { 0 };
                // "Present" settles it by the result that follows; without one the question is put again.
                if ask_again_at.is_none() && *answer != Answer::Present {
                    *settled = Some(answer.clone());
                }
            }
            (Failed { .. } | InDoubt { .. }, StepEvent::Held { why })
                if id.direction == Direction::Forward && phase == Phase::Forward =>
            {
                course.at = Held { why: why.clone() };
            }
            // A rollback begins no step anew.
            (Failed { .. } | Held { .. } | BackingOff { .. }, StepEvent::Retried)
                if id.direction == Direction::Undo || phase == Phase::Forward =>
            {
                let may_be_applied = course.may_be_applied;
                let doubtful_since = course.doubtful_since;
                *course = Course { generation, may_be_applied, doubtful_since, ..Course::new() };
                self.stuck = false;
            }
            (at, what) => return Err(format!("{what:?} is no move from {at:?}")),
        }
        self.settle(id.step);
        Ok(())
    }

    /// The owner changed: nobody knows how the calls in flight ended.
    fn doubt_all(&mut self, at: Time) {
        for n in 0..self.steps.len() {
            let ix = StepIx(n as u32);
            let step = self.step_mut(ix);
            for course in std::iter::once(&mut step.forward).chain(step.undo.as_deref_mut()) {
                if course.at == CourseAt::Running {
                    course.at = CourseAt::InDoubt { since: at, not_before: None, unknowns: 0, settled: None };
                    course.may_be_applied = true;
                    course.doubtful_since = Some(at);
                }
            }
            self.settle(ix);
        }
        self.running = 0;
    }

    /// From here on "settled" means undone, and the steps behind stand in the way of those before.
    fn turn_round(&mut self, at: Time) {
        let plan = Arc::clone(&self.plan);
        self.phase = Phase::RollingBack;
        self.rolled_back_since = Some(at);
        self.unsettled = self.steps.len();
        self.fresh.clear();
        self.open.clear();
        for (ix, step) in plan.steps() {
            let state = self.step_mut(ix);
            state.settled = false;
            state.blockers = step.before.len() as u32;
            // What waited for its next attempt is looked at now: there is no next attempt.
            if let CourseAt::InDoubt { not_before, .. } = &mut state.forward.at {
                *not_before = None;
            }
        }
        for &ix in plan.order().iter().rev() {
            self.settle(ix);
        }
    }

    /// Draws the consequences of a move: is the step settled, who waits for it, is there something to decide?
    fn settle(&mut self, moved: StepIx) {
        let plan = Arc::clone(&self.plan);
        let phase = self.phase;
        // A list rather than recursion: a rollback may settle a chain of ten thousand steps at once.
        let mut todo = vec![moved];
        while let Some(ix) = todo.pop() {
            let declared = plan.step(ix);
            let state = self.step_mut(ix);
            let settled = match phase {
                Phase::Forward => match &state.forward.at {
                    CourseAt::Succeeded { .. } => true,
                    CourseAt::Failed { .. } => declared.on_failure == OnFailure::Continue,
                    _ => false,
                },
                // A step that has nothing to undo still stands between those behind it and those before it.
                Phase::RollingBack => {
                    state.blockers == 0
                        && state.forward.at != CourseAt::Running
                        && (!state.forward.may_be_applied
                            || declared.undo.is_none()
                            || matches!(state.undo().at, CourseAt::Succeeded { .. }))
                }
                Phase::Over(_) => state.settled,
            };
            let newly = settled && !state.settled;
            state.settled = settled;
            let (free, forward, undo) = (state.blockers == 0, &state.forward, state.undo());
            let waits = match phase {
                _ if settled => WaitsFor::Nothing,
                Phase::Forward => match &forward.at {
                    CourseAt::Running | CourseAt::Held { .. } => WaitsFor::Nothing,
                    _ if !free => WaitsFor::Nothing,
                    CourseAt::Untouched => WaitsFor::AHand,
                    _ => WaitsFor::ADecision,
                },
                // A call in flight is asked to stop, and abandoned in the end.
                Phase::RollingBack if forward.at == CourseAt::Running => WaitsFor::ADecision,
                Phase::RollingBack => match &undo.at {
                    CourseAt::Running | CourseAt::Failed { .. } => WaitsFor::Nothing,
                    _ if !free => WaitsFor::Nothing,
                    CourseAt::Untouched if forward.doubtful_since.is_none() => WaitsFor::AHand,
                    _ => WaitsFor::ADecision,
                },
                Phase::Over(_) => WaitsFor::Nothing,
            };
            self.fresh.remove(&ix);
            self.open.remove(&ix);
            match waits {
                WaitsFor::AHand => self.fresh.insert(ix),
                WaitsFor::ADecision => self.open.insert(ix),
                WaitsFor::Nothing => false,
            };
            if newly {
                self.unsettled -= 1;
                let waiting = if phase == Phase::Forward { &declared.before } else { &declared.after };
                for &other in waiting {
                    let blockers = &mut self.step_mut(other).blockers;
                    *blockers = blockers.saturating_sub(1);
                    if *blockers == 0 {
                        todo.push(other);
                    }
                }
            }
        }
    }

    #[allow(
        clippy::indexing_slicing,
        reason = "there is one state for each step of the plan, and only it makes a StepIx"
    )]
    fn step(&self, ix: StepIx) -> &StepState {
        &self.steps[ix.index()]
    }

    #[allow(
        clippy::indexing_slicing,
        reason = "there is one state for each step of the plan, and only it makes a StepIx"
    )]
    fn step_mut(&mut self, ix: StepIx) -> &mut StepState {
        &mut self.steps[ix.index()]
    }

    fn course_mut(&mut self, id: CourseId) -> &mut Course {
        let step = self.step_mut(id.step);
        match id.direction {
            Direction::Forward => &mut step.forward,
            Direction::Undo => step.undo.get_or_insert_with(|| Box::new(Course::new())),
        }
    }

    /// One half of a step.
    pub fn course(&self, id: CourseId) -> &Course {
        let step = self.step(id.step);
        match id.direction {
            Direction::Forward => &step.forward,
            Direction::Undo => step.undo(),
        }
    }

    /// The run.
    pub fn run(&self) -> RunId {
        self.run
    }

    /// Its plan.
    pub fn plan(&self) -> &Arc<Plan> {
        &self.plan
    }

    /// The position of the last event.
    pub fn seq(&self) -> Seq {
        self.seq
    }

    /// The claim that events are written under.
    pub fn claim(&self) -> ClaimNo {
        self.claim
    }

    /// When the last event was.
    pub fn at(&self) -> Option<Time> {
        self.at
    }

    /// Which way it goes.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Whether it is left alone.
    pub fn quarantined(&self) -> bool {
        self.quarantined
    }

    pub(crate) fn stuck(&self) -> bool {
        self.stuck
    }

    pub(crate) fn rolled_back_since(&self) -> Option<Time> {
        self.rolled_back_since
    }

    pub(crate) fn fresh(&self) -> impl Iterator<Item = StepIx> {
        self.fresh.iter().copied()
    }

    pub(crate) fn open(&self) -> impl Iterator<Item = StepIx> {
        self.open.iter().copied()
    }

    /// No attempt is in flight and none is due: only an operator, or the end, can follow.
    pub(crate) fn nothing_moves(&self) -> bool {
        self.running == 0 && self.fresh.is_empty() && self.open.is_empty() && self.unsettled > 0
    }

    pub(crate) fn all_settled(&self) -> bool {
        self.unsettled == 0
    }

    /// How many attempts are in flight.
    pub fn running(&self) -> usize {
        self.running
    }

    /// How many steps are settled, in the direction the run goes, and how many there are.
    pub fn progress(&self) -> (usize, usize) {
        (self.steps.len() - self.unsettled, self.steps.len())
    }

    /// The steps whose undo failed for good.
    pub fn failed_undos(&self) -> Vec<String> {
        let failed = |(ix, _): &(StepIx, _)| matches!(self.step(*ix).undo().at, CourseAt::Failed { .. });
        self.plan.steps().filter(failed).map(|(_, step)| step.name.to_string()).collect()
    }

    /// What people are told. Whether a running run waits for a time is for its decision to say.
    pub fn status(&self) -> Status {
        match self.phase {
            Phase::Over(Outcome::Succeeded) => Status::Succeeded,
            Phase::Over(Outcome::RolledBack) => Status::RolledBack,
            _ if self.quarantined => Status::Quarantined,
            Phase::RollingBack if self.stuck => Status::Stuck,
            Phase::RollingBack => Status::RollingBack,
            Phase::Forward if self.seq <= 1 && self.claim == 0 => Status::Pending,
            Phase::Forward if self.nothing_moves() => Status::Held,
            Phase::Forward => Status::Running,
        }
    }
}

/// What a step still waits for.
enum WaitsFor {
    Nothing,
    /// Only for somebody to start it.
    AHand,
    ADecision,
}

/// What may be written of a run that is left alone: who has it, and how calls in flight ended.
fn is_fact(event: &Event) -> bool {
    use StepEvent::{Checkpointed, Failed, Probed, Progressed, Succeeded};
    match event {
        Event::Claimed { .. } | Event::Quarantined { .. } => true,
        Event::Step { what, .. } => matches!(
            what,
            Checkpointed { .. } | Progressed { .. } | Succeeded { .. } | Failed { .. } | Probed { .. }
        ),
        _ => false,
    }
}

/// Whether a step whose last attempt is in doubt may have another one.
fn may_repeat(effect: Effect, settled: Option<&Answer>) -> bool {
    match settled {
        _ if effect.at_most_once => false,
        Some(Answer::Absent | Answer::Partial) => true,
        Some(_) => false,
        None => !effect.probed,
    }
}

impl Status {
    /// As it stands in the index and in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Status::Pending => "pending",
            Status::Running => "running",
            Status::Waiting => "waiting",
            Status::Held => "held",
            Status::RollingBack => "rolling_back",
            Status::Stuck => "stuck",
            Status::Quarantined => "quarantined",
            Status::Succeeded => "succeeded",
            Status::RolledBack => "rolled_back",
        }
    }

    /// Nothing happens any more unless a person wants it to.
    pub fn settles(self) -> bool {
        self.is_over() || matches!(self, Status::Held | Status::Stuck | Status::Quarantined)
    }

    /// Nothing will ever happen to the run again.
    pub fn is_over(self) -> bool {
        matches!(self, Status::Succeeded | Status::RolledBack)
    }
}

impl std::str::FromStr for Status {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let all = [
            Status::Pending,
            Status::Running,
            Status::Waiting,
            Status::Held,
            Status::RollingBack,
            Status::Stuck,
            Status::Quarantined,
            Status::Succeeded,
            Status::RolledBack,
        ];
        all.into_iter()
            .find(|s| s.as_str() == text)
            .ok_or_else(|| format!("\"{text}\" is no status of a run"))
    }
}
