//! What can happen next: the moves of the database, of the nodes, of the world and of the operator.

use std::collections::BTreeSet;
use std::sync::Arc;

use backstay_machine::plan::OnFailure;
use backstay_machine::{Command, CourseAt, CourseId, Event, Phase, Plan, State, StepEvent, StepIx, decide};
use stateright::{Model, Property};

use crate::journal::{Journal, Library};
use crate::mutant::Mutant;
use crate::node::may_release;
use crate::properties;
use crate::system::{
    Append, Asked, Attempt, Faults, Found, Hand, Life, LifeRow, Process, Reply, Request, RunRow, System,
    World,
};
use crate::world::{hung_up, request_of};
use crate::{tick_of, time};

/// One run of one plan on a few nodes.
pub struct Saga {
    pub plan: Arc<Plan>,
    pub library: Library,
    /// Node processes at the beginning.
    pub nodes: usize,
    /// A process is started when fewer are at work.
    pub nodes_kept: usize,
    /// The bounds.
    pub faults: Faults,
    pub mutant: Mutant,
    /// What must be seen somewhere within these bounds.
    pub sights: &'static [&'static str],
}

/// One move.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Move {
    // The database, the clock and the leases.
    /// The time comes that something waits for.
    Tick,
    /// A lease runs out.
    Expire(Life),
    /// The life renews its lease, or learns that it has ended.
    Renew(Life),
    /// The row of a life whose lease ran out is locked, once no append holds it, and ended.
    Takeover(Life),
    /// An append on its way gets its lock, or is refused.
    Begin(usize),
    /// An append under way is committed or fails.
    Commit(usize),

    // A node process.
    Start,
    Crash(Life),
    Claim(Life),
    /// The run is claimed, and the answer lost.
    ClaimUnheard(Life),
    /// It finds that it owns a run that it knows nothing of.
    Adopt(Life),
    Read(Life),
    /// It reads index row and journal again, after an append of which it does not know whether it took place.
    Reread(Life),
    /// It sees that the journal has grown past its copy: the index row says so whenever it looks for work.
    Notice(Life),
    /// It appends what it has to append; the statement gets its lock at once.
    Write(Life),
    /// The same, but the connection breaks while the statement is on its way.
    WriteUnheard(Life),
    /// The connection breaks while the statement is under way.
    Disconnect(Life),
    /// It has nothing to do now, and gives the run back with the time at which there will be.
    Release(Life),
    /// It is told to stop: it hangs up on its calls and gives the run back in the middle.
    HandOver(Life),
    Call(Life, Attempt),
    End(Life, usize, Reply),
    Probe(Life, StepIx, bool),

    // The world and the operator.
    Land(usize),
    Retry(CourseId),

    // Only of mutants.
    Peek(Life),
    ClaimWithOldSnapshot(Life),
}

impl Move {
    /// The engine gets on by this. Faults, operators and statements that nobody waits for do not count.
    pub fn is_progress(&self, system: &System) -> bool {
        match self {
            Move::Expire(life) => system.process(*life).is_none(),
            // A call that is waited for ends some day.
            Move::Land(index) => system.world.requests[*index].until.is_none(),
            Move::Crash(_)
            | Move::ClaimUnheard(_)
            | Move::WriteUnheard(_)
            | Move::Disconnect(_)
            | Move::Begin(_)
            | Move::Retry(_)
            | Move::Peek(_)
            | Move::Release(_)
            | Move::HandOver(_) => false,
            _ => true,
        }
    }
}

impl Saga {
    pub fn is(&self, mutant: Mutant) -> bool {
        self.mutant == mutant
    }

    pub fn empty(&self, journal: &Journal) -> System {
        System {
            clock: 0,
            lives: vec![LifeRow::default(); self.nodes],
            run: RunRow { owner: None, claim: 0, due: Some(0), over: false },
            journal: journal.clone(),
            inbox: None,
            appends: Vec::new(),
            processes: (1..=self.nodes as Life)
                .map(|life| Process { life, hand: Hand::Idle, calls: Vec::new(), probe: None })
                .collect(),
            world: World {
                there: vec![false; self.plan.len()],
                landings: vec![(0, 0); self.plan.len()],
                requests: Vec::new(),
                known: BTreeSet::new(),
            },
            left: self.faults,
            broken: BTreeSet::new(),
        }
    }
}

impl Model for Saga {
    type State = System;
    type Action = Move;

    fn init_states(&self) -> Vec<System> {
        vec![self.empty(&self.library.first())]
    }

