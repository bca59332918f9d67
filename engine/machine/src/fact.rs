//! Facts: named values outside of any run, which steps change by compare-and-set in the commit of their success.
//!
//! A journal carries a change as a resource of the kind [`FACT`] that stays, right before the success that it came with.
//! So releases that know nothing of facts read such a journal as they read any other.

use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::Time;
use crate::action::Fate;
use crate::event::StepEvent;
use crate::names::RunId;

/// The kind of resource that says that a fact has changed. The engine's own: no activity can tell of one.
pub const FACT: &str = "fact";

/// A fact as it stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, schemars::JsonSchema)]
pub struct Fact {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: String,
    /// Counts its changes.
    pub version: i64,
    /// The run that changed it last.
    pub by: RunId,
    /// When.
    pub at: Time,
}

/// A change of a fact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FactChange {
    /// The fact's name.
    pub name: String,
    /// What it was; `None`: nobody had set it.
    pub from: Option<String>,
    /// What it is from now on.
    pub to: String,
    /// Which change of this fact it is, from 1.
    pub version: i64,
}

#[derive(Deserialize)]
struct Details {
    from: Option<String>,
    to: String,
    version: i64,
}

impl FactChange {
    /// As the journal has it.
    pub fn event(&self) -> StepEvent {
        let details = json!({ "from": self.from, "to": self.to, "version": self.version });
        StepEvent::Resource {
            kind: FACT.into(),
            name: self.name.clone(),
            fate: Fate::Kept,
            details: Some(details),
        }
    }

    /// The change that an event tells of.
    pub fn of(event: &StepEvent) -> Option<Self> {
        let StepEvent::Resource { kind, name, details: Some(details), .. } = event else { return None };
        if kind != FACT {
            return None;
        }
        let Details { from, to, version } = Details::deserialize(details).ok()?;
        Some(Self { name: name.clone(), from, to, version })
    }
}
