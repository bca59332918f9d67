//! How runs come to rest: ended, undone, held, stuck, left alone (H15, H16, and what a failure does).

use std::collections::BTreeSet;

use super::reading::Reading;
use super::standing::{Standing, What};
use super::{Findings, RuleId};
use crate::action::Verb;
use crate::event::{Answer, Direction, Event, Outcome, StepEvent};
use crate::names::StepIx;
use crate::plan::{Kind, OnFailure, Step};

/// Who has paused a run whose world has changed.
const ENGINE: &str = "the engine";

pub(super) fn end(reading: &Reading<'_>, found: &mut Findings) {
    let (mut over, mut looked_at) = (None, false);
    for (pos, journaled) in reading.events.iter().enumerate() {
        looked_at |= matches!(journaled.event, Event::Checking { .. });
        let wrong = match (&journaled.event, over) {
            (Event::Finished { outcome: Outcome::Closed }, Some(Outcome::Succeeded)) => None,
            (Event::Finished { .. }, Some(_)) => Some("the run ends a second time"),
            (Event::Claimed { .. } | Event::Refused { .. }, _) => None,
            (Event::Acted(_), Some(Outcome::Succeeded)) => None,
            // What has succeeded can be undone, or made final; until then it can be left alone.
            (Event::RollingBack { .. } | Event::Committing { .. }, Some(Outcome::Succeeded)) => {
                over = None;
                None
            }
            // Before that the world may be looked at, and not be as it was.
            (
                Event::Checking { .. }
                | Event::Checked
                | Event::Drifted { .. }
                | Event::Step { what: StepEvent::Compared { .. }, .. },
                Some(Outcome::Succeeded),
            ) => None,
            (Event::Quarantined { .. }, Some(Outcome::Succeeded))
                if looked_at || reading.plan.spec().commit.is_some() =>
            {
                None
            }
            (_, Some(_)) => Some("something happens after the run's end"),
            (_, None) => None,
        };
        if let Some(what) = wrong {
            let message = format!("{what}: whoever was told of its end was told wrong");
            found.add(RuleId::End, journaled.seq, message);
        }
        if let Event::Finished { outcome } = &journaled.event {
            over = over.or(Some(*outcome));
            one_end(reading, pos, *outcome, found);
        }
    }
}

fn one_end(reading: &Reading<'_>, end: usize, outcome: Outcome, found: &mut Findings) {
    let seq = reading.events.get(end).map(|journaled| journaled.seq);
    let wrong = match (outcome, reading.turned_before(end), reading.committed_before(end)) {
        (Outcome::Succeeded | Outcome::Committed, true, _) => {
            Some("the run has turned round and ends as if it had not")
        }
        (Outcome::Succeeded, _, true) => Some("the run was made final and ends as if it could be undone"),
        (Outcome::Committed, _, false) => Some("the run ends as committed, but nobody made it final"),
        (Outcome::RolledBack, false, _) => Some("the run ends as rolled back, but never turned round"),
        _ => None,
    };
    found_all(found, seq, wrong);
    for course in reading.courses().filter(|course| course.standing(end) == Standing::Flying) {
        let name = reading.name(course.id);
        let message = format!("the run ends while {name} is in flight: what it does, nobody will know");
        found.add(RuleId::End, seq, message);
    }
    if matches!(outcome, Outcome::Succeeded | Outcome::Committed) {
        for (_, step, forward, _) in reading.steps().filter(|(_, step, ..)| due_by(step, outcome)) {
            let standing = forward.standing(end);
            // What failed is judged by what the plan says of failures.
            if !(standing.is_done() || matches!(standing, Standing::Failed | Standing::Flying)) {
                let message =
                    format!("the run ends as {outcome:?}, but step {} {}", step.name, standing.in_words());
                found.add(RuleId::End, seq, message);
            }
        }
    }
}

fn found_all(found: &mut Findings, seq: Option<crate::Seq>, wrong: Option<&str>) {
    if let Some(wrong) = wrong {
        found.add(RuleId::End, seq, wrong);
    }
}

/// What finalizes a run comes after its success.
fn due_by(step: &Step, outcome: Outcome) -> bool {
    outcome == Outcome::Committed || !step.finalize
}

