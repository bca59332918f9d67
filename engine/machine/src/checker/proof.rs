//! What a step requires before it starts (H18).

use super::reading::Reading;
use super::standing::{Standing, What};
use super::{Findings, RuleId};
use crate::event::StepEvent;
use crate::names::StepIx;

pub(super) fn proofs(reading: &Reading<'_>, found: &mut Findings) {
    for (ix, step, forward, _) in reading.steps().filter(|(_, step, ..)| !step.requires.is_empty()) {
        for start in forward.starts() {
            let waived =
                forward.generation(start.pos).iter().any(|m| matches!(m.what, What::Said(StepEvent::Waived)));
            if let Some(missing) = missing(reading, ix, start.pos).filter(|_| !waived) {
                let message = format!(
                    "step {} starts, but {missing}, and nobody let it go without: what must not be may come about",
                    step.name
                );
                found.add(RuleId::Proof, start.seq, message);
            }
        }
    }
}

/// What a step requires and no output proves at a place of the history. That a step was skipped is no proof.
pub(super) fn missing(reading: &Reading<'_>, ix: StepIx, pos: usize) -> Option<String> {
    reading.plan.step(ix).requires.iter().find_map(|proof| {
        let from = reading.forward(proof.step);
        let shown = match from.standing(pos) {
            Standing::Succeeded => {
                from.output(pos).and_then(|output| output.value().pointer(&proof.at).cloned())
            }
            _ => None,
        };
        let name = &reading.plan.step(proof.step).name;
        (shown.as_ref() != Some(&proof.equals))
            .then(|| format!("no output of {name} shows {} at {:?}", proof.equals, proof.at))
    })
}
