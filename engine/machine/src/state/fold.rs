//! The legal moves. [`State::apply`] is the only way a state changes, live and after a crash alike.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::wait::{Wait, run_of_step};
use super::{Check, Course, CourseAt, Illegal, Phase, Resource, State, Turned};
use crate::Time;
use crate::action::{Fate, RollBack};
use crate::event::{
    Answer, Applied, CourseId, Direction, Event, Journaled, Outcome, StepEvent, idempotency_key,
};
use crate::names::StepIx;
use crate::plan::{Effect, Kind, Span};

impl State {
    /// Takes in the next event, if it may follow. After an error the state is of no use.
    pub fn apply(&mut self, journaled: &Journaled) -> Result<(), Illegal> {
        let illegal = |why: String| Illegal { seq: journaled.seq, why };
        if journaled.seq != self.seq + 1 {
            return Err(illegal(format!("event {} is expected here", self.seq + 1)));
        }
        let claims = matches!(journaled.event, Event::Claimed { .. });
        // An owner that died between its claim and its first event leaves a number that no event carries.
        let follows = if claims { journaled.claim > self.claim } else { journaled.claim == self.claim };
        if !follows {
            return Err(illegal(format!(
                "it is of claim {}, the run is at claim {}",
                journaled.claim, self.claim
            )));
        }
        if let Phase::Over(outcome) = self.phase
            && !matches!(journaled.event, Event::Claimed { .. } | Event::Refused { .. })
        {
            return Err(illegal(format!("the run is over: {outcome:?}")));
        }
        if self.at.is_some_and(|at| journaled.at < at) {
            return Err(illegal("it is older than the event before it".into()));
        }
        if self.quarantined && !is_fact(&journaled.event) {
            return Err(illegal("the run is left alone".into()));
        }
        if self.seq == 0 && !matches!(journaled.event, Event::Submitted { .. }) {
            return Err(illegal("the first event of a run is its submission".into()));
        }
        self.apply_event(journaled).map_err(illegal)?;
        self.seq = journaled.seq;
        self.at = Some(journaled.at);
        Ok(())
    }

