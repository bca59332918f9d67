//! What clients were told against what is there (H19). Runs pass by one after another; only the log is kept.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use super::{Case, Findings, RuleId};
use crate::names::RunId;

/// Every submission that clients made, as they saw it.
#[derive(Clone, Debug, Default)]
pub struct ClientLog {
    /// In any order.
    pub submissions: Vec<Submission>,
    /// There were no other clients: a run that none of these explains was never asked for.
    pub complete: bool,
}

/// One submission.
#[derive(Clone, Debug)]
pub struct Submission {
    /// The client's key: the same for all repetitions.
    pub key: String,
    /// The run that the answer named; `None`: no answer came, the run may be there or not.
    pub run: Option<RunId>,
    /// The hash of the plan, where the client knew it.
    pub plan: Option<String>,
}

#[derive(Debug)]
pub(super) struct Clients {
    /// Acknowledged, and not seen yet.
    missing: BTreeSet<RunId>,
    /// The plan that was acknowledged.
    plans: BTreeMap<RunId, Option<String>>,
    /// Keys under which clients were told of two runs.
    doubled: Vec<String>,
    /// Keys that no answer came for: so many runs may be there that nobody knows of.
    unanswered: usize,
    complete: bool,
}

#[derive(Deserialize)]
struct Hash {
    hash: String,
}

impl Clients {
    pub fn new(log: &ClientLog) -> Self {
        let mut keys: BTreeMap<&str, BTreeSet<RunId>> = BTreeMap::new();
        let mut plans: BTreeMap<RunId, Option<String>> = BTreeMap::new();
        for submission in &log.submissions {
            let answers = keys.entry(&submission.key).or_default();
            if let Some(run) = submission.run {
                answers.insert(run);
                let known = plans.entry(run).or_default();
                *known = known.take().or_else(|| submission.plan.clone());
            }
        }
        Self {
            missing: plans.keys().copied().collect(),
            plans,
            doubled: keys.iter().filter(|(_, runs)| runs.len() > 1).map(|(key, _)| (*key).into()).collect(),
            unanswered: keys.values().filter(|runs| runs.is_empty()).count(),
            complete: log.complete,
        }
    }

    pub fn saw(&mut self, case: &Case<'_>, found: &mut Findings) {
        let Some(first) = case.rows.first() else { return };
        let Some(plan) = self.plans.get(&case.run) else {
            if self.complete && self.unanswered == 0 {
                let message = "the run is there, but no client asked for it";
                found.add(RuleId::Acknowledged, None, message);
            }
            self.unanswered = self.unanswered.saturating_sub(1);
            return;
        };
        self.missing.remove(&case.run);
        let stored = first.body.as_ref().and_then(|body| body.read::<Hash>().ok());
        if let (Some(plan), Some(Hash { hash })) = (plan, stored)
            && *plan != hash
        {
            let message = format!(
                "a client was told that plan {plan} was taken, but {hash} is what runs: it was promised something else"
            );
            found.add(RuleId::Acknowledged, first.seq, message);
        }
    }

    pub fn finish(&self, found: &mut Findings) {
        for run in &self.missing {
            let message = format!("a client was told of run {run}, but it is not there: it was lost");
            found.add(RuleId::Acknowledged, None, message);
        }
        for key in &self.doubled {
            let message =
                format!("clients were told of two runs under the key {key:?}: one request ran twice");
            found.add(RuleId::Acknowledged, None, message);
        }
    }
}
