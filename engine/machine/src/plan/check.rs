//! The one validation of plans, for the builder and for JSON alike. It finds all problems, not the first.
//!
//! ```text
//!   check   seal -> limits -> form -> link -> against the catalog -> fix
//!   reload                           link ------------------------> fix
//! ```
//!
//! Limits and form are in `form.rs`, the catalog's part in `fits.rs`.
//!
//! A stored plan is only linked again: what a later release thinks of names, limits or activities must not stop
//! a run that is under way.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use serde::Deserialize;
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use super::binding::{self, Bound, Source, Template};
use super::builtin::{Kind, builtin, kind};
use super::fits::{against_catalog, half, known};
use super::form::{form, within_limits};
use super::problem::{CheckError, Problems, Rule, clipped, listed, tamed};
use super::spec::{Parent, PlanSpec, Proof, Retry, Span};
use super::{Catalog, Plan, Required, Step, Work, graph, limits};
use crate::json::{Json, canonical};
use crate::names::{StepIx, StepName};

/// How long an attempt may take if neither the step nor the plan says: long, but never for ever.
const DEFAULT_TIMEOUT: Span = Span::secs(3600);
/// How long a rollback waits for attempts in flight if the plan does not say.
const DEFAULT_SETTLE: Span = Span::secs(60);

impl Plan {
    /// Checks a plan against the activities there are, and fixes it. All problems are named at once.
    pub fn check(spec: PlanSpec, catalog: &dyn Catalog) -> Result<Arc<Plan>, CheckError> {
        if spec.parent.is_some() {
            let message = "names a \"parent\"; the engine does that for runs that are steps".into();
            return Err(CheckError::one(Rule::Form, message));
        }
        check_at(spec, catalog, 0)
    }

    /// The plan of a step that is a run, with what the step is given filled in.
    pub fn of_step(
        step: &Step,
        given: &Json,
        parent: Parent,
        catalog: &dyn Catalog,
    ) -> Result<Arc<Plan>, CheckError> {
        let Some(plan) = &step.plan else {
            return Err(CheckError::one(Rule::Form, format!("step {} is no run", step.name)));
        };
        let mut plan = binding::give(plan, &given.value(), &step.forward.input.filled())?;
        plan.parent = Some(parent);
        check_at(plan, catalog, 0)
    }
}

/// Checks a plan that stands so deep in others.
fn check_at(mut spec: PlanSpec, catalog: &dyn Catalog, depth: usize) -> Result<Arc<Plan>, CheckError> {
    {
        let mut problems = Problems::default();
        if !within_limits(&spec, &mut problems) {
            return problems.into_result(None);
        }
        seal(&mut spec, catalog, &mut problems);
        if !form(&spec, &mut problems) {
            return problems.into_result(None);
        }
        plans_within(&mut spec, catalog, depth, &mut problems);
        let trust = if depth == 0 { Trust::Nothing } else { Trust::Given };
        let linked = link(&spec, trust, &mut problems);
        against_catalog(&linked, catalog, &mut problems);
        if problems.any() {
            return problems.into_result(None);
        }
        let text = serde_json::to_value(&spec).map(|value| canonical(&value));
        let plan = match text {
            Ok(text) if text.len() > limits::BYTES => {
                let message =
                    format!("the plan has {} bytes; at most {} are taken", text.len(), limits::BYTES);
                problems.add(None, Rule::Limit, message);
                None
            }
            Ok(text) => Some(fix(spec, linked, &text)),
            Err(error) => {
                problems.add(None, Rule::Form, format!("the plan cannot be written as JSON: {error}"));
                None
            }
        };
        problems.into_result(plan)
    }
}

/// The plans of steps that are runs: each is checked as any other, and fixed with the plan it stands in.
fn plans_within(spec: &mut PlanSpec, catalog: &dyn Catalog, depth: usize, problems: &mut Problems) {
    for step in &mut spec.steps {
        let is_run = kind(&step.activity) == Kind::Run;
        let Some(plan) = step.plan.take() else {
            if is_run {
                problems.add(Some(&step.name), Rule::Form, "is a run, but has no \"plan\"".into());
            }
            continue;
        };
        if !is_run {
            let message = "has a \"plan\", but its activity is not \"run\"";
            problems.add(Some(&step.name), Rule::Form, message.into());
        } else if plan.parent.is_some() {
            problems.add(
                Some(&step.name),
                Rule::Form,
                "its plan names a \"parent\"; the engine does that".into(),
            );
        } else if depth + 1 >= limits::NESTING {
            let message =
                format!("is a run within runs, {} deep; at most {} are taken", depth + 2, limits::NESTING);
            problems.add(Some(&step.name), Rule::Limit, message);
        } else {
            match check_at(*plan, catalog, depth + 1) {
                Ok(checked) => step.plan = Some(Box::new(checked.spec().clone())),
                Err(error) => {
                    for problem in error.problems {
                        problems.add(Some(&step.name), problem.rule, format!("in its run: {problem}"));
                    }
                }
            }
        }
    }
}

