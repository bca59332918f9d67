//! Where a run is: a fold over its events.
//!
//! [`State::apply`] (in `fold`) is the only way a state changes, live and after a crash alike, and its one match lists
//! the legal moves. A course (a step, or its undo) moves like this:
//!
//! ```text
//!   untouched -> running -> succeeded
//!       ^  |        |-----> failed (for good) ----> held -> skipped
//!       |  |        |-----> backing off ----------> running
//!       |  |        '-----> in doubt -> (probed) -> running | succeeded | held
//!       |  '-> waiting -> succeeded | failed         a step that the engine runs itself
//!       '-- retried (a new generation): from failed, held, backing off
//! ```

mod desk;
mod fold;
mod settle;
mod wait;

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::Time;
use crate::action::{Fate, RollBack};
use crate::event::{ActivityError, Answer, CourseId, Direction, Journaled, Outcome, Row, Sender};
use crate::json::Json;
use crate::names::{ClaimNo, RunId, Seq, StepIx, StepName};
use crate::plan::Plan;

pub use desk::Signal;
pub(crate) use wait::Waited;
pub use wait::{Wait, run_of_step};

/// Everything that follows from a run's journal.
#[derive(Clone, Debug)]
pub struct State {
    run: RunId,
    plan: Arc<Plan>,
    sender: Option<Box<Sender>>,
    seq: Seq,
    claim: ClaimNo,
    at: Option<Time>,
    phase: Phase,
    quarantined: bool,
    stuck: bool,
    turned: Option<Box<Turned>>,
    succeeded_at: Option<Time>,
    past_no_return: bool,
    check: Option<Box<Check>>,
    /// When somebody was told that the world had changed, and how.
    drifted: Option<Box<(Time, Vec<String>)>>,
    /// The last event that was about the run as a whole.
    moved: Seq,
    desk: Option<Box<desk::Desk>>,
    /// Sorted by step, kind and name.
    resources: Vec<Resource>,
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

/// Something outside that a run made, moved, or was about to.
#[derive(Clone, Debug, PartialEq, serde::Serialize, schemars::JsonSchema)]
pub struct Resource {
    /// The step that it belongs to.
    pub step: StepName,
    /// Which kind.
    pub kind: String,
    /// Which.
    pub name: String,
    /// What became of it.
    pub fate: Fate,
    /// What helps to find it.
    pub details: Option<serde_json::Value>,
}

/// A look at the world before the run goes on.
#[derive(Clone, Debug)]
pub(crate) struct Check {
    pub then: Option<RollBack>,
    pub because: String,
    pub todo: BTreeSet<StepIx>,
    pub differences: Vec<String>,
}

/// How the run turned round.
#[derive(Clone, Debug)]
struct Turned {
    at: Time,
    left: BTreeSet<StepIx>,
    past_failures: bool,
}

/// Which way a run goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// To its end.
    Forward,
    /// All is done, and can be undone yet.
    Succeeded,
    /// To its final end.
    Committing,
    /// Back to its start.
    RollingBack,
    /// Nowhere any more.
    Over(Outcome),
}

/// What people are told about a run.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// No node has begun.
    Pending,
    /// Not its turn yet: another run has its exclusive key.
    Queued,
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
    /// Somebody wants it to stand still.
    Paused,
    /// Done; it can be undone yet.
    Succeeded,
    /// Being made final.
    Committing,
    /// Done, for good.
    Committed,
    /// Undone.
    RolledBack,
    /// Given up, with a list of what is left.
    Closed,
}

/// Every status there is.
pub const STATUSES: [Status; 14] = [
    Status::Pending,
    Status::Queued,
    Status::Running,
    Status::Waiting,
    Status::Held,
    Status::RollingBack,
    Status::Stuck,
    Status::Quarantined,
    Status::Paused,
    Status::Succeeded,
    Status::Committing,
    Status::Committed,
    Status::RolledBack,
    Status::Closed,
];

