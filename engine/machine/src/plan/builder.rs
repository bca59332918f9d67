//! Plans in Rust: the same data as the JSON form, with the undo written beside the step.

use std::sync::Arc;

use serde_json::{Value, json};

use super::spec::{Commit, Effect, OnFailure, PlanSpec, Proof, Retry, Span, StepSpec, UndoSpec};
use super::{Catalog, CheckError, Plan, binding};

/// Builds a plan step by step.
///
/// ```
/// use backstay_machine::plan::{PlanBuilder, output};
/// use serde_json::json;
///
/// let mut plan = PlanBuilder::new("trip");
/// let flight = plan.step("flight", "book-flight")
///     .input(json!({ "to": "Lisbon" }))
///     .undone_by("cancel-flight", json!({ "booking": output("/booking") }))
///     .done();
/// plan.step("mail", "send-mail")
///     .input(json!({ "text": flight.output("/booking") }))
///     .after([&flight])
///     .nothing_to_undo("a mail cannot be called back");
/// assert_eq!(plan.spec().steps.len(), 2);
/// ```
#[derive(Debug)]
pub struct PlanBuilder {
    spec: PlanSpec,
}

/// A step that was added: others come after it and read its output.
#[derive(Clone, Debug)]
pub struct Output {
    name: String,
}

impl Output {
    /// A binding to a place of this step's output; `""` is all of it.
    pub fn output(&self, pointer: &str) -> Value {
        json!({ binding::OUTPUT: format!("{}{pointer}", self.name) })
    }

    /// The step's name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// In an undo's input: a binding to a place of the output of the step that is undone. It is null if that
/// step never came to an output.
pub fn output(pointer: &str) -> Value {
    json!({ binding::OUTPUT: pointer })
}

impl PlanBuilder {
    /// An empty plan of that workflow.
    pub fn new(workflow: impl Into<String>) -> Self {
        Self {
            spec: PlanSpec {
                workflow: workflow.into(),
                title: None,
                retry: None,
                undo_retry: None,
                timeout: None,
                settle_within: None,
                commit: None,
                drift_after: None,
                parent: None,
                override_alone: false,
                steps: Vec::new(),
            },
        }
    }

    /// What people read.
    pub fn titled(&mut self, title: impl Into<String>) -> &mut Self {
        self.spec.title = Some(title.into());
        self
    }

    /// The retry of steps that do not state their own.
    pub fn retry(&mut self, retry: Retry) -> &mut Self {
        self.spec.retry = Some(retry);
        self
    }

    /// The retry of undos that do not state their own.
    pub fn undo_retry(&mut self, retry: Retry) -> &mut Self {
        self.spec.undo_retry = Some(retry);
        self
    }

    /// The timeout of attempts whose step does not state its own.
    pub fn timeout(&mut self, timeout: impl Into<Span>) -> &mut Self {
        self.spec.timeout = Some(timeout.into());
        self
    }

    /// How long a rollback waits for attempts in flight.
    pub fn settle_within(&mut self, span: impl Into<Span>) -> &mut Self {
        self.spec.settle_within = Some(span.into());
        self
    }

    /// How the run becomes final once all steps are done.
    pub fn commit(&mut self, commit: Commit) -> &mut Self {
        self.spec.commit = Some(commit);
        self
    }

    /// After how long a rollback or a resumption first looks whether the world has changed.
    pub fn drift_after(&mut self, span: impl Into<Span>) -> &mut Self {
        self.spec.drift_after = Some(span.into());
        self
    }

    /// One person alone may override a proof.
    pub fn override_alone(&mut self) -> &mut Self {
        self.spec.override_alone = true;
        self
    }

    /// Adds a step that waits: `for`, `until`, `signal`, `within`.
    pub fn wait(&mut self, name: impl Into<String>, input: Value) -> StepBuilder<'_> {
        self.step(name, "wait").input(input)
    }