    fn actions(&self, system: &System, moves: &mut Vec<Move>) {
        let left = &system.left;
        let state = system.journal.live();

        // The clock moves only when something waits for it: any other time is as good as now.
        if !system.run.over && state.is_some_and(|state| waits_for(state, system.clock)) {
            moves.push(Move::Tick);
        }
        for index in 0..system.world.requests.len() {
            if !system.world.requests[index].landed {
                moves.push(Move::Land(index));
            }
        }
        for (index, append) in system.appends.iter().enumerate() {
            moves.push(if append.begun { Move::Commit(index) } else { Move::Begin(index) });
        }
        for (n, row) in system.lives.iter().enumerate() {
            let life = n as Life + 1;
            let owns = system.run.owner == Some(life);
            let process = system.process(life);
            let idle = process.is_none_or(|process| process.hand == Hand::Idle) && !owns;
            if !row.expired && !row.ended && !idle && (process.is_none() || left.expiries > 0) {
                moves.push(Move::Expire(life));
            }
            if row.expired && process.is_some_and(|process| process.hand != Hand::Refused) {
                moves.push(Move::Renew(life));
            }
            if self.takes_over(system, life)
                || (self.is(Mutant::UnlockedFence) && owns && row.expired && !row.ended)
            {
                moves.push(Move::Takeover(life));
            }
        }
        if system.run.over {
            // Nothing is left but what lands late.
            return;
        }
        if system.processes.iter().filter(|process| process.hand != Hand::Refused).count() < self.nodes_kept {
            moves.push(Move::Start);
        }
        if left.retries > 0 && system.inbox.is_none() {
            moves.extend(state.map(retriable).unwrap_or_default().into_iter().map(Move::Retry));
        }
        // Idle processes that nothing of is left anywhere differ by their names only: the first one moves for all.
        let mut claimed_for = Vec::new();
        for process in &system.processes {
            let life = process.life;
            let row = *system.life(life);
            if left.crashes > 0 && !matches!(process.hand, Hand::Idle | Hand::Refused) {
                moves.push(Move::Crash(life));
            }
            match &process.hand {
                Hand::Idle => {
                    if system.run.owner == Some(life) {
                        if !self.is(Mutant::ClaimForgotten) && !row.ended {
                            moves.push(Move::Adopt(life));
                        }
                    } else if !row.ended && !claimed_for.contains(&(row, left_behind(system, life))) {
                        claimed_for.push((row, left_behind(system, life)));
                        if self.claimable(system) {
                            moves.push(Move::Claim(life));
                            if left.losses > 0 {
                                moves.push(Move::ClaimUnheard(life));
                            }
                        }
                        if self.is(Mutant::OneSnapshot)
                            && system.run.owner.is_some_and(|owner| {
                                let row = system.life(owner);
                                row.expired && !row.ended
                            })
                        {
                            moves.push(Move::Peek(life));
                        }
                    }
                }
                Hand::Peeking { .. } => {
                    if system.run.owner.is_some_and(|owner| self.takes_over(system, owner)) {
                        moves.push(Move::ClaimWithOldSnapshot(life));
                    }
                }
                Hand::Claimed { .. } => moves.push(Move::Read(life)),
                Hand::Unsure { .. } => moves.push(Move::Reread(life)),
                Hand::Refused => {}
                Hand::Owner { copy, writing, claim } => {
                    if !*writing
                        && *copy != system.journal
                        && system.owns(life, *claim)
                        && !self.is(Mutant::NeverLooksAgain)
                    {
                        moves.push(Move::Notice(life));
                    }
                    if *writing {
                        if left.losses > 0 {
                            moves.push(Move::Disconnect(life));
                        }
                    } else if self.batch(system, process).is_some() {
                        moves.push(Move::Write(life));
                        if left.losses > 0 {
                            moves.push(Move::WriteUnheard(life));
                        }
                    } else if copy.live().is_some_and(|state| may_release(state, process, system))
                        && (*copy == system.journal || self.is(Mutant::ReleasedByAnOldCopy))
                    {
                        moves.push(Move::Release(life));
                    }
                    if !*writing
                        && left.handovers > 0
                        && *copy == system.journal
                        && system.owns(life, *claim)
                        && !row.ended
                    {
                        moves.push(Move::HandOver(life));
                    }
                    if self.may_call(system, life) {
                        moves.extend(
                            self.due_calls(system, process).into_iter().map(|of| Move::Call(life, of)),
                        );
                    }
                    if !*writing && process.probe.is_none() && !row.ended {
                        let decision = copy.live().map(|state| decide(state, time(system.clock), usize::MAX));
                        for command in decision.unwrap_or_default().commands {
                            if let Command::Probe(step) = command {
                                moves.push(Move::Probe(life, step, true));
                                if left.blanks > 0 {
                                    moves.push(Move::Probe(life, step, false));
                                }
                            }
                        }
                    }
                }
            }
            for (index, call) in process.calls.iter().enumerate() {
                // What a process still hears after its life has ended changes nothing: it can only try to write it.
                if call.answer.is_some() || row.ended {
                    continue;
                }
                let landed = request_of(system, life, &call.of).is_some_and(|request| request.landed);
                if landed {
                    moves.push(Move::End(life, index, Reply::Done));
                }
                if left.failures > 0 || hung_up(system, life, &call.of) {
                    moves.push(Move::End(life, index, Reply::Unclear));
                    if !landed && call.of.is_forward() && left.failures > 0 {
                        moves.push(Move::End(life, index, Reply::NotApplied));
                    }
                }
            }
        }
    }

