//! A run that is carried out one atomic move at a time: a command is journaled, an effect lands, an outcome is
//! journaled, a question is put or answered, time passes. Between any two moves it can be cut.

use std::rc::Rc;
use std::sync::Arc;

use backstay_machine::plan::{Kind, Span};
use backstay_machine::*;
use chrono::{DateTime, TimeDelta, Utc};
use serde_json::json;
use uuid::Uuid;

use super::world::{Landing, World};
use super::{Dice, oracle};

/// What an attempt comes to.
#[derive(Clone, Debug)]
pub enum Ending {
    Succeeds,
    /// Its effect happens, or not, or half of it; then it fails.
    Fails {
        error: ActivityError,
        lands: Lands,
    },
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Lands {
    No,
    Yes,
    Partly,
    /// As late after the failure as the plan says is possible.
    Late,
}

pub type Script = Rc<dyn Fn(&Plan, CourseId, u32, &mut Dice) -> Ending>;

/// How a run came to rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Succeeded,
    RolledBack,
    Held,
    Stuck,
    Committed,
    Closed,
    /// For people, or for a signal.
    Waits,
}

#[derive(Clone, Debug)]
struct Call {
    landing: Landing,
    ending: Ending,
    landed: bool,
}

#[derive(Clone, Debug)]
struct Question {
    step: StepIx,
    /// The generation and the attempt that it is about.
    about: (u32, u32),
    asked_at: Time,
    answer: Answer,
}

/// One atomic move.
#[derive(Clone, Debug)]
enum Move {
    Command(Command),
    Land(usize),
    Outcome(usize),
    Answer(usize),
    TimeTo(Time),
}

#[derive(Clone)]
pub struct Sim {
    pub state: State,
    pub now: Time,
    pub journal: Vec<Journaled>,
    pub world: World,
    pub room: usize,
    /// Of a hundred probes, how many find nothing out.
    pub blind: usize,
    /// A call has its effect at once, so that only the order of events is left to choose.
    pub instant: bool,
    /// The world was not there from the start, and says nothing.
    unseen: bool,
    script: Script,
    calls: Vec<Call>,
    questions: Vec<Question>,
}

impl Sim {
    pub fn new(plan: Arc<Plan>) -> Self {
        let mut sim = Self {
            state: State::new(RunId(Uuid::nil()), plan),
            now: DateTime::<Utc>::UNIX_EPOCH,
            journal: Vec::new(),
            world: World::default(),
            room: usize::MAX,
            blind: 0,
            instant: false,
            unseen: false,
            script: Rc::new(|_, _, _, _| Ending::Succeeds),
            calls: Vec::new(),
            questions: Vec::new(),
        };
        sim.append(Event::Submitted { by: None });
        sim.claim();
        sim
    }

    /// Goes on from a journal that somebody else left. The world starts empty: only the journal is looked at.
    pub fn resumed(state: State, journal: Vec<Journaled>, now: Time) -> Self {
        let mut sim = Self { state, journal, now, unseen: true, ..Self::new(super::chain(&["x"])) };
        sim.world = World::default();
        sim.claim();
        sim
    }

    pub fn scripted(mut self, script: impl Fn(&Plan, CourseId, u32, &mut Dice) -> Ending + 'static) -> Self {
        self.script = Rc::new(script);
        self
    }

    /// That step, forward, fails for good; whether it did something is not known, and it did.
    pub fn failing(self, name: &str) -> Self {
        let name = name.to_owned();
        self.scripted(move |plan, course, _, _| {
            if course.direction == Direction::Forward && *plan.step(course.step).name == *name {
                Ending::Fails { error: error(false, Applied::Maybe), lands: Lands::Yes }
            } else {
                Ending::Succeeds
            }
        })
    }

    pub fn plan(&self) -> &Arc<Plan> {
        self.state.plan()
    }

    pub fn append(&mut self, event: Event) {
        self.pass(self.now + TimeDelta::milliseconds(1));
        let claims = matches!(event, Event::Claimed { .. });
        let journaled = Journaled {
            seq: self.state.seq() + 1,
            claim: self.state.claim() + i32::from(claims),
            epoch: Epoch(i64::from(self.state.claim()) + i64::from(claims)),
            at: self.now,
            event,
        };
        if let Err(error) = self.state.apply(&journaled) {
            panic!("{error}\n{:?}\nafter\n{}", journaled.event, self.story());
        }
        self.journal.push(journaled);
    }

