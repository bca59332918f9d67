//! The commands that speak to a server.
//!
//! ```text
//!   args     what they take
//!   client   HTTP, with errors that say what to do
//!   run      runs: start, look, watch, steer
//!   people   principals, tokens, the audit trail, nodes
//!   secrets  secrets and the keys that seal them
//!   workflows  the workflows that it has
//!   show     tables, JSON, names
//! ```

pub(crate) mod args;
mod client;
pub(crate) mod people;
pub(crate) mod run;
pub(crate) mod secrets;
pub(crate) mod show;
pub(crate) mod workflows;
