//! Whether what people state in an action suits the activities: an edited input, the output of a step that is skipped.
//!
//! A plan is checked against the activities when it is submitted and never again; what is stated later is checked when it
//! is asked, by the owner of the run, who has the activities. The answer is journaled, so nothing is judged twice.

use std::collections::HashSet;

use serde_json::Value;

use super::builtin::builtin;
use super::fits::bad_time;
use super::schema::Shape;
use super::{ActivitySpec, Catalog, Kind, OnFailure, Plan, Source};
use crate::action::Verb;
use crate::names::StepIx;

/// Why what an action states cannot be taken, if the activities say so. The field that is wrong is named.
pub fn unsuited(plan: &Plan, verb: &Verb, catalog: &dyn Catalog) -> Option<String> {
    match verb {
        Verb::Retry { step: name, undo, input: Some(input), .. } => {
            let step = plan.step(plan.find(name)?);
            let work = if *undo { step.undo.as_ref()? } else { &step.forward };
            let activity = known(catalog, &work.activity)?;
            let times = || bad_time(input).filter(|_| matches!(step.kind, Kind::Wait | Kind::Approve));
            let (at, wrong) = first_problem(&activity.input, input).or_else(times)?;
            Some(format!("{} takes no such input: at \"{at}\": {wrong}", activity.name))
        }
        Verb::Skip { step: name, undo: false, output } => {
            let ix = plan.find(name)?;
            let step = plan.step(ix);
            // What nobody reads, or may do without, need not be made up.
            if output.is_null() && (step.on_failure == OnFailure::Continue || !is_read(plan, ix)) {
                return None;
            }
            let activity = known(catalog, &step.forward.activity)?;
            let (at, wrong) = first_problem(&activity.output, output)?;
            Some(format!("{} gives no such output: at \"{at}\": {wrong}", activity.name))
        }
        // What was done by hand in place of an undo is evidence, and nobody reads it.
        _ => None,
    }
}

fn known<'a>(catalog: &'a dyn Catalog, name: &str) -> Option<&'a ActivitySpec> {
    builtin(name).or_else(|| catalog.activity(name))
}

fn first_problem(schema: &Value, value: &Value) -> Option<(String, String)> {
    Shape::new(schema).problems(value, &HashSet::new()).into_iter().next()
}

/// Whether the input of another step, or of its undo, reads from the output of this one.
fn is_read(plan: &Plan, ix: StepIx) -> bool {
    plan.steps().any(|(_, step)| {
        let works = std::iter::once(&step.forward).chain(&step.undo);
        works.flat_map(|work| work.input.bound()).any(|bound| bound.source == Source::Step(ix))
    })
}
