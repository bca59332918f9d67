//! What happens next: from a state and a time to commands. Nothing is done here.

use crate::Time;
use crate::event::{
    ActivityError, Answer, Applied, CourseId, Direction, Event, Outcome, StepEvent, idempotency_key,
};
use crate::names::StepIx;
use crate::plan::{OnFailure, Source};
use crate::state::{CourseAt, Phase, State};

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

/// Decides. At most `room` attempts are started: the caller has no more hands.
pub fn decide(state: &State, now: Time, room: usize) -> Decision {
    let mut decision = Decision::default();
    if state.seq() == 0 || state.quarantined() {
        return decision;
    }
    match state.phase() {
        Phase::Forward => forward(state, now, room, &mut decision),
        Phase::RollingBack => back(state, now, room, &mut decision),
        Phase::Over(_) => {}
    }
    decision
}

fn forward(state: &State, now: Time, mut room: usize, decision: &mut Decision) {
    if state.all_settled() {
        decision.append(Event::Finished { outcome: Outcome::Succeeded });
        return;
    }
    for ix in state.open() {
        let step = state.plan().step(ix);
        let id = CourseId::forward(ix);
        let course = state.course(id);
        let start = match &course.at {
            CourseAt::Untouched => true,
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
                    None => decision.not_before(*since + step.effect.longest_delay.delta(), now),
                }
            }
            CourseAt::Failed { error } => {
                match step.on_failure {
                    OnFailure::RollBack => {
                        // Nothing else is decided in this direction any more.
                        decision.commands.clear();
                        decision.wake_at = None;
                        let because = format!("step {} failed: {}", step.name, error.message);
                        decision.append(Event::RollingBack { because });
                        return;
                    }
                    OnFailure::Hold => {
                        let why = format!("failed: {}", error.message);
                        decision.append(step_event(state, id, StepEvent::Held { why }));
                    }
                    OnFailure::Continue => {}
                }
                false
            }
            CourseAt::Running | CourseAt::Succeeded { .. } | CourseAt::Held { .. } => false,
        };
        if start && room > 0 {
            room -= 1;
            decision.append(start_of(state, id));
        }
    }
}

fn back(state: &State, now: Time, mut room: usize, decision: &mut Decision) {
    if state.all_settled() {
        decision.append(Event::Finished { outcome: Outcome::RolledBack });
        return;
    }
    for ix in state.open() {
        let step = state.plan().step(ix);
        let forward = state.course(CourseId::forward(ix));
        let undo = state.course(CourseId::undo(ix));
        let ready = match &forward.at {
            CourseAt::Running => {
                let settle = state.plan().spec().settle_within.unwrap_or_default();
                let give_up = state.rolled_back_since().map_or(now, |since| since + settle.delta());
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
            CourseAt::Succeeded { .. } if forward.generation == 0 => true,
            // An effect that lands after its undo would stay. That holds for a success too, once the step was
            // begun anew: the call of the generation before it may still be out, under a key of its own.
            _ => forward
                .doubtful_since
                .is_none_or(|since| decision.not_before(since + step.effect.longest_delay.delta(), now)),
        };
        if !ready {
            continue;
        }
        let start = match &undo.at {
            CourseAt::Untouched | CourseAt::InDoubt { .. } => true,
            CourseAt::BackingOff { until } => decision.not_before(*until, now),
            _ => false,
        };
        if start && room > 0 {
            room -= 1;
            decision.append(start_of(state, CourseId::undo(ix)));
        }
    }
    let nothing_moves = state.open().next().is_none() && state.running() == 0;
    if nothing_moves && !state.stuck() {
        decision.append(Event::Stuck { steps: state.failed_undos() });
    }
}

/// The next attempt of a course.
fn start_of(state: &State, id: CourseId) -> Event {
    let step = state.plan().step(id.step);
    let course = state.course(id);
    let work = match (id.direction, &step.undo) {
        (Direction::Undo, Some(undo)) => undo,
        _ => &step.forward,
    };
    let input = (course.attempts == 0).then(|| {
        work.input.resolve(|source| match source {
            Source::Step(ix) => state.course(CourseId::forward(*ix)).output(),
            Source::Own => state.course(CourseId::forward(id.step)).output(),
        })
    });
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