    /// Adds a step that waits until people with this right have said yes.
    pub fn approve(&mut self, name: impl Into<String>, right: impl Into<String>) -> StepBuilder<'_> {
        self.step(name, "approve").input(json!({ "right": right.into() }))
    }

    /// Adds a step that is a run of its own; its undo is that run's rollback.
    pub fn run(&mut self, name: impl Into<String>, plan: PlanBuilder) -> StepBuilder<'_> {
        self.step(name, "run").edit(|step| step.plan = Some(Box::new(plan.spec)))
    }

    /// Adds a step. It still needs its undo, or a reason why there is nothing to undo.
    pub fn step(&mut self, name: impl Into<String>, activity: impl Into<String>) -> StepBuilder<'_> {
        self.spec.steps.push(StepSpec {
            name: name.into(),
            title: None,
            activity: activity.into(),
            pool: None,
            input: json!({}),
            plan: None,
            after: Vec::new(),
            undo: None,
            nothing_to_undo: None,
            retry: None,
            timeout: None,
            on_failure: OnFailure::default(),
            requires: Vec::new(),
            point_of_no_return: false,
            finalize: false,
            effect: None,
        });
        StepBuilder { plan: &mut self.spec }
    }

    /// The plan as data.
    pub fn spec(&self) -> &PlanSpec {
        &self.spec
    }

    /// Checks the plan and fixes it.
    pub fn check(self, catalog: &dyn Catalog) -> Result<Arc<Plan>, CheckError> {
        Plan::check(self.spec, catalog)
    }
}

/// The step that was added last.
#[derive(Debug)]
pub struct StepBuilder<'a> {
    plan: &'a mut PlanSpec,
}

impl StepBuilder<'_> {
    fn edit(self, change: impl FnOnce(&mut StepSpec)) -> Self {
        if let Some(step) = self.plan.steps.last_mut() {
            change(step);
        }
        self
    }

    /// What people read.
    pub fn titled(self, title: impl Into<String>) -> Self {
        self.edit(|step| step.title = Some(title.into()))
    }

    /// The activity's input.
    pub fn input(self, input: Value) -> Self {
        self.edit(|step| step.input = input)
    }

    /// The steps that it comes after.
    pub fn after<'o>(self, steps: impl IntoIterator<Item = &'o Output>) -> Self {
        self.edit(|step| step.after.extend(steps.into_iter().map(|other| other.name.clone())))
    }

    /// The activity that undoes it, with its input.
    pub fn undone_by(self, activity: impl Into<String>, input: Value) -> Self {
        let undo = UndoSpec { activity: activity.into(), pool: None, input, retry: None, timeout: None };
        self.edit(|step| step.undo = Some(undo))
    }

    /// The pool that its calls need a place in.
    pub fn pool(self, pool: impl Into<String>) -> Self {
        self.edit(|step| step.pool = Some(pool.into()))
    }

    /// The pool that the undo's calls need a place in.
    pub fn undo_pool(self, pool: impl Into<String>) -> Self {
        self.edit(|step| {
            if let Some(undo) = &mut step.undo {
                undo.pool = Some(pool.into());
            }
        })
    }

    /// The undo's own retry.
    pub fn undo_retry(self, retry: Retry) -> Self {
        self.edit(|step| {
            if let Some(undo) = &mut step.undo {
                undo.retry = Some(retry);
            }
        })
    }

    /// Why nothing has to be undone.
    pub fn nothing_to_undo(self, reason: impl Into<String>) -> Output {
        self.edit(|step| step.nothing_to_undo = Some(reason.into())).done()
    }

    /// The step's own retry.
    pub fn retry(self, retry: Retry) -> Self {
        self.edit(|step| step.retry = Some(retry))
    }

    /// How long one attempt may take.
    pub fn timeout(self, timeout: impl Into<Span>) -> Self {
        self.edit(|step| step.timeout = Some(timeout.into()))
    }

    /// What its final failure does.
    pub fn on_failure(self, on_failure: OnFailure) -> Self {
        self.edit(|step| step.on_failure = on_failure)
    }

    /// What an earlier step's output has to say before it starts.
    pub fn requires(self, step: &Output, at: impl Into<String>, equals: Value) -> Self {
        let proof = Proof { step: step.name.clone(), at: at.into(), equals };
        self.edit(|step| step.requires.push(proof))
    }

    /// Once it may have had its effect, nothing is rolled back by itself.
    pub fn point_of_no_return(self) -> Self {
        self.edit(|step| step.point_of_no_return = true)
    }

    /// It runs when the run is committed.
    pub fn finalize(self) -> Self {
        self.edit(|step| step.finalize = true)
    }

    /// What is known of its effect, in place of what the activity says.
    pub fn effect(self, effect: Effect) -> Self {
        self.edit(|step| step.effect = Some(effect))
    }

    /// A handle for steps that come after this one.
    pub fn done(self) -> Output {
        Output { name: self.plan.steps.last().map(|step| step.name.clone()).unwrap_or_default() }
    }
}