pub(super) fn undone(reading: &Reading<'_>, found: &mut Findings) {
    let Some((end, Outcome::RolledBack)) = reading.ended else { return };
    let seq = reading.events.get(end).map(|journaled| journaled.seq);
    for (ix, step, forward, undo) in reading.steps() {
        let due = step.undo.is_some() && forward.may_be_applied(end) && !reading.left(ix);
        let standing = undo.standing(end);
        if due && !standing.is_done() {
            let message = format!(
                "the run ends as rolled back, but the undo of {}, which may have had its effect, {}: something is left behind",
                step.name,
                standing.in_words()
            );
            found.add(RuleId::Undone, seq, message);
        }
    }
}

pub(super) fn on_failure(reading: &Reading<'_>, found: &mut Findings) {
    let mut fatal: BTreeSet<StepIx> = BTreeSet::new();
    for (pos, journaled) in reading.events.iter().enumerate() {
        match &journaled.event {
            Event::Step { course, what, .. } if course.direction == Direction::Forward => {
                let step = reading.plan.step(course.step);
                let final_ = reading.committed_before(pos) || reading.no_return_before(pos);
                match what {
                    StepEvent::Failed { error, retry_at: None }
                        if step.on(error) == OnFailure::RollBack && !final_ =>
                    {
                        fatal.insert(course.step);
                    }
                    // Somebody has decided about it.
                    StepEvent::Retried { .. }
                    | StepEvent::Hastened
                    | StepEvent::Skipped { .. }
                    | StepEvent::Recalled => {
                        fatal.remove(&course.step);
                    }
                    StepEvent::Started { .. } => {
                        if let Some(failed) = fatal.first() {
                            let message = format!(
                                "step {} starts although {} failed for good, which turns the run round: what it does has to be undone at once",
                                step.name,
                                reading.plan.step(*failed).name
                            );
                            found.add(RuleId::OnFailure, journaled.seq, message);
                        }
                    }
                    _ => {}
                }
            }
            // From here on the direction is what forbids a start.
            Event::RollingBack { .. } => return,
            Event::Finished { outcome: Outcome::Succeeded } => break,
            _ => {}
        }
    }
    let Some((end, Outcome::Succeeded)) = reading.ended else { return };
    let seq = reading.events.get(end).map(|journaled| journaled.seq);
    for (_, step, forward, _) in reading.steps().filter(|(_, step, ..)| !step.finalize) {
        if forward.standing(end) == Standing::Failed && step.on_failure != OnFailure::Continue {
            let due = match step.on_failure {
                OnFailure::RollBack => "rolls the run back",
                OnFailure::Hold => "waits for an operator",
                OnFailure::Continue => continue,
            };
            let message = format!(
                "the run ends as succeeded, but step {} failed for good, and its failure {due}",
                step.name
            );
            found.add(RuleId::OnFailure, seq, message);
        }
    }
}

pub(super) fn held(reading: &Reading<'_>, found: &mut Findings) {
    for (ix, step, forward, _) in reading.steps() {
        for (n, m) in forward.moves.iter().enumerate() {
            let What::Said(StepEvent::Held { why }) = m.what else { continue };
            if why.trim().is_empty() {
                let message =
                    format!("step {} is held without a reason: nobody can decide about it", step.name);
                found.add(RuleId::Held, m.seq, message);
            }
            let last = n.checked_sub(1).and_then(|n| forward.moves.get(n));
            let no_way_back = reading.no_return_before(m.pos) || reading.committed_before(m.pos);
            let wrong = match forward.standing(m.pos) {
                _ if reading.turned_before(m.pos) => {
                    Some("the run has turned round: nobody waits for the step any more")
                }
                Standing::Fresh if super::proof::missing(reading, ix, m.pos).is_none() => {
                    Some("all that it requires is proven")
                }
                Standing::Failed if step.on_failure == OnFailure::RollBack && no_way_back => None,
                Standing::Failed if forward.on_failure(step, m.pos) != Some(OnFailure::Hold) => {
                    Some("the plan says something else of its failure")
                }
                Standing::Doubt if !step.effect.at_most_once => {
                    let given_up = last.is_some_and(|last| {
                        let What::Said(StepEvent::Probed { answer, ask_again_at: None }) = last.what else {
                            return false;
                        };
                        matches!(answer, Answer::Unknown { .. })
                    });
                    (!given_up).then_some("its attempt in doubt can be settled without anybody")
                }
                _ => None,
            };
            if let Some(wrong) = wrong {
                found.add(RuleId::Held, m.seq, format!("step {} is held, but {wrong}", step.name));
            }
        }
    }
}

