//! At which steps a run fails: kept in the index, so that whoever looks for such runs reads no journal.

use std::collections::BTreeSet;
use std::sync::Arc;

use backstay_machine::Row;

/// Names in one row of the index. A run of which more steps fail is found by the first of them.
const MOST: usize = 200;

/// The steps whose last word, or whose undo's, is that it failed or is held. A new attempt changes nothing, its success
/// does: a target that is away for an hour changes the index once, and not with every attempt. What is undone has
/// failed all the same.
#[derive(Clone, Debug, Default)]
pub(crate) struct Failing {
    courses: BTreeSet<(Arc<str>, bool)>,
    /// There was one, perhaps in the index.
    ever: bool,
    /// The index does not say it yet.
    unsaid: bool,
}

impl Failing {
    /// As a journal has it.
    pub(crate) fn of(rows: &[Row]) -> Self {
        let mut failing = Self::default();
        rows.iter().for_each(|row| failing.hear(row));
        // Nodes of an earlier release said nothing about it. Whatever the index is told next says it.
        Self { unsaid: false, ..failing }
    }

    /// The next event.
    pub(crate) fn hear(&mut self, row: &Row) {
        let Some(step) = &row.step else { return };
        let moved = match row.kind {
            "failed" | "held" => {
                self.ever = true;
                self.courses.insert((Arc::clone(step), row.undo))
            }
            "succeeded" | "skipped" | "retried" | "recalled" if self.ever => {
                self.courses.remove(&(Arc::clone(step), row.undo))
            }
            _ => false,
        };
        self.unsaid |= moved;
    }

    /// Whether the index does not say it yet.
    pub(crate) fn is_news(&self) -> bool {
        self.unsaid
    }

    /// The index is being told.
    pub(crate) fn said(&mut self) {
        self.unsaid = false;
    }

    /// For the index; none: what it has is right.
    pub(crate) fn names(&self) -> Option<Vec<String>> {
        let mut names: Vec<_> = self.courses.iter().map(|(step, _)| step.to_string()).collect();
        // The step and its undo stand side by side.
        names.dedup();
        names.truncate(MOST);
        self.ever.then_some(names)
    }
}
