//! Signals are read once and in order, and waits end for what they wait for, never before their time (H20, H21).

use std::collections::BTreeSet;

use serde_json::Value;

use super::reading::Reading;
use super::standing::{Move, Standing, What, before, later};
use super::{Findings, RuleId};
use crate::Time;
use crate::action::Verb;
use crate::event::{Direction, Event, Outcome, StepEvent};
use crate::names::StepIx;
use crate::plan::{Ending, Kind, OnFailure, Span};

struct Sent<'a> {
    id: uuid::Uuid,
    name: &'a str,
    who: &'a str,
    payload: &'a Value,
}

/// Every signal is read at most once, the oldest of its name first, by somebody who waits for it.
pub(super) fn signals(reading: &Reading<'_>, found: &mut Findings) {
    let mut unread: Vec<Sent<'_>> = Vec::new();
    for (pos, journaled) in reading.events.iter().enumerate() {
        match &journaled.event {
            Event::Acted(action) => {
                if let Verb::Signal { name, payload } = &action.verb {
                    unread.push(Sent { id: action.id, name, who: &action.who, payload });
                    if !reading.plan.signals().contains(&name.as_str()) {
                        let message =
                            format!("the signal {name:?} was taken, but nothing in the plan reads it");
                        found.add(RuleId::Signals, journaled.seq, message);
                    }
                }
            }
            Event::Committing { .. } => {
                let name = reading.plan.spec().commit.as_ref().and_then(|commit| commit.signal.as_deref());
                if let Some(n) = unread.iter().position(|sent| Some(sent.name) == name) {
                    unread.remove(n);
                }
            }
            Event::Step { course, what: StepEvent::Succeeded { output }, .. }
                if course.direction == Direction::Forward
                    && reading.plan.step(course.step).kind == Kind::Wait =>
            {
                let output = output.value();
                let Some(read) = output.get("signal").filter(|read| !read.is_null()) else { continue };
                let waits = input(reading, course.step, pos);
                let name = waits.get("signal").and_then(Value::as_str);
                let first = unread.iter().position(|sent| Some(sent.name) == name);
                let is_it = |sent: &Sent<'_>| {
                    read.get("id").and_then(Value::as_str) == Some(&*sent.id.to_string())
                        && read.get("who").and_then(Value::as_str) == Some(sent.who)
                        && read.get("payload") == Some(sent.payload)
                };
                match first {
                    Some(n) if unread.get(n).is_some_and(is_it) => {
                        unread.remove(n);
                    }
                    _ => {
                        let message = format!(
                            "{} reads {read}, which is not the oldest unread signal {name:?}: one was lost, doubled or overtaken",
                            reading.name(*course)
                        );
                        found.add(RuleId::Signals, journaled.seq, message);
                    }
                }
            }
            _ => {}
        }
    }
}

/// What a wait was given.
fn input(reading: &Reading<'_>, ix: StepIx, pos: usize) -> Value {
    let start = reading.forward(ix).generation(pos).iter().find_map(|m| match m.what {
        What::Said(StepEvent::Started { input, .. }) => input.as_ref(),
        _ => None,
    });
    start.map(crate::Json::value).unwrap_or_default()
}

fn span(input: &Value, field: &str) -> Option<Span> {
    serde_json::from_value(input.get(field)?.clone()).ok()
}

/// A wait ends when its time has come, when its signal is there, or when its people have spoken.
pub(super) fn waits(reading: &Reading<'_>, found: &mut Findings) {
    for (ix, step, forward, _) in reading.steps().filter(|(_, step, ..)| step.kind != Kind::Call) {
        for m in &forward.moves {
            if forward.standing(m.pos) != Standing::Waiting {
                continue;
            }
            let begun = forward.generation(m.pos).iter().find(|m| m.is_start()).map(|m| (m.pos, m.at));
            let Some((since, started)) = begun else { continue };
            let input = input(reading, ix, m.pos);
            let wrong = match (m.what, step.kind) {
                (What::Said(StepEvent::Succeeded { output }), Kind::Wait) => match output.value().get("by") {
                    Some(Value::String(by)) if by == "signal" => None,
                    Some(Value::String(by)) if by == "time" => {
                        let until = span(&input, "for").map(|length| later(started, length));
                        let at =
                            input.get("until").and_then(Value::as_str).and_then(|at| at.parse::<Time>().ok());
                        too_early(m, until.into_iter().chain(at).min())
                    }
                    other => Some(format!("for {other:?}, which is no reason")),
                },
                (What::Said(StepEvent::Succeeded { output }), Kind::Approve) => {
                    let people = said_yes(reading, ix, since, m.pos);
                    let named: BTreeSet<String> = output
                        .value()
                        .get("by")
                        .and_then(|by| serde_json::from_value(by.clone()).ok())
                        .unwrap_or_default();
                    let needed = input.get("people").and_then(Value::as_u64).unwrap_or(1);
                    (named != people || (people.len() as u64) < needed).then(|| {
                        format!("for the yes of {named:?}, but {people:?} said so, where it takes {needed}")
                    })
                }
                (What::Said(StepEvent::Failed { error, .. }), _) if error.code == "expired" => {
                    too_early(m, span(&input, "within").map(|within| later(started, within)))
                }
                (What::Said(StepEvent::Failed { error, .. }), Kind::Approve) if error.code == "rejected" => {
                    let name = &*step.name;
                    let no = |(at, _, action): (usize, _, &crate::Action)| {
                        (since..m.pos).contains(&at)
                            && matches!(&action.verb, Verb::Reject { step, .. } if step == name)
                    };
                    (!reading.acted().any(no)).then(|| "for a no that nobody said".into())
                }
                _ => None,
            };
            if let Some(wrong) = wrong {
                let message = format!("step {} waits no longer {wrong}: others go on too soon", step.name);
                found.add(RuleId::Timers, m.seq, message);
            }
        }
    }
}

