//! What may start when: dependencies, direction, and the order of undos (H7, H13, H14, settling).

use super::reading::Reading;
use super::standing::{Move, Standing, What, before, later};
use super::{Findings, RuleId};
use crate::event::{Answer, StepEvent};

pub(super) fn predecessors(reading: &Reading<'_>, found: &mut Findings) {
    for (_, step, forward, _) in reading.steps() {
        for start in forward.starts() {
            for &other in &step.after {
                if !reading.settled(other, start.pos) {
                    let standing = reading.forward(other).standing(start.pos);
                    let less = if standing.is_done() { ", but not what that stands on" } else { "" };
                    let message = format!(
                        "step {} starts, but {}, which it comes after, {}{less}: it works on what is not there",
                        step.name,
                        reading.plan.step(other).name,
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
    let ways = reading.ways();
    for (_, step, _, undo) in reading.steps() {
        for start in undo.starts() {
            for &behind in &step.before {
                if !reading.out_of_the_way(behind, start.pos, &ways) {
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
            let alone = forward.standing(start.pos) == Standing::Recalled;
            if !reading.turned_before(start.pos) && !alone {
                wrong(
                    "the run has not turned round, and nobody recalled the step: the undo works against its own run",
                );
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
                    let doubtful = forward.doubtful_since(start.pos);
                    let quiet = doubtful.map(|at| later(at, step.effect.longest_delay));
                    if let Some(quiet) = quiet.filter(|quiet| before(start.at, *quiet)) {
                        wrong(&format!(
                            "an attempt of the step can land until {quiet}: it may land after its undo"
                        ));
                    }
                    // That somebody asked to look again takes nothing from an answer that was one.
                    let hastened = |m: &&Move<'_>| matches!(m.what, What::Said(StepEvent::Hastened));
                    let again = moves.last().is_some_and(|last| hastened(&last));
                    let asked = moves.iter().rev().find(|m| !hastened(m)).is_some_and(|m| match m.what {
                        What::Said(StepEvent::Probed { answer, ask_again_at: None }) => {
                            !again || !matches!(answer, Answer::Unknown { .. })
                        }
                        _ => false,
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