    fn next_state(&self, before: &System, action: Move) -> Option<System> {
        let mut system = before.clone();
        match action {
            Move::Tick => {
                system.clock += 1;
                let clock = system.clock;
                let world = &mut system.world;
                world.requests.retain(|request| request.landed || request.until.is_none_or(|at| at > clock));
            }
            Move::Expire(life) => {
                if before.process(life).is_some() {
                    system.left.expiries -= 1;
                }
                system.life_mut(life).expired = true;
                self.hang_up(&mut system, |request| request.from == life);
            }
            Move::Renew(life) => {
                if system.life(life).ended && !self.is(Mutant::RenewedAfterTheEnd) {
                    self.put_down(&mut system, life, Hand::Refused);
                } else {
                    system.life_mut(life).expired = false;
                }
            }
            Move::Takeover(life) => system.life_mut(life).ended = true,
            Move::Begin(index) => {
                if system.life(system.appends[index].life).ended {
                    system.appends.remove(index);
                } else {
                    system.appends[index].begun = true;
                }
            }
            Move::Commit(index) => {
                let append = system.appends.remove(index);
                let committed = self.commit(&mut system, &append);
                self.answer(&mut system, &append, committed);
            }
            Move::Start => {
                system.processes.retain(|process| process.hand != Hand::Refused);
                system.lives.push(LifeRow::default());
                let life = system.lives.len() as Life;
                system.processes.push(Process { life, hand: Hand::Idle, calls: Vec::new(), probe: None });
            }
            Move::Crash(life) => {
                system.left.crashes -= 1;
                self.gone(&mut system, life);
            }
            Move::Claim(life) => {
                let claim = self.claim(&mut system, life);
                system.process_mut(life).hand = Hand::Claimed { claim };
            }
            Move::ClaimUnheard(life) => {
                system.left.losses -= 1;
                self.claim(&mut system, life);
            }
            Move::Adopt(life) => {
                let claim = system.run.claim;
                system.process_mut(life).hand = Hand::Claimed { claim };
            }
            Move::Read(life) => {
                let Hand::Claimed { claim } = before.process(life)?.hand else { return None };
                let journal = system.journal.clone();
                self.know(&mut system, life, claim, journal);
            }
            Move::Reread(life) => {
                let Hand::Unsure { claim } = before.process(life)?.hand else { return None };
                if system.owns(life, claim) {
                    let journal = system.journal.clone();
                    self.know(&mut system, life, claim, journal);
                } else {
                    self.put_down(&mut system, life, Hand::Idle);
                }
            }
            Move::Notice(life) => {
                let Hand::Owner { claim, .. } = before.process(life)?.hand else { return None };
                let journal = system.journal.clone();
                self.know(&mut system, life, claim, journal);
            }
            Move::Write(life) => {
                if system.life(life).ended && !self.is(Mutant::UnlockedFence) {
                    self.put_down(&mut system, life, Hand::Refused);
                } else if system.life(life).ended {
                    return None;
                } else {
                    let append = self.batch(before, before.process(life)?)?;
                    self.write(&mut system, append);
                    if let Hand::Owner { writing, .. } = &mut system.process_mut(life).hand {
                        *writing = true;
                    }
                }
            }
            Move::WriteUnheard(life) => {
                system.left.losses -= 1;
                let append = self.batch(before, before.process(life)?)?;
                let claim = append.claim;
                self.write(&mut system, Append { begun: false, heard: false, ..append });
                system.process_mut(life).hand = Hand::Unsure { claim };
            }
            Move::Disconnect(life) => {
                system.left.losses -= 1;
                let append = system.appends.iter_mut().find(|append| append.life == life && append.heard)?;
                append.heard = false;
                let claim = append.claim;
                system.process_mut(life).hand = Hand::Unsure { claim };
            }
            Move::Release(life) => {
                let Hand::Owner { copy, .. } = &before.process(life)?.hand else { return None };
                let wake_at = decide(copy.live()?, time(system.clock), usize::MAX).wake_at;
                system.run.owner = None;
                system.run.due = wake_at.map(tick_of);
                system.process_mut(life).hand = Hand::Idle;
            }
            Move::HandOver(life) => {
                system.left.handovers -= 1;
                system.run.owner = None;
                system.run.due = Some(system.clock);
                self.put_down(&mut system, life, Hand::Idle);
            }
            Move::Call(life, of) => self.call(&mut system, life, of),
            Move::End(life, index, reply) => {
                let of = before.process(life)?.calls[index].of;
                let fault = match reply {
                    Reply::Done => false,
                    Reply::NotApplied => true,
                    Reply::Unclear => !hung_up(before, life, &of),
                };
                if fault {
                    system.left.failures = system.left.failures.checked_sub(1)?;
                }
                system.process_mut(life).calls[index].answer = Some(reply);
                let this = |request: &Request| request.from == life && request.of == of;
                if reply == Reply::NotApplied {
                    system.world.requests.retain(|request| !this(request));
                } else {
                    self.hang_up(&mut system, this);
                    system.world.requests.retain(|request| !(this(request) && request.landed));
                }
            }
            Move::Probe(life, step, answered) => {
                let answer = match (answered, system.world.there[step.index()]) {
                    (false, _) => Found::Unknown,
                    (true, true) => Found::Present,
                    (true, false) => Found::Absent,
                };
                if !answered {
                    system.left.blanks -= 1;
                }
                let at = system.clock;
                system.process_mut(life).probe = Some(Asked { step: step.index(), at, answer });
            }
            Move::Land(index) => self.land(&mut system, index),
            Move::Retry(course) => {
                system.left.retries -= 1;
                let generation = before.journal.live()?.course(course).generation;
                if self.is(Mutant::RetriedPastTheOwner) {
                    let last = &before.journal.row;
                    let event = Event::Step {
                        course,
                        generation: generation + 1,
                        attempt: 0,
                        what: StepEvent::Retried { input: None },
                    };
                    let row = self.row(&before.journal, last.claim, 0, system.clock, event);
                    system.journal = self.library.with(&before.journal, row);
                    system.run.due = Some(system.clock);
                } else {
                    system.inbox = Some((course, generation));
                }
            }
            Move::Peek(life) => {
                let snapshot = system.journal.clone();
                system.process_mut(life).hand = Hand::Peeking { snapshot };
            }
            Move::ClaimWithOldSnapshot(life) => {
                let Hand::Peeking { snapshot } = before.process(life)?.hand.clone() else { return None };
                let owner = system.run.owner?;
                system.life_mut(owner).ended = true;
                let claim = self.claim(&mut system, life);
                self.know(&mut system, life, claim, snapshot);
            }
        }
        Some(system)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        properties::all(self)
    }
}

/// What an operator is shown a button for: a held step, and an undo that failed for good.
fn retriable(state: &State) -> Vec<CourseId> {
    let mut found = Vec::new();
    for (ix, step) in state.plan().steps() {
        let forward = CourseId::forward(ix);
        if state.phase() == Phase::Forward
            && step.on_failure == OnFailure::Hold
            && matches!(state.course(forward).at, CourseAt::Held { .. })
        {
            found.push(forward);
        }
        let undo = CourseId::undo(ix);
        if state.phase() == Phase::RollingBack && matches!(state.course(undo).at, CourseAt::Failed { .. }) {
            found.push(undo);
        }
    }
    found
}

fn waits_for(state: &State, clock: u8) -> bool {
    decide(state, time(clock), usize::MAX).wake_at.is_some_and(|at| at > time(clock))
}

/// The life, if something of it is still out.
fn left_behind(system: &System, life: Life) -> Option<Life> {
    let out = system.appends.iter().any(|append| append.life == life)
        || system.world.requests.iter().any(|request| request.from == life);
    out.then_some(life)
}
