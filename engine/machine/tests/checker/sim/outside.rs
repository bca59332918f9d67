//! The pretended world: what calls come to, what probes see, and effects that land when they like.

use backstay_machine::checker::Effect;
use backstay_machine::plan::Span;
use backstay_machine::*;
use chrono::TimeDelta;
use serde_json::json;
use uuid::Uuid;

use super::{Call, Fate, Landing, Question, Sim, error};

impl Sim {
    pub(super) fn call(&mut self, id: CourseId, key: Uuid) {
        let nth = self.started.entry(id).or_default();
        *nth += 1;
        let step = self.plan.step(id.step).name.to_string();
        let scripted = self.script.get(&(step, id.direction == Direction::Undo, *nth)).cloned();
        let fate = scripted.unwrap_or_else(|| self.draw());
        let takes = TimeDelta::milliseconds(50 + self.dice.below(2_000) as i64);
        let ends = (!matches!(fate, Fate::Hangs)).then(|| self.now + takes);
        self.calls.push(Call { id, key, begun: self.now, ends, fate, cancelled: false });
    }

    pub(super) fn draw(&mut self) -> Fate {
        if !self.dice.chance(self.trouble) {
            return Fate::Succeeds;
        }
        let lands = self.dice.chance(50);
        let applied = if self.dice.chance(50) { Applied::No } else { Applied::Maybe };
        match self.dice.below(10) {
            0..=4 => {
                let mut error = error(true, applied);
                error.retry_after = self.dice.chance(10).then(|| Span::secs(7));
                Fate::Fails(error, lands)
            }
            5..=6 => Fate::Fails(error(false, applied), lands),
            7 => Fate::Hangs,
            _ => Fate::Orphaned(lands),
        }
    }

    pub(super) fn ask(&mut self, step: StepIx) {
        if self.questions.iter().any(|question| question.step == step) {
            return;
        }
        let there = self.present.contains(&step);
        let answer = if !self.answers.is_empty() {
            self.answers.remove(0)
        } else if self.dice.chance(if self.dark.contains(&step) { 80 } else { self.trouble / 2 }) {
            self.dark.insert(step);
            Answer::Unknown { why: "no answer".into() }
        } else if there && self.dice.chance(self.trouble / 2) {
            Answer::Partial
        } else if there {
            Answer::Present
        } else {
            Answer::Absent
        };
        let output = (answer == Answer::Present && !self.dice.chance(self.trouble / 4))
            .then(|| Json::of(&json!({ "made": "found" })));
        let answered = self.now + TimeDelta::milliseconds(20);
        self.questions.push(Question { step, asked: self.now, answered, answer, output });
    }

    /// The call's answer is not waited for any more; what it does still comes within its longest delay.
    pub(super) fn abandon(&mut self, id: CourseId) {
        if let Some(n) = self.calls.iter().position(|call| call.id == id) {
            let call = self.calls.remove(n);
            if self.dice.chance(50) {
                self.land_late(&call.id, call.key, call.begun);
            }
        }
    }

    pub(super) fn land_late(&mut self, id: &CourseId, key: Uuid, begun: Time) {
        let longest = self.plan.step(id.step).effect.longest_delay.0.as_millis() as u64;
        let at = self.now + TimeDelta::milliseconds(self.dice.below(longest + 1) as i64);
        self.landings.push(Landing { at, begun, id: *id, key });
        self.land(self.now);
    }

    /// The world takes in every call that has arrived by then.
    pub(super) fn land(&mut self, until: Time) {
        self.landings.sort_by_key(|landing| landing.at);
        while self.landings.first().is_some_and(|landing| landing.at <= until) {
            let Landing { at, begun, id, key } = self.landings.remove(0);
            let undo = id.direction == Direction::Undo;
            let step = self.plan.step(id.step);
            let again = !self.known_keys.insert(key);
            if step.effect.refuses_duplicates && again && !undo {
                continue;
            }
            if undo {
                self.present.remove(&id.step);
            } else {
                self.present.insert(id.step);
            }
            let step = step.name.to_string();
            self.effects.push(Effect { key, step, undo, begun_at: begun, ended_at: Some(at) });
        }
    }
}
