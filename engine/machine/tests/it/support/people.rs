//! What people ask of a run, and what they see of it.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;

use backstay_machine::checker::{Case, check_run};
use backstay_machine::plan::StepSpec;
use backstay_machine::*;
use serde_json::{Value, json};
use uuid::Uuid;

use super::sim::{Ending, Lands, difference, error};
use super::{Dice, End, Sim, step};

/// A step that waits.
pub fn wait(name: &str, after: &[&str], input: Value) -> StepSpec {
    StepSpec { activity: "wait".into(), input, undo: None, effect: None, ..step(name, after) }
}

pub fn approve(name: &str, after: &[&str], input: Value) -> StepSpec {
    StepSpec { activity: "approve".into(), ..wait(name, after, input) }
}

pub fn quiet(name: &str, after: &[&str]) -> StepSpec {
    StepSpec { undo: None, nothing_to_undo: Some("it only looks".into()), ..step(name, after) }
}

pub fn retry(step: &str) -> Verb {
    Verb::Retry { step: step.into(), undo: false, input: None, in_doubt: false }
}

pub fn retry_undo(step: &str) -> Verb {
    Verb::Retry { step: step.into(), undo: true, input: None, in_doubt: false }
}

pub fn retry_in_doubt(step: &str) -> Verb {
    Verb::Retry { step: step.into(), undo: false, input: None, in_doubt: true }
}

pub fn skip(step: &str) -> Verb {
    Verb::Skip { step: step.into(), undo: false, output: json!({ "made": "by hand" }) }
}

pub fn skip_undo(step: &str) -> Verb {
    Verb::Skip { step: step.into(), undo: true, output: json!(null) }
}

pub fn undo_step(step: &str) -> Verb {
    Verb::UndoStep { step: step.into(), cascade: false }
}

pub fn cascade(step: &str) -> Verb {
    Verb::UndoStep { step: step.into(), cascade: true }
}

pub fn signal(name: &str, payload: Value) -> Verb {
    Verb::Signal { name: name.into(), payload }
}

pub fn roll_back() -> Verb {
    Verb::RollBack(RollBack::default())
}

/// Everything that could be asked about a run, once each; about its steps, once for each step.
pub fn every_verb(plan: &Plan) -> Vec<Verb> {
    let mut all =
        vec![Verb::Pause, Verb::Resume, roll_back(), Verb::Commit, Verb::Close { manifest: json!({}) }];
    let first = plan.spec().steps[0].name.clone();
    for (leave, past_failures, past_no_return) in [(vec![first], true, true), (Vec::new(), true, false)] {
        all.push(Verb::RollBack(RollBack { leave, past_failures, past_no_return }));
    }
    all.extend(plan.signals().into_iter().map(|name| signal(name, json!({ "n": 1 }))));
    for step in plan.spec().steps.iter().map(|step| step.name.as_str()) {
        all.extend([retry(step), retry_undo(step), retry_in_doubt(step), skip(step), skip_undo(step)]);
        all.extend([undo_step(step), cascade(step), Verb::Override { step: step.into() }]);
        let input = Some(json!({ "edited": true }));
        all.push(Verb::Retry { step: step.into(), undo: false, input, in_doubt: true });
        let (right, hash) = (String::from("release"), plan.hash().to_owned());
        all.push(Verb::Approve { step: step.into(), right: right.clone(), plan: hash });
        all.push(Verb::Reject { step: step.into(), right });
        for became in [Fate::Gone, Fate::Kept] {
            let (kind, name) = (String::from("disk"), String::from("one"));
            all.push(Verb::Account { step: step.into(), kind, name, became });
        }
    }
    all
}

/// What a call comes to, as an ending.
pub fn fails(applied: Applied, retryable: bool) -> Ending {
    let lands = if applied == Applied::No { Lands::No } else { Lands::Yes };
    Ending::Fails { error: error(retryable, applied), lands }
}

impl Sim {
    /// The first so many calls of a step, or of its undo, come to that; the later ones succeed.
    pub fn at_first(self, name: &str, undo: bool, times: u32, ending: Ending) -> Self {
        let (name, left) = (name.to_owned(), Rc::new(Cell::new(times)));
        self.scripted(move |plan, course, _, _| {
            let is_it =
                *plan.step(course.step).name == *name && (course.direction == Direction::Undo) == undo;
            if is_it && left.get() > 0 {
                left.set(left.get() - 1);
                return ending.clone();
            }
            Ending::Succeeds
        })
    }

    pub fn asks(&mut self, who: &str, verb: Verb) -> Result<(), String> {
        self.act(Action::new(who, "there is a reason", verb))
    }

    /// Asks on the ground of what the run looked like then.
    pub fn asks_seeing(&mut self, seen: Seq, who: &str, verb: Verb) -> Result<(), String> {
        self.act(Action { seen: Some(seen), ..Action::new(who, "there is a reason", verb) })
    }

    pub fn act(&mut self, action: Action) -> Result<(), String> {
        match judge_action(&self.state, &action, self.now) {
            Ok(events) => {
                for event in events {
                    self.append(event);
                }
                Ok(())
            }
            Err(because) => {
                if action.flaw().is_none() && !self.state.knows(action.id) {
                    self.append(Event::Refused { action: Box::new(action), because: because.clone() });
                }
                Err(because)
            }
        }
    }