    fn apply_event(&mut self, journaled: &Journaled) -> Result<(), String> {
        let (at, seq) = (journaled.at, journaled.seq);
        match &journaled.event {
            Event::Submitted { by } => {
                if self.seq != 0 {
                    return Err("a run is submitted once".into());
                }
                self.sender.clone_from(by);
                for (ix, _) in Arc::clone(&self.plan).steps() {
                    self.settle(ix);
                }
            }
            Event::Claimed { .. } => {
                self.claim = journaled.claim;
                if self.running > 0 {
                    self.doubt_all(at);
                }
            }
            Event::Step { course, generation, attempt, what } => {
                self.apply_step(*course, *generation, *attempt, what, at)?;
                if !matches!(what, StepEvent::Checkpointed { .. } | StepEvent::Progressed { .. }) {
                    self.step_mut(course.step).moved = seq;
                }
            }
            Event::Acted(action) => {
                if self.knows(action.id) {
                    return Err(format!("the action {} was granted or refused before", action.id));
                }
                if let Some((name, _)) = action.verb.step()
                    && self.plan.find(name).is_none()
                {
                    return Err(format!("the plan has no step \"{name}\""));
                }
                if matches!(action.verb, crate::action::Verb::Resume) {
                    self.quarantined = false;
                }
                self.hear(seq, action);
            }
            Event::Refused { action, .. } => {
                if self.knows(action.id) {
                    return Err(format!("the action {} was granted or refused before", action.id));
                }
                self.refuse(action);
            }
            Event::Checking { then, because } => {
                if !matches!(self.phase, Phase::Forward | Phase::Succeeded | Phase::RollingBack)
                    || self.check.is_some()
                {
                    return Err("the world is not looked at now".into());
                }
                let todo = self.checkable().collect();
                self.check = Some(Box::new(Check {
                    then: then.clone(),
                    because: because.clone(),
                    todo,
                    differences: Vec::new(),
                }));
                self.moved = seq;
            }
            Event::Checked => {
                let check = self.check.take();
                if !check.is_some_and(|check| check.todo.is_empty() && check.differences.is_empty()) {
                    return Err("the world was not found as it was".into());
                }
            }
            Event::Drifted { differences } => {
                let check = self.check.take();
                if !check.is_some_and(|check| check.todo.is_empty() && check.differences == *differences) {
                    return Err("the world was not found so".into());
                }
                self.drifted = Some(Box::new((at, differences.clone())));
                self.pause_by_engine();
                self.moved = seq;
            }
            Event::Committing { .. } => {
                if self.phase != Phase::Succeeded {
                    return Err("only a run that has succeeded is made final".into());
                }
                // The signal that commits has said what it had to, whoever was faster.
                let plan = Arc::clone(&self.plan);
                let committer = plan.spec().commit.as_ref().and_then(|commit| commit.signal.as_deref());
                if let Some(id) = committer.and_then(|name| self.signal(name)).map(|signal| signal.id) {
                    self.read_signal(id)?;
                }
                self.phase = Phase::Committing;
                self.moved = seq;
                self.rebuild();
            }
            Event::RollingBack { how, .. } => {
                if !matches!(self.phase, Phase::Forward | Phase::Succeeded) {
                    return Err(format!("a run that is {:?} does not turn round", self.phase));
                }
                if self.past_no_return() && !how.past_no_return {
                    return Err("the run is past its point of no return".into());
                }
                self.check = None;
                self.turn_round(at, how)?;
                self.moved = seq;
            }
            Event::Stuck { .. } => {
                if self.phase != Phase::RollingBack || self.stuck {
                    return Err("only a run that is rolling back gets stuck, once".into());
                }
                let left_over = self.all_settled() && !self.is_clean();
                if !(self.nothing_moves() || left_over) {
                    return Err("something can move yet".into());
                }
                self.stuck = true;
                self.moved = seq;
            }
            Event::Quarantined { .. } => {
                if self.is_over() {
                    return Err("the run is over".into());
                }
                self.quarantined = true;
                self.moved = seq;
            }
            Event::Finished { outcome } => {
                self.finish(*outcome, at)?;
                self.moved = seq;
            }
        }
        Ok(())
    }

    fn finish(&mut self, outcome: Outcome, at: Time) -> Result<(), String> {
        let fits = match outcome {
            Outcome::Succeeded => self.phase == Phase::Forward && self.unsettled == 0,
            Outcome::Committed => self.phase == Phase::Committing && self.unsettled == 0,
            Outcome::RolledBack => self.phase == Phase::RollingBack && self.unsettled == 0 && self.is_clean(),
            Outcome::Closed => self.stuck || self.quarantined,
        };
        if !fits {
            return Err(format!("{outcome:?}, but {} steps are not settled", self.unsettled));
        }
        self.check = None;
        self.phase = if outcome == Outcome::Succeeded { Phase::Succeeded } else { Phase::Over(outcome) };
        if outcome == Outcome::Succeeded {
            self.succeeded_at = Some(at);
        }
        self.quarantined = false;
        self.fresh.clear();
        self.open.clear();
        Ok(())
    }