    pub fn pass(&mut self, to: Time) {
        self.now = to;
        let plan = Arc::clone(self.state.plan());
        self.world.time_passes(&plan, to);
    }

    fn claim(&mut self) {
        self.append(Event::Claimed { node: "n".into(), reason: ClaimReason::Free });
    }

    /// The node dies with everything that it knows; another one claims the run. What was under way arrives as late as
    /// it can, if the plan says that it can, and else never.
    pub fn crash(&mut self) {
        let calls = std::mem::take(&mut self.calls);
        self.questions.clear();
        self.claim();
        for call in calls {
            self.orphan(call);
        }
    }

    /// A call that nobody waits for any more.
    fn orphan(&mut self, call: Call) {
        let delay = self.plan().step(call.landing.course.step).effect.longest_delay;
        let never = matches!(call.ending, Ending::Fails { lands: Lands::No | Lands::Partly, .. });
        let forward = call.landing.course.direction == Direction::Forward;
        if !call.landed && forward && delay > Span::default() && !never {
            self.world.will_land(Landing { at: self.now + delay.delta(), ..call.landing });
        }
    }

    /// Everything that can happen now.
    fn moves(&self, dice: &mut Dice) -> Vec<Move> {
        let decision = decide(&self.state, self.now, self.room.saturating_sub(self.calls.len()));
        let mut moves = Vec::new();
        for command in decision.commands {
            let done = match &command {
                Command::Append(_) => false,
                Command::Probe(step) => self.questions.iter().any(|q| q.step == *step),
                Command::Cancel(_) => true,
            };
            if !done {
                moves.push(Move::Command(command));
            }
        }
        for (n, call) in self.calls.iter().enumerate() {
            moves.push(if call.landed { Move::Outcome(n) } else { Move::Land(n) });
        }
        moves.extend((0..self.questions.len()).map(Move::Answer));
        if let Some(at) = decision.wake_at
            && (moves.is_empty() || matches!(dice, Dice::Random(_)))
        {
            assert!(at > self.now, "to be woken now is to be called again for ever");
            moves.push(Move::TimeTo(at));
        }
        moves
    }

    /// Nothing falls due before the time at which the run asks to be woken, and something does then.
    pub fn wakes_in_time(&self) {
        let decide = |state: &State, now, room| turning_at_once(decide(state, now, room));
        let now = decide(&self.state, self.now, usize::MAX);
        let before = now.wake_at.map_or(self.now + TimeDelta::days(100), |at| at - TimeDelta::nanoseconds(1));
        let just_before = decide(&self.state, before, usize::MAX);
        assert_eq!(just_before, now, "something fell due unseen\n{}", self.story());
        if let Some(at) = now.wake_at {
            assert_ne!(decide(&self.state, at, usize::MAX), now, "woken for nothing\n{}", self.story());
        }
    }

    /// Makes one move. `None`: nothing can move, and that is in order.
    pub fn step(&mut self, dice: &mut Dice) -> Option<()> {
        let mut moves = self.moves(dice);
        if moves.is_empty() {
            let at_rest = self.state.is_over() || self.state.waits_for().is_some();
            assert!(at_rest, "a silent run: {:?}\n{}", self.state.status(), self.story());
            return None;
        }
        let choice = dice.pick(moves.len());
        match moves.swap_remove(choice) {
            Move::Command(Command::Append(event)) => self.perform(event, dice),
            Move::Command(Command::Probe(step)) => self.ask(step, dice),
            Move::Command(Command::Cancel(_)) => {}
            Move::Land(n) => self.land(n),
            Move::Outcome(n) => self.outcome(n),
            Move::Answer(n) => self.answer(n),
            Move::TimeTo(at) => self.pass(at),
        }
        Some(())
    }

    pub fn perform(&mut self, event: Event, dice: &mut Dice) {
        self.append(event.clone());
        // A rollback that gives an attempt up drops its call with it.
        if let Event::Step { course, what: StepEvent::Failed { .. }, .. } = event
            && let Some(n) = self.calls.iter().position(|call| call.landing.course == course)
        {
            let call = self.calls.remove(n);
            self.orphan(call);
        }
        let Event::Step { course, attempt, what: StepEvent::Started { key, .. }, .. } = event else { return };
        let plan = Arc::clone(self.state.plan());
        if course.direction == Direction::Forward && plan.step(course.step).kind != Kind::Call {
            return;
        }
        self.world.begins(&plan, course, key, attempt);
        let ending = (self.script)(&plan, course, attempt, dice);
        let landing = Landing { course, key, attempt, at: self.now };
        self.calls.push(Call { landing, ending, landed: false });
        if self.instant {
            self.land(self.calls.len() - 1);
        }
    }

