//! Bindings: the places of an input that another step's output fills in.

use std::collections::BTreeMap;

use serde_json::Value;

use super::limits;
use crate::json::{Go, Json, walk};
use crate::names::StepIx;

/// The one reserved key of an input.
pub(crate) const OUTPUT: &str = "$output";

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
}

/// Every binding of an input, and every misuse of the reserved key. If there are too many, that is all there is
/// to say.
pub(crate) fn find(input: &Value) -> Vec<Written> {
    let mut found = Vec::new();
    walk(input, |path, value| {
        let Some((map, reserved)) = value.as_object().and_then(|map| Some((map, map.get(OUTPUT)?))) else {
            return Go::In;
        };
        let at = path.pointer();
        if found.len() == limits::BINDINGS {
            let wrong = format!("there are too many bindings; an input has at most {}", limits::BINDINGS);
            found = vec![Written { at, text: Err(wrong) }];
            return Go::Stop;
        }
        let text = match reserved {
            Value::String(text) if map.len() == 1 => Ok(text.clone()),
            _ => Err(format!("\"{OUTPUT}\" stands alone in its object, with a text such as \"step/field\"")),
        };
        found.push(Written { at, text });
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