    /// The legal moves of one half of a step.
    fn apply_step(
        &mut self,
        id: CourseId,
        generation: u32,
        attempt: u32,
        what: &StepEvent,
        at: Time,
    ) -> Result<(), String> {
        let phase = self.phase;
        let looking = matches!(what, StepEvent::Compared { .. });
        if phase == Phase::Succeeded && !looking {
            return Err("all steps are done".into());
        }
        let forward = matches!(phase, Phase::Forward | Phase::Committing);
        let plan = Arc::clone(&self.plan);
        let declared = plan.step(id.step);
        if id.direction == Direction::Undo && declared.undo.is_none() {
            return Err("the step has no undo".into());
        }
        let proven = self.is_proven(id.step);
        let may_restart = self.may_restart(id.step);
        if matches!(what, StepEvent::Recalled)
            && let Some(name) = self.stands_on(id.step)
        {
            return Err(format!("{name} stands on it"));
        }
        let no_recalled_behind = !self.recalled_behind(id.step);
        let step = self.step(id.step);
        let begins_anew = matches!(what, StepEvent::Retried { .. });
        let about_world = matches!(what, StepEvent::Resource { .. });
        // Others have gone on from it: it cannot become unsettled again, unless that is what is asked for.
        let again = begins_anew || matches!(what, StepEvent::Hastened);
        let asked = looking || matches!(what, StepEvent::Recalled) || (again && may_restart) || about_world;
        if id.direction == Direction::Forward && forward && step.settled && !asked {
            return Err("the step is settled".into());
        }
        let (blockers, recalled) = (step.blockers, step.recalled);
        let forward_runs = step.forward.at == CourseAt::Running;
        let may_be_applied = step.forward.may_be_applied;
        let run = self.run;
        let belongs = match phase {
            Phase::Forward => !declared.finalize,
            Phase::Committing => true,
            _ => false,
        };
        let of_step = self.run_of(id.step);
        let course = self.course_mut(id);
        if generation != course.generation + u32::from(begins_anew) {
            return Err(format!("it is of generation {generation}, the step is at {}", course.generation));
        }
        let about_next = matches!(what, StepEvent::Started { .. });
        let about_attempt = !begins_anew && !about_world;
        if about_attempt && attempt != course.attempts + u32::from(about_next) {
            return Err(format!("it is about attempt {attempt}, the step is at {}", course.attempts));
        }
        use CourseAt::{BackingOff, Failed, Held, InDoubt, Running, Succeeded, Untouched, Waiting};
        match (&mut course.at, what) {
            (from @ (Untouched | BackingOff { .. } | InDoubt { .. }), StepEvent::Started { key, input }) => {
                let may_start = match id.direction {
                    Direction::Forward => belongs && blockers == 0 && !recalled && proven,
                    Direction::Undo => {
                        let turned = phase == Phase::RollingBack && blockers == 0;
                        let alone = phase == Phase::Forward && recalled && no_recalled_behind;
                        (turned || alone) && may_be_applied && !forward_runs
                    }
                };
                if !may_start {
                    return Err("it may not start now".into());
                }
                if let InDoubt { settled, .. } = from
                    && id.direction == Direction::Forward
                    && !may_repeat(declared.effect, settled.as_ref())
                {
                    return Err("an attempt is in doubt, and nothing says that another may start".into());
                }
                if *key != idempotency_key(run, &declared.name, id.direction, generation) {
                    return Err("its idempotency key is not that of its generation".into());
                }
                if input.is_some() != (course.attempts == 0) {
                    return Err("the first attempt of a generation carries the input, and only that".into());
                }
                course.attempts += 1;
                if course.attempts == 1 {
                    course.input.clone_from(input);
                    course.first_started = Some(at);
                }
                match (id.direction, declared.kind, &course.input) {
                    (Direction::Forward, kind @ (Kind::Wait | Kind::Approve), Some(input)) => {
                        course.at = Waiting(Box::new(Wait::new(kind, input, at)));
                    }
                    (Direction::Forward, Kind::Run, _) => {
                        course.at = Waiting(Box::new(Wait::for_run(run_of_step(at, *key))));
                        course.may_be_applied = true;
                    }
                    (Direction::Undo, Kind::Run, _) => {
                        let Some(of_step) = of_step else {
                            return Err("there is no run to roll back".into());
                        };
                        course.at = Waiting(Box::new(Wait::for_run(of_step)));
                    }
                    _ => {
                        course.at = Running;
                        self.running += 1;
                    }
                }
            }
            (Running, StepEvent::Checkpointed { value }) => course.checkpoint = Some(value.clone()),
            (Running, StepEvent::Progressed { .. }) => {}
            (from @ (Running | InDoubt { .. } | Waiting(_)), StepEvent::Succeeded { output }) => {
                let ran = *from == Running;
                let waited = matches!(from, Waiting(_));
                course.at = Succeeded { output: output.clone() };
                course.may_be_applied |= !waited || declared.kind == Kind::Run;
                self.running -= usize::from(ran);
                if waited && let Some(signal) = signal_of(output) {
                    self.read_signal(signal)?;
                }
            }
            (Waiting(_), StepEvent::Failed { error, retry_at })
                if retry_at.is_some() || (error.applied == Applied::Maybe && declared.kind != Kind::Run) =>
            {
                return Err("a wait does nothing, and is not tried again by itself".into());
            }
            (from @ (Running | InDoubt { .. } | Waiting(_)), StepEvent::Failed { error, retry_at }) => {
                let ran = *from == Running;
                let work = match (id.direction, &declared.undo) {
                    (Direction::Undo, Some(undo)) => undo,
                    _ => &declared.forward,
                };
                course.failures += u32::from(work.counts(error));
                if error.applied == Applied::Maybe {
                    course.may_be_applied = true;
                    course.doubtful_since = Some(at);
                } else if declared.kind == Kind::Run && id.direction == Direction::Forward {
                    // It is rolled back, or never was.
                    course.may_be_applied = false;
                }
                course.at = match (retry_at, error.applied, id.direction) {
                    (None, _, _) => Failed { error: error.clone() },
                    // An undo in doubt is simply done again: that is what makes it an undo.
                    (Some(until), Applied::No, _) | (Some(until), _, Direction::Undo) => {
                        BackingOff { until: *until }
                    }
                    (Some(until), Applied::Maybe, Direction::Forward) => {
                        InDoubt { since: at, not_before: Some(*until), unknowns: 0, settled: None }
                    }
                };
                self.running -= usize::from(ran);
            }
            // An undo in doubt is done again, whatever there is.
            (InDoubt { not_before, unknowns, settled, .. }, StepEvent::Probed { answer, ask_again_at })
                if id.direction == Direction::Forward =>
            {
                *not_before = *ask_again_at;
                *unknowns = if matches!(answer, Answer::Unknown { .. }) { *unknowns + 1 } else { 0 };
                // "Present" settles it by the result that follows; without one the question is put again.
                if ask_again_at.is_none() && *answer != Answer::Present {
                    *settled = Some(answer.clone());
                    // Nothing of it was there when nothing of it could come any more.
                    let effect = declared.effect;
                    let can_come = effect.refuses_duplicates && effect.longest_delay > Span::default();
                    if *answer == Answer::Absent && !can_come {
                        course.doubtful_since = None;
                    }
                }
            }
            (Failed { .. } | InDoubt { .. }, StepEvent::Held { why })
                if id.direction == Direction::Forward && forward =>
            {
                course.at = Held { why: why.clone() };
            }
            (Untouched, StepEvent::Held { why })
                if id.direction == Direction::Forward && belongs && blockers == 0 && !recalled && !proven =>
            {
                course.at = Held { why: why.clone() };
            }
            // A rollback begins no step anew.
            (from, StepEvent::Retried { input })
                if matches!(from, Failed { .. } | Held { .. } | BackingOff { .. })
                    || (matches!(from, InDoubt { .. }) && forward)
                    || (id.direction == Direction::Forward && may_restart) =>
            {
                if id.direction == Direction::Forward && !forward {
                    return Err("a rollback begins no step anew".into());
                }
                if id.direction == Direction::Forward && recalled {
                    return Err("it is being undone".into());
                }
                let may_be_applied = course.may_be_applied;
                let doubtful_since = course.doubtful_since;
                let input = input.clone();
                *course = Course { generation, may_be_applied, doubtful_since, input, ..Course::new() };
                self.stuck = false;
                if id.direction == Direction::Forward {
                    self.step_mut(id.step).waived = false;
                    self.forget_votes(id.step);
                }
            }
            (BackingOff { until }, StepEvent::Hastened) if forward || id.direction == Direction::Undo => {
                *until = at;
            }
            (InDoubt { not_before, unknowns, settled, .. }, StepEvent::Hastened)
                if id.direction == Direction::Forward =>
            {
                (*not_before, *unknowns) = (None, 0);
                // That it could not be found out is no answer to whoever asks again.
                *settled = settled.take().filter(|answer| !matches!(answer, Answer::Unknown { .. }));
            }
            (Failed { .. } | Held { .. }, StepEvent::Hastened)
                if id.direction == Direction::Forward
                    && forward
                    && proven
                    && !recalled
                    && course.attempts > 0
                    && course.doubtful_since.is_some() =>
            {
                let since = course.doubtful_since.unwrap_or(at);
                course.at = InDoubt { since, not_before: None, unknowns: 0, settled: None };
            }
            (from, StepEvent::Skipped { output }) if *from != Running && !from.is_done() => {
                let fits = match id.direction {
                    Direction::Forward => belongs && !recalled,
                    Direction::Undo => {
                        (phase == Phase::RollingBack || recalled) && may_be_applied && !forward_runs
                    }
                };
                if !fits {
                    return Err("it cannot be skipped now".into());
                }
                course.at = CourseAt::Skipped { output: output.clone() };
                self.stuck = false;
            }
            (
                Untouched | Succeeded { .. } | CourseAt::Skipped { .. } | Failed { .. } | Held { .. },
                StepEvent::Recalled,
            ) if id.direction == Direction::Forward && phase == Phase::Forward && !recalled => {
                if declared.undo.is_some() && may_be_applied {
                    self.step_mut(id.step).recalled = true;
                } else if matches!(course.at, Untouched | Held { .. }) {
                    return Err("there is nothing to undo".into());
                } else {
                    // It only looked, or waited: what it found may not be so any more, once what it stands on is done
                    // again.
                    let (generation, doubtful_since) = (course.generation + 1, course.doubtful_since);
                    *course = Course { generation, may_be_applied, doubtful_since, ..Course::new() };
                    self.step_mut(id.step).waived = false;
                    self.forget_votes(id.step);
                }
                self.rebuild();
            }
            (Succeeded { .. }, StepEvent::Compared { difference }) if id.direction == Direction::Forward => {
                let name = &declared.name;
                let Some(check) = self.check.as_mut().filter(|check| check.todo.contains(&id.step)) else {
                    return Err("nobody looks at it".into());
                };
                check.todo.remove(&id.step);
                check.differences.extend(difference.as_ref().map(|how| format!("{name} {how}")));
                return Ok(());
            }
            (Held { .. }, StepEvent::Waived)
                if id.direction == Direction::Forward && forward && course.attempts == 0 && !proven =>
            {
                course.at = Untouched;
                self.step_mut(id.step).waived = true;
            }
            (_, StepEvent::Resource { kind, name, fate, details }) => {
                let known =
                    |one: &&mut Resource| one.step == declared.name && one.kind == *kind && one.name == *name;
                match self.resources.iter_mut().find(known) {
                    Some(one) => {
                        one.fate = *fate;
                        // That it is gone says nothing of what it was.
                        if details.is_some() {
                            one.details.clone_from(details);
                        }
                    }
                    None => self.resources.push(Resource {
                        step: declared.name.clone(),
                        kind: kind.clone(),
                        name: name.clone(),
                        fate: *fate,
                        details: details.clone(),
                    }),
                }
                if fate.is_settled() {
                    self.stuck = false;
                }
            }
            (at, what) => return Err(format!("{what:?} is no move from {at:?}")),
        }
        if declared.point_of_no_return && self.step(id.step).forward.may_be_applied {
            self.past_no_return = true;
        }
        self.recalled_is_done(id.step);
        self.settle(id.step);
        Ok(())
    }