    fn land(&mut self, n: usize) {
        let call = &mut self.calls[n];
        call.landed = true;
        let effect = self.state.plan().step(call.landing.course.step).effect;
        match &call.ending {
            Ending::Succeeds | Ending::Fails { lands: Lands::Yes, .. } => {
                self.world.lands(effect, &call.landing, false);
            }
            Ending::Fails { lands: Lands::Partly, .. } => self.world.lands_partly(&call.landing),
            Ending::Fails { .. } => {}
        }
    }

    fn outcome(&mut self, n: usize) {
        let Call { landing, ending, .. } = self.calls.remove(n);
        // An attempt that was given up, or is another's: its outcome comes too late.
        let course = self.state.course(landing.course);
        if course.at != CourseAt::Running || course.attempts != landing.attempt {
            return;
        }
        match ending {
            Ending::Succeeds => {
                self.report(landing.course, StepEvent::Succeeded { output: output(landing.key) })
            }
            Ending::Fails { error, lands } => {
                let what = judge(&self.state, landing.course, error, self.now);
                self.report(landing.course, what);
                if lands == Lands::Late {
                    let delay = self.plan().step(landing.course.step).effect.longest_delay;
                    self.world.will_land(Landing { at: self.now + delay.delta(), ..landing });
                }
            }
        }
    }

    /// The truth at the time of the question; it may be old when it arrives.
    fn ask(&mut self, step: StepIx, dice: &mut Dice) {
        let course = self.state.course(CourseId::forward(step));
        let plan = self.state.plan();
        let key =
            idempotency_key(self.state.run(), &plan.step(step).name, Direction::Forward, course.generation);
        let answer = match () {
            () if self.blind > 0 && dice.chance(self.blind) => {
                Answer::Unknown { why: "the line is dead".into() }
            }
            () if self.world.has_key(step, &key) => Answer::Present,
            () if self.world.has_part(step, &key) => Answer::Partial,
            () => Answer::Absent,
        };
        let about = (course.generation, course.attempts);
        self.questions.push(Question { step, about, asked_at: self.now, answer });
    }

    fn answer(&mut self, n: usize) {
        let Question { step, about, asked_at, answer } = self.questions.remove(n);
        let id = CourseId::forward(step);
        let course = self.state.course(id);
        if self.state.is_over() || (course.generation, course.attempts) != about {
            return;
        }
        let key = idempotency_key(
            self.state.run(),
            &self.plan().step(step).name,
            Direction::Forward,
            self.state.course(id).generation,
        );
        let found = (answer == Answer::Present).then(|| output(key));
        for what in judge_probe(&self.state, step, answer, found, asked_at, self.now) {
            self.report(id, what);
        }
    }

    pub fn report(&mut self, course: CourseId, what: StepEvent) {
        self.append(step_event(&self.state, course, what));
    }

    /// The attempts in flight that have not ended.
    pub fn in_flight(&self) -> Vec<CourseId> {
        self.calls.iter().map(|call| call.landing.course).collect()
    }

    pub fn run(&mut self, dice: &mut Dice) -> End {
        for _ in 0..100_000 {
            if self.step(dice).is_none() {
                return self.end().unwrap_or(End::Waits);
            }
        }
        panic!("the run does not come to an end\n{}", self.story());
    }

    /// Takes everything that is decided at once, and lets every call end: for runs too large to look at each move.
    pub fn rush(&mut self) -> End {
        self.rush_for(usize::MAX);
        self.end().expect("it came to rest")
    }

    pub fn rush_for(&mut self, rounds: usize) {
        for _ in 0..rounds {
            let decision = decide(&self.state, self.now, self.room);
            if decision.commands.is_empty() && self.calls.is_empty() {
                match decision.wake_at {
                    Some(at) => self.pass(at),
                    None => return,
                }
            }
            for command in decision.commands {
                if let Command::Append(event) = command {
                    self.perform(event, &mut Dice::First);
                }
            }
            self.calls.reverse();
            while let Some(last) = self.calls.len().checked_sub(1) {
                self.land(last);
                self.outcome(last);
            }
        }
    }

