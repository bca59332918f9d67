//! Bindings: the places of an input that another step's output fills in.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{CheckError, PlanSpec, Rule, limits};
use crate::json::{Go, Json, walk};
use crate::names::StepIx;

/// The reserved keys of an input: what another step gives, and in the plan of a step that is a run, what that step is
/// given.
pub(crate) const OUTPUT: &str = "$output";
pub(crate) const GIVEN: &str = "$given";

/// An input with its bindings found and their sources known.
#[derive(Debug)]
pub struct Template {
    value: Value,
    bound: Vec<Bound>,
    /// The text, where there is nothing to fill in: most inputs of most runs.
    fixed: Option<Json>,
}

/// One binding.
#[derive(Clone, Debug, PartialEq)]
pub struct Bound {
    /// Where in the input, as a JSON pointer.
    pub at: String,
    /// Whose output.
    pub source: Source,
    /// Where in that output, as a JSON pointer; empty for all of it.
    pub path: String,
}

/// Whose output a binding reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// That of an earlier step.
    Step(StepIx),
    /// In an undo: that of the step which is undone.
    Own,
}

impl Template {
    pub(crate) fn new(value: Value, bound: Vec<Bound>) -> Self {
        let fixed = bound.is_empty().then(|| Json::of(&value));
        Self { value, bound, fixed }
    }

    /// The input as it was written.
    pub fn written(&self) -> &Value {
        &self.value
    }

    /// The bindings.
    pub fn bound(&self) -> &[Bound] {
        &self.bound
    }

    /// The places that other steps fill in.
    pub(crate) fn filled(&self) -> Vec<String> {
        self.bound.iter().map(|bound| bound.at.clone()).collect()
    }

    /// The input with every binding filled in. A value that is not there is null: that the output's schema
    /// can have the path, and that the input's schema takes null where it may be missing, was checked.
    pub fn resolve<'a>(&self, output: impl Fn(&Source) -> Option<&'a Json>) -> Json {
        if let Some(fixed) = &self.fixed {
            return fixed.clone();
        }
        let mut outputs: BTreeMap<Option<StepIx>, Value> = BTreeMap::new();
        let mut value = self.value.clone();
        for bound in &self.bound {
            let key = match bound.source {
                Source::Step(ix) => Some(ix),
                Source::Own => None,
            };
            let from =
                outputs.entry(key).or_insert_with(|| output(&bound.source).map_or(Value::Null, Json::value));
            let filled = from.pointer(&bound.path).cloned().unwrap_or(Value::Null);
            if let Some(place) = value.pointer_mut(&bound.at) {
                *place = filled;
            }
        }
        Json::of(&value)
    }
}

/// A binding as it is written: `"step"`, `"step/pointer"`, or in an undo `""` and `"/pointer"`.
pub(crate) struct Written {
    pub at: String,
    pub text: Result<String, String>,
    /// It reads what the step of the run above is given.
    pub given: bool,
}

/// Every binding of an input, and every misuse of the reserved key. If there are too many, that is all there is
/// to say.
pub(crate) fn find(input: &Value) -> Vec<Written> {
    let mut found = Vec::new();
    walk(input, |path, value| {
        let reserved = |map: &serde_json::Map<String, Value>| {
            [(OUTPUT, false), (GIVEN, true)].into_iter().find(|(key, _)| map.contains_key(*key))
        };
        let Some((map, (key, given))) = value.as_object().and_then(|map| Some((map, reserved(map)?))) else {
            return Go::In;
        };
        let at = path.pointer();
        if found.len() == limits::BINDINGS {
            let wrong = format!("there are too many bindings; an input has at most {}", limits::BINDINGS);
            found = vec![Written { at, text: Err(wrong), given }];
            return Go::Stop;
        }
        let text = match map.get(key) {
            Some(Value::String(text)) if map.len() == 1 => Ok(text.clone()),
            _ => Err(format!("\"{key}\" stands alone in its object, with a text such as \"step/field\"")),
        };
        found.push(Written { at, text, given });
        Go::Past
    });
    found
}

/// Splits `step/pointer` into the step's name (empty: own) and the pointer.
pub(crate) fn split(text: &str) -> (&str, &str) {
    match text.find('/') {
        Some(slash) => text.split_at(slash),
        None => (text, ""),
    }
}

/// How activities are told a secret's name: an object with the first of these keys, perhaps with the second. Only a plan's
/// own words may be one, and what stands in a plan counts as that; so what another step gave must not get there looking
/// like it.
const SECRET: [&str; 2] = ["secret", "prefix"];

/// A plan with every `$given` replaced by what is given, of which these places were filled in by other steps.
pub(crate) fn give(plan: &PlanSpec, given: &Value, filled: &[String]) -> Result<PlanSpec, CheckError> {
    let mut plan = plan.clone();
    for step in &mut plan.steps {
        let undo = step.undo.as_mut().map(|undo| &mut undo.input);
        let mut within = Vec::new();
        for (n, input) in std::iter::once(&mut step.input).chain(undo).enumerate() {
            let mut data = Vec::new();
            for written in find(input).into_iter().filter(|written| written.given) {
                let path = written.text.unwrap_or_default();
                let value = given.pointer(&path).cloned();
                if let Some(place) = input.pointer_mut(&written.at) {
                    *place = value.unwrap_or(Value::Null);
                }
                data.extend(filled.iter().filter_map(|filled| {
                    // All of what is given here, or what lies at some place in it.
                    if is_within(&path, filled) {
                        return Some(written.at.clone());
                    }
                    let below = filled.strip_prefix(&path).filter(|_| is_within(filled, &path))?;
                    Some(format!("{}{below}", written.at))
                }));
            }
            if let Some(at) = named_by(input, &data) {
                let message = format!(
                    "step {}: what another step gave would name a secret at \"{at}\", and only a plan's own words may",
                    step.name
                );
                return Err(CheckError::one(Rule::Binding, message));
            }
            if n == 0 {
                within = data;
            }
        }
        // It would be the plan's own words to the run within this one: what was said of it is known here and nowhere else.
        if let (Some(inner), false) = (&step.plan, within.is_empty()) {
            give(inner, &step.input, &within)?;
        }
    }
    Ok(plan)
}

/// Where data would be taken for the name of a secret, or for a part of one.
fn named_by(input: &Value, data: &[String]) -> Option<String> {
    let mut found = None;
    if !data.is_empty() {
        walk(input, |path, value| {
            let names = |map: &serde_json::Map<String, Value>| {
                map.contains_key(SECRET[0]) && map.keys().all(|key| SECRET.contains(&key.as_str()))
            };
            if value.as_object().is_some_and(names) {
                let at = path.pointer();
                if data.iter().any(|data| is_within(&at, data) || is_within(data, &at)) {
                    found = Some(at);
                    return Go::Stop;
                }
            }
            Go::In
        });
    }
    found
}

/// Whether a place is another one, or lies in it.
fn is_within(inner: &str, outer: &str) -> bool {
    inner.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}
