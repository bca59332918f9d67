//! What can be wrong with a plan, and how it is said: all of it at once, within bounds, and safe to print.

use std::fmt;
use std::sync::Arc;

use serde::Serialize;

use super::{Plan, limits};

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
    /// A proof is read from a step that comes before, at a place that can be there.
    Proof,
    /// What runs before the commit and what after it, and what happens if nobody commits.
    Commit,
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
            Rule::Proof => "proof",
            Rule::Commit => "commit",
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
    pub(super) fn one(rule: Rule, message: String) -> Self {
        Self { problems: vec![Problem { step: None, rule, message }], more: 0 }
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
pub(super) struct Problems {
    found: Vec<Problem>,
    more: usize,
}

impl Problems {
    pub(super) fn add(&mut self, step: Option<&str>, rule: Rule, message: String) {
        if self.found.len() >= limits::PROBLEMS {
            self.more += 1;
            return;
        }
        // A name that is taken is never cut; one of a megabyte is wrong, and stands here a hundred times.
        let step = step.map(|name| match name.char_indices().nth(limits::NAME) {
            Some((end, _)) => format!("{}…", name.get(..end).unwrap_or_default()),
            None => name.to_owned(),
        });
        self.found.push(Problem { step, rule, message });
    }

    /// Nothing more would be listed.
    pub(super) fn full(&self) -> bool {
        self.found.len() >= limits::PROBLEMS
    }

    pub(super) fn any(&self) -> bool {
        !self.found.is_empty()
    }

    pub(super) fn into_result(self, plan: Option<Plan>) -> Result<Arc<Plan>, CheckError> {
        match plan {
            Some(plan) if self.found.is_empty() => Ok(Arc::new(plan)),
            _ => Err(CheckError { problems: self.found, more: self.more }),
        }
    }
}

/// Text of strangers between quotes in a message: short, and without anything that a terminal would obey.
pub(super) fn clipped(text: &str) -> String {
    const MOST: usize = 80;
    let mut out: String = text.chars().take(MOST).flat_map(char::escape_debug).collect();
    if text.chars().nth(MOST).is_some() {
        out.push('…');
    }
    out
}

/// A message that quotes text of strangers: the same, but its own quotes stay as they are.
pub(super) fn tamed(message: &str) -> String {
    const MOST: usize = 300;
    let mut out = String::new();
    for c in message.chars().take(MOST) {
        match c {
            '"' | '\'' | '\\' => out.push(c),
            c => out.extend(c.escape_debug()),
        }
    }
    if message.chars().nth(MOST).is_some() {
        out.push('…');
    }
    out
}

/// A list of names in a message.
pub(super) fn listed(names: &[&str], between: &str) -> String {
    const MOST: usize = 12;
    let show = |names: &[&str]| names.iter().map(|name| clipped(name)).collect::<Vec<_>>().join(between);
    match (names.get(..MOST - 2), names.last()) {
        (Some(head), Some(last)) if names.len() > MOST => {
            let more = names.len() - MOST + 1;
            format!("{}{between}… {more} more …{between}{}", show(head), clipped(last))
        }
        _ => show(names),
    }
}