    /// How it came to rest, if it did.
    pub fn end(&self) -> Option<End> {
        match self.state.status() {
            Status::Succeeded if self.state.is_over() => Some(End::Succeeded),
            Status::Committed => Some(End::Committed),
            Status::Closed => Some(End::Closed),
            Status::RolledBack => Some(End::RolledBack),
            Status::Held => Some(End::Held),
            Status::Stuck => Some(End::Stuck),
            _ => None,
        }
    }

    /// What must be true of every run, however it went.
    pub fn audit(&self, label: &dyn Fn() -> String) {
        let plan = self.plan();
        let rows: Vec<_> = self.journal.iter().map(|event| event.to_row(plan)).collect();
        let mut faults = oracle::faults(plan, &rows);
        faults.extend(self.world.faults.iter().filter(|_| !self.unseen).cloned());
        let replayed = State::replay(self.state.run(), Arc::clone(plan), &self.journal);
        if let Some(difference) = difference(&replayed.unwrap(), &self.state) {
            faults.push(format!("a replay differs: {difference}"));
        }
        match self.end() {
            _ if self.unseen => {}
            Some(End::Succeeded) => {
                let lost = plan.steps().find(|(ix, _)| {
                    self.state.course(CourseId::forward(*ix)).output().is_some() && !self.world.has(*ix)
                });
                faults.extend(lost.map(|(_, step)| format!("{} was done, and is not there", step.name)));
            }
            Some(End::RolledBack) if !self.world.is_clean(plan) => faults.push("something is left".into()),
            _ => {}
        }
        assert!(faults.is_empty(), "{}\n{faults:#?}\n{}", label(), self.story());
    }

    /// The journal as text, one line an event.
    pub fn story(&self) -> String {
        self.journal.iter().map(|j| line(j, self.state.plan())).collect::<Vec<_>>().join("\n")
    }
}

/// Where two states differ, in anything that anybody can see of them.
pub fn difference(a: &State, b: &State) -> Option<String> {
    let seen = |s: &State| {
        (s.seq(), s.claim(), s.at(), s.phase(), s.quarantined(), s.running(), s.progress(), s.status())
    };
    if seen(a) != seen(b) {
        return Some(format!("{:?} / {:?}", seen(a), seen(b)));
    }
    let said = |s: &State| {
        let signals: Vec<_> = s.signals().cloned().collect();
        let resources: Vec<_> = s.resources().cloned().collect();
        (signals, resources, s.paused().map(str::to_owned), s.waits_for(), s.past_no_return(), s.told())
    };
    if said(a) != said(b) {
        return Some(format!("{:?} / {:?}", said(a), said(b)));
    }
    for (step, declared) in a.plan().steps() {
        for id in [CourseId::forward(step), CourseId::undo(step)] {
            if a.course(id) != b.course(id) {
                return Some(format!("{}: {:?} / {:?}", declared.name, a.course(id), b.course(id)));
            }
        }
    }
    let now = a.at().unwrap_or_default();
    (decide(a, now, 9) != decide(b, now, 9)).then(|| "they decide otherwise".into())
}

fn output(key: Uuid) -> Json {
    Json::of(&json!({ "made": key }))
}

pub fn error(retryable: bool, applied: Applied) -> ActivityError {
    ActivityError {
        code: "no".into(),
        message: "it did not work".into(),
        retryable,
        retry_after: None,
        applied,
        details: None,
    }
}

fn line(journaled: &Journaled, plan: &Plan) -> String {
    let row = journaled.to_row(plan);
    let mut out = format!("{} {}", row.seq, row.kind);
    if let Some(step) = &row.step {
        out += if row.undo { " undo " } else { " " };
        out += step;
        out += &format!(" #{}", row.attempt);
    }
    match &journaled.event {
        Event::Acted(action) | Event::Refused { action, .. } => {
            out = out.replace(" #0", "");
            out += &format!(" by {}: {}", action.who, action.verb.name());
        }
        Event::Finished { .. } => {
            out += &format!(" {}", row.body.unwrap().value()["outcome"].as_str().unwrap())
        }
        Event::Step { what: StepEvent::Probed { answer, .. }, .. } => {
            let answer = serde_json::to_value(answer).unwrap();
            out += &format!(" {}", answer["answer"].as_str().unwrap());
        }
        _ => {}
    }
    out
}

/// Whether the world is looked at before a rollback that is due depends on when somebody gets to it.
fn turning_at_once(mut decision: Decision) -> Decision {
    for command in &mut decision.commands {
        if let Command::Append(Event::Checking { then: Some(how), because }) = command {
            *command = Command::Append(Event::RollingBack { because: because.clone(), how: how.clone() });
        }
    }
    decision
}
