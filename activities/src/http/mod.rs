//! Calls over HTTP: the activity `http`, and the guarded client that other activities use as well.
//!
//! ```text
//!   guard     where calls may go: origins and addresses
//!   client    the guarded client
//!   input     what a plan writes: a call, a probe, what is expected
//!   activity  the activity, and what an answer means
//! ```

mod activity;
mod client;
mod guard;
mod input;

pub use activity::Http;
pub(crate) use activity::retry_after;
pub use client::{Allowed, Answer, Call, CallError, Client, HttpSettings, Names, SystemNames};
pub use guard::{Networks, Origin};
pub use input::{Form, HttpInput, HttpOutput, Keep, Look, Statuses, Verb};
