//! Failing a machine over from VMware to CloudStack, for a rehearsal or for real.
//!
//! ```text
//!   input     what is moved, from where to where, and how
//!   runbook   the steps, in the order in which they have to be
//! ```

mod input;
mod runbook;

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde_json::Value;
use sha2::{Digest, Sha256};

pub use input::{Drivers, Failover, Mode, Snapshots};
pub use runbook::{A_TRY, ATTEMPT, CONVERSION, PATIENCE, SNAPSHOT};

use crate::input::Inputs;
use crate::problem::{Problem, Rule};
use crate::{Prepared, Workflow};

/// The workflow.
#[derive(Clone, Copy, Debug, Default)]
pub struct FailoverWorkflow;

/// What the plan is made by: a change of it makes another version.
static VERSION: LazyLock<String> = LazyLock::new(|| {
    let mut hash = Sha256::new();
    hash.update(include_bytes!("input.rs"));
    hash.update(include_bytes!("runbook.rs"));
    hex(&hash.finalize())
});

static INPUTS: LazyLock<Option<Inputs>> = LazyLock::new(Inputs::of_type::<Failover>);

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Workflow for FailoverWorkflow {
    fn name(&self) -> &str {
        "failover"
    }

    fn title(&self) -> Option<&str> {
        Some("Fail a machine over from VMware to CloudStack")
    }

    fn description(&self) -> Option<&str> {
        Some(
            "Makes a machine at CloudStack of the replicas of a machine's disks. A rehearsal leaves the source running, \
             starts the copy in a network that is cut off, and is undone by itself when its time is over. A live failover \
             shuts the source down, copies its last changes, starts the copy, and can be undone until it is committed. \
             Whatever fails on the way, the disks come home as they were.",
        )
    }

    fn version(&self) -> &str {
        &VERSION
    }

    fn input_schema(&self) -> Value {
        INPUTS.as_ref().map(|inputs| inputs.schema().clone()).unwrap_or_default()
    }

    fn prepare(&self, input: &Value) -> Result<Prepared, Vec<Problem>> {
        let unreadable = || vec![Problem::new(Rule::Schema, "", "its own schema cannot be read")];
        let input = INPUTS.as_ref().ok_or_else(unreadable)?.accept(input)?;
        let parsed: Failover = serde_json::from_value(input.clone()).map_err(|error| {
            vec![Problem::new(Rule::Input, "", format!("the input cannot be read: {error}"))]
        })?;
        let wrong: Vec<_> = parsed
            .problems()
            .into_iter()
            .map(|(place, message)| Problem::new(Rule::Input, place, message))
            .collect();
        if !wrong.is_empty() {
            return Err(wrong);
        }
        let plan = runbook::plan(&parsed);
        Ok(Prepared {
            plan: plan.spec().clone(),
            input,
            exclusive: Some(format!("vm {}", parsed.context)),
            labels: BTreeMap::from([
                ("context".to_owned(), parsed.context.clone()),
                ("mode".to_owned(), parsed.mode.word().to_owned()),
                ("vm".to_owned(), parsed.source.name.clone()),
            ]),
            version: VERSION.clone(),
        })
    }
}