impl Plan {
    /// Reads a plan from JSON text and checks it.
    pub fn check_json(text: &str, catalog: &dyn Catalog) -> Result<Arc<Plan>, CheckError> {
        if text.len() > limits::BYTES {
            let message = format!("the plan has {} bytes; at most {} are taken", text.len(), limits::BYTES);
            return Err(CheckError::one(Rule::Limit, message));
        }
        match serde_json::from_str(text) {
            Ok(spec) => Self::check(spec, catalog),
            Err(error) => {
                let place = format!(" at line {} column {}", error.line(), error.column());
                let wrong = error.to_string();
                let wrong = tamed(wrong.strip_suffix(&place).unwrap_or(&wrong));
                Err(CheckError::one(Rule::Form, format!("this is not a plan: {wrong}{place}")))
            }
        }
    }
}

/// What a run's first event holds.
#[derive(Deserialize)]
struct Submitted<'a> {
    hash: String,
    #[serde(borrow)]
    plan: &'a RawValue,
}

pub(super) fn reload(body: &Json) -> Result<Arc<Plan>, CheckError> {
    let unreadable = |error| CheckError::one(Rule::Form, format!("the stored plan cannot be read: {error}"));
    let stored: Submitted<'_> = body.read().map_err(unreadable)?;
    // The hash is over the text, so it holds whatever this release would write; the text itself may have been
    // through a database that sets blanks and keys its own way.
    let mut text = stored.plan.get().to_owned();
    if hash(&text) != stored.hash {
        text = canonical(&serde_json::from_str(&text).map_err(unreadable)?);
    }
    let found = hash(&text);
    if found != stored.hash {
        let message = format!("the stored plan has the hash {found}, but {} was submitted", stored.hash);
        return Err(CheckError::one(Rule::Form, message));
    }
    let spec: PlanSpec = serde_json::from_str(&text).map_err(unreadable)?;
    let mut problems = Problems::default();
    let linked = link(&spec, Trust::Order, &mut problems);
    if problems.any() {
        return problems.into_result(None);
    }
    Ok(Arc::new(fix(spec, linked, &text)))
}

/// Writes into the plan what a later release could decide otherwise.
fn seal(spec: &mut PlanSpec, catalog: &dyn Catalog, problems: &mut Problems) {
    spec.retry.get_or_insert_default();
    spec.undo_retry.get_or_insert_with(Retry::of_undos);
    spec.timeout.get_or_insert(DEFAULT_TIMEOUT);
    spec.settle_within.get_or_insert(DEFAULT_SETTLE);
    for step in &mut spec.steps {
        if let Some(undo) = &mut step.undo
            && let Some(activity) = known(catalog, &undo.activity)
        {
            undo.pool = undo.pool.take().or_else(|| activity.pool.clone());
        }
        let Some(activity) = known(catalog, &step.activity) else { continue };
        step.pool = step.pool.take().or_else(|| activity.pool.clone());
        let mut known = activity.effect;
        // An activity that is told how to look can look only where it is told.
        let told = activity.input.get("x-probe").and_then(serde_json::Value::as_str);
        known.probed &= told.is_none_or(|field| step.input.get(field).is_some_and(|probe| !probe.is_null()));
        let effect = step.effect.get_or_insert(known);
        if effect.probed && !known.probed {
            let message = format!(
                "says that its effect can be probed, but the activity {} has no probe{}",
                activity.name,
                told.map_or_else(String::new, |field| format!(" where its input has no \"{field}\"")),
            );
            problems.add(Some(&step.name), Rule::Effect, message);
        }
        if effect.refuses_duplicates && !known.refuses_duplicates {
            let message =
                format!("says that its target refuses duplicates; the activity {} does not", activity.name);
            problems.add(Some(&step.name), Rule::Effect, message);
        }
        // A plan can be more careful than the activity, never less.
        effect.at_most_once |= known.at_most_once;
        effect.longest_delay = effect.longest_delay.max(known.longest_delay);
    }
}

