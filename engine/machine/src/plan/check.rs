//! The one validation of plans, for the builder and for JSON alike. It finds all problems, not the first.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::binding::{self, Bound, Source, Template};
use super::schema::Shape;
use super::spec::{OnFailure, PlanSpec, Retry, Span, StepSpec};
use super::{Catalog, Plan, Step, Work, graph, limits};
use crate::json::{Json, canonical, unfit};
use crate::names::{StepIx, StepName};

/// How long an attempt may take if neither the step nor the plan says: long, but never for ever.
const DEFAULT_TIMEOUT: Span = Span::secs(3600);
/// How long a rollback waits for attempts in flight if the plan does not say.
const DEFAULT_SETTLE: Span = Span::secs(60);

impl Plan {
    /// Checks a plan against the activities there are, and fixes it. All problems are named at once.
    pub fn check(spec: PlanSpec, catalog: &dyn Catalog) -> Result<Arc<Plan>, CheckError> {
        let mut problems = Problems::default();
        let spec = seal(spec, catalog, &mut problems);
        let plan = build(spec, &mut problems);
        if let Some(plan) = &plan {
            against_catalog(plan, catalog, &mut problems);
        }
        problems.into_result(plan)
    }

    /// Reads a plan from JSON text and checks it.
    pub fn check_json(text: &str, catalog: &dyn Catalog) -> Result<Arc<Plan>, CheckError> {
        if text.len() > limits::BYTES {
            let message = format!("the plan has {} bytes; at most {} are taken", text.len(), limits::BYTES);
            return Err(CheckError::one(None, Rule::Limit, message));
        }
        match serde_json::from_str(text) {
            Ok(spec) => Self::check(spec, catalog),
            Err(error) => Err(CheckError::one(None, Rule::Form, format!("this is not a plan: {error}"))),
        }
    }
}

/// What a run's first event holds.
#[derive(Deserialize)]
struct Submitted {
    hash: String,
    plan: PlanSpec,
}

pub(super) fn reload(body: &Json) -> Result<Arc<Plan>, CheckError> {
    let stored: Submitted = body.read().map_err(|error| {
        CheckError::one(None, Rule::Form, format!("the stored plan cannot be read: {error}"))
    })?;
    let mut problems = Problems::default();
    let plan = build(stored.plan, &mut problems);
    let plan = problems.into_result(plan)?;
    if plan.hash != stored.hash {
        let message =
            format!("the stored plan has the hash {}, but {} was submitted", plan.hash, stored.hash);
        return Err(CheckError::one(None, Rule::Form, message));
    }
    Ok(plan)
}

/// Writes into the plan what a later release could decide otherwise.
fn seal(mut spec: PlanSpec, catalog: &dyn Catalog, problems: &mut Problems) -> PlanSpec {
    spec.retry.get_or_insert_default();
    spec.undo_retry.get_or_insert_with(Retry::of_undos);
    spec.timeout.get_or_insert(DEFAULT_TIMEOUT);
    spec.settle_within.get_or_insert(DEFAULT_SETTLE);
    for step in &mut spec.steps {
        let Some(activity) = catalog.activity(&step.activity) else { continue };
        let known = activity.effect;
        let effect = step.effect.get_or_insert(known);
        if effect.probed && !known.probed {
            let message = format!(
                "says that its effect can be probed, but the activity {} has no probe",
                activity.name
            );
            problems.add(Some(&step.name), Rule::Effect, message);
        }
        if effect.refuses_duplicates && !known.refuses_duplicates {
            let message =
                format!("says that its target refuses duplicates; the activity {} does not", activity.name);
            problems.add(Some(&step.name), Rule::Effect, message);
        }
        effect.at_most_once |= known.at_most_once;
    }
    spec
}