pub(super) fn stuck(reading: &Reading<'_>, found: &mut Findings) {
    let mut ways: Option<Vec<Option<usize>>> = None;
    for (pos, journaled) in reading.events.iter().enumerate() {
        let Event::Stuck { steps: named, resources } = &journaled.event else { continue };
        let ways = ways.get_or_insert_with(|| reading.ways());
        let mut wrong = |what: String| {
            let message =
                format!("the run is declared stuck, but {what}: people are called for the wrong thing");
            found.add(RuleId::Stuck, journaled.seq, message);
        };
        if !reading.turned_before(pos) {
            wrong("it is not being rolled back".into());
        }
        let failed: BTreeSet<&str> = reading
            .steps()
            .filter(|(_, _, _, undo)| undo.standing(pos) == Standing::Failed)
            .map(|(_, step, _, _)| &*step.name)
            .collect();
        let named: BTreeSet<&str> = named.iter().map(String::as_str).collect();
        let left = reading.residue(pos);
        let listed: BTreeSet<String> = resources.iter().cloned().collect();
        if failed.is_empty() && left.is_empty() {
            wrong("no undo has failed for good, and all that was made is accounted for".into());
        } else if failed != named {
            wrong(format!("it names {named:?} as failed, the journal {failed:?}"));
        } else if left != listed {
            wrong(format!("it lists {listed:?} as left, the journal {left:?}"));
        }
        if let Some(course) = reading.courses().find(|course| course.standing(pos) == Standing::Flying) {
            wrong(format!("{} is in flight", reading.name(course.id)));
        }
        let can_move = |ix: StepIx| {
            let step = reading.plan.step(ix);
            let free = |d: &StepIx| reading.out_of_the_way(*d, pos, ways);
            let waits = matches!(
                reading.undo(ix).standing(pos),
                Standing::Fresh | Standing::BackingOff | Standing::Doubt
            );
            step.undo.is_some()
                && waits
                && !reading.left(ix)
                && reading.forward(ix).may_be_applied(pos)
                && step.before.iter().all(free)
        };
        if let Some((_, step, _, _)) = reading.steps().find(|(ix, ..)| can_move(*ix)) {
            wrong(format!("the undo of {} can start", step.name));
        }
    }
}

/// Nothing begins in a run that is left alone, nor in one that somebody has paused.
pub(super) fn rests(reading: &Reading<'_>, found: &mut Findings) {
    let (mut alone, mut paused) = (false, None);
    for (pos, journaled) in reading.events.iter().enumerate() {
        let asked = pos
            .checked_sub(1)
            .and_then(|before| reading.events.get(before))
            .is_some_and(|before| matches!(before.event, Event::Acted(_)));
        let begins = match &journaled.event {
            Event::Quarantined { .. } => {
                alone = true;
                continue;
            }
            Event::Acted(action) => {
                match &action.verb {
                    Verb::Pause => paused = Some(action.who.as_str()),
                    Verb::Resume => (alone, paused) = (false, None),
                    // Whoever wants it undone wants it to move.
                    Verb::RollBack(_) => paused = None,
                    _ => {}
                }
                continue;
            }
            Event::Drifted { .. } => {
                paused = Some(ENGINE);
                continue;
            }
            Event::Step { course, what: StepEvent::Started { .. }, .. } => {
                format!("{} starts", reading.name(*course))
            }
            Event::Step { course, what: StepEvent::Succeeded { .. } | StepEvent::Failed { .. }, .. }
                // A run that is a step says itself that it has ended.
                if reading.plan.step(course.step).kind != Kind::Run
                    && course.direction == Direction::Forward
                    && reading.forward(course.step).standing(pos) == Standing::Waiting =>
            {
                format!("{} waits no longer", reading.name(*course))
            }
            Event::Committing { .. } | Event::RollingBack { .. } if !asked => {
                "the run goes another way".into()
            }
            _ => continue,
        };
        if alone {
            let message =
                format!("{begins} although the run is left alone: whatever made it so may happen again");
            found.add(RuleId::Quarantine, journaled.seq, message);
        }
        if let Some(who) = paused {
            let message =
                format!("{begins} although {who} has paused the run: somebody relies on its standing still");
            found.add(RuleId::Paused, journaled.seq, message);
        }
    }
}

/// A run that is rolled back has accounted for all that it made.
pub(super) fn resources(reading: &Reading<'_>, found: &mut Findings) {
    let Some((end, Outcome::RolledBack)) = reading.ended else { return };
    let seq = reading.events.get(end).map(|journaled| journaled.seq);
    for left in reading.residue(end) {
        let message = format!(
            "the run ends as rolled back, but nobody said what became of {left}: it may be there yet"
        );
        found.add(RuleId::Resources, seq, message);
    }
}