    /// A step whose undo is done while the run goes forward is held: it may be done again, or skipped.
    fn recalled_is_done(&mut self, ix: StepIx) {
        let phase = self.phase;
        let step = self.step_mut(ix);
        let Some(undo) = &step.undo else { return };
        if !step.recalled || phase != Phase::Forward || !undo.at.is_done() {
            return;
        }
        let (forward, undone) = (step.forward.generation + 1, undo.generation + 1);
        step.forward = Course { generation: forward, ..Course::new() };
        step.forward.at = CourseAt::Held { why: "it was undone by an operator".into() };
        step.undo = Some(Box::new(Course { generation: undone, ..Course::new() }));
        step.recalled = false;
        step.waived = false;
        self.rebuild();
    }

    /// The owner changed: nobody knows how the calls in flight ended.
    fn doubt_all(&mut self, at: Time) {
        let plan = Arc::clone(&self.plan);
        for (ix, declared) in plan.steps() {
            let step = self.step_mut(ix);
            for course in std::iter::once(&mut step.forward).chain(step.undo.as_deref_mut()) {
                if course.at == CourseAt::Running {
                    course.at = CourseAt::InDoubt { since: at, not_before: None, unknowns: 0, settled: None };
                    course.may_be_applied = true;
                    course.doubtful_since = Some(at);
                }
            }
            let passed = declared.point_of_no_return && step.forward.may_be_applied;
            self.past_no_return |= passed;
            self.settle(ix);
        }
        self.running = 0;
    }

