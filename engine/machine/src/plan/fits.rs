//! Whether a plan fits the activities there are: that they exist, and that inputs and bindings fit their schemas.

use std::collections::HashMap;

use super::binding::{self, Bound, Source};
use super::builtin::{Kind, LITERAL, builtin, kind};
use super::check::Linked;
use super::problem::{Problems, Rule, clipped, listed};
use super::schema::Shape;
use super::spec::OnFailure;
use super::{ActivitySpec, Catalog, Step};

/// The activity of that name: the engine's own, or one of those there are.
pub(super) fn known<'a>(catalog: &'a dyn Catalog, name: &str) -> Option<&'a ActivitySpec> {
    builtin(name).or_else(|| catalog.activity(name))
}

/// What waits cannot undo anything.
fn known_of<'a>(catalog: &'a dyn Catalog, name: &str, in_undo: bool) -> Option<&'a ActivitySpec> {
    known(catalog, name).filter(|_| !in_undo || kind(name) == Kind::Call)
}

/// What needs the activities: that they exist, and that inputs and bindings fit their schemas.
pub(super) fn against_catalog(linked: &Linked, catalog: &dyn Catalog, problems: &mut Problems) {
    let mut shapes: HashMap<&str, Shape> = HashMap::new();
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
                    "its {} runs \"{}\", which is no activity here; there are {}",
                    if in_undo { "undo" } else { "step" },
                    clipped(&work.activity),
                    listed(&catalog.names(), ", "),
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

pub(super) fn half(in_undo: bool) -> &'static str {
    if in_undo { "undo input" } else { "input" }
}
