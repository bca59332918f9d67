//! Retries keep to the plan (H23).

use super::reading::Reading;
use super::standing::{CourseLog, What, before, later};
use super::{Findings, RuleId};
use crate::Time;
use crate::event::{ActivityError, Applied, Direction, StepEvent};
use crate::plan::{Retry, Span};

/// A failure is judged before it is journaled; so much may lie between.
const LAG: Span = Span::secs(1);
/// Delays are computed with floats and stored as text.
const GRAIN: Span = Span::millis(1);

/// What a generation's failures add up to.
#[derive(Default)]
struct Count {
    failures: u32,
    first: Option<Time>,
    started: Option<Time>,
    retry_at: Option<Time>,
}

pub(super) fn retries(reading: &Reading<'_>, course: &CourseLog<'_>, found: &mut Findings) {
    let name = reading.name(course.id);
    let step = reading.plan.step(course.id.step);
    let forward = course.id.direction == Direction::Forward;
    let Some(work) = (if forward { Some(&step.forward) } else { step.undo.as_ref() }) else { return };
    let mut count = Count::default();
    for m in &course.moves {
        match m.what {
            _ if m.begins_anew() => count = Count::default(),
            // Somebody would not wait any longer.
            What::Said(StepEvent::Hastened) => count.retry_at = None,
            What::Said(StepEvent::Started { .. }) => {
                if let Some(due) = count.retry_at.take().filter(|due| before(m.at, *due)) {
                    let message = format!(
                        "{name} starts at {}, before the time of its next attempt, {due}: the target was promised to be left alone",
                        m.at
                    );
                    found.add(RuleId::Retry, m.seq, message);
                }
                count.first = count.first.or(Some(m.at));
                count.started = Some(m.at);
            }
            What::Said(StepEvent::Failed { error, retry_at }) => {
                count.failures = count.failures.saturating_add(u32::from(work.counts(error)));
                count.retry_at = *retry_at;
                let wrong = match retry_at {
                    Some(due) => too_much(&work.retry, &count, error, m.at, *due),
                    None => {
                        // An operator's rollback and a declared "at most once" end forward attempts early.
                        let turned = reading.turned_before(m.pos);
                        let once = step.effect.at_most_once && error.applied == Applied::Maybe;
                        let may = error.retryable && !(forward && (turned || once));
                        may.then(|| too_little(&work.retry, &count, error, m.at)).flatten()
                    }
                };
                if let Some(wrong) = wrong {
                    let message = format!("failure {} of {name}: {wrong}", count.failures);
                    found.add(RuleId::Retry, m.seq, message);
                }
            }
            _ => {}
        }
    }
}

fn too_much(retry: &Retry, count: &Count, error: &ActivityError, at: Time, due: Time) -> Option<String> {
    if !error.retryable {
        return Some("it cannot help to try again, and yet it is tried again".into());
    }
    if let Some(most) = retry.attempts.filter(|most| count.failures >= *most) {
        return Some(format!("it is tried again, but the plan ends it after {most} failures"));
    }
    let end = retry.elapsed.zip(count.first).map(|(elapsed, first)| later(first, elapsed));
    if let Some(end) = end.filter(|end| before(*end, due)) {
        return Some(format!("it is tried again at {due}, but the plan ends it at {end}"));
    }
    let (least, most) = delays(retry, count.failures, error);
    let earliest = later(at, least).checked_sub_signed(LAG.delta());
    let earliest = earliest.max(count.started.map(|started| later(started, least)));
    let early = earliest.is_some_and(|earliest| before(later(due, GRAIN), earliest));
    let late = before(later(later(at, most), GRAIN), due);
    (early || late).then(|| {
        format!(
            "it is tried again at {due}, {} after {at}: the plan's delay is {} to {}",
            if early { "too soon" } else { "too long" },
            least,
            most
        )
    })
}

fn too_little(retry: &Retry, count: &Count, error: &ActivityError, at: Time) -> Option<String> {
    if retry.attempts.is_some_and(|most| count.failures >= most) {
        return None;
    }
    let (_, most) = delays(retry, count.failures, error);
    let end = retry.elapsed.zip(count.first).map(|(elapsed, first)| later(first, elapsed));
    // The delay of an attempt that never came is not known: only what even the longest would allow counts.
    let in_time = end.is_none_or(|end| !before(end, later(later(at, most), GRAIN)));
    in_time.then(|| "it is given up, but the plan allows more attempts".into())
}

/// The shortest and the longest delay that the plan allows after so many failures.
fn delays(retry: &Retry, failures: u32, error: &ActivityError) -> (Span, Span) {
    let exponent = i32::try_from(failures.saturating_sub(1)).unwrap_or(i32::MAX);
    let grown = retry.first.0.as_secs_f64() * retry.factor.powi(exponent.min(1_000));
    let capped = grown.min(retry.ceiling.0.as_secs_f64());
    let bound = |share: f64| {
        let span = std::time::Duration::try_from_secs_f64(capped * share).unwrap_or(retry.ceiling.0);
        Span(span).max(error.retry_after.unwrap_or_default())
    };
    (bound(1.0 - retry.jitter), bound(1.0 + retry.jitter))
}