    /// From here on "settled" means undone, and the steps behind stand in the way of those before.
    fn turn_round(&mut self, at: Time, how: &RollBack) -> Result<(), String> {
        let mut left = BTreeSet::new();
        for name in &how.leave {
            left.insert(self.plan.find(name).ok_or_else(|| format!("the plan has no step \"{name}\""))?);
        }
        self.phase = Phase::RollingBack;
        self.turned = Some(Box::new(Turned { at, left, past_failures: how.past_failures }));
        for step in &mut self.steps {
            step.recalled = false;
            // What waited for its next attempt is looked at now: there is no next attempt.
            if let CourseAt::InDoubt { not_before, .. } = &mut step.forward.at {
                *not_before = None;
            }
        }
        self.rebuild();
        Ok(())
    }

    /// Whether a step that is done may be done again: nobody has gone on from it.
    pub(crate) fn may_restart(&self, ix: StepIx) -> bool {
        let untouched = |ix: &StepIx| {
            let course = &self.step(*ix).forward;
            course.attempts == 0
                && !course.may_be_applied
                && matches!(course.at, CourseAt::Untouched | CourseAt::Held { .. })
        };
        let at = &self.step(ix).forward.at;
        self.phase == Phase::Forward
            && !self.recalled(ix)
            && (at.is_done() || matches!(at, CourseAt::Failed { .. }))
            && self.plan.step(ix).before.iter().all(untouched)
    }

