//! What was asked of the run, and what followed from it (H22).

use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;

use super::reading::Reading;
use super::standing::{Standing, What};
use super::{Findings, RuleId};
use crate::action::{Action, Verb};
use crate::event::{CourseId, Direction, Event, Outcome, StepEvent};

/// An action is journaled once, and says who.
pub(super) fn askings(reading: &Reading<'_>, found: &mut Findings) {
    let mut ids: BTreeMap<Uuid, i64> = BTreeMap::new();
    for journaled in reading.events {
        let (action, because) = match &journaled.event {
            Event::Acted(action) => (action, None),
            Event::Refused { action, because } => (action, Some(because)),
            _ => continue,
        };
        let mut wrong = |what: String| found.add(RuleId::Actions, journaled.seq, what);
        if let Some(first) = ids.insert(action.id, journaled.seq) {
            wrong(format!(
                "the action {} was answered in event {first} before: one asking was taken for two",
                action.id
            ));
        }
        if action.who.trim().is_empty() {
            wrong(format!("nobody is named for \"{}\": nobody can be asked about it", action.verb.name()));
        }
        if action.verb.needs_reason() && because.is_none() && action.why.trim().is_empty() {
            wrong(format!("\"{}\" was granted without a reason", action.verb.name()));
        }
        if because.is_some_and(|because| because.trim().is_empty()) {
            wrong(format!("\"{}\" was refused without a reason", action.verb.name()));
        }
    }
}

/// What only people decide follows on an asking, in the same place; and what was granted comes about.
pub(super) fn consequences(reading: &Reading<'_>, found: &mut Findings) {
    let mut asked: Option<&Action> = None;
    // What was granted and is to follow yet.
    let mut owed: Option<&Action> = None;
    for (pos, journaled) in reading.events.iter().enumerate() {
        let event = &journaled.event;
        let follows = asked.filter(|action| explains(reading, action, event));
        if let Some(action) = owed
            && follows.is_none()
        {
            let message = format!(
                "{} was granted \"{}\" and nothing came of it: somebody was told that it was done",
                action.who,
                action.verb.name()
            );
            found.add(RuleId::Actions, journaled.seq, message);
        }
        owed = match owed {
            Some(action) if follows.is_some() && !completes(reading, action, event) => Some(action),
            _ => None,
        };
        match event {
            Event::Acted(action) => {
                asked = Some(action);
                owed = comes_to_something(reading, action, pos).then_some(action);
                continue;
            }
            _ if follows.is_some() => {}
            _ => asked = None,
        }
        if let Some(what) = of_people(reading, pos, event).filter(|_| follows.is_none()) {
            let message = format!("{what}, but nobody asked for it: no one answers for it");
            found.add(RuleId::Actions, journaled.seq, message);
        }
        if let Event::Step { course, what: StepEvent::Waived, .. } = event {
            waived(reading, *course, pos, journaled.seq, found);
        }
    }
}

/// What an event has to do with an action.
fn explains(reading: &Reading<'_>, action: &Action, event: &Event) -> bool {
    let about = |course: &CourseId| {
        let undo = course.direction == Direction::Undo;
        action
            .verb
            .step()
            .is_some_and(|(name, half)| *name == *reading.plan.step(course.step).name && half == undo)
    };
    match (&action.verb, event) {
        (
            Verb::Retry { input, .. },
            Event::Step { course, what: StepEvent::Retried { input: given }, .. },
        ) => about(course) && input.as_ref() == given.as_ref().map(crate::Json::value).as_ref(),
        (Verb::Retry { input: None, .. }, Event::Step { course, what: StepEvent::Hastened, .. }) => {
            about(course)
        }
        (
            Verb::Skip { output, .. },
            Event::Step { course, what: StepEvent::Skipped { output: given }, .. },
        ) => about(course) && given.value() == *output,
        (Verb::UndoStep { step, .. }, Event::Step { course, what: StepEvent::Recalled, .. }) => {
            let first = reading.plan.find(step);
            first.is_some_and(|first| first == course.step || comes_after(reading, course.step, first))
        }
        (Verb::Override { .. }, Event::Step { course, what: StepEvent::Waived, .. }) => about(course),
        (
            Verb::Account { kind, name, became, .. },
            Event::Step { course, what: StepEvent::Resource { kind: k, name: n, fate, .. }, .. },
        ) => about(course) && kind == k && name == n && became == fate,
        (Verb::RollBack(how), Event::RollingBack { how: given, .. }) => how == given,
        (Verb::RollBack(how), Event::Checking { then, .. }) => then.as_ref() == Some(how),
        (Verb::Resume, Event::Checking { then: None, .. }) => true,
        (
            Verb::Ended { .. },
            Event::Step { course, what: StepEvent::Succeeded { .. } | StepEvent::Failed { .. }, .. },
        ) => *reading.plan.step(course.step).name == *action.verb.step().map_or("", |(step, _)| step),
        (Verb::Commit, Event::Committing { .. }) => true,
        (Verb::Close { .. }, Event::Finished { outcome: Outcome::Closed }) => true,
        _ => false,
    }
}

