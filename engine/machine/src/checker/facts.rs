//! Facts: what the journals say of them makes one chain for each, and the table stands where the chain ends. Runs pass by
//! one after another; of each change only the last word is kept.

use std::collections::{BTreeMap, BTreeSet};

use super::{Findings, RuleId};
use crate::event::{Event, Journaled, StepEvent};
use crate::fact::{Fact, FactChange};
use crate::names::{RunId, Seq};

/// Every change that was seen, by the fact's name and the change's number. Some may be missing: the run that made them was
/// removed.
#[derive(Debug, Default)]
pub(super) struct Chains {
    changes: BTreeMap<String, BTreeMap<i64, Change>>,
    /// The table, before any journal was read.
    table: Vec<Fact>,
    /// The runs that it names and that have passed by.
    passed: BTreeSet<RunId>,
}

#[derive(Debug)]
struct Change {
    run: RunId,
    seq: Seq,
    from: Option<String>,
    to: String,
}

impl Chains {
    /// What is read of the journals from now on holds at least the changes that made this.
    pub fn expect(&mut self, table: Vec<Fact>) {
        self.table = table;
    }

    /// Takes in the changes of a run.
    pub fn saw(&mut self, run: RunId, events: &[Journaled], found: &mut Findings) {
        if self.table.iter().any(|fact| fact.by == run) {
            self.passed.insert(run);
        }
        for (pos, journaled) in events.iter().enumerate() {
            let Event::Step { course, what, .. } = &journaled.event else { continue };
            let Some(change) = FactChange::of(what) else { continue };
            let comes_with = match events.get(pos + 1).map(|next| &next.event) {
                Some(Event::Step { course, what: StepEvent::Succeeded { .. }, .. }) => Some(course),
                _ => None,
            };
            if comes_with != Some(course) {
                let message = format!(
                    "the fact {:?} changes, but not with a success of the step: an attempt without one changes nothing",
                    change.name
                );
                found.add(RuleId::Facts, journaled.seq, message);
            }
            self.link(run, journaled.seq, change, found);
        }
    }

    fn link(&mut self, run: RunId, seq: Seq, change: FactChange, found: &mut Findings) {
        let FactChange { name, from, to, version } = change;
        let mut wrong = |what: String| found.add(RuleId::Facts, seq, format!("the fact {name:?}: {what}"));
        let known = self.changes.entry(name.clone()).or_default();
        if (version == 1) != from.is_none() {
            wrong(format!("its change {version} is from {from:?}; the first, and only it, is from nothing"));
        }
        let before = version.checked_sub(1).and_then(|before| known.get(&before));
        if let Some(before) = before.filter(|before| Some(&before.to) != from.as_ref()) {
            let (other, at, left) = (before.run, before.seq, &before.to);
            wrong(format!(
                "it is changed from {from:?}, but run {other} had left it at {left:?} (event {at})"
            ));
        }
        let after = version.checked_add(1).and_then(|after| known.get(&after));
        if let Some(after) = after.filter(|after| after.from.as_ref() != Some(&to)) {
            let (other, at, found) = (after.run, after.seq, &after.from);
            wrong(format!("it is left at {to:?}, but run {other} found it at {found:?} (event {at})"));
        }
        if let Some(twin) = known.insert(version, Change { run, seq, from, to }) {
            let (other, at) = (twin.run, twin.seq);
            wrong(format!(
                "its change {version} was made by run {other} as well (event {at}): neither was told of the other"
            ));
        }
    }

    /// Every run has passed by; `now` is the table as it is after that.
    pub fn compare(&self, now: &[Fact], found: &mut Findings) {
        for fact in &self.table {
            let (name, version, run) = (&fact.name, fact.version, fact.by);
            let change = self.changes.get(name).and_then(|changes| changes.get(&version));
            let message = match change {
                Some(change) if change.run == run && change.to == fact.value => continue,
                Some(change) => format!(
                    "the fact {name:?} is {:?} by run {run}, but run {} says that it left it at {:?} then (event {})",
                    fact.value, change.run, change.to, change.seq
                ),
                // The run was removed.
                None if !self.passed.contains(&run) => continue,
                None => format!(
                    "the fact {name:?} is {:?} by run {run}, whose journal knows nothing of it: it was changed by hand",
                    fact.value
                ),
            };
            found.add(RuleId::Facts, None, message);
        }
        for (name, changes) in &self.changes {
            let Some((version, last)) = changes.last_key_value() else { continue };
            let stands = now.iter().find(|fact| fact.name == *name);
            let fits = stands.is_some_and(|fact| {
                fact.version > *version
                    || (fact.version == *version && fact.value == last.to && fact.by == last.run)
            });
            if !fits {
                let stands = stands.map_or("is not there".to_owned(), |fact| {
                    format!("is {:?} by run {}", fact.value, fact.by)
                });
                let message = format!(
                    "the fact {name:?} {stands}, but run {} has left it at {:?} (event {}): a change was lost",
                    last.run, last.to, last.seq
                );
                found.add(RuleId::Facts, None, message);
            }
        }
    }
}