/// A plan whose names, edges and bindings point at steps.
pub(super) struct Linked {
    pub(super) steps: Vec<Step>,
    by_name: HashMap<StepName, StepIx>,
    order: Vec<StepIx>,
}

/// What need not be looked at again.
#[derive(Clone, Copy, PartialEq)]
enum Trust {
    Nothing,
    /// What is read from the run above: it is filled in when the run is made.
    Given,
    /// Bindings read steps that come before: the hash says that it was checked.
    Order,
}

/// Everything about how steps hang together. What it finds wrong it leaves out, so that the rest can be looked at.
fn link(spec: &PlanSpec, trust: Trust, problems: &mut Problems) -> Linked {
    let mut by_name = HashMap::with_capacity(spec.steps.len());
    for (n, step) in spec.steps.iter().enumerate() {
        if by_name.insert(StepName::from(step.name.as_str()), StepIx(n as u32)).is_some() {
            problems.add(Some(&step.name), Rule::Name, "is the name of more than one step".into());
        }
    }
    let after = dependencies(spec, &by_name, problems);
    let (order, in_order) = match graph::order(&after) {
        Ok(order) => (order, true),
        Err(cycle) => {
            let names: Vec<_> =
                cycle.iter().filter_map(|ix| spec.steps.get(ix.index())).map(|s| s.name.as_str()).collect();
            let message = format!("the steps wait for each other in a circle: {}", listed(&names, " -> "));
            problems.add(names.first().copied(), Rule::Cycle, message);
            (Vec::new(), false)
        }
    };
    let reach = (in_order && trust != Trust::Order).then(|| graph::Reach::new(&after, &order));

    let before = graph::turned(&after);
    let mut steps = Vec::with_capacity(spec.steps.len());
    for (n, (step, (after, before))) in spec.steps.iter().zip(after.into_iter().zip(before)).enumerate() {
        let bind = Bindings {
            by_name: &by_name,
            reach: reach.as_ref(),
            step: StepIx(n as u32),
            name: &step.name,
            given: trust != Trust::Nothing,
        };
        let retry = step.retry.or(spec.retry).unwrap_or_default();
        let timeout = step.timeout.or(spec.timeout).unwrap_or(DEFAULT_TIMEOUT);
        let forward = Work {
            activity: step.activity.clone(),
            pool: step.pool.clone(),
            input: bind.template(&step.input, false, problems),
            retry,
            timeout,
        };
        // The undo of a run is its rollback.
        let rollback = (kind(&step.activity) == Kind::Run && !step.finalize).then(|| Work {
            activity: step.activity.clone(),
            pool: None,
            input: Template::new(serde_json::json!({}), Vec::new()),
            retry: Retry::never(),
            timeout,
        });
        let undo = step.undo.as_ref().map(|undo| Work {
            activity: undo.activity.clone(),
            pool: undo.pool.clone(),
            input: bind.template(&undo.input, true, problems),
            retry: undo.retry.or(spec.undo_retry).unwrap_or_else(Retry::of_undos),
            timeout: undo.timeout.or(spec.timeout).unwrap_or(DEFAULT_TIMEOUT),
        });
        steps.push(Step {
            name: step.name.as_str().into(),
            title: step.title.clone(),
            forward,
            undo: undo.or(rollback),
            on_failure: step.on_failure,
            effect: step.effect.unwrap_or_default(),
            kind: kind(&step.activity),
            plan: step.plan.as_deref().cloned(),
            requires: bind.requires(&step.requires, problems),
            point_of_no_return: step.point_of_no_return,
            finalize: step.finalize,
            after,
            before,
        });
    }
    Linked { steps, by_name, order }
}

fn dependencies(
    spec: &PlanSpec,
    by_name: &HashMap<StepName, StepIx>,
    problems: &mut Problems,
) -> Vec<Vec<StepIx>> {
    // By whom each step was named last: one look instead of a search through all that a step named before.
    let mut named_by = vec![usize::MAX; spec.steps.len()];
    let mut all = Vec::with_capacity(spec.steps.len());
    for (n, step) in spec.steps.iter().enumerate() {
        let mut after = Vec::with_capacity(step.after.len());
        for name in &step.after {
            let Some(&ix) = by_name.get(name.as_str()) else {
                let message = format!("comes after \"{}\", which is no step of this plan", clipped(name));
                problems.add(Some(&step.name), Rule::Dependency, message);
                continue;
            };
            match named_by.get_mut(ix.index()) {
                Some(last) if *last != n => {
                    *last = n;
                    after.push(ix);
                }
                _ => problems.add(
                    Some(&step.name),
                    Rule::Dependency,
                    format!("names {} twice in \"after\"", clipped(name)),
                ),
            }
        }
        all.push(after);
    }
    all
}

