//! Runs that are steps of other runs: begun, paused and rolled back with them, and heard of at their end.
//!
//! What passes between the two is in the same commit as the event that brings it about: a run is admitted with the
//! start of its step, and its end goes into its parent's inbox as it is journaled. So neither can be lost.

use std::sync::Arc;

use backstay_machine::plan::{Kind, Parent};
use backstay_machine::{
    Action, ActivityError, Applied, CourseAt, CourseId, Direction, Event, Outcome, Plan, RollBack, RunId,
    StepEvent, StepIx, Verb, judge_action, step_event,
};
use serde_json::json;
use uuid::Uuid;

use super::Driver;
use super::facts::Later;
use crate::engine::Submission;
use crate::store::{Admission, Outgoing, Told};

/// In whose name runs speak to each other.
const ENGINE: &str = "the engine";

impl Driver {
    /// What an event of a run means for its parent and for the runs that are steps of it.
    pub(super) fn pass_on(&mut self, id: RunId, event: &Event) {
        match event {
            Event::Step { course, what: StepEvent::Started { .. }, .. } => {
                let is_run = |driver: &Self| {
                    let run = driver.runs.get(&id)?;
                    Some(run.state.plan().step(course.step).kind == Kind::Run)
                };
                if is_run(self) == Some(true) {
                    match course.direction {
                        Direction::Forward => self.begin_run_of(id, course.step),
                        Direction::Undo => self.roll_back_run_of(id, course.step),
                    }
                }
            }
            Event::Acted(action) if matches!(action.verb, Verb::Pause | Verb::Resume) => {
                self.tell_children(id, action);
            }
            Event::Finished { outcome } => self.tell_parent(id, *outcome),
            _ => {}
        }
    }

    fn begin_run_of(&mut self, id: RunId, ix: StepIx) {
        let Some(run) = self.runs.get(&id) else { return };
        let course = CourseId::forward(ix);
        let step = run.state.plan().step(ix);
        let (Some(child), Some(given)) = (run.state.run_of(ix), run.state.course(course).input.clone())
        else {
            return;
        };
        let parent = Parent { run: id, step: step.name.to_string() };
        match Plan::of_step(step, &given, parent, &*self.shared.registry) {
            Ok(plan) => {
                let admission = Admission {
                    run: child,
                    workflow: plan.workflow().to_owned(),
                    plan_hash: plan.hash().to_owned(),
                    activities: plan.activities().join(","),
                    priority: 1,
                    labels: json!({ "parent": id, "step": &*step.name }).to_string(),
                    client_key: None,
                    request_hash: String::new(),
                    exclusive_key: None,
                    queue: false,
                    at: self.shared.now(),
                };
                let by = run.state.sender().cloned().map(Box::new);
                self.take_on(Box::new(Submission::by_engine(admission, plan, by)));
            }
            Err(wrong) => {
                let error = ActivityError {
                    code: "plan".into(),
                    message: format!("its run cannot begin: {wrong}"),
                    retryable: false,
                    retry_after: None,
                    applied: Applied::No,
                    details: None,
                };
                let event = step_event(&run.state, course, StepEvent::Failed { error, retry_at: None });
                self.append(id, event);
            }
        }
    }

    fn roll_back_run_of(&mut self, id: RunId, ix: StepIx) {
        let Some(run) = self.runs.get(&id) else { return };
        let Some(child) = run.state.run_of(ix) else { return };
        let generation = run.state.course(CourseId::undo(ix)).generation;
        let action = Action {
            id: Uuid::new_v5(&child.0, format!("rolled back by its parent/{generation}").as_bytes()),
            who: ENGINE.into(),
            why: format!("run {id}, of which it is a step, is rolled back"),
            seen: None,
            via: None,
            verb: Verb::RollBack(RollBack { past_no_return: true, ..RollBack::default() }),
        };
        self.send(id, child, &action);
    }

