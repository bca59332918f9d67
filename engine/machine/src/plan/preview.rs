//! "If this step fails for good now, these are undone, in this order": computed before anything runs.

use serde::Serialize;

use super::Plan;
use crate::names::StepIx;

/// One undo of a preview.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Undoing {
    /// The step that is undone.
    pub step: String,
    /// The activity that does it.
    pub activity: String,
    /// Whether it is sure to have started by then.
    pub certainty: Certainty,
}

/// Whether a step is sure to have started when another one fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Certainty {
    /// It comes before the failing step, or is it.
    Certain,
    /// It runs beside the failing step and may have started.
    Possible,
}

impl Plan {
    /// What is undone if that step fails for good, the first undo first. Steps that come after it cannot have
    /// started; steps beside it may have.
    pub fn if_fails(&self, failing: StepIx) -> Vec<Undoing> {
        let certain = self.spread(failing, |ix| &self.step(ix).after);
        let never = self.spread(failing, |ix| &self.step(ix).before);
        let mut undone = Vec::new();
        for &ix in self.order().iter().rev() {
            let step = self.step(ix);
            let Some(undo) = &step.undo else { continue };
            let is = |set: &[bool]| set.get(ix.index()).copied().unwrap_or(false);
            if ix != failing && is(&never) {
                continue;
            }
            let certainty = if is(&certain) { Certainty::Certain } else { Certainty::Possible };
            undone.push(Undoing { step: step.name.to_string(), activity: undo.activity.clone(), certainty });
        }
        undone
    }

    fn spread<'a>(&'a self, from: StepIx, next: impl Fn(StepIx) -> &'a Vec<StepIx>) -> Vec<bool> {
        let mut reached = vec![false; self.len()];
        let mut todo = vec![from];
        while let Some(ix) = todo.pop() {
            if let Some(place) = reached.get_mut(ix.index())
                && !std::mem::replace(place, true)
            {
                todo.extend(next(ix));
            }
        }
        reached
    }
}
