//! What the effects of a run came to, outside of it.

use std::collections::{BTreeMap, BTreeSet};

use backstay_machine::plan::Effect;
use backstay_machine::*;
use uuid::Uuid;

/// One call that reached the world, or will.
#[derive(Clone, Debug)]
pub struct Landing {
    pub course: CourseId,
    pub key: Uuid,
    pub attempt: u32,
    pub at: Time,
}

/// Ground truth. An effect is there or not, for each step and key; an undo takes all of its step's effects away.
#[derive(Clone, Debug, Default)]
pub struct World {
    there: BTreeMap<StepIx, BTreeSet<Uuid>>,
    partly: BTreeMap<StepIx, BTreeSet<Uuid>>,
    /// How often each key had its effect.
    times: BTreeMap<Uuid, u32>,
    /// The latest attempt that began, and the steps whose undo did.
    began: BTreeMap<StepIx, (Uuid, u32)>,
    undo_began: BTreeSet<StepIx>,
    pub undone: Vec<StepIx>,
    late: Vec<Landing>,
    pub faults: Vec<String>,
}

impl World {
    pub fn has(&self, step: StepIx) -> bool {
        self.there.get(&step).is_some_and(|keys| !keys.is_empty())
            || self.partly.get(&step).is_some_and(|keys| !keys.is_empty())
    }

    pub fn has_key(&self, step: StepIx, key: &Uuid) -> bool {
        self.there.get(&step).is_some_and(|keys| keys.contains(key))
    }

    pub fn has_part(&self, step: StepIx, key: &Uuid) -> bool {
        self.partly.get(&step).is_some_and(|keys| keys.contains(key))
    }

    /// An attempt is about to be called.
    pub fn begins(&mut self, plan: &Plan, course: CourseId, key: Uuid, attempt: u32) {
        let step = course.step;
        if course.direction == Direction::Undo {
            for &dependent in &plan.step(step).before {
                if self.has(dependent) && plan.step(dependent).undo.is_some() {
                    self.faults.push(format!("{step:?} is being undone, and {dependent:?} is still there"));
                }
            }
            self.undo_began.insert(step);
        } else {
            self.began.insert(step, (key, attempt));
        }
    }

    /// The call has its effect.
    pub fn lands(&mut self, effect: Effect, call: &Landing, late: bool) {
        let step = call.course.step;
        if call.course.direction == Direction::Undo {
            self.there.remove(&step);
            self.partly.remove(&step);
            self.undone.push(step);
            return;
        }
        if late && self.undo_began.contains(&step) {
            self.faults.push(format!("an effect of {step:?} landed after its undo began"));
        }
        let newer = self.began.get(&step).is_some_and(|(key, n)| *key == call.key && *n > call.attempt);
        if late && newer && !effect.refuses_duplicates {
            self.faults.push(format!("an effect of {step:?} landed after the next attempt began"));
        }
        let keys = self.there.entry(step).or_default();
        if effect.refuses_duplicates && keys.contains(&call.key) {
            return;
        }
        keys.insert(call.key);
        self.partly.remove(&step);
        *self.times.entry(call.key).or_default() += 1;
        if effect.at_most_once && self.times[&call.key] > 1 {
            self.faults.push(format!("{step:?} happened twice under one key"));
        }
    }

    /// Half of the effect, then nothing more.
    pub fn lands_partly(&mut self, call: &Landing) {
        self.partly.entry(call.course.step).or_default().insert(call.key);
    }

    /// A call whose caller died, and which arrives all the same.
    pub fn will_land(&mut self, call: Landing) {
        self.late.push(call);
    }

    pub fn time_passes(&mut self, plan: &Plan, now: Time) {
        let (due, later) = std::mem::take(&mut self.late).into_iter().partition(|call| call.at <= now);
        self.late = later;
        let due: Vec<Landing> = due;
        for call in due {
            self.lands(plan.step(call.course.step).effect, &call, true);
        }
    }

    /// Nothing is left of any step that can be undone.
    pub fn is_clean(&self, plan: &Plan) -> bool {
        let comes = |ix| self.late.iter().any(|call| call.course.step == ix);
        plan.steps().all(|(ix, step)| step.undo.is_none() || !(self.has(ix) || comes(ix)))
    }
}
