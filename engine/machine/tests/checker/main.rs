//! The checker takes every legal history, and rejects a corrupted one for each of its rules.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::unreachable,
    clippy::indexing_slicing,
    reason = "a test that does not hold should end at once"
)]

mod corrupt_ends;
mod corrupt_facts;
mod corrupt_people;
mod corrupt_rows;
mod corrupt_steps;
mod corruptions;
mod history;
mod legal;
mod plans;
mod sim;