    /// Whether the undo of a recalled step waits for that of another, over any number of steps between.
    pub(super) fn recalled_behind(&self, ix: StepIx) -> bool {
        if !self.recalled(ix) {
            return false;
        }
        let mut seen = BTreeSet::new();
        let mut todo = self.plan.step(ix).before.clone();
        while let Some(ix) = todo.pop() {
            if self.recalled(ix) {
                return true;
            }
            if seen.insert(ix) {
                todo.extend(&self.plan.step(ix).before);
            }
        }
        false
    }

    /// Some step behind, over any number of steps between, that is under way or may be there: this one cannot be undone
    /// under it.
    fn stands_on(&self, ix: StepIx) -> Option<crate::StepName> {
        let mut seen = BTreeSet::new();
        let mut todo = self.plan.step(ix).before.clone();
        while let Some(ix) = todo.pop() {
            if !seen.insert(ix) {
                continue;
            }
            let (declared, state) = (self.plan.step(ix), self.step(ix));
            let under_way = matches!(
                state.forward.at,
                CourseAt::Running
                    | CourseAt::Waiting(_)
                    | CourseAt::InDoubt { .. }
                    | CourseAt::BackingOff { .. }
            );
            let there = state.forward.may_be_applied && declared.undo.is_some() && !state.recalled;
            if under_way || there {
                return Some(Arc::clone(&declared.name));
            }
            todo.extend(&declared.before);
        }
        None
    }

