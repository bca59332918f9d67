//! The one validation of plans, for the builder and for JSON alike. It finds all problems, not the first.
//!
//! ```text
//!   check   seal -> limits -> form -> link -> against the catalog -> fix
//!   reload                           link ------------------------> fix
//! ```
//!
//! A stored plan is only linked again: what a later release thinks of names, limits or activities must not stop
//! a run that is under way.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use serde::Deserialize;
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use super::binding::{self, Bound, Source, Template};
use super::builtin::{Kind, LITERAL, builtin, kind};
use super::problem::{CheckError, Problems, Rule, clipped, listed, tamed};
use super::schema::Shape;
use super::spec::{Ending, OnFailure, Parent, PlanSpec, Proof, Retry, Span, StepSpec};
use super::{ActivitySpec, Catalog, Plan, Required, Step, Work, graph, limits};
use crate::json::{Json, canonical, unfit};
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

/// Whether the plan is small enough to look at.
fn within_limits(spec: &PlanSpec, problems: &mut Problems) -> bool {
    if spec.steps.is_empty() {
        problems.add(None, Rule::Limit, "a plan has at least one step".into());
    }
    if spec.steps.len() > limits::STEPS {
        let message = format!("the plan has {} steps; at most {} are taken", spec.steps.len(), limits::STEPS);
        problems.add(None, Rule::Limit, message);
        return false;
    }
    let edges: usize = spec.steps.iter().map(|step| step.after.len()).sum();
    if edges > limits::EDGES {
        let message = format!("the plan has {edges} dependencies; at most {} are taken", limits::EDGES);
        problems.add(None, Rule::Limit, message);
        return false;
    }
    true
}

/// What can be said of the plan and of each step without looking at the others. False: some input is too large or
/// too deep to look further.
fn form(spec: &PlanSpec, problems: &mut Problems) -> bool {
    named(&spec.workflow, "the workflow", None, problems);
    titled(spec.title.as_deref(), "the title", None, problems);
    for retry in [&spec.retry, &spec.undo_retry].into_iter().flatten() {
        patience(retry, None, problems);
    }
    if spec.timeout.is_some_and(|timeout| timeout.0.is_zero()) {
        problems.add(None, Rule::Patience, NO_TIME.into());
    }
    if let Some(commit) = &spec.commit {
        if commit.within.is_some() != commit.then.is_some() {
            let message = "its \"commit\" states one of \"within\" and \"then\"; they belong together";
            problems.add(None, Rule::Commit, message.into());
        }
        if let Some(signal) = &commit.signal {
            named(signal, "the signal that commits", None, problems);
        }
        if commit.then == Some(Ending::RollBack)
            && let Some(step) = spec.steps.iter().find(|step| step.point_of_no_return)
        {
            let message = "is a point of no return, but the plan's \"commit\" rolls it back by itself";
            problems.add(Some(&step.name), Rule::Commit, message.into());
        }
    } else if let Some(step) = spec.steps.iter().find(|step| step.finalize) {
        let message = "runs when the run is committed, but the plan has no \"commit\"";
        problems.add(Some(&step.name), Rule::Commit, message.into());
    }
    let mut fit = true;
    for step in &spec.steps {
        fit &= form_of_step(step, problems);
    }
    fit
}

const NO_TIME: &str = "has a timeout of zero: no attempt could ever end well";

fn form_of_step(step: &StepSpec, problems: &mut Problems) -> bool {
    let name = Some(step.name.as_str());
    named(&step.name, "the step", name, problems);
    titled(step.title.as_deref(), "the title", name, problems);
    for (what, pool) in [
        ("its pool", step.pool.as_ref()),
        ("its undo's pool", step.undo.as_ref().and_then(|undo| undo.pool.as_ref())),
    ] {
        if let Some(pool) = pool {
            named(pool, what, name, problems);
        }
    }
    if step.pool.is_some() && kind(&step.activity) != Kind::Call {
        problems.add(name, Rule::Form, "names a \"pool\", but it calls nobody".into());
    }
    // A wait leaves nothing behind, and what a commit has finished is not undone.
    let needs_undo = kind(&step.activity) == Kind::Call && !step.finalize;
    match (&step.undo, &step.nothing_to_undo) {
        (Some(_), None) if !needs_undo => {
            problems.add(
                name,
                Rule::Undo,
                "has an \"undo\", but there is nothing to undo in such a step".into(),
            );
        }
        (None, None) if !needs_undo => {}
        (None, None) => problems.add(
            name,
            Rule::Undo,
            "names no undo; give \"undo\", or say in \"nothing_to_undo\" why nothing has to be undone".into(),
        ),
        (Some(_), Some(_)) => {
            problems.add(
                name,
                Rule::Undo,
                "has both an \"undo\" and a reason for \"nothing_to_undo\"".into(),
            );
        }
        (None, Some(reason)) if reason.trim().is_empty() => {
            problems.add(name, Rule::Undo, "gives an empty reason for \"nothing_to_undo\"".into());
        }
        (None, Some(reason)) => titled(Some(reason), "the reason", name, problems),
        (Some(_), None) => {}
    }
    let mut fit = true;
    let inputs = std::iter::once(("input", &step.input))
        .chain(step.undo.as_ref().map(|undo| ("undo input", &undo.input)));
    for (what, input) in inputs {
        if let Some((at, wrong)) = unfit(input, limits::DEPTH) {
            problems.add(name, Rule::Limit, format!("its {what} at \"{}\" {wrong}", clipped(&at)));
            fit = false;
            continue;
        }
        let bytes = Json::of(input).as_str().len();
        if bytes > limits::INPUT_BYTES {
            let message = format!("its {what} has {bytes} bytes; at most {} are taken", limits::INPUT_BYTES);
            problems.add(name, Rule::Limit, message);
            fit = false;
        }
    }
    for retry in
        [step.retry.as_ref(), step.undo.as_ref().and_then(|undo| undo.retry.as_ref())].into_iter().flatten()
    {
        patience(retry, name, problems);
    }
    for timeout in [step.timeout, step.undo.as_ref().and_then(|undo| undo.timeout)].into_iter().flatten() {
        if timeout.0.is_zero() {
            problems.add(name, Rule::Patience, NO_TIME.into());
        }
    }
    fit
}

