//! A node process: what it makes of its copy of the journal. All decisions here are the crate's own.

use backstay_machine::{
    ActivityError, Applied, ClaimReason, Command, CourseAt, CourseId, Event, Json, Phase, State, StepEvent,
    StepIx, decide, idempotency_key, judge, judge_probe, step_event,
};

use crate::journal::{Journal, Library};
use crate::moves::Saga;
use crate::mutant::Mutant;
use crate::system::{
    Append, Asked, Attempt, Breach, Call, Found, Hand, Life, Process, Reply, Request, System,
};
use crate::time;

impl Saga {
    /// What the owner has to append: the crate's decisions on its copy of the journal.
    pub fn batch(&self, system: &System, process: &Process) -> Option<Append> {
        let Hand::Owner { claim, copy, writing: false } = &process.hand else { return None };
        let (claim, now) = (*claim, time(system.clock));
        let mut goal = copy.clone();
        let mut takes_message = false;
        let push = |goal: &mut Journal, mut event: Event| {
            if let Event::Step { course, generation, what: StepEvent::Started { key, .. }, .. } = &mut event
                && self.is(Mutant::RetriedUnderTheOldKey)
                && *generation > 0
            {
                let name = &self.plan.step(course.step).name;
                *key = idempotency_key(Library::run(), name, course.direction, 0);
            }
            let row = self.row(goal, claim, process.life, system.clock, event);
            *goal = self.library.with(goal, row);
        };
        if copy.live()?.claim() < claim {
            push(&mut goal, Event::Claimed { node: "node".into(), reason: ClaimReason::Free });
        } else {
            for call in &process.calls {
                let (Some(reply), course) = (call.answer, call.of.course) else { continue };
                let state = goal.live()?;
                // The run may have given it up in the meantime.
                if awaits(state, &call.of) {
                    let what = self.outcome(&goal, state, course, reply, system.clock);
                    let event = step_event(state, course, what);
                    push(&mut goal, event);
                }
            }
            if let Some(asked) = process.probe {
                let step = self.plan.steps().nth(asked.step)?.0;
                for what in self.probed(goal.live()?, step, asked, system.clock) {
                    let event = step_event(goal.live()?, CourseId::forward(step), what);
                    push(&mut goal, event);
                }
            }
            if let Some((course, generation)) = system.inbox {
                takes_message = true;
                let at = goal.live()?.course(course);
                if at.generation == generation && can_be_retried(&at.at) {
                    let generation = generation + 1;
                    push(
                        &mut goal,
                        Event::Step {
                            course,
                            generation,
                            attempt: 0,
                            what: StepEvent::Retried { input: None },
                        },
                    );
                }
            }
            for command in decide(goal.live()?, now, usize::MAX).commands {
                if let Command::Append(event) = command {
                    push(&mut goal, event);
                }
            }
        }
        (goal != *copy || takes_message).then(|| Append {
            life: process.life,
            claim,
            base: copy.clone(),
            goal,
            begun: true,
            heard: true,
            takes_message,
        })
    }

    pub fn outcome(
        &self,
        journal: &Journal,
        state: &State,
        id: CourseId,
        reply: Reply,
        clock: u8,
    ) -> StepEvent {
        let mut applied = match reply {
            Reply::Done => return StepEvent::Succeeded { output: Json::null() },
            Reply::NotApplied => Applied::No,
            Reply::Unclear => Applied::Maybe,
        };
        if self.is(Mutant::UndoSkippedForFailed) {
            applied = Applied::No;
        }
        let error = ActivityError {
            code: "error".into(),
            message: "error".into(),
            retryable: true,
            retry_after: None,
            applied,
            details: None,
        };
        let judged = judge(state, id, error, time(clock));
        let course = state.course(id);
        match judged {
            StepEvent::Failed { error, retry_at: None }
                if self.is(Mutant::FailuresCountedInMemory)
                    && state.phase() == Phase::Forward
                    && course.failures > journal.history.failures_of_this_claim(id, course.generation) =>
            {
                StepEvent::Failed { error, retry_at: Some(time(clock + 1)) }
            }
            judged => judged,
        }
    }

    pub fn probed(&self, state: &State, step: StepIx, asked: Asked, clock: u8) -> Vec<StepEvent> {
        let found = match asked.answer {
            Found::Unknown if self.is(Mutant::UnknownIsAbsent) => Found::Absent,
            found => found,
        };
        let asked_at = if self.is(Mutant::AbsentTrustedTooEarly) { asked.at + 100 } else { asked.at };
        let output = (found == Found::Present).then(Json::null);
        judge_probe(state, step, found.answer(), output, time(asked_at), time(clock))
    }

