//! A history, taken apart: events in their order, and the moves of each step and each undo.

use std::collections::BTreeSet;

use super::standing::{CourseLog, Move, What};
use crate::event::{CourseId, Direction, Event, Journaled, Outcome};
use crate::names::{RunId, StepIx};
use crate::plan::{Plan, Step};

#[derive(Debug)]
pub(super) struct Reading<'a> {
    pub run: RunId,
    pub plan: &'a Plan,
    pub events: &'a [Journaled],
    forward: Vec<CourseLog<'a>>,
    undo: Vec<CourseLog<'a>>,
    /// Where the run turned round.
    pub turned: Option<usize>,
    /// Where it ended.
    pub ended: Option<(usize, Outcome)>,
}

impl<'a> Reading<'a> {
    pub fn of(run: RunId, plan: &'a Plan, events: &'a [Journaled]) -> Self {
        let logs = |make: fn(StepIx) -> CourseId| {
            plan.steps().map(|(ix, _)| CourseLog::new(make(ix))).collect::<Vec<_>>()
        };
        let mut reading = Self {
            run,
            plan,
            events,
            forward: logs(CourseId::forward),
            undo: logs(CourseId::undo),
            turned: None,
            ended: None,
        };
        let mut flying: BTreeSet<CourseId> = BTreeSet::new();
        for (pos, journaled) in events.iter().enumerate() {
            let step = |generation, attempt, what| Move {
                pos,
                seq: journaled.seq,
                claim: journaled.claim,
                at: journaled.at,
                generation,
                attempt,
                what,
            };
            match &journaled.event {
                Event::Step { course, generation, attempt, what } => {
                    let step = step(*generation, *attempt, What::Said(what));
                    if step.is_start() {
                        flying.insert(*course);
                    } else if step.ends_call() {
                        flying.remove(course);
                    }
                    reading.push(*course, step);
                }
                Event::Claimed { .. } => {
                    for course in std::mem::take(&mut flying) {
                        let last = reading.log(course).and_then(|log| log.moves.last());
                        let (generation, attempt) =
                            last.map_or((0, 0), |last| (last.generation, last.attempt));
                        reading.push(course, step(generation, attempt, What::CutOff));
                    }
                }
                Event::RollingBack { .. } => reading.turned = reading.turned.or(Some(pos)),
                Event::Finished { outcome } => {
                    reading.ended = reading.ended.or(Some((pos, *outcome)));
                }
                Event::Submitted
                | Event::Stuck { .. }
                | Event::Quarantined { .. }
                | Event::Acted(_)
                | Event::Refused { .. }
                | Event::Checking { .. }
                | Event::Checked
                | Event::Drifted { .. }
                | Event::Committing { .. } => {}
            }
        }
        reading
    }

    fn push(&mut self, id: CourseId, step: Move<'a>) {
        let logs = match id.direction {
            Direction::Forward => &mut self.forward,
            Direction::Undo => &mut self.undo,
        };
        if let Some(log) = logs.get_mut(id.step.index()) {
            log.moves.push(step);
        }
    }

    fn log(&self, id: CourseId) -> Option<&CourseLog<'a>> {
        let logs = match id.direction {
            Direction::Forward => &self.forward,
            Direction::Undo => &self.undo,
        };
        logs.get(id.step.index())
    }

    /// Every step and every undo.
    pub fn courses(&self) -> impl Iterator<Item = &CourseLog<'a>> {
        self.forward.iter().chain(&self.undo)
    }

    /// Every step with both its halves.
    pub fn steps(&self) -> impl Iterator<Item = (StepIx, &'a Step, &CourseLog<'a>, &CourseLog<'a>)> {
        let halves = self.forward.iter().zip(&self.undo);
        self.plan.steps().zip(halves).map(|((ix, step), (forward, undo))| (ix, step, forward, undo))
    }

    #[allow(clippy::indexing_slicing, reason = "there is one log for each step of the plan")]
    pub fn forward(&self, ix: StepIx) -> &CourseLog<'a> {
        &self.forward[ix.index()]
    }

    #[allow(clippy::indexing_slicing, reason = "there is one log for each step of the plan")]
    pub fn undo(&self, ix: StepIx) -> &CourseLog<'a> {
        &self.undo[ix.index()]
    }

    /// The place behind the last event.
    pub fn end(&self) -> usize {
        self.events.len()
    }

    pub fn turned_before(&self, pos: usize) -> bool {
        self.turned.is_some_and(|turned| turned < pos)
    }

    /// How messages name it.
    pub fn name(&self, id: CourseId) -> String {
        let step = &self.plan.step(id.step).name;
        match id.direction {
            Direction::Forward => format!("step {step}"),
            Direction::Undo => format!("the undo of {step}"),
        }
    }

    /// From which place on each step no longer stands in the way of undoing those before it: its calls are
    /// over, what it may have done is undone, and so it is with all that came after it. `None`: never.
    pub fn out_of_the_way(&self) -> Vec<Option<usize>> {
        let mut clear: Vec<Option<usize>> = vec![Some(0); self.plan.len()];
        for &ix in self.plan.order().iter().rev() {
            let step = self.plan.step(ix);
            let behind = step.before.iter().map(|d| clear.get(d.index()).copied().flatten());
            let place =
                behind.chain([self.own_way(ix, step)]).try_fold(0, |far, at| at.map(|at| far.max(at)));
            if let Some(entry) = clear.get_mut(ix.index()) {
                *entry = place;
            }
        }
        clear
    }

    fn own_way(&self, ix: StepIx, step: &Step) -> Option<usize> {
        let forward = self.forward(ix);
        let mut place = 0;
        for attempt in forward.attempts() {
            place = place.max(attempt.over?.pos);
        }
        if step.undo.is_some() && forward.may_be_applied(self.end()) {
            let done = self.undo(ix).moves.iter().find(|m| m.output().is_some())?;
            place = place.max(done.pos);
        }
        Some(place)
    }
}
