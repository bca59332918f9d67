//! What happens next: from a state and a time to commands. Nothing is done here.

use crate::Time;
use crate::action::RollBack;
use crate::event::{
    ActivityError, Answer, Applied, CourseId, Direction, Event, Outcome, StepEvent, idempotency_key,
};
use crate::names::StepIx;
use crate::plan::{Ending, OnFailure, Source, Span, Work};
use crate::state::{Check, CourseAt, Phase, State, Waited};

/// One thing to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// Journal this. If it is a start, the call follows once it is durable.
    Append(Event),
    /// Ask the world about an attempt in doubt, unless the question is out already.
    Probe(StepIx),
    /// Ask a call in flight to stop, unless it was asked already.
    Cancel(CourseId),
}

/// What to do now, and when to ask again if nothing else happens before.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Decision {
    /// In order.
    pub commands: Vec<Command>,
    /// The earliest time at which something falls due; `None`: only an outcome or an operator moves the run.
    pub wake_at: Option<Time>,
}

impl Decision {
    fn append(&mut self, event: Event) {
        self.commands.push(Command::Append(event));
    }

    fn not_before(&mut self, at: Time, now: Time) -> bool {
        if at <= now {
            return true;
        }
        self.wake_at = Some(self.wake_at.map_or(at, |earlier| earlier.min(at)));
        false
    }
}

/// How often a rollback that waits for another run's is looked at.
const LOOK_AGAIN: Span = Span::secs(60);

/// Who has hands free for calls. A number is so many, for whatever it is.
pub trait Hands {
    /// Takes one for this call, if there is one. If not, the call is not begun now, and its run is asked again once
    /// there is.
    fn take(&mut self, work: &Work, direction: Direction) -> bool;
}

impl Hands for usize {
    fn take(&mut self, _: &Work, _: Direction) -> bool {
        let any = *self > 0;
        *self = self.saturating_sub(1);
        any
    }
}

/// After so many refusals there is no point in going on asking: of ten thousand steps that need the same few hands,
/// each decision looks at a few hundred.
const REFUSALS: usize = 256;

/// Hands, and how often there were none.
struct Asking<H> {
    hands: H,
    refused: usize,
}

impl<H: Hands> Asking<H> {
    /// Begins the next attempt of a course, if there is a hand for it. False if it is of no use to ask further.
    fn start(&mut self, state: &State, id: CourseId, decision: &mut Decision) -> bool {
        if self.hands.take(work_of(state, id), id.direction) {
            decision.append(start_of(state, id));
        } else {
            self.refused += 1;
        }
        self.refused < REFUSALS
    }
}

/// Decides. An attempt is only started if there is a hand for it.
pub fn decide(state: &State, now: Time, hands: impl Hands) -> Decision {
    let mut hands = Asking { hands, refused: 0 };
    let mut decision = Decision::default();
    if state.seq() == 0 || state.quarantined() {
        return decision;
    }
    if state.paused().is_some() {
        return decision;
    }
    if let Some(check) = state.check() {
        look(check, &mut decision);
        return decision;
    }
    match state.phase() {
        Phase::Forward | Phase::Committing => forward(state, now, &mut hands, &mut decision),
        Phase::Succeeded => succeeded(state, now, &mut decision),
        Phase::RollingBack => back(state, now, &mut hands, &mut decision),
        Phase::Over(_) => {}
    }
    decision
}

/// How many steps are looked at side by side.
const LOOKS: usize = 16;

/// The world is looked at before the run goes on.
fn look(check: &Check, decision: &mut Decision) {
    if !check.todo.is_empty() {
        decision.commands.extend(check.todo.iter().take(LOOKS).map(|ix| Command::Probe(*ix)));
    } else if !check.differences.is_empty() {
        decision.append(Event::Drifted { differences: check.differences.clone() });
    } else if let Some(how) = &check.then {
        decision.append(Event::RollingBack { because: check.because.clone(), how: how.clone() });
    } else {
        decision.append(Event::Checked);
    }
}

/// Somebody commits, or nobody has in time.
fn succeeded(state: &State, now: Time, decision: &mut Decision) {
    let Some(commit) = &state.plan().spec().commit else { return };
    if let Some(signal) = commit.signal.as_ref().and_then(|name| state.signal(name)) {
        let because = format!("{} sent the signal \"{}\"", signal.who, signal.name);
        decision.append(Event::Committing { because });
        return;
    }
    let (Some(within), Some(since)) = (commit.within, state.succeeded_at()) else { return };
    if !decision.not_before(within.after(since), now) {
        return;
    }
    match commit.then {
        Some(Ending::Commit) => {
            let because = format!("nobody decided otherwise within {within}");
            decision.append(Event::Committing { because });
        }
        Some(Ending::RollBack) if state.needs_check(now) => {
            let because = format!("nobody committed it within {within}");
            decision.append(Event::Checking { then: Some(RollBack::default()), because });
        }
        Some(Ending::RollBack) => {
            let because = format!("nobody committed it within {within}");
            decision.append(Event::RollingBack { because, how: RollBack::default() });
        }
        None => {}
    }
}