    /// Attempts that the process must call for: they are journaled as running, and no call of it is about them.
    pub fn due_calls(&self, system: &System, process: &Process) -> Vec<Attempt> {
        let Hand::Owner { claim, copy, .. } = &process.hand else { return Vec::new() };
        // What runs under the claim before is in doubt as soon as `claimed` is written, and none of its calls.
        if copy.live().is_none_or(|state| state.claim() != *claim) {
            return Vec::new();
        }
        let mut due = running(copy);
        if self.is(Mutant::IntentAfterEffect) {
            let under_way =
                system.appends.iter().filter(|append| append.life == process.life && append.heard);
            due.extend(under_way.flat_map(|append| running(&append.goal)));
        }
        due.dedup();
        due.retain(|attempt| process.calls.iter().all(|call| call.of != *attempt));
        due
    }

    pub fn may_call(&self, system: &System, life: Life) -> bool {
        !system.life(life).expired || self.is(Mutant::CallWithoutLease)
    }

    pub fn call(&self, system: &mut System, life: Life, of: Attempt) {
        if !system.journal.history.intends(of.course, of.generation, of.attempt) {
            system.broken.insert(Breach::EffectBeforeIntent);
        }
        let calls = &mut system.process_mut(life).calls;
        calls.push(Call { of, answer: None });
        calls.sort_by_key(|call| call.of);
        system.world.requests.push(Request { of, from: life, landed: false, until: None });
        system.world.requests.sort();
    }

    /// The append is over: a client that listens learns how.
    pub fn answer(&self, system: &mut System, append: &Append, committed: bool) {
        if !append.heard {
            return;
        }
        if system.process(append.life).is_none() {
            return;
        }
        if !committed {
            system.process_mut(append.life).hand = Hand::Unsure { claim: append.claim };
            return;
        }
        let journal = append.goal.clone();
        self.know(system, append.life, append.claim, journal);
    }

    /// The process has a fresh copy of the journal.
    pub fn know(&self, system: &mut System, life: Life, claim: i32, journal: Journal) {
        let over = journal.live().is_some_and(State::is_over);
        if over {
            self.drop_calls(system, life);
        }
        let process = system.process_mut(life);
        process.probe = None;
        if over {
            process.calls.clear();
            process.hand = Hand::Idle;
            return;
        }
        let answered: Vec<_> = match journal.live() {
            Some(state) => process.calls.iter().map(|call| call.of).filter(|of| !awaits(state, of)).collect(),
            None => Vec::new(),
        };
        process.calls.retain(|call| !answered.contains(&call.of));
        process.hand = Hand::Owner { claim, copy: journal, writing: false };
        self.hang_up(system, |request| request.from == life && answered.contains(&request.of));
        system
            .world
            .requests
            .retain(|request| !(request.from == life && answered.contains(&request.of) && request.landed));
        // A node calls as soon as the start is durable and its lease allows it. That it dies or freezes before it
        // does so looks, from outside, like a request that has no effect.
        if self.may_call(system, life) && !self.is(Mutant::CallWithoutLease) {
            for of in self.due_calls(system, system.process(life).unwrap()) {
                self.call(system, life, of);
            }
        }
    }

    /// The process has nothing to do with the run any more.
    pub fn put_down(&self, system: &mut System, life: Life, hand: Hand) {
        self.drop_calls(system, life);
        let process = system.process_mut(life);
        process.hand = hand;
        process.calls.clear();
        process.probe = None;
    }

    /// The process is no more; what it sent goes on without it.
    pub fn gone(&self, system: &mut System, life: Life) {
        self.drop_calls(system, life);
        for append in &mut system.appends {
            if append.life == life {
                append.heard = false;
            }
        }
        system.processes.retain(|process| process.life != life);
    }
}

pub fn running(journal: &Journal) -> Vec<Attempt> {
    let Some(state) = journal.live() else { return Vec::new() };
    let both = |ix| [CourseId::forward(ix), CourseId::undo(ix)];
    let of = |course: CourseId| {
        let at = state.course(course);
        (at.at == CourseAt::Running).then_some(Attempt {
            course,
            generation: at.generation,
            attempt: at.attempts,
        })
    };
    state.plan().steps().flat_map(|(ix, _)| both(ix)).filter_map(of).collect()
}

/// The journal says that this attempt runs.
pub fn awaits(state: &State, of: &Attempt) -> bool {
    let course = state.course(of.course);
    course.at == CourseAt::Running && course.generation == of.generation && course.attempts == of.attempt
}

pub fn can_be_retried(at: &CourseAt) -> bool {
    matches!(at, CourseAt::Failed { .. } | CourseAt::Held { .. })
}

/// Nothing to do, nothing under way: the run goes back into the index, with the time at which it is due.
pub fn may_release(state: &State, process: &Process, system: &System) -> bool {
    process.calls.is_empty()
        && process.probe.is_none()
        && system.inbox.is_none()
        && state.running() == 0
        && decide(state, time(system.clock), usize::MAX).commands.is_empty()
        && !system.life(process.life).ended
        && matches!(process.hand, Hand::Owner { claim, writing: false, .. } if system.owns(process.life, claim))
}
