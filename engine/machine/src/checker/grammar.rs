//! The order of events in one step, their numbers, inputs and keys (H2, H5, H6, H8, H9).

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::reading::Reading;
use super::standing::{CourseLog, Move, Standing, What};
use super::{Findings, RuleId};
use crate::event::{CourseId, Direction, Event, StepEvent, idempotency_key};
use crate::names::StepIx;
use crate::plan::Source;

/// The events of the run as a whole.
pub(super) fn run(reading: &Reading<'_>, found: &mut Findings) {
    for (pos, journaled) in reading.events.iter().enumerate() {
        let wrong = match &journaled.event {
            Event::Submitted { .. } if pos > 0 => "the run is submitted a second time: it has two beginnings",
            Event::Submitted { .. } => continue,
            _ if pos == 0 => "a run begins with its submission, this one does not",
            Event::RollingBack { .. } if reading.turned_before(pos) => {
                "the run turns round a second time: it can only go back once"
            }
            _ => continue,
        };
        found.add(RuleId::Grammar, journaled.seq, wrong);
    }
}

/// Each move follows on the one before it, and is numbered like it.
pub(super) fn moves(reading: &Reading<'_>, course: &CourseLog<'_>, found: &mut Findings) {
    let name = reading.name(course.id);
    let has_undo = reading.plan.step(course.id.step).undo.is_some();
    let mut last: Option<&Move<'_>> = None;
    let (mut generation, mut attempt) = (0u32, 0u32);
    for step in &course.moves {
        let What::Said(event) = step.what else {
            if step.begins_anew() {
                (generation, attempt) = (generation.saturating_add(1), 0);
            }
            last = Some(step);
            continue;
        };
        let standing = last.map_or(Standing::Fresh, |last| last.after);
        let forward = course.id.direction == Direction::Forward;
        if !forward && !has_undo {
            found.add(RuleId::Grammar, step.seq, format!("{name} {}, but the plan has none", verb(event)));
        } else if !may_follow(reading, course, step, standing, event, last) {
            let message = format!(
                "{name} {}, but it {}: the journal was written by two owners, by hand or by a broken release",
                verb(event),
                standing.in_words()
            );
            found.add(RuleId::Grammar, step.seq, message);
        }
        let anew = matches!(event, StepEvent::Retried { .. });
        let due = (
            generation.saturating_add(u32::from(anew)),
            if anew { step.attempt } else { attempt.saturating_add(u32::from(step.is_start())) },
        );
        if due != (step.generation, step.attempt) {
            let message = format!(
                "{name} {} as attempt {} of generation {}; attempt {} of generation {} is due: attempts are lost or doubled",
                verb(event),
                step.attempt,
                step.generation,
                due.1,
                due.0
            );
            found.add(RuleId::Grammar, step.seq, message);
        }
        (generation, attempt) = match step.begins_anew() {
            true => (step.generation.saturating_add(u32::from(!anew)), 0),
            false => (step.generation, step.attempt),
        };
        last = Some(step);
    }
}

fn may_follow(
    reading: &Reading<'_>,
    course: &CourseLog<'_>,
    step: &Move<'_>,
    standing: Standing,
    event: &StepEvent,
    last: Option<&Move<'_>>,
) -> bool {
    use Standing::{BackingOff, Doubt, Failed, Flying, Fresh, Held, Recalled, Skipped, Succeeded, Waiting};
    let forward = course.id.direction == Direction::Forward;
    let declared = reading.plan.step(course.id.step);
    match event {
        StepEvent::Started { .. } => matches!(standing, Fresh | BackingOff | Doubt),
        StepEvent::Checkpointed { .. } | StepEvent::Progressed { .. } => standing == Flying,
        StepEvent::Succeeded { .. } | StepEvent::Failed { retry_at: None, .. } => {
            matches!(standing, Flying | Doubt | Waiting)
        }
        // An attempt that has failed does not fail again, it is given up.
        StepEvent::Failed { .. } => {
            standing == Flying || (standing == Doubt && last.is_some_and(|last| last.failure().is_none()))
        }
        StepEvent::Probed { .. } => standing == Doubt && forward,
        StepEvent::Held { .. } => {
            forward
                && (matches!(standing, Failed | Doubt)
                    || (standing == Fresh && !declared.requires.is_empty()))
        }
        StepEvent::Retried { .. } => match standing {
            Failed | Held | BackingOff | Doubt if forward => !gone_on(reading, course.id.step, step.pos),
            Failed | BackingOff => true,
            Succeeded | Skipped => forward && !gone_on(reading, course.id.step, step.pos),
            _ => false,
        },
        StepEvent::Hastened => match standing {
            BackingOff => true,
            Doubt => forward,
            Failed | Held => {
                forward
                    && course.doubtful_since(step.pos).is_some()
                    && last.is_some_and(|last| last.attempt > 0)
                    && !gone_on(reading, course.id.step, step.pos)
            }
            _ => false,
        },
        StepEvent::Skipped { .. } => !matches!(standing, Flying | Succeeded | Skipped | Recalled),
        StepEvent::Recalled => forward && matches!(standing, Fresh | Succeeded | Skipped | Failed | Held),
        StepEvent::Waived => forward && standing == Held,
        StepEvent::Resource { .. } => true,
        StepEvent::Compared { .. } => standing == Standing::Succeeded,
    }
}

