//! How runs come to rest: ended, undone, held, stuck, left alone (H15, H16, and what a failure does).

use std::collections::BTreeSet;

use super::reading::Reading;
use super::standing::{Standing, What};
use super::{Findings, RuleId};
use crate::event::{Answer, Direction, Event, Outcome, StepEvent};
use crate::names::StepIx;
use crate::plan::OnFailure;

pub(super) fn end(reading: &Reading<'_>, found: &mut Findings) {
    let Some((end, outcome)) = reading.ended else { return };
    for journaled in reading.events.iter().skip(end + 1) {
        let what = match journaled.event {
            Event::Finished { .. } => "the run ends a second time",
            _ => "something happens after the run's end",
        };
        found.add(RuleId::End, journaled.seq, format!("{what}: whoever was told of its end was told wrong"));
    }
    let seq = reading.events.get(end).map(|journaled| journaled.seq);
    match (outcome, reading.turned_before(end)) {
        (Outcome::Succeeded, true) => {
            found.add(RuleId::End, seq, "the run has turned round and ends as succeeded");
        }
        (Outcome::RolledBack, false) => {
            found.add(RuleId::End, seq, "the run ends as rolled back, but never turned round");
        }
        _ => {}
    }
    for course in reading.courses().filter(|course| course.standing(end) == Standing::Flying) {
        let name = reading.name(course.id);
        let message = format!("the run ends while {name} is in flight: what it does, nobody will know");
        found.add(RuleId::End, seq, message);
    }
    if outcome == Outcome::Succeeded {
        for (_, step, forward, _) in reading.steps() {
            let standing = forward.standing(end);
            // What failed is judged by what the plan says of failures.
            if !matches!(standing, Standing::Succeeded | Standing::Failed | Standing::Flying) {
                let message =
                    format!("the run ends as succeeded, but step {} {}", step.name, standing.in_words());
                found.add(RuleId::End, seq, message);
            }
        }
    }
}

pub(super) fn undone(reading: &Reading<'_>, found: &mut Findings) {
    let Some((end, Outcome::RolledBack)) = reading.ended else { return };
    let seq = reading.events.get(end).map(|journaled| journaled.seq);
    for (_, step, forward, undo) in reading.steps() {
        let due = step.undo.is_some() && forward.may_be_applied(end);
        let standing = undo.standing(end);
        if due && standing != Standing::Succeeded {
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
    for journaled in reading.events {
        match &journaled.event {
            Event::Step { course, what, .. } if course.direction == Direction::Forward => {
                let step = reading.plan.step(course.step);
                match what {
                    StepEvent::Failed { retry_at: None, .. } if step.on_failure == OnFailure::RollBack => {
                        fatal.insert(course.step);
                    }
                    StepEvent::Retried { .. } => {
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
    for (_, step, forward, _) in reading.steps() {
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
    for (_, step, forward, _) in reading.steps() {
        for (n, m) in forward.moves.iter().enumerate() {
            let What::Said(StepEvent::Held { why }) = m.what else { continue };
            if why.trim().is_empty() {
                let message =
                    format!("step {} is held without a reason: nobody can decide about it", step.name);
                found.add(RuleId::Held, m.seq, message);
            }
            let last = n.checked_sub(1).and_then(|n| forward.moves.get(n));
            let wrong = match forward.standing(m.pos) {
                _ if reading.turned_before(m.pos) => {
                    Some("the run has turned round: nobody waits for the step any more")
                }
                Standing::Failed if step.on_failure != OnFailure::Hold => {
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
        let Event::Stuck { steps: named, .. } = &journaled.event else { continue };
        let clear = ways.get_or_insert_with(|| reading.out_of_the_way());
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
        if failed.is_empty() {
            wrong("no undo has failed for good".into());
        } else if failed != named {
            wrong(format!("it names {named:?} as failed, the journal {failed:?}"));
        }
        if let Some(course) = reading.courses().find(|course| course.standing(pos) == Standing::Flying) {
            wrong(format!("{} is in flight", reading.name(course.id)));
        }
        let can_move = |ix: StepIx| {
            let step = reading.plan.step(ix);
            let free = |d: &StepIx| clear.get(d.index()).copied().flatten().is_some_and(|at| at < pos);
            let waits = matches!(
                reading.undo(ix).standing(pos),
                Standing::Fresh | Standing::BackingOff | Standing::Doubt
            );
            step.undo.is_some()
                && waits
                && reading.forward(ix).may_be_applied(pos)
                && step.before.iter().all(free)
        };
        if let Some((_, step, _, _)) = reading.steps().find(|(ix, ..)| can_move(*ix)) {
            wrong(format!("the undo of {} can start", step.name));
        }
    }
}

pub(super) fn quarantine(reading: &Reading<'_>, found: &mut Findings) {
    let is_it = |journaled: &crate::Journaled| matches!(journaled.event, Event::Quarantined { .. });
    let Some(since) = reading.events.iter().position(is_it) else { return };
    for journaled in reading.events.iter().skip(since) {
        if let Event::Step { course, what: StepEvent::Started { .. }, .. } = &journaled.event {
            let message = format!(
                "{} starts although the run is left alone: whatever made it so may happen again",
                reading.name(*course)
            );
            found.add(RuleId::Quarantine, journaled.seq, message);
        }
    }
}