fn forward<H: Hands>(state: &State, now: Time, hands: &mut Asking<H>, decision: &mut Decision) {
    if state.all_settled() {
        let committed = state.phase() == Phase::Committing;
        let outcome = if committed { Outcome::Committed } else { Outcome::Succeeded };
        decision.append(Event::Finished { outcome });
        return;
    }
    if state.phase() == Phase::Forward
        && let Some((step, error)) = turning(state)
    {
        // Nothing else is decided in this direction any more; and nothing at all while an attempt at the point of no
        // return is in flight: its end says whether there is a way back.
        if !state.at_no_return() {
            let because = format!("step {step} failed: {}", error.message);
            decision.append(Event::RollingBack { because, how: RollBack::default() });
        }
        return;
    }
    let mut taken = Vec::new();
    for ix in state.open() {
        let step = state.plan().step(ix);
        let id = CourseId::forward(ix);
        let course = state.course(id);
        if state.recalled(ix) {
            if may_undo(state, ix, now, decision) {
                hands.start(state, CourseId::undo(ix), decision);
            }
            continue;
        }
        let start = match &course.at {
            CourseAt::Waiting(wait) => {
                match state.waited(ix, wait, &mut taken, now) {
                    Waited::For(what) => {
                        let failed = matches!(*what, StepEvent::Failed { .. });
                        let event = step_event(state, id, *what);
                        if failed {
                            // What that means for the others is decided next; nothing is begun before.
                            decision.commands = vec![Command::Append(event)];
                            return;
                        }
                        decision.append(event);
                    }
                    Waited::Until(at) => {
                        if let Some(at) = at {
                            decision.not_before(at, now);
                        }
                    }
                }
                false
            }
            // What requires a proof comes here even before its first attempt.
            CourseAt::Untouched => match state.is_proven(ix) {
                true => true,
                false => {
                    let why = state.missing_proof(ix).unwrap_or_default();
                    decision.append(step_event(state, id, StepEvent::Held { why }));
                    false
                }
            },
            CourseAt::BackingOff { until } => decision.not_before(*until, now),
            CourseAt::InDoubt { since, not_before, settled, .. } => {
                if not_before.is_some_and(|at| !decision.not_before(at, now)) {
                    continue;
                }
                match settled {
                    Some(Answer::Absent | Answer::Partial) if !step.effect.at_most_once => true,
                    Some(answer) => {
                        let why = match answer {
                            Answer::Unknown { why } => format!(
                                "whether attempt {} had its effect cannot be found out: {why}",
                                course.attempts
                            ),
                            _ => format!(
                                "attempt {} is in doubt, and the step is declared to happen at most once",
                                course.attempts
                            ),
                        };
                        decision.append(step_event(state, id, StepEvent::Held { why }));
                        false
                    }
                    None if step.effect.probed => {
                        decision.commands.push(Command::Probe(ix));
                        false
                    }
                    None if step.effect.at_most_once => {
                        let why = format!(
                            "attempt {} is in doubt, the step is declared to happen at most once, and its activity has no probe",
                            course.attempts
                        );
                        decision.append(step_event(state, id, StepEvent::Held { why }));
                        false
                    }
                    None if step.effect.refuses_duplicates => true,
                    None => decision.not_before(step.effect.longest_delay.after(*since), now),
                }
            }
            CourseAt::Failed { error } => {
                match step.on(error) {
                    OnFailure::RollBack => {
                        let why = format!("failed, when nothing is rolled back any more: {}", error.message);
                        decision.append(step_event(state, id, StepEvent::Held { why }));
                    }
                    OnFailure::Hold => {
                        let why = format!("failed: {}", error.message);
                        decision.append(step_event(state, id, StepEvent::Held { why }));
                    }
                    OnFailure::Continue => {}
                }
                false
            }
            CourseAt::Running
            | CourseAt::Succeeded { .. }
            | CourseAt::Skipped { .. }
            | CourseAt::Held { .. } => false,
        };
        if start {
            hands.start(state, id, decision);
        }
    }
    for ix in state.fresh() {
        if !hands.start(state, CourseId::forward(ix), decision) {
            break;
        }
    }
}