/// Whether the step was done, or gone on without, and some step right behind it has begun.
fn gone_on(reading: &Reading<'_>, ix: StepIx, pos: usize) -> bool {
    let begun = |other: &StepIx| {
        let forward = reading.forward(*other);
        let begun = |m: &Move<'_>| m.is_start() || m.after.is_done() || m.after == Standing::Failed;
        forward.may_be_applied(pos) || forward.generation(pos).iter().any(begun)
    };
    reading.settled(ix, pos) && reading.plan.step(ix).before.iter().any(begun)
}

fn verb(event: &StepEvent) -> &'static str {
    match event {
        StepEvent::Started { .. } => "starts",
        StepEvent::Checkpointed { .. } => "saves a checkpoint",
        StepEvent::Progressed { .. } => "tells its progress",
        StepEvent::Succeeded { .. } => "succeeds",
        StepEvent::Failed { retry_at: None, .. } => "fails for good",
        StepEvent::Failed { .. } => "fails",
        StepEvent::Probed { .. } => "is probed",
        StepEvent::Held { .. } => "is held",
        StepEvent::Retried { .. } => "begins anew",
        StepEvent::Hastened => "is hastened",
        StepEvent::Skipped { .. } => "is skipped",
        StepEvent::Recalled => "is recalled",
        StepEvent::Waived => "is let go without its proof",
        StepEvent::Resource { .. } => "tells of a resource",
        StepEvent::Compared { .. } => "is looked at again",
    }
}

/// At most one outcome in a generation, and no start behind it.
pub(super) fn outcomes(reading: &Reading<'_>, course: &CourseLog<'_>, found: &mut Findings) {
    let name = reading.name(course.id);
    let mut closed: BTreeMap<u32, i64> = BTreeMap::new();
    for step in &course.moves {
        let outcome = matches!(
            step.what,
            What::Said(StepEvent::Succeeded { .. } | StepEvent::Failed { retry_at: None, .. })
        );
        match closed.get(&step.generation) {
            Some(first) if outcome => {
                let message = format!(
                    "{name} has a second outcome in generation {}; event {first} is the first: which of them others built on is unknown",
                    step.generation
                );
                found.add(RuleId::OneOutcome, step.seq, message);
            }
            Some(first) if step.is_start() => {
                let message = format!(
                    "{name} starts again in generation {} after its outcome in event {first}: its effect may be there twice",
                    step.generation
                );
                found.add(RuleId::NoStartAfterOutcome, step.seq, message);
            }
            // What failed in doubt is looked into once more, under its old key.
            Some(_) if matches!(step.what, What::Said(StepEvent::Hastened)) => {
                closed.remove(&step.generation);
            }
            None if outcome || step.after == Standing::Skipped => {
                closed.insert(step.generation, step.seq);
            }
            _ => {}
        }
    }
}

pub(super) fn inputs(reading: &Reading<'_>, found: &mut Findings) {
    for course in reading.courses() {
        let name = reading.name(course.id);
        let step = reading.plan.step(course.id.step);
        let work = match course.id.direction {
            Direction::Forward => &step.forward,
            Direction::Undo => step.undo.as_ref().unwrap_or(&step.forward),
        };
        for start in course.starts() {
            let What::Said(StepEvent::Started { input, .. }) = start.what else { continue };
            match input {
                Some(_) if start.attempt != 1 => {
                    let message = format!(
                        "attempt {} of {name} carries an input of its own: attempts under one key were given different work",
                        start.attempt
                    );
                    found.add(RuleId::Input, start.seq, message);
                }
                None if start.attempt == 1 => {
                    let message = format!(
                        "the first attempt of {name} carries no input: what was asked of the world is lost"
                    );
                    found.add(RuleId::Input, start.seq, message);
                }
                Some(given) => {
                    let edited = course.generation(start.pos).first().and_then(|first| match first.what {
                        What::Said(StepEvent::Retried { input }) => input.clone(),
                        _ => None,
                    });
                    // What an operator gave in the plan's place is what is used.
                    let due = edited.unwrap_or_else(|| {
                        work.input.resolve(|source| {
                            let from = match source {
                                Source::Step(ix) => *ix,
                                Source::Own => course.id.step,
                            };
                            reading.forward(from).output(start.pos)
                        })
                    });
                    if due != *given && due.value() != given.value() {
                        let message = format!(
                            "{name} was given another input than the plan and the outputs before it make: it did something that nobody planned"
                        );
                        found.add(RuleId::Input, start.seq, message);
                    }
                }
                None => {}
            }
        }
    }
}

/// The derived key; and, should the derivation itself be wrong, one key for a generation and for nothing else.
pub(super) fn keys(reading: &Reading<'_>, found: &mut Findings) {
    let mut users: HashMap<uuid::Uuid, BTreeSet<(CourseId, u32)>> = HashMap::new();
    for course in reading.courses() {
        let name = reading.name(course.id);
        let step = &reading.plan.step(course.id.step).name;
        for start in course.starts() {
            let What::Said(StepEvent::Started { key, .. }) = start.what else { continue };
            let due = idempotency_key(reading.run, step, course.id.direction, start.generation);
            if *key != due {
                let message = format!(
                    "{name} starts under the key {key}, its own is {due}: the target cannot know a repetition for one"
                );
                found.add(RuleId::Key, start.seq, message);
            }
            let users = users.entry(*key).or_default();
            users.insert((course.id, start.generation));
            if users.len() > 1 {
                let message = format!(
                    "{name} starts under the key {key}, which belongs to another step, direction or generation too: the target would take one for the other"
                );
                found.add(RuleId::Key, start.seq, message);
            }
        }
    }
}
