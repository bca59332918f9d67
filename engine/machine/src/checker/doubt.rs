//! What is done about an attempt of which nobody knows whether it had its effect (H12).

use super::reading::Reading;
use super::standing::{CourseLog, Standing, What, before, later};
use super::{Findings, RuleId};
use crate::Time;
use crate::event::{Answer, Direction, StepEvent};
use crate::plan::Effect;

/// An attempt in doubt and what the world said about it since.
struct Doubt<'a> {
    since: Time,
    /// The last answer, and whether it was taken as final.
    answer: Option<(&'a Answer, bool)>,
}

pub(super) fn doubts(reading: &Reading<'_>, course: &CourseLog<'_>, found: &mut Findings) {
    let name = reading.name(course.id);
    let direction = course.id.direction;
    let effect = reading.plan.step(course.id.step).effect;
    let mut was = Standing::Fresh;
    let mut doubt: Option<Doubt<'_>> = None;
    for step in &course.moves {
        if let (Some(open), What::Said(event)) = (&mut doubt, step.what) {
            let wrong = match (event, direction) {
                (StepEvent::Probed { answer, ask_again_at }, _) => {
                    let wrong = too_soon(&effect, open.since, step.at, answer, ask_again_at.is_none());
                    open.answer = Some((answer, ask_again_at.is_none()));
                    wrong
                }
                (StepEvent::Started { .. }, Direction::Forward) => {
                    may_not_repeat(&effect, open, step.at).map(|why| {
                        format!("starts again although {why}: its effect may come twice")
                    })
                }
                (StepEvent::Succeeded { .. }, Direction::Forward)
                    if !matches!(open.answer, Some((Answer::Present, _))) =>
                {
                    Some("is taken as done, but no probe has found its effect: others build on what nobody saw".into())
                }
                (StepEvent::Succeeded { .. }, Direction::Undo) => {
                    Some("is taken as done without having been done again: something may be left behind".into())
                }
                _ => None,
            };
            if let Some(wrong) = wrong {
                let message = format!("{name} has an attempt in doubt since {} and {wrong}", open.since);
                found.add(RuleId::Doubt, step.seq, message);
            }
        }
        if step.after != Standing::Doubt {
            doubt = None;
        } else if was != Standing::Doubt || doubt.is_none() || step.leaves_doubt() {
            // What failed in doubt may be looked into long after.
            let since = course.doubtful_since(step.pos + 1).unwrap_or(step.at);
            doubt = Some(Doubt { since, answer: None });
        }
        was = step.after;
    }
}

/// An answer that was believed before the old call could have landed.
fn too_soon(effect: &Effect, since: Time, at: Time, answer: &Answer, settles: bool) -> Option<String> {
    let trusted = match answer {
        Answer::Absent => settles && !effect.refuses_duplicates,
        Answer::Partial => settles,
        Answer::Present | Answer::Unknown { .. } => false,
    };
    let quiet = later(since, effect.longest_delay);
    (trusted && before(at, quiet)).then(|| {
        format!(
            "the probe's answer {answer:?} was believed at {at}; the old call can land until {quiet}, so it proves nothing"
        )
    })
}

/// Why an attempt in doubt may not be followed by another.
fn may_not_repeat(effect: &Effect, doubt: &Doubt<'_>, at: Time) -> Option<String> {
    if effect.at_most_once {
        return Some("the step is declared to happen at most once".into());
    }
    if effect.probed {
        return match doubt.answer {
            Some((Answer::Absent | Answer::Partial, true)) => None,
            Some((answer, _)) => Some(format!("the probe's last answer, {answer:?}, does not settle it")),
            None => Some("it was not probed, which it can be".into()),
        };
    }
    let quiet = later(doubt.since, effect.longest_delay);
    (!effect.refuses_duplicates && before(at, quiet))
        .then(|| format!("the old call can land until {quiet} and the target takes duplicates"))
}