/// Everything about a plan that can be known without the activities: names, limits, edges, order, bindings.
fn build(spec: PlanSpec, problems: &mut Problems) -> Option<Plan> {
    named(&spec.workflow, "the workflow", None, problems);
    titled(spec.title.as_deref(), None, problems);
    for retry in [&spec.retry, &spec.undo_retry].into_iter().flatten() {
        patience(retry, None, problems);
    }
    if spec.steps.is_empty() {
        problems.add(None, Rule::Limit, "a plan has at least one step".into());
    }
    if spec.steps.len() > limits::STEPS {
        let message = format!("the plan has {} steps; at most {} are taken", spec.steps.len(), limits::STEPS);
        problems.add(None, Rule::Limit, message);
        return None;
    }
    let edges: usize = spec.steps.iter().map(|step| step.after.len()).sum();
    if edges > limits::EDGES {
        let message = format!("the plan has {edges} dependencies; at most {} are taken", limits::EDGES);
        problems.add(None, Rule::Limit, message);
        return None;
    }

    let mut by_name = HashMap::with_capacity(spec.steps.len());
    for (n, step) in spec.steps.iter().enumerate() {
        form(step, problems);
        if by_name.insert(step.name.as_str().into(), StepIx(n as u32)).is_some() {
            problems.add(Some(&step.name), Rule::Name, "is the name of more than one step".into());
        }
    }
    let after = dependencies(&spec, &by_name, problems);
    let order = match graph::order(&after) {
        Ok(order) => order,
        Err(cycle) => {
            let names: Vec<_> =
                cycle.iter().filter_map(|ix| spec.steps.get(ix.index())).map(|s| s.name.as_str()).collect();
            let message = format!("the steps wait for each other in a circle: {}", shortened(&names));
            problems.add(names.first().copied(), Rule::Cycle, message);
            return None;
        }
    };
    // What follows would only repeat what is wrong with names and edges.
    if problems.any() {
        return None;
    }

    let reach = graph::Reach::new(&after, &order);
    let before = graph::turned(&after);
    let mut steps = Vec::with_capacity(spec.steps.len());
    for (n, (step, (after, before))) in spec.steps.iter().zip(after.into_iter().zip(before)).enumerate() {
        let bind = Bindings { by_name: &by_name, reach: &reach, step: StepIx(n as u32), name: &step.name };
        let retry = step.retry.or(spec.retry).unwrap_or_default();
        let timeout = step.timeout.or(spec.timeout).unwrap_or(DEFAULT_TIMEOUT);
        let forward = Work {
            activity: step.activity.clone(),
            input: bind.template(&step.input, false, problems),
            retry,
            timeout,
        };
        let undo = step.undo.as_ref().map(|undo| Work {
            activity: undo.activity.clone(),
            input: bind.template(&undo.input, true, problems),
            retry: undo.retry.or(spec.undo_retry).unwrap_or_else(Retry::of_undos),
            timeout: undo.timeout.or(spec.timeout).unwrap_or(DEFAULT_TIMEOUT),
        });
        steps.push(Step {
            name: step.name.as_str().into(),
            title: step.title.clone(),
            forward,
            undo,
            on_failure: step.on_failure,
            effect: step.effect.unwrap_or_default(),
            after,
            before,
        });
    }

    let value = match serde_json::to_value(&spec) {
        Ok(value) => value,
        Err(error) => {
            problems.add(None, Rule::Form, format!("the plan cannot be written as JSON: {error}"));
            return None;
        }
    };
    let text = canonical(&value);
    if text.len() > limits::BYTES {
        let message = format!("the plan has {} bytes; at most {} are taken", text.len(), limits::BYTES);
        problems.add(None, Rule::Limit, message);
    }
    let hash: String = Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
    let submitted = Json::trusted(format!("{{\"hash\":\"{hash}\",\"plan\":{text}}}").into());
    let activities: BTreeSet<String> = steps
        .iter()
        .flat_map(|step| std::iter::once(&step.forward).chain(&step.undo))
        .map(|work| work.activity.clone())
        .collect();
    Some(Plan {
        spec,
        steps,
        by_name,
        order,
        hash,
        text: Json::trusted(text.into()),
        submitted,
        activities: activities.into_iter().collect(),
    })
}

/// What can be said of one step without looking at the others.
fn form(step: &StepSpec, problems: &mut Problems) {
    let name = Some(step.name.as_str());
    named(&step.name, "the step", name, problems);
    titled(step.title.as_deref(), name, problems);
    match (&step.undo, &step.nothing_to_undo) {
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
        (None, Some(reason)) => titled(Some(reason), name, problems),
        (Some(_), None) => {}
    }
    let inputs = std::iter::once(("input", &step.input))
        .chain(step.undo.as_ref().map(|undo| ("undo input", &undo.input)));
    for (what, input) in inputs {
        if let Some((at, wrong)) = unfit(input, limits::DEPTH) {
            problems.add(name, Rule::Limit, format!("its {what} at \"{}\" {wrong}", clipped(&at)));
        } else {
            let bytes = Json::of(input).as_str().len();
            if bytes > limits::INPUT_BYTES {
                let message =
                    format!("its {what} has {bytes} bytes; at most {} are taken", limits::INPUT_BYTES);
                problems.add(name, Rule::Limit, message);
            }
        }
    }
    for retry in
        [step.retry.as_ref(), step.undo.as_ref().and_then(|undo| undo.retry.as_ref())].into_iter().flatten()
    {
        patience(retry, name, problems);
    }
    for timeout in [step.timeout, step.undo.as_ref().and_then(|undo| undo.timeout)].into_iter().flatten() {
        if timeout.0.is_zero() {
            problems.add(
                name,
                Rule::Patience,
                "has a timeout of zero: no attempt could ever end well".into(),
            );
        }
    }
}