fn named(text: &str, what: &str, step: Option<&str>, problems: &mut Problems) {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let starts = text.starts_with(|c: char| c.is_ascii_alphanumeric());
    if !starts || text.len() > limits::NAME || !text.chars().all(good) {
        let message = format!(
            "{what} has the name \"{}\"; a name starts with a letter or a digit, goes on with letters, digits, '-', '_' or '.', and has at most {} characters",
            clipped(text),
            limits::NAME
        );
        problems.add(step, Rule::Name, message);
    }
}

fn titled(text: Option<&str>, what: &str, step: Option<&str>, problems: &mut Problems) {
    let Some(text) = text else { return };
    // Bidirectional marks and line breaks would let a title pretend to be something else on a screen.
    let hostile = |c: char| {
        c.is_control()
            || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{2028}' | '\u{2029}')
    };
    if text.chars().any(hostile) {
        problems.add(step, Rule::Name, format!("{what} \"{}\" has control characters", clipped(text)));
    }
    if text.chars().count() > limits::TITLE {
        problems.add(
            step,
            Rule::Limit,
            format!("{what} \"{}\" has more than {} characters", clipped(text), limits::TITLE),
        );
    }
}

fn patience(retry: &Retry, step: Option<&str>, problems: &mut Problems) {
    let mut wrong = |message: &str| problems.add(step, Rule::Patience, format!("its retry {message}"));
    if !retry.factor.is_finite() || retry.factor < 1.0 || retry.factor > 100.0 {
        wrong("has a factor outside 1 to 100");
    }
    if !retry.jitter.is_finite() || !(0.0..=1.0).contains(&retry.jitter) {
        wrong("has a jitter outside 0 to 1");
    }
    if retry.ceiling < retry.first {
        wrong("has a ceiling below its first delay");
    }
    match (retry.attempts, retry.elapsed) {
        (None, None) => wrong("never ends; give \"attempts\", \"elapsed\" or both"),
        (Some(0), _) => wrong("allows no attempt at all; 1 means: try once and never again"),
        _ => {}
    }
}

/// A plan whose names, edges and bindings point at steps.
struct Linked {
    steps: Vec<Step>,
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

/// The activity of that name: the engine's own, or one of those there are.
fn known<'a>(catalog: &'a dyn Catalog, name: &str) -> Option<&'a ActivitySpec> {
    builtin(name).or_else(|| catalog.activity(name))
}

/// What waits cannot undo anything.
fn known_of<'a>(catalog: &'a dyn Catalog, name: &str, in_undo: bool) -> Option<&'a ActivitySpec> {
    known(catalog, name).filter(|_| !in_undo || kind(name) == Kind::Call)
}

