//! The machine, proven without a database.
//!
//! `BACKSTAY_SWEEP=full cargo test --release -p backstay-machine` runs the sweeps over everything they can, which
//! takes minutes; without it they run over as much as a few seconds hold.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that panics has failed, which is its job"
)]

mod big_plans;
mod children;
mod documents;
mod enumeration;
mod forecasts;
mod hands;
mod histories;
mod hostile_plans;
mod in_doubt;
mod legal_moves;
mod looks;
mod people_at_large;
mod pictures;
mod plan_rules;
mod retries;
mod schemas;
mod storage;
mod stories;
mod support;
mod verbs_anywhere;
mod verbs_of_ends;
mod verbs_of_steps;
mod verbs_of_waits;

/// Whether the long sweeps were asked for.
fn full_sweep() -> bool {
    std::env::var("BACKSTAY_SWEEP").is_ok_and(|value| value == "full")
}
