//! From what a call or a probe came to, to the events that are journaled: retry or not, and when.

use std::time::Duration;

use crate::Time;
use crate::event::{ActivityError, Answer, Applied, CourseId, Direction, StepEvent, idempotency_key};
use crate::json::Json;
use crate::names::StepIx;
use crate::plan::{Retry, Span};
use crate::state::{CourseAt, Phase, State};

/// How many probes in a row may come back without an answer before an operator is asked.
const UNKNOWNS: u32 = 5;

/// Decides what the failure of the attempt in flight means: another attempt at a stated time, or the end.
pub fn judge(state: &State, course: CourseId, error: ActivityError, now: Time) -> StepEvent {
    let retry_at = next_attempt(state, course, &error, now);
    StepEvent::Failed { error, retry_at }
}

fn next_attempt(state: &State, id: CourseId, error: &ActivityError, now: Time) -> Option<Time> {
    let step = state.plan().step(id.step);
    let work = match id.direction {
        Direction::Forward => &step.forward,
        Direction::Undo => step.undo.as_ref()?,
    };
    let course = state.course(id);
    if !error.retryable {
        return None;
    }
    if id.direction == Direction::Forward {
        // No forward attempt starts once the run has turned round, nor a second one of what may be there.
        let maybe = error.applied == Applied::Maybe;
        if !matches!(state.phase(), Phase::Forward | Phase::Committing) || (maybe && step.effect.at_most_once)
        {
            return None;
        }
    }
    let failures = course.failures + u32::from(work.counts(error));
    if work.retry.attempts.is_some_and(|most| failures >= most) {
        return None;
    }
    let key = idempotency_key(state.run(), &step.name, id.direction, course.generation);
    let delay = delay(&work.retry, failures.max(1), key.as_u64_pair().0);
    let delay = error.retry_after.map_or(delay, |asked| delay.max(asked));
    let at = delay.after(now);
    let too_late = work
        .retry
        .elapsed
        .is_some_and(|most| course.first_started.is_some_and(|first| at > most.after(first)));
    (!too_late).then_some(at)
}

/// The delay after so many failures. Jitter is a hash of what it jitters: nothing is random, and two runs
/// that failed together do not come back together.
pub(crate) fn delay(retry: &Retry, failures: u32, salt: u64) -> Span {
    let steps = failures.saturating_sub(1).min(1_000) as i32;
    // A first delay of zero stays zero: infinity times zero would be no number.
    let grown = retry.first.0.as_secs_f64() * retry.factor.powi(steps).min(f64::MAX);
    let ceiling = retry.ceiling.0.as_secs_f64();
    let capped = grown.min(ceiling);
    let mut bits = salt ^ u64::from(failures).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    let unit = ((bits ^ (bits >> 31)) >> 11) as f64 / (1u64 << 53) as f64;
    let jittered = capped * (1.0 + retry.jitter * (2.0 * unit - 1.0));
    Span(Duration::try_from_secs_f64(jittered.min(ceiling)).unwrap_or(retry.ceiling.0))
}

/// Decides what a probe's answer means. `asked_at` is when the question was put: the effect may have landed
/// since, and only what was true long enough after the call counts.
pub fn judge_probe(
    state: &State,
    step: StepIx,
    answer: Answer,
    output: Option<Json>,
    asked_at: Time,
    now: Time,
) -> Vec<StepEvent> {
    let plan = state.plan();
    let effect = plan.step(step).effect;
    if let Some(compared) = compare(state, step, &answer, output.as_ref()) {
        return vec![compared];
    }
    let CourseAt::InDoubt { since, unknowns, .. } = state.course(CourseId::forward(step)).at else {
        return Vec::new();
    };
    let quiet_at = effect.longest_delay.after(since);
    let settled = |answer| StepEvent::Probed { answer, ask_again_at: None };
    let again = |answer, at| StepEvent::Probed { answer, ask_again_at: Some(at) };
    match (answer, output) {
        (Answer::Present, Some(output)) => vec![settled(Answer::Present), StepEvent::Succeeded { output }],
        // The old call may land after the question: absent counts when the target would refuse the second,
        // or when nothing of the first can come any more.
        (Answer::Absent, _) if effect.refuses_duplicates || asked_at >= quiet_at => {
            vec![settled(Answer::Absent)]
        }
        (Answer::Partial, _) if asked_at >= quiet_at => vec![settled(Answer::Partial)],
        (answer @ (Answer::Absent | Answer::Partial), _) => vec![again(answer, quiet_at.max(now))],
        (answer, _) => {
            let answer = match answer {
                Answer::Unknown { why } => Answer::Unknown { why },
                _ => Answer::Unknown { why: "the probe found the effect, but gave no output for it".into() },
            };
            if unknowns + 1 < UNKNOWNS {
                let retry = &plan.step(step).forward.retry;
                let delay = delay(retry, unknowns + 1, state.run().0.as_u64_pair().1);
                vec![again(answer, delay.after(now))]
            } else {
                vec![settled(answer)]
            }
        }
    }
}

/// Whether what a step did is still as it was, if that is what was asked.
fn compare(state: &State, step: StepIx, answer: &Answer, output: Option<&Json>) -> Option<StepEvent> {
    state.check().filter(|check| check.todo.contains(&step))?;
    let CourseAt::Succeeded { output: before } = &state.course(CourseId::forward(step)).at else {
        return None;
    };
    let difference = match (answer, output) {
        (Answer::Present, Some(now)) if now.value() == before.value() => None,
        (Answer::Present, Some(now)) => {
            let clipped: String = now.as_str().chars().take(200).collect();
            Some(format!("is there, but not as it was: {clipped}"))
        }
        (Answer::Present, None) => Some("is there, but cannot be compared".into()),
        (Answer::Absent, _) => Some("is not there any more".into()),
        (Answer::Partial, _) => Some("is there only in part".into()),
        (Answer::Unknown { why }, _) => Some(format!("cannot be looked at: {why}")),
    };
    Some(StepEvent::Compared { difference })
}
