//! What may start when: dependencies, direction, and the order of undos (H7, H13, H14, settling).

use super::reading::Reading;
use super::standing::{Standing, What, before, later};
use super::{Findings, RuleId};
use crate::event::StepEvent;
use crate::plan::OnFailure;

pub(super) fn predecessors(reading: &Reading<'_>, found: &mut Findings) {
    for (_, step, forward, _) in reading.steps() {
        for start in forward.starts() {
            for &other in &step.after {
                let standing = reading.forward(other).standing(start.pos);
                let other = reading.plan.step(other);
                let settled = match standing {
                    Standing::Succeeded => true,
                    Standing::Failed => other.on_failure == OnFailure::Continue,
                    _ => false,
                };
                if !settled {
                    let message = format!(
                        "step {} starts, but {}, which it comes after, {}: it works on what is not there",
                        step.name,
                        other.name,
                        standing.in_words()
                    );
                    found.add(RuleId::Predecessors, start.seq, message);
                }
            }
        }
    }
}

pub(super) fn direction(reading: &Reading<'_>, found: &mut Findings) {
    for (_, step, forward, _) in reading.steps() {
        for start in forward.starts().filter(|start| reading.turned_before(start.pos)) {
            let message = format!(
                "step {} starts after the run turned round: nobody will undo what it does",
                step.name
            );
            found.add(RuleId::Direction, start.seq, message);
        }
    }
}

pub(super) fn undo_order(reading: &Reading<'_>, found: &mut Findings) {
    let clear = reading.out_of_the_way();
    for (_, step, _, undo) in reading.steps() {
        for start in undo.starts() {
            for &behind in &step.before {
                let place = clear.get(behind.index()).copied().flatten();
                if place.is_none_or(|place| place > start.pos) {
                    let message = format!(
                        "the undo of {} starts before {} and what comes after it are undone: they lose the ground they stand on",
                        step.name,
                        reading.plan.step(behind).name
                    );
                    found.add(RuleId::UndoOrder, start.seq, message);
                }
            }
        }
    }
}

/// An effect that lands after its undo would stay.
pub(super) fn settling(reading: &Reading<'_>, found: &mut Findings) {
    for (_, step, forward, undo) in reading.steps() {
        for start in undo.starts() {
            let mut wrong = |what: &str| {
                found.add(
                    RuleId::Settling,
                    start.seq,
                    format!("the undo of {} starts, but {what}", step.name),
                );
            };
            if !reading.turned_before(start.pos) {
                wrong("the run has not turned round: the undo works against its own run");
            }
            if !forward.may_be_applied(start.pos) {
                wrong("no attempt of the step can have had an effect: it may undo what is not the run's");
            }
            let standing = forward.standing(start.pos);
            match standing {
                Standing::Flying => {
                    wrong("an attempt of the step is in flight: what it does may land after its undo");
                }
                Standing::Succeeded => {}
                _ => {
                    let moves = forward.before(start.pos);
                    let doubtful = moves.iter().filter(|m| m.leaves_doubt()).map(|m| m.at).max();
                    let quiet = doubtful.map(|at| later(at, step.effect.longest_delay));
                    if let Some(quiet) = quiet.filter(|quiet| before(start.at, *quiet)) {
                        wrong(&format!(
                            "an attempt of the step can land until {quiet}: it may land after its undo"
                        ));
                    }
                    let asked = moves.last().is_some_and(|last| {
                        matches!(last.what, What::Said(StepEvent::Probed { ask_again_at: None, .. }))
                    });
                    if standing == Standing::Doubt && step.effect.probed && !asked {
                        wrong(
                            "nobody asked the world about the attempt in doubt, so the undo does not know what to undo",
                        );
                    }
                }
            }
        }
    }
}
