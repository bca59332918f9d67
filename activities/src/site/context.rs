//! Whether a machine can be failed over: a fact for each context, which every run goes by.
//!
//! ```text
//!                        claim-context               record-failed-over
//!   ready_for_failover ----------------> failing_over ----------------> failed_over_test, failed_over_live
//!                      <----------------              <----------------
//!                       release-context              withdraw-failed-over
//! ```
//!
//! A context of which nobody has said anything is ready. Each move is a compare-and-set in the commit that journals it, and
//! only the run that has claimed a context moves it on, or gives it back. So a run that came to no good end leaves its
//! context as it is, and no other begins on it, until people have seen to it: `settle-context` says what they found.

use async_trait::async_trait;
use backstay_engine::{Activity, Context, Failure, RunId, Seen};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

/// What a context can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Status {
    ReadyForFailover,
    FailingOver,
    FailedOverTest,
    FailedOverLive,
}

impl Status {
    fn as_str(self) -> &'static str {
        match self {
            Self::ReadyForFailover => "ready_for_failover",
            Self::FailingOver => "failing_over",
            Self::FailedOverTest => "failed_over_test",
            Self::FailedOverLive => "failed_over_live",
        }
    }
}

/// A context.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct OfContext {
    context: String,
}

/// What has become of it.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Recorded {
    context: String,
    status: Status,
}

/// What people have found.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Settled {
    context: String,
    /// What it is yet.
    was: Status,
    /// The run that had set that.
    set_by: RunId,
    /// What it is from now on.
    status: Status,
}

/// What a context is. None: nobody has said anything.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct ContextIs {
    status: Option<String>,
    /// What it was before.
    was: Option<String>,
}

/// The fact that a context's status is.
fn name(context: &str) -> String {
    format!("context/{context}")
}

fn is(seen: &Seen<'_>, status: Status) -> bool {
    seen.value() == Some(status.as_str())
}

fn stays(seen: &Seen<'_>) -> ContextIs {
    let status = seen.value().map(str::to_owned);
    ContextIs { was: status.clone(), status }
}

fn becomes(seen: &Seen<'_>, status: Status) -> Result<ContextIs, Failure> {
    seen.becomes(status.as_str())?;
    Ok(ContextIs { status: Some(status.as_str().to_owned()), was: seen.value().map(str::to_owned) })
}

/// In words, and who has set it.
fn found(context: &str, seen: &Seen<'_>) -> String {
    match seen.get() {
        Some(fact) => {
            format!("the context {context} is {}, set by run {} at {}", fact.value, fact.by, fact.at)
        }
        None => format!("nobody has said anything of the context {context}"),
    }
}

fn refused(code: &str, context: &str, seen: &Seen<'_>, instead: &str) -> Failure {
    let message = format!("{}: {instead}", found(context, seen));
    let details = json!({ "context": context, "status": seen.value(), "set_by": seen.by() });
    Failure::permanent(code, message).not_applied().details(details)
}

/// Whoever holds a context moves it on from one status to another; that it is done already is as good.
fn move_on(
    context: &str,
    seen: &Seen<'_>,
    (from, to): (Status, Status),
    way_out: &str,
) -> Result<ContextIs, Failure> {
    if seen.is_ours() && is(seen, to) {
        return Ok(stays(seen));
    }
    if seen.is_ours() && is(seen, from) {
        return becomes(seen, to);
    }
    let instead = format!(
        "this run had left it at {}, and it was moved since. Find out who has the machine and see to it; then skip this step, \
         or {way_out}",
        from.as_str()
    );
    Err(refused("context_moved", context, seen, &instead))
}

/// For an undo that was refused: what is ready is nothing that could be taken back.
const SETTLE: &str = "say with settle-context that the context is ready, and retry it";

pub(super) struct ClaimContext;

#[async_trait]
impl Activity for ClaimContext {
    const NAME: &'static str = "claim-context";
    type Input = OfContext;
    type Output = ContextIs;

    async fn run(&self, context: &Context, input: OfContext) -> Result<ContextIs, Failure> {
        let id = input.context;
        let seen = context.fact(name(&id)).await?;
        if seen.value().is_none() || is(&seen, Status::ReadyForFailover) {
            return becomes(&seen, Status::FailingOver);
        }
        if seen.is_ours() && is(&seen, Status::FailingOver) {
            return Ok(stays(&seen));
        }
        let instead = "it is ready again when that run is rolled back; if that run is over, people have to see to the machine, \
                       and say so with settle-context";
        Err(refused("context_not_ready", &id, &seen, instead))
    }
}

pub(super) struct ReleaseContext;

#[async_trait]
impl Activity for ReleaseContext {
    const NAME: &'static str = "release-context";
    type Input = OfContext;
    type Output = ContextIs;

    async fn run(&self, context: &Context, input: OfContext) -> Result<ContextIs, Failure> {
        let id = input.context;
        let seen = context.fact(name(&id)).await?;
        // A claim that was refused, or cut off before its commit, has changed nothing; and people may have made it ready.
        let claimed = context.undone().is_some_and(|undone| undone.output.is_some());
        if is(&seen, Status::ReadyForFailover) || (!claimed && !seen.is_ours()) {
            return Ok(stays(&seen));
        }
        move_on(&id, &seen, (Status::FailingOver, Status::ReadyForFailover), SETTLE)
    }
}

pub(super) struct RecordFailedOver;

#[async_trait]
impl Activity for RecordFailedOver {
    const NAME: &'static str = "record-failed-over";
    type Input = Recorded;
    type Output = ContextIs;

    async fn run(&self, context: &Context, input: Recorded) -> Result<ContextIs, Failure> {
        let Recorded { context: id, status } = input;
        let seen = context.fact(name(&id)).await?;
        move_on(&id, &seen, (Status::FailingOver, status), "have the run rolled back")
    }
}

pub(super) struct WithdrawFailedOver;

#[async_trait]
impl Activity for WithdrawFailedOver {
    const NAME: &'static str = "withdraw-failed-over";
    type Input = Recorded;
    type Output = ContextIs;

    async fn run(&self, context: &Context, input: Recorded) -> Result<ContextIs, Failure> {
        let Recorded { context: id, status } = input;
        let seen = context.fact(name(&id)).await?;
        // People have said so meanwhile.
        if is(&seen, Status::ReadyForFailover) {
            return Ok(stays(&seen));
        }
        move_on(&id, &seen, (status, Status::FailingOver), SETTLE)
    }
}

pub(super) struct SettleContext;

#[async_trait]
impl Activity for SettleContext {
    const NAME: &'static str = "settle-context";
    type Input = Settled;
    type Output = ContextIs;

    async fn run(&self, context: &Context, input: Settled) -> Result<ContextIs, Failure> {
        let Settled { context: id, was, set_by, status } = input;
        let seen = context.fact(name(&id)).await?;
        if seen.is_ours() && is(&seen, status) {
            return Ok(stays(&seen));
        }
        if is(&seen, was) && seen.by() == Some(set_by) {
            return becomes(&seen, status);
        }
        let instead = format!("it was to be {} by run {set_by}; look again", was.as_str());
        Err(refused("context_moved", &id, &seen, &instead))
    }
}
