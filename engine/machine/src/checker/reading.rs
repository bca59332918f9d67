//! A history, taken apart: events in their order, and the moves of each step and each undo.

use std::collections::BTreeSet;

use super::standing::{CourseLog, Move, Standing, What};
use crate::action::{Action, Fate, RollBack};
use crate::event::{CourseId, Direction, Event, Journaled, Outcome, StepEvent};
use crate::names::{RunId, StepIx};
use crate::plan::{Kind, OnFailure, Plan, Step};

#[derive(Debug)]
pub(super) struct Reading<'a> {
    pub run: RunId,
    pub plan: &'a Plan,
    pub events: &'a [Journaled],
    forward: Vec<CourseLog<'a>>,
    undo: Vec<CourseLog<'a>>,
    /// Where the run turned round, and how.
    pub turned: Option<usize>,
    how: Option<&'a RollBack>,
    /// Where it was made final.
    pub committing: Option<usize>,
    /// Where it came to its end, unless it was turned round or made final after that.
    pub ended: Option<(usize, Outcome)>,
    /// From where on a point of no return may be behind it.
    pub no_return: Option<usize>,
    /// What was told of resources.
    pub resources: Vec<Told<'a>>,
    /// Something that was done did not stay so, or was said to be done before its turn.
    unsettled: bool,
    /// Single steps were undone.
    recalled: bool,
}

/// What was told of one resource.
#[derive(Clone, Copy, Debug)]
pub(super) struct Told<'a> {
    pub pos: usize,
    pub step: StepIx,
    pub kind: &'a str,
    pub name: &'a str,
    pub fate: Fate,
}

impl<'a> Reading<'a> {
    pub fn of(run: RunId, plan: &'a Plan, events: &'a [Journaled]) -> Self {
        let logs = |make: fn(StepIx) -> CourseId| {
            plan.steps()
                .map(|(ix, step)| CourseLog::new(make(ix), step.kind == Kind::Run))
                .collect::<Vec<_>>()
        };
        let mut reading = Self {
            run,
            plan,
            events,
            forward: logs(CourseId::forward),
            undo: logs(CourseId::undo),
            turned: None,
            how: None,
            committing: None,
            ended: None,
            no_return: None,
            resources: Vec::new(),
            unsettled: false,
            recalled: false,
        };
        let mut flying: BTreeSet<CourseId> = BTreeSet::new();
        for (pos, journaled) in events.iter().enumerate() {
            match &journaled.event {
                Event::Step { course, what: StepEvent::Resource { kind, name, fate, .. }, .. } => {
                    reading.resources.push(Told { pos, step: course.step, kind, name, fate: *fate });
                }
                Event::Step { course, generation, attempt, what } => {
                    let said = reading.push(*course, pos, *generation, *attempt, What::Said(what));
                    match said {
                        Some(Standing::Flying) => flying.insert(*course),
                        _ => flying.remove(course),
                    };
                    reading.undone_alone(*course, pos);
                }
                Event::Claimed { .. } => {
                    for course in std::mem::take(&mut flying) {
                        let last = reading.log(course).and_then(|log| log.moves.last());
                        let (generation, attempt) =
                            last.map_or((0, 0), |last| (last.generation, last.attempt));
                        reading.push(course, pos, generation, attempt, What::CutOff);
                    }
                }
                Event::RollingBack { how, .. } => {
                    if reading.turned.is_none() {
                        (reading.turned, reading.how) = (Some(pos), Some(how));
                    }
                    reading.goes_on();
                }
                Event::Committing { .. } => {
                    reading.committing = reading.committing.or(Some(pos));
                    reading.goes_on();
                }
                Event::Finished { outcome } => {
                    let closed = *outcome == Outcome::Closed;
                    if reading.ended.is_none_or(|(_, before)| closed && before == Outcome::Succeeded) {
                        reading.ended = Some((pos, *outcome));
                    }
                }
                Event::Submitted { .. }
                | Event::Stuck { .. }
                | Event::Quarantined { .. }
                | Event::Acted(_)
                | Event::Checking { .. }
                | Event::Checked
                | Event::Drifted { .. }
                | Event::Refused { .. } => {}
            }
        }
        reading
    }