/// Finds and resolves the bindings of one step.
struct Bindings<'a> {
    by_name: &'a HashMap<StepName, StepIx>,
    reach: Option<&'a graph::Reach>,
    step: StepIx,
    name: &'a str,
    given: bool,
}

impl Bindings<'_> {
    fn template(&self, input: &serde_json::Value, in_undo: bool, problems: &mut Problems) -> Template {
        let mut bound = Vec::new();
        for written in binding::find(input) {
            if written.given {
                if !self.given || written.text.is_err() {
                    let message = format!(
                        "its {} at \"{}\" reads \"$given\", which stands alone, in the plan of a step that is a run",
                        half(in_undo),
                        clipped(&written.at)
                    );
                    problems.add(Some(self.name), Rule::Binding, message);
                }
                continue;
            }
            match written.text.and_then(|text| self.source(&text, in_undo)) {
                Ok((source, path)) => bound.push(Bound { at: written.at, source, path }),
                Err(wrong) => {
                    let message = format!("its {} at \"{}\": {wrong}", half(in_undo), clipped(&written.at));
                    problems.add(Some(self.name), Rule::Binding, message);
                }
            }
        }
        Template::new(input.clone(), bound)
    }

    /// What has to be proven, by steps that come before.
    fn requires(&self, proofs: &[Proof], problems: &mut Problems) -> Vec<Required> {
        let mut required = Vec::with_capacity(proofs.len());
        for proof in proofs {
            match self.source(&proof.step, false) {
                Ok((Source::Step(step), rest)) if rest.is_empty() => {
                    required.push(Required { step, at: proof.at.clone(), equals: proof.equals.clone() });
                }
                Ok(_) => problems.add(
                    Some(self.name),
                    Rule::Proof,
                    format!(
                        "requires a proof of \"{}\", which is no step of this plan",
                        clipped(&proof.step)
                    ),
                ),
                Err(wrong) => {
                    problems.add(Some(self.name), Rule::Proof, format!("a proof that it requires {wrong}"));
                }
            }
        }
        required
    }

    fn source(&self, text: &str, in_undo: bool) -> Result<(Source, String), String> {
        let (name, path) = binding::split(text);
        let path = path.to_owned();
        if name.is_empty() {
            return if in_undo {
                Ok((Source::Own, path))
            } else {
                Err(format!("\"{}\" names no step; write \"step/field\"", clipped(text)))
            };
        }
        match self.by_name.get(name) {
            None => Err(format!("reads the output of \"{}\", which is no step of this plan", clipped(name))),
            Some(&ix) if ix == self.step && in_undo => Ok((Source::Own, path)),
            Some(&ix) if ix == self.step => Err("reads its own output".into()),
            Some(&ix) if self.reach.is_none_or(|reach| reach.comes_after(self.step, ix)) => {
                Ok((Source::Step(ix), path))
            }
            Some(_) => Err(format!(
                "reads the output of {}, but does not come after it; add it to \"after\"",
                clipped(name)
            )),
        }
    }
}

/// Puts the plan together; from here on it does not change.
fn fix(spec: PlanSpec, linked: Linked, text: &str) -> Plan {
    let Linked { steps, by_name, order } = linked;
    let hash = hash(text);
    let submitted = Json::trusted(format!("{{\"hash\":\"{hash}\",\"plan\":{text}}}").into());
    let activities: BTreeSet<String> = steps
        .iter()
        .flat_map(|step| std::iter::once(&step.forward).chain(&step.undo))
        .filter(|work| builtin(&work.activity).is_none())
        .map(|work| work.activity.clone())
        .chain(steps.iter().filter_map(|step| step.plan.as_ref()).flat_map(needed))
        .collect();
    Plan {
        spec,
        steps,
        by_name,
        order,
        hash,
        text: Json::trusted(text.into()),
        submitted,
        activities: activities.into_iter().collect(),
    }
}

/// What the runs within a plan need: whoever has the run above begins them.
fn needed(plan: &PlanSpec) -> Vec<String> {
    let own = plan.steps.iter().flat_map(|step| {
        std::iter::once(&step.activity).chain(step.undo.as_ref().map(|undo| &undo.activity))
    });
    let own = own.filter(|name| builtin(name).is_none()).cloned();
    let within = plan.steps.iter().filter_map(|step| step.plan.as_deref()).flat_map(needed);
    own.chain(within).collect()
}

fn hash(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}