fn comes_after(reading: &Reading<'_>, step: crate::StepIx, other: crate::StepIx) -> bool {
    let mut seen = BTreeSet::new();
    let mut todo = reading.plan.step(other).before.clone();
    while let Some(ix) = todo.pop() {
        if ix == step {
            return true;
        }
        if seen.insert(ix) {
            todo.extend(&reading.plan.step(ix).before);
        }
    }
    false
}

/// The last that follows: of several steps that are undone, the one that was named.
fn completes(reading: &Reading<'_>, action: &Action, event: &Event) -> bool {
    match (&action.verb, event) {
        (Verb::UndoStep { step, .. }, Event::Step { course, .. }) => {
            *step == *reading.plan.step(course.step).name
        }
        _ => true,
    }
}

/// Whether something has to follow on it.
fn comes_to_something(reading: &Reading<'_>, action: &Action, pos: usize) -> bool {
    match &action.verb {
        Verb::Override { step } => {
            let overrides = reading.plan.find(step).map(|ix| overriding(reading, ix, pos + 1));
            reading.plan.spec().override_alone || overrides.is_some_and(|people| people.len() > 1)
        }
        Verb::Approve { .. } | Verb::Reject { .. } | Verb::Signal { .. } | Verb::Pause | Verb::Resume => {
            false
        }
        _ => true,
    }
}

/// What never happens by itself, in words.
fn of_people(reading: &Reading<'_>, pos: usize, event: &Event) -> Option<String> {
    match event {
        Event::Step { course, what, .. } => {
            let what = match what {
                StepEvent::Skipped { .. } => "is skipped",
                StepEvent::Recalled => "is undone by itself",
                StepEvent::Waived => "is let go without its proof",
                StepEvent::Retried { .. } => "begins anew",
                StepEvent::Hastened => "is not waited for any longer",
                // An activity tells of what it makes while it is at work.
                StepEvent::Resource { .. } => {
                    let at_work = |id| {
                        let log = if id == Direction::Undo {
                            reading.undo(course.step)
                        } else {
                            reading.forward(course.step)
                        };
                        log.standing(pos) == Standing::Flying
                    };
                    if at_work(course.direction) {
                        return None;
                    }
                    "is said to have made or removed something"
                }
                _ => return None,
            };
            Some(format!("{} {what}", reading.name(*course)))
        }
        Event::Checking { then: None, .. } => Some("the world is looked at".into()),
        Event::Finished { outcome: Outcome::Closed } => Some("the run is closed".into()),
        _ => None,
    }
}

/// Who wants a step to start without its proof, since it last began anew.
fn overriding<'a>(reading: &Reading<'a>, ix: crate::StepIx, pos: usize) -> BTreeSet<&'a str> {
    let first = reading.forward(ix).generation(pos).first();
    let since = first.filter(|first| first.begins_anew()).map_or(0, |first| first.pos);
    let name = &*reading.plan.step(ix).name;
    reading
        .acted()
        .filter(|(at, _, action)| {
            (since..pos).contains(at) && matches!(&action.verb, Verb::Override { step } if step == name)
        })
        .map(|(_, _, action)| action.who.as_str())
        .collect()
}

fn waived(reading: &Reading<'_>, course: CourseId, pos: usize, seq: i64, found: &mut Findings) {
    let people = overriding(reading, course.step, pos);
    let needed = if reading.plan.spec().override_alone { 1 } else { 2 };
    if people.len() < needed {
        let message = format!(
            "{} is let go without its proof by {people:?}, where it takes {needed}: one mistake is enough",
            reading.name(course)
        );
        found.add(RuleId::Actions, seq, message);
    }
    let held = reading.forward(course.step).before(pos).last();
    // One that was taken back is held as well, until somebody says how it goes on.
    let is_held = |what: &What| matches!(what, What::Said(StepEvent::Held { .. }) | What::Undone);
    if !held.is_some_and(|m| is_held(&m.what)) {
        let message =
            format!("{} is let go without its proof, but was not held for it", reading.name(course));
        found.add(RuleId::Actions, seq, message);
    }
}
