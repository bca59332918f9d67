//! A plan: what may happen, as plain data, checked once and fixed when the run is submitted.
//!
//! `PlanSpec` is what people write, in JSON or through the builder. `Plan` is what the engine runs: the same
//! data after [`Plan::check`], with everything that a later release could change written into it (retries,
//! what is known of each effect), and with what is computed from it (order, edges, bindings, hash). A `Plan`
//! cannot be made any other way, so whoever holds one need not check it again.

mod binding;
mod builder;
pub(crate) mod builtin;
mod check;
mod fits;
mod form;
mod graph;
mod picture;
mod preview;
mod problem;
mod schema;
mod spec;
mod suits;
mod svg;

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::Value;

use crate::event::{ActivityError, NEEDS_OPERATOR, TARGET_DOWN};
use crate::json::Json;
use crate::names::{StepIx, StepName};

pub use binding::{Bound, Source, Template};
pub use builder::{Output, PlanBuilder, StepBuilder, output};
pub(crate) use builtin::LITERAL;
pub use builtin::{Kind, builtin};
pub use preview::{Certainty, Undoing};
pub use problem::{CheckError, Problem, Rule};
pub use schema::Fit;
pub use spec::{Commit, Effect, Ending, OnFailure, Parent, PlanSpec, Proof, Retry, Span, StepSpec, UndoSpec};
pub use suits::unsuited;

/// What a plan may not exceed, so that checking it stays O(steps + edges) and a run fits into memory.
pub mod limits {
    /// Steps of a plan.
    pub const STEPS: usize = 10_000;
    /// Dependencies of all steps together.
    pub const EDGES: usize = 50_000;
    /// Bytes of the whole plan in canonical form.
    pub const BYTES: usize = 8 << 20;
    /// Bytes of one step's input.
    pub const INPUT_BYTES: usize = 256 << 10;
    /// Nesting of one step's input.
    pub const DEPTH: usize = 32;
    /// Runs within runs.
    pub const NESTING: usize = 4;
    /// Bindings of one step's input: each copies what it reads.
    pub const BINDINGS: usize = 1_000;
    /// Characters of a name.
    pub const NAME: usize = 100;
    /// Characters of a title or a reason.
    pub const TITLE: usize = 300;
    /// How many problems one answer lists; the rest is counted.
    pub const PROBLEMS: usize = 100;
}

/// What the engine has to know of an activity to check a plan against it.
#[derive(Clone, Debug)]
pub struct ActivitySpec {
    /// The name that plans use.
    pub name: String,
    /// JSON Schema of the input.
    pub input: Value,
    /// JSON Schema of the output.
    pub output: Value,
    /// What is known of its effect; a plan may state a longer delay.
    pub effect: Effect,
    /// The pool of the target that it calls; a plan may name another.
    pub pool: Option<String>,
}

/// Where plans find the activities that they name.
pub trait Catalog {
    /// The activity of that name.
    fn activity(&self, name: &str) -> Option<&ActivitySpec>;
    /// The names there are, for an error that helps.
    fn names(&self) -> Vec<&str>;
}

/// A checked plan. Cheap to share; equal plans have equal hashes.
#[derive(Debug)]
pub struct Plan {
    spec: PlanSpec,
    steps: Vec<Step>,
    by_name: HashMap<StepName, StepIx>,
    order: Vec<StepIx>,
    hash: String,
    text: Json,
    submitted: Json,
    activities: Vec<String>,
}

/// One step of a checked plan.
#[derive(Debug)]
pub struct Step {
    /// Its name.
    pub name: StepName,
    /// What people read.
    pub title: Option<String>,
    /// The forward half.
    pub forward: Work,
    /// The half that undoes it; `None` if there is nothing to undo.
    pub undo: Option<Work>,
    /// What its final failure does.
    pub on_failure: OnFailure,
    /// What is known of its effect.
    pub effect: Effect,
    /// Who runs it.
    pub kind: Kind,
    /// The plan of a step that is a run.
    pub plan: Option<PlanSpec>,
    /// What has to be proven before it starts.
    pub requires: Vec<Required>,
    /// Once it may have had its effect, nothing is rolled back by itself.
    pub point_of_no_return: bool,
    /// It runs when the run is committed.
    pub finalize: bool,
    /// The steps that it comes after.
    pub after: Vec<StepIx>,
    /// The steps that come after it.
    pub before: Vec<StepIx>,
}

