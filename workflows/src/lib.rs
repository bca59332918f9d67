//! Workflows: functions from an input to a plan.
//!
//! A workflow is written in Rust, as an implementation of [`Workflow`], or as a file, a [`Template`]; whoever lists,
//! describes, previews or submits them does not see which. Either way the plan is data that is fixed before anything
//! runs, so what is previewed is what runs.
//!
//! ```text
//!   registry     the workflows there are, by name; a directory of files read at once, all errors named
//!   template     a file: read, turned into plans                  trial    tried before anybody uses it
//!   document     YAML or JSON as a tree that knows its places
//!   input        what is taken: JSON Schema, defaults, limits      samples   inputs made up from it
//!   expression   questions about inputs, bounded                   names     what they may name, and its type
//!   outline      the steps as they are written                     fill      values with expressions in them
//!   expand       from the outline and an input to steps
//!   problem      what is wrong, and where
//! ```

mod document;
mod expand;
mod expression;
pub mod failover;
mod fill;
mod input;
pub mod limits;
mod names;
mod outline;
mod problem;
mod registry;
mod samples;
mod template;
mod trial;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use backstay_machine::{Catalog, Plan, PlanSpec};
use serde_json::Value;

pub use problem::{Mark, Problem, Rule, harmless};
pub use registry::Workflows;
pub use template::Template;

/// A function from an input to a plan.
pub trait Workflow: fmt::Debug + Send + Sync {
    /// Its name, unique among the workflows there are.
    fn name(&self) -> &str;

    /// A line for people.
    fn title(&self) -> Option<&str> {
        None
    }

    /// What it is for, in some sentences.
    fn description(&self) -> Option<&str> {
        None
    }

    /// What it is now: another version may make another plan of the same input. A hash over what it says, in hex.
    fn version(&self) -> &str;

    /// JSON Schema of its input.
    fn input_schema(&self) -> Value;

    /// The text that it was read from, if it was.
    fn source(&self) -> Option<&str> {
        None
    }

    /// The plan for an input, and what its run is submitted with. All problems are named at once; the place of each is
    /// a place in the input.
    fn prepare(&self, input: &Value) -> Result<Prepared, Vec<Problem>>;

    /// The plan for an input.
    fn plan(&self, input: &Value) -> Result<PlanSpec, Vec<Problem>> {
        self.prepare(input).map(|prepared| prepared.plan)
    }

    /// The plan for an input, checked against the activities there are.
    fn checked(&self, input: &Value, catalog: &dyn Catalog) -> Result<Arc<Plan>, Vec<Problem>> {
        Plan::check(self.plan(input)?, catalog).map_err(problem::of_plan)
    }
}

/// Reads an input, JSON or YAML, as strictly as a workflow is read.
pub fn read_input(text: &str) -> Result<Value, Problem> {
    document::read(text).map(|node| node.value())
}

/// What a run of a workflow is submitted with.
#[derive(Clone, Debug, PartialEq)]
pub struct Prepared {
    /// The plan.
    pub plan: PlanSpec,
    /// The input with its defaults; what is optional and was not given is null.
    pub input: Value,
    /// The key that no two live runs share.
    pub exclusive: Option<String>,
    /// What runs are found by.
    pub labels: BTreeMap<String, String>,
    /// The version that made it.
    pub version: String,
}
