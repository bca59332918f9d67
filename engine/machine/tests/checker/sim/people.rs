//! People who ask for this and that, and a machine that now and then loses a run.

use backstay_machine::plan::Kind;
use backstay_machine::*;
use chrono::TimeDelta;
use serde_json::json;
use uuid::Uuid;

use super::{Call, Fate, Sim};

impl Sim {
    /// Asks, and has the answer journaled. False: it was refused.
    pub fn ask_for(&mut self, who: &str, verb: Verb) -> bool {
        // Not by the clock: the same seed makes the same journal.
        let id = Uuid::from_u64_pair(self.journal.len() as u64, u64::MAX);
        let action = Action { id, who: who.into(), why: "because".into(), seen: None, via: None, verb };
        match judge_action(&self.state, &action, self.now) {
            Ok(events) => {
                for event in events {
                    self.append(event);
                }
                true
            }
            Err(because) => {
                self.append(Event::Refused { action: Box::new(action), because });
                false
            }
        }
    }

    /// An operator has a step, or its undo, begin anew.
    pub fn retry(&mut self, id: CourseId) {
        let step = self.plan.step(id.step).name.to_string();
        let undo = id.direction == Direction::Undo;
        assert!(
            self.ask_for("ann", Verb::Retry { step, undo, input: None, in_doubt: true }),
            "{}",
            self.story()
        );
    }

    pub(super) fn calls(&self, id: CourseId) -> bool {
        id.direction == Direction::Undo || self.plan.step(id.step).kind == Kind::Call
    }

    /// Something nobody asked for.
    pub(super) fn meddle(&mut self) {
        let over = self.state.is_over() || self.state.quarantined();
        match self.dice.below(12) {
            _ if over => {}
            0..=4 => self.die(None),
            5..=6 if self.calls.is_empty() => {
                self.questions.clear();
                self.claim(ClaimReason::Free);
            }
            7..=10 => self.somebody_asks(),
            11 if self.dice.chance(10) => {
                self.append(Event::Quarantined { why: "it kills its nodes".into() });
            }
            _ => {}
        }
    }

    /// At rest, somebody comes by and decides. False: nobody does.
    pub(super) fn operate(&mut self) -> bool {
        if self.trouble == 0 || self.dice.chance(10) || self.journal.len() > 200 {
            return false;
        }
        if matches!(self.state.phase(), Phase::Over(_)) {
            return false;
        }
        if self.state.quarantined() && self.dice.chance(80) {
            return false;
        }
        // A careful one: not before what was started under the old key has come or not.
        self.now += TimeDelta::seconds(60);
        self.land(self.now);
        self.somebody_asks();
        true
    }

    fn somebody_asks(&mut self) {
        let who = ["ann", "ben", "cem"][self.dice.below(3) as usize];
        let mut verb = self.any_verb();
        // Most of what people ask for makes sense.
        for _ in 0..12 {
            let action = Action::new(who, "because", verb.clone());
            if judge_action(&self.state, &action, self.now).is_ok() || self.dice.chance(5) {
                break;
            }
            verb = self.any_verb();
        }
        self.ask_for(who, verb);
    }

    fn any_verb(&mut self) -> Verb {
        let steps: Vec<_> = self.plan.steps().map(|(ix, step)| (ix, step.name.to_string())).collect();
        let (ix, step) = steps[self.dice.below(steps.len() as u64) as usize].clone();
        let undo = self.state.phase() == Phase::RollingBack || self.dice.chance(10);
        let right = String::from("release");
        match self.dice.below(24) {
            0..=5 => {
                let input = self.dice.chance(30).then(|| json!({ "reads": "something else" }));
                let waits = self.plan.step(ix).kind != Kind::Call;
                Verb::Retry { step, undo, input: input.filter(|_| !waits), in_doubt: self.dice.chance(50) }
            }
            6..=7 => Verb::Skip { step, undo, output: json!({ "made": "by hand" }) },
            8..=9 => Verb::UndoStep { step, cascade: self.dice.chance(70) },
            10 => Verb::Override { step },
            11 => Verb::Approve { step, right, plan: self.plan.hash().to_owned() },
            12..=13 => Verb::Reject { step, right },
            14..=16 => {
                let name = ["go", "stay", "commit"][self.dice.below(3) as usize].into();
                Verb::Signal { name, payload: json!({ "n": self.dice.below(9) }) }
            }
            17 => Verb::Pause,
            18..=19 => Verb::Resume,
            20 => {
                let leave = if self.dice.chance(20) { vec![step] } else { Vec::new() };
                let (past_failures, past_no_return) = (self.dice.chance(30), self.dice.chance(30));
                Verb::RollBack(RollBack { leave, past_failures, past_no_return })
            }
            21 => Verb::Commit,
            22 => Verb::Close { manifest: json!({ "left": "nothing" }) },
            _ => {
                let became = if self.dice.chance(50) {
                    backstay_machine::Fate::Gone
                } else {
                    backstay_machine::Fate::Kept
                };
                Verb::Account { step, kind: "disk".into(), name: "one".into(), became }
            }
        }
    }

    /// Some steps announce what they make, and most undos say that it is gone.
    pub(super) fn tell_of_resources(&mut self, call: &Call) {
        use backstay_machine::Fate::{Gone, Planned, Present};
        let name = &self.plan.step(call.id.step).name;
        if self.trouble == 0 || !name.starts_with(['b', 'd']) {
            return;
        }
        let undo = call.id.direction == Direction::Undo;
        let ends_well = matches!(call.fate, Fate::Succeeds);
        let mut fates = Vec::new();
        if !undo {
            fates.push(Planned);
        }
        if ends_well && self.dice.chance(90) {
            fates.push(if undo { Gone } else { Present });
        }
        for fate in fates {
            let what = StepEvent::Resource { kind: "disk".into(), name: "one".into(), fate, details: None };
            self.append(step_event(&self.state, call.id, what));
        }
    }
}