/// What needs the activities: that they exist, and that inputs and bindings fit their schemas.
fn against_catalog(linked: &Linked, catalog: &dyn Catalog, problems: &mut Problems) {
    let mut shapes: HashMap<&str, Shape> = HashMap::new();
    let there_are = listed(&catalog.names(), ", ");
    for step in &linked.steps {
        commits(linked, step, problems);
        for proof in &step.requires {
            let Some(from) = linked.steps.get(proof.step.index()) else { continue };
            let possible = known(catalog, &from.forward.activity)
                .is_none_or(|activity| super::schema::at(&activity.output, &proof.at).possible);
            if !possible || !(proof.at.is_empty() || proof.at.starts_with('/')) {
                let message = format!(
                    "requires a proof at \"{}\" of {}, whose output has no such place",
                    clipped(&proof.at),
                    from.name
                );
                problems.add(Some(&step.name), Rule::Proof, message);
            }
        }
        if matches!(step.kind, Kind::Wait | Kind::Approve) {
            waits(step, problems);
        }
        let undo = step.undo.as_ref().filter(|_| step.kind != Kind::Run);
        let halves = std::iter::once((false, &step.forward)).chain(undo.map(|undo| (true, undo)));
        for (in_undo, work) in halves {
            if problems.full() {
                return;
            }
            let Some(activity) = known_of(catalog, &work.activity, in_undo) else {
                let message = format!(
                    "its {} runs \"{}\", which is no activity here; there are {there_are}",
                    if in_undo { "undo" } else { "step" },
                    clipped(&work.activity),
                );
                problems.add(Some(&step.name), Rule::Activity, message);
                continue;
            };
            let shape = shapes.entry(activity.name.as_str()).or_insert_with(|| Shape::of(activity));
            if let Some(wrong) = shape.unusable() {
                let message = format!(
                    "its {} cannot be checked, as the schema of the activity {} is wrong: {wrong}",
                    half(in_undo),
                    activity.name
                );
                problems.add(Some(&step.name), Rule::Activity, message);
                continue;
            }
            for bound in work.input.bound() {
                if let Some(wrong) = misfit(linked, catalog, shape, step, bound) {
                    let message = format!("its {} at \"{}\" {wrong}", half(in_undo), clipped(&bound.at));
                    problems.add(Some(&step.name), Rule::Binding, message);
                }
            }
            // A place that a binding fills is judged above, even if the binding is wrong.
            let places = binding::find(work.input.written()).into_iter().map(|written| written.at).collect();
            for (at, wrong) in shape.problems(work.input.written(), &places) {
                let message = format!("its {} at \"{}\": {wrong}", half(in_undo), clipped(&at));
                problems.add(Some(&step.name), Rule::Input, message);
            }
        }
    }
}

/// What runs after the commit, and what before it.
fn commits(linked: &Linked, step: &Step, problems: &mut Problems) {
    if step.finalize {
        return;
    }
    for ix in &step.after {
        if let Some(before) = linked.steps.get(ix.index()).filter(|before| before.finalize) {
            let message = format!("comes after {}, which runs only when the run is committed", before.name);
            problems.add(Some(&step.name), Rule::Commit, message);
        }
    }
}

/// What a wait must say in so many words: it decides who may say what to the run.
fn waits(step: &Step, problems: &mut Problems) {
    for bound in step.forward.input.bound() {
        if bound.at.is_empty() || LITERAL.iter().any(|field| bound.at.starts_with(field)) {
            let message = format!(
                "its input at \"{}\" is read from a step; it must stand in the plan",
                clipped(&bound.at)
            );
            problems.add(Some(&step.name), Rule::Binding, message);
        }
    }
    let input = step.forward.input.written();
    if let Some((at, wrong)) = bad_time(input) {
        problems.add(Some(&step.name), Rule::Input, format!("its input at \"{at}\" {wrong}"));
    }
    if let Some(schema) = input.get("schema")
        && let Some(wrong) = Shape::new(schema).unusable()
    {
        problems.add(
            Some(&step.name),
            Rule::Input,
            format!("its input at \"/schema\" is no schema: {wrong}"),
        );
    }
}

/// Where the input of a wait says no time, and why not.
pub(super) fn bad_time(input: &serde_json::Value) -> Option<(String, String)> {
    let text = |field: &str| input.get(field).and_then(serde_json::Value::as_str);
    for field in ["for", "within"] {
        if let Some(Err(error)) = text(field).map(humantime::parse_duration) {
            return Some((format!("/{field}"), format!("is no length of time such as \"30s\": {error}")));
        }
    }
    let error = text("until")?.parse::<crate::Time>().err()?;
    Some(("/until".into(), format!("is no time such as \"2026-01-31T02:00:00Z\": {error}")))
}

/// Why what a binding reads cannot stand where it is written.
fn misfit(
    linked: &Linked,
    catalog: &dyn Catalog,
    shape: &Shape,
    step: &Step,
    bound: &Bound,
) -> Option<String> {
    let (from, may_miss) = match &bound.source {
        Source::Own => (step, true),
        Source::Step(ix) => {
            let from = linked.steps.get(ix.index())?;
            (from, from.on_failure == OnFailure::Continue)
        }
    };
    let source = known(catalog, &from.forward.activity)?;
    let output = super::schema::at(&source.output, &bound.path);
    if !output.possible {
        return Some(format!(
            "reads \"{}\" of {}, but the output of {} has no such place",
            clipped(&bound.path),
            clipped(&from.name),
            source.name
        ));
    }
    let wrong = shape.takes(&bound.at, &output, may_miss)?;
    let path = clipped(bound.path.trim_start_matches('/'));
    Some(format!("reads \"{}/{path}\": {wrong}", clipped(&from.name)))
}

fn half(in_undo: bool) -> &'static str {
    if in_undo { "undo input" } else { "input" }
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