fn too_early(m: &Move<'_>, due: Option<Time>) -> Option<String> {
    match due {
        Some(due) if !before(m.at, due) => None,
        Some(due) => Some(format!("at {}, but its time is {due}", m.at)),
        None => Some("for a time that it does not wait for".into()),
    }
}

/// Who said yes to what the step shows, and by the plan's hash.
fn said_yes(reading: &Reading<'_>, ix: StepIx, since: usize, pos: usize) -> BTreeSet<String> {
    let declared = reading.plan.step(ix);
    let right = declared.forward.input.written().get("right").and_then(Value::as_str);
    reading
        .acted()
        .filter(|(at, ..)| (since..pos).contains(at))
        .filter(|(_, _, action)| match &action.verb {
            Verb::Approve { step, right: by, plan } => {
                *step == *declared.name && Some(by.as_str()) == right && plan == reading.plan.hash()
            }
            _ => false,
        })
        .map(|(_, _, action)| action.who.clone())
        .collect()
}

/// A run goes another way because somebody says so, because a step failed, or because nobody decided in time; and what
/// is final stays so.
pub(super) fn turns(reading: &Reading<'_>, found: &mut Findings) {
    let mut succeeded: Option<Time> = None;
    let mut committed = false;
    for (pos, journaled) in reading.events.iter().enumerate() {
        let asked = match pos.checked_sub(1).and_then(|n| reading.events.get(n)).map(|before| &before.event) {
            Some(Event::Acted(action)) => Some(&action.verb),
            _ => None,
        };
        let commit = reading.plan.spec().commit.as_ref();
        let in_time = |then| {
            commit
                .filter(|commit| commit.then == Some(then))
                .and_then(|commit| Some(later(succeeded?, commit.within?)))
                .is_some_and(|due| !before(journaled.at, due))
        };
        match &journaled.event {
            Event::Finished { outcome: Outcome::Succeeded } => succeeded = Some(journaled.at),
            Event::Committing { .. } => {
                let signalled = commit.and_then(|commit| commit.signal.as_ref()).is_some_and(|name| {
                    let sent = |(at, _, action): (usize, _, &crate::Action)| {
                        at < pos && matches!(&action.verb, Verb::Signal { name: sent, .. } if sent == name)
                    };
                    reading.acted().any(sent)
                });
                let said = matches!(asked, Some(Verb::Commit));
                if succeeded.is_none() || reading.turned_before(pos) || committed {
                    let message = "the run is made final, but it has not just succeeded";
                    found.add(RuleId::Commit, journaled.seq, message);
                } else if !(said || signalled || in_time(Ending::Commit)) {
                    let message = "the run is made final, but nobody said so and no time for it has come";
                    found.add(RuleId::Commit, journaled.seq, message);
                }
                committed = true;
            }
            Event::RollingBack { how, .. } => {
                let looked = looked_for(reading, pos);
                let in_time = |then| {
                    in_time(then)
                        || looked.is_some_and(|(at, _)| {
                            commit
                                .filter(|commit| commit.then == Some(then))
                                .and_then(|commit| Some(later(succeeded?, commit.within?)))
                                .is_some_and(|due| !before(at, due))
                        })
                };
                let said = matches!(asked, Some(Verb::RollBack(_))) || looked.is_some_and(|(_, said)| said);
                if committed {
                    let message =
                        "the run turns round after it was made final: what was finished cannot be undone";
                    found.add(RuleId::Commit, journaled.seq, message);
                }
                if reading.no_return_before(pos) && !(said && how.past_no_return) {
                    let message = "the run turns round behind its point of no return, and nobody said that it should all the same";
                    found.add(RuleId::NoReturn, journaled.seq, message);
                }
                let failed = succeeded.is_none()
                    && reading.steps().any(|(_, step, forward, _)| {
                        forward.on_failure(step, pos) == Some(OnFailure::RollBack)
                    });
                if !(said || failed || in_time(Ending::RollBack)) {
                    let message =
                        "the run turns round, but nobody said so, no step failed and no time for it has come";
                    found.add(RuleId::Turns, journaled.seq, message);
                }
            }
            Event::Step { course, what: StepEvent::Started { .. }, .. }
                if course.direction == Direction::Forward =>
            {
                let finalizes = reading.plan.step(course.step).finalize;
                if finalizes != committed {
                    let what = if finalizes {
                        "before the run is made final"
                    } else {
                        "after the run was made final"
                    };
                    let message =
                        format!("{} starts {what}: it belongs to the other side", reading.name(*course));
                    found.add(RuleId::Commit, journaled.seq, message);
                }
            }
            _ => {}
        }
    }
}

/// Before a late rollback the world is looked at: when that began, and whether somebody asked for it.
fn looked_for(reading: &Reading<'_>, pos: usize) -> Option<(Time, bool)> {
    let events = reading.events.get(..pos)?;
    let begun = events.iter().rposition(|journaled| {
        matches!(journaled.event, Event::Checking { .. } | Event::Checked | Event::Drifted { .. })
    })?;
    let Event::Checking { then: Some(_), .. } = events.get(begun)?.event else { return None };
    let asked = begun.checked_sub(1).and_then(|n| events.get(n));
    let said = asked.is_some_and(|journaled| {
        matches!(&journaled.event, Event::Acted(action) if matches!(action.verb, Verb::RollBack(_)))
    });
    Some((events.get(begun)?.at, said))
}
