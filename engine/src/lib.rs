//! A durable saga engine on Postgres.
//!
//! ```text
//!   activity  what can be done: your code, and what it is given
//!   fact      named values that steps change by compare-and-set
//!   store     what did happen: the journal; the only home of SQL
//!   node      who makes it happen: claims runs, drives them, calls activities
//!   operate   how operators and clients speak to runs
//!   insight   why a run does not move, and how to finish it by hand
//!   trace     where calls stand in the traces of those who asked for them
//!   upkeep    the limits of targets and their outages, lines, and what is kept
//!   watch     who waits for what is written of runs
//!   Engine    the handle for those who embed it
//! ```
//!
//! What may happen and what happens next are decided in `backstay-machine`, which has no I/O.

pub mod activity;
mod engine;
mod fact;
mod insight;
mod node;
mod operate;
pub mod store;
pub mod trace;
mod upkeep;
mod watch;

pub use activity::{Activity, Context, Failure, Filled, Probe, Registry, Resource, Undone};
pub use async_trait::async_trait;
pub use backstay_machine as machine;
pub use backstay_machine::plan::{Effect, OnFailure, PlanBuilder, Retry, Span, output};
pub use backstay_machine::{Action, Fact, Plan, RunId, Sender, Status, Verb};
pub use engine::{Engine, EngineError, SubmitOptions, Submitted};
pub use fact::Seen;
pub use insight::{Child, Continuation};
#[cfg(debug_assertions)]
pub use node::crash;
pub use node::{Breaker, Node, NodeConfig, NodeError, Pulse};
pub use operate::{Answer, Bulk, BulkReport, PATIENCE};
pub use store::{Limits, Line, Outage, PoolInfo, Purged, RunFilter, RunInfo, ShareRow, Store, StoreError};
pub use upkeep::OutageInfo;
pub use watch::RunHandle;
