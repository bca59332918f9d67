//! The pure half of the engine: what may happen, and what happens next.
//!
//! ```text
//!   plan    what may happen?     steps, dependencies, bindings, retries, undos; checked once, then fixed
//!   action  what is asked?       by operators, clients and other runs
//!   event   what did happen?     one fact of a run's journal, and its form as a row
//!   state   where are we?        a fold over events; the legal moves are one `match (state, event)`
//!   decide  what happens next?   from a plan, a state and a time to commands
//!   checker was it all right?    rules about a whole history, written without a line of `state`
//! ```
//!
//! Nothing here reads a clock, a socket, a file or a random number: `now` is an argument, jitter is a hash of
//! what it jitters. So a new run is the replay of a short journal and a recovered run the replay of a longer
//! one, and every property can be proven without a database.

mod act;
pub mod action;
mod chain;
pub mod checker;
pub mod decide;
pub mod event;
mod explain;
mod fact;
mod forecast;
mod json;
mod judge;
mod names;
pub mod plan;
mod runbook;
pub mod state;

pub use act::{MOVED, judge_action};
pub use action::{Action, Fate, RollBack, Verb};
pub use chain::{Broken, Chain, is_sealed};
pub use decide::{Command, Decision, Hands, decide, step_event};
pub use event::{
    ActivityError, Answer, Applied, ClaimReason, CourseId, Direction, Event, Journaled, NEEDS_OPERATOR,
    Outcome, Row, Sender, StepEvent, TARGET_DOWN, Undecodable, idempotency_key,
};
pub use explain::{Driven, Explanation, explain};
pub use fact::{FACT, Fact, FactChange};
pub use forecast::{Forecast, forecast};
pub use json::{Json, canonical, strict_json};
pub use judge::{judge, judge_probe};
pub use names::{ClaimNo, Epoch, RunId, Seq, StepIx, StepName};
pub use plan::{ActivitySpec, Catalog, CheckError, Plan, PlanSpec, Problem};
pub use runbook::runbook;
pub use state::{Course, CourseAt, Illegal, Phase, Resource, STATUSES, Signal, State, Status, Wait};

/// All times of the engine are the database's, in UTC.
pub type Time = chrono::DateTime<chrono::Utc>;
