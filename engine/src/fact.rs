//! Facts, as activities see and change them.

use std::fmt;
use std::sync::{Mutex, PoisonError};

use backstay_machine::{ActivityError, Fact, FactChange, RunId};
use serde_json::json;

use crate::activity::{Context, Failure};
use crate::node::Shared;
use crate::store::Moved;

/// Characters of a fact's name.
const LONGEST_NAME: usize = 200;
/// Characters of its value.
const LONGEST_VALUE: usize = 1_000;

/// What an attempt has to do with facts: where it reads them, and what its success changes.
pub(crate) struct Facts {
    shared: Shared,
    staged: Mutex<Option<Box<FactChange>>>,
}

impl fmt::Debug for Facts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Facts").field("staged", &self.staged).finish_non_exhaustive()
    }
}

impl Facts {
    pub fn of(shared: &Shared) -> Self {
        Self { shared: Shared::clone(shared), staged: Mutex::default() }
    }

    /// What the success changes.
    pub fn take(&self) -> Option<Box<FactChange>> {
        self.staged.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// A fact as it was when an attempt looked.
#[derive(Debug)]
pub struct Seen<'a> {
    context: &'a Context,
    name: String,
    fact: Option<Fact>,
}

impl Context {
    /// A fact: a named value outside of any run, which steps change by compare-and-set. A name has 1 to 200 characters.
    pub async fn fact(&self, name: impl Into<String>) -> Result<Seen<'_>, Failure> {
        let name = name.into();
        if name.is_empty() || !is_plain(&name, LONGEST_NAME) {
            let rule =
                format!("a fact's name has 1 to {LONGEST_NAME} characters, none of them control characters");
            return Err(Failure::permanent("fact_name", rule).not_applied());
        }
        let fact = self.facts.shared.store.fact(&name).await?;
        Ok(Seen { context: self, name, fact })
    }
}

impl Seen<'_> {
    /// All of it, if anybody has set it.
    pub fn get(&self) -> Option<&Fact> {
        self.fact.as_ref()
    }

    /// Its value, if anybody has set it.
    pub fn value(&self) -> Option<&str> {
        self.fact.as_ref().map(|fact| fact.value.as_str())
    }

    /// The run that changed it last.
    pub fn by(&self) -> Option<RunId> {
        self.fact.as_ref().map(|fact| fact.by)
    }

    /// This run changed it last.
    pub fn is_ours(&self) -> bool {
        self.by() == Some(self.context.run())
    }

    /// Changes it, with the success of this attempt and in the same commit: both are there, or neither. If somebody
    /// changes it before that, this attempt fails with the code `fact_moved`, whatever it returns; the next one may look
    /// again. An attempt that fails changes nothing, and neither does one that is cut off: so it needs no probe, and what
    /// a probe finds changes nothing either. An attempt changes at most one fact.
    pub fn becomes(&self, value: impl Into<String>) -> Result<(), Failure> {
        let (name, to) = (&self.name, value.into());
        if !is_plain(&to, LONGEST_VALUE) {
            let rule = format!(
                "the value of the fact \"{name}\" has at most {LONGEST_VALUE} characters, none of them control characters"
            );
            return Err(Failure::permanent("fact_value", rule));
        }
        let (from, version) = match &self.fact {
            Some(fact) => (Some(fact.value.clone()), fact.version + 1),
            None => (None, 1),
        };
        let mut staged = self.context.facts.staged.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(other) = staged.as_ref().filter(|staged| staged.name != *name) {
            let rule = format!(
                "this attempt changes the fact \"{}\" already; the fact \"{name}\" needs a step of its own",
                other.name
            );
            return Err(Failure::permanent("one_fact", rule));
        }
        *staged = Some(Box::new(FactChange { name: name.clone(), from, to, version }));
        Ok(())
    }
}

fn is_plain(text: &str, longest: usize) -> bool {
    text.chars().count() <= longest && !text.chars().any(char::is_control)
}

/// What an attempt that had come to its end fails with, as its fact has moved. What it did beside that is done.
pub(crate) fn has_moved(change: &FactChange, moved: Moved) -> ActivityError {
    let FactChange { name, from, version, .. } = change;
    let was = from.as_ref().map_or("not set".to_owned(), |from| format!("\"{from}\""));
    let is = match &moved.found {
        Some(found) => format!("\"{}\", set by run {} at {}", found.value, found.by, found.at),
        None => "not there any more".into(),
    };
    let message = format!(
        "the fact \"{name}\" was {was} when this attempt looked, and now it is {is}: the attempt counts as failed, and has \
         changed no fact"
    );
    let details = json!({
        "fact": name, "seen": { "value": from, "version": version - 1 }, "found": moved.found,
    });
    Failure::retryable("fact_moved", message).details(details).into_error()
}
