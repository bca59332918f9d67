//! The same for many runs. A dry run only says which they are.

use std::time::Duration;

use axum::http::Method;
use backstay_engine::machine::{RollBack, Verb};
use backstay_engine::{Bulk, RunFilter, RunId};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::gate::Permit;
use super::operation::{Ask, InJson, Operation, Reply, operation};
use super::problem::{BAD_REQUEST, KEY_REUSED, Problem};
use super::rights::Right;
use super::runs::Which;

pub(super) fn operations() -> Vec<Operation> {
    vec![
        operation(Method::POST, "/bulk", "bulk", Right::View, bulk)
            .about(
                "verbs",
                "Asks the same of every run that a filter finds. Without `for_real` it only says which they are. It needs \
                 the right that the verb needs for one run.",
            )
            .fails(&[&KEY_REUSED]),
    ]
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Asked {
    /// Which runs.
    filter: Which,
    /// What.
    verb: Many,
    /// Why; it is kept with what is done.
    #[serde(default)]
    #[schemars(length(max = 1000))]
    why: String,
    /// Do it. Left out: only say which runs it would be asked of.
    #[serde(default)]
    for_real: bool,
}

/// What can be asked of many runs at once.
#[derive(Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Many {
    /// Start nothing more.
    Pause,
    /// Go on.
    Resume,
    /// Undo everything that was started.
    RollBack(RollBack),
    /// Make it final.
    Commit,
    /// Try a step again.
    Retry {
        /// The step.
        step: String,
        /// Its undo.
        #[serde(default)]
        undo: bool,
    },
    /// Tell them something.
    Signal {
        /// The signal's name.
        name: String,
        /// What it brings.
        #[serde(default)]
        payload: Value,
    },
}

impl Many {
    fn right(&self) -> Right {
        match self {
            Many::Pause | Many::Resume | Many::Retry { .. } => Right::Steer,
            Many::RollBack(_) => Right::RollBack,
            Many::Commit => Right::Commit,
            Many::Signal { .. } => Right::Signal,
        }
    }

    fn verb(self) -> Verb {
        match self {
            Many::Pause => Verb::Pause,
            Many::Resume => Verb::Resume,
            Many::RollBack(how) => Verb::RollBack(how),
            Many::Commit => Verb::Commit,
            Many::Retry { step, undo } => Verb::Retry { step, undo, input: None, in_doubt: false },
            Many::Signal { name, payload } => Verb::Signal { name, payload },
        }
    }
}

/// What came of it.
#[derive(Serialize, JsonSchema)]
struct Report {
    /// Nothing was asked of anybody.
    dry_run: bool,
    /// The runs that were found, the newest first.
    found: Vec<RunId>,
    /// Those that did it.
    accepted: Vec<RunId>,
    /// Those that did not.
    refused: Vec<Refusal>,
    /// Those that have not answered yet; it is durable, and they will.
    waiting: Vec<RunId>,
}

#[derive(Serialize, JsonSchema)]
struct Refusal {
    /// The run.
    run: RunId,
    /// Why.
    because: String,
}

async fn bulk(permit: Permit, ask: Ask<(), (), InJson<Asked>>) -> Result<Reply<Report>, Problem> {
    let Asked { filter, verb, why, for_real } = ask.body.0;
    permit.also(verb.right()).await?;
    let limit = filter.limit;
    if let Some(limit) = limit
        && !(1..=10_000).contains(&limit)
    {
        return Err(Problem::at(&BAD_REQUEST, "body/filter/limit", "it is 1 to 10000"));
    }
    let filter = RunFilter { limit: limit.unwrap_or(0), ..filter.filter(&permit)? };
    let wish = Bulk {
        id: permit.id_for(ask.key.as_deref()),
        who: permit.who().to_owned(),
        why,
        via: Some(permit.asked().id.clone()),
        verb: verb.verb(),
    };
    let report = permit.engine().act_on_all(&filter, &wish, !for_real, Duration::from_secs(10)).await?;
    Ok(Reply::new(Report {
        dry_run: !for_real,
        found: report.found.iter().map(|run| run.run).collect(),
        accepted: report.accepted,
        refused: report.refused.into_iter().map(|(run, because)| Refusal { run, because }).collect(),
        waiting: report.waiting,
    }))
}