    /// What has succeeded can go on from there.
    fn goes_on(&mut self) {
        self.ended = self.ended.filter(|(_, outcome)| *outcome != Outcome::Succeeded);
    }

    fn push(
        &mut self,
        id: CourseId,
        pos: usize,
        generation: u32,
        attempt: u32,
        what: What<'a>,
    ) -> Option<Standing> {
        let declared = self.plan.step(id.step);
        let (journaled, waits) = (self.events.get(pos)?, declared.kind != Kind::Call);
        let logs = match id.direction {
            Direction::Forward => &mut self.forward,
            Direction::Undo => &mut self.undo,
        };
        let log = logs.get_mut(id.step.index())?;
        let recalled = matches!(what, What::Said(StepEvent::Recalled));
        let there = recalled && declared.undo.is_some() && log.may_be_applied(pos);
        let was = log.moves.last().map_or(Standing::Fresh, |last| last.after);
        let after = was.next(id.direction, waits, there, &what);
        let (seq, claim, at) = (journaled.seq, journaled.claim, journaled.at);
        log.moves.push(Move { pos, seq, claim, at, generation, attempt, what, after });
        self.unsettled |= was.is_done() && !after.is_done();
        self.unsettled |= after == Standing::Skipped;
        self.recalled |= recalled;
        if declared.point_of_no_return
            && id.direction == Direction::Forward
            && self.no_return.is_none()
            && after != Standing::Flying
            && self.forward(id.step).may_be_applied(pos + 1)
        {
            self.no_return = Some(pos);
        }
        Some(after)
    }