    /// Goes on until nothing moves by itself.
    pub fn rests(&mut self) -> End {
        let end = self.run(&mut Dice::First);
        self.sound();
        end
    }

    /// What somebody who wants to see the end of it would ask for next. `None`: it is over.
    fn helpful(&self, who: &str) -> Option<Verb> {
        if self.state.is_over() {
            return None;
        }
        let mut wanted = vec![Verb::Resume, Verb::Commit];
        for (ix, step) in self.plan().steps() {
            let name = step.name.to_string();
            let back = self.state.phase() == Phase::RollingBack;
            match &self.state.course(CourseId::forward(ix)).at {
                _ if matches!(self.undo_at(&name), CourseAt::Failed { .. }) => wanted.push(retry_undo(&name)),
                CourseAt::Waiting(wait) if !back => {
                    let (right, plan) = (String::from("release"), self.plan().hash().to_owned());
                    wanted.extend(wait.signal.as_ref().map(|name| signal(name, json!({ "n": 1 }))));
                    wanted.extend(wait.approval.as_ref().map(|_| Verb::Approve { step: name, right, plan }));
                }
                // Letting it go without its proof comes first: to try it again forgets who has said so.
                CourseAt::Held { why } if why.contains("it requires") => {
                    wanted.push(Verb::Override { step: name })
                }
                CourseAt::Held { .. } => wanted.push(retry_in_doubt(&name)),
                _ => {}
            }
        }
        for one in self.state.residue() {
            let (step, kind, name) = (one.step.to_string(), one.kind.clone(), one.name.clone());
            wanted.push(Verb::Account { step, kind, name, became: Fate::Gone });
        }
        let granted = |verb: &Verb| {
            judge_action(&self.state, &Action::new(who, "it is time", verb.clone()), self.now).is_ok()
        };
        wanted.into_iter().find(granted)
    }

    /// Goes on, with people who help as soon as nothing moves but the clock, until it is over.
    pub fn with_help(&mut self) -> End {
        let mut asked = 0;
        for _ in 0..10_000 {
            if self.state.is_over() {
                return self.end().expect("it is over");
            }
            let idle =
                decide(&self.state, self.now, self.room).commands.is_empty() && self.in_flight().is_empty();
            let helped = idle
                && ["ann", "ben", "cem"].into_iter().any(|who| {
                    let verb = self.helpful(who);
                    verb.is_some_and(|verb| self.asks(who, verb).is_ok())
                });
            asked += u32::from(helped);
            if asked > 100 || (!helped && self.step(&mut Dice::First).is_none()) {
                break;
            }
        }
        panic!("people cannot bring it to an end: {:?}\n{}", self.state.waits_for(), self.story());
    }

    pub fn ix(&self, name: &str) -> StepIx {
        self.plan().find(name).unwrap()
    }

    pub fn at(&self, name: &str) -> &CourseAt {
        &self.state.course(CourseId::forward(self.ix(name))).at
    }

    pub fn undo_at(&self, name: &str) -> &CourseAt {
        &self.state.course(CourseId::undo(self.ix(name))).at
    }

    /// The keys and inputs of a step's starts, or of its undo's.
    pub fn starts(&self, name: &str, undo: bool) -> Vec<(Uuid, Option<Value>)> {
        let ix = self.ix(name);
        let id = if undo { CourseId::undo(ix) } else { CourseId::forward(ix) };
        let start = |event: &Journaled| match &event.event {
            Event::Step { course, what: StepEvent::Started { key, input }, .. } if *course == id => {
                Some((*key, input.as_ref().map(Json::value)))
            }
            _ => None,
        };
        self.journal.iter().filter_map(start).collect()
    }

    /// From some event on, as text.
    pub fn story_since(&self, seq: Seq) -> String {
        let story = self.story();
        story
            .lines()
            .skip(seq as usize)
            .map(|line| line.split_once(' ').unwrap().1)
            .collect::<Vec<_>>()
            .join("\n")
    }

    /// What must be true of every run that people had a hand in: the checker finds nothing wrong with its journal, also
    /// not with any beginning of it; what is read back is what was written, and folds to the same state; and no key
    /// belongs to two generations.
    pub fn sound(&self) {
        let plan = self.plan();
        let rows: Vec<Row> = self.journal.iter().map(|event| event.to_row(plan)).collect();
        let found = check_run(&Case::of(self.state.run(), &rows));
        assert!(found.is_empty(), "{}\n{found:#?}", self.story());
        let stored = Plan::from_submitted(plan.submitted()).unwrap();
        let read: Vec<_> = rows.iter().map(|row| Journaled::from_row(row, &stored).unwrap()).collect();
        assert_eq!(read, self.journal, "{}", self.story());
        let folded = State::replay(self.state.run(), Arc::clone(&stored), &read).unwrap();
        assert_eq!(difference(&folded, &self.state), None, "{}", self.story());
        let mut owners = std::collections::BTreeMap::new();
        for event in &self.journal {
            if let Event::Step { course, generation, what: StepEvent::Started { key, .. }, .. } = &event.event
            {
                let owner = *owners.entry(*key).or_insert((*course, *generation));
                assert_eq!(owner, (*course, *generation), "one key for two\n{}", self.story());
            }
        }
        let generations: BTreeSet<_> = owners.values().collect();
        assert_eq!(generations.len(), owners.len(), "two keys for one\n{}", self.story());
    }
}