    /// A run whose rollback waits for others' asks them again, each time it is taken up: what became of the last asking
    /// may be lost.
    pub(super) fn remind(&mut self, id: RunId) {
        let Some(run) = self.runs.get(&id) else { return };
        let waits = |ix: &StepIx| matches!(run.state.course(CourseId::undo(*ix)).at, CourseAt::Waiting(_));
        let steps: Vec<_> = run.state.plan().steps().map(|(ix, _)| ix).filter(waits).collect();
        for ix in steps {
            self.roll_back_run_of(id, ix);
        }
    }

    fn tell_children(&mut self, id: RunId, action: &Action) {
        let Some(run) = self.runs.get(&id) else { return };
        let state = &run.state;
        let waited_for = |ix: StepIx| {
            [CourseId::forward(ix), CourseId::undo(ix)].into_iter().find_map(|course| {
                match &state.course(course).at {
                    CourseAt::Waiting(wait) => wait.run,
                    _ => None,
                }
            })
        };
        let children: Vec<_> = state.plan().steps().filter_map(|(ix, _)| waited_for(ix)).collect();
        for child in children {
            let action = Action {
                id: Uuid::new_v5(&action.id, child.0.as_bytes()),
                who: action.who.clone(),
                why: format!("as run {id}, of which it is a step"),
                seen: None,
                via: None,
                verb: action.verb.clone(),
            };
            self.send(id, child, &action);
        }
    }

    fn tell_parent(&mut self, id: RunId, outcome: Outcome) {
        let Some(run) = self.runs.get(&id) else { return };
        let Some(parent) = run.state.plan().spec().parent.clone() else { return };
        let said = Uuid::new_v5(&id.0, format!("ended/{}", run.state.seq()).as_bytes());
        let action = ended(said, parent.step, id, outcome);
        self.send(id, parent.run, &action);
    }

    /// Goes out with the events that it follows from.
    fn send(&mut self, from: RunId, to: RunId, action: &Action) {
        let Ok(body) = serde_json::to_string(action) else { return };
        let reopens = matches!(action.verb, Verb::RollBack(_));
        self.pending.batch.tells.push((from, Outgoing { run: to, id: action.id, body, reopens }));
    }

    /// What became of what was sent. A run that is over, or never was, does not answer: what is known of it is taken for
    /// its answer.
    pub(super) fn sent(&mut self, tells: Vec<(RunId, Outgoing)>, told: Vec<Told>) {
        let any = !told.is_empty();
        for ((from, message), told) in tells.into_iter().zip(told) {
            let outcome = match told {
                Told::Missing => Outcome::RolledBack,
                Told::Over(status) => match status.as_str() {
                    "rolled_back" => Outcome::RolledBack,
                    "committed" => Outcome::Committed,
                    _ => Outcome::Closed,
                },
                Told::Told | Told::Known(..) | Told::Exclusive(_) => continue,
            };
            self.take_as_ended(from, message.run, outcome);
        }
        if any {
            // Whoever has those runs may be another node.
            let shared = Arc::clone(&self.shared);
            tokio::spawn(async move {
                let _ = shared.store.notify().await;
                shared.look.notify_one();
            });
        }
    }

    pub(super) fn take_as_ended(&mut self, id: RunId, child: RunId, outcome: Outcome) {
        if let Some(later) = self.put_by(id) {
            return later.push(Later::Ended(child, outcome));
        }
        let Some(run) = self.runs.get(&id).filter(|run| !run.leaving) else { return };
        let Some((_, step)) = run.state.plan().steps().find(|(ix, _)| run.state.run_of(*ix) == Some(child))
        else {
            return;
        };
        let said = Uuid::new_v5(&child.0, format!("found/{}", run.state.seq()).as_bytes());
        let action = ended(said, step.name.to_string(), child, outcome);
        if let Ok(events) = judge_action(&run.state, &action, self.shared.now()) {
            for event in events {
                self.append(id, event);
            }
            self.advance(id);
        }
    }
}

fn ended(id: Uuid, step: String, run: RunId, outcome: Outcome) -> Action {
    Action {
        id,
        who: ENGINE.into(),
        why: String::new(),
        seen: None,
        via: None,
        verb: Verb::Ended { step, run, outcome },
    }
}