    /// The undo of a recalled step came to its end: the step is held, and both its halves begin anew.
    fn undone_alone(&mut self, id: CourseId, pos: usize) {
        let over = id.direction == Direction::Undo
            && self.turned.is_none()
            && self.undo(id.step).standing(pos + 1).is_done()
            && self.forward(id.step).standing(pos + 1) == Standing::Recalled;
        if over {
            for id in [CourseId::forward(id.step), id] {
                let last = self.log(id).and_then(|log| log.moves.last());
                let (generation, attempt) = last.map_or((0, 0), |last| (last.generation, last.attempt));
                self.push(id, pos, generation, attempt, What::Undone);
            }
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

    pub fn committed_before(&self, pos: usize) -> bool {
        self.committing.is_some_and(|committing| committing < pos)
    }

    /// The point of no return is behind the run, or an attempt at it is in flight.
    pub fn no_return_before(&self, pos: usize) -> bool {
        let at_it = |(_, step, forward, _): (_, &Step, &CourseLog<'_>, _)| {
            step.point_of_no_return && forward.standing(pos) == Standing::Flying
        };
        self.no_return.is_some_and(|at| at < pos) || self.steps().any(at_it)
    }

    /// The rollback leaves the step alone.
    pub fn left(&self, ix: StepIx) -> bool {
        let name = &*self.plan.step(ix).name;
        self.how.is_some_and(|how| how.leave.iter().any(|left| left == name))
    }

    /// The rollback goes on past undos that fail for good.
    pub fn past_failures(&self) -> bool {
        self.how.is_some_and(|how| how.past_failures)
    }

    /// What was asked and granted, with its place.
    pub fn acted(&self) -> impl Iterator<Item = (usize, &'a Journaled, &'a Action)> {
        self.events.iter().enumerate().filter_map(|(pos, journaled)| match &journaled.event {
            Event::Acted(action) => Some((pos, journaled, &**action)),
            _ => None,
        })
    }

    /// How messages name it.
    pub fn name(&self, id: CourseId) -> String {
        let step = &self.plan.step(id.step).name;
        match id.direction {
            Direction::Forward => format!("step {step}"),
            Direction::Undo => format!("the undo of {step}"),
        }
    }

    /// Whether a step was done, or gone on without, at a place. If steps have been skipped or undone one by one, that is
    /// only so if it is so of everything before it.
    pub fn settled(&self, ix: StepIx, pos: usize) -> bool {
        let done = |ix: StepIx| match self.forward(ix).standing(pos) {
            Standing::Succeeded | Standing::Skipped => true,
            Standing::Failed => self.plan.step(ix).on_failure == OnFailure::Continue,
            _ => false,
        };
        done(ix) && (!self.unsettled || self.all_that_hang_together(ix, |step| &step.after, done))
    }

    /// Whether a step no longer stands in the way of undoing those before it: its calls are over, what it may have done
    /// is undone, and so it is with all that came after it.
    pub fn out_of_the_way(&self, ix: StepIx, pos: usize, ways: &[Option<usize>]) -> bool {
        if !self.recalled && !self.past_failures() {
            return ways.get(ix.index()).copied().flatten().is_some_and(|at| at <= pos);
        }
        let clear = |ix: StepIx| {
            let undo = self.undo(ix).standing(pos);
            let forward = self.forward(ix);
            let turned = self.turned_before(pos);
            forward.standing(pos) != Standing::Flying
                && undo != Standing::Flying
                && (self.plan.step(ix).undo.is_none()
                    || !forward.may_be_applied(pos)
                    || undo.is_done()
                    || (turned && self.left(ix))
                    || (turned && self.past_failures() && undo == Standing::Failed))
        };
        clear(ix) && self.all_that_hang_together(ix, |step| &step.before, clear)
    }

    /// Some step behind is to be undone by itself first.
    pub fn recalled_behind(&self, ix: StepIx, pos: usize) -> bool {
        let free = |ix| self.forward(ix).standing(pos) != Standing::Recalled;
        !self.all_that_hang_together(ix, |step| &step.before, free)
    }

    fn all_that_hang_together(
        &self,
        ix: StepIx,
        next: fn(&Step) -> &Vec<StepIx>,
        holds: impl Fn(StepIx) -> bool,
    ) -> bool {
        let mut seen = BTreeSet::new();
        let mut todo = next(self.plan.step(ix)).clone();
        while let Some(ix) = todo.pop() {
            if seen.insert(ix) {
                if !holds(ix) {
                    return false;
                }
                todo.extend(next(self.plan.step(ix)));
            }
        }
        true
    }

    /// Of a run in which nothing was undone by itself: from which place on each step is out of the way. `None`: never.
    /// All of them in one go, as a run can have ten thousand.
    pub fn ways(&self) -> Vec<Option<usize>> {
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
        if step.undo.is_some() && forward.may_be_applied(self.end()) && !self.left(ix) {
            let done = self.undo(ix).moves.iter().find(|m| m.after.is_done())?;
            place = place.max(done.pos);
        }
        Some(place)
    }

    /// What the run made and nobody has accounted for, as "step: kind name".
    pub fn residue(&self, pos: usize) -> BTreeSet<String> {
        let mut last = std::collections::BTreeMap::new();
        for told in self.resources.iter().filter(|told| told.pos < pos) {
            last.insert((told.step, told.kind, told.name), told.fate);
        }
        last.into_iter()
            .filter(|((ix, ..), fate)| {
                let settled = matches!(fate, Fate::Gone | Fate::Kept);
                // What was announced, by a step that says of every attempt that nothing happened, never was.
                let never = *fate == Fate::Planned && !self.forward(*ix).may_be_applied(pos);
                !settled && !never && !self.left(*ix)
            })
            .map(|((ix, kind, name), _)| format!("{}: {kind} {name}", self.plan.step(ix).name))
            .collect()
    }
}