/// A failure that turns the run round, or will.
pub(crate) fn turning(state: &State) -> Option<(&str, &ActivityError)> {
    if state.past_no_return() && !state.at_no_return() {
        return None;
    }
    state.open().find_map(|ix| {
        let step = state.plan().step(ix);
        match &state.course(CourseId::forward(ix)).at {
            CourseAt::Failed { error } if step.on(error) == OnFailure::RollBack && !state.recalled(ix) => {
                Some((&*step.name, error))
            }
            _ => None,
        }
    })
}

fn back<H: Hands>(state: &State, now: Time, hands: &mut Asking<H>, decision: &mut Decision) {
    if state.all_settled() && state.is_clean() {
        decision.append(Event::Finished { outcome: Outcome::RolledBack });
        return;
    }
    for ix in state.open() {
        let step = state.plan().step(ix);
        let forward = state.course(CourseId::forward(ix));
        let ready = match &forward.at {
            CourseAt::Running => {
                let settle = state.plan().spec().settle_within.unwrap_or_default();
                let give_up = state.rolled_back_since().map_or(now, |since| settle.after(since));
                if decision.not_before(give_up, now) {
                    let error = ActivityError {
                        code: "abandoned".into(),
                        message: format!("it was still running {settle} after the rollback began"),
                        retryable: false,
                        retry_after: None,
                        applied: Applied::Maybe,
                        details: None,
                    };
                    let id = CourseId::forward(ix);
                    decision.append(step_event(state, id, StepEvent::Failed { error, retry_at: None }));
                } else {
                    decision.commands.push(Command::Cancel(CourseId::forward(ix)));
                }
                false
            }
            // What a probe finds, the undo is given. If it finds nothing, the undo runs all the same.
            CourseAt::InDoubt { not_before, settled: None, .. } if step.effect.probed => {
                if not_before.is_none_or(|at| decision.not_before(at, now)) {
                    decision.commands.push(Command::Probe(ix));
                }
                false
            }
            _ => true,
        };
        if ready && may_undo(state, ix, now, decision) {
            hands.start(state, CourseId::undo(ix), decision);
        }
    }
    for ix in state.fresh() {
        if !hands.start(state, CourseId::undo(ix), decision) {
            break;
        }
    }
    if (state.nothing_moves() || state.all_settled()) && !state.stuck() {
        let left = state.residue().map(|one| format!("{}: {} {}", one.step, one.kind, one.name));
        decision.append(Event::Stuck { steps: state.failed_undos(), resources: left.collect() });
    }
}

/// Whether an attempt to undo a step, whose own attempts are over, is due.
fn may_undo(state: &State, ix: StepIx, now: Time, decision: &mut Decision) -> bool {
    // An effect that lands after its undo would stay; also that of an attempt in doubt before the one that succeeded.
    let longest = state.plan().step(ix).effect.longest_delay;
    let quiet = state.course(CourseId::forward(ix)).doubtful_since.map(|since| longest.after(since));
    if !quiet.is_none_or(|at| decision.not_before(at, now)) {
        return false;
    }
    match &state.course(CourseId::undo(ix)).at {
        CourseAt::Untouched | CourseAt::InDoubt { .. } => true,
        CourseAt::BackingOff { until } => decision.not_before(*until, now),
        // It says so itself when it is rolled back. A rollback never sleeps for good, so it is looked after.
        CourseAt::Waiting(_) if state.phase() == Phase::RollingBack => {
            decision.not_before(LOOK_AGAIN.after(now), now);
            false
        }
        _ => false,
    }
}

fn work_of(state: &State, id: CourseId) -> &Work {
    let step = state.plan().step(id.step);
    match (id.direction, &step.undo) {
        (Direction::Undo, Some(undo)) => undo,
        _ => &step.forward,
    }
}

/// The next attempt of a course.
fn start_of(state: &State, id: CourseId) -> Event {
    let step = state.plan().step(id.step);
    let course = state.course(id);
    let work = work_of(state, id);
    // An operator's input takes the place of the plan's.
    let resolve = || {
        work.input.resolve(|source| match source {
            Source::Step(ix) => state.course(CourseId::forward(*ix)).output(),
            Source::Own => state.course(CourseId::forward(id.step)).output(),
        })
    };
    let input = (course.attempts == 0).then(|| course.input.clone().unwrap_or_else(resolve));
    let key = idempotency_key(state.run(), &step.name, id.direction, course.generation);
    Event::Step {
        course: id,
        generation: course.generation,
        attempt: course.attempts + 1,
        what: StepEvent::Started { key, input },
    }
}

/// An event about the course's current attempt.
pub fn step_event(state: &State, id: CourseId, what: StepEvent) -> Event {
    let course = state.course(id);
    Event::Step { course: id, generation: course.generation, attempt: course.attempts, what }
}
