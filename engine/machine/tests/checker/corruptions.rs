//! Every corruption there is, by rule.

use std::collections::BTreeSet;

use backstay_machine::checker::{RuleId, Violation};

use crate::history::History;

pub struct Corruption {
    pub rule: RuleId,
    pub what: &'static str,
    pub found: fn() -> Vec<Violation>,
    spoil: Option<fn() -> History>,
}

/// One spoiled history.
pub fn broken(rule: RuleId, what: &'static str, spoil: fn() -> History) -> Corruption {
    Corruption { rule, what, found: Vec::new, spoil: Some(spoil) }
}

/// Something that takes more than one history.
pub fn found(rule: RuleId, what: &'static str, found: fn() -> Vec<Violation>) -> Corruption {
    Corruption { rule, what, found, spoil: None }
}

impl Corruption {
    pub fn violations(&self) -> Vec<Violation> {
        self.spoil.map_or_else(self.found, |spoil| spoil().check())
    }
}

pub fn all() -> Vec<Corruption> {
    let mut all = crate::corrupt_rows::all();
    all.extend(crate::corrupt_steps::all());
    all.extend(crate::corrupt_ends::all());
    all.extend(crate::corrupt_people::all());
    all
}

#[test]
fn every_corrupted_history_is_rejected() {
    let mut missed = Vec::new();
    for corruption in all() {
        let found = corruption.violations();
        if !found.iter().any(|violation| violation.rule == corruption.rule) {
            missed.push(format!("{}: {}, found only {found:#?}", corruption.rule, corruption.what));
        }
        for violation in found {
            assert!(violation.message.len() > 20, "this helps nobody: {violation}");
        }
    }
    assert!(missed.is_empty(), "{}", missed.join("\n"));
}

#[test]
fn no_rule_is_without_a_corrupted_history() {
    let proven: BTreeSet<RuleId> = all().iter().map(|corruption| corruption.rule).collect();
    let unproven: Vec<_> = RuleId::ALL.iter().filter(|rule| !proven.contains(rule)).collect();
    assert!(unproven.is_empty(), "nobody has seen these fire: {unproven:?}");
}
