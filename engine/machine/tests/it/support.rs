//! A run without a database, a clock or a task: commands are carried out by a table of what each step does.

use std::collections::BTreeMap;
use std::sync::Arc;

use backstay_machine::plan::{Effect, PlanBuilder, output};
use backstay_machine::*;
use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Value, json};
use uuid::Uuid;

/// Activities that take and give anything.
pub struct AnyActivity(BTreeMap<String, ActivitySpec>);

impl AnyActivity {
    pub fn named(names: &[&str]) -> Self {
        let spec = |name: &str| ActivitySpec {
            name: name.into(),
            input: json!({}),
            output: json!({}),
            effect: Effect::default(),
        };
        Self(names.iter().map(|name| ((*name).to_owned(), spec(name))).collect())
    }
}

impl Catalog for AnyActivity {
    fn activity(&self, name: &str) -> Option<&ActivitySpec> {
        self.0.get(name)
    }
    fn names(&self) -> Vec<&str> {
        self.0.keys().map(String::as_str).collect()
    }
}

/// Steps one after another, each with an undo.
pub fn chain(names: &[&str]) -> Arc<Plan> {
    let mut plan = PlanBuilder::new("chain");
    let mut before = None;
    for name in names {
        let step = plan.step(*name, "do").undone_by("undo", json!({ "it": output("") }));
        before = Some(match before {
            Some(before) => step.after([&before]).done(),
            None => step.done(),
        });
    }
    plan.check(&AnyActivity::named(&["do", "undo"])).unwrap()
}

pub struct Sim {
    state: State,
    now: Time,
    journal: Vec<Journaled>,
    fails: Vec<String>,
}

impl Sim {
    pub fn new(plan: Arc<Plan>) -> Self {
        let run = RunId(Uuid::nil());
        let now = DateTime::<Utc>::UNIX_EPOCH;
        let mut sim = Self { state: State::new(run, plan), now, journal: Vec::new(), fails: Vec::new() };
        sim.append(Event::Submitted);
        sim
    }

    pub fn fails_for_good(&mut self, step: &str) {
        self.fails.push(step.into());
    }

    pub fn state(&self) -> &State {
        &self.state
    }

    pub fn now(&self) -> Time {
        self.now
    }

    pub fn append(&mut self, event: Event) {
        self.now += TimeDelta::milliseconds(1);
        let journaled = Journaled {
            seq: self.state.seq() + 1,
            claim: self.state.claim(),
            epoch: Epoch(1),
            at: self.now,
            event,
        };
        self.state.apply(&journaled).unwrap();
        self.journal.push(journaled);
    }

    pub fn run_to_end(&mut self) {
        for _ in 0..1_000 {
            let decision = decide(&self.state, self.now, 100);
            if decision.commands.is_empty() {
                match decision.wake_at {
                    Some(at) => self.now = at,
                    None => return,
                }
            }
            for command in decision.commands {
                let Command::Append(event) = command else { continue };
                self.append(event.clone());
                let Event::Step { course, what: StepEvent::Started { .. }, .. } = event else { continue };
                let name = self.state.plan().step(course.step).name.to_string();
                let what = if course.direction == Direction::Forward && self.fails.contains(&name) {
                    judge(&self.state, course, permanent(), self.now)
                } else {
                    StepEvent::Succeeded { output: Json::of(&Value::Null) }
                };
                self.append(step_event(&self.state, course, what));
            }
        }
        panic!("the run does not come to an end");
    }

    /// The journal as text, one line an event.
    pub fn story(&self) -> String {
        self.journal.iter().map(|j| line(j, self.state.plan())).collect::<Vec<_>>().join("\n")
    }
}

fn permanent() -> ActivityError {
    ActivityError {
        code: "no".into(),
        message: "no".into(),
        retryable: false,
        retry_after: None,
        applied: Applied::Maybe,
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
    if let Event::Finished { .. } = journaled.event {
        out += &format!(" {}", row.body.unwrap().value()["outcome"].as_str().unwrap());
    }
    out
}
