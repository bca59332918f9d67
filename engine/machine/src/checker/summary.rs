//! How a check of many runs went.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use super::{RuleId, Violation};

/// What was checked, and what was found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// Runs.
    pub runs: u64,
    /// Rows of their journals.
    pub events: u64,
    /// Violations of each rule; rules that hold everywhere are not in it.
    pub violations: BTreeMap<RuleId, u64>,
}

impl Summary {
    /// How many violations there are of all rules.
    pub fn total(&self) -> u64 {
        self.violations.values().sum()
    }

    pub(super) fn count(&mut self, rows: usize, violations: &[Violation]) {
        self.runs += 1;
        self.events += rows as u64;
        self.add(violations);
    }

    pub(super) fn add(&mut self, violations: &[Violation]) {
        for violation in violations {
            *self.violations.entry(violation.rule).or_default() += 1;
        }
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "checked {} runs, {} events: {} violations", self.runs, self.events, self.total())?;
        for (rule, count) in &self.violations {
            write!(f, "\n  {count} of {rule}: {}", rule.sentence())?;
        }
        Ok(())
    }
}
