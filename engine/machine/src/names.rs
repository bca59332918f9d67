//! Newtypes, so that a run is never taken for a step nor a claim for an epoch.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Names one run. Time-ordered (UUIDv7), so that the newest runs lie together in every index.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(transparent)]
pub struct RunId(pub Uuid);

impl RunId {
    /// A fresh id. The only place of this crate that is not a function of its arguments.
    pub fn fresh() -> Self {
        Self(Uuid::now_v7())
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for RunId {
    type Err = uuid::Error;
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Uuid::parse_str(s).map(Self)
    }
}

/// The name of a step, unique in its plan.
pub type StepName = std::sync::Arc<str>;

/// A step's place in its plan. Only a plan makes these, so they always point at a step of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StepIx(pub(crate) u32);

impl StepIx {
    /// The place as a number, for a table beside the plan's steps.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// The position of an event in its run's journal; the first is 1 and there are no gaps.
pub type Seq = i64;

/// How many times a run was claimed: each owner's events carry the number of its claim.
pub type ClaimNo = i32;

/// Names one life of one node under its lease; never granted twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub i64);

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