#[derive(Clone, Debug)]
struct StepState {
    forward: Course,
    /// Most steps are never undone.
    undo: Option<Box<Course>>,
    /// Forward: how many of the steps it comes after are not settled yet. Rolling back: how many of the steps
    /// that come after it are not undone yet.
    blockers: u32,
    settled: bool,
    /// It is undone while the run goes forward.
    recalled: bool,
    /// It may start without its proof.
    waived: bool,
    /// The last event about it, reports of progress apart.
    moved: Seq,
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
    /// The engine waits.
    Waiting(Box<Wait>),
    /// The result is there.
    Succeeded {
        /// The output.
        output: Json,
    },
    /// An operator gave the result.
    Skipped {
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

    /// The output, if there is one.
    pub fn output(&self) -> Option<&Json> {
        match &self.at {
            CourseAt::Succeeded { output } | CourseAt::Skipped { output } => Some(output),
            _ => None,
        }
    }
}

impl CourseAt {
    /// It came to its end, or an operator says so.
    pub fn is_done(&self) -> bool {
        matches!(self, CourseAt::Succeeded { .. } | CourseAt::Skipped { .. })
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
                recalled: false,
                waived: false,
                moved: 0,
            })
            .collect();
        let mut state = Self {
            run,
            plan,
            sender: None,
            seq: 0,
            claim: 0,
            at: None,
            phase: Phase::Forward,
            quarantined: false,
            stuck: false,
            turned: None,
            succeeded_at: None,
            past_no_return: false,
            check: None,
            drifted: None,
            moved: 0,
            desk: None,
            resources: Vec::new(),
            steps,
            fresh: BTreeSet::new(),
            open: BTreeSet::new(),
            unsettled: 0,
            running: 0,
        };
        state.unsettled = state.counted();
        state
    }

    /// How many steps the run has to settle in the direction it goes: those that finalize come into it with the commit.
    fn counted(&self) -> usize {
        let forward = matches!(self.phase, Phase::Forward | Phase::Succeeded);
        self.plan.steps().filter(|(_, step)| !forward || !step.finalize).count()
    }

    /// Folds a journal as it lies in the store, the plan from its first row.
    pub fn from_rows(run: RunId, rows: &[Row]) -> Result<Self, String> {
        let first = rows.first().ok_or("its journal is empty")?;
        let body = first.body.as_ref().ok_or("its first event has no plan")?;
        let plan = Plan::from_submitted(body).map_err(|error| error.to_string())?;
        Self::from_rows_under(run, plan, rows)
    }

    /// The same, with the plan known.
    pub fn from_rows_under(run: RunId, plan: Arc<Plan>, rows: &[Row]) -> Result<Self, String> {
        let mut state = Self::new(run, Arc::clone(&plan));
        for row in rows {
            let event = Journaled::from_row(row, &plan).map_err(|error| error.to_string())?;
            state.apply(&event).map_err(|error| error.to_string())?;
        }
        Ok(state)
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

    /// Who submitted it, where somebody said so.
    pub fn sender(&self) -> Option<&Sender> {
        self.sender.as_deref()
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
        self.turned.as_ref().map(|turned| turned.at)
    }

    pub(crate) fn succeeded_at(&self) -> Option<Time> {
        self.succeeded_at
    }

    /// The look at the world that is under way.
    pub(crate) fn check(&self) -> Option<&Check> {
        self.check.as_deref()
    }

    /// Whether so much time has passed that the world has to be looked at before the run goes on. Once somebody was told
    /// how it is, it goes on.
    pub(crate) fn needs_check(&self, now: Time) -> bool {
        let (Some(after), Some(at)) = (self.plan.spec().drift_after, self.at) else { return false };
        let fresh = |since: Time| after.after(since) > now;
        // What is being made final is not looked at any more, and one look at a time is enough.
        self.phase != Phase::Committing
            && self.check.is_none()
            && !fresh(at)
            && !self.drifted.as_ref().is_some_and(|drifted| fresh(drifted.0))
            && self.checkable().next().is_some()
    }

    /// The steps that are done and can be looked at. One whose undo has begun is not as it was, and ought not to be.
    pub(crate) fn checkable(&self) -> impl Iterator<Item = StepIx> {
        self.plan
            .steps()
            .filter(|(ix, step)| {
                step.effect.probed
                    && matches!(self.step(*ix).forward.at, CourseAt::Succeeded { .. })
                    && matches!(self.step(*ix).undo().at, CourseAt::Untouched)
                    && !self.recalled(*ix)
            })
            .map(|(ix, _)| ix)
    }

    /// Whether the point of no return is behind it.
    pub fn past_no_return(&self) -> bool {
        self.past_no_return || self.at_no_return()
    }

    /// Whether it is at the point of no return: an attempt is in flight, and its end will say.
    pub(crate) fn at_no_return(&self) -> bool {
        self.running > 0
            && self.plan.steps().any(|(ix, declared)| {
                declared.point_of_no_return && self.step(ix).forward.at == CourseAt::Running
            })
    }

    pub(crate) fn settled(&self, ix: StepIx) -> bool {
        self.step(ix).settled
    }

    /// The last event about a step, or about the run as a whole.
    pub(crate) fn moved(&self, step: Option<StepIx>) -> Seq {
        step.map_or(self.moved, |ix| self.step(ix).moved)
    }

    pub(crate) fn recalled(&self, ix: StepIx) -> bool {
        self.step(ix).recalled
    }

    /// Nothing will ever happen to it again by itself, and nobody can ask for anything but to see it rolled back.
    pub fn is_over(&self) -> bool {
        match self.phase {
            Phase::Over(_) => true,
            // Somebody may have called it back to be rolled back, and the world is looked at first.
            Phase::Succeeded => {
                self.plan.spec().commit.is_none() && self.check.is_none() && self.paused().is_none()
            }
            _ => false,
        }
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

    /// A step that could begin if there were a place in its pool, and that pool.
    pub(crate) fn wants_pool(&self) -> Option<(&StepName, &str)> {
        let back = self.phase == Phase::RollingBack;
        self.fresh.iter().chain(&self.open).find_map(|ix| {
            let step = self.plan.step(*ix);
            let work = if back { step.undo.as_ref()? } else { &step.forward };
            Some((&step.name, work.pool.as_deref()?))
        })
    }

    /// How many attempts are in flight.
    pub fn running(&self) -> usize {
        self.running
    }

    /// How many steps are settled, in the direction the run goes, and how many there are.
    pub fn progress(&self) -> (usize, usize) {
        let all = self.counted();
        (all - self.unsettled, all)
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
            Phase::Over(Outcome::Committed) => Status::Committed,
            Phase::Over(Outcome::RolledBack) => Status::RolledBack,
            Phase::Over(Outcome::Closed) => Status::Closed,
            _ if self.quarantined => Status::Quarantined,
            Phase::Succeeded => Status::Succeeded,
            Phase::RollingBack if self.stuck => Status::Stuck,
            _ if self.paused().is_some() && self.running == 0 => Status::Paused,
            Phase::RollingBack => Status::RollingBack,
            Phase::Forward if self.seq <= 1 && self.claim == 0 => Status::Pending,
            Phase::Forward | Phase::Committing if self.nothing_moves() => Status::Held,
            Phase::Committing => Status::Committing,
            Phase::Forward => Status::Running,
        }
    }

    /// What a run that does not move by itself waits for, for people.
    pub fn waits_for(&self) -> Option<String> {
        let (done, all) = self.progress();
        let why = match self.status() {
            Status::Stuck => {
                let undos = self.failed_undos();
                let left: Vec<_> =
                    self.residue().map(|one| format!("{} {} of {}", one.kind, one.name, one.step)).collect();
                let undos =
                    (!undos.is_empty()).then(|| format!("these undos failed for good: {}", undos.join(", ")));
                let left =
                    (!left.is_empty()).then(|| format!("nobody knows what became of {}", left.join(", ")));
                undos.into_iter().chain(left).collect::<Vec<_>>().join("; ")
            }
            Status::Quarantined => "it is left alone; its last event says why".into(),
            Status::Paused | Status::Succeeded if self.drifted.is_some() && self.paused().is_some() => {
                let found = self.drifted.as_ref().map(|drifted| drifted.1.join("; ")).unwrap_or_default();
                format!("the world has changed since: {found}. Somebody must look, and ask again")
            }
            Status::Paused => {
                format!("{} paused it; somebody must resume it", self.paused().unwrap_or("somebody"))
            }
            Status::Held => {
                let names: Vec<_> = self
                    .plan
                    .steps()
                    .filter_map(|(ix, step)| match (&self.step(ix).forward.at, &self.step(ix).undo().at) {
                        (_, CourseAt::Failed { .. }) if self.recalled(ix) => {
                            Some(format!("the undo of {}", step.name))
                        }
                        (CourseAt::Held { .. }, _) => Some(step.name.to_string()),
                        _ => None,
                    })
                    .take(10)
                    .collect();
                let names = names.join(", ");
                format!("{done} of {all} steps are done; an operator must decide about {names}")
            }
            Status::Succeeded if !self.is_over() => "somebody must commit it, or roll it back".into(),
            Status::Running | Status::Committing => {
                let waits: Vec<_> =
                    self.open.iter().filter_map(|ix| self.waiting_step(*ix)).take(10).collect();
                if waits.is_empty() || self.running > 0 || !self.fresh.is_empty() {
                    return None;
                }
                waits.join("; ")
            }
            _ => return None,
        };
        Some(why)
    }

    fn waiting_step(&self, ix: StepIx) -> Option<String> {
        let name = &self.plan.step(ix).name;
        let CourseAt::Waiting(wait) = &self.step(ix).forward.at else { return None };
        if let Some(run) = wait.run {
            return Some(format!("{name} waits for its run {run}"));
        }
        match (&wait.signal, &wait.approval) {
            (Some(signal), _) => Some(format!("{name} waits for the signal \"{signal}\"")),
            (_, Some((right, people))) => {
                let yes = self.approvals(ix).len();
                Some(format!("{name} waits for {people} to say yes by the right \"{right}\"; {yes} have"))
            }
            (None, None) => wait.until.map(|at| format!("{name} waits until {at}")),
        }
    }
}

impl Status {
    /// As it stands in the index and in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Status::Pending => "pending",
            Status::Queued => "queued",
            Status::Running => "running",
            Status::Waiting => "waiting",
            Status::Held => "held",
            Status::RollingBack => "rolling_back",
            Status::Stuck => "stuck",
            Status::Quarantined => "quarantined",
            Status::Paused => "paused",
            Status::Succeeded => "succeeded",
            Status::Committing => "committing",
            Status::Committed => "committed",
            Status::RolledBack => "rolled_back",
            Status::Closed => "closed",
        }
    }

    /// Nothing happens any more unless a person wants it to.
    pub fn settles(self) -> bool {
        self.is_end() || matches!(self, Status::Held | Status::Stuck | Status::Quarantined | Status::Paused)
    }

    /// Nothing happens to the run any more by itself. One that has succeeded may be live yet, if its plan says how it is
    /// committed.
    pub fn is_end(self) -> bool {
        matches!(self, Status::Succeeded | Status::Committed | Status::RolledBack | Status::Closed)
    }
}

impl std::str::FromStr for Status {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        STATUSES
            .into_iter()
            .find(|s| s.as_str() == text)
            .ok_or_else(|| format!("\"{text}\" is no status of a run"))
    }
}
