//! What follows from a move: is the step settled, who waits for it, is there something to decide?
//!
//! `fresh`, `open`, `unsettled` and each step's `blockers` are derived from where the courses are, and kept so that a
//! decision in a run of ten thousand steps looks at three.

use std::sync::Arc;

use super::{CourseAt, Phase, State};
use crate::names::StepIx;
use crate::plan::OnFailure;

/// What a step still waits for.
enum WaitsFor {
    Nothing,
    /// Only for somebody to start it.
    AHand,
    ADecision,
}

impl State {
    /// Draws the consequences of a move.
    pub(super) fn settle(&mut self, moved: StepIx) {
        let plan = Arc::clone(&self.plan);
        let phase = self.phase;
        // A list rather than recursion: a rollback may settle a chain of ten thousand steps at once.
        let mut todo = vec![moved];
        while let Some(ix) = todo.pop() {
            let declared = plan.step(ix);
            let given_up = self.turned.as_ref().is_some_and(|turned| turned.past_failures);
            let left = self.turned.as_ref().is_some_and(|turned| turned.left.contains(&ix));
            let recalled_behind = self.recalled_behind(ix);
            let state = self.step_mut(ix);
            let settled = match phase {
                // What is done counts once everything before it is done: it may have been skipped before its turn, or
                // what it stands on may have been undone. Nobody starts on ground that is not there.
                Phase::Forward | Phase::Committing => match &state.forward.at {
                    _ if state.recalled || state.blockers > 0 => false,
                    CourseAt::Succeeded { .. } | CourseAt::Skipped { .. } => true,
                    CourseAt::Failed { .. } => declared.on_failure == OnFailure::Continue,
                    _ => false,
                },
                // A step that has nothing to undo still stands between those behind it and those before it.
                Phase::RollingBack => {
                    state.blockers == 0
                        && state.forward.at != CourseAt::Running
                        // Also of a step that is left: its undo may have begun by itself before.
                        && state.undo().at != CourseAt::Running
                        && (!state.forward.may_be_applied
                            || declared.undo.is_none()
                            || left
                            || state.undo().at.is_done()
                            || (given_up && matches!(state.undo().at, CourseAt::Failed { .. })))
                }
                Phase::Succeeded | Phase::Over(_) => state.settled,
            };
            if state.settled && !settled {
                // Others count on it. That is rare: an operator has it done again.
                self.rebuild();
                return;
            }
            let newly = settled && !state.settled;
            state.settled = settled;
            let (free, forward, undo) = (state.blockers == 0, &state.forward, state.undo());
            let waits = match phase {
                _ if settled => WaitsFor::Nothing,
                Phase::Forward if declared.finalize => WaitsFor::Nothing,
                Phase::Forward if state.recalled => match &undo.at {
                    CourseAt::Running | CourseAt::Failed { .. } => WaitsFor::Nothing,
                    _ if recalled_behind => WaitsFor::Nothing,
                    _ => WaitsFor::ADecision,
                },
                Phase::Forward | Phase::Committing => match &forward.at {
                    CourseAt::Running | CourseAt::Held { .. } => WaitsFor::Nothing,
                    _ if !free => WaitsFor::Nothing,
                    CourseAt::Untouched if declared.requires.is_empty() => WaitsFor::AHand,
                    _ => WaitsFor::ADecision,
                },
                // A call in flight is asked to stop, and abandoned in the end.
                Phase::RollingBack if forward.at == CourseAt::Running => WaitsFor::ADecision,
                Phase::RollingBack => match &undo.at {
                    CourseAt::Running | CourseAt::Failed { .. } => WaitsFor::Nothing,
                    _ if !free => WaitsFor::Nothing,
                    CourseAt::Untouched if forward.doubtful_since.is_none() => WaitsFor::AHand,
                    _ => WaitsFor::ADecision,
                },
                Phase::Succeeded | Phase::Over(_) => WaitsFor::Nothing,
            };
            self.fresh.remove(&ix);
            self.open.remove(&ix);
            match waits {
                WaitsFor::AHand => self.fresh.insert(ix),
                WaitsFor::ADecision => self.open.insert(ix),
                WaitsFor::Nothing => false,
            };
            if newly {
                if phase != Phase::Forward || !declared.finalize {
                    self.unsettled -= 1;
                }
                let waiting = if phase == Phase::RollingBack { &declared.after } else { &declared.before };
                for &other in waiting {
                    let blockers = &mut self.step_mut(other).blockers;
                    *blockers = blockers.saturating_sub(1);
                    if *blockers == 0 {
                        todo.push(other);
                    }
                }
            }
        }
    }

    /// Derives everything anew: for moves that unsettle what was settled. As nothing is settled at first, it comes to
    /// an end.
    pub(super) fn rebuild(&mut self) {
        let plan = Arc::clone(&self.plan);
        let back = self.phase == Phase::RollingBack;
        self.fresh.clear();
        self.open.clear();
        self.unsettled = self.counted();
        for (ix, step) in plan.steps() {
            let state = self.step_mut(ix);
            state.settled = false;
            state.blockers = if back { step.before.len() } else { step.after.len() } as u32;
        }
        let order = plan.order();
        if back {
            order.iter().rev().for_each(|&ix| self.settle(ix));
        } else {
            order.iter().for_each(|&ix| self.settle(ix));
        }
    }
}