/// What a step's output has to say.
#[derive(Clone, Debug, PartialEq)]
pub struct Required {
    /// Whose.
    pub step: StepIx,
    /// Where, as a JSON pointer.
    pub at: String,
    /// What.
    pub equals: Value,
}

/// An activity with its input and its patience: the same for a step and for its undo.
#[derive(Debug)]
pub struct Work {
    /// The activity's name.
    pub activity: String,
    /// The pool that each of its calls needs a place in.
    pub pool: Option<String>,
    /// The input, with its bindings.
    pub input: Template,
    /// When to try again.
    pub retry: Retry,
    /// How long one attempt may take.
    pub timeout: Span,
}

impl Step {
    /// What this final failure does.
    pub fn on(&self, error: &ActivityError) -> OnFailure {
        match self.on_failure {
            OnFailure::RollBack if error.code == NEEDS_OPERATOR => OnFailure::Hold,
            declared => declared,
        }
    }
}

impl Work {
    /// Whether a failure counts against its patience. That a target is down is the pool's affair: its steps wait for it
    /// together, and none of them gives up over it.
    pub fn counts(&self, error: &ActivityError) -> bool {
        self.pool.is_none() || !error.retryable || error.code != TARGET_DOWN
    }
}

impl Plan {
    /// The name of the workflow that made it.
    pub fn workflow(&self) -> &str {
        &self.spec.workflow
    }

    /// The plan as data, with everything written out.
    pub fn spec(&self) -> &PlanSpec {
        &self.spec
    }

    /// The canonical JSON of the plan.
    pub fn text(&self) -> &Json {
        &self.text
    }

    /// SHA-256 over the canonical JSON, in hex. An approval is for this.
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// The body of a run's first event.
    pub fn submitted(&self) -> &Json {
        &self.submitted
    }

    /// The activities that a node must have to run it, sorted.
    pub fn activities(&self) -> &[String] {
        &self.activities
    }

    /// How many steps there are.
    pub fn len(&self) -> usize {
        self.steps.len()
    }

    /// A plan has at least one step.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// The steps in the order they were written.
    pub fn steps(&self) -> impl Iterator<Item = (StepIx, &Step)> {
        self.steps.iter().enumerate().map(|(n, step)| (StepIx(n as u32), step))
    }

    /// The steps so that each comes after those it depends on.
    pub fn order(&self) -> &[StepIx] {
        &self.order
    }

    /// The step of that name.
    pub fn find(&self, name: &str) -> Option<StepIx> {
        self.by_name.get(name).copied()
    }

    /// One step.
    #[allow(clippy::indexing_slicing, reason = "only a plan makes a StepIx, and it never loses a step")]
    pub fn step(&self, ix: StepIx) -> &Step {
        &self.steps[ix.index()]
    }

    /// The steps that wait for a signal of this name, and what it has to bring.
    pub fn listeners(&self, signal: &str) -> impl Iterator<Item = (StepIx, Option<&Value>)> {
        self.steps().filter(|(_, step)| step.kind == Kind::Wait).filter_map(move |(ix, step)| {
            let input = step.forward.input.written();
            (input.get("signal")?.as_str()? == signal).then(|| (ix, input.get("schema")))
        })
    }

    /// Every signal that some step waits for, or that commits the run.
    pub fn signals(&self) -> Vec<&str> {
        let mut names: Vec<_> = self
            .steps()
            .filter(|(_, step)| step.kind == Kind::Wait)
            .filter_map(|(_, step)| step.forward.input.written().get("signal")?.as_str())
            .chain(self.spec.commit.as_ref().and_then(|commit| commit.signal.as_deref()))
            .collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// The run's first event, with who submitted it. Whoever reads only the plan sees no difference.
    pub(crate) fn submitted_by(&self, by: &crate::event::Sender) -> Option<Json> {
        let by = serde_json::to_string(by).ok()?;
        let whole = self.submitted.as_str().strip_prefix('{')?;
        Some(Json::trusted(format!("{{\"by\":{by},{whole}").into()))
    }

    /// Reads the plan out of a run's first event: data that was checked when it was submitted, so only its
    /// form is looked at again and no catalog is asked. That is why a new release cannot break a run.
    pub fn from_submitted(body: &Json) -> Result<Arc<Plan>, CheckError> {
        check::reload(body)
    }
}