fn named(text: &str, what: &str, step: Option<&str>, problems: &mut Problems) {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let starts = text.starts_with(|c: char| c.is_ascii_alphanumeric());
    if !starts || !text.chars().all(good) || text.len() > limits::NAME {
        let message = format!(
            "{what} has the name \"{}\"; a name starts with a letter or a digit, goes on with letters, digits, '-', '_' or '.', and has at most {} characters",
            clipped(text),
            limits::NAME
        );
        problems.add(step, Rule::Name, message);
    }
}

fn titled(text: Option<&str>, step: Option<&str>, problems: &mut Problems) {
    let Some(text) = text else { return };
    // Bidirectional marks and line breaks would let a title pretend to be something else on a screen.
    let hostile = |c: char| {
        c.is_control()
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{2028}' | '\u{2029}')
    };
    if text.chars().any(hostile) {
        problems.add(step, Rule::Name, format!("the title \"{}\" has control characters", clipped(text)));
    }
    if text.chars().count() > limits::TITLE {
        problems.add(
            step,
            Rule::Limit,
            format!("the title \"{}\" has more than {} characters", clipped(text), limits::TITLE),
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

fn dependencies(
    spec: &PlanSpec,
    by_name: &HashMap<StepName, StepIx>,
    problems: &mut Problems,
) -> Vec<Vec<StepIx>> {
    let mut all = Vec::with_capacity(spec.steps.len());
    for step in &spec.steps {
        let mut after = Vec::with_capacity(step.after.len());
        for name in &step.after {
            match by_name.get(name.as_str()) {
                Some(&ix) if after.contains(&ix) => {
                    problems.add(
                        Some(&step.name),
                        Rule::Dependency,
                        format!("names {} twice in \"after\"", clipped(name)),
                    );
                }
                Some(&ix) => after.push(ix),
                None => {
                    let message = format!("comes after \"{}\", which is no step of this plan", clipped(name));
                    problems.add(Some(&step.name), Rule::Dependency, message);
                }
            }
        }
        all.push(after);
    }
    all
}

/// Finds and resolves the bindings of one step.
struct Bindings<'a> {
    by_name: &'a HashMap<StepName, StepIx>,
    reach: &'a graph::Reach,
    step: StepIx,
    name: &'a str,
}

impl Bindings<'_> {
    fn template(&self, input: &Value, in_undo: bool, problems: &mut Problems) -> Template {
        let mut bound = Vec::new();
        for written in binding::find(input) {
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
            Some(&ix) if self.reach.comes_after(self.step, ix) => Ok((Source::Step(ix), path)),
            Some(_) => {
                Err(format!("reads the output of {name}, but does not come after it; add it to \"after\""))
            }
        }
    }
}

/// What needs the activities: that they exist, and that inputs and bindings fit their schemas.
fn against_catalog(plan: &Plan, catalog: &dyn Catalog, problems: &mut Problems) {
    let mut shapes: HashMap<&str, Shape> = HashMap::new();
    for (_, step) in plan.steps() {
        let halves =
            std::iter::once((false, &step.forward)).chain(step.undo.as_ref().map(|undo| (true, undo)));
        for (in_undo, work) in halves {
            let Some(activity) = catalog.activity(&work.activity) else {
                let known = catalog.names();
                let message = format!(
                    "its {} runs \"{}\", which is no activity here; there are {}",
                    if in_undo { "undo" } else { "step" },
                    clipped(&work.activity),
                    shortened(&known)
                );
                problems.add(Some(&step.name), Rule::Activity, message);
                continue;
            };
            let shape = shapes.entry(activity.name.as_str()).or_insert_with(|| Shape::new(&activity.input));
            let mut nullable = Vec::new();
            for bound in work.input.bound() {
                let (from, may_miss) = match &bound.source {
                    Source::Own => (step, true),
                    Source::Step(ix) => (plan.step(*ix), plan.step(*ix).on_failure == OnFailure::Continue),
                };
                let Some(source) = catalog.activity(&from.forward.activity) else { continue };
                let output = super::schema::at(&source.output, &bound.path);
                let at = format!("its {} at \"{}\"", half(in_undo), clipped(&bound.at));
                if !output.possible {
                    let message = format!(
                        "{at} reads \"{}\" of {}, but the output of {} has no such place",
                        clipped(&bound.path),
                        from.name,
                        source.name
                    );
                    problems.add(Some(&step.name), Rule::Binding, message);
                    continue;
                }
                if let Some(wrong) = shape.takes(&bound.at, &output, may_miss) {
                    let message = format!(
                        "{at} reads \"{}/{}\": {wrong}",
                        from.name,
                        bound.path.trim_start_matches('/')
                    );
                    problems.add(Some(&step.name), Rule::Binding, message);
                }
                nullable.push(bound.at.clone());
            }
            for (at, wrong) in shape.problems(&work.input, &nullable) {
                let message = format!("its {} at \"{}\": {wrong}", half(in_undo), clipped(&at));
                problems.add(Some(&step.name), Rule::Input, message);
            }
        }
    }
}

fn half(in_undo: bool) -> &'static str {
    if in_undo { "undo input" } else { "input" }
}

