#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "this is test code"
)]
//! Workflows that are files: what they become, and what is refused.

mod anything;
mod documents;

mod examples;
mod expansion;
mod failover;
mod hostile;
mod inputs;
mod registry;
mod support;
mod trying;