    /// Whether everything that a step requires is proven, or somebody has waived it.
    pub(crate) fn is_proven(&self, ix: StepIx) -> bool {
        let requires = &self.plan.step(ix).requires;
        requires.is_empty() || self.step(ix).waived || self.missing_proof(ix).is_none()
    }

    /// What is required and not proven, as a sentence.
    pub(crate) fn missing_proof(&self, ix: StepIx) -> Option<String> {
        self.plan.step(ix).requires.iter().find_map(|proof| {
            let name = &self.plan.step(proof.step).name;
            let wanted = format!("it requires that \"{name}{}\" is {}", proof.at, proof.equals);
            match &self.step(proof.step).forward.at {
                CourseAt::Succeeded { output } => {
                    let output = output.value();
                    match output.pointer(&proof.at) {
                        Some(found) if *found == proof.equals => None,
                        Some(found) => Some(format!("{wanted}; it is {found}")),
                        None => Some(format!("{wanted}; there is no such place in its output")),
                    }
                }
                CourseAt::Skipped { .. } => {
                    Some(format!("{wanted}; the step was skipped, and that is no proof"))
                }
                _ => Some(format!("{wanted}; the step has no output")),
            }
        })
    }

    /// Whether nothing is left that a rolled back run may not leave.
    pub(crate) fn is_clean(&self) -> bool {
        self.residue().next().is_none() && self.failed_undos().is_empty()
    }

    /// The run that a step is, once it has begun.
    pub fn run_of(&self, ix: StepIx) -> Option<crate::RunId> {
        let step = self.plan.step(ix);
        if step.kind != Kind::Run {
            return None;
        }
        let course = &self.step(ix).forward;
        let key = idempotency_key(self.run, &step.name, Direction::Forward, course.generation);
        Some(run_of_step(course.first_started?, key))
    }

    /// Everything that the run made, moved or was about to.
    pub fn resources(&self) -> impl Iterator<Item = &Resource> {
        self.resources.iter()
    }

    /// What the run made and nobody has accounted for.
    pub fn residue(&self) -> impl Iterator<Item = &Resource> {
        let left = self.turned.as_ref().map(|turned| &turned.left);
        let stays = move |one: &Resource| {
            self.plan.find(&one.step).is_some_and(|ix| {
                left.is_some_and(|left| left.contains(&ix))
                    // What was only announced, by a step of which every attempt says that nothing happened, never came to be.
                    || (one.fate == Fate::Planned && !self.step(ix).forward.may_be_applied)
            })
        };
        self.resources.iter().filter(move |one| !one.fate.is_settled() && !stays(one))
    }
}

fn signal_of(output: &crate::Json) -> Option<uuid::Uuid> {
    let output = output.value();
    output.pointer("/signal/id")?.as_str()?.parse().ok()
}

/// What may be written of a run that is left alone: who has it, how calls and looks in flight ended, and what people
/// want.
fn is_fact(event: &Event) -> bool {
    use StepEvent::{Checkpointed, Compared, Failed, Probed, Progressed, Resource, Succeeded};
    match event {
        Event::Claimed { .. }
        | Event::Quarantined { .. }
        | Event::Acted(_)
        | Event::Refused { .. }
        | Event::Finished { outcome: Outcome::Closed } => true,
        Event::Step { what, .. } => matches!(
            what,
            Checkpointed { .. }
                | Progressed { .. }
                | Succeeded { .. }
                | Failed { .. }
                | Probed { .. }
                | Compared { .. }
                | Resource { .. }
        ),
        _ => false,
    }
}

/// Whether a step whose last attempt is in doubt may have another one.
fn may_repeat(effect: Effect, settled: Option<&Answer>) -> bool {
    match settled {
        _ if effect.at_most_once => false,
        Some(Answer::Absent | Answer::Partial) => true,
        Some(_) => false,
        None => !effect.probed,
    }
}
