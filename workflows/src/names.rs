//! The names that expressions may use at a place of a file, and what is known of them before any input is there.

use serde_json::Value;

use crate::expression::Expression;
use crate::fill::Spot;
use crate::problem::{Problem, Rule, clipped};

/// The names at one place, each with its JSON Schema if it is known.
#[derive(Clone, Debug, Default)]
pub(crate) struct Names {
    known: Vec<(String, Option<Value>)>,
}

const TAKEN: [&str; 15] = [
    "inputs", "index", "and", "or", "not", "in", "is", "if", "else", "true", "false", "none", "True",
    "False", "None",
];

impl Names {
    pub(crate) fn with(&self, name: &str, schema: Option<Value>) -> Self {
        let mut names = self.clone();
        names.known.retain(|(known, _)| known != name);
        names.known.push((name.to_owned(), schema));
        names
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.known.iter().any(|(known, _)| known == name)
    }

    /// Whether an item may be called so.
    pub(crate) fn may_be(name: &str) -> bool {
        let starts = name.starts_with(|c: char| c.is_ascii_alphabetic());
        let plain = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        starts && plain && name.len() <= 100 && !TAKEN.contains(&name)
    }

    /// The schema at the end of a path, if it is known.
    pub(crate) fn schema_of(&self, path: &[String]) -> Option<&Value> {
        let (name, fields) = path.split_first()?;
        let mut at = self.known.iter().find(|(known, _)| known == name)?.1.as_ref()?;
        for field in fields {
            at = at.get("properties")?.get(field)?;
        }
        Some(at)
    }

    /// That an expression names only what is there.
    pub(crate) fn judge(&self, expression: &Expression, spot: &Spot, found: &mut Vec<Problem>) {
        for path in expression.mentions() {
            if let Some(wrong) = self.stranger(path) {
                let message = format!("\"{}\": {wrong}", clipped(expression.source()));
                found.push(spot.problem(Rule::Expression, message));
            }
        }
    }

    fn stranger(&self, path: &[String]) -> Option<String> {
        let (name, fields) = path.split_first()?;
        let Some((_, schema)) = self.known.iter().find(|(known, _)| known == name) else {
            let known = self.known.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ");
            return Some(format!("there is no \"{}\" here; there are {known}", clipped(name)));
        };
        let mut at = schema.as_ref()?;
        let mut so_far = name.clone();
        for field in fields {
            // Only an object that lists its fields and has no others lacks one for sure.
            let properties = at.get("properties")?.as_object()?;
            let Some(next) = properties.get(field) else {
                if at.get("additionalProperties") != Some(&Value::Bool(false)) {
                    return None;
                }
                let known = properties.keys().map(|key| clipped(key)).collect::<Vec<_>>().join(", ");
                return Some(format!("{so_far} has no \"{}\"; there are {known}", clipped(field)));
            };
            at = next;
            so_far = format!("{so_far}.{field}");
        }
        None
    }

    /// That an expression which is nothing but a name gives one of these types, as far as that is known.
    pub(crate) fn judge_type(
        &self,
        expression: &Expression,
        spot: &Spot,
        wanted: &[&str],
        found: &mut Vec<Problem>,
    ) {
        let Some(schema) = expression.path().and_then(|path| self.schema_of(path)) else { return };
        let Some(kind) = schema.get("type").and_then(Value::as_str) else { return };
        if !wanted.contains(&kind) {
            let wanted: Vec<_> =
                wanted.iter().map(|kind| if *kind == "array" { "list" } else { kind }).collect();
            let message = format!(
                "\"{}\" is of the type {kind}, and a {} is wanted here",
                expression.source(),
                wanted.join(" or ")
            );
            found.push(spot.problem(Rule::Expression, message));
        }
    }
}