/// Text of strangers inside a message: short, and without anything that a terminal would obey.
pub(super) fn clipped(text: &str) -> String {
    const MOST: usize = 80;
    let mut out: String = text.chars().take(MOST).flat_map(char::escape_debug).collect();
    if text.chars().nth(MOST).is_some() {
        out.push('…');
    }
    out
}

fn shortened(names: &[&str]) -> String {
    const MOST: usize = 12;
    let shown: Vec<_> = names.iter().map(|name| clipped(name)).collect();
    let arrow = if names.len() > 1 && names.first() == names.last() { " -> " } else { ", " };
    if let (true, Some(head), Some(tail)) = (names.len() > MOST, shown.get(..MOST - 2), shown.last()) {
        return format!("{}{arrow}… {} more …{arrow}{tail}", head.join(arrow), names.len() - MOST + 1);
    }
    shown.join(arrow)
}

/// One thing that is wrong with a plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The step, if it is one step's.
    pub step: Option<String>,
    /// The rule that is broken.
    pub rule: Rule,
    /// What is wrong, for people.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.step {
            Some(step) => write!(f, "step \"{}\" [{}]: {}", clipped(step), self.rule, self.message),
            None => write!(f, "plan [{}]: {}", self.rule, self.message),
        }
    }
}

/// The rules of a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Rule {
    /// It is JSON of the right form.
    Form,
    /// It keeps within the limits.
    Limit,
    /// Names are unique and plain.
    Name,
    /// A dependency is a step of the plan, once.
    Dependency,
    /// Steps do not wait for each other in a circle.
    Cycle,
    /// A binding reads a step that comes before, at a place that can be there.
    Binding,
    /// The activity exists.
    Activity,
    /// An input fits the activity's schema.
    Input,
    /// There is an undo, or a reason why not.
    Undo,
    /// What a step says of its effect, its activity can keep.
    Effect,
    /// Retries and timeouts come to an end.
    Patience,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            Rule::Form => "form",
            Rule::Limit => "limit",
            Rule::Name => "name",
            Rule::Dependency => "dependency",
            Rule::Cycle => "cycle",
            Rule::Binding => "binding",
            Rule::Activity => "activity",
            Rule::Input => "input",
            Rule::Undo => "undo",
            Rule::Effect => "effect",
            Rule::Patience => "patience",
        };
        f.write_str(name)
    }
}

/// Why a plan was not taken: everything that is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize)]
pub struct CheckError {
    /// The problems, the first ones if there are very many.
    pub problems: Vec<Problem>,
    /// How many more there are.
    pub more: usize,
}

impl CheckError {
    fn one(step: Option<&str>, rule: Rule, message: String) -> Self {
        Self { problems: vec![Problem { step: step.map(str::to_owned), rule, message }], more: 0 }
    }
}

impl fmt::Display for CheckError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the plan was not taken: {} problem(s)", self.problems.len() + self.more)?;
        for problem in &self.problems {
            write!(f, "\n  {problem}")?;
        }
        if self.more > 0 {
            write!(f, "\n  and {} more", self.more)?;
        }
        Ok(())
    }
}

#[derive(Default)]
struct Problems {
    found: Vec<Problem>,
    more: usize,
}

impl Problems {
    fn add(&mut self, step: Option<&str>, rule: Rule, message: String) {
        if self.found.len() < limits::PROBLEMS {
            self.found.push(Problem { step: step.map(str::to_owned), rule, message });
        } else {
            self.more += 1;
        }
    }

    fn any(&self) -> bool {
        !self.found.is_empty()
    }

    fn into_result(self, plan: Option<Plan>) -> Result<Arc<Plan>, CheckError> {
        match plan {
            Some(plan) if self.found.is_empty() => Ok(Arc::new(plan)),
            _ => Err(CheckError { problems: self.found, more: self.more }),
        }
    }
}
